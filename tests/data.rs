//! Data: random order, plan, batches, rows, cache.

/// Known answers of the Random123 distribution (`kat_vectors`, philox4x32 10).
#[test]
fn philox_gives_the_published_words() {
    let ones = u32::MAX;
    let cases = [
        ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];
    for (counter, key, expected) in cases {
        assert_eq!(philox4x32(counter, key), expected);
    }
}

use qwentune::config::Settings;
use qwentune::data::batch::{assemble, bucket};
use qwentune::data::dataset::{Dataset, IGNORED, Prepared, Row, prepare};
use qwentune::data::plan::{Origin, Plan, Rules};
use qwentune::error::Kind;
use qwentune::philox::philox4x32;
use qwentune::report::event::Event;
use std::fs;
use std::path::{Path, PathBuf};

fn rules() -> Rules {
    Rules {
        batch_size: 2,
        accumulation: 3,
        packing: false,
        tokens_per_micro_batch: 64,
        shuffle: true,
        seed: 42,
        epochs: 3.0,
        max_steps: None,
        origin: Origin::default(),
    }
}

fn lengths(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| 3 + (i * 7919) % 50).collect()
}

/// All rule combinations the property tests run over.
fn many_rules() -> Vec<(usize, Rules)> {
    let mut all = Vec::new();
    for rows in [1, 2, 5, 6, 7, 37, 200] {
        for packing in [false, true] {
            for shuffle in [false, true] {
                for (batch_size, accumulation) in [(1, 1), (2, 3), (8, 1), (3, 4)] {
                    let rules = Rules { batch_size, accumulation, packing, shuffle, ..rules() };
                    all.push((rows, rules));
                }
            }
        }
    }
    all
}

#[test]
fn every_row_comes_once_an_epoch_and_packs_within_capacity() {
    for (rows, rules) in many_rules() {
        let lengths = lengths(rows);
        let mut plan = Plan::new(&lengths, rules.clone()).unwrap();
        let mut seen = Vec::new();
        let mut samples = 0;
        for step in 0..plan.total_steps() {
            assert_eq!(plan.samples_before(step), samples);
            let data = plan.step(step);
            assert!((1..=rules.accumulation).contains(&data.micro_batches.len()));
            for micro_batch in &data.micro_batches {
                let tokens: u32 = micro_batch.iter().map(|&row| lengths[row as usize]).sum();
                assert!(!micro_batch.is_empty() && bucket(tokens as usize) <= plan.max_tokens());
                if rules.packing {
                    assert!(tokens as usize <= rules.tokens_per_micro_batch);
                } else {
                    assert!(micro_batch.len() <= rules.batch_size);
                }
                seen.extend_from_slice(micro_batch);
                samples += micro_batch.len() as u64;
            }
            assert_eq!(data.last_in_epoch, data.step_in_epoch + 1 == data.steps_in_epoch);
            if data.last_in_epoch {
                seen.sort_unstable();
                assert_eq!(seen, (0..rows as u32).collect::<Vec<_>>(), "{rules:?}");
                seen.clear();
            }
        }
        assert_eq!(samples, 3 * rows as u64);
        assert!(seen.is_empty(), "whole epochs end with a step");
    }
}

#[test]
fn a_step_is_the_same_however_it_is_reached() {
    for (rows, rules) in many_rules() {
        let lengths = lengths(rows);
        let mut walked = Plan::new(&lengths, rules.clone()).unwrap();
        let beyond = walked.total_steps() + 5;
        let all: Vec<_> = (0..beyond).map(|step| (walked.samples_before(step), walked.step(step))).collect();
        for step in (0..beyond).rev() {
            let mut jumped = Plan::new(&lengths, rules.clone()).unwrap();
            assert_eq!((jumped.samples_before(step), jumped.step(step)), all[step as usize]);
            assert_eq!(walked.step(step), all[step as usize].1, "going back");
        }
    }
}

#[test]
fn steps_are_counted_as_hugging_face_counts_them() {
    let steps = |rows, batch_size, accumulation, epochs, max_steps| {
        let rules = Rules { batch_size, accumulation, epochs, max_steps, ..rules() };
        Plan::new(&lengths(rows), rules).unwrap().total_steps()
    };
    assert_eq!(steps(10, 2, 2, 3.0, None), 9, "5 micro-batches are 2 windows and a rest");
    assert_eq!(steps(10, 3, 1, 1.0, None), 4, "the last batch is smaller");
    assert_eq!(steps(10, 2, 1, 0.5, None), 3, "ceil(0.5 * 5)");
    assert_eq!(steps(10, 2, 1, 2.1, None), 11);
    assert_eq!(steps(10, 2, 1, 3.0, Some(4)), 4);
    assert_eq!(steps(10, 2, 1, 1.0, Some(99)), 99, "more than one epoch");
}

