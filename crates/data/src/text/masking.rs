//! Which tokens of a masked language model's text are to be guessed (Devlin et al. 2019): 15 % of those that are not special,
//! of which 80 % become the mask, 10 % another token, and 10 % stay.

use std::collections::HashSet;

use tokenizers::Tokenizer;

use super::tokenizer::{MASK, token_named};
use crate::dataset::{IGNORED_LABEL, Split};
use crate::error::DataError;
use crate::order::{Stream, random, random_below};

/// The share of tokens that are to be guessed.
const CHOSEN: f64 = 0.15;
/// The share of these that become the mask, and that become the mask or another token.
const MASKED: f64 = 0.8;
const CHANGED: f64 = 0.9;

/// Masks tokens: a function of (seed, epoch, the token's place in the data); the held-out part has one mask for all epochs
/// and seeds.
pub(crate) struct Masking {
    mask: u32,
    special: HashSet<u32>,
    /// The tokens that are not special, ascending.
    ordinary: Vec<u32>,
    seed: u64,
}

impl Masking {
    pub fn new(tokenizer: &Tokenizer, seed: u64) -> Result<Masking, DataError> {
        let Some(mask) = token_named(tokenizer, &[MASK, "<mask>"]) else {
            return Err(DataError::setting(
                "data.tokenizer",
                format!("the tokenizer has no token {MASK} or <mask>, which stands for what is to be guessed"),
                "a tokenizer of a masked model, or tokenizer = { kind = \"bpe\", vocab = 8192 }",
            ));
        };
        let added = tokenizer.get_added_tokens_decoder().into_iter();
        let special: HashSet<u32> = added.filter_map(|(token, added)| added.special.then_some(token)).collect();
        let tokens = tokenizer.get_vocab(true).into_values();
        let mut ordinary: Vec<u32> = tokens.filter(|token| !special.contains(token)).collect();
        ordinary.sort_unstable();
        Ok(Masking { mask, special, ordinary, seed })
    }

    /// Decides all masks of a part of the data in an epoch.
    pub fn key(&self, split: Split, epoch: u64) -> u64 {
        match split {
            Split::Train => random(self.seed, Stream::Mask, epoch + 1),
            Split::Validation => 0,
        }
    }

    /// Masks the tokens in `ids` [t], which stand at `place` and after it in the data, and writes to `labels` [t] the tokens
    /// that are to be guessed; both i32, little endian.
    pub fn apply(&self, key: u64, place: u64, ids: &mut [u8], labels: &mut [u8]) {
        let words = ids.as_chunks_mut::<4>().0.iter_mut().zip(labels.as_chunks_mut::<4>().0);
        for (place, (id, label)) in (place..).zip(words) {
            let token = u32::from_le_bytes(*id);
            let (shown, chosen) = self.shown(key, place, token);
            *id = shown.to_le_bytes();
            *label = if chosen { token.to_le_bytes() } else { IGNORED_LABEL.to_le_bytes() };
        }
    }

    /// What the model sees of a token, and whether it is to be guessed.
    fn shown(&self, key: u64, place: u64, token: u32) -> (u32, bool) {
        let bits = random(key, Stream::Mask, place);
        let share = |bits: u64| (bits & 0xffff_ffff) as f64 / 4_294_967_296.0;
        if share(bits) >= CHOSEN || self.special.contains(&token) {
            return (token, false);
        }
        let how = share(bits >> 32);
        let shown = if how < MASKED {
            self.mask
        } else if how < CHANGED {
            self.ordinary[random_below(bits, Stream::Mask, place, self.ordinary.len() as u64) as usize]
        } else {
            token
        };
        (shown, true)
    }
}
