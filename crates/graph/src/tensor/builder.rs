//! The builder: one graph under construction, its errors, and the nodes that need no tensor first.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;

use smallvec::{SmallVec, smallvec};

use super::Tensor;
use crate::composite::{Attr, Attrs, Composite, CompositeDef};
use crate::diagnostic::{Diagnostic, Site};
use crate::dim::Dim;
use crate::graph::{Graph, Phase, SiteId, Value};
use crate::infer::infer;
use crate::op::{Op, Random, Role, Source, View};
use crate::types::{DType, Shape, Type};

/// The most nodes a graph may have; a program that builds more is stopped.
pub const MAX_NODES: usize = 1_000_000;

/// Builds one graph.
pub struct Builder {
    pub(super) graph: RefCell<Graph>,
    site: Cell<SiteId>,
    phase: Cell<Phase>,
    streams: Cell<u32>,
    errors: RefCell<Vec<Diagnostic>>,
    /// Values that stand for the result of a failed operation; what uses them fails silently.
    pub(super) poisoned: RefCell<HashSet<Value>>,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder::new()
    }
}

impl Builder {
    /// A builder of an empty graph.
    pub fn new() -> Builder {
        Builder::extend(Graph::default())
    }

    /// A builder that goes on with `graph`.
    pub fn extend(graph: Graph) -> Builder {
        let streams = graph.nodes().filter_map(|n| match &graph.node(n).op {
            Op::Random(random) => Some(random.stream),
            Op::Composite(composite) => match composite.attrs.get("stream") {
                Some(Attr::Int(stream)) => u32::try_from(*stream).ok(),
                _ => None,
            },
            _ => None,
        });
        Builder {
            streams: Cell::new(streams.max().map_or(0, |last| last.wrapping_add(1))),
            graph: RefCell::new(graph),
            site: Cell::new(SiteId::new(0)),
            phase: Cell::new(Phase::Forward),
            errors: RefCell::default(),
            poisoned: RefCell::default(),
        }
    }

    /// The graph, or everything that went wrong.
    pub fn finish(self) -> Result<Graph, Vec<Diagnostic>> {
        let errors = self.errors.into_inner();
        if errors.is_empty() { Ok(self.graph.into_inner()) } else { Err(errors) }
    }

