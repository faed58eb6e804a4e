//! PyTorch's zip and pickle files: those of torch itself are read, everything else is refused by rule, and
//! nothing is executed, allocated without bound, or a panic.

use crate::common::{Lcg, scratch};
use qwentune::error::{Kind, Result};
use qwentune::formats::pickle::{self, Value};
use qwentune::formats::torch_file::{TorchFile, Tree, encode};
use qwentune::formats::{peft, zip};
use std::path::{Path, PathBuf};

fn golden(file: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/trainer")).join(file)
}

const OPTIMIZER: &str = "current-qwen3-loraplus/checkpoint-9/optimizer.pt";
const SCHEDULER: &str = "current-qwen3-loraplus/checkpoint-9/scheduler.pt";

/// What reading the whole file gives: all tensors.
fn read_all(bytes: &[u8], path: &Path) -> Result<Vec<Vec<f32>>> {
    std::fs::write(path, bytes).unwrap();
    let file = TorchFile::open(path)?;
    let mut tensors = Vec::new();
    let mut open = vec![file.pickle.root];
    while let Some(value) = open.pop() {
        if let Some(tensor) = file.pickle.tensor(value) {
            tensors.push(file.values(tensor)?);
        }
        open.extend(file.pickle.items(value).unwrap_or_default());
        open.extend(file.pickle.by_text(value).unwrap_or_default().into_values());
        open.extend(file.pickle.by_int(value).unwrap_or_default().into_values());
    }
    Ok(tensors)
}

fn refused(case: &str, result: Result<impl std::fmt::Debug>, word: &str) {
    let error = result.expect_err(case);
    assert_eq!(error.kind, Kind::Input, "{case}: {error}");
    let text = error.to_string();
    assert!(text.contains(word), "{case}: no {word:?} in {text:?}");
    assert!(text.lines().count() <= 2 && text.len() < 600, "{case}: {text}");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{case}: {text:?}");
}

// ---- pickles ----------------------------------------------------------------------------------------------

fn parsed(body: &[u8]) -> std::result::Result<pickle::Pickle, String> {
    let mut bytes = vec![0x80, 2];
    bytes.extend_from_slice(body);
    pickle::parse(&bytes)
}

