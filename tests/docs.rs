//! The documents are true: the examples of bygone-format(5) decode as it says, a reader written from it reads what the
//! program wrote, and its limits are the program's.

mod reader;

use std::fs;
use std::path::Path;
use std::process::Command;

use bygone::format::content::Content;
use bygone::format::delta::{Delta, Step};
use bygone::format::index::decode_blobs;
use bygone::format::limits;
use bygone::format::pack::SegmentTable;
use bygone::format::tree::{Kind, Time, Tree};
use bygone::id::{BlobId, BlobKind};

use crate::support::generate::{noise, text};
use crate::support::sandbox::{PASSWORD, Sandbox};

use self::reader::{Entry, Reader, blob_id, delta, derive};

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("man/bygone-format.5")).unwrap()
}

/// The lines of an example of the page.
fn example(name: &str) -> Vec<String> {
    let page = page();
    let from = page.find(&format!(".\\\" example: {name}\n.EX\n")).expect("the example is there");
    let lines = page[from..].lines().skip(2).take_while(|line| *line != ".EE");
    lines.map(str::to_owned).collect()
}

/// The bytes of an example: two digits each, up to two spaces.
fn bytes(name: &str) -> Vec<u8> {
    let lines = example(name);
    let digits = lines.iter().flat_map(|line| line.split("  ").next().unwrap().split(' '));
    digits.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

#[test]
fn the_leaf_of_the_page_decodes_as_it_says() {
    let bytes = bytes("leaf");
    let Ok(Tree::Leaf(leaf)) = Tree::decode(&bytes) else { panic!("not a leaf") };
    assert_eq!((leaf.base.dev, leaf.base.inode, leaf.base.sec), (2049, 131, 1_795_000_000));
    let nodes: Vec<_> = leaf.nodes().collect();
    let [file, link] = &nodes[..] else { panic!("{} nodes", nodes.len()) };
    assert_eq!(file.name, b"hostname");
    assert_eq!(file.kind, Kind::File { size: 5, content: Content::Inline(b"ctl1\n") });
    let metadata = &file.metadata;
    assert_eq!((metadata.mode, metadata.uid, metadata.gid), (0o644, 0, 0));
    assert_eq!((metadata.dev, metadata.inode, metadata.nlink), (2049, 131, 1));
    assert_eq!(metadata.mtime, Time { sec: 1_795_000_000, nsec: 0 });
    assert_eq!(metadata.ctime, Time { sec: 1_795_000_000, nsec: 4_000_000 });
    assert_eq!(metadata.btime, Some(Time { sec: 1_795_000_000 - 86_400, nsec: 0 }));
    assert_eq!(metadata.atime, None);
    assert_eq!(link.name, b"mtab");
    assert_eq!(link.kind, Kind::Symlink { target: b"../proc/self/mounts" });
    assert_eq!((link.metadata.mode, link.metadata.inode), (0o777, 143));
    assert_eq!(link.metadata.mtime, Time { sec: 1_794_999_000, nsec: 0 });
    assert_eq!(link.metadata.ctime, link.metadata.mtime);
}

#[test]
fn the_tables_of_the_page_decode_as_it_says() {
    let table = SegmentTable::decode(&bytes("segment table"), 137_159).unwrap();
    assert_eq!((table.segment_len, table.plain_len), (131_072, 300_000));
    assert_eq!(table.offsets, [44, 61_044, 119_255, 137_159]);

    let bytes = bytes("blob table");
    let blobs = decode_blobs(&mut bygone::format::codec::Decoder::new(&bytes)).unwrap();
    let found: Vec<_> = blobs.iter().map(|blob| (blob.kind, blob.len)).collect();
    assert_eq!(found, [(BlobKind::Data, 4096), (BlobKind::Tree, 65)]);
    assert_eq!(blobs[0].id.to_hex(), "3d641e239ada39d8517bca4e8ecaf9af91b69004");
}

#[test]
fn the_delta_of_the_page_makes_what_it_says() {
    let bytes = bytes("delta");
    let (bases, make) = delta(&bytes);
    let base = b"the quick brown fox jumps over the lazy dog";
    let id = |hex: &str| BlobId::from_hex(hex).unwrap();
    assert_eq!(bases, [(id("3d641e239ada39d8517bca4e8ecaf9af91b69004").0, base.len())]);
    assert_eq!(make(base), b"the quick green fox jumps over the lazy cat");
    let says = page();
    assert!(says.contains(
        "the quick brown fox jumps over the lazy dog\\(rq, this makes \\(lqthe quick green fox jumps over the lazy cat"
    ));

    let decoded = Delta::decode(&bytes).unwrap();
    assert_eq!((decoded.plain_len, decoded.bases.len(), decoded.bases[0].len), (43, 1, 43));
    let steps: Vec<_> = decoded.steps().map(Result::unwrap).collect();
    let copy = |from, len| Step::Copy { from, len };
    assert_eq!(steps, [copy(0, 10), Step::Literal(b"green"), copy(15, 25), Step::Literal(b"cat")]);
}

#[test]
fn the_known_answers_of_the_page_follow_from_its_rules() {
    let master = [7; 32];
    let hash = blake3::hash(b"abc");
    let mut gear = [0; 2048];
    let seed = derive(&master, "bygone 2026-11 gear table", b"");
    blake3::Hasher::new_keyed(&seed).finalize_xof().fill(&mut gear);
    let gear = |at: usize| u64::from_le_bytes(gear[8 * at..8 * at + 8].try_into().unwrap());
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let expected = [
        hex(&blob_id(&master, "data", hash.as_bytes())),
        hex(&blob_id(&master, "tree", hash.as_bytes())),
        hex(&blob_id(&master, "list", hash.as_bytes())),
        hex(&derive(&master, "bygone 2026-11 object key", &[9; 32])),
        format!("{:016x}", gear(0)),
        format!("{:016x}", gear(255)),
    ];
    let found: Vec<_> = example("known answers").iter().map(|line| line[21..].to_owned()).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_reader_written_from_the_page_alone_reads_a_repository() {
    let sandbox = Sandbox::new();
    let files = [
        ("empty", Vec::new()),
        ("inline", b"a few bytes".to_vec()),
        ("whole", text(1, 5000)),
        ("parts", text(2, 300_000)),
        ("list", text(3, 40_000_000)),
        ("noise", noise(1, 700_000)),
    ];
    for (name, content) in &files {
        sandbox.write(name, content);
    }
    for n in 0..3000 {
        sandbox.write(&format!("many/{n:0200}"), n.to_string());
    }
    let sparse = fs::File::create(sandbox.source().join("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"not a hole", 500_000).unwrap();
    std::os::unix::fs::symlink("inline", sandbox.source().join("link")).unwrap();
    let backup = || sandbox.ok(args!["backup", "--host", "stranger", sandbox.source()]);
    backup();
    // The next night some of it has changed here and there: deltas are made.
    let mut second = files.clone();
    for (name, content) in &mut second {
        for at in (5000..content.len()).step_by(90_000) {
            content.splice(at..at + 7, *b"changed a little");
        }
        if content.len() > 2000 {
            sandbox.write(name, content);
        }
    }
    backup();

    let reader = Reader::open(&sandbox.repository(), PASSWORD.as_bytes());
    let [_, trees, lists] = reader.counts();
    assert!(trees > 5 && lists > 1, "{trees} trees, {lists} lists: pages of directories and contents are not covered");
    assert!(reader.deltas() > 100, "{} deltas", reader.deltas());
    let snapshots = reader.snapshots();
    assert_eq!(snapshots.len(), 2);
    for ((host, mut entries), files) in snapshots.into_iter().zip([files, second]) {
        assert_eq!(host, "stranger");
        let mut take = |name: &str| {
            let path = sandbox.source().join(name);
            entries.remove(path.as_os_str().as_encoded_bytes()).unwrap_or_else(|| panic!("no {name}"))
        };
        for (name, content) in files {
            assert!(take(name) == Entry::File(content), "{name} is not what was backed up");
        }
        for n in 0..3000 {
            assert_eq!(take(&format!("many/{n:0200}")), Entry::File(n.to_string().into_bytes()));
        }
        let sparse = fs::read(sandbox.source().join("sparse")).unwrap();
        assert!(take("sparse") == Entry::File(sparse), "the sparse file is not what was backed up");
        assert_eq!(take("link"), Entry::Symlink(b"inline".to_vec()));
        assert!(entries.values().all(|entry| *entry == Entry::Directory), "{:?}", entries.keys());
    }
}

#[test]
fn the_limits_of_the_page_are_those_of_the_program() {
    let page = page();
    let limits = &page[page.find(".SH LIMITS\n").unwrap()..page.find(".SH CHUNKING\n").unwrap()];
    let limit = |name: &str| -> u64 {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no limit of {name}"));
        let number = line[name.len()..].split_whitespace().next().unwrap();
        number.replace(',', "").parse().unwrap()
    };
    assert_eq!(limit("plain blob"), limits::BLOB_LEN_MAX as u64);
    assert_eq!(limit("plain segment"), limits::SEGMENT_LEN_MAX as u64);
    assert_eq!(limit("stored pack"), limits::PACK_LEN_MAX);
    assert_eq!(limit("plain table of a pack"), bygone::format::pack::TABLE_LEN_MAX as u64);
    assert_eq!(limit("plain index or snapshot"), limits::OBJECT_PLAIN_LEN_MAX as u64);
    assert_eq!(limit("stored configuration, key"), bygone::format::object::CONFIG_LEN_MAX);
    assert_eq!(limit("name of an entry, of an attribute"), limits::NAME_LEN_MAX as u64);
    assert_eq!(limit("target of a symbolic link"), limits::TARGET_LEN_MAX as u64);
    assert_eq!(limit("value of an extended attribute"), limits::XATTR_VALUE_LEN_MAX as u64);
    assert_eq!(limit("all attributes of a node"), limits::XATTRS_LEN_MAX as u64);
    assert_eq!(limit("content inline"), limits::INLINE_LEN_MAX as u64);
    assert_eq!(limit("levels of a content list"), u64::from(limits::LIST_LEVEL_MAX));
    assert_eq!(limit("depth of directories"), limits::TREE_DEPTH_MAX as u64);
    assert_eq!(limit("parts in a node, entries of a page"), limits::PARTS_MAX as u64);
    assert_eq!(limit("bases of a delta"), limits::DELTA_BASES_MAX as u64);
    assert_eq!(limit("fields of a snapshot"), limits::SNAPSHOT_FIELDS_MAX as u64);
    assert_eq!(limit("entries of a snapshot"), limits::ENTRIES_MAX);
}

#[test]
fn manual_pages_have_no_mistakes() {
    needs_program!("groff");
    let man = Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
    for entry in fs::read_dir(man).unwrap() {
        let path = entry.unwrap().path();
        // Generated pages break long words of tables; those written by hand must not.
        let warnings =
            if [5, 7, 8].iter().any(|section| path.extension().is_some_and(|found| *found == *section.to_string())) {
                "-ww"
            } else {
                "-wmac"
            };
        let checked = Command::new("groff").args(["-man", "-Tutf8", "-z", warnings]).arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success() && said.is_empty(), "{}: {said}", path.display());
    }
}

#[test]
fn the_page_of_backends_has_every_option_of_theirs_and_no_other() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("man/bygone-backends.7")).unwrap();
    let words: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix(".B ")).collect();
    let is_option = |word: &&str| word.starts_with("s3.") || word.starts_with("swift.");
    let mut described: Vec<String> = words.into_iter().filter(is_option).map(|word| word.replace('\\', "")).collect();
    described.sort();
    described.dedup();
    let options = bygone::backend::s3::OPTIONS.iter().chain(bygone::backend::swift::OPTIONS);
    let mut known: Vec<String> = options.map(|(name, _)| (*name).to_owned()).collect();
    known.sort();
    assert_eq!(described, known);
}

