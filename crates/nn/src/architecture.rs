//! Architecture programs: where they come from, what they declare, and how they are run.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use starlark::ErrorKind;
use starlark::collections::SmallMap;
use starlark::docs::{DocItem, DocMember};
use starlark::environment::{FrozenModule, Globals, GlobalsBuilder, LibraryExtension, Module};
use starlark::eval::{Evaluator, FileLoader};
use starlark::syntax::{AstModule, Dialect};
use starlark::values::dict::DictRef;
use starlark::values::{Value, ValueLike};
use tenon_graph::types::{Shape, Type};

use crate::callable::{FunctionValue, OperatorValue, RangeValue, STANDARD};
use crate::checkpoint::{CheckpointTable, NAMES};
use crate::error::{ModelError, suggest};
use crate::function::SECTIONS;
use crate::hyper::HyperValue;
use crate::model::{Input, Model};
use crate::operators::OPERATORS;
use crate::session::{Session, Shared, site};
use crate::value::{InputValue, TensorValue};

/// Loop steps and calls after which a program is stopped.
const MAX_STEPS: u64 = 20_000_000;
/// The most memory of a program's own values, in bytes.
const MAX_HEAP: usize = 1 << 30;
/// The deepest nesting of calls.
const MAX_CALLS: usize = 120;
/// The largest architecture file, in bytes.
const MAX_SOURCE: u64 = 1 << 20;

/// The architectures that ship with Tenon: name and program.
pub const BUILT_IN: &[(&str, &str)] = &[
    ("mlp", include_str!("../../../architectures/mlp.star")),
    ("gpt2", include_str!("../../../architectures/gpt2.star")),
    ("bert", include_str!("../../../architectures/bert.star")),
    ("roberta", include_str!("../../../architectures/roberta.star")),
    ("distilbert", include_str!("../../../architectures/distilbert.star")),
    ("llama", include_str!("../../../architectures/llama.star")),
    ("moe", include_str!("../../../architectures/moe.star")),
    ("qwen_moe", include_str!("../../../architectures/qwen_moe.star")),
    ("vit", include_str!("../../../architectures/vit.star")),
    ("resnet", include_str!("../../../architectures/resnet.star")),
    ("efficientnet", include_str!("../../../architectures/efficientnet.star")),
];

/// Files of blocks that several architectures load.
const BLOCKS: &[(&str, &str)] = &[
    ("activations", include_str!("../../../architectures/activations.star")),
    ("rotary", include_str!("../../../architectures/rotary.star")),
];

/// Where an architecture program comes from.
#[derive(Clone, PartialEq, Debug)]
pub enum ArchitectureSource {
    /// The name of a built-in architecture or of one of its presets.
    Named(String),
    /// A file.
    File(PathBuf),
    /// A program in memory, with the name that messages give it.
    Text {
        /// The name.
        name: String,
        /// The program.
        text: String,
    },
}

impl ArchitectureSource {
    /// The source that `text` means in an experiment: a path if it ends in `.star`, else a name.
    pub fn parse(text: &str) -> ArchitectureSource {
        match text.ends_with(".star") {
            true => ArchitectureSource::File(text.into()),
            false => ArchitectureSource::Named(text.to_string()),
        }
    }
}

/// A hyperparameter that an architecture takes.
#[derive(Clone, PartialEq, Debug)]
pub struct HyperParameter {
    /// The name.
    pub name: String,
    /// The value where none is set.
    pub default: HyperValue,
}

/// Hyperparameters by name, with their values.
pub type HyperValues = Vec<(String, HyperValue)>;

/// A name for values of hyperparameters.
pub type Preset = (String, HyperValues);

/// An architecture program and what it declares.
#[derive(Clone, Debug)]
pub struct Architecture {
    /// The family, such as `gpt2`: the file's name without ending.
    pub name: String,
    /// The file as messages show it.
    pub file: Arc<str>,
    /// The program.
    pub text: Arc<str>,
    /// Whether it ships with Tenon.
    pub built_in: bool,
    /// What the `model` function takes beside inputs, in its order.
    pub hyperparameters: Vec<HyperParameter>,
    /// The presets, in their order.
    pub presets: Vec<Preset>,
    /// The preset that the source named.
    pub preset: Option<String>,
    /// How checkpoints of other programs name and lay out the parameters.
    pub checkpoint: CheckpointTable,
}

