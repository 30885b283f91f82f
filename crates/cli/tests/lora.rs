//! Low-rank adaptation and frozen parameters: what is trained, that it is what a model written by hand trains, and that the
//! export is the sum.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{GPT, Lab, OWN, backend, trainer};
use tenon::graph::op::Role;
use tenon::model_folder::open_model;
use tenon::nn::forward::{NamedTensor, Values, forward};
use tenon::nn::lora::lora;
use tenon::nn::{ArchitectureSource, HyperValue, Model, Parameter, initialise};
use tenon::train::checkpoint::Checkpoints;
use tenon::train::setup::Setup;
use tenon::train::trainer::Trainer;

/// [`OWN`], its `gate` with an addition of rank 4 written by hand.
const BY_HAND: &str = r#"
inputs = dict(input_ids = tokens("b", "t"))

def adapted(x, out, name):
    c, bound = x.shape[-1], 1 / sqrt_of_24
    a = parameter(name + ".weight.lora_a", [4, c], init = uniform(-bound, bound))
    b = parameter(name + ".weight.lora_b", [out, 4], init = zeros())
    narrow = matmul(matmul(x, a, transpose_b = True), b, transpose_b = True)
    bias = parameter(name + ".bias", [out], init = uniform(-bound, bound))
    return linear(x, out, name = name, bias = False) + narrow * 2.0 + bias

def block(x):
    h = rms_norm(x, name = "norm")
    h = silu(adapted(h, 64, "gate")) * linear(h, 64, name = "up")
    return x + linear(h, x.shape[-1], name = "down")

def model(input_ids, vocab = 100, context = 16, width = 24, layers = 2):
    x = embedding(input_ids, vocab, width, name = "words")
    for i in range(layers):
        x = scope("h.%d" % i, block, x)
    return dict(logits = linear(x, vocab, name = "head"), hidden = x)
"#;

const LORA: &str = "train.lora={rank=4,alpha=8.0,targets=[\"*.gate.weight\"],also_train=[\"head.*\"]}";

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// All weights after some steps.
fn trained(setup: &Setup, steps: u64) -> Vec<Vec<f32>> {
    let backend = backend();
    let mut trainer = trainer(setup, &backend);
    for _ in 0..steps {
        trainer.step().unwrap();
    }
    setup.trained.variables().map(|v| floats(trainer.weight(&v.name).unwrap())).collect()
}

#[test]
fn it_trains_what_a_model_written_by_hand_trains() {
    let lab = Lab::new("lora-hand");
    let adapted = lab.setup(&lab.own(OWN), &[LORA]);
    let values = trained(&adapted, 12);
    let frozen: Vec<String> = adapted.model.parameters.iter().map(|p| p.name.clone()).collect();
    let frozen: Vec<String> = frozen.into_iter().filter(|name| !name.starts_with("head.")).collect();
    let freeze = format!("train.freeze={frozen:?}");
    let by_hand = lab.own(&BY_HAND.replace("sqrt_of_24", &format!("{:?}", 24f64.sqrt())));
    let by_hand = lab.setup(&by_hand, &[&freeze]);
    let expected = trained(&by_hand, 12);
    let mut compared = 0;
    for (variable, values) in adapted.trained.variables().zip(&values) {
        let other = by_hand.trained.variables().position(|v| v.name == variable.name).unwrap();
        let difference = largest_difference(values, &expected[other]);
        assert!(difference < 1e-5, "{}: {difference}", variable.name);
        let moved = largest_difference(values, &initialise(variable, 0)) > 1e-4;
        assert_eq!(moved, variable.trainable, "{} is trained", variable.name);
        assert_eq!(variable.trainable, by_hand.trained.parameters[other].trainable, "{}", variable.name);
        compared += usize::from(variable.trainable);
    }
    assert_eq!(compared, 2 * 2 + 2, "two factors in each of two blocks, and the head");
}

#[test]
fn only_what_is_trained_has_gradients_and_optimizer_state_and_the_plan_says_so() {
    let lab = Lab::new("lora-plan");
    let file = lab.own(OWN);
    let (plain, adapted) = (lab.setup(&file, &[]), lab.setup(&file, &[LORA]));
    let [all, plan] = [&plain, &adapted].map(|s| s.plan(&backend()).unwrap());
    let head: usize = plain.model.parameters.iter().filter(|p| p.name.starts_with("head.")).map(|p| p.elements()).sum();
    let added = 2 * 4 * (24 + 64);
    assert_eq!(plan.trained as usize, added + head);
    assert_eq!(plan.parameters, all.parameters + added as u64);
    let state = |plan: &tenon::train::plan::RunPlan| -> BTreeSet<String> {
        let inputs = plan.training.iter().flat_map(|p| p.graph.inputs());
        inputs.filter(|(_, _, role, _)| *role == Role::Optimizer).map(|(_, name, ..)| name.to_string()).collect()
    };
    let of_frozen = |name: &String| name.contains("up.weight") || name.contains("words");
    assert!(state(&all).iter().any(of_frozen) && !state(&plan).iter().any(of_frozen));
    assert!(plan.flops < all.flops, "{} of {}", plan.flops, all.flops);
    let said = lab.tenon(&format!("plan own.toml --set {LORA}")).expect(0).stdout;
    assert!(said.contains(" trained · "), "{said}");
}

