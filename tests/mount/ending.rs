//! How a mount waits and how it ends.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::mount::{Foreground, mount_line, within};
use crate::support::sandbox::Sandbox;

#[test]
fn a_mount_that_nobody_uses_takes_no_processor_time() {
    needs_fuse!();
    let sandbox = Sandbox::new();
    sandbox.write("file", "x");
    sandbox.backup();
    let mut mount = Foreground::start(&sandbox, &[]);
    fs::read_dir(sandbox.path("mnt").join("snapshots/latest")).unwrap().count();
    // What it does after it was asked takes longer on a busy machine; then it has nothing to do.
    let rests = || {
        let before = mount.ticks();
        std::thread::sleep(Duration::from_secs(3));
        mount.ticks() - before <= 1
    };
    assert!(within(Duration::from_secs(30), rests), "it never takes less than two hundredths of a second in three");
    mount.signal();
    assert!(mount.process.wait().unwrap().success());
}

#[test]
fn a_signal_does_not_unmount_what_others_mounted_on_top() {
    needs_fuse!();
    needs_root!();
    let sandbox = Sandbox::new();
    let mut mount = Foreground::start(&sandbox, &[]);
    let dir = sandbox.path("mnt");
    let run = |name: &str, args: &[&str]| Command::new(name).args(args).arg(&dir).status().unwrap().success();
    assert!(run("mount", &["-t", "tmpfs", "theirs"]));
    mount.signal();
    std::thread::sleep(Duration::from_millis(500));
    let lines = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let on_dir = |line: &&str| line.split(' ').nth(4) == dir.to_str();
    assert!(lines.lines().rfind(on_dir).unwrap().contains(" - tmpfs "), "{lines}");
    assert!(run("umount", &[]));
    mount.signal();
    mount.process.wait().unwrap();
    let _ = Command::new("umount").arg("--lazy").arg(&dir).stderr(Stdio::null()).status();
}

#[test]
fn a_signal_while_the_mount_is_in_use_lets_its_user_finish() {
    needs_fuse!();
    let sandbox = Sandbox::new();
    let bytes = crate::support::generate::noise(3, 3 << 20);
    sandbox.write("file", &bytes);
    sandbox.backup();
    let mut mount = Foreground::start(&sandbox, &[]);
    let file = sandbox.path("mnt/snapshots/latest").join(sandbox.source().strip_prefix("/").unwrap()).join("file");
    let mut file = fs::File::open(file).unwrap();
    mount.signal();
    assert!(within(Duration::from_secs(10), || mount_line(&sandbox.path("mnt")).is_none()));
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut read).unwrap();
    assert!(read == bytes);
    drop(file);
    assert!(mount.process.wait().unwrap().success());
}
