//! Whether a model looks at one token at a time, but for its attention: only such a model can decode.
//!
//! A text is decoded in pieces, and attention alone remembers those before. So for every value it is followed where its
//! tokens are; an operation that combines, moves or compares tokens is refused.

use crate::composite::attention::ATTENTION;
use crate::diagnostic::Diagnostic;
use crate::dim::{Dim, Symbol};
use crate::elementwise::Binary;
use crate::graph::{Graph, Node, Value};
use crate::op::{Conv, Direction, Dot, Gather, Op, Pool, Random, Reduce, Role, Scatter, Sort, Source, View};
use crate::passes::mode::POSITION_OFFSET;
use crate::tensor::{Builder, Tensor};
use crate::types::Shape;

/// Where the tokens of a value are: at index `i` of the axis is what belongs to token `i / inner % t`.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Tokens {
    axis: usize,
    inner: Dim,
}

/// How a value depends on the tokens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Not at all: along an axis of tokens it repeats itself.
    Same,
    /// Each token has a part of its own.
    Tokens(Tokens),
    /// The places of the tokens, counted from the first of the piece.
    Count(Tokens),
    /// How many tokens came before the piece.
    Offset,
}

/// What an operation does with tokens that a decoder cannot do.
#[derive(Clone, Copy)]
enum Fault {
    Combines,
    Moves,
    Compares,
    Counts,
    Length,
}

impl Fault {
    fn says(self) -> (&'static str, &'static str) {
        let alone = "let only causal attention look at other tokens, or use the model without generating";
        match self {
            Fault::Combines => ("combines tokens", alone),
            Fault::Moves => ("moves or leaves out tokens", alone),
            Fault::Compares => ("brings each token together with others", alone),
            Fault::Counts => {
                ("counts tokens from the first of each piece", "`positions(ids)` counts from the first token")
            }
            Fault::Length => ("depends on the number of tokens", alone),
        }
    }
}

/// Checks a model whose inputs of [`Role::Data`] are tokens `[b, t]` and what belongs to them.
///
/// # Errors
/// The first operation that mixes tokens other than by attention, at its line; a number of tokens that is not open.
pub fn check(graph: &Graph) -> Result<(), Diagnostic> {
    let Some((tokens, t)) = sequence(graph)? else { return Ok(()) };
    let given = |name: &str, role: Role, shape: &Shape| match role {
        Role::Control if *name == *POSITION_OFFSET => Ok(Layout::Offset),
        Role::Data => match axis_of(shape, t) {
            Some(axis) if shape[axis] == Dim::symbol(t) => Ok(Layout::Tokens(Tokens { axis, inner: Dim::ONE })),
            Some(_) => Err(Fault::Moves),
            None => Ok(Layout::Same),
        },
        _ => Ok(Layout::Same),
    };
    layouts(graph, t, &given).map(|_| ()).map_err(|(node, fault)| {
        let data = graph.node(node);
        let (what, help) = fault.says();
        let notes = data.inputs.iter().map(|v| format!("{} from {}", graph.ty(*v), graph.op_of(*v).name()));
        Diagnostic {
            message: format!(
                "this model cannot decode: {} {what}, and a text is decoded in pieces of the sequence {}",
                data.op.name(),
                graph.ty(tokens)
            ),
            site: graph.site(node).clone(),
            notes: notes.collect(),
            help: Some(help.into()),
        }
    })
}

/// The input of tokens and the name of their number, if the graph has such an input.
fn sequence(graph: &Graph) -> Result<Option<(Value, Symbol)>, Diagnostic> {
    let mut data = graph.inputs().filter(|(_, _, role, ty)| *role == Role::Data && ty.shape.rank() > 1);
    let Some((value, name, _, ty)) = data.next() else { return Ok(None) };
    let symbols: Vec<Symbol> = ty.shape[1].symbols().collect();
    match symbols[..] {
        [t] if ty.shape[1] == Dim::symbol(t) && ty.shape[0] != ty.shape[1] => Ok(Some((value, t))),
        _ => Err(Diagnostic {
            message: format!("this model cannot decode: {name} is {ty}, and a text is decoded in pieces of any length"),
            site: graph.site(graph.producer(value)).clone(),
            notes: vec![],
            help: Some("tokens(\"b\", \"t\") leaves the number of tokens open".into()),
        }),
    }
}

