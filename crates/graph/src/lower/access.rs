//! Where the elements of a viewed value lie in the buffer that stores them.

use smallvec::SmallVec;

use crate::graph::{Graph, Value};
use crate::op::{Op, View};

/// A value as a strided window on the row-major buffer of `root`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Strided {
    /// The value whose buffer is read.
    pub root: Value,
    /// The element of the buffer that comes first.
    pub offset: usize,
    /// The size of each axis.
    pub sizes: SmallVec<[usize; 4]>,
    /// The distance in elements between neighbours along each axis; 0 where elements repeat.
    pub strides: SmallVec<[usize; 4]>,
}

impl Strided {
    /// The whole of `root`.
    pub fn whole(graph: &Graph, root: Value) -> Strided {
        let sizes: SmallVec<[usize; 4]> = graph.ty(root).shape.sizes().into();
        Strided { root, offset: 0, strides: contiguous_strides(&sizes), sizes }
    }

    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.sizes.iter().product()
    }

    /// Whether the elements lie one after the other, from the first of the buffer or a later one.
    pub fn is_contiguous(&self) -> bool {
        matches!(self.runs().as_slice(), [] | [(_, 1)])
    }

    /// This window seen through `view`, or `None` where the result is no strided window.
    pub fn through(&self, view: &View) -> Option<Strided> {
        let mut result = self.clone();
        match view {
            View::Reshape(shape) => {
                result.sizes = shape.sizes().into();
                result.strides = self.reshaped_strides(&result.sizes)?;
            }
            View::Transpose(permutation) => {
                result.sizes = permutation.iter().map(|p| self.sizes[*p]).collect();
                result.strides = permutation.iter().map(|p| self.strides[*p]).collect();
            }
            View::Broadcast(shape) => {
                for (axis, size) in shape.sizes().into_iter().enumerate() {
                    if self.sizes[axis] != size {
                        result.sizes[axis] = size;
                        result.strides[axis] = 0;
                    }
                }
            }
            View::Slice { axis, start, size, step } => {
                let bound = |d: &crate::dim::Dim| d.as_const().expect("the graph has been bound");
                result.offset += bound(start) * self.strides[*axis];
                result.sizes[*axis] = bound(size);
                result.strides[*axis] *= step;
            }
            View::Pad { .. } | View::Concat(_) => return None,
        }
        Some(result)
    }

    fn reshaped_strides(&self, sizes: &[usize]) -> Option<SmallVec<[usize; 4]>> {
        if self.numel() == 0 {
            return Some(contiguous_strides(sizes));
        }
        let mut runs = self.runs();
        let mut strides: SmallVec<[usize; 4]> = SmallVec::from_elem(0, sizes.len());
        // From the innermost axis outwards, each new axis takes its size off the innermost run that is left.
        for (axis, size) in sizes.iter().enumerate().rev() {
            if *size == 1 {
                continue;
            }
            let (left, stride) = runs.last_mut()?;
            if !left.is_multiple_of(*size) {
                return None;
            }
            strides[axis] = *stride;
            *left /= size;
            *stride *= size;
            if *left == 1 {
                runs.pop();
            }
        }
        Some(strides)
    }

    /// The loop nest over the elements in row-major order with as few loops as possible: (size, stride), outermost first.
    pub fn runs(&self) -> SmallVec<[(usize, usize); 4]> {
        let mut runs: SmallVec<[(usize, usize); 4]> = SmallVec::new();
        for (size, stride) in self.sizes.iter().copied().zip(self.strides.iter().copied()) {
            if size == 1 {
                continue;
            }
            match runs.last_mut() {
                Some((outer, outer_stride)) if *outer_stride == size * stride => {
                    *outer *= size;
                    *outer_stride = stride;
                }
                _ => runs.push((size, stride)),
            }
        }
        runs
    }
}

fn contiguous_strides(sizes: &[usize]) -> SmallVec<[usize; 4]> {
    let mut strides = SmallVec::from_elem(1, sizes.len());
    for axis in (1..sizes.len()).rev() {
        strides[axis - 1] = strides[axis] * sizes[axis];
    }
    strides
}

/// The window that `value` is on the nearest value that is not a view, or that `stored` says has its own buffer.
pub fn resolve(graph: &Graph, value: Value, stored: &dyn Fn(Value) -> bool) -> Option<Strided> {
    let node = graph.node(graph.producer(value));
    match &node.op {
        Op::View(view) if !stored(value) && !matches!(view, View::Pad { .. } | View::Concat(_)) => {
            resolve(graph, node.inputs[0], stored)?.through(view)
        }
        _ => Some(Strided::whole(graph, value)),
    }
}
