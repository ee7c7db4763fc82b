//! The live file system that a backup reads: targets in, entries in tree order out.
//!
//! `walk` goes through the targets, `directory` and `metadata` ask the kernel, `read` finds the holes of a file, `exclude`
//! and `pattern` decide what is left out, `files_from` reads lists of targets. Nothing here writes to the source or knows
//! how anything is stored. What cannot be read is told to the operation's progress, never passed over in silence.

mod directory;
pub mod exclude;
pub mod files_from;
mod metadata;
pub mod pattern;
pub mod read;
mod targets;
mod walk;

pub use directory::{Directory, OpenFile};
pub use metadata::{EntryKind, Stat};
pub use walk::{Entry, Error, Event, LeftOut, Walk, WalkOptions};
