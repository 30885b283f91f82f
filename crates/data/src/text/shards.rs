//! Token shards: all tokens of a text, with the tokenizer that made them, in one checksummed, memory-mapped file.
//!
//! | bytes | what (little endian) |
//! |---|---|
//! | 0..8 | magic `TENONTOK` |
//! | 8..12 | format version |
//! | 12..16 | bytes of a token: 2 if the vocabulary has at most 65,536 tokens, else 4 |
//! | 16..24 | vocabulary size |
//! | 24..40 | tokens to train, tokens held out |
//! | 40..56 | source bytes to train, source bytes held out |
//! | 56..72 | unknown tokens to train, unknown tokens held out |
//! | 72..80 | 1 if decoding restored the text that was checked, else 0 |
//! | 80..88 | bytes of `tokenizer.json` |
//! | 88..120 | key: blake3 of source contents, settings and format version |
//! | 120..152 | blake3 of everything after the header |
//! | 152..184 | blake3 of the bytes before this |
//! | 184.. | `tokenizer.json`, zeros up to a multiple of 8, tokens to train, tokens held out |

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use memmap2::Mmap;

use crate::dataset::Split;
use crate::error::DataError;

pub(crate) const FORMAT_VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"TENONTOK";
const HEADER: usize = 184;
const SUM_AT: usize = HEADER - 32;

/// A count for each split.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PerSplit {
    pub train: u64,
    pub validation: u64,
}

impl PerSplit {
    pub fn of(&self, split: Split) -> u64 {
        match split {
            Split::Train => self.train,
            Split::Validation => self.validation,
        }
    }

    pub fn of_mut(&mut self, split: Split) -> &mut u64 {
        match split {
            Split::Train => &mut self.train,
            Split::Validation => &mut self.validation,
        }
    }
}

/// What the header says besides sums and sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShardFacts {
    pub key: [u8; 32],
    pub vocab: u64,
    pub tokens: PerSplit,
    pub bytes: PerSplit,
    pub unknown: PerSplit,
    pub lossless: bool,
}

/// An open shard file, its checksums verified.
pub(crate) struct Shards {
    map: Mmap,
    pub facts: ShardFacts,
    token_bytes: usize,
    json: std::ops::Range<usize>,
    payload: usize,
    /// The header's own checksum, which covers everything else in the file.
    pub checksum: [u8; 32],
}

impl Shards {
    /// Opens and verifies `path`. `Err` says why the file is not usable, in words that follow its name.
    pub fn open(path: &Path, key: &[u8; 32]) -> Result<Shards, String> {
        let file = File::open(path).map_err(|e| format!("cannot be opened: {e}"))?;
        // SAFETY: the mapping is read only. The file is ours: it is never changed in place, only replaced by a rename, which
        // leaves the mapped one as it is. Bytes are read as bytes, so no value of theirs is invalid.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| format!("cannot be mapped: {e}"))?;
        let header: &[u8; HEADER] =
            map.first_chunk().ok_or_else(|| format!("is truncated: {} bytes of a header of {HEADER}", map.len()))?;
        if header[..8] != MAGIC {
            return Err("is not a token shard".to_owned());
        }
        let version = u32_at(header, 8);
        if version != FORMAT_VERSION {
            return Err(format!("has format version {version}, not {FORMAT_VERSION}"));
        }
        if *blake3::hash(&header[..SUM_AT]).as_bytes() != header[SUM_AT..] {
            return Err("has a damaged header".to_owned());
        }
        let facts = ShardFacts {
            key: bytes_at(header, 88),
            vocab: u64_at(header, 16),
            tokens: pair_at(header, 24),
            bytes: pair_at(header, 40),
            unknown: pair_at(header, 56),
            lossless: u64_at(header, 72) != 0,
        };
        if facts.key != *key {
            return Err("was made from other sources or settings".to_owned());
        }
        let token_bytes = u32_at(header, 12) as usize;
        let json_bytes = u64_at(header, 80);
        let sizes = payload_size(facts.tokens, token_bytes as u64)
            .zip(json_bytes.checked_next_multiple_of(8))
            .and_then(|(tokens, json)| Some((json, json.checked_add(tokens)?)));
        let (padded, rest) = sizes.ok_or("has impossible sizes")?;
        if rest != (map.len() - HEADER) as u64 || token_bytes != token_size(facts.vocab) {
            return Err(format!("is truncated: {} bytes after the header, {rest} expected", map.len() - HEADER));
        }
        if *blake3::hash(&map[HEADER..]).as_bytes() != header[120..SUM_AT] {
            return Err("is damaged: its checksum does not match".to_owned());
        }
        Ok(Shards {
            facts,
            token_bytes,
            json: HEADER..HEADER + json_bytes as usize,
            payload: HEADER + padded as usize,
            checksum: bytes_at(header, SUM_AT),
            map,
        })
    }

