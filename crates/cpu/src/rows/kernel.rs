//! Kernels over lanes: one body, compiled once for each instruction set.
//!
//! A lane is four bytes: an `f32` (also for bf16), an `i32`, or a `u32` (also for `u8` and truth values, 0 or 1). Bodies
//! are plain loops that the compiler turns into vector code inside the functions below; only operations that round the
//! same way on every processor occur in them, so all instances give the same bits.

use crate::isa::Isa;

/// What a kernel computes, written once.
pub trait Body {
    /// What it is called with.
    type Args;

    /// The loop. Must be `#[inline(always)]` to take on the instruction set of its instance.
    ///
    /// # Safety
    /// As the argument's type says.
    unsafe fn run(args: &Self::Args);
}

/// A [`Body`] compiled for one instruction set.
pub type Entry<A> = unsafe fn(&A);

/// The instances of one body.
pub struct Kernel<A> {
    portable: Entry<A>,
    #[cfg(target_arch = "x86_64")]
    avx2: Entry<A>,
    #[cfg(target_arch = "x86_64")]
    avx512: Entry<A>,
}

impl<A> Clone for Kernel<A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for Kernel<A> {}

unsafe fn portable<B: Body>(args: &B::Args) {
    // SAFETY: the caller keeps the body's contract.
    unsafe { B::run(args) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<B: Body>(args: &B::Args) {
    // SAFETY: as above.
    unsafe { B::run(args) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn avx512<B: Body>(args: &B::Args) {
    // SAFETY: as above.
    unsafe { B::run(args) }
}

impl<A> Kernel<A> {
    /// The kernel of a body.
    pub fn new<B: Body<Args = A>>() -> Kernel<A> {
        Kernel {
            portable: portable::<B>,
            #[cfg(target_arch = "x86_64")]
            avx2: avx2::<B>,
            #[cfg(target_arch = "x86_64")]
            avx512: avx512::<B>,
        }
    }

    /// The instance for an instruction set, which the processor must have when it is called.
    #[inline]
    pub fn get(&self, isa: Isa) -> Entry<A> {
        match isa {
            Isa::Portable => self.portable,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => self.avx2,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => self.avx512,
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 | Isa::Avx512Bf16 => self.portable,
        }
    }
}

/// The type of a lane's content.
pub trait Lane: Copy {}

impl Lane for f32 {}
impl Lane for i32 {}
impl Lane for u32 {}

/// Where an elementwise kernel finds an operand.
#[derive(Clone, Copy)]
pub struct Operand {
    /// The first lane.
    pub lanes: *const u32,
    /// Whether the first lane stands for all.
    pub splat: bool,
}

impl Operand {
    /// No operand.
    pub const NONE: Operand = Operand { lanes: std::ptr::null(), splat: false };
}

/// Arguments of elementwise kernels: `n` lanes written at `to` and readable at each operand (one where it is splat),
/// which `to` does not overlap.
pub struct Elementwise {
    /// The result.
    pub to: *mut u32,
    /// The operands.
    pub from: [Operand; 3],
    /// How many lanes.
    pub n: usize,
}

/// Arguments of loads: `n` elements, `stride` elements apart, from `from` on, widened to lanes at `to`.
pub struct Load {
    /// The lanes.
    pub to: *mut u32,
    /// The first element.
    pub from: *const u8,
    /// The distance between two, in elements.
    pub stride: usize,
    /// How many.
    pub n: usize,
}

/// Arguments of stores: `n` lanes at `from` narrowed to elements at `to`; bf16 is rounded.
pub struct Store {
    /// The first element.
    pub to: *mut u8,
    /// The lanes.
    pub from: *const u32,
    /// How many.
    pub n: usize,
}

/// Arguments of indices: `n` of them, `increment` apart, from `first` on, written at `to`.
pub struct Indices {
    /// The lanes.
    pub to: *mut u32,
    /// The first index.
    pub first: u32,
    /// The distance between two.
    pub increment: u32,
    /// How many.
    pub n: usize,
}

/// Arguments of random bits: those of the elements from `first` on, written at `to`.
pub struct RandomBits {
    /// The lanes.
    pub to: *mut u32,
    /// The first element.
    pub first: u64,
    /// The key of the node.
    pub key: u32,
    /// How many.
    pub n: usize,
}

/// Arguments of reductions of whole rows: `rows x width` lanes at `from`, one result per row at `to`.
pub struct ReduceRows {
    /// The results.
    pub to: *mut u32,
    /// The rows, one after the other.
    pub from: *const u32,
    /// How many rows.
    pub rows: usize,
    /// Lanes of a row.
    pub width: usize,
}

/// Arguments of reductions that go on: the accumulator takes `n` more lanes, the first of which is the `first` of all.
pub struct Accumulate {
    /// The accumulator.
    pub into: *mut super::reduce::Accumulator,
    /// The lanes.
    pub from: *const u32,
    /// Their position; a multiple of [`super::reduce::LANES`].
    pub first: usize,
    /// How many.
    pub n: usize,
}

/// Arguments of the end of a reduction that went on.
pub struct Finish {
    /// The result.
    pub to: *mut u32,
    /// The accumulator.
    pub from: *const super::reduce::Accumulator,
}

/// Arguments of column reductions: `rows x width` lanes at `from` combined into the `width` lanes at `into`, row by row.
pub struct FoldRows {
    /// What is combined with.
    pub into: *mut u32,
    /// The rows, one after the other.
    pub from: *const u32,
    /// How many rows.
    pub rows: usize,
    /// Lanes of a row.
    pub width: usize,
}
