//! Fused units as small programs over rows, which a backend turns into loops.

use std::collections::HashMap;

use crate::elementwise::{Binary, Unary};
use crate::graph::{Graph, Node, Value};
use crate::lower::access::{Strided, resolve};
use crate::lower::fuse::{Extent, Partition, Unit, repeats_rows};
use crate::op::{Op, ReduceOp, Source};
use crate::types::DType;

/// The position of an instruction in its program.
pub type Reg = usize;

/// What an instruction's result holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spread {
    /// One value for the whole domain.
    Uniform,
    /// One value per row.
    Row,
    /// One value per element.
    Full,
    /// A reduction over rows: `outer x cols` values; only stored.
    Column,
    /// A reduction over the whole domain, however it is split: one value; only stored.
    Total,
}

/// What an instruction does.
#[derive(Clone, PartialEq, Debug)]
pub enum Code {
    /// The same number everywhere.
    Constant(f64),
    /// Elements of a buffer. For [`Spread::Row`] the window has one element per row, for [`Spread::Full`] one per element.
    Load(Strided),
    /// `(position / divide) % modulo`, where the window gives each element's position in the counting value.
    Index {
        /// Positions, as offsets into the counting value.
        window: Strided,
        /// The elements that share an index.
        divide: usize,
        /// The number of indices.
        modulo: usize,
    },
    /// Random bits for each element's position in row-major order.
    Random {
        /// The buffer of the key (`u32[2]`).
        key: Value,
        /// The stream.
        stream: u32,
    },
    /// A unary operation.
    Unary(Unary, Reg),
    /// A binary operation.
    Binary(Binary, Reg, Reg),
    /// Selection.
    Select(Reg, Reg, Reg),
    /// Conversion to the instruction's element type.
    Cast(Reg),
    /// A value per row, repeated along the row.
    Repeat(Reg),
    /// A reduction of a full value; the instruction's spread says over what.
    Reduce(ReduceOp, Reg),
}

impl Code {
    /// The stored value that it reads.
    pub fn reads(&self) -> Option<Value> {
        match self {
            Code::Load(window) => Some(window.root),
            Code::Random { key, .. } => Some(*key),
            Code::Constant(_)
            | Code::Index { .. }
            | Code::Unary(..)
            | Code::Binary(..)
            | Code::Select(..)
            | Code::Cast(_)
            | Code::Repeat(_)
            | Code::Reduce(..) => None,
        }
    }
}

/// One instruction.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// What it does.
    pub code: Code,
    /// What its result holds.
    pub spread: Spread,
    /// The element type of the result. Floats are computed in `f32`; a `BF16` result is rounded to it.
    pub dtype: DType,
    /// The node that it comes from.
    pub node: Node,
}

/// A fused unit: instructions over a domain of `rows x cols` elements, and which results are stored.
#[derive(Clone, Debug)]
pub struct Fused {
    /// Rows of the domain.
    pub rows: usize,
    /// Elements of a row. Where nothing depends on it, the domain is one row.
    pub cols: usize,
    /// Column reductions combine `rows / outer` consecutive rows into one result row of `cols` elements.
    pub outer: usize,
    /// Whether the domain may be cut anywhere because no instruction knows rows.
    pub flat: bool,
    /// Operands come before their users.
    pub instructions: Vec<Instruction>,
    /// What is written: an instruction and the value whose buffer, row-major, takes its result.
    pub stores: Vec<(Reg, Value)>,
}

struct Emitter<'a> {
    graph: &'a Graph,
    partition: &'a Partition,
    unit: usize,
    fused: Fused,
    by_value: HashMap<Value, Reg>,
    /// Loads, repeats and constants that are already there, by what they read and how.
    by_use: Vec<(Value, Strided, Spread, Reg)>,
}

/// The program of a fused unit.
pub fn emit(graph: &Graph, partition: &Partition, index: usize) -> Fused {
    let unit: &Unit = &partition.units[index];
    let cols = unit.cols.unwrap_or(unit.domain);
    let fused = Fused {
        rows: if unit.cols.is_some() { unit.domain.checked_div(cols).unwrap_or(0) } else { 1 },
        cols,
        outer: unit.outer.unwrap_or(1),
        flat: unit.cols.is_none(),
        instructions: Vec::new(),
        stores: Vec::new(),
    };
    let mut emitter = Emitter { graph, partition, unit: index, fused, by_value: HashMap::new(), by_use: Vec::new() };
    for (node, extent) in unit.nodes.iter().zip(&unit.extents) {
        emitter.node(*node, *extent);
    }
    emitter.fused
}

