//! One pass of a model over tensors with the ecosystem's names and types.

use std::sync::Arc;

use half::{bf16, f16};
use safetensors::Dtype;
use tenon_graph::backend::{Backend, BackendError, Session};
use tenon_graph::dim::Bindings;
use tenon_graph::op::{Gather, Op};
use tenon_graph::passes::mode::for_evaluation;
use tenon_graph::passes::pipeline::{Options, compile};
use tenon_graph::types::DType;

use crate::error::ModelError;
use crate::model::Model;

/// The values of a tensor in row-major order.
#[derive(Clone, PartialEq, Debug)]
pub enum Values {
    /// Real numbers.
    Float(Vec<f32>),
    /// Whole numbers and truth values.
    Int(Vec<i64>),
}

impl Values {
    /// The values of little-endian bytes; `None` for element types that models do not take.
    pub fn decode(dtype: Dtype, bytes: &[u8]) -> Option<Values> {
        macro_rules! read {
            ($ty:ty, $kind:ident) => {
                Values::$kind(bytes.as_chunks().0.iter().map(|b| <$ty>::from_le_bytes(*b) as _).collect())
            };
        }
        Some(match dtype {
            Dtype::F64 => read!(f64, Float),
            Dtype::F32 => read!(f32, Float),
            Dtype::BF16 => {
                Values::Float(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect())
            }
            Dtype::F16 => Values::Float(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
            Dtype::I64 => read!(i64, Int),
            Dtype::I32 => read!(i32, Int),
            Dtype::U32 => read!(u32, Int),
            Dtype::I16 => read!(i16, Int),
            Dtype::U16 => read!(u16, Int),
            Dtype::I8 => read!(i8, Int),
            Dtype::U8 | Dtype::BOOL => read!(u8, Int),
            _ => return None,
        })
    }
}

/// A named tensor.
#[derive(Clone, PartialEq, Debug)]
pub struct NamedTensor {
    /// Its name.
    pub name: String,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Its values.
    pub values: Values,
}

/// Gives the variables of a model (in the order of [`Model::variables`]) their values in a session, rounded to bf16 where
/// the programs store them so, which the size of the buffer tells.
pub fn set_variables<V: AsRef<[f32]>>(session: &mut dyn Session, model: &Model, values: &[V]) {
    for (variable, values) in model.variables().zip(values) {
        // A program need not use every variable.
        let Some(buffer) = session.input_mut(&variable.name) else { continue };
        let values = values.as_ref();
        if buffer.len() == 2 * values.len() {
            for (bytes, value) in buffer.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                *bytes = bf16::from_f32(*value).to_le_bytes();
            }
        } else {
            for (bytes, value) in buffer.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *bytes = value.to_le_bytes();
            }
        }
    }
}

/// All named results of the model in evaluation mode, as `f32` or whole numbers.
///
/// # Errors
/// An input that is missing, superfluous, or of a shape or type that does not fit; sizes beyond the model's limits.
pub fn forward<V: AsRef<[f32]>>(
    model: &Model,
    values: &[V],
    inputs: &[NamedTensor],
    backend: &dyn Backend,
) -> Result<Vec<NamedTensor>, ModelError> {
    let given: Vec<&str> = inputs.iter().map(|t| t.name.as_str()).collect();
    let model = &model.clone().taking(&given)?;
    let bindings = bind(model, inputs)?;
    model.check(&bindings)?;
    let graph = for_evaluation(&model.graph).map_err(ModelError::from)?;
    let options = Options { bindings, ..Options::default() };
    let program = Arc::new(compile(&graph, &options).map_err(ModelError::from)?);
    let mut session = backend.session(vec![program.clone()]).map_err(ModelError::from)?;
    set_variables(&mut *session, model, values);
    for tensor in inputs {
        check_ids(model, tensor)?;
        if let Some(buffer) = session.input_mut(&tensor.name) {
            write(model, tensor, buffer)?;
        }
    }
    session.run(0).map_err(ModelError::from)?;
    let mut results = Vec::new();
    for (name, _) in &program.graph.outputs {
        let (ty, bytes) = session.output(0, name).expect("the program has its outputs");
        let stored = match ty.dtype {
            DType::F32 => Dtype::F32,
            DType::BF16 => Dtype::BF16,
            DType::I32 => Dtype::I32,
            DType::U32 => Dtype::U32,
            DType::U8 | DType::Bool => Dtype::U8,
        };
        let values = Values::decode(stored, bytes).expect("a type that models have");
        results.push(NamedTensor { name: name.to_string(), shape: ty.shape.sizes(), values });
    }
    Ok(results)
}

