//! Restores hand-made snapshots, hostile and damaged ones among them.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;

use super::*;
use crate::browse::OwnedNode;
use crate::browse::sample::*;
use crate::format::content::{Content, Part};
use crate::format::tree::{Metadata, Node, Time, Xattrs};
use crate::id::BlobKind;

struct Outcome {
    summary: Summary,
    errors: Vec<String>,
}

fn restore_with(repo: &Repository, snapshot: &Snapshot, target: &Path, options: &Options<'_>) -> Outcome {
    let progress = Progress::new();
    let summary = run(repo, snapshot, b"", target, options, &progress).unwrap();
    let show = |error: &crate::progress::SourceError| format!("{}: {}", error.path.escape_ascii(), error.during);
    let errors = progress.take_errors().iter().map(show).collect();
    Outcome { summary, errors }
}

fn restore(repo: &Repository, snapshot: &Snapshot, target: &Path) -> Outcome {
    restore_with(repo, snapshot, target, &Options::default())
}

/// Bytes that do not repeat within 64 KiB.
fn noise(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut out);
    out
}

#[test]
fn every_kind_of_content_and_entry_comes_back() {
    let mut sample = Sample::new();
    let large = noise(40 << 20);
    let mut encoded = Vec::new();
    let pieces: Vec<_> = large.chunks(3 << 20).collect();
    for piece in &pieces {
        let id = sample.blob(BlobKind::Data, piece);
        Part::Data { id, len: piece.len() as u32 }.encode(&mut encoded);
    }
    Part::Hole { len: 5 << 20 }.encode(&mut encoded);
    let parts = crate::format::content::Parts::new(pieces.len() + 1, &encoded);
    let size = (45 << 20) as u64;
    let old = Metadata { mtime: Time { sec: -1_000_000_000, nsec: 999_999_999 }, ..metadata(0o604) };
    let nodes = [
        node(b"large", old, Kind::File { size, content: Content::Parts { hash: None, parts } }),
        inline(b"inline", b"text"),
        inline(b"empty", b""),
        sample.whole(b"whole", &noise(300_000)),
        inline(&[0xff; 255], b"not text"),
        node(b"link", metadata(0o777), Kind::Symlink { target: b"no/such\xffplace" }),
        node(b"fifo", metadata(0o640), Kind::Fifo),
        node(b"socket", metadata(0o600), Kind::Socket),
    ];
    let below = sample.directory(b"below", &nodes);
    let root = sample.tree(&[below]);
    let (repo, snapshot) = sample.snapshot(root);
    let target = tempfile::tempdir().unwrap();
    let options = Options { verify: true, ..Options::default() };
    let outcome = restore_with(&repo, &snapshot, target.path(), &options);
    assert_eq!(outcome.errors, [""; 0]);
    assert_eq!((outcome.summary.total_files, outcome.summary.files_restored), (9, 9));

    let below = target.path().join("below");
    let restored = fs::read(below.join("large")).unwrap();
    assert!(restored[..large.len()] == large && restored[large.len()..].iter().all(|byte| *byte == 0));
    let stat = fs::metadata(below.join("large")).unwrap();
    assert_eq!((stat.len(), stat.mtime(), stat.mtime_nsec()), (size, -1_000_000_000, 999_999_999));
    assert_eq!(stat.mode() & 0o7777, 0o604);
    assert!(stat.blocks() * 512 <= 41 << 20, "the hole is a hole");
    assert_eq!(fs::read(below.join("inline")).unwrap(), b"text");
    assert_eq!(fs::read(below.join("whole")).unwrap(), noise(300_000));
    assert_eq!(fs::read(below.join(std::ffi::OsStr::from_bytes(&[0xff; 255]))).unwrap(), b"not text");
    assert_eq!(fs::read_link(below.join("link")).unwrap().as_os_str().as_bytes(), b"no/such\xffplace");
    assert_eq!(fs::symlink_metadata(below.join("link")).unwrap().mtime_nsec(), 123_456_789);
    assert!(fs::symlink_metadata(below.join("fifo")).unwrap().file_type().is_fifo());
    assert!(fs::symlink_metadata(below.join("socket")).unwrap().file_type().is_socket());
    assert_eq!(fs::metadata(&below).unwrap().mtime(), 1_700_000_000);
}

