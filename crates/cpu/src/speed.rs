//! What this machine does in a second, measured with our own kernels on small programs, and from it a program's time.
//!
//! Every rate is that of a `program`: so it follows when a kernel gets faster.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tenon_graph::autodiff::gradients;
use tenon_graph::backend::Backend;
use tenon_graph::composite::Attrs;
use tenon_graph::composite::activation::GELU;
use tenon_graph::composite::attention::{ATTENTION, ATTENTION_GRADIENT};
use tenon_graph::composite::experts::{EXPERT_MATMUL, EXPERT_OUTER};
use tenon_graph::composite::norm::LAYER_NORM;
use tenon_graph::cost::cost;
use tenon_graph::lower::{Program, Step, Work};
use tenon_graph::op::{Conv, Direction, Dot, Op, Role, Window};
use tenon_graph::passes::pipeline::{Options, compile};
use tenon_graph::tensor::{Builder, Tensor};
use tenon_graph::types::{DType, Shape, Type};

use crate::kernels::{Convolution, Filtering};
use crate::session::CpuBackend;
use crate::simd::{LANES, evict};

/// How often a rate is measured at least, after a run that does not count; the median counts.
const TIMES: usize = 3;
/// A step with less traffic finds it in the caches, one with more than `LARGE` in memory, in bytes.
const SMALL: f64 = 6e6;
/// See [`SMALL`].
const LARGE: f64 = 60e6;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rate {
    /// Floating-point operations of a large `f32` product.
    ProductF32,
    /// The same in `bf16`.
    ProductBf16,
    /// Small `f32` products.
    StartsF32,
    /// Small `bf16` products.
    StartsBf16,
    /// Floating-point operations of `f32` attention.
    AttentionF32,
    /// The same in `bf16`.
    AttentionBf16,
    /// Floating-point operations of the gradient of `f32` attention.
    AttentionGradientF32,
    /// The same in `bf16`.
    AttentionGradientBf16,
    /// Floating-point operations of an `f32` convolution.
    ConvF32,
    /// The same in `bf16`.
    ConvBf16,
    /// Floating-point operations of fused units whose operands are in the caches.
    Fused,
    /// Bytes that fused units read and write in the caches.
    Cache,
    /// Bytes that fused units read and write in memory.
    Memory,
    /// Bytes that a product with a vector reads from memory.
    Read,
    /// Bytes of rows that are picked from a table.
    Rows,
    /// Bytes that other moves read and write.
    Moves,
    /// The least steps.
    Steps,
}

impl Rate {
    /// Every rate, in the order of reports.
    pub const ALL: [Rate; 17] = [
        Rate::ProductF32,
        Rate::ProductBf16,
        Rate::StartsF32,
        Rate::StartsBf16,
        Rate::AttentionF32,
        Rate::AttentionBf16,
        Rate::AttentionGradientF32,
        Rate::AttentionGradientBf16,
        Rate::ConvF32,
        Rate::ConvBf16,
        Rate::Fused,
        Rate::Cache,
        Rate::Memory,
        Rate::Read,
        Rate::Rows,
        Rate::Moves,
        Rate::Steps,
    ];

