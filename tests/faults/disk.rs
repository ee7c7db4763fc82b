//! A full disk, in the repository and in the cache.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::support::compare::assert_same;
use crate::support::generate;
use crate::support::sandbox::Sandbox;

/// A small file system in memory, mounted for the length of a test.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(dir: PathBuf, size: &str) -> Self {
        fs::create_dir_all(&dir).unwrap();
        let disk = Self(dir);
        disk.run(&["mount", "-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
        disk
    }

    fn resize(&self, size: &str) {
        self.run(&["mount", "-o", &format!("remount,size={size}")]);
    }

    fn run(&self, command: &[&str]) {
        let done = Command::new(command[0]).args(&command[1..]).arg(&self.0).status().unwrap();
        assert!(done.success(), "{command:?}");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_ends_the_backup_without_a_snapshot_and_harms_nothing() {
    needs_root!();
    // Several sizes, so that different writes are the first to fail.
    for size_kib in [2000, 3500, 8000, 11_000, 16_500, 18_000] {
        let sandbox = Sandbox::empty();
        let disk = SmallDisk::mount(sandbox.repository(), "1m");
        sandbox.ok(args!["init"]);
        sandbox.write("early", generate::noise(1, 100_000));
        sandbox.backup();
        disk.resize(&format!("{size_kib}k"));
        let large = sandbox.write("large", generate::noise(2, 24 << 20));
        let run = sandbox.run(args!["backup", sandbox.source()]).expect_code(1);
        assert!(run.err().contains("No space left on device"), "{run:?}");
        assert_eq!(sandbox.snapshots().len(), 1, "{run:?}");
        sandbox.ok(args!["check", "--read-data"]);
        disk.resize("128m");
        sandbox.backup();
        sandbox.ok(args!["check", "--read-data"]);
        assert_same(&sandbox.source(), &sandbox.restore("latest", "copy"));
        fs::remove_file(large).unwrap();
        let first = &sandbox.snapshots()[0];
        let target = sandbox.restore(first, "copy-1");
        assert_eq!(fs::read(target.join("early")).unwrap(), generate::noise(1, 100_000));
        assert!(!target.join("large").exists());
    }
}

#[test]
fn a_full_disk_under_the_cache_costs_no_data() {
    needs_root!();
    let sandbox = Sandbox::empty();
    let _disk = SmallDisk::mount(sandbox.cache(), "64k");
    fs::write(sandbox.cache().join("filler"), vec![1; 60_000]).unwrap();
    sandbox.ok(args!["init"]);
    generate::contents(&sandbox.source().join("contents"));
    for _ in 0..2 {
        sandbox.backup();
        sandbox.ok(args!["check", "--read-data"]);
    }
    assert_same(&sandbox.source(), &sandbox.restore("latest", "copy"));
}

#[test]
fn a_full_disk_under_the_target_of_a_restore_is_named() {
    needs_root!();
    let sandbox = Sandbox::new();
    sandbox.write("large", generate::noise(2, 8 << 20));
    sandbox.backup();
    let target = sandbox.path("target");
    let _disk = SmallDisk::mount(target.clone(), "2m");
    let run = sandbox.run(args!["restore", "latest", "--target", target]);
    assert!(matches!(run.code, Some(1 | 3)), "{run:?}");
    assert!(run.err().contains("No space left on device") && run.err().contains("large"), "{run:?}");
}
