//! Random trees, random edits, several backups: every snapshot is what the source was at that moment.
//!
//! The model of a snapshot is a plain copy of the source. An edit that cannot be done (a name that is not there, a
//! directory where a file is wanted) does nothing, so that failing cases shrink well.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

use crate::support::compare::assert_same;
use crate::support::generate;
use crate::support::sandbox::Sandbox;

/// A place in the source: up to three names from a small set, so that edits meet.
#[derive(Clone, Debug)]
struct Place(Vec<u8>);

/// One edit of the source.
#[derive(Clone, Debug)]
enum Edit {
    Write { at: Place, seed: u8, len: usize },
    Text { at: Place, seed: u8, len: usize },
    Append { at: Place, len: usize },
    Overwrite { at: Place, offset: usize, len: usize },
    Resize { at: Place, len: u64 },
    MakeDirectory { at: Place },
    MakeSymlink { at: Place, to: Place },
    MakeFifo { at: Place },
    HardLink { from: Place, at: Place },
    Rename { from: Place, at: Place },
    Remove { at: Place },
    SetMode { at: Place, mode: u32 },
    SetTime { at: Place, sec: i64, nsec: u32 },
    SetAttribute { at: Place, name: u8, len: usize },
    Backup,
}

const NAMES: [&str; 6] = ["a", "b", "c", "long name with spaces", "new\nline", "é"];

impl Place {
    fn below(&self, source: &Path) -> PathBuf {
        self.0.iter().fold(source.to_owned(), |path, n| path.join(NAMES[usize::from(*n) % NAMES.len()]))
    }
}

fn place() -> impl Strategy<Value = Place> {
    prop::collection::vec(0..NAMES.len() as u8, 1..=3).prop_map(Place)
}

/// Lengths around everything that is treated differently, up to several chunks.
fn len() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), 1..600_usize, 4090..4100_usize, 131_000..131_200_usize, 0..3_000_000_usize]
}

fn edit() -> impl Strategy<Value = Edit> {
    let seed = 0..4_u8;
    prop_oneof![
        4 => (place(), seed.clone(), len()).prop_map(|(at, seed, len)| Edit::Write { at, seed, len }),
        2 => (place(), seed, len()).prop_map(|(at, seed, len)| Edit::Text { at, seed, len }),
        2 => (place(), 1..5000_usize).prop_map(|(at, len)| Edit::Append { at, len }),
        3 => (place(), 0..1_000_000_usize, 1..5000_usize).prop_map(|(at, offset, len)| Edit::Overwrite { at, offset, len }),
        2 => (place(), 0..5_000_000_u64).prop_map(|(at, len)| Edit::Resize { at, len }),
        3 => place().prop_map(|at| Edit::MakeDirectory { at }),
        1 => (place(), place()).prop_map(|(at, to)| Edit::MakeSymlink { at, to }),
        1 => place().prop_map(|at| Edit::MakeFifo { at }),
        2 => (place(), place()).prop_map(|(from, at)| Edit::HardLink { from, at }),
        2 => (place(), place()).prop_map(|(from, at)| Edit::Rename { from, at }),
        2 => place().prop_map(|at| Edit::Remove { at }),
        1 => (place(), 0..0o1000_u32).prop_map(|(at, mode)| Edit::SetMode { at, mode: mode | 0o700 }),
        1 => (place(), -4_000_000_000..8_000_000_000_i64, 0..1_000_000_000_u32)
            .prop_map(|(at, sec, nsec)| Edit::SetTime { at, sec, nsec }),
        1 => (place(), 0..3_u8, 0..2000_usize).prop_map(|(at, name, len)| Edit::SetAttribute { at, name, len }),
        3 => Just(Edit::Backup),
    ]
}

/// Makes parents of what is to be made.
fn parent(path: &Path) -> std::io::Result<()> {
    fs::create_dir_all(path.parent().unwrap())
}

