//! What goes wrong under a mount is an error to those who ask for what it concerns, and nothing to all others.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::attach::Attached;
use crate::support::compare::assert_same;
use crate::support::generate::{self, noise, text};
use crate::support::mount::{Foreground, is_mounted, mount_line, within};
use crate::support::sandbox::Sandbox;

const LIMIT: Duration = Duration::from_secs(30);
const ENOTCONN: i32 = libc::ENOTCONN;

/// The source as a mount on `mnt` shows it.
fn shown(sandbox: &Sandbox) -> PathBuf {
    sandbox.path("mnt/snapshots/latest").join(sandbox.source().strip_prefix("/").unwrap())
}

/// Reads from the store, whatever the kernel has.
fn read_anew(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    fadvise(&file, 0, None, Advice::DontNeed)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[test]
fn a_killed_mount_fails_its_users_at_once_and_can_be_taken_off_and_mounted_again() {
    needs_fuse!();
    let sandbox = Sandbox::new();
    sandbox.write("file", noise(1, 3 << 20));
    sandbox.backup();
    let mut mount = Foreground::start(&sandbox, &[]);
    let dir = sandbox.path("mnt");
    let open = File::open(shown(&sandbox).join("file")).unwrap();
    open.read_exact_at(&mut [0; 10], 0).unwrap();
    mount.process.kill().unwrap();
    mount.process.wait().unwrap();
    let mut bytes = [0; 4096];
    fadvise(&open, 0, None, Advice::DontNeed).unwrap();
    assert_eq!(open.read_at(&mut bytes, 2 << 20).unwrap_err().raw_os_error(), Some(ENOTCONN));
    assert_eq!(fs::read_dir(&dir).unwrap_err().raw_os_error(), Some(ENOTCONN));
    // Mounting over it says what is there.
    let again = sandbox.run(args!["mount", dir]).expect_code(1);
    assert!(again.err().contains("umount"), "no word of what to do: {again:?}");
    drop(open);
    sandbox.ok(args!["umount", dir]);
    assert!(!is_mounted(&dir));
    let mount = sandbox.mount("mnt");
    assert!(fs::read(mount.latest().join("file")).unwrap() == noise(1, 3 << 20));
    mount.unmount();
}

#[test]
fn a_damaged_pack_fails_those_who_need_it_names_itself_and_is_read_again_once_mended() {
    needs_fuse!();
    let sandbox = Sandbox::new();
    sandbox.write("first", noise(1, 4 << 20));
    sandbox.backup();
    let first = sandbox.objects("packs");
    sandbox.write("second", noise(2, 4 << 20));
    sandbox.backup();
    let largest =
        |packs: &[PathBuf]| packs.iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap().clone();
    let pack = largest(&sandbox.objects("packs").into_iter().filter(|pack| !first.contains(pack)).collect::<Vec<_>>());
    let name = pack.file_name().unwrap().to_str().unwrap().to_owned();
    let healthy = fs::read(&pack).unwrap();
    let mut flipped = healthy.clone();
    flipped[healthy.len() / 2] ^= 1;
    let harm: [(&str, &dyn Fn()); 2] = [
        ("a flipped bit", &|| crate::faults::damage::overwrite(&pack, &flipped)),
        ("a missing pack", &|| fs::remove_file(&pack).unwrap()),
    ];
    for (what, harm) in harm {
        harm();
        let mount = Foreground::start(&sandbox, &[]);
        let error = read_anew(&shown(&sandbox).join("second")).expect_err(what);
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{what}: {error}");
        assert!(read_anew(&shown(&sandbox).join("first")).unwrap() == noise(1, 4 << 20), "{what}");
        assert!(within(LIMIT, || mount.said().contains(&name)), "{what}: the pack is not named: {}", mount.said());
        let _ = fs::remove_file(&pack);
        fs::write(&pack, &healthy).unwrap();
        // Which packs there are is asked now and then, not for every read.
        let mended = || read_anew(&shown(&sandbox).join("second")).is_ok_and(|bytes| bytes == noise(2, 4 << 20));
        assert!(within(LIMIT, mended), "{what}, after mending: {}", mount.said());
        mount.signal();
        drop(mount);
    }
}

#[test]
fn a_store_that_hangs_is_an_error_in_time_and_is_read_again_once_it_answers() {
    needs_fuse!();
    let sandbox = Sandbox::new();
    sandbox.write("known", text(1, 1 << 20));
    sandbox.write("unknown", noise(2, 40 << 20));
    sandbox.backup();
    // The store is a file system of another program, which can be made to hang.
    let store = Sandbox::new();
    store.ok(args!["backup", sandbox.repository()]);
    let server = Foreground::start(&store, &[]);
    let far = store.path("mnt/snapshots/latest").join(sandbox.repository().strip_prefix("/").unwrap());
    let mount = sandbox.mount_with("mnt", args!["-r", far, "--timeout", "2"]);
    let known = File::open(mount.latest().join("known")).unwrap();
    let mut bytes = vec![0; 1 << 20];
    known.read_exact_at(&mut bytes, 0).unwrap();

    kill_process(Pid::from_child(&server.process), Signal::STOP).unwrap();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let readers = [1 << 20, 9 << 20, 17 << 20, 25 << 20].map(|offset| {
            let unknown = File::open(mount.latest().join("unknown")).unwrap();
            scope.spawn(move || unknown.read_at(&mut [0; 4096], offset).unwrap_err().raw_os_error())
        });
        // Whoever needs nothing of it is served meanwhile.
        fadvise(&known, 0, None, Advice::DontNeed).unwrap();
        known.read_exact_at(&mut bytes[..4096], 0).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(2), "what is in memory waited for the store");
        readers.into_iter().for_each(|reader| assert_eq!(reader.join().unwrap(), Some(libc::EIO)));
    });
    assert!(begun.elapsed() >= Duration::from_secs(2), "given up too early");
    assert!(mount.dir().join("snapshots").read_dir().unwrap().count() >= 2, "what was known is not shown");

    kill_process(Pid::from_child(&server.process), Signal::CONT).unwrap();
    let again = || read_anew(&mount.latest().join("unknown")).is_ok_and(|bytes| bytes == noise(2, 40 << 20));
    assert!(within(LIMIT, again), "it is not read again");
    assert!(bytes == text(1, 1 << 20));
    drop(known);
    mount.unmount();
    server.signal();
}

