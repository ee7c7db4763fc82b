//! The bytes of a file: its parts in order, through the pages of a long list, and a reader over them.
//!
//! Every page must cover exactly the bytes that the entry above it says, every blob must be as long as its part. Blobs
//! are verified against their ids by the repository, so bytes read here are those that were backed up.

use std::io;

use crate::format::content::{Content, ListChild, ListPage, Part};
use crate::format::limits::BLOB_LEN_MAX;
use crate::id::{BlobId, BlobKind};
use crate::repo::{Blob, Error, Repository, Result};

enum Level {
    Parts(std::vec::IntoIter<Part>),
    Children(u8, std::vec::IntoIter<ListChild>),
}

/// A file's parts with their offsets, in order. An error ends the iteration.
pub struct Parts<'a> {
    repo: &'a Repository,
    /// Parts of a short list or of a whole file, if that is what the file has.
    short: Option<Box<dyn Iterator<Item = Result<Part>> + Send + 'a>>,
    levels: Vec<Level>,
    /// The page to read first.
    root: Option<(u8, ListChild)>,
    offset: u64,
    size: u64,
    on_page: Option<OnPage<'a>>,
    /// The page that was asked for last.
    asked: Option<BlobId>,
}

/// Called with the id and the length in bytes of each page of a list that is read.
type OnPage<'a> = Box<dyn FnMut(&BlobId, usize) + 'a>;

/// The parts of a file of `size` bytes. Inline content has none: its bytes are at hand already.
pub fn parts<'a>(repo: &'a Repository, size: u64, content: Content<'a>) -> Parts<'a> {
    let mut parts =
        Parts { repo, short: None, levels: Vec::new(), root: None, offset: 0, size, on_page: None, asked: None };
    match content {
        Content::Empty | Content::Inline(_) => parts.size = 0,
        Content::Whole(hash) => {
            let id = repo.blob_id(BlobKind::Data, &hash);
            parts.short = Some(Box::new(std::iter::once(Ok(Part::Data { id, len: size as u32 }))));
        }
        Content::Parts { parts: list, .. } => {
            parts.short =
                Some(Box::new(list.iter().map(|part| part.map_err(|error| Error::decode("a file's list", error)))));
        }
        Content::List { level, root, .. } => parts.root = Some((level, ListChild { len: size, id: root })),
    }
    parts
}

impl<'a> Parts<'a> {
    /// Tells `on_page` about each page of the list as it is read.
    pub fn with_pages(self, on_page: impl FnMut(&BlobId, usize) + 'a) -> Self {
        Self { on_page: Some(Box::new(on_page)), ..self }
    }

    /// The page of the list that was read last; after an error, the one that it is about.
    pub(crate) fn page(&self) -> Option<BlobId> {
        self.asked
    }

    fn load(&mut self, level: u8, child: ListChild) -> Result<()> {
        let object = || format!("list {}", child.id);
        self.asked = Some(child.id);
        let page = self.repo.blob(BlobKind::List, &child.id)?;
        if let Some(on_page) = &mut self.on_page {
            on_page(&child.id, page.len());
        }
        match ListPage::decode(&page, level, child.len).map_err(|error| Error::decode(object(), error))? {
            ListPage::Parts(parts) => self.levels.push(Level::Parts(parts.into_iter())),
            ListPage::Children { level, children } => {
                let below = level.checked_sub(1).ok_or_else(|| Error::Corrupt {
                    object: object(),
                    what: "a page of the lowest level must hold parts".into(),
                })?;
                self.levels.push(Level::Children(below, children.into_iter()));
            }
        }
        Ok(())
    }

    fn next_part(&mut self) -> Result<Option<Part>> {
        if let Some(short) = &mut self.short {
            return short.next().transpose();
        }
        if let Some((level, child)) = self.root.take() {
            self.load(level, child)?;
        }
        while let Some(level) = self.levels.last_mut() {
            match level {
                Level::Parts(parts) => {
                    if let Some(part) = parts.next() {
                        return Ok(Some(part));
                    }
                }
                Level::Children(below, children) => {
                    if let Some(child) = children.next() {
                        let below = *below;
                        self.load(below, child)?;
                        continue;
                    }
                }
            }
            self.levels.pop();
        }
        Ok(None)
    }
}

