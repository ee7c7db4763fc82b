//! Copies of stored bytes on the local disk: small objects whole, packs in windows. The oldest windows make room.
//!
//! Every file ends with a sum of what is before it; one that does not match is deleted and counts as absent. Nothing is
//! synced, no failure is an error: the store has it all. Other processes may use the same directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use super::Window;
use crate::backend::{ObjectKind, ObjectName};
use crate::id::ObjectId;

/// Bytes of the sum.
const SUM_LEN: usize = 16;
/// How much of the bound is freed when it is reached.
const FREED_PART: u64 = 8;

/// A directory of copies.
pub(super) struct Disk {
    root: PathBuf,
    len_max: u64,
    /// Bytes of windows, as far as this process knows; `None` before the first look.
    len: Mutex<Option<u64>>,
}

impl Disk {
    /// Copies below `directory`; `None` if it cannot be made.
    pub(super) fn open(directory: &Path, len_max: u64) -> Option<Disk> {
        let root = directory.join("objects");
        for part in ["keys", "snapshots", "windows"] {
            fs::create_dir_all(root.join(part)).ok()?;
        }
        rustix::fs::chmod(directory, rustix::fs::Mode::RWXU).ok()?;
        Some(Disk { root, len_max, len: Mutex::new(None) })
    }

    fn path(&self, name: ObjectName) -> PathBuf {
        self.root.join(name.kind.directory()).join(name.id.to_hex())
    }

    fn window_path(&self, window: &Window) -> PathBuf {
        let hex = window.0.to_hex();
        self.root.join("windows").join(&hex[..2]).join(format!("{hex}-{}", window.1))
    }

    /// A copy of the object.
    pub(super) fn get(&self, name: ObjectName, len_max: u64) -> Option<Vec<u8>> {
        read(&self.path(name), len_max)
    }

    /// Keeps a copy of the object.
    pub(super) fn keep(&self, name: ObjectName, bytes: &[u8]) {
        write(&self.path(name), bytes);
    }

    /// Deletes the copy of the object, or of all of its windows.
    pub(super) fn forget(&self, name: ObjectName) {
        if name.kind == ObjectKind::Pack {
            let hex = name.id.to_hex();
            let own =
                |path: &PathBuf| path.file_name().and_then(|file| file.to_str()).is_some_and(|f| f.starts_with(&hex));
            for path in files(&self.root.join("windows").join(&hex[..2])).into_iter().filter(own) {
                let _ = fs::remove_file(path);
            }
        } else {
            let _ = fs::remove_file(self.path(name));
        }
    }

    /// Deletes the copies of objects of `kind` that are not in `present`, which is sorted.
    pub(super) fn retain(&self, kind: ObjectKind, present: &[ObjectName]) {
        for path in files(&self.root.join(kind.directory())) {
            let id = path.file_name().and_then(|name| name.to_str()).and_then(ObjectId::from_hex);
            if id.is_none_or(|id| present.binary_search(&ObjectName::new(kind, id)).is_err()) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// A copy of the window.
    pub(super) fn window(&self, window: &Window) -> Option<Vec<u8>> {
        read(&self.window_path(window), super::WINDOW_LEN)
    }

    /// Keeps a copy of the window.
    pub(super) fn keep_window(&self, window: &Window, bytes: &[u8]) {
        let path = self.window_path(window);
        if path.exists() {
            return;
        }
        let mut len = self.len.lock().expect("no panic while held");
        let used = len.get_or_insert_with(|| self.used());
        let added = (bytes.len() + SUM_LEN) as u64;
        if *used + added > self.len_max {
            *used = self.make_room(added);
            if *used + added > self.len_max {
                return;
            }
        }
        *used += added;
        drop(len);
        write(&path, bytes);
    }

    /// Deletes the copy of the window.
    pub(super) fn forget_window(&self, window: &Window) {
        let _ = fs::remove_file(self.window_path(window));
    }

    fn used(&self) -> u64 {
        files(&self.root.join("windows")).iter().filter_map(|path| path.metadata().ok()).map(|found| found.len()).sum()
    }

    /// Deletes the windows that were written first until there is room for `added` bytes and some more; returns how many
    /// bytes are left.
    fn make_room(&self, added: u64) -> u64 {
        let mut found: Vec<(SystemTime, u64, PathBuf)> = files(&self.root.join("windows"))
            .into_iter()
            .filter_map(|path| {
                let metadata = path.metadata().ok()?;
                Some((metadata.modified().ok()?, metadata.len(), path))
            })
            .collect();
        found.sort();
        let mut used: u64 = found.iter().map(|(_, len, _)| len).sum();
        let most = (self.len_max - self.len_max / FREED_PART).saturating_sub(added);
        for (_, len, path) in found {
            if used <= most {
                break;
            }
            if fs::remove_file(path).is_ok() {
                used -= len;
            }
        }
        used
    }
}

fn sum(bytes: &[u8]) -> [u8; SUM_LEN] {
    let mut sum = [0; SUM_LEN];
    sum.copy_from_slice(&blake3::hash(bytes).as_bytes()[..SUM_LEN]);
    sum
}

fn read(path: &Path, len_max: u64) -> Option<Vec<u8>> {
    let len = fs::metadata(path).ok()?.len();
    if len > len_max.saturating_add(SUM_LEN as u64) {
        return None;
    }
    let mut bytes = fs::read(path).ok()?;
    let end = bytes.len().checked_sub(SUM_LEN);
    match end {
        Some(end) if bytes[end..] == sum(&bytes[..end]) => {
            bytes.truncate(end);
            Some(bytes)
        }
        _ => {
            let _ = fs::remove_file(path);
            None
        }
    }
}

/// Writes a file that others see whole or not at all.
fn write(path: &Path, bytes: &[u8]) {
    let Some(directory) = path.parent() else { return };
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(directory)?;
        let mut file = tempfile(directory)?;
        std::io::Write::write_all(&mut file.1, bytes)?;
        std::io::Write::write_all(&mut file.1, &sum(bytes))?;
        fs::rename(&file.0, path).inspect_err(|_| drop(fs::remove_file(&file.0)))
    };
    // A full disk is no reason to fail: the store has it.
    let _ = write();
}

fn tempfile(directory: &Path) -> std::io::Result<(PathBuf, fs::File)> {
    use std::os::unix::fs::OpenOptionsExt;
    let random = crate::key::random::<8>()?;
    let path = directory.join(format!("tmp-{:016x}", u64::from_le_bytes(random)));
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    Ok((path, file))
}

/// Every file below `directory`.
pub(super) fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}