impl Architecture {
    /// Reads and runs the program that `source` names, without building a model.
    pub fn load(source: &ArchitectureSource) -> Result<Architecture, ModelError> {
        match source {
            ArchitectureSource::Text { name, text } => Architecture::examine(name, name, text, false),
            ArchitectureSource::File(path) => {
                let failed = |e: std::io::Error| ModelError::io("cannot read the architecture", path, &e);
                let size = std::fs::metadata(path).map_err(failed)?.len();
                if size > MAX_SOURCE {
                    let message =
                        format!("{} has {size} bytes: an architecture has at most {MAX_SOURCE}", path.display());
                    return Err(ModelError::new(message));
                }
                let text = std::fs::read_to_string(path).map_err(failed)?;
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                Architecture::examine(&stem, &path.display().to_string(), &text, false)
            }
            ArchitectureSource::Named(wanted) => {
                let mut known = Vec::new();
                for (name, text) in BUILT_IN {
                    let mut found = Architecture::examine(name, &format!("architectures/{name}.star"), text, true)?;
                    if found.presets.iter().any(|(preset, _)| preset == wanted) {
                        found.preset = Some(wanted.clone());
                        return Ok(found);
                    }
                    if name == wanted {
                        return Ok(found);
                    }
                    known.push(name.to_string());
                    known.extend(found.presets.into_iter().map(|(preset, _)| preset));
                }
                // A family and a preset may share a name.
                known.dedup();
                let close = suggest(wanted, known.iter().map(String::as_str));
                Err(ModelError::new(format!("there is no architecture `{wanted}`: {close}"))
                    .help("for a program of your own, name its file, as in `my_model.star`"))
            }
        }
    }

    fn examine(name: &str, file: &str, text: &str, built_in: bool) -> Result<Architecture, ModelError> {
        let shared = Shared::new();
        run(file, text, &shared, |module, _| {
            let model = member(module, "model", file)?;
            let Some(parameters) = defaults(model) else {
                return Err(ModelError::new(format!("{file}: `model` is no function")).into());
            };
            let inputs = member(module, "inputs", file)?;
            let input_names = match DictRef::from_value(inputs) {
                Some(dict) => dict.keys().filter_map(|k| k.unpack_str()).map(str::to_string).collect(),
                None => Vec::new(),
            };
            let mut hyperparameters = Vec::new();
            for (name, default) in parameters {
                let default = default.and_then(|text| literal(&text));
                if let Some(default) = default.filter(|_| !input_names.contains(&name)) {
                    hyperparameters.push(HyperParameter { name, default });
                }
            }
            let presets = match module.get("presets") {
                Some(presets) => {
                    presets_of(presets, &hyperparameters).map_err(|e| ModelError::new(format!("{file}: {e}")))?
                }
                None => Vec::new(),
            };
            let checkpoint = match module.get("checkpoint") {
                Some(table) => CheckpointTable::new(table).map_err(|e| ModelError::new(format!("{file}: {e}")))?,
                None => CheckpointTable::default(),
            };
            Ok(Architecture {
                name: name.to_string(),
                file: file.into(),
                text: text.into(),
                built_in,
                hyperparameters,
                presets,
                preset: None,
                checkpoint,
            })
        })
    }

    /// Whether the model takes this hyperparameter.
    pub fn takes(&self, name: &str) -> bool {
        self.hyperparameters.iter().any(|h| h.name == name)
    }

    /// Builds the model with these hyperparameters; the preset's values and then the defaults stand for the rest.
    /// `preset` among them names a preset. Optional inputs come with [`Model::taking`].
    pub fn build(&self, set: &[(String, HyperValue)]) -> Result<Model, ModelError> {
        self.build_for(set, &[])
    }

