//! What architecture programs compute with beside plain Starlark: tensors, sizes, initialisers and input types.

use std::cmp::Ordering;
use std::fmt;

use allocative::Allocative;
use starlark::any::ProvidesStaticType;
use starlark::collections::StarlarkHasher;
use starlark::values::tuple::AllocTuple;
use starlark::values::{AllocValue, Heap, NoSerialize, StarlarkValue, UnpackValue, Value, ValueLike, starlark_value};
use tenon_graph::dim::Dim;
use tenon_graph::graph;
use tenon_graph::tensor::Tensor;
use tenon_graph::types::DType;

use crate::error::ModelError;
use crate::init::Initialiser;
use crate::operators;
use crate::session::{Session, Shared};

/// A tensor of the graph under construction.
#[derive(Clone, ProvidesStaticType, NoSerialize, Allocative)]
pub(crate) struct TensorValue {
    #[allocative(skip)]
    pub value: graph::Value,
    #[allocative(skip)]
    session: Shared,
}

impl TensorValue {
    pub fn new(tensor: Tensor<'_>, session: &Shared) -> TensorValue {
        TensorValue { value: tensor.value(), session: session.clone() }
    }

    /// Runs an operator that Starlark evaluates without telling where; nodes keep the place of the call before.
    fn operate<'v>(
        &self,
        heap: Heap<'v>,
        build: impl for<'g> FnOnce(&'g Session, Tensor<'g>) -> Result<Tensor<'g>, ModelError>,
    ) -> starlark::Result<Value<'v>> {
        let session = self.session.lock();
        let built = build(&session, session.builder.tensor(self.value));
        let error = session.builder.take_errors().into_iter().next().map(ModelError::from);
        match (error, built) {
            (Some(error), _) | (None, Err(error)) => Err(starlark::Error::new_other(error)),
            (None, Ok(tensor)) => Ok(heap.alloc(TensorValue::new(tensor, &self.session))),
        }
    }

    fn binary<'v>(&self, symbol: &str, other: Value<'v>, heap: Heap<'v>, swap: bool) -> starlark::Result<Value<'v>> {
        self.operate(heap, |session, own| {
            let other = operators::Side::new(other);
            let own = operators::Side::Tensor(own.value());
            let (left, right) = if swap { (other, own) } else { (own, other) };
            operators::tensor_arithmetic(session, symbol, left, right)
        })
    }
}

impl fmt::Display for TensorValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let session = self.session.lock();
        let ty = session.builder.tensor(self.value).ty();
        write!(f, "{ty}")
    }
}

impl fmt::Debug for TensorValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[starlark_value(type = "tensor")]
impl<'v> StarlarkValue<'v> for TensorValue {
    fn get_attr(&self, attribute: &str, heap: Heap<'v>) -> Option<Value<'v>> {
        let session = self.session.lock();
        let ty = session.builder.tensor(self.value).ty();
        match attribute {
            "shape" => {
                let sizes: Vec<Value<'v>> = ty.shape.iter().map(|d| alloc_size(heap, *d)).collect();
                Some(heap.alloc(AllocTuple(sizes)))
            }
            "dtype" => Some(heap.alloc(ty.dtype.name())),
            "rank" => Some(heap.alloc(ty.shape.rank() as i32)),
            _ => None,
        }
    }

    fn dir_attr(&self) -> Vec<String> {
        ["dtype", "rank", "shape"].map(str::to_string).to_vec()
    }

    fn at(&self, index: Value<'v>, heap: Heap<'v>) -> starlark::Result<Value<'v>> {
        let Some(index) = integer(index) else {
            let error = ModelError::new(format!("a tensor is indexed by a whole number, not {}", index.to_repr()))
                .help("x[i] and x[a:b] take elements of the first axis; select(x, i, axis) and slice(x, a, b, axis) of any");
            return Err(starlark::Error::new_other(error));
        };
        self.operate(heap, |_, x| crate::functions::view::select(x, index, 0))
    }

    fn slice(
        &self,
        start: Option<Value<'v>>,
        stop: Option<Value<'v>>,
        step: Option<Value<'v>>,
        heap: Heap<'v>,
    ) -> starlark::Result<Value<'v>> {
        let bound = |value: Option<Value<'v>>| match value.filter(|v| !v.is_none()) {
            None => Ok(None),
            Some(value) => operators::Bound::new(value).map(Some),
        };
        let bounds = || Ok((bound(start)?, bound(stop)?, bound(step)?));
        let (start, stop, step) = bounds().map_err(|e: ModelError| starlark::Error::new_other(e))?;
        self.operate(heap, |_, x| crate::functions::view::slice(x, start, stop, step, 0))
    }

    fn minus(&self, heap: Heap<'v>) -> starlark::Result<Value<'v>> {
        self.operate(heap, |_, x| Ok(-x))
    }

    fn plus(&self, heap: Heap<'v>) -> starlark::Result<Value<'v>> {
        self.operate(heap, |_, x| Ok(x))
    }

    fn add(&self, other: Value<'v>, heap: Heap<'v>) -> Option<starlark::Result<Value<'v>>> {
        Some(self.binary("+", other, heap, false))
    }

    fn radd(&self, other: Value<'v>, heap: Heap<'v>) -> Option<starlark::Result<Value<'v>>> {
        Some(self.binary("+", other, heap, true))
    }

    fn sub(&self, other: Value<'v>, heap: Heap<'v>) -> starlark::Result<Value<'v>> {
        self.binary("-", other, heap, false)
    }

    fn mul(&self, other: Value<'v>, heap: Heap<'v>) -> Option<starlark::Result<Value<'v>>> {
        Some(self.binary("*", other, heap, false))
    }

    fn rmul(&self, other: Value<'v>, heap: Heap<'v>) -> Option<starlark::Result<Value<'v>>> {
        Some(self.binary("*", other, heap, true))
    }

    fn div(&self, other: Value<'v>, heap: Heap<'v>) -> starlark::Result<Value<'v>> {
        self.binary("/", other, heap, false)
    }
}

