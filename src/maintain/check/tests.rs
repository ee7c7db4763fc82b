//! Repositories with one thing wrong, each made by hand.

use super::*;
use crate::browse::sample::*;
use crate::browse::{self, OwnedNode};
use crate::format::content::{Content, ListChild, ListPage, Part};
use crate::format::tree::{Page, Tree};
use crate::id::BlobKind;
use crate::repo::OpenOptions;

/// The repository with one snapshot of `tree`.
fn committed(sample: Sample, tree: (BlobId, u64)) -> Arc<Repository> {
    let (repo, snapshot) = sample.snapshot(tree);
    repo.put_snapshot(&snapshot).unwrap();
    repo
}

fn check(repo: &Arc<Repository>, read: bool) -> Report {
    run(repo, read.then_some(Subset::Share(1.0)), &Arc::new(Progress::new())).unwrap()
}

/// The one problem that there is, and the paths it affects, without their snapshots.
fn only_problem(report: &Report) -> (String, Vec<String>) {
    let [problem] = &report.problems[..] else { panic!("{:#?}", report.problems) };
    let path = |path: &Vec<u8>| String::from_utf8(path.clone()).unwrap().split_once(':').unwrap().1.to_owned();
    (problem.what.clone(), problem.paths.iter().map(path).collect())
}

/// Opens the store again, without what is in memory.
fn reopened(repo: &Arc<Repository>) -> Arc<Repository> {
    Repository::open(repo.backend().clone(), b"password", &OpenOptions::default()).unwrap()
}

fn damage(repo: &Repository, name: ObjectName, change: impl FnOnce(&mut Vec<u8>)) {
    let mut stored = repo.backend().get(name, u64::MAX).unwrap();
    change(&mut stored);
    repo.backend().delete(name).unwrap();
    repo.backend().put(name, &stored).unwrap();
}

fn packs(repo: &Repository) -> Vec<(ObjectId, crate::format::index::IndexedPack)> {
    let of = |id: ObjectId| repo.index_object(&id).unwrap().into_iter().map(move |pack| (id, pack));
    repo.index_ids().unwrap().into_iter().flat_map(of).collect()
}

/// The pack that holds the data blobs.
fn data_pack(repo: &Repository) -> (ObjectId, crate::format::index::IndexedPack) {
    packs(repo).into_iter().find(|(_, pack)| pack.blobs[0].kind == BlobKind::Data).expect("there is data")
}