#[test]
fn fractions_of_an_epoch_follow_the_steps() {
    let mut plan = Plan::new(&lengths(10), Rules { batch_size: 2, accumulation: 2, ..rules() }).unwrap();
    let done: Vec<f64> = (0..4).map(|step| plan.step(step).epochs_done()).collect();
    assert_eq!(done, [1.0 / 3.0, 2.0 / 3.0, 1.0, 1.0 + 1.0 / 3.0]);
}

#[test]
fn epochs_and_seeds_have_their_own_order() {
    let order = |seed, epoch: u64| {
        let rules = Rules { batch_size: 100, accumulation: 1, seed, ..rules() };
        Plan::new(&lengths(100), rules).unwrap().step(epoch).micro_batches.remove(0)
    };
    assert_eq!(order(1, 0), order(1, 0));
    assert_ne!(order(1, 0), order(1, 1));
    assert_ne!(order(1, 0), order(2, 0));
    assert_ne!(order(1, 0), (0..100).collect::<Vec<_>>());
}

#[test]
fn packing_wastes_little_and_refuses_rows_that_cannot_fit() {
    let lengths = lengths(2000);
    let rules = Rules { packing: true, tokens_per_micro_batch: 512, accumulation: 1, epochs: 1.0, ..rules() };
    let plan = Plan::new(&lengths, rules.clone()).unwrap();
    let tokens: u64 = lengths.iter().map(|&n| u64::from(n)).sum();
    let least = tokens.div_ceil(512);
    assert!(plan.total_steps() <= least + least / 50 + 1, "{} bins for {least}", plan.total_steps());
    let fault = Plan::new(&[3, 600], rules).err().unwrap();
    assert_eq!(fault.kind, Kind::Input);
    assert!(fault.what.contains("row 2") && fault.what.contains("600"), "{fault}");
    assert!(Plan::new(&[], self::rules()).is_err());
}

#[test]
fn buckets_grow_by_less_than_a_sixteenth() {
    let mut last = 0;
    for tokens in 1..20_000 {
        let size = bucket(tokens);
        assert!(size >= tokens && size.is_multiple_of(16) && size >= last);
        assert!(size - tokens < 16.max(tokens.div_ceil(16)), "{tokens} -> {size}");
        assert_eq!(bucket(size), size);
        last = size;
    }
    assert_eq!([bucket(1), bucket(16), bucket(17), bucket(513), bucket(8192)], [16, 16, 32, 544, 8192]);
}

fn row(ids: &[u32], scored: &[usize]) -> Row {
    let mut labels = vec![IGNORED; ids.len()];
    scored.iter().for_each(|&i| labels[i] = ids[i] as i32);
    Row { ids: ids.to_vec(), labels }
}

#[test]
fn a_micro_batch_never_scores_across_a_segment() {
    let rows = vec![row(&[5, 6, 7], &[0, 2]), row(&[8, 9], &[0, 1])];
    let dataset = Dataset::from_rows(rows).unwrap();
    let batch = assemble(&dataset, &[1, 0]).unwrap();
    assert_eq!(batch.ids, [&[8, 9, 5, 6, 7][..], &[0; 11]].concat());
    assert_eq!(batch.positions[..8], [0, 1, 0, 1, 2, 0, 1, 2]);
    assert_eq!(batch.segments, [(0, 2), (2, 3), (5, 11)]);
    assert_eq!(batch.scored, [0, 3], "the first token of a segment is never a target");
    assert_eq!(batch.targets, [9, 7]);
    assert_eq!(batch.real_tokens, 5);
}

#[test]
fn rows_in_memory_are_checked() {
    let fault = |row: Row| Dataset::from_rows(vec![self::row(&[1, 2], &[1]), row]).err().unwrap().what;
    assert!(fault(Row { ids: vec![], labels: vec![] }).contains("row 2"));
    assert!(fault(Row { ids: vec![1, 2], labels: vec![1] }).contains("1 labels for 2"));
    assert!(fault(Row { ids: vec![1, 2], labels: vec![2, 3] }).contains("unshifted"));
    assert!(fault(row(&[1, 2], &[0])).contains("no token is scored"));
}

