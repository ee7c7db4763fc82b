//! `restore`: into an empty place, over what is there, and never outside.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use crate::support::compare::{assert_same, extents};
use crate::support::generate;
use crate::support::sandbox::{Sandbox, files_below};

fn with_tree() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("a", "content of a");
    sandbox.write("d/b", generate::text(1, 200_000));
    sandbox.write("d/e/c.log", generate::noise(2, 300_000));
    symlink("a", sandbox.source().join("link")).unwrap();
    sandbox.backup();
    sandbox
}

fn selected(sandbox: &Sandbox) -> String {
    format!("latest:{}", sandbox.source().display())
}

#[test]
fn a_restore_without_a_path_keeps_absolute_places_below_the_target() {
    let sandbox = with_tree();
    let target = sandbox.path("target");
    sandbox.ok(args!["restore", "latest", "--target", target]);
    assert_same(&sandbox.source(), &target.join(sandbox.source().strip_prefix("/").unwrap()));
}

#[test]
fn a_selected_path_comes_without_what_is_above_it() {
    let sandbox = with_tree();
    let target = sandbox.path("target");
    sandbox.ok(args!["restore", format!("{}/d", selected(&sandbox)), "-t", target]);
    assert_same(&sandbox.source().join("d"), &target);
    sandbox.exits(1, args!["restore", "latest:/no/such/path", "-t", target]).says("/no/such/path");
}

#[test]
fn one_selected_file_is_restored_into_the_target() {
    let sandbox = with_tree();
    let target = sandbox.path("target");
    sandbox.ok(args!["restore", format!("{}/d/b", selected(&sandbox)), "-t", target]);
    assert_eq!(fs::read(target.join("b")).unwrap(), generate::text(1, 200_000));
}

#[test]
fn restore_in_place_repairs_what_was_changed_and_leaves_what_was_not() {
    let sandbox = with_tree();
    let untouched = sandbox.source().join("d/e/c.log");
    let before = fs::metadata(&untouched).unwrap();
    sandbox.write("a", "overwritten");
    fs::remove_file(sandbox.source().join("d/b")).unwrap();
    sandbox.ok(args!["restore", "latest", "--target", "/"]);
    assert_eq!(fs::read(sandbox.source().join("a")).unwrap(), b"content of a");
    assert_eq!(fs::read(sandbox.source().join("d/b")).unwrap(), generate::text(1, 200_000));
    let after = fs::metadata(&untouched).unwrap();
    assert_eq!((before.ino(), before.mtime()), (after.ino(), after.mtime()));
}

#[test]
fn overwrite_decides_what_happens_to_what_is_there() {
    for (how, expected) in [
        ("always", "content of a"),
        ("never", "here before"),
        ("if-newer", "here before"),
        ("if-changed", "content of a"),
    ] {
        let sandbox = with_tree();
        let target = sandbox.path("target");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("a"), "here before").unwrap();
        generate::set_time(&target.join("a"), 7_000_000_000, 0);
        sandbox.ok(args!["restore", selected(&sandbox), "--target", target, "--overwrite", how]);
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), expected, "{how}");
        assert!(target.join("d/e/c.log").exists(), "{how}");
    }
    // What is older than the snapshot's is replaced.
    let sandbox = with_tree();
    let target = sandbox.path("target");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("a"), "here before").unwrap();
    generate::set_time(&target.join("a"), 1_000_000, 0);
    sandbox.ok(args!["restore", selected(&sandbox), "--target", target, "--overwrite", "if-newer"]);
    assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "content of a");
}

#[test]
fn a_newer_file_in_the_place_of_a_directory_stays() {
    let sandbox = with_tree();
    let target = sandbox.path("target");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("d"), "newer").unwrap();
    generate::set_time(&target.join("d"), 7_000_000_000, 0);
    let args = args!["restore", selected(&sandbox), "--target", target, "--overwrite", "if-newer"];
    sandbox.exits(3, args).says("/d");
    assert_eq!(fs::read_to_string(target.join("d")).unwrap(), "newer");
    assert!(target.join("a").exists());
}

