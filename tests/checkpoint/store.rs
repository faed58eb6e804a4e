//! The run folder on the real file system: lock, retention, fallback, links, moved folders, a full disk, and
//! processes that are killed at every operation.

use super::disk::Disk;
use super::{fresh_folder, sized_state, state};
use qwentune::checkpoint::inspect;
use qwentune::checkpoint::shelf::{Shelf, step_of};
use qwentune::checkpoint::state::{Best, State};
use qwentune::checkpoint::storage::{FileSystem, Folder, Held, Stored};
use qwentune::checkpoint::store::{Found, RunLock, Store};
use qwentune::error::{Kind, Result};
use qwentune::report::event::Event;
use qwentune::train::engine::Copied;
use qwentune::train::saver::Saver;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

fn opened(folder: &Path, keep: usize) -> Result<Store> {
    Store::open(&RunLock::take(&FileSystem, folder)?, keep)
}

fn open(folder: &Path, keep: usize) -> Store {
    opened(folder, keep).unwrap_or_else(|e| panic!("{e}"))
}

fn save(store: &mut Store, step: u64) {
    store.save(&state(step, 0)).unwrap_or_else(|e| panic!("{e}"));
}

/// A run folder with checkpoints of the steps 1 to `last`, of which the store keeps `keep`.
fn run_folder(name: &str, last: u64, keep: usize) -> PathBuf {
    let folder = fresh_folder(name);
    let mut store = open(&folder, keep);
    (1..=last).for_each(|step| save(&mut store, step));
    folder
}

fn file(folder: &Path, step: u64) -> PathBuf {
    inspect::path_of_step(folder, step)
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("there");
    bytes[at] ^= 16;
    fs::write(path, bytes).expect("writable");
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder.join("checkpoints")).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|e| e.expect("entry").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

fn step(found: Found) -> Option<u64> {
    found.newest.map(|(_, state)| state.step)
}

#[test]
fn saves_and_finds_again() {
    let folder = fresh_folder("saves");
    let mut store = open(&folder, 2);
    assert!(store.newest().expect("empty").newest.is_none());
    (1..=5).for_each(|step| save(&mut store, step));
    assert_eq!(store.save(&state(6, 0)).expect("saved"), file(&folder, 6));
    assert!(store.take_warnings().is_empty());
    drop(store);
    let found = open(&folder, 2).newest().expect("there");
    assert_eq!((found.seen, found.set_aside.len()), (2, 0));
    assert_eq!(found.newest, Some((file(&folder, 6), state(6, 0))));
}

/// Same state, same file, whatever the folder, the retention and the saves before it.
#[test]
fn bytes_depend_on_the_state_alone() {
    let (one, other) = (run_folder("bytes-one", 4, 2), fresh_folder("bytes-other"));
    save(&mut open(&other, 7), 4);
    assert_eq!(fs::read(file(&one, 4)).expect("there"), fs::read(file(&other, 4)).expect("there"));
}

#[test]
fn one_process_at_a_time() {
    let folder = fresh_folder("lock");
    let store = open(&folder, 2);
    let error = opened(&folder, 2).err().expect("locked");
    assert_eq!(error.kind, Kind::Output);
    assert!(error.what.contains(&format!("in use by process {}", std::process::id())), "{error}");
    drop(store);
    // Held by another process, until that is killed.
    let mut child =
        helper("hold", &folder).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    assert!(lines.any(|line| line.expect("text").contains("holding")));
    let error = opened(&folder, 2).err().expect("locked");
    assert!(error.what.contains(&format!("process {}", child.id())), "{error}");
    // Looking needs no lock.
    assert!(inspect::list(&folder).expect("readable").is_empty());
    child.kill().expect("killed");
    child.wait().expect("ended");
    open(&folder, 2);
}

#[test]
fn retention_keeps_the_newest_and_the_best() {
    let folder = fresh_folder("retention");
    let mut store = open(&folder, 3);
    let mut save = |step: u64, best: u64| {
        let mut state = state(step, 0);
        state.cursor.best = Some(Best { loss: 0.5, step: best, adapter: [1; 32] });
        store.save(&state).expect("saved");
        if step == 8 {
            store.write_next_loss(8, &[1.5]).expect("written");
        }
    };
    (1..=8).for_each(|step| save(step, step.min(2)));
    let kept = |steps: &[u64]| steps.iter().map(|s| format!("step-{s:08}.qckpt")).collect::<Vec<_>>();
    let mut expected = kept(&[2, 6, 7, 8]);
    expected.insert(3, "step-00000008.next".into());
    assert_eq!(names(&folder), expected);
    (9..=11).for_each(|step| save(step, 6));
    assert_eq!(names(&folder), kept(&[6, 9, 10, 11]));
}

