//! No instant at which the power may go off, and no failing operation, loses a checkpoint that was reported as
//! saved or brings up a wrong one. Every operation of a script is made to fail in every way; then the disk is
//! cut off at every operation and what may be left on it is sampled. The negative controls take one safeguard
//! away and require that the same check finds it out.

use super::disk::{Disk, Lies, Rng, TROUBLES, Trouble};
use super::state;
use qwentune::checkpoint::shelf::{Shelf, Weakened};
use qwentune::checkpoint::state::{Best, State};
use qwentune::error::Kind;

const LAST: u64 = 5;

/// From step 3 on the first is the best.
fn nth(step: u64) -> State {
    let mut state = state(step, 0);
    let best = if step > 2 { 1 } else { step };
    state.cursor.best = state.cursor.best.map(|found| Best { step: best, ..found });
    state
}

/// Five saves as a run makes them, an older step repeated; answers the latest step reported as saved.
fn script(disk: &Disk) -> Option<u64> {
    let mut shelf = Shelf::new(Box::new(disk.clone()), 2);
    let mut acknowledged = None;
    if shelf.prepare().is_err() || shelf.newest().is_err() {
        return None;
    }
    for step in 1..=LAST {
        if shelf.save(&nth(step)).is_ok() {
            acknowledged = Some(step);
        }
        if step == 3 {
            let _ = shelf.write_next_loss(3, &[0.5]);
            let _ = shelf.save(&nth(3));
        }
    }
    acknowledged
}

/// Starts again on `disk` and says what is wrong with what is found.
fn recover(disk: &Disk, acknowledged: Option<u64>, weakened: Weakened) -> Result<(), Wrong> {
    let mut shelf = Shelf::new(Box::new(disk.clone()), 2).weakened(weakened);
    shelf.prepare().map_err(|e| Wrong::Lost(e.to_string()))?;
    let found = shelf.newest().map_err(|e| Wrong::Lost(e.to_string()))?;
    let step = found.newest.as_ref().map(|(_, state)| state.step);
    if let Some((_, state)) = &found.newest
        && *state != nth(state.step)
    {
        return Err(Wrong::State(state.step));
    }
    if step < acknowledged {
        return Err(Wrong::Lost(format!("step {acknowledged:?} was saved, {step:?} found")));
    }
    if let Some(left) = disk.names().iter().find(|n| n.ends_with(".tmp")) {
        return Err(Wrong::Left(left.clone()));
    }
    // And the run goes on.
    let next = step.unwrap_or(0) + 1;
    shelf.save(&nth(next)).map_err(|e| Wrong::Lost(e.to_string()))?;
    Ok(())
}

