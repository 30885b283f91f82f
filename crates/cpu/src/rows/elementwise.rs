//! Elementwise kernels: one for each operation and content of lanes.

use std::marker::PhantomData;
use std::slice::{from_raw_parts, from_raw_parts_mut};

use tenon_graph::elementwise::{Binary, Unary};
use tenon_graph::types::DType;

use super::kernel::{Body, Elementwise, Kernel, Lane, Operand};
use super::pairs::{self, Arithmetic};
use crate::math::{self, round_to_bf16};

/// Heavy operations work on the last lanes of a tile as on a whole vector of this many,
const VECTOR: usize = 32;
/// unless there are this few.
const FEW: usize = 4;

/// What an elementwise step computes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Formula {
    /// Of elements of this type, before rounding to bf16.
    Unary(Unary, DType),
    /// Of elements of this type, before rounding to bf16.
    Binary(Binary, DType),
    /// The second or the third, where the first is true or not.
    Select,
    /// From one type to another, before rounding to bf16.
    Cast(DType, DType),
    /// The nearest bf16.
    Round,
    /// The operand.
    Copy,
    /// The second of the first; if the flag is set, on its left.
    Pair(Arithmetic, Arithmetic, bool),
}

impl Formula {
    /// What computes it.
    pub fn kernel(self) -> Kernel<Elementwise> {
        match self {
            Formula::Unary(op, dtype) => unary_kernel(op, dtype),
            Formula::Binary(op, dtype) => binary_kernel(op, dtype),
            Formula::Select => Kernel::new::<SelectBody>(),
            Formula::Cast(from, to) => cast_kernel(from, to).unwrap_or_else(copy_kernel),
            Formula::Round => map_kernel::<RoundToBf16>(),
            Formula::Copy => copy_kernel(),
            Formula::Pair(first, second, left) => pairs::kernel(first, second, left),
        }
    }
}

/// A function of one lane.
trait Map {
    type In: Lane + Default;
    type Out: Lane + Default;
    /// Whether it takes many instructions.
    const HEAVY: bool = false;
    /// Whether some operands are for `rare` to compute.
    const RARE: bool = false;
    fn apply(x: Self::In) -> Self::Out;
    fn is_rare(_: Self::In) -> bool {
        false
    }
    fn rare(x: Self::In) -> Self::Out {
        Self::apply(x)
    }
}

struct MapBody<M>(PhantomData<M>);

impl<M: Map> Body for MapBody<M> {
    type Args = Elementwise;

    #[inline(always)]
    unsafe fn run(args: &Elementwise) {
        debug_assert!(!args.from[0].splat);
        // SAFETY: the arguments say that `n` lanes are there and that they do not overlap.
        let (to, from) =
            unsafe { (from_raw_parts_mut(args.to.cast(), args.n), from_raw_parts(args.from[0].lanes.cast(), args.n)) };
        map::<M>(to, from);
    }
}

#[inline(always)]
fn map<M: Map>(to: &mut [M::Out], from: &[M::In]) {
    let whole = if M::HEAVY { from.len() - from.len() % VECTOR } else { from.len() };
    let (to_whole, to_rest) = to.split_at_mut(whole);
    let (from_whole, from_rest) = from.split_at(whole);
    for (y, x) in to_whole.iter_mut().zip(from_whole) {
        *y = M::apply(*x);
    }
    if from_rest.len() <= FEW {
        for (y, x) in to_rest.iter_mut().zip(from_rest) {
            *y = M::apply(*x);
        }
    } else {
        let mut padded = [M::In::default(); VECTOR];
        let mut results = [M::Out::default(); VECTOR];
        padded[..from_rest.len()].copy_from_slice(from_rest);
        for (y, x) in results.iter_mut().zip(&padded) {
            *y = M::apply(*x);
        }
        to_rest.copy_from_slice(&results[..from_rest.len()]);
    }
    if M::RARE && from.iter().fold(false, |any, x| any | M::is_rare(*x)) {
        for (y, x) in to.iter_mut().zip(from) {
            if M::is_rare(*x) {
                *y = M::rare(*x);
            }
        }
    }
}

/// A function of two lanes.
pub trait Zip {
    /// What it takes.
    type In: Lane;
    /// What it gives.
    type Out: Lane;
    /// Its value.
    fn apply(a: Self::In, b: Self::In) -> Self::Out;
}

struct ZipBody<Z>(PhantomData<Z>);

