//! Runs programs of fused units only, checks each result of an unfused program against `f64`, and makes inputs.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use tenon_cpu::isa::{Cpu, Isa};
use tenon_cpu::rows::RowProgram;
use tenon_graph::elementwise::{Binary, Unary};
use tenon_graph::graph::{Graph, Node, Value};
use tenon_graph::lower::access::{Strided, resolve};
use tenon_graph::lower::memory::Place;
use tenon_graph::lower::{Program, Step, Work, lower};
use tenon_graph::op::{Op, ReduceOp, Source};
use tenon_graph::random::random_bits;
use tenon_graph::types::DType;

/// Every instruction set of this processor, together with one, two and three threads.
pub static CPUS: LazyLock<Vec<Cpu>> = LazyLock::new(|| {
    let isas = Isa::supported();
    let best = *isas.last().expect("the portable one at least");
    let pairs = isas.iter().enumerate().map(|(i, isa)| (*isa, 1 + i % 3)).chain([1, 2, 3].map(|n| (best, n)));
    pairs.map(|(isa, threads)| Cpu::with_isa(threads, isa).expect("supported")).collect()
});

/// A cheap generator of numbers for tests.
pub struct Rng(pub u64);

impl Rng {
    /// Any bits.
    pub fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 ^ (self.0 >> 22)) >> (22 + (self.0 >> 61))) as u32
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.bits() as usize % n
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Within -3..3, rarely zero.
    pub fn number(&mut self) -> f32 {
        if self.below(50) == 0 { 0.0 } else { (self.bits() as f64 / 2f64.powi(32) * 6.0 - 3.0) as f32 }
    }
}

/// Memory that starts at a cache line.
pub struct Memory {
    lines: Vec<Line>,
    bytes: usize,
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _bytes: [u8; 64],
}

impl Memory {
    /// This many bytes, all `fill`.
    pub fn new(bytes: usize, fill: u8) -> Memory {
        Memory { lines: vec![Line { _bytes: [fill; 64] }; bytes.div_ceil(64).max(1)], bytes }
    }

    /// The bytes.
    pub fn slice(&mut self) -> &mut [u8] {
        // SAFETY: the lines are as many bytes or more, without padding.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.bytes) }
    }
}

/// One element's bytes.
pub fn encode(x: f64, dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => (x as f32).to_le_bytes().to_vec(),
        DType::BF16 => half::bf16::from_f32(x as f32).to_le_bytes().to_vec(),
        DType::I32 => (x as i32).to_le_bytes().to_vec(),
        DType::U32 => (x as u32).to_le_bytes().to_vec(),
        DType::U8 | DType::Bool => vec![x as u8],
    }
}

/// The element at `index`.
pub fn decode(bytes: &[u8], index: usize, dtype: DType) -> f64 {
    let part = &bytes[index * dtype.size()..][..dtype.size()];
    match dtype {
        DType::F32 => f32::from_le_bytes(part.try_into().expect("four bytes")).into(),
        DType::BF16 => half::bf16::from_le_bytes(part.try_into().expect("two bytes")).into(),
        DType::I32 => i32::from_le_bytes(part.try_into().expect("four bytes")).into(),
        DType::U32 => u32::from_le_bytes(part.try_into().expect("four bytes")).into(),
        DType::U8 | DType::Bool => part[0].into(),
    }
}

/// Input buffers by name.
pub type Inputs = BTreeMap<String, Vec<u8>>;

/// Random contents for every input of a graph.
pub fn random_inputs(graph: &Graph, rng: &mut Rng) -> Inputs {
    let fill = |ty: &tenon_graph::types::Type, rng: &mut Rng| -> Vec<u8> {
        let element = |rng: &mut Rng| match ty.dtype {
            DType::Bool => f64::from(rng.bits() & 1),
            DType::U8 => f64::from(rng.bits() & 0xFF),
            DType::U32 => f64::from(rng.bits()),
            DType::I32 => f64::from((rng.bits() % 41) as i32 - 20),
            DType::F32 | DType::BF16 => rng.number().into(),
        };
        (0..ty.elements()).flat_map(|_| encode(element(rng), ty.dtype)).collect()
    };
    graph.inputs().map(|(_, name, _, ty)| (name.to_string(), fill(ty, rng))).collect()
}

