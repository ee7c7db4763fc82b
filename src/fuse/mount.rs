//! The kernel's side of a mount: attaching /dev/fuse to a directory, finding the mount again, detaching it.
//!
//! A mount is only ever detached after checking that what is mounted there is still ours.

use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::host::{self, FILE_SYSTEM, Mount};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

const DEVICE: &str = "/dev/fuse";
const FUSERMOUNT: &str = "fusermount3";
/// What the kernel reads ahead where we may say so: FUSE's default of 128 KiB would cap every request.
const READ_AHEAD_KIB: u32 = 1024;
/// How long a mount may be in use before that is an error: a process that ends, or that has become another program,
/// lets go of it a moment later than one would think.
const BUSY_WAIT: Duration = Duration::from_secs(2);
/// How often it is tried meanwhile.
const BUSY_INTERVAL: Duration = Duration::from_millis(50);

/// Why a directory could not be mounted on or a mount not be removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no FUSE, or the container none of its device.
    #[error(
        "{DEVICE} is missing: load the module with `modprobe fuse`, or give the container the device \
         (`--device {DEVICE} --cap-add SYS_ADMIN`)"
    )]
    NoDevice,
    /// The device may not be opened.
    #[error("{DEVICE} may not be opened by this user: `chmod 666 {DEVICE}`, as most systems have it")]
    DeviceDenied,
    /// An ordinary user needs the set-uid program.
    #[error("only root may mount without `{FUSERMOUNT}`, which is not installed: `apt install fuse3`")]
    NoFusermount,
    /// Mounting is refused to this process although it is root.
    #[error(
        "mounting on `{0}` is not permitted: this container lacks the right (`--cap-add SYS_ADMIN`, and no AppArmor \
         profile that forbids mounts)"
    )]
    NotPermitted(PathBuf),
    /// An ordinary user may not let others in.
    #[error("--allow-other needs the line `user_allow_other` in /etc/fuse.conf")]
    AllowOther,
    /// fusermount3 refused.
    #[error("{FUSERMOUNT}: {0}")]
    Fusermount(String),
    /// Not a directory.
    #[error("`{0}` is not a directory")]
    NotDirectory(PathBuf),
    /// There is one already.
    #[error("`{0}` is a mount of bygone already: use it, or end it with `bygone umount {0}`")]
    Mounted(PathBuf),
    /// There is one that nobody serves.
    #[error("`{0}` is a mount of bygone whose process is gone: end it with `bygone umount {0}`")]
    Dead(PathBuf),
    /// A mount of ours was expected.
    #[error("`{0}` is not a mount of bygone")]
    NotOurs(PathBuf),
    /// It is in use.
    #[error("`{path}` is in use{by}: end that first, or take the mount out of sight with `bygone umount --lazy`")]
    Busy {
        /// The mount.
        path: PathBuf,
        /// By whom, for the message.
        by: String,
    },
    /// The system refused.
    #[error("cannot {op} `{path}`")]
    System {
        /// The operation.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Result of mounting and unmounting.
pub type Result<T> = std::result::Result<T, Error>;

/// A mount that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    /// The directory, absolute and without links.
    pub path: PathBuf,
    /// Major and minor device number, as /proc/self/mountinfo writes it.
    device: String,
}

/// What a mount allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Other users may enter; file permissions and ACLs decide.
    pub others: bool,
    /// Programs on it may be run.
    pub exec: bool,
}

/// Mounts a new FUSE connection on `directory`, read-only; returns the connection. `source` is what `mount` and `df`
/// show as the device.
pub fn attach(directory: &Path, source: &str, allowed: Allowed) -> Result<(OwnedFd, MountPoint)> {
    let system = |op| move |source| Error::System { op, path: directory.to_owned(), source };
    let path = fs::canonicalize(directory).map_err(system("find"))?;
    if device_at(&path).map_err(system("look for mounts at"))?.is_some() {
        // Attributes may be remembered; this is always asked.
        let is_served = !matches!(rustix::fs::statfs(&path), Err(Errno::NOTCONN));
        let error = if is_served { Error::Mounted } else { Error::Dead };
        return Err(error(directory.to_owned()));
    }
    let metadata = fs::metadata(&path).map_err(system("examine"))?;
    if !metadata.is_dir() {
        return Err(Error::NotDirectory(directory.to_owned()));
    }
    let device = OpenOptions::new().read(true).write(true).open(DEVICE).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::NoDevice,
        io::ErrorKind::PermissionDenied => Error::DeviceDenied,
        _ if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => Error::NoDevice,
        _ => Error::System { op: "open", path: DEVICE.into(), source: error },
    })?;
    if !device.metadata().is_ok_and(|metadata| metadata.file_type().is_char_device()) {
        return Err(Error::NoDevice);
    }
    let fd = match attach_directly(&device, &path, metadata.permissions().mode(), source, allowed) {
        Ok(()) => OwnedFd::from(device),
        Err(Errno::PERM) if rustix::process::geteuid().is_root() => return Err(Error::NotPermitted(path)),
        Err(Errno::PERM) => attach_by_program(&path, source, allowed)?,
        Err(Errno::NODEV) => return Err(Error::NoDevice),
        Err(errno) => return Err(system("mount on")(errno.into())),
    };
    let device = device_at(&path).map_err(system("find the mount at"))?.ok_or(Error::NotOurs(path.clone()))?;
    Ok((fd, MountPoint { path, device }))
}

