//! Images from a real registry.

use std::fs;
use std::net::TcpListener;
use std::sync::atomic::Ordering;

use knarr_image::{
    Auth, ContentError, ImageStore, LayerError, ManifestError, PullError, Reference, StoreConfig,
};

use crate::build::{Archive, Compression, TestImage, temp_dir};
use crate::import::store;
use crate::registry::{Access, Proxy, Registry, TokenServer, free_address};

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

#[tokio::test]
async fn an_image_is_pulled_once_and_by_digest_without_asking() {
    let registry = Registry::start(Access::Everyone);
    let layout = TestImage::sample().layout("v1");
    registry.push(&layout, "busybox:v1", &[]);
    let (_dir, store) = store();
    let tag = registry.name("busybox:v1");
    let image = store
        .pull(&reference(&tag), &Auth::Anonymous)
        .await
        .unwrap();
    let digest = format!("{}@{}", registry.name("busybox"), layout.manifest);
    assert_eq!(image.id, layout.config);
    assert_eq!(image.tags, std::slice::from_ref(&tag));
    assert_eq!(image.digests, std::slice::from_ref(&digest));
    let again = store
        .pull(&reference(&tag), &Auth::Anonymous)
        .await
        .unwrap();
    assert_eq!(again, image);
    drop(registry);
    let known = store
        .pull(&reference(&digest), &Auth::Anonymous)
        .await
        .unwrap();
    assert_eq!(known, image);
    let err = store
        .pull(&reference(&tag), &Auth::Anonymous)
        .await
        .unwrap_err();
    assert!(matches!(err, PullError::Unreachable { .. }), "{err:?}");
}

#[tokio::test]
async fn dockers_media_types_and_lists_are_understood() {
    let registry = Registry::start(Access::Everyone);
    // Docker's manifests know no zstd; skopeo compresses again, under another digest.
    let archive = Archive::new().file("x", b"y").finish();
    let image = TestImage::new().layer(archive, Compression::Gzip);
    let layout = image.layout("v1");
    let dir = temp_dir();
    layout.write_to(dir.path());
    let output = std::process::Command::new("skopeo")
        .args([
            "--insecure-policy",
            "copy",
            "--format=v2s2",
            "--dest-tls-verify=false",
        ])
        .arg(format!("oci:{}", dir.path().display()))
        .arg(format!("docker://{}", registry.name("x:v2s2")))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let (_dir, store) = store();
    let name = reference(&registry.name("x:v2s2"));
    let pulled = store.pull(&name, &Auth::Anonymous).await.unwrap();
    assert_eq!(pulled.layers.len(), 1);

    // A list, as a layout with an index in its index.
    let entry = serde_json::json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": layout.manifest,
        "size": layout.files[&format!("blobs/sha256/{}", layout.manifest.hex())].len(),
        "platform": { "os": "linux", "architecture": pulled.config.architecture().to_string() },
    });
    let list = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    });
    let list = list.to_string().into_bytes();
    let digest = knarr_image::Digest::of(&list);
    let mut layout = layout;
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": list.len(),
    }]});
    layout
        .files
        .insert(format!("blobs/sha256/{}", digest.hex()), list);
    layout
        .files
        .insert("index.json".to_owned(), index.to_string().into_bytes());
    registry.push(&layout, "x:list", &["--all"]);
    let name = reference(&registry.name("x:list"));
    let pulled = store.pull(&name, &Auth::Anonymous).await.unwrap();
    assert_eq!(pulled.id, layout.config);
    let name = format!("{}@{digest}", registry.name("x"));
    assert!(pulled.digests.contains(&name), "{pulled:?}");
}

#[tokio::test]
async fn credentials_are_asked_for_and_used() {
    let registry = Registry::start(Access::Basic);
    let layout = TestImage::sample().layout("v1");
    registry.push(&layout, "private:v1", &["--dest-creds=anna:secret"]);
    let (_dir, store) = store();
    let name = reference(&registry.name("private:v1"));
    let basic = |password: &str| Auth::Basic {
        username: "anna".to_owned(),
        password: password.to_owned(),
    };
    for auth in [Auth::Anonymous, basic("wrong")] {
        let err = store.pull(&name, &auth).await.unwrap_err();
        assert!(matches!(err, PullError::Unauthorized { .. }), "{err:?}");
    }
    let image = store.pull(&name, &basic("secret")).await.unwrap();
    assert_eq!(image.id, layout.config);
}

