//! A reader of pickles that never executes anything: it builds plain data and tensors, and refuses all else by name.
//!
//! Nodes lie in one list and refer to each other by number, so that no nesting, however deep, is a recursion.

use std::collections::HashMap;

use safetensors::Dtype;

/// The most nodes of a pickle; a checkpoint has a few for each tensor.
const MAX_NODES: usize = 4_000_000;
/// The longest name.
const MAX_TEXT: usize = 1 << 20;

/// The number of a node.
pub(super) type Id = u32;

/// What a pickle builds.
pub(super) enum Node {
    /// None, a float, bytes: what nobody here asks about.
    Other,
    Int(i64),
    /// A whole number of more than 64 bits, little-endian.
    Long(Vec<u8>),
    Text(String),
    /// Lists and tuples.
    Sequence(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Callable(Callable),
    Storage(Storage),
    Tensor(Tensor),
}

/// What a pickle may call.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Callable {
    OrderedDict,
    Tensor,
    Parameter,
    /// A type of storages.
    Storage(Dtype),
}

/// What holds the elements of tensors.
#[derive(Clone)]
pub(super) struct Storage {
    pub dtype: Dtype,
    /// Its name in the archive.
    pub key: String,
    /// Where it begins in the storage of that name, in elements.
    pub offset: usize,
    /// The elements of the storage of that name.
    pub elements: usize,
}

/// A view of a storage.
pub(super) struct Tensor {
    pub storage: Storage,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// A pickle that was read.
pub(super) struct Pickle {
    nodes: Vec<Node>,
    root: Id,
    /// The bytes that it took.
    pub length: usize,
}

impl Pickle {
    pub fn root(&self) -> &Node {
        self.get(self.root)
    }

    pub fn get(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    /// The entries of a dict whose keys are strings.
    pub fn entries<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = (&'a str, &'a Node)> {
        let pairs = if let Node::Dict(pairs) = node { pairs.as_slice() } else { &[] };
        pairs.iter().filter_map(|(key, value)| match self.get(*key) {
            Node::Text(name) => Some((name.as_str(), self.get(*value))),
            _ => None,
        })
    }

    /// The storages that it refers to.
    pub fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.nodes.iter().filter_map(|node| if let Node::Storage(storage) = node { Some(storage) } else { None })
    }

