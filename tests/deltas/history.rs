//! Random histories of one file: every night that is left comes back, whatever other nights are gone.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::{deltas, dump};
use crate::support::generate::noise;
use crate::support::sandbox::{Sandbox, program};

/// What happens to the file between two nights. Places are parts of its length of 65,536.
#[derive(Clone, Debug)]
enum Edit {
    Overwrite {
        at: u16,
        len: usize,
    },
    Insert {
        at: u16,
        len: usize,
    },
    Delete {
        at: u16,
        len: usize,
    },
    Move {
        from: u16,
        at: u16,
        len: usize,
    },
    Append {
        len: usize,
    },
    Truncate {
        at: u16,
    },
    /// The file as it was on an earlier night.
    Revert {
        night: usize,
    },
    Replace {
        rows: u64,
    },
}

/// What happens on one night, and whether its snapshot is removed at the end.
#[derive(Clone, Debug)]
struct Night {
    edits: Vec<Edit>,
    is_removed: bool,
}

fn edit() -> impl Strategy<Value = Edit> {
    let len = || prop_oneof![4 => 1..200_usize, 1 => 1..40_000_usize];
    prop_oneof![
        8 => (any::<u16>(), len()).prop_map(|(at, len)| Edit::Overwrite { at, len }),
        4 => (any::<u16>(), len()).prop_map(|(at, len)| Edit::Insert { at, len }),
        4 => (any::<u16>(), len()).prop_map(|(at, len)| Edit::Delete { at, len }),
        2 => (any::<u16>(), any::<u16>(), len()).prop_map(|(from, at, len)| Edit::Move { from, at, len }),
        3 => len().prop_map(|len| Edit::Append { len }),
        1 => (50_000..=u16::MAX).prop_map(|at| Edit::Truncate { at }),
        1 => (0..30_usize).prop_map(|night| Edit::Revert { night }),
        1 => (100..4000_u64).prop_map(|rows| Edit::Replace { rows }),
    ]
}

fn night() -> impl Strategy<Value = Night> {
    (prop::collection::vec(edit(), 1..6), prop::bool::weighted(0.6))
        .prop_map(|(edits, is_removed)| Night { edits, is_removed })
}

impl Edit {
    fn apply(&self, file: &mut Vec<u8>, before: &[Vec<u8>]) {
        let place = |at: u16, len: usize| usize::from(at) * len / 65_536;
        let seed = before.len() as u64 * 1000 + file.len() as u64;
        match *self {
            Edit::Overwrite { at, len } => {
                let from = place(at, file.len());
                let to = (from + len).min(file.len());
                file[from..to].copy_from_slice(&noise(seed, to - from));
            }
            Edit::Insert { at, len } => {
                let at = place(at, file.len());
                file.splice(at..at, noise(seed, len));
            }
            Edit::Delete { at, len } => {
                let from = place(at, file.len());
                file.drain(from..(from + len).min(file.len()));
            }
            Edit::Move { from, at, len } => {
                let from = place(from, file.len());
                let moved: Vec<u8> = file.drain(from..(from + len).min(file.len())).collect();
                let at = place(at, file.len());
                file.splice(at..at, moved);
            }
            Edit::Append { len } => file.extend(noise(seed, len)),
            Edit::Truncate { at } => file.truncate(place(at, file.len())),
            Edit::Revert { night } => file.clone_from(&before[night % before.len()]),
            Edit::Replace { rows } => *file = dump(rows % 3, rows),
        }
    }
}

/// Backs the nights up, removes the snapshots that are to go, and reads all others.
fn play(nights: &[Night], with_deltas: &mut u64) {
    let sandbox = Sandbox::fast();
    let mut file = dump(0, 3000);
    let mut contents = vec![file.clone()];
    let path = sandbox.write("data", &file);
    sandbox.backup();
    for night in nights {
        night.edits.iter().for_each(|edit| edit.apply(&mut file, &contents));
        fs::write(&path, &file).unwrap();
        sandbox.backup();
        contents.push(file.clone());
    }
    *with_deltas += deltas(&sandbox);
    let snapshots = sandbox.snapshots();
    assert_eq!(snapshots.len(), contents.len());
    let is_removed = |n: usize| n == 0 || nights[n - 1].is_removed;
    for (n, id) in snapshots.iter().enumerate() {
        if is_removed(n) {
            fs::remove_file(sandbox.repository().join("snapshots").join(id)).unwrap();
        }
    }
    // Another host, which has never seen what is gone.
    fs::remove_dir_all(sandbox.cache()).unwrap();
    sandbox.ok(args!["check", "--read-data"]);
    for (n, (id, content)) in snapshots.iter().zip(&contents).enumerate() {
        if !is_removed(n) {
            assert!(sandbox.ok(args!["dump", id, path]).stdout == *content, "night {n}");
        }
    }
}

fn random(cases: u32, nights: usize) {
    let config = Config { cases, failure_persistence: None, max_shrink_time: 60_000, ..Config::default() };
    let with_deltas = std::cell::Cell::new(0);
    TestRunner::new(config)
        .run(&prop::collection::vec(night(), nights), |nights| {
            let mut count = with_deltas.get();
            play(&nights, &mut count);
            with_deltas.set(count);
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(with_deltas.get() > u64::from(cases) * nights as u64 / 2, "hardly a delta was made: nothing is tested");
}

#[test]
fn every_night_that_is_left_of_a_random_history_is_restored() {
    random(1, 30);
}

#[test]
#[ignore = "slow group: takes minutes"]
fn slow_every_night_that_is_left_of_many_random_histories_is_restored() {
    random(60, 30);
}

#[test]
fn a_backup_killed_while_it_makes_deltas_harms_nothing() {
    let sandbox = Sandbox::fast();
    sandbox.write("data", dump(0, 30_000));
    let from = Instant::now();
    sandbox.backup();
    let whole = from.elapsed().max(Duration::from_millis(50));
    let mut kept: Vec<(String, Vec<u8>)> = vec![(sandbox.snapshots().remove(0), dump(0, 30_000))];
    for round in 1..=8_u64 {
        let content = dump(round, 30_000);
        sandbox.write("data", &content);
        let mut child = Command::new(program())
            .arg("backup")
            .arg(sandbox.source())
            .env_clear()
            .envs(sandbox.environment())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole.mul_f64((round as f64 * 0.618_033_988_749).fract()));
        child.kill().unwrap();
        child.wait().unwrap();
        sandbox.ok(args!["check"]);
        sandbox.backup();
        kept.push((sandbox.snapshots().pop().unwrap(), content));
    }
    sandbox.ok(args!["check", "--read-data"]);
    assert!(deltas(&sandbox) > 0);
    let path: PathBuf = sandbox.source().join("data");
    for (n, (id, content)) in kept.iter().enumerate() {
        assert!(sandbox.ok(args!["dump", id, path]).stdout == *content, "night {n}");
    }
}
