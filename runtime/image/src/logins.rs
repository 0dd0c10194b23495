//! The users and passwords of registries, in the file that `docker login` and `podman login` write and that pull secrets hold.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::reference::Reference;

/// A user and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The user.
    pub username: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({}, <hidden>)", self.username)
    }
}

/// Which login is for which registry or repository.
///
/// A key is `host[:port][/path]`, where each part of the host may have `*` in it; `https://` before it and `/v1/` or `/v2/`
/// behind the host mean nothing. Credential helpers are not run. Source: kubernetes.io, "Interpretation of config.json".
#[derive(Clone, Debug, Default)]
pub struct Logins(
    /// The most specific first, as the kubelet takes them.
    Vec<(Key, Login)>,
);

/// Why a file holds no logins.
#[derive(Debug, thiserror::Error)]
pub enum LoginsError {
    /// It has not the form of one.
    #[error("parse the registries' logins")]
    Malformed {
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The `auth` of a registry is not the base64 of `user:password`.
    #[error("the auth of registry {registry} is not the base64 of user:password")]
    Auth {
        /// Which.
        registry: String,
    },
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Record>,
}

#[derive(Deserialize)]
struct Record {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
}

/// What one key covers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    host: String,
    port: String,
    path: String,
}

impl Logins {
    /// Reads a `config.json` or `auth.json`: `{"auths": {…}}`.
    ///
    /// # Errors
    ///
    /// It is none.
    pub fn parse(text: &[u8]) -> Result<Self, LoginsError> {
        let file: File =
            serde_json::from_slice(text).map_err(|source| LoginsError::Malformed { source })?;
        Self::new(file.auths)
    }

    /// Reads a `.dockercfg`, the old form: what is under `auths` in the new one.
    ///
    /// # Errors
    ///
    /// It is none.
    pub fn parse_old(text: &[u8]) -> Result<Self, LoginsError> {
        Self::new(serde_json::from_slice(text).map_err(|source| LoginsError::Malformed { source })?)
    }

    fn new(records: BTreeMap<String, Record>) -> Result<Self, LoginsError> {
        let mut logins = Vec::new();
        for (registry, record) in records {
            if let Some(login) = record.login(&registry)? {
                logins.push((Key::parse(&registry), login));
            }
        }
        logins.sort_by(|(a, _), (b, _)| b.cmp(a));
        Ok(Self(logins))
    }

    /// The logins that may be for an image, in the order in which they are to be tried.
    pub fn matching(&self, image: &Reference) -> Vec<&Login> {
        let (host, port) = split_port(image.registry());
        let path = image.repository();
        let of = |host: &str| -> Vec<&Login> {
            let fitting = self
                .0
                .iter()
                .filter(|(key, _)| key.covers(host, port, path));
            fitting.map(|(_, login)| login).collect()
        };
        let own = of(host);
        if own.is_empty() && host == "docker.io" {
            // What `docker login` calls Docker Hub.
            of("index.docker.io")
        } else {
            own
        }
    }

    /// Adds those of another file: of two that are equally specific, the one that was there first stays first.
    pub fn add(&mut self, other: Self) {
        self.0.extend(other.0);
        self.0.sort_by(|(a, _), (b, _)| b.cmp(a));
    }
}

impl Record {
    /// `None` where the file leaves the login to a credential helper.
    fn login(self, registry: &str) -> Result<Option<Login>, LoginsError> {
        if !self.username.is_empty() {
            return Ok(Some(Login {
                username: self.username,
                password: self.password,
            }));
        }
        if self.auth.is_empty() {
            return Ok(None);
        }
        let decoded = STANDARD.decode(self.auth.trim()).ok();
        let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        let login = text.as_deref().and_then(|text| text.split_once(':'));
        let (username, password) = login.ok_or_else(|| LoginsError::Auth {
            registry: registry.to_owned(),
        })?;
        Ok(Some(Login {
            username: username.to_owned(),
            // Docker once padded it with zero bytes.
            password: password.trim_end_matches('\0').to_owned(),
        }))
    }
}

impl Key {
    fn parse(text: &str) -> Self {
        let text = text
            .trim_start_matches("https://")
            .trim_start_matches("http://");
        let (registry, path) = text.split_once('/').unwrap_or((text, ""));
        let (host, port) = split_port(registry);
        let path = match path.split_once('/') {
            Some(("v1" | "v2", rest)) => rest,
            None if matches!(path, "v1" | "v2") => "",
            _ => path,
        };
        Self {
            host: host.to_owned(),
            port: port.to_owned(),
            path: path.trim_end_matches('/').to_owned(),
        }
    }

