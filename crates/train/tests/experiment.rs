//! Experiment files: what is read, what is refused and in which words, and that the frozen form says the same.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tenon_train::experiment::{
    AdamW, Bound, ByteSize, Decaying, EarlyStop, Experiment, Hyperparameter, Lion, Muon, Optimizer, Precision, Sample,
    Schedule, Search, Sgd, Span, StopPoor, TimeSpan, Train, Tune, Wsd, differences,
};

const MOBY: &str = r#"[data]
text = "moby-dick.txt"
tokenizer = { kind = "bpe", vocab = 1024 }
validation = { last = 0.1 }

[model]
architecture = "gpt2"
layers = 4
width = 256
rate = 0.1

[train]
steps = 1400
batch = 24
precision = "bf16"
memory = "1GiB"
optimizer = { kind = "adamw", lr = 1.5e-3, betas = [0.9, 0.95], weight_decay = 0.1 }
schedule = { kind = "cosine", warmup = 100, floor = 0.1 }
clip = 1.0

[goal]
bits_per_byte = { at_most = 2.20 }

[tune]
trials = 8
search."train.optimizer.lr" = { log = [3e-4, 3e-3] }
search."model.rate" = { uniform = [0.0, 0.2] }
"#;

fn parse(text: &str, set: &[&str]) -> Result<Experiment, String> {
    let set: Vec<String> = set.iter().map(|option| option.to_string()).collect();
    Experiment::parse(text, "moby.toml", &set).map_err(|problems| problems.to_string())
}

/// The message of MOBY with one piece of text replaced.
fn refused(from: &str, to: &str) -> String {
    assert!(MOBY.contains(from), "{from}");
    parse(&MOBY.replace(from, to), &[]).expect_err(to)
}

#[test]
fn the_example_is_read() {
    let experiment = parse(MOBY, &[]).unwrap();
    assert_eq!(experiment.train.memory, Some(ByteSize(1 << 30)));
    let Optimizer::Adamw(adamw) = &experiment.train.optimizer else { panic!("adamw") };
    assert_eq!(adamw, &AdamW { lr: 1.5e-3, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1 });
    assert_eq!(experiment.model.hyperparameters["layers"], Hyperparameter::Int(4));
    assert_eq!(experiment.goal["bits_per_byte"], Bound::AtMost(2.2));
    assert_eq!(experiment.tune.unwrap().search["train.optimizer.lr"], Search::Log([3e-4, 3e-3]));
}

