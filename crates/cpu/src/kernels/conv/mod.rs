//! Convolution and its two gradients, channels last, over one to three spatial axes.
//!
//! Four ways, chosen by the shape: a pointwise convolution is one matrix product; a depthwise one has direct loops
//! ([`depthwise`]); one of 3 x 3 windows in f32 takes fewer products than those have ([`winograd`]); any other is a product of
//! the rows that its windows are ([`general`]). The weight gradient of all but depthwise ones is a product too
//! ([`weight_gradient`]). Sums are those of [`gemm`](crate::gemm) over window elements, then channels (input gradient: then
//! filters), in ascending order; the weight gradient's over pixels in ascending order.

mod ahead;
mod depthwise;
mod gather;
mod general;
mod reads;
mod weight_gradient;
mod winograd;

use super::view::{DType, View, ViewMut};
use super::window::{Geometry, Pixels};
use crate::gemm::{Float, GemmSpec, Layout, gemm, gemm_scratch_bytes, pack_b, packed_bytes};
use crate::isa::{Cpu, Isa};
use crate::kernels::view::{Pointer, Scratch, piece, scratch_bytes};
use tenon_graph::op::{Direction, Window};
pub use winograd::Filtering;
use winograd::{WeightGradient, Winograd};

/// A convolution: everything that its scratch memory depends on.
#[derive(Clone, Copy, Debug)]
pub struct Convolution {
    geometry: Geometry,
    groups: usize,
    /// Channels of the input and of one group.
    channels: usize,
    group_channels: usize,
    /// Filters and those of one group.
    filters: usize,
    group_filters: usize,
    /// The element types of the operands and of the result.
    dtype: DType,
    result: DType,
    direction: Direction,
    rank: usize,
    /// Whether it gets [`Weights`], and so has no scratch for them.
    has_weights: bool,
}

/// The weights of a forward convolution in the form in which it reads them.
#[derive(Clone, Copy)]
pub struct Weights(Pointer<u8>);

impl Weights {
    /// Makes them at `to`.
    ///
    /// # Panics
    /// If the weights do not fit the convolution.
    ///
    /// # Safety
    /// `to` is aligned to a cache line and valid for [`Convolution::weights_bytes`], and nobody writes there as long as
    /// these weights are used.
    pub unsafe fn make(cpu: &Cpu, spec: &Convolution, weight: &View<'_>, to: *mut u8) -> Weights {
        spec.check("the weight", weight, spec.dtype, Part::Weight);
        let w = Pixels::of("the weight", weight);
        // SAFETY: the caller's; the weights have been checked to be row-major of this shape.
        unsafe {
            if spec.reads_plain_weights() {
                std::ptr::copy_nonoverlapping(w.bytes(0), to, spec.weights_bytes(cpu.isa()));
            } else if spec.is_pointwise() {
                pack_b(cpu, &spec.product().b, spec.channels, spec.filters, w.bytes(0), to);
            } else if spec.is_depthwise() {
                depthwise::turn_weights(spec, w, to.cast());
            } else {
                spec.pack_weights(cpu, w, to);
            }
        }
        Weights(Pointer(to))
    }
}

impl Convolution {
    /// A convolution in some direction over an input of shape `[n, spatial.., c]` with `filters` filters in `groups`,
    /// whose operands are `dtype` and whose result is `result`, each `f32` or `bf16`.
    ///
    /// # Panics
    /// If there are more than three spatial axes, or groups or windows do not fit.
    pub fn new(
        direction: Direction,
        input: &[usize],
        windows: &[Window],
        filters: usize,
        groups: usize,
        dtype: DType,
        result: DType,
    ) -> Convolution {
        let geometry = Geometry::new(input, windows);
        let channels = input[input.len() - 1];
        let fits = groups > 0 && channels.is_multiple_of(groups) && filters.is_multiple_of(groups);
        assert!(fits, "{channels} channels and {filters} filters in {groups} groups");
        assert!(dtype.is_float() && result.is_float(), "convolution of {dtype} to {result}");
        let (group_channels, group_filters) = (channels / groups, filters / groups);
        let rank = input.len();
        Convolution {
            geometry,
            groups,
            channels,
            group_channels,
            filters,
            group_filters,
            dtype,
            result,
            direction,
            rank,
            has_weights: false,
        }
    }

