//! Which snapshot is meant: `latest`, `latest~2`, `latest@2026-11-20`, an id or its beginning; with `:PATH` behind it.

use anyhow::{Context, Result, bail};
use jiff::civil;

use crate::format::snapshot::Snapshot;
use crate::format::tree::Time;
use crate::id::ObjectId;
use crate::repo::{self, Repository};

/// Options that narrow the snapshots down.
#[derive(clap::Args, Clone, Default, Debug)]
pub struct SnapshotFilter {
    /// Only snapshots of this host (can be given several times)
    #[arg(short = 'H', long, value_name = "HOST")]
    pub host: Vec<String>,
    /// Only snapshots that have all of these tags (comma-separated; given several times, one of the lists is enough)
    #[arg(long, value_name = "TAG[,TAG]")]
    pub tag: Vec<String>,
    /// Only snapshots that include this path (given several times, all of them)
    #[arg(long, value_name = "PATH")]
    pub path: Vec<String>,
}

impl SnapshotFilter {
    /// Whether a snapshot passes.
    pub fn matches(&self, snapshot: &Snapshot) -> bool {
        let has_tags = |list: &String| {
            list.split(',')
                .map(str::trim)
                .filter(|tag| !tag.is_empty())
                .all(|tag| snapshot.tags.iter().any(|have| have == tag))
                && (!list.is_empty() || snapshot.tags.is_empty())
        };
        (self.host.is_empty() || self.host.contains(&snapshot.host))
            && (self.tag.is_empty() || self.tag.iter().any(has_tags))
            && self.path.iter().all(|path| {
                let path = path.trim_end_matches('/').as_bytes();
                snapshot.paths.iter().any(|have| have.as_slice() == path)
            })
    }
}

/// The snapshot that `selector` means, and the path behind its colon.
pub fn one(repo: &Repository, filter: &SnapshotFilter, selector: &str) -> Result<(ObjectId, Snapshot, Vec<u8>)> {
    let (name, path) = match selector.split_once(':') {
        // A time has colons of its own.
        Some(_) if selector.contains('@') => split_after_time(selector),
        Some((name, path)) => (name, path),
        None => (selector, ""),
    };
    let (id, snapshot) = find(repo, filter, name)?;
    Ok((id, snapshot, path.as_bytes().to_vec()))
}

fn split_after_time(selector: &str) -> (&str, &str) {
    match selector.find(":/") {
        Some(at) => (&selector[..at], &selector[at + 1..]),
        None => (selector, ""),
    }
}

/// The snapshots that `selectors` mean, oldest first; all that pass the filter if there are none.
pub fn several(repo: &Repository, filter: &SnapshotFilter, selectors: &[String]) -> Result<Vec<(ObjectId, Snapshot)>> {
    if selectors.is_empty() {
        let mut snapshots = repo.snapshots()?;
        snapshots.retain(|(_, snapshot)| filter.matches(snapshot));
        return Ok(snapshots);
    }
    let mut snapshots: Vec<(ObjectId, Snapshot)> = Vec::new();
    for selector in selectors {
        let found = find(repo, filter, selector)?;
        if snapshots.iter().all(|(id, _)| *id != found.0) {
            snapshots.push(found);
        }
    }
    snapshots.sort_by_key(|(id, snapshot)| (snapshot.time, *id));
    Ok(snapshots)
}

fn find(repo: &Repository, filter: &SnapshotFilter, name: &str) -> Result<(ObjectId, Snapshot)> {
    if name == "latest" || name.starts_with("latest~") || name.starts_with("latest@") {
        return newest(repo, filter, name);
    }
    let is_prefix =
        !name.is_empty() && name.len() <= 64 && name.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    if !is_prefix {
        bail!(none(format!("`{name}` is no snapshot id; give at least its first digits, or `latest`")));
    }
    let mut ids = repo.snapshot_ids()?;
    ids.retain(|id| id.to_hex().starts_with(name));
    match ids[..] {
        [id] => Ok((id, repo.snapshot(&id)?)),
        [] => bail!(none(format!("no snapshot has an id that starts with `{name}`"))),
        _ => bail!(none(format!("{} snapshots have ids that start with `{name}`; give more digits", ids.len()))),
    }
}