#[test]
fn a_full_disk_under_the_cache_does_not_harm_the_mount() {
    needs_fuse!();
    needs_root!();
    let sandbox = Sandbox::new();
    generate::contents(&sandbox.source().join("contents"));
    sandbox.backup();
    fs::remove_dir_all(sandbox.cache()).unwrap();
    let small = Attached::mount(&["-t", "tmpfs", "-o", "size=64k"], Path::new("tmpfs"), sandbox.cache()).unwrap();
    fs::write(small.dir().join("filler"), vec![1; 60_000]).unwrap();
    let mount = sandbox.mount("mnt");
    assert_same(&sandbox.source(), &mount.latest());
    mount.unmount();
}

#[test]
fn a_snapshot_that_goes_while_it_is_open_can_be_read_to_its_end() {
    needs_fuse!();
    let sandbox = Sandbox::new();
    sandbox.write("file", noise(1, 5 << 20));
    sandbox.backup();
    let first = sandbox.objects("snapshots");
    let id = sandbox.snapshots()[0].clone();
    sandbox.write("file", text(2, 1 << 20));
    sandbox.backup();
    let mount = sandbox.mount("mnt");
    let by_id = mount.dir().join("ids").join(&id[..8]);
    let file = by_id.join(sandbox.source().strip_prefix("/").unwrap()).join("file");
    let open = File::open(&file).unwrap();
    open.read_exact_at(&mut [0; 100], 0).unwrap();
    fs::remove_file(&first[0]).unwrap();
    assert!(within(LIMIT, || !by_id.exists()), "it is still listed");
    fadvise(&open, 0, None, Advice::DontNeed).unwrap();
    let mut bytes = vec![0; 5 << 20];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == noise(1, 5 << 20));
    assert_eq!(fs::read(mount.latest().join("file")).unwrap(), text(2, 1 << 20));
    drop(open);
    mount.unmount();
}

#[test]
fn two_mounts_and_backups_do_not_disturb_each_other() {
    needs_fuse!();
    let sandbox = Sandbox::fast();
    generate::contents(&sandbox.source().join("contents"));
    sandbox.write("large", noise(1, 20 << 20));
    sandbox.backup();
    let kept = sandbox.path("kept");
    let status = Command::new("cp").args([OsStr::new("-aT"), sandbox.source().as_os_str(), kept.as_os_str()]).status();
    assert!(status.unwrap().success());
    let first = sandbox.snapshots()[0].clone();
    let (one, two) = (sandbox.mount("one"), sandbox.mount("two"));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for mount in [&one, &two] {
            let (kept, first, done, source) = (&kept, &first, &done, sandbox.source());
            scope.spawn(move || {
                let shown = mount.dir().join("ids").join(&first[..8]).join(source.strip_prefix("/").unwrap());
                let mut rounds = 0;
                while !done.load(Ordering::SeqCst) || rounds == 0 {
                    assert_same(kept, &shown);
                    rounds += 1;
                }
            });
        }
        for round in 0..4 {
            sandbox.write(&format!("new-{round}"), noise(100 + round, 8 << 20));
            sandbox.backup();
        }
        done.store(true, Ordering::SeqCst);
    });
    for mount in [one, two] {
        assert!(within(LIMIT, || mount.latest().join("new-3").exists()), "the last snapshot does not appear");
        assert_same(&sandbox.source(), &mount.latest());
        mount.unmount();
    }
    sandbox.ok(args!["check", "--read-data"]);
}

