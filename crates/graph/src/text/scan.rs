//! Reading one line of text form: a cursor over its characters, and the settings in braces.

use crate::dim::{Dim, Symbol};
use crate::op::Axes;
use crate::types::{DType, MAX_RANK, Shape, Type};

/// The largest size in text: far above any machine, and low enough that sums of sizes cannot overflow.
const MAX_SIZE: u64 = 1 << 40;
/// The largest of other counts, such as steps and windows.
const MAX_COUNT: usize = 1 << 20;

/// What is wrong, and at which column (from 1) if it is known.
#[derive(Debug)]
pub struct Problem {
    pub column: Option<usize>,
    pub message: String,
}

impl Problem {
    pub fn at(column: usize, message: String) -> Problem {
        Problem { column: Some(column), message }
    }

    /// At the start of what was read last.
    pub fn at_start(message: String) -> Problem {
        Problem { column: None, message }
    }
}

/// Whether names can have this character without quotes.
pub fn is_bare(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-')
}

/// A position in a line.
pub struct Cursor<'a> {
    line: &'a str,
    /// In bytes.
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(line: &'a str) -> Cursor<'a> {
        let mut cursor = Cursor { line, at: 0 };
        cursor.skip_space();
        cursor
    }

    pub fn rest(&self) -> &'a str {
        &self.line[self.at..]
    }

    /// The column from 1, in characters.
    pub fn column(&self) -> usize {
        self.line[..self.at].chars().count() + 1
    }

    pub fn fail<T>(&self, message: impl Into<String>) -> Result<T, Problem> {
        Err(Problem::at(self.column(), message.into()))
    }

    fn skip_space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start_matches([' ', '\t', '\r']).len();
    }

    /// Reads `token` and the space after it, if it comes next.
    pub fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
            self.skip_space();
        }
        found
    }

    pub fn expect(&mut self, token: &str) -> Result<(), Problem> {
        if self.eat(token) { Ok(()) } else { self.fail(format!("expected `{token}`")) }
    }

    /// Reads characters that fit, without the space after them.
    pub fn take(&mut self, fits: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !fits(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    /// Reads a word of letters, digits and underscores and the space after it.
    pub fn word(&mut self, what: &str) -> Result<&'a str, Problem> {
        let word = self.take(|c| c.is_ascii_alphanumeric() || c == '_');
        if word.is_empty() {
            return self.fail(format!("expected {what}"));
        }
        self.skip_space();
        Ok(word)
    }

    /// Reads a bare or quoted name, without the space after it.
    pub fn name(&mut self, what: &str) -> Result<String, Problem> {
        if !self.rest().starts_with('"') {
            let name = self.take(is_bare);
            return if name.is_empty() { self.fail(format!("expected {what}")) } else { Ok(name.into()) };
        }
        self.at += 1;
        let mut name = String::new();
        loop {
            name.push_str(self.take(|c| c != '"' && c != '\\'));
            let escape = self.rest();
            if escape.starts_with('"') {
                self.at += 1;
                return Ok(name);
            }
            let (length, c) = match escape.get(..2) {
                Some("\\\"") => (2, '"'),
                Some("\\\\") => (2, '\\'),
                Some("\\u") => match escape.find('}').and_then(|end| Some((end + 1, unicode(escape.get(3..end)?)?))) {
                    Some(found) => found,
                    None => return self.fail("expected \\u{hexadecimal}"),
                },
                Some(_) => return self.fail("unknown escape"),
                None => return self.fail(format!("{what} has no closing quote")),
            };
            self.at += length;
            name.push(c);
        }
    }

    /// Reads the space that may stand here.
    pub fn space(&mut self) {
        self.skip_space();
    }

    /// Reads `%` and a number.
    pub fn value(&mut self) -> Result<u64, Problem> {
        let start = self.at;
        if self.rest().starts_with('%') {
            self.at += 1;
            if let Ok(number) = self.take(|c| c.is_ascii_digit()).parse() {
                self.skip_space();
                return Ok(number);
            }
        }
        self.at = start;
        self.fail("expected a value such as %3")
    }

    /// Reads an element type and a shape.
    pub fn ty(&mut self) -> Result<Type, Problem> {
        let column = self.column();
        let word = self.word("a type such as f32[2, 3]")?;
        let Some(dtype) = DType::from_name(word) else {
            return Err(Problem::at(column, format!("`{word}` is no element type")));
        };
        self.expect("[")?;
        let mut dims: Vec<Dim> = Vec::new();
        while !self.eat("]") {
            if !dims.is_empty() {
                self.expect(",")?;
            }
            if dims.len() == MAX_RANK {
                return self.fail(format!("more than {MAX_RANK} axes"));
            }
            dims.push(self.dim()?);
        }
        Ok(Type::new(dtype, dims.into_iter().collect::<Shape>()))
    }

    /// Reads a size such as `4*b`.
    pub fn dim(&mut self) -> Result<Dim, Problem> {
        let column = self.column();
        let text = self.take(is_plain);
        self.skip_space();
        dim(column, text)
    }

    /// Reads a number.
    pub fn float(&mut self) -> Result<f64, Problem> {
        let column = self.column();
        let text = self.take(is_plain);
        self.skip_space();
        text.parse().map_err(|_| Problem::at(column, format!("`{text}` is no number")))
    }

    /// Reads the settings in braces, if there are any.
    pub fn fields(&mut self) -> Result<Fields<'a>, Problem> {
        let mut fields = Vec::new();
        if self.eat("{") {
            while !self.eat("}") {
                if !fields.is_empty() {
                    self.expect(",")?;
                }
                let column = self.column();
                let name = self.word("the name of a setting")?;
                self.expect(":")?;
                if fields.iter().any(|f: &Field<'_>| f.name == name) {
                    return Err(Problem::at(column, format!("`{name}` is set twice")));
                }
                fields.push(Field { column, name, raw: self.raw(2)? });
            }
        }
        Ok(Fields(fields))
    }

    fn raw(&mut self, depth: usize) -> Result<Raw<'a>, Problem> {
        let column = self.column();
        if depth > 0 && self.eat("[") {
            let mut items = Vec::new();
            while !self.eat("]") {
                if !items.is_empty() {
                    self.expect(",")?;
                }
                items.push(self.raw(depth - 1)?);
            }
            return Ok(Raw::List(column, items));
        }
        let text = self.take(is_plain);
        if text.is_empty() {
            return self.fail("expected a setting's value");
        }
        self.skip_space();
        Ok(Raw::Plain(column, text))
    }
}

