//! `backup`: what is read, what is stored, what is said.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::inotify;

use crate::support::compare::assert_same;
use crate::support::generate;
use crate::support::sandbox::{COMMAND_LIMIT, Run, Sandbox, program};

/// A source of a few files of different lengths.
fn with_files() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("large", generate::noise(1, 2 << 20));
    sandbox.write("small", "a few bytes");
    sandbox.write("empty", "");
    sandbox.write("directory/text", generate::text(1, 50_000));
    sandbox
}

/// Runs `act` and returns the names of the files in `dirs` that anyone opened meanwhile.
fn opened(dirs: &[&Path], act: impl FnOnce()) -> BTreeSet<OsString> {
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
    for dir in dirs {
        inotify::add_watch(&watch, *dir, inotify::WatchFlags::OPEN).unwrap();
    }
    act();
    let mut buffer = vec![std::mem::MaybeUninit::uninit(); 1 << 16];
    let mut reader = inotify::Reader::new(watch, &mut buffer);
    let mut names = BTreeSet::new();
    while let Ok(event) = reader.next() {
        if let Some(name) = event.file_name()
            && !event.events().contains(inotify::ReadFlags::ISDIR)
        {
            names.insert(OsString::from(name.to_str().unwrap()));
        }
    }
    names
}

#[test]
fn unchanged_files_are_not_opened() {
    let sandbox = with_files();
    let (top, below) = (sandbox.source(), sandbox.source().join("directory"));
    let backup = || drop(sandbox.backup());
    let all = BTreeSet::from(["large", "small", "text"].map(OsString::from));
    let first = opened(&[&top, &below], backup);
    assert!(first.is_superset(&all), "the first backup opened only {first:?}");
    assert_eq!(opened(&[&top, &below], backup), BTreeSet::new());
    sandbox.write("small", "other bytes");
    assert_eq!(opened(&[&top, &below], backup), BTreeSet::from([OsString::from("small")]));
    let forced = opened(&[&top, &below], || drop(sandbox.ok(args!["backup", "--force", top])));
    assert!(forced.is_superset(&all), "--force opened only {forced:?}");
}

#[test]
fn a_second_backup_of_the_same_adds_no_pack() {
    let sandbox = with_files();
    sandbox.backup();
    let packs = sandbox.objects("packs");
    assert!(!packs.is_empty());
    for args in [args!["backup", "--json", sandbox.source()], args!["backup", "--json", "--force", sandbox.source()]] {
        let before = sandbox.objects("packs").len();
        let summary = sandbox.ok(args).summary();
        assert_eq!(summary["data_blobs"], 0, "{summary}");
        // Only the directories above the source, where other tests come and go, may have changed.
        let above = sandbox.source().ancestors().count() as u64 - 1;
        let trees = summary["tree_blobs"].as_u64().unwrap();
        assert!(trees <= above, "{summary}");
        assert_eq!(sandbox.objects("packs").len() - before, usize::from(trees > 0), "{summary}");
    }
    assert_eq!(sandbox.snapshots().len(), 3);
}

#[test]
fn contents_that_are_there_already_are_stored_once() {
    let sandbox = with_files();
    sandbox.backup();
    let len = || sandbox.objects("packs").iter().map(|path| fs::metadata(path).unwrap().len()).sum::<u64>();
    let before = len();
    sandbox.write("copies/of-large", generate::noise(1, 2 << 20));
    sandbox.write("copies/of-large-with-a-head", [&b"head"[..], &generate::noise(1, 2 << 20)].concat());
    sandbox.backup();
    let grown = len() - before;
    assert!(grown < 1 << 20, "two copies of 2 MiB, one of them shifted, took {grown} bytes");
    assert_same(&sandbox.source(), &sandbox.restore("latest", "copy"));
}

#[test]
fn a_change_that_keeps_length_and_mtime_is_seen_by_its_ctime() {
    let sandbox = Sandbox::new();
    let path = sandbox.write("file", "one");
    generate::set_time(&path, 1_500_000_000, 5);
    sandbox.backup();
    fs::write(&path, "two").unwrap();
    generate::set_time(&path, 1_500_000_000, 5);
    sandbox.backup();
    assert_eq!(fs::read(sandbox.restore("latest", "copy").join("file")).unwrap(), b"two");
}

