//! Verifying a repository: nothing is changed, everything wrong is named, and with it the paths that it takes down.
//!
//! The structure check follows every snapshot to every blob and refuses what any reader would refuse (see `trees`);
//! reading data decodes packs and compares each blob with its id, and each pack's own table with what the index says; the
//! keyless check compares objects with their names, which anyone who can read the store may do.

#[cfg(test)]
mod tests;
mod trees;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;

use crate::backend::{Backend, ObjectKind, ObjectName};
use crate::format::delta::Delta;
use crate::format::index::{PackedBlob, encode_blobs};
use crate::format::limits::PACK_LEN_MAX;
use crate::format::object::{CONFIG_LEN_MAX, Config};
use crate::format::tree::Kind;
use crate::id::{BlobId, ContentHash, ObjectId};
use crate::pool::{Pool, Urgency, cores};
use crate::progress::Progress;
use crate::repo::{Error, Repository, Result};

use trees::Trees;

/// Problems that are told; more are only counted by one last line.
const PROBLEMS_MAX: usize = 10_000;
/// Paths that are told of each problem; more are only counted.
const PATHS_MAX: usize = 10;
/// Blobs that are remembered as lost, to say which paths go with them; of more, each is a problem of its own.
const SUSPECTS_MAX: usize = 1 << 20;

/// Which packs to read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Subset {
    /// The packs whose names fall into part `part` of `of`, counted from 1: all parts together are all packs.
    Part {
        /// Which part.
        part: u32,
        /// Of how many.
        of: u32,
    },
    /// This share of the packs, chosen at random.
    Share(f64),
    /// Packs chosen at random until this many bytes are reached.
    Bytes(u64),
}

/// Something that is wrong, and what goes with it.
#[derive(Clone, Debug, Default)]
pub struct Problem {
    /// What is wrong, naming its object.
    pub what: String,
    /// Snapshot and path of the first files and directories that cannot be read whole because of it.
    pub paths: Vec<Vec<u8>>,
    /// How many more there are.
    pub paths_more: u64,
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What is wrong, each thing once.
    pub problems: Vec<Problem>,
    /// What is worth knowing but not wrong.
    pub notes: Vec<String>,
    /// Snapshots checked.
    pub snapshots: u64,
    /// Trees checked.
    pub trees: u64,
    /// Blobs that an index names.
    pub blobs: u64,
    /// Packs that an index names, or that are stored if there is no key to read an index with.
    pub packs: u64,
    /// Packs read whole.
    pub packs_read: u64,
    /// Objects read whole, packs among them.
    pub objects_read: u64,
    /// Bytes of them.
    pub bytes_read: u64,
}

impl Report {
    /// Adds a problem; returns its number.
    fn problem(&mut self, what: impl ToString) -> usize {
        let what = match self.problems.len() {
            ..PROBLEMS_MAX => what.to_string(),
            PROBLEMS_MAX => "more problems were found and are not listed".to_owned(),
            _ => return PROBLEMS_MAX,
        };
        self.problems.push(Problem { what, ..Problem::default() });
        self.problems.len() - 1
    }

    /// Says that `path` of `snapshot` goes with a problem.
    fn path(&mut self, problem: usize, snapshot: &ObjectId, path: &[u8]) {
        let problem = &mut self.problems[problem];
        if problem.paths.len() < PATHS_MAX {
            let path = if path.is_empty() { b"/" } else { path };
            problem.paths.push([snapshot.short().as_bytes(), b":", path].concat());
        } else {
            problem.paths_more += 1;
        }
    }
}

/// Blobs that are known to be lost before trees are looked at, each with the number of its problem.
#[derive(Default)]
struct Suspects {
    blobs: HashMap<BlobId, usize>,
    /// The pack that the problem is about, where other packs may still hold the blob.
    packs: HashMap<usize, ObjectId>,
}

impl Suspects {
    fn add(&mut self, problem: usize, blobs: impl Iterator<Item = BlobId>) {
        for id in blobs.take(SUSPECTS_MAX.saturating_sub(self.blobs.len())) {
            self.blobs.insert(id, problem);
        }
    }
}

