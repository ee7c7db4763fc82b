//! `bygone check`: verify that the repository is whole.

use std::io::Write;
use std::sync::Arc;

use anyhow::{Result, bail};

use super::exit::Exit;
use super::output::{counted, human_size, quote, stdout, tell};
use super::{Global, json};
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
        crate::repo::Repository::find(backend.clone())?;
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
    print(&report, args.keyless, global)?;
    Ok(if report.problems.is_empty() { Exit::Success } else { Exit::Failure })
}

fn print(report: &Report, keyless: bool, global: &Global) -> std::io::Result<()> {
    // As JSON they are in the summary.
    for problem in report.problems.iter().filter(|_| !global.json) {
        tell(format_args!("error: {}", quote(problem.what.as_bytes())));
        problem.paths.iter().for_each(|path| tell(format_args!("  affects {}", quote(path))));
        if problem.paths_more > 0 {
            tell(format_args!("  and {} more paths", problem.paths_more));
        }
    }
    if global.json {
        let errors = report.problems.iter().map(|problem| {
            let paths: Vec<_> = problem.paths.iter().map(|path| String::from_utf8_lossy(path)).collect();
            serde_json::json!({"message": problem.what, "paths": paths, "paths_more": problem.paths_more})
        });
        let line = serde_json::json!({
            "message_type": "summary",
            "num_errors": report.problems.len(),
            "errors": errors.collect::<Vec<_>>(),
            "notes": report.notes,
            "snapshots": report.snapshots,
            "trees": report.trees,
            "blobs": report.blobs,
            "packs": report.packs,
            "packs_read": report.packs_read,
            "objects_read": report.objects_read,
            "bytes_read": report.bytes_read,
        });
        return json::write_line(&mut stdout(), &line);
    }
    if global.quiet {
        return Ok(());
    }
    let mut out = stdout();
    report.notes.iter().try_for_each(|note| writeln!(out, "note: {note}"))?;
    let Report { snapshots, trees, blobs, packs, packs_read, objects_read, bytes_read, .. } = report;
    let size = human_size(*bytes_read);
    let of = |count: &u64, noun| counted(*count, noun);
    let structure = [of(snapshots, "snapshot"), of(trees, "tree"), of(blobs, "blob"), of(packs, "pack")].join(", ");
    let what = match bytes_read {
        0 => structure,
        _ if keyless => {
            let objects = of(objects_read, "object");
            format!("{objects} read ({size}), {} and {} among them", of(packs, "pack"), of(snapshots, "snapshot"))
        }
        _ => format!("{structure}, {packs_read} of them read ({size})"),
    };
    match report.problems.len() {
        0 => writeln!(out, "no errors were found: {what}"),
        1 => writeln!(out, "1 error was found: {what}"),
        count => writeln!(out, "{count} errors were found: {what}"),
    }
}