#[test]
fn a_missing_blob_costs_its_file_and_nothing_else() {
    let mut sample = Sample::new();
    let nodes = [sample.whole(b"a", b"here"), missing(b"b", b"lost"), sample.whole(b"c", b"here too")];
    let root = sample.tree(&nodes);
    let (repo, snapshot) = sample.snapshot(root);
    let target = tempfile::tempdir().unwrap();
    let outcome = restore(&repo, &snapshot, target.path());
    assert_eq!(outcome.errors, ["/b: restore"]);
    assert!(target.path().join("a").exists() && target.path().join("c").exists());
    assert!(!target.path().join("b").exists());

    // What is there is not given up for something that cannot be restored.
    fs::write(target.path().join("b"), "mine").unwrap();
    let outcome = restore(&repo, &snapshot, target.path());
    assert_eq!(outcome.errors.len(), 1);
    assert_eq!(fs::read(target.path().join("b")).unwrap(), b"mine");
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 3, "no temporary files stay");
}

#[test]
fn a_lost_part_of_a_large_file_leaves_no_file() {
    let mut sample = Sample::new();
    let mut encoded = Vec::new();
    for n in 0..8u8 {
        let bytes = vec![n; 2 << 20];
        let id = if n == 5 {
            sample.repo.blob_id(BlobKind::Data, &crate::id::ContentHash::of(&bytes))
        } else {
            sample.blob(BlobKind::Data, &bytes)
        };
        Part::Data { id, len: bytes.len() as u32 }.encode(&mut encoded);
    }
    let parts = crate::format::content::Parts::new(8, &encoded);
    let content = Content::Parts { hash: None, parts };
    let nodes = [node(b"f", metadata(0o644), Kind::File { size: 16 << 20, content }), inline(b"g", b"x")];
    let root = sample.tree(&nodes);
    let (repo, snapshot) = sample.snapshot(root);
    let target = tempfile::tempdir().unwrap();
    assert_eq!(restore(&repo, &snapshot, target.path()).errors, ["/f: restore"]);
    let names: Vec<_> = fs::read_dir(target.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["g"]);
}

#[test]
fn links_in_the_way_are_replaced_and_what_they_point_to_stays() {
    let mut sample = Sample::new();
    let below = sample.directory(b"d", &[inline(b"f", b"new")]);
    let root = sample.tree(&[below, inline(b"file", b"new"), inline(b"hard", b"new")]);
    let (repo, snapshot) = sample.snapshot(root);
    let dir = tempfile::tempdir().unwrap();
    let (target, outside) = (dir.path().join("target"), dir.path().join("outside"));
    fs::create_dir(&target).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "old").unwrap();
    symlink(&outside, target.join("d")).unwrap();
    symlink(outside.join("victim"), target.join("file")).unwrap();
    fs::hard_link(outside.join("victim"), target.join("hard")).unwrap();
    let before = fs::metadata(outside.join("victim")).unwrap().mtime();
    assert_eq!(restore(&repo, &snapshot, &target).errors, [""; 0]);
    assert_eq!(fs::read(outside.join("victim")).unwrap(), b"old");
    assert_eq!(fs::metadata(outside.join("victim")).unwrap().mtime(), before);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    for name in ["d/f", "file", "hard"] {
        assert_eq!(fs::read(target.join(name)).unwrap(), b"new");
    }
    assert!(fs::symlink_metadata(target.join("d")).unwrap().is_dir());
}

/// `bytes` under a name of an inode that has two.
fn one_of_two(name: &[u8], bytes: &[u8], inode: u64, mode: u32) -> OwnedNode {
    let uid = rustix::process::getuid().as_raw();
    let gid = rustix::process::getgid().as_raw();
    let mtime = Time { sec: 1_000_000_000, nsec: 5 };
    let metadata = Metadata { nlink: 2, dev: 7, inode, uid, gid, mtime, ..metadata(mode) };
    node(name, metadata, Kind::File { size: bytes.len() as u64, content: Content::Inline(bytes) })
}

#[test]
fn a_file_with_names_outside_of_the_target_is_never_changed() {
    let mut sample = Sample::new();
    let root = sample.tree(&[one_of_two(b"a", b"same", 1, 0o600), one_of_two(b"b", b"same", 1, 0o600)]);
    let (repo, snapshot) = sample.snapshot(root);
    let dir = tempfile::tempdir().unwrap();
    let (target, outside) = (dir.path().join("target"), dir.path().join("outside"));
    fs::create_dir(&target).unwrap();
    fs::write(&outside, "same").unwrap();
    fs::hard_link(&outside, target.join("a")).unwrap();
    let of = |path: &Path| {
        let metadata = fs::metadata(path).unwrap();
        (metadata.ino(), metadata.mode(), metadata.mtime(), metadata.nlink())
    };
    let before = of(&outside);
    assert_eq!(restore(&repo, &snapshot, &target).errors, [""; 0]);
    assert_eq!(of(&outside), (before.0, before.1, before.2, 1));
    let restored = of(&target.join("a"));
    assert_eq!((restored.1 & 0o7777, restored.2, restored.3), (0o600, 1_000_000_000, 2));
    assert_eq!(restored.0, of(&target.join("b")).0);
    // What is as it should be stays.
    assert_eq!(restore(&repo, &snapshot, &target).errors, [""; 0]);
    assert_eq!(of(&target.join("a")), restored);
}

