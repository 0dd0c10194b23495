//! Manifests and manifest lists, OCI's and Docker's: which blobs an image is made of.

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;

use crate::digest::{Digest, DigestError};

/// The longest manifest or configuration that is read. Docker's registry takes 4 MiB.
pub(crate) const LIMIT: u64 = 8 << 20;

/// What a registry may answer when asked for a manifest.
pub(crate) const MEDIA_TYPES: &[&str] = &[
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// Why a manifest or a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not what the specification asks for.
    #[error("parse {what} {digest}")]
    Malformed {
        /// `manifest` or `configuration`.
        what: &'static str,
        /// Which.
        digest: Digest,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Manifests of schema 1 went out of use in 2017.
    #[error("manifest {digest} has schema version 1, which is no longer supported")]
    Schema1 {
        /// Which.
        digest: Digest,
    },
    /// The list has nothing for this machine.
    #[error("no match for platform linux/{architecture} in manifest {digest}")]
    NoPlatform {
        /// Which.
        digest: Digest,
        /// This machine's architecture.
        architecture: &'static str,
    },
    /// A digest that is not SHA-256.
    #[error("in {digest}")]
    Digest {
        /// The manifest or configuration.
        digest: Digest,
        /// The digest in it.
        source: DigestError,
    },
    /// Manifest and configuration do not fit together.
    #[error("manifest {digest} has {layers} layers, its configuration {diff_ids}")]
    LayerCount {
        /// The manifest.
        digest: Digest,
        /// Its layers.
        layers: usize,
        /// The configuration's diff ids.
        diff_ids: usize,
    },
    /// Something else than a file system: an artifact, an encrypted layer.
    #[error("layer {layer} has unsupported media type {media_type}")]
    MediaType {
        /// The layer.
        layer: Digest,
        /// Its media type.
        media_type: String,
    },
    /// Lists of lists of lists.
    #[error("manifest {digest} is a list in a list")]
    Nested {
        /// Which.
        digest: Digest,
    },
}

/// A blob of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

#[derive(Debug)]
pub(crate) enum Document {
    /// The entry of a list that is for this machine.
    List(Blob),
    Image(Manifest),
}

/// An image's manifest: what the parts are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) digest: Digest,
    pub(crate) config: Blob,
    /// The lowest layer first.
    pub(crate) layers: Vec<Blob>,
}