/// The buffers of a program under way.
struct Machine<'a> {
    program: &'a Program,
    arena: Memory,
    inputs: BTreeMap<Value, Memory>,
}

impl Machine<'_> {
    fn pointer(&mut self, value: Value) -> *mut u8 {
        match self.program.places[value.index()].unwrap_or_else(|| panic!("{value:?} has no buffer")) {
            Place::Input(input) => self.inputs.get_mut(&input).expect("given").slice().as_mut_ptr(),
            Place::Arena(offset) => self.arena.slice()[offset..].as_mut_ptr(),
        }
    }

    fn bytes(&mut self, value: Value) -> Vec<u8> {
        let bytes = self.program.graph.ty(value).bytes();
        let pointer = self.pointer(value);
        // SAFETY: the program gives each value a place with as many bytes.
        unsafe { std::slice::from_raw_parts(pointer, bytes) }.to_vec()
    }

    /// The elements that an operand reads.
    fn read(&mut self, value: Value) -> Vec<f64> {
        let program = self.program;
        let graph = &program.graph;
        let window = resolve(graph, value, &|v| program.places[v.index()].is_some()).expect("a window");
        let dtype = graph.ty(value).dtype;
        let root = match graph.op_of(window.root) {
            Op::Source(Source::Constant { value, .. }) => vec![decode(&encode(*value, dtype), 0, dtype)],
            Op::Source(Source::Iota { axis, ty }) => {
                let sizes = ty.shape.sizes();
                let inner: usize = sizes[axis + 1..].iter().product();
                (0..ty.elements())
                    .map(|i| decode(&encode((i / inner % sizes[*axis]) as f64, dtype), 0, dtype))
                    .collect()
            }
            _ => {
                let bytes = self.bytes(window.root);
                (0..graph.ty(window.root).elements()).map(|i| decode(&bytes, i, dtype)).collect()
            }
        };
        offsets(&window).into_iter().map(|at| root[at]).collect()
    }

    fn step(&mut self, step: &Step, cpu: &Cpu) {
        match &step.work {
            Work::Fused(fused) => {
                let rows = RowProgram::new(cpu, fused, &self.program.graph);
                let buffers: Vec<*mut u8> = rows.buffers().iter().map(|v| self.pointer(*v)).collect();
                let mut scratch = Memory::new(rows.scratch_bytes(cpu.pool.threads()), 0xC3);
                // SAFETY: the program's places are large enough and apart where they must be.
                unsafe { rows.run(cpu, &buffers, scratch.slice()) };
            }
            Work::Copy { source, target } => {
                let (size, bytes) = (self.program.graph.ty(*target).dtype.size(), self.bytes(source.root));
                let to = self.pointer(*target);
                for (i, at) in offsets(source).into_iter().enumerate() {
                    // SAFETY: the target has as many elements as the window.
                    unsafe { to.add(i * size).copy_from(bytes[at * size..].as_ptr(), size) };
                }
            }
            Work::Kernel { node, .. } => panic!("{} needs a kernel", self.program.graph.node(*node).op.name()),
        }
    }
}

/// The elements of a window's buffer, in order.
fn offsets(window: &Strided) -> Vec<usize> {
    let mut offsets = vec![window.offset];
    for (size, stride) in window.sizes.iter().zip(&window.strides) {
        offsets = offsets.iter().flat_map(|at| (0..*size).map(move |i| at + i * stride)).collect();
    }
    offsets
}