/// 64 threads that read everything, each in an order of its own.
fn sixty_four_readers(sandbox: &Sandbox, files: usize) {
    let failures: Vec<String> = std::thread::scope(|scope| {
        let read = |reader: usize| {
            move || -> Result<(), String> {
                for n in 0..files {
                    let n = (reader * 7 + n * 5) % files;
                    let path = shown(sandbox).join(format!("file-{n}"));
                    let bytes = read_anew(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                    if bytes != content(n) {
                        return Err(format!("{} has wrong content", path.display()));
                    }
                }
                Ok(())
            }
        };
        let readers: Vec<_> = (0..64).map(|reader| scope.spawn(read(reader))).collect();
        readers.into_iter().filter_map(|reader| reader.join().unwrap().err()).collect()
    });
    assert_eq!(failures, Vec::<String>::new());
}

fn content(n: usize) -> Vec<u8> {
    if n.is_multiple_of(2) { noise(n as u64, 3 << 20) } else { text(n as u64, 4 << 20) }
}

/// A group of processes with a limit on their memory, the kernel's own included; removed when dropped.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// `None` where this process may make no such group.
    fn new(limit_bytes: u64) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        // The old way has a hierarchy for memory alone, the new way one for everything.
        own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let (kind, limit) = match controllers {
                "" => ("cgroup2", "memory.max"),
                _ if controllers.split(',').any(|name| name == "memory") => ("cgroup", "memory.limit_in_bytes"),
                _ => return None,
            };
            let root = mounts.lines().find_map(|line| {
                let fields: Vec<&str> = line.split(' ').collect();
                let right = fields[2] == kind && (kind == "cgroup2" || fields[3].split(',').any(|o| o == "memory"));
                right.then(|| PathBuf::from(fields[1]))
            })?;
            let group = root.join(path.trim_start_matches('/')).join(format!("bygone-{}", std::process::id()));
            fs::create_dir(&group).ok()?;
            let group = Self(group);
            fs::write(group.0.join(limit), limit_bytes.to_string()).ok()?;
            Some(group)
        })
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        within(Duration::from_secs(5), || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn sixty_four_readers_are_served_within_a_limit_on_memory() {
    needs_fuse!();
    const FILES: usize = 24;
    let sandbox = Sandbox::new();
    for n in 0..FILES {
        sandbox.write(&format!("file-{n}"), content(n));
    }
    sandbox.backup();
    let limit = 224 << 20;
    let group = MemoryGroup::new(limit);
    let script = match &group {
        Some(group) => format!("echo $$ > {}/cgroup.procs && exec \"$@\"", group.0.display()),
        // What can be had everywhere limits what the program asks for, not what the kernel keeps for it.
        None => format!("ulimit -d {} && exec \"$@\"", limit >> 10),
    };
    let wrapper = ["sh", "-c", &script, "sh"].map(OsStr::new);
    let mut mount = Foreground::start(&sandbox, &wrapper);
    sixty_four_readers(&sandbox, FILES);
    eprintln!(
        "{} MiB at most, limited by {}",
        mount.memory_peak() >> 10,
        if group.is_some() { "a group" } else { "ulimit" }
    );
    mount.signal();
    assert!(mount.process.wait().unwrap().success(), "{}", mount.said());
    drop((mount, group));
}

#[test]
fn what_others_mounted_is_never_unmounted() {
    needs_fuse!();
    needs_root!();
    let sandbox = Sandbox::new();
    sandbox.write("file", "x");
    sandbox.backup();
    let dir = sandbox.path("mnt");
    // Somebody else's file system in the same place, after ours has died, and after ours was taken off by hand.
    for ours_stays in [true, false] {
        let mut mount = Foreground::start(&sandbox, &[]);
        if ours_stays {
            mount.process.kill().unwrap();
            mount.process.wait().unwrap();
        } else {
            assert!(Command::new("umount").arg("--lazy").arg(&dir).status().unwrap().success());
        }
        let theirs = Attached::mount(&["-t", "tmpfs"], Path::new("theirs"), dir.clone()).unwrap();
        fs::write(dir.join("precious"), "theirs").unwrap();
        if !ours_stays {
            mount.signal();
            mount.process.wait().unwrap();
        }
        for lazy in [&["umount"][..], &["umount", "--lazy"]] {
            let run = sandbox.run(lazy.iter().map(Into::into).chain([dir.clone().into()]).collect()).expect_code(1);
            assert!(run.err().contains("is not a mount of bygone"), "{run:?}");
        }
        assert_eq!(fs::read_to_string(dir.join("precious")).unwrap(), "theirs");
        drop(theirs);
        drop(mount);
        assert!(mount_line(&dir).is_none());
    }
    // A file system of somebody else's program is none of ours either.
    let other = sandbox.path("other");
    fs::create_dir(&other).unwrap();
    let bound = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "fuse.bygone"]).arg(&other).status();
    assert!(bound.unwrap().success());
    let run = sandbox.run(args!["umount", other]).expect_code(1);
    let gone = Command::new("umount").arg(&other).stderr(Stdio::null()).status().unwrap();
    assert!(gone.success() && run.err().contains("is not a mount of bygone"), "{run:?}");
}
