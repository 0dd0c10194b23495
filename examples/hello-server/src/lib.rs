//! Makes container images out of single programs, with no tool but this: how the demo gets its image without a registry.
//!
//! The programs are `hello-server` (the demo itself, only the standard library) and `hello-pack` (its image).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// An image of a few files in one layer.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// `knarr.local/hello:v1`
    pub name: String,
    /// Environment variables, `NAME=value`.
    pub env: Vec<String>,
    /// What is run.
    pub entrypoint: Vec<String>,
    files: Vec<(String, Entry)>,
}

#[derive(Clone, Debug)]
enum Entry {
    Program(Vec<u8>),
    Text(String),
    Link(String),
    Directory { mode: u32 },
}

impl Image {
    /// An image with nothing in it.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    /// Adds a program from a file; `path` has no leading slash.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn program(mut self, path: &str, file: &Path) -> io::Result<Self> {
        let content = std::fs::read(file)?;
        self.files.push((path.to_owned(), Entry::Program(content)));
        Ok(self)
    }

    /// Adds a text file.
    pub fn text(mut self, path: &str, content: &str) -> Self {
        let entry = Entry::Text(content.to_owned());
        self.files.push((path.to_owned(), entry));
        self
    }

    /// Adds a symbolic link.
    pub fn link(mut self, path: &str, target: &str) -> Self {
        let entry = Entry::Link(target.to_owned());
        self.files.push((path.to_owned(), entry));
        self
    }

    /// Adds a directory.
    pub fn directory(mut self, path: &str, mode: u32) -> Self {
        let entry = Entry::Directory { mode };
        self.files.push((path.to_owned(), entry));
        self
    }

    /// The image as a tar archive of an OCI layout (OCI image specification, image-layout.md).
    ///
    /// Equal images give equal archives: no times, no order by chance.
    ///
    /// # Errors
    ///
    /// A path is too long for the archive.
    pub fn oci_layout(&self) -> io::Result<Vec<u8>> {
        let layer = self.layer()?;
        let diff_id = digest(&layer);
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": { "Env": self.env, "Entrypoint": self.entrypoint },
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        });
        let mut files = BTreeMap::new();
        let mut blob = |media_type: &str, content: Vec<u8>| -> Value {
            let digest = digest(&content);
            let descriptor =
                json!({ "mediaType": media_type, "digest": digest, "size": content.len() });
            files.insert(format!("blobs/{}", digest.replace(':', "/")), content);
            descriptor
        };
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": blob("application/vnd.oci.image.config.v1+json", bytes(&config)),
            "layers": [blob("application/vnd.oci.image.layer.v1.tar", layer)],
        });
        let mut manifest = blob(manifest_type, bytes(&manifest));
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": self.name });
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        files.insert("index.json".to_owned(), bytes(&index));
        let layout = json!({ "imageLayoutVersion": "1.0.0" });
        files.insert("oci-layout".to_owned(), bytes(&layout));

        let mut archive = tar::Builder::new(Vec::new());
        for (name, content) in files {
            append(&mut archive, &name, &Entry::Text(String::new()), &content)?;
        }
        archive.into_inner()
    }

    fn layer(&self) -> io::Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, entry) in &self.files {
            let content: &[u8] = match entry {
                Entry::Program(content) => content,
                Entry::Text(content) => content.as_bytes(),
                Entry::Link(_) | Entry::Directory { .. } => &[],
            };
            append(&mut archive, path, entry, content)?;
        }
        archive.into_inner()
    }
}

fn append(
    archive: &mut tar::Builder<Vec<u8>>,
    path: &str,
    entry: &Entry,
    content: &[u8],
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    let (kind, mode) = match entry {
        Entry::Program(_) => (tar::EntryType::Regular, 0o755),
        Entry::Text(_) => (tar::EntryType::Regular, 0o644),
        Entry::Directory { mode } => (tar::EntryType::Directory, *mode),
        Entry::Link(_) => (tar::EntryType::Symlink, 0o777),
    };
    header.set_entry_type(kind);
    header.set_mode(mode);
    match entry {
        Entry::Link(target) => archive.append_link(&mut header, path, target),
        _ => archive.append_data(&mut header, path, content),
    }
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(content)))
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_all_its_blobs_under_their_digests() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let image = Image::new("x/y:1")
            .directory("tmp", 0o1777)
            .program("bin/program", file.path())
            .unwrap()
            .link("bin/sh", "program");
        let archive = image.oci_layout().unwrap();
        assert_eq!(archive, image.oci_layout().unwrap());
        let mut names = Vec::new();
        for entry in tar::Archive::new(&*archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            io::Read::read_to_end(&mut entry, &mut content).unwrap();
            let name = entry.path().unwrap().to_str().unwrap().to_owned();
            if let Some(hex) = name.strip_prefix("blobs/sha256/") {
                assert_eq!(digest(&content), format!("sha256:{hex}"));
            } else {
                names.push(name);
            }
        }
        assert_eq!(names, ["index.json", "oci-layout"]);
    }
}
