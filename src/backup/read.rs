//! Reading and hashing the files of one batch: runs on the pool, touches nothing but the source and the batch.

use std::io::{self, Read as _, Seek};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::chunk::{Chunker, Scale};
use crate::format::tree::{Kind, Metadata};
use crate::id::{BlobId, BlobKind, ContentHash};
use crate::progress::Progress;
use crate::repo::Repository;
use crate::source::read::{Extent, Extents};
use crate::source::{Entry, EntryKind, OpenFile};

use super::earlier::{self, Earlier, NewChunk};
use super::scan::{Batch, Item, Was};
use super::{INLINE_LEN, long};
use crate::browse::OwnedNode;

/// An entry that has to be read.
pub(super) struct ToRead {
    pub entry: Entry,
    pub path: Vec<u8>,
    pub was: Was,
    pub is_linked: bool,
    /// Its earlier version, if deltas are to be made of that.
    pub earlier: Option<OwnedNode>,
}

impl ToRead {
    /// Makes `new` what is to be read, which has taken the entry's place: other names of that one are not other names of it.
    pub(super) fn replace(&mut self, new: Entry) {
        self.entry = new;
        self.is_linked = false;
    }
}

/// An entry that was read.
pub(super) struct Done {
    pub name: Vec<u8>,
    pub metadata: Metadata,
    pub xattrs: Vec<u8>,
    pub was: Was,
    pub is_linked: bool,
    pub kind: OwnedKind,
}

/// What an entry is, with its content.
pub(super) enum OwnedKind {
    File { size: u64, content: OwnedContent },
    Other(OwnedOther),
}

/// What an entry that is not a file is.
pub(super) enum OwnedOther {
    Symlink(Vec<u8>),
    BlockDevice(u64),
    CharDevice(u64),
    Fifo,
    Socket,
}

impl OwnedOther {
    pub(super) fn as_kind(&self) -> Kind<'_> {
        match self {
            OwnedOther::Symlink(target) => Kind::Symlink { target },
            OwnedOther::BlockDevice(rdev) => Kind::BlockDevice { rdev: *rdev },
            OwnedOther::CharDevice(rdev) => Kind::CharDevice { rdev: *rdev },
            OwnedOther::Fifo => Kind::Fifo,
            OwnedOther::Socket => Kind::Socket,
        }
    }
}

/// Where a small file's content is in its batch.
pub(super) enum OwnedContent {
    Empty,
    Inline(Range<usize>),
    Whole(ContentHash, Range<usize>, Stored),
    Pieces(ContentHash, Vec<OwnedPiece>),
}

/// A piece of a small file.
pub(super) enum OwnedPiece {
    Chunk(BlobId, Range<usize>, Stored),
    Hole(u64),
}

/// The delta that stands for a chunk; `None` if it is stored plain.
type Stored = Option<Box<[u8]>>;

/// What reading needs to know.
pub(super) struct Reader {
    pub chunker: Chunker,
    pub progress: std::sync::Arc<Progress>,
    pub repo: std::sync::Arc<Repository>,
}

/// Files up to this length, in bytes, are one chunk: to cut them would cost more ids than it saves.
const WHOLE_LEN: usize = 32 << 10;
/// Times that a file which changes while it is read is read again before it is reported.
const RETRIES: usize = 1;
/// A file that is longer than the walk saw and than this is read like a long one: a batch must not grow with it.
const GROWN_LEN_MAX: u64 = 64 << 10;

/// What came of reading an entry.
#[expect(clippy::large_enum_variant, reason = "one at a time, and hardly ever the small one")]
enum Read {
    Done {
        metadata: Metadata,
        xattrs: Vec<u8>,
        kind: OwnedKind,
    },
    /// It has become too long.
    Grown,
}

impl Reader {
    /// Turns what is to be read in the batch into what was read; entries that cannot be read are reported and dropped.
    pub(super) fn process(&self, batch: &mut Batch) {
        let items = std::mem::take(&mut batch.items);
        batch.items.reserve(items.len());
        for item in items {
            match item {
                Item::ToRead(to_read) => batch.items.extend(self.read(to_read, &mut batch.content)),
                other => batch.items.push(other),
            }
        }
    }

