//! Verifying a repository: nothing is changed, everything wrong is named.
//!
//! The structure check follows every snapshot to every blob; reading data decodes packs and compares each blob with its
//! id; the keyless check compares objects with their names, which anyone who can read the store may do.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;

use crate::backend::{Backend, ObjectKind, ObjectName};
use crate::browse;
use crate::format::content::Part;
use crate::format::index::PackedBlob;
use crate::format::limits::PACK_LEN_MAX;
use crate::format::object::Config;
use crate::format::tree::{Kind, Tree};
use crate::id::{BlobId, BlobKind, ObjectId};
use crate::pool::{Pool, Urgency, cores};
use crate::progress::Progress;
use crate::repo::{Error, Repository, Result};

/// Problems that are told; more are only counted by one last line.
const PROBLEMS_MAX: usize = 10_000;

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

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What is wrong, each naming its object.
    pub problems: Vec<String>,
    /// What is worth knowing but not wrong.
    pub notes: Vec<String>,
    /// Snapshots checked.
    pub snapshots: u64,
    /// Trees checked.
    pub trees: u64,
    /// Blobs that an index names.
    pub blobs: u64,
    /// Packs that an index names.
    pub packs: u64,
    /// Packs read whole.
    pub packs_read: u64,
    /// Bytes of them.
    pub bytes_read: u64,
}

impl Report {
    fn problem(&mut self, text: impl ToString) {
        match self.problems.len().cmp(&PROBLEMS_MAX) {
            std::cmp::Ordering::Less => self.problems.push(text.to_string()),
            std::cmp::Ordering::Equal => self.problems.push("more problems were found and are not listed".to_owned()),
            std::cmp::Ordering::Greater => {}
        }
    }
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
    let indexed = check_index(repo, &stored, &mut report)?;
    let unindexed = stored.keys().filter(|id| !indexed.contains_key(id)).count();
    if unindexed > 0 {
        report.notes.push(format!(
            "{unindexed} packs are in no index: left by interrupted backups, or being written right now; they do no harm"
        ));
    }
    let snapshots = check_snapshots(repo, &mut report)?;
    // Packs may have been listed before the newest snapshots were written; only what is missing now is wrong.
    repo.backend().list(ObjectKind::Pack, &mut |found| {
        stored.insert(found.id, found.len);
    })?;
    let mut trees = Trees { repo, stored: &stored, seen: HashSet::new(), report: &mut report, progress };
    for (id, root) in snapshots {
        if progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        trees.check(&id, root)?;
    }
    if let Some(subset) = read {
        read_packs(repo, &indexed, &stored, subset, &mut report, progress)?;
    }
    Ok(report)
}

type Indexed = HashMap<ObjectId, u64>;

/// Loads every index object; each pack they name must be stored with its length.
fn check_index(repo: &Repository, stored: &HashMap<ObjectId, u64>, report: &mut Report) -> Result<Indexed> {
    let mut indexed = Indexed::new();
    for id in repo.index_ids()? {
        let packs = match repo.index_object(&id) {
            Ok(packs) => packs,
            Err(error) => {
                report.problem(error);
                continue;
            }
        };
        for pack in packs {
            if indexed.insert(pack.id, pack.len).is_some() {
                continue;
            }
            report.packs += 1;
            report.blobs += pack.blobs.len() as u64;
            let name = ObjectName::new(ObjectKind::Pack, pack.id);
            match stored.get(&pack.id) {
                None => report.problem(format!("{name} is missing, and {} blobs with it", pack.blobs.len())),
                Some(len) if *len != pack.len => {
                    report.problem(format!("{name} has {len} bytes instead of {}", pack.len));
                }
                Some(_) => {}
            }
        }
    }
    Ok(indexed)
}

