//! Text generation: a prompt is read in chunks, then one token follows another; keys and values are kept in caches.

use std::sync::Arc;

use tenon_graph::backend::{Allocation, Backend, Session};
use tenon_graph::dim::Bindings;
use tenon_graph::graph::Graph;
use tenon_graph::lower::Program;
use tenon_graph::op::Role;
use tenon_graph::passes::mode::{POSITION, for_decoding};
use tenon_graph::passes::pipeline::{Options, compile};
use tenon_graph::passes::precision::{bf16_weights, mixed_bf16};
use tenon_graph::random::random_bits;
use tenon_graph::types::DType;

use crate::error::ModelError;
use crate::model::{Input, Model};

/// The numbers of tokens that a prompt is read by: few steps between them, so that little is read in vain.
const CHUNKS: [usize; 4] = [512, 128, 32, 8];

/// How the next token is chosen.
#[derive(Clone, PartialEq, Debug)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the likeliest token.
    pub temperature: f64,
    /// Only so many of the likeliest tokens are considered.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together have this probability are considered (Holtzman et al. 2020).
    pub top_p: Option<f64>,
    /// The seed: the draw of each place is a pure function of it and the place.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling { temperature: 1.0, top_k: None, top_p: None, seed: 0 }
    }
}

impl Sampling {
    /// The token at `place` of the text, given the logits of all tokens.
    pub fn choose(&self, logits: &[f32], place: usize) -> usize {
        // Equal logits stay in the order of tokens, so that the choice is reproducible.
        let order = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
        let numbers = (0..logits.len()).filter(|i| !logits[*i].is_nan());
        if self.temperature == 0.0 {
            return numbers.min_by(order).unwrap_or(0);
        }
        let mut likely: Vec<usize> = numbers.collect();
        if let Some(top_k) = self.top_k.map(|k| k.max(1)).filter(|k| *k < likely.len()) {
            likely.select_nth_unstable_by(top_k, order);
            likely.truncate(top_k);
        }
        likely.sort_unstable_by(order);
        let Some(&likeliest) = likely.first() else { return 0 };
        let top = f64::from(logits[likeliest]);
        let weight = |i: &usize| ((f64::from(logits[*i]) - top) / self.temperature).exp();
        let weights: Vec<f64> = likely.iter().map(weight).collect();
        let total: f64 = weights.iter().sum();
        let mut kept = weights.len();
        if let Some(top_p) = self.top_p {
            let mut sum = 0.0;
            let enough = weights.iter().position(|w| {
                sum += w / total;
                sum >= top_p
            });
            kept = enough.map_or(kept, |last| last + 1);
        }
        let total: f64 = weights[..kept].iter().sum();
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let uniform = f64::from(random_bits(key, 0, place as u64)) / 2f64.powi(32);
        let mut left = uniform * total;
        let drawn = weights[..kept].iter().position(|w| {
            left -= w;
            left < 0.0
        });
        likely[drawn.unwrap_or(kept - 1)]
    }
}

/// A model that continues a text.
pub struct Generator {
    session: Box<dyn Session>,
    /// The name of the input of tokens.
    tokens: String,
    /// Tokens of each program but the last, which reads one and gives logits.
    chunks: Vec<usize>,
    capacity: usize,
    length: usize,
}

/// The programs of generation: prompt chunks without results, then one token with logits. In `bf16`, matrices, keys and
/// values are stored in bf16, products take bf16, and all sums are f32.
///
/// # Errors
/// A model that is no decoder, or a capacity beyond its limits.
pub fn programs(model: &Model, capacity: usize, bf16: bool) -> Result<(Vec<Arc<Program>>, Vec<usize>), ModelError> {
    let input = tokens_input(model)?;
    let mut graph = model.graph.clone();
    graph.outputs.retain(|(name, _)| &**name == "logits");
    if graph.outputs.is_empty() {
        return Err(ModelError::new(format!("{model} cannot generate: it has no output named `logits`")));
    }
    // Before the mode: the caches have the type of the keys and values that they keep.
    let narrow = bf16.then(|| mixed_bf16(&bf16_weights(&graph)?)).transpose().map_err(ModelError::from)?;
    let graph = for_decoding(narrow.as_ref().unwrap_or(&graph), capacity).map_err(ModelError::from)?;
    let mut silent = graph.clone();
    silent.outputs.clear();
    let chunks: Vec<usize> = CHUNKS.into_iter().filter(|n| *n <= capacity).collect();
    let mut programs = Vec::new();
    for (graph, tokens) in chunks.iter().map(|n| (&silent, *n)).chain([(&graph, 1)]) {
        programs.push(Arc::new(program(model, input, graph, tokens, capacity)?));
    }
    Ok((programs, chunks))
}

fn tokens_input(model: &Model) -> Result<&Input, ModelError> {
    match model.inputs.as_slice() {
        [input] if input.dtype == DType::I32 && input.shape.rank() == 2 => Ok(input),
        inputs => {
            let names: Vec<&str> = inputs.iter().map(|i| i.name.as_str()).collect();
            let message = format!("{model} cannot generate: it takes {}, not one input of tokens", names.join(", "));
            Err(ModelError::new(message))
        }
    }
}