#[test]
fn entries_that_were_one_file_become_several_again_and_a_dry_run_says_so() {
    let mut sample = Sample::new();
    let root = sample.tree(&[
        one_of_two(b"a", b"same", 1, 0o644),
        one_of_two(b"b", b"same", 1, 0o644),
        one_of_two(b"c", b"same", 2, 0o644),
        one_of_two(b"d", b"same", 2, 0o644),
    ]);
    let (repo, snapshot) = sample.snapshot(root);
    let dir = tempfile::tempdir().unwrap();
    let inode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().ino();
    let fill = |names: [(&str, &str); 3]| {
        for name in ["a", "b", "c", "d"] {
            let _ = fs::remove_file(dir.path().join(name));
        }
        assert_eq!(restore(&repo, &snapshot, dir.path()).errors, [""; 0]);
        for (from, to) in names {
            let _ = fs::remove_file(dir.path().join(to));
            fs::hard_link(dir.path().join(from), dir.path().join(to)).unwrap();
        }
    };
    // All are one; they are crossed; two of the same content are no links.
    for names in [[("a", "b"), ("a", "c"), ("a", "d")], [("a", "c"), ("b", "d"), ("b", "d")]] {
        fill(names);
        let dry = Options { dry_run: true, ..Options::default() };
        let said = restore_with(&repo, &snapshot, dir.path(), &dry).summary;
        let done = restore(&repo, &snapshot, dir.path()).summary;
        assert_eq!((said.files_restored, said.files_skipped), (done.files_restored, done.files_skipped), "{names:?}");
        assert!(inode("a") == inode("b") && inode("c") == inode("d") && inode("a") != inode("c"), "{names:?}");
        let again = restore_with(&repo, &snapshot, dir.path(), &dry).summary;
        assert_eq!((again.files_restored, again.files_skipped), (0, 4), "{names:?}");
    }
}

fn linked(name: &[u8], bytes: &[u8]) -> OwnedNode {
    let metadata = Metadata { nlink: 3, dev: 7, inode: 9, ..metadata(0o600) };
    node(name, metadata, Kind::File { size: bytes.len() as u64, content: Content::Inline(bytes) })
}

#[test]
fn names_of_one_inode_are_linked_and_those_of_changed_content_are_not() {
    let mut sample = Sample::new();
    let below = sample.directory(b"z", &[linked(b"third", b"same")]);
    let root = sample.tree(&[linked(b"first", b"same"), linked(b"other", b"else"), linked(b"second", b"same"), below]);
    let (repo, snapshot) = sample.snapshot(root);
    let dir = tempfile::tempdir().unwrap();
    let inode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().ino();
    for round in 0..3 {
        assert_eq!(restore(&repo, &snapshot, dir.path()).errors, [""; 0], "{round}");
        assert_eq!(inode("first"), inode("second"), "{round}");
        assert_eq!(inode("first"), inode("z/third"), "{round}");
        assert_ne!(inode("first"), inode("other"), "{round}");
        assert_eq!(fs::read(dir.path().join("other")).unwrap(), b"else");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4, "no temporary files stay");
        // The next round has to link again what was copied.
        fs::remove_file(dir.path().join("second")).unwrap();
        fs::write(dir.path().join("second"), "same").unwrap();
    }
}

#[test]
fn equal_files_are_not_written_again_and_get_their_metadata_back() {
    let mut sample = Sample::new();
    let nodes = [sample.whole(b"f", b"content"), inline(b"g", b"short")];
    let root = sample.tree(&nodes);
    let (repo, snapshot) = sample.snapshot(root);
    let dir = tempfile::tempdir().unwrap();
    restore(&repo, &snapshot, dir.path());
    let path = dir.path().join("f");
    let inode = fs::metadata(&path).unwrap().ino();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let outcome = restore(&repo, &snapshot, dir.path());
    assert_eq!((outcome.summary.files_restored, outcome.summary.files_skipped), (0, 2));
    let stat = fs::metadata(&path).unwrap();
    assert_eq!((stat.ino(), stat.mode() & 0o7777, stat.mtime()), (inode, 0o644, 1_700_000_000));

    // Content that changed under the same size and time is seen, unless only size and time are asked.
    let stamp = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "CONTENT").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(stamp).unwrap();
    let by_time = Options { overwrite: Overwrite::IfChanged, ..Options::default() };
    assert_eq!(restore_with(&repo, &snapshot, dir.path(), &by_time).summary.files_restored, 0);
    assert_eq!(fs::read(&path).unwrap(), b"CONTENT");
    assert_eq!(restore(&repo, &snapshot, dir.path()).summary.files_restored, 1);
    assert_eq!(fs::read(&path).unwrap(), b"content");
}

