//! Encoders: classification of texts in batches of several lengths, masked language modelling, and training that starts from
//! another model's weights.

mod common;

use common::{Lab, Numbers, backend, checksum_after, trainer};
use tenon::cpu::CpuBackend;
use tenon::graph::backend::Backend;
use tenon::model_folder::open_model;
use tenon::train::plan::PlanError;
use tenon::train::setup::SetupError;

const ENCODER: &str = r#"
inputs = dict(input_ids = tokens("b", "t"), attention_mask = tokens("b", "t"), token_type_ids = tokens("b", "t"))

def block(x, mask, heads):
    q, k, v = split(linear(layer_norm(x, name = "ln_1"), 3 * x.shape[-1], name = "qkv"), 3)
    x = x + linear(attention(q, k, v, heads = heads, mask = mask), x.shape[-1], name = "out")
    return x + linear(gelu(linear(layer_norm(x, name = "ln_2"), 64, name = "up")), x.shape[-1], name = "down")

def body(ids, mask, types, vocab, context, width, layers, heads, rate):
    x = embedding(ids, vocab, width, name = "words") + embedding(types, 2, width, name = "types")
    x = dropout(x + embedding(positions(ids), context, width, name = "places"), rate)
    for i in range(layers):
        x = scope("h.%d" % i, block, x, mask, heads)
    return layer_norm(x, name = "ln_f")

def model(input_ids, attention_mask, token_type_ids, vocab = 50, context = 64, width = 32, layers = 2, heads = 2,
          rate = 0.1, head = "classes", classes = 2):
    arguments = [input_ids, attention_mask, token_type_ids, vocab, context, width, layers, heads, rate]
    if head == "tokens":
        return linear(body(*arguments), vocab, name = "words_head")
    return linear(select(scope("body", body, *arguments), 0, axis = 1), classes, name = "classes_head")
"#;

const CLASSES: &str = r#"
[data]
labelled_text = { jsonl = "texts.jsonl", text = "text", label = "label", max_tokens = 60 }
tokenizer = { kind = "char" }
validation = { stratified = 0.25 }

[model]
architecture = "encoder.star"

[train]
steps = 60
batch = 8
threads = 1
checkpoint_every = 20
optimizer = { kind = "adamw", lr = 3e-3 }
"#;

const MASKED: &str = r#"
[data]
text = "text.txt"
tokenizer = { kind = "char" }
validation = { last = 0.1 }

[model]
architecture = "encoder.star"
head = "tokens"
context = 40

[train]
steps = 60
batch = 8
objective = "masked-lm"
optimizer = { kind = "adamw", lr = 3e-3 }

[goal]
masked_accuracy = { at_least = 0.15 }
perplexity = { at_most = 20.0 }
"#;

/// The samples of [`CLASSES`], masked in place of classified.
fn masked_samples() -> String {
    CLASSES
        .replace(", label = \"label\"", "")
        .replace("stratified = 0.25", "every = 4")
        .replace("encoder.star\"", "encoder.star\"\nhead = \"tokens\"")
        .replace("steps = 60", "objective = \"masked-lm\"\nsteps = 60")
}

/// Words of two classes that differ in one letter, of many lengths.
fn lab(name: &str) -> Lab {
    let lab = Lab::new(name);
    let mut numbers = Numbers(11);
    let mut lines = String::new();
    for i in 0..320 {
        let (label, letter) = [("plain", 'a'), ("queer", 'q')][i % 2];
        let length = 1 + numbers.below(4) * numbers.below(22);
        let text: String = (0..length).map(|_| if numbers.below(3) == 0 { letter } else { 'e' }).collect();
        lines += &format!("{{\"text\": \"{letter}{text}\", \"label\": \"{label}\"}}\n");
    }
    lab.write("texts.jsonl", lines);
    lab.write("encoder.star", ENCODER);
    lab.write("classes.toml", CLASSES);
    lab.write("masked.toml", MASKED);
    lab
}

