//! Signing in: Keystone v3 by password, application credential or token, and the older v1 (tempauth); and again when a
//! token has expired, once for all requests that notice.
//!
//! Secrets are wiped when dropped and appear in no message and no debug output.

use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::clouds;
use crate::backend::count::Request as Sort;
use crate::backend::remote::http::{self, Http, Request, TEXT_LEN_MAX};
use crate::backend::remote::{Failure, FailureKind, Outcome};

/// A text that is wiped when dropped.
pub(super) type Secret = Zeroizing<String>;
/// Longest answer to a request for a token: a catalog can be large.
const TOKEN_LEN_MAX: u64 = 4 << 20;

/// What the user set, wherever it was set.
#[derive(Clone, Default)]
pub(super) struct Settings {
    pub(super) auth_type: Option<String>,
    pub(super) auth_url: Option<String>,
    pub(super) user_id: Option<String>,
    pub(super) username: Option<String>,
    pub(super) user_domain_id: Option<String>,
    pub(super) user_domain_name: Option<String>,
    pub(super) password: Option<Secret>,
    pub(super) token: Option<Secret>,
    pub(super) credential_id: Option<String>,
    pub(super) credential_name: Option<String>,
    pub(super) credential_secret: Option<Secret>,
    pub(super) project_id: Option<String>,
    pub(super) project_name: Option<String>,
    pub(super) project_domain_id: Option<String>,
    pub(super) project_domain_name: Option<String>,
    pub(super) domain_id: Option<String>,
    pub(super) domain_name: Option<String>,
    pub(super) default_domain: Option<String>,
    pub(super) trust_id: Option<String>,
    pub(super) region: Option<String>,
    pub(super) interface: Option<String>,
    pub(super) storage_url: Option<String>,
    pub(super) cacert: Option<String>,
    /// Address, user and key of v1.
    pub(super) v1: Option<(String, String, Secret)>,
}

impl Settings {
    /// What OS_* and ST_* say.
    pub(super) fn of_environment(env: &dyn Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| env(name).filter(|value| !value.is_empty());
        let secret = |name: &str| get(name).map(Zeroizing::new);
        let v1 = get("ST_AUTH").zip(get("ST_USER")).zip(secret("ST_KEY")).map(|((url, user), key)| (url, user, key));
        Self {
            auth_type: get("OS_AUTH_TYPE"),
            auth_url: get("OS_AUTH_URL"),
            user_id: get("OS_USER_ID"),
            username: get("OS_USERNAME"),
            user_domain_id: get("OS_USER_DOMAIN_ID"),
            user_domain_name: get("OS_USER_DOMAIN_NAME"),
            password: secret("OS_PASSWORD"),
            token: secret("OS_TOKEN").or_else(|| secret("OS_AUTH_TOKEN")),
            credential_id: get("OS_APPLICATION_CREDENTIAL_ID"),
            credential_name: get("OS_APPLICATION_CREDENTIAL_NAME"),
            credential_secret: secret("OS_APPLICATION_CREDENTIAL_SECRET"),
            project_id: get("OS_PROJECT_ID").or_else(|| get("OS_TENANT_ID")),
            project_name: get("OS_PROJECT_NAME").or_else(|| get("OS_TENANT_NAME")),
            project_domain_id: get("OS_PROJECT_DOMAIN_ID"),
            project_domain_name: get("OS_PROJECT_DOMAIN_NAME"),
            domain_id: get("OS_DOMAIN_ID"),
            domain_name: get("OS_DOMAIN_NAME"),
            default_domain: get("OS_DEFAULT_DOMAIN"),
            trust_id: get("OS_TRUST_ID"),
            region: get("OS_REGION_NAME"),
            interface: get("OS_INTERFACE").or_else(|| get("OS_ENDPOINT_TYPE")),
            storage_url: get("OS_STORAGE_URL"),
            cacert: get("OS_CACERT"),
            v1,
        }
    }

    /// What clouds.yaml says of the cloud `name`; the environment has what is too secret or too local to be there.
    pub(super) fn of_cloud(name: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        let mut cloud = clouds::settings(name, env)?;
        let here = Self::of_environment(env);
        cloud.password = cloud.password.or(here.password);
        cloud.credential_secret = cloud.credential_secret.or(here.credential_secret);
        cloud.region = cloud.region.or(here.region);
        cloud.interface = cloud.interface.or(here.interface);
        cloud.cacert = cloud.cacert.or(here.cacert);
        Ok(cloud)
    }
}

