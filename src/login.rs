//! The login for a registry: from the command line, or from the files that `podman login` and `docker login` write.

use std::env;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;
use knarr_image::{Auth, Login, Logins, Reference};

use crate::cli::Credentials;

/// What `--creds` or `--authfile` say; without them, what the first file that knows the registry says. All that fit, in the order in
/// which they are to be tried.
///
/// # Errors
///
/// A file cannot be read, or `--creds` is not `USER:PASSWORD`.
pub fn find(given: &Credentials, image: &Reference) -> anyhow::Result<Vec<Auth>> {
    if let Some(text) = &given.creds {
        let login = text.split_once(':').filter(|(user, _)| !user.is_empty());
        let (username, password) = login.context("--creds is not USER:PASSWORD")?;
        return Ok(vec![Auth::Basic {
            username: username.to_owned(),
            password: password.to_owned(),
        }]);
    }
    let variable = |name: &str| env::var_os(name).map(PathBuf::from);
    let chosen = given.authfile.clone();
    if let Some(path) = chosen.or_else(|| variable("REGISTRY_AUTH_FILE")) {
        let logins = read(&path)?.with_context(|| format!("{} is not there", path.display()))?;
        return Ok(auths(&logins, image));
    }
    for path in usual_files(variable) {
        let logins = read(&path)?.unwrap_or_default();
        let auths = auths(&logins, image);
        if !auths.is_empty() {
            return Ok(auths);
        }
    }
    Ok(vec![])
}

fn auths(logins: &Logins, image: &Reference) -> Vec<Auth> {
    let matching = logins.matching(image).into_iter();
    matching
        .map(|Login { username, password }| Auth::Basic {
            username: username.clone(),
            password: password.clone(),
        })
        .collect()
}

/// `None` if there is no such file.
fn read(path: &Path) -> anyhow::Result<Option<Logins>> {
    match std::fs::read(path) {
        Ok(text) => Logins::parse(&text)
            .map(Some)
            .with_context(|| format!("read {}", path.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Where Podman and Docker keep logins, in the order in which Podman looks (containers-auth.json(5)).
fn usual_files(variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let home = variable("HOME").unwrap_or_else(|| "/root".into());
    let runtime = variable("XDG_RUNTIME_DIR").map_or_else(
        || format!("/run/containers/{}", nix::unistd::Uid::current()).into(),
        |dir| dir.join("containers"),
    );
    let config = variable("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
    let docker = variable("DOCKER_CONFIG").unwrap_or_else(|| home.join(".docker"));
    vec![
        runtime.join("auth.json"),
        config.join("containers/auth.json"),
        docker.join("config.json"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_files_are_podmans_and_then_dockers() {
        let files = usual_files(|name| (name == "HOME").then(|| "/home/anna".into()));
        assert!(files[0].starts_with("/run/containers"), "{files:?}");
        assert_eq!(
            files[1..],
            [
                PathBuf::from("/home/anna/.config/containers/auth.json"),
                PathBuf::from("/home/anna/.docker/config.json")
            ]
        );
        let files = usual_files(|name| Some(format!("/{name}").into()));
        assert_eq!(
            files,
            [
                PathBuf::from("/XDG_RUNTIME_DIR/containers/auth.json"),
                PathBuf::from("/XDG_CONFIG_HOME/containers/auth.json"),
                PathBuf::from("/DOCKER_CONFIG/config.json")
            ]
        );
    }

    #[test]
    fn a_login_of_the_command_line_wins() {
        let image = "reg.io/x".parse().expect("a name");
        let given = |creds: &str| Credentials {
            creds: Some(creds.to_owned()),
            authfile: None,
        };
        let auths = find(&given("anna:a:b"), &image).expect("a login");
        assert!(
            auths
                == [Auth::Basic {
                    username: "anna".to_owned(),
                    password: "a:b".to_owned()
                }]
        );
        for bad in ["anna", ":secret"] {
            assert!(find(&given(bad), &image).is_err(), "{bad}");
        }
    }
}
