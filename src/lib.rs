//! bygone: a backup repository that is a filesystem. This page is the map.
//!
//! A backup cuts files into chunks, stores each once in sealed packs, and commits with a snapshot; a mount answers reads
//! from those packs. The bytes are specified in bygone-format(5), the words too.
//!
//! # Start reading here
//!
//! Two functions are the spines; everything else is called by one of them:
//!
//! - [`backup::run`]: source in, snapshot out. It goes `source` (walk, compare, read) -> `chunk` -> `id` -> `index` (is it
//!   there?) -> `difference` (is it much like what was there?) -> `repo::writer` (segments, `seal`, packs) -> `backend`.
//! - [`vfs::Vfs::read`]: inode, offset, length in, bytes out. It goes inode -> node -> content list -> `index` (where?) ->
//!   `repo::reader` (segments, `seal`, cache) -> `backend`.
//!
//! # Layers
//!
//! A module imports only from lines below its own; `tests/tidy.rs` holds that.
//!
//! ```text
//! cli                      one file a command; text, JSON, exit codes; the only place of anyhow
//! fuse                     the kernel's requests become calls of vfs
//! backup restore vfs maintain     what the program does; vfs is the mount without a kernel
//! browse                   directories, contents and subtrees of snapshots, read page by page
//! repo                     blobs by id: verified when read, stored once when written
//! index                    where each blob lies; local files and sled, all of it can be lost
//! backend | source         named write-once objects | the live file system
//! format key seal chunk difference   every stored byte; keys; sealing; cut points; deltas; no input or output
//! id progress host pool    names; counters; who and where we are; threads
//! ```
//!
//! # Invariants
//!
//! - An object never changes. Packs are durable before the index that names them, that before the snapshot that needs
//!   them: the snapshot is the one commit point, and a run that dies leaves garbage, never damage.
//! - A pair of key and nonce is used once: every object has its own salt, every unit in it its own number (`seal`).
//! - Nothing read is believed: bytes are authenticated before they are decompressed, lengths are bounded before they are
//!   allocated, trees are compared with their ids before they are decoded.
//! - A damaged or missing object is an error that names it, or a warning where others serve as well; never wrong content.
//! - Memory is bounded by bytes everywhere; nothing grows with the repository, a directory or a file.
//! - The local index and caches are never the truth; every process can run at the same time as every other.
//! - A restore writes nothing outside its target, whatever the repository says.

pub mod backend;
pub mod backup;
pub mod browse;
pub mod chunk;
pub mod cli;
pub mod difference;
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