/// Opens a file to write it. At a pipe, or a link to one, that is an error and not a wait for somebody who reads it.
fn to_write() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_NONBLOCK);
    options
}

/// Makes a file or replaces what is in it.
fn fill(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    parent(path)?;
    to_write().create(true).truncate(true).open(path)?.write_all(bytes)
}

impl Edit {
    fn apply(&self, source: &Path) -> std::io::Result<()> {
        match self {
            Edit::Write { at, seed, len } => fill(&at.below(source), &generate::noise(u64::from(*seed), *len)),
            Edit::Text { at, seed, len } => fill(&at.below(source), &generate::text(u64::from(*seed), *len)),
            Edit::Append { at, len } => {
                let file = to_write().open(at.below(source))?;
                let end = file.metadata()?.len();
                file.write_all_at(&generate::noise(end, *len), end)
            }
            Edit::Overwrite { at, offset, len } => {
                let file = to_write().open(at.below(source))?;
                file.write_all_at(&generate::noise(*offset as u64, *len), *offset as u64)
            }
            Edit::Resize { at, len } => to_write().open(at.below(source))?.set_len(*len),
            Edit::MakeDirectory { at } => fs::create_dir_all(at.below(source)),
            Edit::MakeSymlink { at, to } => {
                let path = at.below(source);
                parent(&path)?;
                symlink(to.below(Path::new("..")), path)
            }
            Edit::MakeFifo { at } => {
                let path = at.below(source);
                parent(&path)?;
                let mode = rustix::fs::Mode::from_raw_mode(0o644);
                Ok(rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0)?)
            }
            Edit::HardLink { from, at } => {
                let path = at.below(source);
                parent(&path)?;
                fs::hard_link(from.below(source), path)
            }
            Edit::Rename { from, at } => {
                let path = at.below(source);
                parent(&path)?;
                fs::rename(from.below(source), path)
            }
            Edit::Remove { at } => {
                let path = at.below(source);
                if path.symlink_metadata()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
            }
            Edit::SetMode { at, mode } => {
                let path = at.below(source);
                if path.symlink_metadata()?.is_symlink() {
                    return Ok(());
                }
                fs::set_permissions(path, Permissions::from_mode(*mode))
            }
            Edit::SetTime { at, sec, nsec } => {
                let path = at.below(source);
                path.symlink_metadata()?;
                generate::set_time(&path, *sec, i64::from(*nsec));
                Ok(())
            }
            Edit::SetAttribute { at, name, len } => {
                generate::set_xattr(&at.below(source), &format!("user.{name}"), &generate::noise(1, *len));
                Ok(())
            }
            Edit::Backup => Ok(()),
        }
    }
}

/// How the snapshots are read at the end.
#[derive(Clone, Copy, PartialEq)]
enum Read {
    Restore,
    Mount,
}

/// Plays `edits` in a new sandbox and compares every snapshot with the source as it was.
fn play(edits: &[Edit], read: Read) {
    let sandbox = Sandbox::fast();
    let source = sandbox.source();
    let mut models = Vec::new();
    for edit in edits.iter().chain([&Edit::Backup]) {
        if !matches!(edit, Edit::Backup) {
            // The source has more than nanoseconds to tell edits apart, but no finer clock than the kernel's tick.
            let _ = edit.apply(&source);
            continue;
        }
        let model = sandbox.path(&format!("model-{}", models.len()));
        assert!(Command::new("cp").arg("-aT").args([&source, &model]).status().unwrap().success());
        sandbox.backup();
        models.push(model);
    }
    let snapshots = sandbox.snapshots();
    assert_eq!(snapshots.len(), models.len());
    let mount = (read == Read::Mount).then(|| sandbox.mount("mnt"));
    for (id, model) in snapshots.iter().zip(&models) {
        match &mount {
            Some(mount) => {
                let seen = mount.dir().join("ids").join(&id[..8]).join(source.strip_prefix("/").unwrap());
                assert_same(model, &seen);
            }
            None => {
                let copy = sandbox.restore(id, "copy");
                assert_same(model, &copy);
                fs::remove_dir_all(copy).unwrap();
            }
        }
    }
    // In place, from the last state back to the first: what is there already must not confuse it.
    if let (None, Some(model), Some(id)) = (&mount, models.first(), snapshots.first()) {
        let from = format!("{id}:{}", source.display());
        sandbox.ok(args!["restore", from, "--target", source, "--delete", "--overwrite", "always"]);
        assert_same(model, &source);
    }
    sandbox.ok(args!["check", "--read-data"]);
    if let Some(mount) = mount {
        mount.unmount();
    }
}

