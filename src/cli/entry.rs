//! How entries of a snapshot are shown: as a line in the manner of `ls -l`, and as JSON in the manner of restic.

use serde::Serialize;

use super::output::{self, human_size};
use crate::browse;
use crate::format::tree::{Kind, Node, Time};

/// The first letter of a line of `ls -l`.
fn letter(kind: &Kind<'_>) -> char {
    match kind {
        Kind::File { .. } => '-',
        Kind::Directory { .. } => 'd',
        Kind::Symlink { .. } => 'l',
        Kind::BlockDevice { .. } => 'b',
        Kind::CharDevice { .. } => 'c',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
    }
}

/// What the JSON calls the kind.
pub fn kind_name(kind: &Kind<'_>) -> &'static str {
    match kind {
        Kind::File { .. } => "file",
        Kind::Directory { .. } => "dir",
        Kind::Symlink { .. } => "symlink",
        Kind::BlockDevice { .. } => "dev",
        Kind::CharDevice { .. } => "chardev",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
    }
}

/// Kind and permissions, like `drwxr-sr-x`.
pub fn permissions(node: &Node<'_>) -> String {
    let mode = node.metadata.mode;
    let mut out = String::with_capacity(10);
    out.push(letter(&node.kind));
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        out.push(if bits & 4 != 0 { 'r' } else { '-' });
        out.push(if bits & 2 != 0 { 'w' } else { '-' });
        out.push(match (bits & 1 != 0, mode & special != 0) {
            (true, false) => 'x',
            (false, false) => '-',
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
        });
    }
    out
}

/// The mode as restic's JSON has it: the numbers of Go's `os.FileMode`.
fn go_mode(node: &Node<'_>) -> u32 {
    let kind = match node.kind {
        Kind::File { .. } => 0,
        Kind::Directory { .. } => 1 << 31,
        Kind::Symlink { .. } => 1 << 27,
        Kind::BlockDevice { .. } => 1 << 26,
        Kind::CharDevice { .. } => 1 << 26 | 1 << 21,
        Kind::Fifo => 1 << 25,
        Kind::Socket => 1 << 24,
    };
    let bit = |from: u32, to: u32| if node.metadata.mode & from != 0 { to } else { 0 };
    kind | bit(0o4000, 1 << 23) | bit(0o2000, 1 << 22) | bit(0o1000, 1 << 20) | node.metadata.mode & 0o777
}

/// Bytes of a file's content; `None` for everything else.
pub fn size(node: &Node<'_>) -> Option<u64> {
    if let Kind::File { size, .. } = node.kind { Some(size) } else { None }
}

/// Whether the calendar has the time; file systems and damaged clocks have stranger ones.
fn is_in_calendar(time: Time) -> bool {
    jiff::Timestamp::new(time.sec, time.nsec as i32).is_ok()
}

/// A time as people read it, or its seconds if the calendar does not have it.
pub fn local_time(time: Time) -> String {
    if is_in_calendar(time) { output::local_time(time) } else { format!("@{}", time.sec) }
}

/// A time as scripts read it, or its seconds if the calendar does not have it.
pub fn rfc3339(time: Time) -> String {
    if is_in_calendar(time) { output::rfc3339(time) } else { format!("@{}.{:09}", time.sec, time.nsec) }
}

/// `path` below `start`, absolute and each name once; `None` if it has a `..` in it, which has no meaning in a snapshot.
pub fn absolute(start: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let whole = [start, b"/", path].concat();
    let names = browse::components(&whole)?;
    Some(names.flat_map(|name| [b"/", name]).flatten().copied().collect())
}

/// A line in the manner of `ls -l`; `path` is quoted already.
pub fn long_line(node: &Node<'_>, path: &str, target: Option<&str>, human: bool) -> String {
    let bytes = size(node).unwrap_or(0);
    let size = if human { human_size(bytes) } else { bytes.to_string() };
    let width = if human { 10 } else { 6 };
    format!(
        "{} {:>5} {:>5} {size:>width$} {} {path}{}",
        permissions(node),
        node.metadata.uid,
        node.metadata.gid,
        local_time(node.metadata.mtime),
        target.map(|target| format!(" -> {target}")).unwrap_or_default()
    )
}