/// Reads every snapshot; returns the trees at their roots.
fn check_snapshots(repo: &Repository, report: &mut Report) -> Result<Vec<(ObjectId, BlobId)>> {
    let mut roots = Vec::new();
    for id in repo.snapshot_ids()? {
        match repo.snapshot(&id) {
            Ok(snapshot) => {
                report.snapshots += 1;
                if let Kind::Directory { tree, .. } = snapshot.root().kind {
                    roots.push((id, tree));
                }
            }
            Err(error) => report.problem(error),
        }
    }
    // A snapshot may have been written after the index was loaded.
    repo.refresh()?;
    Ok(roots)
}

/// Follows trees, each once however many snapshots share it.
struct Trees<'a> {
    repo: &'a Repository,
    stored: &'a HashMap<ObjectId, u64>,
    seen: HashSet<BlobId>,
    report: &'a mut Report,
    progress: &'a Progress,
}

impl Trees<'_> {
    fn check(&mut self, snapshot: &ObjectId, root: BlobId) -> Result<()> {
        let mut left = vec![(root, Vec::new())];
        while let Some((tree, path)) = left.pop() {
            if self.progress.is_cancelled() {
                return Err(Error::Cancelled);
            }
            if !self.seen.insert(tree) {
                continue;
            }
            self.report.trees += 1;
            self.progress.add(0);
            if let Err(error) = self.tree(snapshot, &tree, &path, &mut left) {
                self.problem(snapshot, &path, error);
            }
        }
        Ok(())
    }

    fn problem(&mut self, snapshot: &ObjectId, path: &[u8], error: impl std::fmt::Display) {
        let path = if path.is_empty() { "/".into() } else { String::from_utf8_lossy(path) };
        self.report.problem(format!("snapshot {}, {path}: {error}", snapshot.short()));
    }

    fn tree(
        &mut self,
        snapshot: &ObjectId,
        tree: &BlobId,
        path: &[u8],
        left: &mut Vec<(BlobId, Vec<u8>)>,
    ) -> Result<()> {
        let blob = self.repo.blob(BlobKind::Tree, tree)?;
        let decoded = Tree::decode(&blob).map_err(|error| Error::decode(format!("tree {tree}"), error))?;
        let leaf = match decoded {
            Tree::Index(pages) => {
                left.extend(pages.iter().rev().map(|page| (page.id, path.to_vec())));
                return Ok(());
            }
            Tree::Leaf(leaf) => leaf,
        };
        for node in leaf.nodes() {
            let path = || [path, b"/", node.name].concat();
            match node.kind {
                Kind::Directory { tree, .. } => left.push((tree, path())),
                Kind::File { size, content } => {
                    for part in browse::parts(self.repo, size, content) {
                        let checked = part.and_then(|(_, part)| self.part(&part));
                        if let Err(error) = checked {
                            self.problem(snapshot, &path(), error);
                            break;
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A data blob must be in an index, and its pack in the store.
    fn part(&self, part: &Part) -> Result<()> {
        let Part::Data { id, len } = part else { return Ok(()) };
        let missing = || Error::MissingBlob { kind: BlobKind::Data, id: *id, location: self.repo.location() };
        let location = self.repo.locate(id).ok_or_else(missing)?;
        let pack = self.repo.index().pack(location.pack).id;
        if location.len != *len {
            let what = format!("an index says {} bytes, its file {len}", location.len);
            return Err(Error::Corrupt { object: format!("Data blob {id}"), what });
        }
        if !self.stored.contains_key(&pack) {
            let object = ObjectName::new(ObjectKind::Pack, pack).to_string();
            return Err(Error::Corrupt { object, what: "it is missing".to_owned() });
        }
        Ok(())
    }
}

fn choose(indexed: &Indexed, subset: Subset) -> Vec<ObjectId> {
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
                bytes += indexed[id];
                before < most
            })
            .count(),
        Subset::Part { .. } => unreachable!("handled above"),
    };
    ids.truncate(count);
    ids
}

fn read_packs(
    repo: &Arc<Repository>,
    indexed: &Indexed,
    stored: &HashMap<ObjectId, u64>,
    subset: Subset,
    report: &mut Report,
    progress: &Arc<Progress>,
) -> Result<()> {
    let ids: Vec<ObjectId> = choose(indexed, subset).into_iter().filter(|id| stored.contains_key(id)).collect();
    progress.bytes_total.store(ids.iter().map(|id| indexed[id]).sum(), Ordering::Relaxed);
    let system = |source| Error::System { op: "start threads", source };
    let pool = Pool::new("check", cores()).map_err(system)?;
    let expected = ids.len() as u64;
    let (results, receiver) = sync_channel(ids.len().max(1));
    for id in ids {
        let (repo, results, progress, len) = (repo.clone(), results.clone(), progress.clone(), indexed[&id]);
        pool.submit(Urgency::Normal, move || {
            if !progress.is_cancelled() {
                let _ = results.send((len, verify_pack(&repo, &id)));
                progress.add(len);
            }
        });
    }
    drop(results);
    for (len, problems) in receiver {
        report.packs_read += 1;
        report.bytes_read += len;
        problems.into_iter().for_each(|problem| report.problem(problem));
    }
    if progress.is_cancelled() {
        return Err(Error::Cancelled);
    }
    if report.packs_read < expected {
        report.problem(format!("{} packs could not be checked: this program failed", expected - report.packs_read));
    }
    Ok(())
}

/// Everything that is wrong with a pack: its bytes against its name, its blobs against their ids and the index.
fn verify_pack(repo: &Repository, id: &ObjectId) -> Vec<String> {
    let name = ObjectName::new(ObjectKind::Pack, *id);
    let mut problems = Vec::new();
    let stored = match repo.backend().get(name, PACK_LEN_MAX) {
        Ok(stored) => stored,
        Err(error) => return vec![error.to_string()],
    };
    if ObjectId::of(&stored) != *id {
        problems.push(format!("{name} is damaged: its bytes do not hash to its name"));
    }
    let mut check = |blob: &PackedBlob, plain: Result<&[u8]>| {
        let what = match plain {
            Ok(plain) if repo.blob_id(blob.kind, &crate::id::ContentHash::of(plain)) == blob.id => {
                if repo.locate(&blob.id).is_some() {
                    return;
                }
                "it is in no index".to_owned()
            }
            Ok(_) => "it does not hash to its id".to_owned(),
            Err(error) => error.to_string(),
        };
        problems.push(format!("{:?} blob {} in {name} is damaged: {what}", blob.kind, blob.id));
    };
    if let Err(error) = repo.for_each_blob(name, &stored, &mut check) {
        problems.push(error.to_string());
    }
    problems
}

/// Compares every object with its name, which is the hash of its bytes. Needs no key.
pub fn keyless(backend: &dyn Backend, progress: &Progress) -> Result<Report> {
    let mut report = Report::default();
    for kind in ObjectKind::ALL {
        let mut found = Vec::new();
        match kind {
            ObjectKind::Config => {
                let stored = backend.get(ObjectName::config(), crate::format::object::CONFIG_LEN_MAX)?;
                if let Err(error) = Config::repository_id(&stored) {
                    report.problem(Error::decode(ObjectName::config(), error));
                }
                continue;
            }
            _ => backend.list(kind, &mut |listed| found.push(listed))?,
        }
        progress.bytes_total.fetch_add(found.iter().map(|listed| listed.len).sum(), Ordering::Relaxed);
        for listed in found {
            if progress.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let name = ObjectName::new(kind, listed.id);
            match backend.get(name, PACK_LEN_MAX) {
                Ok(stored) if ObjectId::of(&stored) == listed.id => {}
                Ok(_) => report.problem(format!("{name} is damaged: its bytes do not hash to its name")),
                Err(error) => report.problem(error),
            }
            match kind {
                ObjectKind::Pack => report.packs += 1,
                ObjectKind::Snapshot => report.snapshots += 1,
                _ => {}
            }
            report.packs_read += 1;
            report.bytes_read += listed.len;
            progress.add(listed.len);
        }
    }
    Ok(report)
}
