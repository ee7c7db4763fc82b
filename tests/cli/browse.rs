//! Looking without restoring: `ls`, `find`, `cat`, `dump`, `diff`.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use serde_json::Value;

use crate::support::compare::{Ignore, assert_same, assert_same_but};
use crate::support::generate;
use crate::support::oracle::assert_rsync_finds_nothing;
use crate::support::sandbox::{Sandbox, files_below};

fn with_tree() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("etc/nova/nova.conf", "debug = true\n");
    sandbox.write("etc/nova/policy.json", "{}");
    sandbox.write("etc/hosts", "127.0.0.1 localhost\n");
    sandbox.write("var/large", generate::noise(1, 1 << 20));
    symlink("hosts", sandbox.source().join("etc/link")).unwrap();
    fs::set_permissions(sandbox.source().join("etc/hosts"), fs::Permissions::from_mode(0o640)).unwrap();
    sandbox.backup();
    sandbox
}

#[test]
fn ls_lists_one_directory_or_everything_below() {
    let sandbox = with_tree();
    let etc = sandbox.source().join("etc");
    let text = |path: &str| sandbox.source().join(path).to_str().unwrap().to_owned();
    let flat = sandbox.ok(args!["ls", "latest", etc]).out();
    assert!(flat.contains(&text("etc/hosts")) && flat.contains(&text("etc/nova")), "{flat}");
    assert!(!flat.contains("nova.conf"), "{flat}");
    let deep = sandbox.ok(args!["ls", "--recursive", "latest", etc]).out();
    assert!(deep.contains(&text("etc/nova/nova.conf")) && !deep.contains("large"), "{deep}");
    let selected = sandbox.ok(args!["ls", format!("latest:{}", etc.display())]).out();
    assert!(selected.contains("hosts"), "{selected}");
    let long = sandbox.ok(args!["ls", "-l", "latest", etc]).out();
    let hosts = long.lines().find(|line| line.contains("/hosts")).unwrap();
    assert!(hosts.contains("-rw-r-----") && hosts.contains(" 20 "), "{long}");
    assert!(long.contains("link -> hosts"), "{long}");
    sandbox.exits(1, args!["ls", "latest", "/no/such/thing"]).says("/no/such/thing");
}

#[test]
fn ls_as_json_has_a_line_for_each_node() {
    let sandbox = with_tree();
    let lines = sandbox.ok(args!["ls", "--json", "--recursive", "latest"]).json_lines();
    let node =
        |name: &str| -> &Value { lines.iter().find(|line| line["name"] == name).unwrap_or_else(|| panic!("{name}")) };
    assert_eq!(lines[0]["message_type"], "snapshot");
    assert_eq!(node("hosts")["message_type"], "node");
    assert_eq!(node("hosts")["type"], "file");
    assert_eq!(node("hosts")["size"], 20);
    assert_eq!(node("hosts")["path"], sandbox.source().join("etc/hosts").to_str().unwrap());
    assert_eq!(node("hosts")["permissions"], "-rw-r-----");
    assert_eq!(node("nova")["type"], "dir");
    assert_eq!(node("link")["type"], "symlink");
    assert!(node("hosts")["mtime"].as_str().unwrap().contains('T'));
    assert!(node("hosts")["uid"].is_u64());
}

#[test]
fn find_shows_where_a_name_is_in_every_snapshot() {
    let sandbox = with_tree();
    fs::remove_file(sandbox.source().join("etc/nova/policy.json")).unwrap();
    sandbox.write("etc/NOVA.CONF", "other");
    sandbox.backup();
    let ids = sandbox.snapshots();
    let policy = sandbox.ok(args!["find", "policy.json"]).out();
    assert!(policy.contains(&ids[0][..8]) && !policy.contains(&ids[1][..8]), "{policy}");
    assert!(policy.contains("etc/nova/policy.json"));
    let count = |args| {
        let found = sandbox.json(args);
        let all = found.as_array().unwrap();
        all.iter().map(|one| one["matches"].as_array().unwrap().len()).sum::<usize>()
    };
    assert_eq!(count(args!["find", "--json", "nova.conf"]), 2);
    assert_eq!(count(args!["find", "--json", "--ignore-case", "nova.conf"]), 3);
    assert_eq!(count(args!["find", "--json", "*.conf", "*.json"]), 3);
    assert_eq!(count(args!["find", "--json", "--snapshot", ids[0], "*.json"]), 1);
    let exact = sandbox.source().join("etc/hosts");
    assert_eq!(count(args!["find", "--json", exact]), 2);
    let none = sandbox.ok(args!["find", "--json", "no-such-name"]);
    assert_eq!(none.out().trim(), "[]");
}

