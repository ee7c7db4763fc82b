//! The walk: every entry below the targets once, in the order of the tree that a snapshot stores.
//!
//! Directories are entered depth first, names come in the order of their bytes, and each entry is asked about when its
//! turn comes. Only names of the directories on the current path are held, and only the lowest directories of that path
//! are kept open: going up again from further down, a directory is opened through `..` and must be the same inode.
//! An entry that fails is told to the progress and the walk goes on; the walk itself never fails once it has begun.

use crate::format::limits::TREE_DEPTH_MAX;
use crate::format::tree::Metadata;
use crate::host;
use crate::progress::Progress;
use crate::source::directory::{Directory, Names, OpenFile};
use crate::source::exclude::{Excludes, is_ignored};
use crate::source::metadata::{EntryKind, Stat};
use crate::source::targets::{TargetIndex, Targets, resolve};
use ignore::gitignore::Gitignore;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

/// What to walk.
#[derive(Clone, Debug, Default)]
pub struct WalkOptions {
    /// Files and directories, absolute or relative to the working directory.
    pub targets: Vec<Vec<u8>>,
    /// What to leave out.
    pub excludes: Excludes,
    /// Stay on the file systems of the targets; the directory that another one is mounted on is kept, empty.
    pub one_file_system: bool,
    /// Read block devices that are targets, or that symbolic links given as targets lead to, by their content.
    pub read_special: bool,
    /// Keep access times.
    pub with_atime: bool,
    /// Directories that are kept empty unless they are targets.
    pub left_out: LeftOut,
}

/// What would back up backups.
#[derive(Clone, Debug, Default)]
pub struct LeftOut {
    /// Device and inode number of the repository's own directory.
    pub repository: Option<(u64, u64)>,
    /// Device numbers of mounted repositories.
    pub mounts: HashSet<u64>,
}

impl LeftOut {
    /// The repositories that are mounted on this host, and the one in the directory `repository`, if there is that.
    pub fn new(repository: &Path) -> Self {
        let repository = std::fs::metadata(repository).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        let mounts = host::mounts().unwrap_or_default().into_iter().filter(|mount| mount.is_repository);
        let number = |mount: host::Mount| {
            let (major, minor) = mount.device.split_once(':')?;
            Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
        };
        Self { repository, mounts: mounts.filter_map(number).collect() }
    }

    /// A target is what it is, wherever it lies.
    fn make_way(&mut self, stat: &Stat) {
        self.mounts.remove(&stat.metadata.dev);
    }

    fn has(&self, stat: &Stat) -> bool {
        let Metadata { dev, inode, .. } = stat.metadata;
        self.repository == Some((dev, inode)) || self.mounts.contains(&dev)
    }
}

/// A walk that cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// None of the targets exists; each has been told to the progress.
    #[error("there is nothing to back up: no target can be found")]
    NoTarget,
    /// The root directory cannot be opened.
    #[error("cannot open the root directory: {0}")]
    Root(#[source] io::Error),
}

/// A step of the walk.
#[derive(Debug)]
pub enum Event {
    /// A directory; what is in it follows.
    Enter(Entry),
    /// Anything else.
    Entry(Entry),
    /// The end of the directory entered last and not left yet.
    Leave,
}

/// One entry of the source. It stays usable as long as it is held, and holds a directory open.
#[derive(Debug)]
pub struct Entry {
    /// The directory itself, or the one that the entry is in.
    directory: Arc<Directory>,
    name: CString,
    stat: Stat,
}

impl Entry {
    /// The file name; empty for the root directory.
    pub fn name(&self) -> &[u8] {
        self.name.to_bytes()
    }

    /// Owner, permissions, times, identity.
    pub fn metadata(&self) -> &Metadata {
        &self.stat.metadata
    }

    /// What it is.
    pub fn kind(&self) -> EntryKind {
        self.stat.kind
    }

    /// Opens a [`EntryKind::File`] or [`EntryKind::Volume`] for reading; fails if another file took its place meanwhile.
    pub fn open(&self) -> io::Result<OpenFile> {
        let mut open = self.directory.open_file(&self.name, &self.stat)?;
        if self.stat.metadata.atime.is_none() {
            open.stat.metadata.atime = None;
        }
        Ok(open)
    }

    /// What has the entry's name by now, if it is not what the walk saw. A directory that took its place is an error: its
    /// turn in the walk is over.
    pub fn look_again(&self) -> io::Result<Option<Entry>> {
        let mut stat = match Stat::at(&self.directory, &self.name) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Err(io::Error::new(io::ErrorKind::NotFound, "it vanished meanwhile")),
            Err(error) => return Err(error.into()),
        };
        if self.stat.metadata.atime.is_none() {
            stat.metadata.atime = None;
        }
        let is_same_kind = std::mem::discriminant(&stat.kind) == std::mem::discriminant(&self.stat.kind);
        if is_same_kind && stat.is_same_inode(&self.stat.metadata) || matches!(self.stat.kind, EntryKind::Volume { .. })
        {
            return Ok(None);
        }
        if stat.kind == EntryKind::Directory {
            return Err(io::Error::other("it was replaced by a directory meanwhile"));
        }
        Ok(Some(Entry { directory: self.directory.clone(), name: self.name.clone(), stat }))
    }

    /// Where a [`EntryKind::Symlink`] points, verbatim.
    pub fn link_target(&self) -> io::Result<Vec<u8>> {
        self.directory.link_target(&self.name)
    }

    /// The extended attributes as [`crate::format::tree::Xattrs`] stores them; what cannot be read goes to `failed`. For a
    /// file that is opened anyway, [`OpenFile::xattrs`] is cheaper.
    pub fn xattrs(&self, failed: impl FnMut(io::Error)) -> Vec<u8> {
        let name = if self.stat.kind == EntryKind::Directory { c"" } else { self.name.as_c_str() };
        self.directory.xattrs(name, failed)
    }
}

