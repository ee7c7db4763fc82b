//! What a backup leaves out: by pattern, by size, by a tag file beside it, by ignore files in the tree.
//!
//! The rules are restic's. A directory that is left out is not entered. Targets that the user named are subject to
//! patterns and sizes but not to tags and ignore files. Whether something cannot be read is no matter of this module.

use crate::source::directory::{Directory, Names};
use crate::source::files_from::text_lines;
use crate::source::metadata::{EntryKind, Stat};
use crate::source::pattern::Patterns;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use rustix::io::Errno;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::io::{self, BufRead};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Everything that a backup is told to leave out.
#[derive(Clone, Debug, Default)]
pub struct Excludes {
    /// Paths that match one of these lists; each list is judged on its own.
    pub patterns: Vec<Patterns>,
    /// The content, but for the tag file itself, of directories that bear one of these tags.
    pub tags: Vec<Tag>,
    /// Anything but directories that is longer than this many bytes.
    pub larger_than: Option<u64>,
    /// Names of files with patterns in the manner of `.gitignore`, the stronger ones last; none are read unless named.
    pub ignore_files: Vec<CString>,
}

/// A file whose presence in a directory excludes what else is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    name: CString,
    header: Vec<u8>,
}

/// A tag or a size that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExcludeError {
    /// Not `FILE` or `FILE:HEADER`.
    #[error("invalid tag {0:?}: it must be a file name, optionally followed by a colon and what the file starts with")]
    Tag(String),
    /// Not a number with one of the units.
    #[error("invalid size {0:?}: it must be a number of bytes, optionally followed by `K`, `M`, `G` or `T`")]
    Size(String),
}

impl Tag {
    /// The tag in a text like `.nobackup` or `FILE:HEADER`; with a header only a file that starts with it counts.
    pub fn parse(text: &[u8]) -> Result<Self, ExcludeError> {
        let error = || ExcludeError::Tag(String::from_utf8_lossy(text).into_owned());
        let (name, header) = match text.iter().position(|&b| b == b':') {
            Some(colon) => (&text[..colon], &text[colon + 1..]),
            None => (text, b"".as_slice()),
        };
        if name.is_empty() || name.contains(&b'/') {
            return Err(error());
        }
        Ok(Self { name: CString::new(name).map_err(|_| error())?, header: header.to_vec() })
    }

    /// The tag of cache directories (bford.info/cachedir).
    pub fn cache() -> Self {
        Self { name: c"CACHEDIR.TAG".to_owned(), header: b"Signature: 8a477f597d28d172789f06886806bc55".to_vec() }
    }

    fn is_in(&self, directory: &Directory, names: &Names) -> bool {
        names.contains(self.name.to_bytes())
            && (self.header.is_empty()
                || directory.read_start(&self.name, self.header.len()).is_ok_and(|start| start == self.header))
    }
}

/// The number of bytes in a text like `500`, `10k` or `2G`, with units of 1024.
pub fn parse_size(text: &str) -> Result<u64, ExcludeError> {
    let error = || ExcludeError::Size(text.to_owned());
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(error()),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(error());
    }
    digits.parse::<u64>().ok().and_then(|size| size.checked_mul(1 << shift)).ok_or_else(error)
}

/// The patterns in an exclude file: a line each, without blank lines and those that start with `#`, with the
/// environment's variables in place of `$NAME` and `${NAME}` and a dollar sign in place of `$$`.
pub fn read_patterns(input: impl BufRead) -> io::Result<Vec<Vec<u8>>> {
    read_patterns_with(input, |name| std::env::var_os(OsStr::from_bytes(name)).map(OsString::into_vec))
}

fn read_patterns_with(input: impl BufRead, variable: impl Fn(&[u8]) -> Option<Vec<u8>>) -> io::Result<Vec<Vec<u8>>> {
    let mut patterns = Vec::new();
    for line in text_lines(input) {
        let line = line?;
        let line = line.trim_ascii();
        if !line.is_empty() && line[0] != b'#' {
            patterns.push(expand(line, &variable));
        }
    }
    Ok(patterns)
}