impl<Z: Zip> Body for ZipBody<Z> {
    type Args = Elementwise;

    #[inline(always)]
    unsafe fn run(args: &Elementwise) {
        let [a, b, _] = args.from;
        // SAFETY: the arguments say what is there and that nothing written overlaps it.
        unsafe {
            let to: &mut [Z::Out] = from_raw_parts_mut(args.to.cast(), args.n);
            match (a.splat, b.splat) {
                (false, false) => zip::<Z>(to, lanes(a, args.n), lanes(b, args.n)),
                (false, true) => zip_right::<Z>(to, lanes(a, args.n), first(b)),
                (true, false) => zip_left::<Z>(to, first(a), lanes(b, args.n)),
                (true, true) => to.fill(Z::apply(first(a), first(b))),
            }
        }
    }
}

#[inline(always)]
unsafe fn lanes<'a, T: Lane>(operand: Operand, n: usize) -> &'a [T] {
    // SAFETY: the caller knows that `n` lanes are there.
    unsafe { from_raw_parts(operand.lanes.cast(), n) }
}

#[inline(always)]
unsafe fn first<T: Lane>(operand: Operand) -> T {
    // SAFETY: the caller knows that a lane is there.
    unsafe { *operand.lanes.cast() }
}

#[inline(always)]
fn zip<Z: Zip>(to: &mut [Z::Out], a: &[Z::In], b: &[Z::In]) {
    for ((y, a), b) in to.iter_mut().zip(a).zip(b) {
        *y = Z::apply(*a, *b);
    }
}

#[inline(always)]
fn zip_right<Z: Zip>(to: &mut [Z::Out], a: &[Z::In], b: Z::In) {
    for (y, a) in to.iter_mut().zip(a) {
        *y = Z::apply(*a, b);
    }
}

#[inline(always)]
fn zip_left<Z: Zip>(to: &mut [Z::Out], a: Z::In, b: &[Z::In]) {
    for (y, b) in to.iter_mut().zip(b) {
        *y = Z::apply(a, *b);
    }
}

struct SelectBody;

impl Body for SelectBody {
    type Args = Elementwise;

    #[inline(always)]
    unsafe fn run(args: &Elementwise) {
        let [condition, a, b] = args.from;
        // SAFETY: the arguments say what is there and that nothing written overlaps it.
        unsafe {
            let to: &mut [u32] = from_raw_parts_mut(args.to, args.n);
            if condition.splat {
                let chosen = if first::<u32>(condition) != 0 { a } else { b };
                return copy(to, chosen);
            }
            let condition = lanes(condition, args.n);
            match (a.splat, b.splat) {
                (false, false) => select(to, condition, lanes(a, args.n), lanes(b, args.n)),
                (false, true) => select_right(to, condition, lanes(a, args.n), first(b)),
                (true, false) => select_left(to, condition, first(a), lanes(b, args.n)),
                (true, true) => select_both(to, condition, first(a), first(b)),
            }
        }
    }
}

#[inline(always)]
fn select(to: &mut [u32], condition: &[u32], a: &[u32], b: &[u32]) {
    for (((y, c), a), b) in to.iter_mut().zip(condition).zip(a).zip(b) {
        *y = if *c != 0 { *a } else { *b };
    }
}

#[inline(always)]
fn select_right(to: &mut [u32], condition: &[u32], a: &[u32], b: u32) {
    for ((y, c), a) in to.iter_mut().zip(condition).zip(a) {
        *y = if *c != 0 { *a } else { b };
    }
}

#[inline(always)]
fn select_left(to: &mut [u32], condition: &[u32], a: u32, b: &[u32]) {
    for ((y, c), b) in to.iter_mut().zip(condition).zip(b) {
        *y = if *c != 0 { a } else { *b };
    }
}

#[inline(always)]
fn select_both(to: &mut [u32], condition: &[u32], a: u32, b: u32) {
    for (y, c) in to.iter_mut().zip(condition) {
        *y = if *c != 0 { a } else { b };
    }
}

struct CopyBody;

impl Body for CopyBody {
    type Args = Elementwise;

    #[inline(always)]
    unsafe fn run(args: &Elementwise) {
        // SAFETY: the arguments say what is there and that nothing written overlaps it.
        unsafe { copy(from_raw_parts_mut(args.to, args.n), args.from[0]) }
    }
}

#[inline(always)]
unsafe fn copy(to: &mut [u32], from: Operand) {
    // SAFETY: the caller knows that as many lanes are there as are written.
    unsafe { if from.splat { to.fill(first(from)) } else { to.copy_from_slice(lanes(from, to.len())) } }
}