#[test]
fn problems_are_told_with_their_line() {
    let cases = [
        (
            "vocab = 1024",
            "vocabs = 1024",
            "moby.toml:3: `data.tokenizer` needs the key `vocab`: Tokens in all: 256 bytes, `<|endoftext|>` and the merges\nmoby.toml:3: unknown key `data.tokenizer.vocabs`: did you mean `vocab`?",
        ),
        (
            "{ last = 0.1 }",
            "{ lasts = 0.1 }",
            "moby.toml:4: `data.validation` has the keys lasts, expected { last = ... } or { last_count = ... } or { stratified = ... } or { every = ... } or { file = ... } or { idx = ... }: did you mean `last`?",
        ),
        ("optimizer =", "optimiser =", "moby.toml:17: unknown key `train.optimiser`: did you mean `optimizer`?"),
        ("batch = 24", "lr = 24", "moby.toml:14: unknown key `train.lr`: did you mean `train.optimizer.lr`?"),
        (
            "lr = 1.5e-3",
            "learning = 1",
            "moby.toml:17: unknown key `train.optimizer.learning`: the keys here are betas, eps, kind, lr, weight_decay",
        ),
        ("[tune]", "[tuna]", "moby.toml:24: unknown key `tuna`: did you mean `tune`?"),
        (
            "batch = 24",
            "batch = \"24\"",
            "moby.toml:14: `train.batch` is the string \"24\", expected an integer: write 24 without quotes",
        ),
        ("batch = 24", "batch = 24.0", "moby.toml:14: `train.batch` is 24.0, expected an integer: write 24"),
        ("batch = 24", "batch = 0", "moby.toml:14: `train.batch` is 0, it must be at least 1"),
        ("batch = 24", "batch = -1", "moby.toml:14: `train.batch` is -1, it must be at least 1"),
        (
            "precision = \"bf16\"",
            "precision = \"bf15\"",
            "moby.toml:15: `train.precision` is the string \"bf15\", expected \"f32\" or \"bf16\": did you mean \"bf16\"?",
        ),
        (
            "precision = \"bf16\"",
            "precision = 16",
            "moby.toml:15: `train.precision` is 16, expected \"f32\" or \"bf16\"",
        ),
        (
            "\"1GiB\"",
            "\"1GiBs\"",
            "moby.toml:16: `train.memory`: \"1GiBs\" is not a byte size (the unit is B, KB, MB, GB, TB, KiB, MiB, GiB or TiB): write for example \"512MiB\", \"1.5GiB\" or \"2e9\"",
        ),
        ("\"1GiB\"", "true", "moby.toml:16: `train.memory` is true, expected a string or a number"),
        ("lr = 1.5e-3", "lr = 0", "moby.toml:17: `train.optimizer.lr` is 0, it must be greater than 0"),
        ("lr = 1.5e-3", "lr = nan", "moby.toml:17: `train.optimizer.lr` is nan, expected a finite number"),
        ("[0.9, 0.95]", "[0.9, 1.0]", "moby.toml:17: `train.optimizer.betas[1]` is 1.0, it must be less than 1"),
        ("[0.9, 0.95]", "[0.9]", "moby.toml:17: `train.optimizer.betas` has 1 values, expected exactly 2"),
        (
            "\"adamw\"",
            "\"adam\"",
            "moby.toml:17: `train.optimizer.kind` is the string \"adam\", expected \"adamw\", \"sgd\", \"lion\" or \"muon\": did you mean \"adamw\"?",
        ),
        (
            "kind = \"adamw\", ",
            "",
            "moby.toml:17: `train.optimizer` needs the key `kind`: \"adamw\", \"sgd\", \"lion\" or \"muon\"",
        ),
        (
            "\"adamw\", lr = 1.5e-3, betas = [0.9, 0.95]",
            "\"sgd\", betas = [0.9, 0.95]",
            "moby.toml:17: unknown key `train.optimizer.betas`: the keys here are kind, lr, momentum, nesterov, weight_decay",
        ),
        (
            "warmup = 100",
            "warmup = 2000",
            "moby.toml:18: `train.schedule.warmup` is 2000 steps, more than the 1400 of `train.steps`",
        ),
        ("warmup = 100", "warmup = 1.5", "moby.toml:18: `train.schedule.warmup` is 1.5, it must be at most 1"),
        ("warmup = 100", "warmup = -5", "moby.toml:18: `train.schedule.warmup` is -5, it must be at least 0"),
        (
            "{ kind = \"cosine\", warmup = 100, floor = 0.1 }",
            "{ kind = \"wsd\", warmup = 1200, decay = 0.5 }",
            "moby.toml:18: `train.schedule` has 1200 steps of warmup and 700 of decay, together more than the 1400 of `train.steps`",
        ),
        ("steps = 1400\n", "", "moby.toml:12: `train` needs the key `steps` or `epochs`: how long to train"),
        (
            "steps = 1400",
            "steps = 1400\nepochs = 2",
            "moby.toml:14: `train.epochs` is 2 and `train.steps` is 1400: give one of the two",
        ),
        ("architecture = \"gpt2\"\n", "", "moby.toml:6: `model` needs the key `architecture` or `from`: what to train"),
        (
            "layers = 4",
            "layers = { a = 1 }",
            "moby.toml:8: `model.layers` is a table, expected true or false or an integer or a number or a string or an array",
        ),
        (
            "{ at_most = 2.20 }",
            "{ at_least = \"x\" }",
            "moby.toml:22: `goal.bits_per_byte.at_least` is the string \"x\", expected a number",
        ),
        (
            "{ at_most = 2.20 }",
            "{ at_mots = 2.20 }",
            "moby.toml:22: `goal.bits_per_byte` has the keys at_mots, expected { at_most = ... } or { at_least = ... }: did you mean `at_most`?",
        ),
        (
            "{ at_most = 2.20 }",
            "2.2",
            "moby.toml:22: `goal.bits_per_byte` is 2.2, expected { at_most = ... } or { at_least = ... }",
        ),
        (
            "[goal]\nbits_per_byte = { at_most = 2.20 }",
            "",
            "moby.toml:23: `[tune]` needs a `[goal]`: say which metric the trials shall reach",
        ),
        (
            "train.optimizer.lr",
            "train.optimizer.l",
            "moby.toml:26: `tune.search.\"train.optimizer.l\"`: with the value 0.0003: unknown key `train.optimizer.l`: did you mean `lr`?",
        ),
        (
            "train.optimizer.lr",
            "optimizer.lr",
            "moby.toml:26: `tune.search.\"optimizer.lr\"`: name a key of data, model or train, for example \"train.optimizer.lr\"",
        ),
        (
            "[3e-4, 3e-3]",
            "[0.0, 3e-3]",
            "moby.toml:26: `tune.search.\"train.optimizer.lr\"`: `log` begins at 0, it must be above 0",
        ),
        (
            "uniform = [0.0, 0.2]",
            "uniform = [0.2, 0.0]",
            "moby.toml:27: `tune.search.\"model.rate\"`: `uniform` goes from 0.2 to 0: the smaller number comes first",
        ),
        (
            "uniform = [0.0, 0.2]",
            "choice = []",
            "moby.toml:27: `tune.search.\"model.rate\".choice` has 0 values, expected at least 1",
        ),
        (
            "[model]\narchitecture = \"gpt2\"\nlayers = 4\nwidth = 256\nrate = 0.1\n",
            "",
            "moby.toml:1: the table `[model]` is missing: The architecture and its hyperparameters",
        ),
        (
            "steps = 1400",
            "steps = 99999999999999999999",
            "moby.toml:13: the integer 99999999999999999999 does not fit in 64 bits with a sign",
        ),
        ("steps = 1400", "steps 1400", "moby.toml:13: not valid TOML: key with no value, expected `=`"),
        ("batch = 24", "batch = 24\nbatch = 25", "moby.toml:15: not valid TOML: duplicate key"),
    ];
    let mut wrong = String::new();
    for (from, to, expected) in cases {
        let found = refused(from, to);
        if found != expected {
            wrong.push_str(&format!("expected {expected}\n   found {found}\n"));
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn several_problems_are_told_together() {
    let text = MOBY.replace("batch", "bach").replace("bf16", "f16").replace("clip = 1.0", "clip = 0");
    assert_eq!(
        parse(&text, &["train.seed=-1", "train.ema=true"]).unwrap_err(),
        "moby.toml:14: unknown key `train.bach`: did you mean `batch`?\n\
         moby.toml:15: `train.precision` is the string \"f16\", expected \"f32\" or \"bf16\": did you mean \"bf16\"?\n\
         moby.toml:19: `train.clip` is 0, it must be greater than 0\n\
         --set train.ema=true: `train.ema` is true, expected a number\n\
         --set train.seed=-1: `train.seed` is -1, it must be at least 0"
    );
}

#[test]
fn options_are_laid_over_the_file() {
    let experiment = parse(
        MOBY,
        &[
            "train.optimizer.lr=2e-3",
            "train.precision=f32",
            "train.sample={ prompt = \"Call me\", tokens = 5 }",
            "train.sample.prompt=a = b",
            "model.note='x'",
            "tune.search.\"model.width\"={ choice = [128, 256] }",
            "train.schedule={kind=\"wsd\",warmup=0.05}",
        ],
    )
    .unwrap();
    assert_eq!(experiment.train.optimizer.lr(), 2e-3);
    assert_eq!(experiment.train.precision, Precision::F32);
    assert_eq!(experiment.train.sample.unwrap().prompt, "a = b");
    assert_eq!(experiment.model.hyperparameters["note"], Hyperparameter::Text("x".into()));
    assert_eq!(experiment.tune.unwrap().search.len(), 3);
    assert_eq!(experiment.train.schedule.warmup().steps(1000), 50);
    assert_eq!(experiment.train.schedule.decay().unwrap().steps(1000), 200);

    let cases = [
        ("train.optimizer.lr", "there is no `=`: write --set key=value, for example --set train.optimizer.lr=3e-4"),
        ("train.optimzer.lr=1", "unknown key `train.optimzer`: did you mean `optimizer`?"),
        ("train.optimizer.lr=fast", "`train.optimizer.lr` is the string \"fast\", expected a number"),
        ("train.batch.size=1", "`train.batch` is not a table, so it has no key `size`"),
        ("train..lr=1", "`train..lr` is not a dotted key: write for example `train.optimizer.lr`"),
        ("=1", "`` is not a dotted key: write for example `train.optimizer.lr`"),
    ];
    for (option, message) in cases {
        assert_eq!(parse(MOBY, &[option]).unwrap_err(), format!("--set {option}: {message}"));
    }
}

#[test]
fn options_reach_into_tables_that_are_left_out() {
    let text = "[data]\n[model]\narchitecture = \"mlp\"\n[train]\nepochs = 2\n";
    let experiment = parse(text, &["train.optimizer.lr=0.5", "train.schedule.warmup=9"]).unwrap();
    assert_eq!(experiment.train.optimizer, Optimizer::Adamw(AdamW { lr: 0.5, ..AdamW::default() }));
    assert_eq!(experiment.train.schedule.warmup(), Span::Steps(9));
    let experiment = parse(text, &["train.optimizer.kind=sgd"]).unwrap();
    assert_eq!(experiment.train.optimizer, Optimizer::Sgd(Sgd::default()));
    let message = parse("[data]\n[model]\narchitecture = \"mlp\"\n", &["train=3"]).unwrap_err();
    assert_eq!(message, "--set train=3: `train` is 3, expected a table");
}

#[test]
fn units_are_exact() {
    for (text, bytes) in [
        ("1GiB", 1 << 30),
        ("512MiB", 512 << 20),
        ("2e9", 2_000_000_000),
        ("1.5GiB", 3 << 29),
        (" 7 kb ", 7_000),
        ("1", 1),
        ("18446744073709551615", u64::MAX),
        ("4TiB", 4 << 40),
    ] {
        assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
    }
    for text in ["", "GiB", "-1GiB", "0", "1.0000001KiB", "1e300", "99999999TiB", "nan", "inf", "1 GiB GiB", "1QiB"] {
        assert!(text.parse::<ByteSize>().is_err(), "{text}");
    }
    for (text, seconds) in [
        ("90s", 90.0),
        ("20min", 1200.0),
        ("1h30min", 5400.0),
        ("1.5h", 5400.0),
        ("2d", 172_800.0),
        ("250ms", 0.25),
        ("7", 7.0),
    ] {
        assert_eq!(text.parse::<TimeSpan>().map(TimeSpan::seconds), Ok(seconds), "{text}");
    }
    for text in ["", "h", "1parsec", "-1s", "0s", "1..2s", "1e9999d", "99999999999999999999d"] {
        assert!(text.parse::<TimeSpan>().is_err(), "{text}");
    }
}

#[test]
fn weight_decay_spares_vectors_and_named_parameters() {
    let train = Train { no_decay: vec!["*.wte.*".into(), "head*".into(), "exact".into()], ..Train::default() };
    for (name, rank, decays) in [
        ("h.0.attn.c_attn.weight", 2, true),
        ("h.0.attn.c_attn.bias", 1, false),
        ("scale", 0, false),
        ("model.wte.weight", 2, false),
        ("wte.weight", 2, true),
        ("head", 2, false),
        ("head.a.b", 4, false),
        ("exact", 2, false),
        ("exactly", 2, true),
    ] {
        assert_eq!(train.decays(name, rank), decays, "{name}");
    }
}

#[test]
fn the_identity_leaves_out_what_changes_no_weight() {
    let base = parse(MOBY, &[]).unwrap();
    for option in [
        "train.memory=2GiB",
        "train.threads=3",
        "goal.bits_per_byte={at_most=1}",
        "train.keep_last=9",
        "train.log_every=1",
        "train.evaluate_every=7",
        "train.evaluate_batches=3",
        "tune.trials=3",
        "deploy.export=[]",
    ] {
        let other = parse(MOBY, &[option]).unwrap();
        assert_ne!(base, other);
        assert_eq!(base.checksum(), other.checksum(), "{option}");
    }
    for option in ["train.seed=1", "train.optimizer.eps=1e-9", "model.layers=5", "data.text=other.txt"] {
        let other = parse(MOBY, &[option]).unwrap();
        assert_ne!(base.checksum(), other.checksum(), "{option}");
        assert_eq!(base.changes(&other).len(), 1, "{option}");
    }
    // Which evaluations there are decides when a run stops, and which checkpoint is the best.
    let stop = "train.early_stop={metric=\"val_loss\",patience=2}";
    let best = "train.keep_best=val_loss";
    for (given, option, changes) in [
        (stop, "train.evaluate_every=7", 1),
        (stop, "train.evaluate_batches=3", 1),
        (stop, "train.log_every=1", 0),
        (best, "train.evaluate_every=7", 0),
        (best, "train.evaluate_batches=3", 1),
    ] {
        let (before, after) = (parse(MOBY, &[given]).unwrap(), parse(MOBY, &[given, option]).unwrap());
        assert_eq!(before.changes(&after).len(), changes, "{given} {option}");
    }
    let both = parse(MOBY, &[stop, "train.evaluate_every=7"]).unwrap();
    let keys: Vec<String> = base.changes(&both).into_iter().map(|difference| difference.key).collect();
    assert_eq!(keys, ["train.early_stop"]);
}

#[test]
fn a_trial_is_the_experiment_with_its_values() {
    let base = parse(MOBY, &[]).unwrap();
    let trial = BTreeMap::from([
        ("train.optimizer.lr".to_owned(), Hyperparameter::Float(7e-4)),
        ("model.rate".to_owned(), Hyperparameter::Float(0.05)),
    ]);
    let changed = base.with(&trial).unwrap();
    let keys: Vec<String> = differences(&base.to_table(), &changed.to_table()).into_iter().map(|d| d.key).collect();
    assert_eq!(keys, ["model.rate", "train.optimizer.lr"]);
    let bad = BTreeMap::from([("train.optimizer.lr".to_owned(), Hyperparameter::Float(-1.0))]);
    assert_eq!(
        base.with(&bad).unwrap_err().to_string(),
        "assignment: `train.optimizer.lr` is -1.0, it must be greater than 0"
    );
}

#[test]
fn the_schema_documents_every_key() {
    let schema = Experiment::schema();
    let train = &schema["$defs"]["Train"]["properties"];
    for (key, property) in train.as_object().unwrap() {
        assert!(property["description"].is_string(), "{key} has no description");
    }
    assert_eq!(train["batch"]["default"], 32);
    assert_eq!(schema["$defs"]["Train"]["additionalProperties"], false);
}

#[test]
fn any_bytes_are_refused_without_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.toml");
    std::fs::write(&path, b"[data]\n\xff\xfe").unwrap();
    let message = Experiment::load(&path, &[]).unwrap_err().to_string();
    assert!(message.ends_with("x.toml:2: is not UTF-8 text: is it another kind of file?"), "{message}");
    std::fs::write(&path, vec![b'#'; 2 << 20]).unwrap();
    let message = Experiment::load(&path, &[]).unwrap_err().to_string();
    assert!(message.contains("has 2097152 bytes, an experiment file at most 1048576"), "{message}");
    let message = Experiment::load(&folder.path().join("none.toml"), &[]).unwrap_err().to_string();
    assert!(message.contains("cannot be read: No such file"), "{message}");
    assert!(parse(&"[".repeat(100_000), &[]).is_err());
    assert!(parse(&format!("a = {}", "{a=".repeat(10_000)), &[]).is_err());
}

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![1e-12..1e-3, 1e-3..10.0, Just(1e-8), Just(3.0), Just(1e300)]
}

fn beta() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), 0.0..0.999_999]
}

