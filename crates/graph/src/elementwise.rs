//! Elementwise operations: one table row each.

use std::f64::consts::FRAC_2_SQRT_PI;

use crate::tensor::Tensor;
use crate::types::DType;

/// Which element types an elementwise operation takes, and what it gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signature {
    /// Floats to the same float.
    Float,
    /// Numbers to the same type.
    Number,
    /// Floats to truth values.
    FloatToBool,
    /// Numbers to truth values.
    NumberToBool,
    /// Truth values to truth values.
    Bool,
}

impl Signature {
    /// The result's element type, or `None` if the operand's does not fit.
    pub fn result(self, operand: DType) -> Option<DType> {
        let (fits, result) = match self {
            Signature::Float => (operand.is_float(), operand),
            Signature::Number => (operand != DType::Bool, operand),
            Signature::FloatToBool => (operand.is_float(), DType::Bool),
            Signature::NumberToBool => (operand != DType::Bool, DType::Bool),
            Signature::Bool => (operand == DType::Bool, DType::Bool),
        };
        fits.then_some(result)
    }

    /// What the operation takes, for messages.
    pub fn takes(self) -> &'static str {
        match self {
            Signature::Float | Signature::FloatToBool => "floats",
            Signature::Number | Signature::NumberToBool => "numbers",
            Signature::Bool => "truth values",
        }
    }
}

/// The gradient of a unary operation.
#[derive(Clone, Copy)]
pub enum UnaryGradient {
    /// Zero almost everywhere, or no float.
    Zero,
    /// From operand, result and the result's gradient.
    Rule(for<'g> fn(Tensor<'g>, Tensor<'g>, Tensor<'g>) -> Tensor<'g>),
}

/// All that Tenon knows of a unary operation.
pub struct UnaryDef {
    /// The name in text form and in Starlark.
    pub name: &'static str,
    /// What it computes.
    pub doc: &'static str,
    /// Element types.
    pub signature: Signature,
    /// The meaning, in `f64`.
    pub eval: fn(f64) -> f64,
    /// The gradient.
    pub gradient: UnaryGradient,
    /// Floating-point operations per element, for cost estimates.
    pub flops: u32,
    /// The StableHLO operation.
    pub stablehlo: &'static str,
    /// The ONNX operator.
    pub onnx: &'static str,
    /// Where tests sample operands.
    pub domain: (f64, f64),
}

/// A unary operation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Unary {
    /// See the table.
    Neg,
    /// See the table.
    Abs,
    /// See the table.
    Sign,
    /// See the table.
    Exp,
    /// See the table.
    Expm1,
    /// See the table.
    Log,
    /// See the table.
    Log1p,
    /// See the table.
    Sqrt,
    /// See the table.
    Rsqrt,
    /// See the table.
    Sin,
    /// See the table.
    Cos,
    /// See the table.
    Tanh,
    /// See the table.
    Erf,
    /// See the table.
    Sigmoid,
    /// See the table.
    Floor,
    /// See the table.
    Round,
    /// See the table.
    Not,
    /// See the table.
    IsFinite,
}

use UnaryGradient::{Rule, Zero};

impl Unary {
    /// Every unary operation.
    pub const ALL: [Unary; 18] = [
        Unary::Neg,
        Unary::Abs,
        Unary::Sign,
        Unary::Exp,
        Unary::Expm1,
        Unary::Log,
        Unary::Log1p,
        Unary::Sqrt,
        Unary::Rsqrt,
        Unary::Sin,
        Unary::Cos,
        Unary::Tanh,
        Unary::Erf,
        Unary::Sigmoid,
        Unary::Floor,
        Unary::Round,
        Unary::Not,
        Unary::IsFinite,
    ];

    /// The operation with this name.
    pub fn from_name(name: &str) -> Option<Unary> {
        Unary::ALL.into_iter().find(|op| op.def().name == name)
    }

