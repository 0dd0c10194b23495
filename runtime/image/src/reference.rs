//! Names of images, normalised as Docker and the kubelet do.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::digest::Digest;

/// The name of an image in a registry: `registry/repository[:tag][@digest]`, always complete.
///
/// `busybox` is `docker.io/library/busybox:latest`. A name with neither tag nor digest gets the tag
/// `latest`; one with a digest is pulled by it, whatever its tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference(oci_spec::distribution::Reference);

/// A text that names no image: what a kubelet reports as `InvalidImageName`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("couldn't parse image name {text:?}")]
pub struct InvalidReference {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub source: InvalidName,
}

/// What is wrong with an image's name, in Docker's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// It does not have the form of a reference.
    #[error("invalid reference format")]
    Format,
    /// It would be a reference in lower case.
    #[error("invalid reference format: repository name must be lowercase")]
    Uppercase,
    /// 64 hexadecimal digits are an image's id.
    #[error("invalid repository name, cannot specify 64-byte hexadecimal strings")]
    IsId,
    /// Its repository is longer than 255 characters.
    #[error("repository name must not be more than 255 characters")]
    TooLong,
    /// Its digest is not a sha256 digest.
    #[error("unsupported digest")]
    Digest,
}

impl Reference {
    /// Host and port of the registry: `docker.io`, `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        self.0.registry()
    }

    /// Registry and repository: `docker.io/library/busybox`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.0.registry(), self.0.repository())
    }

    /// Registry, repository and tag, if it has a tag.
    pub fn tagged(&self) -> Option<String> {
        Some(format!("{}:{}", self.name(), self.0.tag()?))
    }

    /// The digest of the manifest that it demands, if it does.
    pub fn digest(&self) -> Option<Digest> {
        // Checked by `from_str`, so nothing is lost by `ok`.
        self.0.digest().and_then(|text| text.parse().ok())
    }

    /// Registry, repository and the given digest.
    pub fn with_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }

    /// Whether the registry is on this machine, so that it may speak plain HTTP.
    pub fn is_loopback(&self) -> bool {
        let host = match self.registry().rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => self.registry(),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }

    /// Host and port of the server that is asked: Docker Hub's is not at `docker.io`.
    pub(crate) fn host(&self) -> &str {
        self.0.resolve_registry()
    }

    /// The name within the registry: `library/busybox`.
    pub(crate) fn repository(&self) -> &str {
        self.0.repository()
    }

    /// What to ask the registry for: the digest if there is one, else the tag.
    pub(crate) fn tag_or_digest(&self) -> &str {
        let tag = || self.0.tag().expect("a name without digest has a tag");
        self.0.digest().unwrap_or_else(tag)
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let fail = |source| InvalidReference {
            text: text.to_owned(),
            source,
        };
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(fail(InvalidName::IsId));
        }
        let parse = |text: &str| text.parse::<oci_spec::distribution::Reference>();
        let shape = || match parse(&text.to_ascii_lowercase()) {
            Ok(_) => InvalidName::Uppercase,
            Err(_) => InvalidName::Format,
        };
        let reference = parse(text).map_err(|err| {
            use oci_spec::distribution::ParseError as E;
            fail(match err {
                E::NameTooLong => InvalidName::TooLong,
                E::DigestInvalidFormat | E::DigestInvalidLength | E::DigestUnsupported => {
                    InvalidName::Digest
                }
                _ => shape(),
            })
        })?;
        // The first part may have capitals as the name of a registry, and be taken for a part of the repository after all.
        if !parse(&reference.to_string()).is_ok_and(|again| again == reference) {
            return Err(fail(shape()));
        }
        if reference
            .digest()
            .is_some_and(|digest| digest.parse::<Digest>().is_err())
        {
            return Err(fail(InvalidName::Digest));
        }
        Ok(Self(reference))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_are_completed_as_docker_does() {
        let table = [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("grafana/loki", "docker.io/grafana/loki:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            (
                "index.docker.io/busybox",
                "docker.io/library/busybox:latest",
            ),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x:v1", "localhost:5000/x:v1"),
            (
                "127.0.0.1:5000/a/b-c__d.e:V_1",
                "127.0.0.1:5000/a/b-c__d.e:V_1",
            ),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("knarr.local/hello:v1", "knarr.local/hello:v1"),
        ];
        for (text, whole) in table {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), whole);
        }
    }

    #[test]
    fn a_digest_takes_the_place_of_the_default_tag() {
        let reference: Reference = format!("busybox@sha256:{HEX}").parse().unwrap();
        assert_eq!(reference.tagged(), None);
        assert_eq!(reference.digest(), Some(Digest::of(b"")));
        let both: Reference = format!("busybox:1@sha256:{HEX}").parse().unwrap();
        assert_eq!(
            both.tagged().as_deref(),
            Some("docker.io/library/busybox:1")
        );
        assert_eq!(both.digest(), Some(Digest::of(b"")));
    }

    #[test]
    fn wrong_names_say_why() {
        let table = [
            ("", InvalidName::Format),
            ("Busybox", InvalidName::Uppercase),
            ("Library/busybox", InvalidName::Uppercase),
            (HEX, InvalidName::IsId),
            ("a b", InvalidName::Format),
            ("busybox:", InvalidName::Format),
            ("busybox@sha256:abc", InvalidName::Format),
            ("../etc/passwd", InvalidName::Format),
            ("http://example.com/x", InvalidName::Format),
        ];
        for (text, why) in table {
            assert_eq!(text.parse::<Reference>().unwrap_err().source, why, "{text}");
        }
    }

    #[test]
    fn loopback_registries_are_known() {
        for (text, loopback) in [
            ("127.0.0.1:5000/x", true),
            ("127.8.9.1/x", true),
            ("localhost:1/x", true),
            ("localhost/x", true),
            ("localhost.example.com/x", false),
            ("10.0.0.1:5000/x", false),
            ("busybox", false),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.is_loopback(), loopback, "{text}");
        }
    }
}