fn program(model: &Model, input: &Input, graph: &Graph, tokens: usize, capacity: usize) -> Result<Program, ModelError> {
    let bind = |length: usize| {
        let mut bindings = Bindings::new();
        for (dim, size) in input.shape.iter().zip([1, length]) {
            bindings.extend(dim.symbols().map(|symbol| (symbol, size)));
        }
        bindings
    };
    model.check(&bind(capacity))?;
    let options = Options { bindings: bind(tokens), ..Options::default() };
    compile(graph, &options).map_err(ModelError::from)
}

impl Generator {
    /// Allocates caches of `capacity` tokens and takes the values of the model's variables, in the order of
    /// [`Model::variables`]; for `bf16` see [`programs`].
    ///
    /// # Errors
    /// A model that is no decoder, a capacity beyond its limits, or no memory.
    pub fn new<V: AsRef<[f32]>>(
        model: &Model,
        values: &[V],
        backend: &dyn Backend,
        capacity: usize,
        bf16: bool,
    ) -> Result<Generator, ModelError> {
        let (programs, chunks) = programs(model, capacity, bf16)?;
        let mut session = backend.session(programs).map_err(ModelError::from)?;
        crate::forward::set_variables(&mut *session, model, values);
        Ok(Generator { session, tokens: tokens_input(model)?.name.clone(), chunks, capacity, length: 0 })
    }

    /// The tokens so far.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether no token has been read yet.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The tokens that the caches can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// What was allocated; [`Role::Cache`] has the caches.
    pub fn allocation(&self) -> &Allocation {
        self.session.allocation()
    }

    /// Bytes of the caches.
    pub fn cache_bytes(&self) -> usize {
        self.allocation().of_role(Role::Cache)
    }

    /// Forgets the text.
    pub fn clear(&mut self) {
        self.length = 0;
    }

    /// Reads more of the text and returns the logits of the token that follows it.
    ///
    /// # Errors
    /// More tokens than the caches hold, none at all, or a token outside the vocabulary.
    pub fn read(&mut self, tokens: &[u32]) -> Result<Vec<f32>, ModelError> {
        if tokens.is_empty() {
            return Err(ModelError::new("generate: no token to go on from").help("give a prompt"));
        }
        if self.length + tokens.len() > self.capacity {
            let message = format!(
                "sequence longer than context: {} tokens and {} more, the caches hold {}",
                self.length,
                tokens.len(),
                self.capacity
            );
            return Err(ModelError::new(message));
        }
        let last = self.chunks.len();
        let mut rest = &tokens[..tokens.len() - 1];
        while !rest.is_empty() {
            let program = chunk_of(&self.chunks, rest.len(), self.capacity - self.length).unwrap_or(last);
            let now = self.chunks.get(program).map_or(1, |chunk| rest.len().min(*chunk));
            self.run(program, &rest[..now])?;
            rest = &rest[now..];
        }
        self.run(last, &tokens[tokens.len() - 1..])?;
        let (_, bytes) = self.session.output(last, "logits").expect("the last program gives logits");
        Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// Continues `prompt` by up to `count` tokens, as far as the caches reach, and returns prompt and continuation.
    /// `each` sees every new token and says whether to go on.
    ///
    /// # Errors
    /// As [`Generator::read`].
    pub fn generate(
        &mut self,
        prompt: &[u32],
        count: usize,
        sampling: &Sampling,
        mut each: impl FnMut(u32) -> bool,
    ) -> Result<Vec<u32>, ModelError> {
        let mut text = prompt.to_vec();
        let mut unread = 0;
        for _ in 0..count {
            let logits = self.read(&text[unread..])?;
            unread = text.len();
            let token = sampling.choose(&logits, text.len()) as u32;
            text.push(token);
            if !each(token) || text.len() > self.capacity {
                break;
            }
        }
        Ok(text)
    }

    /// Reads tokens with a program for at least as many. The places that are left take the last token again: no token
    /// sees what comes after it, and the next ones take their place in the caches.
    fn run(&mut self, program: usize, tokens: &[u32]) -> Result<(), ModelError> {
        let ids = self.session.input_mut(&self.tokens).expect("every program has the input of tokens");
        let padding = std::iter::repeat(tokens.last().expect("no program reads nothing"));
        for (bytes, token) in ids.chunks_exact_mut(4).zip(tokens.iter().chain(padding)) {
            bytes.copy_from_slice(&token.to_le_bytes());
        }
        // A model without positions or attention needs none.
        if let Some(position) = self.session.input_mut(POSITION) {
            position.copy_from_slice(&(self.length as u32).to_le_bytes());
        }
        self.session.run(program).map_err(ModelError::from)?;
        self.length += tokens.len();
        Ok(())
    }
}

/// Which of the chunks, the largest first, reads the next of `rest` tokens where the caches have `room`: the smallest that
/// takes all of them if that fills most of it, or the largest that they fill. The smallest may be read for two tokens: a few
/// take hardly longer than one, since all weights are read. `None` is one token at a time.
fn chunk_of(chunks: &[usize], rest: usize, room: usize) -> Option<usize> {
    let smallest = chunks.len().checked_sub(1)?;
    let fits = |i: &usize| chunks[*i] <= room;
    let holds = (0..chunks.len()).rev().find(|i| chunks[*i] >= rest).filter(fits);
    let mostly = |i: &usize| if *i == smallest { rest > 1 } else { 4 * rest > 3 * chunks[*i] };
    holds.filter(mostly).or_else(|| (0..chunks.len()).find(|i| chunks[*i] <= rest && fits(i)))
}

#[cfg(test)]
#[path = "generate_tests.rs"]
mod tests;