/// The best is what the state says, also in a process that did not evaluate itself.
#[test]
fn retention_keeps_the_best_of_the_state() {
    let folder = fresh_folder("retention-best");
    for step in 1..=6 {
        let mut state = state(step, 0);
        state.cursor.best = Some(Best { loss: 0.5, step: step.min(2), adapter: [1; 32] });
        open(&folder, 2).save(&state).expect("saved");
    }
    let steps: Vec<u64> = names(&folder).iter().filter_map(|n| step_of(n)).collect();
    assert_eq!(steps, [2, 5, 6]);
}

/// A file that was damaged on the disk does not count as one of those that allow an older one to go.
#[test]
fn nothing_goes_before_newer_ones_were_read_back() {
    let folder = run_folder("verified", 3, 3);
    flip(&file(&folder, 3), 20_000);
    flip(&file(&folder, 2), 5);
    let mut store = open(&folder, 2);
    save(&mut store, 4);
    let expected =
        ["step-00000001.qckpt", "step-00000002.qckpt.bad", "step-00000003.qckpt.bad", "step-00000004.qckpt"];
    assert_eq!(names(&folder), expected);
    assert_eq!(store.take_warnings().len(), 2);
}

#[test]
fn damaged_files_are_set_aside() {
    let folder = run_folder("fallback", 6, 5);
    flip(&file(&folder, 6), 4097);
    fs::write(file(&folder, 5), b"").expect("written");
    let cut = fs::read(file(&folder, 4)).expect("there");
    fs::write(file(&folder, 4), &cut[..cut.len() / 2]).expect("written");
    let mut store = open(&folder, 5);
    let found = store.newest().expect("two are whole");
    assert_eq!(found.seen, 5);
    let texts = found.set_aside.join("\n");
    assert!(texts.contains("section META damaged") && texts.contains("the header says"), "{texts}");
    assert!(texts.contains("kept as step-00000006.qckpt.bad"), "{texts}");
    assert_eq!(step(found), Some(3));
    assert_eq!(names(&folder).iter().filter(|n| n.ends_with(".bad")).count(), 3);
    // At most two stay once the run goes on.
    save(&mut store, 4);
    let bad: Vec<String> = names(&folder).into_iter().filter(|n| n.ends_with(".bad")).collect();
    assert_eq!(bad, ["step-00000005.qckpt.bad", "step-00000006.qckpt.bad"]);
}

#[test]
fn nothing_whole_is_an_error() {
    let folder = run_folder("all-bad", 3, 3);
    (1..=3).for_each(|step| flip(&file(&folder, step), 9000));
    let before = names(&folder);
    for _ in 0..2 {
        let error = open(&folder, 3).newest().expect_err("none is whole");
        assert_eq!(error.kind, Kind::Input);
        assert!(error.what.contains("no usable checkpoint among 3"), "{error}");
        assert!(error.remedy.contains("--overwrite-output-dir"), "{error}");
        assert_eq!(names(&folder), before);
    }
    // Nor is a folder in which only files set aside are left taken for a new one.
    before.iter().for_each(|n| {
        let path = folder.join("checkpoints").join(n);
        fs::rename(&path, format!("{}.bad", path.display())).expect("renamed");
    });
    assert_eq!(open(&folder, 3).newest().expect_err("none is whole").kind, Kind::Input);
}

