//! Restores single entries that are not directories: content, metadata, and only then the name, if another had it.
//!
//! Wrong content never stays under an entry's name: what cannot be completed is removed, and what replaces something is
//! made beside it and renamed over it. Nothing that exists is ever written through.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::existing::{Plan, stat, type_of};
use super::links::{Fate, FirstName};
use super::metadata::{self, Subject, file_type};
use super::place::Dir;
use super::{Action, Context};
use crate::browse::{self, OwnedNode};
use crate::format::content::{Content, Part};
use crate::format::tree::{Kind, Node};
use crate::id::{BlobKind, ContentHash};
use crate::repo::{self, Blob};

/// Blocks of zeros that `--sparse` leaves out, in bytes: what file systems allocate by.
const SPARSE_BLOCK: usize = 4096;

/// An entry to restore.
pub(super) struct Task {
    pub(super) dir: Arc<Dir>,
    pub(super) node: OwnedNode,
    pub(super) plan: Plan,
    /// Of the first of several names: what becomes of it, for the others to be links to it.
    pub(super) fate: Option<Fate>,
}

impl Task {
    pub(super) fn path(&self) -> Vec<u8> {
        self.dir.path_of(self.node.node().name)
    }

    fn set_fate(&self, action: Action) {
        self.fate.iter().for_each(|fate| fate.set(matches!(action, Action::Restored | Action::Updated)));
    }
}

/// What a worker does.
pub(super) enum Job {
    /// Whole entries.
    Batch(Vec<Task>),
    /// Some parts of a large file.
    Range(Arc<Large>, Vec<(u64, Part)>),
}

/// A file that several workers write at once. The last to let go of it finishes it.
pub(super) struct Large {
    task: Task,
    fd: OwnedFd,
    /// The name it is made under.
    name: Vec<u8>,
    holders: AtomicUsize,
    failed: AtomicBool,
    written: AtomicU64,
}

/// Why an entry could not be restored.
pub(super) struct Failed {
    during: &'static str,
    message: String,
}

impl From<repo::Error> for Failed {
    fn from(error: repo::Error) -> Self {
        Self { during: "restore", message: error.to_string() }
    }
}

/// Adds what was being done to an error of the operating system.
fn during<E: std::fmt::Display>(during: &'static str) -> impl FnOnce(E) -> Failed {
    move |error| Failed { during, message: error.to_string() }
}

type Result<T> = std::result::Result<T, Failed>;

/// Whether several workers share the writing of `node`.
pub(super) fn is_large(node: &Node<'_>) -> bool {
    matches!(node.kind, Kind::File { size, content: Content::Parts { .. } | Content::List { .. } }
        if size > super::planner::RANGE_LEN)
}

/// Whether the content has runs that are not written, so that the length must be set.
fn has_holes(content: &Content<'_>) -> bool {
    match content {
        Content::Empty | Content::Inline(_) | Content::Whole(_) => false,
        Content::Parts { parts, .. } => parts.iter().any(|part| matches!(part, Ok(Part::Hole { .. }))),
        Content::List { .. } => true,
    }
}