macro_rules! maps {
    ($($name:ident $in:ty => $out:ty, $heavy:expr, |$x:ident| $result:expr;)*) => {$(
        struct $name;
        impl Map for $name {
            type In = $in;
            type Out = $out;
            const HEAVY: bool = $heavy;
            #[inline(always)]
            fn apply($x: $in) -> $out {
                $result
            }
        }
    )*};
}

maps! {
    NegF32 f32 => f32, false, |x| -x;
    NegU32 u32 => u32, false, |x| x.wrapping_neg();
    NegU8 u32 => u32, false, |x| x.wrapping_neg() & 0xFF;
    AbsF32 f32 => f32, false, |x| x.abs();
    AbsI32 i32 => i32, false, |x| x.wrapping_abs();
    SignF32 f32 => f32, false, |x| if x == 0.0 || x.is_nan() { x } else { 1f32.copysign(x) };
    SignI32 i32 => i32, false, |x| x.signum();
    SignU32 u32 => u32, false, |x| u32::from(x != 0);
    Exp f32 => f32, true, |x| math::exp(x);
    Expm1 f32 => f32, true, |x| math::expm1(x);
    Log f32 => f32, true, |x| math::log(x);
    Log1p f32 => f32, true, |x| math::log1p(x);
    Sqrt f32 => f32, true, |x| math::sqrt(x);
    Rsqrt f32 => f32, true, |x| math::rsqrt(x);
    Tanh f32 => f32, true, |x| math::tanh(x);
    Erf f32 => f32, true, |x| math::erf(x);
    Sigmoid f32 => f32, true, |x| math::sigmoid(x);
    Floor f32 => f32, false, |x| x.floor();
    Round f32 => f32, false, |x| x.round_ties_even();
    Not u32 => u32, false, |x| u32::from(x == 0);
    IsFinite f32 => u32, false, |x| u32::from(x.abs() < f32::INFINITY);
    RoundToBf16 f32 => f32, false, |x| round_to_bf16(x);
    F32FromI32 i32 => f32, false, |x| x as f32;
    F32FromU32 u32 => f32, false, |x| x as f32;
    I32FromF32 f32 => i32, false, |x| x as i32;
    U32FromF32 f32 => u32, false, |x| x as u32;
    U8FromF32 f32 => u32, false, |x| u32::from(x as u8);
    U8FromU32 u32 => u32, false, |x| x & 0xFF;
    BoolFromF32 f32 => u32, false, |x| u32::from(x != 0.0);
    BoolFromU32 u32 => u32, false, |x| u32::from(x != 0);
}

macro_rules! angles {
    ($($name:ident $apply:path, $rare:path;)*) => {$(
        struct $name;
        impl Map for $name {
            type In = f32;
            type Out = f32;
            const HEAVY: bool = true;
            const RARE: bool = true;
            #[inline(always)]
            fn apply(x: f32) -> f32 {
                $apply(x)
            }
            #[inline(always)]
            fn is_rare(x: f32) -> bool {
                x.abs() >= math::LARGE_ANGLE || x.is_nan()
            }
            fn rare(x: f32) -> f32 {
                $rare(x)
            }
        }
    )*};
}

angles! {
    Sin math::sin, math::sin_large;
    Cos math::cos, math::cos_large;
}

macro_rules! zips {
    ($($name:ident $in:ty => $out:ty, |$a:ident, $b:ident| $result:expr;)*) => {$(
        /// See [`Formula::Binary`].
        pub struct $name;
        impl Zip for $name {
            type In = $in;
            type Out = $out;
            #[inline(always)]
            fn apply($a: $in, $b: $in) -> $out {
                $result
            }
        }
    )*};
}