    /// The operation's row.
    #[rustfmt::skip]
    pub fn def(self) -> UnaryDef {
        use Signature::{Bool, Float, FloatToBool, Number};
        match self {
            Unary::Neg => UnaryDef {
                name: "neg", doc: "-x", signature: Number,
                eval: |x| -x,
                gradient: Rule(|_, _, dy| -dy),
                flops: 1, stablehlo: "negate", onnx: "Neg", domain: (-3.0, 3.0),
            },
            Unary::Abs => UnaryDef {
                name: "abs", doc: "The absolute value; its gradient at 0 is 0.", signature: Number,
                eval: f64::abs,
                gradient: Rule(|x, _, dy| dy * x.sign()),
                flops: 1, stablehlo: "abs", onnx: "Abs", domain: (-3.0, 3.0),
            },
            Unary::Sign => UnaryDef {
                name: "sign", doc: "-1, 0 or 1; NaN stays NaN.", signature: Number,
                eval: |x| if x == 0.0 || x.is_nan() { x } else { x.signum() },
                gradient: Zero,
                flops: 1, stablehlo: "sign", onnx: "Sign", domain: (-3.0, 3.0),
            },
            Unary::Exp => UnaryDef {
                name: "exp", doc: "e to the power x", signature: Float,
                eval: f64::exp,
                gradient: Rule(|_, y, dy| dy * y),
                flops: 12, stablehlo: "exponential", onnx: "Exp", domain: (-5.0, 5.0),
            },
            Unary::Expm1 => UnaryDef {
                name: "expm1", doc: "exp(x) - 1, exact near 0", signature: Float,
                eval: f64::exp_m1,
                gradient: Rule(|_, y, dy| dy * (y + 1.0)),
                flops: 16, stablehlo: "exponential_minus_one", onnx: "Exp,Sub", domain: (-3.0, 3.0),
            },
            Unary::Log => UnaryDef {
                name: "log", doc: "The natural logarithm", signature: Float,
                eval: f64::ln,
                gradient: Rule(|x, _, dy| dy / x),
                flops: 14, stablehlo: "log", onnx: "Log", domain: (0.05, 9.0),
            },
            Unary::Log1p => UnaryDef {
                name: "log1p", doc: "log(1 + x), exact near 0", signature: Float,
                eval: f64::ln_1p,
                gradient: Rule(|x, _, dy| dy / (x + 1.0)),
                flops: 16, stablehlo: "log_plus_one", onnx: "Add,Log", domain: (-0.9, 5.0),
            },
            Unary::Sqrt => UnaryDef {
                name: "sqrt", doc: "The square root", signature: Float,
                eval: f64::sqrt,
                gradient: Rule(|_, y, dy| dy * 0.5 / y),
                flops: 4, stablehlo: "sqrt", onnx: "Sqrt", domain: (0.05, 9.0),
            },
            Unary::Rsqrt => UnaryDef {
                name: "rsqrt", doc: "1 / sqrt(x)", signature: Float,
                eval: |x| 1.0 / x.sqrt(),
                gradient: Rule(|_, y, dy| dy * -0.5 * (y * y * y)),
                flops: 5, stablehlo: "rsqrt", onnx: "Sqrt,Reciprocal", domain: (0.05, 9.0),
            },
            Unary::Sin => UnaryDef {
                name: "sin", doc: "The sine of x radians", signature: Float,
                eval: f64::sin,
                gradient: Rule(|x, _, dy| dy * x.cos()),
                flops: 16, stablehlo: "sine", onnx: "Sin", domain: (-9.0, 9.0),
            },
            Unary::Cos => UnaryDef {
                name: "cos", doc: "The cosine of x radians", signature: Float,
                eval: f64::cos,
                gradient: Rule(|x, _, dy| -dy * x.sin()),
                flops: 16, stablehlo: "cosine", onnx: "Cos", domain: (-9.0, 9.0),
            },
            Unary::Tanh => UnaryDef {
                name: "tanh", doc: "The hyperbolic tangent", signature: Float,
                eval: f64::tanh,
                gradient: Rule(|_, y, dy| dy * (1.0 - y * y)),
                flops: 16, stablehlo: "tanh", onnx: "Tanh", domain: (-4.0, 4.0),
            },
            Unary::Erf => UnaryDef {
                name: "erf", doc: "The error function", signature: Float,
                eval: libm::erf,
                gradient: Rule(|x, _, dy| dy * FRAC_2_SQRT_PI * (-(x * x)).exp()),
                flops: 20, stablehlo: "chlo.erf", onnx: "Erf", domain: (-4.0, 4.0),
            },
            Unary::Sigmoid => UnaryDef {
                name: "sigmoid", doc: "1 / (1 + exp(-x))", signature: Float,
                eval: |x| 1.0 / (1.0 + (-x).exp()),
                gradient: Rule(|_, y, dy| dy * (y * (1.0 - y))),
                flops: 14, stablehlo: "logistic", onnx: "Sigmoid", domain: (-6.0, 6.0),
            },
            Unary::Floor => UnaryDef {
                name: "floor", doc: "The largest whole number not above x", signature: Float,
                eval: f64::floor,
                gradient: Zero,
                flops: 1, stablehlo: "floor", onnx: "Floor", domain: (-3.0, 3.0),
            },
            Unary::Round => UnaryDef {
                name: "round", doc: "The nearest whole number, halves to even", signature: Float,
                eval: f64::round_ties_even,
                gradient: Zero,
                flops: 1, stablehlo: "round_nearest_even", onnx: "Round", domain: (-3.0, 3.0),
            },
            Unary::Not => UnaryDef {
                name: "not", doc: "Whether x does not hold", signature: Bool,
                eval: |x| if x == 0.0 { 1.0 } else { 0.0 },
                gradient: Zero,
                flops: 1, stablehlo: "not", onnx: "Not", domain: (0.0, 1.0),
            },
            Unary::IsFinite => UnaryDef {
                name: "is_finite", doc: "Whether x is neither infinite nor NaN", signature: FloatToBool,
                eval: |x| x.is_finite() as u8 as f64,
                gradient: Zero,
                flops: 1, stablehlo: "is_finite", onnx: "IsInf,IsNaN,Or,Not", domain: (-3.0, 3.0),
            },
        }
    }
}

