//! What people see: names without surprises, sizes, times, errors, progress.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{exit::Exit, json};
use crate::backend::ObjectKind;
use crate::format::tree::Time;
use crate::progress::{Progress, SourceError};
use crate::repo;

/// A name as it may be shown: as it is if it is printable, else quoted with escapes. No byte of a file name reaches a
/// terminal as a control character.
pub fn quote(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(is_printable) && !text.starts_with('"') => Cow::Borrowed(text),
        _ => Cow::Owned(escape(bytes)),
    }
}

/// Text of several lines, each shown as [`quote`] shows a name but without the quotes.
pub fn quote_lines(text: &str) -> String {
    let clean = |line: &str| if line.chars().all(is_printable) { line.to_owned() } else { escape(line.as_bytes()) };
    text.lines().map(clean).collect::<Vec<_>>().join("\n")
}

/// Control characters, and those that reorder or hide text, are not.
pub fn is_printable(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn escape(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                c if (c as u32) < 0x80 && c.is_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
                c if is_printable(c) => out.push(c),
                c => out.push_str(&format!("\\u{:04x}", c as u32)),
            }
        }
        chunk.invalid().iter().for_each(|byte| out.push_str(&format!("\\x{byte:02x}")));
    }
    out.push('"');
    out
}

/// A length for people: binary units, three digits.
pub fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A moment for people, in the local time zone.
pub fn local_time(time: Time) -> String {
    zoned(time).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// A moment for programs: RFC 3339 with nanoseconds.
pub fn rfc3339(time: Time) -> String {
    zoned(time).strftime("%Y-%m-%dT%H:%M:%S%.f%:z").to_string()
}

fn zoned(time: Time) -> jiff::Zoned {
    let timestamp = jiff::Timestamp::new(time.sec, time.nsec as i32).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    timestamp.to_zoned(jiff::tz::TimeZone::system())
}

/// Standard output. Its errors can be told from those of everything else: see [`is_broken_pipe`].
pub struct Stdout(io::StdoutLock<'static>);

/// Standard output, until it is dropped this thread's alone.
pub fn stdout() -> Stdout {
    Stdout(io::stdout().lock())
}

/// What [`Stdout`] and [`named`] wrap the errors of writing in.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output: {0}")]
struct StdoutError(io::Error);

/// An error of writing to standard output that says so.
pub fn named(error: io::Error) -> io::Error {
    // The callers of a writer try again by themselves.
    if error.kind() == io::ErrorKind::Interrupted { error } else { io::Error::new(error.kind(), StdoutError(error)) }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(named)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(named)
    }
}

/// Whether an error is that the reader of standard output has gone away, as `head` does when it has seen enough. A
/// broken pipe of anything else, of a file system or a command, is an error like any other.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|error| {
        error.kind() == io::ErrorKind::BrokenPipe && error.get_ref().is_some_and(|inner| inner.is::<StdoutError>())
    })
}

/// The bar that is on the terminal.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Has lines printed while no bar is in their place.
pub fn beside_bar(print: impl FnOnce()) {
    let bar = BAR.lock().expect("no panic while held").clone();
    match bar {
        Some(bar) => bar.suspend(print),
        None => print(),
    }
}

/// Writes a line to standard error. If that is gone there is nobody to tell.
pub fn tell(line: impl Display) {
    beside_bar(|| {
        let _ = writeln!(io::stderr().lock(), "{line}");
    });
}

/// An error with its causes in one line, each said once: some already name theirs.
pub fn error_text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if text != cause && !text.ends_with(&format!(": {cause}")) {
            text = format!("{text}: {cause}");
        }
    }
    quote_lines(&text)
}

/// A count with its noun: `1 file`, `2 files`.
pub fn counted(count: u64, noun: &str) -> String {
    let plural = match noun.strip_suffix('y') {
        _ if count == 1 => return format!("1 {noun}"),
        Some(stem) => format!("{stem}ies"),
        None => format!("{noun}s"),
    };
    format!("{count} {plural}")
}

/// Tells what could not be handled, on standard error; the exit code that follows.
pub fn report_errors(progress: &Progress, json: bool) -> Exit {
    progress.take_errors().iter().for_each(|error| report_error(error, json));
    if progress.error_count() == 0 { Exit::Success } else { Exit::Partial }
}

/// Tells of a damaged object that a command goes on without.
pub fn warn_of_damage(error: &repo::Error) {
    let next = match error.object_kind() {
        Some(ObjectKind::Key) => "its password opens nothing any more",
        _ => "going on without it; `bygone check` tells what is affected",
    };
    tell(format_args!("warning: {}; {next}", quote_lines(&error.to_string())));
}