fn unicode(hexadecimal: &str) -> Option<char> {
    char::from_u32(u32::from_str_radix(hexadecimal, 16).ok()?)
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '*' | '+' | '-')
}

fn dim(column: usize, text: &str) -> Result<Dim, Problem> {
    let mut size = Dim::ONE;
    for (i, factor) in text.split('*').enumerate() {
        let factor = match (factor.parse::<u64>(), Symbol::new(factor)) {
            (Ok(n), _) if n <= MAX_SIZE && i == 0 => Some(Dim::constant(n as usize)),
            (_, Some(symbol)) => Some(Dim::symbol(symbol)),
            _ => None,
        };
        match factor.and_then(|f| size.times(f)) {
            Some(product) => size = product,
            None => return Err(Problem::at(column, format!("`{text}` is no size such as 3, b or 2*b*t"))),
        }
    }
    Ok(size)
}

/// A setting's value before it is known what it should be.
enum Raw<'a> {
    Plain(usize, &'a str),
    List(usize, Vec<Raw<'a>>),
}

impl<'a> Raw<'a> {
    fn column(&self) -> usize {
        match self {
            Raw::Plain(column, _) | Raw::List(column, _) => *column,
        }
    }

    fn parse<T>(&self, what: &str, parse: impl Fn(&'a str) -> Option<T>) -> Result<T, Problem> {
        match self {
            Raw::Plain(column, text) => {
                parse(text).ok_or_else(|| Problem::at(*column, format!("`{text}` is not {what}")))
            }
            Raw::List(column, _) => Err(Problem::at(*column, format!("expected {what}, not a list"))),
        }
    }

    fn items(&self) -> Result<&[Raw<'a>], Problem> {
        match self {
            Raw::Plain(column, _) => Err(Problem::at(*column, "expected a list".into())),
            Raw::List(_, items) => Ok(items),
        }
    }

    fn count(&self) -> Result<usize, Problem> {
        let fits = |text: &str| text.parse().ok().filter(|n| *n <= MAX_COUNT);
        self.parse(&format!("a whole number up to {MAX_COUNT}"), fits)
    }

    fn counts(&self) -> Result<Axes, Problem> {
        self.items()?.iter().map(Raw::count).collect()
    }
}

struct Field<'a> {
    column: usize,
    name: &'a str,
    raw: Raw<'a>,
}

/// The settings of one operation; what has been read is gone.
pub struct Fields<'a>(Vec<Field<'a>>);