#[test]
fn texts_are_classified_and_the_names_of_the_classes_kept() {
    let lab = lab("classes");
    lab.write(
        "classes.toml",
        format!(
            "{CLASSES}\n[goal]\nf1 = {{ at_least = 0.97 }}\nmcc = {{ at_least = 0.9 }}\nauc = {{ at_least = 0.99 }}\n"
        ),
    );
    let out = lab.tenon("run classes.toml").expect(0).stdout;
    assert!(out.contains("samples are padded to 16, "), "{out}");
    for metric in ["accuracy", "f1", "macro_f1", "mcc", "auc"] {
        assert!(out.contains(&format!("{metric} ")), "{metric}: {out}");
    }
    let read = |file: &str| -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(lab.path("runs/classes").join(file)).unwrap()).unwrap()
    };
    assert_eq!(read("run.json")["classes"], serde_json::json!(["plain", "queer"]));
    let config = read("export/config.json");
    assert_eq!(config["id2label"], serde_json::json!({ "0": "plain", "1": "queer" }));
    assert_eq!(config["label2id"], serde_json::json!({ "plain": 0, "queer": 1 }));
    assert!(lab.path("runs/classes/export/tokenizer.json").exists());

    let lines = std::fs::read_to_string(lab.path("texts.jsonl")).unwrap();
    let mut right = 0;
    for line in lines.lines().step_by(9).take(20) {
        let sample: serde_json::Value = serde_json::from_str(line).unwrap();
        lab.write("one.txt", sample["text"].as_str().unwrap());
        let said = lab.tenon("predict runs/classes one.txt").expect(0).stdout;
        let words: Vec<&str> = said.split_whitespace().collect();
        let [file, first, p, _, q] = words[..] else { panic!("{said}") };
        let [p, q] = [p, q].map(|share| share.parse::<f64>().unwrap());
        assert!(file == "one.txt" && p >= q && (p + q - 1.0).abs() < 2e-4, "{said}");
        right += usize::from(sample["label"] == first);
    }
    assert!(right >= 18, "{right} of 20");
    // Longer than any sample: cut as they were.
    lab.write("long.txt", "q".repeat(1000));
    let both = lab.tenon("predict runs/classes one.txt long.txt").expect(0).stdout;
    assert_eq!(both.lines().count(), 2);
    assert!(both.lines().nth(1).unwrap().starts_with("long.txt  queer "), "{both}");
    lab.write("not_utf8.txt", [0xff, 0xfe]);
    for (arguments, why) in [
        ("runs/classes nothing.txt", "nothing.txt: cannot be read"),
        ("runs/classes not_utf8.txt", "not_utf8.txt: is not UTF-8"),
        ("runs/classes/export one.txt", "name a folder that `tenon run` made"),
    ] {
        let error = lab.tenon(&format!("predict {arguments}")).expect(2).stderr;
        assert!(error.contains(why), "{error}");
    }
    let wrong = lab.tenon("plan classes.toml --set goal.bits_per_byte.at_most=1.0").expect(2).stderr;
    assert!(
        wrong.contains("evaluations of this experiment have val_loss, perplexity, accuracy, f1, macro_f1"),
        "{wrong}"
    );
}

#[test]
fn batches_of_several_lengths_are_planned_and_change_no_promise() {
    let lab = lab("lengths");
    let file = lab.path("classes.toml");
    // More threads need more scratch.
    let three = CpuBackend::new(3).unwrap();
    let smallest = match lab.setup(&file, &["train.memory=\"1B\""]).plan(&three) {
        Err(SetupError::Plan(PlanError::Memory(over))) => over.smallest,
        _ => panic!("nothing fits one byte"),
    };
    let tight = format!("train.memory=\"{smallest}B\"");
    for set in [&[][..], &["train.accumulate=2"], &[&*tight], &["data.class_weights=\"balanced\""]] {
        let setup = lab.setup(&file, set);
        let one = CpuBackend::new(1).unwrap();
        let plan = setup.plan(&one).unwrap();
        assert!(!plan.shorter.is_empty() && plan.shorter.len() + 1 == setup.data.lengths().len());
        assert_eq!(*one.session(plan.programs()).unwrap().allocation(), plan.allocation, "{set:?}");
        let expected = checksum_after(&setup, 50, &one);
        assert_eq!(checksum_after(&setup, 50, &CpuBackend::new(3).unwrap()), expected, "{set:?}");
    }
    // Recomputation is there to be asked for, and gives the same bits.
    let plain = lab.setup(&file, &[]);
    let tight = lab.setup(&file, &[&tight]);
    let total = |setup: &tenon::train::setup::Setup| setup.plan(&three).unwrap().allocation.total();
    assert!(total(&tight) == smallest && smallest < total(&plain), "{} {}", total(&tight), total(&plain));
    assert_eq!(checksum_after(&tight, 10, &backend()), checksum_after(&plain, 10, &backend()));

    // Padding is not seen: a longer batch has the same loss, up to rounding. And a resumed run has the same bits.
    let mut one_length = lab.setup(&file, &["model.rate=0.0", "train.batch=240"]);
    one_length.experiment.train.batch = 240;
    let one_by_one = lab.setup(&file, &["model.rate=0.0", "train.batch=1", "train.accumulate=240"]);
    let (mut all, mut each) = (trainer(&one_length, &backend()), trainer(&one_by_one, &backend()));
    let (all, each) = (all.step().unwrap(), each.step().unwrap());
    assert!((all.loss - each.loss).abs() < 1e-5 && (all.grad_norm - each.grad_norm).abs() < 1e-4, "{all:?} {each:?}");
    lab.tenon("train classes.toml --out whole").expect(0);
    lab.tenon("train classes.toml --out parts --set train.checkpoint_every=7").expect(0);
    let checkpoints = lab.path("parts/checkpoints");
    let newest = format!("step-{:08}", lab.newest_step("parts"));
    std::fs::remove_dir_all(checkpoints.join(newest)).unwrap();
    let again = lab.tenon("train classes.toml --out parts").expect(0).stdout;
    assert!(again.contains("from the checkpoint of step 56"), "{again}");
    assert!(lab.final_bytes("whole") == lab.final_bytes("parts"));
}

