//! Manifests and manifest lists, OCI's and Docker's: which blobs an image is made of.

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use crate::digest::{Digest, DigestError};
use crate::platform::{self, Platform};

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
    #[error("layer {layer} has unsupported media type {media_type:?}")]
    MediaType {
        /// The layer.
        layer: Digest,
        /// Its media type.
        media_type: String,
    },
    /// Lists of lists without end.
    #[error("manifest {digest} leads to over {limit} others")]
    TooMany {
        /// Which.
        digest: Digest,
        /// The most that are looked at.
        limit: usize,
    },
    /// Two things at once, which two readers would take for different images.
    #[error("{digest} is both a manifest and a list of manifests")]
    Ambiguous {
        /// Which.
        digest: Digest,
    },
    /// A manifest that does not say what the image is.
    #[error("manifest {digest} has no configuration")]
    NoConfig {
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
    /// The entries of a list that may be for this machine, the best first.
    List(Vec<Listed>),
    Image(Manifest),
}

/// An entry of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) digest: Digest,
    /// The list says that it is for this machine; else its content has to.
    pub(crate) platform_known: bool,
}

/// An image's manifest: what the parts are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) digest: Digest,
    pub(crate) config: Blob,
    /// The lowest layer first.
    pub(crate) layers: Vec<Blob>,
}

/// A manifest or a list of them. Types are checked where they matter: what is absent, null or unknown elsewhere is no reason to
/// refuse an image.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u32>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: Option<String>,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

impl Descriptor {
    fn media_type(&self) -> &str {
        self.media_type.as_deref().unwrap_or_default()
    }

    fn blob(&self, within: &Digest) -> Result<Blob, ManifestError> {
        let digest = self.digest.parse();
        Ok(Blob {
            digest: digest.map_err(|source| ManifestError::Digest {
                digest: within.clone(),
                source,
            })?,
            size: self.size,
        })
    }
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
        let ambiguous = || ManifestError::Ambiguous {
            digest: digest.clone(),
        };
        // Not by media type, which may be absent or wrong. What is both is neither: CVE-2021-41190.
        match (shape.manifests, shape.config) {
            (Some(manifests), None) if shape.layers.is_none() => {
                Ok(Self::List(pick(digest, &manifests)?))
            }
            (None, Some(config)) => {
                let layers = shape.layers.unwrap_or_default();
                Ok(Self::Image(Manifest {
                    digest: digest.clone(),
                    config: config.blob(digest)?,
                    layers: file_systems(digest, &layers)?,
                }))
            }
            (None, None) => Err(ManifestError::NoConfig {
                digest: digest.clone(),
            }),
            _ => Err(ambiguous()),
        }
    }
}

impl ManifestError {
    pub(crate) fn no_platform(digest: &Digest) -> Self {
        Self::NoPlatform {
            digest: digest.clone(),
            architecture: platform::architecture(),
        }
    }
}

impl Manifest {
    /// Whether the configuration says that the image is for this machine. What is no configuration does not say so.
    pub(crate) fn fits(config: &[u8]) -> bool {
        serde_json::from_slice(config).is_ok_and(|platform: Platform| platform.rank().is_some())
    }

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
    let parse = || {
        let mut config: serde_json::Value = serde_json::from_slice(text)?;
        fill_in(&mut config);
        serde_json::from_value(config)
    };
    parse().map_err(|source| ManifestError::Malformed {
        what: "configuration",
        digest: digest.clone(),
        source,
    })
}

/// What is absent or null is empty for engines in Go, and our types demand it.
fn fill_in(config: &mut serde_json::Value) {
    let Some(config) = config.as_object_mut() else {
        return;
    };
    let empty = |name: &str| match name {
        "rootfs" => serde_json::json!({}),
        "diff_ids" => serde_json::json!([]),
        _ => serde_json::json!(""),
    };
    let fill = |object: &mut serde_json::Map<String, serde_json::Value>, name: &str| {
        if object.get(name).is_none_or(serde_json::Value::is_null) {
            object.insert(name.to_owned(), empty(name));
        }
    };
    for name in ["architecture", "os", "rootfs"] {
        fill(config, name);
    }
    if let Some(rootfs) = config["rootfs"].as_object_mut() {
        fill(rootfs, "type");
        fill(rootfs, "diff_ids");
    }
}

