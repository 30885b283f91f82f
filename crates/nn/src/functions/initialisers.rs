//! How parameters start.

use super::{Outcome, function};
use crate::error::{ModelError, suggest};
use crate::function::{Call, Function, Output};
use crate::init::{Distribution, Fan, Initialiser};

pub(super) const INTRODUCTION: &str = "Values depend on the seed, the parameter's full name and the element's place, and on \
nothing else. `fan` counts connections: for a weight `[out, in, window..]`, \"in\" is in times window, \"out\" out times \
window.";

/// Activations and their gains, as in PyTorch's `calculate_gain`.
const GAINS: [(&str, f64); 6] = [
    ("linear", 1.0),
    ("sigmoid", 1.0),
    ("tanh", 5.0 / 3.0),
    ("relu", std::f64::consts::SQRT_2),
    ("leaky_relu", std::f64::consts::SQRT_2),
    ("selu", 0.75),
];

pub(super) fn functions() -> Vec<Function> {
    vec![
        function("zeros", "", "0 everywhere.", "zeros()", |_| give(Initialiser::Constant(0.0))),
        function("ones", "", "1 everywhere.", "ones()", |_| give(Initialiser::Constant(1.0))),
        function("constant", "value", "One value everywhere.", "constant(0.5)", |call| {
            give(Initialiser::Constant(call.number("value")?))
        }),
        function("normal", "std", "Gaussian with mean 0.", "normal(0.02)", |call| {
            give(Initialiser::Normal { std: call.number("std")? })
        }),
        function(
            "truncated_normal",
            "std",
            "Gaussian with mean 0, without what lies beyond two standard deviations.",
            "truncated_normal(0.02)",
            |call| give(Initialiser::TruncatedNormal { std: call.number("std")? }),
        ),
        function("uniform", "low, high", "Equally likely between two bounds.", "uniform(-0.1, 0.1)", |call| {
            give(Initialiser::Uniform { low: call.number("low")?, high: call.number("high")? })
        }),
        function(
            "kaiming_normal",
            "fan = \"in\", activation = \"relu\", slope = 0.0",
            "Gaussian of standard deviation gain / sqrt(fan) (He et al. 2015). `slope` is a leaky relu's below 0.",
            "kaiming_normal(fan = \"out\")",
            |call| kaiming(call, Distribution::Normal),
        ),
        function(
            "kaiming_uniform",
            "fan = \"in\", activation = \"relu\", slope = 0.0",
            "Uniform of standard deviation gain / sqrt(fan) (He et al. 2015). With `activation = \"leaky_relu\"` and \
             `slope = sqrt(5)` this is how PyTorch's layers start, and the default of ours.",
            "kaiming_uniform(activation = \"leaky_relu\", slope = sqrt(5))",
            |call| kaiming(call, Distribution::Uniform),
        ),
        function(
            "xavier_normal",
            "gain = 1.0",
            "Gaussian of standard deviation gain * sqrt(2 / (in + out)) (Glorot and Bengio 2010).",
            "xavier_normal()",
            |call| xavier(call, Distribution::Normal),
        ),
        function(
            "xavier_uniform",
            "gain = 1.0",
            "Uniform of standard deviation gain * sqrt(2 / (in + out)) (Glorot and Bengio 2010).",
            "xavier_uniform()",
            |call| xavier(call, Distribution::Uniform),
        ),
    ]
}

fn give(init: Initialiser) -> Outcome {
    Ok(Output::Initialiser(init))
}

fn kaiming(call: &Call<'_>, distribution: Distribution) -> Outcome {
    let fan = match call.text("fan")? {
        "in" => Fan::In,
        "out" => Fan::Out,
        other => return Err(call.error(format!("`fan` is \"in\" or \"out\", not {other:?}"))),
    };
    let (activation, slope) = (call.text("activation")?, call.number("slope")?);
    let gain = match GAINS.iter().find(|(name, _)| *name == activation) {
        Some(("leaky_relu", _)) => (2.0 / (1.0 + slope * slope)).sqrt(),
        Some((_, gain)) => *gain,
        None => return Err(unknown_activation(call, activation)),
    };
    give(Initialiser::Scaled { fan, gain, distribution })
}

fn unknown_activation(call: &Call<'_>, activation: &str) -> ModelError {
    call.error(format!("there is no gain for `{activation}`: {}", suggest(activation, GAINS.map(|(name, _)| name))))
}

fn xavier(call: &Call<'_>, distribution: Distribution) -> Outcome {
    give(Initialiser::Scaled { fan: Fan::Average, gain: call.number("gain")?, distribution })
}
