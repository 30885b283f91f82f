//! Reading texts: however a text is cut into pieces and chunks, the logits are the same up to rounding (attention adds up
//! in another order for one query than for several); bf16 weights are bf16 where they lie, nowhere converted whole, and give
//! nearly the logits of f32.

use tenon::cpu::CpuBackend;
use tenon::graph::op::{Op, Role, Source};
use tenon::graph::types::DType;
use tenon::nn::generate::{Generator, Sampling, programs};
use tenon::nn::{ArchitectureSource, HyperValue, Model, initialise};

const VOCAB: u32 = 61;
const CAPACITY: usize = 700;

fn model() -> Model {
    let set = [("vocab", i64::from(VOCAB)), ("context", CAPACITY as i64), ("layers", 2), ("width", 32), ("heads", 4)];
    let set = set.map(|(name, value)| (name.to_owned(), HyperValue::Int(value)));
    Model::load(&ArchitectureSource::parse("gpt2"), &set).unwrap()
}

/// Weights ten times as large as they start, so that logits differ.
fn weights(model: &Model) -> Vec<Vec<f32>> {
    let large = |v: Vec<f32>| v.into_iter().map(|x| 10.0 * x).collect();
    model.variables().map(|v| large(initialise(v, 3))).collect()
}

fn generator(capacity: usize, bf16: bool) -> Generator {
    let model = model();
    Generator::new(&model, &weights(&model), &CpuBackend::new(2).unwrap(), capacity, bf16).unwrap()
}

fn text(length: usize) -> Vec<u32> {
    (0..length as u32).map(|i| (i * i + 7 * i / 3) % VOCAB).collect()
}

/// The greatest difference of two lists of logits, as a part of the greatest logit.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    let most = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, f32::max);
    most(&mut a.iter().zip(b).map(|(a, b)| (a - b).abs())) / most(&mut a.iter().map(|x| x.abs()))
}

#[test]
fn pieces_change_nothing() {
    // A few thousand f32 roundings; eight bits of mantissa, a few dozen roundings in a row.
    for (bf16, bound) in [(false, 1e-4), (true, 0.02)] {
        let (mut one_by_one, mut pieces) = (generator(CAPACITY, bf16), generator(CAPACITY, bf16));
        let text = text(CAPACITY);
        let mut expected = vec![Vec::new()];
        expected.extend(text.iter().map(|token| one_by_one.read(&[*token]).unwrap()));
        // Lengths around every chunk, at starts where whole chunks no longer fit into the caches too.
        let cuts: [&[usize]; 8] = [
            &[700],
            &[513, 2, 3, 180],
            &[512, 100, 88],
            &[400, 129, 9, 8, 7, 97, 50],
            &[1, 499, 200],
            &[33, 32, 31, 98, 99, 300, 107],
            &[690, 9, 1],
            &[5, 12, 27, 656],
        ];
        for cut in cuts {
            pieces.clear();
            let mut done = 0;
            for piece in cut {
                let logits = pieces.read(&text[done..done + piece]).unwrap();
                done += piece;
                let off = difference(&expected[done], &logits);
                assert!(off < bound, "bf16 {bf16}, {cut:?} up to {done}: off by {off}");
            }
        }
    }
}

#[test]
fn chunks_stay_inside_small_caches() {
    for capacity in [1, 2, 7, 8, 9, 40] {
        let mut generator = generator(capacity, false);
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        let whole = generator.generate(&text(capacity), 1, &greedy, |_| true).unwrap();
        assert_eq!(whole.len(), capacity + 1);
        assert!(generator.read(&[0]).unwrap_err().to_string().contains("sequence longer than context"));
    }
}

#[test]
fn bf16_weights_lie_in_bf16_and_are_not_converted_whole() {
    let model = model();
    let (programs, _) = programs(&model, CAPACITY, true).unwrap();
    for program in &programs {
        let graph = &program.graph;
        for (_, name, role, ty) in graph.inputs() {
            let narrow = role == Role::Cache || role == Role::Parameter && ty.shape.rank() >= 2;
            assert_eq!(ty.dtype == DType::BF16, narrow, "{name} {ty}");
        }
        for node in graph.nodes() {
            let data = graph.node(node);
            match data.op {
                Op::Cast(_) => {
                    let source = &graph.node(graph.producer(data.inputs[0])).op;
                    assert!(!matches!(source, Op::Source(Source::Input { .. })), "a whole input is converted");
                }
                Op::Dot(_) => assert!(data.inputs.iter().all(|v| graph.ty(*v).dtype == DType::BF16)),
                _ => {}
            }
        }
    }
    let logits = programs.last().unwrap();
    assert_eq!(logits.graph.ty(logits.graph.output("logits").unwrap()).dtype, DType::F32);
}

#[test]
fn bf16_is_near_f32() {
    let read = |bf16| generator(64, bf16).read(&text(64)).unwrap();
    let off = difference(&read(false), &read(true));
    assert!(off > 0.0 && off < 0.02, "off by {off}");
}