/// The axis whose size has the symbol.
fn axis_of(shape: &Shape, t: Symbol) -> Option<usize> {
    shape.iter().position(|dim| dim.symbols().any(|s| s == t))
}

/// What inputs depend on.
type Given<'a> = dyn Fn(&str, Role, &Shape) -> Result<Layout, Fault> + 'a;

/// The layout of every live value, or the first node with a fault.
fn layouts(graph: &Graph, t: Symbol, given: &Given<'_>) -> Result<Vec<Layout>, (Node, Fault)> {
    let live = graph.live_nodes();
    let mut all = vec![Layout::Same; graph.value_count()];
    for node in graph.nodes().filter(|n| live[n.index()]) {
        let step = Step { graph, node, t, layouts: &all };
        let results = step.results(given).map_err(|fault| (node, fault))?;
        for (value, layout) in graph.node(node).outputs().zip(results) {
            all[value.index()] = layout;
        }
    }
    Ok(all)
}

/// A node with what is known of its operands.
struct Step<'a> {
    graph: &'a Graph,
    node: Node,
    t: Symbol,
    layouts: &'a [Layout],
}

impl Step<'_> {
    fn operand(&self, index: usize) -> (Layout, &Shape) {
        let value = self.graph.node(self.node).inputs[index];
        (self.layouts[value.index()], &self.graph.ty(value).shape)
    }

    fn shape(&self) -> &Shape {
        let value = self.graph.node(self.node).outputs().next().expect("a node has a result");
        &self.graph.ty(value).shape
    }

    fn has_tokens(&self, dim: Dim) -> bool {
        dim.symbols().any(|s| s == self.t)
    }

    /// Refuses to touch an axis along which there are tokens.
    fn spare(&self, shape: &Shape, axes: impl IntoIterator<Item = usize>, fault: Fault) -> Result<(), Fault> {
        if axes.into_iter().any(|axis| self.has_tokens(shape[axis])) { Err(fault) } else { Ok(()) }
    }

    /// The layout of what is made of the elements at the same place of all operands.
    fn together(&self) -> Result<Layout, Fault> {
        let mut layout = Layout::Same;
        for index in 0..self.graph.node(self.node).inputs.len() {
            layout = join(layout, self.operand(index).0)?;
        }
        Ok(layout)
    }

    fn results(&self, given: &Given<'_>) -> Result<Vec<Layout>, Fault> {
        let data = self.graph.node(self.node);
        let layout = match &data.op {
            Op::Source(source) => self.source(source, given)?,
            Op::Binary(Binary::Add) => match (self.operand(0).0, self.operand(1).0) {
                (Layout::Count(tokens), Layout::Offset) | (Layout::Offset, Layout::Count(tokens)) => {
                    Layout::Tokens(tokens)
                }
                (a, b) => join(join(Layout::Same, a)?, b)?,
            },
            Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_) => self.together()?,
            Op::Reduce(Reduce { axes, .. }) => {
                self.spare(self.operand(0).1, axes.iter().copied(), Fault::Combines)?;
                self.together()?
            }
            Op::View(view) => self.view(view)?,
            Op::Dot(dot) => self.dot(dot)?,
            Op::Conv(Conv { direction, .. }) | Op::Pool(Pool { direction, .. }) => self.windows(*direction)?,
            Op::Gather(gather) => self.gather(gather)?,
            Op::Scatter(scatter) => self.scatter(scatter)?,
            Op::Sort(Sort { axis, .. }) => {
                self.spare(self.operand(0).1, [*axis], Fault::Combines)?;
                self.together()?
            }
            Op::Random(Random { shape, .. }) => {
                self.spare(shape, 0..shape.rank(), Fault::Counts)?;
                self.together()?
            }
            Op::Composite(composite) if composite.def.name == ATTENTION.name => {
                let first = Layout::Tokens(Tokens { axis: 1, inner: Dim::ONE });
                let fits = |i| {
                    let (layout, shape) = self.operand(i);
                    shape[1] == Dim::symbol(self.t) && [first, Layout::Same].contains(&layout)
                };
                if !(0..3).all(fits) {
                    return Err(Fault::Compares);
                }
                return Ok(vec![first, Layout::Tokens(Tokens { axis: 2, inner: Dim::ONE })]);
            }
            Op::Composite(composite) => {
                let builder = Builder::new();
                let input =
                    |(i, v): (usize, &Value)| builder.input(&i.to_string(), Role::Data, self.graph.ty(*v).clone());
                let inputs: Vec<Tensor<'_>> = data.inputs.iter().enumerate().map(input).collect();
                let results = (composite.def.expand)(&builder, &inputs, &composite.attrs);
                let results: Vec<Value> = results.iter().map(|tensor| tensor.value()).collect();
                results.iter().for_each(|value| builder.output("", builder.tensor(*value)));
                let graph = builder.finish().expect("a composite was expanded when its node was built");
                let operand = |name: &str, _: Role, _: &Shape| {
                    Ok(name.parse().map_or(Layout::Same, |index| self.operand(index).0))
                };
                let inside = layouts(&graph, self.t, &operand).map_err(|(_, fault)| fault)?;
                return Ok(results.iter().map(|value| inside[value.index()]).collect());
            }
        };
        Ok(vec![layout])
    }

    fn source(&self, source: &Source, given: &Given<'_>) -> Result<Layout, Fault> {
        match source {
            Source::Input { name, role, ty } => given(name, *role, &ty.shape),
            Source::Constant { .. } => Ok(Layout::Same),
            Source::Size(dim) if self.has_tokens(*dim) => Err(Fault::Length),
            Source::Size(_) => Ok(Layout::Same),
            Source::Iota { axis, ty } if !self.has_tokens(ty.shape[*axis]) => Ok(Layout::Same),
            Source::Iota { axis, ty } if ty.shape[*axis] == Dim::symbol(self.t) => {
                Ok(Layout::Count(Tokens { axis: *axis, inner: Dim::ONE }))
            }
            Source::Iota { .. } => Err(Fault::Counts),
        }
    }

    fn view(&self, view: &View) -> Result<Layout, Fault> {
        let place = |layout, to: &dyn Fn(Tokens) -> Option<Tokens>| match layout {
            Layout::Tokens(tokens) => to(tokens).map(Layout::Tokens).ok_or(Fault::Moves),
            Layout::Count(tokens) => to(tokens).map(Layout::Count).ok_or(Fault::Moves),
            Layout::Same | Layout::Offset => Ok(layout),
        };
        match view {
            View::Reshape(to) => {
                let (layout, from) = self.operand(0);
                place(layout, &|tokens| reshaped(tokens, from, to, self.t))
            }
            View::Transpose(permutation) => place(self.operand(0).0, &|tokens| {
                let axis = permutation.iter().position(|p| *p == tokens.axis)?;
                Some(Tokens { axis, ..tokens })
            }),
            View::Broadcast(_) => Ok(self.operand(0).0),
            View::Slice { axis, size, .. } | View::Pad { axis, size, .. } => {
                let (layout, shape) = self.operand(0);
                if *size != shape[*axis] {
                    self.spare(shape, [*axis], Fault::Moves)?;
                    self.spare(self.shape(), [*axis], Fault::Moves)?;
                }
                Ok(layout)
            }
            View::Concat(axis) => {
                self.spare(self.shape(), [*axis], Fault::Moves)?;
                self.together()
            }
        }
    }

    fn dot(&self, dot: &Dot) -> Result<Layout, Fault> {
        let ((a, left), (b, _)) = (self.operand(0), self.operand(1));
        let rank = left.rank();
        let inner = |transposed: bool, last: usize| if transposed { 2 * rank - 3 - last } else { last };
        let (row, contracted) = (inner(dot.transpose_a, rank - 2), inner(dot.transpose_a, rank - 1));
        self.spare(left, [contracted], Fault::Combines)?;
        let column = inner(dot.transpose_b, rank - 1);
        // Where the tokens of an operand are in the result.
        let put = |layout, own: usize, to: usize| match layout {
            Layout::Tokens(tokens) if tokens.axis == own => Ok(Layout::Tokens(Tokens { axis: to, ..tokens })),
            layout => join(Layout::Same, layout),
        };
        let (a, b) = (put(a, row, rank - 2)?, put(b, column, rank - 1)?);
        join(a, b)
    }

    /// Convolution and pooling: windows over all axes but the first and, with the other channels, the last.
    fn windows(&self, direction: Direction) -> Result<Layout, Fault> {
        let (layout, shape) = self.operand(0);
        self.spare(shape, 1..shape.rank(), Fault::Combines)?;
        let others = 1..self.graph.node(self.node).inputs.len();
        if direction != Direction::Forward || others.into_iter().any(|i| self.operand(i).0 != Layout::Same) {
            return Err(Fault::Combines);
        }
        join(Layout::Same, layout)
    }

    fn gather(&self, gather: &Gather) -> Result<Layout, Fault> {
        let ((table, shape), (indices, at)) = (self.operand(0), self.operand(1));
        match gather {
            Gather::Rows => {
                self.spare(shape, [0], Fault::Compares)?;
                let behind = match table {
                    Layout::Tokens(tokens) => Layout::Tokens(Tokens { axis: at.rank() + tokens.axis - 1, ..tokens }),
                    layout => layout,
                };
                join(join(Layout::Same, indices)?, behind)
            }
            Gather::Along(axis) => {
                self.spare(shape, [*axis], Fault::Compares)?;
                self.together()
            }
        }
    }

    fn scatter(&self, scatter: &Scatter) -> Result<Layout, Fault> {
        match scatter {
            Scatter::AddRows(_) => {
                let indices = self.operand(0).1;
                self.spare(indices, 0..indices.rank(), Fault::Combines)?;
                // The axes behind the indices stay where they are, one axis of rows before them.
                match self.together()? {
                    Layout::Same => Ok(Layout::Same),
                    _ => Err(Fault::Combines),
                }
            }
            Scatter::AddAlong { axis, .. } => {
                self.spare(self.operand(0).1, [*axis], Fault::Combines)?;
                self.spare(self.shape(), [*axis], Fault::Combines)?;
                self.together()
            }
            Scatter::Write(axis) => {
                self.spare(self.operand(1).1, [*axis], Fault::Moves)?;
                self.spare(self.shape(), [*axis], Fault::Moves)?;
                self.together()
            }
        }
    }
}

