//! Mixup and CutMix through a whole run: the loss is that of two weighted classes, and resumed runs end with the same bytes.

mod common;

use common::{Lab, Numbers, backend, checksum_after, trainer};
use tenon::cpu::CpuBackend;
use tenon::data::{Split, fill_batch};
use tenon::nn::forward::{NamedTensor, Values, forward};
use tenon::nn::initialise;

const MIXED: &str = r#"
[data]
images = { csv = "dots.csv", label = "last", header = false, shape = [1, 4, 5], augment = { flip = true, mixup = { alpha = 0.4 }, cutmix = { alpha = 1.0 } } }
validation = { last = 0.25 }

[model]
architecture = "mlp"
hidden = [16]

[train]
steps = 12
batch = 5
optimizer = { kind = "adamw", lr = 1e-2 }
log_every = 1
evaluate_every = 4
"#;

/// Images of three classes, 21 of them to train on, so that batches straddle epochs.
fn lab(name: &str) -> Lab {
    let lab = Lab::new(name);
    let mut numbers = Numbers(11);
    let row = |i: u64| {
        let pixels: Vec<String> = (0..20).map(|_| numbers.below(256).to_string()).collect();
        format!("{},{}\n", pixels.join(","), i % 3)
    };
    lab.write("dots.csv", (0..28).map(row).collect::<String>());
    lab.write("mixed.toml", MIXED);
    lab
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// The loss of a step of these batches by its definition: cross-entropy with the mixture of the two classes.
fn expected(setup: &tenon::train::setup::Setup, batches: u64, smoothing: f64, backend: &CpuBackend) -> f64 {
    let (mut loss, mut all, size) = (0.0, 0.0, 5);
    let values: Vec<Vec<f32>> = setup.model.variables().map(|v| initialise(v, setup.experiment.train.seed)).collect();
    for batch in 0..batches {
        let fields = setup.data.fields();
        let mut buffers: Vec<Vec<u8>> = fields.iter().map(|field| vec![0; field.bytes() * size]).collect();
        let mut parts: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
        fill_batch(&*setup.data, Split::Train, batch * size as u64, size, &mut parts);
        let of = |name: &str| &*buffers[fields.iter().position(|field| field.name == name).unwrap()];
        let pixels = Values::Float(floats(of("pixel_values")));
        let input = NamedTensor { name: "pixel_values".into(), shape: vec![size, 1, 4, 5], values: pixels };
        let outputs = forward(&setup.model, &values, &[input], backend).unwrap_or_else(|e| panic!("{e}"));
        let Values::Float(logits) = &outputs.iter().find(|t| t.name == "logits").unwrap().values else {
            panic!("logits are floats")
        };
        for (labels, weights) in [("labels", "label_weights"), ("mixed_labels", "mixed_label_weights")] {
            let labels = of(labels).as_chunks::<4>().0.iter().map(|bytes| i32::from_le_bytes(*bytes) as usize);
            for ((row, label), weight) in logits.chunks(3).zip(labels).zip(floats(of(weights))) {
                let total = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
                let entropy = |class: usize| total - f64::from(row[class]);
                let spread = (0..3).map(entropy).sum::<f64>() / 3.0;
                loss += f64::from(weight) * ((1.0 - smoothing) * entropy(label) + smoothing * spread);
                all += f64::from(weight);
            }
        }
    }
    loss / all
}

#[test]
fn the_loss_is_that_of_two_weighted_classes() {
    let lab = lab("mixed-loss");
    let experiment = lab.path("mixed.toml");
    let backend = backend();
    let weights = "data.class_weights=[1.0, 0.5, 3.0]";
    for (set, batches, smoothing) in [
        (vec![], 1, 0.0),
        (vec!["train.label_smoothing=0.1"], 1, 0.1),
        (vec![weights, "train.label_smoothing=0.2"], 1, 0.2),
        (vec![weights, "train.accumulate=3"], 3, 0.0),
    ] {
        let setup = lab.setup(&experiment, &set);
        let wanted = expected(&setup, batches, smoothing, &backend);
        let found = f64::from(trainer(&setup, &backend).step().unwrap().loss);
        assert!((found - wanted).abs() <= 1e-5 * wanted, "{set:?}: {found}, expected {wanted}");
    }
}

#[test]
fn the_same_bits_on_any_number_of_threads_and_after_any_resume() {
    let lab = lab("mixed-resume");
    let setup = lab.setup(&lab.path("mixed.toml"), &[]);
    let [one, two] = [1, 2].map(|threads| checksum_after(&setup, 12, &CpuBackend::new(threads).unwrap()));
    assert_eq!(one, two);

    let every_step = "--set train.checkpoint_every=1 --set train.keep_last=20";
    lab.tenon(&format!("train mixed.toml --out whole {every_step}")).expect(0);
    for kept in [1, 5, 11] {
        lab.tenon(&format!("train mixed.toml --out run{kept} {every_step}")).expect(0);
        for step in kept + 1..=12 {
            let checkpoint = lab.path(&format!("run{kept}/checkpoints/step-{step:08}"));
            std::fs::remove_dir_all(checkpoint).unwrap();
        }
        let out = lab.tenon(&format!("train mixed.toml --out run{kept} {every_step}")).expect(0).stdout;
        assert!(out.contains(&format!("from the checkpoint of step {kept}")), "{out}");
        assert!(lab.final_bytes(&format!("run{kept}")) == lab.final_bytes("whole"), "other bytes");
        assert_eq!(lab.metrics(&format!("run{kept}")), lab.metrics("whole"));
    }
}

#[test]
fn what_cannot_be_mixed_is_refused() {
    let lab = lab("mixed-one");
    let refused = lab.tenon("plan mixed.toml --set train.batch=1").expect(2).stderr;
    assert!(refused.contains("`train.batch` is 1") && refused.contains("data.images.augment"), "{refused}");
    for objective in ["multi-label", "regression", "next-token"] {
        let refused = lab.tenon(&format!("plan mixed.toml --set train.objective={objective}")).expect(2).stderr;
        assert!(refused.contains("mixes classes, which the objective does not learn"), "{refused}");
    }
}