/// An entry as JSON. Text that is not UTF-8 has replacement characters, and its bytes follow in hexadecimal.
#[derive(Serialize)]
pub struct JsonNode {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    uid: u32,
    gid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    mode: u32,
    permissions: String,
    mtime: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    atime: Option<String>,
    ctime: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    btime: Option<String>,
    inode: u64,
    device_id: u64,
    links: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    linktarget: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    linktarget_hex: Option<String>,
}

/// Bytes that are not UTF-8 in hexadecimal; `None` for those that are.
pub fn hex_unless_text(bytes: &[u8]) -> Option<String> {
    use std::fmt::Write;
    std::str::from_utf8(bytes).is_err().then(|| {
        bytes.iter().fold(String::new(), |mut out, byte| {
            let _ = write!(out, "{byte:02x}");
            out
        })
    })
}

/// Bytes as text, replacement characters in place of what is not UTF-8.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl JsonNode {
    /// `node`, found at `path`.
    pub fn new(node: &Node<'_>, path: &[u8], snapshot: &crate::format::snapshot::Snapshot) -> Self {
        let name_of = |names: &[(u32, String)], number: u32| {
            names.binary_search_by_key(&number, |(number, _)| *number).ok().map(|at| names[at].1.clone())
        };
        let target = if let Kind::Symlink { target } = node.kind { Some(target) } else { None };
        let metadata = &node.metadata;
        Self {
            name: text(path.rsplit(|byte| *byte == b'/').next().unwrap_or(node.name)),
            kind: kind_name(&node.kind),
            path: text(path),
            path_hex: hex_unless_text(path),
            uid: metadata.uid,
            gid: metadata.gid,
            user: name_of(&snapshot.users, metadata.uid),
            group: name_of(&snapshot.groups, metadata.gid),
            size: size(node),
            mode: go_mode(node),
            permissions: permissions(node),
            mtime: rfc3339(metadata.mtime),
            atime: metadata.atime.map(rfc3339),
            ctime: rfc3339(metadata.ctime),
            btime: metadata.btime.map(rfc3339),
            inode: metadata.inode,
            device_id: metadata.dev,
            links: metadata.nlink,
            linktarget: target.map(text),
            linktarget_hex: target.and_then(hex_unless_text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tree::{Metadata, Xattrs};

    fn node(mode: u32, kind: Kind<'_>) -> Node<'_> {
        Node { name: b"x", metadata: Metadata { mode, ..Metadata::default() }, kind, xattrs: Xattrs::default() }
    }

    #[test]
    fn permissions_show_special_bits_as_ls_does() {
        assert_eq!(permissions(&node(0o4755, Kind::Fifo)), "prwsr-xr-x");
        assert_eq!(permissions(&node(0o6600, Kind::Socket)), "srwS--S---");
        assert_eq!(permissions(&node(0o1777, Kind::Symlink { target: b"t" })), "lrwxrwxrwt");
        assert_eq!(permissions(&node(0o1666, Kind::CharDevice { rdev: 0 })), "crw-rw-rwT");
    }

    #[test]
    fn go_modes_are_those_of_os_file_mode() {
        assert_eq!(go_mode(&node(0o4755, Kind::Fifo)), 1 << 25 | 1 << 23 | 0o755);
        assert_eq!(go_mode(&node(0o1777, Kind::CharDevice { rdev: 0 })), 0x4000000 | 0x200000 | 0x100000 | 0o777);
    }

    #[test]
    fn times_out_of_the_calendar_are_still_shown() {
        assert_eq!(local_time(Time { sec: i64::MAX, nsec: 0 }), format!("@{}", i64::MAX));
        assert_eq!(rfc3339(Time { sec: i64::MIN, nsec: 5 }), format!("@{}.000000005", i64::MIN));
    }
}
