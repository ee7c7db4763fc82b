//! bygone: a backup repository that is a filesystem.

pub mod backend;
pub mod format;
pub mod id;
pub mod index;
pub mod progress;
pub mod repo;
pub mod vfs;