#[test]
fn the_summary_counts_what_was_done() {
    let sandbox = with_files();
    let summary = sandbox.ok(args!["backup", "--json", sandbox.source()]).summary();
    assert_eq!(summary["files_new"], 4);
    assert_eq!(summary["files_unmodified"], 0);
    assert_eq!(summary["total_files_processed"], 4);
    assert_eq!(summary["total_bytes_processed"], (2 << 20) + 11 + 50_000);
    assert_eq!(summary["snapshot_id"], sandbox.snapshots()[0].as_str());
    sandbox.write("small", "longer than it was");
    sandbox.write("new", "new");
    let summary = sandbox.ok(args!["backup", "--json", sandbox.source()]).summary();
    assert_eq!(summary["files_new"], 1);
    assert_eq!(summary["files_changed"], 1);
    assert_eq!(summary["files_unmodified"], 3);
    let said = sandbox.ok(args!["backup", sandbox.source()]);
    assert!(said.out().contains(&sandbox.snapshots()[2][..8]), "{said:?}");
}

#[test]
fn quiet_success_is_silent() {
    let sandbox = Sandbox::empty();
    sandbox.write("file", "x");
    for args in [
        args!["-q", "init"],
        args!["-q", "backup", sandbox.source()],
        args!["backup", "--quiet", sandbox.source()],
        args!["-q", "check"],
        args!["-q", "restore", "latest", "--target", sandbox.path("copy")],
    ] {
        let run = sandbox.ok(args);
        assert!(run.stdout.is_empty() && run.stderr.is_empty(), "{run:?}");
    }
}

#[test]
fn success_says_nothing_on_standard_error() {
    let sandbox = with_files();
    let run = sandbox.backup();
    assert!(run.stderr.is_empty(), "cron would send mail: {run:?}");
}

/// The program without the right to read what its user may not read, also when that user is root.
fn without_privilege(sandbox: &Sandbox, args: Vec<OsString>) -> Run {
    if !crate::support::is_root() {
        return sandbox.run(args);
    }
    let mut command = assert_cmd::Command::new("setpriv");
    command.arg("--bounding-set=-dac_override,-dac_read_search").arg(program()).args(args);
    Run::of(command.env_clear().envs(sandbox.environment()).timeout(COMMAND_LIMIT))
}

#[test]
fn what_cannot_be_read_is_listed_and_the_rest_is_kept() {
    let sandbox = with_files();
    for name in ["secret", "locked/inside"] {
        sandbox.write(name, "not for everyone");
    }
    for name in ["secret", "locked"] {
        fs::set_permissions(sandbox.source().join(name), fs::Permissions::from_mode(0o000)).unwrap();
    }
    let run = without_privilege(&sandbox, args!["backup", sandbox.source()]).expect_code(3);
    for name in ["secret", "locked"] {
        let path = sandbox.source().join(name);
        assert!(run.err().contains(path.to_str().unwrap()), "{name} is not named: {run:?}");
    }
    assert!(run.err().contains("Permission denied"), "{run:?}");
    let copy = sandbox.restore("latest", "copy");
    assert_eq!(fs::read(copy.join("large")).unwrap(), generate::noise(1, 2 << 20));
    assert!(!copy.join("secret").exists() && !copy.join("locked/inside").exists());
    sandbox.ok(args!["check", "--read-data"]);

    // What cannot be read a second time is an error again.
    let again = without_privilege(&sandbox, args!["backup", "--json", sandbox.source()]).expect_code(3);
    assert!(again.err().contains("secret"), "{again:?}");
}

