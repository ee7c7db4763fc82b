//! Chunks stored as deltas of the file's earlier version: what they save, and that nothing but space depends on them.

mod damage;
mod history;

use std::ffi::OsString;
use std::fmt::Write;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::compare::assert_same;
use crate::support::generate::{noise, text};
use crate::support::mount::Mount;
use crate::support::sandbox::{Run, Sandbox, files_below, program};

/// The dump of a table on one night. Rows are changed, inserted and deleted at scattered places, and some are appended.
pub fn dump(night: u64, rows: u64) -> Vec<u8> {
    let mut out = String::new();
    let mut row = |number: u64, version: u64| {
        let id = blake3::hash(&number.to_le_bytes()).to_hex();
        let state = blake3::hash(&(number + (version << 40)).to_le_bytes()).to_hex();
        let (id, state) = (&id[..32], &state[..12]);
        writeln!(
            out,
            "INSERT INTO `instances` VALUES ({number},'{id}','active',NULL,'{state}','compute-{}');",
            number % 97
        )
        .unwrap();
    };
    for number in 0..rows + night * rows / 200 {
        let dice = |night: u64| blake3::hash(&[number.to_le_bytes(), night.to_le_bytes()].concat()).as_bytes()[0];
        if (1..=night).any(|night| dice(night) == 7 && number % 5 == 0) {
            continue;
        }
        row(number, (1..=night).rfind(|night| dice(*night) < 3).unwrap_or(0));
        if (1..=night).any(|night| dice(night) == 9 && number % 4 == 0) {
            row(number + 1_000_000, 0);
        }
    }
    out.into_bytes()
}

/// A data file of a database on one night: of its pages of 16 KiB most have a new number, and some a new row.
fn pages(night: u64, count: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for page in 0..count {
        let start = out.len();
        let last = (1..=night).rfind(|night| (page * 31 + night) % 3 != 0).unwrap_or(0);
        out.extend_from_slice(&(last * 1_000_003 + page).to_be_bytes());
        out.extend_from_slice(&page.to_le_bytes());
        for row in 0..120 {
            let version = (1..=night).rfind(|night| (page * 120 + row + night * 17).is_multiple_of(499)).unwrap_or(0);
            out.extend_from_slice(&(page * 120 + row).to_be_bytes());
            out.extend_from_slice(format!("user-{}@example.com\0", page * 120 + row).as_bytes());
            out.extend_from_slice(&noise(page * 120 + row + (version << 32), 40));
        }
        out.resize(start + (16 << 10), 0);
    }
    out
}

/// Writes an image of 64 MiB with holes as it is on one night: blocks change in place, and data reaches a little further.
fn write_image(path: &Path, night: u64) {
    let file = File::options().create(true).truncate(true).write(true).open(path).unwrap();
    file.set_len(64 << 20).unwrap();
    for (n, at) in [0_u64, 20 << 20, 41 << 20].into_iter().enumerate() {
        let content = pages(night, 80 + 10 * n as u64 + night);
        file.write_all_at(&content, at).unwrap();
    }
}

/// Bytes that the repository has.
fn size(sandbox: &Sandbox) -> u64 {
    files_below(&sandbox.repository()).iter().map(|path| fs::metadata(path).unwrap().len()).sum()
}

/// Blobs of all snapshots that are stored as deltas.
pub fn deltas(sandbox: &Sandbox) -> u64 {
    sandbox.json(args!["stats", "--mode", "raw-data", "--json"])["delta_blob_count"].as_u64().unwrap()
}

/// A way to back a file up, where it then is in the snapshot, and what it holds on a night.
struct Way {
    name: &'static str,
    backup: fn(&Sandbox, &Path, Vec<OsString>),
    is_stream: bool,
    write: fn(&Path, u64),
}

fn backup_file(sandbox: &Sandbox, _: &Path, more: Vec<OsString>) {
    sandbox.ok([args!["backup", sandbox.source()], more].concat());
}

fn backup_stdin(sandbox: &Sandbox, path: &Path, more: Vec<OsString>) {
    let args = [args!["backup", "--stdin", "--stdin-filename", "data"], more].concat();
    Run::of(sandbox.command(args).write_stdin(fs::read(path).unwrap())).expect_code(0);
}

fn backup_command(sandbox: &Sandbox, path: &Path, more: Vec<OsString>) {
    let command = format!("data=cat {}", path.display());
    sandbox.ok([args!["backup", "--command", command], more].concat());
}

