//! From what the user calls a repository to its backend: schemes, `-o` options, limits, counting.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::{HEADING, output};
use crate::backend::Backend;
use crate::backend::count::{Count, Requests};
use crate::backend::local::Local;
use crate::progress::Cancel;

/// Options about the store that a repository lies in.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct StoreArgs {
    /// Set an option of the store, e.g. `s3.region=eu-west-1`; bygone-backends(7) lists them
    #[arg(short = 'o', long = "option", global = true, value_name = "NAME=VALUE", help_heading = HEADING)]
    pub options: Vec<String>,
    /// Send at most this many KiB a second
    #[arg(long, global = true, value_name = "KIB", value_parser = clap::value_parser!(u64).range(1..), help_heading = HEADING)]
    pub limit_upload: Option<u64>,
    /// Receive at most this many KiB a second
    #[arg(long, global = true, value_name = "KIB", value_parser = clap::value_parser!(u64).range(1..), help_heading = HEADING)]
    pub limit_download: Option<u64>,
    /// With `requests`, print at the end what the store was asked; `mount --stats DIRECTORY` asks a running mount what it
    /// has done, and prints it as JSON
    #[arg(long = "stats", global = true, value_name = "WHAT", id = "statistics", help_heading = HEADING)]
    pub statistics: Option<OsString>,
    /// What the store was asked so far.
    #[arg(skip)]
    pub requests: Arc<Requests>,
    /// Ends requests that get nowhere.
    #[arg(skip)]
    pub cancel: Cancel,
}

/// Schemes that restic's users may try.
const FOREIGN: &[&str] = &["sftp", "rest", "rclone", "b2", "gs", "azure", "opendal"];

/// What a repository may be.
pub const FORMS: &str = "a directory, `s3:https://HOST/BUCKET/PREFIX` or `swift:CONTAINER:/PREFIX`";

/// The directory that `name` means, not being that of a remote store.
fn directory(name: &str) -> &str {
    name.strip_prefix("local:").unwrap_or(name)
}

/// `name` such that it means the same in every working directory.
pub fn absolute(name: &str) -> Result<String> {
    if name.is_empty() || name.starts_with("s3:") || name.starts_with("swift:") {
        return Ok(name.to_owned());
    }
    let path = std::path::absolute(directory(name)).with_context(|| format!("cannot find `{name}`"))?;
    path.into_os_string().into_string().ok().context("the working directory's name is not valid UTF-8")
}

impl StoreArgs {
    /// The backend that `name` means.
    pub fn open(&self, name: &str) -> Result<Arc<dyn Backend>> {
        if name.is_empty() {
            bail!("the repository's name is empty; it is {FORMS}");
        }
        match name.split_once(':') {
            Some(("s3", place)) => self.open_s3(place),
            Some(("swift", place)) => self.open_swift(place),
            Some((scheme, _)) if FOREIGN.contains(&scheme) => {
                bail!("`{name}`: this version has no repositories in `{scheme}:`; a repository is {FORMS}")
            }
            Some((scheme, rest)) if scheme != "local" && !scheme.contains('/') && rest.starts_with("//") => {
                bail!("`{name}` is no repository: `{scheme}:` is not known; a repository is {FORMS}")
            }
            _ => self.open_local(directory(name)),
        }
    }

    fn open_local(&self, path: &str) -> Result<Arc<dyn Backend>> {
        if let Some(option) = self.options.first() {
            bail!("a repository in a directory has no options, not `-o {option}` either");
        }
        if self.counts() {
            return Ok(Arc::new(Count::new(Local::new(path), self.requests.clone())));
        }
        Ok(Arc::new(Local::new(path)))
    }

    fn counts(&self) -> bool {
        self.statistics.as_deref() == Some(OsStr::new("requests"))
    }

    /// The directory whose mount `--stats` asks about; only `mount` can tell.
    pub fn mount_directory(&self) -> Option<&Path> {
        self.statistics.as_ref().filter(|_| !self.counts()).map(Path::new)
    }

