//! The kernel's protocol on one side, [`Vfs`] on the other. Decides how requests are waited for and how long the kernel
//! may remember answers; what is in the file system is decided elsewhere.
//!
//! One session thread takes requests. It answers from memory itself, and decodes if nobody else waits; whatever must wait
//! for storage goes to workers. After an answer it watches the device for a moment instead of
//! sleeping, because waking a thread costs more than answering most requests; or, if there is other work for the only
//! other processor, it shares the reader's.

pub mod awake;
mod companion;
mod holders;
pub mod mount;
pub mod stats;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, Notifier, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request, Session, SessionACL,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};

use crate::backend::deadline::without_waiting;
use crate::format::tree::Time;
use crate::pool::{Pool, Urgency, cores};
use crate::vfs::{self, Attr, FileKind, Prefill, Seek, Vfs, Wait};
use awake::{Awake, Pace};
use companion::Companion;
use mount::{Allowed, MountPoint};
use stats::{Kind, STATS_XATTR, Stats};

/// For what never changes.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// For the views, which change when snapshots come and go.
const BRIEFLY: Duration = Duration::from_secs(1);
/// How long the session thread watches for the next request before it sleeps.
pub const POLL_DEFAULT: Duration = Duration::from_micros(150);
/// Requests the kernel may have in flight on its own account, such as read-ahead.
const BACKGROUND_MAX: u16 = 64;
/// Longest request for data.
const READ_LEN_MAX: u32 = 1 << 20;
/// Threads that wait for a remote store.
const REMOTE_WORKERS: usize = 16;
/// Threads that hand over what nobody has asked for yet, from a remote store.
const REMOTE_PREFILLERS: usize = 8;
/// Hand-overs that may wait at once; more are not worth it.
const PREFILLS_MAX: usize = 32;

/// How to mount.
pub struct Options {
    /// What `mount` and `df` show as the device.
    pub source: String,
    /// What the mount allows.
    pub allowed: Allowed,
    /// How long to watch for the next request before sleeping; zero for not at all.
    pub poll: Duration,
    /// Extended attributes and ACLs are shown. If not, the kernel stops asking for them, which it does three times for
    /// each file that is copied.
    pub xattrs: bool,
    /// The store is reached through a network: nothing waits for it on the session thread.
    pub remote: bool,
    /// Told of every failure that readers see as an I/O error.
    pub on_error: Box<dyn Fn(&vfs::Error) + Send + Sync>,
}

/// A running mount.
pub struct Mounted {
    point: MountPoint,
    session: JoinHandle<io::Result<()>>,
}

/// Mounts `vfs` on `directory`. Requests are served when this returns.
pub fn mount(vfs: Arc<Vfs>, directory: &Path, options: Options) -> mount::Result<Mounted> {
    let (fd, point) = mount::attach(directory, &options.source, options.allowed)?;
    let failed = |op: &'static str| {
        let point = point.clone();
        move |source: io::Error| {
            let _ = point.detach();
            mount::Error::System { op, path: point.path, source }
        }
    };
    let workers = if options.remote { REMOTE_WORKERS } else { cores() };
    let pool = Pool::new("mount", workers).map_err(failed("start threads for"))?;
    let shared = Arc::new(Shared {
        vfs,
        on_error: options.on_error,
        notifier: OnceLock::new(),
        stats: Stats::default(),
        waiting: AtomicUsize::new(0),
    });
    let watch = Arc::new(OnceLock::new());
    let prefillers = if options.remote { REMOTE_PREFILLERS } else { cores() };
    let prefill = Prefiller {
        pool: Pool::new("prefill", prefillers).map_err(failed("start threads for"))?,
        waiting: Arc::new(AtomicUsize::new(0)),
        watch: watch.clone(),
    };
    let adapter = Adapter {
        shared: shared.clone(),
        pool,
        prefill,
        watch: watch.clone(),
        remote: options.remote,
        allow_other: options.allowed.others,
        xattrs: options.xattrs,
        no_open: false,
        no_opendir: false,
    };
    let mut config = Config::default();
    config.n_threads = Some(1);
    // The kernel itself lets nobody in but the owner unless `allow_other` was given, so fuser need not ask again.
    let session = Session::from_fd(adapter, fd, SessionACL::All, config).map_err(failed("set up"))?;
    let device = session.as_fd().try_clone_to_owned().map_err(failed("set up"))?;
    assert!(watch.set(Watch::new(device, options.poll)).is_ok(), "set once");
    assert!(shared.notifier.set(session.notifier()).is_ok(), "set once");
    point.raise_read_ahead();
    let session =
        std::thread::Builder::new().name("session".into()).spawn(|| session.run()).map_err(failed("serve"))?;
    Ok(Mounted { point, session })
}

