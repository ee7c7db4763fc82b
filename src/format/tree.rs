//! A directory as stored: nodes sorted by the bytes of their names, in one blob or, when large, in pages.
//!
//! Nodes borrow from the bytes they were decoded from, so that reading a directory allocates nothing per entry.

use crate::format::codec::{Decoder, Encode, Result};
use crate::format::content::{Content, Parts};
use crate::format::limits::*;
use crate::id::{BLOB_ID_LEN, BlobId, ContentHash};

/// A moment: seconds since 1970 (negative before) and nanoseconds within the second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds since the epoch.
    pub sec: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nsec: u32,
}

/// What a file system knows about an entry besides its name, kind and content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits with set-id and sticky: the low 12 bits of `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the inode in the source.
    pub ctime: Time,
    /// Last access, only if the backup was asked to keep it.
    pub atime: Option<Time>,
    /// Birth time, where the source's kernel gives it.
    pub btime: Option<Time>,
    /// Device number of the source file system.
    pub dev: u64,
    /// Inode number in the source.
    pub inode: u64,
    /// Hard links in the source.
    pub nlink: u32,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind<'a> {
    /// A regular file.
    File {
        /// Length in bytes.
        size: u64,
        /// Where its bytes are.
        content: Content<'a>,
    },
    /// A directory.
    Directory {
        /// Its tree.
        tree: BlobId,
        /// Number of entries below it, at any depth.
        entries: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points, verbatim.
        target: &'a [u8],
    },
    /// A block device.
    BlockDevice {
        /// Its device number.
        rdev: u64,
    },
    /// A character device.
    CharDevice {
        /// Its device number.
        rdev: u64,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// One entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Node<'a> {
    /// File name: 1 to 255 bytes, no slash, no NUL, neither `.` nor `..`. Empty only for a snapshot's root.
    pub name: &'a [u8],
    /// Owner, permissions, times, source identity.
    pub metadata: Metadata,
    /// Kind and content.
    pub kind: Kind<'a>,
    /// Extended attributes, ACLs and capabilities among them.
    pub xattrs: Xattrs<'a>,
}

/// Extended attributes as stored, sorted by name.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Xattrs<'a> {
    encoded: &'a [u8],
}

impl<'a> Xattrs<'a> {
    /// Attributes that [`Xattrs::encode`] made.
    pub fn new(encoded: &'a [u8]) -> Self {
        Self { encoded }
    }

    /// The stored form of name-value pairs; sorts them.
    pub fn encode(pairs: &mut [(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        pairs.sort();
        let mut out = Vec::new();
        let mut last: &[u8] = b"";
        for (name, value) in pairs {
            // A file system may name one twice, or not at all; the first value counts.
            if name.as_slice() == last {
                continue;
            }
            last = name;
            out.put_bytes(name);
            out.put_bytes(value);
        }
        out
    }

    /// The attributes as stored.
    pub fn encoded(&self) -> &'a [u8] {
        self.encoded
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.encoded.is_empty()
    }

    /// Name and value of each attribute.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut input = Decoder::new(self.encoded);
        std::iter::from_fn(move || {
            if input.remaining() == 0 {
                return None;
            }
            let name = input.bytes(NAME_LEN_MAX, "xattr name").ok()?;
            Some((name, input.bytes(XATTR_VALUE_LEN_MAX, "xattr value").ok()?))
        })
    }

    fn decode(input: &mut Decoder<'a>) -> Result<Self> {
        let encoded = input.bytes(XATTRS_LEN_MAX, "xattrs")?;
        let mut check = Decoder::new(encoded);
        let mut last: &[u8] = b"";
        while check.remaining() > 0 {
            let name = check.bytes(NAME_LEN_MAX, "xattr name")?;
            if name <= last || name.contains(&0) {
                return Err(check.error("xattr name"));
            }
            last = name;
            check.bytes(XATTR_VALUE_LEN_MAX, "xattr value")?;
        }
        Ok(Self { encoded })
    }
}

// Bits of a record's flags; the low three are the kind's number.
const HAS_XATTRS: u64 = 1 << 3;
const HAS_NLINK: u64 = 1 << 4;
const HAS_DEV: u64 = 1 << 5;
const HAS_BTIME: u64 = 1 << 6;
const HAS_ATIME: u64 = 1 << 7;
const CONTENT_SHIFT: u32 = 8;
const HAS_HASH: u64 = 1 << 11;
const FLAGS_ALL: u64 = (1 << 12) - 1;

