//! The file system over a repository in memory.

use super::*;
use crate::backend::mem::Memory;
use crate::format::content::{ListChild, ListPage, Part, Parts};
use crate::format::tree::{LeafBuilder, Page as TreePage, Tree, Xattrs};
use crate::pool::Pool;
use crate::repo::OpenOptions;
use crate::repo::writer::{WriteOptions, Writer};
use jiff::tz::TimeZone;

/// A repository in memory, and blobs not stored yet.
pub(super) struct Store {
    repo: Arc<Repository>,
    pending: Vec<(BlobKind, BlobId, Vec<u8>)>,
}

impl Store {
    pub fn new() -> Self {
        let repo = Repository::init(Arc::new(Memory::new()), b"p", &OpenOptions::default()).unwrap();
        Self { repo, pending: Vec::new() }
    }

    pub fn put(&mut self, kind: BlobKind, bytes: &[u8]) -> BlobId {
        let id = self.repo.blob_id(kind, &ContentHash::of(bytes));
        self.pending.push((kind, id, bytes.to_vec()));
        id
    }

    /// Has a blob missing from the repository.
    fn lose(&mut self, id: BlobId) {
        self.pending.retain(|(_, pending, _)| *pending != id);
    }

    /// Stores what is pending.
    pub fn flush(&mut self) -> Arc<Repository> {
        let pool = Arc::new(Pool::new("test", 1).unwrap());
        let mut writer = Writer::new(self.repo.clone(), pool, WriteOptions::default()).unwrap();
        for (kind, id, bytes) in self.pending.drain(..) {
            writer.store(kind, id, &bytes).unwrap();
        }
        writer.finish().unwrap();
        self.repo.clone()
    }

    /// Stores a snapshot of `root`, made `sec` seconds after 1970.
    fn commit(&mut self, sec: i64, root: Kind<'_>) -> ObjectId {
        self.flush();
        let mut snapshot = Snapshot::default();
        snapshot.time.sec = sec;
        let metadata = Metadata { mode: 0o755, nlink: 1, ..Metadata::default() };
        snapshot.set_root(&Node { name: b"", metadata, kind: root, xattrs: Xattrs::default() });
        self.repo.put_snapshot(&snapshot).unwrap()
    }

    /// The usual views; a snapshot made 1 second after 1970 is `times/1`.
    fn open(&self) -> Vfs {
        let paths: Vec<String> = ["again/%T", "times/%T"].map(String::from).to_vec();
        let templates = Templates::new(&paths, "%s", TimeZone::UTC).unwrap();
        Vfs::new(self.repo.clone(), Options::new(View::Snapshots(templates))).unwrap()
    }

    fn subtree(&self, snapshot: ObjectId, path: &[&[u8]]) -> Result<Vfs> {
        let path = path.iter().map(|name| name.to_vec()).collect();
        Vfs::new(self.repo.clone(), Options::new(View::Subtree { snapshot, path }))
    }

    /// The repository as another process opens it: nothing in memory.
    fn reopen(&mut self) {
        self.repo = Repository::open(self.repo.backend().clone(), b"p", &OpenOptions::default()).unwrap();
    }
}

fn node<'a>(name: &'a [u8], kind: Kind<'static>) -> Node<'a> {
    let metadata = Metadata { mode: 0o644, nlink: 1, ..Metadata::default() };
    Node { name, metadata, kind, xattrs: Xattrs::default() }
}

fn inline<'a>(name: &'a [u8], bytes: &'static [u8]) -> Node<'a> {
    node(name, Kind::File { size: bytes.len() as u64, content: Content::Inline(bytes) })
}

fn leaf(store: &mut Store, nodes: &[Node<'_>]) -> Kind<'static> {
    let mut builder = LeafBuilder::new();
    nodes.iter().for_each(|node| builder.push(node));
    let entries = builder.ranks();
    Kind::Directory { tree: store.put(BlobKind::Tree, &builder.finish()), entries }
}

fn walk(vfs: &Vfs, path: &str) -> Result<Attr> {
    let mut attr = vfs.attr(ROOT, Wait::Yes)?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        attr = vfs.lookup(attr.inode, name.as_bytes(), Wait::Yes)?;
    }
    Ok(attr)
}

/// All entries, `at_once` with each call.
fn list(vfs: &Vfs, number: u64, at_once: usize) -> Vec<(String, u64)> {
    let (mut all, mut offset) = (Vec::new(), 0);
    loop {
        let before = all.len();
        vfs.list(number, offset, false, Wait::Yes, &mut |listed| {
            if all.len() - before == at_once {
                return true;
            }
            offset = listed.next;
            all.push((String::from_utf8_lossy(listed.name).into_owned(), listed.attr.inode));
            false
        })
        .unwrap();
        if all.len() == before {
            return all;
        }
    }
}

fn read(vfs: &Vfs, number: u64, offset: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0xee; len];
    let got = vfs.read(number, offset, &mut out, Wait::Yes).unwrap();
    out.truncate(got);
    out
}