#[test]
fn a_name_is_no_link_to_what_could_not_be_restored() {
    for other in [None, Some("other")] {
        let sandbox = Sandbox::new();
        let first = sandbox.write("first", generate::noise(1, 300_000));
        fs::hard_link(&first, sandbox.source().join("second")).unwrap();
        sandbox.backup();
        for pack in sandbox.objects("packs") {
            let mut bytes = fs::read(&pack).unwrap();
            if bytes.len() > 250_000 {
                bytes[100_000] ^= 1;
                fs::write(&pack, bytes).unwrap();
            }
        }
        let target = sandbox.path("target");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("first"), "old").unwrap();
        if let Some(other) = other {
            fs::write(target.join("second"), other).unwrap();
        }
        let run = sandbox.exits(3, args!["restore", selected(&sandbox), "--target", target]);
        assert_eq!(run.err().matches("is damaged").count(), 2, "{run:?}");
        assert_eq!(fs::read_to_string(target.join("first")).unwrap(), "old");
        assert_eq!(fs::read_to_string(target.join("second")).ok().as_deref(), other);
    }
}

#[test]
fn delete_removes_what_the_snapshot_does_not_have_and_only_inside_what_is_restored() {
    let sandbox = with_tree();
    let target = sandbox.path("target");
    fs::create_dir_all(target.join("d/extra/deep")).unwrap();
    fs::write(target.join("d/extra/deep/file"), "x").unwrap();
    fs::write(target.join("extra"), "x").unwrap();
    sandbox.ok(args!["restore", selected(&sandbox), "--target", target]);
    assert!(target.join("extra").exists() && target.join("d/extra/deep/file").exists());
    sandbox.ok(args!["restore", selected(&sandbox), "--target", target, "--delete"]);
    assert_same(&sandbox.source(), &target);
}

#[test]
fn delete_spares_what_is_excluded_and_the_directories_above_it() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "content");
    sandbox.backup();
    let source = format!("latest:{}", sandbox.source().display());
    let target = sandbox.path("target");
    for (path, text) in
        [("extra/a/kept.log", "mine"), ("extra/a/gone", "x"), ("extra/b/gone", "x"), ("gone/c/gone", "x")]
    {
        fs::create_dir_all(target.join(path).parent().unwrap()).unwrap();
        fs::write(target.join(path), text).unwrap();
    }
    let restore = |more: &[&str]| {
        let mut args = args!["restore", source, "--target", target, "--delete", "--exclude", "*.log", "-v"];
        args.extend(more.iter().map(Into::into));
        sandbox.ok(args)
    };
    let dry = restore(&["--dry-run"]).shows("; 3 would be deleted\n").shows("would delete  /extra/b ");
    assert!(!dry.out().contains("kept"), "{dry:?}");
    restore(&[]).shows("; 3 deleted\n").shows("deleted   /extra/a/gone ").shows("deleted   /gone ");
    assert_eq!(files_below(&target), [target.join("extra/a/kept.log"), target.join("file")]);
    assert!(!target.join("extra/b").exists() && !target.join("gone").exists());

    // Neither does it make way for a file.
    fs::remove_file(target.join("file")).unwrap();
    fs::create_dir(target.join("file")).unwrap();
    for name in ["mine.log", "other"] {
        fs::write(target.join("file").join(name), "mine").unwrap();
    }
    sandbox
        .exits(3, args!["restore", source, "--target", target, "--delete", "--exclude", "*.log"])
        .says("a directory with entries that are not selected is in its place");
    assert_eq!(files_below(&target.join("file")).len(), 2);
}

#[test]
fn a_dry_run_meets_the_errors_of_the_restore() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "content");
    sandbox.write("directory/file", "content");
    sandbox.backup();
    let source = format!("latest:{}", sandbox.source().display());
    // Each with what is in the way; the repository lies in one of them.
    let target = sandbox.path("target");
    fs::create_dir_all(target.join("file/below")).unwrap();
    fs::write(target.join("directory"), "x").unwrap();
    let above = sandbox.path("");
    let cases: [(&std::path::Path, &[&str], i32, &str); 4] = [
        (&target, &["--overwrite", "never"], 3, "something that is not a directory is there and is not overwritten"),
        (&target, &[], 3, "a directory that is not empty is in its place"),
        (&above, &["--delete", "--include", "/repository"], 3, "it holds the repository"),
        (&sandbox.repository(), &["--delete"], 1, "lies in the repository"),
    ];
    for (target, more, code, message) in cases {
        for dry_run in [&["--dry-run"][..], &[]] {
            let mut args = args!["restore", source, "--target", target];
            args.extend(more.iter().chain(dry_run).map(Into::into));
            sandbox.exits(code, args).says(message);
        }
    }
    sandbox.ok(args!["check", "--read-data"]);
}