/// A directory on the current path.
struct Frame {
    /// `None` while it is far above the current one.
    directory: Option<Arc<Directory>>,
    stat: Stat,
    names: Names,
    next: usize,
    /// Bytes of the current path that lead here.
    path_len: usize,
    /// Its place among the targets, if it is one or leads to one.
    target: Option<TargetIndex>,
    /// Everything in it is wanted, not only what targets name.
    whole: bool,
    /// The file system to stay on, if only one is wanted.
    device: Option<u64>,
    ignore_rules: Option<Gitignore>,
}

/// A name whose turn has come.
struct Visit {
    parent: Arc<Directory>,
    name: CString,
    target: Option<TargetIndex>,
    /// It is a target itself.
    explicit: bool,
    /// Targets lie below it.
    leads_on: bool,
    /// It is wanted, and if it is a directory, with everything in it.
    whole: bool,
    /// The file system that it must be on to be wanted, if not any.
    device: Option<u64>,
}

impl Visit {
    fn is_wanted(&self) -> bool {
        self.whole || self.leads_on
    }

    fn is_elsewhere(&self, stat: &Stat) -> bool {
        self.device.is_some_and(|device| device != stat.metadata.dev)
    }

    /// What it is. If it is likely to be a directory that is to be listed, it is opened at once, which saves asking twice;
    /// but opening may mount something, so not if it has to stay where it is.
    fn look(&self, is_likely_directory: bool) -> rustix::io::Result<(Stat, Option<Directory>)> {
        if is_likely_directory
            && self.whole
            && self.device.is_none()
            && let Ok(directory) = self.parent.list(&self.name)
        {
            return Ok((directory.stat()?, Some(directory)));
        }
        Ok((Stat::at(&self.parent, &self.name)?, None))
    }
}

/// Iterator over the entries below the targets.
pub struct Walk<'p> {
    options: WalkOptions,
    progress: &'p Progress,
    paths: Vec<Vec<u8>>,
    targets: Targets,
    frames: Vec<Frame>,
    /// Directories at the end of `frames` that are kept open.
    open_levels: usize,
    path: Vec<u8>,
    root: Option<Directory>,
    buffer: Vec<u8>,
}

/// Directories of the current path that are kept open at most.
const OPEN_LEVELS_MAX: usize = 256;
/// Bytes of names that the kernel is asked for at once.
const NAMES_BUFFER_LEN: usize = 128 << 10;

impl<'p> Walk<'p> {
    /// Looks for the targets. Those that cannot be found are told to `progress`; it is an error only if none can.
    pub fn new(options: WalkOptions, progress: &'p Progress) -> Result<Self, Error> {
        let mut paths = Vec::with_capacity(options.targets.len());
        for target in &options.targets {
            match resolve(target) {
                Ok(path) => paths.push(path),
                Err(error) => progress.error(target, "find", error),
            }
        }
        if paths.is_empty() {
            return Err(Error::NoTarget);
        }
        paths.sort_unstable();
        paths.dedup();
        let root = Directory::root().map_err(|error| Error::Root(error.into()))?;
        Ok(Self {
            targets: Targets::new(paths.iter().map(Vec::as_slice)),
            options,
            progress,
            paths,
            frames: Vec::new(),
            open_levels: OPEN_LEVELS_MAX.min(raise_open_file_limit() / 4).max(1),
            path: Vec::new(),
            root: Some(root),
            buffer: Vec::with_capacity(NAMES_BUFFER_LEN),
        })
    }

    /// The targets that were found: absolute, sorted, each once.
    pub fn targets(&self) -> &[Vec<u8>] {
        &self.paths
    }

    /// The absolute path of the entry of the last event, of the directory left if that was [`Event::Leave`].
    pub fn path(&self) -> &[u8] {
        if self.path.is_empty() { b"/" } else { &self.path }
    }

    fn error(&self, during: &'static str, message: impl ToString) {
        self.progress.error(self.path(), during, message);
    }

    /// Enters the root directory.
    fn start(&mut self, root: Directory) -> Option<Event> {
        let explicit = self.targets.is_whole(0);
        let root = Visit {
            parent: Arc::new(root),
            name: c"/".to_owned(),
            target: Some(0),
            explicit,
            leads_on: self.targets.leads_on(0),
            whole: explicit && !self.options.excludes.match_path(b"/"),
            device: None,
        };
        match root.parent.stat() {
            Ok(stat) => self.visit_directory(root, stat, None),
            Err(error) => {
                self.error("stat", error);
                None
            }
        }
    }

    /// The next name of the current directory, if it is wanted and can be had.
    fn visit(&mut self) -> Option<Event> {
        let frame = self.frames.last_mut()?;
        let (name, is_likely_directory) = frame.names.at(frame.next)?;
        frame.next += 1;
        self.path.push(b'/');
        self.path.extend_from_slice(name.to_bytes());

        let name = name.to_owned();
        let target = frame.target.and_then(|target| self.targets.children(target).get(&name).copied());
        let explicit = target.is_some_and(|target| self.targets.is_whole(target));
        let mut seen = Visit {
            parent: frame.directory.clone()?,
            name,
            target,
            explicit,
            leads_on: target.is_some_and(|target| self.targets.leads_on(target)),
            whole: (frame.whole || explicit) && !self.options.excludes.match_path(&self.path),
            device: frame.device.filter(|_| !explicit),
        };
        if !seen.is_wanted() {
            return None;
        }
        let (stat, opened) = match seen.look(is_likely_directory) {
            Ok(found) => found,
            Err(Errno::NOENT) => {
                self.error("stat", "it vanished while its directory was read");
                return None;
            }
            Err(error) => {
                self.error("stat", error);
                return None;
            }
        };
        let is_directory = stat.kind == EntryKind::Directory;
        seen.whole &= explicit || !self.is_ignored(is_directory);
        if !seen.is_wanted() {
            return None;
        }
        if is_directory { self.visit_directory(seen, stat, opened) } else { self.visit_file(seen, stat) }
    }

