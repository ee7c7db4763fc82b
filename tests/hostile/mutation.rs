//! What the fuzzer does, on every machine and in seconds: samples of real objects, changed in every simple way, through
//! every parser, in a process that may not have much memory.

use std::process::Command;

use bygone::chunk::ChunkSizes;
use bygone::format::codec::Encode;
use bygone::format::content::{Content, ListChild, ListPage, Part};
use bygone::format::delta::{Base, Command as Copy, Delta, encode};
use bygone::format::header::StoredKind;
use bygone::format::index::{self, IndexedPack, PackedBlob};
use bygone::format::object::{self, Config};
use bygone::format::pack::{Footer, SegmentTable};
use bygone::format::snapshot::Snapshot;
use bygone::format::tree::{Kind, LeafBuilder, Metadata, Node, Page, Time, Tree, Xattrs};
use bygone::id::{BLOB_ID_LEN, BlobId, BlobKind, ContentHash, ObjectId};
use bygone::key::{KeyObject, MasterKey};

use super::parsers::{PARSERS, REPOSITORY, keys};
use crate::support::generate::noise;

/// The memory that all parsers together may have, in KiB: far below what a length field can claim.
const MEMORY_KIB: u32 = 400 << 10;

fn blob_id(n: u8) -> BlobId {
    BlobId([n; BLOB_ID_LEN])
}

fn leaf() -> Vec<u8> {
    let mut builder = LeafBuilder::new();
    let xattrs = Xattrs::encode(&mut [(b"user.a".to_vec(), b"1".to_vec()), (b"user.b".to_vec(), vec![0; 40])]);
    let mut encoded = Vec::new();
    for part in [Part::Data { id: blob_id(1), len: 5000 }, Part::Hole { len: 1 << 33 }] {
        part.encode(&mut encoded);
    }
    let file = |size, content| Kind::File { size, content };
    let parts = bygone::format::content::Parts::new(2, &encoded);
    let hash = Some(ContentHash([9; 32]));
    let kinds = [
        Kind::Directory { tree: blob_id(2), entries: 7 },
        file(0, Content::Empty),
        file(5, Content::Inline(b"hello")),
        file(70_000, Content::Whole(ContentHash([3; 32]))),
        file(5000 + (1 << 33), Content::Parts { hash, parts }),
        file(1 << 40, Content::List { hash: None, level: 2, root: blob_id(4), data: 1 << 30 }),
        Kind::Symlink { target: b"../elsewhere" },
        Kind::BlockDevice { rdev: 2049 },
        Kind::CharDevice { rdev: 1 },
        Kind::Fifo,
        Kind::Socket,
    ];
    for (n, kind) in kinds.into_iter().enumerate() {
        let time = Time { sec: -5 * n as i64, nsec: 999_999_999 };
        let metadata = Metadata {
            mode: 0o4755,
            uid: 1000,
            gid: u32::MAX - 1,
            mtime: time,
            ctime: time,
            atime: (n % 2 == 0).then_some(time),
            btime: (n % 3 == 0).then_some(time),
            dev: n as u64,
            inode: 1 << n,
            nlink: n as u32,
        };
        let name = format!("name {n:02}");
        let xattrs = if n % 4 == 0 { Xattrs::new(&xattrs) } else { Xattrs::default() };
        builder.push(&Node { name: name.as_bytes(), metadata, kind, xattrs });
    }
    builder.finish()
}

