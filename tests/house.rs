//! The house rules, executed: who may use whom, what is banned and where, and that no test file is forgotten.

use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `folder` with one of these extensions, as paths within the repository, sorted.
fn files(folder: &str, extensions: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if extensions.iter().any(|e| path.extension().is_some_and(|found| found == *e)) {
                found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn sources() -> Vec<(String, String)> {
    let all: Vec<_> = files("src", &["rs"]).into_iter().map(|path| (code(&read(&path)), path)).collect();
    assert!(all.len() > 40, "only {} source files were found", all.len());
    all.into_iter().map(|(text, path)| (path, text)).collect()
}

/// The text with comments, string and character literals blanked; line numbers stay.
fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(len) = literal(rest, out.chars().next_back()) {
            len
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        out.extend(rest[..skipped].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[skipped..];
    }
    out
}

/// Length of the string or character literal that `text` begins with.
fn literal(text: &str, before: Option<char>) -> Option<usize> {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if !in_word && (text.starts_with("r\"") || text.starts_with("r#")) {
        let hashes = text[1..].bytes().take_while(|b| *b == b'#').count();
        if text[1 + hashes..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let body = 2 + hashes;
            return Some(text[body..].find(&close).map_or(text.len(), |end| body + end + close.len()));
        }
    }
    let quote = text.chars().next()?;
    let mut characters = text.char_indices().skip(1);
    if quote == '"' {
        while let Some((at, c)) = characters.next() {
            match c {
                '\\' => {
                    characters.next();
                }
                '"' => return Some(at + 1),
                _ => {}
            }
        }
        return Some(text.len());
    }
    if quote == '\'' {
        let (_, one) = characters.next()?;
        if one == '\\' {
            return text[2..].find('\'').map(|end| end + 3).filter(|len| *len > 3).or(Some(4));
        }
        let (at, close) = characters.next()?;
        return (close == '\'').then_some(at + 1);
    }
    None
}

#[test]
fn code_is_told_from_comments_and_literals() {
    let rows = [
        ("a // unsafe\nb", "a          \nb"),
        ("a /* x\ny */ b", "a     \n     b"),
        (r#"f("un\"safe") + 1"#, "f(          ) + 1"),
        ("r#\"a\"b\"# + 1", "         + 1"),
        ("'a' '\\'' '\\n' x", "              x"),
        ("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)"),
    ];
    for (text, expected) in rows {
        assert_eq!(code(text), expected);
    }
}

/// `path:line: why`, for every line of the code that a rule forbids.
fn complaints(rule: impl Fn(&str, &str) -> Option<String>) -> Vec<String> {
    let mut all = Vec::new();
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            if let Some(why) = rule(&path, line) {
                all.push(format!("{path}:{}: {why}", number + 1));
            }
        }
    }
    all
}

fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

fn under(path: &str, places: &[&str]) -> bool {
    places.iter().any(|place| path.starts_with(place))
}

// ---- the stack --------------------------------------------------------------------------------------------

/// Each module and those it may use, beside itself and [`EVERYBODY`]; the picture is in `src/lib.rs`.
const STACK: &[(&str, &[&str])] = &[
    (
        "cli",
        &[
            "bench",
            "selftest",
            "train",
            "generate",
            "model",
            "ops",
            "device",
            "data",
            "checkpoint",
            "formats",
        ],
    ),
    ("bench", &["selftest", "generate", "train", "model", "ops", "device", "data", "checkpoint", "formats"]),
    ("selftest", &["train", "model", "ops", "device", "data", "checkpoint", "formats"]),
    ("train", &["model", "ops", "device", "data", "checkpoint", "formats"]),
    ("generate", &["train", "model", "ops", "device", "data", "checkpoint", "formats"]),
    ("model", &["ops", "device", "formats"]),
    ("ops", &["device"]),
    ("device", &[]),
    ("data", &["formats"]),
    ("checkpoint", &["formats"]),
    ("formats", &[]),
];

/// What everything above them may use; among themselves the later may use the earlier.
const EVERYBODY: &[&str] =
    &["error", "element", "encoding", "philox", "sys", "failpoint", "files", "identity", "config", "report"];

fn may_use(module: &str, other: &str) -> bool {
    let rank = |name: &str| EVERYBODY.iter().position(|m| *m == name);
    let place = STACK.iter().find(|(name, _)| *name == module);
    match (place, rank(module)) {
        (Some((_, below)), _) => module == other || below.contains(&other) || rank(other).is_some(),
        (None, Some(mine)) => rank(other).is_some_and(|theirs| theirs <= mine),
        (None, None) => {
            panic!("src/{module} has no place in the stack: add it to tests/house.rs and src/lib.rs")
        }
    }
}

/// Modules named after `crate::` in the line, also inside braces.
fn crate_modules(line: &str) -> Vec<&str> {
    let word = |text: &str| text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let mut found = Vec::new();
    for (at, key) in line.match_indices("crate::") {
        let rest = &line[at + key.len()..];
        match rest.strip_prefix('{') {
            None => found.push(&rest[..word(rest)]),
            Some(list) => found.extend(list.split([',', '}']).map(|item| &item.trim()[..word(item.trim())])),
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

#[test]
fn modules_use_only_what_is_below_them() {
    assert_eq!(crate_modules("use crate::{data::plan, ops}; crate::cli::main()"), ["data", "ops", "cli"]);
    assert!(!may_use("ops", "model") && !may_use("formats", "device") && !may_use("error", "config"));
    let declared = read("src/lib.rs");
    for (module, _) in STACK {
        assert!(declared.contains(&format!("pub mod {module};")), "{module} is not in src/lib.rs");
    }
    assert_none(&complaints(|path, line| {
        let module = path.strip_prefix("src/")?.split(['/', '.']).next()?;
        if ["lib", "main"].contains(&module) {
            return None;
        }
        let depth = path.split('/').filter(|part| !["src", "mod.rs"].contains(part)).count();
        if line.contains(&"super::".repeat(depth)) {
            return Some("super:: leaves the module; write crate::".into());
        }
        let used = crate_modules(line);
        let wrong =
            used.into_iter().find(|other| other.starts_with(char::is_lowercase) && !may_use(module, other));
        wrong.map(|other| format!("{module} may not use {other}"))
    }));
}

// ---- bans -------------------------------------------------------------------------------------------------

const UNSAFE_PLACES: &[&str] = &["src/device/", "src/formats/weight_map.rs", "src/sys.rs"];

#[test]
fn unsafe_is_confined_and_explained() {
    let word = |line: &str| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe");
    assert_none(&complaints(|path, line| {
        (word(line) && !under(path, UNSAFE_PLACES))
            .then(|| "unsafe belongs in device, the weight map or sys".into())
    }));
    let mut unexplained = Vec::new();
    for (path, text) in sources() {
        let original = read(&path);
        let lines: Vec<&str> = original.lines().collect();
        for (number, line) in text.lines().enumerate() {
            if line.contains("unsafe {") || line.contains("unsafe impl") {
                let before = &lines[number.saturating_sub(6)..=number];
                if !before.iter().any(|l| l.contains("SAFETY:")) {
                    unexplained.push(format!("{path}:{}: no SAFETY sentence", number + 1));
                }
            }
        }
    }
    assert_none(&unexplained);
}

/// Functions of std (and so of the platform's libm) whose results differ between machines or compilers.
const INEXACT: &[&str] = &[
    "exp", "exp2", "exp_m1", "ln", "ln_1p", "log", "log2", "log10", "sin", "cos", "tan", "sin_cos", "sinh",
    "cosh", "tanh", "asin", "acos", "atan", "atan2", "powf", "powi", "cbrt", "hypot",
];

#[test]
fn nothing_that_reaches_a_result_is_computed_by_the_platforms_libm() {
    assert_none(&complaints(|path, line| {
        if under(path, &["src/cli/", "src/report/"]) {
            return None;
        }
        INEXACT.iter().find_map(|name| {
            let paths = ["f32", "f64"].iter().any(|float| {
                line.match_indices(&format!("{float}::{name}")).any(|(at, found)| {
                    !line[at + found.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
                })
            });
            let method = line.contains(&format!(".{name}("));
            (paths || method).then(|| format!("{name} of std: use libm's or an own polynomial"))
        })
    }));
}

#[test]
fn every_program_output_goes_through_cli_and_report() {
    assert_none(&complaints(|path, line| {
        let prints = ["println!", "eprintln!", "print!(", "eprint!("].iter().any(|m| line.contains(m));
        (prints && !under(path, &["src/cli/", "src/report/"])).then(|| "only cli and report print".into())
    }));
}

#[test]
fn whether_something_is_there_is_asked_with_errors_and_files_are_opened_in_one_place() {
    // Where the operating system's own answers are read, and what is the system's.
    let homes = ["src/files.rs", "src/formats/open_folder.rs", "src/checkpoint/storage.rs"];
    let of_the_system =
        ["src/sys.rs", "src/cli/doctor.rs", "src/device/cuda/nvidia.rs", "src/bench/conditions.rs"];
    let asked = [".exists()", ".try_exists()", ".is_file()", ".is_dir()", ".is_symlink()"];
    let opened = ["File::open(", "fs::read(", "fs::read_to_string(", "fs::metadata(", "File::create("];
    let written = ["fs::write(", "fs::rename(", "File::create_new(", "OpenOptions"];
    assert_none(&complaints(|path, line| {
        if under(path, &homes) || under(path, &of_the_system) {
            return None;
        }
        let whole = |word: &&&str| {
            line.match_indices(**word).any(|(at, _)| {
                word.starts_with('.') || !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
            })
        };
        let why = |words: &[&str], why: &str| words.iter().find(|w| whole(w)).map(|w| format!("{w}: {why}"));
        why(&asked, "an error would be a no; use files::exists, is_file, is_folder")
            .or_else(|| why(&opened, "it may be a pipe, or too large; use files::open, read, read_text"))
            .or_else(|| why(&written, "what is published goes through formats::publish"))
    }));
}

#[test]
fn a_kind_of_error_is_never_found_by_searching_its_text() {
    let searches = [".contains(", ".starts_with(", ".ends_with(", ".find(", ".matches(", " == ", " != "];
    let words = ["what", "remedy", "error.to_string()", "e.to_string()", "fault.to_string()", "why"];
    assert_none(&complaints(|_, line| {
        let found = words.iter().any(|word| {
            line.match_indices(word).any(|(at, _)| {
                let whole = !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
                whole && searches.iter().any(|search| line[at + word.len()..].starts_with(search))
            })
        });
        found.then(|| "ask for the kind or the source of an error: its text is for people".into())
    }));
}

#[test]
fn nothing_unfinished_is_left() {
    assert_none(&complaints(|_, line| {
        let words = ["todo!", "unimplemented!", "dbg!", "unreachable_code", "[allow(dead_code"];
        words.iter().find(|w| line.contains(**w)).map(|w| format!("{w} is not to be landed"))
    }));
}

#[test]
fn results_do_not_depend_on_hash_order_or_clocks() {
    // Vocabularies are looked up and never walked through in a table's order.
    let lookups = ["src/data/vocabulary.rs", "src/data/tokenizer.rs"];
    let ordered = ["src/data/", "src/train/", "src/checkpoint/", "src/model/", "src/ops/", "src/formats/"];
    assert_none(&complaints(|path, line| {
        let hashed = line.contains("HashMap") || line.contains("HashSet");
        (hashed && under(path, &ordered) && !under(path, &lookups))
            .then(|| "use a BTreeMap: its order is fixed".into())
    }));
    assert_none(&complaints(|path, line| {
        let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        let clock = words.any(|word| word == "Instant" || word == "SystemTime");
        let timed = under(path, &["src/report/", "src/train/", "src/cli/", "src/bench/"]);
        (clock && !timed).then(|| "only report, train, bench and cli look at a clock".into())
    }));
}

// ---- shape ------------------------------------------------------------------------------------------------

#[test]
fn files_and_functions_are_short_and_files_say_what_they_are() {
    let mut long = Vec::new();
    let tests = files("tests", &["rs"]).into_iter().map(|path| (path.clone(), read(&path)));
    for (path, text) in sources().into_iter().map(|(path, _)| (path.clone(), read(&path))).chain(tests) {
        let lines: Vec<&str> = text.lines().collect();
        if lines.len() > 800 {
            long.push(format!("{path}: {} lines", lines.len()));
        }
        if !text.starts_with("//!") {
            long.push(format!("{path}: does not begin with a sentence (//!) on what it is for"));
        }
        if path.starts_with("src/") {
            long.extend(long_functions(&path, &lines));
        }
    }
    assert_none(&long);
}

/// rustfmt puts a function's closing brace in the column of its first line.
fn long_functions(path: &str, lines: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let words: Vec<&str> = line.split_whitespace().take(5).collect();
        if !words.contains(&"fn") || line.trim_start().starts_with("//") {
            continue;
        }
        let close = format!("{}}}", " ".repeat(indent));
        let length = lines[start..].iter().position(|l| l.starts_with(&close)).map_or(0, |end| end + 1);
        if length > 70 && !line.ends_with(';') {
            found.push(format!("{path}:{}: a function of {length} lines", start + 1));
        }
    }
    found
}

#[test]
fn every_test_bench_and_example_is_built() {
    let main = code(&read("tests/main.rs"));
    for path in files("tests", &["rs"]) {
        let parts: Vec<&str> = path.trim_end_matches(".rs").split('/').collect();
        match parts[..] {
            ["tests", "main"] => {}
            ["tests", name] => {
                assert!(main.contains(&format!("mod {name};")), "{path} is not in tests/main.rs")
            }
            ["tests", name, "mod"] => {
                assert!(main.contains(&format!("mod {name};")), "{path} is not declared")
            }
            ["tests", parent, name] => {
                let homes = [format!("tests/{parent}.rs"), format!("tests/{parent}/mod.rs")];
                let home = homes.iter().find(|home| root().join(home).exists()).expect(&path);
                assert!(code(&read(home)).contains(&format!("mod {name};")), "{path} is not declared");
            }
            _ => panic!("{path} is too deep"),
        }
    }
    let manifest = read("Cargo.toml");
    for path in files("benches", &["rs"]).into_iter().chain(files("examples", &["rs"])) {
        let entry = format!("path = \"{path}\"");
        let implied = format!("name = \"{}\"", PathBuf::from(&path).file_stem().unwrap().to_str().unwrap());
        assert!(manifest.contains(&entry) || manifest.contains(&implied), "{path} is not in Cargo.toml");
    }
}

#[test]
fn nothing_speaks_of_one_machine() {
    // Assembled, so that this file does not hold what it bans.
    let homes = ["work", "root", "home"].map(|name| format!("/{name}/"));
    let kinds = ["rs", "toml", "md", "py", "json", "jsonl", "lock", "sh", "html", "yml"];
    let mut found = Vec::new();
    for folder in ["src", "tests", "benches", "examples", "scripts", "docs", ".ci"] {
        found.extend(files(folder, &kinds));
    }
    for entry in std::fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if kinds.iter().any(|kind| name.ends_with(&format!(".{kind}"))) {
            found.push(name);
        }
    }
    let mut wrong = Vec::new();
    for path in found {
        let text = read(&path);
        for home in &homes {
            // A path that starts there, not one that only has such a folder further down.
            let absolute = text.match_indices(home.as_str()).any(|(at, _)| {
                !text[..at].ends_with(|c: char| c.is_alphanumeric() || "._-}>$~/".contains(c))
            });
            if absolute {
                wrong.push(format!("{path}: a path below {home}"));
            }
        }
    }
    let index = "registry+https://github.com/rust-lang/crates.io-index";
    for line in read("Cargo.lock").lines().filter(|l| l.starts_with("source = ")) {
        if line != format!("source = \"{index}\"") {
            wrong.push(format!("Cargo.lock: {line}"));
        }
    }
    assert_none(&wrong);
}
