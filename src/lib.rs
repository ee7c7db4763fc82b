//! bygone: a backup repository that is a filesystem.

pub mod backend;
pub mod backup;
pub mod browse;
pub mod chunk;
pub mod cli;
pub mod format;
#[cfg(feature = "mount")]
pub mod fuse;
pub mod host;
pub mod id;
pub mod index;
pub mod key;
pub mod maintain;
pub mod pool;
pub mod progress;
pub mod repo;
pub mod restore;
pub mod seal;
pub mod source;
pub mod vfs;