fn report_error(error: &SourceError, json: bool) {
    let SourceError { path, during, message } = error;
    // What is below a snapshot's root has no name of its own for it.
    let path: &[u8] = if path.is_empty() { b"/" } else { path };
    if json {
        let item = String::from_utf8_lossy(path);
        let line = serde_json::json!({
            "message_type": "error", "error": { "message": message }, "during": during, "item": item
        });
        return tell(json::line(&line));
    }
    tell(format_args!("error: cannot {during} {}: {}", quote(path), quote(message.as_bytes())));
}

/// Shows an operation's progress until it is dropped.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// How a progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// Only errors, as they come.
    Errors,
    /// A bar on the terminal.
    Bar,
    /// A line of JSON each second.
    Json,
}

impl Watch {
    /// Watches `progress`, labelled `what`.
    pub fn new(progress: &Arc<Progress>, what: &'static str, quiet: bool, json: bool) -> Watch {
        let show = match () {
            () if quiet => Show::Errors,
            () if json => Show::Json,
            () if std::io::stderr().is_terminal() => Show::Bar,
            () => Show::Errors,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let (progress, stopped) = (progress.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name("progress".to_owned())
            .spawn(move || watch(&progress, what, show, &stopped));
        Watch { stop, thread: thread.ok() }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn watch(progress: &Progress, what: &'static str, show: Show, stop: &AtomicBool) {
    let started = Instant::now();
    let bar = (show == Show::Bar).then(|| new_bar(what));
    BAR.lock().expect("no panic while held").clone_from(&bar);
    let mut told = started;
    let mut rate = Rate::default();
    let json = show == Show::Json;
    while !stop.load(Ordering::Relaxed) {
        std::thread::park_timeout(Duration::from_millis(100));
        progress.take_errors().iter().for_each(|error| report_error(error, json));
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (bytes, total) = (load(&progress.bytes_done), load(&progress.bytes_total));
        if let Some(bar) = &bar {
            if total > 0 && bar.length() != Some(total.max(bytes)) {
                bar.set_length(total.max(bytes));
                bar.set_style(style(true));
            }
            rate.add(started.elapsed(), bytes);
            bar.set_position(bytes);
            let count = counted(load(&progress.files_done), "entry");
            let passed = format!("{} passed", clock(started.elapsed().as_secs()));
            let all = [rate.text(total), passed, count].into_iter().filter(|text| !text.is_empty());
            let text = all.collect::<Vec<_>>().join(", ");
            bar.set_message(format!("{text}  {}", quote(&progress.current())));
        }
        if json && told.elapsed() >= Duration::from_secs(1) {
            told = Instant::now();
            let status = serde_json::json!({
                "message_type": "status",
                "seconds_elapsed": started.elapsed().as_secs(),
                "percent_done": if total > 0 { (bytes as f64 / total as f64).min(1.0) } else { 0.0 },
                "total_files": load(&progress.files_total),
                "files_done": load(&progress.files_done),
                "total_bytes": total,
                "bytes_done": bytes,
                "error_count": progress.error_count(),
            });
            let _ = writeln!(stdout(), "{status}");
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    *BAR.lock().expect("no panic while held") = None;
}

/// How fast it goes, by what was done in the last seconds.
#[derive(Default)]
struct Rate {
    /// When, and how many bytes were done then.
    samples: VecDeque<(Duration, u64)>,
}

/// Seconds that a rate is taken over: long enough to be steady, short enough to follow.
const RATE_OVER: Duration = Duration::from_secs(15);
/// Before this much is known a rate would be a guess.
const RATE_FROM: Duration = Duration::from_secs(1);

impl Rate {
    fn add(&mut self, at: Duration, bytes: u64) {
        self.samples.push_back((at, bytes));
        while self.samples.get(1).is_some_and(|(second, _)| at.saturating_sub(*second) >= RATE_OVER) {
            self.samples.pop_front();
        }
    }

    /// Bytes a second, once enough is known.
    fn per_second(&self) -> Option<f64> {
        let ((from, first), (to, last)) = (self.samples.front()?, self.samples.back()?);
        let over = to.saturating_sub(*from);
        (over >= RATE_FROM).then(|| last.saturating_sub(*first) as f64 / over.as_secs_f64())
    }

    /// The rate and, if the `total` is known, the time left.
    fn text(&self, total: u64) -> String {
        let Some(rate) = self.per_second() else { return String::new() };
        let mut text = format!("{}/s", human_size(rate as u64));
        let left = total.saturating_sub(self.samples.back().map_or(0, |(_, bytes)| *bytes));
        if left > 0 && rate >= 1.0 {
            text += &format!(", {} left", clock((left as f64 / rate).ceil() as u64));
        }
        text
    }
}

/// Seconds as minutes and seconds, or hours with both.
fn clock(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, minutes, seconds) => format!("{minutes}:{seconds:02}"),
        (hours, minutes, seconds) => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

fn new_bar(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
    bar.set_style(style(false));
    bar.set_prefix(what);
    bar
}

/// What matters most comes first: a terminal of 80 columns has room up to the time left.
fn style(total_is_known: bool) -> ProgressStyle {
    let template = if total_is_known {
        "{prefix} {bar:10} {percent}% {binary_bytes} of {binary_total_bytes}, {wide_msg}"
    } else {
        "{prefix} {binary_bytes}, {wide_msg}"
    };
    ProgressStyle::with_template(template).expect("the template is constant")
}

/// Columns of text with a heading, as wide as they need to be.
pub fn print_table(out: &mut dyn Write, heading: &[&str], rows: &[Vec<String>]) -> std::io::Result<()> {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([heading[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, width) in cells.zip(&widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        writeln!(out, "{}", text.trim_end())
    };
    line(&mut heading.iter().copied())?;
    rows.iter().try_for_each(|row| line(&mut row.iter().map(String::as_str)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_of_a_name_is_shown_raw() {
        assert_eq!(quote(b"plain name.txt"), "plain name.txt");
        assert_eq!(quote("naïve/ß".as_bytes()), "naïve/ß");
        assert_eq!(quote(b"a\nb"), r#""a\nb""#);
        assert_eq!(quote(b"\x1b]0;x\x07"), r#""\x1b]0;x\x07""#);
        assert_eq!(quote(b"\xff\"\\"), r#""\xff\"\\""#);
        assert_eq!(quote("\u{202e}cod".as_bytes()), r#""\u202ecod""#);
        assert_eq!(quote("\u{9b}31m".as_bytes()), r#""\u009b31m""#);
    }

    #[test]
    fn a_rate_is_that_of_the_last_seconds_and_no_guess() {
        let mut rate = Rate::default();
        let second = |s: f64| Duration::from_secs_f64(s);
        rate.add(second(0.1), 5 << 20);
        rate.add(second(0.6), 6 << 20);
        assert_eq!(rate.text(1 << 30), "", "half a second says nothing");
        for tenth in 11..1000_u32 {
            rate.add(second(f64::from(tenth) / 10.0), (10 << 20) + (u64::from(tenth) << 20));
        }
        assert_eq!(rate.per_second().unwrap().round(), f64::from(10 << 20));
        assert!(rate.samples.len() <= 152, "{}", rate.samples.len());
        let done = rate.samples.back().unwrap().1;
        assert_eq!(rate.text(done + (25 << 20)), "10.0 MiB/s, 0:03 left");
        assert_eq!(rate.text(done + (100 << 30)), "10.0 MiB/s, 2:50:40 left");
        assert_eq!((rate.text(done), rate.text(0)), ("10.0 MiB/s".to_owned(), "10.0 MiB/s".to_owned()));
        for tenth in 1000..1200_u32 {
            rate.add(second(f64::from(tenth) / 10.0), done);
        }
        assert_eq!(rate.text(done + 1), "0 B/s", "standing still, nobody knows how long it takes");
    }

    #[test]
    fn a_cause_that_an_error_names_itself_is_said_once() {
        let io = || io::Error::other("no such thing");
        let outer = crate::repo::Error::System { op: "look", source: io() };
        let error = anyhow::Error::from(outer).context("cannot go on");
        assert_eq!(error_text(&error), "cannot go on: cannot look: no such thing");
        assert_eq!(error_text(&anyhow::Error::from(io()).context("cannot look")), "cannot look: no such thing");
    }

    #[test]
    fn only_a_broken_pipe_of_standard_output_is_a_reader_that_went_away() {
        let pipe = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(&anyhow::Error::from(named(pipe())).context("cannot write the file")));
        assert!(!is_broken_pipe(&anyhow::Error::from(pipe()).context("cannot read `packs/00`")));
        assert!(!is_broken_pipe(&anyhow::Error::from(named(io::ErrorKind::StorageFull.into()))));
    }

    #[test]
    fn counts_are_grammatical() {
        let counts = [counted(1, "file"), counted(0, "file"), counted(2, "entry"), counted(1, "entry")];
        assert_eq!(counts, ["1 file", "0 files", "2 entries", "1 entry"]);
    }

    #[test]
    fn sizes_have_one_decimal_and_the_unit_that_fits() {
        let sizes = [0, 1023, 1024, 1536, (1 << 20) - 1, 1 << 20, u64::MAX].map(human_size);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1.0 MiB", "16.0 EiB"]);
    }
}
