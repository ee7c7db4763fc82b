//! Objects as files below a local directory.
//!
//! An object is written to a temporary name beside its place, synced, renamed without replacing, and its directory is
//! synced: after a crash it is there whole or not at all. Only its own temporary files are ever deleted unasked.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::deadline::may_wait;
use super::{Backend, Error, ErrorKind, Listed, ObjectKind, ObjectName, Result};
use crate::id::ObjectId;

/// Beginning of the name of a temporary file; the rest is like an object's id.
const TEMPORARY: &str = "tmp-";

/// A repository's directory.
pub struct Local {
    root: PathBuf,
    /// Directories that are known to survive a crash.
    durable: Mutex<HashSet<PathBuf>>,
    /// Whether its files lie in memory, where no read waits.
    in_memory: OnceLock<bool>,
}

impl Local {
    /// The store in `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), durable: Mutex::default(), in_memory: OnceLock::new() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, name: ObjectName) -> PathBuf {
        self.root.join(name.path())
    }

    fn error(&self, op: &'static str, object: impl ToString, source: io::Error) -> Error {
        let kind = match source.kind() {
            // What should be a directory is a file: then nothing is in it.
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Denied,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => ErrorKind::Full,
            io::ErrorKind::UnexpectedEof => ErrorKind::Truncated,
            io::ErrorKind::WouldBlock => ErrorKind::WouldWait,
            _ => ErrorKind::Other,
        };
        let source = match kind {
            ErrorKind::Truncated => io::Error::new(source.kind(), "it is cut short: bytes are missing at its end"),
            _ => source,
        };
        Error { op, object: object.to_string(), location: self.location(), kind, source }
    }

    /// Fills `out` from `offset` of the file with what the kernel has in memory; `WouldBlock` if it does not have all.
    fn read_at_once(&self, path: &Path, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = match rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED) {
            // Linux before 5.12 cannot tell.
            Err(Errno::INVAL | Errno::NOSYS) => return Err(io::ErrorKind::WouldBlock.into()),
            opened => File::from(opened?),
        };
        if *self.in_memory.get_or_init(|| is_in_memory(&file)) {
            return file.read_exact_at(out, offset);
        }
        let len = out.len();
        match rustix::io::preadv2(&file, &mut [io::IoSliceMut::new(out)], offset, ReadWriteFlags::NOWAIT) {
            Ok(read) if read == len => Ok(()),
            // Where fewer bytes are there than asked for, only a read that waits can tell whether the file ends.
            Ok(_) | Err(Errno::OPNOTSUPP) => Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes a temporary file beside `path`, durably, and gives it its name. `Ok` if the name is taken: the name is a
    /// hash of the bytes.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let directory = path.parent().expect("objects lie below the root");
        let random = crate::key::random::<12>()?;
        let temporary = directory.join(format!("{TEMPORARY}{}", blake3::hash(&random).to_hex()));
        let file = match create_new(&temporary) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_directory(directory)?;
                create_new(&temporary)?
            }
            other => other?,
        };
        let written = (|| {
            io::Write::write_all(&mut &file, bytes)?;
            file.sync_data()?;
            match rustix::fs::renameat_with(CWD, &temporary, CWD, path, RenameFlags::NOREPLACE) {
                Err(Errno::INVAL | Errno::NOSYS) => link_then_unlink(&temporary, path)?,
                Err(Errno::EXIST) => fs::remove_file(&temporary)?,
                other => other?,
            }
            sync_directory(directory)?;
            self.make_durable(directory)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// Syncs what is above `directory`, which another process may have made an instant ago, unless that was done since
    /// this process first saw it.
    fn make_durable(&self, directory: &Path) -> io::Result<()> {
        if self.durable.lock().expect("no panic while held").contains(directory) {
            return Ok(());
        }
        let above = match directory.parent().expect("objects lie below the root") {
            // Of a relative path of one name.
            above if above.as_os_str().is_empty() => Path::new("."),
            above => above,
        };
        // One sync is enough for all that are there before it.
        let mut there = vec![directory.to_owned()];
        for entry in fs::read_dir(above).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                there.push(entry.path());
            }
        }
        sync_directory(above)?;
        self.durable.lock().expect("no panic while held").extend(there);
        Ok(())
    }

    /// Calls `found` with each file's directory entry in the directories that hold objects of `kind`.
    fn for_each_file(
        &self,
        kind: ObjectKind,
        found: &mut dyn FnMut(&fs::DirEntry) -> io::Result<()>,
    ) -> io::Result<()> {
        let top = self.root.join(kind.directory());
        let mut visit = |directory: &Path| -> io::Result<()> {
            match fs::read_dir(directory) {
                Ok(entries) => entries.into_iter().try_for_each(|entry| found(&entry?)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            }
        };
        match kind {
            ObjectKind::Config => Ok(()),
            ObjectKind::Pack => {
                // A missing top directory is a damaged repository, not an empty one.
                for entry in fs::read_dir(&top)? {
                    let entry = entry?;
                    if entry.file_type()?.is_dir() {
                        visit(&entry.path())?;
                    }
                }
                Ok(())
            }
            _ => fs::read_dir(&top)?.try_for_each(|entry| found(&entry?)),
        }
    }
}

