//! clouds.yaml and secure.yaml, as every OpenStack client reads them: found, merged, and one cloud's values taken out.

use std::path::{Path, PathBuf};

use yaml_rust2::{Yaml, YamlLoader};

use super::auth::Settings;

/// Longest file that is read.
const LEN_MAX: u64 = 1 << 20;

/// Directories that are looked into, in order.
fn directories(env: &dyn Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let config = env("XDG_CONFIG_HOME").map(PathBuf::from);
    let config = config.or_else(|| env("HOME").map(|home| PathBuf::from(home).join(".config")));
    let user = config.map(|directory| directory.join("openstack"));
    [Some(PathBuf::from(".")), user, Some(PathBuf::from("/etc/openstack"))].into_iter().flatten().collect()
}

fn load(path: &Path) -> Result<Option<Yaml>, String> {
    let failed = |why: &dyn std::fmt::Display| format!("cannot read `{}`: {why}", path.display());
    let text = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
        Ok(metadata) if metadata.len() > LEN_MAX => return Err(failed(&"it is too long")),
        Ok(_) => std::fs::read_to_string(path).map_err(|error| failed(&error))?,
    };
    // The parser's message tells the place, never the text: there may be a password beside it.
    let mut documents = YamlLoader::load_from_str(&text).map_err(|error| {
        let at = error.marker();
        failed(&format!("it is no YAML at line {}, column {}", at.line(), at.col() + 1))
    })?;
    Ok((!documents.is_empty()).then(|| documents.remove(0)))
}

/// The first of the files called `stem`.yaml or .yml.
fn find(
    named: Option<String>,
    stem: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<(PathBuf, Yaml)>, String> {
    if let Some(path) = named.map(PathBuf::from) {
        let found = load(&path)?.ok_or(format!(
            "there is no file `{}`: check OS_CLIENT_CONFIG_FILE and OS_CLIENT_SECURE_FILE",
            path.display()
        ))?;
        return Ok(Some((path, found)));
    }
    for directory in directories(env) {
        for extension in ["yaml", "yml"] {
            let path = directory.join(format!("{stem}.{extension}"));
            if let Some(found) = load(&path)? {
                return Ok(Some((path, found)));
            }
        }
    }
    Ok(None)
}

/// The settings of the cloud called `name`.
pub(super) fn settings(name: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Settings, String> {
    let Some((path, clouds)) = find(env("OS_CLIENT_CONFIG_FILE"), "clouds", env)? else {
        return Err(format!(
            "the cloud `{name}` is asked for, but there is no clouds.yaml here, in ~/.config/openstack or in \
             /etc/openstack; set OS_CLIENT_CONFIG_FILE, or unset OS_CLOUD and `-o swift.cloud`"
        ));
    };
    let cloud = &clouds["clouds"][name];
    if cloud.as_hash().is_none() {
        let names = clouds["clouds"].as_hash().into_iter().flatten().filter_map(|(name, _)| name.as_str());
        let names = names.collect::<Vec<_>>().join(", ");
        return Err(format!(
            "there is no cloud `{name}` in `{}`, only: {names}; set OS_CLOUD or `-o swift.cloud`",
            path.display()
        ));
    }
    let secure = find(env("OS_CLIENT_SECURE_FILE"), "secure", env)?;
    let secret = secure.as_ref().map_or(&Yaml::BadValue, |(_, secure)| &secure["clouds"][name]);
    Ok(of_cloud(cloud, secret))
}

/// A value that may be written as a number or a word.
fn text(value: &Yaml) -> Option<String> {
    match value {
        Yaml::String(text) | Yaml::Real(text) => Some(text.clone()),
        Yaml::Integer(number) => Some(number.to_string()),
        Yaml::Boolean(value) => Some(value.to_string()),
        _ => None,
    }
}

fn of_cloud(cloud: &Yaml, secret: &Yaml) -> Settings {
    let top = |name: &str| text(&secret[name]).or_else(|| text(&cloud[name]));
    // Some files have what belongs under `auth` beside it.
    let auth = |name: &str| text(&secret["auth"][name]).or_else(|| text(&cloud["auth"][name])).or_else(|| top(name));
    let region = top("region_name").or_else(|| match &cloud["regions"][0] {
        region @ Yaml::Hash(_) => text(&region["name"]),
        region => text(region),
    });
    Settings {
        auth_type: top("auth_type"),
        auth_url: auth("auth_url"),
        user_id: auth("user_id"),
        username: auth("username"),
        user_domain_id: auth("user_domain_id"),
        user_domain_name: auth("user_domain_name"),
        password: auth("password").map(Into::into),
        token: auth("token").map(Into::into),
        credential_id: auth("application_credential_id"),
        credential_name: auth("application_credential_name"),
        credential_secret: auth("application_credential_secret").map(Into::into),
        project_id: auth("project_id").or_else(|| auth("tenant_id")),
        project_name: auth("project_name").or_else(|| auth("tenant_name")),
        project_domain_id: auth("project_domain_id"),
        project_domain_name: auth("project_domain_name"),
        domain_id: auth("domain_id"),
        domain_name: auth("domain_name"),
        default_domain: auth("default_domain"),
        trust_id: auth("trust_id"),
        region,
        interface: top("interface").or_else(|| top("endpoint_type")),
        storage_url: top("object_store_endpoint_override"),
        cacert: top("cacert"),
        v1: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, name: &str, text: &str) -> String {
        std::fs::write(directory.join(name), text).expect("writes");
        directory.join(name).display().to_string()
    }

    #[test]
    fn secure_yaml_is_merged_over_clouds_yaml() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let clouds = write(
            directory.path(),
            "clouds.yaml",
            "clouds:\n  one:\n    auth:\n      auth_url: http://k:5000/v3\n      username: u\n      project_name: 007x\n\
             \x20     user_domain_name: Default\n    region_name: R1\n    interface: internal\n    cacert: /ca.pem\n\
             \x20 two:\n    auth_type: v3applicationcredential\n    auth:\n      application_credential_id: 12\n",
        );
        let secure = write(directory.path(), "secure.yaml", "clouds:\n  one:\n    auth:\n      password: 's3 cret'\n");
        let env = |name: &str| match name {
            "OS_CLIENT_CONFIG_FILE" => Some(clouds.clone()),
            "OS_CLIENT_SECURE_FILE" => Some(secure.clone()),
            _ => None,
        };
        let one = settings("one", &env).expect("is there");
        assert_eq!(one.auth_url.as_deref(), Some("http://k:5000/v3"));
        assert_eq!(one.password.as_deref().map(String::as_str), Some("s3 cret"));
        assert_eq!((one.region.as_deref(), one.interface.as_deref()), (Some("R1"), Some("internal")));
        assert_eq!(settings("two", &env).expect("is there").credential_id.as_deref(), Some("12"));
        let message = settings("three", &env).err().expect("is not there");
        assert!(message.contains("one, two") && message.contains("OS_CLOUD"), "{message}");
    }

    #[test]
    fn what_is_no_yaml_is_told_by_its_place_and_not_by_its_text() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = write(directory.path(), "clouds.yaml", "clouds:\n  a: {password: hunter2\n  b: ]\n");
        let env = |name: &str| (name == "OS_CLIENT_CONFIG_FILE").then(|| path.clone());
        let message = settings("a", &env).err().expect("is no YAML");
        assert!(message.contains("line") && !message.contains("hunter2"), "{message}");
    }
}