    /// What it is called in reports and files.
    pub fn name(self) -> &'static str {
        match self {
            Rate::ProductF32 => "products f32",
            Rate::ProductBf16 => "products bf16",
            Rate::StartsF32 => "small products f32",
            Rate::StartsBf16 => "small products bf16",
            Rate::AttentionF32 => "attention f32",
            Rate::AttentionBf16 => "attention bf16",
            Rate::AttentionGradientF32 => "attention gradient f32",
            Rate::AttentionGradientBf16 => "attention gradient bf16",
            Rate::ConvF32 => "convolution f32",
            Rate::ConvBf16 => "convolution bf16",
            Rate::Fused => "fused, work",
            Rate::Cache => "fused, caches",
            Rate::Memory => "fused, memory",
            Rate::Read => "reading memory",
            Rate::Rows => "rows of tables",
            Rate::Moves => "moves",
            Rate::Steps => "empty steps",
        }
    }

    /// What it counts in a second.
    pub fn unit(self) -> Unit {
        match self {
            Rate::ProductF32
            | Rate::ProductBf16
            | Rate::AttentionF32
            | Rate::AttentionBf16
            | Rate::AttentionGradientF32
            | Rate::AttentionGradientBf16
            | Rate::ConvF32
            | Rate::ConvBf16
            | Rate::Fused => Unit::Flop,
            Rate::Cache | Rate::Memory | Rate::Read | Rate::Rows | Rate::Moves => Unit::Byte,
            Rate::StartsF32 | Rate::StartsBf16 | Rate::Steps => Unit::Step,
        }
    }
}

/// What a rate counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Floating-point operations.
    Flop,
    /// Bytes read and written.
    Byte,
    /// Steps of a program.
    Step,
}

/// What a machine does in a second with all the threads of a backend.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Speed([f64; Rate::ALL.len()]);

/// The times below which a step cannot go, in seconds; the largest says what bounds it.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Bounds {
    /// Its operations at the rate of a large product, or of fused units.
    pub compute: f64,
    /// Its bytes at the rate of memory, or of the caches if it has few.
    pub memory: f64,
    /// What the least step of its kind takes.
    pub overhead: f64,
}

/// The kinds of work that go at different rates.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// Matrix products.
    Product,
    /// Attention and its gradient.
    Attention,
    /// Convolutions.
    Convolution,
    /// Fused units.
    Fused,
    /// Everything else: rows of tables, copies, pooling, sorting.
    Move,
}

impl Kind {
    /// Every kind, in the order of reports.
    pub const ALL: [Kind; 5] = [Kind::Product, Kind::Attention, Kind::Convolution, Kind::Fused, Kind::Move];

    /// The kind of a step.
    pub fn of(program: &Program, step: &Step) -> Kind {
        match &step.work {
            Work::Fused(_) => Kind::Fused,
            Work::Copy { .. } => Kind::Move,
            Work::Kernel { node, .. } => match &program.graph.node(*node).op {
                Op::Dot(_) => Kind::Product,
                Op::Conv(_) => Kind::Convolution,
                Op::Composite(composite) if [EXPERT_MATMUL.name, EXPERT_OUTER.name].contains(&composite.def.name) => {
                    Kind::Product
                }
                Op::Composite(_) => Kind::Attention,
                _ => Kind::Move,
            },
        }
    }

    /// The name of several.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Product => "products",
            Kind::Attention => "attention",
            Kind::Convolution => "convolution",
            Kind::Fused => "fused",
            Kind::Move => "moves",
        }
    }
}

/// The operations of a step and the bytes of the buffers that it reads and writes, each once.
pub fn work(program: &Program, step: &Step) -> (f64, f64) {
    let graph = &program.graph;
    let flops = step.nodes.iter().map(|n| cost(graph, *n).flops).sum();
    if picks_rows(program, step) {
        // Of a table, only the rows that are named.
        let costs = step.nodes.iter().map(|n| cost(graph, *n));
        return (flops, costs.map(|c| (c.read + c.written) as f64).sum());
    }
    let values = step.writes.iter().copied().chain(step.reads());
    (flops, values.map(|v| graph.ty(v).bytes() as f64).sum())
}

