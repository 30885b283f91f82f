//! Optimizers as graph: every rule is a function from a weight, its gradient and its state to new ones.

use tenon_graph::op::Role;
use tenon_graph::tensor::{Builder, Tensor};
use tenon_graph::types::{DType, Type};

use crate::experiment::{AdamW, Lion, Muon, Optimizer, Sgd};

/// What an update rule knows of the step.
#[derive(Clone, Copy)]
pub struct Moment<'g> {
    /// The number of this step from 1, `f32[]`.
    pub step: Tensor<'g>,
    /// The schedule's factor, `f32[]`.
    pub factor: Tensor<'g>,
    /// Whether loss and gradient are finite, `bool[]`: if not, nothing changes.
    pub finite: Tensor<'g>,
}

/// A weight that is to be updated.
#[derive(Clone, Copy)]
pub struct Weight<'a, 'g> {
    /// Its name.
    pub name: &'a str,
    /// Its value, `f32`.
    pub value: Tensor<'g>,
    /// Its gradient, clipped, `f32`.
    pub gradient: Tensor<'g>,
    /// Whether weight decay applies.
    pub decays: bool,
    /// Whether it maps hidden features to hidden features: Muon treats only those as matrices.
    pub hidden: bool,
}

/// State of the optimizer for one weight, kept in a named buffer.
fn state<'g>(b: &'g Builder, kind: &str, weight: &Weight<'_, 'g>) -> Tensor<'g> {
    b.input(&format!("{kind}.{}", weight.name), Role::Optimizer, weight.value.ty())
}

/// Has `old` hold `new` after the step, if the step counts.
fn keep<'g>(moment: &Moment<'g>, old: Tensor<'g>, new: Tensor<'g>) -> Tensor<'g> {
    let chosen = moment.finite.select(new, old);
    old.builder().update(old, chosen);
    chosen
}

/// The updated weight, with the state that this needs.
pub fn update<'g>(optimizer: &Optimizer, moment: &Moment<'g>, weight: &Weight<'_, 'g>) -> Tensor<'g> {
    match optimizer {
        Optimizer::Adamw(settings) => adamw(settings, moment, weight),
        Optimizer::Sgd(settings) => sgd(settings, moment, weight),
        Optimizer::Lion(settings) => lion(settings, moment, weight),
        Optimizer::Muon(settings) if weight.hidden => muon(settings, moment, weight),
        Optimizer::Muon(settings) => adamw(&settings.adamw, moment, weight),
    }
}

/// `1 - beta^step` without the cancellation that a small step would bring.
fn correction<'g>(beta: f64, step: Tensor<'g>) -> Tensor<'g> {
    -(step * beta.ln()).expm1()
}

/// Weight decay, decoupled from the gradient.
fn decayed<'g>(weight: &Weight<'_, 'g>, rate: Tensor<'g>, decay: f64) -> Tensor<'g> {
    if weight.decays && decay != 0.0 { weight.value * (1.0 - rate * decay) } else { weight.value }
}

/// Loshchilov and Hutter 2019, as torch.optim.AdamW.
fn adamw<'g>(settings: &AdamW, moment: &Moment<'g>, weight: &Weight<'_, 'g>) -> Tensor<'g> {
    let b = weight.value.builder();
    let rate = moment.factor * settings.lr;
    let [beta1, beta2] = settings.betas;
    let (m, v) = (state(b, "adamw.exp_avg", weight), state(b, "adamw.exp_avg_sq", weight));
    let g = weight.gradient;
    let m_new = m * beta1 + g * (1.0 - beta1);
    // Not `g * g`, which the gradient's norm has as well: one pass over memory would then compute both, and keep the new
    // weight and state of every parameter until the norm is known.
    let v_new = v * beta2 + g * (1.0 - beta2) * g;
    let size = rate / correction(beta1, moment.step);
    let scale = correction(beta2, moment.step).rsqrt();
    let new = decayed(weight, rate, settings.weight_decay) - size * m_new / (v_new.sqrt() * scale + settings.eps);
    keep(moment, m, m_new);
    keep(moment, v, v_new);
    keep(moment, weight.value, new)
}

