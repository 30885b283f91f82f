//! A small GPT with everything that passes treat specially, for tests.

use tenon_graph::autodiff::gradients;
use tenon_graph::composite::activation::GELU;
use tenon_graph::composite::attention::ATTENTION;
use tenon_graph::composite::dropout::DROPOUT;
use tenon_graph::composite::loss::CROSS_ENTROPY;
use tenon_graph::composite::norm::LAYER_NORM;
use tenon_graph::composite::{Attr, Attrs};
use tenon_graph::diagnostic::Site;
use tenon_graph::dim::{Dim, Symbol};
use tenon_graph::graph::{Graph, Phase};
use tenon_graph::op::Role;
use tenon_graph::reference::{Array, Inputs, Precision};
use tenon_graph::tensor::{Builder, Tensor};
use tenon_graph::testing::Rng;
use tenon_graph::types::{DType, Shape, Type};

/// Heads, head size, width, vocabulary, context.
pub const H: usize = 2;
pub const D: usize = 4;
pub const C: usize = H * D;
pub const V: usize = 11;
pub const CONTEXT: usize = 16;

pub fn symbol(name: &str) -> Symbol {
    Symbol::new(name).unwrap()
}

struct Model<'g> {
    g: &'g Builder,
    key: Tensor<'g>,
    parameters: Vec<Tensor<'g>>,
}

impl<'g> Model<'g> {
    fn parameter(&mut self, name: &str, shape: &[usize]) -> Tensor<'g> {
        let parameter = self.g.input(name, Role::Parameter, Type::new(DType::F32, shape));
        self.parameters.push(parameter);
        parameter
    }

    fn place(&self, line: u32, path: &str) {
        self.g.set_site(&Site { file: "gpt.star".into(), line, column: 5, length: 9, path: path.into() });
    }

    fn linear(&mut self, x: Tensor<'g>, name: &str, from: usize, to: usize) -> Tensor<'g> {
        let (weight, bias) =
            (self.parameter(&format!("{name}.weight"), &[from, to]), self.parameter(&format!("{name}.bias"), &[to]));
        let shape = x.shape();
        let rows = shape[0].times(shape[1]).unwrap();
        let y = x.reshape([rows, from.into()]).matmul(weight, false, false) + bias;
        y.reshape([shape[0], shape[1], to.into()])
    }

    fn norm(&mut self, x: Tensor<'g>, name: &str) -> Tensor<'g> {
        let (weight, bias) =
            (self.parameter(&format!("{name}.weight"), &[C]), self.parameter(&format!("{name}.bias"), &[C]));
        self.g.composite(&LAYER_NORM, &[x, weight, bias], Attrs::default())[0]
    }

    fn dropout(&self, x: Tensor<'g>) -> Tensor<'g> {
        let attrs = Attrs::default().with("rate", 0.25).with("stream", Attr::Int(self.g.fresh_stream().into()));
        self.g.composite(&DROPOUT, &[x, self.key], attrs)[0]
    }

    fn block(&mut self, x: Tensor<'g>, path: &str, causal: bool) -> Tensor<'g> {
        self.place(10, &format!("{path}.attn"));
        let normed = self.norm(x, &format!("{path}.ln_1"));
        let qkv = self.linear(normed, &format!("{path}.attn.c_attn"), C, 3 * C);
        let (b, t) = (x.shape()[0], x.shape()[1]);
        let parts: Vec<_> = qkv.split(3, -1).into_iter().map(|p| p.reshape([b, t, H.into(), D.into()])).collect();
        let y = self.g.composite(&ATTENTION, &parts, Attrs::default().with("causal", causal))[0];
        let y = self.linear(y.reshape([b, t, C.into()]), &format!("{path}.attn.c_proj"), C, C);
        let x = x + self.dropout(y);
        self.place(20, &format!("{path}.mlp"));
        let normed = self.norm(x, &format!("{path}.ln_2"));
        let hidden = self.linear(normed, &format!("{path}.mlp.c_fc"), C, 2 * C);
        let hidden = self.g.composite(&GELU, &[hidden], Attrs::default().with("tanh", true))[0];
        x + self.linear(hidden, &format!("{path}.mlp.c_proj"), 2 * C, C)
    }
}

/// A model with this many blocks over `b` texts of `t` tokens, as a front end builds it; with a loss, its gradients and a
/// step of gradient descent if it is to `train`.
pub fn gpt(blocks: usize, causal: bool, train: bool) -> Graph {
    let g = Builder::new();
    let (b, t) = (Dim::symbol(symbol("b")), Dim::symbol(symbol("t")));
    let tokens = g.input("input_ids", Role::Data, Type::new(DType::I32, [b, t]));
    let key = g.input("key", Role::Control, Type::new(DType::U32, [2]));
    let offset = g.input("position_offset", Role::Control, Type::new(DType::I32, Shape::scalar()));
    let mut m = Model { g: &g, key, parameters: vec![] };
    m.place(3, "");
    let (words, places) = (m.parameter("wte.weight", &[V, C]), m.parameter("wpe.weight", &[CONTEXT, C]));
    let position = g.iota(0, Type::new(DType::I32, [t])) + offset;
    let mut x = m.dropout(words.gather_rows(tokens) + places.gather_rows(position));
    for i in 0..blocks {
        x = m.block(x, &format!("h.{i}"), causal);
    }
    m.place(30, "");
    let x = m.norm(x, "ln_f");
    let rows = b.times(t).unwrap();
    let logits = x.reshape([rows, C.into()]).matmul(words, false, true);
    g.output("logits", logits.reshape([b, t, V.into()]));
    if train {
        let labels = g.input("labels", Role::Data, Type::new(DType::I32, [b, t]));
        let loss = g.composite(&CROSS_ENTROPY, &[logits, labels.reshape([rows])], Attrs::default())[0];
        let loss = loss.mean(&[0]).reshape(Shape::scalar());
        g.output("loss", loss);
        let found = gradients(loss, &m.parameters);
        g.set_phase(Phase::Update);
        let rate = g.input("learning_rate", Role::Control, Type::new(DType::F32, Shape::scalar()));
        for (parameter, gradient) in m.parameters.iter().zip(found) {
            g.update(*parameter, *parameter - gradient * rate);
        }
    }
    g.finish().unwrap()
}

/// Values for the inputs of [`gpt`] with its symbols bound: small weights, tokens in range.
pub fn values(graph: &Graph, seed: u64) -> Inputs {
    let mut rng = Rng::new(seed);
    let array = |(_, name, role, ty): (_, &std::sync::Arc<str>, Role, &Type)| {
        let mut element = || match (ty.dtype, role) {
            (DType::I32, Role::Data) => rng.below(V) as f64,
            (DType::F32, Role::Parameter) => rng.unit() * 0.5,
            (DType::F32, Role::Control) => 0.1,
            _ => 0.0,
        };
        let data: Vec<f64> = (0..ty.elements()).map(|_| element()).collect();
        (name.to_string(), Array::new(ty.dtype, ty.shape.sizes(), data).rounded(Precision::F32))
    };
    graph.inputs().map(array).collect()
}