/// Real bytes of every kind of object and part of one.
fn samples() -> Vec<Vec<u8>> {
    let pages =
        [("a", 1), ("m", 2)].map(|(first, n)| Page { first: first.as_bytes(), id: blob_id(n), count: 9, ranks: 11 });
    let parts = ListPage::Parts(vec![Part::Data { id: blob_id(1), len: 9 }, Part::Hole { len: 1 << 40 }]);
    let children = ListPage::Children { level: 1, children: vec![ListChild { len: 99, id: blob_id(2) }; 3] };
    let with_parameters =
        |level: u8, len: u64, page: &ListPage| [&[level][..], &len.to_le_bytes(), &page.encode()].concat();
    let blob = |n, kind| PackedBlob { kind, id: blob_id(n), len: u32::from(n) << 10 | 1, is_delta: n == 1 };
    let blobs = vec![blob(1, BlobKind::Data), blob(2, BlobKind::Tree), blob(3, BlobKind::List)];
    let packs = [IndexedPack { id: ObjectId([1; 32]), len: 1 << 20, blobs: blobs.clone() }];
    let mut table = Vec::new();
    index::encode_blobs(&blobs, &mut table);
    let master = MasterKey::random().unwrap();
    let created = Time { sec: 1_800_000_000, nsec: 1 };
    let key = KeyObject::wrap(&master, &REPOSITORY, b"password", created, "host", "user").unwrap();
    let footer = Footer {
        blob_table_offset: 1000,
        blob_table_sealed_len: 100,
        blob_table_plain_len: 90,
        segment_table_sealed_len: 50,
        segment_table_plain_len: 40,
    };
    let segments = SegmentTable { segment_len: 1000, plain_len: 2500, offsets: vec![44, 500, 900, 1000] };
    let mut snapshot = Snapshot::of_root(&Node {
        name: b"",
        metadata: Metadata::default(),
        kind: Kind::Directory { tree: blob_id(5), entries: 12 },
        xattrs: Xattrs::default(),
    });
    snapshot.host = "host".into();
    snapshot.tags = vec!["one".into(), "two".into()];
    snapshot.paths = vec![b"/etc".to_vec()];
    snapshot.parent = Some(ObjectId([3; 32]));
    snapshot.users = vec![(0, "root".into())];
    let mut chunking = Vec::new();
    chunking.put_field(2, &[1, 0x80, 0x10, 0x80, 0x40, 0x80, 0x80, 0x02]);
    chunking.put_field(5, b"for later versions");
    let bases = [1, 2].map(|n| Base { id: blob_id(n), len: 700 * u32::from(n) });
    let copies = [
        Copy { insert: 3, copy: 400, from: 20 },
        Copy { insert: 40, copy: 900, from: 600 },
        Copy { insert: 0, copy: 60, from: 5 },
        Copy { insert: 9, copy: 0, from: 0 },
    ];
    let delta = encode(&noise(1, 1412), &bases, &copies);
    vec![
        leaf(),
        Tree::encode_index(pages.into_iter()),
        with_parameters(0, 9 + (1 << 40), &parts),
        with_parameters(1, 297, &children),
        index::encode(&packs),
        table,
        key.encode(),
        footer.encode().to_vec(),
        segments.encode(),
        Config { id: REPOSITORY, chunks: ChunkSizes::DEFAULT }.encode(keys()).unwrap(),
        object::seal(keys(), &REPOSITORY, StoredKind::Index, &index::encode(&packs)).unwrap(),
        snapshot.encode(),
        chunking,
        delta,
    ]
}

/// Changes `sample` in many ways and hands each result to `try_it`.
fn mutate(sample: &[u8], try_it: &mut dyn FnMut(&[u8])) {
    for at in 0..sample.len() {
        try_it(&sample[..at]);
        let mut bad = sample.to_vec();
        for value in [0, 1, 0x7f, 0x80, 0xff, sample[at].wrapping_add(1), sample[at] ^ 0x10] {
            bad[at] = value;
            try_it(&bad);
        }
        // The longest number there is, where a length may stand.
        let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        try_it(&[&sample[..at], &huge, &sample[at..]].concat());
        try_it(&[&sample[..at], &huge, &sample[(at + 1).min(sample.len())..]].concat());
    }
    // Several changes at once, and pieces of it in another order.
    for round in 0..2000_u64 {
        let dice = noise(round, 16);
        let mut bad = sample.to_vec();
        for pair in dice.chunks(4) {
            let at = usize::from(u16::from_le_bytes([pair[0], pair[1]])) % bad.len();
            bad[at] = pair[2];
        }
        try_it(&bad);
        bad.rotate_left(usize::from(dice[15]) % sample.len());
        try_it(&bad);
    }
}

/// The child that the test below starts with little memory. In its own right it does nothing.
#[test]
fn mutations_with_little_memory() {
    if std::env::var_os("BYGONE_TEST_MUTATE").is_none() {
        return;
    }
    for sample in samples() {
        mutate(&sample, &mut |bad| PARSERS.iter().for_each(|(_, parser)| parser(bad)));
    }
    for round in 0..20_000_u64 {
        let bad = noise(round, (round % 300) as usize);
        PARSERS.iter().for_each(|(_, parser)| parser(&bad));
    }
}

#[test]
fn no_parser_panics_or_takes_memory_for_a_lie() {
    let this = std::env::current_exe().unwrap();
    let script = format!(
        "ulimit -v {MEMORY_KIB} && exec \"$0\" --exact hostile::mutation::mutations_with_little_memory --nocapture"
    );
    let output = Command::new("bash").args(["-c", &script]).arg(this).env("BYGONE_TEST_MUTATE", "1").output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn samples_are_what_the_parsers_take() {
    let all = samples();
    assert!(Tree::decode(&all[0]).is_ok() && Tree::decode(&all[1]).is_ok());
    assert!(ListPage::decode(&all[2][9..], 0, 9 + (1 << 40)).is_ok() && ListPage::decode(&all[3][9..], 1, 297).is_ok());
    assert!(index::decode(&all[4]).is_ok() && KeyObject::decode(&all[6]).is_ok());
    assert!(Footer::decode(&all[7], 1186).is_ok() && SegmentTable::decode(&all[8], 1000).is_ok());
    assert!(Config::decode(&all[9], keys()).is_ok());
    assert!(object::open(keys(), &REPOSITORY, StoredKind::Index, all[10].clone()).is_ok());
    assert!(Snapshot::decode(&all[11]).is_ok() && Config::decode_fields(&all[12]).is_ok());
    assert!(
        Delta::decode(&all[13]).is_ok_and(|delta| delta.plain_len == 1412 && delta.steps().all(|step| step.is_ok()))
    );
}
