//! Writes entries of a snapshot into a tar or zip archive, as a stream.
//!
//! The tar archive is POSIX pax: nanoseconds, long and non-UTF-8 names, hard links, devices, extended attributes and
//! access control lists as GNU tar and star write them, files with holes in its sparse format 1.0. It has no sockets. Zip
//! has names, content, times to two seconds, permissions and symbolic links; holes are zeros in it.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use anyhow::{Context, Result};
use tar::{EntryType, Header};
use zip::write::SimpleFileOptions;

use super::output::quote;
use crate::browse::{self, ContentReader};
use crate::format::content::{Content, Part};
use crate::format::snapshot::Snapshot;
use crate::format::tree::{Kind, Node, Time};
use crate::repo::{self, Repository};

/// A tar archive being written.
pub struct Tar<'a, W: Write> {
    repo: &'a Repository,
    snapshot: &'a Snapshot,
    builder: tar::Builder<W>,
    /// Paths of entries with several names that have more to come, by device and inode.
    links: HashMap<(u64, u64), (Vec<u8>, u32)>,
}

/// Longest path in the fixed part of a header.
const NAME_LEN: usize = 100;
/// Largest numbers that fit into seven octal digits.
const OCTAL_7_MAX: u32 = 0o7777777;
/// Same for the eleven digits of a size.
const OCTAL_11_MAX: u64 = 0o77777777777;

/// Length of a block: what is in an archive is filled up to whole ones.
const BLOCK_LEN: u64 = 512;

/// Runs of data of a file with offset and length, and, as GNU tar ends a map, an empty one at the end.
fn runs<'a>(
    repo: &'a Repository,
    size: u64,
    content: Content<'a>,
) -> impl Iterator<Item = repo::Result<(u64, u64)>> + 'a {
    let is_hole = |part: &repo::Result<(u64, Part)>| matches!(part, Ok((_, Part::Hole { .. })));
    let mut parts = browse::parts(repo, size, content).filter(move |part| !is_hole(part)).peekable();
    let mut end = Some(size);
    std::iter::from_fn(move || match parts.next() {
        Some(Ok((from, part))) => {
            let mut to = from + part.len();
            while let Some(Ok((_, more))) = parts.next_if(|part| matches!(part, Ok((at, _)) if *at == to)) {
                to += more.len();
            }
            Some(Ok((from, to - from)))
        }
        Some(Err(error)) => Some(Err(error)),
        None => end.take().map(|end| Ok((end, 0))),
    })
}

/// What is stored of a file with holes: first a map of its runs of data, in decimal, then these.
struct Sparse {
    runs: u64,
    /// Bytes of the map, filled up to whole blocks.
    map_len: u64,
    data_len: u64,
}

impl Sparse {
    /// `None` if the file has no holes. Goes through its parts once; nothing of them is kept, however many there are.
    fn of(repo: &Repository, size: u64, content: Content<'_>) -> repo::Result<Option<Self>> {
        if !matches!(content, Content::Parts { .. } | Content::List { .. }) {
            return Ok(None);
        }
        let (mut count, mut map_len, mut data_len) = (0u64, 0, 0);
        for run in runs(repo, size, content) {
            let (from, len) = run?;
            count += 1;
            map_len += format!("{from}\n{len}\n").len() as u64;
            data_len += len;
        }
        map_len += format!("{count}\n").len() as u64;
        let sparse = Self { runs: count, map_len: map_len.next_multiple_of(BLOCK_LEN), data_len };
        Ok((data_len < size).then_some(sparse))
    }

    fn len(&self) -> u64 {
        self.map_len + self.data_len
    }

