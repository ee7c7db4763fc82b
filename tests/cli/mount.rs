//! `mount` and `umount`: how a mount begins, looks and ends.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::compare::assert_same;
use crate::support::generate;
use crate::support::mount::{is_mounted, mount_line, within};
use crate::support::sandbox::{PASSWORD, Run, Sandbox, program};

fn with_snapshots() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("file", "one");
    let backup = |tag: &str, time: &str| {
        sandbox.ok(args!["backup", "--host", "web", "--tag", tag, "--time", time, sandbox.source()]);
    };
    backup("first", "2026-01-02 03:04:05");
    sandbox.write("file", "second");
    backup("second", "2026-02-03 04:05:06");
    sandbox
}

fn names(dir: &std::path::Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_command_that_is_ended_before_the_mount_is_ready_leaves_nothing_behind() {
    needs_fuse!();
    let sandbox = Sandbox::new();
    sandbox.backup();
    let (dir, password) = (sandbox.path("mnt"), sandbox.path("password"));
    fs::create_dir(&dir).unwrap();
    // Nobody writes the password, so that the process that is to serve waits for it.
    assert!(Command::new("mkfifo").arg(&password).status().unwrap().success());
    let mut command = Command::new(program());
    command.arg("mount").arg("--password-file").arg(&password).arg(&dir).env_clear().envs(sandbox.environment());
    let mut child = command.env_remove("BYGONE_PASSWORD").stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let pid = child.id();
    let waits = || fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).is_ok_and(|ids| !ids.is_empty());
    assert!(within(Duration::from_secs(10), waits), "there is no process to serve");
    std::thread::sleep(Duration::from_millis(200));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    child.wait().unwrap();
    // Whoever lives has the other end.
    let (send, ended) = std::sync::mpsc::channel();
    let mut stderr = child.stderr.take().unwrap();
    std::thread::spawn(move || send.send(std::io::Read::read_to_end(&mut stderr, &mut Vec::new())));
    assert!(ended.recv_timeout(Duration::from_secs(10)).is_ok(), "a process lives on");
    assert!(!is_mounted(&dir));
}

#[test]
fn programs_on_the_mount_are_run_unless_that_was_ruled_out() {
    needs_fuse!();
    let sandbox = Sandbox::new();
    let script = sandbox.write("script", "#!/bin/sh\necho it runs\n");
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    sandbox.backup();
    let mount = sandbox.mount("with");
    assert_eq!(Command::new(mount.latest().join("script")).output().unwrap().stdout, b"it runs\n");
    let mount = sandbox.mount_with("without", args!["--no-exec"]);
    let error = Command::new(mount.latest().join("script")).output().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    assert_eq!(fs::read(mount.latest().join("script")).unwrap(), fs::read(script).unwrap());
}

#[test]
fn snapshots_are_found_by_id_time_host_and_tag() {
    needs_fuse!();
    let sandbox = with_snapshots();
    let ids = sandbox.snapshots();
    let mount = sandbox.mount("mnt");
    assert_eq!(names(mount.dir()), ["hosts", "ids", "snapshots", "tags"]);
    assert_eq!(names(&mount.dir().join("snapshots")), ["2026-01-02_03-04-05", "2026-02-03_04-05-06", "latest"]);
    assert_eq!(names(&mount.dir().join("hosts")), ["web"]);
    assert_eq!(names(&mount.dir().join("tags")), ["first", "second"]);
    let file = sandbox.source().join("file");
    let file = file.strip_prefix("/").unwrap();
    for (place, content) in [
        (format!("ids/{}", &ids[0][..8]), "one"),
        ("snapshots/2026-01-02_03-04-05".to_owned(), "one"),
        ("snapshots/latest".to_owned(), "second"),
        ("hosts/web/latest".to_owned(), "second"),
        ("hosts/web/2026-01-02_03-04-05".to_owned(), "one"),
        ("tags/first/latest".to_owned(), "one"),
        ("tags/second/2026-02-03_04-05-06".to_owned(), "second"),
    ] {
        let seen = fs::read_to_string(mount.dir().join(&place).join(file));
        assert_eq!(seen.unwrap_or_else(|e| panic!("{place}: {e}")), content, "{place}");
    }
    assert_eq!(fs::read_link(mount.dir().join("snapshots/latest")).unwrap().to_str().unwrap(), "2026-02-03_04-05-06");
    mount.unmount();
}