    /// The text of the `tokenizer.json` that made the tokens.
    pub fn tokenizer_json(&self) -> &[u8] {
        &self.map[self.json.clone()]
    }

    /// Tokens `start..` in file order (training, then held out) as little-endian i32, as many as `out` has room for.
    pub fn copy_tokens(&self, start: u64, out: &mut [u8]) {
        let at = self.payload + start as usize * self.token_bytes;
        let tokens = &self.map[at..at + out.len() / 4 * self.token_bytes];
        let pairs = out.chunks_exact_mut(4).zip(tokens.chunks_exact(self.token_bytes));
        for (to, from) in pairs {
            to[..from.len()].copy_from_slice(from);
            to[from.len()..].fill(0);
        }
    }
}

/// Writes a shard file: tokens first, in file order, then the header that they add up to.
pub(crate) struct ShardWriter<'a> {
    out: BufWriter<&'a mut File>,
    path: &'a Path,
    hasher: blake3::Hasher,
    token_bytes: usize,
    json_bytes: usize,
    facts: ShardFacts,
    scratch: Vec<u8>,
}

impl<'a> ShardWriter<'a> {
    /// Starts a file; `path` is for messages.
    pub fn new(
        file: &'a mut File,
        path: &'a Path,
        key: [u8; 32],
        vocab: usize,
        tokenizer_json: &str,
    ) -> Result<Self, DataError> {
        let mut writer = ShardWriter {
            out: BufWriter::with_capacity(1 << 16, file),
            path,
            hasher: blake3::Hasher::new(),
            token_bytes: token_size(vocab as u64),
            json_bytes: tokenizer_json.len(),
            facts: ShardFacts {
                key,
                vocab: vocab as u64,
                tokens: PerSplit::default(),
                bytes: PerSplit::default(),
                unknown: PerSplit::default(),
                lossless: true,
            },
            scratch: Vec::new(),
        };
        writer.out.write_all(&[0; HEADER]).map_err(DataError::io("write", path))?;
        let padding = tokenizer_json.len().next_multiple_of(8) - tokenizer_json.len();
        writer.write(tokenizer_json.as_bytes())?;
        writer.write(&[0; 8][..padding])?;
        Ok(writer)
    }

    /// What the header will say, to be counted up by the caller, tokens excepted.
    pub fn facts(&mut self) -> &mut ShardFacts {
        &mut self.facts
    }

    /// Appends tokens. All training tokens come before all held-out ones.
    pub fn push(&mut self, split: Split, tokens: &[u32]) -> Result<(), DataError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        for token in tokens {
            scratch.extend_from_slice(&token.to_le_bytes()[..self.token_bytes]);
        }
        *self.facts.tokens.of_mut(split) += tokens.len() as u64;
        self.write(&scratch)?;
        self.scratch = scratch;
        Ok(())
    }

    /// Writes the header.
    pub fn finish(mut self) -> Result<(), DataError> {
        let facts = &self.facts;
        let mut header = Vec::with_capacity(HEADER);
        header.extend(MAGIC);
        header.extend(FORMAT_VERSION.to_le_bytes());
        header.extend((self.token_bytes as u32).to_le_bytes());
        let numbers = [
            facts.vocab,
            facts.tokens.train,
            facts.tokens.validation,
            facts.bytes.train,
            facts.bytes.validation,
            facts.unknown.train,
            facts.unknown.validation,
            u64::from(facts.lossless),
            self.json_bytes as u64,
        ];
        for number in numbers {
            header.extend(number.to_le_bytes());
        }
        header.extend(facts.key);
        header.extend(self.hasher.finalize().as_bytes());
        header.extend(*blake3::hash(&header).as_bytes());
        self.out
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.out.write_all(&header))
            .and_then(|()| self.out.flush())
            .map_err(DataError::io("write", self.path))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        self.hasher.update(bytes);
        self.out.write_all(bytes).map_err(DataError::io("write", self.path))
    }
}

fn token_size(vocab: u64) -> usize {
    if vocab <= 1 << 16 { 2 } else { 4 }
}

fn payload_size(tokens: PerSplit, token_bytes: u64) -> Option<u64> {
    tokens.train.checked_add(tokens.validation)?.checked_mul(token_bytes)
}

fn bytes_at<const N: usize>(header: &[u8; HEADER], at: usize) -> [u8; N] {
    std::array::from_fn(|i| header[at + i])
}

fn u32_at(header: &[u8; HEADER], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(header, at))
}

fn u64_at(header: &[u8; HEADER], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(header, at))
}

fn pair_at(header: &[u8; HEADER], at: usize) -> PerSplit {
    PerSplit { train: u64_at(header, at), validation: u64_at(header, at + 8) }
}