    fn write(&self, repo: &Repository, size: u64, content: Content<'_>, out: &mut impl Write) -> Result<()> {
        let mut map_len = 0;
        let mut line = |out: &mut dyn Write, text: String| {
            map_len += text.len() as u64;
            out.write_all(text.as_bytes())
        };
        line(out, format!("{}\n", self.runs))?;
        for run in runs(repo, size, content) {
            let (from, len) = run?;
            line(out, format!("{from}\n{len}\n"))?;
        }
        io::copy(&mut io::repeat(0).take(self.map_len - map_len), out)?;
        for part in browse::parts(repo, size, content) {
            if let (_, Part::Data { id, len }) = part? {
                out.write_all(&browse::data_blob(repo, &id, len)?)?;
            }
        }
        io::copy(&mut io::repeat(0).take(self.len().next_multiple_of(BLOCK_LEN) - self.len()), out)?;
        Ok(())
    }
}

/// The name that a file with holes has for those who do not know of them: what they unpack is not the file.
fn sparse_name(path: &[u8]) -> Vec<u8> {
    let name = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    [&path[..name], b"GNUSparseFile.0/", &path[name..]].concat()
}

/// Seconds with their fraction in decimal, as pax writes times.
fn pax_time(time: Time) -> String {
    let (sign, sec, nsec) = match (time.sec < 0, time.nsec) {
        (true, 0) => ("-", time.sec.unsigned_abs(), 0),
        (true, nsec) => ("-", (time.sec + 1).unsigned_abs(), 1_000_000_000 - nsec),
        (false, nsec) => ("", time.sec as u64, nsec),
    };
    let text = format!("{sign}{sec}.{nsec:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The text of a POSIX access control list in the form that the kernel stores; `None` if it is not one.
fn acl_text(stored: &[u8]) -> Option<String> {
    let (version, entries) = stored.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != 2 || !entries.len().is_multiple_of(8) {
        return None;
    }
    let mut lines = Vec::new();
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let bits = u16::from_le_bytes([entry[2], entry[3]]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let letter = |bit, letter| if bits & bit != 0 { letter } else { '-' };
        let permissions: String = [letter(4, 'r'), letter(2, 'w'), letter(1, 'x')].into_iter().collect();
        let who = match tag {
            0x01 => "user:".to_owned(),
            0x02 => format!("user:{id}"),
            0x04 => "group:".to_owned(),
            0x08 => format!("group:{id}"),
            0x10 => "mask:".to_owned(),
            0x20 => "other:".to_owned(),
            _ => return None,
        };
        lines.push(format!("{who}:{permissions}"));
    }
    Some(lines.join(","))
}

fn name_of(names: &[(u32, String)], number: u32) -> Option<&str> {
    names.binary_search_by_key(&number, |(number, _)| *number).ok().map(|at| names[at].1.as_str())
}

impl<'a, W: Write> Tar<'a, W> {
    /// An archive into `out`.
    pub fn new(repo: &'a Repository, snapshot: &'a Snapshot, out: W) -> Self {
        Self { repo, snapshot, builder: tar::Builder::new(out), links: HashMap::new() }
    }

    /// Appends `node` as `path`; a directory's ends with a slash.
    pub fn append(&mut self, path: &[u8], node: &Node<'_>) -> Result<()> {
        let metadata = &node.metadata;
        let mut header = Header::new_ustar();
        let mut pax: Vec<(String, Vec<u8>)> = Vec::new();
        let mut target: &[u8] = b"";
        let first;
        let mut size = 0;
        let mut kind = match node.kind {
            Kind::File { .. } => EntryType::Regular,
            Kind::Directory { .. } => EntryType::Directory,
            Kind::Symlink { target: to } => {
                target = to;
                EntryType::Symlink
            }
            Kind::BlockDevice { rdev } | Kind::CharDevice { rdev } => {
                header.set_device_major(rustix::fs::major(rdev))?;
                header.set_device_minor(rustix::fs::minor(rdev))?;
                if matches!(node.kind, Kind::BlockDevice { .. }) { EntryType::Block } else { EntryType::Char }
            }
            Kind::Fifo => EntryType::Fifo,
            Kind::Socket => return Ok(()),
        };
        if metadata.nlink > 1 && kind != EntryType::Directory {
            let key = (metadata.dev, metadata.inode);
            if let Some((earlier, left)) = self.links.get_mut(&key) {
                first = earlier.clone();
                *left -= 1;
                if *left == 0 {
                    self.links.remove(&key);
                }
                kind = EntryType::Link;
                target = &first;
            } else {
                self.links.insert(key, (path.to_vec(), metadata.nlink - 1));
            }
        }
        let shown = || format!("cannot archive {}", quote(path));
        let mut sparse = None;
        if let Kind::File { size: whole, content } = node.kind
            && kind == EntryType::Regular
        {
            sparse = Sparse::of(self.repo, whole, content).with_context(shown)?;
            size = sparse.as_ref().map_or(whole, Sparse::len);
        }
        header.set_entry_type(kind);
        header.set_mode(metadata.mode);
        header.set_uid(u64::from(metadata.uid.min(OCTAL_7_MAX)));
        header.set_gid(u64::from(metadata.gid.min(OCTAL_7_MAX)));
        header.set_size(size.min(OCTAL_11_MAX));
        header.set_mtime(u64::try_from(metadata.mtime.sec).unwrap_or(0).min(OCTAL_11_MAX));
        let mut add = |key: &str, value: &[u8]| pax.push((key.to_owned(), value.to_vec()));
        let name;
        let stored_path = match (&sparse, node.kind) {
            (Some(_), Kind::File { size, .. }) => {
                add("GNU.sparse.major", b"1");
                add("GNU.sparse.minor", b"0");
                add("GNU.sparse.name", path);
                add("GNU.sparse.realsize", size.to_string().as_bytes());
                name = sparse_name(path);
                &name
            }
            _ => path,
        };
        let fixed = header.as_old_mut();
        for (field, value, key) in [(&mut fixed.name, stored_path, "path"), (&mut fixed.linkname, target, "linkpath")] {
            let len = value.len().min(NAME_LEN);
            field[..len].copy_from_slice(&value[..len]);
            if value.len() > NAME_LEN {
                add(key, value);
            }
        }
        for (names, number, long, short) in [
            (&self.snapshot.users, metadata.uid, "uname", "uid"),
            (&self.snapshot.groups, metadata.gid, "gname", "gid"),
        ] {
            if number > OCTAL_7_MAX {
                add(short, number.to_string().as_bytes());
            }
            let Some(name) = name_of(names, number).filter(|name| !name.is_empty()) else { continue };
            let set = if short == "uid" { header.set_username(name) } else { header.set_groupname(name) };
            if set.is_err() {
                add(long, name.as_bytes());
            }
        }
        if size > OCTAL_11_MAX {
            add("size", size.to_string().as_bytes());
        }
        if metadata.mtime.nsec != 0 || metadata.mtime.sec < 0 || metadata.mtime.sec as u64 > OCTAL_11_MAX {
            add("mtime", pax_time(metadata.mtime).as_bytes());
        }
        if let Some(atime) = metadata.atime {
            add("atime", pax_time(atime).as_bytes());
        }
        if kind != EntryType::Link {
            for (name, value) in node.xattrs.iter() {
                let acl = match name {
                    b"system.posix_acl_access" => acl_text(value).map(|text| ("SCHILY.acl.access", text)),
                    b"system.posix_acl_default" => acl_text(value).map(|text| ("SCHILY.acl.default", text)),
                    _ => None,
                };
                match (acl, std::str::from_utf8(name)) {
                    (Some((key, text)), _) => add(key, text.as_bytes()),
                    (None, Ok(name)) => add(&format!("SCHILY.xattr.{name}"), value),
                    // A key of an archive is text.
                    (None, Err(_)) => {}
                }
            }
        }
        self.builder.append_pax_extensions(pax.iter().map(|(key, value)| (key.as_str(), value.as_slice())))?;
        header.set_cksum();
        match (node.kind, sparse) {
            (Kind::File { size, content }, Some(sparse)) => {
                self.builder.append(&header, io::empty()).with_context(shown)?;
                sparse.write(self.repo, size, content, self.builder.get_mut()).with_context(shown)
            }
            (Kind::File { size, content }, None) if kind == EntryType::Regular => {
                self.builder.append(&header, ContentReader::new(self.repo, size, content)).with_context(shown)
            }
            _ => self.builder.append(&header, io::empty()).with_context(shown),
        }
    }

    /// Ends the archive.
    pub fn finish(self) -> Result<()> {
        self.builder.into_inner()?.flush()?;
        Ok(())
    }
}

/// A zip archive being written.
pub struct Zip<'a, W: Write> {
    repo: &'a Repository,
    writer: zip::ZipWriter<zip::write::StreamWriter<W>>,
}

/// A time as zip keeps it: local, from 1980 to 2107; what is outside becomes the nearest.
fn zip_time(time: Time) -> zip::DateTime {
    let civil = jiff::Timestamp::new(time.sec, time.nsec as i32)
        .map(|stamp| stamp.to_zoned(jiff::tz::TimeZone::system()).datetime());
    let Ok(at) = civil else { return zip::DateTime::default() };
    let (year, month, day) = (at.year() as u16, at.month() as u8, at.day() as u8);
    zip::DateTime::from_date_and_time(year, month, day, at.hour() as u8, at.minute() as u8, at.second() as u8)
        .unwrap_or_default()
}

impl<'a, W: Write> Zip<'a, W> {
    /// An archive into `out`.
    pub fn new(repo: &'a Repository, out: W) -> Self {
        Self { repo, writer: zip::ZipWriter::new_stream(out) }
    }

    /// Appends `node` as `path`. Kinds that zip does not know are left out.
    pub fn append(&mut self, path: &[u8], node: &Node<'_>) -> Result<()> {
        let name = String::from_utf8_lossy(path);
        let options = SimpleFileOptions::default()
            .unix_permissions(node.metadata.mode)
            .last_modified_time(zip_time(node.metadata.mtime));
        let shown = || format!("cannot archive {}", quote(path));
        match node.kind {
            Kind::File { size, content } => {
                // The stream cannot go back to say that a file turned out to be large.
                let options = options.large_file(size >= u64::from(u32::MAX) >> 1);
                self.writer.start_file(name, options).with_context(shown)?;
                io::copy(&mut ContentReader::new(self.repo, size, content), &mut self.writer).with_context(shown)?;
            }
            Kind::Directory { .. } => self.writer.add_directory(name, options).with_context(shown)?,
            Kind::Symlink { target } => {
                self.writer.add_symlink(name, String::from_utf8_lossy(target), options).with_context(shown)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Ends the archive.
    pub fn finish(self) -> Result<()> {
        self.writer.finish()?.into_inner().flush()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_have_their_fraction_on_the_right_side() {
        let time = |sec, nsec| pax_time(Time { sec, nsec });
        assert_eq!(time(-2, 500_000_000), "-1.5");
        assert_eq!(time(-1, 999_999_999), "-0.000000001");
        assert_eq!(time(-7, 0), "-7");
        assert_eq!(time(1_800_000_000, 20), "1800000000.00000002");
        assert_eq!(time(0, 0), "0");
    }

    #[test]
    fn access_control_lists_are_written_as_text_and_others_refused() {
        let mut acl = vec![2, 0, 0, 0];
        for (tag, bits, id) in [(0x01u16, 6u16, u32::MAX), (0x02, 4, 1000), (0x10, 7, u32::MAX), (0x20, 0, u32::MAX)] {
            acl.extend_from_slice(&tag.to_le_bytes());
            acl.extend_from_slice(&bits.to_le_bytes());
            acl.extend_from_slice(&id.to_le_bytes());
        }
        assert_eq!(acl_text(&acl).unwrap(), "user::rw-,user:1000:r--,mask::rwx,other::---");
        assert_eq!(acl_text(&acl[..acl.len() - 1]), None);
        assert_eq!(acl_text(b""), None);
    }
}