    /// Reads an entry; once more if something else has taken its place since the walk.
    fn read(&self, mut to_read: ToRead, content: &mut Vec<u8>) -> Option<Item> {
        let start = content.len();
        let mut attempt = 0;
        let (during, error) = loop {
            let result = match to_read.entry.kind() {
                EntryKind::File { .. } => self.read_file(&mut to_read, content).map_err(|error| ("read", error)),
                _ => self.read_other(&to_read).map_err(|error| ("read the target of", error)),
            };
            let (during, error) = match result {
                Ok(Some(Read::Grown)) => return Some(Item::Grown(to_read)),
                Ok(Some(Read::Done { metadata, xattrs, kind })) => {
                    let ToRead { entry, was, is_linked, .. } = to_read;
                    let name = entry.name().to_vec();
                    return Some(Item::Done(Done { name, metadata, xattrs, was, is_linked, kind }));
                }
                // It is something else by now.
                Ok(None) if attempt < RETRIES => {
                    attempt += 1;
                    continue;
                }
                Ok(None) => ("read", io::Error::other("it is replaced again and again")),
                Err(failed) => failed,
            };
            content.truncate(start);
            if attempt == RETRIES {
                break (during, error);
            }
            attempt += 1;
            match to_read.entry.look_again() {
                Ok(Some(new)) => to_read.replace(new),
                Ok(None) => break (during, error),
                Err(error) => break (during, error),
            }
        };
        self.progress.error(&to_read.path, during, error);
        None
    }

    /// Reads what is no file: only a symbolic link has something to read.
    fn read_other(&self, to_read: &ToRead) -> io::Result<Option<Read>> {
        let entry = &to_read.entry;
        let other = match entry.kind() {
            EntryKind::Symlink => OwnedOther::Symlink(entry.link_target()?),
            EntryKind::BlockDevice { rdev } => OwnedOther::BlockDevice(rdev),
            EntryKind::CharDevice { rdev } => OwnedOther::CharDevice(rdev),
            EntryKind::Fifo => OwnedOther::Fifo,
            EntryKind::Socket => OwnedOther::Socket,
            EntryKind::File { .. } | EntryKind::Directory | EntryKind::Volume { .. } => {
                unreachable!("files are read elsewhere, and the scan handles the others itself")
            }
        };
        let xattrs = entry.xattrs(self.failed(&to_read.path));
        Ok(Some(Read::Done { metadata: *entry.metadata(), xattrs, kind: OwnedKind::Other(other) }))
    }

    /// Takes the errors of reading extended attributes.
    fn failed<'a>(&'a self, path: &'a [u8]) -> impl FnMut(io::Error) + 'a {
        move |error| self.progress.error(path, "read an extended attribute of", error)
    }

    /// Reads a file, `None` if what is to be read turned out to be none.
    fn read_file(&self, to_read: &mut ToRead, content: &mut Vec<u8>) -> io::Result<Option<Read>> {
        let start = content.len();
        for attempt in 0.. {
            content.truncate(start);
            let EntryKind::File { size: seen } = to_read.entry.kind() else { return Ok(None) };
            let Some(open) = long::open(to_read)? else { return Ok(None) };
            // The batch has room for what the walk saw.
            if open.size > seen.max(GROWN_LEN_MAX) {
                return Ok(Some(Read::Grown));
            }
            let extents = read_extents(&open, content)?;
            let is_short = (content.len() - start) as u64 != extents.iter().map(data_len).sum::<u64>();
            if is_short || open.has_changed()? {
                if attempt < RETRIES {
                    continue;
                }
                let what = "the file changed while it was read; what was read is kept";
                self.progress.error(&to_read.path, "read", what);
            }
            let mut kind = self.file(start, &extents, content);
            if let Some(earlier) = &to_read.earlier {
                self.make_deltas(&mut kind, earlier, content);
            }
            let xattrs = open.xattrs(self.failed(&to_read.path));
            return Ok(Some(Read::Done { metadata: long::metadata(&to_read.entry, &open), xattrs, kind }));
        }
        unreachable!("the loop returns")
    }

