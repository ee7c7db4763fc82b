//! What each version of the format wrote, this one reads; where it cut, this one cuts.
//!
//! `tests/golden/v<N>` is a repository that format version N wrote, never edited. A change of the format adds one:
//! `BYGONE_TEST_WRITE_GOLDEN=1 cargo test golden` writes that of the current version where it is missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bygone::chunk::{ChunkSizes, Chunker, Scale};

use crate::support::compare::{Ignore, differences};
use crate::support::generate::{self, noise, text};
use crate::support::sandbox::Sandbox;

/// Where every object says which format version wrote it: after the magic.
pub const VERSION_AT: usize = 6;

fn golden() -> PathBuf {
    std::env::var_os("BYGONE_GOLDEN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"), PathBuf::from)
}

/// What the golden repositories hold of the source, after the first backup and after the second.
fn source(dir: &Path, second: bool) {
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    file("empty", b"");
    file("inline", b"a few bytes");
    file("text", &text(1, 300_000));
    file("noise", &noise(1, 20_000));
    let mut nightly = text(7, 80_000);
    if second {
        nightly[40_000..40_007].copy_from_slice(b"changed");
    }
    file("nightly", &nightly);
    file("directory/deep/file", &text(2, 5000));
    for n in 0..300 {
        file(&format!("many/{n}"), n.to_string().as_bytes());
    }
    fs::File::create(dir.join("sparse")).unwrap().set_len(1 << 30).unwrap();
    fs::hard_link(dir.join("inline"), dir.join("linked")).unwrap();
    std::os::unix::fs::symlink("inline", dir.join("symlink")).unwrap();
    fs::create_dir(dir.join("empty directory")).unwrap();
    if second {
        file("text", &text(3, 200_000));
        file("new", b"in the second only");
        fs::remove_file(dir.join("noise")).unwrap();
    }
    set_times(dir);
}

/// Gives everything below `dir` a time that follows from nothing but its depth.
fn set_times(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() {
            set_times(&path);
        }
        generate::set_time(&path, 1_700_000_000, 123_456_789);
    }
    generate::set_time(dir, 1_600_000_000, 0);
}

/// The versions that there are golden repositories of.
fn versions() -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(golden()).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

/// A sandbox whose repository is a copy of a golden one, with the source that its second snapshot has.
fn opened(version: &Path) -> Sandbox {
    let sandbox = Sandbox::empty();
    let copied = Command::new("cp").arg("-rT").args([version, &sandbox.repository()]).status().unwrap();
    assert!(copied.success());
    source(&sandbox.source(), true);
    sandbox
}