fn write_dump(path: &Path, night: u64) {
    fs::write(path, dump(night, 24_000)).unwrap();
}

fn write_pages(path: &Path, night: u64) {
    fs::write(path, pages(night, 200)).unwrap();
}

const NIGHTS: u64 = 4;

/// Reads `path` whole and at many places, and compares it with `expected`.
fn reads_as(path: &Path, expected: &[u8]) {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut at = 12_345_u64;
    for n in 0..60 {
        at = at * 48_271 % 2_147_483_647;
        let from = at as usize % expected.len();
        let mut got = vec![0; [1, 4096, 100_000][n % 3].min(expected.len() - from)];
        file.read_exact_at(&mut got, from as u64).unwrap();
        assert!(got == expected[from..from + got.len()], "{}: {} bytes at {from}", path.display(), got.len());
    }
    assert!(fs::read(path).unwrap() == expected, "{}", path.display());
}

fn in_mount(mount: &Mount<'_>, id: &str, name: &Path) -> std::path::PathBuf {
    mount.dir().join("ids").join(&id[..8]).join(name.strip_prefix("/").unwrap_or(name))
}

/// Backs the same file up every night, with deltas and without: with them a night adds a tenth at most, and every night
/// comes back by a restore, by `dump` and from the mount.
fn nights(way: &Way) {
    needs_fuse!();
    let (sandbox, plain) = (Sandbox::fast(), Sandbox::fast());
    let path = sandbox.source().join("data");
    let mut contents = Vec::new();
    let (mut added, mut added_plain) = (Vec::new(), Vec::new());
    for night in 0..NIGHTS {
        (way.write)(&path, night);
        contents.push(fs::read(&path).unwrap());
        let before = size(&sandbox);
        (way.backup)(&sandbox, &path, args![]);
        added.push(size(&sandbox) - before);
        if night < 2 {
            let before = size(&plain);
            (way.write)(&plain.source().join("data"), night);
            (way.backup)(&plain, &plain.source().join("data"), args!["--no-delta"]);
            added_plain.push(size(&plain) - before);
        }
    }
    let name = way.name;
    assert_eq!(deltas(&plain), 0, "{name}");
    assert!(deltas(&sandbox) > 0, "{name}");
    for night in &added[1..] {
        assert!(night * 10 < added_plain[1], "{name}: the nights add {added:?} bytes, without deltas {added_plain:?}");
    }
    let inside = if way.is_stream { Path::new("/data").to_owned() } else { path };
    let snapshots = sandbox.snapshots();
    assert_eq!(snapshots.len() as u64, NIGHTS);
    let mount = sandbox.mount("mnt");
    for (id, content) in snapshots.iter().zip(&contents) {
        assert!(sandbox.ok(args!["dump", id, inside]).stdout == *content, "{name}");
        let target = sandbox.path("target");
        sandbox.ok(args![
            "restore",
            format!("{id}:{}", inside.parent().unwrap().display()),
            "--target",
            target,
            "--verify"
        ]);
        assert!(fs::read(target.join("data")).unwrap() == *content, "{name}");
        fs::remove_dir_all(target).unwrap();
        reads_as(&in_mount(&mount, id, &inside), content);
    }
    mount.unmount();
    sandbox.ok(args!["check", "--read-data"]);
}

#[test]
fn a_nightly_dump_in_a_file_costs_what_changed() {
    nights(&Way { name: "file", backup: backup_file, is_stream: false, write: write_dump });
}

#[test]
fn a_nightly_dump_on_standard_input_costs_what_changed() {
    nights(&Way { name: "stdin", backup: backup_stdin, is_stream: true, write: write_dump });
}

#[test]
fn a_nightly_dump_by_a_command_costs_what_changed() {
    nights(&Way { name: "command", backup: backup_command, is_stream: true, write: write_dump });
}

#[test]
fn a_database_file_in_pages_costs_what_changed() {
    nights(&Way { name: "pages", backup: backup_file, is_stream: false, write: write_pages });
}

#[test]
fn a_disk_image_with_holes_costs_what_changed() {
    nights(&Way { name: "image", backup: backup_file, is_stream: false, write: write_image });
}

/// Small files of a tree, in the second night with one line changed each.
fn write_small(sandbox: &Sandbox, night: u64) {
    for n in 0..200 {
        let mut content = String::from_utf8(dump(n, 20 + n)).unwrap();
        if night > 0 {
            content = content.replacen("'active'", "'deleted'", 1);
        }
        sandbox.write(&format!("tree/{}/{n}", n % 7), content);
    }
}

