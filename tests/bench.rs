//! `bench`: what its statistics say of known samples, when two series are called different, and the forms it prints.

use qwentune::bench::compare::{self, Comparison, Pairing, Verdict};
use qwentune::bench::format::{Format, short};
use qwentune::bench::report::{Better, Conditions, Machine, Measurement, Program, Report, SCHEMA_VERSION};
use qwentune::bench::statistics::{
    drift, median, median_absolute_deviation, median_interval, outliers, paired_ratio, ratio,
};
use qwentune::error::Kind;
use qwentune::philox::{Stream, uniform};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// `count` values around `middle`, evenly spread over ± `spread` of it.
fn noisy(series: u64, count: usize, middle: f64, spread: f64) -> Vec<f64> {
    let draw = |i: usize| 2.0 * uniform(series, Stream::Benchmark, i as u64) - 1.0;
    (0..count).map(|i| middle * (1.0 + spread * draw(i))).collect()
}

fn measurement(better: Better, samples: Vec<f64>) -> Measurement {
    let conditions = vec![Conditions { seconds: 1.0, ..Conditions::default() }; samples.len()];
    let empty = Measurement {
        workload: "train".into(),
        name: "tokens_per_second".into(),
        unit: "tokens/s".into(),
        better,
        parameters: BTreeMap::from([("tokens".to_owned(), json!(512)), ("shape".to_owned(), json!("tiny"))]),
        samples: Vec::new(),
        median: 0.0,
        mad: 0.0,
        interval: [0.0; 2],
        outliers: Vec::new(),
        settled: true,
        digest: Some("00ff".into()),
        flags: Vec::new(),
        details: BTreeMap::new(),
        conditions: Vec::new(),
    };
    empty.with_samples(samples, conditions)
}

fn report(results: Vec<Measurement>) -> Report {
    Report {
        schema_version: SCHEMA_VERSION,
        program: Program {
            version: "1.2.3".into(),
            commit: Some("abc".into()),
            binary: "b".repeat(64),
            kernels: None,
        },
        machine: Machine {
            device: "a processor".into(),
            driver: None,
            power_limit_w: None,
            threads: 2,
            system: "linux x86_64".into(),
        },
        results,
    }
}

#[test]
fn middles_and_spreads_are_those_of_known_samples() {
    assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    assert_eq!(median_absolute_deviation(&[1.0, 1.0, 2.0, 2.0, 4.0, 6.0, 9.0]), 1.0);
    assert_eq!(outliers(&[1.0, 1.1, 0.9, 1.0, 1.05, 9.0, 1.0]), [5]);
    assert!(outliers(&[1.0; 9]).is_empty());
    assert_eq!(drift(&[1.0, 1.0, 1.0, 1.2, 1.2, 1.2]), 1.2 / 1.0 - 1.0);
}

#[test]
fn the_interval_holds_the_true_median_as_often_as_it_says() {
    // 200 series of 15 values whose median is 1: at 95 % about 190 intervals hold it. A percentile bootstrap of so few
    // values is known to hold it a little less often.
    let holds = |series: u64| {
        let [low, high] = median_interval(&noisy(series, 15, 1.0, 0.2));
        low <= 1.0 && 1.0 <= high
    };
    let held = (0..200).filter(|series| holds(1000 + series)).count();
    assert!((178..=200).contains(&held), "{held} of 200");
    let twice = [(); 2].map(|()| median_interval(&noisy(7, 15, 1.0, 0.2)));
    assert_eq!(twice[0], twice[1]);
}

#[test]
fn a_drift_cancels_in_pairs_and_only_there() {
    // The machine slows down by a third while both are measured in turn; the new one is 10 % slower all the time.
    let machine: Vec<f64> = (0..20).map(|i| 100.0 * (1.0 - f64::from(i) / 60.0)).collect();
    let old: Vec<f64> = machine.iter().zip(noisy(1, 20, 1.0, 0.01)).map(|(m, n)| m * n).collect();
    let new: Vec<f64> = machine.iter().zip(noisy(2, 20, 0.9, 0.01)).map(|(m, n)| m * n).collect();
    let paired = paired_ratio(&new, &old);
    assert!((0.88..0.92).contains(&paired.interval[0]) && paired.interval[1] < 0.92, "{paired:?}");
    let apart = ratio(&new, &old);
    assert!(
        apart.interval[1] - apart.interval[0] > 2.0 * (paired.interval[1] - paired.interval[0]),
        "{apart:?}"
    );
}

