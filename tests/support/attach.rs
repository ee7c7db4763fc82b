//! What a test attaches to the running system and takes off again, however it ends: overlays, loop devices, mounts.
//!
//! For root only. Each ends exactly what it began, by its path or device, and nothing that it finds there.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Runs a command, which must succeed, and returns what it printed.
pub fn run(program: &str, args: impl IntoIterator<Item: AsRef<OsStr>>) -> String {
    let args: Vec<OsString> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
    let output = Command::new(program)
        .args(&args)
        .stdin(Stdio::null())
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let line: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
    assert!(output.status.success(), "{program} {}: {}\n{out}\n{err}", line.join(" "), output.status);
    out.into_owned()
}

/// A mount of the kernel's, until it is dropped.
pub struct Attached(PathBuf);

impl Attached {
    /// Mounts `what` on the new directory `on`; `None` where the kernel refuses, as containers do.
    pub fn mount(args: &[&str], what: &Path, on: PathBuf) -> Option<Self> {
        if !on.exists() {
            fs::create_dir_all(&on).unwrap();
        }
        let output = Command::new("mount").args(args).arg(what).arg(&on).output().unwrap();
        if !output.status.success() {
            eprintln!("mount {args:?}: {}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        Some(Self(on))
    }

    /// A writable overlay over `lower`: what is written lands in `dir/upper`, the whole is `dir/merged`.
    pub fn overlay(lower: &Path, dir: &Path) -> Option<Self> {
        for name in ["upper", "work"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        let options =
            format!("lowerdir={},upperdir={1}/upper,workdir={1}/work", lower.display(), dir.to_str().unwrap());
        Self::mount(&["-t", "overlay", "-o", &options], Path::new("overlay"), dir.join("merged"))
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.0
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let quiet = |args: &[&str]| {
            Command::new("umount").args(args).arg(&self.0).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
        };
        if !quiet(&[]) {
            quiet(&["--lazy"]);
        }
    }
}

/// A loop device, until it is dropped.
pub struct Loop(PathBuf);

impl Loop {
    /// A device on `file`; `None` where there are none to be had.
    pub fn attach(args: &[&str], file: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(args).args(["--find", "--show"]).arg(file).output().unwrap();
        if !output.status.success() {
            eprintln!("losetup: {}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        Some(Self(String::from_utf8(output.stdout).unwrap().trim().into()))
    }

    /// The device.
    pub fn device(&self) -> &Path {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).stderr(Stdio::null()).status();
    }
}

/// A server of the test's own, until it is dropped.
pub struct Server(pub Child);

impl Server {
    /// Starts it; what it says is kept in `log`.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let log = fs::File::create(log).unwrap();
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        Self(child.unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// Asks it to end, and waits.
    pub fn end(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let ended = super::mount::within(std::time::Duration::from_secs(60), || self.0.try_wait().unwrap().is_some());
        assert!(ended, "process {pid:?} does not end");
    }

    /// Kills it, as a power failure would.
    pub fn crash(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.crash();
    }
}
