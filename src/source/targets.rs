//! The targets of a backup as one tree: which directories are taken whole and which only lead to one that is.
//!
//! Targets are brought to absolute paths without symbolic links above their last component, so that the tree mirrors
//! the file system. Targets may lie below each other and may be many.

use crate::source::metadata::Stat;
use rustix::fs::CWD;
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Index of a [`Target`] in [`Targets`].
pub(super) type TargetIndex = u32;

/// A target, or a directory above one.
#[derive(Debug, Default)]
struct Target {
    /// Given by the user.
    whole: bool,
    children: BTreeMap<CString, TargetIndex>,
}

/// All targets; the first is the root directory.
#[derive(Debug)]
pub(super) struct Targets {
    tree: Vec<Target>,
}

impl Targets {
    /// The tree of absolute `paths`, as [`resolve`] makes them.
    pub(super) fn new<'a>(paths: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut tree = vec![Target::default()];
        for path in paths {
            let mut at = 0;
            for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
                let next = tree.len() as TargetIndex;
                let name = CString::new(name).expect("a path that was found has no NUL");
                let child = *tree[at].children.entry(name).or_insert(next);
                if child == next {
                    tree.push(Target::default());
                }
                at = child as usize;
            }
            tree[at].whole = true;
        }
        Self { tree }
    }

    /// Whether the user gave this one.
    pub(super) fn is_whole(&self, index: TargetIndex) -> bool {
        self.tree[index as usize].whole
    }

    /// Whether targets lie below this one.
    pub(super) fn leads_on(&self, index: TargetIndex) -> bool {
        !self.tree[index as usize].children.is_empty()
    }

    /// What lies directly below, in order.
    pub(super) fn children(&self, index: TargetIndex) -> &BTreeMap<CString, TargetIndex> {
        &self.tree[index as usize].children
    }
}

/// The absolute path of `target`, which must exist: symbolic links above its last component are resolved, and the last
/// one too if a slash follows it.
pub(super) fn resolve(target: &[u8]) -> io::Result<Vec<u8>> {
    if target.is_empty() || target.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let (parent, name) = match target.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&target[..=slash], &target[slash + 1..]),
        None => (b".".as_slice(), target),
    };
    let canonical = |path: &[u8]| Path::new(OsStr::from_bytes(path)).canonicalize().map(OsString::from);
    if matches!(name, b"" | b"." | b"..") {
        return canonical(target).map(OsString::into_vec);
    }
    let mut path = canonical(parent)?.into_vec();
    if path != b"/" {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    Stat::at(CWD, &CString::new(path.as_slice()).expect("no NUL in either part"))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_resolved_above_its_last_component() {
        let temp = tempfile::tempdir().unwrap();
        let base = temp.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("real")).unwrap();
        std::fs::write(base.join("real/file"), "").unwrap();
        std::os::unix::fs::symlink("real", base.join("link")).unwrap();
        let resolved = |path: &str| {
            let path = resolve(base.join(path).as_os_str().as_bytes()).map(|path| OsString::from_vec(path).into());
            path.map(|path: std::path::PathBuf| path.strip_prefix(&base).unwrap().to_str().unwrap().to_owned())
        };
        assert_eq!(resolved("link/file").unwrap(), "real/file");
        assert_eq!(resolved("link").unwrap(), "link");
        assert_eq!(resolved("link/").unwrap(), "real");
        assert_eq!(resolved("real/../link/.").unwrap(), "real");
        assert_eq!(resolved("missing").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(resolve(b"").unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(resolve(b"/").unwrap(), b"/");
        assert_eq!(resolve(b".").unwrap(), std::env::current_dir().unwrap().into_os_string().into_vec());
    }

    #[test]
    fn targets_below_each_other_share_one_tree() {
        let targets = Targets::new([b"/a/b/c".as_slice(), b"/a/b", b"/x"]);
        let a = targets.children(0)[c"a"];
        let b = targets.children(a)[c"b"];
        assert!(!targets.is_whole(a) && targets.is_whole(b) && targets.leads_on(b));
        assert!(targets.is_whole(targets.children(b)[c"c"]));
        assert!(!targets.leads_on(targets.children(0)[c"x"]));
    }
}