    /// As [`Architecture::build`], with the optional inputs that are among `given`.
    pub(crate) fn build_for(&self, set: &[(String, HyperValue)], given: &[&str]) -> Result<Model, ModelError> {
        let (preset, values) = self.resolve(set)?;
        let shared = Shared::new();
        let mut optional = Vec::new();
        let (inputs, outputs) = run(&self.file, &self.text, &shared, |module, eval| {
            let mut inputs = input_types(module, eval, &self.file, &values)?;
            optional = inputs.iter().filter(|(_, input)| input.optional).map(|(name, _)| name.clone()).collect();
            inputs.retain(|name, input| !input.optional || given.contains(&name.as_str()));
            let inputs = declare_inputs(inputs, eval, &shared);
            let model = member(module, "model", &self.file)?;
            check_inputs(model, &inputs, &self.file)?;
            let heap = eval.heap();
            let mut arguments: Vec<(&str, Value<'_>)> = Vec::new();
            for (input, seen) in &inputs {
                arguments.push((&input.name, *seen));
            }
            arguments.extend(values.iter().map(|(name, value)| (name.as_str(), value.to_starlark(heap))));
            let result = eval.eval_function(model, &[], &arguments)?;
            let outputs = outputs_of(result).map_err(|e| ModelError::new(format!("{}: {e}", self.file)))?;
            Ok((inputs.into_iter().map(|(input, _)| input).collect::<Vec<_>>(), outputs))
        })?;
        let Session { builder, declared, .. } = shared.into_inner();
        for (name, value) in &outputs {
            builder.output(name, builder.tensor(*value));
        }
        let declared = declared.into_inner();
        let graph = builder.finish().map_err(|errors| ModelError::from(errors[0].clone()))?;
        let set = set.iter().map(|(name, _)| name.clone()).filter(|name| name != "preset").collect();
        Ok(Model {
            architecture: self.clone(),
            preset,
            hyperparameters: values,
            set,
            graph,
            inputs,
            optional,
            outputs,
            parameters: declared.parameters,
            states: declared.states,
            limits: declared.limits,
        })
    }

    /// Refuses names of tensors that the file does not know.
    fn check_names(&self, values: &HyperValues) -> Result<(), ModelError> {
        let names =
            |values: &HyperValues| values.iter().find(|(name, _)| name == NAMES).map(|(_, value)| value.clone());
        let own = self.hyperparameters.iter().find(|h| h.name == NAMES).map(|h| h.default.clone());
        let libraries = self.checkpoint.names.iter().map(|names| HyperValue::from(&*names.library));
        let known: Vec<HyperValue> = own.into_iter().chain(libraries).collect();
        match names(values) {
            Some(chosen) if !self.checkpoint.names.is_empty() && !known.contains(&chosen) => {
                let known: Vec<String> = known.iter().map(HyperValue::to_string).collect();
                let message = format!("{}: `names` is {chosen}, which is none of {}", self.file, known.join(", "));
                Err(ModelError::new(message))
            }
            _ => Ok(()),
        }
    }

    /// The preset in force and every hyperparameter's value.
    fn resolve(&self, set: &[(String, HyperValue)]) -> Result<(Option<String>, HyperValues), ModelError> {
        let Architecture { file, .. } = self;
        let named = match set.iter().find(|(name, _)| name == "preset") {
            Some((_, HyperValue::Text(name))) => Some(name.clone()),
            Some((_, other)) => return Err(ModelError::new(format!("`preset` is a name, not {other}"))),
            None => self.preset.clone(),
        };
        let mut values: HyperValues =
            self.hyperparameters.iter().map(|h| (h.name.clone(), h.default.clone())).collect();
        let mut put = |name: &str, value: &HyperValue, by: &str| {
            let Some(slot) = self.hyperparameters.iter().position(|h| h.name == name) else {
                let close = suggest(name, self.hyperparameters.iter().map(|h| h.name.as_str()));
                return Err(ModelError::new(format!(
                    "{file}: `{name}` is set{by}, which `model` does not take: {close}"
                )));
            };
            let default = &self.hyperparameters[slot].default;
            let Some(fitted) = value.fit(default) else {
                let (takes, is) = (default.kind(), value.kind());
                let message = format!("{file}: `{name}` is {takes}, but is set{by} to {value}, {is}");
                return Err(ModelError::new(message).help(format!("the default is {default}")));
            };
            values[slot].1 = fitted;
            Ok(())
        };
        if let Some(name) = &named {
            let Some((_, preset)) = self.presets.iter().find(|(preset, _)| preset == name) else {
                let close = suggest(name, self.presets.iter().map(|(preset, _)| preset.as_str()));
                return Err(ModelError::new(format!("{file}: there is no preset `{name}`: {close}")));
            };
            for (key, value) in preset {
                put(key, value, &format!(" by the preset {name}"))?;
            }
        }
        for (key, value) in set.iter().filter(|(name, _)| name != "preset") {
            put(key, value, "")?;
        }
        self.check_names(&values)?;
        Ok((named, values))
    }
}

/// An error of a program, before it is known where.
pub(crate) struct Failure(Box<starlark::Error>);

impl From<starlark::Error> for Failure {
    fn from(error: starlark::Error) -> Failure {
        Failure(Box::new(error))
    }
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Failure {
        starlark::Error::new_other(error).into()
    }
}

/// What programs can use.
static GLOBALS: LazyLock<Globals> = LazyLock::new(|| {
    let mut builder = GlobalsBuilder::extended_by(&[LibraryExtension::StructType]);
    for function in SECTIONS.iter().flat_map(|(_, _, functions)| functions) {
        builder.set(function.name, FunctionValue(function));
    }
    builder.set("range", RangeValue);
    for symbol in OPERATORS {
        builder.set(&format!("operator {symbol}"), OperatorValue(symbol));
    }
    builder.build()
});

fn parse(file: &str, text: &str) -> starlark::Result<AstModule> {
    let dialect = Dialect {
        enable_keyword_only_arguments: true,
        enable_top_level_stmt: true,
        enable_f_strings: true,
        ..Dialect::Standard
    };
    let mut program = AstModule::parse(file, text.to_string(), &dialect)?;
    program.replace_binary_operators(&OPERATORS.map(|s| (s.to_string(), format!("operator {s}"))).into());
    Ok(program)
}

/// What `load("llama.star", "self_attention")` finds: the functions of the built-in architectures and of [`BLOCKS`].
struct Blocks<'a>(&'a Shared);

