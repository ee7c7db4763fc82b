//! A backup may be killed at any moment.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::compare::assert_same;
use crate::support::generate;
use crate::support::sandbox::{Sandbox, program};

/// The source as it was when a snapshot was made.
fn keep(sandbox: &Sandbox, round: usize) -> PathBuf {
    let kept = sandbox.path(&format!("kept-{round}"));
    let done = Command::new("cp").arg("-aT").args([&sandbox.source(), &kept]).status().unwrap();
    assert!(done.success());
    kept
}

/// Changes the source: some new data, some changed, some gone.
fn change(sandbox: &Sandbox, round: usize) {
    let seed = round as u64;
    sandbox.write(&format!("new/{round}"), generate::noise(seed, 1 << 20));
    sandbox.write("log", generate::text(seed, 2 << 20));
    for n in 0..40 {
        sandbox.write(&format!("small/{round}-{n}"), generate::text(seed * 1000 + n, 3000));
    }
    let _ = fs::remove_dir_all(sandbox.source().join("small-old"));
    let _ = fs::remove_file(sandbox.source().join(format!("new/{}", round.wrapping_sub(3))));
}

fn start(sandbox: &Sandbox) -> std::process::Child {
    Command::new(program())
        .arg("backup")
        .arg(sandbox.source())
        .env_clear()
        .envs(sandbox.environment())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Kills `rounds` backups at moments spread over the whole of their run, and checks what is left after each.
fn kill_loop(rounds: usize) {
    let sandbox = Sandbox::new();
    change(&sandbox, 0);
    let from = Instant::now();
    sandbox.backup();
    let whole = from.elapsed();
    let mut kept = vec![keep(&sandbox, 0)];
    for round in 1..=rounds {
        change(&sandbox, round);
        let mut child = start(&sandbox);
        // A golden-ratio walk through the run: no two kills at the same moment, no gap for long.
        let part = (round as f64 * 0.618_033_988_749).fract();
        std::thread::sleep(whole.mul_f64(part * 1.1));
        child.kill().unwrap();
        child.wait().unwrap();
        let snapshots = sandbox.snapshots();
        if snapshots.len() > kept.len() {
            kept.push(keep(&sandbox, round));
        }
        assert_eq!(snapshots.len(), kept.len(), "round {round}: a snapshot came or went");
        sandbox.ok(args!["check"]);
        if round % 8 == 0 {
            let target = sandbox.restore("latest", "restored");
            assert_same(kept.last().unwrap(), &target);
            fs::remove_dir_all(target).unwrap();
        }
    }
    sandbox.backup();
    kept.push(keep(&sandbox, rounds + 1));
    sandbox.ok(args!["check", "--read-data"]);
    for (id, kept) in sandbox.snapshots().iter().zip(&kept) {
        let target = sandbox.restore(id, "restored");
        assert_same(kept, &target);
        fs::remove_dir_all(target).unwrap();
    }
    leftovers_are_cleaned(&sandbox);
}

/// Files that no object is named like go away once they are old.
fn leftovers_are_cleaned(sandbox: &Sandbox) {
    let strange = || {
        let mut files = sandbox.objects("");
        files.retain(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            !(name == "config" || name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()))
        });
        files
    };
    // One that was surely left, besides those that the loop left.
    let example = strange().first().cloned();
    for file in strange() {
        generate::set_time(&file, 1_000_000_000, 0);
    }
    change(sandbox, 9999);
    sandbox.backup();
    assert_eq!(strange(), Vec::<PathBuf>::new(), "leftovers such as {example:?} stay for ever");
}

#[test]
fn a_backup_killed_at_any_moment_harms_nothing() {
    kill_loop(40);
}

#[test]
#[ignore = "slow group: takes minutes"]
fn slow_a_thousand_killed_backups_harm_nothing() {
    kill_loop(1000);
}

#[test]
fn init_killed_at_any_moment_can_be_done_again() {
    for round in 0..12 {
        let sandbox = Sandbox::empty();
        let mut child = Command::new(program())
            .arg("init")
            .env_clear()
            .envs(sandbox.environment())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(round * round * 4));
        child.kill().unwrap();
        child.wait().unwrap();
        // Either it was done, or it can be done now.
        if sandbox.run(args!["snapshots"]).code != Some(0) {
            sandbox.ok(args!["init"]);
        }
        sandbox.write("file", "content");
        sandbox.backup();
        assert_same(&sandbox.source(), &sandbox.restore("latest", "copy"));
    }
}

#[test]
fn an_interrupted_backup_ends_at_once_with_130_and_no_snapshot() {
    let sandbox = Sandbox::new();
    sandbox.write("large", generate::noise(1, 256 << 20));
    let mut child = start(&sandbox);
    let begun = || sandbox.objects("packs").iter().any(|pack| fs::metadata(pack).is_ok_and(|meta| meta.size() > 0));
    assert!(crate::support::mount::within(Duration::from_secs(30), begun), "no pack is ever written");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(child.id() as i32).unwrap(),
        rustix::process::Signal::INT,
    )
    .unwrap();
    let from = Instant::now();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130), "{status:?}");
    assert!(from.elapsed() < Duration::from_secs(5), "it took {:?} to stop", from.elapsed());
    assert_eq!(sandbox.snapshots().len(), 0);
    sandbox.ok(args!["check"]);
}

/// Bytes of all packs.
fn stored(sandbox: &Sandbox) -> u64 {
    sandbox.objects("packs").iter().map(|pack| fs::metadata(pack).unwrap().size()).sum()
}

#[test]
fn what_an_interrupted_backup_has_stored_is_not_stored_again() {
    const LEN: u64 = 256 << 20;
    const PACK_LEN: u64 = 16 << 20;
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let sandbox = Sandbox::new();
        sandbox.write("large", generate::noise(1, LEN as usize));
        let mut child = start(&sandbox);
        let begun = || stored(&sandbox) >= 3 * PACK_LEN;
        assert!(crate::support::mount::within(Duration::from_secs(60), begun), "no pack is ever written");
        rustix::process::kill_process(rustix::process::Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert_eq!(sandbox.snapshots().len(), 0);
        assert_eq!(sandbox.objects("index").len(), 1, "the packs are in an index");
        let interrupted = stored(&sandbox);
        sandbox.ok(args!["check", "--read-data"]).shows("no errors");
        // Another host would find them too.
        fs::remove_dir_all(sandbox.cache()).unwrap();
        sandbox.backup();
        let all = stored(&sandbox);
        assert!(all < LEN + 3 * PACK_LEN, "{all} bytes of packs for {LEN}, {interrupted} of them before");
        fs::remove_file(sandbox.source().join("large")).unwrap();
    }
}

#[test]
fn of_many_that_begin_a_repository_at_once_one_wins() {
    let sandbox = Sandbox::empty();
    let init = || {
        let mut command = Command::new(program());
        command.arg("init").env_clear().envs(sandbox.environment());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<_> = (0..6).map(|_| init()).collect();
    let mut won = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            won += 1;
        } else {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains("already"), "{said}");
        }
    }
    assert_eq!((won, sandbox.objects("keys").len()), (1, 1));
    sandbox.write("file", "content");
    sandbox.backup();
    sandbox.ok(args!["check"]);
}