/// A folder of its own for each test, removed at the end.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("qwentune-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn settings(folder: &Folder, file: &Path) -> Settings {
    Settings {
        train_files: vec![file.to_path_buf()],
        cache_dir: Some(folder.path().join("cache")),
        model: folder.path().join("model"),
        ..Settings::default()
    }
}

/// Prepared rows and the warnings on the way; the vocabulary has 1000 ids.
pub fn prepared(settings: &Settings) -> (qwentune::error::Result<Prepared>, Vec<String>, bool) {
    let (mut warnings, mut tokenised) = (Vec::new(), false);
    let mut observer = |event: &Event| match event {
        Event::Warning(text) => warnings.push(text.clone()),
        Event::Progress { what, .. } => tokenised |= *what == "tokenising",
        _ => {}
    };
    let made = prepare(settings, 1000, &mut observer);
    (made, warnings, tokenised)
}

const THREE: &str = r#"{"input_ids":[1,2,3]}
{"input_ids":[4,5],"labels":[-100,5]}
{"input_ids":[6,7,8,9],"labels":[-100,-100,8,9]}
"#;

fn all_rows(data: &Dataset) -> Vec<Row> {
    (0..data.len()).map(|i| data.row(i).unwrap()).collect()
}

#[test]
fn tokenised_rows_are_read_in_every_layout() {
    let expected = [row(&[1, 2, 3], &[0, 1, 2]), row(&[4, 5], &[1]), row(&[6, 7, 8, 9], &[2, 3])];
    let array = format!("[{}]", THREE.trim_end().replace('\n', ",\n"));
    let layouts = [
        ("plain", THREE.to_string()),
        ("no last line end", THREE.trim_end().to_string()),
        ("carriage returns", THREE.replace('\n', "\r\n")),
        ("byte order mark", format!("\u{feff}{THREE}")),
        ("blank lines", format!("\n  \n{}\n\n", THREE.replace('\n', "\n\n"))),
        ("array", array.clone()),
        ("array on one line", array.replace('\n', "")),
        ("array, spread", array.replace(',', " ,\n ").replace('[', "[\n")),
    ];
    let folder = Folder::new("layouts");
    let mut digests = Vec::new();
    for (name, text) in layouts {
        let file = folder.file("rows.json", text);
        let (made, warnings, _) = prepared(&settings(&folder, &file));
        let made = made.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(all_rows(&made.train), expected, "{name}");
        assert!(warnings.is_empty(), "{name}: {warnings:?}");
        digests.push(made.train.digest().to_string());
    }
    let memory = Dataset::from_rows(expected.to_vec()).unwrap();
    assert!(digests.iter().all(|digest| digest == memory.digest()), "layout does not change the digest");
}

#[test]
fn the_cache_is_used_checked_and_made_again() {
    let folder = Folder::new("cache");
    let file = folder.file("rows.jsonl", THREE);
    let settings = settings(&folder, &file);
    let (first, _, tokenised) = prepared(&settings);
    let first = first.unwrap();
    assert!(tokenised);
    let (second, warnings, tokenised) = prepared(&settings);
    let second = second.unwrap();
    assert!(!tokenised && warnings.is_empty(), "a second run reads the cache");
    assert_eq!(all_rows(&first.train), all_rows(&second.train));
    assert_eq!(first.identity, second.identity);

    let cached = fs::read_dir(folder.path().join("cache")).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&cached).unwrap();
    let mut damages: Vec<Vec<u8>> = (0..whole.len()).step_by(17).map(|at| flipped(&whole, at)).collect();
    damages.extend([0, 1, 60, whole.len() - 1].map(|size| whole[..size].to_vec()));
    for damaged in damages {
        fs::write(&cached, damaged).unwrap();
        let (again, warnings, tokenised) = prepared(&settings);
        assert!(tokenised && warnings.len() == 1 && warnings[0].contains("damaged"), "{warnings:?}");
        assert_eq!(all_rows(&again.unwrap().train), all_rows(&first.train));
        assert_eq!(fs::read(&cached).unwrap(), whole, "the same rows make the same file");
    }

    let other = Settings { cutoff_len: 3, ..settings.clone() };
    let (shorter, warnings, tokenised) = prepared(&other);
    assert!(tokenised && warnings.len() == 1, "another cutoff is another cache file: {warnings:?}");
    assert_eq!(shorter.unwrap().train.len(), 2);
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut copy = bytes.to_vec();
    copy[at] ^= 1 << (at % 8);
    copy
}

