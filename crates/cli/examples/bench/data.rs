//! Random samples, made before anything is timed.

use tenon::data::{Dataset, ElementType, Facts, Field, Split};
use tenon::train::objective::LABELS;

/// Random samples, ready to be copied.
pub struct Random {
    fields: Vec<Field>,
    facts: Facts,
    /// The bytes of each field, by sample.
    samples: Vec<Vec<Vec<u8>>>,
}

impl Random {
    fn new(fields: Vec<Field>, samples: u64, mut sample: impl FnMut() -> Vec<Vec<u8>>) -> Random {
        Random { fields, facts: Facts::default(), samples: (0..samples).map(|_| sample()).collect() }
    }

    /// Windows of random tokens, each labelled with the next.
    pub fn tokens(samples: u64, vocab: u64, length: usize) -> Random {
        let mut random = numbers();
        Random::new(vec![integers("input_ids", &[length]), integers(LABELS, &[length])], samples, move || {
            let tokens = draw(&mut random, vocab, length + 1);
            vec![tokens[..4 * length].to_vec(), tokens[4..].to_vec()]
        })
    }

    /// Sentences of random tokens and token types, each with a random class.
    pub fn sentences(samples: u64, vocab: u64, types: u64, length: usize, classes: u64) -> Random {
        let mut random = numbers();
        let tokens = ["input_ids", "token_type_ids"].map(|name| integers(name, &[length]));
        Random::new(tokens.into_iter().chain([integers(LABELS, &[])]).collect(), samples, move || {
            [(vocab, length), (types, length), (classes, 1)]
                .map(|(below, count)| draw(&mut random, below, count))
                .into()
        })
    }

    /// Random pixels with a random class.
    pub fn images(samples: u64, shape: [usize; 3], classes: u64) -> Random {
        let pixels = Field::new("pixel_values", ElementType::F32, &shape);
        let mut random = numbers();
        Random::new(vec![pixels, integers(LABELS, &[])], samples, move || {
            let pixels = (0..shape.iter().product()).map(|_| ((random() % 256) as f32 / 255.0).to_le_bytes());
            let pixels: Vec<[u8; 4]> = pixels.collect();
            vec![pixels.concat(), draw(&mut random, classes, 1)]
        })
    }
}

impl Dataset for Random {
    fn fields(&self) -> &[Field] {
        &self.fields
    }

    fn len(&self, _: Split) -> u64 {
        self.samples.len() as u64
    }

    fn write_sample(&self, _: Split, _: u64, index: u64, out: &mut [&mut [u8]]) {
        for (bytes, sample) in out.iter_mut().zip(&self.samples[index as usize]) {
            bytes.copy_from_slice(sample);
        }
    }

    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn checksum(&self) -> &str {
        "random"
    }
}

fn integers(name: &str, shape: &[usize]) -> Field {
    Field::new(name, ElementType::I32, shape)
}

/// The bytes of `count` random numbers below `below`, `i32`.
fn draw(random: &mut impl FnMut() -> u64, below: u64, count: usize) -> Vec<u8> {
    let numbers: Vec<[u8; 4]> = (0..count).map(|_| ((random() % below) as i32).to_le_bytes()).collect();
    numbers.concat()
}

/// Always the same 31-bit random numbers.
pub fn numbers() -> impl FnMut() -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state >> 33
    }
}