#[test]
fn a_named_file_has_no_fallback() {
    let folder = run_folder("explicit", 2, 2);
    assert_eq!(inspect::load(&file(&folder, 1)).expect("whole"), state(1, 0));
    flip(&file(&folder, 2), 0x5004);
    let error = inspect::load(&file(&folder, 2)).expect_err("damaged");
    assert_eq!(error.kind, Kind::Input);
    assert!(error.what.contains("section W damaged") && error.what.contains("file bytes 0x"), "{error}");
    assert_eq!(inspect::verify(&file(&folder, 2)).expect_err("damaged").kind, Kind::Check);
    assert_eq!(inspect::verify(&file(&folder, 1)).expect("whole").step, 1);
    assert_eq!(inspect::load(&file(&folder, 9)).expect_err("missing").kind, Kind::Input);
    assert_eq!(inspect::load(&folder).expect_err("a folder").kind, Kind::Input);
    assert_eq!(names(&folder).len(), 2, "nothing is renamed");
}

#[test]
fn looking_inside() {
    let folder = run_folder("show", 3, 3);
    let shown = inspect::show(&file(&folder, 3)).expect("whole");
    assert_eq!((shown.header.step, shown.parameters, shown.header.samples), (3, 25, 24));
    assert_eq!((shown.state.identity, shown.state.weights.len()), (state(3, 0).identity, 0));
    flip(&file(&folder, 2), 100);
    fs::rename(file(&folder, 3), file(&folder, 7)).expect("renamed");
    for path in [folder.clone(), folder.join("checkpoints")] {
        let listed = inspect::list(&path).expect("readable");
        let steps: Vec<Option<u64>> = listed.iter().map(|l| l.header.as_ref().ok().map(|h| h.step)).collect();
        assert_eq!(steps, [Some(3), None, Some(1)]);
        assert_eq!(listed.iter().map(|l| l.misnamed).collect::<Vec<_>>(), [true, false, false]);
        assert_eq!(listed[0].bytes, fs::metadata(file(&folder, 7)).expect("there").len());
    }
}

#[test]
fn the_header_counts_not_the_name() {
    let folder = run_folder("renamed", 2, 2);
    fs::rename(file(&folder, 1), file(&folder, 9)).expect("renamed");
    let mut store = open(&folder, 2);
    let found = store.newest().expect("whole");
    assert!(store.take_warnings().is_empty(), "the newest has its right name");
    assert_eq!(step(found), Some(2));
    fs::remove_file(file(&folder, 2)).expect("removed");
    let found = store.newest().expect("whole");
    let warnings = store.take_warnings();
    assert!(warnings[0].contains("holds step 1; the content counts"), "{warnings:?}");
    assert_eq!(step(found), Some(1));
    // The name is needed for step 9: the file that has it is no longer found under it, and is kept.
    save(&mut store, 9);
    assert_eq!(names(&folder), ["step-00000009.qckpt", "step-00000009.qckpt.old"]);
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let folder = run_folder("newer", 2, 2);
    let path = file(&folder, 2);
    let mut bytes = fs::read(&path).expect("there");
    bytes[8] = 3;
    let digest = *blake3::hash(&bytes[..4064]).as_bytes();
    bytes[4064..4096].copy_from_slice(&digest);
    fs::write(&path, bytes).expect("written");
    let mut store = open(&folder, 2);
    for error in [store.newest().err(), inspect::load(&path).err(), inspect::verify(&path).err()] {
        let error = error.expect("of a newer format");
        assert_eq!(error.kind, Kind::Input);
        assert!(error.what.contains("format 3.0, this build reads 2.0"), "{error}");
    }
    assert!(store.save(&state(2, 0)).is_err(), "its place is not taken");
    assert_eq!(names(&folder), ["step-00000001.qckpt", "step-00000002.qckpt"]);
}

#[test]
fn a_repeated_step() {
    let folder = run_folder("repeated", 3, 5);
    let mut store = open(&folder, 5);
    let inode = |step| fs::metadata(file(&folder, step)).expect("there").ino();
    let before = inode(2);
    save(&mut store, 2);
    assert_eq!(inode(2), before, "the same bytes are not written again");
    // Another history of the same step: the file is replaced and the old one kept.
    store.save(&state(2, 8)).expect("saved");
    assert_eq!(inspect::load(&file(&folder, 2)).expect("whole"), state(2, 8));
    let old = folder.join("checkpoints/step-00000002.qckpt.old");
    assert_eq!(inspect::load(&old).expect("whole"), state(2, 0));
    assert!(store.take_warnings()[0].contains("kept as step-00000002.qckpt.old"));
    // A damaged one is set aside.
    flip(&file(&folder, 3), 30_000);
    save(&mut store, 3);
    assert_eq!(inspect::load(&file(&folder, 3)).expect("whole"), state(3, 0));
    assert!(names(&folder).contains(&"step-00000003.qckpt.bad".to_owned()));
}

