//! The memory of a training step over its schedule as a picture (SVG): who owns the bytes, and where the peak is.

use std::fmt::Write;
use std::sync::Arc;

use tenon::graph::backend::Allocation;
use tenon::graph::graph::Phase;
use tenon::graph::lower::Program;
use tenon::graph::op::Role;

use crate::show;

/// Who owns bytes: name and colour, the lowest layer of the picture first.
const OWNERS: [(&str, &str); 8] = [
    ("weights", "#4e79a7"),
    ("optimizer", "#59a14f"),
    ("summed gradients", "#b07aa1"),
    ("batch", "#76b7b2"),
    ("state and counters", "#9c755f"),
    ("scratch", "#bab0ac"),
    ("activations", "#f28e2b"),
    ("gradients", "#e15759"),
];
/// The places of the owners whose bytes change from step to step.
const ACTIVATIONS: usize = 6;
const GRADIENTS: usize = 7;

/// The style of text that lies on lines.
const HALO: &str = "stroke=\"white\" stroke-width=\"4\" paint-order=\"stroke\"";

/// The bytes of every owner during one step.
type Bytes = [usize; OWNERS.len()];

/// The sizes of the picture and its parts, in pixels.
const WIDTH: f64 = 1180.0;
const HEIGHT: f64 = 560.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 250.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 60.0;

/// The bytes in use during each step of the programs, one after the other.
pub fn timeline(programs: &[Arc<Program>], allocation: &Allocation) -> Vec<Bytes> {
    let of = |roles: &[Role]| roles.iter().map(|r| allocation.of_role(*r)).sum::<usize>();
    let fixed: Bytes = [
        of(&[Role::Parameter]),
        of(&[Role::Optimizer]),
        of(&[Role::Gradient]),
        of(&[Role::Data]),
        of(&[Role::State, Role::Cache, Role::Control]),
        allocation.scratch,
        0,
        0,
    ];
    let mut all = Vec::new();
    for program in programs {
        let first = all.len();
        all.resize(first + program.steps.len(), fixed);
        for buffer in &program.buffers {
            let graph = &program.graph;
            let phase = graph.node(graph.producer(buffer.values[0])).phase;
            let owner = if phase == Phase::Forward { ACTIVATIONS } else { GRADIENTS };
            for bytes in all.iter_mut().skip(first + buffer.from).take(buffer.to - buffer.from + 1) {
                bytes[owner] += buffer.bytes;
            }
        }
    }
    all
}

/// The picture.
pub fn memory(title: &str, programs: &[Arc<Program>], allocation: &Allocation) -> String {
    let bytes = timeline(programs, allocation);
    let total = |b: &Bytes| b.iter().sum::<usize>();
    let steps = bytes.len().max(1);
    let peak = (0..bytes.len()).max_by_key(|i| (total(&bytes[*i]), usize::MAX - i)).unwrap_or(0);
    let most = bytes.get(peak).map_or(0, total);
    let top = allocation.total().max(most).max(1) as f64;
    let (wide, high) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
    let x = |step: usize| LEFT + wide * step as f64 / steps as f64;
    let y = |bytes: usize| TOP + high * (1.0 - bytes as f64 / (1.08 * top));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(
        &mut svg,
        [LEFT, 28.0],
        "font-size=\"18\" font-weight=\"bold\"",
        &format!("Memory of a training step: {title}"),
    );
    let unit = tick(top as usize);
    for bytes in (0..).map(|i| i * unit).take_while(|b| *b as f64 <= 1.04 * top) {
        let at = y(bytes);
        line(&mut svg, [LEFT, at, LEFT + wide, at], "stroke=\"#ddd\"");
        let label = if bytes == 0 { "0".into() } else { show::bytes(bytes) };
        text(&mut svg, [LEFT - 8.0, at + 4.0], "text-anchor=\"end\"", &label);
    }
    let mut below = vec![0; bytes.len()];
    for (owner, (_, colour)) in OWNERS.iter().enumerate() {
        let above: Vec<usize> = below.iter().zip(&bytes).map(|(low, b)| low + b[owner]).collect();
        layer(&mut svg, &below, &above, colour, x, y);
        below = above;
    }
    phases(&mut svg, programs, x);
    let allocated = y(allocation.total());
    line(&mut svg, [LEFT, allocated, LEFT + wide, allocated], "stroke=\"#222\" stroke-dasharray=\"6 4\"");
    let label = format!("allocated {}", show::bytes(allocation.total()));
    text(&mut svg, [LEFT + 6.0, allocated - 6.0], HALO, &label);
    let (px, py) = ((x(peak) + x(peak + 1)) / 2.0, y(most));
    line(&mut svg, [px, TOP, px, TOP + high], "stroke=\"#222\" stroke-dasharray=\"2 3\"");
    let _ = writeln!(svg, "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"4\"/>");
    let (anchor, beside) = if peak * 2 > steps { ("end", px - 8.0) } else { ("start", px + 8.0) };
    let label = format!("peak {} in step {} of {steps}", show::bytes(most), peak + 1);
    text(&mut svg, [beside, TOP - 8.0], &format!("text-anchor=\"{anchor}\" font-weight=\"bold\" {HALO}"), &label);
    legend(&mut svg, &bytes, peak);
    svg.push_str("</svg>\n");
    svg
}