#[test]
fn a_mount_is_read_only_and_honours_no_devices_and_no_set_id_bits() {
    needs_fuse!();
    let sandbox = with_snapshots();
    let mount = sandbox.mount("mnt");
    let line = mount_line(mount.dir()).unwrap();
    let options: Vec<&str> = line.split(' ').nth(5).unwrap().split(',').collect();
    for option in ["ro", "nosuid", "nodev"] {
        assert!(options.contains(&option), "{option} is missing: {line}");
    }
    let file = mount.latest().join("file");
    let refused = |result: std::io::Result<()>| {
        let error = result.expect_err("a snapshot was changed").raw_os_error();
        assert!(matches!(error, Some(libc::EROFS | libc::EACCES | libc::EPERM)), "{error:?}");
    };
    refused(fs::write(&file, "changed"));
    refused(fs::remove_file(&file));
    refused(fs::create_dir(mount.latest().join("new")));
    refused(fs::rename(&file, mount.latest().join("other")));
    assert_eq!(fs::read_to_string(&file).unwrap(), "second");
    mount.unmount();
}

#[test]
fn new_snapshots_appear_in_a_running_mount() {
    needs_fuse!();
    let sandbox = with_snapshots();
    let mount = sandbox.mount("mnt");
    assert_eq!(fs::read_to_string(mount.latest().join("file")).unwrap(), "second");
    assert_eq!(names(&mount.dir().join("snapshots")).len(), 3);
    sandbox.write("file", "third");
    sandbox.backup();
    let limit = Duration::from_secs(10);
    assert!(within(limit, || names(&mount.dir().join("snapshots")).len() == 4), "the new snapshot does not appear");
    assert!(within(limit, || fs::read_to_string(mount.latest().join("file")).is_ok_and(|text| text == "third")));
    mount.unmount();
}

#[test]
fn an_empty_repository_can_be_mounted_and_filled() {
    needs_fuse!();
    let sandbox = Sandbox::new();
    let mount = sandbox.mount("mnt");
    assert_eq!(names(&mount.dir().join("snapshots")), [""; 0]);
    sandbox.write("file", "x");
    sandbox.backup();
    assert!(within(Duration::from_secs(10), || mount.latest().join("file").exists()));
    mount.unmount();
}

#[test]
fn templates_name_the_directories() {
    needs_fuse!();
    let sandbox = with_snapshots();
    let args = args!["--path-template", "by-host/%h/%T", "--time-template", "%Y%m%d"];
    let mount = sandbox.mount_with("mnt", args);
    assert_eq!(names(&mount.dir().join("by-host/web")), ["20260102", "20260203", "latest"]);
    mount.unmount();
}

#[test]
fn one_subtree_can_be_mounted() {
    needs_fuse!();
    let sandbox = with_snapshots();
    let mount = sandbox.mount_with("mnt", args![format!("latest~1:{}", sandbox.source().display())]);
    assert_eq!(fs::read_to_string(mount.dir().join("file")).unwrap(), "one");
    mount.unmount();
}

#[test]
fn a_mount_in_the_foreground_ends_with_a_signal() {
    needs_fuse!();
    let sandbox = with_snapshots();
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let dir = sandbox.path("mnt");
        fs::create_dir_all(&dir).unwrap();
        let mut child = Command::new(program())
            .args(["mount", "-f"])
            .arg(&dir)
            .env_clear()
            .envs(sandbox.environment())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        assert!(
            within(Duration::from_secs(20), || dir.join("snapshots/latest").exists()),
            "the mount does not come up"
        );
        let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        let from = Instant::now();
        let status = child.wait().unwrap();
        assert!(from.elapsed() < Duration::from_secs(5), "it took {:?} to end", from.elapsed());
        assert!(matches!(status.code(), Some(0 | 130)), "{status:?}");
        assert!(!is_mounted(&dir));
    }
}