#[test]
fn what_matches_nothing_is_an_error_that_says_what_would() {
    let lab = Lab::new("lora-none");
    let file = lab.own(OWN);
    let refused = |set: &str| match lab.try_setup(&file, &[set]) {
        Ok(_) => panic!("{set}"),
        Err(error) => error.to_string(),
    };
    let none = refused("train.lora={ targets = [\"*.attention.*\", \"words\"] }");
    assert!(
        none.contains("matches no matrix") && none.contains("h.*.gate.weight, h.*.up.weight, head.weight"),
        "{none}"
    );
    let rank = refused("train.lora={ rank = 25, targets = [\"*.gate.weight\"] }");
    assert!(rank.contains("rank of 25 is more than h.0.gate.weight [64, 24]"), "{rank}");
    let freeze = refused("train.freeze=[\"h.7.*\"]");
    assert!(freeze.contains("matches no parameter") && freeze.contains("h.*.norm.weight"), "{freeze}");
    for (set, setting) in [
        ("train.no_decay=[\"words*\",\"*.wieght\"]", "`no_decay = [\"*.wieght\"]` matches no parameter"),
        ("train.lora={ also_train = [\"haed.*\"] }", "`lora.also_train = [\"haed.*\"]` matches no parameter"),
    ] {
        let pattern = refused(set);
        assert!(pattern.contains(setting) && pattern.contains("head.weight"), "{pattern}");
    }
    let both = lab.tenon(&format!("plan own.toml --set {LORA} --set train.freeze=[\"*\"]")).expect(2).stderr;
    assert!(both.contains("`train.freeze` is given beside `train.lora`"), "{both}");
}

/// A value for every input, the symbols small.
fn inputs(model: &Model) -> Vec<NamedTensor> {
    let inputs = model.inputs.iter().map(|input| {
        let shape: Vec<usize> = input.shape.iter().map(|d| d.as_const().unwrap_or(4)).collect();
        let count: usize = shape.iter().product();
        let values = match input.dtype {
            tenon::graph::types::DType::F32 => Values::Float((0..count).map(|i| (i as f32 * 0.7).sin()).collect()),
            _ => Values::Int((0..count).map(|i| (i % 5) as i64).collect()),
        };
        NamedTensor { name: input.name.clone(), shape, values }
    });
    inputs.collect()
}

#[test]
fn filters_are_matrices_too_and_the_rank_is_no_more_than_a_matrix_has() {
    let sizes = [("height", 32), ("width", 32), ("classes", 2)].map(|(name, n)| (name.into(), HyperValue::Int(n)));
    let base = Model::load(&ArchitectureSource::Named("efficientnet".into()), &sizes).unwrap();
    let (adapted, adapters) = lora(&base, 8, 16.0, &|_| true, &|_| false).unwrap();
    let shape = |name: &str| &adapted.variables().find(|v| v.name == name).unwrap().shape[..];
    let of = |name: &str| adapters.iter().find(|a| a.weight == name);
    let stem = of("conv_stem.weight").unwrap();
    assert_eq!((shape(&stem.left), shape(&stem.right)), (&[32, 8][..], &[8, 3, 3, 3][..]));
    assert!(stem.left.ends_with(".lora_b") && stem.right.ends_with(".lora_a"));
    let head = of("classifier.weight").unwrap();
    assert_eq!((head.rank, head.scale, shape(&head.left)), (2, 2.0, &[2, 2][..]));
    assert!(of("blocks.0.0.conv_dw.weight").is_none(), "depthwise filters stay");
    assert!(adapted.parameters.iter().all(|p| p.trainable == p.name.contains(".lora_")));
}

