//! Attention nodes of a program on [`crate::kernels::attention`].

use tenon_graph::backend::BackendError;
use tenon_graph::composite::Attrs;
use tenon_graph::graph::Value;
use tenon_graph::lower::access::Strided;

use super::{Kernel, Operand, Target};
use crate::isa::Cpu;
use crate::kernels::attention::{
    Attention, Gradients, Operands, Results, Sizes, attention, attention_gradient, attention_gradient_scratch_bytes,
    attention_scratch_bytes,
};
use crate::session::Table;

/// Forward attention.
pub struct Forward {
    shared: Shared,
    out: Target,
    log_sum_exp: Target,
}

/// The gradients of attention.
pub struct Backward {
    shared: Shared,
    /// Output, log-sum-exp and the output's gradient.
    results: [Operand; 3],
    /// Of query, key and value.
    gradients: [Target; 3],
}

struct Shared {
    spec: Attention,
    /// Query, key and value.
    tensors: [Operand; 3],
    mask: Option<Operand>,
    position: Option<Value>,
    scratch: usize,
}

impl Shared {
    fn new(attrs: &Attrs, operands: &[Operand], optional: &[Operand]) -> (Shared, Sizes) {
        let [query, key, value] = operands else { unreachable!("attention has three tensors") };
        let mut optional = optional.iter();
        let mask = if attrs.flag("has_mask") { optional.next().cloned() } else { None };
        let position = if attrs.flag("has_position") { optional.next().map(|p| p.window.root) } else { None };
        let size = |w: &Strided, axis: usize| w.sizes[axis];
        let sizes = Sizes {
            b: size(&query.window, 0),
            t: size(&query.window, 1),
            h: size(&query.window, 2),
            s: size(&key.window, 1),
            g: size(&key.window, 2),
            d: size(&query.window, 3),
            dtype: query.dtype,
        };
        let scale = match attrs.float("scale") {
            0.0 => 1.0 / (sizes.d as f64).sqrt(),
            scale => scale,
        };
        let spec = Attention {
            causal: attrs.flag("causal"),
            window: attrs.int("window") as usize,
            position: 0,
            // Any factor so small makes all weights equal, but hidden scores must stay infinite.
            scale: if scale as f32 == 0.0 { f32::MIN_POSITIVE } else { scale as f32 },
        };
        let tensors = [query.clone(), key.clone(), value.clone()];
        (Shared { spec, tensors, mask, position, scratch: 0 }, sizes)
    }

    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn spec(&self, table: &Table) -> Attention {
        // SAFETY: a position is one i32 in a buffer of its own.
        let position = self.position.map_or(0, |p| unsafe { table.get(p).cast::<i32>().read() });
        Attention { position, ..self.spec }
    }

    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn operands<'a>(&self, table: &'a Table) -> Operands<'a> {
        // SAFETY: the windows were made for these buffers.
        unsafe {
            let [query, key, value] = self.tensors.each_ref().map(|t| t.view(table));
            Operands { query, key, value, mask: self.mask.as_ref().map(|m| m.view(table)) }
        }
    }
}

impl Forward {
    /// The kernel of an `attention` node.
    pub fn new(cpu: &Cpu, attrs: &Attrs, operands: &[Operand], targets: &[Target]) -> Forward {
        let (mut shared, sizes) = Shared::new(attrs, &operands[..3], &operands[3..]);
        shared.scratch = attention_scratch_bytes(&sizes, cpu.isa(), cpu.pool.threads());
        Forward { shared, out: targets[0].clone(), log_sum_exp: targets[1].clone() }
    }
}

impl Kernel for Forward {
    fn scratch_bytes(&self) -> usize {
        self.shared.scratch
    }

    unsafe fn run(&self, cpu: &Cpu, table: &Table, scratch: *mut u8) -> Result<(), BackendError> {
        // SAFETY: windows and targets were made for these buffers, the plan keeps targets apart from operands, and the
        // scratch is as large as was asked for.
        unsafe {
            let scratch = std::slice::from_raw_parts_mut(scratch, self.shared.scratch);
            let (out, sums) = (self.out.view(table), self.log_sum_exp.view(table));
            attention(cpu, &self.shared.spec(table), &self.shared.operands(table), out, sums, scratch);
        }
        Ok(())
    }
}

impl Backward {
    /// The kernel of an `attention_gradient` node.
    pub fn new(cpu: &Cpu, attrs: &Attrs, operands: &[Operand], targets: &[Target]) -> Backward {
        let (mut shared, sizes) = Shared::new(attrs, &operands[..3], &operands[6..]);
        shared.scratch = attention_gradient_scratch_bytes(&sizes, cpu.isa(), cpu.pool.threads());
        Backward {
            shared,
            results: [3, 4, 5].map(|i| operands[i].clone()),
            gradients: [0, 1, 2].map(|i| targets[i].clone()),
        }
    }
}

impl Kernel for Backward {
    fn scratch_bytes(&self) -> usize {
        self.shared.scratch
    }

    unsafe fn run(&self, cpu: &Cpu, table: &Table, scratch: *mut u8) -> Result<(), BackendError> {
        // SAFETY: as in forward.
        unsafe {
            let scratch = std::slice::from_raw_parts_mut(scratch, self.shared.scratch);
            let [out, log_sum_exp, out_gradient] = self.results.each_ref().map(|r| r.view(table));
            let [query, key, value] = self.gradients.each_ref().map(|g| g.view(table));
            let mut gradients = Gradients { query, key, value };
            let results = Results { out, log_sum_exp, out_gradient };
            let spec = self.shared.spec(table);
            attention_gradient(cpu, &spec, &self.shared.operands(table), &results, &mut gradients, scratch);
        }
        Ok(())
    }
}