#[test]
fn every_number_leads_back_to_its_node_without_a_lookup() {
    let mut store = Store::new();
    let deep = leaf(&mut store, &[inline(b"x", b"1"), inline(b"y", b"22")]);
    let middle = leaf(&mut store, &[node(b"deep", deep), inline(b"z", b"333")]);
    let empty = leaf(&mut store, &[]);
    let root = leaf(&mut store, &[inline(b"a", b"4444"), node(b"e", empty), node(b"m", middle), inline(b"n", b"5")]);
    store.commit(1, root);
    let vfs = store.open();
    let mut ranks = Vec::new();
    for path in ["", "a", "e", "m", "m/deep", "m/deep/x", "m/deep/y", "m/z", "n"] {
        let attr = walk(&vfs, &format!("times/1/{path}")).unwrap();
        ranks.push(attr.inode as u32);
        let fresh = store.open();
        let again = fresh.attr(attr.inode, Wait::Yes).unwrap();
        assert_eq!(Attr { lasting: true, ..attr }, again, "{path}");
        if attr.kind == FileKind::File {
            assert_eq!(read(&fresh, attr.inode, 0, 10).len() as u64, attr.size);
        }
    }
    assert_eq!(ranks, (0..9).collect::<Vec<u32>>(), "numbers are places in a preorder walk");
    let other = walk(&vfs, "again/1/a").unwrap();
    assert_ne!(other.inode, walk(&vfs, "times/1/a").unwrap().inode, "the same snapshot in another view");
    assert!(matches!(walk(&vfs, "times/1/q"), Err(Error::NotFound)));
    assert!(matches!(walk(&vfs, "times/1/a/q"), Err(Error::NotDirectory)));
    assert!(matches!(vfs.attr(other.inode + 100, Wait::Yes), Err(Error::Stale)));
    assert!(matches!(vfs.attr(1 << 33, Wait::Yes), Err(Error::Stale)));
}

/// A directory in pages of `page_len` entries, every 10th entry a directory of two.
fn paged(store: &mut Store, count: usize, page_len: usize) -> Kind<'static> {
    let below = leaf(store, &[inline(b"1", b"one"), inline(b"2", b"two")]);
    let names: Vec<String> = (0..count).map(|n| format!("{n:07}")).collect();
    let mut pages = Vec::new();
    let mut entries = 0;
    for page in names.chunks(page_len) {
        let mut builder = LeafBuilder::new();
        for name in page {
            let directory = name.ends_with('0');
            builder.push(&if directory { node(name.as_bytes(), below) } else { inline(name.as_bytes(), b"x") });
        }
        let (count, ranks, first) = (builder.count(), builder.ranks(), builder.first().to_vec());
        entries += ranks;
        pages.push((first, store.put(BlobKind::Tree, &builder.finish()), count, ranks));
    }
    let pages = pages.iter().map(|(first, id, count, ranks)| TreePage { first, id: *id, count: *count, ranks: *ranks });
    Kind::Directory { tree: store.put(BlobKind::Tree, &Tree::encode_index(pages)), entries }
}

#[test]
fn a_large_directory_lists_completely_from_every_offset() {
    let mut store = Store::new();
    let root = paged(&mut store, 1005, 100);
    let id = store.commit(1, root);
    let vfs = store.subtree(id, &[]).unwrap();
    let all = list(&vfs, ROOT, usize::MAX);
    assert_eq!(all.len(), 1007);
    assert_eq!((all[0].0.as_str(), all[0].1, all[1].0.as_str()), (".", ROOT, ".."));
    assert!(all[2..].iter().enumerate().all(|(n, (name, _))| *name == format!("{n:07}")));
    for at_once in [1, 7, 100, 101] {
        assert_eq!(list(&vfs, ROOT, at_once), all);
    }
    for (name, inode) in &all[2..] {
        assert_eq!(vfs.lookup(ROOT, name.as_bytes(), Wait::Yes).unwrap().inode, *inode);
        assert_eq!(vfs.attr(*inode, Wait::Yes).unwrap().inode, *inode);
    }
    let below = walk(&vfs, "0000990/2").unwrap();
    assert_eq!(read(&store.subtree(id, &[]).unwrap(), below.inode, 0, 9), b"two");
    for absent in ["", "0", "0000100x", "9"] {
        assert!(matches!(vfs.lookup(ROOT, absent.as_bytes(), Wait::Yes), Err(Error::NotFound)));
    }
}

