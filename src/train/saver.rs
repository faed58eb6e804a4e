//! Saves, each from the moment the state is copied until it was told that it is durable: copying, writing, saved or failed.
//! One is written at a time, and beside it one may be copied; the training thread waits for none unless it is asked to.

use super::engine::Copied;
use crate::checkpoint::state::State;
use crate::checkpoint::store::Store;
use crate::error::{Error, Kind, Result};
use crate::report::event::{Event, Observer};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Saves the states of a run. Dropping it waits for the save under way.
pub struct Saver {
    store: Arc<Mutex<Store>>,
    /// The state whose arrays are on their way from the device.
    copying: Option<State>,
    /// Whether the writer has a state.
    writing: bool,
    /// A state that was written, for its memory.
    spare: State,
    last_saved: Option<u64>,
    /// The newest whole checkpoint that was there before.
    found: Option<u64>,
    writer: Writer,
}

/// The thread that writes.
struct Writer {
    states: Option<Sender<State>>,
    written: Receiver<Written>,
    thread: Option<JoinHandle<()>>,
}

struct Written {
    state: State,
    result: Result<PathBuf>,
    warnings: Vec<String>,
}

impl Saver {
    /// A saver into `store`, whose newest whole checkpoint is that of step `found`.
    ///
    /// # Errors
    /// [`Kind::Io`] when there can be no further thread.
    pub fn new(store: Store, found: Option<u64>) -> Result<Self> {
        let store = Arc::new(Mutex::new(store));
        let (states, to_write) = channel();
        let (done, written) = channel();
        let theirs = Arc::clone(&store);
        let thread = std::thread::Builder::new()
            .name("checkpoint-writer".into())
            .spawn(move || write_until_closed(&theirs, &to_write, &done))
            .map_err(|e| Error::new(Kind::Io, format!("cannot start the checkpoint writer: {e}")))?;
        let writer = Writer { states: Some(states), written, thread: Some(thread) };
        Ok(Saver {
            store,
            copying: None,
            writing: false,
            spare: State::default(),
            last_saved: None,
            found,
            writer,
        })
    }

    /// The newest step whose checkpoint is known to be whole.
    #[must_use]
    pub fn newest(&self) -> Option<u64> {
        self.last_saved.or(self.found)
    }

    /// The step of `state` is to be saved again: what it held then was not all of it.
    pub fn forget(&mut self) {
        self.last_saved = None;
    }

    /// The checkpoints; while one is written this waits.
    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to save `state`, whose arrays `engine` holds. When another is still being written once they are copied, this one
    /// is skipped, and that is told.
    ///
    /// # Errors
    /// When the device failed; [`Kind::Diverged`] when a state that was copied earlier is not finite.
    pub fn begin(
        &mut self,
        state: &State,
        engine: &mut dyn Copied,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        self.advance(engine, observer)?;
        if self.last_saved == Some(state.step) {
            return Ok(());
        }
        if engine.copies_beside() {
            return self.copy(state, engine);
        }
        if self.writing {
            tell_skipped(observer);
            return Ok(());
        }
        self.copy(state, engine)?;
        self.hand_over(engine)
    }

    /// Saves `state` and waits until it is durable; what was begun before is ended first.
    ///
    /// # Errors
    /// As [`Saver::begin`]; the failure to write.
    pub fn save(
        &mut self,
        state: &State,
        engine: &mut dyn Copied,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        self.finish(engine, observer)?;
        if self.last_saved == Some(state.step) {
            return Ok(());
        }
        self.copy(state, engine)?;
        self.hand_over(engine)?;
        self.wait_for_writer(observer)
    }

    /// Takes what is under way as far as it goes without waiting for the disk. To be called when the device has work to do: it
    /// waits for a copy.
    ///
    /// # Errors
    /// As [`Saver::begin`].
    pub fn advance(&mut self, engine: &mut dyn Copied, observer: &mut dyn Observer) -> Result<()> {
        if self.writing {
            match self.writer.written.try_recv() {
                Ok(written) => tell_failure(self.ended(written, observer), observer)?,
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Err(writer_failed()),
            }
        }
        if self.copying.is_some() && self.writing {
            tell_skipped(observer);
            engine.end_copy()?;
            self.copying = None;
        }
        self.hand_over(engine)
    }

    /// Waits until nothing is under way.
    ///
    /// # Errors
    /// As [`Saver::begin`].
    pub fn finish(&mut self, engine: &mut dyn Copied, observer: &mut dyn Observer) -> Result<()> {
        while self.writing || self.copying.is_some() {
            if self.writing {
                tell_failure(self.wait_for_writer(observer), observer)?;
            }
            self.hand_over(engine)?;
        }
        Ok(())
    }

    fn wait_for_writer(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let written = self.writer.written.recv().map_err(|_| writer_failed())?;
        self.ended(written, observer)
    }

    fn copy(&mut self, state: &State, engine: &mut dyn Copied) -> Result<()> {
        let mut copied = std::mem::take(&mut self.spare);
        let arrays = [&mut copied.weights, &mut copied.m, &mut copied.v].map(std::mem::take);
        copied.clone_from(state);
        copied.history = state.history.before(state.step);
        engine.begin_copy(arrays)?;
        self.copying = Some(copied);
        Ok(())
    }

    /// From copying to writing, for an idle writer.
    fn hand_over(&mut self, engine: &mut dyn Copied) -> Result<()> {
        let Some(mut state) = self.copying.take() else { return Ok(()) };
        [state.weights, state.m, state.v] = engine.end_copy()?;
        let states = self.writer.states.as_ref().ok_or_else(writer_failed)?;
        states.send(state).map_err(|_| writer_failed())?;
        self.writing = true;
        Ok(())
    }

    /// From writing to saved or failed.
    fn ended(&mut self, written: Written, observer: &mut dyn Observer) -> Result<()> {
        self.writing = false;
        let step = written.state.step;
        self.spare = written.state;
        if let Ok(path) = &written.result {
            self.last_saved = Some(step);
            self.found = Some(step);
            observer.on_event(&Event::Saved { step, path: path.clone() });
        }
        written.warnings.into_iter().for_each(|text| observer.on_event(&Event::Warning(text)));
        written.result.map(|_| ())
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.writer.states = None;
        if let Some(thread) = self.writer.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Training goes on without a checkpoint; not with a state that is not finite.
fn tell_failure(result: Result<()>, observer: &mut dyn Observer) -> Result<()> {
    match result {
        Err(error) if error.kind != Kind::Diverged => {
            observer.on_event(&Event::Warning(format!("checkpoint skipped: {error}")));
            Ok(())
        }
        other => other,
    }
}

fn tell_skipped(observer: &mut dyn Observer) {
    let text = "checkpoint skipped: the one before is still being written".to_owned();
    observer.on_event(&Event::Warning(text));
}

fn writer_failed() -> Error {
    Error::check("the checkpoint writer failed (a bug)")
}

fn write_until_closed(store: &Mutex<Store>, states: &Receiver<State>, done: &Sender<Written>) {
    for state in states {
        let written = catch_unwind(AssertUnwindSafe(|| {
            let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
            (store.save(&state), store.take_warnings())
        }));
        let (result, warnings) = written.unwrap_or_else(|_| (Err(writer_failed()), Vec::new()));
        if done.send(Written { state, result, warnings }).is_err() {
            return;
        }
    }
}
