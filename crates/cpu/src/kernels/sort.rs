//! Stable sorting along an axis.

use super::view::{DType, Scratch, View, ViewMut, piece, scratch_bytes};
use crate::isa::Cpu;

/// Elements that one task sorts, about.
const TASK: usize = 4 * 1024;

/// The bytes of scratch that [`argsort`] along an axis of `size` needs on a pool of `threads`.
pub fn argsort_scratch_bytes(size: usize, threads: usize) -> usize {
    scratch_bytes(0, piece::<u64>(size), threads)
}

/// The indices (`i32`) that put `from` in order along `axis`; equal elements keep their order, whether ascending or
/// `descending`. NaN is the greatest value, and the two zeros are equal, as in PyTorch.
///
/// # Panics
/// If shapes do not fit, `to` is not `i32`, or the scratch is too small.
pub fn argsort(
    cpu: &Cpu,
    from: &View<'_>,
    axis: usize,
    descending: bool,
    to: &mut ViewMut<'_>,
    scratch_memory: &mut [u8],
) {
    assert!(
        to.dtype() == DType::I32 && to.shape() == from.shape(),
        "argsort of {:?} into {:?}",
        from.shape(),
        to.shape()
    );
    let size = from.shape()[axis];
    assert!(i32::try_from(size).is_ok(), "an axis of {size} is too long to index");
    let scratch = Scratch::new(scratch_memory, 0, piece::<u64>(size), cpu.pool.threads());
    let (from_lines, to_lines) = (from.with_size(axis, 1), to.with_size(axis, 1));
    let (lines, each) = (from_lines.len(), (TASK / size.max(1)).max(1));
    let flip = if descending { u32::MAX } else { 0 };
    let to = &*to;
    cpu.pool.run(if size == 0 { 0 } else { lines.div_ceil(each) }, |task, worker| {
        let keys = scratch.worker(worker).take::<u64>(size);
        for line in task * each..((task + 1) * each).min(lines) {
            // SAFETY: the piece is this worker's and written before the slice is made; elements of lines that exist;
            // this task alone writes its lines of `to`.
            unsafe {
                let at = from_lines.offset(line);
                for i in 0..size {
                    let key = key(from, at + i * from.strides()[axis]) ^ flip;
                    *keys.add(i) = u64::from(key) << 32 | i as u64;
                }
                let keys = std::slice::from_raw_parts_mut(keys, size);
                keys.sort_unstable();
                let at = to_lines.offset(line);
                for (i, key) in keys.iter().enumerate() {
                    *to.ptr::<i32>().add(at + i * to.strides()[axis]) = *key as u32 as i32;
                }
            }
        }
    });
}

/// An element as a number that sorts as it does.
///
/// # Safety
/// There is an element at this offset.
#[inline(always)]
unsafe fn key(view: &View<'_>, at: usize) -> u32 {
    // SAFETY: as the caller says.
    unsafe {
        match view.dtype() {
            DType::F32 => float_key(*view.ptr::<f32>().add(at)),
            DType::BF16 => float_key(crate::simd::widen(*view.ptr::<u16>().add(at))),
            DType::I32 => *view.ptr::<u32>().add(at) ^ 1 << 31,
            DType::U32 => *view.ptr::<u32>().add(at),
            DType::U8 | DType::Bool => u32::from(*view.ptr::<u8>().add(at)),
        }
    }
}

#[inline(always)]
fn float_key(x: f32) -> u32 {
    if x.is_nan() {
        return u32::MAX;
    }
    // Adding zero makes -0.0 a 0.0.
    let bits = (x + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}
