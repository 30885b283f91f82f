//! Plan = allocation, and `memory = "..."` is obeyed.

mod common;

use std::path::Path;

use common::{GPT, Lab, OWN, backend, checksum_after, recipe, sentences, trainer};
use tenon::graph::backend::Backend;
use tenon::train::experiment::ByteSize;
use tenon::train::plan::{OverBudget, PlanError};
use tenon::train::setup::{Setup, SetupError};

/// In the environment: the experiment that this process measures.
const MEASURED: &str = "TENON_TEST_MEASURED";

/// The published configuration of 124M parameters.
const PUBLISHED: &str = r#"
[data]
text = "text.txt"
tokenizer = { kind = "char" }
validation = { last = 0.2 }
[model]
architecture = "gpt2"
preset = "gpt2"
vocab = 50257
[train]
steps = 1
batch = 1
precision = "bf16"
"#;

/// A line of this process's status in bytes.
fn status(key: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    1024 * line.trim_matches([':', '\t', ' ', 'k', 'B']).parse::<usize>().unwrap()
}

/// Prints what the plan of an experiment says and by how much the peak of this process grows in a few steps.
fn measure(lab: &Lab, experiment: &Path) {
    let setup = lab.setup(experiment, &[]);
    let backend = backend();
    let before = status("VmRSS");
    // The peak of the data's preparation is forgotten; where the system refuses, the measured growth is only larger.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let mut trainer = trainer(&setup, &backend);
    for _ in 0..setup.steps.min(3) {
        trainer.step().unwrap();
    }
    trainer.evaluate(Some(1)).unwrap();
    println!("measured: {} {}", trainer.allocation().total(), status("VmHWM") - before);
}

/// The growth of the peak of a new process that runs a few steps of an experiment, with the plan's total.
fn measured(experiment: &Path) -> (usize, usize) {
    let test = "plan_is_allocation_and_the_peak_of_the_process_grows_by_no_more";
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(MEASURED, experiment);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| Some(line.split_once("measured: ")?.1));
    let line = line.unwrap_or_else(|| panic!("{text}\n{}", String::from_utf8_lossy(&output.stderr)));
    let (planned, grown) = line.split_once(' ').unwrap();
    (planned.parse().unwrap(), grown.parse().unwrap())
}

/// The bytes that `tenon plan` prints: arena, scratch, all.
fn printed(lab: &Lab, experiment: &Path) -> [usize; 3] {
    let out = lab.tenon(&format!("plan {}", experiment.display())).expect(0).stdout;
    ["arena ", "scratch ", "all "].map(|name| {
        let line = out.lines().find(|line| line.contains(" bytes · all ")).unwrap();
        let bytes = line.split(name).nth(1).unwrap().split(" bytes").next().unwrap();
        bytes.replace(',', "").parse().unwrap()
    })
}

#[test]
fn plan_is_allocation_and_the_peak_of_the_process_grows_by_no_more() {
    if let Some(experiment) = std::env::var_os(MEASURED) {
        return measure(&Lab::new("measured"), Path::new(&experiment));
    }
    let lab = Lab::new("allocation");
    lab.write("text.txt", sentences(30_000));
    // With all threads, as this process counts.
    let own = std::fs::read_to_string(lab.own(OWN)).unwrap().replace("threads = 1\n", "");
    let own = lab.write("own.toml", own);
    let published = lab.write("gpt2.toml", PUBLISHED);
    for experiment in [recipe("digits.toml"), recipe("moby-dick.toml"), own, published.clone()] {
        let setup = lab.setup(&experiment, &[]);
        let backend = backend();
        let plan = setup.plan(&backend).unwrap();
        let session = backend.session(plan.programs()).unwrap();
        let allocated = session.allocation();
        let name = experiment.display();
        assert_eq!(*allocated, plan.allocation, "{name}");
        assert_eq!([allocated.arena, allocated.scratch, allocated.total()], printed(&lab, &experiment), "{name}");
        let arena = plan.programs().iter().map(|p| p.arena_bytes).max().unwrap();
        assert_eq!(allocated.arena, arena, "{name}");
        if experiment == published {
            assert_eq!(plan.parameters, 124_439_808, "{name}");
        }
        drop(session);
        let (planned, grown) = measured(&experiment);
        assert_eq!(planned, plan.allocation.total(), "{name}");
        let bound = planned + planned * 3 / 100 + (48 << 20);
        println!("{name}: {planned} planned, {grown} measured");
        assert!(grown <= bound, "{name}: {planned} bytes planned, {grown} measured, {bound} allowed");
    }
}

