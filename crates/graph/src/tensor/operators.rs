//! Elementwise arithmetic of tensors and numbers, as methods and as operators.

use std::ops;

use super::Tensor;
use crate::elementwise::{Binary, Unary};

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident $op:ident;)*) => {
        impl<'g> Tensor<'g> {
            $($(#[$doc])* pub fn $name(self) -> Tensor<'g> { self.unary(Unary::$op) })*
        }
    };
}

unary! {
    /// The absolute value.
    abs Abs;
    /// -1, 0 or 1.
    sign Sign;
    /// e to this power.
    exp Exp;
    /// exp - 1.
    expm1 Expm1;
    /// The natural logarithm.
    log Log;
    /// log(1 + x).
    log1p Log1p;
    /// The square root.
    sqrt Sqrt;
    /// 1 / sqrt(x).
    rsqrt Rsqrt;
    /// The sine.
    sin Sin;
    /// The cosine.
    cos Cos;
    /// The hyperbolic tangent.
    tanh Tanh;
    /// The error function.
    erf Erf;
    /// 1 / (1 + exp(-x)).
    sigmoid Sigmoid;
    /// The largest whole number not above x.
    floor Floor;
    /// The nearest whole number.
    round Round;
    /// Whether x is finite.
    is_finite IsFinite;
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident $op:ident;)*) => {
        impl<'g> Tensor<'g> {
            $($(#[$doc])* pub fn $name(self, other: impl Operand<'g>) -> Tensor<'g> {
                self.binary(Binary::$op, other.beside(self))
            })*
        }
    };
}

binary! {
    /// The larger.
    max Max;
    /// The smaller.
    min Min;
    /// This to the power of the other.
    pow Pow;
    /// Whether both are equal.
    equal Equal;
    /// Whether this is smaller.
    less Less;
    /// Whether this is not larger.
    less_equal LessEqual;
    /// Whether both hold.
    and And;
    /// Whether either holds.
    or Or;
}

/// What may stand beside a tensor in arithmetic: a tensor or a number.
pub trait Operand<'g> {
    /// The operand as a tensor of the graph of `tensor`.
    fn beside(self, tensor: Tensor<'g>) -> Tensor<'g>;
}

impl<'g> Operand<'g> for Tensor<'g> {
    fn beside(self, _: Tensor<'g>) -> Tensor<'g> {
        self
    }
}

impl<'g> Operand<'g> for f64 {
    fn beside(self, tensor: Tensor<'g>) -> Tensor<'g> {
        tensor.constant_like(self)
    }
}

macro_rules! operator {
    ($($trait:ident $method:ident $op:ident;)*) => {$(
        impl<'g, T: Operand<'g>> ops::$trait<T> for Tensor<'g> {
            type Output = Tensor<'g>;
            fn $method(self, other: T) -> Tensor<'g> {
                self.binary(Binary::$op, other.beside(self))
            }
        }
        impl<'g> ops::$trait<Tensor<'g>> for f64 {
            type Output = Tensor<'g>;
            fn $method(self, other: Tensor<'g>) -> Tensor<'g> {
                self.beside(other).binary(Binary::$op, other)
            }
        }
    )*};
}

operator! {
    Add add Add;
    Sub sub Sub;
    Mul mul Mul;
    Div div Div;
}

impl<'g> ops::Neg for Tensor<'g> {
    type Output = Tensor<'g>;
    fn neg(self) -> Tensor<'g> {
        self.unary(Unary::Neg)
    }
}

impl<'g> ops::Not for Tensor<'g> {
    type Output = Tensor<'g>;
    fn not(self) -> Tensor<'g> {
        self.unary(Unary::Not)
    }
}
