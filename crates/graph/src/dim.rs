//! Sizes: constants and products of named symbols such as `b` and `t`.

use std::collections::BTreeMap;
use std::fmt;

/// The most symbols that one size may multiply.
const MAX_SYMBOLS: usize = 3;

/// A named size: one to eight ASCII letters, digits or underscores, the first a letter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Symbol([u8; 8]);

impl Symbol {
    /// Makes a symbol, or `None` if `name` is not one.
    pub fn new(name: &str) -> Option<Symbol> {
        let bytes = name.as_bytes();
        let valid = (1..=8).contains(&bytes.len())
            && bytes[0].is_ascii_alphabetic()
            && bytes.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'_');
        valid.then(|| {
            let mut inline = [0; 8];
            inline[..bytes.len()].copy_from_slice(bytes);
            Symbol(inline)
        })
    }

    /// The name.
    pub fn name(&self) -> &str {
        let end = self.0.iter().position(|c| *c == 0).unwrap_or(8);
        std::str::from_utf8(&self.0[..end]).expect("symbols are ASCII")
    }
}

impl fmt::Debug for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the symbols of a graph stand for in one program.
pub type Bindings = BTreeMap<Symbol, usize>;

/// A size: `factor` times a product of at most three symbols.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dim {
    factor: u64,
    /// Sorted, the absent ones last; a symbol may stand twice.
    symbols: [Option<Symbol>; MAX_SYMBOLS],
}

impl Dim {
    /// The size one.
    pub const ONE: Dim = Dim::constant(1);

    /// A size known now.
    pub const fn constant(n: usize) -> Dim {
        Dim { factor: n as u64, symbols: [None; MAX_SYMBOLS] }
    }

    /// A size known when the graph is bound.
    pub const fn symbol(symbol: Symbol) -> Dim {
        Dim { factor: 1, symbols: [Some(symbol), None, None] }
    }

    /// The size as a number if it has no symbols.
    pub fn as_const(&self) -> Option<usize> {
        self.symbols[0].is_none().then_some(self.factor as usize)
    }

    /// The symbols in this size, in order.
    pub fn symbols(&self) -> impl Iterator<Item = Symbol> + '_ {
        self.symbols.iter().flatten().copied()
    }

    /// The product, or `None` if it overflows or has too many symbols.
    pub fn times(self, other: Dim) -> Option<Dim> {
        let factor = self.factor.checked_mul(other.factor)?;
        if factor == 0 {
            return Some(Dim::constant(0));
        }
        let mut all: Vec<Symbol> = self.symbols().chain(other.symbols()).collect();
        if all.len() > MAX_SYMBOLS {
            return None;
        }
        all.sort();
        let mut symbols = [None; MAX_SYMBOLS];
        for (slot, symbol) in symbols.iter_mut().zip(all) {
            *slot = Some(symbol);
        }
        Some(Dim { factor, symbols })
    }

    /// The exact quotient, or `None` if there is a remainder.
    pub fn over(self, other: Dim) -> Option<Dim> {
        if other.factor == 0 || !self.factor.is_multiple_of(other.factor) {
            return None;
        }
        let mut rest: Vec<Symbol> = self.symbols().collect();
        for symbol in other.symbols() {
            let at = rest.iter().position(|s| *s == symbol)?;
            rest.remove(at);
        }
        let mut symbols = [None; MAX_SYMBOLS];
        for (slot, symbol) in symbols.iter_mut().zip(rest) {
            *slot = Some(symbol);
        }
        Some(Dim { factor: self.factor / other.factor, symbols })
    }

    /// The sum, or `None` if the two do not share their symbols.
    pub fn plus(self, other: Dim) -> Option<Dim> {
        match (self.factor, other.factor) {
            (0, _) => Some(other),
            (_, 0) => Some(self),
            (a, b) if self.symbols == other.symbols => Some(Dim { factor: a.checked_add(b)?, symbols: self.symbols }),
            _ => None,
        }
    }

    /// The size under `bindings`; the first symbol without a value otherwise.
    pub fn bind(&self, bindings: &Bindings) -> Result<usize, Symbol> {
        self.symbols().try_fold(self.factor as usize, |product, symbol| {
            let value = bindings.get(&symbol).ok_or(symbol)?;
            Ok(product * value)
        })
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Dim {
        Dim::constant(n)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.factor != 1 || self.symbols[0].is_none() {
            write!(f, "{}", self.factor)?;
            if self.symbols[0].is_some() {
                f.write_str("*")?;
            }
        }
        for (i, symbol) in self.symbols().enumerate() {
            write!(f, "{}{}", if i > 0 { "*" } else { "" }, symbol.name())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
