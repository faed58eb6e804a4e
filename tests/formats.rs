//! Files that others wrote, or an attacker: what is read, what is refused and with which words.

use crate::scratch;
use qwentune::formats::atomic_file;
use std::os::unix::fs::PermissionsExt;

#[test]
fn atomic_write_replaces_whole_files_and_leftovers() {
    let folder = scratch::folder();
    let path = folder.file("a.json", "old");
    folder.file(".a.json.tmp", "torn by a crash");
    atomic_file::write(&path, b"new").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
    assert!(!folder.join(".a.json.tmp").exists());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o600, 0o600);
}