#[tokio::test]
async fn what_is_not_there_is_told_apart() {
    let registry = Registry::start(Access::Everyone);
    let (_dir, store) = store();
    registry.push(&TestImage::sample().layout("v1"), "x:v1", &[]);
    for name in ["nothing:v1", "x:v2"] {
        let name = reference(&registry.name(name));
        let err = store.pull(&name, &Auth::Anonymous).await.unwrap_err();
        assert!(matches!(err, PullError::NotFound { .. }), "{err:?}");
        assert_eq!(err.to_string(), format!("{name}: not found"));
    }
    let nobody = reference(&format!("{}/x:v1", free_address()));
    let err = store.pull(&nobody, &Auth::Anonymous).await.unwrap_err();
    assert!(matches!(err, PullError::Unreachable { .. }), "{err:?}");
    let err = anyhow_chain(&err);
    assert!(err.contains("Connection refused"), "{err}");
}

fn anyhow_chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(err) = source {
        text = format!("{text}: {err}");
        source = err.source();
    }
    text
}

#[tokio::test]
async fn a_corrupt_layer_is_refused_until_it_is_mended() {
    let registry = Registry::start(Access::Everyone);
    let layout = TestImage::sample().layout("v1");
    registry.push(&layout, "x:v1", &[]);
    let blob = registry.blob(&layout.layers[0]);
    let good = fs::read(&blob).unwrap();
    let mut bad = good.clone();
    bad[5000] ^= 1;
    fs::write(&blob, bad).unwrap();
    let (dir, store) = store();
    let name = reference(&registry.name("x:v1"));
    let err = store.pull(&name, &Auth::Anonymous).await.unwrap_err();
    let mismatch = matches!(
        err,
        PullError::Content {
            source: ContentError::Mismatch { .. },
            ..
        }
    );
    assert!(mismatch, "{err:?}");
    assert_eq!(store.list().unwrap(), []);
    let layers = dir.path().join("images/blobs").join(layout.layers[0].hex());
    assert!(!layers.exists());
    fs::write(&blob, good).unwrap();
    store.pull(&name, &Auth::Anonymous).await.unwrap();
}

#[tokio::test]
async fn a_configuration_that_lies_about_its_layers_is_refused() {
    let registry = Registry::start(Access::Everyone);
    let one = Archive::new().file("x", b"1").finish();
    let two = Archive::new().file("x", b"2").finish();
    let mut layout = TestImage::new().layer(one, Compression::None).layout("v1");
    // The second layer's blob under the first one's diff id.
    let honest = layout.config.clone();
    let text = String::from_utf8(
        TestImage::new()
            .layer(two.clone(), Compression::None)
            .config(),
    )
    .unwrap();
    let config = knarr_image::Digest::of(text.as_bytes());
    let manifest_name = format!("blobs/sha256/{}", layout.manifest.hex());
    let manifest = String::from_utf8(layout.files.remove(&manifest_name).unwrap()).unwrap();
    let manifest = manifest.replace(&honest.to_string(), &config.to_string());
    let manifest_digest = knarr_image::Digest::of(manifest.as_bytes());
    let index = String::from_utf8(layout.files.remove("index.json").unwrap()).unwrap();
    let index = index.replace(&layout.manifest.to_string(), &manifest_digest.to_string());
    layout
        .files
        .insert(format!("blobs/sha256/{}", config.hex()), text.into_bytes());
    layout.files.insert(
        format!("blobs/sha256/{}", manifest_digest.hex()),
        manifest.into_bytes(),
    );
    layout
        .files
        .insert("index.json".to_owned(), index.into_bytes());
    registry.push(&layout, "liar:v1", &[]);
    let (dir, store) = store();
    let name = reference(&registry.name("liar:v1"));
    let err = store.pull(&name, &Auth::Anonymous).await.unwrap_err();
    let mismatch = matches!(
        err,
        PullError::Layer {
            source: LayerError::Mismatch { .. },
            ..
        }
    );
    assert!(mismatch, "{err:?}");
    assert_eq!(
        fs::read_dir(dir.path().join("images/layers"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test]
async fn what_is_for_other_machines_is_refused() {
    let registry = Registry::start(Access::Everyone);
    let mut layout = TestImage::sample().layout("v1");
    let index = String::from_utf8(layout.files["index.json"].clone()).unwrap();
    let mut index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let mut entry = index["manifests"][0].clone();
    entry["platform"] = serde_json::json!({ "os": "linux", "architecture": "mips" });
    let list = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    });
    let list = list.to_string().into_bytes();
    let digest = knarr_image::Digest::of(&list);
    index["manifests"] = serde_json::json!([{
        "mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": list.len(),
    }]);
    layout
        .files
        .insert(format!("blobs/sha256/{}", digest.hex()), list);
    layout
        .files
        .insert("index.json".to_owned(), index.to_string().into_bytes());
    registry.push(&layout, "mips:v1", &["--all"]);
    let (_dir, store) = store();
    let name = reference(&registry.name("mips:v1"));
    let err = store.pull(&name, &Auth::Anonymous).await.unwrap_err();
    let none = matches!(
        err,
        PullError::Manifest {
            source: ManifestError::NoPlatform { .. },
            ..
        }
    );
    assert!(none, "{err:?}");
}

/// A layer that does not compress, of about this many bytes.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut noise = Vec::with_capacity(bytes);
    while noise.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend(state.to_le_bytes());
    }
    Archive::new().file("noise", &noise).finish()
}