/// Values of a leaf's header that its records are written relative to, to keep them short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// Device number of the nodes that do not carry their own.
    pub dev: u64,
    /// Inode number near those of the nodes.
    pub inode: u64,
    /// Second near those of the nodes.
    pub sec: i64,
}

impl Base {
    /// The base that makes a leaf starting with `metadata` short.
    pub fn near(metadata: &Metadata) -> Self {
        Self { dev: metadata.dev, inode: metadata.inode, sec: metadata.mtime.sec }
    }
}

fn put_time(out: &mut Vec<u8>, time: Time, base_sec: i64) {
    out.put_signed(time.sec.wrapping_sub(base_sec));
    out.put_varint(u64::from(time.nsec));
}

fn time(input: &mut Decoder<'_>, base_sec: i64) -> Result<Time> {
    let sec = base_sec.wrapping_add(input.signed("seconds")?);
    let nsec = input.varint_u32("nanoseconds")?;
    if nsec >= 1_000_000_000 {
        return Err(input.error("nanoseconds"));
    }
    Ok(Time { sec, nsec })
}

/// Whether `name` can be an entry's name.
pub fn name_is_valid(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= NAME_LEN_MAX
        && name != b"."
        && name != b".."
        && !name.iter().any(|b| matches!(b, 0 | b'/'))
}

impl<'a> Node<'a> {
    /// Appends the record, without its length.
    pub fn encode(&self, base: &Base, out: &mut Vec<u8>) {
        let meta = &self.metadata;
        let mut flags = match self.kind {
            Kind::File { content, .. } => {
                let (number, hash) = match content {
                    Content::Empty => (0, None),
                    Content::Inline(_) => (1, None),
                    Content::Whole(_) => (2, None),
                    Content::Parts { hash, .. } => (3, hash),
                    Content::List { hash, .. } => (4, hash),
                };
                number << CONTENT_SHIFT | if hash.is_some() { HAS_HASH } else { 0 }
            }
            Kind::Directory { .. } => 1,
            Kind::Symlink { .. } => 2,
            Kind::BlockDevice { .. } => 3,
            Kind::CharDevice { .. } => 4,
            Kind::Fifo => 5,
            Kind::Socket => 6,
        };
        let mut flag = |condition: bool, bit: u64| flags |= if condition { bit } else { 0 };
        flag(!self.xattrs.is_empty(), HAS_XATTRS);
        flag(meta.nlink != 1, HAS_NLINK);
        flag(meta.dev != base.dev, HAS_DEV);
        flag(meta.btime.is_some(), HAS_BTIME);
        flag(meta.atime.is_some(), HAS_ATIME);
        out.put_varint(flags);
        out.put_bytes(self.name);
        out.put_varint(u64::from(meta.mode));
        out.put_varint(u64::from(meta.uid));
        out.put_varint(u64::from(meta.gid));
        put_time(out, meta.mtime, base.sec);
        put_time(out, meta.ctime, meta.mtime.sec);
        if let Some(btime) = meta.btime {
            put_time(out, btime, meta.ctime.sec);
        }
        if let Some(atime) = meta.atime {
            put_time(out, atime, meta.mtime.sec);
        }
        out.put_signed(meta.inode.wrapping_sub(base.inode) as i64);
        if flags & HAS_DEV != 0 {
            out.put_varint(meta.dev);
        }
        if flags & HAS_NLINK != 0 {
            out.put_varint(u64::from(meta.nlink));
        }
        if flags & HAS_XATTRS != 0 {
            out.put_bytes(self.xattrs.encoded);
        }
        match self.kind {
            Kind::File { size, content } => {
                out.put_varint(size);
                match content {
                    Content::Empty => {}
                    Content::Inline(bytes) => out.extend_from_slice(bytes),
                    Content::Whole(hash) => out.extend_from_slice(&hash.0),
                    Content::Parts { hash, parts } => {
                        hash.iter().for_each(|hash| out.extend_from_slice(&hash.0));
                        out.put_varint(parts.count() as u64);
                        out.extend_from_slice(parts.encoded());
                    }
                    Content::List { hash, level, root, data } => {
                        hash.iter().for_each(|hash| out.extend_from_slice(&hash.0));
                        out.push(level);
                        out.extend_from_slice(&root.0);
                        out.put_varint(data);
                    }
                }
            }
            Kind::Directory { tree, entries } => {
                out.extend_from_slice(&tree.0);
                out.put_varint(entries);
            }
            Kind::Symlink { target } => out.put_bytes(target),
            Kind::BlockDevice { rdev } | Kind::CharDevice { rdev } => out.put_varint(rdev),
            Kind::Fifo | Kind::Socket => {}
        }
    }

