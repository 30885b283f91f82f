//! Operations defined by their expansion into others. One file each; `COMPOSITES` lists them.

use std::fmt;

use smallvec::SmallVec;

use crate::dim::Dim;
use crate::infer::InferError;
use crate::op::Role;
use crate::tensor::{Builder, Tensor};
use crate::types::{DType, Type};

/// Every composite, in the order of the reference pages.
pub static COMPOSITES: &[&CompositeDef] = &[];

/// A setting of a composite.
#[derive(Clone, PartialEq, Debug)]
pub enum Attr {
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A size.
    Size(Dim),
    /// An element type.
    DType(DType),
}

/// The settings of a composite, by name, in the order of its definition.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Attrs(SmallVec<[(&'static str, Attr); 4]>);

macro_rules! getter {
    ($(#[$doc:meta])* $name:ident $variant:ident $ty:ty) => {
        $(#[$doc])*
        pub fn $name(&self, name: &str) -> $ty {
            match self.get(name) {
                Some(Attr::$variant(value)) => *value,
                other => panic!("setting `{name}` is {other:?}: checked when the node was built"),
            }
        }
    };
}

impl Attrs {
    /// These settings and one more.
    pub fn with(mut self, name: &'static str, value: Attr) -> Attrs {
        self.0.push((name, value));
        self
    }

    /// The setting with this name.
    pub fn get(&self, name: &str) -> Option<&Attr> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, a)| a)
    }

    /// All settings.
    pub fn iter(&self) -> impl Iterator<Item = &(&'static str, Attr)> {
        self.0.iter()
    }

    getter! {
        /// The whole number with this name.
        int Int i64
    }
    getter! {
        /// The number with this name.
        float Float f64
    }
    getter! {
        /// The truth value with this name.
        flag Bool bool
    }
    getter! {
        /// The size with this name.
        size Size Dim
    }
    getter! {
        /// The element type with this name.
        dtype DType DType
    }
}

/// A setting that a composite has, with a value of the right variant as its default.
pub struct AttrDef {
    /// The name.
    pub name: &'static str,
    /// What it sets.
    pub doc: &'static str,
    /// The value where none is given.
    pub default: Attr,
}

/// The operands, results and result gradients of a composite whose gradient is wanted.
pub struct Backprop<'a, 'g> {
    /// The operands.
    pub inputs: &'a [Tensor<'g>],
    /// The results.
    pub outputs: &'a [Tensor<'g>],
    /// The gradient of each result; `None` where nothing depends on it.
    pub gradients: &'a [Option<Tensor<'g>>],
    /// The settings.
    pub attrs: &'a Attrs,
}

/// The gradients of the operands, `None` where it is zero or the operand is no float.
pub type Gradients<'g> = Vec<Option<Tensor<'g>>>;

/// Where the gradient of a composite comes from.
pub enum CompositeGradient {
    /// From its expansion.
    Expand,
    /// From a rule of its own that is shorter or keeps less.
    Rule(for<'g> fn(&Backprop<'_, 'g>) -> Gradients<'g>),
}

/// How a composite gets to the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lowering {
    /// As its expansion, which the backend fuses.
    Expand,
    /// As one kernel, which every backend has.
    Kernel,
}

/// The rules of an operation that is defined by its expansion.
pub struct CompositeDef {
    /// The name in text form and in Starlark.
    pub name: &'static str,
    /// What it computes: operands with shapes, the formula, the source.
    pub doc: &'static str,
    /// The settings.
    pub attrs: &'static [AttrDef],
    /// The number of results.
    pub results: usize,
    /// The definition. Operands that do not fit are reported with [`Builder::fail`].
    pub expand: for<'g> fn(&'g Builder, &[Tensor<'g>], &Attrs) -> Vec<Tensor<'g>>,
    /// The gradient.
    pub gradient: CompositeGradient,
    /// How it is run.
    pub lowering: Lowering,
}

impl fmt::Debug for CompositeDef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// The composite with this name.
pub fn composite(name: &str) -> Option<&'static CompositeDef> {
    COMPOSITES.iter().copied().find(|c| c.name == name)
}

/// A composite with its settings.
#[derive(Clone, Debug)]
pub struct Composite {
    /// The rules.
    pub def: &'static CompositeDef,
    /// The settings.
    pub attrs: Attrs,
}

impl PartialEq for Composite {
    fn eq(&self, other: &Composite) -> bool {
        self.def.name == other.def.name && self.attrs == other.attrs
    }
}

impl Composite {
    /// The types of the results: those of the expansion.
    pub fn infer(&self, inputs: &[Type]) -> Result<SmallVec<[Type; 2]>, InferError> {
        let scratch = Builder::new();
        let operands: Vec<Tensor<'_>> = inputs
            .iter()
            .enumerate()
            .map(|(i, ty)| scratch.input(&format!("operand {i}"), Role::Data, ty.clone()))
            .collect();
        let results = (self.def.expand)(&scratch, &operands, &self.attrs);
        match scratch.take_errors().into_iter().next() {
            None => Ok(results.iter().map(|t| t.ty()).collect()),
            Some(error) => {
                let name = self.def.name;
                let message =
                    if error.message.starts_with(name) { error.message } else { format!("{name}: {}", error.message) };
                Err(InferError { message, help: error.help })
            }
        }
    }
}
