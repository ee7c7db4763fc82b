//! The values of `-o NAME=VALUE`: each is asked for by its backend, and one that nobody asked for is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Options of backends.
#[derive(Clone, Debug, Default)]
pub struct Options {
    values: BTreeMap<String, String>,
    asked: BTreeSet<String>,
}

impl Options {
    /// Parses `NAME=VALUE` pairs.
    pub fn parse<'a>(pairs: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut options = Self::default();
        for pair in pairs {
            let (name, value) = pair.split_once('=').ok_or(format!("`-o {pair}` is not `-o NAME=VALUE`"))?;
            if options.values.insert(name.trim().to_owned(), value.trim().to_owned()).is_some() {
                return Err(format!("the option `{name}` is given twice"));
            }
        }
        Ok(options)
    }

    /// The value of `name`.
    pub fn text(&mut self, name: &str) -> Option<String> {
        self.asked.insert(name.to_owned());
        self.values.get(name).cloned()
    }

    /// The number that `name` has.
    pub fn number(&mut self, name: &str) -> Result<Option<u64>, String> {
        let Some(text) = self.text(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| format!("the option `{name}` must be a number, not `{text}`"))
    }

    /// The number of seconds that `name` has.
    pub fn seconds(&mut self, name: &str) -> Result<Option<Duration>, String> {
        Ok(self.number(name)?.map(Duration::from_secs))
    }

    /// Whether `name` is on.
    pub fn switch(&mut self, name: &str) -> Result<bool, String> {
        match self.text(name).as_deref() {
            None | Some("false" | "no" | "0") => Ok(false),
            Some("true" | "yes" | "1") => Ok(true),
            Some(other) => Err(format!("the option `{name}` must be `true` or `false`, not `{other}`")),
        }
    }

    /// One of the words that `name` may be.
    pub fn choice(&mut self, name: &str, words: &[&'static str]) -> Result<Option<&'static str>, String> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match words.iter().find(|word| **word == text) {
            Some(word) => Ok(Some(word)),
            None => Err(format!("the option `{name}` must be one of {}, not `{text}`", words.join(", "))),
        }
    }

    /// Names that were asked for.
    pub fn asked(&self) -> impl Iterator<Item = &str> {
        self.asked.iter().map(String::as_str)
    }

    /// Refuses options that nobody asked for.
    pub fn finish(&self) -> Result<(), String> {
        match self.values.keys().find(|name| !self.asked.contains(*name)) {
            None => Ok(()),
            Some(name) if self.asked.is_empty() => Err(format!("this repository has no option `{name}`")),
            Some(name) => {
                let known: Vec<&str> = self.asked.iter().map(String::as_str).collect();
                Err(format!("there is no option `{name}`; this repository knows {}", known.join(", ")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_nobody_knows_is_refused_by_name() {
        let mut options = Options::parse(["s3.region=x", "s3.regoin=y"]).expect("parses");
        assert_eq!(options.text("s3.region").as_deref(), Some("x"));
        let message = options.finish().expect_err("one is unknown");
        assert!(message.contains("`s3.regoin`") && message.contains("s3.region"), "{message}");
        assert!(Options::parse(["s3.region"]).is_err());
        assert!(Options::parse(["a=1", "a=2"]).is_err());
    }

    #[test]
    fn values_are_checked() {
        let mut options = Options::parse(["n=12", "bad=x", "on=true", "word=b"]).expect("parses");
        assert_eq!(options.number("n"), Ok(Some(12)));
        assert!(options.number("bad").is_err() && options.switch("bad").is_err());
        assert_eq!((options.switch("on"), options.switch("off")), (Ok(true), Ok(false)));
        assert_eq!(options.choice("word", &["a", "b"]), Ok(Some("b")));
        assert!(options.choice("bad", &["a", "b"]).is_err());
    }
}