    fn visit_file(&self, seen: Visit, mut stat: Stat) -> Option<Event> {
        if seen.leads_on {
            self.error("open", Errno::NOTDIR);
        }
        if seen.explicit && self.options.read_special {
            stat = self.volume(&seen.parent, &seen.name, stat)?;
        }
        if !seen.whole || seen.is_elsewhere(&stat) || self.options.excludes.match_size(&stat) {
            return None;
        }
        self.trim(&mut stat);
        Some(Event::Entry(Entry { directory: seen.parent, name: seen.name, stat }))
    }

    fn visit_directory(&mut self, mut seen: Visit, mut stat: Stat, opened: Option<Directory>) -> Option<Event> {
        if self.frames.len() >= TREE_DEPTH_MAX {
            self.error("enter", format!("more than {TREE_DEPTH_MAX} directories lie above it"));
            return None;
        }
        seen.whole &= !seen.is_elsewhere(&stat);
        let directory = match opened {
            Some(directory) => directory,
            None => {
                let directory = self.open(&seen.parent, &seen.name, seen.whole)?;
                // What was opened counts, should it be another one by now.
                match directory.stat() {
                    Ok(now) if now.kind == EntryKind::Directory => stat = now,
                    result => {
                        self.error("open", result.err().unwrap_or(Errno::NOTDIR));
                        return None;
                    }
                }
                seen.whole &= directory.is_readable() && !seen.is_elsewhere(&stat);
                directory
            }
        };
        if seen.explicit {
            self.options.left_out.make_way(&stat);
        } else {
            seen.whole &= !self.options.left_out.has(&stat);
        }
        if seen.explicit && self.options.one_file_system {
            seen.device = Some(stat.metadata.dev);
        }
        Some(self.enter(seen, directory, stat))
    }

    /// Opens the directory `name` to list it if it is `whole`, or else, and if that fails, to pass through.
    fn open(&self, parent: &Directory, name: &CStr, whole: bool) -> Option<Directory> {
        if whole {
            match parent.list(name) {
                Ok(directory) => return Some(directory),
                Err(error) => self.error("open", error),
            }
        }
        match Directory::pass(parent, name) {
            Ok(directory) => Some(directory),
            Err(error) => {
                if !whole {
                    self.error("open", error);
                }
                None
            }
        }
    }

    /// A block device, or a symbolic link to one, as a file with the device's content.
    fn volume(&self, parent: &Arc<Directory>, name: &CStr, stat: Stat) -> Option<Stat> {
        let behind = match stat.kind {
            EntryKind::Symlink => Stat::behind(parent, name).unwrap_or(stat),
            _ => stat,
        };
        let EntryKind::BlockDevice { rdev } = behind.kind else { return Some(stat) };
        let volume = Stat { kind: EntryKind::Volume { size: 0, rdev }, ..behind };
        match parent.open_file(name, &volume) {
            Ok(open) => Some(Stat { kind: open.stat.kind, ..volume }),
            Err(error) => {
                self.error("open", error);
                None
            }
        }
    }

    fn is_ignored(&self, is_directory: bool) -> bool {
        !self.options.excludes.ignore_files.is_empty()
            && is_ignored(self.frames.iter().filter_map(|frame| frame.ignore_rules.as_ref()), &self.path, is_directory)
    }

    /// Drops what the snapshot is not to have.
    fn trim(&self, stat: &mut Stat) {
        if !self.options.with_atime {
            stat.metadata.atime = None;
        }
    }

    fn enter(&mut self, seen: Visit, directory: Directory, mut stat: Stat) -> Event {
        let mut names = Names::default();
        let mut ignore_rules = None;
        if seen.whole {
            let error;
            (names, error) = directory.names(&mut self.buffer);
            if let Some(error) = error {
                self.error("list", error);
            }
            let excludes = &self.options.excludes;
            ignore_rules = excludes.read_ignore_files(&directory, &names, self.path(), |file, message| {
                self.progress.error(&[self.path(), b"/", file.to_bytes()].concat(), "read", message);
            });
            excludes.apply_tags(&directory, &mut names);
        }
        if let Some(target) = seen.target.filter(|&target| self.targets.leads_on(target)) {
            self.targets.children(target).keys().for_each(|name| names.push(name, true));
            names.sort();
        }
        self.trim(&mut stat);
        let directory = Arc::new(directory);
        self.frames.push(Frame {
            directory: Some(directory.clone()),
            stat,
            names,
            next: 0,
            path_len: self.path.len(),
            target: seen.target,
            whole: seen.whole,
            device: seen.device,
            ignore_rules,
        });
        if let Some(far) = self.frames.len().checked_sub(1 + self.open_levels) {
            self.frames[far].directory = None;
        }
        let name = if self.path.is_empty() { CString::default() } else { seen.name };
        Event::Enter(Entry { directory, name, stat })
    }

    fn leave(&mut self) -> Option<Event> {
        let left = self.frames.pop()?;
        let closed = self.frames.last().is_some_and(|parent| parent.directory.is_none());
        if closed {
            match self.reopen(left.directory.as_deref()) {
                Ok(directory) => {
                    let parent = self.frames.last_mut().expect("it was looked at just now");
                    parent.directory = Some(Arc::new(directory));
                }
                Err(error) => {
                    let parent = self.frames.last_mut().expect("it was looked at just now");
                    parent.next = parent.names.len();
                    self.progress.error(&self.path[..parent.path_len], "return to", error);
                }
            }
        }
        Some(Event::Leave)
    }