    /// Reads the pickle that `bytes` begin with.
    ///
    /// # Errors
    /// What is wrong with it, or what it asks for that is not plain data.
    pub fn read(bytes: &[u8]) -> Result<Pickle, String> {
        let mut reader =
            Reader { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        while reader.step()? {}
        let root = reader.pop()?;
        Ok(Pickle { nodes: reader.nodes, root, length: reader.at })
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Reader<'a> {
    /// One instruction; false for the last.
    fn step(&mut self) -> Result<bool, String> {
        let at = self.at;
        match self.take(1)?[0] {
            0x80 => drop(self.take(1)?),               // PROTO
            0x95 => drop(self.take(8)?),               // FRAME
            b'.' => return Ok(false),                  // STOP
            b'(' => self.marks.push(self.stack.len()), // MARK
            b'0' => drop(self.pop()?),                 // POP
            b'1' => drop(self.marked()?),              // POP_MARK
            b'2' => {
                // DUP
                let top = self.pop()?;
                self.stack.extend([top, top]);
            }
            b'N' | 0x88 | 0x89 => self.push(Node::Other)?, // NONE, NEWTRUE, NEWFALSE
            b'G' => {
                // BINFLOAT
                self.take(8)?;
                self.push(Node::Other)?;
            }
            b'J' => {
                // BININT
                let n = self.number::<4>().map(|b| i32::from_le_bytes(b).into())?;
                self.push(Node::Int(n))?;
            }
            b'K' => {
                // BININT1
                let n = self.take(1)?[0].into();
                self.push(Node::Int(n))?;
            }
            b'M' => {
                // BININT2
                let n = self.number::<2>().map(|b| u16::from_le_bytes(b).into())?;
                self.push(Node::Int(n))?;
            }
            0x8a => {
                // LONG1
                let length = self.take(1)?[0].into();
                let digits = self.take(length)?;
                let sign = if digits.last().is_some_and(|b| *b >= 0x80) { 0xff } else { 0 };
                let mut word = [sign; 8];
                self.push(match word.get_mut(..digits.len()) {
                    Some(low) => {
                        low.copy_from_slice(digits);
                        Node::Int(i64::from_le_bytes(word))
                    }
                    None => Node::Long(digits.to_vec()),
                })?;
            }
            b'X' => {
                // BINUNICODE
                let length = self.number::<4>().map(u32::from_le_bytes)? as usize;
                self.text(length)?;
            }
            0x8c => {
                // SHORT_BINUNICODE
                let length = self.take(1)?[0].into();
                self.text(length)?;
            }
            b'U' => {
                // SHORT_BINSTRING
                let length = self.take(1)?[0].into();
                self.text(length)?;
            }
            b'T' => {
                // BINSTRING
                let length = self.number::<4>().map(u32::from_le_bytes)? as usize;
                self.text(length)?;
            }
            b'B' => {
                // BINBYTES
                let length = self.number::<4>().map(u32::from_le_bytes)? as usize;
                self.take(length)?;
                self.push(Node::Other)?;
            }
            b'C' => {
                // SHORT_BINBYTES
                let length = self.take(1)?[0].into();
                self.take(length)?;
                self.push(Node::Other)?;
            }
            b'}' => self.push(Node::Dict(Vec::new()))?, // EMPTY_DICT
            b']' | b')' => self.push(Node::Sequence(Vec::new()))?, // EMPTY_LIST, EMPTY_TUPLE
            b't' => {
                // TUPLE
                let items = self.marked()?;
                self.push(Node::Sequence(items))?;
            }
            n @ 0x85..=0x87 => {
                // TUPLE1, TUPLE2, TUPLE3
                let from = self.stack.len().checked_sub(usize::from(n - 0x84)).ok_or("its stack is empty")?;
                let items = self.above(from)?;
                self.push(Node::Sequence(items))?;
            }
            b'a' => {
                // APPEND
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                // APPENDS
                let items = self.marked()?;
                self.append(items)?;
            }
            b's' => {
                // SETITEM
                let value = self.pop()?;
                let key = self.pop()?;
                self.insert(&[key, value])?;
            }
            b'u' => {
                // SETITEMS
                let items = self.marked()?;
                self.insert(&items)?;
            }
            b'q' => {
                // BINPUT
                let key = self.take(1)?[0].into();
                self.remember(key)?;
            }
            b'r' => {
                // LONG_BINPUT
                let key = self.number::<4>().map(u32::from_le_bytes)?;
                self.remember(key)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?, // MEMOIZE
            b'h' => {
                // BINGET
                let key = self.take(1)?[0].into();
                self.recall(key)?;
            }
            b'j' => {
                // LONG_BINGET
                let key = self.number::<4>().map(u32::from_le_bytes)?;
                self.recall(key)?;
            }
            b'c' => {
                // GLOBAL
                let (module, name) = (self.line()?, self.line()?);
                let callable = callable(&module, &name)?;
                self.push(Node::Callable(callable))?;
            }
            0x93 => {
                // STACK_GLOBAL
                let (name, module) = (self.pop()?, self.pop()?);
                let (Node::Text(module), Node::Text(name)) = (self.node(module), self.node(name)) else {
                    return Err("the name of a callable is no string".into());
                };
                let callable = callable(module, name)?;
                self.push(Node::Callable(callable))?;
            }
            b'R' => self.call()?,      // REDUCE
            b'b' => drop(self.pop()?), // BUILD: attributes of a dict, which nobody reads
            b'Q' => {
                // BINPERSID
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(Node::Storage(storage))?;
            }
            other => return Err(format!("instruction {other:#04x} at byte {at} is not one that checkpoints need")),
        }
        Ok(true)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let taken = self.at.checked_add(length).and_then(|end| self.bytes.get(self.at..end));
        self.at += taken.map_or(0, <[u8]>::len);
        taken.ok_or_else(|| format!("it ends at byte {}, in the middle", self.bytes.len()))
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("as many bytes as were asked for"))
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().take(MAX_TEXT).position(|b| *b == b'\n').ok_or("the name of a callable does not end")?;
        self.at += end + 1;
        Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
    }

    fn text(&mut self, length: usize) -> Result<(), String> {
        if length > MAX_TEXT {
            return Err(format!("a string of {length} bytes"));
        }
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.push(Node::Text(text))
    }

    fn push(&mut self, node: Node) -> Result<(), String> {
        if self.nodes.len() == MAX_NODES {
            return Err(format!("it holds more than {MAX_NODES} things"));
        }
        self.stack.push(self.nodes.len() as Id);
        self.nodes.push(node);
        Ok(())
    }

    fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id, String> {
        let floor = self.floor();
        self.stack.pop().filter(|_| self.stack.len() >= floor).ok_or_else(|| "its stack is empty".to_string())
    }

    fn above(&mut self, from: usize) -> Result<Vec<Id>, String> {
        if from < self.floor() {
            return Err("its stack is empty".into());
        }
        Ok(self.stack.split_off(from))
    }

    /// What lies above the last mark.
    fn marked(&mut self) -> Result<Vec<Id>, String> {
        let from = self.marks.pop().ok_or("a mark is missing")?;
        self.above(from)
    }

    fn top(&mut self) -> Result<&mut Node, String> {
        let floor = self.floor();
        let top = self.stack.get(floor..).and_then(|stack| stack.last()).ok_or("its stack is empty")?;
        Ok(&mut self.nodes[*top as usize])
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), String> {
        match self.top()? {
            Node::Sequence(list) => list.extend(items),
            _ => return Err("it appends to something that is no list".into()),
        }
        Ok(())
    }

    fn insert(&mut self, items: &[Id]) -> Result<(), String> {
        match self.top()? {
            Node::Dict(pairs) => pairs.extend(items.as_chunks::<2>().0.iter().map(|[key, value]| (*key, *value))),
            _ => return Err("it sets items of something that is no dict".into()),
        }
        Ok(())
    }

    fn remember(&mut self, key: u32) -> Result<(), String> {
        let top = *self.stack.last().ok_or("its stack is empty")?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), String> {
        let id = *self.memo.get(&key).ok_or("it recalls what it never stored")?;
        self.stack.push(id);
        Ok(())
    }

    fn sequence(&self, id: Id) -> Result<&[Id], String> {
        match self.node(id) {
            Node::Sequence(items) => Ok(items),
            _ => Err("the arguments of a call are no tuple".into()),
        }
    }

    fn size(&self, id: Id) -> Result<usize, String> {
        match self.node(id) {
            Node::Int(n) => usize::try_from(*n).map_err(|_| format!("a size or place is {n}")),
            _ => Err("a size or place is no whole number".into()),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>, String> {
        self.sequence(id)?.iter().map(|id| self.size(*id)).collect()
    }

    fn call(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Node::Callable(callable) = self.node(function) else {
            return Err("it calls something that is no function".into());
        };
        let arguments = self.sequence(arguments)?;
        match (callable, arguments) {
            (Callable::OrderedDict, []) => self.push(Node::Dict(Vec::new())),
            (Callable::Parameter, [data, ..]) => {
                let data = *data;
                self.stack.push(data);
                Ok(())
            }
            (Callable::Tensor, [storage, offset, shape, strides, ..]) => {
                let Node::Storage(storage) = self.node(*storage) else {
                    return Err("a tensor has no storage".into());
                };
                let (offset, shape, strides) = (self.size(*offset)?, self.sizes(*shape)?, self.sizes(*strides)?);
                let tensor = Tensor { storage: storage.clone(), offset, shape, strides };
                self.push(Node::Tensor(tensor))
            }
            _ => Err("a call has too few or too many arguments".into()),
        }
    }

    /// The storage that `("storage", type, key, place, elements[, view])` names.
    fn storage(&self, id: Id) -> Result<Storage, String> {
        let [_, kind, key, _, elements, view @ ..] = self.sequence(id)? else {
            return Err("the reference to a storage has too few parts".into());
        };
        let (Node::Callable(Callable::Storage(dtype)), Node::Text(key)) = (self.node(*kind), self.node(*key)) else {
            return Err("the reference to a storage has no type or no name".into());
        };
        let offset = match view.first().map(|id| self.node(*id)) {
            Some(Node::Sequence(parts)) => self.size(*parts.get(1).ok_or("a view of a storage has no place")?)?,
            _ => 0,
        };
        Ok(Storage { dtype: *dtype, key: key.clone(), offset, elements: self.size(*elements)? })
    }
}

/// What a name of Python's stands for.
fn callable(module: &str, name: &str) -> Result<Callable, String> {
    let storage = |dtype| Ok(Callable::Storage(dtype));
    match (module, name) {
        ("collections", "OrderedDict") => Ok(Callable::OrderedDict),
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Ok(Callable::Tensor),
        ("torch._utils", "_rebuild_parameter") => Ok(Callable::Parameter),
        ("torch", "DoubleStorage") => storage(Dtype::F64),
        ("torch", "FloatStorage") => storage(Dtype::F32),
        ("torch", "HalfStorage") => storage(Dtype::F16),
        ("torch", "BFloat16Storage") => storage(Dtype::BF16),
        ("torch", "LongStorage") => storage(Dtype::I64),
        ("torch", "IntStorage") => storage(Dtype::I32),
        ("torch", "ShortStorage") => storage(Dtype::I16),
        ("torch", "CharStorage") => storage(Dtype::I8),
        ("torch", "ByteStorage") => storage(Dtype::U8),
        ("torch", "BoolStorage") => storage(Dtype::BOOL),
        _ => Err(format!(
            "it asks for `{module}.{name}`, which is neither a tensor nor plain data (nothing was executed)"
        )),
    }
}
