//! Who and where this process is: host name, user, the names of users and groups, and what is mounted.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;

/// How the kernel calls a mounted repository.
pub const FILE_SYSTEM: &str = "fuse.bygone";

/// The host's name.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The user's name, or the number if it has none.
pub fn user_name() -> String {
    let uid = rustix::process::getuid().as_raw();
    user_names().into_iter().find(|(number, _)| *number == uid).map_or_else(|| uid.to_string(), |(_, name)| name)
}

/// Local users by number, sorted; the first name of a number counts.
pub fn user_names() -> Vec<(u32, String)> {
    names("/etc/passwd")
}

/// Local groups by number, sorted; the first name of a number counts.
pub fn group_names() -> Vec<(u32, String)> {
    names("/etc/group")
}

/// A mount that this process sees.
#[derive(Debug, PartialEq, Eq)]
pub struct Mount {
    /// Major and minor device number, as mountinfo writes it.
    pub device: String,
    /// Where.
    pub point: OsString,
    /// It shows a repository.
    pub is_repository: bool,
}

/// All mounts, the topmost of those at one place last.
pub fn mounts() -> io::Result<Vec<Mount>> {
    Ok(parse_mounts(&fs::read("/proc/self/mountinfo")?))
}

/// Reads mountinfo: see proc_pid_mountinfo(5).
pub fn parse_mounts(table: &[u8]) -> Vec<Mount> {
    let parse = |line: &[u8]| {
        let mut fields = line.split(|b| *b == b' ');
        let (device, point) = (fields.by_ref().nth(2)?, fields.by_ref().nth(1)?);
        let file_system = fields.skip_while(|field| *field != b"-").nth(1);
        Some(Mount {
            device: String::from_utf8_lossy(device).into_owned(),
            point: unescape(point),
            is_repository: file_system == Some(FILE_SYSTEM.as_bytes()),
        })
    };
    table.split(|b| *b == b'\n').filter_map(parse).collect()
}

/// A field of mountinfo, in which space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        match (byte, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                out.push(byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(out)
}

fn names(path: &str) -> Vec<(u32, String)> {
    let text = fs::read(path).unwrap_or_default();
    let mut names: Vec<(u32, String)> = String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            Some((fields.nth(1)?.parse().ok()?, name.to_owned()))
        })
        .collect();
    names.sort_by_key(|(number, _)| *number);
    names.dedup_by_key(|(number, _)| *number);
    names
}
