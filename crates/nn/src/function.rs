//! What a function of the architecture language is, and how a call reaches it.

use std::fmt;
use std::sync::LazyLock;

use allocative::Allocative;
use starlark::any::ProvidesStaticType;
use starlark::eval::{Arguments, Evaluator};
use starlark::values::list::ListRef;
use starlark::values::tuple::TupleRef;
use starlark::values::{
    AllocFrozenValue, FrozenHeap, FrozenValue, Heap, NoSerialize, StarlarkValue, Value,
    ValueLike, starlark_value,
};
use tenon_graph::dim::Dim;
use tenon_graph::elementwise::{Binary, Unary};
use tenon_graph::graph;
use tenon_graph::tensor::Tensor;

use crate::error::{ModelError, suggest};
use crate::functions;
use crate::init::Initialiser;
use crate::operators;
use crate::session::{Session, Shared};
use crate::value::{InitialiserValue, InputValue, SizeValue, TensorValue, integer};

/// A function of the architecture language.
pub struct Function {
    /// The name.
    pub name: &'static str,
    /// The parameters with their defaults, as in a `def`.
    pub signature: &'static str,
    /// What it does, with shapes.
    pub doc: &'static str,
    /// An expression that works where `x` is `[b, 16]`, `sequence` `[b, t, 16]`, `image` `[b, 8, 8, 16]` and `ids` `[b, t]`.
    pub example: &'static str,
    pub(crate) body: Body,
}