/// Whether the file is one of tmpfs or ramfs: see statfs(2).
fn is_in_memory(file: &File) -> bool {
    const TMPFS: u32 = 0x0102_1994;
    const RAMFS: u32 = 0x8584_58f6;
    // The type of the number is not the same on every architecture.
    rustix::fs::fstatfs(file).is_ok_and(|stat| [TMPFS, RAMFS].contains(&(stat.f_type as u32)))
}

/// Makes a directory, unless it is there.
fn make_directory(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Removes a file, unless it is gone; whether it was there.
fn remove_file(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_temporary(name: &std::ffi::OsStr) -> bool {
    name.to_str().and_then(|name| name.strip_prefix(TEMPORARY)).is_some_and(|rest| ObjectId::from_hex(rest).is_some())
}

fn create_new(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?))
}

/// For file systems without a rename that refuses to replace.
fn link_then_unlink(temporary: &Path, path: &Path) -> io::Result<()> {
    match rustix::fs::linkat(CWD, temporary, CWD, path, AtFlags::empty()) {
        Ok(()) | Err(Errno::EXIST) => fs::remove_file(temporary),
        Err(_) if path.exists() => fs::remove_file(temporary),
        // No hard links either (some network and FAT file systems): the name is a hash, so replacing cannot lose data.
        Err(_) => fs::rename(temporary, path),
    }
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    #[cfg(test)]
    tests::SYNCED.with_borrow_mut(|synced| synced.push(directory.to_owned()));
    File::open(directory)?.sync_all()
}

impl Backend for Local {
    fn location(&self) -> String {
        self.root.display().to_string()
    }

    fn create(&self) -> Result<()> {
        let config = self.root.join("config");
        if config.exists() {
            let source = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(self.error("create", "config", source));
        }
        if self.root.exists() && !self.root.is_dir() {
            let source = io::Error::new(io::ErrorKind::NotADirectory, "there is a file of that name");
            return Err(self.error("create", "the repository", source));
        }
        let create = || -> io::Result<()> {
            let root = std::path::absolute(&self.root)?;
            let missing: Vec<&Path> = root.ancestors().take_while(|path| !path.exists()).collect();
            fs::create_dir_all(&root)?;
            rustix::fs::chmod(&root, Mode::RWXU)?;
            for kind in ObjectKind::ALL.into_iter().filter(|kind| *kind != ObjectKind::Config) {
                make_directory(&root.join(kind.directory()))?;
            }
            sync_directory(&root)?;
            // Also above a root that is there: whoever made it may not have.
            let made = if missing.is_empty() { vec![&*root] } else { missing };
            made.iter().filter_map(|path| path.parent()).try_for_each(sync_directory)
        };
        create().map_err(|source| self.error("create", "the repository", source))
    }

