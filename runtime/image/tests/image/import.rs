//! Images from files.

use std::fs;

use knarr_image::{ContentError, Image, ImageStore, ImportError, Reference, StoreConfig};

use crate::build::{Compression, TestImage, gzip, temp_dir};

pub fn store() -> (tempfile::TempDir, ImageStore) {
    let dir = temp_dir();
    let store = ImageStore::open(StoreConfig::new(dir.path().join("images"))).unwrap();
    (dir, store)
}

fn check(store: &ImageStore, images: &[Image], tag: &str) {
    let [image] = images else {
        panic!("{images:?}")
    };
    assert_eq!(image.tags, [tag]);
    assert_eq!(store.resolve(tag).unwrap().as_ref(), Some(image));
    let config = image.config.config().as_ref().unwrap();
    assert_eq!(config.user().as_deref(), Some("nobody"));
    assert_eq!(image.layers.len(), 2);
    assert!(image.size > 400_000, "{}", image.size);
}

#[test]
fn a_layout_is_imported_from_a_directory_and_from_an_archive() {
    let layout = TestImage::sample().layout("knarr.local/busybox:v1");
    let dir = temp_dir();
    layout.write_to(dir.path());
    let (_dir, one) = store();
    let images = one.import_path(dir.path(), None).unwrap();
    check(&one, &images, "knarr.local/busybox:v1");
    assert_eq!(images[0].id, layout.config);
    let digest = format!("knarr.local/busybox@{}", layout.manifest);
    assert_eq!(images[0].digests, std::slice::from_ref(&digest));
    assert_eq!(one.resolve(&digest).unwrap().unwrap().id, layout.config);

    let (_dir, two) = store();
    check(
        &two,
        &two.import(&*layout.tar(), None).unwrap(),
        "knarr.local/busybox:v1",
    );
    // Again, as a compressed file: nothing new.
    let file = dir.path().join("image.tar.gz");
    fs::write(&file, gzip(&layout.tar())).unwrap();
    check(
        &two,
        &two.import_path(&file, None).unwrap(),
        "knarr.local/busybox:v1",
    );
    assert_eq!(two.list().unwrap().len(), 1);
}

#[test]
fn a_docker_archive_is_imported() {
    let (_dir, store) = store();
    let archive = TestImage::sample().docker_archive(&["busybox:1.36"]);
    let images = store.import(&*archive, None).unwrap();
    check(&store, &images, "docker.io/library/busybox:1.36");
    assert_eq!(images[0].digests, [""; 0]);
}

#[test]
fn a_given_name_takes_the_place_of_the_archives() {
    let (_dir, store) = store();
    let name: Reference = "example.com/x:y".parse().unwrap();
    let layout = TestImage::sample().layout("v1");
    let images = store.import(&*layout.tar(), Some(&name)).unwrap();
    check(&store, &images, "example.com/x:y");
    // Without it, a mere tag names nothing; the image can be had by its id.
    let other = TestImage::sample().env("A=B").layout("v1");
    let images = store.import(&*other.tar(), None).unwrap();
    assert_eq!(images[0].tags, [""; 0]);
    for id in [
        other.config.to_string(),
        other.config.hex().to_owned(),
        other.config.hex()[..12].to_owned(),
    ] {
        assert_eq!(store.resolve(&id).unwrap().unwrap().id, other.config);
    }
}

#[test]
fn what_is_no_image_or_damaged_is_refused_and_leaves_nothing() {
    let (dir, store) = store();
    let err = store.import(&b"not an archive"[..], None).unwrap_err();
    assert!(
        matches!(err, ImportError::Archive(_) | ImportError::NoImages),
        "{err}"
    );

    let mut layout = TestImage::sample().layout("x/y:1");
    let name = format!("blobs/sha256/{}", layout.layers[1].hex());
    layout.files.insert(name.clone(), b"other".to_vec());
    let err = store.import(&*layout.tar(), None).unwrap_err();
    assert!(
        matches!(err, ImportError::Content(ContentError::Mismatch { .. })),
        "{err}"
    );
    layout.files.remove(&name);
    let err = store.import(&*layout.tar(), None).unwrap_err();
    assert!(matches!(err, ImportError::Missing { .. }), "{err}");

    // The right digest, but no archive: found when it is unpacked.
    let broken = TestImage::new().layer(vec![7; 5000], Compression::None);
    let err = store
        .import(&*broken.layout("x/y:1").tar(), None)
        .unwrap_err();
    assert!(matches!(err, ImportError::Layer(_)), "{err}");
    assert_eq!(store.list().unwrap(), []);
    let left = |name: &str| {
        fs::read_dir(dir.path().join("images").join(name))
            .unwrap()
            .count()
    };
    assert_eq!(left("work"), 0);
}
