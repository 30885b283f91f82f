//! Normalisation and dropout.

use tenon_graph::composite::{Attrs, batch_norm, dropout, norm};
use tenon_graph::dim::Dim;
use tenon_graph::op::Role;
use tenon_graph::tensor::Tensor;
use tenon_graph::types::{DType, Shape, Type};

use super::linear::{features, weight};
use super::{Outcome, function};
use crate::error::ModelError;
use crate::function::{Call, Function};
use crate::init::Initialiser;
use crate::session::{Declaration, RANDOM_KEY};

pub(super) const INTRODUCTION: &str = "Normalisation works on the last axis, the channels, and declares `name.weight` (ones) \
and `name.bias` (zeros). There is no training flag: in programs that only evaluate, dropout passes everything and batch norm \
uses its running statistics.";

const ONES: Initialiser = Initialiser::Constant(1.0);
const ZEROS: Initialiser = Initialiser::Constant(0.0);

pub(super) fn functions() -> Vec<Function> {
    vec![
        function(
            "layer_norm",
            "x, name, eps = 1e-5, bias = True",
            norm::LAYER_NORM.doc,
            "layer_norm(x, name = \"ln\")",
            |call| {
                let x = call.tensor("x")?;
                let operands = [x, scale(call, x)?, shift(call, x)?];
                Ok(call.session.builder.composite(&norm::LAYER_NORM, &operands, eps(call)?)[0].into())
            },
        ),
        function("rms_norm", "x, name, eps = 1e-6", norm::RMS_NORM.doc, "rms_norm(x, name = \"norm\")", |call| {
            let x = call.tensor("x")?;
            let operands = [x, scale(call, x)?];
            Ok(call.session.builder.composite(&norm::RMS_NORM, &operands, eps(call)?)[0].into())
        }),
        function(
            "group_norm",
            "x, groups, name, eps = 1e-5, bias = True",
            norm::GROUP_NORM.doc,
            "group_norm(image, 4, name = \"gn\")",
            |call| {
                let x = call.tensor("x")?;
                let groups = call.count("groups")? as i64;
                let operands = [x, scale(call, x)?, shift(call, x)?];
                let attrs = eps(call)?.with("groups", groups);
                Ok(call.session.builder.composite(&norm::GROUP_NORM, &operands, attrs)[0].into())
            },
        ),
        function(
            "batch_norm",
            "x, name, eps = 1e-5, momentum = 0.1, init = None",
            "(x - mean) / sqrt(variance + eps) * weight + bias, statistics of each channel over the batch and all places \
             (Ioffe and Szegedy 2015). Keeps `name.running_mean` and `name.running_var`, which move towards the batch's by \
             `momentum` in each training step. `init`: how the weight starts if not as ones; with `zeros()` a residual branch \
             starts as nothing.",
            "batch_norm(image, name = \"bn\")",
            normalise_batch,
        ),
        function(
            "dropout",
            "x, rate",
            "Each element is 0 with probability `rate`, else x / (1 - rate) (Srivastava et al. 2014).",
            "dropout(x, 0.1)",
            |call| {
                let x = call.tensor("x")?;
                Ok(if rate(call)? == 0.0 { x } else { drop(call, x)? }.into())
            },
        ),
        function(
            "drop_path",
            "x, rate",
            "All of an example (the first axis) is 0 with probability `rate`, else x / (1 - rate): stochastic depth (Huang et \
             al. 2016), for the branch of a residual block.",
            "x + drop_path(relu(x), 0.1)",
            |call| {
                let x = call.tensor("x")?;
                if rate(call)? == 0.0 || x.rank() == 0 {
                    return Ok(x.into());
                }
                let each: Shape = x.shape().iter().take(1).copied().chain((1..x.rank()).map(|_| Dim::ONE)).collect();
                let kept = drop(call, call.session.builder.full(1.0, x.dtype(), each))?;
                Ok((x * kept).into())
            },
        ),
    ]
}

/// The probability with which something is dropped.
fn rate(call: &Call<'_>) -> Result<f64, ModelError> {
    let rate = call.number("rate")?;
    if (0.0..1.0).contains(&rate) {
        return Ok(rate);
    }
    Err(call.error(format!("`rate` is {rate}, not from 0 to below 1")))
}

/// `x` with some elements dropped.
fn drop<'c>(call: &Call<'c>, x: Tensor<'c>) -> Result<Tensor<'c>, ModelError> {
    let builder = &call.session.builder;
    let key = call.session.control(RANDOM_KEY, Type::new(DType::U32, [2]));
    let attrs = Attrs::default().with("rate", rate(call)?).with("stream", i64::from(builder.fresh_stream()));
    Ok(builder.composite(&dropout::DROPOUT, &[x, key], attrs)[0])
}

fn eps(call: &Call<'_>) -> Result<Attrs, ModelError> {
    Ok(Attrs::default().with("eps", call.number("eps")?))
}

fn scale<'c>(call: &Call<'c>, x: Tensor<'c>) -> Result<Tensor<'c>, ModelError> {
    weight(call, "weight", &[features(call, x)?], ONES)
}

fn shift<'c>(call: &Call<'c>, x: Tensor<'c>) -> Result<Tensor<'c>, ModelError> {
    let c = features(call, x)?;
    if call.flag("bias")? {
        weight(call, "bias", &[c], ZEROS)
    } else {
        Ok(call.session.builder.full(0.0, DType::F32, [c]))
    }
}

fn normalise_batch(call: &Call<'_>) -> Outcome {
    let x = call.tensor("x")?;
    let (session, c) = (call.session, features(call, x)?);
    let state = |suffix: &str, init| {
        let name = format!("{}.{suffix}", call.text("name")?);
        session.declare(&name, Declaration { role: Role::State, shape: vec![c], init, trainable: false })
    };
    let init = call.optional_init("init")?.unwrap_or(ONES);
    let (weight, bias) = (weight(call, "weight", &[c], init)?, weight(call, "bias", &[c], ZEROS)?);
    let (mean, variance) = (state("running_mean", ZEROS)?, state("running_var", ONES)?);
    let attrs = eps(call)?.with("momentum", call.number("momentum")?);
    let results = session.builder.composite(&batch_norm::BATCH_NORM, &[x, weight, bias, mean, variance], attrs);
    if !results[0].is_poisoned() {
        session.builder.update(mean, results[1]);
        session.builder.update(variance, results[2]);
    }
    Ok(results[0].into())
}
