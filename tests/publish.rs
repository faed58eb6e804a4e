//! How what is published gets its name: whole or not at all, never over what somebody else made, and with nothing left
//! behind.

use crate::scratch;
use qwentune::checkpoint::storage::{Placed, put_file, put_folder};
use qwentune::error::{Error, Kind, Result};
use qwentune::files;
use qwentune::formats::open_folder::{Access, OpenFolder};
use qwentune::formats::publish::{FileDraft, FolderDraft, MadeFrom, Memory, Over, replace_file};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// A base that was edited meanwhile.
struct Edited;

impl MadeFrom for Edited {
    fn check_unchanged(&self) -> Result<()> {
        Err(Error::new(Kind::Io, "the base was edited"))
    }
}

/// A draft's name as a killed process leaves it.
fn abandoned(name: &str, digit: char) -> String {
    format!(".{name}.{}.tmp", digit.to_string().repeat(32))
}

#[test]
fn a_file_is_replaced_whole_and_only_our_own_abandoned_drafts_go() {
    let folder = scratch::folder();
    let path = folder.file("a.json", "old");
    folder.file(&abandoned("a.json", '7'), "torn by a kill");
    let strangers = [".a.json.tmp", ".a.json.7777.tmp", &abandoned("b.json", '7')];
    strangers.iter().for_each(|name| _ = folder.file(name, "somebody's"));
    // One that is being written: its process has the lock.
    let mut busy = FileDraft::beside(&path).unwrap();
    busy.write(b"later").unwrap();
    replace_file(&path, b"new").unwrap();
    assert_eq!(read(&path), "new");
    let mut left = names(folder.path());
    left.retain(|name| !strangers.contains(&name.as_str()));
    assert_eq!(left.len(), 2, "{left:?}");
    busy.publish(Over::Earlier, &Memory).unwrap();
    assert_eq!(read(&path), "later");
    assert_eq!(names(folder.path()).len(), strangers.len() + 1);
    // The mode of every file that is created plainly: 0666 & ~umask.
    let plain = folder.file("plain", "");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
    replace_file(&folder.join("fresh"), b"").unwrap();
    assert_eq!(mode(&folder.join("fresh")), mode(&plain));
}

#[test]
fn what_fails_leaves_nothing_behind_and_the_old_in_place() {
    let folder = scratch::folder();
    std::fs::create_dir_all(folder.join("taken/inside")).unwrap();
    let error = replace_file(&folder.join("taken"), b"new").unwrap_err();
    assert!(error.kind == Kind::Io && error.what.contains("taken"), "{error}");
    assert!(replace_file(&folder.join("absent/a"), b"").is_err());
    assert_eq!(replace_file(Path::new("/"), b"").unwrap_err().kind, Kind::Output);
    let old = folder.file("old", "old");
    let mut draft = FileDraft::beside(&old).unwrap();
    draft.write(b"new").unwrap();
    let error = draft.publish(Over::Nothing, &Memory).unwrap_err();
    assert!(error.kind == Kind::Output && error.what.contains("is there already"), "{error}");
    let mut draft = FileDraft::beside(&old).unwrap();
    draft.write(b"new").unwrap();
    assert_eq!(draft.publish(Over::Earlier, &Edited).unwrap_err().what, "the base was edited");
    assert_eq!(read(&old), "old");
    assert_eq!(names(folder.path()), ["old", "taken"]);
    // A link is replaced, what it leads to is not.
    symlink(&old, folder.join("link")).unwrap();
    replace_file(&folder.join("link"), b"new").unwrap();
    assert_eq!((read(&old).as_str(), read(&folder.join("link")).as_str()), ("old", "new"));
}

#[test]
fn a_draft_that_was_exchanged_is_noticed() {
    let folder = scratch::folder();
    let path = folder.join("a");
    let mut draft = FileDraft::beside(&path).unwrap();
    draft.write(b"ours").unwrap();
    let [name] = names(folder.path()).try_into().unwrap();
    let forged = folder.file("forged", "forged");
    std::fs::rename(forged, folder.join(&name)).unwrap();
    let error = draft.publish(Over::Earlier, &Memory).unwrap_err();
    assert!(error.kind == Kind::Io && error.what.contains("taken away"), "{error}");
}

#[test]
fn a_new_folder_is_whole_or_absent() {
    let folder = scratch::folder();
    let out = folder.join("deep/er/out");
    let make = |from: &dyn MadeFrom| {
        let draft = FolderDraft::beside(&out)?;
        draft.file("a", |sink| sink.write(b"1"))?;
        draft.file("b", |sink| sink.write(b"2"))?;
        draft.publish(from)
    };
    let parent = folder.join("deep/er");
    assert_eq!(make(&Edited).unwrap_err().what, "the base was edited");
    assert_eq!(names(&parent), [""; 0]);
    // What killed processes left goes; a folder of such a name that holds another is somebody's work.
    std::fs::create_dir(parent.join(abandoned("out", '1'))).unwrap();
    std::fs::write(parent.join(abandoned("out", '1')).join("a"), "half").unwrap();
    std::fs::create_dir_all(parent.join(abandoned("out", '2')).join("theirs")).unwrap();
    std::fs::create_dir(&out).unwrap();
    make(&Memory).unwrap();
    assert_eq!(names(&parent), [abandoned("out", '2'), "out".into()]);
    assert_eq!((names(&out), read(&out.join("b")).as_str()), (vec!["a".to_owned(), "b".into()], "2"));
    let error = make(&Memory).unwrap_err();
    assert!(error.kind == Kind::Output && error.what.contains("not empty"), "{error}");
    // Through a link to an empty folder, and not over one that leads nowhere.
    std::fs::create_dir(folder.join("empty")).unwrap();
    symlink(folder.join("empty"), folder.join("link")).unwrap();
    let draft = FolderDraft::beside(&folder.join("link")).unwrap();
    draft.file("a", |sink| sink.write(b"1")).unwrap();
    draft.publish(&Memory).unwrap();
    assert_eq!(names(&folder.join("empty")), ["a"]);
    symlink(folder.join("nowhere"), folder.join("broken")).unwrap();
    assert!(FolderDraft::beside(&folder.join("broken")).unwrap_err().what.contains("leads nowhere"));
}