/// Root would restore the owners of whoever wrote the repository; the content is what counts here.
fn same(original: &Path, copy: &Path) {
    let mut found = differences(original, copy, Ignore::default());
    found.retain(|line| !line.contains(": owner ") && !line.contains(": group ") && !line.contains(": mode "));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn repositories_of_every_version_are_read_byte_for_byte() {
    for version in versions() {
        let sandbox = opened(&version);
        sandbox.ok(args!["check", "--read-data"]);
        sandbox.ok(args!["check", "--keyless"]);
        assert_eq!(sandbox.snapshots().len(), 2, "{}", version.display());
        for (n, id) in sandbox.snapshots().iter().enumerate() {
            let expected = sandbox.path(&format!("expected-{n}"));
            fs::create_dir(&expected).unwrap();
            source(&expected, n == 1);
            let target = sandbox.path(&format!("copy-{n}"));
            sandbox.ok(args!["restore", format!("{id}:/source"), "--target", target]);
            same(&expected, &target);
        }
    }
}

#[test]
fn repositories_of_every_version_hold_blobs_stored_as_deltas() {
    for version in versions() {
        let sandbox = opened(&version);
        let mut deltas = 0;
        for object in sandbox.objects("index") {
            let index = sandbox.json(args!["cat", "index", object.file_name().unwrap(), "--json"]);
            let blobs = index["packs"].as_array().unwrap().iter().flat_map(|pack| pack["blobs"].as_array().unwrap());
            for blob in blobs.filter(|blob| blob["delta"] == true) {
                let plain = sandbox.ok(args!["cat", "blob", blob["id"].as_str().unwrap()]).stdout;
                let nightly = fs::read(sandbox.source().join("nightly")).unwrap();
                let text = fs::read(sandbox.source().join("text")).unwrap();
                let is_in = |file: &[u8]| file.windows(plain.len()).any(|window| window == plain);
                assert!(is_in(&nightly) || is_in(&text), "a delta makes what is in no file");
                assert!(plain.len() as u64 > blob["length"].as_u64().unwrap() * 4);
                deltas += 1;
            }
        }
        assert!(deltas > 0, "{} holds none", version.display());
    }
}

/// Ids, cut points and keys stay what they were: what is stored already is not stored again.
#[test]
fn a_backup_onto_a_repository_of_every_version_finds_all_its_chunks() {
    for version in versions() {
        let sandbox = opened(&version);
        let before = sandbox.objects("packs");
        let summary = sandbox.ok(args!["backup", "--force", "--json", sandbox.source()]).summary();
        assert_eq!(summary["data_blobs"], 0, "{}: {summary}", version.display());
        assert!(sandbox.objects("packs").len() > before.len(), "the source lies elsewhere, so there are new trees");
        sandbox.ok(args!["check", "--read-data"]);
    }
}

#[test]
fn there_is_a_repository_of_the_current_version() {
    let current = golden().join(format!("v{}", bygone::format::header::VERSION));
    if std::env::var_os("BYGONE_TEST_WRITE_GOLDEN").is_some() && !current.exists() {
        write(&current);
    }
    let len: u64 = crate::support::sandbox::files_below(&current).iter().map(|p| fs::metadata(p).unwrap().len()).sum();
    assert!(len > 0 && len < 100 << 10, "{} has {len} bytes", current.display());
}

/// Writes a golden repository; the source seems to lie in `/source`, so that no machine's paths are in it.
fn write(version: &Path) {
    let sandbox = Sandbox::new();
    for second in [false, true] {
        fs::remove_dir_all(sandbox.source()).unwrap();
        fs::create_dir(sandbox.source()).unwrap();
        source(&sandbox.source(), second);
        let line = format!(
            "mkdir -p /source && mount --bind {} /source && exec {} backup --host golden --time '2026-01-0{} 00:00:00' /source",
            sandbox.source().display(),
            crate::support::sandbox::program().display(),
            1 + u8::from(second),
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "bash", "-c", &line]);
        assert!(command.env_clear().envs(sandbox.environment()).status().unwrap().success());
    }
    let copied = Command::new("cp").arg("-rT").args([&sandbox.repository(), version]).status().unwrap();
    assert!(copied.success());
}

#[test]
fn files_are_cut_where_they_always_were() {
    let mut gear = zeroize::Zeroizing::new([0; 256]);
    let table = noise(1, 2048);
    gear.iter_mut()
        .zip(table.chunks_exact(8))
        .for_each(|(value, bytes)| *value = u64::from_le_bytes(bytes.try_into().unwrap()));
    let chunker = Chunker::new(ChunkSizes { min: 4 << 10, avg: 16 << 10, max: 64 << 10 }, gear);
    let lens = |bytes: &[u8]| {
        let (mut rest, mut lens) = (bytes, Vec::new());
        while !rest.is_empty() {
            lens.push(chunker.cut(rest, Scale::of(b""), 0));
            rest = &rest[lens[lens.len() - 1]..];
        }
        lens
    };
    assert_eq!(
        lens(&noise(2, 300_000)),
        [17342, 19720, 22200, 41149, 20589, 16579, 24188, 25701, 22315, 21083, 17850, 12310, 17290, 17544, 4140]
    );
    assert_eq!(
        lens(&text(2, 300_000)),
        [
            21101, 9056, 10957, 15746, 13110, 13800, 12135, 17705, 18415, 17412, 19158, 17310, 6404, 23517, 7689,
            31349, 21361, 23775
        ]
    );
    assert_eq!(lens(&[0; 200_000]), [65_536, 65_536, 65_536, 3392]);
}