/// What the index objects say of a pack.
struct Indexed {
    /// Stored length in bytes.
    len: u64,
    /// The index object that was first to name it.
    by: ObjectId,
    /// Hash of its table of blobs, as that index has it.
    table: [u8; 32],
}

type Packs = HashMap<ObjectId, Indexed>;

/// Packs that are not stored, and what they held.
type Lost = Vec<(ObjectName, Vec<BlobId>)>;

fn hash_of(blobs: &[PackedBlob]) -> [u8; 32] {
    let mut table = Vec::new();
    encode_blobs(blobs, &mut table);
    *blake3::hash(&table).as_bytes()
}

/// Checks the structure, and packs as `read` says. An error means that the check itself could not go on.
pub fn run(repo: &Arc<Repository>, read: Option<Subset>, progress: &Arc<Progress>) -> Result<Report> {
    let mut report = Report::default();
    for error in repo.broken_keys()? {
        report.problem(error);
    }
    let mut stored: HashMap<ObjectId, u64> = HashMap::new();
    repo.backend().list(ObjectKind::Pack, &mut |found| {
        stored.insert(found.id, found.len);
    })?;
    let mut suspects = Suspects::default();
    let before = report.problems.len();
    let (indexed, lost) = check_index(repo, &stored, &mut suspects, &mut report)?;
    let unindexed = stored.keys().filter(|id| !indexed.contains_key(id)).count();
    if unindexed > 0 {
        let are = if unindexed == 1 { "1 pack is" } else { &format!("{unindexed} packs are") };
        report.notes.push(match report.problems.len() > before {
            true => format!("{are} in no index that can be read, and may be needed: do not remove any"),
            false => {
                format!("{are} in no index: left by interrupted backups, or being written right now; that does no harm")
            }
        });
    }
    if let Some(subset) = read {
        read_packs(repo, &indexed, &stored, subset, &mut suspects, &mut report, progress)?;
    }
    let snapshots = check_snapshots(repo, &mut report)?;
    // Packs may have been listed before the newest snapshots were written; only what is missing now is wrong. What else
    // holds a blob of a lost pack, readers find.
    repo.hide_lost_packs()?;
    for (pack, mut blobs) in lost {
        blobs.retain(|id| !repo.has(id));
        if blobs.is_empty() {
            report.notes.push(format!("{pack} is missing, but all that was in it is stored elsewhere, too"));
        } else {
            let problem = report.problem(format!("{pack} is missing, and {} blobs with it", blobs.len()));
            suspects.add(problem, blobs.into_iter());
        }
    }
    let mut trees = Trees::new(repo, &suspects, &mut report, progress);
    for (id, root, entries) in snapshots {
        trees.check(id, root, entries)?;
    }
    Ok(report)
}

/// Loads every index object; they must agree about each pack they name, and it must have its length. Packs that are not
/// stored are returned, with their blobs.
fn check_index(
    repo: &Repository,
    stored: &HashMap<ObjectId, u64>,
    suspects: &mut Suspects,
    report: &mut Report,
) -> Result<(Packs, Lost)> {
    let mut indexed = Packs::new();
    let mut lost = Lost::new();
    for by in repo.index_ids()? {
        let packs = match repo.index_object(&by) {
            Ok(packs) => packs,
            Err(error) => {
                report.problem(error);
                continue;
            }
        };
        for pack in packs {
            let name = ObjectName::new(ObjectKind::Pack, pack.id);
            let table = hash_of(&pack.blobs);
            if let Some(known) = indexed.get(&pack.id) {
                if (known.len, known.table) != (pack.len, table) {
                    let (one, other) = (known.by, ObjectName::new(ObjectKind::Index, by));
                    let one = ObjectName::new(ObjectKind::Index, one);
                    report.problem(format!("{one} and {other} say different things of {name}"));
                }
                continue;
            }
            indexed.insert(pack.id, Indexed { len: pack.len, by, table });
            report.packs += 1;
            report.blobs += pack.blobs.len() as u64;
            // The packs were listed first, and the listing of a distributed store may lag: one that another host has
            // stored since is asked for itself.
            let found = stored.get(&pack.id).copied().or_else(|| repo.backend().len(name).ok());
            let problem = match found {
                None => {
                    lost.push((name, pack.blobs.iter().map(|blob| blob.id).collect()));
                    continue;
                }
                Some(len) if len != pack.len => {
                    report.problem(format!("{name} is damaged: it has {len} bytes instead of {}", pack.len))
                }
                Some(_) => continue,
            };
            suspects.add(problem, pack.blobs.iter().map(|blob| blob.id));
        }
    }
    Ok((indexed, lost))
}