impl Mounted {
    /// Where.
    pub fn point(&self) -> &MountPoint {
        &self.point
    }

    /// Waits until somebody unmounts it.
    pub fn wait(self) -> io::Result<()> {
        self.session.join().unwrap_or_else(|_| Err(io::Error::other("the session thread panicked")))
    }
}

/// What an answer needs, on whichever thread.
struct Shared {
    vfs: Arc<Vfs>,
    on_error: Box<dyn Fn(&vfs::Error) + Send + Sync>,
    notifier: OnceLock<Notifier>,
    stats: Stats,
    /// Requests that workers have, or will.
    waiting: AtomicUsize,
}

struct Adapter {
    shared: Arc<Shared>,
    pool: Pool,
    prefill: Prefiller,
    watch: Arc<OnceLock<Watch>>,
    remote: bool,
    allow_other: bool,
    xattrs: bool,
    no_open: bool,
    no_opendir: bool,
}

/// Fills the kernel's page cache ahead of readers, never on the session thread: the kernel makes it wait for pages that
/// are being read, which only the session thread can end.
struct Prefiller {
    pool: Pool,
    waiting: Arc<AtomicUsize>,
    watch: Arc<OnceLock<Watch>>,
}

impl Prefiller {
    fn submit(&self, shared: &Arc<Shared>, what: Prefill) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= PREFILLS_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return shared.vfs.not_prefilled(&what);
        }
        let (shared, waiting, watch) = (shared.clone(), self.waiting.clone(), self.watch.clone());
        self.pool.submit(Urgency::Normal, move || {
            waiting.fetch_sub(1, Ordering::Relaxed);
            let Some(watch) = watch.get() else { return };
            let mut take = |number, offset, bytes: &[u8]| {
                let is_known = store(&watch.device, number, offset, bytes).is_ok();
                if is_known {
                    shared.stats.prefilled(bytes.len());
                }
                is_known
            };
            let is_idle = || {
                let others = shared.waiting.load(Ordering::Relaxed) + waiting.load(Ordering::Relaxed);
                others == 0 && !watch.is_pending()
            };
            shared.vfs.prefill(&what, &mut take, &is_idle);
        });
    }
}

/// Hands bytes of a file to the page cache. Fails if the kernel does not know the inode, which fuser's own call keeps to
/// itself: whoever fills ahead of a reader has to know.
fn store(device: &OwnedFd, number: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
    // fuse_out_header, with the notification's code in place of an error and no request, then fuse_notify_store_out.
    const HEADERS_LEN: usize = 16 + 24;
    const NOTIFY_STORE: i32 = 4;
    let mut headers = Vec::with_capacity(HEADERS_LEN);
    headers.extend_from_slice(&((HEADERS_LEN + bytes.len()) as u32).to_ne_bytes());
    headers.extend_from_slice(&NOTIFY_STORE.to_ne_bytes());
    headers.extend_from_slice(&0u64.to_ne_bytes());
    headers.extend_from_slice(&number.to_ne_bytes());
    headers.extend_from_slice(&offset.to_ne_bytes());
    headers.extend_from_slice(&(bytes.len() as u32).to_ne_bytes());
    headers.extend_from_slice(&0u32.to_ne_bytes());
    rustix::io::writev(device, &[io::IoSlice::new(&headers), io::IoSlice::new(bytes)])?;
    Ok(())
}

/// Watches the device for requests.
struct Watch {
    device: OwnedFd,
    /// How long, after each request.
    time: Duration,
    cores: usize,
    awake: Option<Awake>,
    state: Mutex<WatchState>,
}

