//! The first command of the README does what it says, with a mount and without one.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::support::sandbox::{Run, Sandbox, program, tools};

/// Runs `tools/quickstart` on the program under test, through `wrapper` if there is one.
fn quickstart(sandbox: &Sandbox, wrapper: &[&str]) -> Run {
    let script = tools().join("quickstart");
    let mut command = match wrapper {
        [] => assert_cmd::Command::new(&script),
        [first, rest @ ..] => {
            let mut command = assert_cmd::Command::new(first);
            command.args(rest).arg(&script);
            command
        }
    };
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", sandbox.path("home"))
        .env("TMPDIR", sandbox.path("tmp"))
        .env("BYGONE_BIN", program())
        .timeout(Duration::from_secs(300));
    let run = Run::of(&mut command).expect_code(0);
    let left = fs::read_dir(sandbox.path("tmp")).unwrap().count();
    assert_eq!(left, 0, "{left} things are left behind: {run:?}");
    run
}

#[test]
fn quickstart_shows_both_restore_points_as_directories() {
    needs_fuse!();
    let run = quickstart(&Sandbox::empty(), &[]);
    for step in ["init", "backup /etc", "snapshots", "mount /", "umount /"] {
        assert!(run.out().contains(&format!("\n$ bygone {step}")), "no step `bygone {step}`: {run:?}");
    }
}

#[test]
fn quickstart_restores_without_a_mount_where_fuse_is_missing() {
    needs_root!();
    let sandbox = Sandbox::empty();
    let hide = format!(": >{0} && mount --bind {0} /dev/fuse && exec \"$0\"", sandbox.path("not-a-device").display());
    let run = quickstart(&sandbox, &["unshare", "--mount", "--propagation", "private", "sh", "-c", &hide]);
    assert!(run.out().contains("/dev/fuse is missing: run `sudo modprobe fuse`"), "no hint: {run:?}");
    assert!(run.out().contains("\n$ bygone restore"), "{run:?}");
}

#[test]
fn scripts_are_valid_shell() {
    for script in ["quickstart", "test", "lib.sh"] {
        let path = tools().join(script);
        if path.exists() {
            assert!(Command::new("bash").arg("-n").arg(&path).status().unwrap().success(), "{script}");
        }
    }
}