#[test]
fn a_neighbour_is_found_without_a_descent_and_is_the_same_that_a_descent_finds() {
    let mut store = Store::new();
    let deep = leaf(&mut store, &[inline(b"x", b"1"), inline(b"y", b"22")]);
    let middle = leaf(&mut store, &[node(b"deep", deep), inline(b"z", b"333")]);
    let large = paged(&mut store, 95, 10);
    let root = leaf(&mut store, &[inline(b"a", b"4444"), node(b"l", large), node(b"m", middle), inline(b"n", b"5")]);
    store.commit(1, root);
    let vfs = store.open();
    let top = walk(&vfs, "times/1").unwrap().inode;
    let other = walk(&vfs, "again/1").unwrap().inode;
    // a, l with 95 entries of which 10 are directories of two, m, deep, x, y, z, n.
    let ranks = 1..=1 + 1 + 95 + 2 * 10 + 6;
    let expected: Vec<Attr> = ranks.clone().map(|rank| store.open().attr(top + rank, Wait::Yes).unwrap()).collect();
    assert_eq!(expected.last().map(|last| last.size), Some(1), "{expected:?}");
    let remembers = |vfs: &Vfs, rank: u64| {
        let Inode::Node(at) = Inode::from_number(top + rank) else { panic!("{rank}") };
        vfs.recent.find(at).is_some()
    };
    let remembered = |rank| remembers(&vfs, rank);
    // In order, backwards, and in strides that leave every directory and come back to it.
    let strides = (0..ranks.clone().count()).map(|n| n * 37 % ranks.clone().count());
    for index in (0..expected.len()).chain((0..expected.len()).rev()).chain(strides) {
        let rank = index as u64 + 1;
        assert_eq!(vfs.attr(top + rank, Wait::Yes).unwrap(), expected[index], "{rank}");
        assert_eq!(vfs.attr(other + rank, Wait::Yes).unwrap().size, expected[index].size, "another place, {rank}");
        assert!(remembered(rank), "{rank}");
    }
    let last = expected.len() as u64;
    vfs.attr(top + last, Wait::Yes).unwrap();
    assert!(remembered(1) && remembered(last - 6), "siblings of what was found last");
    assert!(!remembered(0) && !remembered(last + 1));
    let fresh = store.open();
    fresh.attr(top + last, Wait::Yes).unwrap();
    assert!(remembers(&fresh, 1) && !remembers(&fresh, last - 1), "what lies in the directory beside it");
}

#[test]
fn an_unreadable_page_is_an_error_and_not_the_end_of_the_listing() {
    let mut store = Store::new();
    let root = paged(&mut store, 30, 10);
    let page = store.pending[2].1;
    store.lose(page);
    let id = store.commit(1, root);
    let vfs = store.subtree(id, &[]).unwrap();
    let mut offset = 0;
    let mut names = 0;
    let result = loop {
        let before = names;
        let result = vfs.list(ROOT, offset, false, Wait::Yes, &mut |listed| {
            offset = listed.next;
            names += 1;
            false
        });
        if result.is_err() || names == before {
            break result;
        }
    };
    assert!(matches!(result, Err(Error::Repository(_))));
    assert_eq!(names, 12, "the first page, `.` and `..`");
    assert!(matches!(vfs.lookup(ROOT, b"0000015", Wait::Yes), Err(Error::Repository(_))), "not `NotFound`");
}

#[test]
fn reads_join_extents_fill_holes_and_end_at_the_size() {
    let mut store = Store::new();
    let data: Vec<u8> = (0..100u8).collect();
    let first = store.put(BlobKind::Data, &data[..60]);
    let second = store.put(BlobKind::Data, &data[60..]);
    let parts = [
        Part::Data { id: first, len: 60 },
        Part::Hole { len: 1000 },
        Part::Data { id: second, len: 40 },
        Part::Hole { len: 1 << 40 },
    ];
    let expected = [&data[..60], &[0; 1000], &data[60..], &[0; 200]].concat();
    let size: u64 = parts.iter().map(Part::len).sum();
    let mut encoded = Vec::new();
    parts.iter().for_each(|part| part.encode(&mut encoded));
    let encoded: &'static [u8] = encoded.leak();
    let short = Content::Parts { hash: None, parts: Parts::new(4, encoded) };
    let len = |parts: &[Part]| parts.iter().map(Part::len).sum();
    let mut broken = Vec::new();
    [parts[0], parts[1], Part::Data { id: BlobId([9; 20]), len: 40 }].iter().for_each(|part| part.encode(&mut broken));
    let broken: &'static [u8] = broken.leak();
    let broken = Kind::File { size: 1100, content: Content::Parts { hash: None, parts: Parts::new(3, broken) } };
    let children = [&parts[..1], &parts[1..]]
        .map(|p| ListChild { len: len(p), id: store.put(BlobKind::List, &ListPage::Parts(p.to_vec()).encode()) });
    let root = store.put(BlobKind::List, &ListPage::Children { level: 1, children: children.to_vec() }.encode());
    let long = Content::List { hash: None, level: 1, root, data: 100 };
    let nodes = [short, long].map(|content| Kind::File { size, content });
    let root = leaf(&mut store, &[node(b"broken", broken), node(b"long", nodes[1]), node(b"short", nodes[0])]);
    let id = store.commit(1, root);
    let vfs = store.subtree(id, &[]).unwrap();
    for name in ["long", "short"] {
        let number = walk(&vfs, name).unwrap().inode;
        for offset in [0, 1, 59, 60, 61, 1000, 1059, 1060, 1099, 1100] {
            for len in [0, 1, 2, 100, 200] {
                assert_eq!(
                    read(&vfs, number, offset, len),
                    expected[offset as usize..][..len],
                    "{name} {offset} {len}"
                );
            }
        }
        assert_eq!(read(&vfs, number, size - 3, 10), [0; 3]);
        assert_eq!((read(&vfs, number, size, 10).len(), read(&vfs, number, u64::MAX, 10).len()), (0, 0));
        let seek = |offset, what| vfs.seek(number, offset, what, Wait::Yes).ok();
        assert_eq!(
            [0, 59, 60, 1060, 1100].map(|at| seek(at, Seek::Data)),
            [Some(0), Some(59), Some(1060), Some(1060), None]
        );
        assert_eq!([0, 60, 1060].map(|at| seek(at, Seek::Hole)), [Some(60), Some(60), Some(1100)]);
        assert_eq!(seek(size, Seek::Hole), None);
    }
    for name in ["long", "short"] {
        assert_eq!(walk(&vfs, name).unwrap().blocks, 8, "100 bytes are stored");
    }
    let number = walk(&vfs, "broken").unwrap().inode;
    let mut out = [0; 2000];
    assert!(matches!(vfs.read(number, 0, &mut out, Wait::Yes), Err(Error::Repository(_))), "never short or zero");
    assert_eq!(read(&vfs, number, 0, 1000), expected[..1000]);
}