    /// Whether a record that was decoded before has extended attributes; false for what is no record.
    pub fn has_xattrs(record: &[u8]) -> bool {
        Decoder::new(record).varint("node flags").is_ok_and(|flags| flags & HAS_XATTRS != 0)
    }

    /// Decodes one record. The name is not checked here: a leaf's nodes and a snapshot's root have different rules.
    pub fn decode(record: &'a [u8], base: &Base) -> Result<Node<'a>> {
        let mut input = Decoder::new(record);
        let input = &mut input;
        let flags = input.varint("node flags")?;
        if flags & !FLAGS_ALL != 0 {
            return Err(input.newer("node flags"));
        }
        let name = input.bytes(NAME_LEN_MAX, "node name")?;
        let mode = input.varint_u32("mode")?;
        if mode > 0o7777 {
            return Err(input.error("mode"));
        }
        let uid = input.varint_u32("uid")?;
        let gid = input.varint_u32("gid")?;
        let mtime = time(input, base.sec)?;
        let ctime = time(input, mtime.sec)?;
        let btime = if flags & HAS_BTIME != 0 { Some(time(input, ctime.sec)?) } else { None };
        let atime = if flags & HAS_ATIME != 0 { Some(time(input, mtime.sec)?) } else { None };
        let inode = base.inode.wrapping_add(input.signed("inode")? as u64);
        let dev = if flags & HAS_DEV != 0 { input.varint("device")? } else { base.dev };
        let nlink = if flags & HAS_NLINK != 0 { input.varint_u32("link count")? } else { 1 };
        let xattrs = if flags & HAS_XATTRS != 0 { Xattrs::decode(input)? } else { Xattrs::default() };
        let kind = match flags & 7 {
            0 => Self::decode_file(input, flags)?,
            1 => {
                let (tree, entries) = (BlobId(input.array("tree id")?), input.varint("entry count")?);
                if entries > ENTRIES_MAX {
                    return Err(input.error("entry count"));
                }
                Kind::Directory { tree, entries }
            }
            2 => {
                let target = input.bytes(TARGET_LEN_MAX, "link target")?;
                if target.is_empty() || target.contains(&0) {
                    return Err(input.error("link target"));
                }
                Kind::Symlink { target }
            }
            3 => Kind::BlockDevice { rdev: input.varint("device")? },
            4 => Kind::CharDevice { rdev: input.varint("device")? },
            5 => Kind::Fifo,
            6 => Kind::Socket,
            _ => return Err(input.newer("node kind")),
        };
        if flags & 7 != 0 && flags >> CONTENT_SHIFT != 0 {
            return Err(input.error("node flags"));
        }
        input.finish("node")?;
        let metadata = Metadata { mode, uid, gid, mtime, ctime, atime, btime, dev, inode, nlink };
        Ok(Node { name, metadata, kind, xattrs })
    }

    fn decode_file(input: &mut Decoder<'a>, flags: u64) -> Result<Kind<'a>> {
        let size = input.varint("size")?;
        if size > i64::MAX as u64 {
            return Err(input.error("size"));
        }
        let number = flags >> CONTENT_SHIFT & 7;
        let hash = if flags & HAS_HASH != 0 {
            if number < 3 {
                return Err(input.error("node flags"));
            }
            Some(ContentHash(input.array("content hash")?))
        } else {
            None
        };
        let content = match number {
            0 if size == 0 => Content::Empty,
            1 if (1..=INLINE_LEN_MAX as u64).contains(&size) => {
                Content::Inline(input.take(size as usize, "inline content")?)
            }
            2 if (1..=BLOB_LEN_MAX as u64).contains(&size) => Content::Whole(ContentHash(input.array("content hash")?)),
            3 if size > 0 => Content::Parts { hash, parts: Parts::decode(input, size)? },
            4 if size > 0 => {
                let level = input.u8("list level")?;
                if level > LIST_LEVEL_MAX {
                    return Err(input.error("list level"));
                }
                let root = BlobId(input.array("list id")?);
                let data = input.varint("data length")?;
                if data > size {
                    return Err(input.error("data length"));
                }
                Content::List { hash, level, root, data }
            }
            0..=4 => return Err(input.error("size")),
            _ => return Err(input.newer("content kind")),
        };
        Ok(Kind::File { size, content })
    }

    /// Inode numbers that this node and everything below it take: its entries and itself.
    pub fn ranks(&self) -> u64 {
        match self.kind {
            Kind::Directory { entries, .. } => entries + 1,
            _ => 1,
        }
    }
}

/// A tree blob, decoded.
#[derive(Clone, Debug, PartialEq)]
pub enum Tree<'a> {
    /// Nodes.
    Leaf(Leaf<'a>),
    /// The pages of a large directory, in order of their names.
    Index(Vec<Page<'a>>),
}

/// Nodes of a directory, or of one page of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Leaf<'a> {
    /// What the records are relative to.
    pub base: Base,
    /// How many nodes.
    pub count: usize,
    records: &'a [u8],
}

/// Where one page of a large directory is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Page<'a> {
    /// Name of its first node.
    pub first: &'a [u8],
    /// The page, a tree blob that is a leaf.
    pub id: BlobId,
    /// Nodes in the page.
    pub count: u64,
    /// Inode numbers of the page's nodes and of everything below them.
    pub ranks: u64,
}

const LEAF: u8 = 0;
const INDEX: u8 = 1;
/// Shortest possible record: flags, name length, name, mode, owner, group, two times, inode.
const RECORD_LEN_MIN: usize = 12;

impl<'a> Tree<'a> {
    /// Decodes a tree blob and, for a leaf, every node once, so that later reads of it cannot fail.
    pub fn decode(stored: &'a [u8]) -> Result<Tree<'a>> {
        let mut input = Decoder::new(stored);
        match input.u8("tree kind")? {
            LEAF => {
                let base =
                    Base { dev: input.varint("device")?, inode: input.varint("inode")?, sec: input.signed("seconds")? };
                let count = input.count(RECORD_LEN_MIN, "node count")?;
                let records = input.take(input.remaining(), "nodes")?;
                let leaf = Leaf { base, count, records };
                leaf.check()?;
                Ok(Tree::Leaf(leaf))
            }
            INDEX => {
                let count = input.count(BLOB_ID_LEN + 4, "page count")?;
                if count == 0 {
                    return Err(input.error("page count"));
                }
                let mut pages: Vec<Page<'a>> = Vec::with_capacity(count);
                for _ in 0..count {
                    let first = input.bytes(NAME_LEN_MAX, "page name")?;
                    if !name_is_valid(first) || pages.last().is_some_and(|last| last.first >= first) {
                        return Err(input.error("page name"));
                    }
                    let id = BlobId(input.array("page id")?);
                    let count = input.varint("node count")?;
                    let ranks = input.varint("rank count")?;
                    if count == 0 || ranks < count || ranks > ENTRIES_MAX {
                        return Err(input.error("node count"));
                    }
                    pages.push(Page { first, id, count, ranks });
                }
                input.finish("tree index")?;
                Ok(Tree::Index(pages))
            }
            _ => Err(input.newer("tree kind")),
        }
    }

    /// The stored form of a large directory's pages.
    pub fn encode_index<'p>(pages: impl ExactSizeIterator<Item = Page<'p>>) -> Vec<u8> {
        let mut out = vec![INDEX];
        out.put_varint(pages.len() as u64);
        for page in pages {
            out.put_bytes(page.first);
            out.extend_from_slice(&page.id.0);
            out.put_varint(page.count);
            out.put_varint(page.ranks);
        }
        out
    }
}

impl<'a> Leaf<'a> {
    /// Each node's record in order, as a range of bytes within the tree blob that [`Tree::decode`] was given.
    pub fn records(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut input = Decoder::new(self.records);
        (0..self.count).map_while(move |_| input.bytes(usize::MAX, "node").ok())
    }

