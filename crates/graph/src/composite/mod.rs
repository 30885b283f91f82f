//! Operations defined by their expansion into others. One file each; `COMPOSITES` lists them.

pub mod activation;
pub mod attention;
pub mod batch_norm;
pub mod dropout;
pub mod experts;
pub mod loss;
pub mod norm;
pub mod rope;
pub mod softmax;

use std::fmt;

use smallvec::SmallVec;

use crate::dim::Dim;
use crate::infer::InferError;
use crate::op::Role;
use crate::tensor::{Builder, Tensor};
use crate::types::{DType, Type};

/// Every composite, in the order of the reference pages.
pub static COMPOSITES: &[&CompositeDef] = &[
    &activation::RELU,
    &activation::GELU,
    &activation::SILU,
    &activation::SOFTPLUS,
    &softmax::SOFTMAX,
    &softmax::LOG_SOFTMAX,
    &norm::LAYER_NORM,
    &norm::RMS_NORM,
    &norm::GROUP_NORM,
    &batch_norm::BATCH_NORM,
    &batch_norm::BATCH_NORM_INFERENCE,
    &dropout::DROPOUT,
    &rope::ROPE,
    &attention::ATTENTION,
    &attention::ATTENTION_GRADIENT,
    &experts::EXPERT_MATMUL,
    &experts::EXPERT_OUTER,
    &loss::CROSS_ENTROPY,
    &loss::BCE_WITH_LOGITS,
    &loss::MSE,
];

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

impl Attr {
    /// What kind of setting this is, for messages.
    pub const fn kind(&self) -> &'static str {
        match self {
            Attr::Int(_) => "a whole number",
            Attr::Float(_) => "a number",
            Attr::Bool(_) => "a truth value",
            Attr::Size(_) => "a size",
            Attr::DType(_) => "an element type",
        }
    }
}

macro_rules! from {
    ($($ty:ty => $variant:ident;)*) => {$(
        impl From<$ty> for Attr {
            fn from(value: $ty) -> Attr {
                Attr::$variant(value)
            }
        }
    )*};
}

from! {
    i64 => Int;
    f64 => Float;
    bool => Bool;
    Dim => Size;
    DType => DType;
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
    /// These settings with `name` set to `value`.
    pub fn with(mut self, name: &'static str, value: impl Into<Attr>) -> Attrs {
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some((_, old)) => *old = value.into(),
            None => self.0.push((name, value.into())),
        }
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

/// An operand that a composite takes.
pub struct OperandDef {
    /// The name, for messages and the reference pages.
    pub name: &'static str,
    /// Its shape and meaning.
    pub doc: &'static str,
    /// The element type; `None` for any float.
    pub dtype: Option<DType>,
    /// The setting, a truth value, that says whether the operand is given; `None` if it always is.
    pub when: Option<&'static str>,
}

impl OperandDef {
    /// An operand of floats.
    pub const fn float(name: &'static str, doc: &'static str) -> OperandDef {
        OperandDef { name, doc, dtype: None, when: None }
    }

    /// An operand of one element type.
    pub const fn of(dtype: DType, name: &'static str, doc: &'static str) -> OperandDef {
        OperandDef { name, doc, dtype: Some(dtype), when: None }
    }

    /// This operand, given only where the setting `flag` holds.
    pub const fn when(self, flag: &'static str) -> OperandDef {
        OperandDef { when: Some(flag), ..self }
    }
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
    /// What it computes: the results with shapes, the formula, the source.
    pub doc: &'static str,
    /// The operands, in order; optional ones last.
    pub operands: &'static [OperandDef],
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

impl CompositeDef {
    /// The operands that a node with these settings takes.
    pub fn operands_with(&self, attrs: &Attrs) -> impl Iterator<Item = &'static OperandDef> {
        self.operands.iter().filter(|o| o.when.is_none_or(|flag| attrs.flag(flag)))
    }

    /// Every setting of this composite: those in `given`, the rest at their defaults; or what is wrong with `given`.
    pub fn complete(&self, given: &Attrs) -> Result<Attrs, InferError> {
        let mut all = Attrs::default();
        for AttrDef { name, default, .. } in self.attrs {
            let value = given.get(name).unwrap_or(default);
            if std::mem::discriminant(value) != std::mem::discriminant(default) {
                let (takes, found) = (default.kind(), value.kind());
                return Err(InferError::new(format!("{}: `{name}` is {takes}, not {found}", self.name)));
            }
            all = all.with(name, value.clone());
        }
        match given.iter().find(|(name, _)| all.get(name).is_none()) {
            None => Ok(all),
            Some((unknown, _)) => {
                let known: Vec<&str> = self.attrs.iter().map(|a| a.name).collect();
                let known = if known.is_empty() { "none".into() } else { known.join(", ") };
                let message = format!("{}: has no setting `{unknown}`", self.name);
                Err(InferError::new(message).help(format!("its settings: {known}")))
            }
        }
    }

    fn check_operands(&self, inputs: &[Type], attrs: &Attrs) -> Result<(), InferError> {
        let taken: Vec<&OperandDef> = self.operands_with(attrs).collect();
        if taken.len() != inputs.len() {
            let names: Vec<&str> = taken.iter().map(|o| o.name).collect();
            let (name, takes) = (self.name, names.join(", "));
            return Err(InferError::new(format!("{name}: takes {takes}, not {} operands", inputs.len())));
        }
        for (operand, ty) in taken.iter().zip(inputs) {
            let fits = operand.dtype.map_or(ty.dtype.is_float(), |dtype| ty.dtype == dtype);
            if !fits {
                let takes = operand.dtype.map_or("floats", DType::name);
                let message = format!("{}: {} takes {takes}, not {ty}", self.name, operand.name);
                return Err(InferError::new(message).help("cast it first"));
            }
        }
        Ok(())
    }
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
        if self.def.complete(&self.attrs)? != self.attrs {
            return Err(InferError::new(format!("{}: settings are missing or out of order", self.def.name)));
        }
        self.def.check_operands(inputs, &self.attrs)?;
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

/// The results of an expansion, or as many poisoned ones as the composite has.
fn results<'g>(def: &CompositeDef, built: Result<Vec<Tensor<'g>>, Tensor<'g>>) -> Vec<Tensor<'g>> {
    built.unwrap_or_else(|poison| vec![poison; def.results])
}

/// An error of the composite `what` unless `holds`.
fn require<'g>(
    holds: bool,
    operands: &[Tensor<'g>],
    message: impl FnOnce() -> String,
    help: Option<&str>,
) -> Result<(), Tensor<'g>> {
    match operands {
        _ if holds => Ok(()),
        [first, ..] => Err(first.builder().fail(message(), operands, help.map(str::to_string))),
        [] => unreachable!("composites have operands"),
    }
}

/// An error unless `tensor`, the operand `name`, has this shape.
fn require_shape<'g>(name: &str, tensor: Tensor<'g>, shape: &[Dim]) -> Result<(), Tensor<'g>> {
    let found = tensor.shape();
    let expected = crate::types::Shape::from(shape);
    require(found == expected, &[tensor], || format!("{name} is {found}, not {expected}"), None)
}

/// This tensor in `f32`, in which composites compute whatever the element type of their operands is.
fn wide(tensor: Tensor<'_>) -> Tensor<'_> {
    tensor.cast(DType::F32)
}
