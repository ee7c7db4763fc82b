//! What comes back is what was there: by `restore` and off the mount, by our own comparison, by rsync and by tar.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::support::compare::{Ignore, assert_same, assert_same_but, extents};
use crate::support::generate;
use crate::support::is_root;
use crate::support::oracle::{assert_rsync_finds_nothing, assert_tar_finds_nothing};
use crate::support::sandbox::Sandbox;

/// A sandbox whose source has everything.
fn with_everything() -> Sandbox {
    let sandbox = Sandbox::new();
    generate::everything(&sandbox.source());
    sandbox.backup();
    sandbox
}

/// A copy cannot have the names that lie outside of what was backed up, nor can a mount.
const OUTSIDE: Ignore = Ignore { link_counts: true, holes: false };

#[test]
fn the_comparison_finds_every_difference() {
    let sandbox = Sandbox::empty();
    let [a, b] = ["source/a", "source/b"].map(|name| sandbox.path(name));
    fs::create_dir(&a).unwrap();
    generate::everything(&a);
    fs::remove_file(sandbox.path("source/linked-from-outside")).ok();
    let copied = std::process::Command::new("cp").args(["-aT", "--sparse=never"]).args([&a, &b]).status().unwrap();
    assert!(copied.success());
    let found = crate::support::compare::differences(&a, &b, Ignore { holes: true, link_counts: true });
    assert!(found.is_empty(), "cp -a copies everything, but: {found:#?}");

    let before = crate::support::compare::differences(&a, &b, OUTSIDE).len();
    assert!(before >= 6, "files without their holes are not the same: {before}");
    let changes: &[(&str, &dyn Fn(PathBuf))] = &[
        ("kinds/file", &|path| fs::write(path, "FILE").unwrap()),
        ("kinds/link", &|path| fs::remove_file(path).unwrap()),
        ("kinds/new", &|path| fs::write(path, "").unwrap()),
        ("times/file 0 1", &|path| generate::set_time(&path, 0, 2)),
        ("attributes/several", &|path| assert!(generate::set_xattr(&path, "user.new", b""))),
        ("links/z/fifth", &|path| {
            let meta = fs::metadata(&path).unwrap();
            fs::remove_file(&path).unwrap();
            fs::write(&path, generate::noise(1, 200_000)).unwrap();
            generate::set_time(&path, meta.mtime(), meta.mtime_nsec());
        }),
    ];
    for (name, change) in changes {
        let count = |(a, b): (&Path, &Path)| crate::support::compare::differences(a, b, OUTSIDE).len();
        let from = count((&a, &b));
        change(b.join(name));
        assert!(count((&a, &b)) > from, "a change of {name} is not found");
    }
}

#[test]
fn everything_is_restored() {
    let sandbox = with_everything();
    let copy = sandbox.restore("latest", "copy");
    assert_same_but(&sandbox.source(), &copy, OUTSIDE);
    assert_rsync_finds_nothing(&sandbox.source(), &copy);
    assert_tar_finds_nothing(&sandbox.source(), &copy, &sandbox.path("tmp"));
}

#[test]
fn everything_is_on_the_mount() {
    needs_fuse!();
    let sandbox = with_everything();
    let mount = sandbox.mount("mnt");
    assert_same_but(&sandbox.source(), &mount.latest(), OUTSIDE);
    assert_rsync_finds_nothing(&sandbox.source(), &mount.latest());
    assert_tar_finds_nothing(&sandbox.source(), &mount.latest(), &sandbox.path("tmp"));
    mount.unmount();
}

#[test]
fn everything_copied_off_the_mount_is_the_same() {
    needs_fuse!();
    let sandbox = with_everything();
    let mount = sandbox.mount("mnt");
    let copy = sandbox.path("copy");
    let status = std::process::Command::new("cp").arg("-aT").args([&mount.latest(), &copy]).status().unwrap();
    assert!(status.success());
    assert_same_but(&sandbox.source(), &copy, OUTSIDE);
    mount.unmount();
}