#[test]
fn nothing_is_deleted_where_the_snapshot_cannot_be_read() {
    let mut sample = Sample::new();
    let damaged = node(b"d", metadata(0o755), Kind::Directory { tree: crate::id::BlobId([7; 20]), entries: 3 });
    let good = sample.directory(b"e", &[inline(b"kept", b"x")]);
    let root = sample.tree(&[damaged, good]);
    let (repo, snapshot) = sample.snapshot(root);
    let dir = tempfile::tempdir().unwrap();
    for name in ["d", "e"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("extra"), "x").unwrap();
    }
    let delete = Options { delete: true, ..Options::default() };
    let outcome = restore_with(&repo, &snapshot, dir.path(), &delete);
    assert_eq!(outcome.errors.len(), 1);
    assert_eq!(outcome.summary.files_deleted, 1);
    assert!(dir.path().join("d/extra").exists() && !dir.path().join("e/extra").exists());
    assert!(dir.path().join("e/kept").exists());
}

struct Only(&'static [u8]);

impl Select for Only {
    fn select(&self, path: &[u8], is_directory: bool) -> Selection {
        Selection { entry: path == self.0, below: is_directory && self.0.starts_with(path) }
    }
}

#[test]
fn directories_without_a_selected_entry_are_not_made() {
    let mut sample = Sample::new();
    let c = sample.directory(b"c", &[inline(b"f", b"x"), inline(b"g", b"x")]);
    let b = sample.directory(b"b", &[c]);
    let other = sample.directory(b"other", &[inline(b"f", b"x")]);
    let root = sample.tree(&[b, other]);
    let (repo, snapshot) = sample.snapshot(root);
    let dir = tempfile::tempdir().unwrap();
    let options = Options { select: Some(&Only(b"/b/c/f")), ..Options::default() };
    let outcome = restore_with(&repo, &snapshot, dir.path(), &options);
    assert_eq!((outcome.summary.total_files, outcome.errors.len()), (1, 0));
    assert!(dir.path().join("b/c/f").exists() && !dir.path().join("b/c/g").exists());
    assert!(!dir.path().join("other").exists());
    assert_eq!(fs::metadata(dir.path().join("b/c")).unwrap().mtime(), 1_700_000_000);

    let none = tempfile::tempdir().unwrap();
    let options = Options { select: Some(&Only(b"/b/c/nothing")), ..Options::default() };
    restore_with(&repo, &snapshot, none.path(), &options);
    assert_eq!(fs::read_dir(none.path()).unwrap().count(), 0);
}

#[test]
fn a_tree_deeper_than_descriptors_and_paths_can_be_is_restored() {
    let mut sample = Sample::new();
    let mut below = sample.directory(&[b'd'; 250], &[inline(b"bottom", b"deep")]);
    for _ in 0..1500 {
        below = sample.directory(&[b'd'; 250], &[below, inline(b"f", b"x")]);
    }
    let root = sample.tree(&[below]);
    let (repo, snapshot) = sample.snapshot(root);
    let dir = tempfile::tempdir().unwrap();
    let outcome = restore(&repo, &snapshot, dir.path());
    assert_eq!(outcome.errors, [""; 0]);
    assert_eq!(outcome.summary.files_restored, 1501 * 2);
    // Down to the bottom, where the file is.
    let mut at: OwnedFd = fs::File::open(dir.path()).unwrap().into();
    for _ in 0..1501 {
        at = place::open_directory(&at, &[b'd'; 250]).unwrap();
        assert_eq!(rustix::fs::fstat(&at).unwrap().st_mtime, 1_700_000_000);
    }
    assert!(existing::stat(&at, b"bottom").unwrap().is_some());
}

#[test]
fn lists_inherited_from_the_target_are_taken_off() {
    let dir = tempfile::tempdir().unwrap();
    let mut acl = vec![2, 0, 0, 0];
    for (tag, bits, id) in
        [(1u16, 7u16, u32::MAX), (2, 7, 12345), (4, 5, u32::MAX), (0x10, 7, u32::MAX), (0x20, 5, u32::MAX)]
    {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&bits.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    let flags = rustix::fs::XattrFlags::empty();
    if rustix::fs::setxattr(dir.path(), "system.posix_acl_default", &acl, flags).is_err() {
        eprintln!("skipped: no access control lists in {}", dir.path().display());
        return;
    }
    let mut sample = Sample::new();
    let below = sample.directory(b"d", &[inline(b"f", b"x")]);
    let fifo = node(b"fifo", metadata(0o600), Kind::Fifo);
    let root = sample.tree(&[below, inline(b"f", b"x"), fifo]);
    let (repo, snapshot) = sample.snapshot(root);
    assert_eq!(restore(&repo, &snapshot, dir.path()).errors, [""; 0]);
    for name in ["f", "d", "d/f", "fifo"] {
        let none: &mut [u8] = &mut [];
        let left = rustix::fs::listxattr(dir.path().join(name), none).unwrap();
        assert_eq!(left, 0, "{name}");
    }
}

#[test]
fn attributes_are_set_and_others_taken_off() {
    let mut sample = Sample::new();
    let xattrs = Xattrs::encode(&mut [(b"user.a".to_vec(), vec![1; 2000]), (b"user.b".to_vec(), Vec::new())]);
    let file = OwnedNode::of(&Node {
        name: b"f",
        metadata: metadata(0o400),
        kind: Kind::File { size: 1, content: Content::Inline(b"x") },
        xattrs: Xattrs::new(&xattrs),
    });
    let root = sample.tree(&[file]);
    let (repo, snapshot) = sample.snapshot(root);
    let dir = tempfile::tempdir().unwrap();
    let outcome = restore(&repo, &snapshot, dir.path());
    let path = dir.path().join("f");
    let flags = rustix::fs::XattrFlags::empty();
    if !outcome.errors.is_empty() {
        eprintln!("skipped: no user attributes in {}", dir.path().display());
        return;
    }
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    rustix::fs::setxattr(&path, "user.more", b"y", flags).unwrap();
    assert_eq!(restore(&repo, &snapshot, dir.path()).errors, [""; 0]);
    let mut value = vec![0; 4096];
    assert_eq!(rustix::fs::getxattr(&path, "user.a", &mut value[..]), Ok(2000));
    assert_eq!(rustix::fs::getxattr(&path, "user.b", &mut value[..]), Ok(0));
    assert!(rustix::fs::getxattr(&path, "user.more", &mut value[..]).is_err());
}

#[test]
fn a_cancelled_restore_leaves_no_half_written_file() {
    let mut sample = Sample::new();
    let nodes: Vec<_> = (0..50).map(|n| sample.whole(format!("f{n:02}").as_bytes(), &noise(200_000 + n))).collect();
    let root = sample.tree(&nodes);
    let (repo, snapshot) = sample.snapshot(root);
    let dir = tempfile::tempdir().unwrap();
    let progress = Progress::new();
    let stop = |_: &[u8], _: Action, _: u64| progress.cancel();
    let options = Options { report: Some(&stop), ..Options::default() };
    let result = run(&repo, &snapshot, b"", dir.path(), &options, &progress);
    assert!(matches!(result, Err(Error::Repository(repo::Error::Cancelled))));
    for entry in fs::read_dir(dir.path()).unwrap() {
        assert!(entry.unwrap().metadata().unwrap().len() >= 200_000);
    }
    assert_eq!(progress.error_count(), 0);
}

#[test]
fn a_path_that_is_a_file_is_restored_under_its_name() {
    let mut sample = Sample::new();
    let below = sample.directory(b"d", &[inline(b"f", b"x"), inline(b"g", b"x")]);
    let root = sample.tree(&[below]);
    let (repo, snapshot) = sample.snapshot(root);
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("new");
    run(&repo, &snapshot, b"d/f", &target, &Options::default(), &Progress::new()).unwrap();
    assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
    // A directory becomes the target, if that is new.
    let target = dir.path().join("also new");
    run(&repo, &snapshot, b"/d", &target, &Options::default(), &Progress::new()).unwrap();
    assert_eq!(fs::metadata(&target).unwrap().mtime(), 1_700_000_000);
    assert!(target.join("g").exists());
    let missing = run(&repo, &snapshot, b"/d/h", &target, &Options::default(), &Progress::new());
    assert!(matches!(missing, Err(Error::NoSuchPath(_))));
}
