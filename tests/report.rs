//! What a run writes for others to read: `metrics.jsonl` bit for bit, the report page, the console's words.

use qwentune::report::console::duration;
use qwentune::report::html::{Compared, compare, render};
use qwentune::report::jsonl::{Line, read};
use qwentune::report::line::{EvalLine, LogLine, StepLine};

fn step(step: u64, loss: f64) -> StepLine {
    StepLine { step, epoch: step as f64 / 7.0, loss, grad_norm: loss * 0.3, lr: 1e-4 / 3.0, tokens: 100 }
}

fn logged(line: StepLine) -> Line {
    Line { logged: LogLine::Step(line), seconds: Some(0.25) }
}

fn evaluation(step: u64, eval_loss: f64, seconds: Option<f64>) -> Line {
    Line { logged: LogLine::Eval(EvalLine { step, epoch: 0.5, eval_loss }), seconds }
}

#[test]
fn floats_come_back_with_the_same_bits() {
    let hard = [
        0.1 + 0.2,
        1.0,
        f64::MIN_POSITIVE,
        5e-324,
        f64::MAX,
        1.0 / 3.0,
        2.0f64.powi(60),
        -0.0,
        1e21,
        123_456.789e-12,
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let random = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f64::from_bits(state)
    });
    for value in hard.into_iter().chain(random.filter(|v| v.is_finite()).take(2000)) {
        let line = logged(StepLine { loss: value, ..step(3, 1.0) });
        let text = line.json();
        let LogLine::Step(back) = Line::parse(text.trim_end()).unwrap().logged else { panic!("{text}") };
        assert_eq!(back.loss.to_bits(), value.to_bits(), "{text}");
    }
}

#[test]
fn lines_have_the_documented_fields_in_order() {
    let line = StepLine { step: 3, epoch: 0.5, loss: 2.0, grad_norm: 1.5, lr: 1e-4, tokens: 9 };
    let text = Line { seconds: None, ..logged(line) }.json();
    assert_eq!(
        text,
        "{\"step\":3,\"epoch\":0.5,\"loss\":2.0,\"grad_norm\":1.5,\"lr\":0.0001,\"tokens\":9,\"seconds\":null}\n"
    );
    let eval = evaluation(3, 2.25, Some(1.5));
    assert_eq!(eval.json(), "{\"step\":3,\"epoch\":0.5,\"eval_loss\":2.25,\"seconds\":1.5}\n");
    assert_eq!(Line::parse(eval.json().trim_end()).unwrap(), eval);
}

#[test]
fn damage_is_found_and_what_stands_before_it_is_kept() {
    let lines = [logged(step(1, 3.0)), evaluation(1, 2.0, None), logged(step(2, 2.5))];
    let whole: String = lines.iter().map(Line::json).collect();
    let metrics = read(whole.as_bytes());
    assert_eq!(
        (metrics.lines.as_slice(), metrics.valid_bytes, &metrics.damage),
        (&lines[..], whole.len(), &None)
    );
    let two = whole.len() - lines[2].json().len();
    for cut in two + 1..whole.len() {
        let metrics = read(&whole.as_bytes()[..cut]);
        assert_eq!((metrics.lines.len(), metrics.valid_bytes), (2, two), "cut at {cut}");
        assert!(metrics.damage.unwrap().contains("line 3 is torn"));
    }
    for bad in [
        "null\n",
        "{}\n",
        "\0\0\0\n",
        "\n",
        "{\"step\":1}\n",
        "{\"step\":3,\"epoch\":0,\"loss\":null,\"grad_norm\":1,\"lr\":1,\"tokens\":1,\"seconds\":1}\n",
    ] {
        let text = whole.clone() + bad + &lines[0].json();
        let metrics = read(text.as_bytes());
        assert_eq!((metrics.lines.len(), metrics.valid_bytes), (3, whole.len()), "{bad:?}");
        assert!(metrics.damage.unwrap().starts_with("line 4"), "{bad:?}");
    }
    assert_eq!(read(b"").damage, None);
}