/// Fair coins on both sides of 1: an interval of nine is all of them, so that one of them on the other side is enough to be unsure;
/// eight are too few to be sure of anything.
#[test]
fn few_pairs_are_called_different_when_all_of_them_are() {
    let pairs = |ratios: &[f64]| paired_ratio(ratios, &vec![1.0; ratios.len()]).sure;
    let nine = [1.3, 1.1, 1.5, 1.2, 1.4, 1.6, 1.7, 1.8, 0.9];
    assert_eq!(pairs(&nine), [0.9, 1.8]);
    assert_eq!(pairs(&nine[..8]), [0.0, f64::INFINITY]);
    // Of 21, the fourth from either end: 2 x 1562 / 2^21 are less than 0.5 %, and 2 x 7547 / 2^21 more.
    let many: Vec<f64> = (1..=21).map(f64::from).collect();
    assert_eq!(pairs(&many), [4.0, 18.0]);
    // Of equal programs with any noise one in two hundred is called different, so about two of 400.
    let wrong = |series: u64| {
        let [low, high] = pairs(&noisy(5000 + series, 9, 1.0, 0.6));
        low > 1.0 || high < 1.0
    };
    assert!((0..400).filter(|series| wrong(*series)).count() <= 5);
}

fn compared(pairing: Pairing, better: Better, factor: f64, spread: f64, series: u64) -> Comparison {
    let old = measurement(better, noisy(series, 21, 100.0, spread));
    let new = measurement(better, noisy(series + 1, 21, 100.0 * factor, spread));
    compare::measurements(&old, &new, 0.03, pairing)
}

#[test]
fn verdicts_follow_the_interval_and_the_direction() {
    for pairing in [Pairing::Interleaved, Pairing::Apart] {
        let verdict = |better, factor, spread| compared(pairing, better, factor, spread, 40).verdict;
        assert_eq!(verdict(Better::Higher, 1.1, 0.01), Verdict::Faster);
        assert_eq!(verdict(Better::Higher, 0.9, 0.01), Verdict::Slower);
        assert_eq!(verdict(Better::Lower, 1.1, 0.01), Verdict::Slower);
        assert_eq!(verdict(Better::Lower, 0.9, 0.01), Verdict::Faster);
        assert_eq!(verdict(Better::Higher, 1.0, 0.005), Verdict::Same);
        assert_eq!(verdict(Better::Higher, 0.97, 0.2), Verdict::Unsure);
    }
    // Of two equal programs hardly ever one is called faster or slower, whatever the noise.
    let told = |series: u64, spread: f64| {
        let verdict = compared(Pairing::Interleaved, Better::Higher, 1.0, spread, 2 * series).verdict;
        matches!(verdict, Verdict::Faster | Verdict::Slower)
    };
    let wrong = |spread: f64| (0..60).filter(|series| told(*series, spread)).count();
    assert_eq!((wrong(0.01), wrong(0.05)), (0, 0));
    assert!(wrong(0.5) <= 2, "{} of 60", wrong(0.5));
}

#[test]
fn samples_of_two_times_on_a_busy_machine_tell_nothing() {
    let old = measurement(Better::Higher, noisy(1, 15, 100.0, 0.01));
    let mut new = measurement(Better::Higher, noisy(2, 15, 80.0, 0.01));
    assert_eq!(compare::measurements(&old, &new, 0.03, Pairing::Apart).verdict, Verdict::Slower);
    new.flags = vec!["other processes used 40 % of the processors".into()];
    let doubtful = compare::measurements(&old, &new, 0.03, Pairing::Apart);
    assert_eq!(doubtful.verdict, Verdict::Unsure);
    assert_eq!(doubtful.notes, ["new: other processes used 40 % of the processors"]);
    // In turn, both sides met the same.
    assert_eq!(compare::measurements(&old, &new, 0.03, Pairing::Interleaved).verdict, Verdict::Slower);
}

#[test]
fn other_numbers_fail_whatever_the_speed() {
    let old = measurement(Better::Higher, vec![1.0; 9]);
    let mut new = old.clone();
    assert!(!compare::measurements(&old, &new, 0.03, Pairing::Apart).fails());
    new.digest = Some("00fe".into());
    let comparison = compare::measurements(&old, &new, 0.03, Pairing::Apart);
    assert_eq!((comparison.verdict, comparison.same_numbers), (Verdict::Same, Some(false)));
    assert!(comparison.fails());
}

#[test]
fn reports_of_other_machines_or_other_work_are_refused() {
    let one = report(vec![measurement(Better::Higher, vec![1.0; 9])]);
    let mut other = one.clone();
    other.machine.device = "another processor".into();
    let error = compare::reports(&one, &other, 0.03, false).unwrap_err();
    assert_eq!(error.kind, Kind::Usage);
    assert!(error.what.contains("device a processor -> another processor"), "{error}");
    assert_eq!(compare::reports(&one, &other, 0.03, true).unwrap().len(), 1);
    let mut other = one.clone();
    other.results[0].parameters.insert("tokens".into(), json!(1024));
    let error = compare::reports(&one, &other, 0.03, false).unwrap_err();
    assert!(error.what.contains("tokens=512") && error.what.contains("tokens=1024"), "{error}");
    assert!(compare::reports(&one, &other, 0.03, true).is_err());
}