#[test]
fn hostile_pickles_are_refused_by_rule() {
    let bomb = |unit: &[u8], count: usize| unit.repeat(count);
    let long_text = [b"X".as_slice(), &u32::MAX.to_le_bytes(), b"short"].concat();
    let storage = b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ";
    let tensor = |arguments: &[u8]| {
        let call = b"ctorch._utils\n_rebuild_tensor_v2\n";
        [call, storage.as_slice(), arguments, b"\x89ccollections\nOrderedDict\n)RtR."].concat()
    };
    let rows: Vec<(&str, Vec<u8>, &str)> = vec![
        ("os.system", b"cposix\nsystem\nX\x04\0\0\0true\x85R.".to_vec(), "offset 2: refused global posix.system"),
        ("eval", b"c__builtin__\neval\n.".to_vec(), "refused global __builtin__.eval"),
        ("getattr", b"cbuiltins\ngetattr\n.".to_vec(), "refused global builtins.getattr"),
        ("name with escapes", b"cos\x1b[2J\nx\n.".to_vec(), "os\\u{1b}[2J"),
        ("name without end", [b"c".as_slice(), &bomb(b"a", 1 << 20)].concat(), "name is too long"),
        ("stack global", b"X\x05\0\0\0posixX\x06\0\0\0system\x93.".to_vec(), "refused opcode 0x93"),
        ("object", b"(ios\nsystem\n.".to_vec(), "refused opcode 0x69"),
        ("new object", b"ccollections\nOrderedDict\n)\x81.".to_vec(), "refused opcode 0x81"),
        ("protocol 4", vec![0x80, 4, b'N', b'.'], "protocol 4"),
        ("empty", Vec::new(), "cut short"),
        ("no stop", b"N".to_vec(), "cut short"),
        ("stop on nothing", b".".to_vec(), "stack is empty"),
        ("two values", b"NN.".to_vec(), "left over"),
        ("open mark", b"(N.".to_vec(), "left over"),
        ("after the end", b"N.N".to_vec(), "left over"),
        ("text of 4 GiB", long_text, "cut short"),
        ("text not UTF-8", b"X\x01\0\0\0\xff.".to_vec(), "UTF-8"),
        ("long integer", [b"\x8a\xff".as_slice(), &[1; 255]].concat(), "integer of 255 bytes"),
        ("nested", bomb(b"(", 65), "more than 64 deep"),
        ("lists", bomb(b"]", 1_000_001), "more than 1000000"),
        ("stack", bomb(b"N", 1_000_001), "more than 1000000"),
        ("items", [b"](".as_slice(), &bomb(b"N", 900_000), b"e(", &bomb(b"N", 900_000), b"e."].concat(), "objects"),
        ("memo", (0..1_000_002u32).fold(b"N".to_vec(), |mut b, i| {
            b.push(b'r');
            b.extend(i.to_le_bytes());
            b
        }), "memo"),
        ("memo unknown", b"h\x07.".to_vec(), "remembered as 7"),
        ("append to a tuple", b")Na.".to_vec(), "no list"),
        ("entries of a list", b"](NNu.".to_vec(), "no dict"),
        ("entries of a tensor's type", b"ctorch\nFloatStorage\n(NNu.".to_vec(), "no dict"),
        ("half an entry", b"}(Nu.".to_vec(), "without a value"),
        ("call of a text", b"X\x01\0\0\0a)R.".to_vec(), "no known name"),
        ("call with too much", b"ccollections\nOrderedDict\nN\x85R.".to_vec(), "another form"),
        ("state of a list", b"]}b.".to_vec(), "no dict"),
        ("persistent id", b"NQ.".to_vec(), "no tensor storage"),
        ("persistent path", [b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x05\0\0\0../..X\x03\0\0\0cpuK\x04tQ.".as_slice()].concat(), "no tensor storage"),
        ("negative elements", b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuJ\xff\xff\xff\xfftQ.".to_vec(), "no tensor storage"),
        ("beyond its storage", tensor(b"K\x01K\x04\x85K\x01\x85"), "beyond its storage"),
        ("huge shape", tensor(b"K\0\x8a\x08\0\0\0\0\0\0\0\x40\x8a\x08\0\0\0\0\0\0\0\x40\x86\x8a\x08\0\0\0\0\0\0\0\x40K\x01\x86"), "not well-formed"),
        ("negative shape", tensor(b"K\0J\xff\xff\xff\xff\x85K\x01\x85"), "not well-formed"),
        ("stride 0", tensor(b"K\0K\x04\x85K\0\x85"), "not contiguous"),
        ("transposed", tensor(b"K\0K\x02K\x02\x86K\x01K\x02\x86"), "not contiguous"),
        ("other ranks", tensor(b"K\0K\x04\x85)"), "not well-formed"),
    ];
    for (case, body, word) in rows {
        let error = parsed(&body).expect_err(case);
        assert!(error.contains(word), "{case}: no {word:?} in {error:?}");
        assert!(error.starts_with("pickle offset "), "{case}: {error}");
    }
    assert!(parsed(&tensor(b"K\0K\x02K\x02\x86K\x02K\x01\x86")).is_ok());
}

#[test]
fn shared_values_stay_shared() {
    // "Billion laughs": each list holds the one before ten times. Small here, and never walked through.
    let mut body = b"]q\0".to_vec();
    for level in 0..60u8 {
        body.extend([b']', b'q', level + 1, b'(']);
        body.extend([b'h', level].repeat(10));
        body.push(b'e');
    }
    body.extend(b"\x85.");
    let error = parsed(&body).unwrap_err();
    assert!(error.contains("left over"), "{error}");
    // A dict inside itself.
    let pickle = parsed(b"}q\0(X\x01\0\0\0ah\0u.").unwrap();
    assert_eq!(pickle.by_text(pickle.root).unwrap()["a"], pickle.root);
    assert!(
        parsed(b"}(X\x01\0\0\0aNX\x01\0\0\0aNu.").is_ok_and(|p| p.by_text(p.root).is_none()),
        "key twice"
    );
}

#[test]
fn integers_have_their_sign_and_width() {
    let value = |body: &[u8]| parsed(body).unwrap().root;
    assert_eq!(value(b"J\xfe\xff\xff\xff."), Value::Int(-2));
    assert_eq!(value(b"\x8a\x01\x80."), Value::Int(-128));
    assert_eq!(value(b"\x8a\0."), Value::Int(0));
    assert_eq!(value(b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f."), Value::Int(i64::MAX));
    assert_eq!(value(b"M\xff\xff."), Value::Int(65535));
}

// ---- archives ---------------------------------------------------------------------------------------------

fn entries() -> Vec<(String, Vec<u8>)> {
    let entry = |name: &str, bytes: &[u8]| (name.to_owned(), bytes.to_vec());
    vec![entry("a/data.pkl", b"\x80\x02N."), entry("a/byteorder", b"little"), entry("a/version", b"3\n")]
}

fn with(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut all = entries();
    all.push((name.to_owned(), bytes.to_vec()));
    zip::encode(&all).unwrap()
}

/// Changes bytes relative to the `n`th occurrence of `what`.
fn patched(mut bytes: Vec<u8>, what: &[u8], n: usize, at: usize, new: &[u8]) -> Vec<u8> {
    let mut places = bytes.windows(what.len()).enumerate().filter(|(_, w)| *w == what).map(|(i, _)| i);
    let start = places.nth(n).expect("the record is there") + at;
    bytes[start..start + new.len()].copy_from_slice(new);
    bytes
}

#[test]
fn hostile_archives_are_refused_by_rule() {
    let folder = scratch("hostile-archives");
    let whole = zip::encode(&entries()).unwrap();
    read_all(&whole, &folder.join("whole")).unwrap();
    let (central, local, end) = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06");
    let big =
        entries().into_iter().map(|(n, b)| if n.ends_with("order") { (n, b"big".to_vec()) } else { (n, b) });
    let damaged = patched(whole.clone(), b"\x80\x02N.", 0, 2, b"I");
    let rows: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "not a zip"),
        ("no zip", vec![7; 4000], "not a zip"),
        (
            "legacy torch file",
            b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec(),
            "1.6",
        ),
        ("bytes before", [b"x".as_slice(), &whole].concat(), "directory is not where"),
        ("bytes after", [&whole, b"x".as_slice()].concat(), "not a zip"),
        ("deflated", patched(whole.clone(), central, 0, 10, &[8]), "compressed"),
        ("deflated behind the directory's back", patched(whole.clone(), local, 1, 8, &[8]), "something else"),
        ("encrypted", patched(whole.clone(), central, 1, 8, &[1]), "encrypted"),
        ("sizes differ", patched(whole.clone(), central, 0, 20, &[1]), "compressed"),
        (
            "size lies in both",
            patched(patched(whole.clone(), central, 0, 20, &[200]), central, 0, 24, &[200]),
            "something else",
        ),
        (
            "size beyond the file",
            patched(patched(whole.clone(), central, 2, 20, &[0xf0; 4]), central, 2, 24, &[0xf0; 4]),
            "something else",
        ),
        ("wide size without its field", patched(whole.clone(), central, 0, 24, &[0xff; 4]), "sizes"),
        ("offset elsewhere", patched(whole.clone(), central, 1, 42, &[0, 0, 0, 0]), "something else"),
        ("offset beyond", patched(whole.clone(), central, 1, 42, &[0xff, 0xff, 0xff, 0x7f]), "reading"),
        (
            "symbolic link",
            patched(patched(whole.clone(), central, 0, 5, &[3]), central, 0, 40, &[0, 0xa0]),
            "link",
        ),
        ("entry twice", with("a/version", b"4\n"), "twice"),
        ("path", with("a/../../etc/x", b""), "not permitted"),
        ("absolute", with("/a", b""), "not permitted"),
        ("control character", with("a/\u{7}", b""), "not permitted"),
        ("another folder", with("b/data.pkl", b""), "not one that torch.save writes"),
        ("something else", with("a/code.py", b"import os"), "not one that torch.save writes"),
        ("count", patched(whole.clone(), end, 0, 8, &[2, 0, 2, 0]), "after the last entry"),
        ("count beyond", patched(whole.clone(), end, 0, 8, &[9, 0, 9, 0]), "cut short"),
        ("several parts", patched(whole.clone(), end, 0, 4, &[1]), "parts"),
        ("directory elsewhere", patched(whole.clone(), end, 0, 16, &[0]), "directory is not where"),
        ("checksum", damaged, "checksum"),
        ("big-endian", zip::encode(&big.collect::<Vec<_>>()).unwrap(), "big-endian"),
        ("no pickle", zip::encode(&entries()[1..]).unwrap(), "no entry a/data.pkl"),
    ];
    for (case, bytes, word) in rows {
        refused(case, read_all(&bytes, &folder.join("file.pt")), word);
    }
}

#[test]
fn overlapping_and_hidden_bytes_are_refused() {
    let folder = scratch("overlapping-archives");
    // Two entries for the same bytes: the second header's offset is the first's, with the same name length.
    let pair = [("a/data/1".to_owned(), vec![1; 4]), ("a/data/2".to_owned(), vec![1; 4])];
    let bytes = zip::encode(&pair).unwrap();
    let same_name = patched(bytes.clone(), b"a/data/2", 1, 7, b"1");
    let overlap = patched(same_name, b"PK\x01\x02", 1, 42, &[0]);
    refused("the same bytes twice", read_all(&overlap, &folder.join("x")), "twice");
    // A whole entry that the directory does not list, and the end records adjusted to it.
    let first = bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let second = first + 4 + bytes[first + 4..].windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let mut hidden = bytes[..first].to_vec();
    hidden.extend(&bytes[second..]);
    let length = (bytes.len() - 22 - second) as u8;
    let hidden =
        patched(patched(hidden, b"PK\x05\x06", 0, 8, &[1, 0, 1, 0]), b"PK\x05\x06", 0, 12, &[length]);
    refused("an entry nobody lists", read_all(&hidden, &folder.join("x")), "belong to none");
}

#[test]
fn storages_must_have_their_bytes() {
    let folder = scratch("storages");
    let values: Vec<f32> = (0..6).map(|i| i as f32).collect();
    let good = encode("a", &Tree::Tensor(vec![2, 3], &values)).unwrap();
    assert_eq!(read_all(&good, &folder.join("good")).unwrap(), [values]);
    let long = patched(good.clone(), b"cpu", 0, 4, &[7]);
    let crc = |b: Vec<u8>| {
        // The pickle was changed on purpose: give it its checksum.
        let start = b.windows(2).position(|w| w == [0x80, 2]).unwrap();
        let size = u32::from_le_bytes(b[22..26].try_into().unwrap()) as usize;
        let sum = zip::crc32(&b[start..start + size]).to_le_bytes();
        patched(b, b"PK\x01\x02", 0, 16, &sum)
    };
    refused(
        "longer than its entry",
        read_all(&crc(long), &folder.join("x")),
        "7 elements of 4 bytes, its entry 24",
    );
    let absent = patched(good.clone(), b"X\x01\0\0\x000", 0, 5, b"9");
    refused("without an entry", read_all(&crc(absent), &folder.join("x")), "storage 9");
}

#[test]
fn files_of_torch_are_read_whole_and_every_cut_is_noticed() {
    let folder = scratch("torch-files");
    let optimizer = std::fs::read(golden(OPTIMIZER)).unwrap();
    let tensors = read_all(&optimizer, &folder.join("o")).unwrap();
    assert_eq!(tensors.len(), 36);
    assert!(tensors.iter().flatten().all(|v| v.is_finite()));
    let scheduler = std::fs::read(golden(SCHEDULER)).unwrap();
    for end in (0..scheduler.len()).chain((0..optimizer.len()).step_by(97)) {
        let whole = if end < scheduler.len() { &scheduler } else { &optimizer };
        assert!(read_all(&whole[..end], &folder.join("cut")).is_err(), "{end} bytes");
    }
}

/// Every bit of a file that is changed is noticed, or changes nothing of what is read.
#[test]
fn changed_bits_never_change_a_value_and_never_panic() {
    let folder = scratch("torch-bits");
    let values: Vec<f32> = (0..40).map(|i| i as f32 * 0.5 - 7.0).collect();
    let tree = Tree::Dict(vec![(Tree::Text("w"), Tree::Tensor(vec![8, 5], &values))]);
    let own = encode("own", &tree).unwrap();
    let theirs = std::fs::read(golden(OPTIMIZER)).unwrap();
    let mut random = Lcg(5);
    let mut noticed = 0;
    for (name, bytes, rounds) in [("own", &own, 2500), ("theirs", &theirs, 2500)] {
        let expected = read_all(bytes, &folder.join(name)).unwrap();
        for _ in 0..rounds {
            let mut changed = bytes.clone();
            let at = random.below(changed.len());
            changed[at] ^= 1 << random.below(8);
            match read_all(&changed, &folder.join(name)) {
                Ok(found) => assert_eq!(found, expected, "{name}: byte {at}"),
                Err(e) => {
                    assert_eq!(e.kind, Kind::Input, "{e}");
                    noticed += 1;
                }
            }
        }
    }
    assert!(noticed > 2500, "only {noticed} changes were noticed");
}

#[test]
fn what_is_written_is_read_back() {
    let folder = scratch("torch-written");
    let (a, b) = ([1.5f32, -2.0, 3.25], [f32::MIN_POSITIVE; 4]);
    let tree = || {
        Tree::Dict(vec![
            (
                Tree::Text("tensors"),
                Tree::List(vec![Tree::Tensor(vec![3], &a), Tree::Tensor(vec![2, 2], &b)]),
            ),
            (Tree::Text("scalar"), Tree::Tensor(Vec::new(), &a[..1])),
            (Tree::Text("numbers"), Tree::Tuple(vec![Tree::Int(-5), Tree::Int(1 << 40), Tree::Float(0.1)])),
            (Tree::Text("rest"), Tree::List(vec![Tree::None, Tree::Bool(true), Tree::Bool(false)])),
            (Tree::Int(7), Tree::Text("中文")),
        ])
    };
    let bytes = encode("x", &tree()).unwrap();
    assert_eq!(bytes, encode("x", &tree()).unwrap());
    std::fs::write(folder.join("x.pt"), &bytes).unwrap();
    let file = TorchFile::open(&folder.join("x.pt")).unwrap();
    let p = &file.pickle;
    assert!(p.by_text(p.root).is_none(), "a key is no text");
    let Value::Dict(_) = p.root else { panic!("{:?}", p.root) };
    let tree = encode("x", &Tree::Dict(vec![(Tree::Text("n"), Tree::Tensor(vec![2, 2], &b))])).unwrap();
    assert_eq!(read_all(&tree, &folder.join("y.pt")).unwrap(), [b.to_vec()]);
}

#[test]
fn a_pickled_adapter_is_the_same_as_a_safe_one() {
    let folder = scratch("pickled-adapter");
    let old = golden("deepke-qwen1/checkpoint-7");
    let adapter = peft::read(&old).unwrap();
    assert_eq!(adapter.tensors.len(), 20);
    peft::write(&folder, &adapter).unwrap();
    assert_eq!(peft::read(&folder).unwrap(), adapter);
    // With both, the safetensors count.
    std::fs::write(folder.join("adapter_model.bin"), b"garbage").unwrap();
    assert_eq!(peft::read(&folder).unwrap(), adapter);
    for (case, tree, word) in [
        ("a list", Tree::List(Vec::new()), "not a dictionary"),
        ("a number", Tree::Dict(vec![(Tree::Text("x"), Tree::Int(1))]), "not a tensor"),
        ("empty", Tree::Dict(Vec::new()), "no tensors"),
        (
            "other names",
            Tree::Dict(vec![(Tree::Text("x"), Tree::Tensor(vec![1, 1], &[0.0]))]),
            "not named like",
        ),
        (
            "not a number",
            Tree::Dict(vec![(
                Tree::Text("base_model.model.m.lora_A.weight"),
                Tree::Tensor(vec![4, 1], &[f32::NAN; 4]),
            )]),
            "NaN",
        ),
    ] {
        std::fs::remove_file(folder.join("adapter_model.safetensors")).ok();
        std::fs::write(folder.join("adapter_model.bin"), encode("adapter_model", &tree).unwrap()).unwrap();
        refused(case, peft::read(&folder), word);
    }
}