/// The layers among what a manifest has: something else beside them is no part of the file system, as for containerd.
fn file_systems(within: &Digest, descriptors: &[Descriptor]) -> Result<Vec<Blob>, ManifestError> {
    let mut layers = Vec::new();
    let mut other = None;
    for descriptor in descriptors {
        let blob = descriptor.blob(within)?;
        let unusable = match descriptor.media_type() {
            // Left out by hand-made manifests; the blob shows what it is.
            "" => false,
            media_type if media_type.ends_with("+encrypted") => true,
            media_type if is_layer(media_type) => false,
            _ => {
                other.get_or_insert((blob.digest, descriptor.media_type()));
                continue;
            }
        };
        if unusable {
            other = Some((blob.digest, descriptor.media_type()));
            layers.clear();
            break;
        }
        layers.push(blob);
    }
    match other {
        Some((layer, media_type)) if layers.is_empty() => Err(ManifestError::MediaType {
            layer,
            media_type: media_type.to_owned(),
        }),
        _ => Ok(layers),
    }
}

/// Any archive, of whatever compression; that is seen in its first bytes.
fn is_layer(media_type: &str) -> bool {
    [
        "application/vnd.oci.image.layer.",
        "application/vnd.docker.image.rootfs.",
    ]
    .iter()
    .any(|prefix| media_type.starts_with(prefix))
}