#[test]
fn names_of_one_file_share_its_number_while_it_is_in_use() {
    let mut store = Store::new();
    let metadata = Metadata { mode: 0o600, nlink: 3, inode: 77, dev: 5, ..Metadata::default() };
    let link = |name| Node { metadata, ..inline(name, b"same") };
    let below = leaf(&mut store, &[link(b"c")]);
    let root = leaf(&mut store, &[link(b"a"), link(b"b"), node(b"d", below), inline(b"e", b"5")]);
    store.commit(1, root);
    let vfs = store.open();
    let first = walk(&vfs, "times/1/a").unwrap();
    assert_eq!((first.nlink, walk(&vfs, "times/1/d/c").unwrap().inode), (3, first.inode));
    assert_ne!(walk(&vfs, "again/1/a").unwrap().inode, first.inode);
    assert_eq!(read(&vfs, first.inode, 0, 9), b"same");
    assert_eq!(vfs.attr(first.inode, Wait::Yes).unwrap(), first);
    vfs.forget(first.inode, 1);
    assert!(vfs.attr(first.inode, Wait::Yes).is_ok());
    vfs.forget(first.inode, 1);
    assert!(matches!(vfs.attr(first.inode, Wait::Yes), Err(Error::Stale)));
    let root = walk(&vfs, "times/1").unwrap().inode;
    vfs.list(root, 0, true, Wait::Yes, &mut |_| false).unwrap();
    assert!(vfs.attr(first.inode, Wait::Yes).is_ok(), "a listing with lookups counts");
    vfs.forget(first.inode, 2);
    assert!(matches!(vfs.attr(first.inode, Wait::Yes), Err(Error::Stale)));
}