/// What depends on both.
fn join(a: Layout, b: Layout) -> Result<Layout, Fault> {
    match (a, b) {
        (_, Layout::Count(_) | Layout::Offset) | (Layout::Count(_) | Layout::Offset, _) => Err(Fault::Counts),
        (Layout::Same, other) | (other, Layout::Same) => Ok(other),
        (Layout::Tokens(a), Layout::Tokens(b)) if a == b => Ok(Layout::Tokens(a)),
        (Layout::Tokens(_), Layout::Tokens(_)) => Err(Fault::Compares),
    }
}

/// Where tokens are after a reshape; `None` if they are no longer along one axis.
fn reshaped(tokens: Tokens, from: &Shape, to: &Shape, t: Symbol) -> Option<Tokens> {
    let behind = |shape: &Shape, axis: usize| shape[axis + 1..].iter().try_fold(Dim::ONE, |n, dim| n.times(*dim));
    // The distance between the parts of two tokens in row-major order.
    let distance = tokens.inner.times(behind(from, tokens.axis)?)?;
    (0..to.rank()).rev().find_map(|axis| {
        let inner = distance.over(behind(to, axis)?)?;
        to[axis].over(inner.times(Dim::symbol(t))?)?;
        Some(Tokens { axis, inner })
    })
}
