//! Disk images are used where they lie in a snapshot: attached, checked, mounted, written to through an overlay.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::attach::{Attached, Loop, Server, run};
use crate::support::generate::{noise, text};
use crate::support::mount::{Mount, within};
use crate::support::oracle::assert_rsync_finds_nothing;
use crate::support::sandbox::Sandbox;

/// A file system of 96 MiB as a raw image in the source, made of a directory that is returned.
fn image(sandbox: &Sandbox) -> PathBuf {
    let tree = sandbox.path("tree");
    fs::create_dir_all(tree.join("etc/nova")).unwrap();
    fs::write(tree.join("etc/nova/nova.conf"), text(1, 20_000)).unwrap();
    fs::write(tree.join("large"), noise(2, 20 << 20)).unwrap();
    for n in 0..300 {
        fs::write(tree.join(format!("etc/small-{n}")), text(n, 100 + n as usize * 37)).unwrap();
    }
    let raw = sandbox.source().join("disk.raw");
    fs::File::create(&raw).unwrap().set_len(96 << 20).unwrap();
    run("mkfs.ext4", args!["-q", "-F", "-d", tree, raw]);
    tree
}

fn same_bytes(one: &Path, other: &Path) {
    run("cmp", [one, other]);
}

/// The image in the mounted snapshot.
fn mounted(sandbox: &Sandbox) -> (Mount<'_>, PathBuf) {
    sandbox.backup();
    let mount = sandbox.mount("mnt");
    let raw = mount.latest().join("disk.raw");
    (mount, raw)
}

#[test]
fn a_raw_image_is_attached_checked_and_read_in_place() {
    needs_root!();
    needs_fuse!();
    needs_program!("mkfs.ext4");
    needs_program!("losetup");
    let sandbox = Sandbox::new();
    let tree = image(&sandbox);
    let (mount, raw) = mounted(&sandbox);
    for direct in ["--direct-io=off", "--direct-io=on"] {
        let Some(device) = Loop::attach(&["--read-only", direct], &raw) else {
            crate::support::skipped("no loop device is to be had");
            return;
        };
        run("fsck.ext4", args!["-n", "-f", device.device()]);
        let Some(inside) = Attached::mount(&["-t", "ext4", "-o", "ro"], device.device(), sandbox.path("inside")) else {
            panic!("the file system of the image cannot be mounted");
        };
        // mkfs makes one directory more.
        fs::create_dir_all(tree.join("lost+found")).unwrap();
        for name in ["etc/nova", "large"] {
            run("diff", args!["-r", tree.join(name), inside.dir().join(name)]);
        }
        assert_eq!(fs::read_dir(inside.dir().join("etc")).unwrap().count(), 301);
    }
    same_bytes(&sandbox.source().join("disk.raw"), &raw);
    mount.unmount();
}

#[test]
fn qemu_finds_images_on_the_mount_to_be_what_they_were() {
    needs_fuse!();
    needs_program!("mkfs.ext4");
    needs_program!("qemu-img");
    let sandbox = Sandbox::new();
    image(&sandbox);
    let original = sandbox.source().join("disk.raw");
    run("qemu-img", args!["convert", "-q", "-O", "qcow2", original, sandbox.source().join("disk.qcow2")]);
    let (mount, raw) = mounted(&sandbox);
    run("qemu-img", args!["compare", "-f", "raw", "-F", "raw", original, raw]);
    let qcow = mount.latest().join("disk.qcow2");
    let checked = run("qemu-img", args!["check", qcow]);
    assert!(checked.contains("No errors were found"), "{checked}");
    run("qemu-img", args!["compare", "-f", "qcow2", "-F", "raw", qcow, raw]);
    mount.unmount();
}

#[test]
fn a_disk_is_written_through_an_overlay_and_the_snapshot_stays() {
    needs_root!();
    needs_fuse!();
    needs_program!("mkfs.ext4");
    needs_program!("losetup");
    needs_program!("qemu-img");
    needs_program!("qemu-storage-daemon");
    let sandbox = Sandbox::new();
    let tree = image(&sandbox);
    let (mount, raw) = mounted(&sandbox);
    let (overlay, export) = (sandbox.path("overlay.qcow2"), sandbox.path("writable.raw"));
    run("qemu-img", args!["create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", overlay]);
    fs::write(&export, b"").unwrap();
    let log = sandbox.path("qemu.log");
    let mut command = Command::new("qemu-storage-daemon");
    command.args(["--blockdev", &format!("qcow2,node-name=disk,file.driver=file,file.filename={}", overlay.display())]);
    command.args([
        "--export",
        &format!("fuse,id=disk,node-name=disk,mountpoint={},writable=on,allow-other=off", export.display()),
    ]);
    let mut qemu = Server::start(&mut command, &log);
    let exported = || fs::metadata(&export).is_ok_and(|meta| meta.len() == 96 << 20);
    assert!(within(Duration::from_secs(20), exported), "no export: {}", fs::read_to_string(&log).unwrap());

    let inside = sandbox.path("inside");
    for round in 0..2 {
        let Some(device) = Loop::attach(&[], &export) else {
            crate::support::skipped("no loop device is to be had");
            return;
        };
        let writable = Attached::mount(&["-t", "ext4"], device.device(), inside.clone()).expect("it can be mounted");
        let new = writable.dir().join("etc/new");
        if round == 0 {
            fs::write(&new, noise(9, 5 << 20)).unwrap();
            fs::remove_file(writable.dir().join("etc/small-7")).unwrap();
        } else {
            assert!(fs::read(&new).unwrap() == noise(9, 5 << 20), "what was written is gone");
            assert!(!writable.dir().join("etc/small-7").exists());
            run("diff", args!["-r", tree.join("etc/nova"), writable.dir().join("etc/nova")]);
        }
        drop(writable);
        drop(device);
    }
    qemu.end();
    same_bytes(&sandbox.source().join("disk.raw"), &raw);
    assert_rsync_finds_nothing(&sandbox.source(), &mount.latest());
    mount.unmount();
}

#[test]
fn forensic_tools_read_files_out_of_a_mounted_image() {
    needs_fuse!();
    needs_program!("mkfs.ext4");
    needs_program!("fls");
    let sandbox = Sandbox::new();
    let tree = image(&sandbox);
    let (mount, raw) = mounted(&sandbox);
    let listed = run("fls", args!["-r", "-p", "-u", raw]);
    let line = listed.lines().find(|line| line.ends_with("\tetc/nova/nova.conf")).expect("fls lists the file");
    let inode = line.split_whitespace().nth(1).unwrap().trim_end_matches(':');
    let read = Command::new("icat").arg(&raw).arg(inode).output().unwrap();
    assert!(read.stdout == fs::read(tree.join("etc/nova/nova.conf")).unwrap(), "icat reads something else");
    mount.unmount();
}