fn write_at(fd: impl AsFd, mut bytes: &[u8], mut offset: u64) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(&fd, bytes, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(len) => {
                bytes = &bytes[len..];
                offset += len as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Parts on their way into a file, written many at a time: chunks are small, and each write takes the file's lock.
struct Gather<'f> {
    fd: BorrowedFd<'f>,
    offset: u64,
    len: usize,
    blobs: Vec<Blob>,
}

/// Bytes that are gathered at most before they are written, about.
const GATHER_LEN: usize = 1 << 20;
/// Parts that are gathered at most; the kernel takes 1024.
const GATHER_PARTS: usize = 512;

impl<'f> Gather<'f> {
    fn new(fd: BorrowedFd<'f>) -> Self {
        Self { fd, offset: 0, len: 0, blobs: Vec::new() }
    }

    fn push(&mut self, offset: u64, blob: Blob) -> Result<()> {
        if self.offset + self.len as u64 != offset || self.len >= GATHER_LEN || self.blobs.len() == GATHER_PARTS {
            self.flush()?;
            self.offset = offset;
        }
        self.len += blob.len();
        self.blobs.push(blob);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let slices: Vec<IoSlice<'_>> = self.blobs.iter().map(|blob| IoSlice::new(blob)).collect();
        let mut written = match slices.len() {
            0 => return Ok(()),
            1 => 0,
            // What is not taken at once, or is interrupted, follows piece by piece.
            _ => rustix::io::pwritev(self.fd, &slices, self.offset).unwrap_or(0),
        };
        let mut at = self.offset;
        for blob in self.blobs.drain(..) {
            let skip = written.min(blob.len());
            write_at(self.fd, &blob[skip..], at + skip as u64).map_err(during("write"))?;
            written -= skip;
            at += blob.len() as u64;
        }
        self.len = 0;
        self.offset = at;
        Ok(())
    }
}

/// Fills as much of `out` as the file has; returns how much.
fn read_at(fd: impl AsFd, out: &mut [u8], offset: u64) -> rustix::io::Result<usize> {
    let mut done = 0;
    while done < out.len() {
        match rustix::io::pread(&fd, &mut out[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(len) => done += len,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Writes `bytes`, leaving out blocks of zeros: the file has none of its own yet.
fn write_sparse(fd: impl AsFd, bytes: &[u8], offset: u64) -> rustix::io::Result<()> {
    let mut at = 0;
    let mut from = 0;
    while at < bytes.len() {
        // Blocks of the file, not of the part.
        let block = SPARSE_BLOCK - (offset + at as u64) as usize % SPARSE_BLOCK;
        let end = bytes.len().min(at + block);
        if bytes[at..end].iter().all(|byte| *byte == 0) {
            write_at(&fd, &bytes[from..at], offset + from as u64)?;
            from = end;
        }
        at = end;
    }
    write_at(&fd, &bytes[from..], offset + from as u64)
}

impl Context<'_> {
    /// Does a job.
    pub(super) fn work(&self, job: Job) {
        match job {
            Job::Batch(tasks) => {
                for task in tasks {
                    if self.progress.is_cancelled() {
                        return;
                    }
                    self.restore(&task);
                }
            }
            Job::Range(large, parts) => {
                if !large.failed.load(Ordering::Relaxed)
                    && let Err(error) = self.write_range(&large, &parts)
                {
                    self.fail_large(&large, error);
                }
                self.release(&large);
            }
        }
    }

    /// Restores an entry, or reports why it could not be.
    pub(super) fn restore(&self, task: &Task) {
        let node = task.node.node();
        match self.try_restore(task, &node) {
            Ok(action) => self.done(task, action),
            Err(error) => self.report(task, error),
        }
    }

    /// Counts an entry.
    pub(super) fn done(&self, task: &Task, action: Action) {
        task.set_fate(action);
        let len = content_len(&task.node.node());
        self.progress.add(len);
        self.count(action, len, || task.path());
    }

    fn report(&self, task: &Task, error: Failed) {
        if !self.progress.is_cancelled() {
            self.progress.error(&task.path(), error.during, error.message);
        }
    }

    fn try_restore(&self, task: &Task, node: &Node<'_>) -> Result<Action> {
        if self.options.dry_run {
            return self.rehearse(task, node);
        }
        match task.plan {
            Plan::Create => {
                self.make(&task.dir, node, node.name)?;
                Ok(Action::Restored)
            }
            Plan::Replace => self.replace(task, node),
            Plan::Compare => {
                let Some(fd) = self.open_same(&task.dir, node) else { return self.replace(task, node) };
                if !self.matches(fd.as_fd(), node)? {
                    return self.replace(task, node);
                }
                self.refresh(task, fd.as_fd(), node);
                Ok(Action::Unchanged)
            }
            Plan::Refresh => {
                if let Kind::File { .. } = node.kind {
                    let Some(fd) = self.open_same(&task.dir, node) else { return self.replace(task, node) };
                    self.refresh(task, fd.as_fd(), node);
                } else {
                    self.set_special(&task.dir, node, node.name, true)?;
                }
                Ok(Action::Unchanged)
            }
            Plan::Skip => Ok(Action::Kept),
        }
    }

    /// What [`Context::try_restore`] would do.
    fn rehearse(&self, task: &Task, node: &Node<'_>) -> Result<Action> {
        Ok(match task.plan {
            Plan::Create => Action::Restored,
            Plan::Replace => {
                self.make_way(&task.dir, node.name).map_err(during("replace"))?;
                Action::Updated
            }
            Plan::Refresh => Action::Unchanged,
            Plan::Skip => Action::Kept,
            Plan::Compare => match self.open_same(&task.dir, node) {
                Some(fd) if self.matches(fd.as_fd(), node)? => Action::Unchanged,
                _ => Action::Updated,
            },
        })
    }

    /// The regular file that is there, opened to be read; `None` if it cannot be or is something else by now.
    fn open_same(&self, dir: &Dir, node: &Node<'_>) -> Option<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&dir.fd, node.name, flags, Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&fd).ok()?;
        let ours = stat.st_nlink == 1 || node.metadata.nlink > 1;
        (type_of(&stat) == file_type(&node.kind) && ours).then_some(fd)
    }

    /// Makes the entry beside what has its name and renames it over that.
    fn replace(&self, task: &Task, node: &Node<'_>) -> Result<Action> {
        let name = self.temporary_name();
        self.make(&task.dir, node, &name)?;
        self.take_name(&task.dir, &name, node.name)?;
        Ok(Action::Updated)
    }

    /// Renames `from` to `to`; removes `from` if it cannot.
    fn take_name(&self, dir: &Dir, from: &[u8], to: &[u8]) -> Result<()> {
        let rename = || rustix::fs::renameat(&dir.fd, from, &dir.fd, to);
        let result = match rename() {
            Err(Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY) => self.make_way(dir, to).and_then(|()| Ok(rename()?)),
            result => result.map_err(Into::into),
        };
        result.map_err(|error| {
            let _ = rustix::fs::unlinkat(&dir.fd, from, AtFlags::empty());
            during("replace")(error)
        })
    }

    /// Makes the entry under `name`, which must be free, with content and metadata.
    fn make(&self, dir: &Dir, node: &Node<'_>, name: &[u8]) -> Result<()> {
        let Kind::File { size, content } = node.kind else { return self.make_special(dir, node, name) };
        let fd = self.create_file(dir, name)?;
        let result = self.write_content(fd.as_fd(), size, content).and_then(|()| self.verify(fd.as_fd(), node));
        if result.is_err() {
            let _ = rustix::fs::unlinkat(&dir.fd, name, AtFlags::empty());
            return result;
        }
        self.apply_in(dir, &Subject::Open(fd.as_fd()), node, dir.inherits);
        Ok(())
    }

    fn create_file(&self, dir: &Dir, name: &[u8]) -> Result<OwnedFd> {
        let access = if self.options.verify { OFlags::RDWR } else { OFlags::WRONLY };
        let flags = access | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&dir.fd, name, flags, Mode::RUSR | Mode::WUSR).map_err(during("create"))
    }

    fn write_content(&self, fd: BorrowedFd<'_>, size: u64, content: Content<'_>) -> Result<()> {
        match content {
            Content::Empty => return Ok(()),
            Content::Inline(bytes) => self.write_part(fd, bytes, 0)?,
            _ => {
                let mut gather = Gather::new(fd);
                for part in browse::parts(self.repo, size, content) {
                    let (offset, part) = part?;
                    self.write_data(&mut gather, offset, part)?;
                }
                gather.flush()?;
            }
        }
        if self.options.sparse || has_holes(&content) {
            rustix::fs::ftruncate(fd, size).map_err(during("set the length of"))?;
        }
        Ok(())
    }

    fn write_part(&self, fd: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> Result<()> {
        let write = if self.options.sparse { write_sparse(fd, bytes, offset) } else { write_at(fd, bytes, offset) };
        write.map_err(during("write"))
    }

    /// Makes an entry that has no content of its own.
    fn make_special(&self, dir: &Dir, node: &Node<'_>, name: &[u8]) -> Result<()> {
        let kind = file_type(&node.kind);
        let made = match node.kind {
            Kind::Symlink { target } => rustix::fs::symlinkat(target, &dir.fd, name),
            Kind::BlockDevice { rdev } | Kind::CharDevice { rdev } => {
                rustix::fs::mknodat(&dir.fd, name, kind, Mode::RUSR | Mode::WUSR, rdev)
            }
            _ => rustix::fs::mknodat(&dir.fd, name, kind, Mode::RUSR | Mode::WUSR, 0),
        };
        made.map_err(during("create"))?;
        self.set_special(dir, node, name, dir.inherits)
    }

    /// Sets the metadata of an entry that cannot be opened, after making sure that it is of the right kind.
    fn set_special(&self, dir: &Dir, node: &Node<'_>, name: &[u8], prune: bool) -> Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&dir.fd, name, flags, Mode::empty()).map_err(during("open"))?;
        let stat = rustix::fs::fstat(&fd).map_err(during("open"))?;
        if type_of(&stat) != file_type(&node.kind) {
            return Err(Failed { during: "set the metadata of", message: "something else took its name".into() });
        }
        if stat.st_nlink > 1 {
            // As above.
            return Ok(());
        }
        self.apply_in(dir, &Subject::Named { fd: fd.as_fd(), dir: dir.fd.as_fd(), name }, node, prune);
        Ok(())
    }

    /// Sets the metadata of a file that was there. One with other names was found to have it already, and they may be
    /// somebody else's.
    fn refresh(&self, task: &Task, fd: BorrowedFd<'_>, node: &Node<'_>) {
        if rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_nlink == 1) {
            self.apply_in(&task.dir, &Subject::Open(fd), node, true);
        }
    }

    fn apply_in(&self, dir: &Dir, subject: &Subject<'_>, node: &Node<'_>, prune: bool) {
        for (during, message) in metadata::apply(subject, node, prune, &self.owners) {
            self.progress.error(&dir.path_of(node.name), during, message);
        }
    }

    /// Reads the file back if that was asked for.
    fn verify(&self, fd: BorrowedFd<'_>, node: &Node<'_>) -> Result<()> {
        if self.options.verify && !self.matches(fd, node)? {
            return Err(Failed { during: "verify", message: "what was written reads back differently".into() });
        }
        Ok(())
    }

    /// Whether the open file has exactly the content of `node`. Needs no blob, only their ids.
    fn matches(&self, fd: BorrowedFd<'_>, node: &Node<'_>) -> Result<bool> {
        let Kind::File { size, content } = node.kind else { return Ok(false) };
        if rustix::fs::fstat(fd).map_err(during("read"))?.st_size as u64 != size {
            return Ok(false);
        }
        if let Content::Inline(bytes) = content {
            let mut found = vec![0; bytes.len()];
            let len = read_at(fd, &mut found, 0).map_err(during("read"))?;
            return Ok(len == bytes.len() && found == bytes);
        }
        let mut buffer = Vec::new();
        for part in browse::parts(self.repo, size, content) {
            if self.progress.is_cancelled() {
                return Err(repo::Error::Cancelled.into());
            }
            let same = match part? {
                (offset, Part::Data { id, len }) => {
                    buffer.resize(len as usize, 0);
                    let read = read_at(fd, &mut buffer, offset).map_err(during("read"))?;
                    read == buffer.len() && self.repo.blob_id(BlobKind::Data, &ContentHash::of(&buffer)) == id
                }
                (offset, Part::Hole { len }) => is_zero(fd, offset, len).map_err(during("read"))?,
            };
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Starts a large file; `None` if it could not be created. The caller holds it until it calls [`Context::release`].
    pub(super) fn begin_large(&self, task: Task) -> Option<Arc<Large>> {
        let node = task.node.node();
        let Kind::File { size, .. } = node.kind else { return None };
        // Also where its name is free: it takes a while, and a run that is killed must not leave half of it there.
        let name = self.temporary_name();
        let created = self.create_file(&task.dir, &name).and_then(|fd| {
            if let Err(error) = rustix::fs::ftruncate(&fd, size) {
                let _ = rustix::fs::unlinkat(&task.dir.fd, &name[..], AtFlags::empty());
                return Err(during("set the length of")(error));
            }
            Ok(fd)
        });
        match created {
            Ok(fd) => Some(Arc::new(Large {
                task,
                fd,
                name,
                holders: AtomicUsize::new(1),
                failed: AtomicBool::new(false),
                written: AtomicU64::new(0),
            })),
            Err(error) => {
                self.report(&task, error);
                None
            }
        }
    }

    fn write_range(&self, large: &Large, parts: &[(u64, Part)]) -> Result<()> {
        let mut gather = Gather::new(large.fd.as_fd());
        for (offset, part) in parts {
            self.write_data(&mut gather, *offset, *part)?;
            if let Part::Data { len, .. } = part {
                large.written.fetch_add(u64::from(*len), Ordering::Relaxed);
                self.progress.bytes_done.fetch_add(u64::from(*len), Ordering::Relaxed);
            }
        }
        gather.flush()
    }

    /// Fetches a part and writes it, soon.
    fn write_data(&self, gather: &mut Gather<'_>, offset: u64, part: Part) -> Result<()> {
        let Part::Data { id, len } = part else { return Ok(()) };
        if self.progress.is_cancelled() {
            return Err(repo::Error::Cancelled.into());
        }
        let blob = browse::data_blob(self.repo, &id, len)?;
        if self.options.sparse { self.write_part(gather.fd, &blob, offset) } else { gather.push(offset, blob) }
    }

    /// Gives up a large file; it is removed when the last lets go of it.
    pub(super) fn fail_large(&self, large: &Large, error: impl Into<Failed>) {
        if !large.failed.swap(true, Ordering::Relaxed) {
            self.report(&large.task, error.into());
        }
    }

    /// Lets go of a large file; the last finishes it.
    pub(super) fn release(&self, large: &Large) {
        if large.holders.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let Large { task, fd, name, .. } = large;
        let node = task.node.node();
        if !large.failed.load(Ordering::Relaxed)
            && let Err(error) = self.verify(fd.as_fd(), &node)
        {
            self.fail_large(large, error);
        }
        if large.failed.load(Ordering::Relaxed) {
            let _ = rustix::fs::unlinkat(&task.dir.fd, &name[..], AtFlags::empty());
            return;
        }
        self.apply_in(&task.dir, &Subject::Open(fd.as_fd()), &node, task.dir.inherits);
        if let Err(error) = self.take_name(&task.dir, name, node.name) {
            return self.report(task, error);
        }
        // Its data was counted as it was written.
        let len = content_len(&node);
        self.progress.add(len - large.written.load(Ordering::Relaxed).min(len));
        let action = if task.plan == Plan::Create { Action::Restored } else { Action::Updated };
        task.set_fate(action);
        self.count(action, len, || task.path());
    }

    /// Makes `task` another name of an entry that was to be restored before; restores it as its own if that is impossible.
    pub(super) fn link(&self, first: &FirstName, task: &Task) {
        // What has the first name may be anything that was there if it could not be restored.
        if task.plan == Plan::Skip || !first.fate.is_done() {
            return self.restore(task);
        }
        if self.options.dry_run && task.plan == Plan::Create {
            return self.done(task, Action::Restored);
        }
        let Ok(from) = first.place.open() else { return self.restore(task) };
        let name = task.node.node().name;
        let link = |to: &[u8]| rustix::fs::linkat(&from, &first.name[..], &task.dir.fd, to, AtFlags::empty());
        if task.plan == Plan::Create {
            return match link(name) {
                Ok(()) => self.done(task, Action::Restored),
                Err(_) => self.restore(task),
            };
        }
        // Renaming a name over another of the same inode would do nothing, not even remove the first.
        let inode = |dir: &OwnedFd, name| stat(dir, name).ok().flatten().map(|stat| (stat.st_dev, stat.st_ino));
        let existing = inode(&task.dir.fd, name);
        let is_link = existing.is_some() && existing == inode(&from, &first.name);
        if self.options.dry_run {
            let stays = is_link && first.fate.was_there();
            return self.done(task, if stays { Action::Unchanged } else { Action::Updated });
        }
        if is_link {
            return self.done(task, Action::Unchanged);
        }
        let temporary = self.temporary_name();
        match link(&temporary) {
            Ok(()) => match self.take_name(&task.dir, &temporary, name) {
                Ok(()) => self.done(task, Action::Updated),
                Err(error) => self.report(task, error),
            },
            Err(_) => self.restore(task),
        }
    }

    /// A name that nothing else uses.
    fn temporary_name(&self) -> Vec<u8> {
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        format!(".bygone-{:016x}-{number}.tmp", self.random).into_bytes()
    }
}

impl Large {
    /// Its node.
    pub(super) fn node(&self) -> Node<'_> {
        self.task.node.node()
    }

    /// A job that writes `parts` and then lets go.
    pub(super) fn range(self: &Arc<Self>, parts: Vec<(u64, Part)>) -> Job {
        self.holders.fetch_add(1, Ordering::Relaxed);
        Job::Range(self.clone(), parts)
    }

    /// Whether writing has failed, so that there is no use in going on.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }
}

/// Bytes of content of `node`.
pub(super) fn content_len(node: &Node<'_>) -> u64 {
    if let Kind::File { size, .. } = node.kind { size } else { 0 }
}

/// Whether the range reads as zeros. Does not read holes.
fn is_zero(fd: BorrowedFd<'_>, offset: u64, len: u64) -> rustix::io::Result<bool> {
    let end = offset + len;
    let mut at = offset;
    let mut buffer = vec![0; 64 << 10];
    while at < end {
        at = match rustix::fs::seek(fd, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(true),
            Err(Errno::INVAL) => at,
            Err(error) => return Err(error),
        };
        if at >= end {
            break;
        }
        let wanted = (end - at).min(buffer.len() as u64) as usize;
        let read = read_at(fd, &mut buffer[..wanted], at)?;
        if read < wanted || buffer[..wanted].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += wanted as u64;
    }
    Ok(true)
}