/// How to sign in.
enum Method3 {
    Password,
    Credential,
    Token,
}

enum Way {
    V1 {
        url: String,
        user: String,
        key: Secret,
    },
    V3 {
        url: String,
        method: Method3,
    },
    /// A token and an address that somebody else got.
    Given {
        token: Secret,
    },
}

/// A token and where to use it.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) token: HeaderValue,
    /// Address of the account, without a slash at its end.
    pub(super) url: String,
    generation: u64,
    /// When to get a new one; `None` if that is not known.
    renew_at: Option<Instant>,
}

impl Session {
    fn is_fresh(&self) -> bool {
        self.renew_at.is_none_or(|at| Instant::now() < at)
    }
}

/// A token, and what came with it.
struct Token {
    token: Secret,
    url: String,
    life: Option<Duration>,
}

/// Signs in and keeps the token.
pub(super) struct Auth {
    settings: Settings,
    way: Way,
    session: Mutex<Option<Session>>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Auth")
    }
}

fn denied(what: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Denied, what)
}

fn other(what: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Other, what)
}

impl Auth {
    /// Decides how to sign in, and says what is missing.
    pub(super) fn new(mut settings: Settings) -> Result<Auth, String> {
        let session = Mutex::new(None);
        if let Some(url) = &settings.storage_url {
            is_address(url, "OS_STORAGE_URL or `-o swift.storage-url`")?;
        }
        if let Some((url, user, key)) = settings.v1.take() {
            return Ok(Auth { settings, way: Way::V1 { url, user, key }, session });
        }
        let Some(url) = settings.auth_url.clone() else {
            return match (settings.token.clone(), &settings.storage_url) {
                (Some(token), Some(_)) => Ok(Auth { settings, way: Way::Given { token }, session }),
                _ => Err(
                    "nothing says where to sign in: source an openrc file (OS_AUTH_URL and the like), set OS_CLOUD or `-o swift.cloud` \
                          for clouds.yaml, or set ST_AUTH, ST_USER and ST_KEY"
                        .to_owned(),
                ),
            };
        };
        let url = identity_url(&url)?;
        let auth_type = settings.auth_type.as_deref().unwrap_or_default();
        let missing = |names: &str| Err(format!("{names} must be set to sign in at {url}"));
        let has_credential = settings.credential_id.is_some() || settings.credential_name.is_some();
        let method = if auth_type.ends_with("applicationcredential") || (auth_type.is_empty() && has_credential) {
            if settings.credential_secret.is_none() || !has_credential {
                return missing("OS_APPLICATION_CREDENTIAL_ID and OS_APPLICATION_CREDENTIAL_SECRET");
            }
            if settings.credential_id.is_none() && settings.username.is_none() && settings.user_id.is_none() {
                return missing("OS_USERNAME or OS_USER_ID, or OS_APPLICATION_CREDENTIAL_ID instead of the name,");
            }
            Method3::Credential
        } else if auth_type.ends_with("token") || (settings.token.is_some() && settings.password.is_none()) {
            if settings.token.is_none() {
                return missing("OS_TOKEN");
            }
            Method3::Token
        } else if matches!(auth_type, "" | "password" | "v3password") {
            if settings.username.is_none() && settings.user_id.is_none() {
                return missing("OS_USERNAME");
            }
            if settings.password.is_none() {
                return missing("OS_PASSWORD");
            }
            Method3::Password
        } else {
            return Err(format!(
                "the auth type `{auth_type}` is not known: use password, v3applicationcredential or v3token"
            ));
        };
        Ok(Auth { settings, way: Way::V3 { url, method }, session })
    }

