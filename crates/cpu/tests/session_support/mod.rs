//! Runs programs in sessions of the CPU backend, and turns arrays of the reference evaluator into bytes and back.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use tenon_cpu::CpuBackend;
use tenon_cpu::isa::{Cpu, Isa};
use tenon_graph::backend::{Backend, Session};
use tenon_graph::graph::Graph;
use tenon_graph::lower::{Program, lower};
use tenon_graph::op::Role;
use tenon_graph::reference::{Array, Inputs};
use tenon_graph::tensor::Builder;
use tenon_graph::testing::Rng;
use tenon_graph::types::{DType, Type};

/// Every instruction set of this processor with one, two and three threads.
pub static BACKENDS: LazyLock<Vec<(String, CpuBackend)>> = LazyLock::new(|| {
    let pairs = Isa::supported().into_iter().flat_map(|isa| [1, 2, 3].map(|threads| (isa, threads)));
    let backend = |(isa, threads)| {
        let cpu = Cpu::with_isa(threads, isa).expect("supported");
        (format!("{} with {threads} threads", isa.name()), CpuBackend::with(cpu))
    };
    pairs.map(backend).collect()
});

/// The bytes of an array.
pub fn encode(array: &Array) -> Vec<u8> {
    let element = |x: &f64| match array.dtype {
        DType::F32 => (*x as f32).to_le_bytes().to_vec(),
        DType::BF16 => half::bf16::from_f64(*x).to_le_bytes().to_vec(),
        DType::I32 => (*x as i32).to_le_bytes().to_vec(),
        DType::U32 => (*x as u32).to_le_bytes().to_vec(),
        DType::U8 | DType::Bool => vec![*x as u8],
    };
    array.data.iter().flat_map(element).collect()
}

/// The elements of a buffer.
#[allow(dead_code, reason = "not every test looks into results")]
pub fn decode(bytes: &[u8], ty: &Type) -> Vec<f64> {
    let word = |b: &[u8]| <[u8; 4]>::try_from(b).expect("four bytes");
    let element = |b: &[u8]| match ty.dtype {
        DType::F32 => f32::from_le_bytes(word(b)).into(),
        DType::BF16 => half::bf16::from_le_bytes([b[0], b[1]]).into(),
        DType::I32 => i32::from_le_bytes(word(b)).into(),
        DType::U32 => u32::from_le_bytes(word(b)).into(),
        DType::U8 | DType::Bool => b[0].into(),
    };
    bytes.chunks_exact(ty.dtype.size()).map(element).collect()
}

/// Random values for every input of a graph: floats between -2 and 2, small whole numbers, any random key.
#[allow(dead_code, reason = "not every test file draws its own inputs")]
pub fn random_inputs(graph: &Graph, seed: u64) -> Inputs {
    let mut rng = Rng::new(seed);
    let mut element = |dtype| match dtype {
        DType::F32 => f64::from((2.0 * rng.unit()) as f32),
        DType::BF16 => half::bf16::from_f64(2.0 * rng.unit()).to_f64(),
        DType::I32 => rng.below(8) as f64,
        DType::U32 => f64::from(rng.bits() as u32),
        DType::U8 | DType::Bool => rng.below(2) as f64,
    };
    let mut array = |ty: &Type| {
        let data: Vec<f64> = (0..ty.elements()).map(|_| element(ty.dtype)).collect();
        Array::new(ty.dtype, ty.shape.sizes(), data)
    };
    graph.inputs().map(|(_, name, _, ty)| (name.to_string(), array(ty))).collect()
}

/// What a run leaves: results by name, and updated inputs by name with an arrow before it.
pub type Results = BTreeMap<String, Vec<u8>>;

/// A program that leaves nothing in an arena of so many bytes but NaN.
fn poison(bytes: usize) -> Program {
    let b = Builder::new();
    b.output("poison", b.full(f64::NAN, DType::F32, [bytes.div_ceil(4).max(1)]));
    lower(b.finish().expect("well typed"), true)
}

/// A session of `program` and one that poisons its arena.
pub fn session(backend: &CpuBackend, program: &Program) -> Box<dyn Session> {
    let poison = Arc::new(poison(program.arena_bytes));
    assert!(poison.arena_bytes >= program.arena_bytes);
    let mut session = backend.session(vec![Arc::new(program.clone()), poison]).expect("memory");
    session.run(1).expect("constants");
    session
}

/// Gives the inputs of a program their values.
pub fn set_inputs(session: &mut dyn Session, graph: &Graph, inputs: &Inputs) {
    for (_, name, role, ty) in graph.inputs() {
        let array = inputs.get(&**name).unwrap_or_else(|| panic!("no value for {} {name}: {ty}", Role::name(role)));
        session.input_mut(name).expect("an input of the program").copy_from_slice(&encode(array));
    }
}

/// What the last run left.
pub fn results(session: &dyn Session, graph: &Graph) -> Results {
    let outputs = graph.outputs.iter().map(|(name, _)| {
        let (_, bytes) = session.output(0, name).expect("a result of the program");
        (name.to_string(), bytes.to_vec())
    });
    let inputs = graph.inputs().map(|(_, name, ..)| {
        let bytes = session.input(name).expect("an input of the program");
        (format!("> {name}"), bytes.to_vec())
    });
    outputs.chain(inputs).collect()
}

/// Runs a program twice on a poisoned arena and returns what both runs leave.
#[allow(dead_code, reason = "not every test runs a program in this way")]
pub fn run(backend: &CpuBackend, program: &Program, inputs: &Inputs) -> Results {
    let mut session = session(backend, program);
    let mut once = || {
        set_inputs(&mut *session, &program.graph, inputs);
        session.run(0).expect("a run");
        let left = results(&*session, &program.graph);
        session.run(1).expect("constants");
        left
    };
    let first = once();
    assert_eq!(first, once(), "a second run leaves something else");
    first
}
