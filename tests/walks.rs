//! Random walks over what users do with runs, against a small model of what must be true after each command.
//! The real start, saver, store and run folder work on a simulated disk with an engine of four
//! parameters; a failing walk is shrunk to the shortest that fails and printed with its seed.
//!
//! `QWENTUNE_FULL=1` asks for 10,000 walks, `QWENTUNE_WALKS` for another number, `QWENTUNE_WALK_SEED` for the first.

mod disk;
mod model;
mod real;
mod toy;
mod walk;

use self::walk::{Command, End, Walk, random};
use crate::checkpoint::disk::Rng;
use crate::common::full;
use qwentune::train::start::Fault;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Commands of a walk.
const LENGTH: usize = 10;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What is wrong after which command.
fn fault_of(commands: &[Command], fault: Option<Fault>) -> Option<(usize, String)> {
    let mut walk = Walk::new(fault);
    let step = |(index, command): (usize, &Command)| {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| walk.step(command)));
        match done {
            Ok(Ok(())) => None,
            Ok(Err(text)) => Some((index, text)),
            Err(_) => Some((index, "a panic".into())),
        }
    };
    commands.iter().enumerate().find_map(step)
}

/// The shortest walk with a fault that is found by leaving out commands and making their ends simpler.
fn shrunk(mut commands: Vec<Command>, fault: Option<Fault>) -> Vec<Command> {
    loop {
        let mut shorter = None;
        for index in 0..commands.len() {
            let mut without = commands.clone();
            without.remove(index);
            let mut simpler = commands.clone();
            simpler[index].end = End::Whole;
            let candidates = [without, simpler].into_iter().filter(|c| *c != commands);
            shorter = candidates.into_iter().find(|c| fault_of(c, fault).is_some());
            if shorter.is_some() {
                break;
            }
        }
        match shorter {
            Some(found) => commands = found,
            None => return commands,
        }
    }
}

fn walk_of(seed: u64) -> Vec<Command> {
    random(&mut Rng(seed), LENGTH)
}

fn report(seed: u64, fault: Option<Fault>) -> String {
    let commands = shrunk(walk_of(seed), fault);
    let list: Vec<String> = commands.iter().map(|command| format!("  {command:?}")).collect();
    let (index, text) = fault_of(&commands, fault).expect("it failed before");
    format!("seed {seed}, after command {}: {text}\n{}", index + 1, list.join("\n"))
}

/// The first of the walks from `first` on with a fault, found by as many threads as there are.
fn first_failing(first: u64, walks: u64, fault: Option<Fault>) -> Option<u64> {
    let (next, found) = (AtomicU64::new(first), AtomicU64::new(u64::MAX));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + walks || seed > found.load(Ordering::Relaxed) {
                return;
            }
            if fault_of(&walk_of(seed), fault).is_some() {
                found.fetch_min(seed, Ordering::Relaxed);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| _ = scope.spawn(work)));
    Some(found.into_inner()).filter(|seed| *seed < u64::MAX)
}

#[test]
fn runs_keep_their_promises_on_random_walks() {
    let walks = number("QWENTUNE_WALKS").unwrap_or(if full() { 10_000 } else { 500 });
    let first = number("QWENTUNE_WALK_SEED").unwrap_or(1);
    let begin = Instant::now();
    if let Some(seed) = first_failing(first, walks, None) {
        panic!("{}", report(seed, None));
    }
    println!("{walks} walks of {LENGTH} commands from seed {first}, {:.1} s", begin.elapsed().as_secs_f64());
}

/// Each fault this program had is noticed when it is put back.
#[test]
fn faults_that_are_put_back_are_found() {
    // Each with the walk at which the search begins, so that it is short.
    let faults = [
        (Fault::LateMove, 5),
        (Fault::ComparesAll, 17),
        (Fault::Restart, 14),
        (Fault::Shorter, 25),
        (Fault::LeavesBest, 46),
        (Fault::NoOrigin, 12),
        (Fault::ForgetsLengths, 133),
        (Fault::BeginsAnew, 1600),
    ];
    for (fault, first) in faults {
        let seed =
            first_failing(first, 3000, Some(fault)).unwrap_or_else(|| panic!("{fault:?} goes unnoticed"));
        println!("{fault:?}: {}", report(seed, Some(fault)));
    }
}