    /// The graph so far.
    pub fn graph(&self) -> std::cell::Ref<'_, Graph> {
        self.graph.borrow()
    }

    /// What went wrong since this was last asked.
    pub fn take_errors(&self) -> Vec<Diagnostic> {
        self.errors.take()
    }

    /// Sets the place that the next nodes come from.
    pub fn set_site(&self, site: &Site) {
        self.site.set(self.graph.borrow_mut().intern_site(site));
    }

    /// Sets the place that the next nodes come from to that of a node of this graph.
    pub fn set_site_id(&self, site: SiteId) {
        self.site.set(site);
    }

    /// The place that the next nodes come from.
    pub fn site_id(&self) -> SiteId {
        self.site.get()
    }

    /// The part of the step that the next nodes belong to.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Sets the part of the step that the next nodes belong to.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.set(phase);
    }

    /// The handle of a value of this graph.
    pub fn tensor(&self, value: Value) -> Tensor<'_> {
        Tensor { builder: self, value }
    }

    /// Names a result.
    pub fn output(&self, name: &str, tensor: Tensor<'_>) {
        self.graph.borrow_mut().outputs.push((name.into(), tensor.value));
    }

    /// Has `input` hold `new` when the program has run.
    pub fn update(&self, input: Tensor<'_>, new: Tensor<'_>) {
        let (ours, theirs) = (input.ty(), new.ty());
        if ours != theirs {
            self.fail(format!("update: {ours} cannot hold {theirs}"), &[input, new], None);
        } else {
            self.graph.borrow_mut().updates.push((input.value, new.value));
        }
    }

    /// Records an error at the current place and returns a value that silences what follows from it.
    pub fn fail(&self, message: String, operands: &[Tensor<'_>], help: Option<String>) -> Tensor<'_> {
        let fresh = operands.iter().all(|t| !self.poisoned.borrow().contains(&t.value));
        if fresh {
            let notes = operands.iter().map(|t| t.describe()).collect();
            let site = self.graph.borrow().site_at(self.site.get()).clone();
            self.errors.borrow_mut().push(Diagnostic { message, site, notes, help });
        }
        let poison = self.push(
            Op::Source(Source::Constant { value: f64::NAN, dtype: DType::F32 }),
            smallvec![],
            [Type::new(DType::F32, Shape::scalar())],
        );
        self.poisoned.borrow_mut().insert(poison[0]);
        self.tensor(poison[0])
    }

    fn push(
        &self,
        op: Op,
        inputs: SmallVec<[Value; 4]>,
        types: impl IntoIterator<Item = Type>,
    ) -> SmallVec<[Value; 2]> {
        let mut graph = self.graph.borrow_mut();
        let node = graph.push(op, inputs, types, self.site.get(), self.phase.get());
        graph.node(node).outputs().collect()
    }

    /// Adds a node and returns its results; on an error as many poisoned values as `results` says.
    pub fn add<'g>(&'g self, op: Op, operands: &[Tensor<'g>], results: usize) -> SmallVec<[Tensor<'g>; 2]> {
        let poisoned = operands.iter().any(|t| self.poisoned.borrow().contains(&t.value));
        if poisoned {
            let poison = self.fail(String::new(), operands, None);
            return smallvec![poison; results];
        }
        if self.graph.borrow().node_count() >= MAX_NODES {
            let message = format!("the graph has more than {MAX_NODES} nodes");
            let help = "a loop in the architecture may not end, or its sizes are far too large";
            // One message is enough: from here on every operation would repeat it.
            if self.errors.borrow().is_empty() {
                self.fail(message, &[], Some(help.into()));
            }
            return smallvec![operands.first().copied().unwrap_or(self.tensor(Value::new(0))); results];
        }
        let types: SmallVec<[Type; 4]> = operands.iter().map(|t| t.ty()).collect();
        match infer(&op, &types) {
            Ok(out) => {
                debug_assert_eq!(out.len(), results);
                let inputs = operands.iter().map(|t| t.value).collect();
                self.push(op, inputs, out).into_iter().map(|v| self.tensor(v)).collect()
            }
            Err(error) => {
                let poison = self.fail(error.message, operands, error.help);
                smallvec![poison; results]
            }
        }
    }

    pub(super) fn add1<'g>(&'g self, op: Op, operands: &[Tensor<'g>]) -> Tensor<'g> {
        self.add(op, operands, 1)[0]
    }

    /// A named buffer from outside.
    pub fn input(&self, name: &str, role: Role, ty: Type) -> Tensor<'_> {
        let clash = self.graph.borrow().input(name);
        if let Some(first) = clash {
            let message = format!("the name `{name}` is taken");
            let help = "give it another name, or declare it in its own scope";
            return self.fail(message, &[self.tensor(first)], Some(help.into()));
        }
        self.add1(Op::Source(Source::Input { name: name.into(), role, ty }), &[])
    }

    /// A scalar.
    pub fn constant(&self, value: f64, dtype: DType) -> Tensor<'_> {
        self.add1(Op::Source(Source::Constant { value, dtype }), &[])
    }

    /// An `f32` scalar.
    pub fn scalar(&self, value: f64) -> Tensor<'_> {
        self.constant(value, DType::F32)
    }

    /// A value of `shape` whose elements all are `value`.
    pub fn full(&self, value: f64, dtype: DType, shape: impl Into<Shape>) -> Tensor<'_> {
        self.constant(value, dtype).broadcast(shape)
    }

    /// A value whose elements are their own indices along `axis`.
    pub fn iota(&self, axis: usize, ty: Type) -> Tensor<'_> {
        self.add1(Op::Source(Source::Iota { axis, ty }), &[])
    }

    /// A size as an `f32` scalar.
    pub fn size(&self, dim: Dim) -> Tensor<'_> {
        self.add1(Op::Source(Source::Size(dim)), &[])
    }

    /// A random stream that no node of the graph uses yet.
    pub fn fresh_stream(&self) -> u32 {
        self.streams.replace(self.streams.get().wrapping_add(1))
    }

    /// Random bits (`u32`) from `key` (`u32[2]`), of a stream of their own.
    pub fn random_bits<'g>(&'g self, key: Tensor<'g>, shape: impl Into<Shape>) -> Tensor<'g> {
        let stream = self.fresh_stream();
        self.add1(Op::Random(Random { stream, shape: shape.into() }), &[key])
    }

    /// All operands one after the other along `axis`.
    pub fn concat<'g>(&'g self, parts: &[Tensor<'g>], axis: isize) -> Tensor<'g> {
        let Some(first) = parts.first() else {
            return self.fail("concat: no operands".into(), &[], None);
        };
        match first.axis("concat", axis) {
            Ok(axis) => self.add1(Op::View(View::Concat(axis)), parts),
            Err(poison) => poison,
        }
    }

    /// An operation that is defined by its expansion; settings not given have their defaults.
    pub fn composite<'g>(
        &'g self,
        def: &'static CompositeDef,
        operands: &[Tensor<'g>],
        attrs: Attrs,
    ) -> SmallVec<[Tensor<'g>; 2]> {
        match def.complete(&attrs) {
            Ok(attrs) => self.add(Op::Composite(Composite { def, attrs }), operands, def.results),
            Err(error) => smallvec![self.fail(error.message, operands, error.help); def.results],
        }
    }
}