/// Reads every snapshot; returns the trees at their roots and how many entries are to be below them.
fn check_snapshots(repo: &Repository, report: &mut Report) -> Result<Vec<(ObjectId, BlobId, u64)>> {
    let mut roots = Vec::new();
    for id in repo.snapshot_ids()? {
        match repo.snapshot(&id) {
            Ok(snapshot) => {
                report.snapshots += 1;
                if let Kind::Directory { tree, entries } = snapshot.root().kind {
                    roots.push((id, tree, entries));
                }
            }
            Err(error) => {
                report.problem(error);
            }
        }
    }
    // A snapshot may have been written after the index was loaded.
    repo.refresh()?;
    Ok(roots)
}

fn choose(indexed: &Packs, subset: Subset) -> Vec<ObjectId> {
    let mut ids: Vec<ObjectId> = indexed.keys().copied().collect();
    ids.sort();
    let number = |id: &ObjectId| u32::from_le_bytes(id.0[..4].try_into().expect("four bytes"));
    if let Subset::Part { part, of } = subset {
        ids.retain(|id| number(id) % of == part - 1);
        return ids;
    }
    if subset != Subset::Share(1.0) {
        // Another order each time, so that repeated checks reach everything.
        let salt = crate::key::random::<8>().unwrap_or_default();
        ids.sort_by_cached_key(|id| *blake3::Hasher::new().update(&salt).update(&id.0).finalize().as_bytes());
    }
    let mut bytes = 0;
    let count = match subset {
        Subset::Share(share) => (ids.len() as f64 * share).ceil() as usize,
        Subset::Bytes(most) => ids
            .iter()
            .take_while(|id| {
                let before = bytes;
                bytes += indexed[id].len;
                before < most
            })
            .count(),
        Subset::Part { .. } => unreachable!("handled above"),
    };
    ids.truncate(count);
    ids
}

/// Reads packs whole; a pack that is not stored with its length has been told of already.
fn read_packs(
    repo: &Arc<Repository>,
    indexed: &Packs,
    stored: &HashMap<ObjectId, u64>,
    subset: Subset,
    suspects: &mut Suspects,
    report: &mut Report,
    progress: &Arc<Progress>,
) -> Result<()> {
    let read_all = subset == Subset::Share(1.0);
    let mut ids = choose(indexed, subset);
    ids.retain(|id| stored.get(id) == Some(&indexed[id].len));
    progress.bytes_total.store(ids.iter().map(|id| indexed[id].len).sum(), Ordering::Relaxed);
    let system = |source| Error::System { op: "start threads", source };
    let pool = Pool::new("check", cores()).map_err(system)?;
    let expected = ids.len() as u64;
    let (results, receiver) = sync_channel(ids.len().max(1));
    for id in ids {
        let Indexed { len, by, table } = indexed[&id];
        let (repo, results, progress) = (repo.clone(), results.clone(), progress.clone());
        pool.submit(Urgency::Normal, move || {
            if !progress.is_cancelled() {
                let _ = results.send((id, len, verify_pack(&repo, &id, &by, &table, read_all)));
                progress.add(len);
            }
        });
    }
    drop(results);
    for (id, len, faults) in receiver {
        report.packs_read += 1;
        report.objects_read += 1;
        report.bytes_read += len;
        for Fault { what, lost } in faults {
            let problem = report.problem(what);
            suspects.packs.insert(problem, id);
            suspects.add(problem, lost.into_iter());
        }
    }
    if progress.is_cancelled() {
        return Err(Error::Cancelled);
    }
    if report.packs_read < expected {
        report.problem(format!("{} packs could not be checked: this program failed", expected - report.packs_read));
    }
    Ok(())
}