fn attach_directly(
    device: &File,
    path: &Path,
    mode: u32,
    source: &str,
    allowed: Allowed,
) -> std::result::Result<(), Errno> {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let others = if allowed.others { ",allow_other" } else { "" };
    let options =
        format!("fd={},rootmode={mode:o},user_id={uid},group_id={gid},default_permissions{others}", device.as_raw_fd());
    let options = CString::new(options).expect("numbers and words");
    let mut flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    flags.set(MountFlags::NOEXEC, !allowed.exec);
    rustix::mount::mount(source, path, FILE_SYSTEM, flags, options.as_c_str())
}

/// Lets the set-uid program mount; it hands the connection over through a socket.
fn attach_by_program(path: &Path, source: &str, allowed: Allowed) -> Result<OwnedFd> {
    let system = |source| Error::System { op: "talk to", path: FUSERMOUNT.into(), source };
    let escaped: String =
        source.chars().flat_map(|c| matches!(c, ',' | '\\').then_some('\\').into_iter().chain([c])).collect();
    let others = if allowed.others { ",allow_other" } else { "" };
    let exec = if allowed.exec { "" } else { ",noexec" };
    let options = format!("ro,nosuid,nodev,noatime,default_permissions,subtype=bygone,fsname={escaped}{others}{exec}");
    let (ours, theirs) = UnixStream::pair().map_err(system)?;
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).map_err(|errno| system(errno.into()))?;
    let child = Command::new(FUSERMOUNT)
        .args(["-o", &options, "--"])
        .arg(path)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| if error.kind() == io::ErrorKind::NotFound { Error::NoFusermount } else { system(error) })?;
    drop(theirs);
    let received = receive_fd(&ours);
    let output = child.wait_with_output().map_err(system)?;
    if let (true, Some(fd)) = (output.status.success(), received.map_err(|errno| system(errno.into()))?) {
        return Ok(fd);
    }
    let message = String::from_utf8_lossy(&output.stderr);
    if message.contains("user_allow_other") {
        return Err(Error::AllowOther);
    }
    let message = message.trim().trim_start_matches(FUSERMOUNT).trim_start_matches(':').trim();
    Err(Error::Fusermount(message.replace('\n', "; ")))
}

fn receive_fd(socket: &UnixStream) -> std::result::Result<Option<OwnedFd>, Errno> {
    let mut byte = [0];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut messages = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [io::IoSliceMut::new(&mut byte)];
    rustix::io::retry_on_intr(|| rustix::net::recvmsg(socket, &mut slices, &mut messages, RecvFlags::CMSG_CLOEXEC))?;
    Ok(messages.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    }))
}

impl MountPoint {
    /// Whether the mount is still there and on top.
    pub fn is_mounted(&self) -> bool {
        device_at(&self.path).is_ok_and(|device| device.as_ref() == Some(&self.device))
    }

    /// Removes the mount; if it is in use, it vanishes from sight now and goes when its last user does. No error if
    /// it is gone already.
    pub fn detach(&self) -> Result<()> {
        if self.is_mounted() { detach(&self.path, true).map(drop) } else { Ok(()) }
    }

    /// Lets the kernel read further ahead. Only root may; without it reads come in smaller pieces.
    pub fn raise_read_ahead(&self) {
        let setting = format!("/sys/class/bdi/{}/read_ahead_kb", self.device);
        let _ = fs::write(setting, READ_AHEAD_KIB.to_string());
    }
}

