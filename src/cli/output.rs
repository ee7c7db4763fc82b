//! What people see: names without surprises, sizes, times, errors, progress.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::exit::Exit;
use crate::format::tree::Time;
use crate::progress::{Progress, SourceError};

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

/// Tells what could not be handled, on standard error; the exit code that follows.
pub fn report_errors(progress: &Progress) -> Exit {
    progress.take_errors().iter().for_each(report_error);
    if progress.error_count() == 0 { Exit::Success } else { Exit::Partial }
}

fn report_error(error: &SourceError) {
    let SourceError { path, during, message } = error;
    eprintln!("error: cannot {during} {}: {}", quote(path), quote(message.as_bytes()));
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
    let mut told = started;
    while !stop.load(Ordering::Relaxed) {
        std::thread::park_timeout(Duration::from_millis(100));
        let errors = progress.take_errors();
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (bytes, total) = (load(&progress.bytes_done), load(&progress.bytes_total));
        if let Some(bar) = &bar {
            bar.suspend(|| errors.iter().for_each(report_error));
            if total > 0 && bar.length() != Some(total.max(bytes)) {
                bar.set_length(total.max(bytes));
                bar.set_style(style(true));
            }
            bar.set_position(bytes);
            bar.set_message(format!("{} entries  {}", load(&progress.files_done), quote(&progress.current())));
        } else {
            errors.iter().for_each(report_error);
        }
        if show == Show::Json && told.elapsed() >= Duration::from_secs(1) {
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
            let _ = writeln!(std::io::stdout().lock(), "{status}");
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}

fn new_bar(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
    bar.set_style(style(false));
    bar.set_prefix(what);
    bar
}

fn style(total_is_known: bool) -> ProgressStyle {
    let template = if total_is_known {
        "{prefix} [{elapsed_precise}] {bar:24} {percent}% {bytes}/{total_bytes} {binary_bytes_per_sec} ETA {eta} {wide_msg}"
    } else {
        "{prefix} [{elapsed_precise}] {bytes} {binary_bytes_per_sec} {wide_msg}"
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
    fn sizes_have_one_decimal_and_the_unit_that_fits() {
        let sizes = [0, 1023, 1024, 1536, (1 << 20) - 1, 1 << 20, u64::MAX].map(human_size);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1.0 MiB", "16.0 EiB"]);
    }
}