/// One thing that is wrong with a pack, and the blobs that cannot be read from it.
struct Fault {
    what: String,
    lost: Vec<BlobId>,
}

/// Compares what is stored of a blob with its id. For a delta that is as it should be and cannot be followed, returns why
/// one of its bases cannot be read.
fn verify_blob(repo: &Repository, blob: &PackedBlob, stored: &[u8]) -> Result<Option<Error>> {
    let hashes = |plain: &[u8]| repo.blob_id(blob.kind, &ContentHash::of(plain)) == blob.id;
    let wrong = |what: &str| {
        let object = format!("{:?} blob {}", blob.kind, blob.id);
        Err(Error::Corrupt { object, what: what.to_owned() })
    };
    if !blob.is_delta {
        return if hashes(stored) { Ok(None) } else { wrong("it does not hash to its id") };
    }
    let made = repo.apply_delta(&blob.id, stored);
    if made.as_ref().is_ok_and(|made| hashes(made)) {
        return Ok(None);
    }
    let decoded =
        Delta::decode(stored).map_err(|error| Error::decode(format!("delta of data blob {}", blob.id), error))?;
    match decoded.bases.iter().find_map(|base| repo.plain_blob(&base.id).err()) {
        Some(base) => Ok(Some(base)),
        None => made.and_then(|_| wrong("what its delta makes does not hash to its id")),
    }
}

/// What is wrong with a pack: at most its bytes, and what the index object `by` says of it. With `read_all`, bases of its
/// deltas are not looked at, since their own packs are.
fn verify_pack(repo: &Repository, id: &ObjectId, by: &ObjectId, table: &[u8; 32], read_all: bool) -> Vec<Fault> {
    let name = ObjectName::new(ObjectKind::Pack, *id);
    // Loaded again, for few packs need it.
    let indexed = || -> Vec<PackedBlob> {
        let packs = repo.index_object(by).unwrap_or_default();
        packs.into_iter().find(|pack| pack.id == *id).map(|pack| pack.blobs).unwrap_or_default()
    };
    let nothing_left = |what: String| {
        let lost = indexed().iter().map(|blob| blob.id).collect();
        vec![Fault { what, lost }]
    };
    let stored = match repo.backend().get(name, PACK_LEN_MAX) {
        Ok(stored) => stored,
        Err(error) => return nothing_left(error.to_string()),
    };
    let mut own: Vec<PackedBlob> = Vec::new();
    let (mut lost, mut lost_with_bases) = (Vec::new(), Vec::new());
    let (mut first, mut first_base) = (String::new(), String::new());
    let read = repo.for_each_blob(name, &stored, &mut |blob, stored| {
        own.push(*blob);
        match stored.and_then(|stored| verify_blob(repo, blob, stored)) {
            Ok(None) => {}
            // The pack of the base is told of if it is read too, and its paths are found from there.
            Ok(Some(_)) if read_all => {}
            Ok(Some(base)) => {
                if lost_with_bases.is_empty() {
                    first_base = base.to_string();
                }
                lost_with_bases.push(blob.id);
            }
            Err(error) => {
                if lost.is_empty() {
                    first = format!("{:?} blob {}: {error}", blob.kind, blob.id);
                }
                lost.push(blob.id);
            }
        }
    });
    if let Err(error) = read {
        return nothing_left(error.to_string());
    }
    let mut faults = Vec::new();
    if !lost_with_bases.is_empty() {
        let count = lost_with_bases.len();
        let what = format!("{count} blobs of {name} are made of others that cannot be read: {first_base}");
        faults.push(Fault { what, lost: lost_with_bases });
    }
    if !lost.is_empty() {
        let what = format!("{name} is damaged: {} of its {} blobs cannot be read: {first}", lost.len(), own.len());
        faults.push(Fault { what, lost });
    } else if ObjectId::of(&stored) != *id {
        let what = format!("{name} is damaged: its bytes do not hash to its name, but all of its blobs can be read");
        faults.push(Fault { what, lost });
    }
    if hash_of(&own) != *table {
        faults.push(differences(&ObjectName::new(ObjectKind::Index, *by).to_string(), &name, &indexed(), &own));
    } else if let Some(blob) = misplaced(repo, id, &own) {
        let what = format!("the local index is wrong about {blob} in {name}: remove it with `bygone cache --clear`");
        faults.push(Fault { what, lost: Vec::new() });
    }
    faults
}