impl<'v> AllocValue<'v> for TensorValue {
    fn alloc_value(self, heap: Heap<'v>) -> Value<'v> {
        heap.alloc_simple(self)
    }
}

/// A symbolic size; sizes that are numbers are Starlark's own whole numbers.
#[derive(Clone, Copy, ProvidesStaticType, NoSerialize, Allocative)]
pub(crate) struct SizeValue(#[allocative(skip)] pub Dim);

/// `dim` as Starlark sees it.
pub(crate) fn alloc_size<'v>(heap: Heap<'v>, dim: Dim) -> Value<'v> {
    match dim.as_const() {
        Some(n) => heap.alloc(n),
        None => heap.alloc_simple(SizeValue(dim)),
    }
}

/// The size that `value` is.
pub(crate) fn unpack_size(value: Value<'_>) -> Option<Dim> {
    if let Some(size) = value.downcast_ref::<SizeValue>() {
        return Some(size.0);
    }
    integer(value).and_then(|n| usize::try_from(n).ok()).map(Dim::constant)
}

/// The whole number that `value` is.
pub(crate) fn integer(value: Value<'_>) -> Option<i64> {
    i64::unpack_value(value).ok().flatten()
}

impl fmt::Display for SizeValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for SizeValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl SizeValue {
    fn operate<'v>(
        &self,
        symbol: &str,
        other: Value<'v>,
        heap: Heap<'v>,
        swap: bool,
    ) -> Option<starlark::Result<Value<'v>>> {
        let other = unpack_size(other)?;
        let (left, right) = if swap { (other, self.0) } else { (self.0, other) };
        let result = operators::size_arithmetic(symbol, left, right);
        Some(result.map(|d| alloc_size(heap, d)).map_err(starlark::Error::new_other))
    }

    fn no_number<'v, T>(&self, symbol: &str, other: Value<'v>) -> starlark::Result<T> {
        let message = format!("`{symbol}` of the size {self} and {}, which is no size", other.to_repr());
        Err(starlark::Error::new_other(ModelError::new(message)))
    }
}

#[starlark_value(type = "size")]
impl<'v> StarlarkValue<'v> for SizeValue {
    fn equals(&self, other: Value<'v>) -> starlark::Result<bool> {
        Ok(unpack_size(other) == Some(self.0))
    }

    fn write_hash(&self, hasher: &mut StarlarkHasher) -> starlark::Result<()> {
        std::hash::Hash::hash(&self.0, hasher);
        Ok(())
    }

    fn compare(&self, other: Value<'v>) -> starlark::Result<Ordering> {
        match unpack_size(other) {
            Some(other) if other == self.0 => Ok(Ordering::Equal),
            _ => {
                let message =
                    format!("{self} and {} have no order before {self} is bound to a number", other.to_repr());
                Err(starlark::Error::new_other(ModelError::new(message)))
            }
        }
    }

    fn add(&self, other: Value<'v>, heap: Heap<'v>) -> Option<starlark::Result<Value<'v>>> {
        self.operate("+", other, heap, false)
    }

    fn radd(&self, other: Value<'v>, heap: Heap<'v>) -> Option<starlark::Result<Value<'v>>> {
        self.operate("+", other, heap, true)
    }

    fn mul(&self, other: Value<'v>, heap: Heap<'v>) -> Option<starlark::Result<Value<'v>>> {
        self.operate("*", other, heap, false)
    }

    fn rmul(&self, other: Value<'v>, heap: Heap<'v>) -> Option<starlark::Result<Value<'v>>> {
        self.operate("*", other, heap, true)
    }

    fn div(&self, other: Value<'v>, heap: Heap<'v>) -> starlark::Result<Value<'v>> {
        self.operate("/", other, heap, false).unwrap_or_else(|| self.no_number("/", other))
    }

    fn floor_div(&self, other: Value<'v>, heap: Heap<'v>) -> starlark::Result<Value<'v>> {
        self.operate("//", other, heap, false).unwrap_or_else(|| self.no_number("//", other))
    }
}

/// How a parameter starts.
#[derive(Clone, ProvidesStaticType, NoSerialize, Allocative)]
pub(crate) struct InitialiserValue(#[allocative(skip)] pub Initialiser);

impl fmt::Display for InitialiserValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for InitialiserValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[starlark_value(type = "initialiser")]
impl<'v> StarlarkValue<'v> for InitialiserValue {}

/// The type of a model's input.
#[derive(Clone, Debug, ProvidesStaticType, NoSerialize, Allocative)]
pub(crate) struct InputValue {
    #[allocative(skip)]
    pub dtype: DType,
    #[allocative(skip)]
    pub dims: Vec<Dim>,
    /// Whether the model sees it channels last although it arrives channels first.
    pub image: bool,
    /// Whether the model can do without it.
    pub optional: bool,
}

impl fmt::Display for InputValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape: tenon_graph::types::Shape = self.dims.iter().copied().collect();
        write!(f, "{}{shape}", self.dtype)
    }
}

#[starlark_value(type = "input")]
impl<'v> StarlarkValue<'v> for InputValue {}