impl FileLoader for Blocks<'_> {
    fn load(&self, path: &str) -> starlark::Result<FrozenModule> {
        let files = || BUILT_IN.iter().chain(BLOCKS);
        let Some((_, text)) = files().find(|(name, _)| path.strip_suffix(".star") == Some(name)) else {
            let known = files().map(|(name, _)| format!("{name}.star")).collect::<Vec<_>>().join(", ");
            let error = ModelError::new(format!("there is no built-in architecture {path:?} to load from"));
            return Err(starlark::Error::new_other(error.help(format!("there are {known}"))));
        };
        let program = parse(path, text)?;
        Module::with_temp_heap(|module| {
            let mut eval = Evaluator::new(&module);
            eval.extra = Some(self.0);
            eval.set_loader(self);
            eval.eval_module(program, &GLOBALS)?;
            drop(eval);
            module.freeze().map_err(starlark::Error::new_other)
        })
    }
}

/// Runs a program and then `then` on the module that it made.
fn run<T>(
    file: &str,
    text: &str,
    shared: &Shared,
    then: impl for<'v> FnOnce(&Module<'v>, &mut Evaluator<'v, '_, '_>) -> Result<T, Failure>,
) -> Result<T, ModelError> {
    let located = |failure: Failure| locate(*failure.0, shared);
    let program = parse(file, text).map_err(|e| locate(e, shared))?;
    let blocks = Blocks(shared);
    Module::with_temp_heap(|module| {
        let mut eval = Evaluator::new(&module);
        eval.extra = Some(shared);
        eval.set_loader(&blocks);
        let limits = eval
            .set_max_callstack_size(MAX_CALLS)
            .and_then(|()| eval.set_max_heap_size(MAX_HEAP))
            .and_then(|()| eval.set_max_tick_count(MAX_STEPS));
        limits.map_err(|e| ModelError::new(e.to_string()))?;
        eval.eval_module(program, &GLOBALS).map_err(|e| located(e.into()))?;
        then(&module, &mut eval).map_err(located)
    })
}

/// The error with its place, its source line and its scope.
fn locate(error: starlark::Error, shared: &Shared) -> ModelError {
    let span = error.span().cloned();
    let text = error.without_diagnostic().to_string();
    let known = match error.kind() {
        ErrorKind::Other(inner) => inner.downcast_ref::<ModelError>().cloned(),
        _ => None,
    };
    let mut found = known.unwrap_or_else(|| match &span {
        Some(span) => {
            let line = span.file.source_line(span.resolve_span().begin.line);
            explain(&text.replace(&format!("`{}.", span.filename()), "`"), span.source_span(), line)
        }
        None => explain(&text, "", ""),
    });
    let session = shared.lock();
    let path = if session.builder.graph().node_count() > 0 { session.path() } else { String::new() };
    if let Some(span) = &span {
        found.site = site(Some(span), &path);
        let line = span.file.source_line(span.resolve_span().begin.line);
        found.excerpt = Some(line.trim_end().to_string());
    }
    found
}