#[test]
fn merged_weights_give_the_same_logits_in_every_family() {
    let lab = Lab::new("lora-families");
    let own = lab.write("my_model.star", OWN);
    let sizes = |pairs: &[(&str, i64)]| -> Vec<(String, HyperValue)> {
        pairs.iter().map(|(name, value)| ((*name).into(), HyperValue::Int(*value))).collect()
    };
    let encoder = sizes(&[("vocab", 50), ("layers", 2), ("width", 24), ("heads", 3), ("inner", 40)]);
    let decoder =
        [("vocab", 50), ("context", 16), ("layers", 2), ("width", 24), ("heads", 4), ("kv_heads", 2), ("hidden", 40)];
    let picture = [("height", 32), ("width", 40), ("classes", 5)];
    let families = [
        ("gpt2", sizes(&[("vocab", 50), ("context", 16), ("layers", 2), ("width", 32), ("heads", 2)])),
        ("mlp", sizes(&[("channels", 1), ("height", 4), ("width", 4), ("classes", 3)])),
        ("bert", [("head".into(), "classification".into())].into_iter().chain(encoder.clone()).collect()),
        (
            "vit",
            sizes(&[&picture[..], &[("patch", 8), ("dim", 24), ("layers", 2), ("heads", 3), ("hidden", 40)]].concat()),
        ),
        ("llama", sizes(&decoder)),
        ("moe", sizes(&[&decoder[..], &[("experts", 3)]].concat())),
        ("resnet", sizes(&picture)),
        ("efficientnet", sizes(&picture)),
        (own.to_str().unwrap(), sizes(&[])),
    ];
    for (family, set) in families {
        let base = Model::load(&ArchitectureSource::parse(family), &set).unwrap();
        let (adapted, adapters) = lora(&base, 3, 6.0, &|_| true, &|_| false).unwrap();
        let weights = |p: &&Parameter| p.shape.len() > 1 && !p.name.contains("experts") && !p.name.contains("position");
        let most = base.parameters.iter().filter(weights).count();
        assert!(adapters.len() > most / 2, "{family}: {} of {most}", adapters.len());
        let values: Vec<Vec<f32>> = adapted
            .variables()
            .map(|v| {
                let mut values = initialise(v, 1);
                if v.name.ends_with(".lora_b") {
                    values.iter_mut().enumerate().for_each(|(i, x)| *x = 0.05 * (i as f32).sin());
                }
                values
            })
            .collect();
        let of = |name: &str| &values[adapted.variables().position(|v| v.name == name).unwrap()];
        let merged: Vec<Vec<f32>> = base
            .variables()
            .map(|v| {
                let mut values = of(&v.name).clone();
                for adapter in adapters.iter().filter(|a| a.weight == v.name) {
                    adapter.merge(&mut values, of(&adapter.left), of(&adapter.right));
                }
                values
            })
            .collect();
        let results = |model: &Model, values: &[Vec<f32>]| {
            forward(model, values, &inputs(&base), &backend()).unwrap_or_else(|e| panic!("{family}: {e}"))
        };
        let plain: Vec<Vec<f32>> = base.variables().map(|v| of(&v.name).clone()).collect();
        let both = [results(&adapted, &values), results(&base, &merged), results(&base, &plain)];
        for ((adapted, merged), plain) in both[0].iter().zip(&both[1]).zip(&both[2]) {
            let (Values::Float(a), Values::Float(m), Values::Float(p)) =
                (&adapted.values, &merged.values, &plain.values)
            else {
                continue;
            };
            let largest = a.iter().fold(1.0f32, |most, x| most.max(x.abs()));
            let difference = largest_difference(a, m) / largest;
            assert!(difference < 1e-5, "{family}, {}: {difference}", adapted.name);
            let least = p.iter().fold(0.0f32, |most, x| most.max(x.abs())) * 1e-3;
            // The balance of experts is a mean over all tokens.
            let least = if adapted.name == "aux_loss" { least * 1e-3 } else { least };
            assert!(largest_difference(a, p) > least, "{family}, {}: the additions do something", adapted.name);
        }
    }
}

#[test]
fn the_export_of_a_run_is_merged_and_a_resumed_run_ends_the_same() {
    let lab = Lab::new("lora-run");
    lab.write("gpt.toml", GPT);
    let set = "train.lora={rank=2,targets=[\"*.attn.*\",\"*.mlp.*\"]}";
    let options = ["train.steps=30", "train.optimizer.lr=1e-2", "train.schedule.warmup=0", set];
    let arguments: Vec<String> = options.iter().map(|option| format!("--set {option}")).collect();
    lab.tenon(&format!("train gpt.toml --out whole {}", arguments.join(" "))).expect(0);
    lab.tenon("export whole --out exported").expect(0);
    let exported = open_model(&lab.path("exported")).unwrap();
    let setup = lab.setup(&lab.path("gpt.toml"), &options);
    let values = trained(&setup, 30);
    let inputs = inputs(&setup.model);
    let ours = forward(&setup.trained, &values, &inputs, &backend()).unwrap();
    let theirs = forward(&exported.model, &exported.values, &inputs, &backend()).unwrap();
    let (Values::Float(ours), Values::Float(theirs)) = (&ours[0].values, &theirs[0].values) else { panic!() };
    assert!(largest_difference(ours, theirs) < 1e-5);

    let backend = backend();
    let (mut through, mut stopped, mut resumed) =
        (trainer(&setup, &backend), trainer(&setup, &backend), trainer(&setup, &backend));
    let checkpoints = Checkpoints::open(&lab.path("stopped")).unwrap();
    let steps = |trainer: &mut Trainer<'_>, count| {
        for _ in 0..count {
            trainer.step().unwrap();
        }
    };
    steps(&mut through, 8);
    steps(&mut stopped, 5);
    stopped.save(&checkpoints, BTreeMap::new(), ()).unwrap();
    let () = resumed.load(&checkpoints.latest().unwrap().checkpoint.unwrap()).unwrap();
    steps(&mut resumed, 3);
    assert_eq!(resumed.checksum(), through.checksum());
}