    /// The token in use; a new one if there is none yet or `stale` is the one in use.
    pub(super) async fn session(&self, http: &Http, stale: Option<&Session>) -> Outcome<Session> {
        let mut session = self.session.lock().await;
        match &*session {
            Some(session) if session.is_fresh() && stale.is_none_or(|stale| stale.generation != session.generation) => {
                return Ok(session.clone());
            }
            _ => {}
        }
        let generation = session.as_ref().map_or(0, |session| session.generation + 1);
        let Token { token, url, life } = match &self.way {
            Way::V1 { url, user, key } => self.sign_in_v1(http, url, user, key).await?,
            Way::V3 { url, method } => self.sign_in_v3(http, url, method).await?,
            Way::Given { .. } if stale.is_some() => {
                return Err(denied("the token in OS_AUTH_TOKEN is not valid or has expired: get a new one"));
            }
            Way::Given { token } => Token { token: token.clone(), url: String::new(), life: None },
        };
        let mut token = HeaderValue::from_str(&token)
            .map_err(|_| other("the token has characters that no token has: check OS_TOKEN or OS_AUTH_TOKEN"))?;
        token.set_sensitive(true);
        let url = self.settings.storage_url.clone().unwrap_or(url).trim_end_matches('/').to_owned();
        // A little early, so that no request is sent in vain.
        let renew_at = life.and_then(|life| Instant::now().checked_add(life - (life / 5).min(Duration::from_secs(60))));
        let new = Session { token, url, generation, renew_at };
        *session = Some(new.clone());
        Ok(new)
    }