#[test]
fn going_on_from_an_older_checkpoint() {
    let folder = run_folder("older", 4, 4);
    let mut store = open(&folder, 4);
    assert_eq!(store.set_aside_newer(2).expect("renamed").len(), 2);
    assert_eq!(step(store.newest().expect("whole")), Some(2));
    store.save(&state(3, 5)).expect("saved");
    assert_eq!(store.newest().expect("whole").newest.expect("there").1, state(3, 5));
}

#[test]
fn leftovers_are_removed() {
    let folder = run_folder("leftovers", 1, 2);
    for name in [".step-00000002.qckpt.tmp", ".probe.1.tmp", "step-00000007.next"] {
        fs::write(folder.join("checkpoints").join(name), b"half").expect("written");
    }
    fs::write(folder.join("checkpoints/notes.txt"), b"mine").expect("written");
    let mut store = open(&folder, 2);
    assert_eq!(names(&folder), ["notes.txt", "step-00000001.qckpt"]);
    save(&mut store, 2);
}

#[test]
fn links_lead_nowhere() {
    let folder = fresh_folder("links");
    let victim = folder.join("victim");
    fs::write(&victim, b"precious").expect("written");
    fs::create_dir(folder.join("elsewhere")).expect("created");
    let run = folder.join("run");
    fs::create_dir(&run).expect("created");
    // The checkpoint folder itself.
    symlink(folder.join("elsewhere"), run.join("checkpoints")).expect("linked");
    let error = opened(&run, 2).err().expect("refused");
    assert_eq!(error.kind, Kind::Output);
    fs::remove_file(run.join("checkpoints")).expect("removed");
    // The lock file, the temporary file, the checkpoint.
    symlink(&victim, run.join(".lock.aside")).expect("linked");
    fs::remove_file(run.join(".lock")).expect("removed");
    fs::rename(run.join(".lock.aside"), run.join(".lock")).expect("renamed");
    assert_eq!(opened(&run, 2).err().expect("refused").kind, Kind::Output);
    fs::remove_file(run.join(".lock")).expect("removed");
    let mut store = open(&run, 2);
    symlink(&victim, run.join("checkpoints/.step-00000001.qckpt.tmp")).expect("linked");
    save(&mut store, 1);
    assert!(fs::symlink_metadata(file(&run, 1)).expect("there").is_file());
    symlink(&victim, file(&run, 2)).expect("linked");
    assert!(store.save(&state(2, 0)).is_err());
    assert_eq!(fs::read(&victim).expect("there"), b"precious");
}

#[test]
fn a_moved_folder_is_noticed() {
    let folder = fresh_folder("moved");
    let (before, after) = (folder.join("before"), folder.join("after"));
    let mut store = open(&before, 2);
    fs::rename(&before, &after).expect("renamed");
    assert_eq!(store.save(&state(1, 0)).expect("saved"), file(&after, 1));
    let warnings = store.take_warnings();
    assert!(warnings[0].contains("was moved") && warnings[0].contains("after/checkpoints"), "{warnings:?}");
    fs::remove_dir_all(&after).expect("removed");
    let error = store.save(&state(2, 0)).expect_err("deleted");
    assert_eq!(error.kind, Kind::Output);
    assert!(error.what.contains("was deleted during the run"), "{error}");
}

#[test]
fn files_have_the_usual_mode() {
    let folder = run_folder("mode", 1, 2);
    let usual = folder.join("usual");
    fs::write(&usual, b"").expect("written");
    let mode = |path: &Path| fs::metadata(path).expect("there").mode();
    assert_eq!(mode(&file(&folder, 1)), mode(&usual));
}

#[test]
fn a_folder_that_cannot_be_written() {
    let folder = fresh_folder("read-only");
    fs::write(folder.join("file"), b"").expect("written");
    let error = opened(&folder.join("file"), 2).err().expect("no folder");
    assert_eq!(error.kind, Kind::Output);
    let locked = folder.join("locked");
    fs::create_dir(&locked).expect("created");
    let mut permissions = fs::metadata(&locked).expect("there").permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&locked, permissions).expect("set");
    if fs::write(locked.join("probe"), b"").is_ok() {
        println!("SKIPPED: this user may write into read-only folders");
        return;
    }
    let error = opened(&locked, 2).err().expect("read-only");
    assert_eq!(error.kind, Kind::Output);
}