impl Speed {
    /// Measures with the kernels of a backend; each rate for `budget`, and at least a few times.
    pub fn measure(backend: &CpuBackend, budget: Duration) -> Speed {
        let mut speed = Speed([1.0; Rate::ALL.len()]);
        for rate in Rate::ALL {
            let program = Arc::new(program(rate));
            let seconds = seconds(backend, &program, budget, matches!(rate, Rate::Memory | Rate::Read));
            let works = program.steps.iter().map(|step| work(&program, step));
            let (flops, bytes) = works.fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
            // Of a small product, what it takes beyond its operations at the speed of a large one.
            let beyond = |large: Rate| (seconds - flops / speed.get(large)).max(seconds / 10.0);
            speed.0[rate as usize] = match rate {
                Rate::StartsF32 => 1.0 / beyond(Rate::ProductF32),
                Rate::StartsBf16 => 1.0 / beyond(Rate::ProductBf16),
                _ => match rate.unit() {
                    Unit::Flop => flops / seconds,
                    Unit::Byte => bytes / seconds,
                    Unit::Step => program.steps.len() as f64 / seconds,
                },
            };
        }
        speed
    }

    /// The speed with the rates that `get` finds by name, if it finds all.
    pub fn from_rates(get: impl Fn(&str) -> Option<f64>) -> Option<Speed> {
        let mut speed = Speed([1.0; Rate::ALL.len()]);
        for rate in Rate::ALL {
            speed.0[rate as usize] = get(rate.name()).filter(|r| r.is_finite() && *r > 0.0)?;
        }
        Some(speed)
    }

    /// A rate, per second.
    pub fn get(&self, rate: Rate) -> f64 {
        self.0[rate as usize]
    }

    /// About how long a program takes, in seconds.
    pub fn estimate(&self, program: &Program) -> f64 {
        program.steps.iter().map(|step| self.seconds(program, step)).sum()
    }

    /// The peak of operations and of bytes that a step could reach, and what it takes to start it.
    pub fn bounds(&self, program: &Program, step: &Step) -> Bounds {
        let ((mut flops, mut bytes), bf16) = (work(program, step), is_bf16(program, step));
        if let Some(Filtering { products, bytes: filters, .. }) = convolution(program, step).and_then(|c| c.filtering())
        {
            (flops, bytes) = (flops * products, bytes + filters);
        }
        let (peak, bandwidth, start) = match Kind::of(program, step) {
            Kind::Product if bf16 => (Rate::ProductBf16, self.bandwidth(bytes, Rate::Read), Rate::StartsBf16),
            Kind::Product => (Rate::ProductF32, self.bandwidth(bytes, Rate::Read), Rate::StartsF32),
            Kind::Attention | Kind::Convolution if bf16 => {
                (Rate::ProductBf16, self.bandwidth(bytes, Rate::Memory), Rate::Steps)
            }
            Kind::Attention | Kind::Convolution => (Rate::ProductF32, self.bandwidth(bytes, Rate::Memory), Rate::Steps),
            Kind::Fused => (Rate::Fused, self.bandwidth(bytes, Rate::Memory), Rate::Steps),
            Kind::Move if picks_rows(program, step) => (Rate::Fused, self.get(Rate::Rows), Rate::Steps),
            Kind::Move => (Rate::Fused, self.get(Rate::Moves), Rate::Steps),
        };
        Bounds { compute: flops / self.get(peak), memory: bytes / bandwidth, overhead: 1.0 / self.get(start) }
    }

    /// About how long a step takes, in seconds.
    pub fn seconds(&self, program: &Program, step: &Step) -> f64 {
        let Bounds { compute, memory, overhead } = self.bounds(program, step);
        let peak = |f32, bf16| self.get(if is_bf16(program, step) { bf16 } else { f32 });
        let compute = match Kind::of(program, step) {
            Kind::Product | Kind::Fused | Kind::Move => compute,
            Kind::Convolution => {
                let convolution = convolution(program, step);
                let columns = convolution.and_then(|c| c.columns()).unwrap_or(MEASURED_COLUMNS);
                let slower = filled_up(columns) / filled_up(MEASURED_COLUMNS);
                let sums = convolution.and_then(|c| c.filtering()).map_or(0.0, |filtering| filtering.sums);
                compute * slower * (1.0 + sums) * peak(Rate::ProductF32, Rate::ProductBf16)
                    / peak(Rate::ConvF32, Rate::ConvBf16)
            }
            Kind::Attention => {
                let own = if step.nodes.iter().any(|n| program.graph.node(*n).outputs().len() == 3) {
                    peak(Rate::AttentionGradientF32, Rate::AttentionGradientBf16)
                } else {
                    peak(Rate::AttentionF32, Rate::AttentionBf16)
                };
                compute * peak(Rate::ProductF32, Rate::ProductBf16) / own
            }
        };
        // Measured on training steps: kernels hardly compute while they wait for what another step left in memory, but do while
        // the caches answer.
        let beyond = beyond_caches(work(program, step).1);
        overhead + compute.max(memory) + beyond * compute.min(memory)
    }