/// A layer between two outlines; of the steps that share a pixel, the greatest.
fn layer(
    svg: &mut String,
    below: &[usize],
    above: &[usize],
    colour: &str,
    x: impl Fn(usize) -> f64,
    y: impl Fn(usize) -> f64,
) {
    let per_point = above.len().div_ceil(1000).max(1);
    let most = |part: &[usize]| part.iter().copied().max().unwrap_or(0);
    let edge = |values: &[usize]| -> Vec<(f64, f64)> {
        let chunks = values.chunks(per_point).enumerate();
        let ends = chunks.flat_map(|(i, part)| {
            let (first, at) = (i * per_point, y(most(part)));
            [(x(first), at), (x(first + part.len()), at)]
        });
        ends.collect()
    };
    let outline = edge(above).into_iter().chain(edge(below).into_iter().rev());
    let points: Vec<String> = outline.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(svg, "<polygon points=\"{}\" fill=\"{colour}\"/>", points.join(" "));
}

/// Names below the axis where forward, backward and update begin.
fn phases(svg: &mut String, programs: &[Arc<Program>], x: impl Fn(usize) -> f64) {
    let name = |phase| match phase {
        Phase::Forward => "forward",
        Phase::Backward => "backward",
        Phase::Update => "update",
    };
    let (mut step, mut last, mut free) = (0, None, 0.0);
    let floor = HEIGHT - BOTTOM;
    for program in programs {
        for one in &program.steps {
            let phase = one.nodes.last().map(|n| program.graph.node(*n).phase);
            // Steps of a later phase may run early; the picture names the first of each.
            if phase > last {
                last = phase;
                line(svg, [x(step), floor, x(step), floor + 6.0], "stroke=\"#222\"");
                let at = (x(step) + 3.0).max(free);
                text(svg, [at, floor + 18.0], "", phase.map_or("", name));
                free = at + 65.0;
            }
            step += 1;
        }
    }
    text(svg, [LEFT, floor + 42.0], "fill=\"#666\"", &format!("schedule: {step} steps, each as wide as the others"));
}

/// Names, colours and the bytes at the peak, in the order in which the layers lie.
fn legend(svg: &mut String, bytes: &[Bytes], peak: usize) {
    let left = WIDTH - RIGHT + 25.0;
    text(svg, [left, TOP + 4.0], "fill=\"#666\"", "at the peak");
    let shown = (0..OWNERS.len()).rev().filter(|owner| bytes.iter().any(|b| b[*owner] > 0));
    for (row, owner) in shown.enumerate() {
        let (name, colour) = OWNERS[owner];
        let at = TOP + 30.0 + 26.0 * row as f64;
        let _ =
            writeln!(svg, "<rect x=\"{left}\" y=\"{:.1}\" width=\"14\" height=\"14\" fill=\"{colour}\"/>", at - 12.0);
        text(svg, [left + 22.0, at], "", name);
        text(svg, [WIDTH - 12.0, at], "text-anchor=\"end\"", &show::bytes(bytes[peak][owner]));
    }
}

/// The distance of the lines of the scale: a power of two, at most eight lines.
fn tick(most: usize) -> usize {
    (most / 8).max(1).next_power_of_two()
}

fn line(svg: &mut String, [x1, y1, x2, y2]: [f64; 4], style: &str) {
    let _ = writeln!(svg, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" {style}/>");
}

fn text(svg: &mut String, [x, y]: [f64; 2], style: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{content}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenon::graph::passes::pipeline::{Options, compile};
    use tenon::graph::tensor::Builder;
    use tenon::graph::types::{DType, Type};

    #[test]
    fn the_layers_add_up_to_the_plan() {
        let g = Builder::new();
        let mut x = g.input("x", Role::Data, Type::new(DType::F32, [64, 64]));
        let w = g.input("w", Role::Parameter, Type::new(DType::F32, [64, 64]));
        let mut sums = x;
        for _ in 0..4 {
            x = x.matmul(w, false, true);
            sums = sums + x;
        }
        g.set_phase(Phase::Backward);
        g.output("y", sums.matmul(w, false, false));
        let program = Arc::new(compile(&g.finish().unwrap(), &Options::default()).unwrap());
        let allocation = Allocation::of(std::slice::from_ref(&program), 640);
        let bytes = timeline(&[program.clone(), program.clone()], &allocation);
        let arena = |b: &Bytes| b[ACTIVATIONS] + b[GRADIENTS];
        let expected: Vec<usize> = program.profile().into_iter().cycle().take(bytes.len()).collect();
        assert_eq!(bytes.iter().map(arena).collect::<Vec<_>>(), expected);
        assert!(bytes.iter().any(|b| b[GRADIENTS] > 0) && bytes.iter().any(|b| b[ACTIVATIONS] > 0));
        let fixed = allocation.total() - allocation.arena;
        assert!(bytes.iter().all(|b| b.iter().sum::<usize>() - arena(b) == fixed));
        let svg = memory("a < b & c", &[program], &allocation);
        assert!(svg.contains("a &lt; b &amp; c") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<polygon").count(), OWNERS.len());
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }
}