    fn put(&self, name: ObjectName, bytes: &[u8]) -> Result<()> {
        self.write(&self.path(name), bytes).map_err(|source| self.error("write", name, source))
    }

    fn get(&self, name: ObjectName, len_max: u64) -> Result<Vec<u8>> {
        let read = || {
            let file = File::open(self.path(name))?;
            let len = file.metadata()?.len();
            if len > len_max {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{len} bytes are more than {len_max}")));
            }
            let mut bytes = vec![0; len as usize];
            file.read_exact_at(&mut bytes, 0)?;
            Ok(bytes)
        };
        read().map_err(|source| self.error("read", name, source))
    }

    fn get_range(&self, name: ObjectName, offset: u64, out: &mut [u8]) -> Result<()> {
        let path = self.path(name);
        let mut read = || match may_wait() {
            true => File::open(&path)?.read_exact_at(out, offset),
            false => self.read_at_once(&path, offset, out),
        };
        read().map_err(|source| self.error("read", name, source))
    }

    fn list(&self, kind: ObjectKind, found: &mut dyn FnMut(Listed)) -> Result<()> {
        let mut visit = |entry: &fs::DirEntry| {
            // Other names are temporary files and what users put there.
            if let Some(id) = entry.file_name().to_str().and_then(ObjectId::from_hex) {
                match entry.metadata() {
                    Ok(metadata) if metadata.is_file() => found(Listed { id, len: metadata.len() }),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        self.for_each_file(kind, &mut visit).map_err(|source| self.error("list", kind.directory(), source))
    }

    fn len(&self, name: ObjectName) -> Result<u64> {
        Ok(fs::metadata(self.path(name)).map_err(|source| self.error("stat", name, source))?.len())
    }

    fn delete(&self, name: ObjectName) -> Result<()> {
        remove_file(&self.path(name)).map_err(|source| self.error("delete", name, source))?;
        Ok(())
    }

    fn clean(&self, age_min_s: u64) -> Result<u64> {
        let mut count = 0;
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
        for kind in ObjectKind::ALL {
            let mut visit = |entry: &fs::DirEntry| {
                if is_temporary(&entry.file_name()) {
                    match entry.metadata() {
                        Ok(metadata) if now.saturating_sub(metadata.mtime()) >= age_min_s as i64 => {
                            count += u64::from(remove_file(&entry.path())?);
                        }
                        _ => {}
                    }
                }
                Ok(())
            };
            self.for_each_file(kind, &mut visit).map_err(|source| self.error("clean", kind.directory(), source))?;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    thread_local! {
        /// What this thread has synced.
        pub(super) static SYNCED: std::cell::RefCell<Vec<PathBuf>> = const { std::cell::RefCell::new(Vec::new()) };
    }

    fn name(bytes: &[u8]) -> ObjectName {
        ObjectName::new(ObjectKind::Pack, ObjectId::of(bytes))
    }

    #[test]
    fn an_object_is_written_once_and_read_in_ranges() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store = Local::new(directory.path().join("repo"));
        store.create().expect("creates");
        store.put(name(b"hello"), b"hello").expect("puts");
        store.put(name(b"hello"), b"other").expect("a second put is quiet");
        assert_eq!(store.get(name(b"hello"), 10).expect("gets"), b"hello");
        assert!(store.get(name(b"hello"), 4).is_err(), "longer than allowed");
        let mut out = [0; 3];
        store.get_range(name(b"hello"), 1, &mut out).expect("reads a range");
        assert_eq!(&out, b"ell");
        let error = store.get_range(name(b"hello"), 3, &mut out).expect_err("short");
        assert_eq!(error.kind, ErrorKind::Truncated);
        assert_eq!(store.get(name(b"absent"), 10).expect_err("absent").kind, ErrorKind::NotFound);
        let mut listed = Vec::new();
        store.list(ObjectKind::Pack, &mut |found| listed.push(found)).expect("lists");
        assert_eq!(listed, [Listed { id: ObjectId::of(b"hello"), len: 5 }]);
        store.delete(name(b"hello")).expect("deletes");
        store.delete(name(b"hello")).expect("deletes again");
    }

    #[test]
    fn a_thread_that_may_not_wait_reads_what_is_in_memory_and_is_told_of_what_is_not() {
        for place in ["/dev/shm", "/var/tmp"] {
            let Ok(directory) = tempfile::tempdir_in(place) else { continue };
            let store = Local::new(directory.path());
            store.create().expect("creates");
            let bytes = vec![7; 100_000];
            store.put(name(&bytes), &bytes).expect("puts");
            let mut out = [0; 5000];
            let mut read = |offset| {
                let read =
                    crate::backend::deadline::without_waiting(|| store.get_range(name(&bytes), offset, &mut out));
                read.map(|()| out.iter().all(|byte| *byte == 7))
            };
            // A file system may not be able to tell what is in memory; then everything would wait.
            let failed = |error: Error| error.kind == ErrorKind::WouldWait && place != "/dev/shm";
            assert!(read(0).unwrap_or_else(failed), "{place}");
            let beyond = read(99_000).expect_err("beyond the end").kind;
            assert!([ErrorKind::Truncated, ErrorKind::WouldWait].contains(&beyond), "{place}: {beyond:?}");
            let file = File::open(store.path(name(&bytes))).expect("opens");
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("drops it from memory");
            assert!(read(0).unwrap_or_else(failed), "{place}");
        }
    }

    #[test]
    fn leftovers_are_not_listed_and_are_cleaned_when_old() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store = Local::new(directory.path());
        store.create().expect("creates");
        let leftover = directory.path().join(format!("index/tmp-{}", name(b"x").id));
        let theirs = directory.path().join("index/tmp-notes");
        for path in [&leftover, &theirs] {
            fs::write(path, b"x").expect("writes");
        }
        store.list(ObjectKind::Index, &mut |_| panic!("a leftover is listed")).expect("lists");
        assert_eq!(store.clean(3600).expect("cleans"), 0);
        assert_eq!(store.clean(0).expect("cleans"), 1);
        assert!(!leftover.exists() && theirs.exists(), "only what this program names so is its own");
    }

    #[test]
    fn leftovers_that_several_processes_clean_at_once_are_no_error() {
        let directory = tempfile::tempdir().expect("temporary directory");
        Local::new(directory.path()).create().expect("creates");
        for n in 0..2000u32 {
            let path = directory.path().join(format!("index/tmp-{}", ObjectId::of(&n.to_le_bytes())));
            fs::write(path, b"x").expect("writes");
        }
        let cleaned = std::thread::scope(|scope| {
            let clean = || Local::new(directory.path()).clean(0).expect("cleans");
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(clean)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum::<u64>()
        });
        assert_eq!(cleaned, 2000);
    }

    #[test]
    fn the_first_write_into_a_directory_syncs_the_one_above_it_whoever_made_it() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let root = directory.path().join("a/b");
        Local::new(&root).create().expect("creates");
        let synced = || SYNCED.with_borrow_mut(std::mem::take);
        let made = synced();
        for path in [&root, &directory.path().join("a"), &directory.path().to_owned()] {
            assert!(made.contains(path), "{} is not synced", path.display());
        }
        let store = Local::new(&root);
        let object = name(b"hello");
        let place = root.join(object.path()).parent().expect("a directory").to_owned();
        // Another process has made it an instant ago.
        fs::create_dir(&place).expect("creates");
        store.put(object, b"hello").expect("puts");
        assert_eq!(synced(), [place.clone(), root.join("packs")]);
        store.delete(object).expect("deletes");
        store.put(object, b"hello").expect("puts");
        assert_eq!(synced(), [place], "once is enough");
    }

    #[test]
    fn a_second_create_is_refused() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store = Local::new(directory.path());
        store.create().expect("creates");
        store.put(ObjectName::config(), b"c").expect("puts");
        assert!(store.create().is_err());
    }
}
