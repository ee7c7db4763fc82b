//! Damage to the repository: action x object kind x next command.
//!
//! Whatever happens to the stored bytes, a command either names what is wrong or gives the right data. A backup that
//! says it succeeded is one that can be restored.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::generate;
use crate::support::sandbox::{Run, Sandbox, files_below};

/// What happens to an object.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Delete,
    Empty,
    CutLastByte,
    CutInHalf,
    FlipFirst,
    FlipMiddle,
    FlipLast,
    Append,
    Swap,
}

const ACTIONS: [Action; 9] = [
    Action::Delete,
    Action::Empty,
    Action::CutLastByte,
    Action::CutInHalf,
    Action::FlipFirst,
    Action::FlipMiddle,
    Action::FlipLast,
    Action::Append,
    Action::Swap,
];

/// The parts of the repository that are damaged; each has its own directory, and the configuration is a file.
const KINDS: [&str; 5] = ["config", "keys", "packs", "index", "snapshots"];

impl Action {
    /// Damages `file`; `other` is one of the same kind.
    fn apply(self, file: &Path, other: &Path) {
        let mut bytes = fs::read(file).unwrap();
        let len = bytes.len();
        let mut flip = |at: usize| bytes[at] ^= 0x10;
        match self {
            Action::Delete => return fs::remove_file(file).unwrap(),
            Action::Empty => bytes.clear(),
            Action::CutLastByte => bytes.truncate(len - 1),
            Action::CutInHalf => bytes.truncate(len / 2),
            Action::FlipFirst => flip(0),
            Action::FlipMiddle => flip(len / 2),
            Action::FlipLast => flip(len - 1),
            Action::Append => bytes.extend_from_slice(b"more"),
            Action::Swap => {
                let theirs = fs::read(other).unwrap();
                overwrite(other, &bytes);
                bytes = theirs;
            }
        }
        overwrite(file, &bytes);
    }
}

/// Objects are read-only; damage does not ask.
fn overwrite(file: &Path, bytes: &[u8]) {
    fs::remove_file(file).unwrap();
    fs::write(file, bytes).unwrap();
}

/// A repository of two snapshots, with the source that the later one holds.
fn healthy() -> Sandbox {
    let sandbox = Sandbox::fast();
    sandbox.write("large", generate::noise(1, 3 << 20));
    sandbox.write("text", generate::text(2, 400_000));
    for n in 0..50 {
        sandbox.write(&format!("many/{n}"), generate::text(n, 700));
    }
    sandbox.ok(args!["key", "add", "--new-password-file", password_file(&sandbox)]);
    sandbox.backup();
    sandbox.write("text", generate::text(3, 400_000));
    sandbox.write("new/small", "in the second only");
    sandbox.backup();
    sandbox
}

fn password_file(sandbox: &Sandbox) -> PathBuf {
    let path = sandbox.path("second-password");
    fs::write(&path, "another password\n").unwrap();
    path
}

/// A damaged copy of a healthy repository.
struct Damaged<'a> {
    sandbox: &'a Sandbox,
    what: String,
}

/// Runs `examine` on every damage of every object, each on a fresh copy and with a fresh cache.
fn for_every_damage(mut examine: impl FnMut(&Damaged<'_>, &str, Action) -> Result<(), String>) {
    let sandbox = healthy();
    let pristine = sandbox.path("pristine");
    copy(&sandbox.repository(), &pristine);
    let mut wrong = Vec::new();
    for kind in KINDS {
        let objects: Vec<PathBuf> = sandbox.objects(kind);
        assert!(!objects.is_empty(), "no {kind} in the repository");
        for action in ACTIONS {
            for (n, object) in objects.iter().enumerate() {
                let other = &objects[(n + 1) % objects.len()];
                if action == Action::Swap && other == object {
                    continue;
                }
                action.apply(object, other);
                let name = object.strip_prefix(sandbox.repository()).unwrap().display();
                let damaged = Damaged { sandbox: &sandbox, what: format!("{action:?} {name}") };
                if let Err(e) = examine(&damaged, kind, action) {
                    wrong.push(format!("{}: {e}", damaged.what));
                }
                fs::remove_dir_all(sandbox.repository()).unwrap();
                copy(&pristine, &sandbox.repository());
                damaged.forget_cache();
            }
        }
    }
    assert!(wrong.is_empty(), "{} promises broken:\n{}", wrong.len(), wrong.join("\n"));
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-aT").args([from, to]).status().unwrap().success());
}

impl Damaged<'_> {
    fn forget_cache(&self) {
        fs::remove_dir_all(self.sandbox.cache()).unwrap();
        fs::create_dir(self.sandbox.cache()).unwrap();
    }

    /// Whether `run` failed in the way a failure should: with words, and with a code of the table.
    fn failed_with_words(&self, run: &Run) -> Result<bool, String> {
        match run.code {
            Some(0) => Ok(false),
            Some(1 | 3 | 10 | 12) if run.err().trim().len() > 10 => Ok(true),
            _ => Err(format!("failed badly: {run:?}")),
        }
    }

    /// Every file below `copy` is what the source holds, or is named by the errors of `run`.
    fn right_or_named(&self, run: &Run, copy: &Path, complete: bool) -> Result<(), String> {
        let source = self.sandbox.source();
        let of = |dir: &Path| -> BTreeSet<PathBuf> {
            if !dir.exists() {
                return BTreeSet::new();
            }
            files_below(dir).iter().map(|path| path.strip_prefix(dir).unwrap().to_owned()).collect()
        };
        let (wanted, there) = (of(&source), of(copy));
        if complete && wanted != there {
            return Err(format!("success, but {} files of {}: {run:?}", there.len(), wanted.len()));
        }
        for name in there {
            let same = fs::read(copy.join(&name)).ok() == fs::read(source.join(&name)).ok();
            if !same && (complete || !run.err().contains(name.to_str().unwrap())) {
                return Err(format!("{} is wrong and not named: {run:?}", name.display()));
            }
        }
        Ok(())
    }

    fn restore_is_right_or_named(&self) -> Result<(), String> {
        let target = self.sandbox.path("target");
        let source = format!("latest:{}", self.sandbox.source().display());
        let run = self.sandbox.run(args!["restore", source, "--target", target]);
        let failed = self.failed_with_words(&run)?;
        let outcome = self.right_or_named(&run, &target, !failed);
        let _ = fs::remove_dir_all(&target);
        outcome
    }
}

