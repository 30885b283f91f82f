//! Text form: what is printed reads back as the same graph, and what is not text form is refused with its place.

use super::model::gpt;
use proptest::prelude::*;
use tenon_graph::dim::{Dim, Symbol};
use tenon_graph::graph::Graph;
use tenon_graph::op::{Op, Role, Source};
use tenon_graph::passes::expand::expand_composites;
use tenon_graph::sample::samples;
use tenon_graph::tensor::Builder;
use tenon_graph::testing::random_graph;
use tenon_graph::text::{parse, print};
use tenon_graph::types::{DType, Type};
use tenon_graph::verify::verify;

/// Everything that makes a graph, so that a printer that forgets something is caught.
fn content(graph: &Graph) -> String {
    let nodes = graph.nodes().map(|n| {
        let data = graph.node(n);
        let types: Vec<_> = data.outputs().map(|v| graph.ty(v)).collect();
        format!("{:?} {:?} {types:?} {:?} {:?}\n", data.op, data.inputs, data.phase, graph.site(n))
    });
    format!("{}{:?}{:?}", nodes.collect::<String>(), graph.outputs, graph.updates)
}

proptest! {
    #[test]
    fn what_is_printed_reads_back(seed: u64, size in 0usize..120) {
        let graph = random_graph(seed, size);
        verify(&graph).unwrap();
        let text = print(&graph);
        let back = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        prop_assert_eq!(content(&graph), content(&back));
        prop_assert_eq!(text, print(&back));
    }

    #[test]
    fn constants_are_exact(bits: u64) {
        let g = Builder::new();
        g.output("c", g.constant(f64::from_bits(bits), DType::F32));
        let back = parse(&print(&g.finish().unwrap())).unwrap();
        let Op::Source(Source::Constant { value, .. }) = *back.op_of(back.output("c").unwrap()) else { panic!() };
        prop_assert!(value.to_bits() == bits || (value.is_nan() && f64::from_bits(bits).is_nan()));
    }

    #[test]
    fn names_are_exact(name: String, output: String, path: String) {
        let g = Builder::new();
        g.set_site(&tenon_graph::diagnostic::Site { path: path.as_str().into(), ..Default::default() });
        g.output(&output, g.input(&name, Role::Data, Type::new(DType::F32, [2])));
        let graph = g.finish().unwrap();
        prop_assert_eq!(content(&graph), content(&parse(&print(&graph)).unwrap()));
    }

    #[test]
    fn garbage_is_refused_without_panics(text: String) {
        if let Ok(graph) = parse(&text) {
            verify(&graph).unwrap();
        }
    }

    /// Damage to a real text reaches deeper than garbage.
    #[test]
    fn damaged_text_gives_an_error_or_a_graph(
        seed: u64,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0usize..5), 1..6),
    ) {
        let graph = if seed % 2 == 0 { random_graph(seed, 25) } else { gpt(1, true, true) };
        let mut text = print(&graph);
        for (at, from, kind) in damage {
            let chars: Vec<(usize, char)> = text.char_indices().collect();
            if chars.is_empty() {
                break;
            }
            let ((i, c), (j, other)) = (*at.get(&chars), *from.get(&chars));
            match kind {
                0 => text.replace_range(i..i + c.len_utf8(), ""),
                1 => text.replace_range(i..i + c.len_utf8(), &other.to_string()),
                2 => text.insert_str(i, "99999999999999999999"),
                3 => text.insert_str(i, &text[j..].chars().take(9).collect::<String>()),
                _ => text.truncate(i.max(1)),
            }
        }
        if let Ok(graph) = parse(&text) {
            verify(&graph).unwrap();
            prop_assert_eq!(print(&graph), print(&parse(&print(&graph)).unwrap()));
        }
    }
}

#[test]
fn named_sizes_and_every_setting_read_back() {
    let dim = |name: &str| Dim::symbol(Symbol::new(name).unwrap());
    let (b, t) = (dim("b"), dim("t"));
    let g = Builder::new();
    let x = g.input("tokens", Role::Data, Type::new(DType::F32, [b, t, 768.into()]));
    let bt = b.times(t).unwrap();
    let flat = x.reshape([bt, 768.into()]);
    let half = flat.slice(1, 384, 384).pad(1, 384, 768, 1);
    let padded = x.slice(1, t.times(0.into()).unwrap(), t).pad(1, t, t.times(2.into()).unwrap(), 1);
    g.output("n", half.mean(&[0, 1]) + padded.mean(&[0, 1, 2]).reshape([1, 1]));
    let graph = g.finish().unwrap();
    let text = print(&graph);
    assert!(text.contains("f32[b, 2*t, 768] = pad %0 {axis: 1, start: t}"), "{text}");
    assert!(text.contains("= size 768*b*t"), "{text}");
    assert_eq!(content(&graph), content(&parse(&text).unwrap()));
}

