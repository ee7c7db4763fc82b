//! The snapshot record: what one backup kept, and the root of its tree.
//!
//! Fields are stored as ascending tags with counted values. A reader skips odd tags it does not know and refuses even
//! ones, so that later versions can add both kinds; whoever writes a changed record keeps what it skipped.

use crate::format::codec::{DecodeError, Decoder, Encode, Fields, Result};
use crate::format::limits::SNAPSHOT_FIELDS_MAX;
use crate::format::tree::{Base, Kind, Node, Time};
use crate::id::ObjectId;

/// One restore point.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// When the backup began.
    pub time: Time,
    /// Host it was made on.
    pub host: String,
    /// User it was made by.
    pub user: String,
    /// That user's number.
    pub uid: u32,
    /// That user's group.
    pub gid: u32,
    /// Labels, sorted.
    pub tags: Vec<String>,
    /// The paths that were asked for, absolute.
    pub paths: Vec<Vec<u8>>,
    /// The exclude patterns in force.
    pub excludes: Vec<String>,
    /// The root directory's node, encoded by [`Snapshot::set_root`].
    pub(crate) root: Vec<u8>,
    /// The snapshot that unchanged files were taken from.
    pub parent: Option<ObjectId>,
    /// The newest earlier snapshot of the same host and paths, so that a removed one shows.
    pub previous: Option<ObjectId>,
    /// The snapshot that this one was changed from (tags edited), if any.
    pub original: Option<ObjectId>,
    /// Name and version of the program.
    pub program: String,
    /// Counts of the run.
    pub summary: Summary,
    /// User names of the uids in the tree, sorted by number.
    pub users: Vec<(u32, String)>,
    /// Group names of the gids in the tree, sorted by number.
    pub groups: Vec<(u32, String)>,
    /// Fields that only later versions know, as stored.
    pub(crate) unknown: Vec<(u64, Vec<u8>)>,
    /// Counts that later versions append to those of [`Summary`], as stored.
    pub(crate) counts_unknown: Vec<u8>,
}

