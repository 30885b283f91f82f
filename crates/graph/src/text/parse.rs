//! Reading text form.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::diagnostic::Site;
use crate::graph::{Graph, Phase, SiteId, Value};
use crate::infer::infer;
use crate::op::Role;
use crate::tensor::MAX_NODES;
use crate::text::scan::{Cursor, Problem};
use crate::text::settings::{Argument, build};
use crate::types::Type;
use crate::verify::{can_update, well_formed};

/// Why a text is no graph, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParseError {
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)
    }
}

impl std::error::Error for ParseError {}

/// The graph with this text form; see the [module](crate::text) for what it looks like.
///
/// # Errors
/// The first line that is not text form, whose operation does not fit its operands, or whose type is not the one that
/// follows; more than [`MAX_NODES`] nodes.
pub fn parse(text: &str) -> Result<Graph, ParseError> {
    let mut parser = Parser::default();
    for (i, line) in text.split('\n').enumerate() {
        let mut cursor = Cursor::new(line);
        parser.line(&mut cursor).map_err(|problem| ParseError {
            line: i + 1,
            column: problem.column.unwrap_or(1),
            message: problem.message,
        })?;
    }
    Ok(parser.graph)
}

#[derive(Default)]
struct Parser {
    graph: Graph,
    values: HashMap<u64, Value>,
    names: HashSet<Arc<str>>,
    updated: HashSet<Value>,
}

impl Parser {
    fn line(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Problem> {
        if cursor.rest().is_empty() || cursor.rest().starts_with("//") {
            return Ok(());
        }
        if cursor.rest().starts_with('%') {
            self.node(cursor)?;
        } else {
            match cursor.word("a value, `output` or `update`")? {
                "output" => {
                    let column = cursor.column();
                    let name = cursor.name("the output's name")?;
                    cursor.space();
                    if self.graph.output(&name).is_some() {
                        return Err(Problem::at(column, format!("two outputs are called `{name}`")));
                    }
                    cursor.expect("=")?;
                    let value = self.operand(cursor)?;
                    self.graph.outputs.push((name.into(), value));
                }
                "update" => {
                    let column = cursor.column();
                    let input = self.operand(cursor)?;
                    cursor.expect("=")?;
                    let new = self.operand(cursor)?;
                    can_update(&self.graph, input, new).map_err(|m| Problem::at(column, m))?;
                    if !self.updated.insert(input) {
                        return Err(Problem::at(column, "updated a second time".into()));
                    }
                    self.graph.updates.push((input, new));
                }
                word => return Err(Problem::at_start(format!("`{word}` starts no line"))),
            }
        }
        if cursor.rest().is_empty() { Ok(()) } else { cursor.fail("expected the end of the line") }
    }

    fn node(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Problem> {
        if self.graph.node_count() >= MAX_NODES {
            return cursor.fail(format!("the graph has more than {MAX_NODES} nodes"));
        }
        let mut numbers: SmallVec<[u64; 2]> = SmallVec::new();
        let mut types: SmallVec<[Type; 2]> = SmallVec::new();
        loop {
            let column = cursor.column();
            let number = cursor.value()?;
            if self.values.contains_key(&number) || numbers.contains(&number) {
                return Err(Problem::at(column, format!("%{number} is defined twice")));
            }
            cursor.expect(":")?;
            numbers.push(number);
            types.push(cursor.ty()?);
            if !cursor.eat(",") {
                break;
            }
        }
        cursor.expect("=")?;
        let start = cursor.column();
        let here = |problem: Problem| Problem { column: problem.column.or(Some(start)), ..problem };
        let name = cursor.word("an operation")?;
        let argument = self.argument(name, cursor)?;
        let mut operands: SmallVec<[Value; 4]> = SmallVec::new();
        if cursor.rest().starts_with('%') {
            operands.push(self.operand(cursor)?);
            while cursor.eat(",") {
                operands.push(self.operand(cursor)?);
            }
        }
        let mut fields = cursor.fields()?;
        let op = build(name, argument, &mut fields, &types).map_err(here)?;
        fields.finish(name)?;
        let operand_types: SmallVec<[Type; 4]> = operands.iter().map(|v| self.graph.ty(*v).clone()).collect();
        let inferred = well_formed(&op).and_then(|()| infer(&op, &operand_types).map_err(|e| e.message));
        match inferred {
            Ok(inferred) if inferred == types => {}
            Ok(inferred) => {
                let all: Vec<String> = inferred.iter().map(Type::to_string).collect();
                return Err(Problem::at(start, format!("{name} gives {}", all.join(", "))));
            }
            Err(message) => return Err(Problem::at(start, message)),
        }
        let phase = if cursor.eat("@") {
            let column = cursor.column();
            let word = cursor.word("a phase")?;
            Phase::ALL
                .into_iter()
                .find(|p| p.name() == word)
                .ok_or_else(|| Problem::at(column, format!("`{word}` is no phase")))?
        } else {
            Phase::Forward
        };
        let site = self.site(cursor)?;
        let node = self.graph.push(op, operands, types, site, phase);
        self.values.extend(numbers.into_iter().zip(self.graph.node(node).outputs()));
        Ok(())
    }

    fn operand(&self, cursor: &mut Cursor<'_>) -> Result<Value, Problem> {
        let column = cursor.column();
        let number = cursor.value()?;
        let value = self.values.get(&number).copied();
        value.ok_or_else(|| Problem::at(column, format!("%{number} is not defined above")))
    }

    fn argument(&mut self, operation: &str, cursor: &mut Cursor<'_>) -> Result<Argument, Problem> {
        Ok(match operation {
            "input" => {
                let column = cursor.column();
                let word = cursor.word("a role")?;
                let Some(role) = Role::ALL.into_iter().find(|r| r.name() == word) else {
                    return Err(Problem::at(column, format!("`{word}` is no role")));
                };
                let column = cursor.column();
                let name: Arc<str> = cursor.name("the input's name")?.into();
                cursor.space();
                if !self.names.insert(name.clone()) {
                    return Err(Problem::at(column, format!("the name `{name}` is taken")));
                }
                Argument::Input(role, name)
            }
            "constant" => Argument::Constant(cursor.float()?),
            "size" => Argument::Size(cursor.dim()?),
            _ => Argument::None,
        })
    }

    fn site(&mut self, cursor: &mut Cursor<'_>) -> Result<SiteId, Problem> {
        let mut site = Site::default();
        if cursor.eat("//") {
            let number = |cursor: &mut Cursor<'_>| {
                let digits = cursor.take(|c| c.is_ascii_digit());
                digits.parse().or_else(|_| cursor.fail("expected a place such as my.star:31:12+6, or -"))
            };
            let file = cursor.name("a place such as my.star:31:12+6, or -")?;
            if cursor.rest().starts_with(':') {
                cursor.eat(":");
                site.line = number(cursor)?;
                cursor.expect(":")?;
                site.column = number(cursor)?;
                if cursor.rest().starts_with('+') {
                    cursor.eat("+");
                    site.length = number(cursor)?;
                }
                site.file = file.into();
            } else if file != "-" {
                return cursor.fail("expected a place such as my.star:31:12+6, or -");
            }
            cursor.space();
            if !cursor.rest().is_empty() {
                site.path = cursor.name("a scope path")?.into();
                cursor.space();
            }
        }
        Ok(self.graph.intern_site(&site))
    }
}
