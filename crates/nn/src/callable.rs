//! How Starlark calls functions and operators of the architecture language.

use std::fmt;
use std::sync::LazyLock;

use allocative::Allocative;
use starlark::any::ProvidesStaticType;
use starlark::environment::Globals;
use starlark::eval::{Arguments, Evaluator};
use starlark::values::{
    AllocFrozenValue, FrozenHeap, FrozenValue, Heap, NoSerialize, StarlarkValue, Value, starlark_value,
};

use crate::error::{ModelError, suggest};
use crate::function::{Argument, Body, Call, Function, Output};
use crate::functions;
use crate::operators;
use crate::session::Shared;
use crate::value::{InitialiserValue, TensorValue, integer};

/// A function as Starlark sees it.
#[derive(ProvidesStaticType, NoSerialize, Allocative)]
pub(crate) struct FunctionValue(#[allocative(skip)] pub &'static Function);

impl fmt::Display for FunctionValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

impl fmt::Debug for FunctionValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

impl AllocFrozenValue for FunctionValue {
    fn alloc_frozen_value(self, heap: &FrozenHeap) -> FrozenValue {
        heap.alloc_simple(self)
    }
}

#[starlark_value(type = "function")]
impl<'v> StarlarkValue<'v> for FunctionValue {
    fn invoke(
        &self,
        _me: Value<'v>,
        given: &Arguments<'v, '_>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        let shared = shared(eval)?;
        let result = match self.0.body {
            Body::Scope => return scope(given, eval, &shared),
            _ => build(self.0, given, eval, &shared),
        };
        match result {
            Ok(output) => Ok(output.alloc(eval.heap(), &shared)),
            Err(error) => Err(starlark::Error::new_other(error)),
        }
    }
}

impl Output {
    fn alloc<'v>(self, heap: Heap<'v>, shared: &Shared) -> Value<'v> {
        let tensor = |value| {
            let session = shared.lock();
            let tensor = TensorValue::new(session.builder.tensor(value), shared);
            drop(session);
            heap.alloc(tensor)
        };
        match self {
            Output::Tensor(value) => tensor(value),
            Output::Tensors(values) => heap.alloc(values.into_iter().map(tensor).collect::<Vec<_>>()),
            Output::Number(x) => heap.alloc(x),
            Output::Initialiser(init) => heap.alloc_simple(InitialiserValue(init)),
            Output::Input(input) => heap.alloc_simple(input),
        }
    }
}

/// The session that an evaluator runs in.
fn shared(eval: &Evaluator<'_, '_, '_>) -> starlark::Result<Shared> {
    let found = eval.extra.and_then(|extra| extra.downcast_ref::<Shared>());
    found.cloned().ok_or_else(|| starlark::Error::new_other(ModelError::new("no model is being built")))
}

fn build<'v>(
    function: &'static Function,
    given: &Arguments<'v, '_>,
    eval: &mut Evaluator<'v, '_, '_>,
    shared: &Shared,
) -> Result<Output, ModelError> {
    let arguments = bind(function, given, eval.heap())?;
    let session = shared.lock();
    session.set_site(eval.call_stack_top_location().as_ref());
    let call = Call { session: &session, function, arguments };
    let result = match function.body {
        Body::Build(body) => body(&call),
        Body::Unary(op) => functions::elementwise::unary(&call, op),
        Body::Binary(op) => functions::elementwise::binary(&call, op),
        Body::Scope => unreachable!("scopes call back into the program"),
    };
    match session.builder.take_errors().into_iter().next() {
        None => result,
        Some(error) => Err(label_operands(&call, error.into())),
    }
}

/// Says which parameter each operand of a failed call stood for, if the operands are the tensors of the call.
fn label_operands(call: &Call<'_>, mut error: ModelError) -> ModelError {
    let tensors: Vec<&str> =
        call.arguments.iter().filter(|(_, a)| matches!(a, Argument::Tensor(_))).map(|(name, _)| *name).collect();
    if tensors.len() == error.notes.len() && tensors.len() > 1 {
        for (name, note) in tensors.iter().zip(&mut error.notes) {
            *note = format!("{name} {note}");
        }
    }
    error
}

/// The arguments by parameter name.
fn bind<'v>(
    function: &'static Function,
    given: &Arguments<'v, '_>,
    heap: Heap<'v>,
) -> Result<Vec<(&'static str, Argument)>, ModelError> {
    let name = function.name;
    let unpack = |e: starlark::Error| ModelError::new(format!("{name}: {}", e.without_diagnostic()));
    let usage = || format!("{name}({})", function.signature);
    let mut positional = given.positions(heap).map_err(unpack)?;
    let mut named = given.names_map().map_err(unpack)?;
    let formals = function.formals();
    let mut bound = Vec::with_capacity(formals.len());
    for formal in &formals {
        let by_name = named.shift_remove(formal.name);
        let argument = if formal.rest {
            Argument::List(positional.by_ref().map(Argument::new).collect())
        } else {
            match (positional.next(), by_name, &formal.default) {
                (Some(_), Some(_), _) => {
                    return Err(ModelError::new(format!("{name}: `{}` is given twice", formal.name)).help(usage()));
                }
                (Some(value), None, _) | (None, Some(value), _) => Argument::new(value),
                (None, None, Some(default)) => default.clone(),
                (None, None, None) => {
                    return Err(ModelError::new(format!("{name}: `{}` is missing", formal.name)).help(usage()));
                }
            }
        };
        bound.push((formal.name, argument));
    }
    if let Some(extra) = named.keys().next() {
        let extra = extra.as_str();
        let close = suggest(extra, formals.iter().map(|f| f.name));
        return Err(ModelError::new(format!("{name}: has no parameter `{extra}`: {close}")).help(usage()));
    }
    if positional.next().is_some() {
        let message = format!("{name}: takes at most {} positional arguments", formals.len());
        return Err(ModelError::new(message).help(usage()));
    }
    Ok(bound)
}