macro_rules! summary {
    ($($(#[$doc:meta])* $field:ident),* $(,)?) => {
        /// What a backup did.
        #[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
        pub struct Summary { $($(#[$doc])* pub $field: u64),* }

        impl Summary {
            fn encode(&self) -> Vec<u8> {
                let mut out = Vec::new();
                $(out.put_varint(self.$field);)*
                out
            }

            fn decode(input: &mut Decoder<'_>) -> Result<Self> {
                Ok(Self { $($field: if input.remaining() > 0 { input.varint(stringify!($field))? } else { 0 }),* })
            }
        }
    };
}

summary! {
    /// Files that the parent did not have.
    files_new,
    /// Files that differ from the parent's.
    files_changed,
    /// Files taken over from the parent unread.
    files_unmodified,
    /// Directories that the parent did not have.
    dirs_new,
    /// Directories that differ from the parent's.
    dirs_changed,
    /// Directories equal to the parent's.
    dirs_unmodified,
    /// Entries of other kinds.
    others,
    /// Data blobs added.
    data_blobs,
    /// Tree and list blobs added.
    tree_blobs,
    /// Plain bytes added, before compression.
    data_added,
    /// Stored bytes added.
    data_added_packed,
    /// Regular files in the snapshot.
    total_files_processed,
    /// Bytes of those files.
    total_bytes_processed,
    /// Source entries that could not be read or changed while they were read.
    errors,
    /// Wall time of the run in milliseconds.
    duration_ms,
}

const TIME: u64 = 2;
const HOST: u64 = 4;
const USER: u64 = 6;
const TAG: u64 = 8;
const PATH: u64 = 10;
const EXCLUDE: u64 = 11;
const ROOT: u64 = 12;
const PARENT: u64 = 13;
const PREVIOUS: u64 = 15;
const ORIGINAL: u64 = 17;
const PROGRAM: u64 = 19;
const SUMMARY: u64 = 21;
const USER_NAME: u64 = 23;
const GROUP_NAME: u64 = 25;

/// Fields that may not repeat.
const ONCE: [u64; 9] = [TIME, HOST, USER, ROOT, PARENT, PREVIOUS, ORIGINAL, PROGRAM, SUMMARY];

const TEXT_LEN_MAX: usize = 64 << 10;

impl Snapshot {
    /// The root directory's node; its name is empty.
    pub fn root(&self) -> Node<'_> {
        Node::decode(&self.root, &Base::default()).expect("checked when it was set or decoded")
    }

    /// A record of nothing but its root directory.
    pub fn of_root(root: &Node<'_>) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.set_root(root);
        snapshot
    }

    /// Sets the root directory's node.
    pub fn set_root(&mut self, node: &Node<'_>) {
        assert!(
            node.name.is_empty() && matches!(node.kind, Kind::Directory { .. }),
            "a root is a directory without a name"
        );
        self.root.clear();
        node.encode(&Base::default(), &mut self.root);
    }

    /// The record as stored, before sealing.
    pub fn encode(&self) -> Vec<u8> {
        let mut fields: Vec<(u64, Vec<u8>)> = self.unknown.clone();
        let mut field = |tag: u64, value: &[u8]| fields.push((tag, value.to_vec()));
        let mut time = Vec::new();
        time.put_signed(self.time.sec);
        time.put_varint(u64::from(self.time.nsec));
        field(TIME, &time);
        field(HOST, self.host.as_bytes());
        let mut user = Vec::new();
        user.put_varint(u64::from(self.uid));
        user.put_varint(u64::from(self.gid));
        user.extend_from_slice(self.user.as_bytes());
        field(USER, &user);
        self.tags.iter().for_each(|tag| field(TAG, tag.as_bytes()));
        self.paths.iter().for_each(|path| field(PATH, path));
        self.excludes.iter().for_each(|pattern| field(EXCLUDE, pattern.as_bytes()));
        field(ROOT, &self.root);
        self.parent.iter().for_each(|id| field(PARENT, &id.0));
        self.previous.iter().for_each(|id| field(PREVIOUS, &id.0));
        self.original.iter().for_each(|id| field(ORIGINAL, &id.0));
        field(PROGRAM, self.program.as_bytes());
        field(SUMMARY, &[self.summary.encode(), self.counts_unknown.clone()].concat());
        for (tag, names) in [(USER_NAME, &self.users), (GROUP_NAME, &self.groups)] {
            for (number, name) in names {
                let mut value = Vec::new();
                value.put_varint(u64::from(*number));
                value.extend_from_slice(name.as_bytes());
                field(tag, &value);
            }
        }
        // Stable: what repeats keeps its order.
        fields.sort_by_key(|(tag, _)| *tag);
        let mut out = Vec::new();
        fields.iter().for_each(|(tag, value)| out.put_field(*tag, value));
        out
    }

    /// Decodes a record.
    pub fn decode(stored: &[u8]) -> Result<Snapshot> {
        let mut fields = Fields::new(stored, &ONCE);
        let mut snapshot = Snapshot::default();
        let mut has_root = false;
        let mut left = SNAPSHOT_FIELDS_MAX;
        while let Some((tag, stored)) = fields.next()? {
            left = left.checked_sub(1).ok_or(DecodeError::new("snapshot (it has too many fields)", 0))?;
            let mut value = Decoder::new(stored);
            match tag {
                TIME => {
                    let sec = value.signed("snapshot time")?;
                    let nsec = value.varint_u32("snapshot time")?;
                    if nsec >= 1_000_000_000 || !seconds_are_shown(sec) {
                        return Err(value.error("snapshot time"));
                    }
                    snapshot.time = Time { sec, nsec };
                }
                HOST => snapshot.host = text(&mut value)?,
                USER => {
                    snapshot.uid = value.varint_u32("uid")?;
                    snapshot.gid = value.varint_u32("gid")?;
                    snapshot.user = text(&mut value)?;
                }
                TAG => snapshot.tags.push(text(&mut value)?),
                PATH => snapshot.paths.push(value.take(value.remaining(), "path")?.to_vec()),
                EXCLUDE => snapshot.excludes.push(text(&mut value)?),
                ROOT => {
                    let root = value.take(value.remaining(), "root")?;
                    let node = Node::decode(root, &Base::default())?;
                    if !node.name.is_empty() || !matches!(node.kind, Kind::Directory { .. }) {
                        return Err(value.error("root"));
                    }
                    snapshot.root = root.to_vec();
                    has_root = true;
                }
                PARENT => snapshot.parent = Some(ObjectId(value.array("parent")?)),
                PREVIOUS => snapshot.previous = Some(ObjectId(value.array("previous snapshot")?)),
                ORIGINAL => snapshot.original = Some(ObjectId(value.array("original snapshot")?)),
                PROGRAM => snapshot.program = text(&mut value)?,
                SUMMARY => {
                    snapshot.summary = Summary::decode(&mut value)?;
                    snapshot.counts_unknown = value.take(value.remaining(), "counts")?.to_vec();
                }
                USER_NAME => snapshot.users.push((value.varint_u32("uid")?, text(&mut value)?)),
                GROUP_NAME => snapshot.groups.push((value.varint_u32("gid")?, text(&mut value)?)),
                unknown => {
                    fields.unknown(unknown)?;
                    snapshot.unknown.push((unknown, value.take(value.remaining(), "snapshot field")?.to_vec()));
                }
            }
            value.finish("snapshot field")?;
        }
        if has_root { Ok(snapshot) } else { Err(DecodeError::new("snapshot (it has no root)", stored.len())) }
    }
}

/// Whether a time can be shown to people: within 9999 years either way.
pub(crate) fn seconds_are_shown(sec: i64) -> bool {
    (-377_705_023_201..=253_402_207_200).contains(&sec)
}

fn text(value: &mut Decoder<'_>) -> Result<String> {
    if value.remaining() > TEXT_LEN_MAX {
        return Err(value.error("text"));
    }
    let bytes = value.take(value.remaining(), "text")?;
    String::from_utf8(bytes.to_vec()).map_err(|_| value.error("text"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tree::{Metadata, Xattrs};
    use crate::id::{BLOB_ID_LEN, BlobId};

    fn sample() -> Snapshot {
        let mut snapshot = Snapshot {
            time: Time { sec: 1_795_000_000, nsec: 5 },
            host: "controller".into(),
            user: "root".into(),
            tags: vec!["a".into(), "b".into()],
            paths: vec![b"/etc\xff".to_vec()],
            excludes: vec!["*.tmp".into()],
            parent: Some(ObjectId([1; 32])),
            previous: Some(ObjectId([2; 32])),
            program: "bygone 0.1.0".into(),
            summary: Summary { files_new: 3, duration_ms: 1 << 40, ..Summary::default() },
            users: vec![(0, "root".into())],
            groups: vec![(0, "root".into()), (7, "lp".into())],
            ..Snapshot::default()
        };
        let kind = Kind::Directory { tree: BlobId([3; BLOB_ID_LEN]), entries: 9 };
        snapshot.set_root(&Node { name: b"", metadata: Metadata::default(), kind, xattrs: Xattrs::default() });
        snapshot
    }

    #[test]
    fn a_snapshot_survives_a_round_trip() {
        assert_eq!(Snapshot::decode(&sample().encode()), Ok(sample()));
    }

    #[test]
    fn unknown_odd_fields_are_kept_and_even_ones_refused() {
        let mut stored = sample().encode();
        stored.put_field(101, b"later");
        stored.put_field(101, b"and again");
        let mut changed = Snapshot::decode(&stored).expect("an odd field is no obstacle");
        assert_eq!(Snapshot { unknown: Vec::new(), ..changed.clone() }, sample());
        assert_eq!(changed.encode(), stored);
        changed.tags.push("c".into());
        let again = Snapshot::decode(&changed.encode()).expect("decodes");
        assert_eq!(again.unknown, [(101, b"later".to_vec()), (101, b"and again".to_vec())]);
        stored.put_field(102, b"must know");
        assert!(Snapshot::decode(&stored).is_err_and(|error| error.newer));
    }

    #[test]
    fn counts_of_later_versions_are_kept() {
        let mut later = sample();
        later.counts_unknown = vec![1, 2, 3];
        let stored = later.encode();
        assert_eq!(Snapshot::decode(&stored), Ok(later));
    }

    /// The record with the value of one field replaced, or the field repeated.
    fn with_field(tag: u64, change: impl Fn(&[u8]) -> Vec<Vec<u8>>) -> Vec<u8> {
        let stored = sample().encode();
        let mut fields = Fields::new(&stored, &[]);
        let mut out = Vec::new();
        while let Some((found, value)) = fields.next().expect("well formed") {
            let values = if found == tag { change(value) } else { vec![value.to_vec()] };
            values.iter().for_each(|value| out.put_field(found, value));
        }
        out
    }

    #[test]
    fn a_field_that_may_come_once_does_not_come_twice() {
        for tag in [TIME, HOST, USER, ROOT, PARENT, PREVIOUS, PROGRAM, SUMMARY] {
            let twice = with_field(tag, |value| vec![value.to_vec(), value.to_vec()]);
            assert!(Snapshot::decode(&twice).is_err(), "{tag}");
        }
        let twice = with_field(GROUP_NAME, |value| vec![value.to_vec(), value.to_vec()]);
        assert!(Snapshot::decode(&twice).is_ok());
    }

    #[test]
    fn bytes_left_over_in_a_field_are_refused() {
        for tag in [TIME, ROOT, PARENT, PREVIOUS] {
            let longer = with_field(tag, |value| vec![[value, &[0]].concat()]);
            assert!(Snapshot::decode(&longer).is_err(), "{tag}");
        }
    }

    #[test]
    fn a_snapshot_of_more_fields_than_memory_should_hold_is_refused() {
        let stored = sample().encode();
        let known = with_field(TIME, |value| vec![value.to_vec()]);
        assert_eq!(known, stored);
        let mut many = stored;
        (0..SNAPSHOT_FIELDS_MAX).for_each(|_| many.put_field(101, b""));
        assert!(Snapshot::decode(&many).is_err());
    }

    #[test]
    fn no_mutation_of_a_snapshot_panics() {
        let stored = sample().encode();
        for at in 0..stored.len() {
            for flip in 1..=255 {
                let mut bad = stored.clone();
                bad[at] ^= flip;
                let _ = Snapshot::decode(&bad);
            }
            let _ = Snapshot::decode(&stored[..at]);
        }
    }
}