/// The gradient of a binary operation with respect to one operand.
#[derive(Clone, Copy)]
pub enum BinaryGradient {
    /// Zero almost everywhere, or no float.
    Zero,
    /// From both operands, the result and the result's gradient.
    Rule(for<'g> fn(Tensor<'g>, Tensor<'g>, Tensor<'g>, Tensor<'g>) -> Tensor<'g>),
}

/// All that Tenon knows of a binary operation.
pub struct BinaryDef {
    /// The name in text form and in Starlark.
    pub name: &'static str,
    /// What it computes.
    pub doc: &'static str,
    /// Element types.
    pub signature: Signature,
    /// The meaning, in `f64`; integers are exact in it but for large products, and wrap.
    pub eval: fn(f64, f64) -> f64,
    /// The gradient with respect to each operand.
    pub gradient: [BinaryGradient; 2],
    /// Floating-point operations per element, for cost estimates.
    pub flops: u32,
    /// The StableHLO operation.
    pub stablehlo: &'static str,
    /// The ONNX operator.
    pub onnx: &'static str,
    /// Where tests sample each operand.
    pub domain: [(f64, f64); 2],
}

/// A binary operation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Binary {
    /// See the table.
    Add,
    /// See the table.
    Sub,
    /// See the table.
    Mul,
    /// See the table.
    Div,
    /// See the table.
    Max,
    /// See the table.
    Min,
    /// See the table.
    Pow,
    /// See the table.
    Equal,
    /// See the table.
    Less,
    /// See the table.
    LessEqual,
    /// See the table.
    And,
    /// See the table.
    Or,
}

impl Binary {
    /// Every binary operation.
    pub const ALL: [Binary; 12] = [
        Binary::Add,
        Binary::Sub,
        Binary::Mul,
        Binary::Div,
        Binary::Max,
        Binary::Min,
        Binary::Pow,
        Binary::Equal,
        Binary::Less,
        Binary::LessEqual,
        Binary::And,
        Binary::Or,
    ];

    /// The operation with this name.
    pub fn from_name(name: &str) -> Option<Binary> {
        Binary::ALL.into_iter().find(|op| op.def().name == name)
    }

