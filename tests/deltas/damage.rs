//! A base that is lost takes down what is made of it, in every snapshot, and nothing else.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

use super::{deltas, dump, in_mount};
use crate::faults::damage::overwrite;
use crate::support::generate::noise;
use crate::support::sandbox::{Run, Sandbox};

const ROWS: u64 = 20_000;
const NIGHTS: u64 = 3;

/// Nights of a dump beside a file that was there before, with the packs that the first night of the dump and the last
/// night have brought.
struct Nights {
    sandbox: Sandbox,
    snapshots: Vec<String>,
    /// Of the first night: what the deltas are made of.
    base: PathBuf,
    /// Of the last night: its deltas.
    last: Vec<PathBuf>,
}

fn other() -> Vec<u8> {
    noise(5, 700_000)
}

fn largest(packs: &[PathBuf]) -> PathBuf {
    packs.iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap().clone()
}

fn nights() -> Nights {
    let sandbox = Sandbox::fast();
    sandbox.write("other", other());
    sandbox.backup();
    let mut packs = vec![sandbox.objects("packs")];
    for night in 0..NIGHTS {
        sandbox.write("dump", dump(night, ROWS));
        sandbox.backup();
        packs.push(sandbox.objects("packs"));
    }
    assert!(deltas(&sandbox) > 0);
    let new = |n: usize| packs[n].iter().filter(|pack| !packs[n - 1].contains(pack)).cloned().collect::<Vec<_>>();
    let (base, last) = (largest(&new(1)), new(NIGHTS as usize));
    let snapshots = sandbox.snapshots();
    Nights { sandbox, snapshots, base, last }
}

impl Nights {
    fn dump_path(&self) -> PathBuf {
        self.sandbox.source().join("dump")
    }

    /// `check` says one thing, and that it takes the dump of every one of `nights` down, and nothing else.
    fn check_says(&self, read: bool, pack: &Path, nights: std::ops::Range<u64>) {
        let run = if read { args!["check", "--read-data"] } else { args!["check"] };
        let run = self.sandbox.exits(1, run);
        let said = run.err();
        assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{said}");
        let mut affected: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("  affects ")).collect();
        let path = self.dump_path().display().to_string();
        let line = |night: u64| format!("{}:{path}", &self.snapshots[night as usize + 1][..8]);
        let mut expected: Vec<String> = nights.map(line).collect();
        affected.sort_unstable();
        expected.sort_unstable();
        assert_eq!(affected, expected, "{said}");
        run.says(pack.file_name().unwrap().to_str().unwrap());
    }

    /// Restores each snapshot: `other` is always right, the dump is right or missing as `is_lost` says.
    fn restores(&self, is_lost: impl Fn(u64) -> bool) {
        for (n, id) in self.snapshots.iter().enumerate() {
            let target = self.sandbox.path("target");
            let source = format!("{id}:{}", self.sandbox.source().display());
            let run: Run = self.sandbox.run(args!["restore", source, "--target", target]);
            assert!(fs::read(target.join("other")).unwrap() == other());
            if n > 0 {
                let night = n as u64 - 1;
                assert_eq!(run.code, Some(if is_lost(night) { 3 } else { 0 }), "night {night}: {run:?}");
                let right = fs::read(target.join("dump")).is_ok_and(|found| found == dump(night, ROWS));
                assert_eq!(right, !is_lost(night), "night {night}");
            }
            fs::remove_dir_all(target).unwrap();
        }
    }

    /// Reads the dump of every night from a mount, page by page; returns how many bytes of each are errors. All others must be right.
    fn lost_on_the_mount(&self) -> Vec<u64> {
        let mount = self.sandbox.mount("mnt");
        let mut lost = Vec::new();
        for (night, id) in self.snapshots[1..].iter().enumerate() {
            let expected = dump(night as u64, ROWS);
            assert!(fs::read(in_mount(&mount, id, &self.sandbox.source().join("other"))).unwrap() == other());
            let file = File::open(in_mount(&mount, id, &self.dump_path())).unwrap();
            fadvise(&file, 0, None, Advice::Random).unwrap();
            let mut bytes = 0;
            for (n, page) in expected.chunks(4096).enumerate() {
                let mut got = vec![0; page.len()];
                match file.read_exact_at(&mut got, n as u64 * 4096) {
                    Ok(()) => assert!(got == page, "night {night}, page {n} has wrong content"),
                    Err(error) => {
                        assert_eq!(error.raw_os_error(), Some(libc::EIO), "night {night}, page {n}");
                        bytes += page.len() as u64;
                    }
                }
            }
            lost.push(bytes);
        }
        mount.unmount();
        lost
    }

    /// Backs the last night up once more and then the first one: after that everything is there again.
    fn is_mended_by_backups(&self) {
        let sandbox = &self.sandbox;
        sandbox.backup();
        let path = self.dump_path();
        for id in ["latest", &self.snapshots[NIGHTS as usize]] {
            assert!(sandbox.ok(args!["dump", id, path]).stdout == dump(NIGHTS - 1, ROWS), "{id}");
        }
        sandbox.write("dump", dump(0, ROWS));
        sandbox.backup();
        self.restores(|_| false);
        if crate::support::has_fuse() {
            assert_eq!(self.lost_on_the_mount(), [0; NIGHTS as usize]);
        }
        // The pack that is gone stays named by an index; it takes nothing down any more.
        sandbox.ok(args!["check", "--read-data"]).shows("stored elsewhere");
        // And another host finds it so.
        fs::remove_dir_all(sandbox.cache()).unwrap();
        self.restores(|_| false);
    }
}

