//! A reader of repositories written from bygone-format(5) alone: not one line of the program is used.
//!
//! It panics at whatever the page does not say. It reads whole objects and is slow: it shows that the page is complete.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Key};

/// CODEC: values one after the other.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(len);
        self.0 = tail;
        head
    }

    pub fn u8(&mut self) -> u8 {
        self.take(1)[0]
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    pub fn varint(&mut self) -> u64 {
        let mut value = 0u64;
        for shift in (0..).step_by(7) {
            let byte = self.u8();
            assert!(shift == 0 || byte != 0, "not the shortest form");
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }

    pub fn signed(&mut self) -> i64 {
        let value = self.varint();
        (value >> 1) as i64 ^ -((value & 1) as i64)
    }

    pub fn bytes(&mut self) -> &'a [u8] {
        let len = self.varint();
        self.take(len as usize)
    }

    fn id(&mut self) -> [u8; 20] {
        self.take(20).try_into().unwrap()
    }

    fn hash(&mut self) -> [u8; 32] {
        self.take(32).try_into().unwrap()
    }

    /// The fields up to the end: tags and values. Those with the tags `repeating` may repeat, and unknown odd ones.
    pub fn fields(&mut self, known: &[u64], repeating: &[u64]) -> Vec<(u64, Input<'a>)> {
        let mut fields = Vec::<(u64, Input<'a>)>::new();
        while !self.0.is_empty() {
            let (tag, value) = (self.varint(), self.bytes());
            let last = fields.last().map_or(0, |field| field.0);
            let may_repeat = repeating.contains(&tag) || !known.contains(&tag);
            assert!(tag > last || tag == last && may_repeat, "order of tags");
            assert!(known.contains(&tag) || tag % 2 == 1, "an even tag that the page does not name");
            fields.push((tag, Input(value)));
        }
        fields
    }

    pub fn end(&self) {
        assert!(self.0.is_empty(), "{} bytes are left over", self.0.len());
    }
}

/// KEYS: a key derived from the master key.
pub fn derive(master: &[u8; 32], context: &str, salt: &[u8]) -> [u8; 32] {
    blake3::derive_key(context, &[master, salt].concat())
}

/// BLOB IDS.
pub fn blob_id(master: &[u8; 32], kind: &str, hash: &[u8; 32]) -> [u8; 20] {
    let key = derive(master, &format!("bygone 2026-11 id of a {kind} blob"), b"");
    blake3::keyed_hash(&key, hash).as_bytes()[..20].try_into().unwrap()
}

fn decrypt(key: &[u8; 32], nonce: [u8; 12], aad: &[u8], sealed: &[u8]) -> Vec<u8> {
    let cipher = Aes256Gcm::new(&Key::<Aes256Gcm>::from(*key));
    cipher.decrypt(&nonce.into(), Payload { msg: sealed, aad }).expect("authentic")
}

/// Id and length of what a delta copies from.
type Base = ([u8; 20], usize);

/// DELTAS: the bases of a delta, and what it makes of their bytes laid end to end.
pub fn delta(stored: &[u8]) -> (Vec<Base>, impl FnOnce(&[u8]) -> Vec<u8> + use<'_>) {
    let mut input = Input(stored);
    let count = input.varint();
    assert!((1..=16).contains(&count));
    let mut base = |_| {
        let len = input.varint() as usize;
        (input.id(), len)
    };
    let bases: Vec<_> = (0..count).map(&mut base).collect();
    let base_len: usize = bases.iter().map(|base| base.1).sum();
    let len = (base_len as i64 + input.signed()) as usize;
    let (mut commands, mut literals) = (Input(input.bytes()), input);
    let make = move |base: &[u8]| {
        assert_eq!(base.len(), base_len);
        let (mut made, mut expected) = (Vec::new(), 0);
        while !commands.0.is_empty() {
            let (insert, copy) = (commands.varint() as usize, commands.varint() as usize);
            assert!(insert + copy > 0);
            made.extend_from_slice(literals.take(insert));
            if copy == 0 {
                commands.end();
                break;
            }
            let from = (expected + insert as i64 + commands.signed()) as usize;
            made.extend_from_slice(&base[from..from + copy]);
            expected = (from + copy) as i64;
        }
        literals.end();
        assert_eq!(made.len(), len);
        made
    };
    (bases, make)
}

const FOOTER: u64 = u64::MAX - 2;
const BLOB_TABLE: u64 = u64::MAX - 1;
const SEGMENT_TABLE: u64 = u64::MAX;

/// What a file of the snapshot is.
#[derive(Debug, PartialEq)]
pub enum Entry {
    File(Vec<u8>),
    Directory,
    Symlink(Vec<u8>),
    Other,
}

/// An open repository: its keys, and every blob it holds.
pub struct Reader {
    root: PathBuf,
    master: [u8; 32],
    repository: [u8; 32],
    blobs: BTreeMap<(u64, [u8; 20]), Vec<u8>>,
    /// Ids and bytes of deltas.
    deltas: Vec<([u8; 20], Vec<u8>)>,
}

impl Reader {
    /// Opens the repository in `root` and reads all of it.
    pub fn open(root: &Path, password: &[u8]) -> Reader {
        let config = fs::read(root.join("config")).unwrap();
        let (body, hash) = config.split_at(config.len() - 32);
        assert_eq!(blake3::hash(body).as_bytes(), hash);
        let mut input = Input(body);
        let header = header(&mut input, b'C');
        let repository = input.hash();
        let master = objects(root, "keys").iter().find_map(|key| unwrap(key, &repository, password)).unwrap();
        let mut reader =
            Reader { root: root.to_owned(), master, repository, blobs: BTreeMap::new(), deltas: Vec::new() };

        let plain_len = input.u32();
        let plain = reader.unit(header, 0, plain_len, input.0);
        let mut fields = Input(&plain).fields(&[2], &[]);
        let (2, chunking) = &mut fields[0] else { panic!("no chunking") };
        assert_eq!(chunking.varint(), 1, "chunker");
        let sizes = [chunking.varint(), chunking.varint(), chunking.varint()];
        assert!(sizes.iter().all(|size| size.is_power_of_two()) && sizes.is_sorted());
        chunking.end();
        reader.read_packs();
        reader.follow_deltas();
        reader
    }

    /// How many blobs are stored as deltas.
    pub fn deltas(&self) -> usize {
        self.deltas.len()
    }

    /// DELTAS: makes their blobs, of blobs that are stored plain.
    fn follow_deltas(&mut self) {
        let mut made = Vec::new();
        for (id, stored) in &self.deltas {
            let (bases, make) = delta(stored);
            let mut bytes = Vec::new();
            for (base, len) in bases {
                let base = &self.blobs[&(0, base)];
                assert_eq!(base.len(), len);
                bytes.extend_from_slice(base);
            }
            let blob = make(&bytes);
            assert_eq!(blob_id(&self.master, "data", blake3::hash(&blob).as_bytes()), *id);
            made.push(((0, *id), blob));
        }
        self.blobs.extend(made);
    }

    /// How many blobs there are of each kind.
    pub fn counts(&self) -> [usize; 3] {
        [0, 1, 2].map(|kind| self.blobs.keys().filter(|key| key.0 == kind).count())
    }

    fn unit(&self, header: &[u8], number: u64, plain_len: u32, sealed: &[u8]) -> Vec<u8> {
        let frame = self.opened(header, number, plain_len, sealed);
        let plain = zstd::bulk::decompress(&frame, plain_len as usize).unwrap();
        assert_eq!(plain.len(), plain_len as usize);
        plain
    }

    /// SEALING, without the first step.
    fn opened(&self, header: &[u8], number: u64, plain_len: u32, sealed: &[u8]) -> Vec<u8> {
        let key = derive(&self.master, "bygone 2026-11 object key", &header[12..44]);
        let mut aad = [header, &self.repository].concat();
        aad.extend(number.to_le_bytes());
        aad.extend(plain_len.to_le_bytes());
        aad.extend((sealed.len() as u32).to_le_bytes());
        assert_eq!(aad.len(), 92);
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&number.to_be_bytes());
        decrypt(&key, nonce, &aad, sealed)
    }

    fn small_object(&self, stored: &[u8], kind: u8) -> Vec<u8> {
        let mut input = Input(stored);
        let header = header(&mut input, kind);
        let plain_len = input.u32();
        self.unit(header, 0, plain_len, input.0)
    }

    /// INDEX OBJECTS, then every pack they name.
    fn read_packs(&mut self) {
        for stored in objects(&self.root, "index") {
            let plain = self.small_object(&stored, b'I');
            for (tag, mut input) in Input(&plain).fields(&[2], &[2]) {
                if tag != 2 {
                    continue;
                }
                let name = blake3::Hash::from_bytes(input.hash()).to_hex();
                let len = input.varint();
                let table = blob_table(&mut input);
                input.end();
                let pack = fs::read(self.root.join("packs").join(&name[..2]).join(name.as_str())).unwrap();
                assert_eq!(blake3::hash(&pack).to_hex(), name);
                assert_eq!(pack.len() as u64, len);
                self.read_pack(&pack, &table);
            }
        }
    }

    /// PACKS.
    fn read_pack(&mut self, pack: &[u8], indexed: &[(u64, u64, [u8; 20])]) {
        let header = header(&mut Input(pack), b'P');
        let (front, sealed) = pack.split_at(pack.len() - 36);
        let footer = self.opened(header, FOOTER, 20, sealed);
        let mut footer = Input(&footer);
        let [offset, blobs_sealed, blobs_plain, segments_sealed, segments_plain] =
            [(); 5].map(|()| footer.u32() as usize);
        footer.end();
        let mut tables = Input(&front[offset..]);
        let blobs = self.unit(header, BLOB_TABLE, blobs_plain as u32, tables.take(blobs_sealed));
        let segments = self.unit(header, SEGMENT_TABLE, segments_plain as u32, tables.take(segments_sealed));
        tables.end();

        let mut input = Input(&segments);
        let (segment_len, plain_len) = (input.varint(), input.varint());
        let mut sealed = Input(&pack[44..offset]);
        let mut plain = Vec::new();
        for number in 0..plain_len.div_ceil(segment_len) {
            let len = segment_len.min(plain_len - number * segment_len);
            let sealed_len = input.varint();
            plain.extend(self.unit(header, number, len as u32, sealed.take(sealed_len as usize)));
        }
        input.end();
        assert!(is_padded(pack.len() as u64), "{} is not a length that Padmé leaves", pack.len());

        let mut input = Input(&blobs);
        let table = blob_table(&mut input);
        input.end();
        assert_eq!(table, indexed);
        let mut plain = Input(&plain);
        for (kind, len, id) in table {
            let blob = plain.take(len as usize).to_vec();
            if kind == 3 {
                self.deltas.push((id, blob));
                continue;
            }
            let name = ["data", "tree", "list"][kind as usize];
            assert_eq!(blob_id(&self.master, name, blake3::hash(&blob).as_bytes()), id);
            self.blobs.insert((kind, id), blob);
        }
        plain.end();
    }

    /// SNAPSHOTS: the host of each and all its entries by path, the oldest first.
    pub fn snapshots(&self) -> Vec<(String, BTreeMap<Vec<u8>, Entry>)> {
        let mut found: Vec<_> = objects(&self.root, "snapshots").iter().map(|stored| self.snapshot(stored)).collect();
        found.sort_by_key(|(time, ..)| *time);
        found.into_iter().map(|(_, host, entries)| (host, entries)).collect()
    }

    fn snapshot(&self, stored: &[u8]) -> ((i64, u64), String, BTreeMap<Vec<u8>, Entry>) {
        let plain = self.small_object(stored, b'S');
        let mut time = (0, 0);
        let (mut host, mut entries) = (String::new(), BTreeMap::new());
        let known = [2, 4, 6, 8, 10, 11, 12, 13, 15, 17, 19, 21, 23, 25];
        for (tag, mut value) in Input(&plain).fields(&known, &[8, 10, 11, 23, 25]) {
            match tag {
                2 => {
                    time = (value.signed(), value.varint());
                    assert!(time.1 < 1_000_000_000);
                    value.end();
                }
                4 => host = String::from_utf8(value.0.to_vec()).unwrap(),
                12 => self.record(value.0, b"", &mut entries),
                13 | 15 | 17 => assert_eq!(value.0.len(), 32),
                21 => (0..15).for_each(|_| _ = value.varint()),
                _ => {}
            }
        }
        (time, host, entries)
    }

    /// TREES.
    fn tree(&self, id: [u8; 20], path: &[u8], entries: &mut BTreeMap<Vec<u8>, Entry>) {
        let blob = &self.blobs[&(1, id)];
        let mut input = Input(blob);
        if input.u8() == 1 {
            for _ in 0..input.varint() {
                input.bytes();
                let page = input.id();
                let (nodes, ranks) = (input.varint(), input.varint());
                let before = entries.len();
                self.tree(page, path, entries);
                assert!(nodes <= ranks && ranks == (entries.len() - before) as u64);
            }
            return input.end();
        }
        let (_device, _inode, _second) = (input.varint(), input.varint(), input.signed());
        for _ in 0..input.varint() {
            self.record(input.bytes(), path, entries);
        }
        input.end();
    }

    fn record(&self, record: &[u8], above: &[u8], entries: &mut BTreeMap<Vec<u8>, Entry>) {
        let mut input = Input(record);
        let flags = input.varint();
        let name = input.bytes();
        let path = if name.is_empty() { Vec::new() } else { [above, b"/", name].concat() };
        let (mode, _uid, _gid) = (input.varint(), input.varint(), input.varint());
        assert!(mode < 0o10000);
        let times = 2 + (flags >> 6 & 1) + (flags >> 7 & 1);
        for _ in 0..times {
            input.signed();
            assert!(input.varint() < 1_000_000_000);
        }
        input.signed();
        for bit in [32, 16] {
            if flags & bit != 0 {
                input.varint();
            }
        }
        if flags & 8 != 0 {
            input.bytes();
        }
        let entry = match flags & 7 {
            0 => Entry::File(self.content(flags, &mut input)),
            1 => {
                let (id, below) = (input.id(), input.varint());
                let before = entries.len();
                self.tree(id, &path, entries);
                assert_eq!(below, (entries.len() - before) as u64);
                Entry::Directory
            }
            2 => Entry::Symlink(input.bytes().to_vec()),
            3 | 4 => {
                input.varint();
                Entry::Other
            }
            5 | 6 => Entry::Other,
            _ => panic!("kind 7"),
        };
        input.end();
        if !path.is_empty() {
            assert!(entries.insert(path, entry).is_none());
        }
    }

    /// CONTENT.
    fn content(&self, flags: u64, input: &mut Input<'_>) -> Vec<u8> {
        let size = input.varint();
        let number = flags >> 8 & 7;
        let hash = (flags & 2048 != 0).then(|| input.hash());
        let content = match number {
            0 => Vec::new(),
            1 => input.take(size as usize).to_vec(),
            2 => {
                let hash = input.hash();
                self.blobs[&(0, blob_id(&self.master, "data", &hash))].clone()
            }
            3 => self.parts(input),
            4 => {
                let level = input.u8();
                let root = input.id();
                let data = input.varint();
                assert!(data <= size);
                self.page(root, level, size)
            }
            _ => panic!("content {number}"),
        };
        assert_eq!(content.len() as u64, size);
        if let Some(hash) = hash {
            assert_eq!(*blake3::hash(&content).as_bytes(), hash);
        }
        content
    }

    fn parts(&self, input: &mut Input<'_>) -> Vec<u8> {
        let mut content = Vec::new();
        for _ in 0..input.varint() {
            let head = input.varint();
            let len = (head >> 1) as usize;
            if head & 1 == 1 {
                content.resize(content.len() + len, 0);
            } else {
                let blob = &self.blobs[&(0, input.id())];
                assert_eq!(blob.len(), len);
                content.extend(blob);
            }
        }
        content
    }

    fn page(&self, id: [u8; 20], level: u8, len: u64) -> Vec<u8> {
        let mut input = Input(&self.blobs[&(2, id)]);
        assert_eq!(input.u8(), level);
        let content = if level == 0 {
            self.parts(&mut input)
        } else {
            let mut content = Vec::new();
            for _ in 0..input.varint() {
                let len = input.varint();
                content.extend(self.page(input.id(), level - 1, len));
            }
            content
        };
        input.end();
        assert_eq!(content.len() as u64, len);
        content
    }
}

