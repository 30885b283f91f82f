//! Parameters, states and scopes.

use tenon_graph::op::Role;

use super::{Outcome, function};
use crate::function::{Body, Call, Function};
use crate::init::Initialiser;
use crate::session::Declaration;

pub(super) const INTRODUCTION: &str = "Layers declare their own parameters under their `name`; these functions are for \
everything else. Full names are the scopes' names and the name, joined by dots: they are the names in checkpoints. To tie \
weights, use one tensor twice.";

pub(super) fn functions() -> Vec<Function> {
    vec![
        Function {
            name: "scope",
            signature: "name, function, *args, **kwargs",
            doc: "Calls `function(*args, **kwargs)` with `name` before the names of all parameters declared inside, and \
                  in the path that errors show.",
            example: "scope(\"mlp\", lambda h: linear(h, 8, name = \"fc\"), x)",
            body: Body::Scope,
        },
        function(
            "parameter",
            "name, shape, init, trainable = True",
            "A weight `f32[shape]` that starts as `init` says. One that is not `trainable` stays as it is.",
            "x * parameter(\"scale\", [16], init = ones())",
            |call| declare(call, Role::Parameter, call.flag("trainable")?),
        ),
        function(
            "state",
            "name, shape, init",
            "A tensor `f32[shape]` that is kept beside the weights, saved with them, and never trained.",
            "x - state(\"shift\", [16], init = zeros())",
            |call| declare(call, Role::State, false),
        ),
    ]
}

fn declare(call: &Call<'_>, role: Role, trainable: bool) -> Outcome {
    let init = call.optional_init("init")?.unwrap_or(Initialiser::Constant(0.0));
    let declaration = Declaration { role, shape: call.counts("shape")?, init, trainable };
    Ok(call.session.declare(call.text("name")?, declaration)?.into())
}