#[test]
fn attributes_are_exact_and_only_stored_ones_are_listed() {
    let mut store = Store::new();
    let xattrs: &'static [u8] =
        Xattrs::encode(&mut [(b"user.b".to_vec(), b"\0v".to_vec()), (b"security.x".to_vec(), vec![])]).leak();
    let mtime = Time { sec: -5, nsec: 999_999_999 };
    let ctime = Time { sec: 1 << 34, nsec: 1 };
    let metadata = Metadata { mode: 0o6751, uid: 1000, gid: 7, mtime, ctime, nlink: 1, ..Metadata::default() };
    let file = Node { metadata, xattrs: Xattrs::new(xattrs), ..inline(b"f", b"abc") };
    let atime = Time { sec: 3, nsec: 4 };
    let device = Node {
        metadata: Metadata { atime: Some(atime), ..metadata },
        ..node(b"dev", Kind::CharDevice { rdev: 0x801 })
    };
    let link = node(b"l", Kind::Symlink { target: b"../\xff x" });
    let root = leaf(&mut store, &[device, file, link]);
    let id = store.commit(1, root);
    let mut vfs = store.subtree(id, &[]).unwrap();
    let attr = walk(&vfs, "f").unwrap();
    assert_eq!((attr.mode, attr.uid, attr.gid, attr.nlink, attr.size, attr.blocks), (0o6751, 1000, 7, 1, 3, 8));
    assert_eq!((attr.atime, attr.mtime, attr.ctime), (mtime, mtime, ctime));
    let char_device = walk(&vfs, "dev").unwrap();
    assert_eq!((char_device.kind, char_device.rdev, char_device.atime), (FileKind::CharDevice, 0x801, atime));
    assert_eq!(vfs.link_target(walk(&vfs, "l").unwrap().inode, Wait::Yes).unwrap(), b"../\xff x");
    assert_eq!(walk(&vfs, "l").unwrap().size, 6);
    assert_eq!(vfs.xattr_names(attr.inode, Wait::Yes).unwrap(), b"security.x\0user.b\0");
    assert_eq!(vfs.xattr(attr.inode, b"user.b", Wait::Yes).unwrap(), b"\0v");
    assert!(matches!(vfs.xattr(attr.inode, b"user.c", Wait::Yes), Err(Error::NoAttribute)));
    let hash = vfs.xattr(attr.inode, HASH_XATTR, Wait::Yes).unwrap();
    assert_eq!(hash, ContentHash::of(b"abc").to_hex().into_bytes());
    assert!(matches!(vfs.xattr(char_device.inode, HASH_XATTR, Wait::Yes), Err(Error::NoAttribute)));
    vfs.options.owner = Some((0, 0));
    let attr = walk(&vfs, "f").unwrap();
    assert_eq!((attr.uid, attr.gid), (0, 0));
}

#[test]
fn a_subtree_is_shown_as_the_root() {
    let mut store = Store::new();
    let nova = leaf(&mut store, &[inline(b"nova.conf", b"[DEFAULT]")]);
    let etc = leaf(&mut store, &[node(b"nova", nova)]);
    let root = leaf(&mut store, &[node(b"etc", etc), inline(b"f", b"x")]);
    let id = store.commit(1, root);
    let vfs = store.subtree(id, &[b"etc", b"nova"]).unwrap();
    assert_eq!(vfs.attr(ROOT, Wait::Yes).unwrap().inode, ROOT);
    let file = walk(&vfs, "nova.conf").unwrap();
    assert_eq!(read(&vfs, file.inode, 1, 7), b"DEFAULT");
    assert!(!vfs.is_stale(ROOT));
    assert!(matches!(store.subtree(id, &[b"etc", b"x"]), Err(Error::NotFound)));
    assert!(matches!(store.subtree(id, &[b"f"]), Err(Error::NotDirectory)));
}

#[test]
fn what_is_not_in_memory_is_not_waited_for_unless_asked() {
    let mut store = Store::new();
    let below = leaf(&mut store, &[inline(b"x", b"1")]);
    let root = leaf(&mut store, &[node(b"d", below)]);
    store.commit(1, root);
    store.reopen();
    let vfs = store.open();
    let root = walk(&vfs, "times/1").unwrap().inode;
    assert!(matches!(vfs.lookup(root, b"d", Wait::No), Err(Error::WouldBlock)));
    let d = vfs.lookup(root, b"d", Wait::Yes).unwrap().inode;
    assert!(vfs.lookup(root, b"d", Wait::No).is_ok());
    let mut none = |_: Listed<'_>| false;
    assert!(vfs.list(d, 0, false, Wait::No, &mut none).is_ok(), "its blob was decoded along with the other");
}

#[test]
fn a_directory_whose_counts_do_not_add_up_is_an_error() {
    let mut store = Store::new();
    let Kind::Directory { tree, .. } = leaf(&mut store, &[inline(b"x", b"1")]) else { unreachable!() };
    let honest = node(b"c", Kind::Directory { tree, entries: 1 });
    let lying = node(b"d", Kind::Directory { tree, entries: 2 });
    let root = leaf(&mut store, &[honest, lying]);
    store.commit(1, root);
    let vfs = store.open();
    assert!(walk(&vfs, "times/1/d").is_ok());
    assert!(matches!(walk(&vfs, "times/1/d/x"), Err(Error::Repository(_))));
    assert!(walk(&vfs, "times/1/c/x").is_ok());
    assert!(matches!(walk(&vfs, "times/1/d/x"), Err(Error::Repository(_))), "nor once its entries are in memory");
}

#[test]
fn an_empty_repository_shows_its_views() {
    let mut store = Store::new();
    let vfs = store.open();
    assert_eq!(walk(&vfs, "times").unwrap().kind, FileKind::Directory);
    assert!(matches!(walk(&vfs, "times/latest"), Err(Error::NotFound)));
    let root = leaf(&mut store, &[]);
    store.commit(1, root);
    vfs.known.lock().unwrap().at = Some(Instant::now() - 2 * FRESH);
    vfs.refresh().unwrap();
    assert!(walk(&vfs, "times/1").is_ok());
}

