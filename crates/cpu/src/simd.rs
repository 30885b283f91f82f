//! Sixteen `f32` lanes: what a kernel is written in once, to run with the same bits on every instruction set.
//!
//! A kernel is a [`Task`]; [`Cpu::vectorise`] compiles it once per instruction set and runs the one that the context
//! has. Everything that a task calls on lanes must be `#[inline(always)]`, or it is compiled without the
//! instruction set and crawls (its bits stay right). Work that should be its own function goes through
//! [`Lanes::call`].

use crate::isa::{Cpu, Isa};

/// Lanes of one vector.
pub const LANES: usize = 16;

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Asks for the cache line at `p`, which may be anywhere, to come to the second-level cache: of requests for the first
/// level too few can be under way to keep up with the memory.
#[inline(always)]
pub(crate) fn fetch<T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Takes these bytes out of the caches, where the processor has an instruction for it: who reads them next waits for the memory.
pub(crate) fn evict(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(LINE) {
        // SAFETY: the address is one of the slice's.
        unsafe { std::arch::x86_64::_mm_clflush(line.as_ptr()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// A computation written against any [`Lanes`].
pub trait Task {
    /// What it returns.
    type Output;
    /// The computation. Implementations are `#[inline(always)]`.
    fn run<V: Lanes>(self) -> Self::Output;
}

/// Sixteen `f32` lanes. Every operation rounds as IEEE 754 says, so all implementations give the same bits.
pub trait Lanes: Copy {
    /// How many vectors wide a register tile of six rows may be.
    const TILE: usize;

    /// Runs a task compiled for this instruction set, as a function of its own.
    ///
    /// # Safety
    /// The processor has the instruction set.
    unsafe fn call<T: Task>(task: T) -> T::Output;

    /// Every lane `x`.
    fn splat(x: f32) -> Self;
    /// The lanes in order.
    fn to_array(self) -> [f32; LANES];
    /// From the lanes in order.
    fn from_array(lanes: [f32; LANES]) -> Self;
    /// Reads 16 values.
    ///
    /// # Safety
    /// They are readable; any alignment.
    unsafe fn load(from: *const f32) -> Self;
    /// Writes 16 values.
    ///
    /// # Safety
    /// They are writable; any alignment.
    unsafe fn store(self, to: *mut f32);
    /// Reads 16 bfloat16 values.
    ///
    /// # Safety
    /// They are readable; any alignment.
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// Writes 16 bfloat16 values, rounded to nearest even; a NaN stays one.
    ///
    /// # Safety
    /// They are writable; any alignment.
    unsafe fn store_bf16(self, to: *mut u16);

    /// `self + b`.
    fn add(self, b: Self) -> Self;
    /// `self - b`.
    fn sub(self, b: Self) -> Self;
    /// `self * b`.
    fn mul(self, b: Self) -> Self;
    /// `self / b`.
    fn div(self, b: Self) -> Self;
    /// `self * b + c`, rounded once.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// `self > b ? self : b`, so `b` if either is NaN.
    fn max(self, b: Self) -> Self;
    /// `self < b ? self : b`, so `b` if either is NaN.
    fn min(self, b: Self) -> Self;
    /// The nearest integer, halves to even.
    fn round(self) -> Self;
    /// `2^self` for integers from -126 to 127.
    fn pow2(self) -> Self;
    /// `self > b ? x : y`; NaN compares false.
    fn select_gt(self, b: Self, x: Self, y: Self) -> Self;
    /// `self == b ? x : y`; NaN compares false.
    fn select_eq(self, b: Self, x: Self, y: Self) -> Self;

    /// The columns of a 16 x 16 block of rows.
    fn transpose(rows: [Self; LANES]) -> [Self; LANES];

    /// The sum in the one order of all kernels: lane `i` with `i + 8`, then `i + 4`, `i + 2`, `i + 1`.
    fn sum(self) -> f32;
}

impl Cpu {
    /// Runs a task on this context's instruction set, on the calling thread.
    #[inline]
    pub fn vectorise<T: Task>(&self, task: T) -> T::Output {
        // SAFETY: a value of `Cpu` proves that the processor has its instruction set.
        unsafe {
            match self.isa() {
                Isa::Portable => Portable::call(task),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => x86::Avx2::call(task),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Avx512Bf16 => x86::Avx512::call(task),
                #[cfg(not(target_arch = "x86_64"))]
                Isa::Avx2 | Isa::Avx512 | Isa::Avx512Bf16 => Portable::call(task),
            }
        }
    }
}

/// A float in memory that kernels read and write sixteen at a time: `f32`, or bfloat16 as its bits.
pub trait Float: Copy {
    /// Reads 16 values.
    ///
    /// # Safety
    /// They are readable; any alignment.
    unsafe fn load<V: Lanes>(from: *const Self) -> V;
    /// Writes 16 values.
    ///
    /// # Safety
    /// They are writable; any alignment.
    unsafe fn store<V: Lanes>(x: V, to: *mut Self);
    /// The value.
    fn get(self) -> f32;
    /// The nearest of the type.
    fn from(x: f32) -> Self;

    /// Reads `n <= 16` values, the other lanes 0.
    ///
    /// # Safety
    /// The values are readable.
    #[inline(always)]
    unsafe fn load_first<V: Lanes>(from: *const Self, n: usize) -> V {
        if n == LANES {
            // SAFETY: as the caller says.
            return unsafe { Self::load(from) };
        }
        let mut lanes = [0.0; LANES];
        for (i, lane) in lanes.iter_mut().enumerate().take(n) {
            // SAFETY: as the caller says.
            *lane = unsafe { from.add(i).read_unaligned() }.get();
        }
        V::from_array(lanes)
    }

    /// Writes the first `n <= 16` lanes.
    ///
    /// # Safety
    /// The places are writable.
    #[inline(always)]
    unsafe fn store_first<V: Lanes>(x: V, to: *mut Self, n: usize) {
        if n == LANES {
            // SAFETY: as the caller says.
            return unsafe { Self::store(x, to) };
        }
        for (i, lane) in x.to_array().into_iter().enumerate().take(n) {
            // SAFETY: as the caller says.
            unsafe { to.add(i).write_unaligned(Self::from(lane)) };
        }
    }
}

impl Float for f32 {
    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const f32) -> V {
        // SAFETY: as the caller says.
        unsafe { V::load(from) }
    }
    #[inline(always)]
    unsafe fn store<V: Lanes>(x: V, to: *mut f32) {
        // SAFETY: as the caller says.
        unsafe { x.store(to) }
    }
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from(x: f32) -> f32 {
        x
    }
}

impl Float for u16 {
    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const u16) -> V {
        // SAFETY: as the caller says.
        unsafe { V::load_bf16(from) }
    }
    #[inline(always)]
    unsafe fn store<V: Lanes>(x: V, to: *mut u16) {
        // SAFETY: as the caller says.
        unsafe { x.store_bf16(to) }
    }
    #[inline(always)]
    fn get(self) -> f32 {
        widen(self)
    }
    #[inline(always)]
    fn from(x: f32) -> u16 {
        narrow(x)
    }
}

/// The value of a bfloat16.
#[inline(always)]
pub fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The nearest bfloat16, ties to even; a NaN stays a quiet one.
#[inline(always)]
pub fn narrow(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return ((bits >> 16) | 0x40) as u16;
    }
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Lanes in plain Rust: the meaning of the others.
#[derive(Clone, Copy)]
pub struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn zip(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Portable(std::array::from_fn(|i| f(self.0[i], b.0[i])))
    }
}

impl Lanes for Portable {
    const TILE: usize = 1;

    unsafe fn call<T: Task>(task: T) -> T::Output {
        task.run::<Portable>()
    }
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Portable([x; LANES])
    }
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        self.0
    }
    #[inline(always)]
    fn from_array(lanes: [f32; LANES]) -> Self {
        Portable(lanes)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as the caller says.
        Portable(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as the caller says.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: as the caller says.
        Portable(unsafe { from.cast::<[u16; LANES]>().read_unaligned() }.map(widen))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        // SAFETY: as the caller says.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(self.0.map(narrow)) }
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        self.zip(b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        self.zip(b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        self.zip(b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        self.zip(b, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        Portable(std::array::from_fn(|i| self.0[i].mul_add(b.0[i], c.0[i])))
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        self.zip(b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        self.zip(b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn round(self) -> Self {
        Portable(self.0.map(f32::round_ties_even))
    }
    #[inline(always)]
    fn pow2(self) -> Self {
        Portable(self.0.map(|n| f32::from_bits(((n as i32 + 127) << 23) as u32)))
    }
    #[inline(always)]
    fn select_gt(self, b: Self, x: Self, y: Self) -> Self {
        Portable(std::array::from_fn(|i| if self.0[i] > b.0[i] { x.0[i] } else { y.0[i] }))
    }
    #[inline(always)]
    fn select_eq(self, b: Self, x: Self, y: Self) -> Self {
        Portable(std::array::from_fn(|i| if self.0[i] == b.0[i] { x.0[i] } else { y.0[i] }))
    }
    #[inline(always)]
    fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        std::array::from_fn(|i| Portable(std::array::from_fn(|j| rows[j].0[i])))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut lanes = self.0;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
        }
        lanes[0]
    }
}

#[cfg(target_arch = "x86_64")]
#[path = "simd_x86.rs"]
mod x86;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::narrow_avx512;

#[cfg(test)]
#[path = "simd_tests.rs"]
mod tests;
