//! Lists of targets in files: lines with globs, lines taken as they are, or names that end in NUL.
//!
//! Names are bytes. Whether a target exists is found out when it is walked; only a glob that fits nothing shows here.

use crate::source::pattern::{Glob, PatternError};
use std::ffi::OsStr;
use std::io::{self, BufRead};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// A list that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The reading failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A line is no glob.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// Two NULs in a row or one at the start.
    #[error("name {0} of the list is empty")]
    EmptyName(usize),
    /// The last name does not end in NUL, so the list may be cut off.
    #[error("the list does not end with a NUL: it may be cut off")]
    CutOff,
}

/// The files that the globs in `input` fit, one glob a line; blank lines and those that start with `#` say nothing. Globs
/// that fit no file go to `unmatched`.
pub fn read_globs(input: impl BufRead, mut unmatched: impl FnMut(&[u8])) -> Result<Vec<Vec<u8>>, ListError> {
    let mut targets = Vec::new();
    for line in text_lines(input) {
        let line = line?;
        let line = line.trim_ascii();
        if line.is_empty() || line[0] == b'#' {
            continue;
        }
        let before = targets.len();
        expand_glob(line, &mut targets)?;
        if targets.len() == before {
            unmatched(line);
        }
    }
    Ok(targets)
}

/// The lines of `input` as they are, but for empty ones.
pub fn read_lines(input: impl BufRead) -> Result<Vec<Vec<u8>>, ListError> {
    let lines = text_lines(input).filter(|line| !line.as_ref().is_ok_and(Vec::is_empty));
    Ok(lines.collect::<io::Result<_>>()?)
}

/// The lines of a text file, without line ends of any kind and without the mark that some editors put at the start.
pub(super) fn text_lines(input: impl BufRead) -> impl Iterator<Item = io::Result<Vec<u8>>> {
    input.split(b'\n').enumerate().map(|(number, line)| {
        let mut line = line?;
        if line.ends_with(b"\r") {
            line.pop();
        }
        if number == 0 && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        Ok(line)
    })
}

/// The names in `input`, each ending in NUL.
pub fn read_raw(mut input: impl BufRead) -> Result<Vec<Vec<u8>>, ListError> {
    let mut targets = Vec::new();
    loop {
        let mut name = Vec::new();
        input.read_until(0, &mut name)?;
        match name.pop() {
            None => return Ok(targets),
            Some(0) if name.is_empty() => return Err(ListError::EmptyName(targets.len() + 1)),
            Some(0) => targets.push(name),
            Some(_) => return Err(ListError::CutOff),
        }
    }
}

/// Appends the files that `glob` fits, in order. Directories that cannot be read fit nothing.
fn expand_glob(glob: &[u8], targets: &mut Vec<Vec<u8>>) -> Result<(), PatternError> {
    let components = glob.split(|&b| b == b'/').filter(|component| !component.is_empty());
    let mut found = vec![if glob[0] == b'/' { b"/".to_vec() } else { Vec::new() }];
    for component in components {
        let parsed = Glob::parse(component)?;
        let mut next = Vec::new();
        for base in found {
            if parsed.is_literal() {
                next.extend(Some(join(&base, component)).filter(|path| exists(path)));
            } else {
                let mut names = names(&base);
                names.retain(|name| parsed.matches(name));
                names.sort_unstable();
                next.extend(names.iter().map(|name| join(&base, name)));
            }
        }
        found = next;
    }
    targets.append(&mut found);
    Ok(())
}

fn exists(path: &[u8]) -> bool {
    Path::new(OsStr::from_bytes(path)).symlink_metadata().is_ok()
}

fn names(directory: &[u8]) -> Vec<Vec<u8>> {
    let directory = if directory.is_empty() { b"." } else { directory };
    let entries = std::fs::read_dir(OsStr::from_bytes(directory)).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_vec()).collect()
}

fn join(base: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if base.is_empty() || base.ends_with(b"/") { b"" } else { b"/" };
    [base, slash, name].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_fit_files_in_order() {
        let temp = tempfile::tempdir().unwrap();
        for name in ["b.c", "a.c", "a.h", "sub/x.c", ".hidden.c", "odd[1].c"] {
            let path = temp.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let base = temp.path().to_str().unwrap();
        let list = format!("# list\n\n {base}/*.c \n{base}/s*//?.c\n{base}/a.h\n{base}/none*\n{base}/odd\\[1].c\n");
        let mut unmatched = Vec::new();
        let targets = read_globs(list.as_bytes(), |glob| unmatched.push(glob.to_vec())).unwrap();
        let expected = [".hidden.c", "a.c", "b.c", "odd[1].c", "sub/x.c", "a.h", "odd[1].c"];
        assert_eq!(targets, expected.map(|name| format!("{base}/{name}").into_bytes()));
        assert_eq!(unmatched, [format!("{base}/none*").into_bytes()]);
        assert!(matches!(read_globs(&b"a[\n"[..], |_| ()), Err(ListError::Pattern(_))));
    }

    #[test]
    fn verbatim_lines_are_neither_trimmed_nor_expanded() {
        assert_eq!(
            read_lines(&b"\xef\xbb\xbf# a\n\n  b \n*\nc\xff\r\nlast"[..]).unwrap(),
            [&b"# a"[..], b"  b ", b"*", b"c\xff", b"last"]
        );
    }

    #[test]
    fn raw_names_may_hold_anything_but_must_end() {
        assert_eq!(read_raw(&b"a\nb\0 c\xff\0"[..]).unwrap(), [&b"a\nb"[..], b" c\xff"]);
        assert!(read_raw(&b""[..]).unwrap().is_empty());
        assert!(matches!(read_raw(&b"a\0\0"[..]), Err(ListError::EmptyName(2))));
        assert!(matches!(read_raw(&b"a\0b"[..]), Err(ListError::CutOff)));
    }
}
