//! The metrics log: what is read is what was written, a cut-off line costs only itself, and a resumed run's file equals an
//! uninterrupted one.

use std::fs;

use proptest::prelude::*;
use tenon_train::metrics::{Kind, MetricsLog, Record, read};

/// What a run writes at a step: a function of the step but for the wall time.
fn records(step: u64, clock: f64) -> Vec<Record> {
    let mut train = Record::new(step, Kind::Train, [("loss", 5.0 / (step as f64 + 0.1)), ("lr", 1e-3 / 3.0)]);
    train.wall.insert("elapsed".into(), clock);
    let mut all = vec![train];
    if step.is_multiple_of(3) {
        all.push(Record::new(
            step,
            Kind::Evaluate,
            [("val_loss", if step == 6 { f64::NAN } else { 2.5 }), ("inf", -f64::INFINITY)],
        ));
        let text = Some("Call me\nIshmael \"\u{1f40b}\"".to_owned());
        all.push(Record { text, ..Record::new(step, Kind::Sample, []) });
    }
    all
}

fn same(a: &[Record], b: &[Record]) {
    let text = |records: &[Record]| {
        let strip = |record: &Record| Record { wall: Default::default(), ..record.clone() };
        records.iter().map(|record| serde_json::to_string(&strip(record)).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(text(a), text(b));
}

#[test]
fn a_file_that_is_not_there_has_no_records() {
    let folder = tempfile::tempdir().unwrap();
    assert!(read(&folder.path().join("metrics.jsonl")).unwrap().is_empty());
}

#[test]
fn what_follows_a_damaged_line_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let line = |step: u64| serde_json::to_string(&records(step, 0.0)[0]).unwrap();
    for garbage in [
        "{}",
        "\u{fffd}",
        "[1,2]",
        "{\"step\":-1,\"kind\":\"train\"}",
        "{\"step\":1,\"kind\":\"train\",\"values\":{\"a\":\"b\"}}",
    ] {
        fs::write(&path, format!("{}\n{garbage}\n{}\n", line(1), line(2))).unwrap();
        same(&read(&path).unwrap(), &records(1, 0.0));
        let (_, kept) = MetricsLog::resume(&path, 5).unwrap();
        same(&kept, &records(1, 0.0));
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", line(1)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// A run of 12 steps is killed at any step and any byte of its last line, and goes on from any earlier checkpoint.
    #[test]
    fn a_resumed_run_writes_the_file_of_an_uninterrupted_one(
        kills in prop::collection::vec((1..12u64, 0.0..1.0f64, 0..40usize), 0..4),
    ) {
        const STEPS: u64 = 12;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut done = 0;
        for (run, (steps, back, cut)) in kills.into_iter().chain([(STEPS, 0.0, 0)]).enumerate() {
            let (mut log, kept) = MetricsLog::resume(&path, done).unwrap();
            let before: Vec<Record> = (1..=done).flat_map(|step| records(step, 0.0)).collect();
            same(&kept, &before);
            let last = (done + steps).min(STEPS);
            for record in (done + 1..=last).flat_map(|step| records(step, run as f64)) {
                log.append(&record).unwrap();
            }
            log.sync().unwrap();
            let size = fs::metadata(&path).unwrap().len();
            let saved = done + ((last - done) as f64 * back) as u64;
            // What was appended after the checkpoint may be lost in part.
            let safe: usize = fs::read_to_string(&path).unwrap().lines().take(records_up_to(saved)).map(|line| line.len() + 1).sum();
            fs::OpenOptions::new().write(true).open(&path).unwrap().set_len((size - cut as u64).max(safe as u64)).unwrap();
            done = if last == STEPS && cut == 0 { STEPS } else { saved };
        }
        let expected: Vec<Record> = (1..=STEPS).flat_map(|step| records(step, 0.0)).collect();
        same(&read(&path).unwrap(), &expected);
    }
}

fn records_up_to(step: u64) -> usize {
    (1..=step).map(|step| records(step, 0.0).len()).sum()
}