    /// The nodes in order.
    pub fn nodes(&self) -> impl Iterator<Item = Node<'a>> + use<'a> {
        let base = self.base;
        self.records().map_while(move |record| Node::decode(record, &base).ok())
    }

    /// Checks every record: framing, fields, names valid and strictly ascending.
    fn check(&self) -> Result<()> {
        let mut input = Decoder::new(self.records);
        let mut last: &[u8] = b"";
        for _ in 0..self.count {
            let record = input.bytes(usize::MAX, "node")?;
            let node = Node::decode(record, &self.base)?;
            if !name_is_valid(node.name) || node.name <= last {
                return Err(input.error("node name"));
            }
            last = node.name;
        }
        input.finish("tree leaf")
    }
}

/// Builds the stored form of a leaf node by node.
pub struct LeafBuilder {
    base: Base,
    count: u64,
    ranks: u64,
    records: Vec<u8>,
    scratch: Vec<u8>,
    first: Vec<u8>,
}

impl LeafBuilder {
    /// An empty leaf.
    pub fn new() -> Self {
        Self { base: Base::default(), count: 0, ranks: 0, records: Vec::new(), scratch: Vec::new(), first: Vec::new() }
    }

    /// Appends a node; names must come in ascending order.
    pub fn push(&mut self, node: &Node<'_>) {
        if self.count == 0 {
            self.base = Base::near(&node.metadata);
            self.first = node.name.to_vec();
        }
        self.scratch.clear();
        node.encode(&self.base, &mut self.scratch);
        self.records.put_bytes(&self.scratch);
        self.count += 1;
        self.ranks = self.ranks.saturating_add(node.ranks());
    }

