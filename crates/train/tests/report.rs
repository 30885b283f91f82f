//! The report: well-formed, complete, and sane for any records.

use proptest::prelude::*;
use tenon_train::experiment::Bound;
use tenon_train::goal::Verdict;
use tenon_train::metrics::{Kind, Record};
use tenon_train::report::{Planned, Report, Unit};
use tenon_train::tune::{Status, Trial};

fn report(records: Vec<Record>) -> Report {
    let goals = [("bits_per_byte".to_owned(), Bound::AtMost(2.2))].into();
    Report {
        title: "moby <dick> & co".into(),
        subtitle: "gpt2".into(),
        verdict: Verdict::of(&goals, &[("bits_per_byte".to_owned(), 2.31)].into()),
        plan: vec![Planned {
            name: "peak memory".into(),
            unit: Unit::Bytes,
            planned: Some(157.0 * 1048576.0),
            measured: Some(160.0 * 1048576.0),
        }],
        trials: vec![Trial {
            trial: 0,
            assignment: [("train.optimizer.lr".to_owned(), tenon_train::experiment::Hyperparameter::Float(3e-4))]
                .into(),
            status: Status::Refused { reason: "needs 2 GiB of 1 GiB".into() },
            scores: vec![],
            seconds: 0.0,
        }],
        environment: vec![("processor".into(), "two <cores>".into())],
        experiment: "[train]\nsteps = 10\n".into(),
        records,
    }
}

/// Every element is closed in order; void elements and attributes are those the report uses.
fn well_formed(html: &str) {
    let mut open = Vec::new();
    let mut rest = html.strip_prefix("<!doctype html>").expect("a document type");
    while let Some(start) = rest.find('<') {
        let end = start + rest[start..].find('>').expect("a tag ends");
        let tag = &rest[start + 1..end];
        let name: String = tag.trim_start_matches('/').chars().take_while(char::is_ascii_alphanumeric).collect();
        if tag.starts_with('/') {
            assert_eq!(open.pop().as_deref(), Some(name.as_str()), "</{name}> closes");
        } else if !tag.ends_with('/') && name != "meta" {
            open.push(name.clone());
        }
        rest = &rest[end + 1..];
        if name == "style" && !tag.starts_with('/') {
            rest = &rest[rest.find("</style>").expect("the style ends")..];
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
}

#[test]
fn everything_is_in_it_and_escaped() {
    let mut records = vec![
        Record::new(10, Kind::Train, [("loss", 4.0), ("lr", 1e-3)]),
        Record::new(20, Kind::Train, [("loss", 3.0), ("lr", 5e-4)]),
        Record::new(20, Kind::Evaluate, [("val_loss", 3.2), ("bits_per_byte", 2.31)]),
    ];
    records[1].wall.insert("tokens_per_second".into(), 22_100.0);
    records[1].wall.insert("elapsed".into(), 83.0);
    records.push(Record { text: Some("Call <me> & \"Ishmael\"".into()), ..Record::new(20, Kind::Sample, []) });
    let html = report(records).html();
    well_formed(&html);
    for text in [
        "moby &lt;dick&gt; &amp; co",
        "Goal not met",
        "bits_per_byte 2.310 &gt; 2.2, by 0.1100 (5.0%)",
        "goal: at most 2.2",
        "Call &lt;me&gt; &amp; &quot;Ishmael&quot;",
        "157.0 MiB",
        "+1.9%",
        "22.1k",
        "83.00 s",
        "Learning rate",
        "Validation loss",
        "refused: needs 2 GiB of 1 GiB",
        "two &lt;cores&gt;",
        "<span class=\"name\">steps</span> = 10",
        "prefers-color-scheme: dark",
    ] {
        assert!(html.contains(text) || html.contains(&text.to_lowercase()), "{text} is not in the report");
    }
    assert!(!html.contains("<script") && !html.contains("http"), "self-contained and without scripts");
}

#[test]
fn a_run_without_anything_has_a_report() {
    let html = Report { title: "empty".into(), ..Report::default() }.html();
    well_formed(&html);
    assert!(!html.contains("<svg") && !html.contains("Goal"));
}

#[test]
fn a_long_run_has_a_small_report() {
    let records = (0..100_000).map(|step| Record::new(step, Kind::Train, [("loss", f64::from(step as u32 % 977))]));
    let html = report(records.collect()).html();
    assert!(html.len() < 100_000, "{} bytes", html.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_numbers_are_drawn_inside_the_chart(
        values in prop::collection::vec(
            prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(0.0), Just(-3.0), 1e-9..1e-3, 0.1..10.0, 1e3..1e12], 0..40),
        start in 0..1_000_000u64,
    ) {
        let records = values.iter().enumerate().flat_map(|(index, value)| {
            let step = start + index as u64;
            [Record::new(step, Kind::Train, [("loss", *value), ("lr", *value)]), Record::new(step, Kind::Evaluate, [("val_loss", *value)])]
        });
        let html = report(records.collect()).html();
        well_formed(&html);
        for svg in html.split("<svg ").skip(1) {
            let svg = &svg[..svg.find("</svg>").unwrap()];
            prop_assert!(!svg.contains("=\"NaN") && !svg.contains("NaN,") && !svg.contains(",inf"), "{}", svg);
            for points in svg.split("points=\"").skip(1) {
                for point in points[..points.find('"').unwrap()].split_whitespace() {
                    let (x, y) = point.split_once(',').unwrap();
                    let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                    prop_assert!((0.0..=1040.0).contains(&x) && (0.0..=330.0).contains(&y), "{point}");
                }
            }
        }
    }
}
