//! Text to ids on one core, ours beside the `tokenizers` crate alone on the same texts in the same run: the two take turns,
//! so that a slow moment of the machine meets both. One JSON object.
//!
//! `cargo bench --bench tokenize -- MODEL_FOLDER TEXTS` (a folder with `tokenizer.json`; TEXTS has a text a line)

use qwentune::data::tokenizer::Tokenizer;
use std::path::Path;
use std::time::Instant;

const ROUNDS: usize = 15;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let [folder, texts] = words.as_slice() else {
        panic!("give the folder of a tokenizer and a file of texts")
    };
    let texts = std::fs::read_to_string(texts).expect("a file of texts");
    let texts: Vec<&str> = texts.lines().collect();
    let bytes: usize = texts.iter().map(|text| text.len()).sum();
    let ours = Tokenizer::open(Path::new(folder)).expect("a tokenizer");
    let file = Path::new(folder).join("tokenizer.json");
    let theirs = tokenizers::Tokenizer::from_file(file).expect("a tokenizer");
    let by_us = |text: &str| ours.encode(text).expect("ids");
    let by_them = |text: &str| theirs.encode(text, false).expect("ids").get_ids().to_vec();
    for text in &texts {
        assert_eq!(by_us(text), by_them(text), "{text}");
    }
    let seconds = |encode: &dyn Fn(&str) -> Vec<u32>| {
        let begin = Instant::now();
        let tokens: usize = texts.iter().map(|text| encode(text).len()).sum();
        (begin.elapsed().as_secs_f64(), tokens)
    };
    let (mut us, mut them, mut ratios, mut tokens) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for round in 0..ROUNDS {
        let both: [(f64, usize); 2] = if round % 2 == 0 {
            [seconds(&by_us), seconds(&by_them)]
        } else {
            let second = seconds(&by_them);
            [seconds(&by_us), second]
        };
        tokens = both[0].1;
        us.push(both[0].0);
        them.push(both[1].0);
        ratios.push(both[1].0 / both[0].0);
    }
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let rate = |seconds: f64| bytes as f64 / seconds / 1e6;
    let (us, them) = (median(&mut us), median(&mut them));
    println!(
        "{{\"texts\":{},\"bytes\":{bytes},\"tokens\":{tokens},\"rounds\":{ROUNDS},\"threads\":1,\"ours_mb_per_second\":{:.2},\
         \"crate_mb_per_second\":{:.2},\"median_ratio\":{:.3}}}",
        texts.len(),
        rate(us),
        rate(them),
        median(&mut ratios)
    );
}
