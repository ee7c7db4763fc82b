//! `umount`: ends a mount.

use std::path::PathBuf;

use anyhow::Result;

use super::Global;
use super::exit::Exit;
use crate::fuse::mount;

/// Ends a mount.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Where the repository is mounted
    #[arg(required = true, value_name = "DIRECTORY")]
    directories: Vec<PathBuf>,
    /// If it is in use, take it out of sight now and end it when its last user is gone
    #[arg(short, long)]
    lazy: bool,
}

/// Runs the command.
pub fn run(args: &Args, _: &Global) -> Result<Exit> {
    for directory in &args.directories {
        mount::detach_at(directory, args.lazy)?;
    }
    Ok(Exit::Success)
}
