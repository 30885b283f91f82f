//! Products with a wide result in chunks of rows: the same bits in a smaller arena.

mod session_support;

use session_support::{BACKENDS, random_inputs, run};
use tenon_graph::autodiff::gradients;
use tenon_graph::composite::loss::CROSS_ENTROPY;
use tenon_graph::composite::{Attr, Attrs};
use tenon_graph::graph::{Graph, Phase};
use tenon_graph::lower::lower;
use tenon_graph::op::Role;
use tenon_graph::passes::chunk::chunk;
use tenon_graph::passes::pipeline::{Options, prepare};
use tenon_graph::tensor::Builder;
use tenon_graph::testing::Rng;
use tenon_graph::text::print;
use tenon_graph::types::{DType, Type};

/// A model with a large vocabulary.
struct Case {
    batch: usize,
    length: usize,
    width: usize,
    vocabulary: usize,
    smoothing: f64,
    /// Whether the head is the table of the tokens.
    tied: bool,
    train: bool,
}

impl Case {
    fn random(rng: &mut Rng) -> Case {
        Case {
            batch: 1 + rng.below(3),
            length: 130 + rng.below(120),
            width: 1 + rng.below(40),
            vocabulary: 200 + rng.below(300),
            smoothing: if rng.below(2) == 0 { 0.0 } else { 0.1 },
            tied: rng.below(2) == 0,
            train: rng.below(3) != 0,
        }
    }

    /// The bytes of the logits.
    fn wide(&self) -> usize {
        4 * self.batch * self.length * self.vocabulary
    }

    fn graph(&self, logits_too: bool) -> Graph {
        let Case { batch, length, width, vocabulary, .. } = *self;
        let b = Builder::new();
        let float = |shape: [usize; 2]| Type::new(DType::F32, shape);
        let tokens = b.input("tokens", Role::Data, Type::new(DType::I32, [batch, length]));
        let labels = b.input("labels", Role::Data, Type::new(DType::I32, [batch, length]));
        let table = b.input("table", Role::Parameter, float([vocabulary, width]));
        let hidden = b.input("hidden", Role::Parameter, float([width, width]));
        let head = if self.tied { table } else { b.input("head", Role::Parameter, float([width, vocabulary])) };
        let x = table.gather_rows(tokens).reshape([batch * length, width]).matmul(hidden, false, false).tanh();
        let logits = x.matmul(head, false, self.tied).reshape([batch, length, vocabulary]);
        let attrs =
            Attrs::default().with("ignore_index", Attr::Int(3)).with("label_smoothing", Attr::Float(self.smoothing));
        let loss = b.composite(&CROSS_ENTROPY, &[logits, labels], attrs)[0].sum_all() / 100.0;
        b.output("loss", loss);
        if logits_too {
            b.output("logits", logits);
        }
        if self.train {
            b.set_phase(Phase::Backward);
            let weights = if self.tied { vec![table, hidden] } else { vec![table, hidden, head] };
            for (weight, gradient) in weights.iter().zip(gradients(loss, &weights)) {
                b.update(*weight, *weight - gradient * 0.5);
            }
        } else {
            let hits = logits.argmax(-1).reshape([batch, length]).equal(labels);
            b.output("correct", hits.cast(DType::F32).sum_all());
        }
        b.finish().expect("well typed")
    }
}

#[test]
fn chunks_change_no_bit_and_take_less_memory() {
    let mut rng = Rng::new(11);
    for seed in 0..24 {
        let case = Case::random(&mut rng);
        let options = Options { bf16: seed % 3 == 2, ..Options::default() };
        let whole = prepare(&case.graph(false), &options).expect("sizes are numbers");
        let chunks = 2 + rng.below(3);
        let limit = case.wide() / if options.bf16 { 2 } else { 1 } / chunks;
        let chunked = chunk(&whole, limit).expect("a graph");
        let inputs = random_inputs(&whole, seed);
        let (whole, chunked) = (lower(whole, true), lower(chunked, true));
        let (arena, smaller) = (whole.arena_bytes, chunked.arena_bytes);
        assert!(smaller < arena, "case {seed}: {smaller} bytes in {chunks} chunks, {arena} without");
        let (name, backend) = &BACKENDS[seed as usize % BACKENDS.len()];
        let (expected, found) = (run(backend, &whole, &inputs), run(backend, &chunked, &inputs));
        for (result, bytes) in &found {
            assert!(expected[result] == *bytes, "case {seed}: {result} differs in {chunks} chunks, {name}");
        }
    }
}

#[test]
fn what_is_wanted_as_a_whole_is_not_cut() {
    let case = Case { batch: 2, length: 128, width: 8, vocabulary: 300, smoothing: 0.0, tied: true, train: true };
    let whole = prepare(&case.graph(true), &Options::default()).expect("sizes are numbers");
    assert_eq!(print(&chunk(&whole, case.wide() / 4).expect("a graph")), print(&whole));
}