    /// Bytes of the records so far.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether no node was pushed.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Nodes so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Inode numbers that the nodes so far take.
    pub fn ranks(&self) -> u64 {
        self.ranks
    }

    /// Name of the first node.
    pub fn first(&self) -> &[u8] {
        &self.first
    }

    /// The leaf as stored; the builder is empty afterwards.
    pub fn finish(&mut self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.records.len() + 32);
        out.push(LEAF);
        out.put_varint(self.base.dev);
        out.put_varint(self.base.inode);
        out.put_signed(self.base.sec);
        out.put_varint(self.count);
        out.extend_from_slice(&self.records);
        self.records.clear();
        self.count = 0;
        self.ranks = 0;
        out
    }
}

impl Default for LeafBuilder {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::content::Part;

    fn sample() -> Vec<u8> {
        let meta = Metadata {
            mode: 0o4755,
            uid: 1000,
            gid: 7,
            mtime: Time { sec: -5, nsec: 999_999_999 },
            ctime: Time { sec: 1 << 33, nsec: 1 },
            atime: Some(Time::default()),
            btime: Some(Time { sec: 3, nsec: 4 }),
            dev: 2049,
            inode: u64::MAX,
            nlink: 3,
        };
        let xattrs = Xattrs::encode(&mut [(b"user.b".to_vec(), vec![0; 65536]), (b"user.a".to_vec(), b"v".to_vec())]);
        let mut parts = Vec::new();
        Part::Data { id: BlobId([9; BLOB_ID_LEN]), len: 10 }.encode(&mut parts);
        Part::Hole { len: 90 }.encode(&mut parts);
        let mut leaf = LeafBuilder::new();
        let node = |name, kind| Node { name, metadata: meta, kind, xattrs: Xattrs::default() };
        leaf.push(&Node { xattrs: Xattrs::new(&xattrs), ..node(b"a".as_slice(), Kind::Fifo) });
        leaf.push(&node(b"b", Kind::File { size: 0, content: Content::Empty }));
        leaf.push(&node(b"c", Kind::File { size: 3, content: Content::Inline(b"xyz") }));
        leaf.push(&node(b"d", Kind::File { size: 3, content: Content::Whole(ContentHash::of(b"xyz")) }));
        let content = Content::Parts { hash: Some(ContentHash([1; 32])), parts: Parts::new(2, &parts) };
        leaf.push(&node(b"e", Kind::File { size: 100, content }));
        let content = Content::List { hash: None, level: 2, root: BlobId([3; BLOB_ID_LEN]), data: 1 << 39 };
        leaf.push(&node(b"f", Kind::File { size: 1 << 40, content }));
        leaf.push(&node(b"g", Kind::Directory { tree: BlobId([4; BLOB_ID_LEN]), entries: 5 }));
        leaf.push(&node(b"h\xff\n", Kind::Symlink { target: b"../x" }));
        leaf.push(&node(b"i", Kind::BlockDevice { rdev: 77 }));
        leaf.push(&node(b"j", Kind::CharDevice { rdev: 78 }));
        leaf.push(&Node { metadata: Metadata { dev: 1, ..meta }, ..node(b"k".as_slice(), Kind::Socket) });
        assert_eq!(leaf.ranks(), 16);
        leaf.finish()
    }