#[test]
fn check_finds_every_damage() {
    for_every_damage(|damaged, kind, action| {
        let run = damaged.sandbox.run(args!["check", "--read-data"]);
        let failed = damaged.failed_with_words(&run)?;
        // What is gone without a trace is not damage: a snapshot that someone removed, one of several keys.
        let traceless = action == Action::Delete && matches!(kind, "snapshots" | "keys");
        if failed || traceless { Ok(()) } else { Err(format!("not found: {run:?}")) }
    });
}

#[test]
fn check_without_a_key_finds_every_change_of_stored_bytes() {
    for_every_damage(|damaged, _, action| {
        let run = damaged.sandbox.run(args!["check", "--keyless"]);
        let failed = damaged.failed_with_words(&run)?;
        if failed || action == Action::Delete { Ok(()) } else { Err(format!("not found: {run:?}")) }
    });
}

#[test]
fn restore_of_a_damaged_repository_is_right_or_names_the_file() {
    for_every_damage(|damaged, kind, action| {
        // Without the later snapshot `latest` is the earlier one.
        if kind == "snapshots" && matches!(action, Action::Delete) {
            return Ok(());
        }
        damaged.restore_is_right_or_named()
    });
}

#[test]
fn backup_onto_a_damaged_repository_can_be_restored_or_says_why_not() {
    for_every_damage(|damaged, _, _| {
        let run = damaged.sandbox.run(args!["backup", "--force", damaged.sandbox.source()]);
        if damaged.failed_with_words(&run)? {
            return Ok(());
        }
        damaged.restore_is_right_or_named().map_err(|e| format!("after a backup that succeeded ({run:?}): {e}"))
    });
}

/// What a listing shows of an object, its absence and its length, a backup must not believe to be stored.
#[test]
fn backup_stores_again_what_lies_in_packs_that_are_gone() {
    for_every_damage(|damaged, kind, action| {
        if kind != "packs" || !matches!(action, Action::Delete | Action::Empty | Action::CutInHalf) {
            return Ok(());
        }
        for args in [args!["backup", damaged.sandbox.source()], args!["backup", "--force", damaged.sandbox.source()]] {
            let run = damaged.sandbox.run(args);
            if damaged.failed_with_words(&run)? {
                continue;
            }
            let target = damaged.sandbox.path("target");
            let source = format!("latest:{}", damaged.sandbox.source().display());
            let restored = damaged.sandbox.run(args!["restore", source, "--target", target]);
            let _ = fs::remove_dir_all(&target);
            if restored.code != Some(0) {
                return Err(format!("a snapshot was committed that cannot be restored: {run:?}\n{restored:?}"));
            }
        }
        Ok(())
    });
}

#[test]
fn snapshots_of_a_damaged_repository_are_listed_or_the_error_says_why_not() {
    for_every_damage(|damaged, kind, _| {
        let run = damaged.sandbox.run(args!["snapshots", "--json"]);
        let failed = damaged.failed_with_words(&run)?;
        if !failed && kind != "snapshots" && damaged.sandbox.snapshots().len() != 2 {
            return Err(format!("a snapshot is missing without a word: {run:?}"));
        }
        Ok(())
    });
}

#[test]
fn reading_a_damaged_repository_through_the_mount_is_right_or_an_error() {
    needs_fuse!();
    for_every_damage(|damaged, kind, action| {
        if kind == "snapshots" && matches!(action, Action::Delete) {
            return Ok(());
        }
        let sandbox = damaged.sandbox;
        let dir = sandbox.path("mnt");
        fs::create_dir_all(&dir).unwrap();
        let run = sandbox.run(args!["mount", dir]);
        if damaged.failed_with_words(&run)? {
            return Ok(());
        }
        let seen = dir.join("snapshots/latest").join(sandbox.source().strip_prefix("/").unwrap());
        let mut wrong = Ok(());
        for file in files_below(&sandbox.source()) {
            let name = file.strip_prefix(sandbox.source()).unwrap();
            match fs::read(seen.join(name)) {
                Ok(bytes) if bytes == fs::read(&file).unwrap() => {}
                Err(e) if e.raw_os_error() == Some(libc::EIO) => {}
                Ok(_) => wrong = Err(format!("{} has wrong content", name.display())),
                // Without the later snapshot `latest` may be the earlier one; otherwise a name never just goes missing.
                Err(_) if kind == "snapshots" => {}
                Err(e) => wrong = Err(format!("{}: {e} instead of EIO", name.display())),
            }
        }
        sandbox.ok(args!["umount", dir]);
        wrong
    });
}
