//! Damage to the repository: action x object kind x next command.
//!
//! Whatever happens to the stored bytes, a command either names what is wrong or gives the right data. A backup that
//! says it succeeded is one that can be restored.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::compare::assert_same;
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
pub fn overwrite(file: &Path, bytes: &[u8]) {
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
fn for_every_damage(examine: impl FnMut(&Damaged<'_>, &str, Action) -> Result<(), String>) {
    for_every_damage_of(&KINDS, examine);
}

/// As [`for_every_damage`], on objects of these kinds.
fn for_every_damage_of(kinds: &[&str], mut examine: impl FnMut(&Damaged<'_>, &str, Action) -> Result<(), String>) {
    let sandbox = healthy();
    let pristine = sandbox.path("pristine");
    copy(&sandbox.repository(), &pristine);
    let mut wrong = Vec::new();
    for kind in kinds.iter().copied() {
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
    for_every_damage(|damaged, kind, _| {
        // Without the later snapshot `latest` is the earlier one.
        if kind == "snapshots" {
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
        // What was in a pack that is gone, and has all been stored again, is no reason to be alarmed for good.
        let check = damaged.sandbox.run(args!["check"]);
        match (action, check.code) {
            (Action::Delete, Some(0)) if check.out().contains("stored elsewhere") => Ok(()),
            // What only an older snapshot has is lost, and named.
            (Action::Delete, _) if check.err().contains("affects") => Ok(()),
            (Action::Delete, _) => Err(format!("nothing is lost, but: {check:?}")),
            _ => Ok(()),
        }
    });
}

#[test]
fn a_damaged_snapshot_is_named_and_stops_nothing_but_what_asks_for_it() {
    for_every_damage_of(&["snapshots"], |damaged, _, action| {
        let sandbox = damaged.sandbox;
        // Two that have changed places are both damaged.
        if matches!(action, Action::Delete | Action::Swap) {
            return Ok(());
        }
        let (_, id) = damaged.what.split_once("snapshots/").unwrap();
        let commands = [
            args!["snapshots"],
            args!["ls", "latest"],
            args!["find", "text"],
            args!["stats"],
            args!["backup", sandbox.source()],
        ];
        for command in commands {
            let run = sandbox.run(command);
            let warned = run.err().lines().filter(|line| line.starts_with("warning:") && line.contains(id)).count();
            if run.code != Some(0) || warned != 1 {
                return Err(format!("{warned} warnings: {run:?}"));
            }
        }
        for command in [args!["ls", id], args!["check"], args!["check", "--keyless"]] {
            let run = sandbox.run(command);
            if run.code != Some(1) || !run.err().contains(id) {
                return Err(format!("no error names it: {run:?}"));
            }
        }
        if sandbox.snapshots().len() != 2 {
            return Err("the new snapshot or the one that is well is not listed".to_owned());
        }
        damaged.restore_is_right_or_named()
    });
}

#[test]
fn a_damaged_index_object_is_named_and_what_it_named_is_stored_again() {
    for_every_damage_of(&["index"], |damaged, _, action| {
        let sandbox = damaged.sandbox;
        let (_, id) = damaged.what.split_once("index/").unwrap();
        let is_named = |run: &Run, beginning: &str| {
            action == Action::Delete || run.err().lines().any(|line| line.starts_with(beginning) && line.contains(id))
        };
        for cache in [args!["--no-cache"], args![]] {
            let with = |mut command: Vec<std::ffi::OsString>| {
                command.extend(cache.clone());
                sandbox.run(command)
            };
            let snapshots = with(args!["snapshots"]);
            if snapshots.code != Some(0) || !is_named(&snapshots, "warning:") {
                return Err(format!("no reader is told: {snapshots:?}"));
            }
            let check = with(args!["check"]);
            if check.code != Some(1) || !is_named(&check, "error:") || !check.out().contains("2 snapshots") {
                return Err(format!("check stopped or is silent: {check:?}"));
            }
        }
        let backup = sandbox.run(args!["backup", sandbox.source()]);
        if backup.code != Some(0) || !is_named(&backup, "warning:") {
            return Err(format!("{backup:?}"));
        }
        damaged.restore_is_right_or_named()?;
        let target = sandbox.path("target");
        let source = format!("latest:{}", sandbox.source().display());
        let restored = sandbox.run(args!["restore", source, "--target", target]);
        let _ = fs::remove_dir_all(&target);
        if restored.code == Some(0) { Ok(()) } else { Err(format!("not stored again: {restored:?}")) }
    });
}

/// The local index says what the object said, and so does not hide that nobody else can read it.
#[test]
fn a_damaged_index_object_is_noticed_by_a_backup_whose_local_index_is_whole() {
    let sandbox = healthy();
    let (pristine, warm) = (sandbox.path("pristine"), sandbox.path("warm"));
    copy(&sandbox.repository(), &pristine);
    copy(&sandbox.cache(), &warm);
    for action in ACTIONS {
        let objects = sandbox.objects("index");
        action.apply(&objects[0], &objects[1]);
        let id = objects[0].file_name().unwrap().to_str().unwrap();
        let backup = sandbox.backup();
        assert_eq!(backup.err().contains(id), action != Action::Delete, "{action:?}: {backup:?}");
        // Another host, which has no local index.
        fs::remove_dir_all(sandbox.cache()).unwrap();
        assert_same(&sandbox.source(), &sandbox.restore("latest", "copy"));
        for (from, to) in [(&pristine, sandbox.repository()), (&warm, sandbox.cache())] {
            fs::remove_dir_all(&to).unwrap();
            copy(from, &to);
        }
        fs::remove_dir_all(sandbox.path("copy")).unwrap();
    }
}

#[test]
fn a_damaged_key_object_is_listed_as_damaged_and_its_password_is_a_wrong_one() {
    let sandbox = healthy();
    let keys = sandbox.json(args!["key", "list", "--json"]);
    let second = keys.as_array().unwrap().iter().find(|key| key["current"] == false).unwrap()["id"].clone();
    let second = second.as_str().unwrap();
    let path = sandbox.repository().join("keys").join(second);
    let pristine = fs::read(&path).unwrap();
    for action in ACTIONS.into_iter().filter(|action| !matches!(action, Action::Delete | Action::Swap)) {
        action.apply(&path, &path);
        sandbox.ok(args!["snapshots"]);
        sandbox.ok(args!["key", "list"]).shows("damaged");
        let shown = sandbox.json(args!["key", "list", "--json"]);
        let damaged = shown.as_array().unwrap().iter().find(|key| key["id"] == second).unwrap();
        assert!(damaged["error"].as_str().unwrap().contains("damaged"), "{shown}");
        let password = sandbox.path("second-password");
        sandbox.exits(12, args!["snapshots", "--password-file", password]).says("warning: keys/").says(second);
        sandbox.ok(args!["key", "remove", second]);
        sandbox.ok(args!["check"]);
        fs::write(&path, &pristine).unwrap();
    }
}

#[test]
fn an_error_of_the_operating_system_is_told_once() {
    let sandbox = Sandbox::fast();
    fs::remove_dir_all(sandbox.repository().join("index")).unwrap();
    let run = sandbox.exits(1, args!["snapshots"]);
    assert_eq!(run.err().matches("No such file or directory").count(), 1, "{run:?}");
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
        if kind == "snapshots" {
            // `latest` may be the earlier one; what is whole is shown.
            let is_id = |entry: &std::io::Result<fs::DirEntry>| entry.as_ref().unwrap().file_name() != "latest";
            let shown = fs::read_dir(dir.join("ids")).unwrap().filter(is_id).count();
            sandbox.ok(args!["umount", dir]);
            let whole = if action == Action::Swap { 0 } else { 1 };
            return if shown == whole { Ok(()) } else { Err(format!("{shown} snapshots are shown")) };
        }
        let seen = dir.join("snapshots/latest").join(sandbox.source().strip_prefix("/").unwrap());
        let mut wrong = Ok(());
        for file in files_below(&sandbox.source()) {
            let name = file.strip_prefix(sandbox.source()).unwrap();
            match fs::read(seen.join(name)) {
                Ok(bytes) if bytes == fs::read(&file).unwrap() => {}
                Err(e) if e.raw_os_error() == Some(libc::EIO) => {}
                Ok(_) => wrong = Err(format!("{} has wrong content", name.display())),
                // A name never just goes missing.
                Err(e) => wrong = Err(format!("{}: {e} instead of EIO", name.display())),
            }
        }
        sandbox.ok(args!["umount", dir]);
        wrong
    });
}