#[test]
fn a_file_that_changes_while_it_is_read_is_listed() {
    let sandbox = with_files();
    let path = sandbox.write("restless", generate::noise(2, 100 << 20));
    let done = AtomicBool::new(false);
    let run = std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            for n in 0_u64.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                file.write_all_at(&n.to_le_bytes(), (n * 12_345_677) % (100 << 20)).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let run = sandbox.run(args!["backup", sandbox.source()]);
        done.store(true, Ordering::Relaxed);
        run
    });
    assert_eq!(run.code, Some(3), "{run:?}");
    assert!(run.err().contains("restless") && run.err().contains("changed"), "{run:?}");
    // It is kept as it was read, and is read again the next time.
    let copy = sandbox.restore("latest", "copy");
    assert_eq!(fs::metadata(copy.join("restless")).unwrap().size(), 100 << 20);
    sandbox.backup();
    assert_same(&sandbox.source(), &sandbox.restore("latest", "copy-2"));
}

#[test]
fn a_path_that_is_not_there_is_named() {
    let sandbox = with_files();
    let missing = sandbox.path("no-such-thing");
    let run = sandbox.run(args!["backup", missing]);
    assert!(matches!(run.code, Some(1 | 3)), "{run:?}");
    run.says("no-such-thing");
    assert_eq!(sandbox.snapshots().len(), 0, "an empty snapshot is no backup");
    sandbox.exits(3, args!["backup", missing, sandbox.source()]).says("no-such-thing");
    assert_eq!(sandbox.snapshots().len(), 1);
}

#[test]
fn nothing_to_back_up_is_an_error() {
    let run = Sandbox::new().run(args!["backup"]);
    assert!(matches!(run.code, Some(1 | 2)), "{run:?}");
}

#[test]
fn a_dry_run_writes_nothing() {
    let sandbox = with_files();
    let before = sandbox.objects("");
    let said = sandbox.ok(args!["backup", "--dry-run", "--json", sandbox.source()]).summary();
    assert_eq!(said["files_new"], 4);
    assert_eq!(said["dry_run"], true);
    sandbox.ok(args!["backup", "-n", "-v", sandbox.source()]);
    assert_eq!(sandbox.objects(""), before);
}

#[test]
fn skip_if_unchanged_makes_no_second_snapshot() {
    let sandbox = with_files();
    let args = || args!["backup", "--skip-if-unchanged", sandbox.source()];
    sandbox.ok(args());
    sandbox.ok(args());
    assert_eq!(sandbox.snapshots().len(), 1);
    sandbox.write("small", "changed");
    sandbox.ok(args());
    assert_eq!(sandbox.snapshots().len(), 2);
}

#[test]
fn host_tags_and_time_are_what_the_options_say() {
    let sandbox = with_files();
    let time = "2024-02-29 03:04:05";
    sandbox.ok(args![
        "backup",
        "--host",
        "db1",
        "--tag",
        "nightly,sql",
        "--tag",
        "more",
        "--time",
        time,
        sandbox.source()
    ]);
    let snapshot = &sandbox.json(args!["snapshots", "--json"])[0];
    assert_eq!(snapshot["hostname"], "db1");
    assert_eq!(snapshot["tags"], serde_json::json!(["more", "nightly", "sql"]));
    assert_eq!(snapshot["paths"], serde_json::json!([sandbox.source()]));
    assert!(snapshot["time"].as_str().unwrap().starts_with("2024-02-29T03:04:05"), "{snapshot}");
}

#[test]
fn several_paths_and_relative_ones_keep_their_absolute_place() {
    let sandbox = with_files();
    fs::create_dir(sandbox.path("other")).unwrap();
    fs::write(sandbox.path("other/file"), "other").unwrap();
    sandbox.ok(args!["backup", "source/directory", "./other/../other", "source/small"]);
    let listed = sandbox.ok(args!["ls", "--recursive", "latest"]).out();
    for name in ["source/directory/text", "other/file", "source/small"] {
        assert!(listed.contains(sandbox.path(name).to_str().unwrap()), "{name} is missing: {listed}");
    }
    assert!(!listed.contains("source/large"), "{listed}");
}