    /// Bytes per second of a step with so many, given the rate in memory: those of the caches are the faster the fewer.
    fn bandwidth(&self, bytes: f64, memory: Rate) -> f64 {
        let (cache, memory) = (self.get(Rate::Cache).max(self.get(memory)), self.get(memory));
        cache * (memory / cache).powf(beyond_caches(bytes))
    }
}

/// How far a step with so many bytes finds them in memory and not in the caches, from 0 to 1.
fn beyond_caches(bytes: f64) -> f64 {
    ((bytes.max(1.0) / SMALL).ln() / (LARGE / SMALL).ln()).clamp(0.0, 1.0)
}

/// Channels of the convolution that is measured.
const MEASURED_COLUMNS: usize = 128;

/// How many times as long the products of a convolution take with so many columns as with many: vectors are filled up, and
/// beginning and ending a tile takes as long as some columns do.
fn filled_up(columns: usize) -> f64 {
    const ENDS: usize = 12;
    (columns.next_multiple_of(LANES) + ENDS) as f64 / columns as f64
}

/// The convolution that a step is.
fn convolution(program: &Program, step: &Step) -> Option<Convolution> {
    let Work::Kernel { node, .. } = &step.work else { return None };
    let data = program.graph.node(*node);
    let Op::Conv(conv) = &data.op else { return None };
    let result = data.outputs().next()?;
    let (input, weight) = match conv.direction {
        Direction::Forward => (data.inputs[0], data.inputs[1]),
        Direction::InputGradient => (result, data.inputs[1]),
        Direction::WeightGradient => (data.inputs[1], result),
    };
    let ty = |value| program.graph.ty(value);
    let (input, filters) = (ty(input).shape.sizes(), ty(weight).shape.sizes()[0]);
    let (operand, result) = (ty(data.inputs[0]).dtype, ty(result).dtype);
    Some(Convolution::new(conv.direction, &input, &conv.windows, filters, conv.groups, operand, result))
}

/// Whether a step reads or writes only some rows of a buffer.
fn picks_rows(program: &Program, step: &Step) -> bool {
    let Work::Kernel { node, .. } = &step.work else { return false };
    matches!(program.graph.node(*node).op, Op::Gather(_) | Op::Scatter(_))
}

/// Whether the first operand of a step's kernel is `bf16`.
fn is_bf16(program: &Program, step: &Step) -> bool {
    let Work::Kernel { node, .. } = &step.work else { return false };
    let first = program.graph.node(*node).inputs.first();
    first.is_some_and(|v| program.graph.ty(*v).dtype == DType::BF16)
}