#[derive(Debug)]
enum Wrong {
    Lost(#[allow(dead_code, reason = "shown by Debug")] String),
    State(#[allow(dead_code, reason = "shown by Debug")] u64),
    Left(#[allow(dead_code, reason = "shown by Debug")] String),
}

fn operations_of_script() -> u64 {
    let disk = Disk::default();
    assert_eq!(script(&disk), Some(LAST));
    disk.operations()
}

#[test]
fn every_failing_operation() {
    let operations = operations_of_script();
    for trouble in TROUBLES {
        for at in 1..=operations {
            let disk = Disk::default();
            disk.plan(at, trouble);
            let acknowledged = script(&disk);
            disk.repair();
            let mut rng = Rng(at);
            // The machine goes on, or is cut off right after.
            let left = if disk.is_off() { disk.after_power_loss(&mut rng) } else { disk.clone() };
            let later = disk.after_power_loss(&mut rng);
            for disk in [left, later] {
                if let Err(wrong) = recover(&disk, acknowledged, Weakened::default()) {
                    panic!("{trouble:?} at operation {at}: {wrong:?}; {:?}", disk.names());
                }
            }
            let tolerated = matches!(trouble, Trouble::ShortWrite | Trouble::Interrupted);
            assert!(
                !tolerated || acknowledged == Some(LAST),
                "{trouble:?} at operation {at} is nothing to fail for"
            );
        }
    }
}

/// One failure of a write, sync or rename costs no checkpoint: the file is written anew.
#[test]
fn one_failure_costs_nothing() {
    let operations = operations_of_script();
    let mut survived = 0;
    for at in 1..=operations {
        let disk = Disk::default();
        disk.plan(at, Trouble::EioOnce);
        survived += u64::from(script(&disk) == Some(LAST));
    }
    // Those that do not survive are failures to list the folder or to probe it.
    assert!(survived * 10 > operations * 9, "{survived} of {operations}");
}

/// Cuts the power at every operation of the script, `samples` times each, and counts what went wrong.
fn enumerate(samples: u64, lies: Lies, weakened: Weakened) -> Tally {
    let mut tally = Tally::default();
    for at in 1..=operations_of_script() {
        let disk = Disk::lying(lies);
        disk.plan(at, Trouble::PowerOff);
        let acknowledged = script(&disk);
        for sample in 0..samples {
            let seed = at * 1_000_003 + sample;
            let left = disk.after_power_loss(&mut Rng(seed));
            tally.states += 1;
            match recover(&left, acknowledged, weakened) {
                Ok(()) => {}
                Err(Wrong::State(_)) => tally.wrong += 1,
                Err(other) => {
                    tally.lost += 1;
                    tally.example = format!("operation {at}, seed {seed}: {other:?}");
                }
            }
        }
    }
    tally
}

#[derive(Debug, Default)]
struct Tally {
    states: u64,
    wrong: u64,
    lost: u64,
    example: String,
}

#[test]
fn every_power_loss() {
    let tally = enumerate(110, Lies::default(), Weakened::default());
    println!("{} states after a power loss", tally.states);
    assert!(tally.states > 25_000, "{tally:?}");
    assert_eq!((tally.wrong, tally.lost), (0, 0), "{tally:?}");
}

#[test]
fn control_without_file_sync() {
    let lies = Lies { file_sync: true, ..Lies::default() };
    let tally = enumerate(5, lies, Weakened::default());
    assert!(tally.lost > 0, "the check does not notice a missing sync of files: {tally:?}");
    assert_eq!(tally.wrong, 0, "digests must keep torn files out: {tally:?}");
}

#[test]
fn control_without_folder_sync() {
    let lies = Lies { folder_sync: true, ..Lies::default() };
    let tally = enumerate(5, lies, Weakened::default());
    assert!(tally.lost > 0, "the check does not notice a missing sync of the folder: {tally:?}");
}

#[test]
fn control_without_digests() {
    let lies = Lies { file_sync: true, ..Lies::default() };
    let weakened = Weakened { digests_ignored: true, ..Weakened::default() };
    let tally = enumerate(5, lies, weakened);
    assert!(tally.wrong > 0, "the check does not notice that torn files are taken: {tally:?}");
}

#[test]
fn control_without_fallback() {
    for (no_fallback, expected) in [(false, true), (true, false)] {
        let disk = Disk::default();
        script(&disk);
        disk.tamper("step-00000005.qckpt", |bytes| bytes[9000] ^= 4);
        let weakened = Weakened { no_fallback, ..Weakened::default() };
        assert_eq!(recover(&disk, Some(4), weakened).is_ok(), expected, "no_fallback: {no_fallback}");
    }
}

/// A disk on which everything is damaged is left as it is, and says so every time.
#[test]
fn nothing_whole_nothing_touched() {
    let disk = Disk::default();
    script(&disk);
    let names = disk.names();
    for name in names.iter().filter(|n| n.ends_with(".qckpt")) {
        disk.tamper(name, |bytes| bytes[5000] ^= 1);
    }
    for _ in 0..2 {
        let mut shelf = Shelf::new(Box::new(disk.clone()), 2);
        shelf.prepare().expect("writable");
        let error = shelf.newest().expect_err("all are damaged");
        assert_eq!(error.kind, Kind::Input);
        assert!(error.what.contains("no usable checkpoint among 3"), "{error}");
        assert_eq!(disk.names(), names);
    }
}
