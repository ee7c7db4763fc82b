//! The directories above the snapshots: which views there are, and which snapshot appears where under which name.
//!
//! Immutable once built; a changed list of snapshots makes a new layout that keeps every number handed out before.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use crate::format::snapshot::Snapshot;
use crate::format::tree::Time;
use crate::id::ObjectId;

use super::inode::{self, ROOT};
use super::template::Templates;

/// What a name in a view directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Another view directory or a link, by inode number.
    Virtual(u64),
    /// The root of a snapshot, by instance number.
    Snapshot(u32),
}

/// A view directory or link.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Virtual {
    /// A directory.
    Directory {
        /// The directory above.
        parent: u64,
        /// Time of the newest snapshot below.
        mtime: Time,
        /// What is in it, by name.
        entries: Vec<(Vec<u8>, Entry)>,
    },
    /// A symbolic link.
    Link {
        /// Where it points.
        target: Vec<u8>,
        /// Time of the snapshot it points to.
        mtime: Time,
    },
}

/// Where a snapshot appears: the directory's path and the snapshot.
type InstanceKey = (Vec<u8>, ObjectId);

/// Places of vanished snapshots that keep their numbers, for whoever is inside.
const VANISHED_MAX: usize = 4096;

/// Instance numbers that were given out.
#[derive(Default)]
pub(super) struct Numbers {
    of: HashMap<InstanceKey, u32>,
    /// Places of vanished snapshots, those that vanished first in front.
    vanished: VecDeque<InstanceKey>,
    /// Every number ever given out: the kernel may remember what it stood for.
    taken: HashSet<u32>,
}

impl Numbers {
    fn give(&mut self, path: &[u8], id: ObjectId) -> u32 {
        *self.of.entry((path.to_vec(), id)).or_insert_with(|| {
            let instance = inode::instance(path, &id, |number| self.taken.contains(&number));
            self.taken.insert(instance);
            instance
        })
    }

    /// Forgets places that vanished before many others; returns their numbers, which stand for nothing any more.
    pub fn forget_vanished(&mut self, layout: &Layout) -> Vec<u32> {
        let is_shown = |number: &u32| layout.instances.contains_key(number);
        self.vanished.retain(|key| !self.of.get(key).is_some_and(is_shown));
        let known: HashSet<&InstanceKey> = self.vanished.iter().collect();
        let new = self.of.iter().filter(|(key, number)| !is_shown(number) && !known.contains(key));
        let new: Vec<InstanceKey> = new.map(|(key, _)| key.clone()).collect();
        self.vanished.extend(new);
        let surplus = self.vanished.len().saturating_sub(VANISHED_MAX);
        self.vanished.drain(..surplus).filter_map(|key| self.of.remove(&key)).collect()
    }
}

/// Every view, by inode number.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Layout {
    nodes: HashMap<u64, Virtual>,
    /// The snapshots that appear, by instance number.
    pub instances: HashMap<u32, ObjectId>,
}

/// A view directory while it is filled.
#[derive(Default)]
struct Building {
    mtime: Option<Time>,
    directories: BTreeMap<String, Building>,
    snapshots: BTreeMap<String, ObjectId>,
    newest: Option<String>,
}