impl<'a> Fields<'a> {
    fn optional(&mut self, name: &str) -> Option<Raw<'a>> {
        let at = self.0.iter().position(|f| f.name == name)?;
        Some(self.0.remove(at).raw)
    }

    fn required(&mut self, name: &str) -> Result<Raw<'a>, Problem> {
        self.optional(name).ok_or_else(|| Problem::at_start(format!("the setting `{name}` is missing")))
    }

    fn or<T>(
        &mut self,
        name: &str,
        default: T,
        what: &str,
        parse: impl Fn(&'a str) -> Option<T>,
    ) -> Result<T, Problem> {
        self.optional(name).map_or(Ok(default), |raw| raw.parse(what, parse))
    }

    pub fn count(&mut self, name: &str) -> Result<usize, Problem> {
        self.required(name)?.count()
    }

    pub fn count_or(&mut self, name: &str, default: usize) -> Result<usize, Problem> {
        self.optional(name).map_or(Ok(default), |raw| raw.count())
    }

    pub fn counts(&mut self, name: &str) -> Result<Axes, Problem> {
        self.required(name)?.counts()
    }

    /// Lists of counts, each with its column.
    pub fn rows(&mut self, name: &str) -> Result<Vec<(usize, Axes)>, Problem> {
        self.required(name)?.items()?.iter().map(|row| Ok((row.column(), row.counts()?))).collect()
    }

    pub fn size(&mut self, name: &str) -> Result<Dim, Problem> {
        let raw = self.required(name)?;
        dim(raw.column(), raw.parse("a size", Some)?)
    }

    pub fn size_or(&mut self, name: &str, default: Dim) -> Result<Dim, Problem> {
        self.optional(name).map_or(Ok(default), |raw| dim(raw.column(), raw.parse("a size", Some)?))
    }

    pub fn stream(&mut self, name: &str) -> Result<u32, Problem> {
        self.required(name)?.parse("a whole number below 2^32", |text| text.parse().ok())
    }

    pub fn int_or(&mut self, name: &str, default: i64) -> Result<i64, Problem> {
        self.or(name, default, "a whole number", |text| text.parse().ok())
    }

    pub fn float_or(&mut self, name: &str, default: f64) -> Result<f64, Problem> {
        self.or(name, default, "a number", |text| text.parse().ok())
    }

    pub fn bool_or(&mut self, name: &str, default: bool) -> Result<bool, Problem> {
        self.or(name, default, "true or false", |text| text.parse().ok())
    }

    pub fn flag(&mut self, name: &str) -> Result<bool, Problem> {
        self.bool_or(name, false)
    }

    pub fn word<T>(&mut self, name: &str, known: impl Fn(&str) -> Option<T>) -> Result<T, Problem> {
        self.required(name)?.parse("known here", known)
    }

    pub fn word_or<T>(&mut self, name: &str, known: impl Fn(&str) -> Option<T>, default: T) -> Result<T, Problem> {
        self.or(name, default, "known here", known)
    }

    /// An error if a setting has not been read.
    pub fn finish(self, operation: &str) -> Result<(), Problem> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some(field) => Err(Problem::at(field.column, format!("{operation} has no setting `{}`", field.name))),
        }
    }
}
