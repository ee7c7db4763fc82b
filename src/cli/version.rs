//! `bygone version`: what this program is.

use std::io::Write;

use anyhow::Result;

use super::exit::Exit;
use super::{Global, json, output};
use crate::format::header::VERSION;

/// Arguments of `version`.
#[derive(clap::Args, Debug)]
pub struct Args {}

/// Prints the version.
pub fn run(_: &Args, global: &Global) -> Result<Exit> {
    let mut out = output::stdout();
    let version = env!("CARGO_PKG_VERSION");
    if global.json {
        let line = serde_json::json!({"message_type": "version", "version": version, "format_version": VERSION});
        json::write_line(&mut out, &line)?;
    } else {
        writeln!(out, "bygone {version} (repository format {VERSION})")?;
    }
    Ok(Exit::Success)
}