#[test]
fn a_state_that_is_not_finite_is_never_published() {
    let folder = run_folder("nan", 1, 2);
    let mut store = open(&folder, 2);
    let mut bad = state(2, 0);
    bad.m[7] = f32::NAN;
    let error = store.save(&bad).expect_err("not finite");
    assert_eq!(error.kind, Kind::Diverged);
    bad.m.pop();
    assert_eq!(store.save(&bad).expect_err("inconsistent").kind, Kind::Check);
    assert_eq!(names(&folder), ["step-00000001.qckpt"]);
}

#[test]
fn the_next_loss_beside_a_checkpoint() {
    let folder = run_folder("next", 2, 2);
    let mut store = open(&folder, 2);
    assert_eq!(store.read_next_loss(2).expect("none yet"), None);
    let losses = [1.0 / 3.0, -0.0, f64::MIN_POSITIVE];
    store.write_next_loss(2, &[9.0]).expect("written");
    store.write_next_loss(2, &losses).expect("replaced");
    let bits = |v: Vec<f64>| v.into_iter().map(f64::to_bits).collect::<Vec<_>>();
    assert_eq!(store.read_next_loss(2).expect("whole").map(bits), Some(bits(losses.to_vec())));
    let path = folder.join("checkpoints/step-00000002.next");
    let text = fs::read_to_string(&path).expect("text");
    assert!(text.starts_with("qwentune next-loss 1\nstep 2\nloss 3fd5555555555555\n"), "{text}");
    fs::write(&path, text.replace("3fd5", "3fd4")).expect("written");
    assert_eq!(store.read_next_loss(2).expect("no error"), None);
    assert!(store.take_warnings()[0].contains("step-00000002.next: damaged"));
    (3..=4).for_each(|step| save(&mut store, step));
    assert!(!path.exists(), "it goes with its checkpoint");
}

#[test]
fn room_is_counted_beforehand() {
    let folder = fresh_folder("room");
    let store = open(&folder, 3);
    assert_eq!(store.space_warning(1), None);
    let text = store.space_warning(1 << 58).expect("no disk is that large");
    assert!(text.contains("4 of 288230376152 MB each"), "{text}");
}

/// A folder whose files can be created only while the gate is open.
struct Gated(Disk, Arc<Mutex<()>>);

impl Folder for Gated {
    fn create(&self, name: &str) -> io::Result<Box<dyn Stored>> {
        let _open = self.1.lock().expect("no panic");
        self.0.create(name)
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn Stored>> {
        self.0.open(name)
    }
    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        self.0.rename(from, to, replace)
    }
    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.link(from, to)
    }
    fn unlink(&self, name: &str) -> io::Result<()> {
        self.0.unlink(name)
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
    fn free_bytes(&self) -> Option<u64> {
        self.0.free_bytes()
    }
    fn path(&self) -> PathBuf {
        self.0.path()
    }
    fn in_place(&self) -> bool {
        true
    }
}

fn gated() -> (Store, Disk, Arc<Mutex<()>>) {
    let (disk, gate) = (Disk::default(), Arc::new(Mutex::new(())));
    let shelf = Shelf::new(Box::new(Gated(disk.clone(), Arc::clone(&gate))), 2);
    let lock: Held = Arc::new(());
    (Store::of(shelf, lock), disk, gate)
}

/// Arrays that are copied at once, or (as from a GPU) when they are asked for.
struct Arrays {
    of: State,
    beside: bool,
    copy: Option<[Vec<f32>; 3]>,
}

impl Arrays {
    fn new(of: State, beside: bool) -> Self {
        Arrays { of, beside, copy: None }
    }
}

impl Copied for Arrays {
    fn begin_copy(&mut self, mut into: [Vec<f32>; 3]) -> Result<()> {
        for (out, array) in into.iter_mut().zip([&self.of.weights, &self.of.m, &self.of.v]) {
            out.clear();
            out.extend_from_slice(array);
        }
        self.copy = Some(into);
        Ok(())
    }

