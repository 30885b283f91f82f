//! The model under construction while an architecture program runs.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use starlark::any::ProvidesStaticType;
use starlark::codemap::FileSpan;
use tenon_graph::diagnostic::Site;
use tenon_graph::dim::Dim;
use tenon_graph::graph::Value;
use tenon_graph::op::Role;
use tenon_graph::tensor::{Builder, Tensor};
use tenon_graph::types::{DType, Type};

use crate::error::ModelError;
use crate::init::Initialiser;
use crate::model::{Limit, Parameter};

/// The most elements of one parameter.
const MAX_PARAMETER_ELEMENTS: usize = 1 << 40;
/// The most parameters of a model.
const MAX_PARAMETERS: usize = 100_000;

/// The name of the control input that says where in the sequence a program's first token stands.
pub const POSITION_OFFSET: &str = "position_offset";
/// The name of the control input that seeds the random numbers of a step.
pub const RANDOM_KEY: &str = "random_key";

/// A session that Starlark values can share.
#[derive(Clone, ProvidesStaticType)]
pub(crate) struct Shared(Arc<Mutex<Session>>);

impl Shared {
    pub fn new() -> Shared {
        Shared(Arc::new(Mutex::new(Session::default())))
    }

    pub fn lock(&self) -> MutexGuard<'_, Session> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The finished session, if no Starlark value holds it any more.
    pub fn into_inner(self) -> Session {
        std::mem::take(&mut *self.lock())
    }
}

/// What an architecture program has built so far.
#[derive(Default)]
pub(crate) struct Session {
    pub builder: Builder,
    /// The scopes that the program is in, outermost first.
    pub scopes: Vec<String>,
    pub declared: RefCell<Declared>,
}

/// What an architecture program has declared so far.
#[derive(Default)]
pub(crate) struct Declared {
    pub parameters: Vec<Parameter>,
    pub states: Vec<Parameter>,
    names: HashMap<String, Site>,
    pub limits: Vec<Limit>,
    /// Values that count positions along an axis of this size.
    positions: HashMap<Value, Dim>,
}

/// What is declared under a name.
pub(crate) struct Declaration {
    pub role: Role,
    pub shape: Vec<usize>,
    pub init: Initialiser,
    pub trainable: bool,
}

impl Session {
    /// The scope path as errors show it.
    pub fn path(&self) -> String {
        std::iter::once("model").chain(self.scopes.iter().map(String::as_str)).collect::<Vec<_>>().join("/")
    }

    /// `name` in the present scope.
    pub fn qualified(&self, name: &str) -> String {
        self.scopes.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join(".")
    }

    /// Has the next nodes come from `span` in the present scope.
    pub fn set_site(&self, span: Option<&FileSpan>) {
        self.builder.set_site(&site(span, &self.path()));
    }

    fn here(&self) -> Site {
        self.builder.graph().site_at(self.builder.site_id()).clone()
    }

    /// Declares a parameter or a state of the present scope.
    pub fn declare(&self, name: &str, declaration: Declaration) -> Result<Tensor<'_>, ModelError> {
        let Declaration { role, shape, init, trainable } = declaration;
        let what = role.name();
        let name = self.qualified(name);
        if name.split('.').any(|part| part.is_empty() || part.contains(char::is_whitespace)) {
            return Err(ModelError::new(format!("{what} `{name}`: a name has no empty parts and no spaces"))
                .help("parts of names are joined by single dots, as in `h.0.mlp`"));
        }
        let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        if elements.is_none_or(|n| n > MAX_PARAMETER_ELEMENTS) {
            return Err(ModelError::new(format!("{what} `{name}`: {shape:?} is more than 2^40 elements")));
        }
        init.check(&shape).map_err(|error| ModelError::new(format!("{what} `{name}`: {error}")))?;
        let mut declared = self.declared.borrow_mut();
        if let Some(first) = declared.names.get(&name) {
            return Err(ModelError::new(format!("`{name}` is declared twice"))
                .note(format!("first at {first}"))
                .help("give it another name or its own scope; to share weights, use the tensor of the first declaration"));
        }
        if declared.names.len() >= MAX_PARAMETERS {
            return Err(ModelError::new(format!("the model has more than {MAX_PARAMETERS} parameters"))
                .help("a loop in the architecture may run far too often"));
        }
        let site = self.here();
        let tensor = self.builder.input(&name, role, Type::new(DType::F32, shape.as_slice()));
        declared.names.insert(name.clone(), site.clone());
        let parameter = Parameter { name, shape, init, trainable, site, value: tensor.value() };
        match role {
            Role::State => declared.states.push(parameter),
            _ => declared.parameters.push(parameter),
        }
        Ok(tensor)
    }

    /// The control input with this name, made at its first use.
    pub fn control(&self, name: &str, ty: Type) -> Tensor<'_> {
        let existing = self.builder.graph().input(name);
        match existing {
            Some(value) => self.builder.tensor(value),
            None => self.builder.input(name, Role::Control, ty),
        }
    }

    /// Remembers that `tensor` counts the positions along an axis of size `dim`.
    pub fn mark_positions(&self, tensor: Tensor<'_>, dim: Dim) {
        self.declared.borrow_mut().positions.insert(tensor.value(), dim);
    }

    /// If `ids` counts positions, records that they must stay below the rows of `table`.
    pub fn limit_positions(&self, ids: Tensor<'_>, table: Tensor<'_>) -> Result<(), ModelError> {
        let mut declared = self.declared.borrow_mut();
        let Some(size) = declared.positions.get(&ids.value()).copied() else { return Ok(()) };
        let Some(most) = table.shape().first().and_then(Dim::as_const) else { return Ok(()) };
        let limit = Limit { size, most, table: table.describe(), site: self.here() };
        match size.as_const() {
            Some(n) if n > most => Err(limit.exceeded(n)),
            Some(_) => Ok(()),
            None => {
                declared.limits.push(limit);
                Ok(())
            }
        }
    }
}

/// The place of `span` in the scope `path`.
pub(crate) fn site(span: Option<&FileSpan>, path: &str) -> Site {
    let Some(span) = span else { return Site { path: path.into(), ..Site::default() } };
    let at = span.resolve_span();
    let line = span.file.source_line(at.begin.line);
    let end = if at.end.line == at.begin.line { at.end.column } else { line.trim_end().chars().count() };
    Site {
        file: span.filename().into(),
        line: at.begin.line as u32 + 1,
        column: at.begin.column as u32 + 1,
        length: end.saturating_sub(at.begin.column) as u32,
        path: path.into(),
    }
}
