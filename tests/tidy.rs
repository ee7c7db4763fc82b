//! What the project promises about itself: imports that point down, documents that are true, no forgotten file.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::sandbox::files_below;

/// The layers of `src/`, lowest first. An entry imports only from layers above it in this list of lists, and from
/// those beside it that [`BESIDE`] names.
const LAYERS: &[&[&str]] = &[
    &["id", "progress", "host", "pool"],
    &["format", "key", "seal", "chunk", "difference"],
    &["backend", "source"],
    &["index"],
    &["repo"],
    &["browse"],
    &["backup", "restore", "vfs", "maintain"],
    &["fuse"],
    &["cli"],
    &["main", "lib"],
];

/// Imports within a layer that are meant: the first may use the second. Those of the lowest layer that makes objects are
/// between their bytes and their keys: `format::object` seals, and `seal` and `key` write headers.
const BESIDE: &[(&str, &str)] = &[
    ("seal", "key"),
    ("seal", "format"),
    ("key", "format"),
    ("chunk", "format"),
    ("difference", "format"),
    ("format", "seal"),
    ("format", "key"),
    ("format", "chunk"),
    ("difference", "format"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(below: &str) -> Vec<PathBuf> {
    let mut files = files_below(&root().join(below));
    files.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files
}

/// The entry of `src/` that a file belongs to.
fn entry_of(file: &Path) -> String {
    let inside = file.strip_prefix(root().join("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The entries of `src/` that `text` names after `crate::`, but for its unit tests and its comments.
fn imports(text: &str) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let code: Vec<&str> = code.lines().map(|line| line.split("//").next().unwrap()).collect();
    let code = code.join("\n");
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::").chain(code.match_indices("bygone::")) {
        let after = &code[at..][code[at..].find("::").unwrap() + 2..];
        if let Some(group) = after.strip_prefix('{') {
            found.extend(group_heads(group));
        } else {
            found.extend(identifier(after));
        }
    }
    found
}

fn identifier(text: &str) -> Option<String> {
    let len = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    (len > 0).then(|| text[..len].to_owned())
}

/// The first words of the parts of `a::{b, c}, d::e}...`.
fn group_heads(group: &str) -> Vec<String> {
    let (mut depth, mut heads, mut fresh) = (0, Vec::new(), true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && c.is_ascii_alphabetic() => {
                heads.extend(identifier(&group[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    heads
}

fn layer(entry: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&entry))
}

#[test]
fn imports_are_seen_in_every_form() {
    let text = "use crate::id::BlobId; use crate::{format::{a, b}, repo::c};\n// crate::comment\nfn f() { crate::seal::x() }\n\
                #[cfg(test)]\nmod tests { use crate::cli; }";
    let expected = ["format", "id", "repo", "seal"].map(str::to_owned);
    assert_eq!(imports(text), BTreeSet::from(expected));
}

#[test]
fn imports_point_only_downward() {
    let mut wrong = Vec::new();
    for file in sources("src") {
        let entry = entry_of(&file);
        let Some(own) = layer(&entry) else {
            wrong.push(format!("{}: `{entry}` is in no layer", file.display()));
            continue;
        };
        if entry == "lib" || entry == "main" {
            continue;
        }
        for import in imports(&fs::read_to_string(&file).unwrap()) {
            // Macros and re-exports of the crate's root are not entries.
            let Some(other) = layer(&import) else { continue };
            let beside = other == own && BESIDE.contains(&(entry.as_str(), import.as_str()));
            if import != entry && other >= own && !beside {
                wrong.push(format!("{}: `{entry}` imports `{import}`, which is not below it", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_of_the_tests_is_included() {
    let tests = root().join("tests");
    let mut included = BTreeSet::new();
    let mut open = vec![(tests.join("main.rs"), tests.clone())];
    while let Some((file, below)) = open.pop() {
        let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        included.insert(file);
        for line in text.lines() {
            let line = line.trim_start_matches("pub ");
            let Some(name) = line.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')) else { continue };
            let flat = below.join(format!("{name}.rs"));
            let file = if flat.exists() { flat } else { below.join(name).join("mod.rs") };
            open.push((file, below.join(name)));
        }
    }
    let all = BTreeSet::from_iter(sources("tests"));
    assert_eq!(all, included, "a file below tests/ is in no `mod` line");
}

#[test]
fn every_source_file_says_what_it_owns() {
    for file in sources("src").into_iter().chain(sources("tests")) {
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("//! "), "{} has no header", file.display());
    }
}

#[test]
fn documents_name_only_tools_that_exist() {
    for document in ["README.md", "CHANGELOG.md", "src/lib.rs"] {
        let Ok(text) = fs::read_to_string(root().join(document)) else {
            panic!("{document} is missing");
        };
        for (at, _) in text.match_indices("tools/") {
            let rest = &text[at + "tools/".len()..];
            let len = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "-_./".contains(c))).unwrap_or(rest.len());
            let name = rest[..len].trim_end_matches(['.', '/']);
            assert!(root().join("tools").join(name).exists(), "{document} names tools/{name}, which is not there");
        }
    }
}

#[test]
fn continuous_integration_runs_the_one_command() {
    let run = fs::read_to_string(root().join(".ci/run")).unwrap();
    assert_eq!(run, "#!/usr/bin/env bash\nexec tools/test\n");
}