#[test]
fn the_page_stands_alone_and_stays_small() {
    let noise = |n: u64| (n.wrapping_mul(0x9e37_79b9) >> 16 & 0xff) as f64 / 1000.0;
    let mut lines: Vec<Line> =
        (1..=100_000).map(|n| logged(step(n, 1.0 + 900.0 / (n + 400) as f64 + noise(n)))).collect();
    lines.extend((0..5).map(|n| evaluation(n * 20_000, 2.0, None)));
    let page = render("run <b> & \"co\"", &lines, "{\"a\": \"</pre><script>alert(1)</script>\"}");
    std::fs::write(concat!(env!("CARGO_TARGET_TMPDIR"), "/report-100k-steps.html"), &page).unwrap();
    assert!(page.len() < 600_000, "{} bytes", page.len());
    assert!(page.contains("run &lt;b&gt; &amp; &quot;co&quot;"));
    for banned in ["<script", "http", "src=", "@import", "url("] {
        assert!(!page.contains(banned), "{banned}");
    }
    assert_eq!(page.matches("<svg").count(), 4);
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    for words in
        ["Loss", "Learning rate", "Gradient norm", "scored tokens per second", "evaluation loss", "100000"]
    {
        assert!(page.contains(words), "{words}");
    }
    assert!(!page.contains("NaN") && !page.contains("inf"), "a place that is no number");
}

#[test]
fn a_page_of_little_or_nothing_is_still_a_page() {
    for steps in [vec![], vec![step(1, 2.0)], vec![step(1, 0.0), step(2, 0.0)]] {
        let lines: Vec<Line> = steps.iter().copied().map(logged).collect();
        let page = render("t", &lines, "");
        assert!(page.ends_with("</body></html>\n"));
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
        assert_eq!(page.contains("<svg"), !steps.is_empty());
    }
}

#[test]
fn runs_are_compared_on_one_page() {
    let run = |name: &str, lr: &str, lines: Vec<Line>| Compared {
        name: name.into(),
        lines,
        settings: [("--learning-rate", lr), ("--seed", "42")].map(|(k, v)| (k.into(), v.into())).into(),
    };
    let mut first: Vec<Line> = (1..=40).map(|n| logged(step(n, 3.0 - n as f64 / 50.0))).collect();
    first.push(evaluation(40, 2.5, None));
    let second = (1..=20).map(|n| logged(step(n, 2.0))).collect();
    let page =
        compare(&[run("runs/<a>", "1e-4", first), run("runs/b", "2e-4", second), run("c", "2e-4", vec![])]);
    for words in [
        "3 runs compared",
        "runs/&lt;a&gt;",
        "<td>--learning-rate</td><td>1e-4</td><td>2e-4</td><td>2e-4</td>",
        "<td>training loss, last step</td><td>2.2000</td><td>2.0000</td><td>\u{2013}</td>",
        "<td>evaluation loss, best</td><td>2.5000 at step 40</td>",
    ] {
        assert!(page.contains(words), "{words}\n{page}");
    }
    assert!(!page.contains("--seed"), "a setting in which they agree");
    for banned in ["<script", "http", "src=", "@import", "url(", "NaN", "runs/<a>"] {
        assert!(!page.contains(banned), "{banned}");
    }
    assert_eq!(page.matches("<svg").count(), 5);
    // Two runs' curves lie over each other in each picture but that of the evaluations.
    assert_eq!(page.matches("class=\"curve c0\"").count(), 5);
    assert_eq!(page.matches("class=\"curve c1\"").count(), 4);
    let alike = compare(&[run("a", "1", vec![]), run("b", "1", vec![])]);
    assert!(alike.contains("The same in all of them"));
}

#[test]
fn durations_read_well() {
    for (seconds, text) in
        [(0.2, "0s"), (59.4, "59s"), (60.0, "1m 00s"), (3599.0, "59m 59s"), (3661.0, "1h 01m"), (-1.0, "0s")]
    {
        assert_eq!(duration(seconds), text);
    }
}
