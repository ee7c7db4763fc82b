//! JSON for programs that does no harm on a terminal: what is not printable is escaped, also beyond ASCII.

use std::io::{self, Write};

use serde::Serialize;

use super::output::is_printable;

/// Writes JSON text; what is not printable can only be within its strings, where it may be escaped.
fn write_text(out: &mut impl Write, text: &str) -> io::Result<()> {
    let mut rest = text;
    while let Some(at) = rest.find(|c| c != '\n' && !is_printable(c)) {
        out.write_all(&rest.as_bytes()[..at])?;
        let bad = rest[at..].chars().next().expect("found just now");
        for unit in bad.encode_utf16(&mut [0; 2]) {
            write!(out, "\\u{unit:04x}")?;
        }
        rest = &rest[at + bad.len_utf8()..];
    }
    out.write_all(rest.as_bytes())
}

/// Writes `value` on the line at hand.
pub fn write(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    write_text(out, &serde_json::to_string(value)?)
}

/// Writes `value` as a line of its own.
pub fn write_line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    write(out, value)?;
    out.write_all(b"\n")
}

/// `value` as text without a line end.
pub fn line(value: &impl Serialize) -> String {
    let mut out = Vec::new();
    write(&mut out, value).expect("values have text for keys, and memory takes all");
    String::from_utf8(out).expect("JSON is text")
}

/// Writes `value` over several lines, indented.
pub fn write_pretty(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    write_text(out, &serde_json::to_string_pretty(value)?)?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_and_nothing_unprintable_is_raw() {
        for name in ["plain", "naïve \u{1f600}", "a\"\\\n\u{1b}[31m", "\u{202e}cod\u{9b}1m\u{feff}", "\u{2028}"] {
            let mut out = Vec::new();
            write_line(&mut out, &name).unwrap();
            let text = String::from_utf8(out).unwrap();
            assert!(text.trim_end().chars().all(is_printable), "{text:?}");
            assert_eq!(serde_json::from_str::<String>(&text).unwrap(), name);
            let mut pretty = Vec::new();
            write_pretty(&mut pretty, &[name]).unwrap();
            assert_eq!(serde_json::from_slice::<Vec<String>>(&pretty).unwrap(), [name]);
            assert!(String::from_utf8(pretty).unwrap().chars().all(|c| c == '\n' || is_printable(c)));
        }
    }
}