/// Runs a program; the bytes of its results and updated inputs, with every NaN the same.
pub fn run(program: &Program, inputs: &Inputs, cpu: &Cpu, mut check: impl FnMut(&str)) -> BTreeMap<String, Vec<u8>> {
    let graph = &program.graph;
    let buffers = graph.inputs().map(|(value, name, ..)| {
        let mut memory = Memory::new(inputs[&**name].len(), 0);
        memory.slice().copy_from_slice(&inputs[&**name]);
        (value, memory)
    });
    let mut machine = Machine { program, arena: Memory::new(program.arena_bytes, 0x7F), inputs: buffers.collect() };
    for step in &program.steps {
        let single = match step.nodes.as_slice() {
            [node] if matches!(step.work, Work::Fused(_)) => Some(*node),
            _ => None,
        };
        let operands: Vec<Vec<f64>> =
            single.iter().flat_map(|n| graph.node(*n).inputs.iter()).map(|v| machine.read(*v)).collect();
        machine.step(step, cpu);
        if let Some(node) = single {
            let found = machine.read(graph.node(node).output());
            if let Some(message) = wrong(graph, node, &operands, &found) {
                check(&message);
            }
        }
    }
    let updates = graph.updates.iter().map(|(input, _)| (format!("new {}", input.index()), *input));
    let outputs = graph.outputs.iter().map(|(name, value)| (name.to_string(), *value)).chain(updates);
    outputs
        .map(|(name, value)| {
            let (dtype, root) = (graph.ty(value).dtype, program.place(value).map(|_| root_of(program, value)));
            let bytes = machine.bytes(root.unwrap_or(value));
            let element = |i: usize| &bytes[i * dtype.size()..][..dtype.size()];
            let canonical = |i| match decode(&bytes, i, dtype) {
                x if x.is_nan() => encode(f64::NAN, dtype),
                _ => element(i).to_vec(),
            };
            (name, (0..graph.ty(value).elements()).flat_map(canonical).collect())
        })
        .collect()
}

fn root_of(program: &Program, value: Value) -> Value {
    let stored = |v: Value| program.places[v.index()].is_some();
    resolve(&program.graph, value, &stored).expect("results are whole buffers").root
}

/// Runs a graph unfused and checked, then fused on every instruction set and number of threads: all bits must agree.
pub fn check(name: &str, graph: Graph, rng: &mut Rng) -> Result<(), String> {
    let inputs = random_inputs(&graph, rng);
    check_with(name, graph, &inputs)
}

/// [`check`] with these inputs.
pub fn check_with(name: &str, graph: Graph, inputs: &Inputs) -> Result<(), String> {
    let unfused = lower(graph.clone(), false);
    let mut failures: Vec<String> = Vec::new();
    let expected = run(&unfused, inputs, &CPUS[0], |message| failures.push(message.to_string()));
    let fused = lower(graph, true);
    for (program, how) in [(&unfused, "unfused"), (&fused, "fused")] {
        for cpu in CPUS.iter() {
            let found = run(program, inputs, cpu, |message| failures.push(message.to_string()));
            for (key, bytes) in &expected {
                if let Some(at) = bytes.iter().zip(&found[key]).position(|(a, b)| a != b) {
                    let cpu = format!("{} with {} threads", cpu.isa().name(), cpu.pool.threads());
                    failures.push(format!("{key}: byte {at} differs {how} on {cpu}"));
                }
            }
        }
    }
    failures.truncate(5);
    if failures.is_empty() {
        Ok(())
    } else {
        Err(format!("{name}: {}\n{fused:#?}", failures.join("\n"), fused = fused.steps))
    }
}

