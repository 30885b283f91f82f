//! Where the time of a training step goes, as a table of 100 columns.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tenon::cpu::speed::{Bounds, Kind, Rate, Speed, work};
use tenon::graph::diagnostic::Site;
use tenon::graph::graph::{Graph, Node, Phase};
use tenon::graph::lower::{Program, Step, Work};
use tenon::graph::op::Op;
use tenon::graph::types::DType;

/// The most columns of the work's name.
const WHAT: usize = 26;

/// What steps cost together.
#[derive(Clone, Default)]
struct Sum {
    steps: usize,
    seconds: f64,
    flops: f64,
    bytes: f64,
    bounds: Bounds,
    /// The time below which operations and bytes cannot go, step by step.
    limit: f64,
}

impl Sum {
    fn add(&mut self, other: &Sum) {
        self.steps += other.steps;
        self.seconds += other.seconds;
        self.flops += other.flops;
        self.bytes += other.bytes;
        self.bounds.compute += other.bounds.compute;
        self.bounds.memory += other.bounds.memory;
        self.bounds.overhead += other.bounds.overhead;
        self.limit += other.limit;
    }

    fn bound_by(&self) -> &'static str {
        let Bounds { compute, memory, overhead } = self.bounds;
        match compute.max(memory).max(overhead) {
            most if most == compute => "compute",
            most if most == memory => "memory",
            _ => "overhead",
        }
    }

    fn line(&self, total: f64, what: &str, place: &str) -> String {
        let rate = |amount: f64| amount / self.seconds.max(1e-9) / 1e9;
        let share = |part: f64, whole: f64| 100.0 * part / whole.max(1e-9);
        format!(
            "{:8.2} {:5.1} {:5} {:7.1} {:5.1} {:6.0} {:8}  {what} {place}",
            self.seconds * 1e3,
            share(self.seconds, total),
            self.steps,
            rate(self.flops),
            rate(self.bytes),
            share(self.limit, self.seconds),
            self.bound_by(),
        )
    }
}

/// The table of a training step: program `i` runs `runs[i]` times in it, and its steps took `times[i]` seconds each time.
/// Equal work of one line of the model is one row, the slowest first; then the kinds of work, then the whole.
pub fn table(programs: &[Arc<Program>], runs: &[usize], times: &[Vec<f64>], speed: &Speed) -> Vec<String> {
    let mut groups: BTreeMap<(String, String), Sum> = BTreeMap::new();
    let mut kinds: BTreeMap<Kind, Sum> = BTreeMap::new();
    let mut all = Sum::default();
    let mut at_peak = 0.0;
    for ((program, times), runs) in programs.iter().zip(times).zip(runs) {
        for (step, seconds) in program.steps.iter().zip(times) {
            let (flops, bytes) = work(program, step);
            let bounds = speed.bounds(program, step);
            let limit = bounds.compute.max(bounds.memory);
            let one = Sum { steps: 1, seconds: *seconds, flops, bytes, bounds, limit };
            let kind = Kind::of(program, step);
            for _ in 0..*runs {
                groups.entry((what(program, step), place(program, step))).or_default().add(&one);
                kinds.entry(kind).or_default().add(&one);
                all.add(&one);
                if [Kind::Product, Kind::Attention, Kind::Convolution].contains(&kind) {
                    at_peak += bounds.compute;
                }
            }
        }
    }
    let mut rows: Vec<((String, String), Sum)> = groups.into_iter().collect();
    rows.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
    let width = rows.iter().map(|((what, _), _)| what.chars().count()).max().unwrap_or(0);
    let header = |what: &str| {
        format!("{:>8} {:>5} {:>5} {:>7} {:>5} {:>6} bound by  {what}", "ms", "%", "steps", "GFLOP/s", "GB/s", "limit%")
    };
    let mut lines = vec![header(&format!("{:width$} where", "what"))];
    lines.extend(rows.iter().map(|((what, place), sum)| sum.line(all.seconds, &format!("{what:width$}"), place)));
    lines.push(String::new());
    lines.push(header("what"));
    lines.extend(kinds.iter().map(|(kind, sum)| sum.line(all.seconds, kind.name(), "")));
    lines.push(all.line(all.seconds, "one training step", ""));
    let peaks = [Rate::ProductF32, Rate::ProductBf16].map(|rate| speed.get(rate) / 1e9);
    lines.push(format!(
        "{:.0}% of the peak: at {:.0} GFLOP/s f32 and {:.0} bf16 all but fused and moves would take {:.1} ms",
        100.0 * at_peak / all.seconds.max(1e-9),
        peaks[0],
        peaks[1],
        at_peak * 1e3
    ));
    lines.into_iter().map(|line| line.trim_end().to_owned()).collect()
}