/// OBJECT HEADER.
fn header<'a>(input: &mut Input<'a>, kind: u8) -> &'a [u8] {
    let header = input.take(44);
    assert_eq!(header[..12], [b'B', b'Y', b'G', b'O', b'N', b'E', 1, kind, 1, 0, 0, 0]);
    header
}

/// The stored bytes of all objects in a directory, which must hash to their names.
fn objects(root: &Path, directory: &str) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(root.join(directory)).unwrap();
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        let stored = fs::read(&path).unwrap();
        assert_eq!(blake3::hash(&stored).to_hex().as_str(), path.file_name().unwrap());
        stored
    };
    entries.map(read).collect()
}

/// KEYS: the master key, if the password is the one of this key object.
fn unwrap(stored: &[u8], repository: &[u8; 32], password: &[u8]) -> Option<[u8; 32]> {
    let mut input = Input(stored);
    let salt = &header(&mut input, b'K')[12..];
    let params = argon2::Params::new(input.u32(), input.u32(), input.u32(), Some(32)).unwrap();
    input.signed();
    input.varint();
    std::str::from_utf8(input.bytes()).unwrap();
    std::str::from_utf8(input.bytes()).unwrap();
    let commitment = input.hash();
    let front = &stored[..stored.len() - input.0.len()];
    let wrapped = input.take(48);
    input.end();
    let mut key = [0; 32];
    let argon = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    argon.hash_password_into(password, salt, &mut key).unwrap();
    if blake3::derive_key("bygone 2026-11 key commitment", &key) != commitment {
        return None;
    }
    let master = decrypt(&key, [0; 12], &[front, repository].concat(), wrapped);
    Some(master.try_into().unwrap())
}

/// Kind, length and id of each blob.
fn blob_table(input: &mut Input<'_>) -> Vec<(u64, u64, [u8; 20])> {
    let count = input.varint();
    let mut blob = |_| {
        let head = input.varint();
        (head & 3, head >> 2, input.id())
    };
    (0..count).map(&mut blob).collect()
}

/// PACKS, "Padding".
fn is_padded(len: u64) -> bool {
    let exponent = len.ilog2();
    let kept = exponent.ilog2() + 1;
    len.trailing_zeros() >= exponent - kept
}