#[test]
fn a_dry_run_writes_nothing() {
    let sandbox = with_tree();
    let target = sandbox.path("target");
    sandbox.ok(args!["restore", selected(&sandbox), "--target", target, "--dry-run"]);
    assert!(!target.exists());
    fs::create_dir(&target).unwrap();
    fs::write(target.join("extra"), "x").unwrap();
    sandbox.ok(args!["restore", selected(&sandbox), "--target", target, "--dry-run", "--delete", "-vv"]);
    assert_eq!(files_below(&target), [target.join("extra")]);
}

#[test]
fn include_and_exclude_choose() {
    let sandbox = with_tree();
    let names = |name: &str, option: &str, pattern: &str| {
        let target = sandbox.path(name);
        sandbox.ok(args!["restore", selected(&sandbox), "--target", target, option, pattern]);
        let strip = |path: &std::path::PathBuf| path.strip_prefix(&target).unwrap().to_str().unwrap().to_owned();
        files_below(&target).iter().map(strip).collect::<Vec<_>>()
    };
    assert_eq!(names("one", "--include", "*.log"), ["d/e/c.log"]);
    assert_eq!(names("two", "--exclude", "*.log"), ["a", "d/b"]);
    assert_eq!(names("three", "--include", "d/b"), ["d/b"]);
    assert_eq!(names("four", "--exclude", "d"), ["a"]);
    assert_eq!(names("five", "--include", "d"), ["d/b", "d/e/c.log"]);
}

#[test]
fn verify_reads_back_what_was_written() {
    let sandbox = with_tree();
    sandbox.ok(args!["restore", selected(&sandbox), "--target", sandbox.path("target"), "--verify"]);
    assert_same(&sandbox.source(), &sandbox.path("target"));
}

#[test]
fn sparse_makes_holes_of_zeros() {
    let sandbox = Sandbox::new();
    sandbox.write("zeros", vec![0; 8 << 20]);
    sandbox.backup();
    let target = sandbox.path("target");
    sandbox.ok(args!["restore", selected(&sandbox), "--target", target, "--sparse"]);
    let file = fs::File::open(target.join("zeros")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 8 << 20);
    assert_eq!(extents(&file, 8 << 20), []);
}

#[test]
fn a_link_in_the_way_is_replaced_and_never_followed() {
    let sandbox = with_tree();
    let (target, outside) = (sandbox.path("target"), sandbox.path("outside"));
    fs::create_dir(&target).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "precious").unwrap();
    symlink(&outside, target.join("d")).unwrap();
    symlink(outside.join("victim"), target.join("a")).unwrap();
    let run = sandbox.run(args!["restore", selected(&sandbox), "--target", target]);
    assert!(matches!(run.code, Some(0 | 1 | 3)), "{run:?}");
    assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "precious");
    assert_eq!(files_below(&outside), [outside.join("victim")], "written outside of the target: {run:?}");
    if run.code == Some(0) {
        // A target that held other things keeps its own metadata.
        for dir in [&sandbox.source(), &target] {
            generate::set_time(dir, 1, 1);
        }
        assert_same(&sandbox.source(), &target);
    }
    // A hard link to something outside is not written through either.
    let (target, victim) = (sandbox.path("target-2"), outside.join("victim"));
    fs::create_dir(&target).unwrap();
    fs::hard_link(&victim, target.join("a")).unwrap();
    sandbox.ok(args!["restore", selected(&sandbox), "--target", target]);
    assert_eq!(fs::read_to_string(victim).unwrap(), "precious");
}

