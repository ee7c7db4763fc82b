//! What a running operation tells whoever watches it: counters, the entry at hand, errors that do not end the run.
//!
//! Operations write here and never print; the command line reads it to draw bars and to choose the exit code.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Counters and errors of one operation. All methods may be called from any thread.
#[derive(Debug, Default)]
pub struct Progress {
    /// Entries finished.
    pub files_done: AtomicU64,
    /// Bytes finished.
    pub bytes_done: AtomicU64,
    /// Entries expected, 0 while unknown.
    pub files_total: AtomicU64,
    /// Bytes expected, 0 while unknown.
    pub bytes_total: AtomicU64,
    current: Mutex<Vec<u8>>,
    errors: Mutex<Vec<SourceError>>,
    error_count: AtomicU64,
    cancel: Cancel,
}

/// Asks all who hold a clone of it to end as soon as they can.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks them.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether they were asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// An entry that could not be handled while the rest went on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceError {
    /// The entry, raw bytes of its path.
    pub path: Vec<u8>,
    /// What was being done, e.g. "open".
    pub during: &'static str,
    /// Why it failed.
    pub message: String,
}

/// Errors kept with their text; more are only counted, so that memory stays bounded.
const ERRORS_KEPT: usize = 10_000;

impl Progress {
    /// A fresh one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one finished entry of `bytes` bytes.
    pub fn add(&self, bytes: u64) {
        self.files_done.fetch_add(1, Ordering::Relaxed);
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Names the entry at hand.
    pub fn set_current(&self, path: &[u8]) {
        if let Ok(mut current) = self.current.try_lock() {
            current.clear();
            current.extend_from_slice(path);
        }
    }

    /// The entry at hand.
    pub fn current(&self) -> Vec<u8> {
        self.current.lock().expect("no panic while held").clone()
    }

    /// Records an error that does not end the operation.
    pub fn error(&self, path: &[u8], during: &'static str, message: impl ToString) {
        self.error_count.fetch_add(1, Ordering::Relaxed);
        let mut errors = self.errors.lock().expect("no panic while held");
        if errors.len() < ERRORS_KEPT {
            errors.push(SourceError { path: path.to_vec(), during, message: message.to_string() });
        }
    }

    /// Number of errors so far.
    pub fn error_count(&self) -> u64 {
        self.error_count.load(Ordering::Relaxed)
    }

    /// The errors recorded since the last call.
    pub fn take_errors(&self) -> Vec<SourceError> {
        std::mem::take(&mut self.errors.lock().expect("no panic while held"))
    }

    /// Asks the operation to end as soon as it can.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Whether the operation was asked to end.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}
