//! The programs of a training run as graphs: `step`, or `accumulate` and `update`; and `evaluate`.

use tenon_graph::autodiff::gradients;
use tenon_graph::diagnostic::Diagnostic;
use tenon_graph::graph::{Graph, Phase};
use tenon_graph::op::{Gather, Op, Role};
use tenon_graph::passes::mode::{for_evaluation, for_training};
use tenon_graph::passes::rewrite::rename_inputs;
use tenon_graph::tensor::{Builder, Tensor};
use tenon_graph::types::{DType, Shape, Type};

use tenon_data::{LABEL_WEIGHTS, MIXED_LABEL_WEIGHTS, MIXED_LABELS};
use tenon_nn::{Model, RANDOM_KEY};

use crate::experiment::{Objective, Train};
use crate::objective::{labels, sums};
use crate::rate;
use crate::update::{Moment, Weight, average, count_step, norm_and_scale, update};

/// The scalar input that the sum of losses is divided by: the labels that count in a whole step, or their weights' sum.
pub const DENOMINATOR: &str = "denominator";
/// The scalar input in which accumulated batches sum their losses.
pub const LOSS_SUM: &str = "gradient_of_steps.loss";
/// The output of a model that is added to the loss in training, such as how unevenly experts are chosen.
pub const AUXILIARY: &str = "aux_loss";

/// What the training graphs are made from.
pub struct Recipe<'a> {
    /// The model, whose output `logits` is trained.
    pub model: &'a Model,
    /// The settings.
    pub train: &'a Train,
    /// What is learnt.
    pub objective: Objective,
    /// Whether samples bring the weight of their class.
    pub weighted: bool,
    /// Whether samples bring a second class with its weight, that of what was mixed in.
    pub mixed: bool,
    /// Optimizer steps in all.
    pub steps: u64,
}

/// The graphs of one optimizer step.
pub enum Training {
    /// One program does it all.
    Step(Graph),
    /// `accumulate` runs for every batch of the step, then `update` once.
    Accumulated {
        /// Adds a batch's gradients to their buffers.
        accumulate: Graph,
        /// Updates the weights from those buffers and empties them.
        update: Graph,
    },
}

/// The name of the buffer of an accumulated gradient.
fn gradient_name(parameter: &str) -> String {
    format!("gradient.{parameter}")
}

fn scalar_type() -> Type {
    Type::new(DType::F32, Shape::scalar())
}

/// The trained output: `logits`, or the only one.
fn predictions<'g>(b: &'g Builder) -> Tensor<'g> {
    let output = {
        let graph = b.graph();
        let only = (graph.outputs.len() == 1).then(|| graph.outputs[0].1);
        graph.output("logits").or(only)
    };
    match output {
        Some(value) => b.tensor(value),
        None => {
            let help = "return dict(logits = ..., ...) from `model`";
            b.fail("the model has several outputs and none is named `logits`".into(), &[], Some(help.into()))
        }
    }
}