    /// Prints what was asked for with `--stats requests`.
    pub fn print_statistics(&self, json: bool) {
        if !self.counts() {
            return;
        }
        if json {
            let counts: serde_json::Map<_, _> = crate::backend::count::Request::ALL
                .into_iter()
                .map(|sort| (sort.name().to_ascii_lowercase(), self.requests.count(sort).into()))
                .collect();
            let line = serde_json::json!({
                "message_type": "requests",
                "total": self.requests.total(),
                "counts": counts,
                "retries": self.requests.retries(),
                "hedges": self.requests.hedges(),
                "bytes_sent": self.requests.sent(),
                "bytes_received": self.requests.received(),
            });
            output::tell(line);
        } else {
            output::tell(&self.requests);
        }
    }
}

#[cfg(feature = "remote")]
impl StoreArgs {
    fn remote(&self) -> crate::backend::remote::RemoteOptions {
        use crate::backend::remote::{Limits, RemoteOptions};
        let mut remote =
            RemoteOptions { requests: self.requests.clone(), cancel: self.cancel.clone(), ..RemoteOptions::default() };
        let bytes = |kib: u64| kib.saturating_mul(1024);
        remote.http.limits = Limits { upload: self.limit_upload.map(bytes), download: self.limit_download.map(bytes) };
        remote
    }

    fn options(&self) -> Result<crate::backend::remote::options::Options> {
        let pairs = self.options.iter().map(String::as_str);
        crate::backend::remote::options::Options::parse(pairs).map_err(anyhow::Error::msg)
    }
}

#[cfg(feature = "remote")]
fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl StoreArgs {
    #[cfg(feature = "s3")]
    fn open_s3(&self, place: &str) -> Result<Arc<dyn Backend>> {
        let place = crate::backend::s3::Place::parse(place).map_err(anyhow::Error::msg)?;
        let mut options = self.options()?;
        let backend = crate::backend::s3::open(place, &mut options, self.remote(), &env).map_err(anyhow::Error::msg)?;
        options.finish().map_err(anyhow::Error::msg)?;
        Ok(backend)
    }

    #[cfg(feature = "swift")]
    fn open_swift(&self, place: &str) -> Result<Arc<dyn Backend>> {
        let place = crate::backend::swift::Place::parse(place).map_err(anyhow::Error::msg)?;
        let mut options = self.options()?;
        let backend =
            crate::backend::swift::open(place, &mut options, self.remote(), &env).map_err(anyhow::Error::msg)?;
        options.finish().map_err(anyhow::Error::msg)?;
        Ok(backend)
    }

    #[cfg(not(feature = "s3"))]
    fn open_s3(&self, _: &str) -> Result<Arc<dyn Backend>> {
        bail!("this program was built without S3")
    }

    #[cfg(not(feature = "swift"))]
    fn open_swift(&self, _: &str) -> Result<Arc<dyn Backend>> {
        bail!("this program was built without Swift")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_scheme_is_a_directory() {
        let store = StoreArgs::default();
        for (name, location) in [("/a/b", "/a/b"), ("a:b", "a:b"), ("local:s3:x", "s3:x")] {
            assert_eq!(store.open(name).expect("opens").location(), location);
        }
        for name in ["/a/b", "s3:https://host/bucket", "swift:container:/"] {
            assert_eq!(absolute(name).expect("a name"), name);
        }
        let here = std::env::current_dir().expect("is there");
        assert_eq!(absolute("local:s3:x").expect("a name"), here.join("s3:x").to_str().expect("text"));
        for name in ["sftp:host:/x", "", "https://host/bucket", "S3://bucket/x"] {
            let message = store.open(name).err().expect("refused").to_string();
            assert!(message.contains(FORMS), "{message}");
        }
        let with = StoreArgs { options: vec!["s3.region=x".to_owned()], ..StoreArgs::default() };
        assert!(with.open("/a").is_err(), "an option that means nothing");
    }

    #[cfg(feature = "s3")]
    #[test]
    fn an_option_of_another_store_is_refused() {
        let with = StoreArgs { options: vec!["swift.region=x".to_owned()], ..StoreArgs::default() };
        let message = with.open("s3:bucket").err().expect("refused").to_string();
        assert!(message.contains("`swift.region`"), "{message}");
    }
}
