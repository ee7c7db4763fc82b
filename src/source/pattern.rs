//! Patterns over paths, as restic's users write them: `*.o`, `/home/*/cache`, `foo/**/bar`, `!keep`.
//!
//! A pattern is a row of components. One that starts with `/` is anchored at the root, any other may start at any depth;
//! `**` stands for any number of components, every other component is a glob that never crosses a slash. A pattern that
//! matches a directory matches everything below it. The patterns of a list are taken in order, and one that starts with
//! `!` takes back what those before it matched. Patterns and paths are bytes; `?` and `[...]` take one UTF-8 character or,
//! where there is none, one byte. This module reads no file system: it serves excludes, `find` and `restore` alike.

use std::borrow::Cow;

/// A pattern that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid pattern {pattern:?}: {reason}")]
pub struct PatternError {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// Whether capital and small letters differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Case {
    /// They do.
    #[default]
    Sensitive,
    /// They do not, in any script.
    Insensitive,
}

/// A list of patterns, of which later ones win.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    patterns: Vec<Pattern>,
    case: Case,
}

#[derive(Clone, Debug)]
struct Pattern {
    parts: Vec<Part>,
    negated: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    /// `**`: any number of components. A pattern that is not anchored begins with one.
    AnyDepth,
    Literal(Vec<u8>),
    Glob(Vec<Token>),
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Char(u32),
    AnyChar,
    AnyRun,
    Class { negated: bool, ranges: Vec<(u32, u32)> },
}

impl Patterns {
    /// Parses patterns in order; empty ones are passed over.
    pub fn new<P: AsRef<[u8]>>(patterns: impl IntoIterator<Item = P>, case: Case) -> Result<Self, PatternError> {
        let parse = |pattern: P| {
            Pattern::parse(&fold(pattern.as_ref(), case)).map_err(|reason| PatternError {
                pattern: String::from_utf8_lossy(pattern.as_ref()).into_owned(),
                reason,
            })
        };
        let patterns = patterns.into_iter().filter(|p| !p.as_ref().is_empty()).map(parse).collect::<Result<_, _>>()?;
        Ok(Self { patterns, case })
    }

    /// Whether there is no pattern.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether the list matches the absolute `path` or a directory above it.
    pub fn matches(&self, path: &[u8]) -> bool {
        self.decide(path, Pattern::matches)
    }

    /// Whether the list may match something below the directory `path`; a search that includes need not look there if not.
    pub fn may_match_below(&self, path: &[u8]) -> bool {
        self.decide(path, Pattern::may_match_below)
    }

    fn decide(&self, path: &[u8], test: impl Fn(&Pattern, &[&[u8]]) -> bool) -> bool {
        if self.patterns.is_empty() {
            return false;
        }
        let mut decision = false;
        let path = fold(path, self.case);
        let components: Vec<&[u8]> = path.split(|&b| b == b'/').filter(|c| !c.is_empty()).collect();
        for pattern in &self.patterns {
            if pattern.negated {
                decision = decision && !pattern.matches(&components);
            } else {
                decision = decision || test(pattern, &components);
            }
        }
        decision
    }
}

/// Small letters for capital ones in what is UTF-8; other bytes stay as they are.
fn fold(bytes: &[u8], case: Case) -> Cow<'_, [u8]> {
    if case == Case::Sensitive {
        return Cow::Borrowed(bytes);
    }
    let mut folded = Vec::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        folded.extend_from_slice(chunk.valid().to_lowercase().as_bytes());
        folded.extend_from_slice(chunk.invalid());
    }
    Cow::Owned(folded)
}

impl Pattern {
    fn parse(pattern: &[u8]) -> Result<Self, &'static str> {
        let (pattern, negated) = match pattern.strip_prefix(b"!") {
            Some(rest) => (rest, true),
            None => (pattern, false),
        };
        if pattern.is_empty() {
            return Err("nothing follows the `!`");
        }
        let anchored = pattern[0] == b'/';
        let mut components: Vec<&[u8]> = Vec::new();
        for component in pattern.split(|&b| b == b'/') {
            match component {
                b"" | b"." => {}
                b".." if components.last().is_some_and(|&last| last != b"..") => drop(components.pop()),
                b".." if anchored => {}
                _ => components.push(component),
            }
        }
        let mut parts = Vec::with_capacity(components.len() + 1);
        if !anchored {
            if components.is_empty() {
                return Err("it names no file");
            }
            parts.push(Part::AnyDepth);
        }
        for component in components {
            let part = Part::parse(component)?;
            if part != Part::AnyDepth || parts.last() != Some(&Part::AnyDepth) {
                parts.push(part);
            }
        }
        Ok(Self { parts, negated })
    }

    /// Whether the parts match the leading components. Going back to the last `**` is enough: what an earlier one could
    /// take more, the last one takes as well.
    fn matches(&self, components: &[&[u8]]) -> bool {
        let (mut part, mut at) = (0, 0);
        let mut retry = None;
        while part < self.parts.len() {
            if self.parts[part] == Part::AnyDepth {
                part += 1;
                retry = Some((part, at));
            } else if at < components.len() && self.parts[part].matches(components[at]) {
                part += 1;
                at += 1;
            } else {
                let Some((after, from)) = retry.filter(|&(_, from)| from < components.len()) else { return false };
                retry = Some((after, from + 1));
                (part, at) = (after, from + 1);
            }
        }
        true
    }

    /// Whether some path that continues `components` matches.
    fn may_match_below(&self, components: &[&[u8]]) -> bool {
        for (part, component) in self.parts.iter().zip(components) {
            if *part == Part::AnyDepth {
                return true;
            }
            if !part.matches(component) {
                return false;
            }
        }
        true
    }
}