/// What the symbols of the model stand for, given the shapes of its inputs.
fn bind(model: &Model, inputs: &[NamedTensor]) -> Result<Bindings, ModelError> {
    let names = |names: Vec<&str>| names.join(", ");
    let declared: Vec<&str> = model.inputs.iter().map(|i| i.name.as_str()).collect();
    let given: Vec<&str> = inputs.iter().map(|t| t.name.as_str()).collect();
    let missing: Vec<&str> = declared.iter().copied().filter(|n| !given.contains(n)).collect();
    let superfluous: Vec<&str> = given.iter().copied().filter(|n| !declared.contains(n)).collect();
    if !missing.is_empty() || !superfluous.is_empty() {
        let mut error = ModelError::new(format!("the inputs are not those of {model}"));
        if !missing.is_empty() {
            error = error.note(format!("missing: {}", names(missing)));
        }
        if !superfluous.is_empty() {
            error = error.note(format!("not an input: {}", names(superfluous)));
        }
        let optional: Vec<&str> = model.optional.iter().map(String::as_str).filter(|n| !declared.contains(n)).collect();
        let and = if optional.is_empty() { String::new() } else { format!(", and if given {}", names(optional)) };
        return Err(error.help(format!("{model} takes {}{and}", names(declared))));
    }
    let mut bindings = Bindings::new();
    for tensor in inputs {
        let input = model.inputs.iter().find(|i| i.name == tensor.name).expect("names were compared");
        let earlier = bindings.clone();
        let misfit = || {
            let message = format!("input `{}` does not fit", tensor.name);
            let (shape, found) = (&input.shape, &tensor.shape);
            let mut error =
                ModelError::new(message).note(format!("{model} takes {}{shape}, the tensor is {found:?}", input.dtype));
            for dim in shape.iter() {
                if let Some(size) = dim.symbols().next().and_then(|symbol| earlier.get(&symbol)) {
                    error = error.note(format!("{dim} is {size} in an input before it"));
                }
            }
            match found[..] {
                [_, _, height, width] if model.hyperparameter("height").is_some() => error.help(format!(
                    "pixels are [images, channels, height, width]; images of this size: `--set height={height} \
                     --set width={width}` when the model is imported"
                )),
                _ => error,
            }
        };
        if tensor.shape.len() != input.shape.rank() {
            return Err(misfit());
        }
        for (dim, size) in input.shape.iter().zip(&tensor.shape) {
            let mut symbols = dim.symbols();
            let fits = match (dim.as_const(), symbols.next()) {
                (Some(n), _) => n == *size,
                (None, Some(symbol)) => *bindings.entry(symbol).or_insert(*size) == *size,
                (None, None) => false,
            };
            if !fits {
                return Err(misfit());
            }
        }
    }
    Ok(bindings)
}

/// Whole numbers that choose rows of a table must be among them.
fn check_ids(model: &Model, tensor: &NamedTensor) -> Result<(), ModelError> {
    let (graph, Values::Int(ids)) = (&model.graph, &tensor.values) else { return Ok(()) };
    let input = graph.input(&tensor.name);
    for data in graph.nodes().map(|node| graph.node(node)) {
        let (Op::Gather(Gather::Rows), [table, chosen]) = (&data.op, &data.inputs[..]) else { continue };
        let Some(rows) = graph.ty(*table).shape[0].as_const().filter(|_| Some(*chosen) == input) else { continue };
        let Some(place) = ids.iter().position(|id| usize::try_from(*id).map_or(true, |id| id >= rows)) else {
            continue;
        };
        let (mut at, mut rest) = (vec![0; tensor.shape.len()], place);
        for (index, size) in at.iter_mut().zip(&tensor.shape).rev() {
            (*index, rest) = (rest % size, rest / size);
        }
        let named = graph.inputs().find(|(value, ..)| value == table).map_or("its table", |(_, name, ..)| &**name);
        let message =
            format!("input `{}` has {} at {at:?}, but {named} of {model} has {rows} rows", tensor.name, ids[place]);
        return Err(ModelError::new(message).help(format!("numbers from 0 to {}", rows as i64 - 1)));
    }
    Ok(())
}

/// Writes a tensor into the buffer of an input.
fn write(model: &Model, tensor: &NamedTensor, buffer: &mut [u8]) -> Result<(), ModelError> {
    let input = model.inputs.iter().find(|i| i.name == tensor.name).expect("names were compared");
    let misfit = |what: String| {
        let message = format!("input `{}` does not fit: {model} takes {}, {what}", tensor.name, input.dtype);
        Err(ModelError::new(message))
    };
    match (&tensor.values, input.dtype) {
        (Values::Float(values), DType::F32) => {
            for (bytes, value) in buffer.chunks_exact_mut(4).zip(values) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
        (Values::Int(values), DType::F32) => {
            for (bytes, value) in buffer.chunks_exact_mut(4).zip(values) {
                bytes.copy_from_slice(&(*value as f32).to_le_bytes());
            }
        }
        (Values::Int(values), DType::I32) => {
            for (bytes, value) in buffer.chunks_exact_mut(4).zip(values) {
                let Ok(value) = i32::try_from(*value) else { return misfit(format!("one value is {value}")) };
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
        (Values::Int(values), DType::Bool | DType::U8) => {
            for (byte, value) in buffer.iter_mut().zip(values) {
                let Ok(value) = u8::try_from(*value) else { return misfit(format!("one value is {value}")) };
                *byte = if input.dtype == DType::Bool { u8::from(value != 0) } else { value };
            }
        }
        (Values::Float(_), _) => return misfit("the tensor has real numbers".into()),
        (Values::Int(_), DType::BF16 | DType::U32) => return misfit("which no file gives".into()),
    }
    Ok(())
}

impl From<BackendError> for ModelError {
    fn from(error: BackendError) -> ModelError {
        let mut failure = ModelError::new(error.message);
        failure.site = error.site.unwrap_or_default();
        failure
    }
}