#[test]
fn dump_writes_a_file_as_it_was() {
    let sandbox = with_tree();
    let large = sandbox.source().join("var/large");
    assert_eq!(sandbox.ok(args!["dump", "latest", large]).stdout, generate::noise(1, 1 << 20));
    let target = sandbox.path("out");
    sandbox.ok(args!["dump", "--target", target, "latest", large]);
    assert_eq!(fs::read(target).unwrap(), generate::noise(1, 1 << 20));
    sandbox.exits(1, args!["dump", "latest", "/no/such/file"]).says("/no/such/file");
}

#[test]
fn dump_keeps_the_holes_of_files_in_a_tar_archive() {
    needs_program!("tar");
    let sandbox = Sandbox::new();
    let sparse = |name: &str, len: u64, runs: &[(u64, usize)]| {
        let file = fs::File::create(sandbox.write(name, "")).unwrap();
        file.set_len(len).unwrap();
        for (at, run) in runs {
            file.write_all_at(&generate::noise(*at, *run), *at).unwrap();
        }
    };
    let many: Vec<(u64, usize)> = (0..300).map(|n| (n << 20, 4096)).collect();
    sparse("huge", 1 << 40, &[(0, 5000), (1 << 30, 1 << 20), ((1 << 40) - 4096, 4096)]);
    sparse("ends-with-a-hole", 10 << 20, &[(1 << 20, 3 << 20)]);
    sparse(&format!("d/{}", "long".repeat(50)), 300 << 20, &many);
    sparse("nothing", 1 << 30, &[]);
    sandbox.write("without", generate::noise(2, 100_000));
    sandbox.backup();
    let archive = sandbox.path("all.tar");
    sandbox.ok(args!["dump", "--target", archive, "latest", sandbox.source()]);
    assert!(fs::metadata(&archive).unwrap().len() < 7 << 20);
    let copy = sandbox.path("copy");
    fs::create_dir(&copy).unwrap();
    assert!(Command::new("tar").arg("-xpf").arg(&archive).arg("-C").arg(&copy).status().unwrap().success());
    assert_same(&sandbox.source(), &copy);
    for file in files_below(&copy) {
        let source = sandbox.source().join(file.strip_prefix(&copy).unwrap());
        let [source, copy] = [&source, &file].map(|path| fs::metadata(path).unwrap().blocks());
        assert!(copy <= source + 16, "{}: {copy} blocks instead of {source}", file.display());
    }
}

#[test]
fn dump_of_a_directory_is_a_tar_archive_with_everything() {
    let sandbox = Sandbox::new();
    generate::everything(&sandbox.source());
    sandbox.backup();
    let archive = sandbox.path("all.tar");
    sandbox.ok(args!["dump", "--archive", "tar", "--target", archive, "latest", sandbox.source()]);
    let copy = sandbox.path("copy");
    fs::create_dir(&copy).unwrap();
    let listed = Command::new("tar").arg("-tf").arg(&archive).output().unwrap();
    assert!(listed.status.success() && listed.stderr.is_empty(), "{}", listed.stderr.escape_ascii());
    let mut unpack = Command::new("tar");
    unpack
        .args(["-xpf"])
        .arg(&archive)
        .args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", "-C"])
        .arg(&copy);
    let done = unpack.output().unwrap();
    assert!(done.status.success(), "{}", done.stderr.escape_ascii());
    // Where the archive begins, at the root or at the directory, is the program's choice.
    let absolute = copy.join(sandbox.source().strip_prefix("/").unwrap());
    let copy = if absolute.exists() { absolute } else { copy };
    // An archive knows no sockets.
    fs::remove_file(sandbox.source().join("kinds/socket")).unwrap();
    let _ = fs::remove_file(copy.join("kinds/socket"));
    for dir in [&sandbox.source(), &copy] {
        generate::set_time(&dir.join("kinds"), 1, 1);
    }
    assert_same_but(&sandbox.source(), &copy, Ignore { link_counts: true, ..Ignore::default() });
    assert_rsync_finds_nothing(&sandbox.source(), &copy);
}