    async fn sign_in_v1(&self, http: &Http, url: &str, user: &str, key: &Secret) -> Outcome<Token> {
        is_address(url, "ST_AUTH").map_err(other)?;
        let bad = |_| other("ST_USER or ST_KEY has characters that a header cannot have");
        let mut key = HeaderValue::from_str(key).map_err(bad)?;
        key.set_sensitive(true);
        let request = hyper::Request::builder()
            .method(Method::GET)
            .uri(url)
            .header("X-Auth-User", HeaderValue::from_str(user).map_err(bad)?)
            .header("X-Auth-Key", key)
            .body(http::body(Bytes::new()))
            .map_err(|_| other(format!("`{url}` in ST_AUTH is no address")))?;
        let response = http.send(Sort::Other, request).await?;
        let status = response.status();
        match status {
            status if status.is_success() => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let what = format!("{url} refuses user `{user}` ({status}): check ST_USER and ST_KEY");
                return Err(denied(what));
            }
            StatusCode::NOT_FOUND => return Err(other(format!("nobody signs in at {url} ({status}): check ST_AUTH"))),
            status => return Err(passing(url, status, response.headers())),
        }
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        match (header("X-Auth-Token"), header("X-Storage-Url")) {
            (Some(token), Some(url)) => {
                let life = header("X-Auth-Token-Expires").and_then(|seconds| seconds.trim().parse().ok());
                Ok(Token { token: token.into(), url, life: life.map(Duration::from_secs) })
            }
            _ => Err(other(format!("{url} gave no token and no storage address: check ST_AUTH"))),
        }
    }

    async fn sign_in_v3(&self, http: &Http, url: &str, method: &Method3) -> Outcome<Token> {
        let identity = self.identity(method);
        let scope = match method {
            // It has its project in itself.
            Method3::Credential => None,
            _ => self.scope(),
        };
        let asked = self.ask_token(http, url, &identity, scope.as_ref()).await;
        let (token, answer) = match asked {
            Err(failure) if failure.kind == FailureKind::Denied => {
                // Keystone does not tell which it is. Without a project it does.
                let right = scope.is_some() && self.ask_token(http, url, &identity, None).await.is_ok();
                return Err(if right { self.wrong_project(url) } else { failure });
            }
            other => other?,
        };
        let time = |name: &str| answer["token"][name].as_str().and_then(|time| time.parse::<jiff::Timestamp>().ok());
        // By the server's clock alone: ours may be wrong.
        let life = time("expires_at").zip(time("issued_at")).and_then(|(end, start)| (end - start).try_into().ok());
        let url = match self.settings.storage_url {
            Some(_) => String::new(),
            None => self.endpoint(&answer["token"]["catalog"])?,
        };
        Ok(Token { token, url, life })
    }

    async fn ask_token(
        &self,
        http: &Http,
        url: &str,
        identity: &Value,
        scope: Option<&Value>,
    ) -> Outcome<(Secret, Value)> {
        let mut auth = json!({ "identity": identity });
        if let Some(scope) = scope {
            auth["scope"] = scope.clone();
        }
        let body = Bytes::from(json!({ "auth": auth }).to_string());
        let request: Request = hyper::Request::builder()
            .method(Method::POST)
            .uri(format!("{url}/auth/tokens"))
            .header(CONTENT_TYPE, "application/json")
            .body(http::body(body))
            .map_err(|_| other(format!("`{url}` in OS_AUTH_URL is no address")))?;
        let response = http.send(Sort::Other, request).await?;
        let status = response.status();
        match status {
            status if status.is_success() => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(denied(format!("{url} refuses {} ({status}): {}", self.who(), self.what_to_check())));
            }
            StatusCode::NOT_FOUND | StatusCode::MULTIPLE_CHOICES | StatusCode::METHOD_NOT_ALLOWED => {
                return Err(other(format!("there is no Keystone v3 at {url} ({status}): check OS_AUTH_URL")));
            }
            StatusCode::BAD_REQUEST => {
                let text = http.read(response, TEXT_LEN_MAX).await.unwrap_or_default();
                let message = serde_json::from_slice::<Value>(&text).ok();
                let message = message.as_ref().and_then(|message| message["error"]["message"].as_str());
                let Some(message) = message else {
                    return Err(other(format!("there is no Keystone v3 at {url} ({status}): check OS_AUTH_URL")));
                };
                let what = format!("{url} does not understand the request ({message}): {}", self.what_to_check());
                return Err(other(what));
            }
            status => return Err(passing(url, status, response.headers())),
        }
        let token = response.headers().get("X-Subject-Token").and_then(|token| token.to_str().ok()).map(str::to_owned);
        let answer = http.read(response, TOKEN_LEN_MAX).await?;
        let answer =
            serde_json::from_slice(&answer).map_err(|_| other(format!("{url} gave no JSON: check OS_AUTH_URL")))?;
        let token = token.ok_or_else(|| other(format!("{url} gave no token: check OS_AUTH_URL")))?;
        Ok((token.into(), answer))
    }

    fn identity(&self, method: &Method3) -> Value {
        let settings = &self.settings;
        let secret = |secret: &Option<Secret>| secret.as_ref().map_or("", |secret| secret.as_str()).to_owned();
        match method {
            Method3::Password => {
                let mut user = self.user();
                user["password"] = json!(secret(&settings.password));
                json!({ "methods": ["password"], "password": { "user": user } })
            }
            Method3::Credential => {
                let mut credential = json!({ "secret": secret(&settings.credential_secret) });
                match &settings.credential_id {
                    Some(id) => credential["id"] = json!(id),
                    None => {
                        credential["name"] = json!(settings.credential_name);
                        credential["user"] = self.user();
                    }
                }
                json!({ "methods": ["application_credential"], "application_credential": credential })
            }
            Method3::Token => json!({ "methods": ["token"], "token": { "id": secret(&settings.token) } }),
        }
    }

    fn user(&self) -> Value {
        let settings = &self.settings;
        match &settings.user_id {
            Some(id) => json!({ "id": id }),
            None => json!({
                "name": settings.username,
                "domain": self.domain(&settings.user_domain_id, &settings.user_domain_name),
            }),
        }
    }

    /// A domain by id or name; the usual default one if none is said.
    fn domain(&self, id: &Option<String>, name: &Option<String>) -> Value {
        match (id, name, &self.settings.default_domain) {
            (Some(id), ..) => json!({ "id": id }),
            (_, Some(name), _) => json!({ "name": name }),
            (_, _, Some(id)) => json!({ "id": id }),
            _ => json!({ "id": "default" }),
        }
    }

    fn scope(&self) -> Option<Value> {
        let settings = &self.settings;
        if let Some(id) = &settings.trust_id {
            return Some(json!({ "OS-TRUST:trust": { "id": id } }));
        }
        if let Some(id) = &settings.project_id {
            return Some(json!({ "project": { "id": id } }));
        }
        if let Some(name) = &settings.project_name {
            let domain = match (&settings.project_domain_id, &settings.project_domain_name) {
                (None, None) => self.domain(&settings.user_domain_id, &settings.user_domain_name),
                (id, name) => self.domain(id, name),
            };
            return Some(json!({ "project": { "name": name, "domain": domain } }));
        }
        (settings.domain_id.is_some() || settings.domain_name.is_some())
            .then(|| json!({ "domain": self.domain(&settings.domain_id, &settings.domain_name) }))
    }

    /// The account's address in the catalog.
    fn endpoint(&self, catalog: &Value) -> Outcome<String> {
        let services = catalog.as_array().map_or(&[][..], |services| services);
        let mut endpoints = services
            .iter()
            .filter(|service| service["type"] == "object-store")
            .flat_map(|service| service["endpoints"].as_array().into_iter().flatten())
            .peekable();
        if endpoints.peek().is_none() {
            let what = if self.scope().is_none() {
                "the token has no project and so no object store: set OS_PROJECT_NAME"
            } else {
                "the catalog of this project has no object store: check OS_PROJECT_NAME, or set OS_STORAGE_URL or `-o swift.storage-url`"
            };
            return Err(other(what));
        }
        let interface = self.settings.interface.as_deref().unwrap_or("public").trim_end_matches("URL").to_owned();
        let (mut regions, mut interfaces) = (Vec::new(), Vec::new());
        for endpoint in endpoints {
            let region = endpoint["region_id"].as_str().or_else(|| endpoint["region"].as_str()).unwrap_or_default();
            if self.settings.region.as_deref().is_some_and(|wanted| wanted != region) {
                regions.push(region.to_owned());
                continue;
            }
            let found = endpoint["interface"].as_str().unwrap_or_default();
            match endpoint["url"].as_str() {
                Some(url) if found == interface => return Ok(url.to_owned()),
                _ => interfaces.push(found.to_owned()),
            }
        }
        let list = |mut names: Vec<String>| {
            names.sort();
            names.dedup();
            names.join(", ")
        };
        if interfaces.is_empty() {
            let wanted = self.settings.region.as_deref().unwrap_or_default();
            let there = list(regions);
            let what = format!(
                "there is no object store in region `{wanted}`, only in: {there}; set OS_REGION_NAME or `-o swift.region`"
            );
            return Err(other(what));
        }
        let there = list(interfaces);
        let what = format!(
            "the object store has no `{interface}` endpoint, only: {there}; set OS_INTERFACE or `-o swift.interface`"
        );
        Err(other(what))
    }

    fn who(&self) -> String {
        let settings = &self.settings;
        match &self.way {
            Way::V1 { user, .. } => format!("user `{user}`"),
            Way::V3 { method: Method3::Token, .. } | Way::Given { .. } => "the token".to_owned(),
            Way::V3 { method: Method3::Credential, .. } => {
                let name = settings.credential_id.as_ref().or(settings.credential_name.as_ref());
                format!("the application credential `{}`", name.map_or("", String::as_str))
            }
            Way::V3 { method: Method3::Password, .. } => {
                let name = settings.username.as_ref().or(settings.user_id.as_ref());
                format!("user `{}`", name.map_or("", String::as_str))
            }
        }
    }

    fn what_to_check(&self) -> &'static str {
        match &self.way {
            Way::V1 { .. } => "check ST_USER and ST_KEY",
            Way::Given { .. } => "get a new OS_AUTH_TOKEN",
            Way::V3 { method: Method3::Password, .. } => "check OS_USERNAME, OS_PASSWORD and OS_USER_DOMAIN_NAME",
            Way::V3 { method: Method3::Credential, .. } => {
                "check OS_APPLICATION_CREDENTIAL_ID and OS_APPLICATION_CREDENTIAL_SECRET, and that it has not expired"
            }
            Way::V3 { method: Method3::Token, .. } => "OS_TOKEN may have expired: get a new one",
        }
    }

    fn wrong_project(&self, url: &str) -> Failure {
        let settings = &self.settings;
        let project = settings.project_name.as_ref().or(settings.project_id.as_ref()).or(settings.trust_id.as_ref());
        denied(format!(
            "{url} knows {} but not its project `{}`, or it has no role there: check OS_PROJECT_NAME and \
             OS_PROJECT_DOMAIN_NAME",
            self.who(),
            project.map_or("", String::as_str)
        ))
    }

    /// What the store refuses this user, and what to do.
    pub(super) fn refused(&self, container: &str) -> String {
        format!(
            "{} may not do this in the container `{container}`: it needs a role that may, or an ACL of the container \
             (X-Container-Read, X-Container-Write)",
            self.who()
        )
    }
}

