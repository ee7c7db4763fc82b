//! Path and time templates of the views: how a snapshot's place in the mount follows from its record.
//!
//! `%` letters are restic's. Whatever a record holds, each part of a path is one valid file name.

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use crate::format::limits::NAME_LEN_MAX;
use crate::format::snapshot::Snapshot;
use crate::format::tree::Time;
use crate::id::ObjectId;

/// Views shown unless others are asked for.
pub const PATH_TEMPLATES: [&str; 4] = ["ids/%i", "snapshots/%T", "hosts/%h/%T", "tags/%t/%T"];

/// Names of snapshots by time: no colons, so that they survive scp, rsync and Samba.
pub const TIME_TEMPLATE: &str = "%Y-%m-%d_%H-%M-%S";

/// A template that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad template `{template}`: {why}")]
pub struct TemplateError {
    /// As given.
    pub template: String,
    /// What is wrong with it.
    pub why: String,
}

/// How snapshots become paths.
#[derive(Clone, Debug)]
pub struct Templates {
    paths: Vec<String>,
    time: String,
    zone: TimeZone,
}

impl Templates {
    /// Checks the templates once, so that later uses cannot fail. `time` is in strftime's letters or in restic's
    /// notation (`2006-01-02T15:04:05Z07:00`).
    pub fn new(paths: &[String], time: &str, zone: TimeZone) -> Result<Templates, TemplateError> {
        let bad = |template: &str, why: &str| TemplateError { template: template.to_owned(), why: why.to_owned() };
        for path in paths {
            if path.split('/').all(str::is_empty) {
                return Err(bad(path, "it names no directory"));
            }
            let mut letters = path.chars();
            while let Some(letter) = letters.next() {
                if letter == '%' && !letters.next().is_some_and(|l| "%iIuhtT".contains(l)) {
                    return Err(bad(path, "after % one of i I u h t T is expected"));
                }
            }
        }
        let strftime = if time.contains('%') { time.to_owned() } else { from_go_layout(time) };
        let epoch = Timestamp::UNIX_EPOCH.to_zoned(zone.clone());
        match jiff::fmt::strtime::format(strftime.as_bytes(), &epoch) {
            Ok(text) if text.is_empty() => return Err(bad(time, "it is empty")),
            Ok(_) => {}
            Err(error) => return Err(bad(time, &error.to_string())),
        }
        Ok(Templates { paths: paths.to_vec(), time: strftime, zone })
    }

    /// Directories that are there even if no snapshot is: what each template begins with before any `%`.
    pub fn fixed_directories(&self) -> Vec<Vec<String>> {
        let fixed = |template: &String| {
            let mut parts: Vec<String> = template.split('/').filter(|p| !p.is_empty()).map(file_name).collect();
            parts.pop();
            parts.into_iter().take_while(|part| !part.contains('%')).collect()
        };
        self.paths.iter().map(fixed).collect()
    }

    /// A snapshot's time as a file name.
    pub fn time_name(&self, time: Time) -> String {
        let zoned = zoned(time, &self.zone);
        let text =
            jiff::fmt::strtime::format(self.time.as_bytes(), &zoned).expect("checked when the template was made");
        file_name(&text)
    }

    /// Every path at which the snapshot appears, as lists of file names.
    pub fn paths(&self, id: &ObjectId, snapshot: &Snapshot) -> Vec<Vec<String>> {
        let mut paths = Vec::new();
        for template in &self.paths {
            if template.contains("%t") {
                paths.extend(snapshot.tags.iter().map(|tag| self.path(template, id, snapshot, tag)));
            } else {
                paths.push(self.path(template, id, snapshot, ""));
            }
        }
        paths.retain(|path: &Vec<String>| !path.is_empty());
        paths.dedup();
        paths
    }

    fn path(&self, template: &str, id: &ObjectId, snapshot: &Snapshot, tag: &str) -> Vec<String> {
        let part = |part: &str| {
            let mut name = String::new();
            let mut letters = part.chars();
            while let Some(letter) = letters.next() {
                if letter != '%' {
                    name.push(letter);
                    continue;
                }
                match letters.next() {
                    Some('i') => name.push_str(&id.short()),
                    Some('I') => name.push_str(&id.to_hex()),
                    Some('u') => name.push_str(&snapshot.user),
                    Some('h') => name.push_str(&snapshot.host),
                    Some('t') => name.push_str(tag),
                    Some('T') => name.push_str(&self.time_name(snapshot.time)),
                    other => name.extend(other),
                }
            }
            file_name(&name)
        };
        template.split('/').filter(|part| !part.is_empty()).map(part).collect()
    }
}

