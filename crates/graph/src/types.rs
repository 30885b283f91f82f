//! Element types, shapes and the type of a value.

use std::fmt;
use std::ops::Deref;

use smallvec::SmallVec;

use crate::dim::{Bindings, Dim, Symbol};

/// The most axes that a value may have.
pub const MAX_RANK: usize = 8;

/// The element type of a value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// bfloat16: the upper half of an `F32`, rounded to nearest even.
    BF16,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned byte.
    U8,
    /// Truth value, one byte, 0 or 1.
    Bool,
}

impl DType {
    /// Every element type.
    pub const ALL: [DType; 6] = [DType::F32, DType::BF16, DType::I32, DType::U32, DType::U8, DType::Bool];

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::BF16 => 2,
            DType::U8 | DType::Bool => 1,
        }
    }

    /// The name in text form.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::I32 => "i32",
            DType::U32 => "u32",
            DType::U8 => "u8",
            DType::Bool => "bool",
        }
    }

    /// The type with this name.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == name)
    }

    /// Whether gradients flow through values of this type.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::BF16)
    }

    /// Whether this is `I32`, `U32` or `U8`.
    pub const fn is_int(self) -> bool {
        matches!(self, DType::I32 | DType::U32 | DType::U8)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The sizes of a value's axes, outermost first; row-major where it is stored.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Shape(SmallVec<[Dim; 4]>);

impl Shape {
    /// The shape of a scalar.
    pub fn scalar() -> Shape {
        Shape::default()
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// The number of elements, or `None` if it cannot be written as one size.
    pub fn checked_numel(&self) -> Option<Dim> {
        self.0.iter().try_fold(Dim::ONE, |product, d| product.times(*d))
    }

    /// The number of elements. Shapes in a graph have been checked to have one.
    pub fn numel(&self) -> Dim {
        self.checked_numel().expect("shapes in a graph are checked when built")
    }

    /// The sizes as numbers, `None` if any is symbolic.
    pub fn as_const(&self) -> Option<Vec<usize>> {
        self.0.iter().map(Dim::as_const).collect()
    }

    /// The sizes as numbers in a bound graph.
    pub fn sizes(&self) -> Vec<usize> {
        self.as_const().expect("the graph has been bound")
    }

    /// This shape with one axis of another size.
    pub fn with(&self, axis: usize, size: Dim) -> Shape {
        let mut dims = self.0.clone();
        dims[axis] = size;
        Shape(dims)
    }

    /// This shape under `bindings`; the first symbol without a value otherwise.
    pub fn bind(&self, bindings: &Bindings) -> Result<Shape, Symbol> {
        self.0.iter().map(|d| d.bind(bindings).map(Dim::constant)).collect()
    }
}

impl Deref for Shape {
    type Target = [Dim];
    fn deref(&self) -> &[Dim] {
        &self.0
    }
}

impl<D: Into<Dim>> FromIterator<D> for Shape {
    fn from_iter<I: IntoIterator<Item = D>>(dims: I) -> Shape {
        Shape(dims.into_iter().map(Into::into).collect())
    }
}

impl<D: Into<Dim> + Copy> From<&[D]> for Shape {
    fn from(dims: &[D]) -> Shape {
        dims.iter().copied().collect()
    }
}

impl<D: Into<Dim> + Copy, const N: usize> From<[D; N]> for Shape {
    fn from(dims: [D; N]) -> Shape {
        dims.into_iter().collect()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, dim) in self.0.iter().enumerate() {
            write!(f, "{}{dim}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a value is: element type and shape.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Type {
    /// The element type.
    pub dtype: DType,
    /// The shape.
    pub shape: Shape,
}

impl Type {
    /// A type.
    pub fn new(dtype: DType, shape: impl Into<Shape>) -> Type {
        Type { dtype, shape: shape.into() }
    }

    /// The bytes of a value of this type in a bound graph.
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.size()
    }

    /// The number of elements in a bound graph.
    pub fn elements(&self) -> usize {
        self.shape.numel().as_const().expect("the graph has been bound")
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}