fn expand(line: &[u8], variable: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Vec<u8> {
    let mut out = Vec::with_capacity(line.len());
    let mut rest = line;
    while let Some(dollar) = rest.iter().position(|&b| b == b'$') {
        out.extend_from_slice(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        let braced = rest.strip_prefix(b"{").and_then(|body| body.split(|&b| b == b'}').next());
        let plain_len = rest.iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
        match braced {
            Some(name) if name.len() + 1 < rest.len() => {
                out.extend(variable(name).unwrap_or_default());
                rest = &rest[name.len() + 2..];
            }
            _ if plain_len > 0 => {
                out.extend(variable(&rest[..plain_len]).unwrap_or_default());
                rest = &rest[plain_len..];
            }
            _ => {
                out.push(b'$');
                rest = rest.strip_prefix(b"$").unwrap_or(rest);
            }
        }
    }
    out.extend_from_slice(rest);
    out
}

/// Longest ignore file that is read, in bytes.
const IGNORE_FILE_LEN_MAX: usize = 1 << 20;

impl Excludes {
    /// Whether a pattern excludes the absolute `path`.
    pub fn match_path(&self, path: &[u8]) -> bool {
        self.patterns.iter().any(|patterns| patterns.matches(path))
    }

    /// Whether something of this size and kind is too large.
    pub(super) fn match_size(&self, stat: &Stat) -> bool {
        let (EntryKind::File { size } | EntryKind::Volume { size, .. }) = stat.kind else { return false };
        self.larger_than.is_some_and(|max| size > max)
    }

    /// Drops the names that a tag in the directory excludes.
    pub(super) fn apply_tags(&self, directory: &Directory, names: &mut Names) {
        let found: Vec<_> = self.tags.iter().filter(|tag| tag.is_in(directory, names)).collect();
        if !found.is_empty() {
            names.retain(|name| found.iter().all(|tag| tag.name.to_bytes() == name));
        }
    }

    /// The rules of the ignore files in the directory at the absolute `path`, if there are any. Files that cannot be read
    /// and lines that make no sense go to `failed` with the file's name.
    pub(super) fn read_ignore_files(
        &self,
        directory: &Directory,
        names: &Names,
        path: &[u8],
        mut failed: impl FnMut(&CStr, String),
    ) -> Option<Gitignore> {
        let mut builder = None;
        for name in self.ignore_files.iter().filter(|name| names.contains(name.to_bytes())) {
            let builder = builder.get_or_insert_with(|| GitignoreBuilder::new(Path::new(OsStr::from_bytes(path))));
            let bytes = match directory.read_start(name, IGNORE_FILE_LEN_MAX + 1) {
                Ok(bytes) if bytes.len() > IGNORE_FILE_LEN_MAX => Err(Errno::FBIG.into()),
                result => result,
            };
            match bytes {
                Ok(bytes) => {
                    for line in String::from_utf8_lossy(&bytes).lines() {
                        if let Err(error) = builder.add_line(None, line) {
                            failed(name, error.to_string());
                        }
                    }
                }
                Err(error) => failed(name, error.to_string()),
            }
        }
        match builder?.build() {
            Ok(rules) => Some(rules),
            Err(error) => {
                failed(c"", error.to_string());
                None
            }
        }
    }
}

/// Whether the nearest of `rules` (those of the outermost directory first) that knows the absolute `path` excludes it.
pub(super) fn is_ignored<'a>(
    rules: impl DoubleEndedIterator<Item = &'a Gitignore>,
    path: &[u8],
    is_directory: bool,
) -> bool {
    let path = Path::new(OsStr::from_bytes(path));
    let nearest = rules.rev().map(|rules| rules.matched(path, is_directory)).find(|verdict| !verdict.is_none());
    nearest.is_some_and(|verdict| verdict.is_ignore())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exclude_file_is_read_as_restic_reads_it() {
        let file =
            b"\xef\xbb\xbf# comment\n\n  *.o  \r\n\t#other\n$HOME/x\n${HOME}y/$$z\n!$EMPTY/keep\ncost$\n$\xff\n${open";
        let variable = |name: &[u8]| (name == b"HOME").then(|| b"/home/u\xff".to_vec());
        let patterns = read_patterns_with(&file[..], variable).unwrap();
        let expected: Vec<&[u8]> =
            vec![b"*.o", b"/home/u\xff/x", b"/home/u\xffy/$z", b"!/keep", b"cost$", b"$\xff", b"${open"];
        assert_eq!(patterns, expected);
    }

    #[test]
    fn sizes_count_in_units_of_1024() {
        for (text, size) in [("0", 0), ("12", 12), ("12b", 12), ("3k", 3072), ("2M", 2 << 20), ("1G", 1 << 30)] {
            assert_eq!(parse_size(text), Ok(size));
        }
        assert_eq!(parse_size("1T"), Ok(1 << 40));
        for bad in ["", "M", "1.5G", "-1", "+1", "1KB", "99999999999G", "1 k", "é"] {
            assert_eq!(parse_size(bad), Err(ExcludeError::Size(bad.into())));
        }
    }

    #[test]
    fn a_tag_is_a_name_with_or_without_a_header() {
        let tag = Tag::parse(b"a:b:c").unwrap();
        assert_eq!((tag.name.as_c_str(), tag.header.as_slice()), (c"a", b"b:c".as_slice()));
        assert_eq!(Tag::parse(b".nobackup").unwrap().header, b"");
        for bad in [b"".as_slice(), b":x", b"a/b", b"a\0"] {
            assert!(Tag::parse(bad).is_err());
        }
    }
}
