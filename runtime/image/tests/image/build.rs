//! Images made by the tests: archives entry by entry, layouts, docker archives.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use knarr_image::Digest;
use serde_json::{Value, json};
use tar::{EntryType, Header};

/// A directory in memory, where there is one for this: the store syncs often, and other tests may keep the disk busy.
pub fn temp_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// How a layer is compressed.
#[derive(Clone, Copy)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// An archive under construction.
pub struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(path, EntryType::Regular, 0o644, "", content)
    }

    pub fn directory(self, path: &str) -> Self {
        self.entry(path, EntryType::Directory, 0o755, "", b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Symlink, 0o777, target, b"")
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Link, 0o644, target, b"")
    }

    pub fn device(mut self, path: &str, major: u32, minor: u32) -> Self {
        let mut header = header(path, EntryType::Char, 0o600, "", 0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        header.set_cksum();
        self.0.append(&header, &b""[..]).unwrap();
        self
    }

    /// The path is written as it stands: the checks of `tar::Builder` are not for us.
    pub fn entry(
        mut self,
        path: &str,
        kind: EntryType,
        mode: u32,
        link: &str,
        content: &[u8],
    ) -> Self {
        let header = header(path, kind, mode, link, content.len());
        self.0.append(&header, content).unwrap();
        self
    }

    /// Extended attributes of the next entry.
    pub fn attributes(mut self, attributes: &[(&str, &[u8])]) -> Self {
        let named: Vec<_> = attributes
            .iter()
            .map(|(name, value)| (format!("SCHILY.xattr.{name}"), *value))
            .collect();
        let pairs = named.iter().map(|(name, value)| (&**name, *value));
        self.0.append_pax_extensions(pairs).unwrap();
        self
    }

    pub fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn header(path: &str, kind: EntryType, mode: u32, link: &str, size: usize) -> Header {
    let mut header = Header::new_ustar();
    let old = header.as_old_mut();
    old.name[..path.len()].copy_from_slice(path.as_bytes());
    old.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(size as u64);
    header.set_cksum();
    header
}

/// An image under construction.
pub struct TestImage {
    layers: Vec<(Vec<u8>, Compression)>,
    /// Those that are packed already, by the place of the layer.
    packed: BTreeMap<usize, Vec<u8>>,
    env: Vec<String>,
}

/// Its files in an OCI layout.
pub struct Layout {
    pub files: BTreeMap<String, Vec<u8>>,
    pub manifest: Digest,
    pub config: Digest,
    pub layers: Vec<Digest>,
}

impl TestImage {
    pub fn new() -> Self {
        Self {
            layers: Vec::new(),
            packed: BTreeMap::new(),
            env: vec!["PATH=/bin".to_owned()],
        }
    }

    /// Two layers of different compression.
    pub fn sample() -> Self {
        let program: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let base = Archive::new()
            .directory("bin/")
            .entry("bin/program", EntryType::Regular, 0o755, "", &program)
            .hard_link("bin/sh", "bin/program");
        let top = Archive::new()
            .directory("etc/")
            .file("etc/motd", b"hello\n");
        Self::new()
            .layer(base.finish(), Compression::Gzip)
            .layer(top.finish(), Compression::Zstd)
    }

    pub fn layer(mut self, archive: Vec<u8>, compression: Compression) -> Self {
        self.layers.push((archive, compression));
        self
    }

    /// A layer that was compressed in some other way.
    pub fn packed_layer(mut self, archive: Vec<u8>, packed: Vec<u8>) -> Self {
        self.packed.insert(self.layers.len(), packed);
        self.layer(archive, Compression::None)
    }

    /// Makes it another image than its like.
    pub fn env(mut self, variable: &str) -> Self {
        self.env.push(variable.to_owned());
        self
    }

    pub fn config(&self) -> Vec<u8> {
        let diff_ids: Vec<_> = self.layers.iter().map(|(tar, _)| Digest::of(tar)).collect();
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        json!({
            "architecture": architecture,
            "os": "linux",
            "config": { "Env": self.env, "Cmd": ["/bin/sh"], "User": "nobody" },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        })
        .to_string()
        .into_bytes()
    }

    /// The image as an OCI layout under the given name.
    pub fn layout(&self, name: &str) -> Layout {
        let mut files = BTreeMap::new();
        let mut blob = |content: Vec<u8>, media_type: &str| -> (Digest, Value) {
            let digest = Digest::of(&content);
            let descriptor =
                json!({ "mediaType": media_type, "digest": digest, "size": content.len() });
            files.insert(format!("blobs/sha256/{}", digest.hex()), content);
            (digest, descriptor)
        };
        let mut descriptors = Vec::new();
        let mut layers = Vec::new();
        for (at, (tar, compression)) in self.layers.iter().enumerate() {
            let (content, suffix) = match compression {
                _ if self.packed.contains_key(&at) => (self.packed[&at].clone(), ""),
                Compression::None => (tar.clone(), ""),
                Compression::Gzip => (gzip(tar), "+gzip"),
                Compression::Zstd => (zstd::encode_all(&**tar, 1).unwrap(), "+zstd"),
            };
            let media_type = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
            let (digest, descriptor) = blob(content, &media_type);
            layers.push(digest);
            descriptors.push(descriptor);
        }
        let (config, descriptor) = blob(self.config(), "application/vnd.oci.image.config.v1+json");
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor,
            "layers": descriptors,
        });
        let (manifest, mut descriptor) = blob(
            manifest.to_string().into_bytes(),
            "application/vnd.oci.image.manifest.v1+json",
        );
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        let index = json!({ "schemaVersion": 2, "manifests": [descriptor] });
        files.insert("index.json".to_owned(), index.to_string().into_bytes());
        files.insert(
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        );
        Layout {
            files,
            manifest,
            config,
            layers,
        }
    }

    /// The image as `docker save` writes it.
    pub fn docker_archive(&self, tags: &[&str]) -> Vec<u8> {
        let config = self.config();
        let config_name = format!("{}.json", Digest::of(&config).hex());
        let mut archive = Archive::new();
        let mut names = Vec::new();
        for (i, (tar, _)) in self.layers.iter().enumerate() {
            let name = format!("{i}/layer.tar");
            archive = archive.file(&name, tar);
            names.push(name);
        }
        let manifest = json!([{ "Config": config_name, "RepoTags": tags, "Layers": names }]);
        archive
            .file(&config_name, &config)
            .file("manifest.json", manifest.to_string().as_bytes())
            .finish()
    }
}

impl Layout {
    /// Adds a blob.
    pub fn add(&mut self, content: Vec<u8>) -> Digest {
        let digest = Digest::of(&content);
        self.files
            .insert(format!("blobs/sha256/{}", digest.hex()), content);
        digest
    }

    /// A manifest or a list.
    pub fn document(&self, digest: &Digest) -> Value {
        serde_json::from_slice(&self.files[&format!("blobs/sha256/{}", digest.hex())]).unwrap()
    }

    pub fn write_to(&self, dir: &Path) {
        for (name, content) in &self.files {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    pub fn tar(&self) -> Vec<u8> {
        let mut archive = Archive::new();
        for (name, content) in &self.files {
            archive = archive.file(name, content);
        }
        archive.finish()
    }
}

pub fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}