#[cfg(feature = "mount")]
#[test]
fn the_page_of_the_mount_helper_has_every_option_that_it_takes_and_no_other() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("man/mount.bygone.8")).unwrap();
    let section = |title: &str| page.split_once(&format!(".SS {title}\n")).unwrap().1.split("\n.S").next().unwrap();
    let ours = section("Of bygone");
    let described = ours.lines().zip(ours.lines().skip(1)).filter(|(above, _)| *above == ".TP").map(|(_, line)| {
        let (has_value, words) = line.strip_prefix(".BI ").map_or((false, &line[3..]), |words| (true, words));
        (words.split(['=', ' ']).next().unwrap(), has_value)
    });
    let mut described: Vec<_> = described.collect();
    let mut known = bygone::cli::mount::HELPER_OPTIONS.to_vec();
    known.push(("snapshot", true));
    described.sort_unstable();
    known.sort_unstable();
    assert_eq!(described, known);

    let others = section("Of mount and systemd");
    let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words: Vec<&str> = others.split(|c| !is_letter(c)).collect();
    for option in bygone::cli::mount::HELPER_IGNORED {
        assert!(words.contains(&option), "`{option}` is not in the page");
    }
    let list = others.split_once("begin ignored").unwrap().1.split_once(".\\\" end").unwrap().0;
    for line in list.lines().filter_map(|line| line.strip_prefix(".BR ")) {
        let option = line.split(' ').next().unwrap();
        assert!(bygone::cli::mount::HELPER_IGNORED.contains(&option), "`{option}` is not taken");
    }
}
