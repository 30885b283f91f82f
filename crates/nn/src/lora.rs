//! Low-rank adaptation (Hu et al. 2021) as a transformation of a model: matrices get an addition of low rank, which is
//! trained in their place.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use smallvec::SmallVec;
use tenon_graph::graph::{Graph, Value};
use tenon_graph::op::{Axes, Conv, Direction, Op, Role, View, Window};
use tenon_graph::passes::rewrite::{one, rewrite};
use tenon_graph::tensor::Tensor;
use tenon_graph::types::{DType, Type};

use crate::error::ModelError;
use crate::init::Initialiser;
use crate::model::{Model, Parameter};

/// A matrix `W` of a model that became `W + scale * L R`. The filters `[out, in, window..]` of a convolution are a matrix with
/// a row for each output.
#[derive(Clone, PartialEq, Debug)]
pub struct Adapter {
    /// The name of `W`, `[rows, cols..]`.
    pub weight: String,
    /// The name of `L`, `[rows, rank]`.
    pub left: String,
    /// The name of `R`, `[rank, cols..]`.
    pub right: String,
    /// The columns of `L` and rows of `R`.
    pub rank: usize,
    /// The factor, `alpha / rank`.
    pub scale: f64,
}

impl Adapter {
    /// Adds `scale * L R` to `W`, all row-major.
    ///
    /// # Panics
    /// If the sizes are not those of one adapter.
    pub fn merge(&self, weight: &mut [f32], left: &[f32], right: &[f32]) {
        let cols = right.len() / self.rank;
        assert_eq!(weight.len() * self.rank, left.len() * cols, "{}", self.weight);
        let mut sums = vec![0.0; cols];
        for (row, factors) in weight.chunks_exact_mut(cols).zip(left.chunks_exact(self.rank)) {
            sums.fill(0.0);
            for (factor, terms) in factors.iter().zip(right.chunks_exact(cols)) {
                let add = |(sum, term): (&mut f64, &f32)| *sum += f64::from(*factor) * f64::from(*term);
                sums.iter_mut().zip(terms).for_each(add);
            }
            row.iter_mut().zip(&sums).for_each(|(w, sum)| *w = (f64::from(*w) + self.scale * sum) as f32);
        }
    }
}

/// What something of a model is multiplied by.
struct Matrices {
    /// The matrices and filters, and whether their first axis is that of the outputs.
    outputs_first: BTreeMap<Value, bool>,
    /// Of filters that nothing but such convolutions uses: how these see them, which parameter they are, and the order of its
    /// axes.
    filters: HashMap<Value, (Value, Axes)>,
}

impl Matrices {
    fn of(model: &Model) -> Matrices {
        let graph = &model.graph;
        let of_rank = |fits: &dyn Fn(usize) -> bool| -> BTreeSet<Value> {
            model.parameters.iter().filter(|p| fits(p.shape.len())).map(|p| p.value).collect()
        };
        let filtering = |op: &Op| matches!(op, Op::Conv(Conv { direction: Direction::Forward, groups: 1, .. }));
        let (flat, deep) = (of_rank(&|rank| rank == 2), of_rank(&|rank| rank > 2));
        let mut outputs_first = BTreeMap::new();
        let mut filters = HashMap::new();
        for node in graph.nodes() {
            let node = graph.node(node);
            match &node.op {
                Op::Dot(dot) => {
                    for (value, out_first) in node.inputs.iter().zip([!dot.transpose_a, dot.transpose_b]) {
                        if let Some(parameter) = viewed(graph, *value).filter(|v| flat.contains(v)) {
                            outputs_first.entry(parameter).or_insert(out_first);
                        }
                    }
                }
                // The filters of groups are as small as additions of low rank.
                op @ Op::Conv(_) if filtering(op) => {
                    let seen = graph.node(graph.producer(node.inputs[1]));
                    if let (Op::View(View::Transpose(order)), [parameter]) = (&seen.op, &seen.inputs[..])
                        && deep.contains(parameter)
                        && order.first() == Some(&0)
                    {
                        outputs_first.insert(*parameter, true);
                        filters.insert(node.inputs[1], (*parameter, order.clone()));
                    }
                }
                _ => {}
            }
        }
        let otherwise = graph.nodes().flat_map(|node| {
            let node = graph.node(node);
            let others = if filtering(&node.op) { &node.inputs[..1] } else { &node.inputs[..] };
            others.iter().copied()
        });
        otherwise.chain(graph.outputs.iter().map(|(_, value)| *value)).for_each(|value| drop(filters.remove(&value)));
        Matrices { outputs_first, filters }
    }
}