impl Iterator for Parts<'_> {
    type Item = Result<(u64, Part)>;

    fn next(&mut self) -> Option<Self::Item> {
        let corrupt = |what: &str| Error::Corrupt { object: "a file's content list".into(), what: what.into() };
        let result = match self.next_part() {
            Ok(Some(part)) => {
                let offset = self.offset;
                match offset.checked_add(part.len()) {
                    Some(end) if end <= self.size => {
                        self.offset = end;
                        return Some(Ok((offset, part)));
                    }
                    _ => Err(corrupt("longer than the file")),
                }
            }
            Ok(None) if self.offset == self.size => return None,
            Ok(None) => Err(corrupt("shorter than the file")),
            Err(error) => Err(error),
        };
        self.short = Some(Box::new(std::iter::empty()));
        self.offset = self.size;
        Some(result)
    }
}

/// The data blob `id`, which must have `len` bytes.
pub(crate) fn data_blob(repo: &Repository, id: &BlobId, len: u32) -> Result<Blob> {
    let blob = repo.blob(BlobKind::Data, id)?;
    if blob.len() != len as usize {
        let what = format!("{} bytes where a file needs {len}", blob.len());
        return Err(Error::Corrupt { object: format!("data blob {id}"), what });
    }
    Ok(blob)
}

/// Reads a file from its beginning to its end.
pub struct ContentReader<'a> {
    parts: Parts<'a>,
    inline: &'a [u8],
    blob: Option<(Blob, usize)>,
    /// Bytes of the hole at hand that are left.
    hole: u64,
}

impl<'a> ContentReader<'a> {
    /// A reader at the start of a file of `size` bytes.
    pub fn new(repo: &'a Repository, size: u64, content: Content<'a>) -> Self {
        let inline = if let Content::Inline(bytes) = content { bytes } else { &[] };
        Self { parts: parts(repo, size, content), inline, blob: None, hole: 0 }
    }

    /// Fills a part of `out`; 0 at the end.
    pub fn read_some(&mut self, out: &mut [u8]) -> Result<usize> {
        loop {
            if !self.inline.is_empty() {
                let len = out.len().min(self.inline.len());
                out[..len].copy_from_slice(&self.inline[..len]);
                self.inline = &self.inline[len..];
                return Ok(len);
            }
            if let Some((blob, at)) = &mut self.blob {
                let len = out.len().min(blob.len() - *at);
                if len > 0 {
                    out[..len].copy_from_slice(&blob[*at..*at + len]);
                    *at += len;
                    return Ok(len);
                }
                self.blob = None;
            }
            if self.hole > 0 {
                let len = out.len().min(usize::try_from(self.hole).unwrap_or(usize::MAX));
                out[..len].fill(0);
                self.hole -= len as u64;
                return Ok(len);
            }
            match self.parts.next().transpose()? {
                None => return Ok(0),
                Some((_, Part::Hole { len })) => self.hole = len,
                Some((_, Part::Data { id, len })) => self.blob = Some((data_blob(self.parts.repo, &id, len)?, 0)),
            }
            if out.is_empty() {
                return Ok(0);
            }
        }
    }
}

impl io::Read for ContentReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.read_some(out).map_err(io::Error::other)
    }
}

/// Writes the whole content to `out`; gives each blob as one piece. The inner error is that of `out`.
pub fn write_content(
    repo: &Repository,
    size: u64,
    content: Content<'_>,
    out: &mut dyn io::Write,
) -> Result<io::Result<()>> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    if let Content::Inline(bytes) = content {
        return Ok(out.write_all(bytes));
    }
    for part in parts(repo, size, content) {
        match part?.1 {
            Part::Data { id, len } => {
                debug_assert!(len as usize <= BLOB_LEN_MAX);
                if let Err(error) = out.write_all(&data_blob(repo, &id, len)?) {
                    return Ok(Err(error));
                }
            }
            Part::Hole { mut len } => {
                while len > 0 {
                    let now = len.min(ZEROS.len() as u64);
                    if let Err(error) = out.write_all(&ZEROS[..now as usize]) {
                        return Ok(Err(error));
                    }
                    len -= now;
                }
            }
        }
    }
    Ok(Ok(()))
}