    fn end_copy(&mut self) -> Result<[Vec<f32>; 3]> {
        Ok(self.copy.take().expect("a copy that was begun"))
    }

    fn copies_beside(&self) -> bool {
        self.beside
    }
}

/// The state without its arrays, as a trainer has it.
fn head(state: &State) -> State {
    State { weights: vec![], m: vec![], v: vec![], ..state.clone() }
}

/// What a saver told, as text.
fn told(events: &[Event]) -> Vec<String> {
    let text = |event: &Event| match event {
        Event::Saved { step, .. } => format!("saved {step}"),
        Event::Warning(text) => text.clone(),
        other => format!("{other:?}"),
    };
    events.iter().map(text).collect()
}

#[test]
fn a_slow_disk_skips_and_never_blocks() {
    for beside in [false, true] {
        let (store, disk, gate) = gated();
        let mut saver = Saver::new(store, None).expect("starts");
        let mut events = Vec::new();
        let closed = gate.lock().expect("open");
        let mut save = |state: State, waits: bool| {
            let mut arrays = Arrays::new(state.clone(), beside);
            let mut observer = |event: &Event| events.push(event.clone());
            if waits {
                saver.save(&head(&state), &mut arrays, &mut observer).expect("saved");
            } else {
                saver.begin(&head(&state), &mut arrays, &mut observer).expect("begun");
                saver.advance(&mut arrays, &mut observer).expect("never waits for the disk");
            }
        };
        save(sized_state(1, 0, 50), false);
        save(state(2, 0), false);
        drop(closed);
        save(state(3, 0), true);
        assert_eq!(told(&events).len(), 3);
        assert!(told(&events)[0].contains("still being written"), "{:?}", told(&events));
        assert_eq!(told(&events)[1..], ["saved 1", "saved 3"]);
        assert_eq!(saver.newest(), Some(3));
        let found = saver.store().newest().expect("whole").newest.expect("there").1;
        assert_eq!(found, state(3, 0), "with the arrays of its own step");
        assert_eq!(disk.names().len(), 2);
    }
}

/// A state that is saved already is not saved again, unless it changed.
#[test]
fn a_step_is_saved_once() {
    let (store, disk, _) = gated();
    let mut saver = Saver::new(store, Some(1)).expect("starts");
    assert_eq!(saver.newest(), Some(1));
    let mut arrays = Arrays::new(state(1, 0), false);
    let mut events = Vec::new();
    let mut observer = |event: &Event| events.push(event.clone());
    let head = head(&state(1, 0));
    for again in [false, false, true] {
        if again {
            saver.forget();
        }
        saver.save(&head, &mut arrays, &mut observer).expect("saved");
    }
    assert_eq!(disk.names().len(), 1);
    assert_eq!(told(&events), ["saved 1", "saved 1"]);
}

#[test]
fn a_full_disk_skips_and_training_goes_on() {
    use super::disk::Trouble;
    let (store, disk, _) = gated();
    let mut saver = Saver::new(store, None).expect("starts");
    let mut events = Vec::new();
    let mut save = |step: u64, waits: bool| {
        let (state, mut observer) = (state(step, 0), |event: &Event| events.push(event.clone()));
        let mut arrays = Arrays::new(state.clone(), false);
        if waits {
            return saver.save(&head(&state), &mut arrays, &mut observer);
        }
        saver.begin(&head(&state), &mut arrays, &mut observer)?;
        saver.finish(&mut arrays, &mut observer)
    };
    save(1, true).expect("saved");
    disk.plan(1, Trouble::Full);
    let error = save(2, true).expect_err("full");
    assert_eq!(error.kind, Kind::Io);
    assert!(error.what.contains("need 37 kB, 5 kB free in disk"), "{error}");
    save(3, false).expect("training goes on");
    disk.repair();
    save(4, true).expect("saved");
    let told = told(&events);
    assert_eq!((told.len(), told[0].as_str(), told[2].as_str()), (3, "saved 1", "saved 4"), "{told:?}");
    assert!(told[1].starts_with("checkpoint skipped: need 37 kB, 5 kB free"), "{told:?}");
    assert_eq!(step(saver.store().newest().expect("whole")), Some(4));
}