#[test]
fn dump_of_a_directory_is_a_zip_archive_where_asked() {
    needs_program!("unzip");
    let sandbox = with_tree();
    let archive = sandbox.path("all.zip");
    sandbox.ok(args!["dump", "--archive", "zip", "--target", archive, "latest", sandbox.source()]);
    let tested = Command::new("unzip").arg("-tqq").arg(&archive).output().unwrap();
    assert!(tested.status.success(), "{}", tested.stdout.escape_ascii());
    let copy = sandbox.path("copy");
    assert!(Command::new("unzip").arg("-qq").arg(&archive).arg("-d").arg(&copy).status().unwrap().success());
    let absolute = copy.join(sandbox.source().strip_prefix("/").unwrap());
    let copy = if absolute.exists() { absolute } else { copy };
    assert_eq!(fs::read(copy.join("var/large")).unwrap(), generate::noise(1, 1 << 20));
    assert_eq!(fs::read(copy.join("etc/nova/nova.conf")).unwrap(), b"debug = true\n");
}

#[test]
fn diff_says_what_came_went_and_changed() {
    let sandbox = with_tree();
    sandbox.write("etc/new", "new");
    sandbox.write("etc/hosts", "127.0.0.1 changed\n");
    fs::remove_file(sandbox.source().join("etc/nova/policy.json")).unwrap();
    let conf = sandbox.source().join("etc/nova/nova.conf");
    fs::set_permissions(&conf, fs::Permissions::from_mode(0o600)).unwrap();
    sandbox.backup();
    let ids = sandbox.snapshots();
    let lines = sandbox.ok(args!["diff", "--json", "--metadata", ids[0], ids[1]]).json_lines();
    let modifier = |name: &str| {
        let path = sandbox.source().join(name);
        let line = lines.iter().find(|line| line["path"] == path.to_str().unwrap());
        line.map(|line| line["modifier"].as_str().unwrap().to_owned())
    };
    assert_eq!(modifier("etc/new").as_deref(), Some("+"));
    assert_eq!(modifier("etc/nova/policy.json").as_deref(), Some("-"));
    assert!(modifier("etc/hosts").unwrap().contains('M'));
    assert!(modifier("etc/nova/nova.conf").unwrap().contains('U'));
    assert_eq!(modifier("var/large"), None);
    let statistics = lines.iter().find(|line| line["message_type"] == "statistics").unwrap();
    assert_eq!(statistics["added"]["files"], 1);
    assert_eq!(statistics["removed"]["files"], 1);
    assert_eq!(statistics["changed_files"], 1, "{statistics}");
    let text = sandbox.ok(args!["diff", ids[0], ids[1]]).out();
    assert!(text.lines().any(|line| line.starts_with('+') && line.ends_with("etc/new")), "{text}");
    let same = sandbox.ok(args!["diff", ids[0], ids[0], "--json"]).json_lines();
    assert!(same.iter().all(|line| line["message_type"] != "change"), "{same:?}");
}

#[test]
fn diff_finds_a_directory_that_became_a_file() {
    let sandbox = with_tree();
    fs::remove_dir_all(sandbox.source().join("etc/nova")).unwrap();
    sandbox.write("etc/nova", "a file now");
    sandbox.backup();
    let text = sandbox.ok(args!["diff", "latest~1", "latest"]).out();
    assert!(text.contains("etc/nova") && text.contains("etc/nova/nova.conf"), "{text}");
}

#[test]
fn with_json_everything_is_on_one_line() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "x");
    sandbox.backup();
    for args in [args!["cat", "config"], args!["cat", "snapshot", "latest"], args!["cat", "tree", "latest"]] {
        assert!(sandbox.ok(args.clone()).out().lines().count() > 3, "people read it indented");
        let mut json = args;
        json.push("--json".into());
        assert_eq!(sandbox.ok(json.clone()).out().lines().count(), 1);
        sandbox.json(json);
    }
}

#[test]
fn what_is_missing_is_told_with_its_snapshot_and_a_clean_path() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "x");
    sandbox.backup();
    let id = sandbox.snapshots()[0][..8].to_owned();
    let said = format!("snapshot {id} has no `/no/such`");
    for args in [
        args!["diff", "latest:/no/such", "latest"],
        args!["dump", "latest", "//no/such"],
        args!["dump", "latest:/no", "/such"],
        args!["ls", "latest", "//no//such/"],
    ] {
        let run = sandbox.exits(1, args).says(&said);
        assert!(run.stdout.is_empty(), "{run:?}");
    }
}