zips! {
    AddF32 f32 => f32, |a, b| a + b;
    AddU32 u32 => u32, |a, b| a.wrapping_add(b);
    AddU8 u32 => u32, |a, b| a.wrapping_add(b) & 0xFF;
    SubF32 f32 => f32, |a, b| a - b;
    SubU32 u32 => u32, |a, b| a.wrapping_sub(b);
    SubU8 u32 => u32, |a, b| a.wrapping_sub(b) & 0xFF;
    MulF32 f32 => f32, |a, b| a * b;
    MulU32 u32 => u32, |a, b| a.wrapping_mul(b);
    MulU8 u32 => u32, |a, b| a.wrapping_mul(b) & 0xFF;
    DivF32 f32 => f32, |a, b| a / b;
    MaxF32 f32 => f32, |a, b| super::reduce::max_f32(a, b);
    MaxI32 i32 => i32, |a, b| a.max(b);
    MaxU32 u32 => u32, |a, b| a.max(b);
    MinF32 f32 => f32, |a, b| if a.is_nan() || a <= b { a } else { b };
    MinI32 i32 => i32, |a, b| a.min(b);
    MinU32 u32 => u32, |a, b| a.min(b);
    PowF32 f32 => f32, |a, b| math::pow(a, b);
    EqualF32 f32 => u32, |a, b| u32::from(a == b);
    EqualU32 u32 => u32, |a, b| u32::from(a == b);
    LessF32 f32 => u32, |a, b| u32::from(a < b);
    LessI32 i32 => u32, |a, b| u32::from(a < b);
    LessU32 u32 => u32, |a, b| u32::from(a < b);
    LessEqualF32 f32 => u32, |a, b| u32::from(a <= b);
    LessEqualI32 i32 => u32, |a, b| u32::from(a <= b);
    LessEqualU32 u32 => u32, |a, b| u32::from(a <= b);
    AndBool u32 => u32, |a, b| a & b;
    OrBool u32 => u32, |a, b| a | b;
}

fn map_kernel<M: Map>() -> Kernel<Elementwise> {
    Kernel::new::<MapBody<M>>()
}

fn zip_kernel<Z: Zip>() -> Kernel<Elementwise> {
    Kernel::new::<ZipBody<Z>>()
}

/// The kernel that copies its operand.
fn copy_kernel() -> Kernel<Elementwise> {
    Kernel::new::<CopyBody>()
}

/// What a lane holds, whatever the element type in memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    F32,
    I32,
    /// Also truth values.
    U32,
    U8,
}

fn content(dtype: DType) -> Content {
    match dtype {
        DType::F32 | DType::BF16 => Content::F32,
        DType::I32 => Content::I32,
        DType::U32 | DType::Bool => Content::U32,
        DType::U8 => Content::U8,
    }
}

/// The kernel of a unary operation on elements of type `dtype`, before rounding to bf16.
fn unary_kernel(op: Unary, dtype: DType) -> Kernel<Elementwise> {
    use Content::{F32, I32, U8, U32};
    match (op, content(dtype)) {
        (Unary::Neg, F32) => map_kernel::<NegF32>(),
        (Unary::Neg, I32 | U32) => map_kernel::<NegU32>(),
        (Unary::Neg, U8) => map_kernel::<NegU8>(),
        (Unary::Abs, F32) => map_kernel::<AbsF32>(),
        (Unary::Abs, I32) => map_kernel::<AbsI32>(),
        (Unary::Abs, U32 | U8) => copy_kernel(),
        (Unary::Sign, F32) => map_kernel::<SignF32>(),
        (Unary::Sign, I32) => map_kernel::<SignI32>(),
        (Unary::Sign, U32 | U8) => map_kernel::<SignU32>(),
        (Unary::Exp, _) => map_kernel::<Exp>(),
        (Unary::Expm1, _) => map_kernel::<Expm1>(),
        (Unary::Log, _) => map_kernel::<Log>(),
        (Unary::Log1p, _) => map_kernel::<Log1p>(),
        (Unary::Sqrt, _) => map_kernel::<Sqrt>(),
        (Unary::Rsqrt, _) => map_kernel::<Rsqrt>(),
        (Unary::Sin, _) => map_kernel::<Sin>(),
        (Unary::Cos, _) => map_kernel::<Cos>(),
        (Unary::Tanh, _) => map_kernel::<Tanh>(),
        (Unary::Erf, _) => map_kernel::<Erf>(),
        (Unary::Sigmoid, _) => map_kernel::<Sigmoid>(),
        (Unary::Floor, _) => map_kernel::<Floor>(),
        (Unary::Round, _) => map_kernel::<Round>(),
        (Unary::Not, _) => map_kernel::<Not>(),
        (Unary::IsFinite, _) => map_kernel::<IsFinite>(),
    }
}

/// Whether a unary operation on bf16 gives bf16 without rounding.
pub fn unary_is_exact(op: Unary) -> bool {
    matches!(op, Unary::Neg | Unary::Abs | Unary::Sign | Unary::Floor | Unary::Round | Unary::Not | Unary::IsFinite)
}

