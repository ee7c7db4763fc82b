//! `bygone init`: create a repository.

use std::io::Write;

use anyhow::Result;

use super::exit::Exit;
use super::output::quote;
use super::{Global, json, output};
use crate::repo::Repository;

/// Arguments of `init`.
#[derive(clap::Args, Debug)]
pub struct Args {}

/// Creates the repository.
pub fn run(_: &Args, global: &Global) -> Result<Exit> {
    let backend = global.backend()?;
    let password = global.password.read(&format!("password for the new repository {}", backend.location()), true)?;
    let repo = Repository::init(backend, &password, &global.open_options())?;
    let mut out = output::stdout();
    if global.json {
        let id = repo.id().to_hex();
        let line = serde_json::json!({"message_type": "initialized", "id": id, "repository": repo.location()});
        json::write_line(&mut out, &line)?;
    } else if !global.quiet {
        writeln!(out, "created repository {} at {}", repo.id().short(), quote(repo.location().as_bytes()))?;
        writeln!(out, "Keep the password safe: without it nothing can be restored.")?;
    }
    Ok(Exit::Success)
}
