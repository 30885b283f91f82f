//! A model: the graph that an architecture program built, and what is declared beside it.

use std::fmt;

use tenon_graph::composite::attention::ATTENTION;
use tenon_graph::diagnostic::Site;
use tenon_graph::dim::{Bindings, Dim};
use tenon_graph::graph::{Graph, Value};
use tenon_graph::op::Op;
use tenon_graph::types::{DType, Shape};

use crate::architecture::{Architecture, ArchitectureSource};
use crate::error::ModelError;
use crate::hyper::HyperValue;
use crate::init::Initialiser;

/// A tensor that belongs to a model: a weight, or a state such as running statistics.
#[derive(Clone, PartialEq, Debug)]
pub struct Parameter {
    /// The full name, such as `h.3.attn.c_attn.weight`; also the name of the graph's input.
    pub name: String,
    /// The shape; elements are `f32`.
    pub shape: Vec<usize>,
    /// How it starts.
    pub init: Initialiser,
    /// Whether training changes it.
    pub trainable: bool,
    /// Where it was declared.
    pub site: Site,
    /// Its value in the model's graph.
    pub value: Value,
}

impl Parameter {
    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// An input of a model, as data brings it.
#[derive(Clone, PartialEq, Debug)]
pub struct Input {
    /// The name, such as `input_ids`.
    pub name: String,
    /// The element type.
    pub dtype: DType,
    /// The shape; images are channels first here, whatever the model sees.
    pub shape: Shape,
    /// Its value in the model's graph.
    pub value: Value,
}

/// A bound of a size: positions along it are rows of a table.
#[derive(Clone, PartialEq, Debug)]
pub struct Limit {
    /// The size, such as `t`.
    pub size: Dim,
    /// The largest value that it may have.
    pub most: usize,
    /// The table whose rows set the bound, with its place.
    pub table: String,
    /// Where the table is read.
    pub site: Site,
}

impl Limit {
    pub(crate) fn exceeded(&self, found: usize) -> ModelError {
        let Limit { size, most, table, site } = self;
        let named = if size.as_const().is_some() { String::new() } else { format!("{size} = ") };
        let message = format!("sequence longer than context: {named}{found} positions, {most} rows in the table");
        let mut error = ModelError::new(message).note(format!("the table is {table}"));
        error.site = site.clone();
        error.help(format!("use sequences of at most {most}, or raise the model's context"))
    }
}

/// A model, ready to be planned.
#[derive(Clone, Debug)]
pub struct Model {
    /// The architecture that it is an instance of.
    pub architecture: Architecture,
    /// The preset that was asked for.
    pub preset: Option<String>,
    /// Every hyperparameter of the architecture, in its order, with the value in force.
    pub hyperparameters: Vec<(String, HyperValue)>,
    /// The names of those that the caller set.
    pub set: Vec<String>,
    /// From inputs, parameters and states to outputs.
    pub graph: Graph,
    /// The data that the model takes.
    pub inputs: Vec<Input>,
    /// The names of its optional inputs, of which it takes those that are among `inputs`.
    pub optional: Vec<String>,
    /// The results, by name, in order.
    pub outputs: Vec<(String, Value)>,
    /// The weights, in the order of declaration.
    pub parameters: Vec<Parameter>,
    /// What is kept beside weights and changes without gradients.
    pub states: Vec<Parameter>,
    /// Bounds of sizes.
    pub limits: Vec<Limit>,
}

impl Model {
    /// Builds the model that `source` describes, with the given hyperparameters. `preset` among them names a preset.
    pub fn load(source: &ArchitectureSource, hyperparameters: &[(String, HyperValue)]) -> Result<Model, ModelError> {
        Architecture::load(source)?.build(hyperparameters)
    }

    /// The same model with those optional inputs that are among `given`, and no other.
    ///
    /// # Errors
    /// The program fails with them.
    pub fn taking(self, given: &[&str]) -> Result<Model, ModelError> {
        let takes = |name: &str| self.inputs.iter().any(|input| input.name == name);
        if self.optional.iter().all(|name| takes(name) == given.contains(&name.as_str())) {
            return Ok(self);
        }
        let Model { preset, set, .. } = self;
        Ok(Model { preset, set, ..self.architecture.build_for(&self.hyperparameters, given)? })
    }

    /// Whether a token depends on no later one, so that the model can learn to predict the next: its every attention is
    /// causal.
    pub fn is_causal(&self) -> bool {
        self.graph.nodes().all(|node| match &self.graph.node(node).op {
            Op::Composite(composite) if composite.def.name == ATTENTION.name => composite.attrs.flag("causal"),
            _ => true,
        })
    }

    /// The number of elements of all parameters.
    pub fn parameter_count(&self) -> usize {
        self.parameters.iter().map(Parameter::elements).sum()
    }

    /// The number of elements of the parameters that training changes.
    pub fn trainable_count(&self) -> usize {
        self.parameters.iter().filter(|p| p.trainable).map(Parameter::elements).sum()
    }

    /// Parameters, then states: everything that a checkpoint holds.
    pub fn variables(&self) -> impl Iterator<Item = &Parameter> {
        self.parameters.iter().chain(&self.states)
    }

    /// The hyperparameter's value in force.
    pub fn hyperparameter(&self, name: &str) -> Option<&HyperValue> {
        self.hyperparameters.iter().find(|(n, _)| n == name).map(|(_, value)| value)
    }

    /// An error if these sizes are beyond what the model can take.
    pub fn check(&self, bindings: &Bindings) -> Result<(), ModelError> {
        for limit in &self.limits {
            if let Ok(found) = limit.size.bind(bindings)
                && found > limit.most
            {
                return Err(limit.exceeded(found));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.preset.as_ref().unwrap_or(&self.architecture.name))
    }
}
