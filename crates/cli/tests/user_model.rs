//! A user's own `my_model.star` goes the whole way: goal, search, export, forward, generation.

mod common;

use common::{Lab, OWN, backend};
use tenon::model_folder::open_model;
use tenon::nn::forward::{NamedTensor, Values, forward};
use tenon::train::trainer::Trainer;
use tenon::train::tune::{Status, Trial};

const EXPERIMENT: &str = r#"
[data]
text = "text.txt"
tokenizer = { kind = "char" }
validation = { last = 0.1 }

[model]
architecture = "my_model.star"

[train]
steps = 60
batch = 8
optimizer = { kind = "adamw", lr = 1e-6 }

[goal]
val_loss = { at_most = 2.6 }
"#;

fn lab(name: &str) -> Lab {
    let lab = Lab::new(name);
    lab.write("my_model.star", OWN);
    lab.write("own.toml", EXPERIMENT);
    lab
}

#[test]
fn the_exit_code_is_the_verdict() {
    let lab = lab("verdict");
    let missed = lab.tenon("run own.toml --out missed").expect(3).stdout;
    assert!(missed.contains("goal   not met: val_loss"), "{missed}");
    let met = lab.tenon("run own.toml --out met --set train.optimizer.lr=1e-2").expect(0).stdout;
    assert!(met.contains("goal   met: val_loss"), "{met}");
    // Run again, each says the same.
    lab.tenon("run own.toml --out missed").expect(3);
    lab.tenon("run own.toml --out met --set train.optimizer.lr=1e-2").expect(0);
    lab.tenon("train own.toml --out trained").expect(0);
}

#[test]
fn a_run_is_opened_from_any_folder() {
    let lab = lab("elsewhere");
    lab.tenon("run own.toml --set train.steps=2").expect(3);
    let elsewhere = lab.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    for (command, out) in
        [("eval ../runs/own", 1), ("export ../runs/own --out ../again", 1), ("generate ../runs/own a", 1)]
    {
        let mut command = lab.command(command);
        let ran = {
            command.current_dir(&elsewhere);
            lab.finish(command)
        }
        .expect(0);
        assert!(ran.stdout.lines().count() >= out, "{}", ran.stdout);
    }
    assert_eq!(entries(&lab, "elsewhere"), [""; 0], "nothing is left where the commands ran");
}

#[test]
fn a_plan_says_what_generating_takes_or_why_it_is_not_possible() {
    let lab = lab("generating");
    let planned = lab.tenon("plan own.toml").expect(0).stdout;
    assert!(planned.contains("generating 16 tokens: weights "), "{planned}");
    lab.write("my_model.star", OWN.replace("    return dict", "    x = x + mean(x, 1, keep = True)\n    return dict"));
    let planned = lab.tenon("plan own.toml").expect(0).stdout;
    assert!(planned.contains("this model cannot decode: reduce_sum combines tokens"), "{planned}");
    assert!(!planned.contains("about 0 "), "{planned}");
}

