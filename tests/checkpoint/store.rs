//! The run folder.

use super::{fresh_folder, state};
use qwentune::checkpoint::store::{Outcome, Store, Wait};
use qwentune::error::Kind;

#[test]
fn saves_and_finds_again() {
    let folder = fresh_folder("saves");
    let mut store = Store::open(&folder, 2).expect("opens");
    assert!(store.newest().expect("empty").newest.is_none());
    for step in 1..=5 {
        store.save(state(step, 0), Wait::Block).expect("saves");
    }
    let saved: Vec<u64> = store
        .outcomes()
        .iter()
        .map(|o| match o {
            Outcome::Saved { step, .. } => *step,
            Outcome::Skipped { why, .. } => panic!("{why}"),
        })
        .collect();
    assert_eq!(saved, [1, 2, 3, 4, 5]);
    let locked = Store::open(&folder, 2).err().expect("locked");
    assert_eq!(locked.kind, Kind::Output);
    assert!(locked.what.contains(&std::process::id().to_string()), "{locked}");
    drop(store);
    let mut store = Store::open(&folder, 2).expect("opens again");
    let found = store.newest().expect("there");
    assert_eq!((found.seen, found.newest.expect("newest").1), (2, state(5, 0)));
}
