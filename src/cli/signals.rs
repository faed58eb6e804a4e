//! Signals of a run: stop and save, save and go on, stop at once.

use crate::error::{Error, Result};
use crate::train::Control;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;
use std::sync::Arc;

/// SIGINT and SIGTERM ask the run to save and stop; a second one ends the process at once, with the shell's
/// status for that signal. SIGUSR1 asks it to save and go on. SIGHUP keeps whatever `nohup` made of it.
///
/// # Errors
/// I/O: the system refuses the handlers.
pub fn watch(control: &Control) -> Result<()> {
    let (stop, save) = control.flags();
    let register = || -> std::io::Result<()> {
        for signal in [SIGINT, SIGTERM] {
            // Handlers run in this order: the first ends the process if the flag is already set.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop))?;
            flag::register(signal, Arc::clone(&stop))?;
        }
        flag::register(SIGUSR1, Arc::clone(&save))?;
        Ok(())
    };
    register()
        .map_err(|e| Error::new(crate::error::Kind::Io, format!("cannot watch signals: {e}")).caused_by(e))
}