/// `time` in `zone`; the farthest representable moment if it lies beyond.
fn zoned(time: Time, zone: &TimeZone) -> Zoned {
    let timestamp = Timestamp::new(time.sec, time.nsec as i32).unwrap_or(if time.sec < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    });
    timestamp.to_zoned(zone.clone())
}

/// `text` as one valid file name.
fn file_name(text: &str) -> String {
    let mut name: String = text.chars().map(|c| if matches!(c, '/' | '\0') { '_' } else { c }).collect();
    while name.len() > NAME_LEN_MAX {
        name.pop();
    }
    match name.as_str() {
        "" | "." => "_".to_owned(),
        ".." => "__".to_owned(),
        _ => name,
    }
}

/// Go writes layouts as a sample of a fixed moment; each element is replaced by strftime's letter for it.
fn from_go_layout(layout: &str) -> String {
    const ELEMENTS: [(&str, &str); 25] = [
        ("January", "%B"),
        ("Jan", "%b"),
        ("Monday", "%A"),
        ("Mon", "%a"),
        ("MST", "%Z"),
        ("2006", "%Y"),
        ("-07:00", "%:z"),
        ("Z07:00", "%:z"),
        ("-0700", "%z"),
        ("Z0700", "%z"),
        ("002", "%j"),
        ("01", "%m"),
        ("02", "%d"),
        ("03", "%I"),
        ("04", "%M"),
        ("05", "%S"),
        ("06", "%y"),
        ("15", "%H"),
        ("PM", "%p"),
        ("pm", "%P"),
        ("_2", "%e"),
        (".000000000", "%.9f"),
        (".000000", "%.6f"),
        (".000", "%.3f"),
        ("%", "%%"),
    ];
    let mut out = String::new();
    let mut rest = layout;
    'next: while let Some(letter) = rest.chars().next() {
        for (element, letters) in ELEMENTS {
            if let Some(after) = rest.strip_prefix(element) {
                out.push_str(letters);
                rest = after;
                continue 'next;
            }
        }
        out.push(letter);
        rest = &rest[letter.len_utf8()..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn templates(paths: &[&str], time: &str) -> Result<Templates, TemplateError> {
        let paths: Vec<String> = paths.iter().map(|p| p.to_string()).collect();
        Templates::new(&paths, time, TimeZone::fixed(jiff::tz::offset(2)))
    }

    fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.time.sec = 1_795_000_000;
        snapshot.host = "node/1".into();
        snapshot.user = "..".into();
        snapshot.tags = vec!["a".into(), "b/c".into()];
        snapshot
    }

    #[test]
    fn times_are_local_and_both_notations_mean_the_same() {
        let time = snapshot().time;
        assert_eq!(templates(&[], TIME_TEMPLATE).unwrap().time_name(time), "2026-11-18_13-06-40");
        assert_eq!(templates(&[], "2006-01-02_15-04-05").unwrap().time_name(time), "2026-11-18_13-06-40");
        let go = templates(&[], "2006-01-02T15:04:05Z07:00").unwrap();
        assert_eq!(go.time_name(time), "2026-11-18T13:06:40+02:00");
        assert!(templates(&[], "%").is_err() && templates(&[], "").is_err());
        let far = Time { sec: i64::MAX, nsec: 0 };
        assert!(go.time_name(far).starts_with("9999-12-3"));
    }

    #[test]
    fn one_path_for_each_tag_and_no_name_escapes_its_directory() {
        let id = ObjectId([0xab; 32]);
        let paths = templates(&["ids/%i", "x-%u/%h", "%u", "/tags//%t/%T"], "%Y").unwrap().paths(&id, &snapshot());
        let joined: Vec<String> = paths.iter().map(|p| p.join("|")).collect();
        assert_eq!(joined, ["ids|abababab", "x-..|node_1", "__", "tags|a|2026", "tags|b_c|2026"]);
        let mut untagged = snapshot();
        untagged.tags.clear();
        assert!(templates(&["%t/%I"], "%Y").unwrap().paths(&id, &untagged).is_empty());
        assert!(templates(&["/"], "%Y").is_err() && templates(&["a/%x"], "%Y").is_err());
    }
}