#[test]
fn class_weights_weigh_the_loss_as_pytorch_does() {
    let lab = lab("weights");
    let file = lab.path("classes.toml");
    let step = |set: &[&str]| {
        let all = ["model.rate=0.0", "train.batch=240"];
        let setup = lab.setup(&file, &[&all[..], set].concat());
        trainer(&setup, &backend()).step().unwrap()
    };
    let (plain, first, second) =
        (step(&[]), step(&["data.class_weights=[1.0, 0.0]"]), step(&["data.class_weights=[0.0, 1.0]"]));
    let both = step(&["data.class_weights=[3.0, 1.0]"]);
    // Both classes have as many samples; the mean is over the sum of the weights.
    assert!((plain.loss - (first.loss + second.loss) / 2.0).abs() < 1e-5, "{plain:?} {first:?} {second:?}");
    assert!((both.loss - (3.0 * first.loss + second.loss) / 4.0).abs() < 1e-5, "{both:?}");
}

#[test]
fn tokens_are_guessed_and_the_model_goes_on_as_a_classifier() {
    let lab = lab("masked");
    lab.write("unsaid.toml", MASKED.replace("objective = \"masked-lm\"\n", ""));
    let refused = lab.tenon("plan unsaid.toml").expect(2).stderr;
    let expected =
        "a token sees those that follow it, so that it has nothing to guess\n  try: train.objective = \"masked-lm\"";
    assert!(refused.contains(expected), "{refused}");
    let out = lab.tenon("run masked.toml").expect(0).stdout;
    assert!(out.contains("masked_accuracy ") && !out.contains("bits_per_byte"), "{out}");
    let source = open_model(&lab.path("runs/masked/export")).unwrap();

    let tuned = CLASSES
        .replace("architecture = \"encoder.star\"", "from = \"runs/masked/export\"\nhead = \"classes\"")
        .replace("tokenizer = { kind = \"char\" }\n", "")
        .replace("max_tokens = 60", "max_tokens = 40");
    let tuned = lab.write("tuned.toml", tuned);
    let planned = lab.tenon("plan tuned.toml").expect(0).stdout;
    assert!(
        planned.contains("starts from the folder's weights, but anew: classes_head.weight, classes_head.bias"),
        "{planned}"
    );
    let setup = lab.setup(&tuned, &[]);
    assert_eq!(setup.model.hyperparameter("context"), source.model.hyperparameter("context"));
    let weights = setup.start.as_ref().unwrap().weights().unwrap();
    let source_context = source.model.hyperparameter("context").cloned();
    let words: Vec<String> =
        source.model.variables().map(|v| v.name.clone()).filter(|name| name.starts_with("words_head")).collect();
    let classes = ["classes_head.weight", "classes_head.bias"].map(String::from);
    let kept = source.model.variables().map(|v| v.name.clone()).zip(source.values);
    // One of the two models has what they share in a scope.
    let kept = kept.filter(|(name, _)| !name.starts_with("words_head"));
    let kept: Vec<(String, Vec<f32>)> = kept.map(|(name, values)| (format!("body.{name}"), values)).collect();
    assert!(weights == kept, "what the folder has, without its head");
    let run = lab.tenon("run tuned.toml --set train.optimizer.lr=1e-9 --set train.steps=1").expect(0).stdout;
    assert!(run.contains("export"), "{run}");
    let after = open_model(&lab.path("runs/tuned/export")).unwrap();
    for (name, values) in &kept {
        let at = after.model.variables().position(|v| v.name == *name).unwrap();
        let moved = after.values[at].iter().zip(values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(moved < 1e-7, "{name} moved by {moved}");
    }
    // A file of one's own takes weights by name and shape, and hyperparameters by name.
    let text = std::fs::read_to_string(&tuned).unwrap();
    lab.write("own.toml", text.replace("from = ", "architecture = \"encoder.star\"\nfrom = "));
    let refused = lab.tenon("plan own.toml").expect(2).stderr;
    for said in
        ["missing:\n    classes_head.weight [2, ", "classes_head.bias [2]\n", "not used:\n    words_head.weight ["]
    {
        assert!(refused.contains(said), "{said}: {refused}");
    }
    let own = lab.setup(&lab.path("own.toml"), &["model.missing=new"]);
    assert_eq!(own.model.hyperparameter("context"), source_context.as_ref());
    let start = own.start.as_ref().unwrap();
    assert!(start.weights().unwrap() == kept);
    assert_eq!((&*start.fresh, &*start.unused), (&classes[..], &words[..]));
    assert_eq!(lab.setup(&tuned, &[]).start.unwrap().unused, words);
    let planned = lab.tenon("plan own.toml --set model.missing=new").expect(0).stdout;
    assert!(planned.contains("but anew: classes_head.weight, classes_head.bias; not used: words_head"), "{planned}");
    for (set, said) in [
        ("model.missing=\"refuse\"", "classes_head.weight"),
        ("model={architecture=\"gpt2\",missing=\"new\"}", "`model.missing` has no meaning without `from`"),
        ("model.architecture=\"gpt2\"", "give one of the two"),
        ("model.from=\"nowhere\"", "nowhere"),
        ("model.width=64", "has only 128 of the "),
        ("train.objective=\"masked-lm\"", "gives one answer for each sample\n  try: remove it"),
        ("train.objective=\"next-token\"", "the data has one label for each sample\n  try: remove it"),
        ("train.lora.rank=999", "a rank of 999 is more than "),
        ("model.preset=\"small\"", "has no meaning with `from`"),
    ] {
        let refused = lab.tenon(&format!("plan tuned.toml --set {set}")).expect(2).stderr;
        assert!(refused.contains(said), "{set}: {refused}");
    }
}

#[test]
fn samples_that_are_masked_are_padded_and_resumed_like_others() {
    let lab = lab("masked-samples");
    lab.write(
        "samples.toml",
        masked_samples() + "\n[goal]\nmasked_accuracy = { at_least = 0.5 }\nperplexity = { at_most = 2.6 }\n",
    );
    let out = lab.tenon("run samples.toml").expect(0).stdout;
    assert!(out.contains("samples are padded to 16, ") && out.contains("masked_accuracy "), "{out}");
    let refused = lab.tenon("predict runs/samples texts.jsonl").expect(2).stderr;
    assert!(refused.contains("one to a class"), "{refused}");

    // Sums over batches of several lengths, whatever the threads; a resumed run has the same bits.
    let file = lab.path("samples.toml");
    for set in [&[][..], &["train.accumulate=2"]] {
        let setup = lab.setup(&file, set);
        let [one, three] = [1, 3].map(|threads| checksum_after(&setup, 20, &CpuBackend::new(threads).unwrap()));
        assert_eq!(one, three, "{set:?}");
    }
    let whole = lab.setup(&file, &["model.rate=0.0", "train.batch=240"]);
    let parts = lab.setup(&file, &["model.rate=0.0", "train.batch=8", "train.accumulate=30"]);
    let (mut whole, mut parts) = (trainer(&whole, &backend()), trainer(&parts, &backend()));
    let (whole, parts) = (whole.step().unwrap(), parts.step().unwrap());
    assert!((whole.loss - parts.loss).abs() < 1e-5 && (whole.grad_norm - parts.grad_norm).abs() < 1e-4);
    lab.write("again.toml", masked_samples().replace("checkpoint_every = 20", "checkpoint_every = 7"));
    lab.tenon("train again.toml --out whole").expect(0);
    lab.tenon("train again.toml --out parts").expect(0);
    let newest = format!("step-{:08}", lab.newest_step("parts"));
    std::fs::remove_dir_all(lab.path("parts/checkpoints").join(newest)).unwrap();
    let again = lab.tenon("train again.toml --out parts").expect(0).stdout;
    assert!(again.contains("from the checkpoint of step 56"), "{again}");
    assert!(lab.final_bytes("whole") == lab.final_bytes("parts"));
}