/// This machine's architecture in Go's words, and its variant.
fn platform() -> (&'static str, Option<&'static str>) {
    match std::env::consts::ARCH {
        "x86_64" => ("amd64", None),
        "aarch64" => ("arm64", Some("v8")),
        "x86" => ("386", None),
        "powerpc64" => ("ppc64le", None),
        other => (other, None),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u32>,
    manifests: Option<serde_json::Value>,
}

impl Document {
    pub(crate) fn parse(digest: &Digest, text: &[u8]) -> Result<Self, ManifestError> {
        let malformed = |source| ManifestError::Malformed {
            what: "manifest",
            digest: digest.clone(),
            source,
        };
        let shape: Shape = serde_json::from_slice(text).map_err(malformed)?;
        if shape.schema_version == Some(1) {
            return Err(ManifestError::Schema1 {
                digest: digest.clone(),
            });
        }
        // Not by media type: it may be absent, and the two kinds cannot be mistaken for each other.
        if shape.manifests.is_some() {
            let index: ImageIndex = serde_json::from_slice(text).map_err(malformed)?;
            return Ok(Self::List(pick(digest, index.manifests())?));
        }
        let manifest: ImageManifest = serde_json::from_slice(text).map_err(malformed)?;
        let blob = |descriptor: &Descriptor| blob(digest, descriptor);
        let mut layers = Vec::new();
        for descriptor in manifest.layers() {
            let layer = blob(descriptor)?;
            let media_type = descriptor.media_type().to_string();
            if !is_file_system(&media_type) {
                return Err(ManifestError::MediaType {
                    layer: layer.digest,
                    media_type,
                });
            }
            layers.push(layer);
        }
        Ok(Self::Image(Manifest {
            digest: digest.clone(),
            config: blob(manifest.config())?,
            layers,
        }))
    }
}

impl Manifest {
    /// Reads the configuration; its diff ids fit the manifest's layers one to one.
    pub(crate) fn config(
        &self,
        text: &[u8],
    ) -> Result<(ImageConfiguration, Vec<Digest>), ManifestError> {
        let config = parse_config(&self.config.digest, text)?;
        let diff_ids = config.rootfs().diff_ids();
        if diff_ids.len() != self.layers.len() {
            return Err(ManifestError::LayerCount {
                digest: self.digest.clone(),
                layers: self.layers.len(),
                diff_ids: diff_ids.len(),
            });
        }
        let diff_ids = diff_ids
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_, _>>()
            .map_err(|source| ManifestError::Digest {
                digest: self.config.digest.clone(),
                source,
            })?;
        Ok((config, diff_ids))
    }
}

pub(crate) fn parse_config(
    digest: &Digest,
    text: &[u8],
) -> Result<ImageConfiguration, ManifestError> {
    serde_json::from_slice(text).map_err(|source| ManifestError::Malformed {
        what: "configuration",
        digest: digest.clone(),
        source,
    })
}

fn blob(within: &Digest, descriptor: &Descriptor) -> Result<Blob, ManifestError> {
    let digest = descriptor.digest().to_string().parse();
    Ok(Blob {
        digest: digest.map_err(|source| ManifestError::Digest {
            digest: within.clone(),
            source,
        })?,
        size: descriptor.size(),
    })
}

/// Any tar archive, of whatever compression; that is seen in its first bytes.
fn is_file_system(media_type: &str) -> bool {
    [
        "application/vnd.oci.image.layer.",
        "application/vnd.docker.image.rootfs.",
    ]
    .iter()
    .any(|prefix| media_type.starts_with(prefix))
        && media_type.contains("tar")
        && !media_type.ends_with("+encrypted")
}

fn pick(list: &Digest, manifests: &[Descriptor]) -> Result<Blob, ManifestError> {
    let (architecture, variant) = platform();
    let fits = |descriptor: &&Descriptor| match descriptor.platform() {
        // A list of one, as `skopeo` and `docker save` write it, names no platform.
        None => manifests.len() == 1,
        Some(platform) => {
            platform.os().to_string() == "linux"
                && platform.architecture().to_string() == architecture
                && (platform.variant().as_deref().is_none()
                    || platform.variant().as_deref() == variant)
        }
    };
    match manifests.iter().find(fits) {
        Some(descriptor) => blob(list, descriptor),
        None => Err(ManifestError::NoPlatform {
            digest: list.clone(),
            architecture,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn descriptor(content: &str, media_type: &str) -> serde_json::Value {
        json!({ "mediaType": media_type, "digest": Digest::of(content.as_bytes()), "size": content.len() })
    }

    fn parse(document: &serde_json::Value) -> Result<Document, ManifestError> {
        let text = document.to_string();
        Document::parse(&Digest::of(text.as_bytes()), text.as_bytes())
    }

    #[test]
    fn a_list_yields_the_entry_for_this_machine() {
        let entry = |content: &str, os: &str, architecture: &str| {
            let mut entry = descriptor(content, MEDIA_TYPES[1]);
            entry["platform"] = json!({ "os": os, "architecture": architecture });
            entry
        };
        let list = json!({ "schemaVersion": 2, "manifests": [
            entry("windows", "windows", platform().0),
            entry("other", "linux", "mips"),
            entry("ours", "linux", platform().0),
            entry("attestation", "unknown", "unknown"),
        ]});
        let Ok(Document::List(blob)) = parse(&list) else {
            panic!("{list}")
        };
        assert_eq!(blob.digest, Digest::of(b"ours"));
        let none = json!({ "schemaVersion": 2, "manifests": [entry("other", "linux", "mips")] });
        let err = parse(&none).unwrap_err();
        assert!(matches!(err, ManifestError::NoPlatform { .. }), "{err}");
    }

    #[test]
    fn dockers_and_ocis_manifests_are_read_and_others_refused() {
        let manifest = |layer: &str| {
            json!({
                "schemaVersion": 2,
                "config": descriptor("{}", "application/vnd.docker.container.image.v1+json"),
                "layers": [descriptor("layer", layer)],
            })
        };
        for layer in [
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        ] {
            assert!(
                matches!(parse(&manifest(layer)), Ok(Document::Image(_))),
                "{layer}"
            );
        }
        for layer in [
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "application/vnd.wasm.content.layer.v1+wasm",
        ] {
            let err = parse(&manifest(layer)).unwrap_err();
            assert!(matches!(err, ManifestError::MediaType { .. }), "{err}");
        }
        let err = parse(&json!({ "schemaVersion": 1 })).unwrap_err();
        assert!(matches!(err, ManifestError::Schema1 { .. }), "{err}");
        let err = Document::parse(&Digest::of(b"["), b"[").unwrap_err();
        assert!(matches!(err, ManifestError::Malformed { .. }), "{err}");
    }
}