/// Starlark's own message in our words where those are clearer, with something to try.
fn explain(text: &str, source: &str, line: &str) -> ModelError {
    let first = text.lines().next().unwrap_or("the program failed").trim_end_matches('.');
    let error = ModelError::new(first.replace("Parse error: ", "syntax error: "));
    if first.contains("Execution duration limit") {
        return ModelError::new(format!("the program does not end: stopped after {MAX_STEPS} steps"))
            .help("a loop runs far too often; a model of a thousand layers takes a few thousand steps");
    }
    if first.contains("Heap memory limit") {
        return ModelError::new(format!("the program takes more than {} MiB of memory", MAX_HEAP >> 20))
            .help("a list or a string grows without end");
    }
    if first.contains("call stack overflow") || first.contains("Call stack overflow") {
        return ModelError::new(format!("calls are nested more than {MAX_CALLS} deep"))
            .help("a function calls itself; use a loop over range(n)");
    }
    if first.contains("[,]") || source == "," && line.contains("[:") {
        return error.help("Starlark has no x[:, i]: write select(x, i, axis = 1) or slice(x, start, stop, axis = 1)");
    }
    match source {
        "@" => error.help("Starlark has no @: write matmul(a, b)"),
        "**" => error.help("Starlark has no **: write pow(a, b)"),
        "while" => error.help("Starlark has no while: write for i in range(n)"),
        "import" | "from" => error.help("nothing is imported: every function is there; see `tenon doc layers`"),
        "class" => {
            error.help("there are no classes: write functions, and scope(name, function, ...) to name their parameters")
        }
        _ => error,
    }
}

fn member<'v>(module: &Module<'v>, name: &str, file: &str) -> Result<Value<'v>, ModelError> {
    module.get(name).ok_or_else(|| {
        let help = match name {
            "inputs" => "name the inputs and their types, as in inputs = dict(input_ids = tokens(\"b\", \"t\"))",
            _ => "define def model(input_ids, width = 128): ... that returns a tensor or a dict of named tensors",
        };
        ModelError::new(format!("{file}: `{name}` is missing")).help(help)
    })
}

/// A function's parameters with their defaults as source text.
fn defaults(function: Value<'_>) -> Option<Vec<(String, Option<String>)>> {
    let DocItem::Member(DocMember::Function(doc)) = function.documentation() else { return None };
    let all = doc.params.pos_only.into_iter().chain(doc.params.pos_or_named).chain(doc.params.named_only);
    Some(all.map(|p| (p.name, p.default_value)).collect())
}

/// The plain data that a default's source text means.
fn literal(text: &str) -> Option<HyperValue> {
    let program = AstModule::parse("default", text.to_string(), &Dialect::Standard).ok()?;
    Module::with_temp_heap(|module| {
        let value = Evaluator::new(&module).eval_module(program, &STANDARD).ok()?;
        HyperValue::from_starlark(value)
    })
}

fn presets_of(value: Value<'_>, hyperparameters: &[HyperParameter]) -> Result<Vec<Preset>, String> {
    let form = "`presets` is a dict from names to dicts of hyperparameters";
    let dict = DictRef::from_value(value).ok_or(form)?;
    let mut presets = Vec::new();
    for (name, values) in dict.iter() {
        let (name, values) = name.unpack_str().zip(HyperValue::pairs(values)).ok_or(form)?;
        if let Some((unknown, _)) = values.iter().find(|(key, _)| !hyperparameters.iter().any(|h| h.name == *key)) {
            let close = suggest(unknown, hyperparameters.iter().map(|h| h.name.as_str()));
            return Err(format!("the preset {name} sets `{unknown}`, which `model` does not take: {close}"));
        }
        presets.push((name.to_string(), values));
    }
    Ok(presets)
}