#[test]
fn a_new_snapshot_appears_and_a_removed_one_stays_for_whoever_is_inside() {
    let mut store = Store::new();
    let root = leaf(&mut store, &[inline(b"x", b"1")]);
    let first = store.commit(1, root);
    let vfs = store.open();
    let inside = walk(&vfs, "times/1/x").unwrap().inode;
    let views: Vec<u64> = ["", "times", "again"].map(|view| walk(&vfs, view).unwrap().inode).to_vec();
    let latest = walk(&vfs, "times/latest").unwrap();
    assert_eq!(vfs.link_target(latest.inode, Wait::Yes).unwrap(), b"1");
    let root = leaf(&mut store, &[inline(b"x", b"22")]);
    store.commit(2, root);
    assert!(!vfs.is_stale(ROOT) && vfs.refresh().unwrap().is_empty(), "a fresh list is believed");
    vfs.known.lock().unwrap().at = Some(Instant::now() - 2 * FRESH);
    assert!(vfs.is_stale(ROOT));
    let mut changed = vfs.refresh().unwrap();
    changed.sort();
    let mut expected = views;
    expected.sort();
    assert_eq!(changed, expected);
    assert_eq!(walk(&vfs, "times/2/x").unwrap().size, 2);
    let newer = walk(&vfs, "times/latest").unwrap();
    assert_ne!(newer.inode, latest.inode, "a changed link is another inode");
    assert_eq!(vfs.link_target(newer.inode, Wait::Yes).unwrap(), b"2");
    store.repo.delete_snapshot(&first).unwrap();
    vfs.known.lock().unwrap().at = Some(Instant::now() - 2 * FRESH);
    vfs.refresh().unwrap();
    assert!(matches!(walk(&vfs, "times/1"), Err(Error::NotFound)));
    assert_eq!(read(&vfs, inside, 0, 9), b"1");
}

fn blake3_noise(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut out);
    out
}

/// What a prefill hands over: inode number, offset, bytes.
fn handed_over(vfs: &Vfs, what: &Prefill) -> Vec<(u64, u64, Vec<u8>)> {
    let mut all = Vec::new();
    let mut take = |number, offset, bytes: &[u8]| {
        all.push((number, offset, bytes.to_vec()));
        true
    };
    vfs.prefill(what, &mut take, &|| true);
    all
}

#[test]
fn whoever_reads_small_files_in_order_is_given_the_next_ones() {
    let mut store = Store::new();
    let names: Vec<String> = (0..20).map(|n| format!("f{n:02}")).collect();
    let bytes = |n: usize| vec![n as u8; 600 + n];
    let nodes: Vec<Node<'_>> = (0..20)
        .map(|n| {
            let size = bytes(n).len() as u64;
            let hash = ContentHash::of(&bytes(n));
            // One is missing from the repository: it is passed over, and the others come.
            if n != 5 {
                store.put(BlobKind::Data, &bytes(n));
            }
            node(names[n].as_bytes(), Kind::File { size, content: Content::Whole(hash) })
        })
        .collect();
    let root = leaf(&mut store, &nodes);
    let id = store.commit(1, root);
    let vfs = store.subtree(id, &[]).unwrap();
    let numbers: Vec<u64> = list(&vfs, ROOT, usize::MAX)[2..].iter().map(|(_, number)| *number).collect();
    read(&vfs, numbers[0], 0, 4096);
    assert_eq!(vfs.prefill_after(numbers[0], 0, 4096), None, "one file is not an order");
    read(&vfs, numbers[1], 0, 4096);
    let what = vfs.prefill_after(numbers[1], 0, 4096).expect("two files in order");
    let handed = handed_over(&vfs, &what);
    // The window is 2..=9; number 6, in its middle, is left out and tells when the reader comes there.
    let expected: Vec<_> = [2, 3, 4, 7, 8, 9].map(|n| (numbers[n], 0, bytes(n))).to_vec();
    assert_eq!(handed, expected);
    assert_eq!(vfs.prefill_after(numbers[1], 100, 4096), None, "the middle of a small file");
    read(&vfs, numbers[6], 0, 4096);
    assert!(matches!(vfs.prefill_after(numbers[6], 0, 4096), Some(Prefill::Files { ranks, .. }) if ranks.start == 11));
    let mut asked = 0;
    let mut take = |_, _, _: &[u8]| {
        asked += 1;
        false
    };
    vfs.prefill(&what, &mut take, &|| true);
    assert_eq!(asked, 4, "a kernel that knows none of several files is not asked about more");
    read(&vfs, numbers[7], 0, 4096);
    let again = vfs.prefill_after(numbers[7], 0, 4096);
    assert!(
        matches!(again, Some(Prefill::Files { ranks, .. }) if ranks.start == 9),
        "what it did not know is offered again"
    );
}