/// `scope(name, function, *args, **kwargs)`.
fn scope<'v>(
    given: &Arguments<'v, '_>,
    eval: &mut Evaluator<'v, '_, '_>,
    shared: &Shared,
) -> starlark::Result<Value<'v>> {
    let positional: Vec<Value<'v>> = given.positions(eval.heap())?.collect();
    let named = given.names_map()?;
    let [name, function, rest @ ..] = positional.as_slice() else {
        let error = ModelError::new("scope: takes a name and a function").help("scope(\"mlp\", mlp, x)");
        return Err(starlark::Error::new_other(error));
    };
    let Some(name) = name.unpack_str() else {
        let error = ModelError::new(format!("scope: the name is a string, not {}", name.to_repr()));
        return Err(starlark::Error::new_other(error));
    };
    let named: Vec<(&str, Value<'v>)> = named.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    shared.lock().scopes.push(name.to_string());
    let result = eval.eval_function(*function, rest, &named)?;
    // After an error the scopes stay as they are: they say where it happened.
    shared.lock().scopes.pop();
    Ok(result)
}

/// An operator that a program calls by name.
#[derive(ProvidesStaticType, NoSerialize, Allocative)]
pub(crate) struct OperatorValue(pub &'static str);

impl fmt::Display for OperatorValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "operator {}", self.0)
    }
}

impl fmt::Debug for OperatorValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl AllocFrozenValue for OperatorValue {
    fn alloc_frozen_value(self, heap: &FrozenHeap) -> FrozenValue {
        heap.alloc_simple(self)
    }
}

#[starlark_value(type = "function")]
impl<'v> StarlarkValue<'v> for OperatorValue {
    fn invoke(
        &self,
        _me: Value<'v>,
        given: &Arguments<'v, '_>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        let heap = eval.heap();
        let [left, right] = given.positional(heap)?;
        let (a, b) = (operators::Side::new(left), operators::Side::new(right));
        let is_tensor = |side: &operators::Side| matches!(side, operators::Side::Tensor(_));
        let formats = self.0 == "%" && left.unpack_str().is_some();
        // Whether an optional input was given is no question of its values.
        let absence = ["==", "!="].contains(&self.0) && (left.is_none() || right.is_none());
        if formats || absence || !(is_tensor(&a) || is_tensor(&b)) {
            return operators::apply(self.0, left, right, heap);
        }
        let shared = shared(eval)?;
        let session = shared.lock();
        session.set_site(eval.call_stack_top_location().as_ref());
        let built = operators::tensor_arithmetic(&session, self.0, a, b);
        let error = session.builder.take_errors().into_iter().next().map(ModelError::from);
        match (error, built) {
            (Some(mut error), _) | (None, Err(mut error)) => {
                if let [left, right] = error.notes.as_mut_slice() {
                    *left = format!("left {left}");
                    *right = format!("right {right}");
                }
                Err(starlark::Error::new_other(error))
            }
            (None, Ok(tensor)) => Ok(heap.alloc(TensorValue::new(tensor, &shared))),
        }
    }
}

/// The longest range: an architecture counts layers and channels.
const MAX_RANGE: i64 = 1_000_000;

/// What programs can use in plain Starlark.
pub(crate) static STANDARD: LazyLock<Globals> = LazyLock::new(Globals::standard);

/// Starlark's `range`, for ranges that an architecture may have.
#[derive(ProvidesStaticType, NoSerialize, Allocative)]
pub(crate) struct RangeValue;

impl fmt::Display for RangeValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("range")
    }
}

impl fmt::Debug for RangeValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl AllocFrozenValue for RangeValue {
    fn alloc_frozen_value(self, heap: &FrozenHeap) -> FrozenValue {
        heap.alloc_simple(self)
    }
}

#[starlark_value(type = "function")]
impl<'v> StarlarkValue<'v> for RangeValue {
    fn invoke(
        &self,
        _me: Value<'v>,
        given: &Arguments<'v, '_>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        given.no_named_args()?;
        let bounds: Vec<Value<'v>> = given.positions(eval.heap())?.collect();
        let numbers = bounds.iter().map(|v| integer(*v)).collect::<Option<Vec<i64>>>();
        let (start, stop, step) = match numbers.as_deref() {
            Some([stop]) => (0, *stop, 1),
            Some([start, stop]) => (*start, *stop, 1),
            Some([start, stop, step]) if *step != 0 => (*start, *stop, *step),
            _ => {
                let given: Vec<String> = bounds.iter().map(|v| v.to_repr()).collect();
                let message = format!("range: takes one to three whole numbers, not ({})", given.join(", "));
                let error = ModelError::new(message)
                    .help("the layers of a loop are counted by a number, not by a symbolic size");
                return Err(starlark::Error::new_other(error));
            }
        };
        let steps = (i128::from(stop) - i128::from(start)) / i128::from(step);
        if steps > i128::from(MAX_RANGE) {
            let error = ModelError::new(format!("range: {steps} numbers, more than {MAX_RANGE}"))
                .help("a loop builds a part of the graph each time; work on elements is done by tensors");
            return Err(starlark::Error::new_other(error));
        }
        let range = STANDARD.iter().find(|(name, _)| *name == "range").map(|(_, value)| value.to_value());
        eval.eval_function(range.expect("Starlark has range"), &bounds, &[])
    }
}
