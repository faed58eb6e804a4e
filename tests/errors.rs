//! Errors for programs: the kind decides the exit status, the source is typed, and no text needs to be searched.

use crate::checkpoint::state;
use crate::common::scratch;
use qwentune::checkpoint::format::{self, Fault};
use qwentune::checkpoint::shelf::Shelf;
use qwentune::checkpoint::state::{Flaw, State};
use qwentune::error::{Error, Kind};
use qwentune::formats::open_folder::OpenFolder;
use qwentune::report::line::{EvalLine, LogLine, StepLine};
use std::error::Error as _;
use std::io;
use std::path::Path;

/// The source of an error, as the type it is.
fn source<T: std::error::Error + 'static>(error: &Error) -> &T {
    error.source().unwrap_or_else(|| panic!("{error}: no source")).downcast_ref().expect("another source")
}

#[test]
fn what_the_system_said_is_kept_as_it_is() {
    let missing = qwentune::formats::peft::read(Path::new("no/such/folder")).unwrap_err();
    assert_eq!((missing.kind, source::<io::Error>(&missing).kind()), (Kind::Input, io::ErrorKind::NotFound));
    let full = Error::io("writing", Path::new("x"), io::Error::from_raw_os_error(libc::ENOSPC));
    assert_eq!((full.kind, source::<io::Error>(&full).raw_os_error()), (Kind::Io, Some(libc::ENOSPC)));
    let placed = full.clone().at("here").of_kind(Kind::Output).hint("free some space");
    assert!(placed.what.starts_with("here: writing x: ") && placed.exit_code() == 73, "{placed}");
    assert_eq!(source::<io::Error>(&placed).raw_os_error(), Some(libc::ENOSPC));
    assert!(Error::usage("no file").source().is_none());
}

#[test]
fn a_state_that_diverged_is_told_from_one_that_is_inconsistent() {
    let refused = |break_it: fn(&mut State)| {
        let folder = OpenFolder::open(&scratch("errors-of-a-state")).unwrap();
        let mut state = state(3, 1);
        break_it(&mut state);
        Shelf::new(Box::new(folder), 2).save(&state).unwrap_err()
    };
    let infinite = refused(|s| s.weights[1] = f32::INFINITY);
    assert_eq!(infinite.kind, Kind::Diverged, "{infinite}");
    assert!(matches!(source(&infinite), Flaw::NotFinite { section: "W", .. }), "{infinite}");
    let logged = refused(|s| match s.log.last_mut() {
        Some(LogLine::Step(StepLine { loss, .. }) | LogLine::Eval(EvalLine { eval_loss: loss, .. })) => {
            *loss = f64::NAN
        }
        None => panic!("no log"),
    });
    assert_eq!(logged.kind, Kind::Diverged, "{logged}");
    let reordered = refused(|s| s.log.reverse());
    assert_eq!(reordered.kind, Kind::Check, "{reordered}");
    assert!(matches!(source(&reordered), Flaw::Inconsistent { section: "LOG", .. }), "{reordered}");
}

#[test]
fn a_damaged_checkpoint_says_so_in_types() {
    let mut bytes = format::encode(&state(3, 1));
    bytes[5000] ^= 1;
    let damaged = format::decode(Path::new("x"), &bytes).unwrap_err();
    assert!(damaged.kind == Kind::Input && matches!(source(&damaged), Fault::Damaged(_)), "{damaged}");
}