/// Removes the mount of ours at `directory`. One that stays in use is refused, or with `lazily` vanishes from sight and
/// goes later.
pub fn detach_at(directory: &Path, lazily: bool) -> Result<()> {
    // The directory itself may be unreadable if its process died; only what is above it is asked.
    let absolute = std::path::absolute(directory);
    let path = match (directory.file_name(), absolute.as_ref().ok().and_then(|path| path.parent())) {
        (Some(name), Some(parent)) => fs::canonicalize(parent).map(|parent| parent.join(name)),
        _ => fs::canonicalize(directory),
    }
    .map_err(|source| Error::System { op: "find", path: directory.to_owned(), source })?;
    let linked = fs::read_link(&path).is_ok().then(|| fs::canonicalize(&path).ok()).flatten();
    let path = linked.unwrap_or(path);
    let point = match device_at(&path) {
        Ok(Some(device)) => MountPoint { path, device },
        Ok(None) => return Err(Error::NotOurs(directory.to_owned())),
        Err(source) => return Err(Error::System { op: "find the mount at", path, source }),
    };
    let from = Instant::now();
    while !detach(&point.path, lazily)? {
        if from.elapsed() >= BUSY_WAIT {
            return Err(busy(&point.path));
        }
        std::thread::sleep(BUSY_INTERVAL);
        // Somebody else has ended it, and what is there now is not ours to end.
        if !point.is_mounted() {
            break;
        }
    }
    Ok(())
}

/// Tries to remove the mount at `path`; false if it is in use.
fn detach(path: &Path, lazily: bool) -> Result<bool> {
    let system = |source| Error::System { op: "unmount", path: path.to_owned(), source };
    match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW) {
        Ok(()) => return Ok(true),
        Err(Errno::BUSY) if lazily => {
            let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
            return rustix::mount::unmount(path, flags).map(|()| true).map_err(|errno| system(errno.into()));
        }
        Err(Errno::BUSY) => return Ok(false),
        Err(Errno::PERM) if !rustix::process::geteuid().is_root() => {}
        Err(errno) => return Err(system(errno.into())),
    }
    let output = Command::new(FUSERMOUNT)
        .args(if lazily { ["-u", "-z", "--"].as_slice() } else { &["-u", "--"] })
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| if error.kind() == io::ErrorKind::NotFound { Error::NoFusermount } else { system(error) })?;
    if output.status.success() {
        return Ok(true);
    }
    let message = String::from_utf8_lossy(&output.stderr);
    if message.contains("busy") {
        return Ok(false);
    }
    let message = message.trim().trim_start_matches(FUSERMOUNT).trim_start_matches(':').trim();
    Err(Error::Fusermount(message.replace('\n', "; ")))
}

/// The error that the mount at `path` is in use.
fn busy(path: &Path) -> Error {
    let holders = super::holders::of(path);
    let by = if holders.is_empty() { String::new() } else { format!(" by {}", holders.join(", ")) };
    Error::Busy { path: path.to_owned(), by }
}

/// The device number of the topmost mount at `path` if it is one of ours. The directory itself is not touched: its
/// process may be gone, or be this very thread.
fn device_at(path: &Path) -> io::Result<Option<String>> {
    Ok(topmost(host::mounts()?, path.as_os_str()))
}

fn topmost(mounts: Vec<Mount>, path: &OsStr) -> Option<String> {
    let last = mounts.into_iter().rfind(|mount| mount.point == path);
    last.filter(|mount| mount.is_repository).map(|mount| mount.device)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &[u8] = b"25 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
        30 25 0:50 / /mnt/a\\040b ro,nosuid - fuse.bygone bygone:/srv/a ro,user_id=0\n\
        31 25 0:51 / /mnt/c ro master:3 shared:4 - fuse.bygone x ro\n\
        32 25 0:52 / /mnt/c rw - tmpfs tmpfs rw\n";

    #[test]
    fn only_the_topmost_mount_counts_and_only_if_it_is_ours() {
        let topmost = |path: &str| topmost(host::parse_mounts(MOUNTS), OsStr::new(path));
        assert_eq!(topmost("/mnt/a b"), Some("0:50".into()));
        assert_eq!(topmost("/mnt/c"), None, "something else is mounted over ours");
        assert_eq!(topmost("/"), None);
        assert_eq!(topmost("/mnt"), None);
    }

    #[test]
    fn a_mount_that_is_gone_is_not_unmounted_again() {
        let directory = tempfile::tempdir().unwrap();
        let point = MountPoint { path: directory.path().to_owned(), device: "0:1".into() };
        assert!(!point.is_mounted());
        assert!(point.detach().is_ok());
        assert!(matches!(detach_at(directory.path(), false), Err(Error::NotOurs(_))));
    }
}