fn adamw() -> impl Strategy<Value = AdamW> {
    (number(), beta(), beta(), number(), number()).prop_map(|(lr, a, b, eps, weight_decay)| AdamW {
        lr,
        betas: [a, b],
        eps,
        weight_decay,
    })
}

fn optimizer() -> impl Strategy<Value = Optimizer> {
    prop_oneof![
        adamw().prop_map(Optimizer::Adamw),
        (number(), 0.1..0.9, any::<bool>(), number()).prop_map(
            |(lr, momentum, nesterov, weight_decay)| Optimizer::Sgd(Sgd { lr, momentum, nesterov, weight_decay })
        ),
        (number(), beta(), beta()).prop_map(|(lr, a, b)| Optimizer::Lion(Lion {
            lr,
            betas: [a, b],
            weight_decay: 0.0
        })),
        (number(), beta(), 1..20u64, adamw()).prop_map(|(lr, momentum, ns_steps, adamw)| {
            Optimizer::Muon(Muon { lr, momentum, ns_steps, adamw, ..Muon::default() })
        }),
    ]
}

fn schedule() -> impl Strategy<Value = Schedule> {
    let span = prop_oneof![(0..100u64).prop_map(Span::Steps), (0.0..0.5).prop_map(Span::Share)];
    (span, 0.0..1.0, 0..4).prop_map(|(warmup, floor, kind)| match kind {
        0 => Schedule::Linear(Decaying { warmup, floor }),
        1 => Schedule::Cosine(Decaying { warmup, floor }),
        2 => Schedule::Wsd(Wsd { warmup, decay: Span::Share(0.25), floor }),
        _ => Schedule::default(),
    })
}

