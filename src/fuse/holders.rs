//! Who holds a mount that cannot be ended: processes, loop devices, other mounts. As far as this user may see them.
//!
//! Only tables and links of the kernel are read: what they lead to may hang.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::host;

/// Holders that are named at most.
const HOLDERS_MAX: usize = 5;
/// How long they are looked for: a host may have very many processes.
const TIME_MAX: Duration = Duration::from_secs(2);
/// Bytes of a process's table of mapped files that are read.
const MAPS_LEN_MAX: u64 = 4 << 20;

/// Those that hold the mount at `path`, for a message; the fewest and quickest found first.
pub(super) fn of(path: &Path) -> Vec<String> {
    let until = Instant::now() + TIME_MAX;
    let others = loop_devices(path).chain(mounts(path));
    others.chain(processes(path)).take_while(|_| Instant::now() < until).flatten().take(HOLDERS_MAX).collect()
}

fn directory(path: &str) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn loop_devices(path: &Path) -> impl Iterator<Item = Option<String>> {
    directory("/sys/block").map(move |device| {
        let mut file = fs::read(device.join("loop/backing_file")).ok()?;
        file.pop_if(|last| *last == b'\n');
        let file = PathBuf::from(OsString::from_vec(file));
        let name = device.file_name()?.display();
        file.starts_with(path).then(|| format!("/dev/{name} with `{}`", file.display()))
    })
}

/// Mounts below. Overlays with layers in it hold only its file system, not its place.
fn mounts(path: &Path) -> impl Iterator<Item = Option<String>> {
    host::mounts().unwrap_or_default().into_iter().map(move |mount| {
        let point = Path::new(&mount.point);
        (point != path && point.starts_with(path)).then(|| format!("the mount on `{}`", point.display()))
    })
}

fn processes(path: &Path) -> impl Iterator<Item = Option<String>> {
    directory("/proc").map(move |process| {
        let pid: u32 = process.file_name()?.to_str()?.parse().ok()?;
        holds(&process, path).then(|| {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            format!("{} (process {pid})", name.trim())
        })
    })
}

fn holds(process: &Path, path: &Path) -> bool {
    let links = ["cwd", "root"].map(|name| process.join(name)).into_iter();
    let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
    links.chain(open).any(|link| fs::read_link(link).is_ok_and(|target| target.starts_with(path)))
        || has_mapped(process, path)
}

/// Whether the process has a file in `path` mapped: see proc_pid_maps(5).
fn has_mapped(process: &Path, path: &Path) -> bool {
    let mut table = Vec::new();
    let _ = File::open(process.join("maps")).and_then(|file| file.take(MAPS_LEN_MAX).read_to_end(&mut table));
    table.split(|byte| *byte == b'\n').any(|line| {
        let from = line.iter().position(|byte| *byte == b'/').unwrap_or(line.len());
        Path::new(OsStr::from_bytes(&line[from..])).starts_with(path)
    })
}