/// The only cache file.
fn cache_file(folder: &Folder) -> std::path::PathBuf {
    let mut files = fs::read_dir(folder.path().join("cache")).unwrap();
    let only = files.next().unwrap().unwrap().path();
    assert!(files.next().is_none(), "one cache file and nothing beside it");
    only
}

/// Changes bytes of a cache file and gives it the digest of what it then is.
fn forge(path: &Path, at: usize, bytes: &[u8]) {
    let mut forged = fs::read(path).unwrap();
    forged[at..at + bytes.len()].copy_from_slice(bytes);
    let end = forged.len() - 32;
    let digest = blake3::hash(&forged[..end]);
    forged[end..].copy_from_slice(digest.as_bytes());
    fs::write(path, forged).unwrap();
}

#[test]
fn rows_no_run_makes_are_not_taken_from_the_cache() {
    let folder = Folder::new("forged");
    let file = folder.file("rows.jsonl", THREE);
    let settings = settings(&folder, &file);
    let whole = prepared(&settings).0.unwrap();
    let expected = all_rows(&whole.train);
    let cached = cache_file(&folder);
    // Of the first row the first token, and the mask behind its tokens.
    let mask = 48 + 4 * whole.train.lengths()[0] as usize;
    for (at, bytes, says) in [
        (48, [0xff_u8; 4].as_slice(), "outside the vocabulary"),
        (mask, &[1], "none of its tokens is scored"),
    ] {
        forge(&cached, at, bytes);
        let (again, warnings, tokenised) = prepared(&settings);
        assert!(tokenised && warnings.len() == 1 && warnings[0].contains(says), "{warnings:?}");
        assert_eq!(all_rows(&again.unwrap().train), expected);
    }
}

#[test]
fn a_cache_file_that_changes_while_it_is_used_stops_the_run() {
    let folder = Folder::new("changing");
    let file = folder.file("rows.jsonl", THREE);
    let settings = settings(&folder, &file);
    for _ in ["made by this process", "found"] {
        let rows = prepared(&settings).0.unwrap().train;
        forge(&cache_file(&folder), 48, &[9, 0, 0, 0]);
        let error = rows.row(0).expect_err("a changed row");
        assert!(error.kind == Kind::Io && error.what.contains("changed while it was in use"), "{error}");
        rows.row(1).unwrap();
        fs::remove_file(cache_file(&folder)).unwrap();
        prepared(&settings).0.unwrap();
    }
}

#[test]
fn a_cache_folder_is_private_or_what_it_is_is_said() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = Folder::new("shared");
    let file = folder.file("rows.jsonl", THREE);
    let settings = settings(&folder, &file);
    let cache = folder.path().join("cache");
    let mode = |mode| fs::set_permissions(&cache, fs::Permissions::from_mode(mode)).unwrap();
    prepared(&settings).0.unwrap();
    assert_eq!(fs::metadata(&cache).unwrap().permissions().mode() & 0o777, 0o700);
    mode(0o770);
    let (_, warnings, tokenised) = prepared(&settings);
    assert!(!tokenised && warnings.len() == 1 && warnings[0].contains("are believed"), "{warnings:?}");
    mode(0o777);
    let (_, warnings, tokenised) = prepared(&settings);
    assert!(tokenised && warnings.len() == 1 && warnings[0].contains("everybody can write"), "{warnings:?}");
    // Own files in a folder like /tmp.
    mode(0o1777);
    let (_, warnings, tokenised) = prepared(&settings);
    assert!(!tokenised && warnings.is_empty(), "{warnings:?}");
    // A link in the place of a file is neither read nor written through.
    let cached = cache_file(&folder);
    let victim = folder.file("victim", "precious");
    fs::remove_file(&cached).unwrap();
    symlink(&victim, &cached).unwrap();
    let (made, warnings, tokenised) = prepared(&settings);
    assert!(tokenised && warnings.len() == 1, "{warnings:?}");
    assert_eq!(made.unwrap().train.len(), 3);
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    assert!(fs::symlink_metadata(cache_file(&folder)).unwrap().is_file());
}