#[test]
fn inode_numbers_stay_the_same_across_mounts() {
    needs_fuse!();
    let sandbox = with_everything();
    let numbers = |name: &str| {
        let mount = sandbox.mount("mnt");
        let mut found = Vec::new();
        // The other way round the second time: the numbers must not come from the order of the questions.
        let mut files = crate::support::sandbox::files_below(&mount.latest().canonicalize().unwrap());
        if name == "second" {
            files.reverse();
        }
        for path in files {
            let meta = fs::metadata(&path).unwrap();
            found.push((path, meta.ino(), meta.nlink()));
        }
        mount.unmount();
        found.sort();
        found
    };
    let first = numbers("first");
    assert!(first.len() > 50);
    assert_eq!(first, numbers("second"));
    // A later snapshot does not move the numbers of an earlier one.
    sandbox.write("one more", "x");
    sandbox.backup();
    let mount = sandbox.mount("mnt");
    for (path, ino, nlink) in &first {
        let meta = fs::metadata(path).unwrap();
        assert_eq!((meta.ino(), meta.nlink()), (*ino, *nlink), "{}", path.display());
    }
    mount.unmount();
}

#[test]
fn a_path_may_be_longer_than_the_kernel_takes() {
    let sandbox = Sandbox::new();
    generate::depth(&sandbox.source().join("deep"));
    sandbox.backup();
    let copy = sandbox.restore("latest", "copy");
    assert_same(&sandbox.source(), &copy);
    if crate::support::has_fuse() {
        let mount = sandbox.mount("mnt");
        assert_same(&sandbox.source(), &mount.latest());
        mount.unmount();
    }
}

/// A terabyte takes no longer than its data; whoever reads the holes never comes to the end.
#[test]
fn a_terabyte_of_holes_costs_nothing() {
    let sandbox = Sandbox::new();
    let path = sandbox.source().join("huge");
    if !generate::terabyte(&path) {
        crate::support::skipped("needs a file system with files of 1 TiB");
        return;
    }
    sandbox.backup();
    let copy = sandbox.restore("latest", "copy");
    assert_same(&sandbox.source(), &copy);
    assert!(fs::metadata(copy.join("huge")).unwrap().blocks() < 4096, "the holes were written");
    if crate::support::has_fuse() {
        let mount = sandbox.mount("mnt");
        assert_same(&sandbox.source(), &mount.latest());
        let file = File::open(mount.latest().join("huge")).unwrap();
        assert_eq!(extents(&file, 1 << 40).len(), 4);
        drop(file);
        mount.unmount();
    }
}

/// ext4 takes attributes of 4 KiB; a file system in memory takes the 64 KiB that the kernel allows.
#[test]
fn attributes_of_64_kib_come_back() {
    let Ok(sandbox) = std::panic::catch_unwind(|| Sandbox::below(Path::new("/dev/shm"))) else {
        crate::support::skipped("needs a writable /dev/shm");
        return;
    };
    sandbox.ok(args!["init"]);
    let path = sandbox.write("file", "with a large attribute");
    let value = generate::noise(64, 65_536);
    let user = generate::set_xattr(&path, "user.large", &value);
    if !(user || is_root() && generate::set_xattr(&path, "trusted.large", &value)) {
        crate::support::skipped("needs attributes of 64 KiB in /dev/shm");
        return;
    }
    sandbox.backup();
    assert_same(&sandbox.source(), &sandbox.restore("latest", "copy"));
    if crate::support::has_fuse() {
        let mount = sandbox.mount("mnt");
        assert_same(&sandbox.source(), &mount.latest());
        mount.unmount();
    }
}

fn crowd(sandbox: &Sandbox, count: usize) {
    generate::crowd(&sandbox.source().join("crowd"), count);
    sandbox.backup();
    let copy = sandbox.restore("latest", "copy");
    assert_same(&sandbox.source(), &copy);
    if crate::support::has_fuse() {
        let mount = sandbox.mount("mnt");
        assert_same(&sandbox.source(), &mount.latest());
        // A single name is found without the others.
        assert!(mount.latest().join("crowd/entry-0000100").exists());
        assert!(!mount.latest().join("crowd/entry-0000100x").exists());
        mount.unmount();
    }
}

#[test]
fn a_directory_may_have_100_000_entries() {
    crowd(&Sandbox::fast(), 100_000);
}

#[test]
#[ignore = "slow group: takes minutes"]
fn slow_a_directory_may_have_1_000_000_entries() {
    crowd(&Sandbox::new(), 1_000_000);
}