/// Four layers whose activations outweigh the rest.
const FOUR: [&str; 5] =
    ["model.layers=4", "model.width=64", "model.heads=4", "train.batch=24", "train.optimizer.lr=1e-2"];

fn with_memory(lab: &Lab, bytes: usize, precision: &str) -> Setup {
    let (memory, precision) = (format!("train.memory=\"{bytes}B\""), format!("train.precision=\"{precision}\""));
    let set: Vec<&str> = FOUR.into_iter().chain([&*memory, &*precision]).collect();
    lab.setup(&lab.path("gpt.toml"), &set)
}

fn refusal(setup: &Setup) -> OverBudget {
    match setup.plan(&backend()) {
        Err(SetupError::Plan(PlanError::Memory(over))) => *over,
        Err(other) => panic!("{other}"),
        Ok(plan) => panic!("{} bytes fit", plan.allocation.total()),
    }
}

#[test]
fn every_budget_is_obeyed_with_the_same_bits() {
    let lab = Lab::new("budget");
    lab.write("gpt.toml", GPT);
    for precision in ["f32", "bf16"] {
        let backend = backend();
        let unlimited = with_memory(&lab, 1 << 40, precision);
        let plain = unlimited.plan(&backend).unwrap().allocation.total();
        let over = refusal(&with_memory(&lab, 1, precision));
        let smallest = over.smallest;
        assert_eq!(over.plain, plain);
        assert!(smallest < plain * 9 / 10, "there is something to recompute: {smallest} of {plain}");
        let expected = checksum_after(&unlimited, 4, &backend);
        let mut before = 0;
        let rungs = 24;
        for rung in 0..=rungs {
            let budget = smallest + (plain - smallest) * rung / rungs;
            let setup = with_memory(&lab, budget, precision);
            let plan = setup.plan(&backend).unwrap_or_else(|e| panic!("{precision}, budget {budget}: {e}"));
            let total = plan.allocation.total();
            assert!(total <= budget, "{precision}: {total} bytes in a budget of {budget}");
            assert!(total >= before, "{precision}: {total} bytes in a budget of {budget}, {before} in a smaller one");
            before = total;
            if rung % 6 == 0 {
                assert_eq!(trainer(&setup, &backend).allocation().total(), total);
                assert_eq!(checksum_after(&setup, 4, &backend), expected, "{precision}, budget {budget}");
            }
        }
        assert_eq!(before, plain);
    }
}

/// An experiment with other settings, and what its plan takes in a budget, or why it is refused.
struct Budgeted<'a> {
    lab: &'a Lab,
    experiment: &'a Path,
    set: &'a [&'a str],
}

impl Budgeted<'_> {
    fn total(&self, memory: &str) -> Result<usize, OverBudget> {
        let memory = format!("train.memory=\"{memory}\"");
        let set: Vec<&str> = self.set.iter().copied().chain([&*memory]).collect();
        match self.lab.setup(self.experiment, &set).plan(&backend()) {
            Ok(plan) => Ok(plan.allocation.total()),
            Err(SetupError::Plan(PlanError::Memory(over))) => Err(*over),
            Err(other) => panic!("{other}"),
        }
    }

    /// What is wrong with the budgets of this experiment.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut check = |holds: bool, what: String| {
            if !holds {
                faults.push(format!("{} {:?}: {what}", self.experiment.display(), self.set));
            }
        };
        let over = self.total("1B").expect_err("nothing fits in a byte");
        let (smallest, plain) = (over.smallest, over.plain);
        check(self.total(&format!("{smallest}B")).as_ref() == Ok(&smallest), format!("{smallest} bytes, as named"));
        let less = self.total(&format!("{}B", smallest - 1));
        check(less.as_ref().is_err_and(|less| less.smallest == smallest), format!("a byte less: {less:?}"));
        let message = PlanError::Memory(Box::new(over)).to_string();
        let printed = message.split("try: memory = \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        let total = self.total(printed);
        check(total.is_ok(), format!("{printed}, as printed: {total:?}"));
        let (number, unit) = printed.split_at(printed.find(|c: char| !c.is_ascii_digit()).unwrap());
        let less = format!("{}{unit}", number.parse::<usize>().unwrap() - 1).parse::<ByteSize>().unwrap();
        check(less.0 < smallest as u64, format!("{printed} is named, and {less} is enough"));
        let mut before = smallest;
        for third in 1..=3 {
            let budget = smallest + (plain - smallest) * third / 3;
            let total = self.total(&format!("{budget}B"));
            check(total.as_ref().is_ok_and(|t| (before..=budget).contains(t)), format!("{total:?} in {budget}"));
            before = total.unwrap_or(before);
        }
        check(before == plain, format!("{before} where {plain} are allowed"));
        faults
    }
}