impl Layout {
    /// Places `snapshots`, oldest first, by `templates`. `numbers` holds the instance numbers given out so far and
    /// receives new ones.
    pub fn new<'s>(
        snapshots: impl Iterator<Item = (&'s ObjectId, &'s Snapshot)>,
        templates: &Templates,
        numbers: &mut Numbers,
    ) -> Layout {
        let mut root = Building::default();
        for (id, snapshot) in snapshots {
            for path in templates.paths(id, snapshot) {
                root.place(&path, id, snapshot.time);
            }
        }
        for path in templates.fixed_directories() {
            path.into_iter().fold(&mut root, |directory, name| directory.directories.entry(name).or_default());
        }
        let mut layout = Layout::default();
        layout.add(ROOT, ROOT, b"", root, numbers);
        layout
    }

    /// The view directory or link `number`.
    pub fn get(&self, number: u64) -> Option<&Virtual> {
        self.nodes.get(&number)
    }

    /// Directories that are other than they were in `old`, by inode number.
    pub fn changed_since(&self, old: &Layout) -> Vec<u64> {
        let changed = |(number, now): (&u64, &Virtual)| {
            let before = old.nodes.get(number)?;
            (matches!(now, Virtual::Directory { .. }) && before != now).then_some(*number)
        };
        self.nodes.iter().filter_map(changed).collect()
    }

    fn add(&mut self, number: u64, parent: u64, path: &[u8], built: Building, numbers: &mut Numbers) {
        let mtime = built.mtime.unwrap_or_default();
        let mut entries = Vec::with_capacity(built.directories.len() + built.snapshots.len() + 1);
        for (name, directory) in built.directories {
            let below = join(path, name.as_bytes());
            let child = inode::of_virtual(&below, b"");
            self.add(child, number, &below, directory, numbers);
            entries.push((name.into_bytes(), Entry::Virtual(child)));
        }
        for (name, id) in built.snapshots {
            let instance = numbers.give(path, id);
            self.instances.insert(instance, id);
            entries.push((name.into_bytes(), Entry::Snapshot(instance)));
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        if let Some(newest) = built.newest
            && let Err(at) = entries.binary_search_by(|(name, _)| name.as_slice().cmp(LATEST))
        {
            let target = newest.into_bytes();
            let link = inode::of_virtual(&join(path, LATEST), &target);
            self.nodes.insert(link, Virtual::Link { target, mtime });
            entries.insert(at, (LATEST.to_vec(), Entry::Virtual(link)));
        }
        self.nodes.insert(number, Virtual::Directory { parent, mtime, entries });
    }
}

const LATEST: &[u8] = b"latest";

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