    /// Opens the last directory of the path again: as the parent of `child` or, should that have been moved, name by name
    /// from the root.
    fn reopen(&self, child: Option<&Directory>) -> io::Result<Directory> {
        let wanted = &self.frames.last().expect("called with a directory to return to").stat.metadata;
        let is_wanted = |directory: &Directory| directory.stat().is_ok_and(|stat| stat.is_same_inode(wanted));
        if let Some(parent) = child.and_then(|child| Directory::pass(child, c"..").ok()).filter(is_wanted) {
            return Ok(parent);
        }
        let mut directory = Directory::root()?;
        for pair in self.frames.windows(2) {
            let name = &self.path[pair[0].path_len + 1..pair[1].path_len];
            directory = Directory::pass(&directory, &CString::new(name).expect("the path has no NUL"))?;
        }
        if is_wanted(&directory) { Ok(directory) } else { Err(io::Error::other("it was moved meanwhile")) }
    }
}

impl Iterator for Walk<'_> {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if let Some(root) = self.root.take() {
            return self.start(root);
        }
        loop {
            let frame = self.frames.last()?;
            self.path.truncate(frame.path_len);
            if frame.next >= frame.names.len() {
                return self.leave();
            }
            if let Some(event) = self.visit() {
                return Some(event);
            }
        }
    }
}

