//! `cat`: single objects of the repository as they are, decrypted.

use std::io::{BufWriter, Write};

use anyhow::{Result, anyhow, bail};
use serde::Serialize;
use serde_json::{Value, json};

use super::entry::{self, JsonNode};
use super::exit::Exit;
use super::output::{self, quote};
use super::{Global, SnapshotFilter, json};
use crate::backend::{ObjectKind, ObjectName};
use crate::browse;
use crate::format::content::Part;
use crate::format::snapshot::Snapshot;
use crate::format::tree::{Kind, Node, Tree};
use crate::id::{BlobId, BlobKind, ObjectId};
use crate::repo::{Error, Repository};

/// Shows a single object of the repository.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What sort of object
    #[arg(value_enum)]
    sort: Sort,
    /// Its id or, except for blobs and trees, the beginning of it; for a tree also a snapshot with a path, as in
    /// `latest:/etc`
    id: Option<String>,
    #[command(flatten)]
    filter: SnapshotFilter,
}

/// What sort of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Sort {
    /// The repository's configuration
    Config,
    /// A snapshot record
    Snapshot,
    /// A directory
    Tree,
    /// A blob, as plain bytes
    Blob,
    /// An index object
    Index,
    /// A key object, without the key
    Key,
    /// A pack as it is stored
    Pack,
}

/// Runs the command.
pub fn run(args: &Args, global: &Global) -> Result<Exit> {
    let repo = global.open_repository()?;
    let id = match (&args.id, args.sort) {
        (Some(id), _) => id,
        (None, Sort::Config) => "",
        (None, _) => bail!("an id is needed"),
    };
    let mut out = BufWriter::new(output::stdout());
    let value = match args.sort {
        Sort::Config => config(&repo),
        Sort::Snapshot => {
            let (id, snapshot, _) = global.select_snapshot(&repo, &args.filter, id)?;
            snapshot_value(&id, &snapshot)?
        }
        Sort::Tree => {
            let tree = match BlobId::from_hex(id) {
                Some(tree) => tree,
                None => {
                    let (_, snapshot, path) = global.select_snapshot(&repo, &args.filter, id)?;
                    let found = browse::resolve(&repo, &snapshot, &path)?
                        .ok_or_else(|| anyhow!("the snapshot has no `{}`", quote(&path)))?;
                    let Kind::Directory { tree, .. } = found.node().kind else {
                        bail!("`{}` is not a directory", quote(&path));
                    };
                    tree
                }
            };
            tree_value(&repo, &tree)?
        }
        Sort::Index => index_value(&repo, &find(&repo, ObjectKind::Index, id)?)?,
        Sort::Key => key_value(&repo, id)?,
        Sort::Blob => {
            let blob =
                BlobId::from_hex(id).ok_or_else(|| anyhow!("`{}` is not the id of a blob", quote(id.as_bytes())))?;
            out.write_all(&any_blob(&repo, &blob)?)?;
            out.flush()?;
            return Ok(Exit::Success);
        }
        Sort::Pack => {
            let name = ObjectName::new(ObjectKind::Pack, find(&repo, ObjectKind::Pack, id)?);
            copy_object(&repo, name, &mut out)?;
            out.flush()?;
            return Ok(Exit::Success);
        }
    };
    // People read it indented, programs by the line.
    if global.json {
        json::write_line(&mut out, &value)?
    } else {
        json::write_pretty(&mut out, &value)?
    }
    out.flush()?;
    Ok(Exit::Success)
}

fn config(repo: &Repository) -> Value {
    let sizes = repo.chunk_sizes();
    json!({
        "id": repo.id().to_hex(),
        "chunker": { "min": sizes.min, "average": sizes.avg, "max": sizes.max },
    })
}

/// The one object of `kind` whose name starts with `prefix`.
fn find(repo: &Repository, kind: ObjectKind, prefix: &str) -> Result<ObjectId> {
    let prefix = prefix.to_ascii_lowercase();
    if let Some(id) = ObjectId::from_hex(&prefix) {
        return Ok(id);
    }
    let mut found = Vec::new();
    repo.backend().list(kind, &mut |object| {
        if found.len() < 2 && object.id.to_hex().starts_with(&prefix) {
            found.push(object.id);
        }
    })?;
    let shown = quote(prefix.as_bytes());
    match found[..] {
        [id] => Ok(id),
        [] => bail!("nothing in {} has an id that starts with `{shown}`", kind.directory()),
        _ => bail!("more than one id in {} starts with `{shown}`", kind.directory()),
    }
}

fn snapshot_value(id: &ObjectId, snapshot: &Snapshot) -> Result<Value> {
    let root = snapshot.root();
    let Kind::Directory { tree, entries } = root.kind else { bail!("the snapshot has no tree") };
    Ok(json!({
        "id": id.to_hex(),
        "time": entry::rfc3339(snapshot.time),
        "parent": snapshot.parent.map(|id| id.to_hex()),
        "previous": snapshot.previous.map(|id| id.to_hex()),
        "original": snapshot.original.map(|id| id.to_hex()),
        "tree": tree.to_hex(),
        "entries": entries,
        "paths": snapshot.paths.iter().map(|path| entry::text(path)).collect::<Vec<_>>(),
        "hostname": snapshot.host,
        "username": snapshot.user,
        "uid": snapshot.uid,
        "gid": snapshot.gid,
        "tags": snapshot.tags,
        "excludes": snapshot.excludes,
        "program_version": snapshot.program,
        "summary": serde_json::to_value(&snapshot.summary)?,
        "users": snapshot.users,
        "groups": snapshot.groups,
    }))
}