/// The inputs that the file has with these hyperparameters.
fn input_types<'v>(
    module: &Module<'v>,
    eval: &mut Evaluator<'v, '_, '_>,
    file: &str,
    values: &[(String, HyperValue)],
) -> Result<SmallMap<String, InputValue>, Failure> {
    let heap = eval.heap();
    let mut inputs = member(module, "inputs", file)?;
    if let Some(parameters) = defaults(inputs) {
        let mut arguments = Vec::new();
        for (name, default) in parameters {
            match values.iter().find(|(n, _)| *n == name) {
                Some((_, value)) => arguments.push((name, value.to_starlark(heap))),
                None if default.is_some() => {}
                None => {
                    let close = suggest(&name, values.iter().map(|(n, _)| n.as_str()));
                    let message =
                        format!("{file}: `inputs` takes `{name}`, which is no hyperparameter of `model`: {close}");
                    return Err(ModelError::new(message).into());
                }
            }
        }
        let named: Vec<(&str, Value<'v>)> = arguments.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        inputs = eval.eval_function(inputs, &[], &named)?;
    }
    let form = || {
        ModelError::new(format!("{file}: `inputs` is a dict from names to input types such as tokens(\"b\", \"t\")"))
    };
    let pair =
        |(k, v): (Value<'v>, Value<'v>)| Some((k.unpack_str()?.to_string(), v.downcast_ref::<InputValue>()?.clone()));
    Ok(DictRef::from_value(inputs).and_then(|dict| dict.iter().map(pair).collect::<Option<_>>()).ok_or_else(form)?)
}

/// Makes the inputs of the graph. Each comes with the tensor that the model sees.
fn declare_inputs<'v>(
    inputs: SmallMap<String, InputValue>,
    eval: &mut Evaluator<'v, '_, '_>,
    shared: &Shared,
) -> Vec<(Input, Value<'v>)> {
    let session = shared.lock();
    let declare = |(name, InputValue { dtype, dims, image, .. }): (String, InputValue)| {
        let shape: Shape = dims.into_iter().collect();
        let data = session.data(&name, Type::new(dtype, shape.clone()));
        let seen = if image { data.transpose(&[0, 2, 3, 1]) } else { data };
        let seen = eval.heap().alloc(TensorValue::new(seen, shared));
        (Input { name, dtype, shape, value: data.value() }, seen)
    };
    inputs.into_iter().map(declare).collect()
}

/// Refuses inputs that the `model` function does not take, and the reverse.
fn check_inputs(model: Value<'_>, inputs: &[(Input, Value<'_>)], file: &str) -> Result<(), ModelError> {
    let parameters = defaults(model).unwrap_or_default();
    let names: Vec<&str> = inputs.iter().map(|(input, _)| input.name.as_str()).collect();
    let takes_any = matches!(
        model.documentation(),
        DocItem::Member(DocMember::Function(doc)) if doc.params.kwargs.is_some()
    );
    let missing = parameters.iter().find(|(name, default)| default.is_none() && !names.contains(&name.as_str()));
    let surplus = names.iter().find(|name| !takes_any && !parameters.iter().any(|(taken, _)| taken == *name));
    let message = match (missing, surplus) {
        (Some((name, _)), _) => format!("{file}: `model` takes `{name}`, which is neither an input nor has a default"),
        (None, Some(name)) => format!("{file}: `inputs` has `{name}`, which `model` does not take"),
        (None, None) => return Ok(()),
    };
    Err(ModelError::new(message).note(format!("the inputs are {}", names.join(", "))))
}

/// The named results of the `model` function; a single tensor is `logits`.
fn outputs_of(value: Value<'_>) -> Result<Vec<(String, tenon_graph::graph::Value)>, String> {
    if let Some(tensor) = value.downcast_ref::<TensorValue>() {
        return Ok(vec![("logits".to_string(), tensor.value)]);
    }
    let form = || format!("`model` returns a tensor or a dict of named tensors, not {}", value.to_repr());
    let dict = DictRef::from_value(value).ok_or_else(form)?;
    let pair =
        |(k, v): (Value<'_>, Value<'_>)| Some((k.unpack_str()?.to_string(), v.downcast_ref::<TensorValue>()?.value));
    let outputs: Vec<_> = dict.iter().map(pair).collect::<Option<_>>().ok_or_else(form)?;
    if outputs.is_empty() { Err(form()) } else { Ok(outputs) }
}