#[test]
fn a_link_as_argument_is_kept_as_a_link_and_followed_with_a_slash_only() {
    let sandbox = with_files();
    let link = sandbox.path("link");
    std::os::unix::fs::symlink(sandbox.source(), &link).unwrap();
    sandbox.ok(args!["backup", link]);
    let target = sandbox.path("target");
    sandbox.ok(args!["restore", "latest", "--target", target]);
    let restored = target.join(link.strip_prefix("/").unwrap());
    assert_eq!(fs::read_link(restored).unwrap(), sandbox.source());
}

#[test]
fn a_parent_can_be_named_and_must_exist() {
    let sandbox = with_files();
    sandbox.backup();
    let first = sandbox.snapshots()[0].clone();
    sandbox.ok(args!["backup", "--parent", first[..8], sandbox.source()]);
    let run = sandbox.run(args!["backup", "--parent", "0123456789abcdef", sandbox.source()]);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert_eq!(sandbox.json(args!["snapshots", "--json"])[1]["parent"], first.as_str());
}

#[test]
fn every_compression_gives_the_same_back() {
    for level in ["off", "auto", "max", "fastest", "9"] {
        let sandbox = with_files();
        let run = sandbox.run(args!["backup", "--compression", level, sandbox.source()]);
        if matches!(level, "fastest" | "9") && run.code != Some(0) {
            continue;
        }
        run.expect_code(0);
        assert_same(&sandbox.source(), &sandbox.restore("latest", "copy"));
    }
}

#[test]
fn lists_of_files_are_read_in_all_three_forms() {
    let sandbox = with_files();
    sandbox.write("odd [name]", "odd");
    sandbox.write(" spaced ", "spaced");
    sandbox.write("new\nline", "newline");
    let source = sandbox.source();
    let list = |name: &str, lines: &[&str], end: &str| {
        let all: String = lines.iter().map(|line| format!("{}/{line}{end}", source.display())).collect();
        fs::write(sandbox.path(name), all).unwrap();
        sandbox.path(name)
    };
    let globbed = list("globs", &["sm*", "directory"], "\n");
    fs::write(&globbed, format!("# a comment\n\n{}", fs::read_to_string(&globbed).unwrap())).unwrap();
    let verbatim = list("verbatim", &["odd [name]", " spaced "], "\n");
    let raw = list("raw", &["new\nline", "odd [name]"], "\0");
    let cases: [(&str, _, &[&str]); 3] = [
        ("--files-from", globbed, &["small", "directory/text"]),
        ("--files-from-verbatim", verbatim, &["odd [name]", " spaced "]),
        ("--files-from-raw", raw, &["new\nline", "odd [name]"]),
    ];
    for (n, (option, file, expected)) in cases.into_iter().enumerate() {
        sandbox.ok(args!["backup", option, file]);
        let copy = sandbox.restore("latest", &format!("copy-{n}"));
        for name in expected {
            assert!(copy.join(name).exists(), "{option}: {name:?} is missing");
        }
        assert!(!copy.join("large").exists(), "{option}");
    }
}

#[test]
fn block_devices_are_read_with_read_special() {
    needs_root!();
    let sandbox = Sandbox::new();
    let image = sandbox.path("image");
    fs::write(&image, generate::noise(3, 3 << 20)).unwrap();
    let made = std::process::Command::new("losetup").args(["--find", "--show"]).arg(&image).output().unwrap();
    if !made.status.success() {
        crate::support::skipped("needs a loop device");
        return;
    }
    let device = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let run = sandbox.run(args!["backup", "--read-special", device]);
    let _ = std::process::Command::new("losetup").args(["--detach", &device]).status();
    run.expect_code(0);
    assert_eq!(sandbox.ok(args!["dump", "latest", device]).stdout, generate::noise(3, 3 << 20));
}

#[test]
fn a_fifo_does_not_stop_a_backup() {
    let sandbox = with_files();
    generate::kinds(&sandbox.source().join("kinds"));
    sandbox.backup();
    assert_same(&sandbox.source(), &sandbox.restore("latest", "copy"));
}