/// The value behind views.
fn viewed(graph: &Graph, mut value: Value) -> Option<Value> {
    while graph.op_of(value).is_free_view() {
        value = *graph.node(graph.producer(value)).inputs.first()?;
    }
    Some(value)
}

/// `model` in which every matrix that is multiplied by and whose name `matches` is `W + alpha / rank * L R`; so are filters of
/// convolutions that have no groups. Of the two new matrices, `W.lora_a` is the one next to the input, uniform within
/// `1 / sqrt(in)`, and `W.lora_b` starts with zeros. Where `W` is smaller than the rank, they are of its own.
/// Only they are trained; of the model's own parameters, those that `also` names.
///
/// # Errors
/// No matrix matches, or all are smaller than the rank.
pub fn lora(
    model: &Model,
    rank: usize,
    alpha: f64,
    matches: &dyn Fn(&str) -> bool,
    also: &dyn Fn(&str) -> bool,
) -> Result<(Model, Vec<Adapter>), ModelError> {
    let matrices = Matrices::of(model);
    let adaptable = model.parameters.iter().filter(|p| matrices.outputs_first.contains_key(&p.value));
    let targets: Vec<&Parameter> = adaptable.clone().filter(|p| matches(&p.name)).collect();
    if targets.is_empty() {
        let message = format!("`targets` of lora matches no matrix of {model} that something is multiplied by");
        return Err(ModelError::new(message)
            .note(candidates(adaptable))
            .help("`*` stands for any text, also with dots"));
    }
    let least = |p: &Parameter| p.shape[0].min(p.elements() / p.shape[0].max(1));
    if targets.iter().all(|p| least(p) < rank) {
        let largest = targets.iter().rev().max_by_key(|p| least(p)).expect("there is one");
        let message = format!("a rank of {rank} is more than {} {:?} has", largest.name, largest.shape);
        return Err(ModelError::new(message).help(format!("a rank of at most {}", least(largest))));
    }
    let scale = alpha / rank as f64;
    let mut adapters = Vec::new();
    let mut added: Vec<Parameter> = Vec::new();
    for target in &targets {
        let (rows, cols) = (target.shape[0], &target.shape[1..]);
        let rank = rank.min(least(target));
        let [a, b] = ["lora_a", "lora_b"].map(|end| format!("{}.{end}", target.name));
        let out_first = matrices.outputs_first[&target.value];
        let inputs = if out_first { cols.iter().product() } else { rows };
        let bound = 1.0 / (inputs as f64).sqrt();
        let (left, right) = if out_first { (b.clone(), a.clone()) } else { (a.clone(), b.clone()) };
        for (name, init) in [(a, Initialiser::Uniform { low: -bound, high: bound }), (b, Initialiser::Constant(0.0))] {
            let shape = if name == left { vec![rows, rank] } else { [&[rank], cols].concat() };
            added.push(Parameter {
                name,
                shape,
                init,
                trainable: true,
                site: target.site.clone(),
                value: target.value,
            });
        }
        adapters.push(Adapter { weight: target.name.clone(), left, right, rank, scale });
    }
    let mut graph = model.graph.clone();
    // What is declared stays, also where nothing uses it.
    let declared = model.inputs.iter().map(|i| i.value).chain(model.variables().map(|p| p.value));
    let declared: Vec<Value> = declared.chain(model.outputs.iter().map(|(_, v)| *v)).collect();
    let own = graph.outputs.len();
    graph.outputs.extend(declared.iter().map(|v| ("".into(), *v)));
    let by_value: HashMap<Value, &Adapter> = targets.iter().map(|t| t.value).zip(&adapters).collect();
    let mut graph = adapted(&graph, &by_value, &matrices.filters)?;
    let mut values = graph.outputs.split_off(own).into_iter().map(|(_, value)| value);
    let mut model = model.clone();
    let places = model.inputs.iter_mut().map(|i| &mut i.value);
    let variables = model.parameters.iter_mut().chain(&mut model.states).map(|p| &mut p.value);
    let places = places.chain(variables).chain(model.outputs.iter_mut().map(|(_, value)| value));
    places.for_each(|place| *place = values.next().expect("as many as declared"));
    for parameter in &mut model.parameters {
        parameter.trainable &= also(&parameter.name);
    }
    for parameter in &mut added {
        parameter.value = graph.input(&parameter.name).expect("every adapter has its inputs");
    }
    model.parameters.extend(added);
    model.graph = graph;
    Ok((model, adapters))
}

