//! The most that a mount can give: a file system that costs nothing but the kernel's protocol.
//!
//! `ceiling null DIRECTORY MOUNTPOINT` shows the tree below a directory with its names and sizes, every byte zero;
//! `ceiling pass DIRECTORY MOUNTPOINT` reads the bytes from the files themselves. Everything is known beforehand, with the
//! same flags of the protocol that the program asks for and watching for the next request as it does. It ends when it
//! is unmounted.

use std::collections::HashMap;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use bygone::fuse::POLL_DEFAULT;
use bygone::fuse::mount::Allowed;
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyOpen, ReplyXattr, Request,
    Session, SessionACL,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);
const READ_LEN_MAX: usize = 1 << 20;

struct Node {
    attr: FileAttr,
    path: PathBuf,
    entries: Vec<(OsString, usize)>,
    names: HashMap<OsString, usize>,
}

struct Ceiling {
    nodes: Vec<Node>,
    pass: bool,
    device: &'static OnceLock<OwnedFd>,
}

impl Ceiling {
    /// Adds the tree at `path`, a node a file in the order of a walk; returns its place.
    fn add(&mut self, path: &Path) -> io::Result<usize> {
        let metadata = fs::symlink_metadata(path)?;
        let place = self.nodes.len();
        let kind = match metadata.file_type() {
            kind if kind.is_dir() => FileType::Directory,
            kind if kind.is_symlink() => FileType::Symlink,
            _ => FileType::RegularFile,
        };
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(metadata.mtime() as u64);
        let attr = FileAttr {
            ino: INodeNo(place as u64 + 1),
            size: metadata.len(),
            blocks: metadata.blocks(),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm: (metadata.mode() & 0o7777) as u16,
            nlink: 1,
            uid: metadata.uid(),
            gid: metadata.gid(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        self.nodes.push(Node { attr, path: path.into(), entries: Vec::new(), names: HashMap::new() });
        if kind == FileType::Directory {
            let mut names: Vec<OsString> =
                fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
            names.sort();
            for name in names {
                let child = self.add(&path.join(&name))?;
                self.nodes[place].entries.push((name.clone(), child));
                self.nodes[place].names.insert(name, child);
            }
        }
        Ok(place)
    }

    fn node(&self, number: INodeNo) -> &Node {
        &self.nodes[number.0 as usize - 1]
    }

    /// Watches for the next request, as the program's own session thread does.
    fn watch(&self) {
        let Some(device) = self.device.get() else { return };
        let from = Instant::now();
        while from.elapsed() < POLL_DEFAULT {
            let mut fds = [PollFd::new(device, PollFlags::IN)];
            if poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0) {
                return;
            }
            std::hint::spin_loop();
        }
    }
}

impl Filesystem for Ceiling {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA;
        let offered = config.capabilities();
        let _ = config.add_capabilities(wanted & offered);
        let _ = config.set_max_background(64);
        let _ = config.set_max_write(READ_LEN_MAX as u32);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.node(parent).names.get(name) {
            Some(place) => reply.entry(&FOR_EVER, &self.nodes[*place].attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
        self.watch();
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOR_EVER, &self.node(number).attr);
        self.watch();
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        let target = fs::read_link(&self.node(number).path).unwrap_or_default();
        reply.data(target.as_os_str().as_encoded_bytes());
        self.watch();
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        len: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        static ZEROS: [u8; READ_LEN_MAX] = [0; READ_LEN_MAX];
        let node = self.node(number);
        let len = (node.attr.size.saturating_sub(offset) as usize).min(len as usize).min(READ_LEN_MAX);
        if self.pass {
            let mut bytes = vec![0; len];
            match File::open(&node.path).and_then(|file| file.read_exact_at(&mut bytes, offset)) {
                Ok(()) => reply.data(&bytes),
                Err(_) => reply.error(Errno::EIO),
            }
        } else {
            reply.data(&ZEROS[..len]);
        }
        self.watch();
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        for (at, (name, child)) in self.node(number).entries.iter().enumerate().skip(offset as usize) {
            let attr = &self.nodes[*child].attr;
            if reply.add(attr.ino, at as u64 + 1, attr.kind, name) {
                break;
            }
        }
        reply.ok();
        self.watch();
    }

    fn readdirplus(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        for (at, (name, child)) in self.node(number).entries.iter().enumerate().skip(offset as usize) {
            let attr = &self.nodes[*child].attr;
            if reply.add(attr.ino, at as u64 + 1, name, &FOR_EVER, attr, Generation(0)) {
                break;
            }
        }
        reply.ok();
        self.watch();
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENODATA);
        self.watch();
    }

    fn listxattr(&self, _: &Request, _: INodeNo, room: u32, reply: ReplyXattr) {
        if room == 0 {
            reply.size(0)
        } else {
            reply.data(&[])
        }
        self.watch();
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    static DEVICE: OnceLock<OwnedFd> = OnceLock::new();
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [kind, source, directory] = &arguments[..] else {
        return Err("usage: ceiling null|pass DIRECTORY MOUNTPOINT".into());
    };
    let mut ceiling = Ceiling { nodes: Vec::new(), pass: kind == "pass", device: &DEVICE };
    ceiling.add(Path::new(source))?;
    let (fd, point) =
        bygone::fuse::mount::attach(Path::new(directory), "ceiling", Allowed { others: false, exec: true })?;
    let mut config = Config::default();
    config.n_threads = Some(1);
    let session = Session::from_fd(ceiling, fd, SessionACL::All, config)?;
    let _ = DEVICE.set(session.as_fd().try_clone_to_owned()?);
    point.raise_read_ahead();
    session.run()?;
    Ok(())
}