impl Part {
    fn parse(component: &[u8]) -> Result<Self, &'static str> {
        if component == b"**" {
            return Ok(Part::AnyDepth);
        }
        if !component.iter().any(|b| br"\[]*?".contains(b)) {
            return Ok(Part::Literal(component.to_vec()));
        }
        Ok(Part::Glob(parse_glob(component)?))
    }

    fn matches(&self, component: &[u8]) -> bool {
        match self {
            Part::AnyDepth => true,
            Part::Literal(literal) => literal == component,
            Part::Glob(tokens) => glob_matches(tokens, component),
        }
    }
}

/// A glob of one path component: `*`, `?`, `[a-z]`, `[^a-z]`, `\` before a character that is to stand for itself.
#[derive(Clone, Debug)]
pub(super) struct Glob(Part);

impl Glob {
    pub(super) fn parse(component: &[u8]) -> Result<Self, PatternError> {
        let parse = if component == b"**" { Ok(Part::Glob(vec![Token::AnyRun])) } else { Part::parse(component) };
        let error = |reason| PatternError { pattern: String::from_utf8_lossy(component).into_owned(), reason };
        parse.map(Self).map_err(error)
    }

    pub(super) fn is_literal(&self) -> bool {
        matches!(self.0, Part::Literal(_))
    }

    pub(super) fn matches(&self, component: &[u8]) -> bool {
        self.0.matches(component)
    }
}

/// The first character of `bytes` and its length; a byte that is not UTF-8 counts as a character of its own.
fn first_char(bytes: &[u8]) -> Option<(u32, usize)> {
    let first = *bytes.first()?;
    let len = match first {
        0..0x80 => return Some((u32::from(first), 1)),
        0xc0..0xe0 => 2,
        0xe0..0xf0 => 3,
        _ => 4,
    };
    let decoded = bytes.get(..len).and_then(|bytes| std::str::from_utf8(bytes).ok()).and_then(|s| s.chars().next());
    Some(decoded.map_or((0x11_0000 + u32::from(first), 1), |c| (c as u32, c.len_utf8())))
}

fn parse_glob(mut rest: &[u8]) -> Result<Vec<Token>, &'static str> {
    let mut tokens = Vec::new();
    while let Some((char, len)) = first_char(rest) {
        rest = &rest[len..];
        tokens.push(match u8::try_from(char) {
            Ok(b'*') if tokens.last() == Some(&Token::AnyRun) => continue,
            Ok(b'*') => Token::AnyRun,
            Ok(b'?') => Token::AnyChar,
            Ok(b'[') => parse_class(&mut rest)?,
            Ok(b'\\') => {
                let (char, len) = first_char(rest).ok_or("nothing follows the `\\`")?;
                rest = &rest[len..];
                Token::Char(char)
            }
            _ => Token::Char(char),
        });
    }
    Ok(tokens)
}

fn parse_class(rest: &mut &[u8]) -> Result<Token, &'static str> {
    fn bound(rest: &mut &[u8]) -> Result<u32, &'static str> {
        if matches!(rest.first(), Some(b'-' | b']')) {
            return Err("a character is missing in `[...]`");
        }
        *rest = rest.strip_prefix(b"\\").unwrap_or(rest);
        let (char, len) = first_char(rest).ok_or("`[` without `]`")?;
        *rest = &rest[len..];
        Ok(char)
    }
    let negated = rest.first() == Some(&b'^');
    *rest = &rest[usize::from(negated)..];
    let mut ranges = Vec::new();
    loop {
        if let Some(after) = rest.strip_prefix(b"]").filter(|_| !ranges.is_empty()) {
            *rest = after;
            return Ok(Token::Class { negated, ranges });
        }
        let low = bound(rest)?;
        let high = match rest.strip_prefix(b"-") {
            Some(after) => {
                *rest = after;
                bound(rest)?
            }
            None => low,
        };
        ranges.push((low, high));
    }
}

