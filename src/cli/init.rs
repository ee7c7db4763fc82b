//! `bygone init`: create a repository.

use anyhow::Result;

use super::Global;
use super::exit::Exit;
use crate::repo::Repository;

/// Arguments of `init`.
#[derive(clap::Args, Debug)]
pub struct Args {}

/// Creates the repository.
pub fn run(_: &Args, global: &Global) -> Result<Exit> {
    let backend = global.backend()?;
    let password = global.password.read(&format!("password for the new repository {}", backend.location()), true)?;
    let repo = Repository::init(backend, &password, &global.open_options())?;
    if global.json {
        let id = repo.id().to_hex();
        println!("{}", serde_json::json!({"message_type": "initialized", "id": id, "repository": repo.location()}));
    } else if !global.quiet {
        println!("created repository {} at {}", repo.id().short(), repo.location());
        println!("Keep the password safe: without it nothing can be restored.");
    }
    Ok(Exit::Success)
}
