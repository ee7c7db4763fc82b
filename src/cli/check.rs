//! `bygone check`: verify that the repository is whole.

use std::sync::Arc;

use anyhow::{Result, bail};

use super::Global;
use super::exit::Exit;
use super::output::{human_size, quote};
use crate::maintain::check::{self, Report, Subset};
use crate::progress::Progress;

/// Arguments of `check`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Read all packs and verify every blob
    #[arg(long, conflicts_with = "read_data_subset")]
    pub read_data: bool,
    /// Read a part of the packs: n/t (the n-th of t parts), a percentage, or a size (units K, M, G, T)
    #[arg(long, value_name = "SUBSET")]
    pub read_data_subset: Option<String>,
    /// Compare every object with its name only; needs no password
    #[arg(long, conflicts_with_all = ["read_data", "read_data_subset"])]
    pub keyless: bool,
}

fn subset(text: &str) -> Result<Subset> {
    let bad = || anyhow::anyhow!("`{text}` is no subset: write it as 1/5, 2.5% or 10G");
    if let Some((part, of)) = text.split_once('/') {
        let (part, of): (u32, u32) = (part.parse().map_err(|_| bad())?, of.parse().map_err(|_| bad())?);
        if part == 0 || part > of {
            bail!(bad());
        }
        return Ok(Subset::Part { part, of });
    }
    if let Some(percent) = text.strip_suffix('%') {
        let percent: f64 = percent.parse().map_err(|_| bad())?;
        if !(percent > 0.0 && percent <= 100.0) {
            bail!(bad());
        }
        return Ok(Subset::Share(percent / 100.0));
    }
    Ok(Subset::Bytes(crate::source::exclude::parse_size(text).map_err(|_| bad())?))
}

/// Checks.
pub fn run(args: &Args, global: &Global) -> Result<Exit> {
    let progress = Arc::new(Progress::new());
    let report = if args.keyless {
        let backend = global.backend()?;
        crate::repo::Repository::probe(&*backend)?;
        let watch = global.watch(&progress, "check");
        let report = check::keyless(&*backend, &progress)?;
        drop(watch);
        report
    } else {
        let read = match &args.read_data_subset {
            Some(text) => Some(subset(text)?),
            None => args.read_data.then_some(Subset::Share(1.0)),
        };
        let repo = global.open_repository()?;
        let watch = global.watch(&progress, "check");
        let report = check::run(&repo, read, &progress)?;
        drop(watch);
        report
    };
    print(&report, global);
    Ok(if report.problems.is_empty() { Exit::Success } else { Exit::Failure })
}

fn print(report: &Report, global: &Global) {
    for problem in &report.problems {
        eprintln!("error: {}", quote(problem.as_bytes()));
    }
    if global.json {
        let line = serde_json::json!({
            "message_type": "summary",
            "num_errors": report.problems.len(),
            "errors": report.problems,
            "notes": report.notes,
            "snapshots": report.snapshots,
            "trees": report.trees,
            "blobs": report.blobs,
            "packs": report.packs,
            "packs_read": report.packs_read,
            "bytes_read": report.bytes_read,
        });
        println!("{line}");
        return;
    }
    if global.quiet {
        return;
    }
    report.notes.iter().for_each(|note| println!("note: {note}"));
    let read = match report.bytes_read {
        0 => String::new(),
        bytes => format!(", {} packs read ({})", report.packs_read, human_size(bytes)),
    };
    let what = format!(
        "{} snapshots, {} trees, {} blobs, {} packs{read}",
        report.snapshots, report.trees, report.blobs, report.packs
    );
    match report.problems.len() {
        0 => println!("no errors were found: {what}"),
        1 => println!("1 error was found: {what}"),
        count => println!("{count} errors were found: {what}"),
    }
}