fn none(message: String) -> repo::Error {
    repo::Error::NoSnapshot(message)
}

fn newest(repo: &Repository, filter: &SnapshotFilter, name: &str) -> Result<(ObjectId, Snapshot)> {
    let mut snapshots = repo.snapshots()?;
    snapshots.retain(|(_, snapshot)| filter.matches(snapshot));
    let mut back = 0;
    if let Some(count) = name.strip_prefix("latest~") {
        back = count.parse().with_context(|| format!("`{count}` in `{name}` is no number"))?;
    } else if let Some(time) = name.strip_prefix("latest@") {
        let at = parse_time_until(time)?;
        snapshots.retain(|(_, snapshot)| snapshot.time <= at);
    }
    let count = snapshots.len();
    match snapshots.into_iter().rev().nth(back) {
        Some(found) => Ok(found),
        None if count == 0 => bail!(none(format!("no snapshot matches `{name}` and the filters given"))),
        None => bail!(none(format!("`{name}` goes back too far: {count} snapshots match"))),
    }
}

/// A moment as people write it: `2026-11-20`, `2026-11-20 02:00`, `2026-11-20T02:00:00`, or with an offset. Without one it
/// is local time; a date alone is its midnight.
pub fn parse_time(text: &str) -> Result<Time> {
    let timestamp = parse(text, civil::Time::midnight())?;
    Ok(Time { sec: timestamp.as_second(), nsec: timestamp.subsec_nanosecond().max(0) as u32 })
}

/// As [`parse_time`], but a date alone is the end of that day.
fn parse_time_until(text: &str) -> Result<Time> {
    let timestamp = parse(text, civil::Time::MAX)?;
    Ok(Time { sec: timestamp.as_second(), nsec: 999_999_999 })
}

fn parse(text: &str, time_of_date: civil::Time) -> Result<jiff::Timestamp> {
    let text = text.trim();
    if let Ok(timestamp) = text.parse::<jiff::Timestamp>() {
        return Ok(timestamp);
    }
    let underscored = text.replacen('_', "T", 1).replace(' ', "T");
    let (date, time) = underscored.split_once('T').unwrap_or((&underscored, ""));
    let civil = (|| -> Result<civil::DateTime, jiff::Error> {
        let date: civil::Date = date.parse()?;
        if time.is_empty() {
            return Ok(date.to_datetime(time_of_date));
        }
        let time = time.replace('-', ":");
        Ok(date.to_datetime(time.parse()?))
    })();
    let civil = civil.with_context(|| format!("`{text}` is no time; write it as 2026-11-20T02:00:00 or 2026-11-20"))?;
    Ok(civil.to_zoned(jiff::tz::TimeZone::system())?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let utc = |text: &str| parse_time(text).expect("parses").sec;
        assert_eq!(utc("2026-11-20T02:00:00Z"), 1_795_140_000);
        assert_eq!(utc("2026-11-20T04:00:00+02:00"), 1_795_140_000);
        assert_eq!(utc("2026-11-20 02:00:00"), utc("2026-11-20_02-00-00"));
        assert_eq!(utc("2026-11-20T02:00"), utc("2026-11-20 02:00:00"));
        assert!(parse_time("yesterday").is_err());
        assert!(parse_time_until("2026-11-20").expect("parses").sec > utc("2026-11-20 23:59:58"));
    }

    #[test]
    fn tags_in_one_list_are_all_wanted_and_of_several_lists_one_is_enough() {
        let snapshot = Snapshot { tags: vec!["a".into(), "b".into()], ..Snapshot::default() };
        let filter = |lists: &[&str]| SnapshotFilter {
            tag: lists.iter().map(|l| l.to_string()).collect(),
            ..Default::default()
        };
        assert!(filter(&["a,b"]).matches(&snapshot));
        assert!(!filter(&["a,c"]).matches(&snapshot));
        assert!(filter(&["c", "b"]).matches(&snapshot));
        assert!(!filter(&[""]).matches(&snapshot), "an empty list asks for snapshots without tags");
    }
}
