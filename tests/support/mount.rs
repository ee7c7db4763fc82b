//! A mount that ends with the test, however the test ends.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::sandbox::{Run, Sandbox, program};

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
        let mut args = args!["mount"];
        args.extend(more);
        args.push(dir.into());
        self.ok(args);
        self.mounted(name)
    }

    /// The mount that the program has made on the directory `name`.
    pub fn mounted(&self, name: &str) -> Mount<'_> {
        let mount = Mount { sandbox: self, dir: self.path(name) };
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
        detach(&self.dir);
    }
}

/// A mount on `mnt` that stays a child of the test.
pub struct Foreground {
    /// The program.
    pub process: Child,
    dir: PathBuf,
    log: PathBuf,
}

impl Foreground {
    /// Mounts; `wrapper` is a command that runs the program, if there is one.
    pub fn start(sandbox: &Sandbox, wrapper: &[&OsStr]) -> Self {
        let (dir, log) = (sandbox.path("mnt"), sandbox.path("mount.log"));
        fs::create_dir_all(&dir).unwrap();
        let program = program();
        let words = [wrapper, &[program.as_os_str()]].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(["mount", "-f"]).arg(&dir).env_clear().envs(sandbox.environment());
        command.stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
        let mount = Self { process: command.spawn().unwrap(), dir, log };
        let up = within(Duration::from_secs(30), || mount.dir.join("ids").exists());
        assert!(up, "the mount does not come up: {}", mount.said());
        mount
    }

    /// What it wrote to standard error.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Asks it to end.
    pub fn signal(&self) {
        kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap();
    }

    /// Time on a processor so far, in hundredths of a second.
    pub fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// The most memory it ever had, in KiB.
    pub fn memory_peak(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        detach(&self.dir);
    }
}

/// Takes a mount off that nobody serves any more, if it is there.
fn detach(dir: &Path) {
    if is_mounted(dir) {
        let how: &[&str] = if super::is_root() { &["umount", "--lazy"] } else { &["fusermount3", "-u", "-z"] };
        let _ = Command::new(how[0]).args(&how[1..]).arg(dir).stderr(Stdio::null()).status();
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

/// Opens a file to read it past the page cache. Like everything that a test opens on a mount, not for the programs that
/// other tests start meanwhile in this process: such a mount stayed in use for as long as they run.
pub fn open_direct(path: &Path) -> fs::File {
    fs::File::options().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap()
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