impl Recipe<'_> {
    /// The graphs of a step.
    ///
    /// # Errors
    /// Whatever does not fit in the model, its outputs or the objective.
    pub fn training(&self) -> Result<Training, Vec<Diagnostic>> {
        let b = Builder::extend(for_training(&self.model.graph).map_err(|e| vec![e])?);
        let names = self.trainable();
        let predictions = predictions(&b);
        let labels = labels(&b, self.objective, &predictions.ty());
        let like_labels = |name, dtype| b.input(name, Role::Data, Type::new(dtype, labels.shape()));
        let loss_of =
            |labels, weights| sums(self.objective, predictions, labels, weights, self.train.label_smoothing).loss;
        let mut loss = loss_of(labels, self.weighted.then(|| like_labels(LABEL_WEIGHTS, DType::F32)));
        if self.mixed {
            let weights = like_labels(MIXED_LABEL_WEIGHTS, DType::F32);
            loss = loss + loss_of(like_labels(MIXED_LABELS, DType::I32), Some(weights));
        }
        loss = loss / b.input(DENOMINATOR, Role::Data, scalar_type());
        if let Some(auxiliary) = self.auxiliary(&b) {
            loss = loss + auxiliary;
        }
        b.set_phase(Phase::Backward);
        let weights: Vec<Tensor<'_>> = names.iter().map(|name| self.weight(&b, name)).collect();
        let gradients = gradients(loss, &weights);
        self.advance_key(&b);
        let trained = |b: Builder| {
            b.finish().map(|mut graph| {
                graph.outputs.retain(|(name, _)| matches!(&**name, "loss" | "grad_norm" | "lr" | "finite"));
                graph
            })
        };
        if self.train.accumulate == 1 {
            b.output("loss", loss);
            self.apply(&b, &names, &weights, &gradients, loss);
            return trained(b).map(Training::Step);
        }
        for (name, gradient) in names.iter().zip(&gradients) {
            let sum = b.input(&gradient_name(name), Role::Gradient, gradient.ty());
            b.update(sum, sum + *gradient);
        }
        let sum = b.input(LOSS_SUM, Role::Gradient, scalar_type());
        b.update(sum, sum + loss);
        let accumulate = trained(b)?;

        let b = Builder::new();
        b.set_phase(Phase::Update);
        let mut weights = Vec::new();
        let mut gradients = Vec::new();
        for name in &names {
            let value = self.model.graph.input(name).expect("parameters are inputs of the model's graph");
            let ty = self.model.graph.ty(value).clone();
            weights.push(b.input(name, Role::Parameter, ty.clone()));
            gradients.push(b.input(&gradient_name(name), Role::Gradient, ty));
        }
        let loss = b.input(LOSS_SUM, Role::Gradient, scalar_type());
        // `loss` is no result here: the sum is set to zero, so it is read before.
        self.apply(&b, &names, &weights, &gradients, loss);
        for sum in gradients.iter().chain([&loss]) {
            b.update(*sum, sum.zeros_like());
        }
        Ok(Training::Accumulated { accumulate, update: trained(b)? })
    }

    /// The part of one batch in what the model itself adds to the loss.
    fn auxiliary<'g>(&self, b: &'g Builder) -> Option<Tensor<'g>> {
        let value = b.graph().output(AUXILIARY)?;
        let loss = b.tensor(value);
        if loss.rank() > 0 {
            let message = format!("the output `{AUXILIARY}` is {}, not one number", loss.shape());
            return Some(b.fail(message, &[loss], Some("sum it over its axes".into())));
        }
        Some(loss.cast(DType::F32) * (1.0 / self.train.accumulate as f64))
    }

    /// The graph of an evaluation batch: `loss_sum`, `count` and, where there is right and wrong, `correct`; of classes also
    /// `predicted`, the class of each label, and of two classes `margin`, by how much the second is preferred.
    ///
    /// # Errors
    /// Whatever does not fit in the model, its outputs or the objective.
    pub fn evaluation(&self) -> Result<Graph, Vec<Diagnostic>> {
        let model = for_evaluation(&self.model.graph).map_err(|e| vec![e])?;
        let model = match self.train.ema {
            Some(_) => {
                let names = self.trainable();
                let average = |name: &str| names.contains(&name).then(|| format!("ema.{name}"));
                rename_inputs(&model, average).map_err(|e| vec![e])?
            }
            None => model,
        };
        let b = Builder::extend(model);
        let predictions = predictions(&b);
        // The measure is the plain loss: smoothing is a way to train, not what is wanted.
        let sums = sums(self.objective, predictions, labels(&b, self.objective, &predictions.ty()), None, 0.0);
        b.output("loss_sum", sums.loss);
        b.output("count", sums.count);
        if let Some(correct) = sums.correct {
            b.output("correct", correct);
        }
        if let (Objective::Classification, Some(predicted)) = (self.objective, sums.predicted) {
            b.output("predicted", predicted);
            if predictions.shape().last().and_then(|classes| classes.as_const()) == Some(2) {
                let logit = |class: usize| predictions.slice(-1, class, 1).cast(DType::F32);
                b.output("margin", (logit(1) - logit(0)).reshape(predicted.shape()));
            }
        }
        let mut graph = b.finish()?;
        let ours = ["loss_sum", "count", "correct", "predicted", "margin"];
        graph.outputs.retain(|(name, _)| ours.contains(&&**name));
        Ok(graph)
    }

    /// The names of the parameters that are trained, in the order of declaration.
    pub fn trainable(&self) -> Vec<&str> {
        self.model.parameters.iter().filter(|p| p.trainable).map(|p| p.name.as_str()).collect()
    }

    fn weight<'g>(&self, b: &'g Builder, name: &str) -> Tensor<'g> {
        let value = b.graph().input(name).expect("parameters are inputs of the model's graph");
        b.tensor(value)
    }

    /// Weights that map hidden features to hidden features: matrices that are neither looked up nor the head.
    fn is_hidden(&self, name: &str) -> bool {
        let graph = &self.model.graph;
        let Some(value) = graph.input(name) else { return false };
        let head = graph.outputs.iter().map(|(_, v)| graph.producer(*v)).collect::<Vec<_>>();
        let users = graph.nodes().filter(|n| graph.node(*n).inputs.contains(&value));
        let hidden = |n| !matches!(graph.node(n).op, Op::Gather(Gather::Rows)) && !head.contains(&n);
        graph.ty(value).shape.rank() >= 2 && users.into_iter().all(hidden)
    }

    /// Moves the random key on, so that the next batch draws other numbers.
    fn advance_key(&self, b: &Builder) {
        let key = b.graph().input(RANDOM_KEY);
        if let Some(key) = key {
            let key = b.tensor(key);
            let one = b.iota(0, Type::new(DType::U32, [2usize]));
            b.update(key, key + one);
        }
    }

    /// The optimizer: new weights and state, and the results `grad_norm`, `lr` and `finite`.
    fn apply<'g>(
        &self,
        b: &'g Builder,
        names: &[&str],
        weights: &[Tensor<'g>],
        gradients: &[Tensor<'g>],
        loss: Tensor<'g>,
    ) {
        // The norm ends the backward pass: the update waits for it.
        b.set_phase(Phase::Backward);
        let Some((norm, scale)) = norm_and_scale(gradients, self.train.clip) else {
            b.fail("the model has no parameter to train".into(), &[], None);
            return;
        };
        b.set_phase(Phase::Update);
        let step = count_step(b);
        let factor = rate::factor(&self.train.schedule, step, self.steps);
        b.output("lr", factor * self.train.optimizer.lr());
        let finite = loss.is_finite().and(norm.is_finite());
        b.output("grad_norm", norm);
        b.output("finite", finite);
        let moment = Moment { step, factor, finite };
        for ((name, value), gradient) in names.iter().zip(weights).zip(gradients) {
            let gradient = if self.train.clip.is_some() { *gradient * scale } else { *gradient };
            let decays = self.train.decays(name, value.rank());
            let weight = Weight { name, value: *value, gradient, decays, hidden: self.is_hidden(name) };
            let new = update(&self.train.optimizer, &moment, &weight);
            if let Some(decay) = self.train.ema {
                average(decay, &moment, name, new);
            }
        }
    }
}