    /// The same, forward, for [`convolve_with`].
    pub fn with_weights(self) -> Convolution {
        Convolution { has_weights: true, ..self }
    }

    /// The bytes of its [`Weights`].
    pub fn weights_bytes(&self, isa: Isa) -> usize {
        if self.reads_plain_weights() {
            self.filters * self.channels * self.dtype.size()
        } else if self.is_pointwise() {
            packed_bytes(isa, float(self.dtype), self.channels, self.filters)
        } else if self.is_depthwise() {
            piece::<f32>(depthwise::weights(self))
        } else {
            Winograd::new(self, isa).map_or_else(|| general::weights_bytes(self, isa), |w| w.weights_bytes())
        }
    }

    /// Packs the weights of a convolution that is neither pointwise nor depthwise.
    ///
    /// # Safety
    /// `to` has room for [`Convolution::weights_bytes`].
    unsafe fn pack_weights(&self, cpu: &Cpu, w: Pixels, to: *mut u8) {
        // SAFETY: the caller's.
        unsafe {
            match Winograd::new(self, cpu.isa()) {
                Some(winograd) => winograd.pack_weights(cpu, self, w, to),
                None => general::pack_weights(cpu, self, w, to),
            }
        }
    }

    /// A forward convolution that is neither pointwise nor depthwise, with packed weights.
    fn forward(&self, cpu: &Cpu, x: Pixels, weights: Pointer<u8>, y: Pixels, scratch: Scratch<'_>) {
        match Winograd::new(self, cpu.isa()) {
            Some(winograd) => winograd.run(cpu, self, x, weights, y, scratch),
            None => general::forward(cpu, self, x, weights, y, scratch),
        }
    }

    /// Elements of one filter: window elements times channels of a group.
    fn depth(&self) -> usize {
        self.geometry.taps() * self.group_channels
    }

    /// Output pixels of the whole batch.
    fn pixels(&self) -> usize {
        self.geometry.n * self.geometry.outputs()
    }

    /// The columns of the products that it is made of, those of a group; `None` for a depthwise one.
    pub fn columns(&self) -> Option<usize> {
        let columns = if self.direction == Direction::InputGradient { self.group_channels } else { self.group_filters };
        (columns > 0 && !self.is_depthwise()).then_some(columns)
    }

    /// Whether each window is one pixel, and each pixel has one.
    fn is_plain(&self) -> bool {
        let plain = |w: &Window| (w.size, w.stride, w.low, w.high) == (1, 1, 0, 0);
        self.geometry.windows.iter().all(plain)
    }

    /// Whether it is one matrix product.
    fn is_pointwise(&self) -> bool {
        self.groups == 1 && self.is_plain()
    }

    fn is_depthwise(&self) -> bool {
        self.group_channels == 1 && self.group_filters == 1
    }

    /// The product that a pointwise convolution or its input gradient is.
    fn product(&self) -> GemmSpec {
        let product = self.plain_product();
        GemmSpec { packed_b: self.has_weights && !product.is_dot(), ..product }
    }

    /// The same, with weights as they lie in memory.
    fn plain_product(&self) -> GemmSpec {
        let (pixels, c, o) = (self.pixels(), self.channels, self.filters);
        let (operand, result) = (float(self.dtype), float(self.result));
        let rows = |n| Layout::row_major(operand, n);
        match self.direction {
            Direction::Forward => {
                GemmSpec::new(pixels, o, c, rows(c), rows(c).transposed(), Layout::row_major(result, o))
            }
            Direction::InputGradient => GemmSpec::new(pixels, c, o, rows(o), rows(c), Layout::row_major(result, c)),
            Direction::WeightGradient => unreachable!("weight gradients are no products of whole operands"),
        }
    }