    /// Makes deltas of what is new in a file and much like its earlier version.
    fn make_deltas(&self, kind: &mut OwnedKind, earlier: &OwnedNode, content: &[u8]) {
        let OwnedKind::File { content: read, .. } = kind else { return };
        let mut chunks = Vec::new();
        let mut offset = 0;
        match read {
            OwnedContent::Whole(hash, range, delta) => {
                let id = self.repo.blob_id(BlobKind::Data, hash);
                chunks.push((NewChunk { offset, len: range.len() as u32, id }, range.clone(), delta));
            }
            OwnedContent::Pieces(_, pieces) => {
                for piece in pieces {
                    match piece {
                        OwnedPiece::Hole(len) => offset += *len,
                        OwnedPiece::Chunk(id, range, delta) => {
                            let len = range.len() as u32;
                            chunks.push((NewChunk { offset, len, id: *id }, range.clone(), delta));
                            offset += u64::from(len);
                        }
                    }
                }
            }
            OwnedContent::Empty | OwnedContent::Inline(_) => return,
        }
        let is_new: Vec<bool> = chunks.iter().map(|(chunk, ..)| !self.repo.has(&chunk.id)).collect();
        if !is_new.contains(&true) {
            return;
        }
        let Some(mut earlier) = Earlier::new(&self.repo, &earlier.node()) else { return };
        let found: Vec<NewChunk> = chunks.iter().map(|(chunk, ..)| *chunk).collect();
        let regions = earlier.align(&found, |number| is_new[number]);
        for (regions, (_, range, delta)) in regions.iter().zip(chunks) {
            *delta = earlier::encode(&self.repo, &content[range], regions);
        }
    }

    /// Hashes and cuts what was read of a file from `start` of the batch's content.
    fn file(&self, start: usize, extents: &[Extent], content: &[u8]) -> OwnedKind {
        let end = content.len();
        let has_holes = extents.iter().any(|extent| matches!(extent, Extent::Hole(_)));
        if !has_holes {
            let bytes = &content[start..];
            let size = bytes.len() as u64;
            if bytes.is_empty() {
                return OwnedKind::File { size, content: OwnedContent::Empty };
            }
            if bytes.len() <= INLINE_LEN {
                return OwnedKind::File { size, content: OwnedContent::Inline(start..end) };
            }
            let hash = ContentHash::of(bytes);
            if bytes.len() <= WHOLE_LEN {
                return OwnedKind::File { size, content: OwnedContent::Whole(hash, start..end, None) };
            }
            let scale = Scale::of(bytes);
            let mut pieces = Vec::new();
            self.cut(content, start..end, scale, 0, &mut pieces);
            if pieces.len() == 1 {
                return OwnedKind::File { size, content: OwnedContent::Whole(hash, start..end, None) };
            }
            return OwnedKind::File { size, content: OwnedContent::Pieces(hash, pieces) };
        }
        let mut hasher = blake3::Hasher::new();
        let mut pieces = Vec::new();
        let mut size = 0;
        let mut at = start;
        let scale = Scale::of(&content[start..]);
        for extent in extents {
            match extent {
                Extent::Hole(range) => {
                    let len = range.end - range.start;
                    hash_zeros(&mut hasher, len);
                    pieces.push(OwnedPiece::Hole(len));
                    size += len;
                }
                Extent::Data(_) => {
                    // A file that shrank has less than its extents said.
                    let to = end.min(at + data_len(extent) as usize);
                    hasher.update(&content[at..to]);
                    self.cut(content, at..to, scale, size, &mut pieces);
                    size += (to - at) as u64;
                    at = to;
                }
            }
        }
        let hash = ContentHash(*hasher.finalize().as_bytes());
        OwnedKind::File { size, content: OwnedContent::Pieces(hash, pieces) }
    }

    /// Cuts a range of the content that lies at `offset` of its file.
    fn cut(&self, content: &[u8], range: Range<usize>, scale: Scale, offset: u64, pieces: &mut Vec<OwnedPiece>) {
        let mut at = range.start;
        while at < range.end {
            let len = self.chunker.cut(&content[at..range.end], scale, offset + (at - range.start) as u64);
            let id = self.repo.blob_id(BlobKind::Data, &ContentHash::of(&content[at..at + len]));
            pieces.push(OwnedPiece::Chunk(id, at..at + len, None));
            at += len;
        }
    }
}

/// Feeds `len` zero bytes to a hash.
pub(super) fn hash_zeros(hasher: &mut blake3::Hasher, len: u64) {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut left = len;
    while left > 0 {
        let now = left.min(ZEROS.len() as u64);
        hasher.update(&ZEROS[..now as usize]);
        left -= now;
    }
}

fn data_len(extent: &Extent) -> u64 {
    match extent {
        Extent::Data(range) => range.end - range.start,
        Extent::Hole(_) => 0,
    }
}