#[test]
fn kinds_change_in_place() {
    let sandbox = with_tree();
    let source = sandbox.source();
    fs::remove_dir_all(source.join("d")).unwrap();
    fs::write(source.join("d"), "a file where a directory was").unwrap();
    fs::remove_file(source.join("a")).unwrap();
    fs::create_dir(source.join("a")).unwrap();
    fs::remove_file(source.join("link")).unwrap();
    fs::create_dir(source.join("link")).unwrap();
    sandbox.ok(args!["restore", "latest", "--target", "/"]);
    assert_eq!(fs::read(source.join("a")).unwrap(), b"content of a");
    assert_eq!(fs::read(source.join("d/b")).unwrap(), generate::text(1, 200_000));
    assert!(fs::symlink_metadata(source.join("link")).unwrap().is_symlink());
}

#[test]
fn the_summary_counts_what_was_restored() {
    let sandbox = with_tree();
    let run = sandbox.ok(args!["restore", selected(&sandbox), "--target", sandbox.path("target"), "--json"]);
    let summary = run.summary();
    assert_eq!(summary["total_bytes"], 12 + 200_000 + 300_000, "{summary}");
    assert_eq!(summary["files_restored"], summary["total_files"], "{summary}");
}

#[test]
fn an_ordinary_user_is_told_what_could_not_be_set() {
    if crate::support::is_root() {
        return;
    }
    // A directory that cannot be written is named and the rest is restored.
    let sandbox = with_tree();
    let target = sandbox.path("target");
    fs::create_dir_all(target.join("d")).unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::write(target.join("blocked"), "").unwrap();
    fs::set_permissions(target.join("d"), fs::Permissions::from_mode(0o555)).unwrap();
    let run = sandbox.run(args!["restore", selected(&sandbox), "--target", target]);
    assert!(matches!(run.code, Some(0 | 3)), "{run:?}");
    assert_eq!(fs::read(target.join("a")).unwrap(), b"content of a");
}

#[test]
fn a_restore_into_the_repository_is_refused_and_harms_nothing() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "content");
    sandbox.backup();
    for target in [sandbox.repository(), sandbox.repository().join("below/it")] {
        sandbox.run(args!["restore", "latest", "--target", target, "--delete"]).expect_code(1);
    }
    sandbox.ok(args!["check", "--read-data"]);
}

#[test]
fn a_dry_run_says_what_it_would_delete_and_keep() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "x");
    sandbox.write("other", "y");
    sandbox.backup();
    let source = format!("latest:{}", sandbox.source().display());
    let target = sandbox.restore("latest", "target");
    std::fs::write(target.join("extra"), "z").unwrap();
    std::fs::write(target.join("file"), "changed").unwrap();
    let run = |more: &[&str]| {
        let mut args = args!["restore", source, "--target", target, "-vv"];
        args.extend(more.iter().map(Into::into));
        sandbox.ok(args)
    };
    let dry = run(&["--delete", "--dry-run"]).shows("would delete  /extra").shows("would update  /file");
    assert!(dry.out().contains("; 1 would be deleted\n") && !dry.out().contains("deleted  "), "{dry:?}");
    assert!(target.join("extra").exists());
    let kept = run(&["--overwrite", "never"]).shows("kept      /file").shows("kept      /other");
    assert!(kept.out().contains("; 2 kept\n") && !kept.out().contains("already"), "{kept:?}");
    let summary = run(&["--overwrite", "if-newer", "--json"]).summary();
    assert_eq!((&summary["files_kept"], &summary["files_skipped"]), (&2.into(), &0.into()), "{summary}");
    run(&["--delete"]).shows("deleted   /extra").shows("; 1 was there already; 1 deleted\n");
}

#[test]
fn the_root_has_a_name_in_errors() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "x");
    sandbox.backup();
    for pack in sandbox.objects("packs") {
        let len = std::fs::metadata(&pack).unwrap().len();
        std::fs::OpenOptions::new().write(true).open(&pack).unwrap().set_len(len / 2).unwrap();
    }
    let run = sandbox.exits(3, args!["restore", "latest", "--target", sandbox.path("target"), "--no-cache"]);
    run.says("cannot restore the directory /: ").says("cut short");
}