fn hyperparameter() -> impl Strategy<Value = Hyperparameter> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Hyperparameter::Bool),
        any::<i64>().prop_map(Hyperparameter::Int),
        number().prop_map(Hyperparameter::Float),
        any::<String>().prop_map(Hyperparameter::Text),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| prop::collection::vec(inner, 0..4).prop_map(Hyperparameter::List))
}

fn train() -> impl Strategy<Value = Train> {
    let counts =
        (1_000..1_000_000u64, 1..9u64, prop::option::of(1..1u64 << 50), 0..u64::MAX >> 1, prop::option::of(1..64u64));
    let rest =
        (prop::option::of(0.5..0.9999), prop::collection::vec(any::<String>(), 0..3), any::<String>(), any::<bool>());
    (counts, optimizer(), schedule(), rest).prop_map(|(counts, optimizer, schedule, rest)| Train {
        steps: (!rest.3).then_some(counts.0),
        epochs: rest.3.then_some(counts.0 as f64 / 7.0),
        accumulate: counts.1,
        memory: counts.2.map(ByteSize),
        seed: counts.3,
        threads: counts.4,
        ema: rest.0,
        no_decay: rest.1,
        sample: Some(Sample { prompt: rest.2, ..Sample::default() }),
        early_stop: rest.3.then(|| EarlyStop { metric: "val_loss".into(), patience: 3, min_delta: 1e-4 }),
        optimizer,
        schedule,
        ..Train::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn the_frozen_form_parses_to_the_same_experiment(
        train in train(),
        values in prop::collection::btree_map("[a-zA-Z][a-z \\.\"=]{0,8}", hyperparameter(), 0..5),
        bound in number(),
        budget in prop::option::of(1..1u64 << 40),
        choices in prop::collection::vec(hyperparameter(), 1..4),
    ) {
        let mut experiment = parse(MOBY, &[]).unwrap();
        experiment.train = train;
        experiment.model.hyperparameters = values;
        experiment.model.hyperparameters.remove("preset");
        experiment.goal.insert("accuracy.top5 é".into(), Bound::AtLeast(bound));
        experiment.tune = Some(Tune {
            search: BTreeMap::from([("model.rate".to_owned(), Search::Choice(choices)), ("train.batch".into(), Search::Int([1, 9]))]),
            stop_poor: budget.map(|grace| StopPoor { grace: grace % 1000, after_trials: 2 }),
            budget: budget.map(TimeSpan::from_millis),
            ..Tune::default()
        });
        prop_assert_eq!(experiment.check(), Ok(()));
        let frozen = experiment.frozen();
        let again = parse(&frozen, &[]);
        prop_assert_eq!(again.as_ref(), Ok(&experiment), "{}", frozen);
        prop_assert_eq!(again.unwrap().frozen(), frozen);
    }

    #[test]
    fn units_print_what_they_parse(bytes in 1..u64::MAX, shift in 0..63u32, milliseconds in 1..1u64 << 50) {
        let size = ByteSize((bytes >> shift).max(1));
        prop_assert_eq!(size.to_string().parse(), Ok(size));
        let span = TimeSpan::from_millis(milliseconds);
        prop_assert_eq!(span.to_string().parse(), Ok(span));
    }

    #[test]
    fn damaged_files_are_refused_or_read_but_never_panic(at in 0..MOBY.len(), byte in 32..127u8) {
        let mut bytes = MOBY.as_bytes().to_vec();
        bytes[at] = byte;
        let _ = parse(std::str::from_utf8(&bytes).unwrap(), &[]);
    }
}