impl Emitter<'_> {
    /// The register of an instruction, of one that does the same if there is one: values that units compute again meet
    /// here in one unit.
    fn push(&mut self, code: Code, spread: Spread, dtype: DType, node: Node) -> Reg {
        // 0 and -0 are equal, but not the same.
        let same_code = |other: &Code| match (other, &code) {
            (Code::Constant(a), Code::Constant(b)) => a.to_bits() == b.to_bits(),
            (a, b) => a == b,
        };
        let same = |i: &Instruction| same_code(&i.code) && i.spread == spread && i.dtype == dtype;
        if let Some(reg) = self.fused.instructions.iter().position(same) {
            return reg;
        }
        self.fused.instructions.push(Instruction { code, spread, dtype, node });
        self.fused.instructions.len() - 1
    }

    fn node(&mut self, node: Node, extent: Extent) {
        let data = self.graph.node(node);
        let result = data.output();
        let wanted = match (&data.op, extent) {
            (Op::Reduce(_), _) | (_, Extent::Full) => Spread::Full,
            (_, Extent::Row | Extent::Column) => Spread::Row,
        };
        let spread = match extent {
            Extent::Full => Spread::Full,
            Extent::Row => Spread::Row,
            Extent::Column if self.fused.flat => Spread::Total,
            Extent::Column => Spread::Column,
        };
        let dtype = self.graph.ty(result).dtype;
        let code = match &data.op {
            Op::Source(_) => {
                let reg = self.operand(result, Spread::Full);
                self.fused.stores.push((reg, result));
                return;
            }
            Op::Random(random) => {
                let key = resolve(self.graph, data.inputs[0], &|v| self.partition.stored[v.index()]);
                Code::Random { key: key.expect("keys are whole buffers").root, stream: random.stream }
            }
            Op::Unary(op) => Code::Unary(*op, self.operand(data.inputs[0], wanted)),
            Op::Binary(op) => {
                let a = self.operand(data.inputs[0], wanted);
                Code::Binary(*op, a, self.operand(data.inputs[1], wanted))
            }
            Op::Select => {
                let condition = self.operand(data.inputs[0], wanted);
                let a = self.operand(data.inputs[1], wanted);
                Code::Select(condition, a, self.operand(data.inputs[2], wanted))
            }
            Op::Cast(_) => Code::Cast(self.operand(data.inputs[0], wanted)),
            Op::Reduce(reduce) => Code::Reduce(reduce.op, self.operand(data.inputs[0], wanted)),
            Op::View(_)
            | Op::Dot(_)
            | Op::Conv(_)
            | Op::Pool(_)
            | Op::Gather(_)
            | Op::Scatter(_)
            | Op::Sort(_)
            | Op::Composite(_) => unreachable!("{} is never part of a fused unit", data.op.name()),
        };
        let reg = self.push(code, spread, dtype, node);
        self.by_value.insert(result, reg);
        if self.partition.stored[result.index()] {
            self.fused.stores.push((reg, result));
        }
    }

    /// The register that holds `value` as an operand of spread `wanted`.
    fn operand(&mut self, value: Value, wanted: Spread) -> Reg {
        let stored = &self.partition.stored;
        let window = resolve(self.graph, value, &|v| stored[v.index()]).expect("views that are no windows are stored");
        let root = window.root;
        let same = |(r, w, s, _): &&(Value, Strided, Spread, Reg)| *r == root && *w == window && *s == wanted;
        if let Some((.., reg)) = self.by_use.iter().find(same) {
            return *reg;
        }
        let reg = self.load(&window, wanted);
        self.by_use.push((root, window, wanted, reg));
        reg
    }

    fn load(&mut self, window: &Strided, wanted: Spread) -> Reg {
        let root = window.root;
        let producer = self.graph.producer(root);
        let dtype = self.graph.ty(root).dtype;
        if self.partition.unit_of[producer.index()] == Some(self.unit)
            && let Some(reg) = self.by_value.get(&root).copied()
        {
            let spread = self.fused.instructions[reg].spread;
            if spread == wanted {
                return reg;
            }
            debug_assert!(spread == Spread::Row && repeats_rows(window, self.fused.rows, self.fused.cols));
            return self.push(Code::Repeat(reg), Spread::Full, dtype, producer);
        }
        let uniform = window.runs().iter().all(|(_, stride)| *stride == 0);
        let spread = if uniform { Spread::Uniform } else { wanted };
        let code = match &self.graph.node(producer).op {
            Op::Source(Source::Constant { value, .. }) => Code::Constant(*value),
            Op::Source(Source::Iota { axis, ty })
                if !self.partition.stored[root.index()] || self.generates(producer) =>
            {
                let sizes = ty.shape.sizes();
                let divide = sizes[axis + 1..].iter().product();
                Code::Index { window: window.clone(), divide, modulo: sizes[*axis] }
            }
            _ => Code::Load(window.clone()),
        };
        self.push(code, spread, dtype, producer)
    }

    /// Whether this unit is the one that stores a generated value.
    fn generates(&self, producer: Node) -> bool {
        self.partition.unit_of[producer.index()] == Some(self.unit)
    }
}
