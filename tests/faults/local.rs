//! Damage to local files: the index database, the index files, whatever lies in the cache. All of it can be rebuilt,
//! and none of it is believed against the repository.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::compare::assert_same;
use crate::support::generate;
use crate::support::sandbox::{Sandbox, files_below};

fn with_backups() -> Sandbox {
    let sandbox = Sandbox::fast();
    sandbox.write("large", generate::noise(1, 3 << 20));
    for n in 0..200 {
        sandbox.write(&format!("many/{n}"), generate::text(n, 2000));
    }
    sandbox.backup();
    sandbox.write("text", generate::text(3, 400_000));
    sandbox.backup();
    assert!(!files_below(&sandbox.cache()).is_empty(), "nothing is kept locally");
    sandbox
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-aT").args([from, to]).status().unwrap().success());
}

/// Everything must work, as if the local files were in order.
fn everything_works(sandbox: &Sandbox, what: &str) {
    eprintln!("{what}");
    let count = sandbox.snapshots().len();
    assert_same(&sandbox.source(), &sandbox.restore("latest", "copy"));
    fs::remove_dir_all(sandbox.path("copy")).unwrap();
    sandbox.write("changed", what);
    sandbox.backup();
    assert_eq!(sandbox.snapshots().len(), count + 1);
    sandbox.ok(args!["check", "--read-data"]);
    assert_same(&sandbox.source(), &sandbox.restore("latest", "copy"));
    fs::remove_dir_all(sandbox.path("copy")).unwrap();
}

type Damage = (&'static str, fn(&Path));

const DAMAGES: [Damage; 7] = [
    ("deleted", |path| fs::remove_file(path).unwrap()),
    ("emptied", |path| fs::write(path, "").unwrap()),
    ("cut in half", |path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    }),
    ("flipped at the beginning", |path| flip(path, |_| 0)),
    ("flipped in the middle", |path| flip(path, |len| len / 2)),
    ("filled with noise", |path| {
        let len = fs::metadata(path).unwrap().len() as usize;
        fs::write(path, generate::noise(9, len.clamp(100, 1 << 20))).unwrap();
    }),
    ("replaced by a directory", |path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    }),
];

fn flip(path: &Path, at: fn(usize) -> usize) {
    let mut bytes = fs::read(path).unwrap();
    if !bytes.is_empty() {
        let at = at(bytes.len());
        bytes[at] ^= 0x40;
        fs::write(path, bytes).unwrap();
    }
}

#[test]
fn damage_of_any_local_file_costs_a_rebuild_and_nothing_else() {
    let sandbox = with_backups();
    let (cache, kept) = (sandbox.cache(), sandbox.path("kept"));
    copy(&cache, &kept);
    let names: Vec<_> = files_below(&cache).iter().map(|path| path.strip_prefix(&cache).unwrap().to_owned()).collect();
    for name in &names {
        for (what, damage) in DAMAGES {
            fs::remove_dir_all(&cache).unwrap();
            copy(&kept, &cache);
            damage(&cache.join(name));
            everything_works(&sandbox, &format!("{} {what}", name.display()));
        }
    }
}

#[test]
fn all_local_files_damaged_at_once_cost_a_rebuild_and_nothing_else() {
    let sandbox = with_backups();
    for (what, damage) in DAMAGES {
        files_below(&sandbox.cache()).iter().for_each(|path| damage(path));
        everything_works(&sandbox, &format!("all of the cache {what}"));
    }
    fs::remove_dir_all(sandbox.cache()).unwrap();
    everything_works(&sandbox, "no cache directory");
    fs::remove_dir_all(sandbox.cache()).unwrap();
    fs::write(sandbox.cache(), "not a directory").unwrap();
    everything_works(&sandbox, "a file where the cache directory should be");
}

#[test]
fn a_cache_older_than_the_repository_is_brought_up_to_date() {
    let sandbox = with_backups();
    copy(&sandbox.cache(), &sandbox.path("old-cache"));
    sandbox.write("later", generate::noise(5, 500_000));
    sandbox.backup();
    fs::remove_dir_all(sandbox.cache()).unwrap();
    copy(&sandbox.path("old-cache"), &sandbox.cache());
    everything_works(&sandbox, "an older cache");
}

/// A repository put back from an older copy has lost packs that the local index still knows.
#[test]
fn a_cache_newer_than_the_repository_is_not_believed() {
    let sandbox = with_backups();
    copy(&sandbox.repository(), &sandbox.path("old-repository"));
    sandbox.write("later", generate::noise(5, 500_000));
    sandbox.backup();
    fs::remove_dir_all(sandbox.repository()).unwrap();
    copy(&sandbox.path("old-repository"), &sandbox.repository());
    // What the index says is stored is not: it has to be stored again.
    sandbox.backup();
    sandbox.ok(args!["check", "--read-data"]);
    assert_same(&sandbox.source(), &sandbox.restore("latest", "copy"));
}

#[test]
fn a_cache_of_another_repository_is_not_used() {
    let (one, other) = (with_backups(), Sandbox::new());
    other.write("file", generate::noise(1, 3 << 20));
    // The same directory serves both, and each repository has its own place in it.
    let backup = |sandbox: &Sandbox| {
        let mut command = sandbox.command(args!["backup", sandbox.source()]);
        crate::support::sandbox::Run::of(command.env("BYGONE_CACHE_DIR", one.cache())).expect_code(0);
    };
    backup(&other);
    backup(&one);
    other.ok(args!["check", "--read-data"]);
    one.ok(args!["check", "--read-data"]);
    assert_same(&other.source(), &other.restore("latest", "copy"));
}

#[test]
fn a_mount_two_backups_and_a_check_run_at_once() {
    let sandbox = with_backups();
    let mount = crate::support::has_fuse().then(|| sandbox.mount("mnt"));
    let before = sandbox.snapshots().len();
    std::thread::scope(|scope| {
        for name in ["one", "two"] {
            let sandbox = &sandbox;
            scope.spawn(move || {
                let dir = sandbox.path(name);
                fs::create_dir(&dir).unwrap();
                for n in 0..4 {
                    fs::write(dir.join(n.to_string()), generate::noise(n, 2 << 20)).unwrap();
                    sandbox.ok(args!["backup", dir]);
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..4 {
                sandbox.ok(args!["check"]);
            }
        });
        if let Some(mount) = &mount {
            for _ in 0..4 {
                // The newest may be one of the two other directories: this one is named.
                let id = &sandbox.snapshots()[before - 1];
                let seen = mount.dir().join("ids").join(&id[..8]);
                assert_same(&sandbox.source(), &seen.join(sandbox.source().strip_prefix("/").unwrap()));
            }
        }
    });
    assert_eq!(sandbox.snapshots().len(), before + 8);
    sandbox.ok(args!["check", "--read-data"]);
    if let Some(mount) = mount {
        let is_id = |entry: &std::io::Result<fs::DirEntry>| entry.as_ref().unwrap().file_name() != "latest";
        let shown = || fs::read_dir(mount.dir().join("ids")).unwrap().filter(is_id).count();
        let limit = std::time::Duration::from_secs(15);
        assert!(crate::support::mount::within(limit, || shown() == before + 8), "{} snapshots are shown", shown());
        mount.unmount();
    }
}