    /// Whether the forward convolution reads its weights as they lie in memory: packed ones would be summed in another
    /// order.
    fn reads_plain_weights(&self) -> bool {
        self.is_pointwise() && self.plain_product().is_dot()
    }

    /// The bytes of scratch that [`convolve`] needs on this instruction set and a pool of `threads`.
    pub fn scratch_bytes(&self, isa: Isa, threads: usize) -> usize {
        let (shared, each) = self.scratch(isa, threads);
        scratch_bytes(shared, each, threads)
    }

    fn scratch(&self, isa: Isa, threads: usize) -> (usize, usize) {
        if self.is_pointwise() && self.direction != Direction::WeightGradient {
            (piece::<u8>(gemm_scratch_bytes(&self.product(), isa, threads)), 0)
        } else if self.is_depthwise() {
            depthwise::scratch(self)
        } else if let Some(winograd) = Winograd::new(self, isa) {
            (if self.has_weights { 0 } else { winograd.weights_bytes() }, winograd.scratch(self))
        } else if let Some(gradient) = WeightGradient::new(self) {
            gradient.scratch(isa)
        } else {
            general::scratch(self, isa, threads)
        }
    }

    /// The shapes of input, weight and output.
    fn check(&self, name: &str, view: &View<'_>, dtype: DType, part: Part) {
        let (lead, spatial, last) = match part {
            Part::Input => (self.geometry.n, self.geometry.input, self.channels),
            Part::Output => (self.geometry.n, self.geometry.output, self.filters),
            Part::Weight => (self.filters, self.geometry.windows.map(|w| w.size), self.group_channels),
        };
        let (shape, axes) = (view.shape(), self.rank - 2);
        let fits = shape.len() == self.rank && shape[0] == lead && shape[self.rank - 1] == last;
        assert!(
            fits && shape[1..self.rank - 1] == spatial[3 - axes..],
            "convolution: {name} is {shape:?}, not [{lead}, {:?}, {last}]",
            &spatial[3 - axes..]
        );
        assert!(view.dtype() == dtype, "convolution: {name} is {}, not {dtype}", view.dtype());
        assert!(view.is_row_major(), "convolution: {name} is not row-major: {:?}", view.strides());
    }
}

/// What an operand is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Input,
    Weight,
    Output,
}

fn float(dtype: DType) -> Float {
    if dtype == DType::F32 { Float::F32 } else { Float::Bf16 }
}