/// The entries that may be for this machine: first those that say so, then those that say nothing.
fn pick(list: &Digest, manifests: &[Descriptor]) -> Result<Vec<Listed>, ManifestError> {
    let mut fitting = Vec::new();
    for descriptor in manifests {
        // An attestation, a signature, something new.
        if !matches!(descriptor.media_type(), "") && !MEDIA_TYPES.contains(&descriptor.media_type())
        {
            continue;
        }
        let rank = match &descriptor.platform {
            None => usize::MAX,
            Some(platform) => match platform.rank() {
                Some(rank) => rank,
                None => continue,
            },
        };
        let listed = Listed {
            digest: descriptor.blob(list)?.digest,
            platform_known: descriptor.platform.is_some(),
        };
        fitting.push((rank, listed));
    }
    // Stable: of those that fit equally well the first.
    fitting.sort_by_key(|(rank, _)| *rank);
    Ok(fitting.into_iter().map(|(_, listed)| listed).collect())
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

    fn list(manifests: serde_json::Value) -> Vec<(Digest, bool)> {
        let list = json!({ "schemaVersion": 2, "manifests": manifests });
        let Ok(Document::List(list)) = parse(&list) else {
            panic!("{list}")
        };
        let listed = list.into_iter();
        listed.map(|one| (one.digest, one.platform_known)).collect()
    }

    #[test]
    fn a_list_yields_the_entries_for_this_machine_the_best_first() {
        let entry = |content: &str, platform: serde_json::Value| {
            let mut entry = descriptor(content, MEDIA_TYPES[1]);
            entry["platform"] = platform;
            entry
        };
        let ours = platform::architecture();
        let mut foreign = entry("foreign", json!({ "os": "linux", "architecture": ours }));
        foreign["mediaType"] = "application/vnd.example.thing+json".into();
        let mut sha512 = entry("sha512", json!({ "os": "linux", "architecture": "mips" }));
        sha512["digest"] = "sha512:00".into();
        let got = list(json!([
            entry("windows", json!({ "os": "windows", "architecture": ours })),
            entry(
                "other",
                json!({ "os": "linux", "architecture": "mips", "features": null })
            ),
            entry("silent", json!(null)),
            foreign,
            sha512,
            entry(
                "ours",
                json!({ "os": "linux", "architecture": ours, "variant": "" })
            ),
            entry(
                "attestation",
                json!({ "os": "unknown", "architecture": "unknown" })
            ),
            entry("second", json!({ "architecture": ours.to_uppercase() })),
        ]));
        let digest = |content: &str| Digest::of(content.as_bytes());
        let want = [("ours", true), ("second", true), ("silent", false)];
        assert_eq!(got, want.map(|(content, known)| (digest(content), known)));
        let none = json!([entry(
            "other",
            json!({ "os": "linux", "architecture": "mips" })
        )]);
        assert_eq!(list(none), []);
    }

    #[test]
    fn what_is_manifest_and_list_at_once_is_refused() {
        let config = descriptor("{}", "application/vnd.oci.image.config.v1+json");
        for both in [
            json!({ "schemaVersion": 2, "manifests": [], "config": config }),
            json!({ "schemaVersion": 2, "manifests": [], "layers": [] }),
        ] {
            let err = parse(&both).unwrap_err();
            assert!(matches!(err, ManifestError::Ambiguous { .. }), "{err}");
        }
        // What Go writes for an absent list is no list.
        let manifest = json!({ "manifests": null, "config": config, "layers": null });
        assert!(matches!(parse(&manifest), Ok(Document::Image(_))));
        let err = parse(&json!({ "schemaVersion": 2 })).unwrap_err();
        assert!(matches!(err, ManifestError::NoConfig { .. }), "{err}");
    }

    #[test]
    fn what_is_no_layer_is_left_out() {
        let layer = "application/vnd.oci.image.layer.v1.tar";
        let manifest = json!({
            "config": descriptor("{}", "x/y"),
            "layers": [
                descriptor("1", layer),
                descriptor("2", "application/vnd.in-toto+json"),
                descriptor("3", ""),
            ],
        });
        let Ok(Document::Image(manifest)) = parse(&manifest) else {
            panic!("{manifest}")
        };
        let layers: Vec<_> = manifest
            .layers
            .into_iter()
            .map(|blob| blob.digest)
            .collect();
        assert_eq!(layers, [Digest::of(b"1"), Digest::of(b"3")]);
    }

    #[test]
    fn configurations_that_other_engines_read_are_read() {
        let config = |rest: serde_json::Value| {
            let mut config = json!({
                "architecture": "amd64", "os": "linux",
                "rootfs": { "type": "layers", "diff_ids": [] },
            });
            let object = config.as_object_mut().unwrap();
            object.extend(rest.as_object().unwrap().clone());
            parse_config(&Digest::of(b""), config.to_string().as_bytes())
        };
        for rest in [
            json!({ "architecture": "x86_64", "os": "Linux" }),
            json!({ "architecture": "", "os": "" }),
            json!({ "config": null, "history": null, "created": null, "author": "" }),
            json!({ "variant": "", "os.version": "", "os.features": null }),
            json!({ "config": { "Env": null, "Cmd": null, "Entrypoint": null, "Volumes": null, "ExposedPorts": null, "Labels": null } }),
            json!({ "config": { "Volumes": {}, "ExposedPorts": {}, "User": "", "WorkingDir": "", "StopSignal": "" } }),
            json!({ "config": { "Volumes": { "/data": {} }, "ExposedPorts": { "80/tcp": {} }, "Healthcheck": { "Test": ["NONE"] }, "OnBuild": null, "Shell": ["x"] } }),
            json!({ "container_config": { "Hostname": "x" }, "docker_version": "1", "history": [{ "created": null }, {}] }),
            json!({ "rootfs": { "type": "", "diff_ids": [] } }),
            json!({ "rootfs": { "type": "layers", "diff_ids": null } }),
            json!({ "rootfs": null }),
            json!({ "architecture": null, "created": "yesterday" }),
        ] {
            let parsed = config(rest.clone());
            assert!(parsed.is_ok(), "{rest}: {parsed:?}");
        }
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
        let err = parse(&json!({ "schemaVersion": 1, "name": "x" })).unwrap_err();
        assert!(matches!(err, ManifestError::Schema1 { .. }), "{err}");
        let err = Document::parse(&Digest::of(b"["), b"[").unwrap_err();
        assert!(matches!(err, ManifestError::Malformed { .. }), "{err}");
    }
}