#[test]
fn a_search_meets_the_goal_that_the_base_missed() {
    let lab = lab("search");
    let tune = "\n[tune]\ntrials = 6\nsearch.\"train.optimizer.lr\" = { choice = [1e-6, 1e-2] }\n";
    let file = lab.write("own.toml", format!("{EXPERIMENT}{tune}"));
    let out = lab.tenon("run own.toml").expect(0).stdout;
    assert!(out.contains("tune   trial 0: train.optimizer.lr = "), "{out}");
    assert!(out.contains("goal   not met: val_loss") && out.contains("goal   met: val_loss"), "{out}");
    let export = open_model(&lab.path("runs/own/export")).unwrap();

    // What was exported is what the winning trial trained.
    let setup = lab.setup(&file, &["train.optimizer.lr=1e-2"]);
    let backend = backend();
    let plan = setup.plan(&backend).unwrap();
    let mut trainer = Trainer::new(plan, &setup.model, &setup.experiment.train, &*setup.data, &backend).unwrap();
    for _ in 0..60 {
        trainer.step().unwrap();
    }
    for (variable, values) in setup.model.variables().zip(&export.values) {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let trained = &trainer.weight(&variable.name).unwrap()[..bytes.len()];
        assert!(trained == bytes, "{}", variable.name);
    }
    let again = lab.tenon("run own.toml").expect(0).stdout;
    assert!(again.contains("goal   met: val_loss"), "{again}");

    // Every command that takes the run takes the winner, also when the user goes on to another model.
    let chosen = out.lines().find_map(|l| l.strip_suffix(" is the result of this run")).expect("a trial").trim();
    let chosen = chosen.trim_start_matches("tune").trim();
    assert!(again.contains(&format!("{chosen} is the result of this run")), "{again}");
    lab.write("my_model.star", OWN.replace("silu", "relu"));
    let said = |arguments: &str| {
        let ran = lab.tenon(arguments).expect(0);
        assert_eq!(ran.stderr.lines().next(), Some(&*format!("{chosen} is the result of this run")), "{arguments}");
        ran.stdout
    };
    let number = |text: &str| {
        let from = text.rfind("val_loss ").expect("a loss") + "val_loss ".len();
        text[from..].split_whitespace().next().unwrap().parse::<f64>().unwrap()
    };
    let trial = out.rfind("eval ").map(|at| number(out[at..].lines().next().unwrap())).unwrap();
    let evaluated = said("eval runs/own");
    assert!((number(&evaluated) - trial).abs() < 1e-4, "{evaluated}\n{out}");
    assert!(said("inspect runs/own").contains("lr = 0.01"));
    assert!(said("generate runs/own the --tokens 4").starts_with("the"));
    said("export runs/own --out again");
    assert!(open_model(&lab.path("again")).unwrap().values == export.values);
}

fn entries(lab: &Lab, folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(lab.path(folder)).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_trial_that_cannot_fit_is_refused_before_it_costs_anything() {
    let lab = lab("unfit");
    let tune = "\n[tune]\ntrials = 2\nsearch.\"model.width\" = { choice = [4096] }\n";
    let experiment = EXPERIMENT.replace("batch = 8", "batch = 8\nmemory = \"32MiB\"") + tune;
    lab.write("own.toml", experiment);
    let out = lab.tenon("run own.toml").expect(3).stdout;
    assert!(out.contains("the run does not fit in memory = \"32MiB\""), "{out}");
    let record = find(&lab, "runs/own", "trial.toml").expect("a record of the trial");
    let trial = Trial::parse(&std::fs::read_to_string(record).unwrap()).unwrap();
    assert!(matches!(trial.status, Status::Refused { .. }), "{:?}", trial.status);
    assert_eq!(trial.seconds, 0.0);
}

/// A file of this name below a folder.
fn find(lab: &Lab, folder: &str, name: &str) -> Option<std::path::PathBuf> {
    let direct = lab.path(folder).join(name);
    if direct.is_file() {
        return Some(direct);
    }
    let folders = entries(lab, folder).into_iter().filter(|e| lab.path(folder).join(e).is_dir());
    folders.into_iter().find_map(|e| find(lab, &format!("{folder}/{e}"), name))
}

#[test]
fn it_is_exported_and_used_like_the_families() {
    let lab = lab("own");
    lab.tenon("run own.toml --set train.optimizer.lr=1e-2 --set train.threads=2").expect(0);
    let one = open_model(&lab.path("runs/own")).unwrap();
    let exported = open_model(&lab.path("runs/own/export")).unwrap();
    assert!(one.values == exported.values, "the run's weights and the export's");
    let ids = Values::Int((0..16).map(|i| i % 7).collect());
    let inputs = [NamedTensor { name: "input_ids".into(), shape: vec![2, 8], values: ids }];
    let outputs = forward(&exported.model, &exported.values, &inputs, &backend()).unwrap();
    let names: Vec<&str> = outputs.iter().map(|o| o.name.as_str()).collect();
    assert_eq!(names, ["logits", "hidden"]);
    assert_eq!(outputs[1].shape, [2, 8, 24]);
    for folder in ["runs/own", "runs/own/export"] {
        let said = lab.tenon(&format!("generate {folder} the --tokens 8 --temperature 0")).expect(0).stdout;
        assert!(said.starts_with("the") && said.len() > 4, "{said}");
    }
    let evaluated = lab.tenon("eval runs/own").expect(0).stdout;
    assert!(evaluated.contains("step 60") && evaluated.contains("val_loss"), "{evaluated}");
    let listed = lab.tenon("inspect runs/own/export").expect(0).stdout;
    assert!(listed.contains("h.1.down.weight"), "{listed}");
}