#[derive(Default)]
struct WatchState {
    /// Watches in a row that saw no request.
    idle: u32,
    /// Whether all cores had other work when that was last looked at.
    busy: bool,
    /// Whether this process's other threads had much to do before that: decoding ahead.
    decodes: bool,
    looked: Option<Instant>,
    /// Processor time that they had taken by then.
    others: Duration,
    companion: Option<Companion>,
    pace: Pace,
}

impl WatchState {
    /// The other threads have much to do when they take one part in so many of the time.
    const OTHERS_SHARE: u32 = 4;

    /// Looks what work there is besides answering.
    fn look(&mut self, now: Instant, cores: usize) {
        let others = time_of(ClockId::ProcessCPUTime).saturating_sub(time_of(ClockId::ThreadCPUTime));
        let since = self.looked.replace(now).map_or(Duration::MAX, |looked| now - looked);
        let taken = others.saturating_sub(std::mem::replace(&mut self.others, others));
        self.decodes = taken * Self::OTHERS_SHARE > since;
        self.busy = threads_running().is_some_and(|running| running > cores);
    }

    /// Keeps this thread with `client` if that leaves the only other processor to other work; returns whether it does.
    fn shares(&mut self, client: u32) -> bool {
        let has_work = self.busy || self.decodes;
        let Some(companion) = &mut self.companion else { return false };
        let shares = has_work && companion.follow(client);
        if !shares {
            companion.leave();
        }
        shares
    }
}

fn time_of(clock: ClockId) -> Duration {
    Duration::try_from(clock_gettime(clock)).unwrap_or_default()
}

impl Watch {
    /// Watches in vain after which most are skipped: whoever asks is slower than this.
    const IDLE_MAX: u32 = 4;
    /// One in so many is not skipped, to notice when requests become frequent.
    const PROBE: u32 = 8;
    /// How often to look whether cores are free.
    const LOOK: Duration = Duration::from_millis(10);

    fn new(device: OwnedFd, time: Duration) -> Self {
        let cores = cores();
        // With one core, watching would keep the reader from running.
        let time = if cores > 1 { time } else { Duration::ZERO };
        let awake = if time.is_zero() { None } else { Awake::new() };
        let state = WatchState { companion: Companion::new(), ..WatchState::default() };
        Self { device, time, cores, awake, state: Mutex::new(state) }
    }