    /// The operation's row.
    #[rustfmt::skip]
    pub fn def(self) -> BinaryDef {
        use BinaryGradient::{Rule, Zero};
        use Signature::{Bool, Float, Number, NumberToBool};
        const WIDE: (f64, f64) = (-3.0, 3.0);
        match self {
            Binary::Add => BinaryDef {
                name: "add", doc: "a + b", signature: Number,
                eval: |a, b| a + b,
                gradient: [Rule(|_, _, _, dy| dy), Rule(|_, _, _, dy| dy)],
                flops: 1, stablehlo: "add", onnx: "Add", domain: [WIDE, WIDE],
            },
            Binary::Sub => BinaryDef {
                name: "sub", doc: "a - b", signature: Number,
                eval: |a, b| a - b,
                gradient: [Rule(|_, _, _, dy| dy), Rule(|_, _, _, dy| -dy)],
                flops: 1, stablehlo: "subtract", onnx: "Sub", domain: [WIDE, WIDE],
            },
            Binary::Mul => BinaryDef {
                name: "mul", doc: "a * b", signature: Number,
                eval: |a, b| a * b,
                gradient: [Rule(|_, b, _, dy| dy * b), Rule(|a, _, _, dy| dy * a)],
                flops: 1, stablehlo: "multiply", onnx: "Mul", domain: [WIDE, WIDE],
            },
            Binary::Div => BinaryDef {
                name: "div", doc: "a / b", signature: Float,
                eval: |a, b| a / b,
                gradient: [Rule(|_, b, _, dy| dy / b), Rule(|_, b, y, dy| -(dy * y / b))],
                flops: 4, stablehlo: "divide", onnx: "Div", domain: [WIDE, (0.3, 3.0)],
            },
            Binary::Max => BinaryDef {
                name: "max", doc: "The larger; NaN if either is. The gradient of equal operands goes to the first.",
                signature: Number,
                eval: |a, b| if a.is_nan() || a >= b { a } else { b },
                gradient: [
                    Rule(|a, b, _, dy| b.less_equal(a).select(dy, dy.zeros_like())),
                    Rule(|a, b, _, dy| b.less_equal(a).select(dy.zeros_like(), dy)),
                ],
                flops: 1, stablehlo: "maximum", onnx: "Max", domain: [WIDE, WIDE],
            },
            Binary::Min => BinaryDef {
                name: "min", doc: "The smaller; NaN if either is. The gradient of equal operands goes to the first.",
                signature: Number,
                eval: |a, b| if a.is_nan() || a <= b { a } else { b },
                gradient: [
                    Rule(|a, b, _, dy| a.less_equal(b).select(dy, dy.zeros_like())),
                    Rule(|a, b, _, dy| a.less_equal(b).select(dy.zeros_like(), dy)),
                ],
                flops: 1, stablehlo: "minimum", onnx: "Min", domain: [WIDE, WIDE],
            },
            Binary::Pow => BinaryDef {
                name: "pow", doc: "a to the power b; the gradient of b = 0 and of a = 0 is finite.", signature: Float,
                eval: f64::powf,
                gradient: [
                    Rule(|a, b, _, dy| b.equal(0.0).select(dy.zeros_like(), dy * b * a.pow(b - 1.0))),
                    Rule(|a, _, y, dy| a.equal(0.0).select(dy.zeros_like(), dy * y * a.log())),
                ],
                flops: 30, stablehlo: "power", onnx: "Pow", domain: [(0.1, 3.0), (-2.0, 2.0)],
            },
            Binary::Equal => BinaryDef {
                name: "equal", doc: "Whether a = b", signature: NumberToBool,
                eval: |a, b| (a == b) as u8 as f64,
                gradient: [Zero, Zero],
                flops: 1, stablehlo: "compare EQ", onnx: "Equal", domain: [WIDE, WIDE],
            },
            Binary::Less => BinaryDef {
                name: "less", doc: "Whether a < b", signature: NumberToBool,
                eval: |a, b| (a < b) as u8 as f64,
                gradient: [Zero, Zero],
                flops: 1, stablehlo: "compare LT", onnx: "Less", domain: [WIDE, WIDE],
            },
            Binary::LessEqual => BinaryDef {
                name: "less_equal", doc: "Whether a <= b", signature: NumberToBool,
                eval: |a, b| (a <= b) as u8 as f64,
                gradient: [Zero, Zero],
                flops: 1, stablehlo: "compare LE", onnx: "LessOrEqual", domain: [WIDE, WIDE],
            },
            Binary::And => BinaryDef {
                name: "and", doc: "Whether both hold", signature: Bool,
                eval: |a, b| (a != 0.0 && b != 0.0) as u8 as f64,
                gradient: [Zero, Zero],
                flops: 1, stablehlo: "and", onnx: "And", domain: [(0.0, 1.0), (0.0, 1.0)],
            },
            Binary::Or => BinaryDef {
                name: "or", doc: "Whether either holds", signature: Bool,
                eval: |a, b| (a != 0.0 || b != 0.0) as u8 as f64,
                gradient: [Zero, Zero],
                flops: 1, stablehlo: "or", onnx: "Or", domain: [(0.0, 1.0), (0.0, 1.0)],
            },
        }
    }
}