#[test]
fn a_mount_in_the_background_has_left_its_working_directory() {
    needs_fuse!();
    let sandbox = with_snapshots();
    fs::create_dir(sandbox.path("mount-cwd")).unwrap();
    fs::write(sandbox.path("password"), PASSWORD).unwrap();
    let mut relative = args!["mount", "-r", "repository", "--cache-dir", "cache"];
    relative.extend(args!["--password-file", "password", "mount-cwd"]);
    let mut command = sandbox.command(relative.clone());
    Run::of(command.env_remove("BYGONE_PASSWORD")).expect_code(0);
    let mount = sandbox.mounted("mount-cwd");
    let is_ours = |process: &std::path::Path| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0).skip(1);
        relative.iter().all(|word| words.next() == Some(word.as_encoded_bytes()))
    };
    let mut processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let process = processes.find(|process| is_ours(process)).expect("it runs");
    assert_eq!(fs::read_link(process.join("cwd")).unwrap(), std::path::Path::new("/"));
    // The repository and the cache are still found.
    assert_eq!(fs::read_to_string(mount.latest().join("file")).unwrap(), "second");
    sandbox.write("file", "third");
    sandbox.backup();
    assert!(within(Duration::from_secs(10), || {
        fs::read_to_string(mount.latest().join("file")).is_ok_and(|text| text == "third")
    }));
    mount.unmount();
}

#[test]
fn plain_umount_ends_the_program_too() {
    needs_fuse!();
    let sandbox = with_snapshots();
    let mount = sandbox.mount("mnt");
    let how: &[&str] = if crate::support::is_root() { &["umount"] } else { &["fusermount3", "-u"] };
    assert!(Command::new(how[0]).args(&how[1..]).arg(mount.dir()).status().unwrap().success());
    let repository = sandbox.repository();
    assert!(within(Duration::from_secs(10), || !any_process_names(&repository)), "the program does not end");
}

/// Whether a process of this machine has `path` in its environment.
fn any_process_names(path: &std::path::Path) -> bool {
    let own = std::process::id().to_string();
    let needle = path.to_str().unwrap().as_bytes();
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        entry.file_name().to_str() != Some(&own)
            && fs::read(entry.path().join("environ"))
                .is_ok_and(|environ| environ.windows(needle.len()).any(|part| part == needle))
    })
}

#[test]
fn umount_of_something_else_is_refused() {
    let sandbox = with_snapshots();
    let run = sandbox.run(args!["umount", sandbox.source()]);
    assert_eq!(run.code, Some(1), "{run:?}");
    run.says(sandbox.source().to_str().unwrap());
}

#[test]
fn a_mount_point_that_cannot_serve_is_named() {
    needs_fuse!();
    let sandbox = with_snapshots();
    let file = sandbox.source().join("file");
    for place in [sandbox.path("no-such-directory"), file, sandbox.repository(), sandbox.repository().join("packs")] {
        let run = sandbox.run(args!["mount", place]);
        assert_eq!(run.code, Some(1), "{run:?}");
        assert!(run.err().contains(place.to_str().unwrap()), "{run:?}");
        assert!(!is_mounted(&place));
    }
    // Over a source of a snapshot, the next backup would back up the backup.
    let run = sandbox.run(args!["mount", sandbox.source()]);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(!is_mounted(&sandbox.source()));
}

#[test]
fn a_mount_hides_no_files_from_the_next_backup() {
    needs_fuse!();
    let sandbox = Sandbox::new();
    let inside = sandbox.write("deep/file", "wanted").parent().unwrap().to_owned();
    sandbox.backup();
    for dir in [&inside, &sandbox.source(), &sandbox.path("")] {
        sandbox.exits(1, args!["mount", dir]).says("cannot mount on");
    }
    assert_eq!(std::fs::read_to_string(inside.join("file")).unwrap(), "wanted");
}

#[test]
fn a_mount_whose_process_is_gone_is_told_from_one_that_is_served() {
    needs_fuse!();
    let sandbox = with_snapshots();
    let mut mount = crate::support::mount::Foreground::start(&sandbox, &[]);
    sandbox.exits(1, args!["mount", sandbox.path("mnt")]).says("is a mount of bygone already");
    mount.process.kill().unwrap();
    mount.process.wait().unwrap();
    sandbox.exits(1, args!["mount", sandbox.path("mnt")]).says("whose process is gone");
    sandbox.ok(args!["umount", sandbox.path("mnt")]);
}