fn glob_matches(tokens: &[Token], text: &[u8]) -> bool {
    let (mut token, mut at) = (0, 0);
    let mut retry = None;
    loop {
        let next = first_char(&text[at..]);
        let taken = match (tokens.get(token), next) {
            (None, None) => return true,
            (Some(Token::AnyRun), _) => {
                token += 1;
                retry = Some((token, at));
                continue;
            }
            (Some(Token::AnyChar), Some(_)) => true,
            (Some(Token::Char(wanted)), Some((char, _))) => *wanted == char,
            (Some(Token::Class { negated, ranges }), Some((char, _))) => {
                ranges.iter().any(|&(low, high)| (low..=high).contains(&char)) != *negated
            }
            _ => false,
        };
        if let (true, Some((_, len))) = (taken, next) {
            token += 1;
            at += len;
            continue;
        }
        let Some((after, from)) = retry else { return false };
        let Some((_, len)) = first_char(&text[from..]) else { return false };
        retry = Some((after, from + len));
        (token, at) = (after, from + len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(list: &[&str]) -> Patterns {
        Patterns::new(list, Case::Sensitive).unwrap()
    }

    #[test]
    fn a_pattern_matches_what_restic_says_it_matches() {
        let table: &[(&str, &str, bool)] = &[
            ("*.go", "/foo/bar/test.go", true),
            ("*.c", "/foo/bar/test.go", false),
            ("*", "/foo/bar/test.go", true),
            ("**", "/foo/bar/test.go", true),
            ("foo*", "/foo/bar/test.go", true),
            ("bar*", "/foo/bar/test.go", true),
            ("/bar*", "/foo/bar/test.go", false),
            ("bar/*", "/foo/bar/test.go", true),
            ("baz/*", "/foo/bar/test.go", false),
            ("bar/test.go", "/foo/bar/test.go", true),
            ("ba*/*.go", "/foo/bar/test.go", true),
            ("bb*/*.go", "/foo/bar/test.go", false),
            ("tesT.*", "/foo/bar/test.go", false),
            ("bar", "/foo/bar", true),
            ("/foo/bar", "/foo/bar", true),
            ("/foo/bar/", "/foo/bar", true),
            ("/foo/bar", "/foo/baz", false),
            ("/foo///bar", "/foo/bar", true),
            ("/foo/../bar", "/foo/bar", false),
            ("/foo/../bar", "/bar", true),
            ("/../bar", "/bar", true),
            ("./bar", "/foo/bar", true),
            ("../bar", "/foo/bar", false),
            ("/foo", "/foo/baz", true),
            ("/foo/", "/foo/baz", true),
            ("/foo/*", "/foo", false),
            ("/foo/*", "/foo/baz", true),
            ("bar", "/foo/bar/test.go", true),
            ("/foo/*test.*", "/foo/bar/test.go", false),
            ("/foo/*/test.*", "/foo/bar/test.go", true),
            ("/foo/*/bar/test.*", "/foo/bar/test.go", false),
            ("/*/*/bar/test.*", "/foo/bar/baz/test.go", false),
            ("/*/*/baz/test.*", "/foo/bar/baz/test.go", true),
            ("sdk", "/foo/bar/sdk/test/sdk_foo.go", true),
            ("sdk/*/cpp/*/*vars*.html", "/usr/share/doc/libreoffice/sdk/docs/cpp/ref/a00517.html", false),
            ("sdk/*/cpp/*/*vars*.html", "/usr/sdk/docs/cpp/ref/myvars1.html", true),
            ("foo/**/bar/*.go", "/home/user/foo/work/special/project/bar/test.go", true),
            ("foo/**/bar/*.go", "/home/user/foo/bar/test.go", true),
            ("foo/**/bar/*.go", "/foo/bar/baz/bar/test.go", true),
            ("foo/**/bar/*.go", "/home/user/foo/test.c", false),
            ("foo/**/bar/*.go", "/bar/foo/main.go", false),
            ("foo/**/bar", "/home/user/foo/x/y/bar/main.go", true),
            ("foo/**/bar/**/x", "/home/user/foo/bar/x", true),
            ("foo/**/bar/**/x", "/home/user/foo/blaaa/blaz/bar/shared/work/x", true),
            ("foo/**/bar/**/x", "/home/user/foo/blaaa/blaz/baz/shared/work/x", false),
            ("user/**/important*", "/home/user/work/x/y/hidden/x", false),
            ("user/**/hidden*/**/c", "/home/user/work/x/y/hidden/z/a/b/c", true),
            ("/foo/**", "/foo", true),
            ("/foo/**", "/foo/a/b", true),
            ("/foo/**/*", "/foo", false),
            ("*/foo", "/foo", false),
            ("*/foo", "/a/foo", true),
            ("/", "/anything", true),
            ("*", "/", false),
            ("/home/[uU]ser/?.go", "/home/user/F.go", true),
        ];
        for &(pattern, path, expected) in table {
            assert_eq!(patterns(&[pattern]).matches(path.as_bytes()), expected, "{pattern} on {path}");
        }
    }

    #[test]
    fn a_directory_is_searched_if_something_below_it_may_match() {
        let table: &[(&[&str], &str, bool)] = &[
            (&["foo/bar"], "/foo", true),
            (&["baz"], "/foo/bar", true),
            (&["/foo/bar/baz"], "/foo", true),
            (&["/foo/bar/baz"], "/foo/bar", true),
            (&["/foo/bar/baz"], "/foo/baz", false),
            (&["/foo/bar/baz"], "/", true),
            (&["/foo/**/baz"], "/foo/bar/baz/blah", true),
            (&["/foo/**/qux"], "/foo/bar/baz", true),
            (&["/foo/**"], "/foo/bar", true),
            (&["/foo/*/qux"], "/foo/bar", true),
            (&["/foo/*/qux"], "/foo/bar/boo", false),
            (&["/baz/bar"], "/foo", false),
            (&["/foo"], "/foo/bar", true),
            (&["/**/bar"], "/foo/bar", true),
            (&["/*/**"], "/foo", true),
            (&["/bar/*"], "/foo", false),
            (&["/a", "/b/c"], "/b", true),
            (&["/a", "!/a/b"], "/a/b", false),
            (&["/a", "!/a/b"], "/a", true),
            (&[], "/foo", false),
        ];
        for &(list, path, expected) in table {
            assert_eq!(patterns(list).may_match_below(path.as_bytes()), expected, "{list:?} on {path}");
        }
    }

    #[test]
    fn later_patterns_win() {
        let home = patterns(&["/home/user/**/*", "!/home/user/Documents", "!/home/user/code", "*.o"]);
        for (path, expected) in [
            ("/home/user", false),
            ("/home/user/games", true),
            ("/home/user/Documents", false),
            ("/home/user/Documents/a/b", false),
            ("/home/user/code/main.c", false),
            ("/home/user/code/main.o", true),
        ] {
            assert_eq!(home.matches(path.as_bytes()), expected, "{path}");
        }
        assert!(patterns(&["!*.c", "*.c"]).matches(b"/a.c"));
        assert!(!patterns(&["*.c", "!*.c"]).matches(b"/a.c"));
        assert!(patterns(&[r"\!a"]).matches(b"/!a"), "an escaped exclamation mark is a character");
    }

    #[test]
    fn globs_follow_go() {
        let table: &[(&str, &str, bool)] = &[
            ("a*b*c", "aXbXbXc", true),
            ("a*b*c", "aXbXbX", false),
            ("*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            (r"a\*b", "a*b", true),
            (r"a\*b", "ab", false),
            ("a?b", "aéb", true),
            ("a??b", "aéb", false),
            ("[α-ω]*", "λx", true),
            (r"[\]a]", "]", true),
            (r"[x\-]", "-", true),
            ("a]", "a]", true),
            ("a[^-", "", false),
        ];
        for &(glob, text, expected) in table {
            if let Ok(glob) = Glob::parse(glob.as_bytes()) {
                assert_eq!(glob.matches(text.as_bytes()), expected, "{glob:?} on {text}");
            } else {
                assert_eq!((glob, expected), ("a[^-", false));
            }
        }
    }

    #[test]
    fn a_bad_pattern_is_refused_by_name() {
        for bad in ["test/[", "a[", "[]", "[]a]", "[-x]", "[x-]", "[a-", r"a\", "/x/**/[", "!", ".", "x/.."] {
            let error = Patterns::new(["ok", bad], Case::Sensitive).unwrap_err();
            assert_eq!(error.pattern, bad);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_matched_as_they_are() {
        let list = Patterns::new([b"caf\xe9*".as_slice(), b"x?y"], Case::Sensitive).unwrap();
        assert!(list.matches(b"/d/caf\xe9.txt"));
        assert!(!list.matches(b"/d/caf\xe8.txt"));
        assert!(list.matches(b"/d/x\xffy"));
        assert!(!list.matches(b"/d/x\xff\xffy"));
    }

    #[test]
    fn case_is_ignored_only_when_asked() {
        let list = Patterns::new(["*.JPG", "Ünter", "[A-C]x"], Case::Insensitive).unwrap();
        for path in ["/a/B.jpg", "/a/b.JpG", "/üNTER/x", "/bX"] {
            assert!(list.matches(path.as_bytes()), "{path}");
        }
        assert!(list.matches(b"/\xff/\xc3\x9cnter"), "a name that is no text does not hide the next one");
        assert!(!patterns(&["*.JPG"]).matches(b"/a/b.jpg"));
    }
}