#[test]
fn a_report_is_read_as_it_was_written_and_wrong_ones_are_named() {
    let folder = crate::scratch::folder();
    let path = folder.join("report.json");
    let written = report(vec![measurement(Better::Lower, noisy(3, 9, 0.1, 0.3))]);
    std::fs::write(&path, Format::Json.render(&written).unwrap()).unwrap();
    assert_eq!(Report::read(&path).unwrap(), written);
    let mut value = json!(written);
    value["schema_version"] = json!(99);
    for (text, words) in [
        ("{".to_owned(), "no report"),
        ("[]".to_owned(), "no schema_version"),
        (value.to_string(), "schema_version 99, this program reads 1"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = Report::read(&path).unwrap_err();
        assert!(error.kind == Kind::Input && error.what.contains(words), "{error}");
    }
}

#[test]
fn each_form_is_the_one_its_reader_documents() {
    let fast = report(vec![measurement(Better::Higher, vec![100.0, 102.0, 98.0, 101.0, 99.0])]);
    let read = |format: Format| -> Value { serde_json::from_str(&format.render(&fast).unwrap()).unwrap() };
    let label = "train/tokens_per_second shape=tiny tokens=512";

    let github = read(Format::Github);
    assert_eq!(github[0]["name"], label);
    assert_eq!((&github[0]["unit"], &github[0]["value"]), (&json!("tokens/s"), &json!(100.0)));
    assert!(github[0]["range"].is_string() && github[0]["extra"].is_string());

    let bmf = read(Format::Bmf);
    let measure = &bmf[label]["tokens-per-second"];
    assert_eq!(measure["value"], 100.0);
    assert!(measure["lower_value"].as_f64() <= Some(100.0) && measure["upper_value"].as_f64() >= Some(100.0));

    let google = read(Format::Google);
    let entries = google["benchmarks"].as_array().unwrap();
    assert_eq!(entries.len(), 5 + 3);
    assert_eq!((&entries[0]["run_type"], &entries[0]["time_unit"]), (&json!("iteration"), &json!("ns")));
    let median = entries.iter().find(|e| e["aggregate_name"] == "median").unwrap();
    assert!((median["real_time"].as_f64().unwrap() - 1e7).abs() < 1.0, "a token at 100 a second takes 10 ms");

    let lines = Format::JsonLines.render(&fast).unwrap();
    let line: Value = serde_json::from_str(lines.trim_end()).unwrap();
    assert_eq!((&line["result"]["median"], &line["program"]["commit"]), (&json!(100.0), &json!("abc")));

    let csv = Format::Csv.render(&fast).unwrap();
    assert!(
        csv.lines().nth(1).unwrap().contains("\"{\"\"shape\"\":\"\"tiny\"\",\"\"tokens\"\":512}\""),
        "{csv}"
    );

    let table = Format::Markdown.render(&fast).unwrap();
    assert!(table.contains("| train/tokens_per_second shape=tiny tokens=512 | 100.0 |"), "{table}");

    let both = report(vec![measurement(Better::Higher, vec![1.0]), measurement(Better::Lower, vec![1.0])]);
    assert!(Format::Github.render(&both).unwrap_err().what.contains("both directions"));
}

/// The lines of a ledger as the table of `docs/performance.md`, the newest of each result.
fn figures(ledger: &str) -> String {
    let mut rows = BTreeMap::new();
    for line in ledger.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let m: Measurement = serde_json::from_value(line["result"].clone()).unwrap();
        let (program, machine) = (&line["program"], &line["machine"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let [low, high] = m.interval.map(short);
        let notes = if m.flags.is_empty() { "none".into() } else { m.flags.join("; ") };
        rows.insert(
            (text(&machine["device"]), m.label()),
            format!(
                "| {} | {} {} | {low} to {high} | {} | {}, {} threads | {} | {notes} |\n",
                m.label(),
                short(m.median),
                m.unit,
                m.samples.len(),
                text(&machine["device"]),
                machine["threads"],
                text(&program["commit"]),
            ),
        );
    }
    let head = "| result | median | 95 % interval | samples | machine | commit | notes |\n| --- | --- | --- | ---: | --- | --- | --- |\n";
    head.to_owned() + &rows.into_values().collect::<String>()
}

#[test]
fn the_figures_of_the_guide_are_those_of_the_ledger() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let made = figures(&read("benches/results/ledger.jsonl"));
    let guide = read("docs/performance.md");
    let begin = "<!-- figures: made of benches/results/ledger.jsonl; tests/bench.rs compares -->\n";
    let between = guide.split_once(begin).and_then(|(_, rest)| rest.split_once("<!-- figures end -->"));
    let new = Path::new(env!("CARGO_TARGET_TMPDIR")).join("figures.md");
    std::fs::write(&new, &made).unwrap();
    assert!(
        between.is_some_and(|(shown, _)| shown == made),
        "the guide shows other figures than the ledger has: copy {} between its marks",
        new.display()
    );
}