/// Backs up the source while a stream's command, which runs when the walk is over, does `script` to it.
fn backup_while(sandbox: &Sandbox, script: &str) -> crate::support::sandbox::Run {
    let command = format!("when=cd {}; sleep 1; {script}", sandbox.source().display());
    sandbox.run(args!["backup", "--command", command, sandbox.source()])
}

#[test]
fn a_file_that_is_replaced_after_the_walk_is_kept_as_it_is_then() {
    let sandbox = Sandbox::new();
    for name in ["file", "to-link", "link"] {
        sandbox.write(name, "old");
    }
    sandbox.write("long", vec![1; 2 << 20]);
    let script = "echo new and longer >n; mv n file; head -c 3000000 /dev/zero >n; mv n long; ln -sf file to-link";
    backup_while(&sandbox, script).expect_code(0);
    let restored = sandbox.restore("latest", "restored");
    assert_eq!(fs::read_to_string(restored.join("file")).unwrap(), "new and longer\n");
    assert_eq!(fs::metadata(restored.join("long")).unwrap().len(), 3_000_000);
    assert_eq!(fs::read_link(restored.join("to-link")).unwrap(), std::path::Path::new("file"));
    let modified = |dir: &std::path::Path| fs::metadata(dir.join("file")).unwrap().modified().unwrap();
    assert_eq!(modified(&restored), modified(&sandbox.source()), "the time is that of the new file");
}

#[test]
fn a_file_that_vanishes_after_the_walk_is_told_and_the_rest_is_kept() {
    let sandbox = Sandbox::new();
    sandbox.write("gone", "x");
    sandbox.write("stays", "y");
    backup_while(&sandbox, "rm gone").expect_code(3).says("/gone: it vanished meanwhile");
    let restored = sandbox.restore("latest", "restored");
    assert_eq!(fs::read_to_string(restored.join("stays")).unwrap(), "y");
}

#[test]
fn a_file_that_grows_after_the_walk_is_kept_whole() {
    let sandbox = Sandbox::new();
    let names = ["a", "b", "c"];
    for name in names {
        sandbox.write(name, "little");
    }
    let script = "for name in a b c; do head -c 9000000 /dev/urandom >>$name; done";
    backup_while(&sandbox, script).expect_code(0);
    let restored = sandbox.restore("latest", "restored");
    for name in names {
        assert!(fs::read(restored.join(name)).unwrap() == fs::read(sandbox.source().join(name)).unwrap(), "{name}");
    }
    sandbox.ok(args!["check", "--read-data"]);
}

#[test]
fn ignoring_the_change_time_takes_over_content_and_nothing_else() {
    let sandbox = Sandbox::new();
    let file = sandbox.write("file", "content");
    let link = sandbox.source().join("link");
    let set_time = |path: &std::path::Path| {
        let time = rustix::fs::Timespec { tv_sec: 1_700_000_000, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).unwrap();
    };
    std::os::unix::fs::symlink("old", &link).unwrap();
    set_time(&link);
    sandbox.backup();
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("new", &link).unwrap();
    set_time(&link);
    let has_xattrs = rustix::fs::setxattr(&file, "user.a", b"1", rustix::fs::XattrFlags::empty()).is_ok();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o751)).unwrap();
    let args = args!["backup", "--ignore-ctime", "--ignore-inode", "--json", sandbox.source()];
    assert_eq!(sandbox.ok(args).summary()["files_unmodified"], 1, "the content is not read again");
    let restored = sandbox.restore("latest", "restored");
    assert_eq!(fs::read_link(restored.join("link")).unwrap(), std::path::Path::new("new"));
    assert_eq!(fs::metadata(restored.join("file")).unwrap().permissions().mode() & 0o777, 0o751);
    if has_xattrs {
        let mut value = [0; 4];
        let len = rustix::fs::getxattr(restored.join("file"), "user.a", &mut value[..]).unwrap();
        assert_eq!(&value[..len], b"1");
    } else {
        crate::support::skipped("no user attributes here");
    }
}