#[test]
fn of_two_folders_of_one_name_the_first_stands() {
    let folder = scratch::folder();
    let out = folder.join("out");
    let drafts = [1, 2].map(|_| FolderDraft::beside(&out).unwrap());
    for (draft, text) in drafts.iter().zip([b"1", b"2"]) {
        draft.file("a", |sink| sink.write(text)).unwrap();
    }
    let [first, second] = drafts;
    first.publish(&Memory).unwrap();
    let error = second.publish(&Memory).unwrap_err();
    assert!(error.kind == Kind::Output && error.what.contains("is there already"), "{error}");
    assert_eq!((names(folder.path()), read(&out.join("a"))), (vec!["out".to_owned()], "1".to_owned()));
}

#[test]
fn what_is_published_in_a_runs_folder_goes_where_the_folder_goes() {
    let folder = scratch::folder();
    let run = OpenFolder::create(&folder.join("run"), Access::Usual).unwrap();
    let put = |run: &OpenFolder, text: &str, from: &dyn MadeFrom| {
        put_file(run, "report.html", text.as_bytes()).unwrap();
        put_folder(run, "best", &[("weights", text.as_bytes()), ("config", b"c")], from)
    };
    put(&run, "1", &Memory).unwrap();
    // What the user puts beside ours stays, also when a kill came between exchange and tidying up.
    std::fs::write(folder.join("run/best/README.md"), "mine").unwrap();
    std::fs::create_dir(folder.join("run/.best.tmp")).unwrap();
    std::fs::write(folder.join("run/.best.tmp/notes"), "also mine").unwrap();
    std::fs::write(folder.join("run/.best.tmp/weights"), "0").unwrap();
    std::fs::write(folder.join("run/.report.html.tmp"), "half").unwrap();
    std::fs::rename(folder.join("run"), folder.join("moved")).unwrap();
    std::fs::create_dir(folder.join("run")).unwrap();
    assert_eq!(put(&run, "2", &Memory).unwrap(), Placed::Whole);
    assert_eq!(names(&folder.join("run")), [""; 0]);
    assert_eq!(names(&folder.join("moved")), ["best", "report.html"]);
    assert_eq!(names(&folder.join("moved/best")), ["README.md", "config", "notes", "weights"]);
    assert_eq!(read(&folder.join("moved/best/weights")), "2");
    assert_eq!(run.path(), folder.join("moved"));
    // The base changed: the earlier edition stands, with nothing beside it.
    assert_eq!(put(&run, "3", &Edited).unwrap_err().what, "the base was edited");
    assert_eq!(names(&folder.join("moved")), ["best", "report.html"]);
    assert_eq!(read(&folder.join("moved/best/weights")), "2");
    // A link is not followed, and not replaced.
    std::fs::rename(folder.join("moved/best"), folder.join("moved/elsewhere")).unwrap();
    symlink(folder.join("moved/elsewhere"), folder.join("moved/best")).unwrap();
    let error = put(&run, "4", &Memory).unwrap_err();
    assert!(error.kind == Kind::Output && error.what.contains("is no folder"), "{error}");
    assert_eq!(read(&folder.join("moved/elsewhere/weights")), "2");
}

#[test]
fn looking_is_an_answer_or_an_error_and_never_waits() {
    let folder = scratch::folder();
    let file = folder.file("file", "text");
    assert!(
        files::exists(&file).unwrap() && files::is_file(&file).unwrap() && !files::is_folder(&file).unwrap()
    );
    assert!(!files::exists(&folder.join("absent")).unwrap() && !files::exists(&file.join("below")).unwrap());
    symlink(folder.join("loop"), folder.join("loop")).unwrap();
    assert_eq!(files::exists(&folder.join("loop")).unwrap_err().kind, Kind::Io);
    let long = folder.join(&"n".repeat(300));
    assert_eq!(files::is_file(&long).unwrap_err().kind, Kind::Io);
    let pipe = folder.join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    for path in [pipe.as_path(), Path::new("/dev/zero")] {
        let error = files::read(path, 10).unwrap_err();
        assert!(error.kind == Kind::Input && error.what.contains("a pipe or a device"), "{error}");
    }
    assert_eq!(files::read_text(&file, 4).unwrap(), "text");
    let error = files::read_text(&file, 3).unwrap_err();
    assert!(error.kind == Kind::Input && error.what.contains("larger than the 3 bytes"), "{error}");
    assert_eq!(files::read(folder.path(), 1).unwrap_err().kind, Kind::Input);
}