/// Lets the process open as many files as its hard limit allows; returns how many.
fn raise_open_file_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = if setrlimit(Resource::Nofile, raised).is_ok() { raised.current } else { limit.current };
    current.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::SourceError;
    use crate::source::exclude::Tag;
    use crate::source::pattern::{Case, Patterns};
    use rustix::fs::{Mode, mkdirat, openat};
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::{Path, PathBuf};

    /// A temporary directory whose path has no symbolic links.
    struct Temp {
        _temp: tempfile::TempDir,
        path: PathBuf,
    }

    impl Temp {
        /// With files of one byte; names that end in a slash are directories.
        fn with(names: &[&str]) -> Self {
            let temp = tempfile::tempdir().unwrap();
            let path = temp.path().canonicalize().unwrap();
            for name in names {
                let path = path.join(name);
                if name.ends_with('/') {
                    fs::create_dir_all(path).unwrap();
                } else {
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::write(path, "x").unwrap();
                }
            }
            Self { _temp: temp, path }
        }

        fn at(&self, name: &str) -> PathBuf {
            self.path.join(name)
        }

        fn options(&self, targets: &[&str]) -> WalkOptions {
            let targets = targets.iter().map(|name| bytes(&self.at(name)).to_vec()).collect();
            WalkOptions { targets, ..WalkOptions::default() }
        }

        /// What is walked below, relative, directories with a slash; the errors' paths likewise.
        fn walk(&self, options: WalkOptions) -> (Vec<String>, Vec<SourceError>) {
            let progress = Progress::new();
            let listing = self.listing(&mut Walk::new(options, &progress).unwrap());
            let mut errors = progress.take_errors();
            for error in &mut errors {
                error.path = self.relative(&error.path).into_bytes();
            }
            (listing, errors)
        }

        fn listing(&self, walk: &mut Walk<'_>) -> Vec<String> {
            let mut listing = Vec::new();
            let mut depth = 0;
            while let Some(event) = walk.next() {
                let (entry, slash) = match &event {
                    Event::Enter(entry) => (entry, "/"),
                    Event::Entry(entry) => (entry, ""),
                    Event::Leave => {
                        depth -= 1;
                        continue;
                    }
                };
                depth += usize::from(matches!(event, Event::Enter(_)));
                assert!(walk.path().ends_with(entry.name()));
                if walk.path().starts_with(bytes(&self.path)) && walk.path() != bytes(&self.path) {
                    listing.push(self.relative(walk.path()) + slash);
                }
            }
            assert_eq!(depth, 0, "what is entered is left");
            listing
        }

        fn relative(&self, path: &[u8]) -> String {
            let path = path.strip_prefix(bytes(&self.path)).unwrap_or(path);
            String::from_utf8_lossy(path.strip_prefix(b"/").unwrap_or(path)).into_owned()
        }

        /// Everything below but what `excludes` leaves out; there must be no error.
        fn without(&self, excludes: Excludes) -> Vec<String> {
            let (listing, errors) = self.walk(WalkOptions { excludes, ..self.options(&[""]) });
            assert_eq!(errors, []);
            listing
        }
    }

    fn bytes(path: &Path) -> &[u8] {
        path.as_os_str().as_bytes()
    }

    fn patterns(list: &[&str]) -> Vec<Patterns> {
        vec![Patterns::new(list, Case::Sensitive).unwrap()]
    }

    #[test]
    fn entries_come_in_the_order_of_their_bytes_depth_first() {
        let temp = Temp::with(&["a/x", "a.b", "B", "a/w/y", "a-", "empty/"]);
        fs::write(temp.path.join(OsStr::from_bytes(b"\xff\n")), "").unwrap();
        let (listing, errors) = temp.walk(temp.options(&[""]));
        assert_eq!(listing, ["B", "a/", "a/w/", "a/w/y", "a/x", "a-", "a.b", "empty/", "\u{fffd}\n"]);
        assert_eq!(errors, []);
    }

    #[test]
    fn directories_above_a_target_hold_only_what_leads_to_it() {
        let temp = Temp::with(&["a/b/c", "a/b/d/e", "a/f", "g"]);
        fs::set_permissions(temp.at("a"), fs::Permissions::from_mode(0o711)).unwrap();
        let (listing, errors) = temp.walk(temp.options(&["a/b/d"]));
        assert_eq!((listing.as_slice(), errors), (&["a/", "a/b/", "a/b/d/", "a/b/d/e"].map(String::from)[..], vec![]));

        let progress = Progress::new();
        let mut walk = Walk::new(temp.options(&["a/b/d"]), &progress).unwrap();
        let Some(Event::Enter(root)) = walk.next() else { panic!("the root comes first") };
        assert_eq!((root.name(), walk.path()), (b"".as_slice(), b"/".as_slice()));
        let a = walk.find_map(|event| match event {
            Event::Enter(entry) if entry.name() == b"a" => Some(entry),
            _ => None,
        });
        assert_eq!(a.unwrap().metadata().mode, 0o711);
    }

    #[test]
    fn targets_are_merged_and_come_once() {
        let temp = Temp::with(&["a/b/c", "a/b/d", "e", "f"]);
        let (listing, errors) = temp.walk(temp.options(&["f", "a/b", "a", "a/b/c", "a/", "a/../a"]));
        assert_eq!(
            (listing.as_slice(), errors),
            (&["a/", "a/b/", "a/b/c", "a/b/d", "f"].map(String::from)[..], vec![])
        );
        let progress = Progress::new();
        let walk = Walk::new(temp.options(&["f", "a/", "a"]), &progress).unwrap();
        assert_eq!(walk.targets(), [bytes(&temp.at("a")), bytes(&temp.at("f"))]);
    }

    #[test]
    fn the_root_directory_can_be_a_target() {
        let progress = Progress::new();
        let excludes = Excludes { patterns: patterns(&["/*", "!/dev"]), ..Excludes::default() };
        let options =
            WalkOptions { targets: vec![b"/".to_vec()], excludes, one_file_system: true, ..Default::default() };
        let mut walk = Walk::new(options, &progress).unwrap();
        assert!(matches!(walk.next(), Some(Event::Enter(root)) if root.name() == b""));
        let next = walk.next();
        assert!(
            matches!(&next, Some(Event::Enter(dev)) if dev.name() == b"dev"),
            "{next:?} {:?}",
            progress.take_errors()
        );
    }

    #[test]
    fn symlinks_are_followed_above_a_target_but_not_at_it() {
        let temp = Temp::with(&["real/file"]);
        symlink("real", temp.at("link")).unwrap();
        let (listing, _) = temp.walk(temp.options(&["link/file", "link"]));
        assert_eq!(listing, ["link", "real/", "real/file"]);
        let progress = Progress::new();
        let link = Walk::new(temp.options(&["link"]), &progress).unwrap().find_map(|event| match event {
            Event::Entry(entry) => Some(entry),
            _ => None,
        });
        assert_eq!(link.unwrap().link_target().unwrap(), b"real");
    }

    #[test]
    fn a_missing_target_is_told_and_the_rest_is_walked() {
        let temp = Temp::with(&["a"]);
        let (listing, errors) = temp.walk(temp.options(&["missing", "a", "no/where"]));
        assert_eq!(listing, ["a"]);
        let told: Vec<_> = errors.iter().map(|error| (error.path.as_slice(), error.during)).collect();
        assert_eq!(told, [(b"missing".as_slice(), "find"), (b"no/where", "find")]);

        let progress = Progress::new();
        assert!(matches!(Walk::new(temp.options(&["missing"]), &progress), Err(Error::NoTarget)));
        assert_eq!(progress.error_count(), 1);
        assert!(matches!(Walk::new(WalkOptions::default(), &progress), Err(Error::NoTarget)));
    }

    #[test]
    fn a_directory_larger_than_the_buffer_is_listed_whole_and_in_order() {
        let temp = Temp::with(&[]);
        let count = 3 * NAMES_BUFFER_LEN / 200;
        for i in 0..count {
            fs::File::create(temp.at(&format!("{:0200}", i * 7919 % count))).unwrap();
        }
        let (listing, errors) = temp.walk(temp.options(&[""]));
        assert_eq!(errors, []);
        assert_eq!(listing.len(), count);
        assert!(listing.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn paths_longer_than_the_kernel_takes_are_walked_with_few_open_directories() {
        const DEPTH: usize = 3000;
        let temp = Temp::with(&["a/sibling"]);
        let name = CString::new(vec![b'd'; 200]).unwrap();
        let open = |parent: &fs::File, name: &CStr| {
            use rustix::fs::OFlags;
            fs::File::from(openat(parent, name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap())
        };
        let mut directory = fs::File::open(temp.at("a")).unwrap();
        for _ in 0..DEPTH {
            mkdirat(&directory, &name, Mode::RWXU).unwrap();
            directory = open(&directory, &name);
        }
        fs::write(format!("/proc/self/fd/{}/file", std::os::fd::AsRawFd::as_raw_fd(&directory)), "deep").unwrap();
        drop(directory);

        let progress = Progress::new();
        let mut walk = Walk::new(temp.options(&[""]), &progress).unwrap();
        let (mut directories, mut siblings, mut content) = (0, 0, Vec::new());
        while let Some(event) = walk.next() {
            assert!(walk.frames.iter().filter(|frame| frame.directory.is_some()).count() <= OPEN_LEVELS_MAX + 1);
            match event {
                Event::Enter(entry) if entry.name() == name.to_bytes() => directories += 1,
                Event::Entry(entry) if entry.name() == b"sibling" => siblings += 1,
                Event::Entry(entry) => {
                    entry.xattrs(|error| panic!("{error}"));
                    io::Read::read_to_end(&mut entry.open().unwrap().file, &mut content).unwrap();
                }
                _ => {}
            }
        }
        let removed = std::process::Command::new("rm").arg("-rf").arg(temp.at("a")).status();
        assert_eq!(progress.take_errors(), []);
        assert_eq!((directories, siblings, content.as_slice()), (DEPTH, 1, b"deep".as_slice()));
        assert!(removed.unwrap().success());
    }

    #[test]
    fn a_tree_that_is_moved_about_does_not_lead_the_walk_astray() {
        for moved in ["a", "a/b", "a/b/c", "a/b/c/d", "a/b/c/d/e"] {
            let temp = Temp::with(&["a/b/c/d/e/f/x", "a/b/c/d/z", "a/b/c/z", "a/b/z", "a/z", "z", "elsewhere/z/"]);
            let progress = Progress::new();
            let mut walk = Walk::new(temp.options(&["a", "z"]), &progress).unwrap();
            walk.open_levels = 2;
            let mut rest = Vec::new();
            let mut is_moved = false;
            while let Some(event) = walk.next() {
                let Event::Entry(entry) = event else { continue };
                if is_moved {
                    rest.push(temp.relative(walk.path()));
                } else if entry.name() == b"x" {
                    fs::rename(temp.at(moved), temp.at("elsewhere/moved")).unwrap();
                    is_moved = true;
                }
            }
            // The directory that was moved cannot be found again from below if it is closed by then, and all others can.
            assert_eq!(rest, ["a/b/c/d/z", "a/b/c/z", "a/b/z", "a/z", "z"], "{moved}");
            assert_eq!(progress.take_errors(), [], "{moved}");
        }
    }

    #[test]
    fn a_directory_that_is_gone_for_good_is_told_and_not_replaced_by_another() {
        let temp = Temp::with(&["a/b/c/d/e/x", "a/b/z", "a/z", "other/b/z"]);
        let progress = Progress::new();
        let mut walk = Walk::new(temp.options(&["a"]), &progress).unwrap();
        walk.open_levels = 2;
        walk.find(|event| matches!(event, Event::Entry(entry) if entry.name() == b"x")).unwrap();
        // The walk holds `d` and `e` open: `c` is found above `d`, but `b` and `a` have been replaced.
        fs::rename(temp.at("a/b/c"), temp.at("c")).unwrap();
        fs::rename(temp.at("a"), temp.at("gone")).unwrap();
        fs::rename(temp.at("other"), temp.at("a")).unwrap();
        assert_eq!(temp.listing_rest(&mut walk), [] as [String; 0]);
        let told = progress.take_errors();
        let paths: Vec<_> = told.iter().map(|error| (temp.relative(&error.path), error.during)).collect();
        assert_eq!(paths, [("a/b".into(), "return to"), ("a".into(), "return to")]);
    }

    impl Temp {
        fn listing_rest(&self, walk: &mut Walk<'_>) -> Vec<String> {
            let mut rest = Vec::new();
            while let Some(event) = walk.next() {
                if !matches!(event, Event::Leave) {
                    rest.push(self.relative(walk.path()));
                }
            }
            rest
        }
    }

    #[test]
    fn an_entry_that_vanishes_is_told() {
        let temp = Temp::with(&["d/a", "d/b", "d/sub/c"]);
        let progress = Progress::new();
        let mut walk = Walk::new(temp.options(&["d"]), &progress).unwrap();
        walk.find(|event| matches!(event, Event::Enter(entry) if entry.name() == b"d")).unwrap();
        fs::remove_file(temp.at("d/a")).unwrap();
        fs::remove_dir_all(temp.at("d/sub")).unwrap();
        assert_eq!(temp.listing_rest(&mut walk), ["d/b"]);
        let told = progress.take_errors();
        assert_eq!(told.iter().map(|error| temp.relative(&error.path)).collect::<Vec<_>>(), ["d/a", "d/sub"]);
        assert!(told[0].message.contains("vanished"));
    }

    #[test]
    fn a_file_that_was_replaced_is_not_opened() {
        let temp = Temp::with(&["a", "b", "c", "d"]);
        let progress = Progress::new();
        let entries: Vec<_> = Walk::new(temp.options(&[""]), &progress)
            .unwrap()
            .filter_map(|event| if let Event::Entry(entry) = event { Some(entry) } else { None })
            .collect();
        fs::write(temp.at("other"), "other").unwrap();
        fs::rename(temp.at("other"), temp.at("a")).unwrap();
        fs::remove_file(temp.at("b")).unwrap();
        symlink("d", temp.at("b")).unwrap();
        fs::remove_file(temp.at("c")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, temp.at("c"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        for entry in &entries[..3] {
            entry.open().unwrap_err();
        }
        let again = |at: usize| entries[at].look_again().unwrap();
        assert_eq!(again(0).unwrap().open().unwrap().size, 5);
        assert_eq!(again(1).unwrap().kind(), EntryKind::Symlink);
        assert_eq!(again(2).unwrap().kind(), EntryKind::Fifo);
        assert!(again(3).is_none(), "it is as it was");
        fs::remove_file(temp.at("c")).unwrap();
        assert_eq!(entries[2].look_again().unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::create_dir(temp.at("c")).unwrap();
        assert!(entries[2].look_again().is_err(), "its turn in the walk is over");
        let open = entries[3].open().unwrap();
        assert_eq!((open.size, open.has_changed().unwrap()), (1, false));
        fs::write(temp.at("d"), "longer").unwrap();
        assert!(open.has_changed().unwrap());
    }

    #[test]
    fn an_unreadable_directory_is_kept_empty_and_told() {
        let temp = Temp::with(&["closed/x", "dark/x", "open"]);
        fs::set_permissions(&temp.path, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(temp.at("closed"), fs::Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(temp.at("dark"), fs::Permissions::from_mode(0o111)).unwrap();
        let walk_as_ordinary_user = || {
            if rustix::process::geteuid().is_root() {
                let nobody = rustix::process::Uid::from_raw(65534);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            (temp.walk(temp.options(&[""])), temp.walk(temp.options(&["dark/x"])))
        };
        let (all, inside) = std::thread::scope(|scope| scope.spawn(walk_as_ordinary_user).join().unwrap());
        fs::set_permissions(temp.at("closed"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(temp.at("dark"), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(all.0, ["closed/", "dark/", "open"]);
        let told: Vec<_> = all.1.iter().map(|error| (error.path.as_slice(), error.during)).collect();
        assert_eq!(told, [(b"closed".as_slice(), "open"), (b"dark", "open")]);
        assert_eq!((inside.0.as_slice(), inside.1), (&["dark/", "dark/x"].map(String::from)[..], vec![]));
    }

    #[test]
    fn other_file_systems_are_kept_as_empty_directories() {
        let device = |path: &str| Stat::at(rustix::fs::CWD, &CString::new(path).unwrap()).map(|stat| stat.metadata.dev);
        let Some(mount) =
            ["/dev/pts", "/dev/shm"].iter().find(|path| device(path).is_ok_and(|d| Ok(d) != device("/dev")))
        else {
            eprintln!("SKIPPED: nothing is mounted below /dev");
            return;
        };
        let entries = |targets: &[&str]| {
            let progress = Progress::new();
            let targets = targets.iter().map(|path| path.as_bytes().to_vec()).collect();
            let options = WalkOptions { targets, one_file_system: true, ..Default::default() };
            let mut walk = Walk::new(options, &progress).unwrap();
            let mut inside = 0;
            let mut mount_point = false;
            while let Some(event) = walk.next() {
                if !matches!(event, Event::Leave) {
                    mount_point |= walk.path() == mount.as_bytes();
                    inside += usize::from(walk.path().starts_with(format!("{mount}/").as_bytes()));
                }
            }
            (mount_point, inside)
        };
        assert_eq!(entries(&["/dev"]), (true, 0));
        let count = fs::read_dir(mount).map(|entries| entries.count()).unwrap_or_default();
        if count == 0 {
            eprintln!("SKIPPED: {mount} is empty");
            return;
        }
        let (mount_point, inside) = entries(&["/dev", mount]);
        assert!(mount_point && inside > 0, "a target on another file system is walked");
    }

    #[test]
    fn what_a_pattern_matches_is_left_out_with_all_below() {
        let temp = Temp::with(&["a/x.o", "a/y.c", "cache/big/z", "keep/x.o", "target"]);
        let left = temp.without(Excludes { patterns: patterns(&["*.o", "cache", "!keep/*"]), ..Excludes::default() });
        assert_eq!(left, ["a/", "a/y.c", "keep/", "keep/x.o", "target"]);

        let excludes = Excludes { patterns: patterns(&["/**/cache", "!cache/big"]), ..Excludes::default() };
        assert!(!temp.without(excludes.clone()).contains(&"cache/".into()), "an excluded directory is not entered");
        let options = WalkOptions { excludes, ..temp.options(&["", "cache/big"]) };
        let (listing, _) = temp.walk(options);
        assert!(listing.contains(&"cache/big/z".into()), "unless it leads to a target that is taken back");
        assert_eq!(listing.iter().filter(|path| path.starts_with("cache/")).count(), 3);
    }

    #[test]
    fn a_directory_that_is_excluded_is_not_even_opened() {
        let temp = Temp::with(&["d/x"]);
        let progress = Progress::new();
        let excludes = Excludes { patterns: patterns(&["d"]), ..Excludes::default() };
        let mut walk = Walk::new(WalkOptions { excludes, ..temp.options(&[""]) }, &progress).unwrap();
        let base = temp.path.file_name().unwrap().as_bytes();
        walk.find(|event| matches!(event, Event::Enter(entry) if entry.name() == base)).unwrap();
        fs::remove_dir_all(temp.at("d")).unwrap();
        assert_eq!(temp.listing_rest(&mut walk), [] as [String; 0]);
        assert_eq!(progress.take_errors(), []);
    }

    #[test]
    fn a_tag_leaves_only_itself() {
        let temp =
            Temp::with(&["real/x", "real/sub/y", "fake/x", "fake/CACHEDIR.TAG", "plain/.nobackup", "plain/z", "z"]);
        fs::write(temp.at("real/CACHEDIR.TAG"), "Signature: 8a477f597d28d172789f06886806bc55\n# more\n").unwrap();
        let everything = temp.without(Excludes::default());
        assert_eq!(everything.len(), 12);
        let left = temp.without(Excludes { tags: vec![Tag::cache()], ..Excludes::default() });
        let tagged = ["real/x", "real/sub/", "real/sub/y"];
        assert_eq!(
            left,
            everything.iter().filter(|path| !tagged.contains(&path.as_str())).cloned().collect::<Vec<_>>()
        );

        let tags = vec![Tag::parse(b".nobackup").unwrap(), Tag::parse(b"CACHEDIR.TAG:x").unwrap()];
        let left = temp.without(Excludes { tags, ..Excludes::default() });
        let expected = [
            "fake/",
            "fake/CACHEDIR.TAG",
            "plain/",
            "plain/.nobackup",
            "real/",
            "real/CACHEDIR.TAG",
            "real/sub/",
            "real/sub/y",
            "real/x",
            "z",
        ];
        assert_eq!(left, expected);
    }

    #[test]
    fn large_files_are_left_out_but_not_directories() {
        let temp = Temp::with(&["d/small", "exact"]);
        fs::write(temp.at("large"), "12345").unwrap();
        fs::write(temp.at("exact"), "1234").unwrap();
        let excludes = Excludes { larger_than: Some(4), ..Excludes::default() };
        assert_eq!(temp.without(excludes.clone()), ["d/", "d/small", "exact"]);
        let (listing, _) = temp.walk(WalkOptions { excludes, ..temp.options(&["large", "exact"]) });
        assert_eq!(listing, ["exact"], "targets too");
    }

    #[test]
    fn ignore_files_rule_their_directory_and_what_is_below() {
        let temp =
            Temp::with(&["a.o", "b.c", "build/x", "sub/a.o", "sub/build", "sub/keep.o", "sub/deep/keep.o", "t/u"]);
        fs::write(temp.at(".gitignore"), "# objects\n*.o\nbuild/\n/t\n").unwrap();
        fs::write(temp.at("sub/.gitignore"), "!keep.o\n").unwrap();
        fs::write(temp.at("sub/deep/.bygoneignore"), "keep.o\n").unwrap();
        assert_eq!(temp.without(Excludes::default()).len(), 15, "they mean nothing unless asked for");
        let ignore_files = vec![c".gitignore".to_owned(), c".bygoneignore".to_owned()];
        let excludes = Excludes { ignore_files, ..Excludes::default() };
        let expected = [
            ".gitignore",
            "b.c",
            "sub/",
            "sub/.gitignore",
            "sub/build",
            "sub/deep/",
            "sub/deep/.bygoneignore",
            "sub/keep.o",
        ];
        assert_eq!(temp.without(excludes.clone()), expected);
        let (listing, errors) = temp.walk(WalkOptions { excludes, ..temp.options(&["", "t/u", "a.o"]) });
        assert!(errors.is_empty() && listing.contains(&"t/u".into()) && listing.contains(&"a.o".into()));
    }

    #[test]
    fn an_ignore_file_that_cannot_be_read_is_told() {
        let temp = Temp::with(&["a", ".gitignore/"]);
        let excludes = Excludes { ignore_files: vec![c".gitignore".to_owned()], ..Excludes::default() };
        let (listing, errors) = temp.walk(WalkOptions { excludes, ..temp.options(&[""]) });
        assert_eq!(listing, [".gitignore/", "a"]);
        assert_eq!(errors.iter().map(|error| error.path.as_slice()).collect::<Vec<_>>(), [b".gitignore"]);
    }

    #[test]
    fn access_times_are_kept_only_if_asked_for() {
        let temp = Temp::with(&["a"]);
        for with_atime in [false, true] {
            let progress = Progress::new();
            let options = WalkOptions { with_atime, ..temp.options(&["a"]) };
            for event in Walk::new(options, &progress).unwrap() {
                if let Event::Enter(entry) | Event::Entry(entry) = event {
                    assert_eq!(entry.metadata().atime.is_some(), with_atime);
                }
            }
        }
    }

    #[test]
    fn a_directory_shows_its_xattrs_whether_listed_or_passed_through() {
        let temp = Temp::with(&["d/e/f"]);
        for name in ["d", "d/e"] {
            let flags = rustix::fs::XattrFlags::empty();
            if let Err(error) = rustix::fs::setxattr(temp.at(name), "user.a", name.as_bytes(), flags) {
                eprintln!("SKIPPED: no user attributes in {}: {error}", temp.path.display());
                return;
            }
        }
        let progress = Progress::new();
        let mut seen = 0;
        for event in Walk::new(temp.options(&["d/e"]), &progress).unwrap() {
            if let Event::Enter(entry) = event
                && matches!(entry.name(), b"d" | b"e")
            {
                let encoded = entry.xattrs(|error| panic!("{error}"));
                let xattrs = crate::format::tree::Xattrs::new(&encoded);
                let value = xattrs.iter().find(|(name, _)| name == b"user.a").unwrap().1;
                assert!(value.ends_with(entry.name()));
                seen += 1;
            }
        }
        assert_eq!(seen, 2);
    }

    #[test]
    fn a_block_device_is_read_by_content_only_if_asked_for() {
        let devices = fs::read_dir("/sys/class/block").into_iter().flatten().flatten();
        let device = devices.map(|entry| Path::new("/dev").join(entry.file_name())).find(|path| {
            fs::File::open(path)
                .is_ok_and(|mut file| io::Seek::seek(&mut file, io::SeekFrom::End(0)).is_ok_and(|n| n > 0))
        });
        let Some(device) = device else {
            eprintln!("SKIPPED: no block device can be opened");
            return;
        };
        let temp = Temp::with(&[]);
        symlink(&device, temp.at("volume")).unwrap();
        let kinds = |read_special| {
            let progress = Progress::new();
            let targets = vec![bytes(&device).to_vec(), bytes(&temp.at("volume")).to_vec()];
            let options = WalkOptions { targets, read_special, ..Default::default() };
            let entries = Walk::new(options, &progress).unwrap().filter_map(|event| match event {
                Event::Entry(entry) => Some((entry.name().to_vec(), entry)),
                _ => None,
            });
            entries.collect::<std::collections::BTreeMap<_, _>>()
        };
        let name = device.file_name().unwrap().as_bytes();
        let plain = kinds(false);
        assert!(matches!(plain[name].kind(), EntryKind::BlockDevice { .. }));
        assert_eq!(plain[b"volume".as_slice()].kind(), EntryKind::Symlink);
        let special = kinds(true);
        for name in [name, b"volume"] {
            let EntryKind::Volume { size, .. } = special[name].kind() else { panic!("{:?}", special[name]) };
            let open = special[name].open().unwrap();
            assert!(size > 0 && open.size == size);
            let extents: Vec<_> = crate::source::read::Extents::new(&open).collect();
            assert_eq!(extents, [crate::source::read::Extent::Data(0..size)]);
        }
    }
}