#[test]
fn every_operation_reads_back() {
    for sample in samples() {
        for graph in [Some(sample.graph()), sample.gradient_graph()].into_iter().flatten() {
            for graph in [expand_composites(&graph, |_| true), graph] {
                let text = print(&graph);
                let back = parse(&text).unwrap_or_else(|e| panic!("{}: {e}\n{text}", sample.name));
                assert_eq!(content(&graph), content(&back), "{}", sample.name);
            }
        }
    }
}

#[test]
fn composites_read_back() {
    let graph = gpt(2, true, true);
    let text = print(&graph);
    assert!(text.contains(" = attention %"), "{text}");
    assert!(text.contains("{causal: true, scale: 0.0, window: 0, has_mask: false, has_position: false}"), "{text}");
    assert_eq!(content(&graph), content(&parse(&text).unwrap()));
    let short = text.replace("scale: 0.0, window: 0, has_mask: false, has_position: false", "has_mask: false");
    assert_eq!(text, print(&parse(&short).unwrap()), "settings that are not given have their defaults");
    let unknown = parse(&text.replace("causal: true", "casual: true")).unwrap_err();
    assert!(unknown.message.contains("attention has no setting `casual`"), "{unknown}");
}

#[test]
fn errors_name_the_place() {
    let cases = [
        ("%0: f32[2] = input data x\n%1: f32[2] = add %0, %2\n", "2:22: %2 is not defined above"),
        ("%0: f32[2] = input data x\n%1: f32[3] = add %0, %0\n", "2:14: add gives f32[2]"),
        ("%0: f32[2] = input data x\n%0: f32[2] = neg %0\n", "2:1: %0 is defined twice"),
        ("%0: f33[2] = input data x", "1:5: `f33` is no element type"),
        ("%0: f32[2] = input date x", "1:20: `date` is no role"),
        ("%0: f32[2] = input data x\n%1: f32[1] = input data x", "2:25: the name `x` is taken"),
        ("%0: f32[] = constant 1.x", "1:22: `1.x` is no number"),
        ("%0: f32[2] = input data x\n%1: f32[1] = reduce_sum %0 {axis: [0]}", "2:14: the setting `axes` is missing"),
        ("%0: f32[2] = input data x\n%1: f32[1] = reduce_sum %0 {axes: [0, 0]}", "2:14: the axes [0, 0] do not ascend"),
        ("%0: f32[2] = input data x\n%1: f32[2] = neg %0 {axis: 0}", "2:22: neg has no setting `axis`"),
        ("%0: f32[2] = input data x\n%1: f32[2] = negate %0", "2:14: no operation is called `negate`"),
        ("%0: f32[2] = input data x\n%1: f32[2] = neg %0 @later", "2:22: `later` is no phase"),
        (
            "%0: f32[2] = input data x\n%1: f32[2] = neg %0 // nowhere",
            "2:31: expected a place such as my.star:31:12+6, or -",
        ),
        ("%0: f32[2] = input data x\nupdate %0 = %0\nupdate %0 = %0", "3:8: updated a second time"),
        ("%0: f32[] = constant 1.0\nupdate %0 = %0", "2:8: %0 is updated and is no input"),
        ("%0: f32[] = constant 1.0\noutput a = %0\noutput a = %0", "3:8: two outputs are called `a`"),
        ("%0: f32[99999999999999] = input data x", "1:9: `99999999999999` is no size such as 3, b or 2*b*t"),
        ("hello", "1:1: `hello` starts no line"),
        ("%0: f32[] = input data \"a", "1:26: the input's name has no closing quote"),
    ];
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|(text, expected)| {
            let found = parse(text).map_or_else(|e| e.to_string(), |g| print(&g));
            (found != *expected).then(|| format!("{text}\n  expected {expected}\n  found    {found}"))
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_text_of_too_many_nodes_is_stopped() {
    let line = "%0: f32[] = constant 1\n";
    let text: String = std::iter::once(line.to_string())
        .chain((1..=tenon_graph::tensor::MAX_NODES).map(|i| format!("%{i}: f32[] = neg %0\n")))
        .collect();
    let error = parse(&text).unwrap_err();
    assert!(error.message.contains("more than 1000000 nodes"), "{error}");
}
