//! Repositories in OpenStack Swift: where the user's settings come from, and from them a backend.
//!
//! `clouds` reads clouds.yaml, `auth` signs in and signs in again, `client` speaks to the container.

mod auth;
mod client;
mod clouds;

use std::path::PathBuf;
use std::sync::Arc;

use self::auth::{Auth, Settings};
use self::client::Swift;
use super::Backend;
use super::remote::options::Options;
use super::remote::{Remote, RemoteOptions};

/// Where a repository lies in Swift.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The container.
    pub container: String,
    /// What comes before every name, without a slash at either end.
    pub prefix: String,
}

impl Place {
    /// Parses what comes after `swift:`, `container:/prefix` or `//container/prefix`.
    pub fn parse(text: &str) -> Result<Place, String> {
        let (container, prefix) = match text.strip_prefix("//") {
            Some(rest) => rest.split_once('/').unwrap_or((rest, "")),
            None => text.split_once(':').unwrap_or((text, "")),
        };
        if container.is_empty() || container.contains('/') || container.len() > 256 {
            return Err(format!("`swift:{text}` names no container: write `swift:CONTAINER:/PREFIX`"));
        }
        Ok(Place { container: container.to_owned(), prefix: super::remote::prefix(prefix)? })
    }
}

/// The backend at `place`: with the settings in `options` and in the environment that `env` reads.
pub fn open(
    place: Place,
    options: &mut Options,
    mut remote: RemoteOptions,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Arc<dyn Backend>, String> {
    let cloud = options.text("swift.cloud");
    let policy = options.text("swift.storage-policy");
    let mut settings = match cloud.or_else(|| env("OS_CLOUD")).filter(|name| !name.is_empty()) {
        Some(name) => Settings::of_cloud(&name, env)?,
        None => Settings::of_environment(env),
    };
    settings.region = options.text("swift.region").or(settings.region);
    settings.interface = options.text("swift.interface").or(settings.interface);
    settings.storage_url = options.text("swift.storage-url").or(settings.storage_url);
    remote.http.ca_file =
        options.text("swift.cacert").map(PathBuf::from).or_else(|| settings.cacert.take().map(PathBuf::from));
    remote.http.insecure = options.switch("swift.insecure")?;
    remote.read_options("swift", options)?;
    let swift = Swift::new(place, Auth::new(settings)?, policy, &remote)?;
    Ok(Arc::new(Remote::new(swift, &remote)))
}

/// Every option of `-o` that [`open`] knows, and what it is for.
pub const OPTIONS: &[(&str, &str)] = &[
    ("swift.cloud", "the entry of clouds.yaml to use (default: $OS_CLOUD)"),
    ("swift.region", "region of the object store (default: $OS_REGION_NAME)"),
    ("swift.interface", "endpoint to use: public, internal or admin (default: $OS_INTERFACE, else public)"),
    ("swift.storage-url", "address of the account instead of the catalog's (default: $OS_STORAGE_URL)"),
    ("swift.storage-policy", "storage policy of a container that `init` creates"),
    ("swift.cacert", "file of certificate authorities (default: $OS_CACERT, else the system's)"),
    ("swift.insecure", "`true` trusts every certificate"),
    ("swift.connections", "requests in flight at once"),
    ("swift.retry-seconds", "how long failed requests are repeated"),
];

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn both_ways_to_name_a_place_mean_the_same() {
        let place =
            |container: &str, prefix: &str| Place { container: container.to_owned(), prefix: prefix.to_owned() };
        for (text, expected) in [
            ("backups:/host/a", place("backups", "host/a")),
            ("backups:/", place("backups", "")),
            ("backups", place("backups", "")),
            ("//backups/host/a/", place("backups", "host/a")),
            ("//backups", place("backups", "")),
        ] {
            assert_eq!(Place::parse(text), Ok(expected), "{text}");
        }
        for text in ["", ":/x", "///x", "a/b:/x", "c:/a/../b", "c:/a//b"] {
            assert!(Place::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_option_is_listed() {
        let mut options = Options::default();
        let env =
            |name: &str| (name == "ST_AUTH" || name == "ST_USER" || name == "ST_KEY").then(|| "http://x".to_owned());
        let place = Place::parse("c").expect("parses");
        open(place, &mut options, RemoteOptions::default(), &env).expect("opens without a request");
        let listed: Vec<&str> = OPTIONS.iter().map(|(name, _)| *name).collect();
        for name in options.asked() {
            assert!(listed.contains(&name), "{name}");
        }
        assert_eq!(options.asked().count(), listed.len());
    }

    #[test]
    fn seconds_and_connections_are_read() {
        let mut options = Options::parse(["swift.connections=3", "swift.retry-seconds=7"]).expect("parses");
        let mut remote = RemoteOptions::default();
        remote.read_options("swift", &mut options).expect("reads");
        assert_eq!((remote.connections, remote.retry_for), (3, Duration::from_secs(7)));
    }
}
