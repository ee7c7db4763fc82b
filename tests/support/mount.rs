//! A mount that ends with the test, however the test ends.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::sandbox::{Run, Sandbox};

/// A mounted repository.
pub struct Mount<'a> {
    sandbox: &'a Sandbox,
    dir: PathBuf,
}

impl Sandbox {
    /// Mounts the repository on a new directory `name`; the program goes into the background when the mount is ready.
    pub fn mount(&self, name: &str) -> Mount<'_> {
        self.mount_with(name, args![])
    }

    /// Mounts with more arguments; the directory comes last.
    pub fn mount_with(&self, name: &str, more: Vec<OsString>) -> Mount<'_> {
        let dir = self.path(name);
        fs::create_dir_all(&dir).unwrap();
        let mount = Mount { sandbox: self, dir };
        let mut args = args!["mount"];
        args.extend(more);
        args.push(mount.dir.clone().into());
        self.ok(args);
        assert!(is_mounted(&mount.dir), "{} is not mounted although the program came back", mount.dir.display());
        mount
    }
}

impl Mount<'_> {
    /// The mount point.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The source as the latest snapshot has it.
    pub fn latest(&self) -> PathBuf {
        self.snapshot("latest")
    }

    /// The source as the snapshot `name` of `snapshots/` has it.
    pub fn snapshot(&self, name: &str) -> PathBuf {
        let source = self.sandbox.source();
        self.dir.join("snapshots").join(name).join(source.strip_prefix("/").unwrap())
    }

    /// Ends the mount the way a user does.
    pub fn unmount(self) -> Run {
        let run = self.sandbox.ok(args!["umount", self.dir]);
        assert!(!is_mounted(&self.dir), "{} is still mounted: {run:?}", self.dir.display());
        run
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if is_mounted(&self.dir) {
            let how: &[&str] = if super::is_root() { &["umount", "--lazy"] } else { &["fusermount3", "-u", "-z"] };
            let _ = Command::new(how[0]).args(&how[1..]).arg(&self.dir).stderr(Stdio::null()).status();
        }
    }
}

/// The line of mountinfo that shows `dir`.
pub fn mount_line(dir: &Path) -> Option<String> {
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let shown = dir.to_str().unwrap();
    all.lines().find(|line| line.split(' ').nth(4) == Some(shown)).map(str::to_owned)
}

/// Whether something is mounted on `dir`.
pub fn is_mounted(dir: &Path) -> bool {
    mount_line(dir).is_some()
}

/// Waits until `done`, but not for ever; false if it never was.
pub fn within(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let from = Instant::now();
    while from.elapsed() < limit {
        if done() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    done()
}