#[test]
fn processes_that_share_a_cache_do_not_meet() {
    let folder = Folder::new("together");
    let file = folder.file("rows.jsonl", THREE);
    let settings = settings(&folder, &file);
    let expected = all_rows(&prepared(&settings).0.unwrap().train);
    for _ in 0..20 {
        fs::remove_file(cache_file(&folder)).unwrap();
        std::thread::scope(|scope| {
            let threads = [0, 1, 2].map(|_| scope.spawn(|| prepared(&settings)));
            for thread in threads {
                let (made, warnings, _) = thread.join().unwrap();
                assert!(warnings.is_empty(), "{warnings:?}");
                assert_eq!(all_rows(&made.unwrap().train), expected);
            }
        });
        cache_file(&folder);
    }
}

#[test]
fn without_a_cache_folder_rows_stay_in_memory() {
    let folder = Folder::new("no-cache");
    let file = folder.file("rows.jsonl", THREE);
    let blocked = Settings { cache_dir: Some(folder.file("a-file", "")), ..settings(&folder, &file) };
    let (made, warnings, _) = prepared(&blocked);
    assert_eq!(made.unwrap().train.len(), 3);
    assert!(warnings.len() == 1 || warnings.len() == 2, "{warnings:?}");
    assert!(warnings.iter().any(|w| w.contains("stay in memory")), "{warnings:?}");
}

/// Rows of `reliability.md` 48 to 57 that need no tokenizer: the file, and what the message must hold.
#[test]
fn wrong_files_are_named_with_row_and_reason() {
    let deep = format!("{{\"input_ids\":[1,2],\"x\":{}1{}}}", "[".repeat(70), "]".repeat(70));
    let good = "{\"input_ids\":[1,2]}\n";
    let utf16: Vec<u8> = "{\"a\":1}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (b"".to_vec(), &["0 usable rows of 0"]),
        (b" \n\n".to_vec(), &["0 usable rows of 0"]),
        (b"[]".to_vec(), &["0 usable rows of 0"]),
        (b"\x1f\x8b\x08\0\0\0".to_vec(), &["looks like gzip"]),
        (b"PAR1....".to_vec(), &["Parquet"]),
        (b"PK\x03\x04....".to_vec(), &["looks like a zip"]),
        (utf16, &["looks like UTF-16"]),
        (b"\xff\xfe{\0".to_vec(), &["looks like UTF-16"]),
        (format!("{good}{{\"input_ids\":[1,2").into_bytes(), &["rows:2:", "still being written"]),
        (format!("{good}{{\"input_ids\":[1,2\n{good}").into_bytes(), &["rows:2:", "column"]),
        (format!("[{},{}", good.trim(), good.trim()).into_bytes(), &["rows:1 (row 2):", "array's `]`"]),
        (format!("[{},]", good.trim()).into_bytes(), &["missing beside a comma"]),
        (format!("[{0}] {0}", good.trim()).into_bytes(), &["after the array"]),
        (
            [good.as_bytes(), b"{\"x\":\"ab\xffc\"}\n"].concat(),
            &["rows:2:", "invalid UTF-8", "byte 28 of the file"],
        ),
        (format!("{good}{{\"input_ids\":[1,2],\"input_ids\":[3]}}\n").into_bytes(), &["rows:2:", "twice"]),
        (format!("{good}{deep}\n").into_bytes(), &["rows:2:", "deeper than 64"]),
        (format!("{good}{{\"input_ids\":[1,NaN]}}\n").into_bytes(), &["rows:2:"]),
        (format!("{good}{{\"input_ids\":[1,1e999]}}\n").into_bytes(), &["rows:2:", "out of range"]),
        (format!("{good}{{\"input_ids\":[1,2.5]}}\n").into_bytes(), &["rows:2:", "not an integer"]),
        (format!("{good}{{\"input_ids\":[1,1000]}}\n").into_bytes(), &["rows:2:", "outside the vocabulary"]),
        (format!("{good}{{\"input_ids\":[1,-1]}}\n").into_bytes(), &["rows:2:", "outside the vocabulary"]),
        (format!("{good}{{\"input_ids\":null}}\n").into_bytes(), &["rows:2:", "null"]),
        (format!("{good}{{\"input_ids\":[]}}\n").into_bytes(), &["rows:2:", "no tokens"]),
        (format!("{good}{{\"other\":1}}\n").into_bytes(), &["rows:2:", "`input_ids` is missing"]),
        (format!("{good}17\n").into_bytes(), &["rows:2:", "not an object"]),
        (b"{\"foo\":1}\n".to_vec(), &["rows:1:", "known: messages", "--format"]),
        (format!("{good}{{\"input_ids\":[1,2],\"labels\":[2,3]}}\n").into_bytes(), &["rows:2:", "unshifted"]),
        (b"{\"input_ids\":[1,2],\"labels\":[-100,-100]}\n".to_vec(), &["0 usable rows of 1"]),
        ([b"{\"x\":\"".as_slice(), &vec![b'a'; 17 << 20], b"\"}"].concat(), &["rows:1:", "16 MiB"]),
    ];
    let folder = Folder::new("faults");
    for (content, expected) in cases {
        let head = String::from_utf8_lossy(&content[..content.len().min(60)]).to_string();
        let file = folder.file("rows", &content);
        let fault =
            prepared(&settings(&folder, &file)).0.err().unwrap_or_else(|| panic!("{head} was accepted"));
        assert_eq!(fault.kind, Kind::Input, "{head}: {fault}");
        for part in expected {
            assert!(fault.to_string().contains(part), "{head}: {fault} should say {part}");
        }
    }
    let missing = prepared(&settings(&folder, &folder.path().join("none"))).0.err().unwrap();
    assert_eq!(missing.kind, Kind::Input);
}