#[tokio::test]
async fn an_interrupted_pull_goes_on_where_it_stopped() {
    let registry = Registry::start(Access::Everyone);
    let image = TestImage::new().layer(noise(3 << 20), Compression::Gzip);
    let layout = image.layout("v1");
    registry.push(&layout, "x:v1", &[]);
    // Every connection breaks after one MiB, so no single request can bring the layer.
    let proxy = Proxy::start(registry.address, 1 << 20, 1 << 20);
    let (_dir, store) = store();
    let name = reference(&format!("{}/x:v1", proxy.address));
    let pulled = store.pull(&name, &Auth::Anonymous).await.unwrap();
    assert_eq!(pulled.id, layout.config);
    let requests = String::from_utf8_lossy(&proxy.requests.lock().unwrap()).to_lowercase();
    assert!(requests.contains("range: bytes="), "{requests}");
}

#[tokio::test]
async fn a_pull_that_gave_up_leaves_no_image_and_the_next_one_continues() {
    let registry = Registry::start(Access::Everyone);
    let image = TestImage::new().layer(noise(3 << 20), Compression::None);
    let layout = image.layout("v1");
    registry.push(&layout, "x:v1", &["--dest-compress=false"]);
    let proxy = Proxy::start(registry.address, 1 << 20, 0);
    let dir = temp_dir();
    let mut config = StoreConfig::new(dir.path());
    config.retries = 1;
    let store = ImageStore::open(config).unwrap();
    let name = reference(&format!("{}/x:v1", proxy.address));
    let err = store.pull(&name, &Auth::Anonymous).await.unwrap_err();
    let broke = matches!(
        err,
        PullError::Interrupted { .. } | PullError::Unreachable { .. }
    );
    assert!(broke, "{err:?}");
    assert_eq!(store.list().unwrap(), []);
    let partial = dir.path().join("partial").join(layout.layers[0].hex());
    let kept = fs::metadata(&partial).unwrap().len();
    assert!(kept > 500_000, "{kept}");
    assert!(
        !dir.path()
            .join("blobs")
            .join(layout.layers[0].hex())
            .exists()
    );

    // A new process, and a line that holds.
    let store = ImageStore::open(StoreConfig::new(dir.path())).unwrap();
    proxy.mended.store(true, Ordering::Relaxed);
    proxy.requests.lock().unwrap().clear();
    store.pull(&name, &Auth::Anonymous).await.unwrap();
    let requests = String::from_utf8_lossy(&proxy.requests.lock().unwrap()).to_lowercase();
    assert!(
        requests.contains(&format!("range: bytes={kept}-")),
        "{requests}"
    );
    assert!(!partial.exists());
}

#[tokio::test]
async fn tokens_are_fetched_where_the_registry_says() {
    // As with docker.io: anonymous users get a token for what is public, others theirs for their password.
    let server = TokenServer::start();
    let registry = Registry::start(Access::Token(&server));
    let layout = TestImage::sample().layout("v1");
    for name in ["public:v1", "private:v1"] {
        registry.push(&layout, name, &["--dest-creds=anna:secret"]);
    }
    let (_dir, store) = store();
    let basic = |password: &str| Auth::Basic {
        username: "anna".to_owned(),
        password: password.to_owned(),
    };
    let public = reference(&registry.name("public:v1"));
    let private = reference(&registry.name("private:v1"));
    for auth in [
        Auth::Anonymous,
        basic("wrong"),
        Auth::Bearer("x".to_owned()),
    ] {
        let err = store.pull(&private, &auth).await.unwrap_err();
        assert!(matches!(err, PullError::Unauthorized { .. }), "{err:?}");
    }
    let image = store.pull(&public, &Auth::Anonymous).await.unwrap();
    assert_eq!(image.id, layout.config);
    store.pull(&private, &basic("secret")).await.unwrap();
}

#[tokio::test]
async fn something_that_is_no_registry_is_an_error_not_a_wait() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        // Closed at once, each of them.
        for connection in listener.incoming() {
            drop(connection);
        }
    });
    let (_dir, store) = store();
    let name = reference(&format!("{address}/x:v1"));
    let err = store.pull(&name, &Auth::Anonymous).await.unwrap_err();
    assert!(matches!(err, PullError::Unreachable { .. }), "{err:?}");
}