#[test]
fn a_read_in_the_middle_brings_along_what_was_decoded_with_it() {
    let mut store = Store::new();
    let noise: Vec<u8> = (0..400_000u32).map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[0]).collect();
    let parts: Vec<Part> = noise
        .chunks(30_000)
        .map(|chunk| Part::Data { id: store.put(BlobKind::Data, chunk), len: chunk.len() as u32 })
        .chain([Part::Hole { len: 1 << 20 }])
        .collect();
    let mut encoded = Vec::new();
    parts.iter().for_each(|part| part.encode(&mut encoded));
    let encoded: &'static [u8] = encoded.leak();
    let size = noise.len() as u64 + (1 << 20);
    let content = Content::Parts { hash: None, parts: Parts::new(parts.len(), encoded) };
    let root = leaf(&mut store, &[node(b"f", Kind::File { size, content })]);
    let id = store.commit(1, root);
    let vfs = store.subtree(id, &[]).unwrap();
    let number = walk(&vfs, "f").unwrap().inode;
    read(&vfs, number, 200_704, 4096);
    assert_eq!(vfs.prefill_after(number, 500_000, 4096), None, "a hole");
    assert_eq!(vfs.prefill_after(number, 200_704, 1 << 17), None, "long reads are in order");
    let what = vfs.prefill_after(number, 200_704, 4096).expect("data");
    let handed = handed_over(&vfs, &what);
    // The second segment: bytes 131,072 to 262,144 of the only pack, which begins with this file.
    let [(inode, offset, bytes)] = &handed[..] else { panic!("{} pieces", handed.len()) };
    assert_eq!((*inode, *offset, bytes.len()), (number, 131_072, 131_072));
    assert!(bytes[..] == noise[131_072..262_144]);
    assert_eq!(handed_over(&vfs, &what), [], "not again at once");
    let last = Prefill::Around { number, bytes: 399_999..400_000 };
    let handed = handed_over(&vfs, &last);
    let [(_, offset, bytes)] = &handed[..] else { panic!("{} pieces", handed.len()) };
    assert_eq!((*offset, *offset as usize + bytes.len()), (393_216, 397_312), "whole pages before the hole");
}

/// A file of which each segment begins in the middle of a page, in blobs of `blob_len` bytes, after a hole. The first
/// segment has 81,072 bytes of it, the others 131,072.
fn shifted(hole: u64, noise: &[u8], blob_len: usize) -> (Store, Vfs, u64) {
    let mut store = Store::new();
    store.put(BlobKind::Data, &[7; 50_000]);
    let mut encoded = Vec::new();
    if hole > 0 {
        Part::Hole { len: hole }.encode(&mut encoded);
    }
    let mut count = usize::from(hole > 0);
    for chunk in noise.chunks(blob_len) {
        Part::Data { id: store.put(BlobKind::Data, chunk), len: chunk.len() as u32 }.encode(&mut encoded);
        count += 1;
    }
    let content = Content::Parts { hash: None, parts: Parts::new(count, encoded.leak()) };
    let root = leaf(&mut store, &[node(b"f", Kind::File { size: hole + noise.len() as u64, content })]);
    let id = store.commit(1, root);
    store.reopen();
    let vfs = store.subtree(id, &[]).unwrap();
    let number = walk(&vfs, "f").unwrap().inode;
    (store, vfs, number)
}

#[test]
fn a_file_that_is_read_here_and_there_is_decoded_and_handed_over_once() {
    let noise = blake3_noise(8 << 20);
    let (_store, vfs, number) = shifted(0, &noise, 30_000);
    let mut pages = vec![0u8; noise.len() / 4096];
    for n in 0..200u64 {
        let offset = n * 977 % pages.len() as u64 * 4096;
        if pages[offset as usize / 4096] > 0 {
            continue;
        }
        read(&vfs, number, offset, 4096);
        let what = vfs.prefill_after(number, offset, 4096).expect("data");
        for (_, offset, bytes) in handed_over(&vfs, &what) {
            assert!(bytes[..] == noise[offset as usize..][..bytes.len()]);
            pages[offset as usize / 4096..][..bytes.len() / 4096].iter_mut().for_each(|times| *times += 1);
        }
    }
    let count = |wanted: u8| pages.iter().filter(|times| **times == wanted).count();
    assert_eq!(count(0) + count(1), pages.len(), "{} pages twice", count(2));
    assert_eq!(count(0), 0, "pages never");
    let decoded = vfs.read_counts().decoded_bytes;
    assert!(decoded < noise.len() as u64 + (1 << 19), "{decoded} bytes");
}

/// From where to where bytes are handed over after `bytes` were read, and that they are those of the file.
fn ranges_after(vfs: &Vfs, number: u64, bytes: Range<u64>, file: &[u8]) -> Vec<(u64, u64)> {
    let handed = handed_over(vfs, &Prefill::Around { number, bytes });
    let range = |(inode, offset, bytes): (u64, u64, Vec<u8>)| {
        assert!(inode == number && bytes[..] == file[offset as usize..][..bytes.len()], "at {offset}");
        (offset, offset + bytes.len() as u64)
    };
    handed.into_iter().map(range).collect()
}

