//! Signals of a run: stop and save, save and go on, stop at once.

use crate::config::Layer;
use crate::error::{Error, Kind, Result};
use crate::report::console::complain;
use crate::sys;
use crate::train::Control;
use signal_hook::consts::{
    SIGALRM, SIGCONT, SIGHUP, SIGINT, SIGPROF, SIGQUIT, SIGTERM, SIGURG, SIGUSR1, SIGUSR2, SIGVTALRM,
};
use signal_hook::iterator::Signals;
use signal_hook::low_level;
use std::time::{Duration, Instant};

/// A second request to stop ends the process at once only this long after the first: launchers signal every process,
/// and a script's trap forwards another within milliseconds.
const SECOND: Duration = Duration::from_secs(2);

/// The signals that can be named to stop a run.
const NAMED: [(&str, i32); 13] = [
    ("HUP", SIGHUP),
    ("INT", SIGINT),
    ("QUIT", SIGQUIT),
    ("USR1", SIGUSR1),
    ("USR2", SIGUSR2),
    ("ALRM", SIGALRM),
    ("TERM", SIGTERM),
    ("CONT", SIGCONT),
    ("URG", SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("VTALRM", SIGVTALRM),
    ("PROF", SIGPROF),
    ("PWR", libc::SIGPWR),
];

/// SIGINT, SIGTERM, SIGHUP, SIGUSR2 and those that `--stop-signal` names ask the run to save and stop; another SIGINT or
/// SIGTERM two seconds later or more ends the process at once, with the shell's status for that signal. SIGUSR1 asks it
/// to save and go on, where it is not named to stop. While there is nothing to save yet, the first ends the process.
/// A signal that was ignored when the process started (`nohup`) stays ignored.
///
/// # Errors
/// I/O: the system refuses the handlers.
pub fn watch(control: &Control, given: &Layer) -> Result<()> {
    let mut stops = vec![SIGINT, SIGTERM, SIGHUP, SIGUSR2];
    let named = given.get("stop_signals").and_then(|names| names.as_array().cloned()).unwrap_or_default();
    for name in named.iter().filter_map(|name| name.as_str()) {
        stops.extend(NAMED.iter().filter(|(known, _)| *known == name).map(|(_, signal)| *signal));
    }
    let mut watched = stops.clone();
    watched.push(SIGUSR1);
    watched.sort_unstable();
    watched.dedup();
    watched.retain(|signal| !sys::is_ignored(*signal));
    let failed = |e: std::io::Error| Error::new(Kind::Io, format!("cannot watch signals: {e}")).caused_by(e);
    let mut signals = Signals::new(watched).map_err(failed)?;
    let control = control.clone();
    let watch = move || {
        let mut first: Option<Instant> = None;
        for signal in signals.forever() {
            if !stops.contains(&signal) {
                control.request_save();
            } else if !control.has_begun() {
                complain("stopped before the first step; what was saved before is untouched");
                low_level::exit(i32::from(Kind::Stopped as u8));
            } else if [SIGINT, SIGTERM].contains(&signal) && first.is_some_and(|at| at.elapsed() >= SECOND) {
                low_level::exit(128 + signal);
            } else {
                control.request_stop();
                first.get_or_insert_with(Instant::now);
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(watch).map_err(failed).map(drop)
}