#[test]
fn a_mount_where_fuse_is_missing_says_what_to_do() {
    needs_root!();
    let sandbox = with_snapshots();
    let dir = sandbox.path("mnt");
    fs::create_dir(&dir).unwrap();
    let script = format!(": >{0} && mount --bind {0} /dev/fuse && exec \"$@\"", sandbox.path("not-a-device").display());
    let mut command = assert_cmd::Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"])
        .arg(program())
        .arg("mount")
        .arg(dir);
    let run = crate::support::sandbox::Run::of(command.env_clear().envs(sandbox.environment()));
    let run = run.expect_code(1).says("/dev/fuse").says("modprobe fuse");
    assert!(!run.err().contains("no snapshot"));
}

#[test]
fn many_readers_see_the_same() {
    needs_fuse!();
    let sandbox = Sandbox::new();
    generate::contents(&sandbox.source().join("contents"));
    sandbox.backup();
    let mount = sandbox.mount("mnt");
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| assert_same(&sandbox.source(), &mount.latest()));
        }
    });
    mount.unmount();
}

#[test]
fn reads_at_any_place_give_what_is_there() {
    needs_fuse!();
    use std::os::unix::fs::FileExt;
    let sandbox = Sandbox::new();
    let bytes = generate::noise(5, 20 << 20);
    sandbox.write("large", &bytes);
    sandbox.backup();
    let mount = sandbox.mount("mnt");
    let file = fs::File::open(mount.latest().join("large")).unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), (20 << 20) / 512);
    let mut at = 1_u64;
    for n in 0..400_usize {
        at = (at * 48_271) % 2_147_483_647;
        let (from, len) = (at as usize % bytes.len(), [1, 100, 4096, 70_000, 500_000][n % 5]);
        let mut got = vec![0; len];
        let count = file.read_at(&mut got, from as u64).unwrap();
        let wanted = &bytes[from..(from + len).min(bytes.len())];
        assert!(count > 0 && got[..count] == wanted[..count], "{len} bytes at {from}");
    }
    let mut beyond = [0; 10];
    assert_eq!(file.read_at(&mut beyond, 20 << 20).unwrap(), 0);
    drop(file);
    mount.unmount();
}

#[test]
fn the_hash_of_a_file_is_an_attribute_of_it() {
    needs_fuse!();
    let sandbox = Sandbox::new();
    let bytes = generate::noise(5, 3 << 20);
    sandbox.write("large", &bytes);
    sandbox.write("small", "x");
    sandbox.backup();
    let mount = sandbox.mount("mnt");
    for (name, bytes) in [("large", &bytes[..]), ("small", b"x")] {
        let mut value = [0; 100];
        let len = rustix::fs::getxattr(mount.latest().join(name), "user.bygone.blake3", &mut value[..]).unwrap();
        assert_eq!(std::str::from_utf8(&value[..len]).unwrap(), blake3::hash(bytes).to_hex().as_str(), "{name}");
    }
    mount.unmount();
}

#[test]
fn hosts_and_tags_that_are_no_file_names_are_shown_as_such() {
    needs_fuse!();
    let sandbox = Sandbox::new();
    sandbox.write("file", "x");
    for (host, tag) in [("..", "a/b"), (".", " spaced "), ("a/b", ".."), ("latest", "latest")] {
        sandbox.ok(args!["backup", "--host", host, "--tag", tag, sandbox.source()]);
    }
    sandbox.ok(args!["snapshots", "--tag", "a/b"]).shows("1 snapshot");
    let mount = sandbox.mount("mnt");
    assert_eq!(names(&mount.dir().join("hosts")), ["_", "__", "a_b", "latest"]);
    assert_eq!(names(&mount.dir().join("tags")), ["__", "a_b", "latest", "spaced"]);
    let file = sandbox.source().join("file");
    for place in
        ["hosts/_", "hosts/__", "hosts/a_b", "hosts/latest", "tags/__", "tags/a_b", "tags/latest", "tags/spaced"]
    {
        let path = mount.dir().join(place).join("latest").join(file.strip_prefix("/").unwrap());
        assert_eq!(fs::read_to_string(path).unwrap_or_else(|e| panic!("{place}: {e}")), "x");
    }
    mount.unmount();
}

