//! From sizes with names to numbers.

use crate::composite::{Attr, Attrs, Composite};
use crate::diagnostic::Diagnostic;
use crate::dim::{Bindings, Dim, Symbol};
use crate::graph::{Graph, Node};
use crate::op::{Conv, Op, Random, Scatter, Source, View};
use crate::passes::rewrite::try_rewrite;
use crate::types::{DType, Shape, Type};

/// `graph` with every named size replaced by its number, and sizes as values by constants.
///
/// # Errors
/// A symbol without a value or with the value zero, with an input that has it; a size that overflows; an operation that
/// does not fit the numbers, such as a slice past the end.
pub fn bind(graph: &Graph, bindings: &Bindings) -> Result<Graph, Diagnostic> {
    try_rewrite(graph, |visit| match bind_op(visit.op(), bindings) {
        Ok(op) => {
            let results = visit.replace(op);
            match results.iter().map(|t| t.ty()).find(|ty| !addressable(ty)) {
                Some(ty) => Err(BindError::Large(ty.to_string()).diagnostic(graph, visit.node)),
                None => Ok(Some(results)),
            }
        }
        Err(error) => Err(error.diagnostic(graph, visit.node)),
    })
}

/// The most bytes of one value. Far above any machine, and low enough that the bytes of a whole graph can be added.
const MAX_BYTES: usize = 1 << 48;

fn addressable(ty: &Type) -> bool {
    ty.shape.numel().as_const().is_some_and(|n| n <= MAX_BYTES / ty.dtype.size())
}

enum BindError {
    Unbound(Symbol),
    Zero(Symbol),
    Overflow(Dim),
    /// The type, printed.
    Large(String),
}

impl BindError {
    fn diagnostic(self, graph: &Graph, node: Node) -> Diagnostic {
        let owner = |symbol: Symbol| {
            let has_symbol = |shape: &Shape| shape.iter().any(|d| d.symbols().any(|s| s == symbol));
            let input = graph.inputs().find(|(.., ty)| has_symbol(&ty.shape));
            input.map(|(_, name, role, ty)| format!("{ty} {} {name}", role.name()))
        };
        let (message, note, help) = match self {
            BindError::Unbound(symbol) => (
                format!("the size `{}` has no value", symbol.name()),
                owner(symbol),
                "give it one when binding the graph",
            ),
            BindError::Zero(symbol) => {
                (format!("the size `{}` is 0", symbol.name()), owner(symbol), "sizes are at least 1")
            }
            BindError::Large(ty) => (
                format!("a value of type {ty} is too large for any machine"),
                None,
                "bind its symbols to smaller numbers",
            ),
            BindError::Overflow(dim) => {
                (format!("the size {dim} overflows"), None, "bind its symbols to smaller numbers")
            }
        };
        let site = graph.site(node).clone();
        Diagnostic { message, site, notes: note.into_iter().collect(), help: Some(help.into()) }
    }
}

fn bind_dim(dim: Dim, bindings: &Bindings) -> Result<Dim, BindError> {
    let factor = dim.symbols().fold(dim, |rest, s| rest.over(Dim::symbol(s)).expect("a size divides by its symbols"));
    dim.symbols().try_fold(factor, |product, symbol| match bindings.get(&symbol) {
        None => Err(BindError::Unbound(symbol)),
        Some(0) => Err(BindError::Zero(symbol)),
        Some(n) => product.times(Dim::constant(*n)).ok_or(BindError::Overflow(dim)),
    })
}

fn bind_shape(shape: &Shape, bindings: &Bindings) -> Result<Shape, BindError> {
    shape.iter().map(|d| bind_dim(*d, bindings)).collect()
}

fn bind_type(ty: &Type, bindings: &Bindings) -> Result<Type, BindError> {
    Ok(Type { dtype: ty.dtype, shape: bind_shape(&ty.shape, bindings)? })
}

fn bind_op(op: &Op, bindings: &Bindings) -> Result<Op, BindError> {
    Ok(match op {
        Op::Source(source) => Op::Source(match source {
            Source::Input { name, role, ty } => {
                Source::Input { name: name.clone(), role: *role, ty: bind_type(ty, bindings)? }
            }
            Source::Constant { .. } => source.clone(),
            Source::Iota { axis, ty } => Source::Iota { axis: *axis, ty: bind_type(ty, bindings)? },
            Source::Size(dim) => {
                let n = bind_dim(*dim, bindings)?.as_const().expect("bound");
                Source::Constant { value: n as f64, dtype: DType::F32 }
            }
        }),
        Op::View(view) => Op::View(match view {
            View::Reshape(shape) => View::Reshape(bind_shape(shape, bindings)?),
            View::Transpose(_) | View::Concat(_) => view.clone(),
            View::Broadcast(shape) => View::Broadcast(bind_shape(shape, bindings)?),
            View::Slice { axis, start, size, step } => View::Slice {
                axis: *axis,
                start: bind_dim(*start, bindings)?,
                size: bind_dim(*size, bindings)?,
                step: *step,
            },
            View::Pad { axis, start, size, step } => View::Pad {
                axis: *axis,
                start: bind_dim(*start, bindings)?,
                size: bind_dim(*size, bindings)?,
                step: *step,
            },
        }),
        Op::Conv(conv) => Op::Conv(Conv { result: bind_shape(&conv.result, bindings)?, ..conv.clone() }),
        Op::Scatter(scatter) => Op::Scatter(match scatter {
            Scatter::AddRows(rows) => Scatter::AddRows(bind_dim(*rows, bindings)?),
            Scatter::AddAlong { axis, size } => Scatter::AddAlong { axis: *axis, size: bind_dim(*size, bindings)? },
            Scatter::Write(_) => scatter.clone(),
        }),
        Op::Random(random) => Op::Random(Random { stream: random.stream, shape: bind_shape(&random.shape, bindings)? }),
        Op::Composite(composite) => {
            let bound = composite.attrs.iter().try_fold(Attrs::default(), |attrs, (name, attr)| {
                let attr = match attr {
                    Attr::Size(dim) => Attr::Size(bind_dim(*dim, bindings)?),
                    Attr::Int(_) | Attr::Float(_) | Attr::Bool(_) | Attr::DType(_) => attr.clone(),
                };
                Ok(attrs.with(name, attr))
            });
            Op::Composite(Composite { def: composite.def, attrs: bound? })
        }
        Op::Unary(_)
        | Op::Binary(_)
        | Op::Select
        | Op::Cast(_)
        | Op::Reduce(_)
        | Op::Dot(_)
        | Op::Pool(_)
        | Op::Gather(_)
        | Op::Sort(_) => op.clone(),
    })
}