/// Training does not go on with a state that is not finite, also when nobody waited for its save.
#[test]
fn a_state_that_is_not_finite_ends_the_run() {
    let (store, disk, _) = gated();
    let mut saver = Saver::new(store, None).expect("starts");
    let mut bad = state(2, 0);
    bad.m[3] = f32::NAN;
    let mut arrays = Arrays::new(bad.clone(), true);
    let mut silent = |_: &Event| ();
    saver.begin(&head(&bad), &mut arrays, &mut silent).expect("begun");
    let error = saver.finish(&mut arrays, &mut silent).expect_err("not finite");
    assert_eq!(error.kind, Kind::Diverged, "{error}");
    assert!(error.what.contains("section M: element 3"), "{error}");
    assert!(disk.names().is_empty());
}

/// This very test program, running `helper_process` in another process.
fn helper(task: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("known"));
    command.args(["--exact", "checkpoint::store::helper_process", "--ignored", "--nocapture"]);
    command.env("QWENTUNE_TEST_TASK", task).env("QWENTUNE_TEST_FOLDER", folder);
    command
}

#[test]
#[ignore = "the other process of the tests here; they start it"]
fn helper_process() {
    let variable = |name| std::env::var(name).expect("set by the test that starts this");
    let folder = PathBuf::from(variable("QWENTUNE_TEST_FOLDER"));
    let say = |text: String| {
        println!("{text}");
        io::stdout().flush().expect("a pipe");
    };
    match variable("QWENTUNE_TEST_TASK").as_str() {
        "hold" => {
            let _store = open(&folder, 2);
            say("holding".into());
            io::stdin().read_line(&mut String::new()).expect("a pipe");
        }
        "save" => {
            let mut store = open(&folder, 2);
            let from = step(store.newest().expect("usable")).unwrap_or(0);
            for step in from + 1..=4 {
                save(&mut store, step);
                say(format!("acknowledged {step}"));
            }
            say("finished".into());
        }
        "limited" => {
            let limit = rustix::process::Rlimit { current: Some(30_000), maximum: Some(30_000) };
            let mut store = open(&folder, 2);
            rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).expect("lowered");
            let error = store.save(&state(2, 0)).expect_err("too large");
            say(format!("told: {error}"));
        }
        task => panic!("no task {task}"),
    }
}

/// `ulimit -f` neither kills the process nor harms what is there.
#[test]
fn a_limit_for_the_size_of_files() {
    let folder = run_folder("limit", 1, 2);
    let output = helper("limited", &folder).output().expect("runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("told: need 37 kB") && text.contains("over the limit for the size"), "{text}");
    assert_eq!(names(&folder), ["step-00000001.qckpt"]);
}

/// Killed in place of every single operation that changes the folder, then started again until it is through:
/// what was acknowledged is there, and the last files are those of an undisturbed run.
#[test]
fn killed_at_every_operation() {
    let undisturbed = fresh_folder("killed-never");
    assert!(helper("save", &undisturbed).status().expect("runs").success());
    let expected: Vec<Vec<u8>> = (3..=4).map(|s| fs::read(file(&undisturbed, s)).expect("there")).collect();
    let mut kills = 0;
    for at in 1.. {
        let folder = fresh_folder("killed");
        let half = if at % 2 == 0 { "/2" } else { "" };
        let output =
            helper("save", &folder).env("QWENTUNE_CRASH_AT", format!("{at}{half}")).output().expect("runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let acknowledged =
            text.lines().filter_map(|l| l.split("acknowledged ").nth(1)?.trim().parse().ok()).max();
        let found = step(open(&folder, 2).newest().expect("usable"));
        assert!(found >= acknowledged, "kill {at}: {found:?} found, {acknowledged:?} acknowledged");
        assert!(helper("save", &folder).output().expect("runs").status.success(), "kill {at}");
        let left = names(&folder);
        // One that was about to be pruned stays until the next save.
        assert!(left.len() <= 3 && left.iter().all(|n| n.ends_with(".qckpt")), "kill {at}: {left:?}");
        let files: Vec<Vec<u8>> = (3..=4).map(|s| fs::read(file(&folder, s)).expect("there")).collect();
        assert!(files == expected, "kill {at}: other bytes");
        if text.contains("finished") {
            break;
        }
        kills += 1;
    }
    assert!(kills > 50, "{kills} operations only");
}