impl Building {
    /// Puts a snapshot, not older than those before it, at `path`. A name that is taken gets the short id appended.
    fn place(&mut self, path: &[String], id: &ObjectId, time: Time) {
        self.mtime = Some(time);
        let Some((name, below)) = path.split_first() else { return };
        if below.is_empty() {
            let mut name = name.clone();
            while self.snapshots.contains_key(&name) || self.directories.contains_key(&name) {
                name = format!("{name}-{}", id.short());
            }
            self.snapshots.insert(name.clone(), *id);
            self.newest = Some(name);
        } else {
            let mut name = name.clone();
            while self.snapshots.contains_key(&name) {
                name.push('_');
            }
            self.directories.entry(name).or_default().place(below, id, time);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::tz::TimeZone;

    fn snapshot(sec: i64, host: &str, tags: &[&str]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.time.sec = sec;
        snapshot.host = host.into();
        snapshot.tags = tags.iter().map(|t| t.to_string()).collect();
        snapshot
    }

    fn names(layout: &Layout, number: u64) -> Vec<String> {
        let Some(Virtual::Directory { entries, .. }) = layout.get(number) else { panic!("not a directory") };
        entries.iter().map(|(name, _)| String::from_utf8(name.clone()).unwrap()).collect()
    }

    fn templates(paths: &[&str]) -> Templates {
        let paths: Vec<String> = paths.iter().map(|p| p.to_string()).collect();
        Templates::new(&paths, "%s", TimeZone::UTC).unwrap()
    }

    #[test]
    fn views_hold_snapshots_and_a_link_to_the_newest() {
        let all = [(ObjectId([1; 32]), snapshot(100, "a", &["x"])), (ObjectId([2; 32]), snapshot(200, "b", &[]))];
        let mut numbers = Numbers::default();
        let templates = templates(&super::super::template::PATH_TEMPLATES);
        let layout = Layout::new(all.iter().map(|(i, s)| (i, s)), &templates, &mut numbers);
        let at = |path: &str| names(&layout, inode::of_virtual(path.as_bytes(), b""));
        assert_eq!(names(&layout, ROOT), ["hosts", "ids", "snapshots", "tags"]);
        assert_eq!(at("snapshots"), ["100", "200", "latest"]);
        assert_eq!(at("ids"), ["01010101", "02020202", "latest"]);
        assert_eq!((at("hosts"), at("hosts/b")), (vec!["a".into(), "b".into()], vec!["200".into(), "latest".into()]));
        assert_eq!((at("tags"), at("tags/x")), (vec!["x".into()], vec!["100".into(), "latest".into()]));
        let link = inode::of_virtual(b"snapshots/latest", b"200");
        let expected = Virtual::Link { target: b"200".to_vec(), mtime: Time { sec: 200, nsec: 0 } };
        assert_eq!(layout.get(link), Some(&expected));
        assert_eq!(layout.instances.len(), 7);
    }

    #[test]
    fn the_views_are_there_before_any_snapshot_is() {
        let templates = templates(&["ids/%i", "a/b/%h/c/%T", "%u/%T"]);
        let layout = Layout::new(std::iter::empty(), &templates, &mut Numbers::default());
        assert_eq!(
            (names(&layout, ROOT), names(&layout, inode::of_virtual(b"a", b""))),
            (vec!["a".into(), "ids".into()], vec!["b".into()])
        );
        assert_eq!(names(&layout, inode::of_virtual(b"ids", b"")), [""; 0]);
    }

    #[test]
    fn snapshots_of_one_second_and_names_like_directories_are_all_shown() {
        let all = [1, 2, 3].map(|n| (ObjectId([n; 32]), snapshot(100, if n == 3 { "100" } else { "a" }, &[])));
        let layout = Layout::new(
            all.iter().map(|(i, s)| (i, s)),
            &templates(&["%T", "%h/%i", "latest/%i"]),
            &mut Numbers::default(),
        );
        assert_eq!(names(&layout, ROOT), ["100", "100-02020202", "100-03030303", "100_", "a", "latest"]);
        assert_eq!(names(&layout, inode::of_virtual(b"100_", b"")), ["03030303", "latest"]);
    }

    #[test]
    fn a_new_snapshot_changes_its_views_and_no_number() {
        let all = [1, 2].map(|n| (ObjectId([n; 32]), snapshot(i64::from(n), "a", &[])));
        let mut numbers = Numbers::default();
        let templates = templates(&["ids/%i", "hosts/%h/%T"]);
        let before = Layout::new(all[..1].iter().map(|(i, s)| (i, s)), &templates, &mut numbers);
        let after = Layout::new(all.iter().map(|(i, s)| (i, s)), &templates, &mut numbers);
        for (instance, id) in &before.instances {
            assert_eq!(after.instances.get(instance), Some(id));
        }
        let mut changed = after.changed_since(&before);
        changed.sort();
        let mut expected = vec![ROOT, inode::of_virtual(b"ids", b""), inode::of_virtual(b"hosts/a", b"")];
        expected.push(inode::of_virtual(b"hosts", b""));
        expected.sort();
        assert_eq!(changed, expected, "the root too, for its time is that of the newest snapshot");
        let fresh = Layout::new(all.iter().map(|(i, s)| (i, s)), &templates, &mut Numbers::default());
        assert_eq!(fresh, after, "another mount has the same numbers");
    }

    #[test]
    fn numbers_of_snapshots_that_vanished_long_ago_are_forgotten_and_never_given_again() {
        let templates = templates(&["ids/%I"]);
        let mut numbers = Numbers::default();
        let mut show = |ids: std::ops::Range<usize>| {
            let all: Vec<_> =
                ids.map(|n| (ObjectId(*blake3::hash(&n.to_le_bytes()).as_bytes()), Snapshot::default())).collect();
            let layout = Layout::new(all.iter().map(|(i, s)| (i, s)), &templates, &mut numbers);
            (numbers.forget_vanished(&layout), layout.instances)
        };
        let (forgotten, first) = show(0..10);
        assert_eq!(forgotten, [0; 0]);
        assert_eq!(show(10..20).0, [0; 0], "they have just vanished");
        assert_eq!(show(0..10).1, first, "and have the same numbers when they come back");
        show(20..20 + VANISHED_MAX);
        let forgotten = show(0..0).0;
        assert_eq!(forgotten.len(), 20);
        assert!(first.keys().all(|number| forgotten.contains(number)));
        assert!(show(0..10).1.keys().all(|number| !first.contains_key(number)));
    }
}