#[test]
fn small_files_that_are_edited_cost_what_changed() {
    let added = |more: Vec<OsString>| {
        let sandbox = Sandbox::fast();
        write_small(&sandbox, 0);
        sandbox.backup();
        let before = size(&sandbox);
        write_small(&sandbox, 1);
        sandbox.ok([args!["backup", sandbox.source()], more].concat());
        let added = size(&sandbox) - before;
        assert_same(&sandbox.source(), &sandbox.restore("latest", "copy"));
        let first = sandbox.restore("latest~1", "first");
        write_small(&sandbox, 0);
        for file in files_below(&first) {
            let now = sandbox.source().join(file.strip_prefix(&first).unwrap());
            assert!(fs::read(&file).unwrap() == fs::read(now).unwrap(), "{}", file.display());
        }
        sandbox.ok(args!["check", "--read-data"]);
        added
    };
    let (with, without) = (added(args![]), added(args!["--no-delta"]));
    assert!(with * 5 < without, "{with} bytes with deltas, {without} without");
}

#[test]
fn deltas_are_made_only_of_a_parent_and_only_if_they_may_be() {
    for (option, made) in [("--no-delta", false), ("--force", false), ("--quiet", true)] {
        let sandbox = Sandbox::fast();
        for night in 0..2 {
            sandbox.write("data", dump(night, 5000));
            sandbox.write("small", dump(night, 100));
            sandbox.ok(args!["backup", option, sandbox.source()]);
        }
        assert_eq!(deltas(&sandbox) > 0, made, "{option}");
        assert_same(&sandbox.source(), &sandbox.restore("latest", "copy"));
    }
}

#[test]
fn a_file_whose_earlier_version_was_something_else_is_kept_as_it_is() {
    let sandbox = Sandbox::fast();
    let names =
        ["renamed", "shrunk", "grown", "emptied", "sparse", "link", "was a link", "inline", "was inline", "mixed"];
    let first = dump(0, 8000);
    for name in names {
        sandbox.write(name, &first);
    }
    fs::remove_file(sandbox.source().join("was a link")).unwrap();
    std::os::unix::fs::symlink("grown", sandbox.source().join("was a link")).unwrap();
    sandbox.write("was inline", &first[..300]);
    sandbox.backup();
    let kept = sandbox.path("kept");
    assert!(Command::new("cp").arg("-aT").args([&sandbox.source(), &kept]).status().unwrap().success());

    let second = dump(1, 8000);
    let at = |name: &str| sandbox.source().join(name);
    fs::rename(at("renamed"), at("renamed since")).unwrap();
    sandbox.write("shrunk", &second[..second.len() / 3]);
    sandbox.write("grown", [&second[..], &second].concat());
    sandbox.write("emptied", b"");
    let sparse = File::options().write(true).truncate(true).open(at("sparse")).unwrap();
    sparse.set_len(first.len() as u64 + (8 << 20)).unwrap();
    sparse.write_all_at(&second[..200_000], 0).unwrap();
    sparse.write_all_at(&second[200_000..], 200_000 + (4 << 20)).unwrap();
    fs::remove_file(at("link")).unwrap();
    std::os::unix::fs::symlink("grown", at("link")).unwrap();
    fs::remove_file(at("was a link")).unwrap();
    sandbox.write("was a link", &second);
    sandbox.write("inline", &second[..300]);
    sandbox.write("was inline", &second);
    sandbox.write("mixed", [&second[300_000..], &text(1, 200_000), &first[..300_000], &noise(1, 100_000)].concat());
    sandbox.backup();
    assert!(deltas(&sandbox) > 0);
    assert_same(&sandbox.source(), &sandbox.restore("latest", "copy"));
    assert_same(&kept, &sandbox.restore("latest~1", "first"));
    sandbox.ok(args!["check", "--read-data"]);
}

/// A repository of two nights of which the second has deltas, and a blob that is stored as one.
fn two_nights() -> (Sandbox, String) {
    let sandbox = Sandbox::fast();
    for night in 0..2 {
        sandbox.write("data", dump(night, 6000));
        sandbox.write("note", format!("night {night}"));
        sandbox.backup();
    }
    let ids: Vec<String> =
        sandbox.objects("index").iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    let blobs = ids.iter().flat_map(|id| {
        let index = sandbox.json(args!["cat", "index", id, "--json"]);
        let packs = index["packs"].as_array().unwrap().clone();
        packs.into_iter().flat_map(|pack| pack["blobs"].as_array().unwrap().clone())
    });
    let deltas: Vec<_> = blobs.filter(|blob| blob["delta"] == true).collect();
    let id = deltas[0]["id"].as_str().unwrap().to_owned();
    (sandbox, id)
}