/// The median of runs for `budget`, in seconds; if `cold`, of runs that find nothing in the caches, which on some processors
/// hold all of a program together.
fn seconds(backend: &CpuBackend, program: &Arc<Program>, budget: Duration, cold: bool) -> f64 {
    let mut session = backend.session(vec![program.clone()]).expect("a few megabytes");
    for (_, name, _, ty) in program.graph.inputs() {
        // Every byte 0x3c is 0.0115 in both float types. Indices stay 0.
        if ty.dtype.is_float()
            && let Some(bytes) = session.input_mut(name)
        {
            bytes.fill(0x3c);
        }
    }
    let mut once = || {
        for (_, name, ..) in program.graph.inputs().filter(|_| cold) {
            session.input_mut(name).iter().for_each(|bytes| evict(bytes));
        }
        for (name, _) in program.graph.outputs.iter().filter(|_| cold) {
            session.output(0, name).iter().for_each(|(_, bytes)| evict(bytes));
        }
        let began = Instant::now();
        session.run(0).expect("no index is out of range");
        began.elapsed().as_secs_f64()
    };
    once();
    let (began, mut times) = (Instant::now(), Vec::new());
    while times.len() < TIMES || began.elapsed() < budget {
        times.push(once());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2].max(1e-9)
}

/// The program whose rate is measured, of a few milliseconds unless its starts are what counts. None takes more than
/// some 35 MB: beyond the caches of a core, and little enough that a small run's peak stays what its plan says.
fn program(rate: Rate) -> Program {
    let g = Builder::new();
    let input = |name: &str, dtype: DType, sizes: &[usize]| g.input(name, Role::Data, Type::new(dtype, sizes));
    let product = |dtype: DType, m: usize, n: usize, k: usize| {
        let dot = Dot { transpose_a: false, transpose_b: true, dtype };
        input("a", dtype, &[m, k]).dot(input("b", dtype, &[n, k]), dot)
    };
    match rate {
        Rate::ProductF32 => g.output("y", product(DType::F32, 512, 1536, 768)),
        Rate::ProductBf16 => g.output("y", product(DType::BF16, 512, 1536, 768)),
        Rate::StartsF32 => g.output("y", product(DType::F32, 64, 128, 784)),
        Rate::StartsBf16 => g.output("y", product(DType::BF16, 64, 128, 784)),
        Rate::AttentionF32 | Rate::AttentionGradientF32 => attention(&g, DType::F32, rate),
        Rate::AttentionBf16 | Rate::AttentionGradientBf16 => attention(&g, DType::BF16, rate),
        Rate::ConvF32 => convolved(&g, DType::F32),
        Rate::ConvBf16 => convolved(&g, DType::BF16),
        Rate::Fused => fused(&g),
        Rate::Cache => g.output("y", input("x", DType::F32, &[256, 1024]) + input("z", DType::F32, &[256, 1024])),
        Rate::Memory => g.output("y", input("x", DType::F32, &[2816, 1024]) + input("z", DType::F32, &[2816, 1024])),
        Rate::Read => g.output("y", product(DType::F32, 1, 8192, 1024)),
        Rate::Rows => {
            let table = input("table", DType::F32, &[2048, 1024]);
            g.output("y", table.gather_rows(input("rows", DType::I32, &[2048])));
        }
        Rate::Moves => g.output("y", input("x", DType::F32, &[1024, 256]).pad(1, 256, 768, 1)),
        Rate::Steps => {
            // Each needs all of the one before.
            let mut x = input("x", DType::F32, &[8, 8]);
            for _ in 0..16 {
                x = x.sum(&[0, 1]).broadcast(Shape::from([8, 8])) * x;
            }
            g.output("y", x);
        }
    }
    let graph = g.finish().expect("these graphs are right");
    compile(&graph, &Options::default()).expect("sizes are numbers")
}

/// What models do most: a norm and a gelu with their gradients, and a step of AdamW.
fn fused(g: &Builder) {
    let (rows, cols) = (1024, 384);
    let full = |name: &str| g.input(name, Role::Data, Type::new(DType::F32, [rows, cols]));
    let row = |name: &str| g.input(name, Role::Data, Type::new(DType::F32, [cols]));
    let (x, gain, bias) = (full("x"), row("gain"), row("bias"));
    let normed = g.composite(&LAYER_NORM, &[x, gain, bias], Attrs::default())[0];
    let y = g.composite(&GELU, &[normed], Attrs::default().with("tanh", true))[0];
    for (name, gradient) in ["dx", "dgain", "dbias"].iter().zip(gradients((y * full("dy")).sum_all(), &[x, gain, bias]))
    {
        g.output(name, gradient);
    }
    let (weight, gradient) = (full("weight"), full("gradient"));
    let mean = full("mean") * 0.9 + gradient * 0.1;
    let square = full("square") * 0.95 + gradient * gradient * 0.05;
    g.output("weight'", weight * 0.999 - mean * 1e-3 / (square.sqrt() + 1e-8));
    g.output("mean'", mean);
    g.output("square'", square);
}