/// Plays `cases` random histories, but begins no more of them after `limit`.
fn random(cases: u32, limit: Duration, read: Read) {
    // A shrunken case is worth a minute; the whole one is known already.
    let config = Config { failure_persistence: None, max_shrink_time: 60_000, ..Config::default() };
    let edits = prop::collection::vec(edit(), 1..30);
    let mut runner = TestRunner::new(config);
    let from = Instant::now();
    for case in 0..cases {
        if from.elapsed() > limit {
            eprintln!("{case} of {cases} histories in {limit:?}");
            break;
        }
        let history = edits.new_tree(&mut runner).unwrap();
        // Before anything can hang or begin to shrink.
        eprintln!("history {case}: {:?}", history.current());
        let played = runner.run_one(history, |edits| {
            play(&edits, read);
            Ok(())
        });
        played.unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn every_snapshot_of_a_random_history_is_restored() {
    random(12, Duration::from_secs(30), Read::Restore);
}

#[test]
fn every_snapshot_of_a_random_history_is_on_the_mount() {
    needs_fuse!();
    random(4, Duration::from_secs(30), Read::Mount);
}

#[test]
#[ignore = "slow group: takes minutes"]
fn slow_every_snapshot_of_many_random_histories_is_restored() {
    random(400, Duration::from_secs(1800), Read::Restore);
}

#[test]
#[ignore = "slow group: takes minutes"]
fn slow_every_snapshot_of_many_random_histories_is_on_the_mount() {
    needs_fuse!();
    random(200, Duration::from_secs(1800), Read::Mount);
}

#[test]
fn edits_reach_the_source() {
    let sandbox = Sandbox::empty();
    let at = Place(vec![0, 1]);
    for (edit, seen) in [
        (Edit::Write { at: at.clone(), seed: 1, len: 10 }, 10),
        (Edit::Append { at: at.clone(), len: 5 }, 15),
        (Edit::Resize { at: at.clone(), len: 100 }, 100),
        (Edit::Overwrite { at: at.clone(), offset: 90, len: 20 }, 110),
    ] {
        edit.apply(&sandbox.source()).unwrap();
        assert_eq!(File::open(at.below(&sandbox.source())).unwrap().metadata().unwrap().len(), seen, "{edit:?}");
    }
}

#[test]
fn edits_of_a_pipe_wait_for_nobody() {
    let sandbox = Sandbox::empty();
    let (pipe, link) = (Place(vec![0]), Place(vec![1]));
    Edit::MakeFifo { at: pipe.clone() }.apply(&sandbox.source()).unwrap();
    symlink(NAMES[0], link.below(&sandbox.source())).unwrap();
    for at in [pipe, link] {
        for edit in [
            Edit::Write { at: at.clone(), seed: 1, len: 10 },
            Edit::Text { at: at.clone(), seed: 1, len: 10 },
            Edit::Append { at: at.clone(), len: 5 },
            Edit::Resize { at: at.clone(), len: 100 },
            Edit::Overwrite { at, offset: 90, len: 20 },
        ] {
            assert!(edit.apply(&sandbox.source()).is_err(), "{edit:?}");
        }
    }
}