#[test]
fn a_directory_in_pages_must_be_what_its_index_says() {
    let nodes: Vec<_> = (0..30).map(|n| inline(format!("{n:03}").as_bytes(), b"x")).collect();
    type Change = fn(&mut Vec<(&'static [u8], BlobId, u64, u64)>, BlobId);
    let changes: [(&str, bool, Change); 9] = [
        ("nothing", true, |_, _| {}),
        ("count", false, |pages, _| pages[1].2 = 9),
        ("ranks of two pages", false, |pages, _| (pages[0].3, pages[0].2) = (11, 9)),
        ("ranks", false, |pages, _| pages[1].3 = 11),
        ("first name", false, |pages, _| pages[1].0 = b"0095"),
        ("order of pages", false, |pages, _| (pages[1].1, pages[2].1) = (pages[2].1, pages[1].1)),
        ("the same page twice", false, |pages, _| pages[2].1 = pages[1].1),
        ("a page of pages", false, |pages, index| pages[1].1 = index),
        ("a page less", false, |pages, _| _ = pages.pop()),
    ];
    for (what, is_right, change) in changes {
        let mut sample = Sample::new();
        let (index, entries, ids) = sample.paged(&nodes, 10);
        let mut pages: Vec<_> =
            [b"000".as_slice(), b"010", b"020"].into_iter().zip(ids).map(|(first, id)| (first, id, 10, 10)).collect();
        change(&mut pages, index);
        let stored =
            pages.iter().map(|(first, id, count, ranks)| Page { first, id: *id, count: *count, ranks: *ranks });
        let tree = sample.blob(BlobKind::Tree, &Tree::encode_index(stored.collect::<Vec<_>>().into_iter()));
        let large = node(b"large", metadata(0o755), Kind::Directory { tree, entries });
        let root = sample.tree(&[large]);
        let repo = committed(sample, root);
        let report = check(&repo, false);
        assert_eq!(report.problems.is_empty(), is_right, "{what}: {:?}", report.problems);
        for problem in &report.problems {
            assert!(problem.what.starts_with("tree "), "{what}: {problem:?}");
            assert!(problem.paths.iter().all(|path| path.ends_with(b":/large")), "{what}: {problem:?}");
        }
    }
}

#[test]
fn the_names_of_a_page_do_not_reach_into_the_next() {
    let mut sample = Sample::new();
    let (one, _) = sample.tree(&[inline(b"a", b"x"), inline(b"c", b"x")]);
    let (two, _) = sample.tree(&[inline(b"b", b"x"), inline(b"d", b"x")]);
    let pages = [(b"a", one), (b"b", two)].map(|(first, id)| Page { first, id, count: 2, ranks: 2 });
    let tree = sample.blob(BlobKind::Tree, &Tree::encode_index(pages.into_iter()));
    let repo = committed(sample, (tree, 4));
    let (what, paths) = only_problem(&check(&repo, false));
    assert!(what.contains(&one.to_hex()), "{what}");
    assert_eq!(paths, ["/"]);
}

#[test]
fn a_directory_must_hold_as_many_entries_as_its_node_says() {
    // The mount counts entries to number them; the same tree may be named rightly in one place and wrongly in another.
    let mut sample = Sample::new();
    let (tree, entries) = sample.tree(&[inline(b"x", b"x")]);
    let directory = |name: &[u8], entries| node(name, metadata(0o755), Kind::Directory { tree, entries });
    let root = sample.tree(&[directory(b"a", entries), directory(b"b", entries + 1), directory(b"c", entries)]);
    let repo = committed(sample, root);
    let (what, paths) = only_problem(&check(&repo, false));
    assert!(what.contains(&tree.to_hex()), "{what}");
    assert_eq!(paths, ["/b"]);
}

#[test]
fn a_list_in_pages_must_add_up_at_every_level() {
    let file = |size, level, root, data| {
        let content = Content::List { hash: None, level, root, data };
        node(b"file", metadata(0o644), Kind::File { size, content })
    };
    for (what, is_right) in [
        ("nothing", true),
        ("size", false),
        ("level", false),
        ("data", false),
        ("child", false),
        ("missing", false),
        ("part", false),
    ] {
        let mut sample = Sample::new();
        let id = sample.blob(BlobKind::Data, b"0123456789");
        let len = if what == "part" { 9 } else { 10 };
        let parts = ListPage::Parts(vec![Part::Data { id, len }, Part::Hole { len: 25 - u64::from(len) }]);
        let page = sample.blob(BlobKind::List, &parts.encode());
        let absent = BlobId([9; 20]);
        let mut children = vec![ListChild { len: 25, id: page }, ListChild { len: 25, id: page }];
        match what {
            "child" => (children[0].len, children[1].len) = (24, 26),
            "missing" => children[1].id = absent,
            _ => {}
        }
        let root = sample.blob(BlobKind::List, &ListPage::Children { level: 1, children }.encode());
        let node = match what {
            "size" => file(51, 1, root, 20),
            "level" => file(50, 2, root, 20),
            "data" => file(50, 1, root, 21),
            "part" => file(50, 1, root, 18),
            _ => file(50, 1, root, 20),
        };
        let tree = sample.tree(&[node]);
        let repo = committed(sample, tree);
        let report = check(&repo, false);
        assert_eq!(report.problems.is_empty(), is_right, "{what}: {:?}", report.problems);
        if !is_right {
            assert_eq!(only_problem(&report).1, ["/file"], "{what}");
        }
    }
}

#[test]
fn nesting_that_no_reader_follows_is_found() {
    use crate::format::limits::TREE_DEPTH_MAX;
    // A tree that is in order by itself is too deep where it is named too far down.
    let mut sample = Sample::new();
    let mut below = sample.tree(&[]);
    let mut half = below;
    for level in 2..=TREE_DEPTH_MAX {
        let directory = |name: &[u8], (tree, entries)| node(name, metadata(0o755), Kind::Directory { tree, entries });
        if level == 1000 {
            half = below;
        }
        let mut nodes = vec![directory(b"d", below)];
        if level == TREE_DEPTH_MAX {
            nodes.push(directory(b"short", half));
        }
        below = sample.tree(&nodes);
    }
    let directory = node(b"top", metadata(0o755), Kind::Directory { tree: below.0, entries: below.1 });
    let deeper = sample.tree(&[directory]);
    let (repo, snapshot) = sample.snapshot(below);
    repo.put_snapshot(&snapshot).unwrap();
    assert!(check(&repo, false).problems.is_empty(), "the deepest that there may be");
    let mut snapshot = snapshot;
    let root = node(b"", metadata(0o755), Kind::Directory { tree: deeper.0, entries: deeper.1 });
    snapshot.set_root(&root.node());
    repo.put_snapshot(&snapshot).unwrap();
    let report = check(&repo, false);
    assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
    assert!(report.problems[0].what.contains("nested deeper"), "{:?}", report.problems[0]);
}

/// Snapshots that share a tree with files of data, one to a blob.
fn shared(files: usize, snapshots: usize) -> Arc<Repository> {
    let mut sample = Sample::new();
    let nodes: Vec<OwnedNode> =
        (0..files).map(|n| sample.whole(format!("f{n:02}").as_bytes(), format!("content {n}").as_bytes())).collect();
    let (tree, entries) = sample.tree(&nodes);
    let shared = |name: &[u8]| node(name, metadata(0o755), Kind::Directory { tree, entries });
    let fine = sample.directory(b"fine", &[inline(b"x", b"x")]);
    let root = sample.tree(&[shared(b"one"), shared(b"two"), fine]);
    let (repo, mut snapshot) = sample.snapshot(root);
    for n in 0..snapshots {
        snapshot.time.sec = n as i64;
        repo.put_snapshot(&snapshot).unwrap();
    }
    repo
}

#[test]
fn every_path_that_damage_takes_down_is_told_and_the_damage_once() {
    let repo = shared(1, 3);
    let (_, pack) = data_pack(&repo);
    let name = ObjectName::new(ObjectKind::Pack, pack.id);
    // The only segment.
    damage(&repo, name, |stored| stored[50] ^= 1);
    assert!(check(&reopened(&repo), false).problems.is_empty(), "data is not read");
    let report = check(&reopened(&repo), true);
    let (what, mut paths) = only_problem(&report);
    paths.sort();
    assert_eq!(paths, ["/one/f00", "/one/f00", "/one/f00", "/two/f00", "/two/f00", "/two/f00"]);
    assert!(what.contains(&name.to_string()) && what.contains(&pack.blobs[0].id.to_hex()), "{what}");
    let snapshots: std::collections::HashSet<_> =
        report.problems[0].paths.iter().map(|path| path[..8].to_vec()).collect();
    assert_eq!(snapshots.len(), 3);

    repo.backend().delete(name).unwrap();
    for read in [false, true] {
        let (what, mut paths) = only_problem(&check(&reopened(&repo), read));
        paths.sort();
        assert_eq!(paths[..], ["/one/f00", "/one/f00", "/one/f00", "/two/f00", "/two/f00", "/two/f00"]);
        assert!(what.contains(&name.to_string()) && what.contains("missing"), "{what}");
    }
}

#[test]
fn of_many_paths_the_first_are_told_and_the_rest_counted() {
    let repo = shared(30, 2);
    let (_, pack) = data_pack(&repo);
    repo.backend().delete(ObjectName::new(ObjectKind::Pack, pack.id)).unwrap();
    let report = check(&reopened(&repo), false);
    let [problem] = &report.problems[..] else { panic!("{:?}", report.problems) };
    assert_eq!((problem.paths.len(), problem.paths_more), (PATHS_MAX, 120 - PATHS_MAX as u64));
    assert_eq!(report.trees, 3, "each tree counts once");
}

#[test]
fn a_damaged_tree_is_told_with_every_directory_that_is_lost() {
    let repo = shared(1, 2);
    let (_, pack) = packs(&repo).into_iter().find(|(_, pack)| pack.blobs[0].kind == BlobKind::Tree).unwrap();
    damage(&repo, ObjectName::new(ObjectKind::Pack, pack.id), |stored| stored[50] ^= 1);
    for read in [false, true] {
        let (what, paths) = only_problem(&check(&reopened(&repo), read));
        assert!(what.contains(&pack.id.to_hex()), "{what}");
        assert_eq!(paths, ["/", "/"], "{read}");
    }
}

#[test]
fn what_lies_in_a_second_pack_is_not_lost_with_the_first() {
    let repo = shared(1, 1);
    let (index, pack) = data_pack(&repo);
    let packs_kept: Vec<_> = packs(&repo).into_iter().map(|(_, pack)| pack).collect();
    // Stored again, as a writer does that does not know of the first pack.
    repo.backend().delete(ObjectName::new(ObjectKind::Index, index)).unwrap();
    let again = reopened(&repo);
    let pool = Arc::new(Pool::new("test", 1).unwrap());
    let mut writer = crate::repo::writer::Writer::new(again.clone(), pool, Default::default()).unwrap();
    assert!(writer.store(BlobKind::Data, pack.blobs[0].id, b"content 0").unwrap());
    writer.finish().unwrap();
    again.put_index(&packs_kept);
    repo.backend().delete(ObjectName::new(ObjectKind::Pack, pack.id)).unwrap();
    let report = check(&reopened(&repo), true);
    assert!(report.problems.is_empty(), "{:#?}", report.problems);
    assert!(report.notes.iter().any(|note| note.contains("is missing, but all")), "{:?}", report.notes);
}

#[test]
fn an_index_that_says_other_than_the_pack_is_found_by_reading() {
    for (what, right, change) in [
        ("nothing", true, (|_| {}) as fn(&mut Vec<PackedBlob>)),
        ("two of one length are exchanged", false, |blobs| blobs.swap(1, 2)),
        ("an id is another", false, |blobs| blobs[2].id.0[0] ^= 1),
        ("a kind is another", false, |blobs| blobs[2].kind = BlobKind::List),
        ("bytes move from one to the next", false, |blobs| {
            blobs[1].len += 1;
            blobs[2].len -= 1;
        }),
        ("one is left out", false, |blobs| _ = blobs.pop()),
    ] {
        let repo = shared(5, 1);
        let (index, _) = data_pack(&repo);
        let mut all: Vec<_> = packs(&repo).into_iter().map(|(_, pack)| pack).collect();
        let pack = all.iter_mut().find(|pack| pack.blobs[0].kind == BlobKind::Data).unwrap();
        let before = pack.blobs.clone();
        change(&mut pack.blobs);
        let (after, id) = (pack.blobs.clone(), pack.id);
        repo.backend().delete(ObjectName::new(ObjectKind::Index, index)).unwrap();
        repo.put_index(&all);
        let report = check(&reopened(&repo), true);
        assert_eq!(report.problems.is_empty(), right, "{what}");
        if right {
            continue;
        }
        let told = &report.problems[0].what;
        let at = before.iter().zip(&after).take_while(|(one, other)| one == other).count();
        assert!(told.contains(&id.to_hex()) && told.contains(&before[at].id.to_hex()), "{what}: {told}");
    }
}

#[test]
fn damage_that_takes_nothing_down_is_told_too() {
    let repo = shared(1, 1);
    let (_, pack) = data_pack(&repo);
    let name = ObjectName::new(ObjectKind::Pack, pack.id);
    let len = repo.backend().len(name).unwrap() as usize;
    let mut harmless = 0;
    for at in 44..len {
        damage(&repo, name, |stored| stored[at] ^= 1);
        let (what, paths) = only_problem(&check(&repo, true));
        assert!(what.contains(&pack.id.to_hex()));
        harmless += usize::from(paths.is_empty());
        damage(&repo, name, |stored| stored[at] ^= 1);
    }
    assert!((1..32).contains(&harmless), "{harmless} of {len} bytes are padding: less than the step of its length");
    assert!(check(&repo, true).problems.is_empty());
}

#[test]
fn without_a_key_every_object_is_counted_as_what_it_is() {
    let repo = shared(3, 4);
    let report = keyless(&**repo.backend(), &Progress::new()).unwrap();
    assert!(report.problems.is_empty());
    // Configuration, key, two packs, an index and the snapshots.
    assert_eq!((report.packs, report.packs_read, report.snapshots, report.objects_read), (2, 2, 4, 9));
    let (_, pack) = data_pack(&repo);
    damage(&repo, ObjectName::new(ObjectKind::Pack, pack.id), |stored| stored[50] ^= 1);
    assert_eq!(keyless(&**repo.backend(), &Progress::new()).unwrap().problems.len(), 1);
}

#[test]
fn what_a_reader_refuses_of_a_directory_check_refuses() {
    // An index whose page is not there: a reader gives the rest, and check names the directory.
    let mut sample = Sample::new();
    let nodes: Vec<_> = (0..30).map(|n| inline(format!("{n:03}").as_bytes(), b"x")).collect();
    let (_, _, ids) = sample.paged(&nodes, 10);
    let absent = BlobId([7; 20]);
    let pages = [(b"000", ids[0]), (b"010", absent), (b"020", ids[2])].map(|(first, id)| Page {
        first,
        id,
        count: 10,
        ranks: 10,
    });
    let tree = sample.blob(BlobKind::Tree, &Tree::encode_index(pages.into_iter()));
    let repo = committed(sample, (tree, 30));
    let mut entries = browse::Entries::new(&repo, tree);
    let mut failed = 0;
    loop {
        match entries.next() {
            Ok(None) => break,
            Ok(Some(_)) => {}
            Err(_) => failed += 1,
        }
    }
    assert_eq!(failed, 1);
    let (what, paths) = only_problem(&check(&repo, false));
    assert!(what.contains(&absent.to_hex()), "{what}");
    assert_eq!(paths, ["/"]);
}