#[test]
fn a_mount_in_use_is_not_ended_and_its_user_is_named() {
    needs_fuse!();
    let sandbox = with_snapshots();
    let mount = sandbox.mount("mnt");
    let mut user = Command::new("sleep").arg("100").current_dir(mount.latest()).spawn().unwrap();
    let run = sandbox.exits(1, args!["umount", mount.dir()]);
    user.kill().unwrap();
    user.wait().unwrap();
    run.says(&format!("in use by sleep (process {})", user.id())).says("bygone umount --lazy");
    assert!(is_mounted(mount.dir()));
    mount.unmount();
}

#[test]
fn what_holds_a_mount_without_being_in_it_is_named() {
    needs_fuse!();
    needs_root!();
    let sandbox = Sandbox::new();
    sandbox.write("disk.img", generate::noise(1, 1 << 20));
    fs::create_dir(sandbox.source().join("below")).unwrap();
    sandbox.backup();
    let mount = sandbox.mount("mnt");
    let busy = |what: &str| drop(sandbox.exits(1, args!["umount", mount.dir()]).says(what));
    let run = |name: &str, args: Vec<std::ffi::OsString>| {
        Command::new(name).args(args).output().is_ok_and(|output| output.status.success())
    };

    let latest = mount.latest().canonicalize().unwrap();
    let image = latest.join("disk.img");
    // SAFETY: nobody writes to what is in a snapshot.
    let map = unsafe { memmap2::Mmap::map(&fs::File::open(&image).unwrap()) }.unwrap();
    busy(&format!("(process {})", std::process::id()));
    drop(map);

    let below = latest.join("below");
    assert!(run("mount", args!["-t", "tmpfs", "none", below]));
    busy(&format!("the mount on `{}`", below.display()));
    assert!(run("umount", args![below]));

    let output = Command::new("losetup").args(["--read-only", "--show", "-f"]).arg(&image).output().unwrap();
    if output.status.success() {
        let device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        busy(&format!("{device} with `{}`", image.display()));
        assert!(run("losetup", args!["-d", device]));
    }
    mount.unmount();
}

#[test]
fn a_mount_in_use_for_a_moment_is_ended() {
    needs_fuse!();
    let sandbox = with_snapshots();
    let mount = sandbox.mount("mnt");
    let mut user = Command::new("sleep").arg("0.5").current_dir(mount.latest()).spawn().unwrap();
    mount.unmount();
    assert!(user.wait().unwrap().success());
}

#[test]
fn a_running_mount_tells_what_it_has_done() {
    needs_fuse!();
    let sandbox = Sandbox::new();
    let bytes = generate::noise(1, 3_000_000);
    fs::write(sandbox.source().join("f"), &bytes).unwrap();
    sandbox.backup();
    let mount = sandbox.mount_with("mnt", args!["--cache-size", "1M"]);
    assert!(fs::read(mount.latest().join("f")).unwrap() == bytes);
    let stats = || -> serde_json::Value {
        serde_json::from_slice(&sandbox.ok(args!["mount", "--stats", mount.dir()]).stdout).unwrap()
    };
    let shown = stats();
    let number = |value: &serde_json::Value| value.as_u64().unwrap();
    assert!(number(&shown["requests"]["read"]["count"]) > 0, "{shown}");
    assert!(number(&shown["read_bytes"]) + number(&shown["prefilled_bytes"]) >= 3_000_000, "{shown}");
    assert!(number(&shown["decoded_bytes"]) >= 3_000_000, "{shown}");
    // One segment in each of the cache's parts stays whatever its length.
    assert!(number(&shown["cached_bytes"]) <= 16 * (128 << 10), "{shown}");
    sandbox
        .exits(1, args!["mount", "--stats", sandbox.source()])
        .says("is not the directory that a repository is mounted on");
    mount.unmount();
}