/// As torch.optim.SGD: weight decay in L2 form; the first step's momentum is the gradient.
fn sgd<'g>(settings: &Sgd, moment: &Moment<'g>, weight: &Weight<'_, 'g>) -> Tensor<'g> {
    let b = weight.value.builder();
    let mut direction = weight.gradient;
    if weight.decays && settings.weight_decay != 0.0 {
        direction = direction + weight.value * settings.weight_decay;
    }
    if settings.momentum != 0.0 {
        let velocity = state(b, "sgd.momentum_buffer", weight);
        let new = keep(moment, velocity, velocity * settings.momentum + direction);
        direction = if settings.nesterov { direction + new * settings.momentum } else { new };
    }
    keep(moment, weight.value, weight.value - moment.factor * settings.lr * direction)
}

/// Chen et al. 2023.
fn lion<'g>(settings: &Lion, moment: &Moment<'g>, weight: &Weight<'_, 'g>) -> Tensor<'g> {
    let b = weight.value.builder();
    let rate = moment.factor * settings.lr;
    let [beta1, beta2] = settings.betas;
    let m = state(b, "lion.exp_avg", weight);
    let direction = (m * beta1 + weight.gradient * (1.0 - beta1)).sign();
    keep(moment, m, m * beta2 + weight.gradient * (1.0 - beta2));
    keep(moment, weight.value, decayed(weight, rate, settings.weight_decay) - rate * direction)
}

/// Jordan et al. 2024: momentum, orthogonalised by Newton-Schulz iterations, scaled for tall matrices.
fn muon<'g>(settings: &Muon, moment: &Moment<'g>, weight: &Weight<'_, 'g>) -> Tensor<'g> {
    let b = weight.value.builder();
    let rate = moment.factor * settings.lr;
    let buffer = state(b, "muon.momentum_buffer", weight);
    let g = weight.gradient;
    let m = keep(moment, buffer, buffer * settings.momentum + g * (1.0 - settings.momentum));
    let direction = if settings.nesterov { g * (1.0 - settings.momentum) + m * settings.momentum } else { m };
    // Further axes of a convolution's weight belong to its columns.
    let shape = direction.shape();
    let sizes = shape.as_const().expect("weights have numbers for sizes");
    let (rows, columns) = (sizes[0], sizes[1..].iter().product::<usize>());
    let orthogonal = newton_schulz(direction.reshape([rows, columns]), rows > columns, settings.ns_steps);
    let scale = (rows as f64 / columns as f64).max(1.0).sqrt();
    let new = decayed(weight, rate, settings.weight_decay) - rate * scale * orthogonal.reshape(shape);
    keep(moment, weight.value, new)
}

/// An approximation of `U V^T` for `g = U S V^T`: the quintic iteration with Jordan's coefficients.
fn newton_schulz<'g>(g: Tensor<'g>, tall: bool, steps: u64) -> Tensor<'g> {
    const A: f64 = 3.4445;
    const B: f64 = -4.7750;
    const C: f64 = 2.0315;
    let mut x = g / ((g * g).sum_all().sqrt() + 1e-7);
    for _ in 0..steps {
        // The smaller of the two Gram matrices: the iteration commutes with transposition.
        let gram = x.matmul(x, tall, !tall);
        let poly = gram * B + gram.matmul(gram, false, false) * C;
        let step = if tall { x.matmul(poly, false, false) } else { poly.matmul(x, false, false) };
        x = x * A + step;
    }
    x
}

/// The exponential moving average of a weight, in a buffer named `ema.NAME`.
pub fn average<'g>(decay: f64, moment: &Moment<'g>, name: &str, new: Tensor<'g>) {
    let average = new.builder().input(&format!("ema.{name}"), Role::Optimizer, new.ty());
    keep(moment, average, average * decay + new * (1.0 - decay));
}

/// The global norm of the gradients, and the factor that brings it down to `clip`.
pub fn norm_and_scale<'g>(gradients: &[Tensor<'g>], clip: Option<f64>) -> Option<(Tensor<'g>, Tensor<'g>)> {
    let squares = gradients.iter().map(|g| (*g * *g).sum_all());
    let norm = squares.reduce(|a, b| a + b)?.sqrt();
    let b = norm.builder();
    let scale = match clip {
        // As torch.nn.utils.clip_grad_norm_.
        Some(clip) => (clip / (norm + 1e-6)).min(1.0),
        None => b.scalar(1.0),
    };
    Some((norm, scale))
}

/// The step counter: a buffer `step` (`i32[]`) that each program counts up; the result is its new value as `f32`.
pub fn count_step(b: &Builder) -> Tensor<'_> {
    let step = b.input("step", Role::Control, Type::new(DType::I32, [0usize; 0]));
    let next = step + 1.0;
    b.update(step, next);
    next.cast(DType::F32)
}