/// The names of parameters, numbers between dots written as `*`.
fn candidates<'a>(parameters: impl Iterator<Item = &'a Parameter>) -> String {
    let pattern = |name: &str| {
        let parts = name.split('.').map(|part| if part.parse::<u64>().is_ok() { "*" } else { part });
        parts.collect::<Vec<_>>().join(".")
    };
    let patterns: BTreeSet<String> = parameters.map(|p| pattern(&p.name)).collect();
    format!("these match: {}", patterns.into_iter().collect::<Vec<_>>().join(", "))
}

fn adapted(
    graph: &Graph,
    adapters: &HashMap<Value, &Adapter>,
    filters: &HashMap<Value, (Value, Axes)>,
) -> Result<Graph, ModelError> {
    // By weight: the two factors, and the sum where it is wanted as a whole, in the new graph.
    let mut factors: HashMap<Value, [Value; 2]> = HashMap::new();
    let mut sums: HashMap<Value, Value> = HashMap::new();
    let new = rewrite(graph, |visit| {
        let (data, builder) = (visit.data(), visit.builder);
        let result = data.outputs().next()?;
        if let Some(adapter) = adapters.get(&result) {
            let sizes = graph.ty(result).shape.sizes();
            let input = |name: &str, sizes: &[usize]| {
                builder.input(name, Role::Parameter, Type::new(DType::F32, sizes)).value()
            };
            let right = [&[adapter.rank], &sizes[1..]].concat();
            let pair = [input(&adapter.left, &[sizes[0], adapter.rank]), input(&adapter.right, &right)];
            factors.insert(result, pair);
            return None;
        }
        let factors = |v: &Value| factors[v].map(|v| builder.tensor(v));
        match (&data.op, data.inputs.as_slice()) {
            (Op::Dot(dot), [x, w]) if adapters.contains_key(w) && !adapters.contains_key(x) => {
                let (x, [left, right]) = (visit.operands[0], factors(w));
                let narrow = if dot.transpose_b {
                    x.matmul(right, dot.transpose_a, true).matmul(left, false, true)
                } else {
                    x.matmul(left, dot.transpose_a, false).matmul(right, false, false)
                };
                Some(one(visit.keep()[0] + narrow * adapters[w].scale))
            }
            (Op::Conv(conv), [_, seen]) if filters.get(seen).is_some_and(|(w, _)| adapters.contains_key(w)) => {
                let (w, order) = &filters[seen];
                let (x, [left, right]) = (visit.operands[0], factors(w));
                let points = conv.windows.iter().map(|_| Window { size: 1, stride: 1, dilation: 1, low: 0, high: 0 });
                let pointwise = Conv { windows: points.collect(), ..conv.clone() };
                let sizes = left.shape().sizes();
                let shape = [&sizes[..1], &vec![1; conv.windows.len()], &sizes[1..]].concat();
                let narrow = x.conv(right.transpose(order), conv.clone());
                let wide = narrow.conv(left.reshape(&shape[..]), pointwise);
                Some(one(visit.keep()[0] + wide * adapters[w].scale))
            }
            (_, [_]) if filters.contains_key(&result) => None,
            (op, inputs) if inputs.iter().any(|v| adapters.contains_key(v)) => {
                let operands = inputs.iter().zip(visit.operands).map(|(old, new)| {
                    let Some(adapter) = adapters.get(old) else { return *new };
                    let sum = sums.entry(*old).or_insert_with(|| {
                        let [left, right] = factors(old);
                        let columns: usize = right.shape().sizes()[1..].iter().product();
                        let columns = right.reshape([adapter.rank, columns]);
                        let product = left.matmul(columns, false, false).reshape(new.shape());
                        (*new + product * adapter.scale).value()
                    });
                    builder.tensor(*sum)
                });
                let operands: SmallVec<[Tensor<'_>; 4]> = operands.collect();
                Some(builder.add(op.clone(), &operands, data.outputs().len()))
            }
            _ => None,
        }
    });
    new.map_err(ModelError::from)
}

/// `model` in which the parameters whose names match are not trained.
///
/// # Errors
/// None matches.
pub fn freeze(model: &mut Model, matches: &dyn Fn(&str) -> bool) -> Result<(), ModelError> {
    check_matches(model, "freeze", matches)?;
    model.parameters.iter_mut().for_each(|p| p.trainable &= !matches(&p.name));
    Ok(())
}

/// An error unless the patterns of a setting match a parameter.
///
/// # Errors
/// None matches.
pub fn check_matches(model: &Model, setting: &str, matches: &dyn Fn(&str) -> bool) -> Result<(), ModelError> {
    if model.parameters.iter().any(|p| matches(&p.name)) {
        return Ok(());
    }
    let message = format!("`{setting}` matches no parameter of {model}");
    Err(ModelError::new(message).note(candidates(model.parameters.iter())))
}