#[test]
fn the_named_budget_works_and_one_unit_less_does_not() {
    let lab = Lab::new("smallest");
    lab.write("text.txt", sentences(30_000));
    lab.write("gpt.toml", GPT);
    let (own, published) = (lab.own(OWN), lab.write("gpt2.toml", PUBLISHED));
    let (moby_dick, digits) = (recipe("moby-dick.toml"), recipe("digits.toml"));
    let [f32, bf16] = ["f32", "bf16"].map(|precision| format!("train.precision=\"{precision}\""));
    let large = |precision| ["train.batch=2", "model.context=512", precision];
    let (large_f32, large_bf16) = (large(&*f32), large(&*bf16));
    let cases: [(&Path, &[&str]); 5] =
        [(&published, &large_f32), (&published, &large_bf16), (&moby_dick, &[]), (&digits, &[]), (&own, &[])];
    let faults: Vec<String> = std::thread::scope(|scope| {
        let threads = cases.map(|(experiment, set)| {
            let lab = &lab;
            scope.spawn(move || Budgeted { lab, experiment, set }.faults())
        });
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn below_the_smallest_budget_the_refusal_says_what_works() {
    let lab = Lab::new("refusal");
    lab.write("gpt.toml", GPT);
    let smallest = refusal(&with_memory(&lab, 1, "f32")).smallest;
    let over = refusal(&with_memory(&lab, smallest - 1, "f32"));
    assert_eq!(over.smallest, smallest);
    assert!(with_memory(&lab, smallest, "f32").plan(&backend()).is_ok());
    let (batch, bytes) = over.smaller_batch.expect("a smaller batch");
    assert!(bytes < smallest);
    let mut smaller = with_memory(&lab, bytes, "f32");
    smaller.experiment.train.batch = batch as u64;
    assert!(smaller.plan(&backend()).is_ok(), "the batch of {batch} that was suggested, in {bytes} bytes");
    let hopeless = refusal(&with_memory(&lab, 1, "f32"));
    let (batch, bytes) = hopeless.smaller_batch.expect("one sample");
    smaller.experiment.train.batch = batch as u64;
    smaller.experiment.train.memory = Some(ByteSize(bytes as u64 - 1));
    assert_eq!((batch, refusal(&smaller).smallest), (1, bytes));
    let bf16 = over.in_bf16.expect("bf16 takes less");
    assert!(with_memory(&lab, bf16, "bf16").plan(&backend()).is_ok(), "the {bf16} bytes in bf16 that were suggested");

    let sets: Vec<String> = FOUR.iter().map(|s| format!("--set {s}")).collect();
    let arguments = format!("plan gpt.toml {}", sets.join(" "));
    let refused = lab.tenon(&format!("{arguments} --set train.memory=\"{}B\"", smallest / 2)).expect(2).stderr;
    let named = refused.split("try: memory = \"").nth(1).and_then(|rest| rest.split('"').next());
    let named = named.unwrap_or_else(|| panic!("{refused}"));
    // The program has as many threads as the machine, and so more or less working memory than the backend here.
    assert!(named.parse::<ByteSize>().unwrap().0 >= smallest as u64 / 2, "{refused}");
    assert!(refused.contains("try: batch = ") && refused.contains(" instead of 24"), "{refused}");
    assert!(refused.contains("try: precision = \"bf16\""), "{refused}");
    lab.tenon(&format!("{arguments} --set train.memory=\"{named}\"")).expect(0);
    lab.tenon(&format!("train gpt.toml --set train.steps=1 {} --set train.memory=1KiB", sets.join(" "))).expect(2);
    assert!(!lab.path("runs/gpt").join("checkpoints").exists(), "a refused run leaves nothing behind");
}
