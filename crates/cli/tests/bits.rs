//! The same bits: for every number of threads and every instruction set, in f32 and in bf16.

mod common;

use common::{GPT, Lab, checksum_after, recipe};
use tenon::cpu::CpuBackend;
use tenon::cpu::isa::{Cpu, Isa};

#[test]
fn fifty_steps_give_the_same_weights_on_any_threads_and_instruction_set() {
    let lab = Lab::new("bits");
    let gpt = lab.write("gpt.toml", GPT);
    // Sizes that no vector and no tile divides.
    let odd = ["model.width=36", "model.heads=3", "train.batch=5", "model.context=29", "model.rate=0.1"];
    let mlp = ["model.hidden=[37]", "model.rate=0.1", "train.batch=33"];
    let models = [("gpt", &gpt, &odd[..]), ("mlp", &recipe("digits.toml"), &mlp[..])];
    for (name, experiment, set) in models {
        for precision in ["f32", "bf16"] {
            let precision = format!("train.precision=\"{precision}\"");
            let set: Vec<&str> = set.iter().copied().chain([&*precision]).collect();
            let setup = lab.setup(experiment, &set);
            let at = |threads: usize, isa: Isa| {
                checksum_after(&setup, 50, &CpuBackend::with(Cpu::with_isa(threads, isa).unwrap()))
            };
            let best = Isa::detect().unwrap();
            let expected = at(1, best);
            for threads in [2, 3] {
                assert_eq!(at(threads, best), expected, "{name}, {precision}, {threads} threads");
            }
            for isa in Isa::supported().into_iter().filter(|isa| *isa != best) {
                assert_eq!(at(2, isa), expected, "{name}, {precision}, {}", isa.name());
            }
        }
    }
}
