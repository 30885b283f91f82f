//! The graph: nodes in creation order, which is a topological order, with side tables.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::diagnostic::Site;
use crate::op::{Op, Role, Source};
use crate::types::Type;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub struct $name(u32);

        impl $name {
            /// The id with this position in its table.
            pub fn new(index: usize) -> $name {
                $name(u32::try_from(index).expect("a graph has fewer than 2^32 entries"))
            }

            /// The position in its table.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}

id! {
    /// A node of a graph.
    Node
}
id! {
    /// A result of a node.
    Value
}
id! {
    /// An entry of the graph's table of sites.
    SiteId
}

/// The part of a training step that a node belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Phase {
    /// The model and its loss.
    Forward,
    /// Gradients.
    Backward,
    /// The optimizer.
    Update,
}

/// What a node is.
#[derive(Clone, Debug)]
pub struct NodeData {
    /// What it computes.
    pub op: Op,
    /// Its operands.
    pub inputs: SmallVec<[Value; 4]>,
    first: Value,
    results: u32,
    /// Where it was built.
    pub site: SiteId,
    /// The part of the step that it belongs to.
    pub phase: Phase,
}

impl NodeData {
    /// The node's results.
    pub fn outputs(&self) -> impl ExactSizeIterator<Item = Value> + use<> {
        let first = self.first.index();
        (first..first + self.results as usize).map(Value::new)
    }

    /// The only result of a node that has one.
    pub fn output(&self) -> Value {
        debug_assert_eq!(self.results, 1);
        self.first
    }
}

#[derive(Clone, Debug)]
struct ValueData {
    ty: Type,
    node: Node,
}

/// A computation: nodes over values, named results, and updates of its inputs.
#[derive(Clone, Debug)]
pub struct Graph {
    nodes: Vec<NodeData>,
    values: Vec<ValueData>,
    sites: Vec<Site>,
    /// Named results, in the order given.
    pub outputs: Vec<(Arc<str>, Value)>,
    /// Inputs that hold a new value when the program has run: (input, new value of the same type).
    pub updates: Vec<(Value, Value)>,
}

impl Default for Graph {
    fn default() -> Graph {
        Graph {
            nodes: Vec::new(),
            values: Vec::new(),
            sites: vec![Site::default()],
            outputs: Vec::new(),
            updates: Vec::new(),
        }
    }
}

impl Graph {
    /// An empty graph with room for so many nodes and values.
    pub(crate) fn with_capacity(nodes: usize, values: usize) -> Graph {
        Graph { nodes: Vec::with_capacity(nodes), values: Vec::with_capacity(values), ..Graph::default() }
    }

    /// Adds a node whose result types have been inferred.
    pub(crate) fn push(
        &mut self,
        op: Op,
        inputs: SmallVec<[Value; 4]>,
        results: impl IntoIterator<Item = Type>,
        site: SiteId,
        phase: Phase,
    ) -> Node {
        let node = Node::new(self.nodes.len());
        let first = Value::new(self.values.len());
        self.values.extend(results.into_iter().map(|ty| ValueData { ty, node }));
        let results = (self.values.len() - first.index()) as u32;
        self.nodes.push(NodeData { op, inputs, first, results, site, phase });
        node
    }

    /// The node's data.
    pub fn node(&self, node: Node) -> &NodeData {
        &self.nodes[node.index()]
    }

    /// Every node in creation order: operands come before their users.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = Node> + ExactSizeIterator + use<> {
        (0..self.nodes.len()).map(Node::new)
    }

    /// The number of nodes.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// The number of values.
    pub fn value_count(&self) -> usize {
        self.values.len()
    }

    /// The value's type.
    pub fn ty(&self, value: Value) -> &Type {
        &self.values[value.index()].ty
    }

    /// The node that makes the value.
    pub fn producer(&self, value: Value) -> Node {
        self.values[value.index()].node
    }

    /// What the value's node computes.
    pub fn op_of(&self, value: Value) -> &Op {
        &self.node(self.producer(value)).op
    }

    /// Where the node was built.
    pub fn site(&self, node: Node) -> &Site {
        &self.sites[self.node(node).site.index()]
    }

    /// The entry of a site in the table.
    pub fn intern_site(&mut self, site: &Site) -> SiteId {
        // Consecutive nodes mostly share their site, so the last entries are the likely ones.
        let recent = self.sites.iter().rposition(|s| s == site);
        SiteId::new(recent.unwrap_or_else(|| {
            self.sites.push(site.clone());
            self.sites.len() - 1
        }))
    }

    /// The table of sites.
    pub fn site_at(&self, id: SiteId) -> &Site {
        &self.sites[id.index()]
    }

    /// Every named input: value, name, role and type, in creation order.
    pub fn inputs(&self) -> impl Iterator<Item = (Value, &Arc<str>, Role, &Type)> {
        self.nodes.iter().filter_map(|data| match &data.op {
            Op::Source(Source::Input { name, role, ty }) => Some((data.first, name, *role, ty)),
            _ => None,
        })
    }

    /// The input with this name.
    pub fn input(&self, name: &str) -> Option<Value> {
        self.inputs().find(|(_, n, _, _)| &***n == name).map(|(v, ..)| v)
    }

    /// The result with this name.
    pub fn output(&self, name: &str) -> Option<Value> {
        self.outputs.iter().find(|(n, _)| &**n == name).map(|(_, v)| *v)
    }

    /// How often each value is used by nodes, as a result or as an update.
    pub fn use_counts(&self) -> Vec<u32> {
        let mut counts = vec![0; self.values.len()];
        let operands = self.nodes.iter().flat_map(|n| n.inputs.iter());
        let roots = self.outputs.iter().map(|(_, v)| v).chain(self.updates.iter().map(|(_, v)| v));
        for value in operands.chain(roots) {
            counts[value.index()] += 1;
        }
        counts
    }

    /// Which nodes the results and updates depend on, by node index.
    pub fn live_nodes(&self) -> Vec<bool> {
        let mut live = vec![false; self.nodes.len()];
        let roots = self.outputs.iter().map(|(_, v)| *v).chain(self.updates.iter().flat_map(|(a, b)| [*a, *b]));
        for value in roots {
            live[self.producer(value).index()] = true;
        }
        for index in (0..self.nodes.len()).rev() {
            if live[index] {
                for value in &self.nodes[index].inputs {
                    live[self.values[value.index()].node.index()] = true;
                }
            }
        }
        live
    }
}