#[test]
fn every_command_reads_what_is_stored_as_a_delta() {
    let (sandbox, id) = two_nights();
    let path = sandbox.source().join("data");
    let content = fs::read(&path).unwrap();
    let blob = sandbox.ok(args!["cat", "blob", id]).stdout;
    assert!(blob.len() > 2000 && content.windows(blob.len()).any(|window| window == blob));
    assert!(sandbox.ok(args!["dump", "latest", path]).stdout == content);
    assert!(sandbox.ok(args!["dump", "latest~1", path]).stdout == dump(0, 6000));
    sandbox.ok(args!["ls", "--long", "latest"]).shows(&content.len().to_string());
    sandbox.ok(args!["find", "data"]).shows(path.to_str().unwrap());
    sandbox.ok(args!["diff", "latest~1", "latest"]).shows("data");
    sandbox.ok(args!["find", "--blob", id]).shows("data");
    sandbox.ok(args!["check", "--keyless"]);
    sandbox.ok(args!["check", "--read-data"]).shows("no errors");
    let target = sandbox.path("target");
    sandbox.ok(args!["restore", "latest", "--target", target, "--verify"]);
    for mode in ["restore-size", "files-by-contents", "blobs-per-file", "raw-data"] {
        sandbox.ok(args!["stats", "--mode", mode]);
    }
    // Nothing has changed: nothing is stored.
    let summary = sandbox.ok(args!["backup", "--json", "--force", sandbox.source()]).summary();
    assert_eq!(summary["data_blobs"], 0, "{summary}");
}

#[test]
fn stats_tell_what_deltas_take() {
    let (sandbox, _) = two_nights();
    let stats = |args: Vec<OsString>| sandbox.json([args!["stats", "--mode", "raw-data", "--json"], args].concat());
    let all = stats(args![]);
    let number =
        |value: &serde_json::Value, name: &str| value[name].as_u64().unwrap_or_else(|| panic!("{name}: {value}"));
    let (count, plain, size) =
        (number(&all, "delta_blob_count"), number(&all, "delta_uncompressed_size"), number(&all, "delta_size"));
    assert!(count > 0 && count < number(&all, "total_blob_count"), "{all}");
    assert!(plain > 300_000 && size < plain / 10 && size < number(&all, "total_size"), "{all}");
    assert!(number(&all, "total_size") <= self::size(&sandbox), "{all}");
    assert_eq!(number(&stats(args!["latest~1"]), "delta_blob_count"), 0);
    // What the deltas are made of is needed, though the latest snapshot does not name it.
    let latest = stats(args!["latest"]);
    assert!(number(&latest, "total_size") * 10 > number(&all, "total_size") * 7, "{latest} of {all}");
    sandbox.ok(args!["stats", "--mode", "raw-data"]).shows(&format!("Stored As Deltas:  {count} blobs of "));
}

#[test]
fn two_hosts_back_up_the_same_second_night_at_once() {
    for round in 0..3 {
        let sandbox = Sandbox::fast();
        sandbox.write("data", dump(0, 10_000));
        sandbox.backup();
        sandbox.write("data", dump(1 + round, 10_000));
        let start = |cache: &str| {
            let mut command = Command::new(program());
            command.arg("backup").arg(sandbox.source()).env_clear().envs(sandbox.environment());
            command.env("BYGONE_CACHE_DIR", sandbox.path(cache)).stdout(Stdio::null());
            command.spawn().unwrap()
        };
        for mut child in [start("one"), start("two")] {
            assert!(child.wait().unwrap().success());
        }
        let snapshots = sandbox.snapshots();
        assert_eq!(snapshots.len(), 3);
        for id in &snapshots[1..] {
            let copy = sandbox.restore(id, "copy");
            assert_same(&sandbox.source(), &copy);
            fs::remove_dir_all(copy).unwrap();
        }
        assert!(deltas(&sandbox) > 0);
        sandbox.ok(args!["check", "--read-data"]);
        // The next night is made of what either has stored.
        sandbox.write("data", dump(2 + round, 10_000));
        sandbox.backup();
        assert_same(&sandbox.source(), &sandbox.restore("latest", "copy"));
        sandbox.ok(args!["check", "--read-data"]);
    }
}
