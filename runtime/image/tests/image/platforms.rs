//! Which image of a list is taken, from files; the same code decides for registries.

use knarr_image::{Digest, ImportError, ManifestError};
use serde_json::{Value, json};

use crate::build::{Archive, Compression, Layout, TestImage};
use crate::import::store;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An image for this machine and one for another, and lists of them.
struct Lists {
    layout: Layout,
    ours: Digest,
    other: Digest,
}

impl Lists {
    fn new() -> Self {
        let archive = Archive::new().file("x", b"y").finish();
        let image = TestImage::new().layer(archive, Compression::None);
        let mut layout = image.layout("x/y:1");
        let foreign = String::from_utf8(image.config()).unwrap();
        let machine = serde_json::from_str::<Value>(&foreign).unwrap()["architecture"].clone();
        let foreign = foreign.replace(machine.as_str().unwrap(), "mips64le");
        let mut manifest = layout.document(&layout.manifest.clone());
        let config = layout.add(foreign.into_bytes());
        manifest["config"]["digest"] = json!(config);
        let other = layout.add(manifest.to_string().into_bytes());
        Self {
            ours: layout.manifest.clone(),
            other,
            layout,
        }
    }

    fn entry(&self, digest: &Digest, media_type: &str, platform: Value) -> Value {
        let size = self.layout.files[&format!("blobs/sha256/{}", digest.hex())].len();
        let mut entry = json!({ "mediaType": media_type, "digest": digest, "size": size });
        if !platform.is_null() {
            entry["platform"] = platform;
        }
        entry
    }

    fn list(&mut self, entries: Vec<Value>) -> Digest {
        let list = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
        self.layout.add(list.to_string().into_bytes())
    }

    /// The configuration of the image that an import takes.
    fn import(mut self, top: &Digest, media_type: &str) -> Result<Digest, ImportError> {
        let entry = self.entry(top, media_type, Value::Null);
        let index = json!({ "schemaVersion": 2, "manifests": [entry] });
        let index = index.to_string().into_bytes();
        self.layout.files.insert("index.json".to_owned(), index);
        let (_dir, store) = store();
        let name = "x/y:1".parse().unwrap();
        let images = store.import(&*self.layout.tar(), Some(&name))?;
        Ok(images[0].id.clone())
    }
}

fn machine() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[test]
fn a_list_within_a_list_beside_another_platform_is_looked_into() {
    let mut lists = Lists::new();
    let ours = lists.entry(
        &lists.ours,
        MANIFEST,
        json!({ "os": "linux", "architecture": machine() }),
    );
    let inner = lists.list(vec![ours]);
    let inner = lists.entry(&inner, INDEX, Value::Null);
    let other = lists.entry(
        &lists.other,
        MANIFEST,
        json!({ "os": "linux", "architecture": "mips64le" }),
    );
    let top = lists.list(vec![inner, other]);
    let want = lists.layout.config.clone();
    assert_eq!(lists.import(&top, INDEX).unwrap(), want);
}

#[test]
fn entries_that_name_no_platform_are_asked() {
    let mut lists = Lists::new();
    let empty = lists.layout.add(b"{}".to_vec());
    // What is signed has the shape of an image, and says nothing of a platform.
    let signature = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": lists.entry(&empty, "application/vnd.oci.empty.v1+json", Value::Null), "layers": [],
    });
    let signature = lists.layout.add(signature.to_string().into_bytes());
    let thing = lists.layout.add(b"thing".to_vec());
    let silent = |lists: &Lists, digest: &Digest| lists.entry(digest, MANIFEST, Value::Null);
    let entries = vec![
        lists.entry(&thing, "application/vnd.example+json", Value::Null),
        silent(&lists, &signature),
        silent(&lists, &lists.other),
        silent(&lists, &lists.ours),
    ];
    let top = lists.list(entries);
    let want = lists.layout.config.clone();
    assert_eq!(lists.import(&top, INDEX).unwrap(), want);
}

#[test]
fn a_list_with_nothing_for_this_machine_says_so() {
    let mut lists = Lists::new();
    let other = lists.entry(&lists.other, MANIFEST, Value::Null);
    let inner = lists.list(vec![]);
    let inner = lists.entry(&inner, INDEX, Value::Null);
    let top = lists.list(vec![other, inner]);
    let err = lists.import(&top, INDEX).unwrap_err();
    let none = matches!(&err, ImportError::Manifest(ManifestError::NoPlatform { digest, .. }) if *digest == top);
    assert!(none, "{err:?}");
}

#[test]
fn lists_of_lists_end() {
    let mut lists = Lists::new();
    let mut top = lists.list(vec![]);
    for i in 0..100 {
        let mut entry = lists.entry(&top, INDEX, Value::Null);
        entry["annotations"] = json!({ "i": i.to_string() });
        top = lists.list(vec![entry]);
    }
    let err = lists.import(&top, INDEX).unwrap_err();
    let many = matches!(err, ImportError::Manifest(ManifestError::TooMany { .. }));
    assert!(many, "{err:?}");
}
