//! `dump`: a file, or a directory as an archive, to standard output.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::archive::{Tar, Zip};
use super::exit::Exit;
use super::output::{named, quote};
use super::{Global, SnapshotFilter, entry};
use crate::browse::{self, Event, Walk, write_content};
use crate::format::tree::{Kind, Node};
use crate::repo::Repository;

/// Writes a file, or a directory as an archive, to standard output.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The snapshot: `latest`, an id or its beginning; with `:PATH` a directory in it
    snapshot: String,
    /// The file or directory
    #[arg(value_name = "PATH")]
    entry: String,
    /// The kind of archive that a directory is written as
    #[arg(short, long, value_enum, default_value_t)]
    archive: Format,
    /// Write to this file instead
    #[arg(short, long, value_name = "FILE")]
    target: Option<PathBuf>,
    #[command(flatten)]
    filter: SnapshotFilter,
}

/// A kind of archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// POSIX tar with everything that a snapshot has but sockets; files with holes as GNU tar writes them
    #[default]
    Tar,
    /// Zip with names, contents, permissions and links; holes become zeros
    Zip,
}

/// Runs the command.
pub fn run(args: &Args, global: &Global) -> Result<Exit> {
    let repo = global.open_snapshots()?;
    let (id, snapshot, start) = global.select_snapshot(&repo, &args.filter, &args.snapshot)?;
    let Some(path) = entry::absolute(&start, args.entry.as_bytes()) else {
        bail!("`{}`: `..` has no meaning here", quote(args.entry.as_bytes()));
    };
    let Some(found) = browse::resolve(&repo, &snapshot, &path)? else {
        bail!("snapshot {} has no `{}`", id.short(), quote(&path));
    };
    let node = found.node();
    let stdout = io::stdout();
    let is_directory = matches!(node.kind, Kind::Directory { .. });
    if is_directory && args.target.is_none() && stdout.is_terminal() {
        bail!("an archive would disturb the terminal; redirect it or give `--target FILE`");
    }
    let mut file = match &args.target {
        Some(target) => {
            let shown = || format!("cannot create {}", quote(target.as_os_str().as_encoded_bytes()));
            Some(File::create(target).with_context(shown)?)
        }
        None => None,
    };
    let mut lock = stdout.lock();
    // Standard output would search every piece for line ends: a descriptor of it does not.
    let mut direct;
    let out: &mut dyn Write = match &mut file {
        Some(file) => file,
        None => {
            lock.flush()?;
            direct = Direct(File::from(rustix::io::dup(io::stdout()).context("cannot write to standard output")?));
            &mut direct
        }
    };
    match node.kind {
        Kind::File { size, content } => {
            write_content(&repo, size, content, out)?.context("cannot write the file")?;
            out.flush().context("cannot write the file")?;
        }
        Kind::Directory { .. } => {
            let out = BufWriter::with_capacity(1 << 20, out);
            match args.archive {
                Format::Tar => {
                    let mut archive = Tar::new(&repo, &snapshot, out);
                    each(&repo, &node, |path, node| archive.append(path, node))?;
                    archive.finish()?;
                }
                Format::Zip => {
                    let mut archive = Zip::new(&repo, out);
                    each(&repo, &node, |path, node| if path == b"./" { Ok(()) } else { archive.append(path, node) })?;
                    archive.finish()?;
                }
            }
        }
        _ => bail!("`{}` is neither a file nor a directory", quote(&path)),
    }
    Ok(Exit::Success)
}

/// A descriptor of standard output.
struct Direct(File);

impl Write for Direct {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(named)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Calls `entry` for the directory `node` as `./` and for everything below it with its path from there. The paths of
/// directories end with a slash. An archive with something missing is of no use, so damage ends it.
fn each(repo: &Repository, node: &Node<'_>, mut entry: impl FnMut(&[u8], &Node<'_>) -> Result<()>) -> Result<()> {
    entry(b"./", node)?;
    let Kind::Directory { tree, .. } = node.kind else { return Ok(()) };
    let mut walk = Walk::new(repo, tree, b"");
    let mut name = Vec::new();
    while let Some(event) = walk.next() {
        match event {
            Event::Entry { path, entry: found } => {
                name.clear();
                name.extend_from_slice(&path[1..]);
                if matches!(found.node.kind, Kind::Directory { .. }) {
                    name.push(b'/');
                }
                entry(&name, &found.node)?;
            }
            Event::Leave { .. } => {}
            Event::Damage { path, error } => {
                return Err(error).with_context(|| format!("cannot read the directory {}", quote(path)));
            }
        }
    }
    Ok(())
}