/// What a step does, in a few words.
fn what(program: &Program, step: &Step) -> String {
    let graph = &program.graph;
    let mut text = match &step.work {
        Work::Fused(fused) => {
            let (ops, plural) = (step.nodes.len(), if step.nodes.len() == 1 { "" } else { "s" });
            format!("fused {}x{}, {ops} op{plural}", fused.rows, fused.cols)
        }
        Work::Copy { target, .. } => format!("copy {}", graph.ty(*target)),
        Work::Kernel { node, .. } => kernel(graph, *node),
    };
    if text.chars().count() > WHAT {
        text = text.chars().take(WHAT - 1).chain(['…']).collect();
    }
    text
}

fn kernel(graph: &Graph, node: Node) -> String {
    let data = graph.node(node);
    let sizes = |v| graph.ty(v).shape.sizes();
    let joined = |sizes: &[usize]| sizes.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
    let narrow = data.inputs.first().is_some_and(|v| graph.ty(*v).dtype == DType::BF16);
    let narrow = if narrow { " bf16" } else { "" };
    match &data.op {
        Op::Dot(dot) => {
            let (a, c) = (sizes(data.inputs[0]), sizes(data.output()));
            let (batch, [m, n]) = (&c[..c.len() - 2], [c[c.len() - 2], c[c.len() - 1]]);
            let k = a[a.len() - if dot.transpose_a { 2 } else { 1 }];
            let entries: usize = batch.iter().product();
            let times = if entries > 1 { format!("{entries} of ") } else { String::new() };
            format!("{times}{m}x{n}x{k}{narrow}")
        }
        Op::Composite(c) => {
            // The phase tells the gradient apart.
            let name = c.def.name.trim_end_matches("_gradient");
            format!("{name} {}{narrow}", joined(&sizes(data.inputs[0])))
        }
        op => format!("{} {}{narrow}", op.name(), joined(&sizes(data.outputs().next().expect("every node has one")))),
    }
}

/// Where a step comes from: phase, scope, line.
fn place(program: &Program, step: &Step) -> String {
    let Some(last) = step.nodes.last() else { return String::new() };
    let phase = match program.graph.node(*last).phase {
        Phase::Forward => "fwd",
        Phase::Backward => "bwd",
        Phase::Update => "upd",
    };
    let Site { file, line, path, .. } = program.graph.site(*last);
    let file = Path::new(&**file).file_name().unwrap_or_default().to_string_lossy();
    let line = if *line > 0 { format!("{file}:{line}") } else { String::new() };
    let parts = [phase, &pattern(path), &line].map(str::to_owned);
    parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(" ")
}

/// A scope path below the model with `*` for the number of a layer: `h.*.attn`.
fn pattern(path: &str) -> String {
    let below = path.strip_prefix("model").map_or(path, |rest| rest.trim_start_matches('/'));
    let parts = below.split(['.', '/']);
    let parts = parts.map(|p| if !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()) { "*" } else { p });
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenon::graph::op::Role;
    use tenon::graph::passes::pipeline::{Options, compile};
    use tenon::graph::tensor::Builder;
    use tenon::graph::types::Type;

    #[test]
    fn layers_share_a_row_and_the_shares_add_up() {
        let g = Builder::new();
        let mut x = g.input("x", Role::Data, Type::new(DType::F32, [64, 64]));
        for layer in 0..3 {
            let path = format!("model/h.{layer}/mlp").into();
            g.set_site(&Site { file: "here/m.star".into(), line: 7, column: 2, length: 1, path });
            let w = g.input(&format!("w{layer}"), Role::Parameter, Type::new(DType::F32, [64, 64]));
            x = x.matmul(w, false, true).exp();
        }
        g.output("y", x);
        let program = compile(&g.finish().unwrap(), &Options::default()).unwrap();
        let times: Vec<f64> = program.steps.iter().map(|_| 0.25e-3).collect();
        let speed = Speed::from_rates(|_| Some(1e10)).unwrap();
        let lines = table(&[Arc::new(program)], &[2], &[times], &speed);
        let text = lines.join("\n");
        assert!(lines.iter().all(|l| l.chars().count() <= 120), "{text}");
        let product = lines.iter().find(|l| l.contains("64x64x64")).unwrap();
        assert!(product.ends_with("64x64x64           fwd h.*.mlp m.star:7"), "{text}");
        assert!(product.starts_with("    1.50  50.0     6     2.1   0.2     21 compute"), "{text}");
        assert!(lines.iter().any(|l| l.contains("    3.00 100.0    12") && l.ends_with("one training step")), "{text}");
        assert!(lines.last().unwrap().starts_with("10% of the peak"), "{text}");
    }

    #[test]
    fn only_numbers_are_layers() {
        assert_eq!(pattern("model/h.11/attn"), "h.*.attn");
        assert_eq!(pattern("model"), "");
        assert_eq!(pattern("layer4.0.conv1"), "layer4.*.conv1");
        assert_eq!(pattern(""), "");
    }
}
