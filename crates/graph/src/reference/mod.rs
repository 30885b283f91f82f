//! What a graph means: the naive evaluator, one operation after the other, with no regard for speed.
//!
//! It is the oracle of the tests and, with an observer, the debugger that shows every value with its source line.

mod array;
mod index;
mod op;
mod window;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use array::{Array, Precision};

use crate::composite::Composite;
use crate::diagnostic::Diagnostic;
use crate::dim::Bindings;
use crate::graph::{Graph, Node, Value};
use crate::op::{Op, Role, Source};
use crate::passes::bind::bind;
use crate::tensor::{Builder, Tensor};

/// Values for a graph's inputs, by name.
pub type Inputs = BTreeMap<String, Array>;

/// What a program gave.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Evaluation {
    /// The named results.
    pub outputs: BTreeMap<Arc<str>, Array>,
    /// The new values of updated inputs.
    pub updates: BTreeMap<Arc<str>, Array>,
}

/// Runs `graph`.
///
/// # Errors
/// A symbol without a value, an input that is missing or of another type, an index out of range: each with its place.
pub fn evaluate(
    graph: &Graph,
    bindings: &Bindings,
    inputs: &Inputs,
    precision: Precision,
) -> Result<Evaluation, Diagnostic> {
    evaluate_observed(graph, bindings, inputs, precision, &mut |_, _, _| {})
}

/// Sees the bound graph, a node of it and the node's results.
pub type Observer<'a> = dyn FnMut(&Graph, Node, &[Array]) + 'a;

/// [`evaluate`] with an observer of every node that the results depend on, in order.
///
/// # Errors
/// Those of [`evaluate`].
pub fn evaluate_observed(
    graph: &Graph,
    bindings: &Bindings,
    inputs: &Inputs,
    precision: Precision,
    observer: &mut Observer<'_>,
) -> Result<Evaluation, Diagnostic> {
    let graph = bind(graph, bindings)?;
    let lookup = |name: &str| inputs.get(name);
    let values = run(&graph, &lookup, precision, observer)?;
    let value = |v: &Value| values[v.index()].clone().expect("results are kept");
    let name = |input: &Value| match graph.op_of(*input) {
        Op::Source(Source::Input { name, .. }) => name.clone(),
        other => unreachable!("{} is updated", other.name()),
    };
    Ok(Evaluation {
        outputs: graph.outputs.iter().map(|(name, v)| (name.clone(), value(v))).collect(),
        updates: graph.updates.iter().map(|(input, v)| (name(input), value(v))).collect(),
    })
}

/// The values of a bound graph that are results; others are dropped after their last use.
fn run<'a>(
    graph: &Graph,
    inputs: &dyn Fn(&str) -> Option<&'a Array>,
    precision: Precision,
    observer: &mut Observer<'_>,
) -> Result<Vec<Option<Array>>, Diagnostic> {
    let mut values: Vec<Option<Array>> = vec![None; graph.value_count()];
    let mut uses = graph.use_counts();
    let live = graph.live_nodes();
    for node in graph.nodes().filter(|n| live[n.index()]) {
        let data = graph.node(node);
        let operands: Vec<&Array> =
            data.inputs.iter().map(|v| values[v.index()].as_ref().expect("operands come first")).collect();
        let results = match &data.op {
            Op::Source(Source::Input { name, ty, .. }) => match inputs(name) {
                Some(given) if given.ty() == *ty => Ok(vec![given.clone().rounded(precision)]),
                Some(given) => Err(format!("input {name} is {}, not {ty}", given.ty())),
                None => Err(format!("input {name} ({ty}) is not given")),
            },
            Op::Composite(composite) => expansion(composite, &operands, precision),
            op => op::evaluate(op, &operands, precision).map(|result| vec![result]),
        };
        let results = results.map_err(|message| {
            let notes = data.inputs.iter().map(|v| format!("{} from {}", graph.ty(*v), graph.op_of(*v).name()));
            Diagnostic { message, site: graph.site(node).clone(), notes: notes.collect(), help: None }
        })?;
        observer(graph, node, &results);
        for (value, result) in data.outputs().zip(results) {
            assert_eq!(result.ty(), *graph.ty(value), "{}: the value is not of the inferred type", data.op.name());
            values[value.index()] = Some(result);
        }
        for value in &data.inputs {
            uses[value.index()] -= 1;
            if uses[value.index()] == 0 {
                values[value.index()] = None;
            }
        }
    }
    Ok(values)
}

/// The results of a composite: those of its expansion.
fn expansion(composite: &Composite, operands: &[&Array], precision: Precision) -> Result<Vec<Array>, String> {
    let builder = Builder::new();
    let inputs: Vec<Tensor<'_>> =
        operands.iter().enumerate().map(|(i, a)| builder.input(&i.to_string(), Role::Data, a.ty())).collect();
    let results = (composite.def.expand)(&builder, &inputs, &composite.attrs);
    let results: Vec<Value> = results.iter().map(|t| t.value()).collect();
    for value in &results {
        builder.output("", builder.tensor(*value));
    }
    let graph = builder.finish().expect("a composite was expanded when its node was built");
    let lookup = |name: &str| operands.get(name.parse::<usize>().ok()?).copied();
    let values = run(&graph, &lookup, precision, &mut |_, _, _| {}).map_err(|e| e.message)?;
    Ok(results.iter().map(|v| values[v.index()].clone().expect("results are kept")).collect())
}