#[test]
fn bad_rows_are_listed_or_skipped_and_counted() {
    let folder = Folder::new("bad-rows");
    let mut text = THREE.to_string();
    (0..30).for_each(|_| text.push_str("{\"input_ids\":3}\n"));
    let file = folder.file("rows", text);
    let strict = settings(&folder, &file);
    let fault = prepared(&strict).0.err().unwrap().to_string();
    assert_eq!(fault.matches("rows:").count(), 20, "twenty are listed: {fault}");
    assert!(fault.contains("rows:4:") && fault.contains("--skip-bad-rows"), "{fault}");
    assert!(prepared(&Settings { skip_bad_rows: 29, ..strict.clone() }).0.is_err());
    let (made, warnings, _) = prepared(&Settings { skip_bad_rows: 30, ..strict });
    let made = made.unwrap();
    assert_eq!(made.train.len(), 3);
    assert_eq!(made.identity.train.files[0].skipped, 30);
    assert!(warnings.len() == 1 && warnings[0].contains("30 of 33"), "{warnings:?}");
}

#[test]
fn rows_that_are_too_long_follow_the_policy() {
    use qwentune::config::settings::TooLong;
    let folder = Folder::new("too-long");
    let file = folder.file("rows", THREE);
    let with = |too_long| Settings { cutoff_len: 3, too_long, ..settings(&folder, &file) };
    let (dropped, warnings, _) = prepared(&with(TooLong::Drop));
    assert_eq!(dropped.unwrap().train.len(), 2);
    assert!(warnings[0].contains("1 of 3 rows left out: longer than --cutoff-len 3"), "{warnings:?}");
    let (cut, warnings, _) = prepared(&with(TooLong::Truncate));
    assert_eq!(cut.unwrap().train.row(2).unwrap(), row(&[6, 7, 8], &[2]));
    assert!(warnings[0].contains("1 of 3 rows cut"), "{warnings:?}");
    let fault = prepared(&with(TooLong::Error)).0.err().unwrap();
    assert!(fault.what.contains("rows:3") && fault.what.contains("4 tokens"), "{fault}");
}

#[test]
fn evaluation_rows_are_split_off_by_the_seed() {
    let folder = Folder::new("split");
    let text: String = (1..=100).map(|i| format!("{{\"input_ids\":[{i},{i}]}}\n")).collect();
    let file = folder.file("rows", text);
    let with = |val_set_size, seed| {
        let asked = Settings { val_set_size, seed, ..settings(&folder, &file) };
        let made = prepared(&asked).0.unwrap();
        let firsts = |data: &Dataset| all_rows(data).iter().map(|row| row.ids[0]).collect::<Vec<_>>();
        (firsts(&made.train), firsts(made.eval.as_ref().unwrap()), made.identity.train.digest.clone())
    };
    let (train, eval, digest) = with(0.1, 42);
    assert_eq!((train.len(), eval.len()), (90, 10));
    assert!(train.is_sorted() && eval.is_sorted(), "both keep the file's order");
    let mut both = [train.clone(), eval.clone()].concat();
    both.sort_unstable();
    assert_eq!(both, (1..=100).collect::<Vec<_>>());
    assert_eq!(with(10.0, 42), (train, eval.clone(), digest.clone()));
    let other = with(10.0, 43);
    assert!(other.1 != eval && other.2 != digest);
    let all = Settings { val_set_size: 100.0, ..settings(&folder, &file) };
    assert_eq!(prepared(&all).0.err().unwrap().kind, Kind::Input);
}