#[derive(Serialize)]
struct JsonTreeNode {
    #[serde(flatten)]
    node: JsonNode,
    #[serde(skip_serializing_if = "Option::is_none")]
    subtree: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entries: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Vec<Value>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    extended_attributes: Vec<Value>,
}

fn tree_value(repo: &Repository, id: &BlobId) -> Result<Value> {
    let blob = repo.blob(BlobKind::Tree, id)?;
    let tree = Tree::decode(&blob).map_err(|error| Error::decode(format_args!("tree {id}"), error))?;
    Ok(match tree {
        Tree::Leaf(leaf) => {
            let nodes = leaf.nodes().map(|node| node_value(repo, &node)).collect::<Result<Vec<_>>>()?;
            json!({ "nodes": nodes })
        }
        Tree::Index(pages) => {
            let page = |page: &crate::format::tree::Page<'_>| {
                json!({
                    "first": entry::text(page.first),
                    "id": page.id.to_hex(),
                    "nodes": page.count,
                    "entries": page.ranks,
                })
            };
            json!({ "pages": pages.iter().map(page).collect::<Vec<_>>() })
        }
    })
}

fn node_value(repo: &Repository, node: &Node<'_>) -> Result<Value> {
    let (mut subtree, mut below, mut content) = (None, None, None);
    match node.kind {
        Kind::Directory { tree, entries } => (subtree, below) = (Some(tree.to_hex()), Some(entries)),
        Kind::File { size, content: parts } => {
            let part = |part: Result<(u64, Part), Error>| {
                Ok(match part?.1 {
                    Part::Data { id, len } => json!({ "id": id.to_hex(), "length": len }),
                    Part::Hole { len } => json!({ "hole": len }),
                })
            };
            content = Some(browse::parts(repo, size, parts).map(part).collect::<Result<_>>()?);
        }
        _ => {}
    }
    let attribute = |(name, value): (&[u8], &[u8])| {
        let hex = value.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        json!({ "name": entry::text(name), "value_hex": hex })
    };
    let none = Snapshot::default();
    Ok(serde_json::to_value(JsonTreeNode {
        node: JsonNode::new(node, node.name, &none),
        subtree,
        entries: below,
        content,
        extended_attributes: node.xattrs.iter().map(attribute).collect(),
    })?)
}

fn kind_name(kind: BlobKind) -> &'static str {
    match kind {
        BlobKind::Data => "data",
        BlobKind::Tree => "tree",
        BlobKind::List => "list",
    }
}

fn index_value(repo: &Repository, id: &ObjectId) -> Result<Value> {
    let packs = repo.index_object(id)?;
    let packs = packs.iter().map(|pack| {
        let mut offset = 0u64;
        let blobs = pack.blobs.iter().map(|blob| {
            let at = offset;
            offset += u64::from(blob.len);
            let mut value =
                json!({ "id": blob.id.to_hex(), "type": kind_name(blob.kind), "offset": at, "length": blob.len });
            if blob.is_delta {
                value["delta"] = true.into();
            }
            value
        });
        let blobs = blobs.collect::<Vec<_>>();
        json!({ "id": pack.id.to_hex(), "length": pack.len, "blobs": blobs })
    });
    Ok(json!({ "packs": packs.collect::<Vec<_>>() }))
}

fn key_value(repo: &Repository, prefix: &str) -> Result<Value> {
    let id = find(repo, ObjectKind::Key, prefix)?;
    let keys = repo.key_objects()?;
    let Some((id, key, current)) = keys.into_iter().find(|(key, ..)| *key == id) else {
        bail!("there is no key {}", id.short());
    };
    let key = key?;
    Ok(json!({
        "id": id.to_hex(),
        "current": current,
        "created": entry::rfc3339(key.created),
        "hostname": key.host,
        "username": key.user,
    }))
}

/// The blob of whatever kind.
fn any_blob(repo: &Repository, id: &BlobId) -> Result<crate::repo::Blob> {
    let mut last = None;
    for kind in BlobKind::ALL {
        match repo.blob(kind, id) {
            Ok(blob) => return Ok(blob),
            // The wrong kind makes for a different id.
            Err(error @ (Error::Corrupt { .. } | Error::MissingBlob { .. })) => drop(last.get_or_insert(error)),
            Err(error) => return Err(error.into()),
        }
    }
    Err(last.expect("there are kinds").into())
}

fn copy_object(repo: &Repository, name: ObjectName, out: &mut impl Write) -> Result<()> {
    let len = repo.backend().len(name)?;
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < len {
        let piece = &mut buffer[..(len - offset).min(1 << 20) as usize];
        repo.backend().get_range(name, offset, piece)?;
        out.write_all(piece)?;
        offset += piece.len() as u64;
    }
    Ok(())
}