#[test]
fn a_page_of_two_segments_is_handed_over_with_the_second_of_them() {
    let noise = blake3_noise(600_000);
    for blob_len in [600_000, 30_000, 700] {
        // The segments end at 81,072, 212,144, 343,216, and 474,288.
        let (_store, vfs, number) = shifted(0, &noise, blob_len);
        let after = |offset| ranges_after(&vfs, number, offset..offset + 4096, &noise);
        assert_eq!(after(299_008), [(212_992, 339_968)], "its whole pages");
        assert_eq!(after(16_384), [(0, 77_824)]);
        assert_eq!(after(200_704), [(77_824, 212_992)], "with those on both borders");
        assert_eq!(after(401_408), [(339_968, 471_040)]);
        assert_eq!(after(540_672), [(471_040, 600_000)], "to the end of the file");
        assert_eq!(after(401_408), [], "not again at once");
    }
}

#[test]
fn a_read_across_two_segments_brings_along_both() {
    let noise = blake3_noise(600_000);
    let (_store, vfs, number) = shifted(0, &noise, 30_000);
    let after = |bytes| ranges_after(&vfs, number, bytes, &noise);
    assert_eq!(after(208_896..212_992), [(81_920, 208_896), (208_896, 339_968)]);
    assert_eq!(after(208_896..212_992), []);
    assert_eq!(after(462_848..479_232), [(339_968, 471_040), (471_040, 600_000)], "wherever in the read the border is");
}

#[test]
fn a_page_that_begins_in_a_hole_is_never_put_together() {
    const HOLE: u64 = 1_000_000;
    let noise = blake3_noise(600_000);
    let (_store, vfs, number) = shifted(HOLE, &noise, 30_000);
    let file = [vec![0; HOLE as usize], noise].concat();
    // The segments end at 1,081,072 and 1,212,144.
    assert_eq!(ranges_after(&vfs, number, 1_007_616..1_011_712, &file), [(1_003_520, 1_077_248)]);
    assert_eq!(ranges_after(&vfs, number, 1_101_824..1_105_920, &file), [(1_077_248, 1_208_320)]);
}

#[test]
fn what_is_handed_over_is_little_though_a_file_is_one_blob_again_and_again() {
    let mut store = Store::new();
    let bytes = blake3_noise(30_000);
    let id = store.put(BlobKind::Data, &bytes);
    let mut encoded = Vec::new();
    (0..1000).for_each(|_| Part::Data { id, len: 30_000 }.encode(&mut encoded));
    let content = Content::Parts { hash: None, parts: Parts::new(1000, encoded.leak()) };
    let root = leaf(&mut store, &[node(b"f", Kind::File { size: 30_000_000, content })]);
    let id = store.commit(1, root);
    let vfs = store.subtree(id, &[]).unwrap();
    let number = walk(&vfs, "f").unwrap().inode;
    read(&vfs, number, 15_003_648, 4096);
    let what = vfs.prefill_after(number, 15_003_648, 4096).expect("data");
    for (_, offset, handed) in handed_over(&vfs, &what) {
        assert!(handed.len() < 400_000, "{} bytes", handed.len());
        assert!(handed.iter().zip(offset..).all(|(byte, at)| *byte == bytes[at as usize % 30_000]));
    }
}

#[test]
fn what_is_handed_over_starts_no_read_ahead() {
    const HOLE: u64 = 16 << 20;
    let mut store = Store::new();
    let noise: Vec<u8> = (0..800_000u32).map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[0]).collect();
    let data = noise.chunks(30_000).map(|chunk| (store.put(BlobKind::Data, chunk), chunk.len() as u32));
    let parts: Vec<Part> =
        [Part::Hole { len: HOLE }].into_iter().chain(data.map(|(id, len)| Part::Data { id, len })).collect();
    let mut encoded = Vec::new();
    parts.iter().for_each(|part| part.encode(&mut encoded));
    let content = Content::Parts { hash: None, parts: Parts::new(parts.len(), encoded.leak()) };
    let root = leaf(&mut store, &[node(b"f", Kind::File { size: HOLE + 800_000, content })]);
    let id = store.commit(1, root);
    let vfs = store.subtree(id, &[]).unwrap();
    let number = walk(&vfs, "f").unwrap().inode;
    read(&vfs, number, HOLE + 200_704, 4096);
    let what = vfs.prefill_after(number, HOLE + 200_704, 4096).expect("data");
    assert_eq!(handed_over(&vfs, &what).len(), 1);
    // Time for those who would decode ahead.
    std::thread::sleep(Duration::from_millis(200));
    drop(vfs);
    let decoded = store.repo.read_counts().decoded_bytes;
    assert!(((1 << 17)..(2 << 17)).contains(&decoded), "{decoded} bytes, more than one segment and the directory");
}