/// What is wrong with a node's result, given its operands.
fn wrong(graph: &Graph, node: Node, operands: &[Vec<f64>], found: &[f64]) -> Option<String> {
    let data = graph.node(node);
    let ty = graph.ty(data.output());
    let from = data.inputs.first().map(|v| graph.ty(*v).dtype);
    let n = ty.elements();
    let mut tolerance = vec![0.0; n];
    let exact: Vec<f64> = match &data.op {
        Op::Source(_) => return None,
        Op::Random(random) => {
            let key = [operands[0][0] as u32, operands[0][1] as u32];
            (0..n).map(|i| random_bits(key, random.stream, i as u64).into()).collect()
        }
        Op::Unary(op) => {
            let close = if *op == Unary::Sigmoid { sigmoid } else { op.def().eval };
            operands[0].iter().map(|x| close(*x)).collect()
        }
        Op::Binary(op) => {
            let product = |a: f64, b: f64| (a as i64).wrapping_mul(b as i64) as u32 as f64;
            let whole = *op == Binary::Mul && ty.dtype.is_int();
            let eval = |(a, b): (&f64, &f64)| if whole { product(*a, *b) } else { (op.def().eval)(*a, *b) };
            operands[0].iter().zip(&operands[1]).map(eval).collect()
        }
        Op::Select => (0..n).map(|i| operands[if operands[0][i] != 0.0 { 1 } else { 2 }][i]).collect(),
        Op::Cast(to) => operands[0]
            .iter()
            .map(|x| converted(*x, from == Some(DType::F32) || from == Some(DType::BF16), *to))
            .collect(),
        Op::Reduce(reduce) => {
            let sizes = graph.ty(data.inputs[0]).shape.sizes();
            let mut lists: Vec<Vec<f64>> = vec![Vec::new(); n];
            for (i, x) in operands[0].iter().enumerate() {
                let (mut rest, mut at, mut stride) = (i, 0, 1);
                for (axis, size) in sizes.iter().enumerate().rev() {
                    if !reduce.axes.contains(&axis) {
                        at += rest % size * stride;
                        stride *= size;
                    }
                    rest /= size;
                }
                lists[at].push(*x);
            }
            if reduce.op == ReduceOp::Sum && ty.dtype.is_float() {
                // Lanes of 32, then chunks: far fewer roundings follow each other than there are elements.
                let magnitude = |xs: &Vec<f64>| xs.iter().map(|x| x.abs()).sum::<f64>() * (xs.len() as f64 / 8.0 + 8.0);
                tolerance = lists.iter().map(|xs| magnitude(xs) * 2f64.powi(-24)).collect();
            }
            lists.iter().map(|xs| reduced(reduce.op, ty.dtype, xs)).collect()
        }
        op => panic!("{} is not part of a fused unit", op.name()),
    };
    let ulp = |x: f64, bits: i32| 2f64.powi((x.abs().log2().floor() as i32).clamp(-126, 127) - bits);
    (0..n).find_map(|i| {
        let (exact, found) = (exact[i], found[i]);
        let near = match ty.dtype {
            DType::F32 => 2.0 * ulp(exact, 23),
            DType::BF16 => 0.51 * ulp(exact, 7),
            DType::I32 => {
                return (found != f64::from(exact as i64 as i32)).then(|| report(graph, node, i, exact, found));
            }
            DType::U32 => {
                return (found != f64::from(exact as i64 as u32)).then(|| report(graph, node, i, exact, found));
            }
            DType::U8 => return (found != f64::from(exact as i64 as u8)).then(|| report(graph, node, i, exact, found)),
            DType::Bool => return (found != exact).then(|| report(graph, node, i, exact, found)),
        };
        let overflow = exact.abs() >= f64::from(f32::MAX) * 0.99 && found.abs() >= f64::from(f32::MAX) * 0.99;
        let same = (exact.is_nan() && found.is_nan()) || exact == found || overflow;
        let close = same || (exact - found).abs() <= near + tolerance[i];
        (!close).then(|| report(graph, node, i, exact, found))
    })
}

fn report(graph: &Graph, node: Node, index: usize, exact: f64, found: f64) -> String {
    let data = graph.node(node);
    let operands: Vec<String> = data.inputs.iter().map(|v| graph.ty(*v).to_string()).collect();
    let result = graph.ty(data.output());
    format!("{} ({}) -> {result}: element {index} is {found:e}, not {exact:e}", data.op.name(), operands.join(", "))
}

/// The sigmoid without loss for large negative operands.
fn sigmoid(x: f64) -> f64 {
    let e = (-x.abs()).exp();
    (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}

fn converted(x: f64, from_float: bool, to: DType) -> f64 {
    match to {
        DType::I32 if from_float => f64::from(x as i32),
        DType::U32 if from_float => f64::from(x as u32),
        DType::U8 if from_float => f64::from(x as u8),
        DType::Bool => f64::from(u8::from(x != 0.0)),
        DType::F32 => f64::from(x as f32),
        DType::BF16 => half::bf16::from_f32(x as f32).to_f64(),
        DType::I32 | DType::U32 | DType::U8 => x,
    }
}

fn reduced(op: ReduceOp, dtype: DType, xs: &[f64]) -> f64 {
    let max = Binary::Max.def().eval;
    match op {
        ReduceOp::Sum => xs.iter().sum(),
        ReduceOp::Max => {
            let least = match dtype {
                DType::I32 => i32::MIN.into(),
                DType::U32 | DType::U8 | DType::Bool => 0.0,
                DType::F32 | DType::BF16 => f64::NEG_INFINITY,
            };
            xs.iter().fold(least, |a, b| max(a, *b))
        }
        ReduceOp::ArgMax => {
            let largest = xs.iter().fold(f64::NEG_INFINITY, |a, b| max(a, *b));
            let is = |x: &f64| *x == largest || (x.is_nan() && largest.is_nan());
            xs.iter().position(is).unwrap_or(0) as f64
        }
    }
}