#[test]
fn a_missing_base_takes_down_every_night_that_is_made_of_it_until_it_is_stored_again() {
    needs_fuse!();
    let nights = nights();
    fs::remove_file(&nights.base).unwrap();
    for read in [false, true] {
        nights.check_says(read, &nights.base, 0..NIGHTS);
    }
    nights.restores(|_| true);
    let lost = nights.lost_on_the_mount();
    assert!(lost.iter().all(|bytes| *bytes > 0), "{lost:?}");
    nights.is_mended_by_backups();
}

#[test]
fn a_damaged_base_takes_down_the_ranges_that_are_made_of_it() {
    needs_fuse!();
    let nights = nights();
    let mut bytes = fs::read(&nights.base).unwrap();
    // Near the beginning are segments, wherever the padding is.
    let at = bytes.len() / 4;
    bytes[at] ^= 1;
    overwrite(&nights.base, &bytes);
    nights.sandbox.ok(args!["check"]);
    nights.check_says(true, &nights.base, 0..NIGHTS);
    nights.restores(|_| true);
    // The page at each end is lost with the segment of 128 KiB.
    let lost = nights.lost_on_the_mount();
    assert!(lost.iter().all(|bytes| (1..=(128 << 10) + 3 * 4096).contains(bytes)), "{lost:?}");
    fs::remove_file(&nights.base).unwrap();
    nights.is_mended_by_backups();
}

#[test]
fn flipped_bits_of_deltas_take_down_the_night_of_them_only() {
    needs_fuse!();
    let nights = nights();
    let content = nights.last.iter().map(|pack| (pack, fs::read(pack).unwrap())).collect::<Vec<_>>();
    let mut seen = 0;
    for (pack, healthy) in &content {
        let name = pack.file_name().unwrap().to_str().unwrap();
        for part in 0..8 {
            let mut bytes = healthy.clone();
            let at = bytes.len() * part / 8;
            bytes[at] ^= 1 << part;
            overwrite(pack, &bytes);
            // Trees are in a pack of their own; padding may be flipped without harm.
            let run = nights.sandbox.exits(1, args!["check", "--read-data"]);
            assert!(run.err().contains(name), "byte {at} of {}: {run:?}", bytes.len());
            let path = nights.dump_path();
            let last = nights.sandbox.run(args!["dump", "latest", path]);
            match last.code {
                Some(0) => assert!(last.stdout == dump(NIGHTS - 1, ROWS)),
                _ => {
                    seen += 1;
                    assert!(last.err().contains(name), "{last:?}");
                }
            }
            let before = nights.sandbox.ok(args!["dump", nights.snapshots[NIGHTS as usize - 1], path]);
            assert!(before.stdout == dump(NIGHTS - 2, ROWS));
        }
        overwrite(pack, healthy);
    }
    assert!(seen > 0, "no flipped bit was ever in the way");
    assert_eq!(nights.lost_on_the_mount(), [0; NIGHTS as usize]);
    // A pack of deltas that is lost costs its night alone, and that is stored again.
    for pack in &nights.last {
        fs::remove_file(pack).unwrap();
    }
    nights.sandbox.backup();
    assert!(nights.sandbox.ok(args!["dump", "latest", nights.dump_path()]).stdout == dump(NIGHTS - 1, ROWS));
    let before = &nights.snapshots[NIGHTS as usize - 1];
    assert!(nights.sandbox.ok(args!["dump", before, nights.dump_path()]).stdout == dump(NIGHTS - 2, ROWS));
}

/// Without the index object that names a base, deltas of it cannot be read: what is made of it is stored again.
#[test]
fn a_base_that_no_index_names_any_more_is_stored_again() {
    for changed in [false, true] {
        let sandbox = Sandbox::fast();
        sandbox.write("dump", dump(0, ROWS));
        sandbox.backup();
        let first = sandbox.objects("index");
        sandbox.write("dump", dump(1, ROWS));
        sandbox.backup();
        assert!(deltas(&sandbox) > 0);
        fs::remove_file(&first[0]).unwrap();
        let path = sandbox.source().join("dump");
        assert_ne!(sandbox.run(args!["dump", "latest", path]).code, Some(0));
        if changed {
            sandbox.write("dump", dump(2, ROWS));
        }
        sandbox.backup();
        assert!(sandbox.ok(args!["dump", "latest", path]).stdout == fs::read(&path).unwrap(), "changed: {changed}");
        fs::remove_dir_all(sandbox.cache()).unwrap();
        assert!(sandbox.ok(args!["dump", "latest", path]).stdout == fs::read(&path).unwrap(), "changed: {changed}");
    }
}