/// How a function does its work.
#[derive(Clone, Copy)]
pub(crate) enum Body {
    /// Builds part of the graph, or a description of something.
    Build(fn(&Call<'_>) -> Result<Output, ModelError>),
    /// An elementwise operation, on numbers too.
    Unary(Unary),
    /// An elementwise operation of two operands, on numbers too.
    Binary(Binary),
    /// Calls a function of the program in a scope.
    Scope,
}

/// What a function gives back.
pub(crate) enum Output {
    Tensor(graph::Value),
    Tensors(Vec<graph::Value>),
    Number(f64),
    Initialiser(Initialiser),
    Input(InputValue),
}

impl From<Tensor<'_>> for Output {
    fn from(tensor: Tensor<'_>) -> Output {
        Output::Tensor(tensor.value())
    }
}

impl From<Vec<Tensor<'_>>> for Output {
    fn from(tensors: Vec<Tensor<'_>>) -> Output {
        Output::Tensors(tensors.iter().map(|t| t.value()).collect())
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

/// A parameter of a function: its name and the default, a literal.
struct Formal {
    name: &'static str,
    default: Option<Argument>,
    /// Whether it takes all positional arguments that are left.
    rest: bool,
}

/// What was given for a parameter.
#[derive(Clone)]
pub(crate) enum Argument {
    None,
    Bool(bool),
    Number(f64),
    /// A whole number or a symbolic size.
    Int(i64),
    Size(Dim),
    Text(String),
    Tensor(graph::Value),
    Initialiser(Initialiser),
    List(Vec<Argument>),
    Other(&'static str),
}

impl Argument {
    fn new(value: Value<'_>) -> Argument {
        let list = |items: &[Value<'_>]| Argument::List(items.iter().map(|i| Argument::new(*i)).collect());
        if value.is_none() {
            Argument::None
        } else if let Some(b) = value.unpack_bool() {
            Argument::Bool(b)
        } else if let Some(n) = integer(value) {
            Argument::Int(n)
        } else if let Some(x) = operators::number(value) {
            Argument::Number(x)
        } else if let Some(size) = value.downcast_ref::<SizeValue>() {
            Argument::Size(size.0)
        } else if let Some(text) = value.unpack_str() {
            Argument::Text(text.to_string())
        } else if let Some(tensor) = value.downcast_ref::<TensorValue>() {
            Argument::Tensor(tensor.value)
        } else if let Some(init) = value.downcast_ref::<InitialiserValue>() {
            Argument::Initialiser(init.0)
        } else if let Some(items) = ListRef::from_value(value) {
            list(items.content())
        } else if let Some(items) = TupleRef::from_value(value) {
            list(items.content())
        } else {
            Argument::Other(value.get_type())
        }
    }

    fn literal(text: &str) -> Argument {
        match text {
            "None" => Argument::None,
            "True" => Argument::Bool(true),
            "False" => Argument::Bool(false),
            _ => match (text.parse::<i64>(), text.parse::<f64>()) {
                (Ok(n), _) => Argument::Int(n),
                (Err(_), Ok(x)) => Argument::Number(x),
                _ => Argument::Text(text.trim_matches('"').to_string()),
            },
        }
    }

    fn describe(&self, session: &Session) -> String {
        match self {
            Argument::None => "None".to_string(),
            Argument::Bool(true) => "True".to_string(),
            Argument::Bool(false) => "False".to_string(),
            Argument::Number(x) => format!("{x:?}"),
            Argument::Int(n) => n.to_string(),
            Argument::Size(dim) => format!("the symbolic size {dim}"),
            Argument::Text(text) => format!("{text:?}"),
            Argument::Tensor(value) => format!("the tensor {}", session.builder.tensor(*value).describe()),
            Argument::Initialiser(init) => format!("the initialiser {init}"),
            Argument::List(items) => {
                let items: Vec<String> = items.iter().map(|i| i.describe(session)).collect();
                format!("[{}]", items.join(", "))
            }
            Argument::Other(kind) => format!("a value of type {kind}"),
        }
    }
}

impl Function {
    fn formals(&self) -> Vec<Formal> {
        let parameters = self.signature.split(", ").filter(|p| !p.is_empty());
        parameters
            .map(|parameter| match parameter.split_once(" = ") {
                Some((name, default)) => Formal { name, default: Some(Argument::literal(default)), rest: false },
                None => match parameter.strip_prefix('*') {
                    Some(name) => Formal { name, default: Some(Argument::None), rest: true },
                    None => Formal { name: parameter, default: None, rest: false },
                },
            })
            .collect()
    }
}

/// A call of a function: its arguments, by parameter name, and the model under construction.
pub(crate) struct Call<'c> {
    pub session: &'c Session,
    function: &'c Function,
    arguments: Vec<(&'static str, Argument)>,
}

impl<'c> Call<'c> {
    /// What stands at the parameter, its default included.
    pub fn argument(&self, name: &str) -> &Argument {
        let found = self.arguments.iter().find(|(n, _)| *n == name);
        &found.expect("bodies ask for parameters of their signature").1
    }

    fn wrong<T>(&self, name: &str, takes: &str) -> Result<T, ModelError> {
        let found = self.argument(name).describe(self.session);
        Err(self.error(format!("`{name}` is {takes}, not {found}")))
    }

    /// An error of this function.
    pub fn error(&self, message: impl fmt::Display) -> ModelError {
        ModelError::new(format!("{}: {message}", self.function.name))
    }

    /// Whether something other than None stands there.
    pub fn given(&self, name: &str) -> bool {
        !matches!(self.argument(name), Argument::None)
    }

    fn optional<T>(
        &self,
        name: &str,
        get: impl FnOnce(&Self, &str) -> Result<T, ModelError>,
    ) -> Result<Option<T>, ModelError> {
        if self.given(name) { get(self, name).map(Some) } else { Ok(None) }
    }

    pub fn tensor(&self, name: &str) -> Result<Tensor<'c>, ModelError> {
        match self.argument(name) {
            Argument::Tensor(value) => Ok(self.session.builder.tensor(*value)),
            _ => self.wrong(name, "a tensor"),
        }
    }

    pub fn optional_tensor(&self, name: &str) -> Result<Option<Tensor<'c>>, ModelError> {
        self.optional(name, Call::tensor)
    }

    pub fn tensors(&self, name: &str) -> Result<Vec<Tensor<'c>>, ModelError> {
        let tensor = |argument: &Argument| match argument {
            Argument::Tensor(value) => Some(self.session.builder.tensor(*value)),
            _ => None,
        };
        match self.argument(name) {
            Argument::List(items) => items.iter().map(tensor).collect::<Option<_>>(),
            _ => None,
        }
        .map_or_else(|| self.wrong(name, "a list of tensors"), Ok)
    }

    pub fn size(&self, name: &str) -> Result<Dim, ModelError> {
        match dim(self.argument(name)) {
            Some(dim) => Ok(dim),
            None => self.wrong(name, "a size"),
        }
    }

    /// A size that is known now.
    pub fn count(&self, name: &str) -> Result<usize, ModelError> {
        match self.argument(name) {
            Argument::Int(n) if *n >= 0 => Ok(*n as usize),
            _ => self.wrong(name, "a whole number from 0 on"),
        }
    }

    pub fn optional_count(&self, name: &str) -> Result<Option<usize>, ModelError> {
        self.optional(name, Call::count)
    }

    pub fn int(&self, name: &str) -> Result<i64, ModelError> {
        match self.argument(name) {
            Argument::Int(n) => Ok(*n),
            _ => self.wrong(name, "a whole number"),
        }
    }

    pub fn number(&self, name: &str) -> Result<f64, ModelError> {
        match self.argument(name) {
            Argument::Int(n) => Ok(*n as f64),
            Argument::Number(x) => Ok(*x),
            _ => self.wrong(name, "a number"),
        }
    }

    pub fn optional_number(&self, name: &str) -> Result<Option<f64>, ModelError> {
        self.optional(name, Call::number)
    }

    pub fn flag(&self, name: &str) -> Result<bool, ModelError> {
        match self.argument(name) {
            Argument::Bool(b) => Ok(*b),
            _ => self.wrong(name, "True or False"),
        }
    }

    pub fn text(&self, name: &str) -> Result<&str, ModelError> {
        match self.argument(name) {
            Argument::Text(text) => Ok(text),
            _ => self.wrong(name, "a string"),
        }
    }

    pub fn axis(&self, name: &str) -> Result<isize, ModelError> {
        self.int(name).map(|n| n as isize)
    }

    /// Axes: a whole number or a list of them; all axes of `x` for None.
    pub fn axes(&self, name: &str, x: Tensor<'_>) -> Result<Vec<isize>, ModelError> {
        match self.argument(name) {
            Argument::None => Ok((0..x.rank() as isize).collect()),
            Argument::Int(n) => Ok(vec![*n as isize]),
            _ => self.ints(name).map(|all| all.into_iter().map(|n| n as isize).collect()),
        }
    }

    pub fn ints(&self, name: &str) -> Result<Vec<i64>, ModelError> {
        let int = |argument: &Argument| match argument {
            Argument::Int(n) => Some(*n),
            _ => None,
        };
        match self.argument(name) {
            Argument::List(items) => items.iter().map(int).collect::<Option<_>>(),
            _ => None,
        }
        .map_or_else(|| self.wrong(name, "a list of whole numbers"), Ok)
    }

    /// Sizes: `None` stands for a -1 in the list.
    pub fn dims(&self, name: &str) -> Result<Vec<Option<Dim>>, ModelError> {
        let item = |argument: &Argument| match argument {
            Argument::Int(-1) => Some(None),
            other => dim(other).map(Some),
        };
        match self.argument(name) {
            Argument::List(items) => items.iter().map(item).collect::<Option<_>>(),
            _ => None,
        }
        .map_or_else(|| self.wrong(name, "a list of sizes"), Ok)
    }

    /// Sizes that are known now.
    pub fn counts(&self, name: &str) -> Result<Vec<usize>, ModelError> {
        let dims = self.dims(name)?;
        let known = dims.into_iter().map(|d| d.and_then(|d| d.as_const())).collect::<Option<_>>();
        known.map_or_else(|| self.wrong(name, "a list of whole numbers from 0 on"), Ok)
    }

    pub fn optional_init(&self, name: &str) -> Result<Option<Initialiser>, ModelError> {
        match self.argument(name) {
            Argument::None => Ok(None),
            Argument::Initialiser(init) => Ok(Some(*init)),
            _ => self.wrong(name, "an initialiser such as normal(0.02)"),
        }
    }
}

/// The size that an argument is.
pub(crate) fn dim(argument: &Argument) -> Option<Dim> {
    match argument {
        Argument::Int(n) => usize::try_from(*n).ok().map(Dim::constant),
        Argument::Size(dim) => Some(*dim),
        _ => None,
    }
}

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
        if formats || !(is_tensor(&a) || is_tensor(&b)) {
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

/// Every function, in the order of the reference pages, grouped in sections with a title each.
pub(crate) type Section = (&'static str, &'static str, Vec<Function>);

/// The registry: sections of functions, in the order of the reference pages.
pub(crate) static SECTIONS: LazyLock<Vec<Section>> = LazyLock::new(functions::sections);

/// Every function of the architecture language.
pub fn functions() -> impl Iterator<Item = &'static Function> {
    SECTIONS.iter().flat_map(|(_, _, functions)| functions)
}
