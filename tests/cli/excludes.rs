//! What is left out of a backup.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;

use crate::support::generate;
use crate::support::sandbox::{Sandbox, files_below};

const FILES: [&str; 14] = [
    "readme.md",
    "photo.JPG",
    "photo.jpg",
    "src/main.rs",
    "src/main.o",
    "src/deep/er/lib.o",
    "target/debug/program",
    "sub/target/other",
    "cache/CACHEDIR.TAG",
    "cache/entry",
    "skip/.nobackup",
    "skip/file",
    "odd/[x]",
    "large.bin",
];

/// Files that a backup with `options` holds.
fn kept(options: &[&str]) -> BTreeSet<String> {
    let sandbox = Sandbox::new();
    for name in FILES {
        sandbox.write(name, name);
    }
    sandbox.write("cache/CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55\n");
    sandbox.write("large.bin", generate::noise(1, 300_000));
    sandbox.write(".gitignore", "*.o\n/target\n");
    sandbox.write(".bygoneignore", "readme.md\n");
    fs::write(sandbox.path("patterns"), "# objects\n\n*.o\n!main.o\ntarget\n").unwrap();
    let expand = |option: &&str| {
        let option = option.replace("SOURCE", sandbox.source().to_str().unwrap());
        OsString::from(option.replace("PATTERNS", sandbox.path("patterns").to_str().unwrap()))
    };
    let mut args = args!["backup"];
    args.extend(options.iter().map(expand));
    args.push(sandbox.source().into());
    sandbox.ok(args);
    let copy = sandbox.restore("latest", "copy");
    files_below(&copy).iter().map(|path| path.strip_prefix(&copy).unwrap().to_str().unwrap().to_owned()).collect()
}

/// Insists that exactly `out` is missing from a backup with `options`.
fn leaves_out(options: &[&str], out: &[&str]) {
    let mut expected: BTreeSet<String> = FILES.iter().map(|name| (*name).to_owned()).collect();
    expected.extend([".gitignore".to_owned(), ".bygoneignore".to_owned()]);
    for name in out {
        assert!(expected.remove(*name), "{name} is not in the source");
    }
    assert_eq!(kept(options), expected, "{options:?}");
}

const OBJECTS: [&str; 2] = ["src/main.o", "src/deep/er/lib.o"];

#[test]
fn patterns_match_names_at_any_depth() {
    leaves_out(&[], &[]);
    leaves_out(&["--exclude", "*.o"], &OBJECTS);
    leaves_out(&["-e", "target"], &["target/debug/program", "sub/target/other"]);
    leaves_out(&["--exclude=*.o", "--exclude=photo.jpg"], &[OBJECTS[0], OBJECTS[1], "photo.jpg"]);
    leaves_out(&["--exclude", "odd/[[]x]"], &["odd/[x]"]);
}

#[test]
fn patterns_with_a_path_match_that_path() {
    leaves_out(&["--exclude", "SOURCE/target"], &["target/debug/program"]);
    leaves_out(&["--exclude", "src/**/*.o"], &OBJECTS);
    leaves_out(&["--exclude", "src/*.o"], &["src/main.o"]);
    leaves_out(&["--exclude", "deep/er"], &["src/deep/er/lib.o"]);
}

#[test]
fn case_is_ignored_only_where_asked() {
    leaves_out(&["--exclude", "*.jpg"], &["photo.jpg"]);
    leaves_out(&["--iexclude", "*.jpg"], &["photo.jpg", "photo.JPG"]);
}

#[test]
fn an_exclude_file_has_comments_and_takes_back_with_an_exclamation_mark() {
    let out = ["src/deep/er/lib.o", "target/debug/program", "sub/target/other"];
    leaves_out(&["--exclude-file", "PATTERNS"], &out);
}

#[test]
fn cache_directories_are_left_out_but_for_their_tag() {
    leaves_out(&["--exclude-caches"], &["cache/entry"]);
}

#[test]
fn directories_with_a_marker_are_left_out_but_for_the_marker() {
    leaves_out(&["--exclude-if-present", ".nobackup"], &["skip/file"]);
    leaves_out(&["--exclude-if-present", "CACHEDIR.TAG:Signature: 8a477f597d28d172789f06886806bc55"], &["cache/entry"]);
}

#[test]
fn large_files_are_left_out() {
    leaves_out(&["--exclude-larger-than", "200k"], &["large.bin"]);
    leaves_out(&["--exclude-larger-than", "1M"], &[]);
}

#[test]
fn ignore_files_count_only_where_asked() {
    let out = [OBJECTS[0], OBJECTS[1], "target/debug/program"];
    leaves_out(&["--gitignore"], &out);
    leaves_out(&["--bygoneignore"], &["readme.md"]);
}

#[test]
fn one_file_system_stops_at_mount_points() {
    needs_root!();
    let sandbox = Sandbox::new();
    sandbox.write("here", "x");
    let other = sandbox.source().join("other");
    fs::create_dir(&other).unwrap();
    let mount = ["mount", "-t", "tmpfs", "tmpfs"];
    assert!(std::process::Command::new(mount[0]).args(&mount[1..]).arg(&other).status().unwrap().success());
    fs::write(other.join("there"), "x").unwrap();
    sandbox.ok(args!["backup", "--one-file-system", sandbox.source()]);
    sandbox.ok(args!["backup", sandbox.source()]);
    assert!(std::process::Command::new("umount").arg(&other).status().unwrap().success());
    let ids = sandbox.snapshots();
    let (one, all) = (sandbox.restore(&ids[0], "one"), sandbox.restore(&ids[1], "all"));
    assert!(one.join("other").is_dir() && !one.join("other/there").exists());
    assert!(all.join("other/there").exists());
}