/// The kernel of a binary operation on elements of type `dtype`, before rounding to bf16.
fn binary_kernel(op: Binary, dtype: DType) -> Kernel<Elementwise> {
    use Content::{F32, I32, U8, U32};
    match (op, content(dtype)) {
        (Binary::Add, F32) => zip_kernel::<AddF32>(),
        (Binary::Add, I32 | U32) => zip_kernel::<AddU32>(),
        (Binary::Add, U8) => zip_kernel::<AddU8>(),
        (Binary::Sub, F32) => zip_kernel::<SubF32>(),
        (Binary::Sub, I32 | U32) => zip_kernel::<SubU32>(),
        (Binary::Sub, U8) => zip_kernel::<SubU8>(),
        (Binary::Mul, F32) => zip_kernel::<MulF32>(),
        (Binary::Mul, I32 | U32) => zip_kernel::<MulU32>(),
        (Binary::Mul, U8) => zip_kernel::<MulU8>(),
        (Binary::Div, _) => zip_kernel::<DivF32>(),
        (Binary::Max, F32) => zip_kernel::<MaxF32>(),
        (Binary::Max, I32) => zip_kernel::<MaxI32>(),
        (Binary::Max, U32 | U8) => zip_kernel::<MaxU32>(),
        (Binary::Min, F32) => zip_kernel::<MinF32>(),
        (Binary::Min, I32) => zip_kernel::<MinI32>(),
        (Binary::Min, U32 | U8) => zip_kernel::<MinU32>(),
        (Binary::Pow, _) => zip_kernel::<PowF32>(),
        (Binary::Equal, F32) => zip_kernel::<EqualF32>(),
        (Binary::Equal, I32 | U32 | U8) => zip_kernel::<EqualU32>(),
        (Binary::Less, F32) => zip_kernel::<LessF32>(),
        (Binary::Less, I32) => zip_kernel::<LessI32>(),
        (Binary::Less, U32 | U8) => zip_kernel::<LessU32>(),
        (Binary::LessEqual, F32) => zip_kernel::<LessEqualF32>(),
        (Binary::LessEqual, I32) => zip_kernel::<LessEqualI32>(),
        (Binary::LessEqual, U32 | U8) => zip_kernel::<LessEqualU32>(),
        (Binary::And, _) => zip_kernel::<AndBool>(),
        (Binary::Or, _) => zip_kernel::<OrBool>(),
    }
}

/// Whether a binary operation on bf16 gives bf16 or truth values without rounding.
pub fn binary_is_exact(op: Binary) -> bool {
    !matches!(op, Binary::Add | Binary::Sub | Binary::Mul | Binary::Div | Binary::Pow)
}

/// Whether lanes stay as they are in a conversion, before rounding to bf16.
pub fn cast_keeps_lanes(from: DType, to: DType) -> bool {
    cast_kernel(from, to).is_none()
}

/// The kernel of a conversion, before rounding to bf16; `None` where lanes stay as they are.
fn cast_kernel(from: DType, to: DType) -> Option<Kernel<Elementwise>> {
    let float = from.is_float();
    match to {
        DType::F32 | DType::BF16 if float => None,
        DType::F32 | DType::BF16 if from == DType::I32 => Some(map_kernel::<F32FromI32>()),
        DType::F32 | DType::BF16 => Some(map_kernel::<F32FromU32>()),
        DType::I32 if float => Some(map_kernel::<I32FromF32>()),
        DType::U32 if float => Some(map_kernel::<U32FromF32>()),
        DType::I32 | DType::U32 => None,
        DType::U8 if float => Some(map_kernel::<U8FromF32>()),
        DType::U8 if matches!(from, DType::U8 | DType::Bool) => None,
        DType::U8 => Some(map_kernel::<U8FromU32>()),
        DType::Bool if float => Some(map_kernel::<BoolFromF32>()),
        DType::Bool => Some(map_kernel::<BoolFromU32>()),
    }
}

/// The bits of the lane that holds `value` as an element of type `dtype`: converted as a cast from floats would.
pub fn constant_bits(value: f64, dtype: DType) -> u32 {
    match dtype {
        DType::F32 => (value as f32).to_bits(),
        DType::BF16 => round_to_bf16(value as f32).to_bits(),
        DType::I32 => (value as i32).cast_unsigned(),
        DType::U32 => value as u32,
        DType::U8 => u32::from(value as u8),
        DType::Bool => u32::from(value != 0.0),
    }
}