fn attention(g: &Builder, dtype: DType, rate: Rate) {
    let (b, t, h, d) = (2, 256, 4, 64);
    let input = |name: &str| g.input(name, Role::Data, Type::new(dtype, [b, t, h, d]));
    let [q, k, v] = ["query", "key", "value"].map(input);
    let attrs = Attrs::default().with("causal", true);
    if [Rate::AttentionF32, Rate::AttentionBf16].contains(&rate) {
        g.output("y", g.composite(&ATTENTION, &[q, k, v], attrs)[0]);
    } else {
        let sums = g.input("sums", Role::Data, Type::new(DType::F32, [b, h, t]));
        let operands: [Tensor<'_>; 6] = [q, k, v, input("out"), sums, input("out_gradient")];
        for (i, gradient) in g.composite(&ATTENTION_GRADIENT, &operands, attrs).iter().enumerate() {
            g.output(["dq", "dk", "dv"][i], *gradient);
        }
    }
}

fn convolved(g: &Builder, dtype: DType) {
    let image = g.input("image", Role::Data, Type::new(dtype, [2, 28, 28, MEASURED_COLUMNS]));
    let weight = g.input("weight", Role::Data, Type::new(dtype, [MEASURED_COLUMNS, 3, 3, MEASURED_COLUMNS]));
    // Dilated, or f32 would be measured by minimal filtering.
    let window = Window { size: 3, stride: 1, dilation: 2, low: 2, high: 2 };
    let windows = [window, window].into_iter().collect();
    let result = Shape::scalar();
    g.output("y", image.conv(weight, Conv { direction: Direction::Forward, windows, groups: 1, result, dtype }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rate_is_measured_by_work_of_its_kind() {
        for rate in Rate::ALL {
            let program = program(rate);
            let kinds: Vec<Kind> = program.steps.iter().map(|step| Kind::of(&program, step)).collect();
            let expected = match rate {
                Rate::ProductF32 | Rate::ProductBf16 | Rate::StartsF32 | Rate::StartsBf16 | Rate::Read => Kind::Product,
                Rate::AttentionF32 | Rate::AttentionBf16 | Rate::AttentionGradientF32 | Rate::AttentionGradientBf16 => {
                    Kind::Attention
                }
                Rate::ConvF32 | Rate::ConvBf16 => Kind::Convolution,
                Rate::Fused | Rate::Cache | Rate::Memory | Rate::Steps => Kind::Fused,
                Rate::Rows | Rate::Moves => Kind::Move,
            };
            assert!(kinds.iter().all(|k| *k == expected), "{rate:?}: {kinds:?}");
            let one = matches!(rate, Rate::Fused | Rate::Steps) || program.steps.len() == 1;
            assert!(one, "{rate:?} has {} steps", program.steps.len());
        }
    }

    #[test]
    fn rates_survive_a_trip_through_their_names() {
        let speed = Speed(std::array::from_fn(|i| 1e9 + i as f64));
        let get = |name: &str| Rate::ALL.into_iter().find(|r| r.name() == name).map(|r| speed.get(r));
        assert_eq!(Speed::from_rates(get), Some(speed));
        assert_eq!(Speed::from_rates(|name| get(name).filter(|_| name != Rate::Rows.name())), None);
        assert_eq!(Speed::from_rates(|name| get(name).map(|r| r - 1e9)), None, "a rate of zero");
    }
}
