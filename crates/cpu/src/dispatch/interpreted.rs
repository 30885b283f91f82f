//! Steps without a kernel: run by the reference evaluator.

use tenon_graph::backend::BackendError;
use tenon_graph::dim::Bindings;
use tenon_graph::graph::{Graph, Value};
use tenon_graph::lower::isolate::{Isolated, isolate, name};
use tenon_graph::lower::{Program, Step};
use tenon_graph::reference::{Array, Inputs, Precision, evaluate};
use tenon_graph::types::{DType, Type};

use super::Kernel;
use crate::isa::Cpu;
use crate::session::Table;

/// A step as a graph of its own.
pub struct Interpreted {
    graph: Graph,
    reads: Vec<(Value, Type)>,
    writes: Vec<(Value, Type)>,
}

impl Interpreted {
    /// The step.
    pub fn new(program: &Program, step: &Step) -> Interpreted {
        let Isolated { graph, reads } = isolate(program, step);
        let typed = |v: Value| (v, program.graph.ty(v).clone());
        let reads = reads.into_iter().map(typed).collect();
        Interpreted { reads, writes: step.writes.iter().map(|v| typed(*v)).collect(), graph }
    }
}

/// The elements of a buffer.
pub fn decode(bytes: &[u8], ty: &Type) -> Array {
    let words = || bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
    let data: Vec<f64> = match ty.dtype {
        DType::F32 => words().map(|w| f64::from(f32::from_le_bytes(w))).collect(),
        DType::I32 => words().map(|w| f64::from(i32::from_le_bytes(w))).collect(),
        DType::U32 => words().map(|w| f64::from(u32::from_le_bytes(w))).collect(),
        DType::BF16 => bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        DType::U8 | DType::Bool => bytes.iter().map(|b| f64::from(*b)).collect(),
    };
    Array::new(ty.dtype, ty.shape.sizes(), data)
}

fn encode(array: &Array, bytes: &mut [u8]) {
    for (i, x) in array.data.iter().enumerate() {
        match array.dtype {
            DType::F32 => bytes[4 * i..4 * i + 4].copy_from_slice(&(*x as f32).to_le_bytes()),
            DType::I32 => bytes[4 * i..4 * i + 4].copy_from_slice(&(*x as i32).to_le_bytes()),
            DType::U32 => bytes[4 * i..4 * i + 4].copy_from_slice(&(*x as u32).to_le_bytes()),
            DType::BF16 => bytes[2 * i..2 * i + 2].copy_from_slice(&half::bf16::from_f64(*x).to_le_bytes()),
            DType::U8 | DType::Bool => bytes[i] = *x as u8,
        }
    }
}

impl Kernel for Interpreted {
    unsafe fn run(&self, _: &Cpu, table: &Table, _: *mut u8) -> Result<(), BackendError> {
        let inputs: Inputs = self
            .reads
            .iter()
            .map(|(value, ty)| {
                // SAFETY: the buffer of a stored value has the bytes of its type.
                let bytes = unsafe { std::slice::from_raw_parts(table.get(*value), ty.bytes()) };
                (name(*value), decode(bytes, ty))
            })
            .collect();
        let results = evaluate(&self.graph, &Bindings::new(), &inputs, Precision::F32)
            .map_err(|e| BackendError { message: e.message.clone(), site: Some(e.site) })?;
        for (value, ty) in &self.writes {
            // SAFETY: as above; nothing reads it now.
            let bytes = unsafe { std::slice::from_raw_parts_mut(table.get(*value), ty.bytes()) };
            encode(&results.outputs[name(*value).as_str()], bytes);
        }
        Ok(())
    }
}