/// Computes a convolution or one of its gradients. Operands by direction: input and weight; output gradient and weight;
/// output gradient and input. All are row-major: input `[n, spatial.., c]`, weight `[o, window.., c / groups]`, output
/// `[n, spatial.., o]`.
///
/// # Panics
/// If shapes or element types do not fit, an operand is not row-major, or the scratch is too small.
pub fn convolve(
    cpu: &Cpu,
    spec: &Convolution,
    a: &View<'_>,
    b: &View<'_>,
    to: &mut ViewMut<'_>,
    scratch_memory: &mut [u8],
) {
    let (first, second, third) = match spec.direction {
        Direction::Forward => (Part::Input, Part::Weight, Part::Output),
        Direction::InputGradient => (Part::Output, Part::Weight, Part::Input),
        Direction::WeightGradient => (Part::Output, Part::Input, Part::Weight),
    };
    spec.check("the first operand", a, spec.dtype, first);
    spec.check("the second operand", b, spec.dtype, second);
    spec.check("the result", to, spec.result, third);
    let threads = cpu.pool.threads();
    let (shared, each) = spec.scratch(cpu.isa(), threads);
    let scratch = Scratch::new(scratch_memory, shared, each, threads);
    let [a, b, to] = [a, b, &**to].map(|view| Pixels::of("an operand of a convolution", view));
    if spec.is_pointwise() && spec.direction != Direction::WeightGradient {
        return product(cpu, spec, a, b.bytes(0), to, scratch);
    }
    // Weights are made at the start of the shared scratch.
    let made = |bytes: usize| Pointer(scratch.shared().take::<u8>(bytes));
    match (spec.is_depthwise(), spec.direction) {
        (true, Direction::Forward) => {
            let weights = made(spec.weights_bytes(cpu.isa()));
            // SAFETY: there is room for them.
            unsafe { depthwise::turn_weights(spec, b, weights.get().cast()) };
            depthwise::forward(cpu, spec, a, weights, to, scratch);
        }
        (true, Direction::InputGradient) => depthwise::input_gradient(cpu, spec, a, b, to, scratch),
        (true, Direction::WeightGradient) => depthwise::weight_gradient(cpu, spec, a, b, to, scratch),
        (false, Direction::Forward) => {
            let weights = made(spec.weights_bytes(cpu.isa()));
            // SAFETY: there is room for them.
            unsafe { spec.pack_weights(cpu, b, weights.get()) };
            spec.forward(cpu, a, weights, to, scratch);
        }
        (false, Direction::InputGradient) => match Winograd::new(spec, cpu.isa()) {
            Some(winograd) => {
                let weights = made(winograd.weights_bytes());
                // SAFETY: there is room for them.
                unsafe { winograd.pack_weights(cpu, spec, b, weights.get()) };
                winograd.run(cpu, spec, a, weights, to, scratch);
            }
            None => general::input_gradient(cpu, spec, a, b, to, scratch),
        },
        (false, Direction::WeightGradient) => match WeightGradient::new(spec) {
            Some(gradient) => gradient.run(cpu, a, b, to, scratch),
            None => weight_gradient::weight_gradient(cpu, spec, a, b, to, scratch),
        },
    }
}

/// Computes a forward convolution as [`convolve`] does, with weights that were made before.
///
/// # Panics
/// As [`convolve`], and if the convolution was not made [`Convolution::with_weights`].
pub fn convolve_with(
    cpu: &Cpu,
    spec: &Convolution,
    input: &View<'_>,
    weights: &Weights,
    to: &mut ViewMut<'_>,
    scratch_memory: &mut [u8],
) {
    assert!(spec.has_weights && spec.direction == Direction::Forward, "a convolution that makes its weights itself");
    spec.check("the input", input, spec.dtype, Part::Input);
    spec.check("the result", to, spec.result, Part::Output);
    let threads = cpu.pool.threads();
    let (shared, each) = spec.scratch(cpu.isa(), threads);
    let scratch = Scratch::new(scratch_memory, shared, each, threads);
    let [x, y] = [input, &**to].map(|view| Pixels::of("an operand of a convolution", view));
    if spec.is_pointwise() {
        product(cpu, spec, x, weights.0.get(), y, scratch);
    } else if spec.is_depthwise() {
        depthwise::forward(cpu, spec, x, weights.0, y, scratch);
    } else {
        spec.forward(cpu, x, weights.0, y, scratch);
    }
}

/// A pointwise convolution; `b` is the second operand, or the packed weights.
fn product(cpu: &Cpu, spec: &Convolution, a: Pixels, b: *const u8, to: Pixels, scratch: Scratch<'_>) {
    let product = spec.product();
    let memory = scratch.shared().take::<u8>(gemm_scratch_bytes(&product, cpu.isa(), cpu.pool.threads()));
    // SAFETY: the operands have been checked to be row-major of the shapes that the product is made from, or were packed
    // for it; the result is a view of its own, and the scratch of this size.
    unsafe { gemm(cpu, &product, a.bytes(0), b, to.bytes(0), memory, None) };
}