/// Appends the data of a small file to `content`; less than its extents say if it shrank.
fn read_extents(open: &OpenFile, content: &mut Vec<u8>) -> io::Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut is_whole = true;
    let asked_for_holes = open.stat.blocks.saturating_mul(512) < open.size;
    for extent in Extents::new(open) {
        if let Extent::Data(range) = &extent
            && is_whole
        {
            let len = range.end - range.start;
            // Asking for holes moves the file's offset.
            if asked_for_holes {
                (&open.file).seek(io::SeekFrom::Start(range.start))?;
            }
            is_whole = (&open.file).take(len).read_to_end(content)? as u64 == len;
        }
        extents.push(extent);
    }
    Ok(extents)
}

/// Fills `out` from `offset`, or as far as the file goes; returns how far.
pub(super) fn read_up_to(file: &std::fs::File, out: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut at = 0;
    while at < out.len() {
        match file.read_at(&mut out[at..], offset + at as u64) {
            Ok(0) => break,
            Ok(len) => at += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::mem::Memory;
    use crate::repo::OpenOptions;
    use crate::source::{Event, Walk, WalkOptions};
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::sync::Arc;

    /// What is to be read of the files in `directory`, as a walk has seen them now.
    fn seen(directory: &Path) -> Vec<ToRead> {
        let options =
            WalkOptions { targets: vec![directory.as_os_str().as_bytes().to_vec()], ..WalkOptions::default() };
        let progress = Progress::new();
        let mut seen = Vec::new();
        for event in Walk::new(options, &progress).unwrap() {
            if let Event::Entry(entry) = event {
                let path = entry.name().to_vec();
                seen.push(ToRead { entry, path, was: Was::New, is_linked: true, earlier: None });
            }
        }
        seen
    }

    fn reader() -> Reader {
        let repo = Repository::init(Arc::new(Memory::new()), b"x", &OpenOptions::default()).unwrap();
        Reader { chunker: repo.chunker(), progress: Arc::new(Progress::new()), repo }
    }

    #[test]
    fn a_file_that_grew_beyond_its_batch_is_left_to_who_reads_long_ones() {
        let temp = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            fs::write(temp.path().join(name), "x").unwrap();
        }
        let seen = seen(temp.path());
        fs::write(temp.path().join("b"), vec![1; GROWN_LEN_MAX as usize + 1]).unwrap();
        fs::write(temp.path().join("c"), vec![1; GROWN_LEN_MAX as usize]).unwrap();
        let mut batch = Batch { items: seen.into_iter().map(Item::ToRead).collect(), content: Vec::new() };
        reader().process(&mut batch);
        let grown: Vec<bool> = batch.items.iter().map(|item| matches!(item, Item::Grown(_))).collect();
        assert_eq!((grown, batch.content.len() as u64), (vec![false, true, false], 1 + GROWN_LEN_MAX));
    }

    #[test]
    fn what_took_the_place_of_an_entry_is_read_and_is_no_other_name_of_it() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        fs::write(at("file"), "old").unwrap();
        std::os::unix::fs::symlink("nowhere", at("link")).unwrap();
        fs::write(at("vanishes"), "old").unwrap();
        let mut seen = seen(temp.path());
        fs::write(at("new"), "a new file").unwrap();
        fs::rename(at("new"), at("file")).unwrap();
        fs::remove_file(at("link")).unwrap();
        fs::write(at("link"), "a file now").unwrap();
        fs::remove_file(at("vanishes")).unwrap();
        let reader = reader();
        let mut content = Vec::new();
        assert!(reader.read(seen.pop().unwrap(), &mut content).is_none());
        let error = reader.progress.take_errors().remove(0);
        assert_eq!((error.path.as_slice(), error.message.as_str()), (b"vanishes".as_slice(), "it vanished meanwhile"));
        for to_read in seen {
            let Some(Item::Done(done)) = reader.read(to_read, &mut content) else { panic!("it was not read") };
            let now = fs::metadata(at(std::str::from_utf8(&done.name).unwrap())).unwrap();
            let OwnedKind::File { size: 10, content: OwnedContent::Inline(_) } = done.kind else { panic!("no file") };
            assert_eq!(done.metadata.inode, std::os::unix::fs::MetadataExt::ino(&now));
            assert!(!done.is_linked);
        }
        assert_eq!(reader.progress.error_count(), 1);
    }
}
