//! What programs that others wrote say about two trees: rsync and GNU tar.

use std::path::Path;
use std::process::Command;

/// Insists that rsync would change nothing to make `copy` the same as `original`: contents, owners, times, links,
/// ACLs and extended attributes.
pub fn assert_rsync_finds_nothing(original: &Path, copy: &Path) {
    let output = Command::new("rsync")
        .args(["-aAXHnc", "--delete", "--itemize-changes", "--numeric-ids"])
        .args([original.join(""), copy.join("")])
        .output()
        .expect("rsync runs");
    let (out, err) = (output.stdout.escape_ascii().to_string(), String::from_utf8_lossy(&output.stderr));
    let what = format!("{} -> {}", original.display(), copy.display());
    assert!(output.status.success(), "rsync {what}: {err}");
    assert!(out.is_empty() && err.is_empty(), "rsync {what}: {}\n{err}", out.replace("\\n", "\n"));
}

/// Insists that GNU tar finds `copy` to be what it packed from `original`.
pub fn assert_tar_finds_nothing(original: &Path, copy: &Path, scratch: &Path) {
    let archive = scratch.join("compare.tar");
    let packed = Command::new("tar")
        .args(["--create", "--format=posix", "--sparse", "--numeric-owner", "--file"])
        .arg(&archive)
        .arg("-C")
        .args([original, Path::new(".")])
        .output()
        .expect("tar runs");
    assert!(packed.status.success(), "tar: {}", packed.stderr.escape_ascii());
    let compared = Command::new("tar")
        .args(["--compare", "--numeric-owner", "--file"])
        .arg(&archive)
        .arg("-C")
        .arg(copy)
        .output()
        .expect("tar runs");
    let said = format!("{}{}", compared.stdout.escape_ascii(), compared.stderr.escape_ascii());
    assert!(compared.status.success() && said.is_empty(), "tar --compare: {}", said.replace("\\n", "\n"));
    std::fs::remove_file(archive).unwrap();
}