/// An answer that says nothing about who we are.
fn passing(url: &str, status: StatusCode, headers: &hyper::HeaderMap) -> Failure {
    let kind = if status.is_server_error() || matches!(status.as_u16(), 408 | 429 | 498 | 499) {
        FailureKind::Transient
    } else {
        FailureKind::Other
    };
    Failure { retry_after: http::retry_after(headers), ..Failure::new(kind, format!("{url} answered {status}")) }
}

/// Refuses what nothing can be sent to, naming where it comes from.
fn is_address(url: &str, from: &str) -> Result<(), String> {
    if url.starts_with("http://") || url.starts_with("https://") {
        return Ok(());
    }
    Err(format!("`{url}` in {from} is no address: it begins with http:// or https://"))
}

/// The address of version 3: files of both kinds, with and without the version at the end, are about.
fn identity_url(url: &str) -> Result<String, String> {
    is_address(url, "OS_AUTH_URL")?;
    let url = url.trim_end_matches('/');
    let url = url.strip_suffix("/auth/tokens").unwrap_or(url);
    if url.ends_with("/v2.0") {
        return Err(format!(
            "OS_AUTH_URL is `{url}`, but Keystone v2.0 is gone: set it to the address that ends in /v3"
        ));
    }
    Ok(if url.ends_with("/v3") { url.to_owned() } else { format!("{url}/v3") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let pairs: Vec<(String, String)> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Settings::of_environment(&move |name| pairs.iter().find(|(key, _)| key == name).map(|(_, v)| v.clone()))
    }

    const OPENRC: &[(&str, &str)] = &[
        ("OS_AUTH_URL", "http://k:5000"),
        ("OS_USERNAME", "u"),
        ("OS_PASSWORD", "hunter2"),
        ("OS_PROJECT_NAME", "p"),
        ("OS_USER_DOMAIN_NAME", "Default"),
    ];

    #[test]
    fn an_openrc_file_signs_in_by_password_with_its_project() {
        let auth = Auth::new(settings(OPENRC)).expect("complete");
        let Way::V3 { url, method } = &auth.way else { panic!("another way") };
        assert_eq!(url, "http://k:5000/v3");
        let identity = auth.identity(method);
        assert_eq!(identity["password"]["user"]["domain"]["name"], "Default");
        assert_eq!(identity["password"]["user"]["password"], "hunter2");
        assert_eq!(auth.scope().expect("a scope")["project"]["domain"]["name"], "Default");
        assert!(!format!("{auth:?}{}{}", auth.who(), auth.what_to_check()).contains("hunter2"));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (missing, pairs) in [
            ("OS_PASSWORD", &OPENRC[..2]),
            ("OS_USERNAME", &OPENRC[..1]),
            ("ST_AUTH", &OPENRC[1..]),
            ("OS_APPLICATION_CREDENTIAL_SECRET", &[OPENRC[0], ("OS_APPLICATION_CREDENTIAL_ID", "x")][..]),
            ("/v3", &[("OS_AUTH_URL", "http://k/v2.0"), OPENRC[1], OPENRC[2]][..]),
            ("OS_AUTH_URL", &[("OS_AUTH_URL", "k:5000/v3"), OPENRC[1], OPENRC[2]][..]),
            ("OS_STORAGE_URL", &[OPENRC[0], OPENRC[1], OPENRC[2], ("OS_STORAGE_URL", "store/v1")][..]),
        ] {
            let message = Auth::new(settings(pairs)).expect_err("something is missing");
            assert!(message.contains(missing), "{missing}: {message}");
        }
    }

    #[test]
    fn a_region_or_interface_that_is_not_there_is_told_with_those_that_are() {
        let catalog = json!([
            { "type": "image", "endpoints": [{ "interface": "public", "region_id": "R1", "url": "http://image" }] },
            { "type": "object-store", "endpoints": [
                { "interface": "public", "region_id": "R1", "url": "http://one" },
                { "interface": "internal", "region_id": "R2", "url": "http://two" },
            ] },
        ]);
        let with = |pairs: &[(&str, &str)]| {
            let mut all = OPENRC.to_vec();
            all.extend_from_slice(pairs);
            Auth::new(settings(&all)).expect("complete").endpoint(&catalog).map_err(|failure| failure.what)
        };
        assert_eq!(with(&[]).as_deref(), Ok("http://one"));
        assert_eq!(with(&[("OS_REGION_NAME", "R2"), ("OS_INTERFACE", "internalURL")]).as_deref(), Ok("http://two"));
        let message = with(&[("OS_REGION_NAME", "R3")]).expect_err("no such region");
        assert!(message.contains("R1, R2") && message.contains("OS_REGION_NAME or `-o swift.region`"), "{message}");
        let message = with(&[("OS_REGION_NAME", "R2")]).expect_err("no such interface");
        assert!(message.contains("internal") && message.contains("OS_INTERFACE"), "{message}");
    }
}