#[test]
fn a_damaged_snapshot_does_not_stand_in_the_way_of_the_next_backup() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "x");
    sandbox.backup();
    let id = sandbox.snapshots().remove(0);
    let object = sandbox.objects("snapshots").remove(0);
    fs::write(&object, "rubbish").unwrap();
    sandbox.backup().says("warning: snapshot").says(&id[..8]);
    let run = sandbox.run(args!["backup", "--parent", id, sandbox.source()]);
    run.expect_code(1).says("damaged");
}

#[test]
fn a_parent_whose_trees_are_damaged_is_told_and_what_was_asked_for_is_an_error() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "x");
    sandbox.backup();
    for pack in sandbox.objects("packs") {
        let mut bytes = fs::read(&pack).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle - 40..middle + 40].iter_mut().for_each(|byte| *byte ^= 1);
        fs::write(&pack, bytes).unwrap();
    }
    sandbox.write("new", "y");
    sandbox.exits(1, args!["backup", "--parent", "latest", sandbox.source()]).says("the parent snapshot");
    sandbox.backup().says("warning: not all of the parent snapshot");
}

#[test]
fn excludes_that_leave_nothing_are_told() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "x");
    let source = sandbox.source();
    sandbox.ok(args!["backup", "--exclude", "*", source]).says("is excluded");
    sandbox.ok(args!["backup", "--exclude", "file", source]).says("no file is backed up");
    sandbox.ok(args!["backup", "--exclude", "file", "--dry-run", source]).says("no file is backed up");
    assert!(sandbox.ok(args!["backup", "--exclude", "other", source]).stderr.is_empty());
}

#[test]
fn a_dry_run_counts_equal_content_once() {
    let sandbox = Sandbox::new();
    for n in 0..20 {
        sandbox.write(&format!("copy-{n}"), crate::support::generate::noise(1, 20_000));
    }
    let added = |args| sandbox.ok(args).summary()["data_blobs"].as_u64().unwrap();
    assert_eq!(added(args!["backup", "--dry-run", "--json", sandbox.source()]), 1);
    assert_eq!(added(args!["backup", "--json", sandbox.source()]), 1);
}

#[test]
fn names_of_hosts_and_tags_that_no_snapshot_could_hold_or_show_are_refused() {
    let sandbox = Sandbox::new();
    let long = "x".repeat(256);
    for name in ["a\nb", "\x1b[31m", &long] {
        for option in ["--host", "--tag"] {
            sandbox.exits(1, args!["backup", option, name, sandbox.source()]).says("the host or tag");
        }
    }
    sandbox.backup();
    sandbox.exits(1, args!["tag", "--add", "a\nb", "latest"]).says("the host or tag");
    let pattern = "y".repeat(100_000);
    sandbox.exits(1, args!["backup", "--exclude", pattern, sandbox.source()]).says("exclude pattern");
    assert_eq!(sandbox.snapshots().len(), 1);
}

#[test]
fn the_repository_and_mounts_of_repositories_are_left_out_unless_they_are_asked_for() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "content");
    fs::create_dir(sandbox.source().join("mnt")).unwrap();
    sandbox.backup();
    let everything = sandbox.path("");
    let entries = |sandbox: &Sandbox, below: &str| {
        let run = sandbox.ok(args!["ls", "latest", "--recursive"]);
        run.out().lines().filter(|line| line.contains(below)).count()
    };
    sandbox.ok(args!["backup", everything]);
    assert_eq!(entries(&sandbox, "/repository"), 1, "only the directory itself");
    sandbox.ok(args!["backup", sandbox.repository()]);
    assert!(entries(&sandbox, "/repository/") > 3);
    needs_fuse!();
    let mount = sandbox.mount("source/mnt");
    sandbox.backup();
    assert_eq!(entries(&sandbox, "/source/"), 2, "the file and the empty directory");
    let first = mount.dir().join("ids").join(&sandbox.snapshots()[0][..8]);
    sandbox.ok(args!["backup", first.join(sandbox.source().strip_prefix("/").unwrap())]);
    assert_eq!(entries(&sandbox, "/file"), 1, "what is named is what it is");
}