    fn covers(&self, host: &str, port: &str, path: &str) -> bool {
        let (patterns, parts) = (self.host.split('.'), host.split('.'));
        self.port == port
            && path.starts_with(&self.path)
            && patterns.clone().count() == parts.clone().count()
            && patterns
                .zip(parts)
                .all(|(pattern, part)| fits(pattern, part))
    }
}

/// Whether a text fits a pattern in which `*` is any text.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((before, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(tail) = text.strip_prefix(before) else {
        return false;
    };
    let mut ends = tail.char_indices().map(|(at, _)| at).chain([tail.len()]);
    ends.any(|at| fits(rest, &tail[at..]))
}

/// Host and port; the port is empty where there is none.
fn split_port(registry: &str) -> (&str, &str) {
    match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (host, port),
        _ => (registry, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(logins: &Logins, image: &str) -> String {
        let image = image.parse().expect("an image's name");
        logins
            .matching(&image)
            .first()
            .map(|login| login.username.clone())
            .unwrap_or_default()
    }

    #[test]
    fn the_most_specific_login_that_covers_an_image_is_taken() {
        let logins = Logins::parse(
            br#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
                "reg.io:5000": {"username": "port", "password": "y"},
                "reg.io": {"username": "host", "password": "y"},
                "reg.io/team": {"username": "team", "password": "y"},
                "reg.io/team/app": {"username": "app", "password": "y"},
                "*.wild.io": {"username": "wild", "password": "y"},
                "https://old.io/v2/": {"username": "old", "password": "y"},
                "helped.io": {}
            }, "credsStore": "desktop"}"#,
        )
        .expect("logins");
        let table = [
            ("busybox", "hub"),
            ("docker.io/me/x", "hub"),
            ("reg.io:5000/a", "port"),
            ("reg.io:5001/a", ""),
            ("reg.io/other/x", "host"),
            ("reg.io/team/x", "team"),
            ("reg.io/team/app:1", "app"),
            ("a.wild.io/x", "wild"),
            ("a.b.wild.io/x", ""),
            ("old.io/x", "old"),
            ("helped.io/x", ""),
            ("other.io/a", ""),
        ];
        for (image, wanted) in table {
            assert_eq!(user(&logins, image), wanted, "{image}");
        }
    }

    #[test]
    fn all_logins_that_cover_an_image_are_tried_the_most_specific_first() {
        let parse = |text: &str| Logins::parse(text.as_bytes()).expect("logins");
        let mut logins = parse(
            r#"{"auths": {
                "reg.io": {"username": "one", "password": "y"},
                "https://reg.io/v1/": {"username": "two", "password": "y"},
                "reg.io/other": {"username": "none", "password": "y"}
            }}"#,
        );
        logins.add(parse(
            r#"{"auths": {
                "reg.io": {"username": "three", "password": "y"},
                "reg.io/team": {"username": "four", "password": "y"}
            }}"#,
        ));
        let image = "reg.io/team/x".parse().expect("a name");
        let users = logins.matching(&image).into_iter();
        let users: Vec<_> = users.map(|login| &*login.username).collect();
        assert_eq!(users[0], "four");
        assert_eq!(users[3], "three");
        assert_eq!(users.len(), 4);
    }

    #[test]
    fn passwords_may_have_colons_and_the_old_form_is_read() {
        let logins = Logins::parse_old(br#"{"reg.io": {"auth": "dTphOmI="}}"#).expect("logins");
        let login = logins.matching(&"reg.io/x".parse().expect("a name"));
        assert_eq!(login.first().map(|login| &*login.password), Some("a:b"));
        assert!(!format!("{logins:?}").contains("a:b"), "{logins:?}");
    }

    #[test]
    fn broken_files_are_refused() {
        for (text, message) in [
            ("7", "parse the registries' logins"),
            (r#"{"auths": {"r": {"auth": "%"}}}"#, "registry r"),
            (
                r#"{"auths": {"r": {"auth": "bm9jb2xvbg=="}}}"#,
                "registry r",
            ),
        ] {
            let error = Logins::parse(text.as_bytes()).expect_err(text);
            assert!(error.to_string().contains(message), "{error}");
        }
    }
}