    #[test]
    fn a_leaf_survives_a_round_trip() {
        let stored = sample();
        let Ok(Tree::Leaf(leaf)) = Tree::decode(&stored) else { panic!("not a leaf") };
        let mut again = LeafBuilder::new();
        leaf.nodes().for_each(|node| again.push(&node));
        assert_eq!(leaf.count, 11);
        assert_eq!(again.finish(), stored);
    }

    #[test]
    fn unsorted_and_unsafe_names_are_refused() {
        for names in [[b"b".as_slice(), b"a"], [b"a", b"a"], [b"..", b"x"], [b".", b"x"], [b"a/b", b"x"], [b"", b"x"]] {
            let mut leaf = LeafBuilder::new();
            for name in names {
                leaf.push(&Node { name, metadata: Metadata::default(), kind: Kind::Fifo, xattrs: Xattrs::default() });
            }
            assert!(Tree::decode(&leaf.finish()).is_err(), "{names:?}");
        }
    }

    #[test]
    fn an_index_without_pages_or_with_too_many_entries_is_refused() {
        let page = |ranks| Page { first: b"a", id: BlobId([1; BLOB_ID_LEN]), count: 1, ranks };
        assert!(Tree::decode(&Tree::encode_index([].into_iter())).is_err());
        assert!(Tree::decode(&Tree::encode_index([page(ENTRIES_MAX)].into_iter())).is_ok());
        assert!(Tree::decode(&Tree::encode_index([page(ENTRIES_MAX + 1)].into_iter())).is_err());
        for (entries, holds) in [(ENTRIES_MAX, true), (ENTRIES_MAX + 1, false)] {
            let mut leaf = LeafBuilder::new();
            let kind = Kind::Directory { tree: BlobId([1; BLOB_ID_LEN]), entries };
            leaf.push(&Node { name: b"d", metadata: Metadata::default(), kind, xattrs: Xattrs::default() });
            assert_eq!(Tree::decode(&leaf.finish()).is_ok(), holds, "{entries}");
        }
    }

    #[test]
    fn what_only_a_later_version_knows_is_told_from_damage() {
        // Flags, name, mode, owner, group, two times, inode, and what depends on the kind.
        let record = |flags: u64, rest: &[u8]| {
            let mut out = Vec::new();
            out.put_varint(flags);
            [&out[..], &[1, b'n', 0, 0, 0, 0, 0, 0, 0, 0], rest].concat()
        };
        let newer = |record: &[u8]| Node::decode(record, &Base::default()).map(|_| ()).map_err(|error| error.newer);
        assert_eq!(newer(&record(5, b"")), Ok(()));
        assert_eq!(newer(&record(7, b"")), Err(true), "a kind of node");
        assert_eq!(newer(&record(5 | 1 << 12, b"")), Err(true), "a flag");
        assert_eq!(newer(&record(5 << CONTENT_SHIFT, &[1])), Err(true), "a kind of content");
        assert_eq!(newer(&record(0, &[1])), Err(false), "empty content of one byte");
        assert_eq!(newer(&record(5, b"x")), Err(false), "a byte left over");
        assert!(Tree::decode(&[2, 0]).is_err_and(|error| error.newer));
    }

    #[test]
    fn no_mutation_of_a_leaf_panics() {
        let stored = sample();
        let stored = [&stored[..200], &stored[stored.len() - 400..]].concat();
        for at in 0..stored.len() {
            for flip in [1u8, 0x80, 0xff, 0x7f] {
                let mut bad = stored.clone();
                bad[at] ^= flip;
                let _ = Tree::decode(&bad);
            }
            let _ = Tree::decode(&stored[..at]);
        }
    }
}