    /// Whether a request waits (or the connection ended, which reading from it will tell).
    fn is_pending(&self) -> bool {
        let mut fds = [PollFd::new(&self.device, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Returns when a request waits or none came for a while, and the thread may as well sleep. The thread `client` made
    /// the last one.
    fn watch(&self, client: u32) {
        if self.time.is_zero() {
            return;
        }
        let mut state = self.state.lock().expect("no panic while held");
        if let Some(awake) = &self.awake {
            awake.count(&mut state.pace);
        }
        let start = Instant::now();
        if state.looked.is_none_or(|at| start - at > Self::LOOK) {
            state.look(start, self.cores);
        }
        if state.shares(client) {
            return;
        }
        let skip = state.idle >= Self::IDLE_MAX && !state.idle.is_multiple_of(Self::PROBE);
        state.idle = state.idle.wrapping_add(1);
        if skip || state.busy {
            return;
        }
        while start.elapsed() < self.time {
            if self.is_pending() {
                state.idle = 0;
                return;
            }
            std::hint::spin_loop();
        }
    }
}

/// Threads of the whole system that run or could run now, this one among them: see proc_loadavg(5).
fn threads_running() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split(' ').nth(3)?.split('/').next()?.parse().ok()
}

/// What programs see of an error.
fn errno(error: &vfs::Error) -> Errno {
    match error {
        vfs::Error::NotFound => Errno::ENOENT,
        vfs::Error::Stale => Errno::ESTALE,
        vfs::Error::NotDirectory => Errno::ENOTDIR,
        vfs::Error::IsDirectory => Errno::EISDIR,
        vfs::Error::Invalid => Errno::EINVAL,
        vfs::Error::NoAttribute => Errno::ENODATA,
        vfs::Error::NoData => Errno::ENXIO,
        vfs::Error::WouldBlock => Errno::EAGAIN,
        vfs::Error::Repository(_) => Errno::EIO,
    }
}

/// A reply that an error can be sent to.
trait Fail: Send + 'static {
    fn fail(self, errno: Errno);
}

macro_rules! fail {
    ($($reply:ty),*) => {
        $(impl Fail for $reply {
            fn fail(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

fail!(ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyLseek, ReplyXattr);

/// Answers one request: takes the reply and sends it, or returns an error and leaves it.
trait Work<R>: Fn(&Vfs, Wait, &mut Option<R>) -> vfs::Result<()> {}
impl<R, F: Fn(&Vfs, Wait, &mut Option<R>) -> vfs::Result<()>> Work<R> for F {}

impl Shared {
    /// Does the work of a request that came at `came`; gives the reply back if it would have waited, and must not.
    fn attempt<R: Fail>(&self, kind: Kind, came: Instant, wait: Wait, reply: R, work: &impl Work<R>) -> Option<R> {
        let mut reply = Some(reply);
        // A panic drops the reply, and fuser answers a dropped one with EIO.
        let result = catch_unwind(AssertUnwindSafe(|| work(&self.vfs, wait, &mut reply)));
        let answered = |failed| self.stats.answered(kind, came.elapsed(), wait == Wait::Yes, failed);
        match result.ok()? {
            Ok(()) => {
                answered(false);
                None
            }
            Err(vfs::Error::WouldBlock) => reply,
            Err(error) => {
                // A name or attribute that is not there is an answer, too.
                answered(matches!(error, vfs::Error::Repository(_)));
                if matches!(error, vfs::Error::Repository(_)) {
                    (self.on_error)(&error);
                }
                reply?.fail(errno(&error));
                None
            }
        }
    }

    /// Reads the list of snapshots again and has the kernel forget the listings that changed.
    fn refresh(&self) {
        match self.vfs.refresh() {
            Ok(changed) => {
                for number in changed {
                    if let Some(notifier) = self.notifier.get() {
                        let _ = notifier.inval_inode(INodeNo(number), 0, 0);
                    }
                }
            }
            // What was known is shown on.
            Err(error) => (self.on_error)(&error),
        }
    }
}

impl Adapter {
    /// Answers a request about the inode `number`, and watches for the next one.
    fn serve<R: Fail>(
        &self,
        request: &Request,
        kind: Kind,
        number: INodeNo,
        reply: R,
        work: impl Work<R> + Send + 'static,
    ) {
        self.answer(kind, number, reply, work);
        self.rest(request);
    }

    fn answer<R: Fail>(&self, kind: Kind, number: INodeNo, reply: R, work: impl Work<R> + Send + 'static) {
        let came = Instant::now();
        let stale = self.shared.vfs.is_stale(number.0);
        let unanswered = if stale { Some(reply) } else { self.shared.attempt(kind, came, Wait::No, reply, &work) };
        // Whoever comes next would wait while this thread decodes.
        let is_busy = || stale || self.remote || self.watch.get().is_none_or(Watch::is_pending);
        let unanswered = match unanswered {
            Some(reply) if !is_busy() => without_waiting(|| self.shared.attempt(kind, came, Wait::Yes, reply, &work)),
            unanswered => unanswered,
        };
        let Some(reply) = unanswered else { return };
        let shared = self.shared.clone();
        shared.waiting.fetch_add(1, Ordering::Relaxed);
        self.pool.submit(Urgency::Urgent, move || {
            if stale {
                shared.refresh();
            }
            shared.attempt(kind, came, Wait::Yes, reply, &work);
            shared.waiting.fetch_sub(1, Ordering::Relaxed);
        });
    }

    fn rest(&self, after: &Request) {
        if let Some(watch) = self.watch.get() {
            watch.watch(after.pid());
        }
    }
}

thread_local! {
    /// What a read request is answered from.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn lifetime(attr: &Attr) -> &'static Duration {
    if attr.lasting { &FOR_EVER } else { &BRIEFLY }
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

/// `time`, or the epoch if it is beyond what the system's clock type holds.
fn system_time(time: Time) -> SystemTime {
    let seconds = Duration::from_secs(time.sec.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    let whole = if time.sec < 0 { epoch.checked_sub(seconds) } else { epoch.checked_add(seconds) };
    whole.and_then(|whole| whole.checked_add(Duration::from_nanos(time.nsec.into()))).unwrap_or(epoch)
}

fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.inode),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.mode as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        // The protocol has 32 bits: 12 for the major number, 20 for the minor one, as the C library packs them.
        rdev: attr.rdev as u32,
        blksize: attr.block_len,
        flags: 0,
    }
}

/// An entry that says for ever that there is none.
fn no_entry() -> FileAttr {
    file_attr(&Attr {
        inode: 0,
        kind: FileKind::File,
        mode: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        block_len: 0,
        atime: Time::default(),
        mtime: Time::default(),
        ctime: Time::default(),
        lasting: true,
    })
}

const GENERATION: Generation = Generation(0);

fn send_xattr(reply: &mut Option<ReplyXattr>, value: &[u8], room: u32) {
    let Some(reply) = reply.take() else { return };
    if room == 0 {
        reply.size(value.len() as u32);
    } else if value.len() > room as usize {
        reply.error(Errno::ERANGE);
    } else {
        reply.data(value);
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        self.no_open = offered.contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        self.no_opendir = offered.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        let mut wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA;
        if self.allow_other && self.xattrs {
            // Others are let in as the stored ACLs say; without others the kernel need not ask for them at each step.
            wanted |= InitFlags::FUSE_POSIX_ACL;
        }
        let known = config.add_capabilities(wanted & offered);
        debug_assert!(known.is_ok(), "only what was offered is asked for");
        let _ = config.set_max_background(BACKGROUND_MAX);
        let _ = config.set_max_write(READ_LEN_MAX);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes().to_vec();
        self.serve(request, Kind::Lookup, parent, reply, move |vfs, wait, reply: &mut Option<ReplyEntry>| {
            let (attr, lifetime) = match vfs.lookup(parent.0, &name, wait) {
                Ok(attr) => (file_attr(&attr), lifetime(&attr)),
                Err(vfs::Error::NotFound) if vfs.is_lasting(parent.0) => (no_entry(), &FOR_EVER),
                Err(error) => return Err(error),
            };
            reply.take().into_iter().for_each(|reply| reply.entry(lifetime, &attr, GENERATION));
            Ok(())
        });
    }

    fn forget(&self, _: &Request, number: INodeNo, count: u64) {
        // One of a batch, perhaps: no watching between them.
        self.shared.vfs.forget(number.0, count);
    }

    fn getattr(&self, request: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.serve(request, Kind::Attr, number, reply, move |vfs, wait, reply: &mut Option<ReplyAttr>| {
            let attr = vfs.attr(number.0, wait)?;
            reply.take().into_iter().for_each(|reply| reply.attr(lifetime(&attr), &file_attr(&attr)));
            Ok(())
        });
    }

    fn readlink(&self, request: &Request, number: INodeNo, reply: ReplyData) {
        self.serve(request, Kind::Link, number, reply, move |vfs, wait, reply: &mut Option<ReplyData>| {
            let target = vfs.link_target(number.0, wait)?;
            reply.take().into_iter().for_each(|reply| reply.data(&target));
            Ok(())
        });
    }

    fn open(&self, request: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.no_open {
            // The kernel opens files by itself from now on, and keeps what it read.
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        }
        self.rest(request);
    }

    fn opendir(&self, request: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.no_opendir {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
        }
        self.rest(request);
    }

    fn read(
        &self,
        request: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        len: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = len.min(READ_LEN_MAX) as usize;
        let shared = self.shared.clone();
        self.answer(Kind::Read, number, reply, move |vfs, wait, reply: &mut Option<ReplyData>| {
            READ_BUFFER.with_borrow_mut(|buffer| {
                if buffer.len() < len {
                    buffer.resize(len, 0);
                }
                let bytes = vfs.read_bytes(number.0, offset, &mut buffer[..len], wait)?;
                shared.stats.read(bytes.len());
                reply.take().into_iter().for_each(|reply| reply.data(bytes));
                Ok(())
            })
        });
        // Whoever reads past the page cache has no use for it.
        if flags.0 & libc::O_DIRECT == 0
            && let Some(what) = self.shared.vfs.prefill_after(number.0, offset, len)
        {
            self.prefill.submit(&self.shared, what);
        }
        self.rest(request);
    }

    fn lseek(&self, request: &Request, number: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        self.serve(request, Kind::Seek, number, reply, move |vfs, wait, reply: &mut Option<ReplyLseek>| {
            let found = vfs.seek(number.0, offset, what, wait)?;
            reply.take().into_iter().for_each(|reply| reply.offset(found as i64));
            Ok(())
        });
    }

    fn readdir(&self, request: &Request, number: INodeNo, _: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.serve(request, Kind::List, number, reply, move |vfs, wait, slot: &mut Option<ReplyDirectory>| {
            let Some(reply) = slot else { return Ok(()) };
            vfs.list(number.0, offset, false, wait, &mut |listed| {
                let name = OsStr::from_bytes(listed.name);
                reply.add(INodeNo(listed.attr.inode), listed.next, file_type(listed.attr.kind), name)
            })?;
            slot.take().into_iter().for_each(ReplyDirectory::ok);
            Ok(())
        });
    }

    fn readdirplus(&self, request: &Request, number: INodeNo, _: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        self.serve(request, Kind::List, number, reply, move |vfs, wait, slot: &mut Option<ReplyDirectoryPlus>| {
            let Some(reply) = slot else { return Ok(()) };
            vfs.list(number.0, offset, true, wait, &mut |listed| {
                let attr = file_attr(&listed.attr);
                let name = OsStr::from_bytes(listed.name);
                reply.add(attr.ino, listed.next, name, lifetime(&listed.attr), &attr, GENERATION)
            })?;
            slot.take().into_iter().for_each(ReplyDirectoryPlus::ok);
            Ok(())
        });
    }

    fn statfs(&self, request: &Request, _: INodeNo, reply: ReplyStatfs) {
        // No size: it is a view, and a file system that is always full would alarm whoever watches disks.
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
        self.rest(request);
    }

    fn getxattr(&self, request: &Request, number: INodeNo, name: &OsStr, room: u32, reply: ReplyXattr) {
        if !self.xattrs {
            // The kernel does not ask again, for no file.
            return reply.error(Errno::ENOSYS);
        }
        if number.0 == vfs::ROOT && name.as_bytes() == STATS_XATTR {
            let json = self.shared.stats.to_json(self.shared.vfs.read_counts());
            send_xattr(&mut Some(reply), json.as_bytes(), room);
            return self.rest(request);
        }
        let name = name.as_bytes().to_vec();
        self.serve(request, Kind::Xattr, number, reply, move |vfs, wait, reply: &mut Option<ReplyXattr>| {
            let value = vfs.xattr(number.0, &name, wait)?;
            send_xattr(reply, &value, room);
            Ok(())
        });
    }

    fn listxattr(&self, request: &Request, number: INodeNo, room: u32, reply: ReplyXattr) {
        if !self.xattrs {
            return reply.error(Errno::ENOSYS);
        }
        self.serve(request, Kind::Xattr, number, reply, move |vfs, wait, reply: &mut Option<ReplyXattr>| {
            let names = vfs.xattr_names(number.0, wait)?;
            send_xattr(reply, &names, room);
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_after_2038_are_exact() {
        let since = |time: Time| system_time(time).duration_since(SystemTime::UNIX_EPOCH);
        let far = Time { sec: 1 << 40, nsec: 999_999_999 };
        assert_eq!(since(far).unwrap(), Duration::new(1 << 40, 999_999_999));
        let early = Time { sec: -5, nsec: 999_999_999 };
        assert_eq!(since(early).unwrap_err().duration(), Duration::new(4, 1));
        assert!(system_time(Time { sec: i64::MIN, nsec: 0 }).duration_since(SystemTime::UNIX_EPOCH).is_err());
        let _ = system_time(Time { sec: i64::MAX, nsec: 999_999_999 });
    }
}