/// Each blob with its offset.
fn placed(blobs: &[PackedBlob]) -> impl Iterator<Item = (u64, PackedBlob)> {
    blobs.iter().scan(0, |offset, blob| {
        let at = *offset;
        *offset += u64::from(blob.len);
        Some((at, *blob))
    })
}

/// How an index and a pack's own table differ: the first blob, and all that the index has in the wrong place.
fn differences(index: &str, name: &ObjectName, indexed: &[PackedBlob], own: &[PackedBlob]) -> Fault {
    let right: std::collections::HashSet<_> = placed(own).map(|(at, blob)| (at, blob.id, blob.len)).collect();
    let wrong = placed(indexed).filter(|(at, blob)| !right.contains(&(*at, blob.id, blob.len)));
    let lost = wrong.map(|(_, blob)| blob.id).collect();
    let at = indexed.iter().zip(own).take_while(|(one, other)| one == other).count();
    let show = |blobs| {
        placed(blobs).nth(at).map_or("nothing".to_owned(), |(offset, PackedBlob { kind, id, len, .. })| {
            format!("{kind:?} blob {id}, {len} bytes at {offset}")
        })
    };
    let what = format!("{index} is wrong about {name}: it says {}; in the pack is {}", show(indexed), show(own));
    Fault { what, lost }
}

/// A blob of `own` for which a lookup leads to this pack, and there to another place.
fn misplaced(repo: &Repository, id: &ObjectId, own: &[PackedBlob]) -> Option<BlobId> {
    let found = |blob: &PackedBlob| {
        let location = repo.locate(&blob.id)?;
        (repo.index().pack(location.pack).id == *id).then_some((u64::from(location.offset), location.len))
    };
    // A pack may hold a blob twice.
    let is_right =
        |blob: &PackedBlob, place| placed(own).any(|(at, other)| other.id == blob.id && (at, other.len) == place);
    placed(own).find_map(|(at, blob)| {
        let place = found(&blob)?;
        (place != (at, blob.len) && !is_right(&blob, place)).then_some(blob.id)
    })
}

/// Compares every object with its name, which is the hash of its bytes. Needs no key.
pub fn keyless(backend: &dyn Backend, progress: &Progress) -> Result<Report> {
    let mut report = Report::default();
    let config = backend.get(ObjectName::config(), CONFIG_LEN_MAX)?;
    if let Err(error) = Config::repository_id(&config) {
        report.problem(Error::decode(ObjectName::config(), error));
    }
    report.objects_read += 1;
    report.bytes_read += config.len() as u64;
    for kind in [ObjectKind::Key, ObjectKind::Pack, ObjectKind::Index, ObjectKind::Snapshot] {
        let mut found = Vec::new();
        backend.list(kind, &mut |listed| found.push(listed))?;
        progress.bytes_total.fetch_add(found.iter().map(|listed| listed.len).sum(), Ordering::Relaxed);
        for listed in found {
            if progress.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let name = ObjectName::new(kind, listed.id);
            match backend.get(name, PACK_LEN_MAX) {
                Ok(stored) if ObjectId::of(&stored) == listed.id => {}
                Ok(_) => _ = report.problem(format!("{name} is damaged: its bytes do not hash to its name")),
                Err(error) => _ = report.problem(error),
            }
            match kind {
                ObjectKind::Pack => {
                    report.packs += 1;
                    report.packs_read += 1;
                }
                ObjectKind::Snapshot => report.snapshots += 1,
                _ => {}
            }
            report.objects_read += 1;
            report.bytes_read += listed.len;
            progress.add(listed.len);
        }
    }
    Ok(report)
}
