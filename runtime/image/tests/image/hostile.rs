//! Layers that try to get out, or to take too much.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use knarr_image::{ImageStore, ImportError, LayerError, StoreConfig, UnpackError};
use tar::EntryType;

use crate::build::{Archive, Compression, TestImage, temp_dir};
use crate::import::store;

fn import(store: &ImageStore, layer: Archive) -> Result<PathBuf, UnpackError> {
    let image = TestImage::new().layer(layer.finish(), Compression::Gzip);
    match store.import(&*image.layout("x/y:1").tar(), None) {
        Ok(images) => Ok(Path::new("layers")
            .join(images[0].layers[0].hex())
            .join("fs")),
        Err(ImportError::Layer(LayerError::Unpack { source, .. })) => Err(source),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn paths_that_climb_are_refused() {
    let (dir, store) = store();
    for layer in [
        Archive::new().file("../evil", b""),
        Archive::new().file("a/../../evil", b""),
        Archive::new().file("/../evil", b""),
        Archive::new()
            .file("x", b"")
            .hard_link("y", "../../../../etc/passwd"),
        Archive::new().file("..", b""),
        Archive::new().file("a/.wh...", b""),
        Archive::new().file("a/.wh.", b""),
    ] {
        let err = import(&store, layer).unwrap_err();
        assert!(matches!(err, UnpackError::Escape { .. }), "{err:?}");
        assert!(!dir.path().join("images/evil").exists());
    }
}

#[test]
fn links_lead_nowhere_but_inside() {
    let (dir, store) = store();
    let outside = temp_dir();
    fs::write(outside.path().join("target"), "safe").unwrap();
    let out = outside.path().to_str().unwrap();
    let inside = format!("{}/", &out[1..]);
    // The directory behind an absolute link is the one of that name in the layer.
    let layer = Archive::new()
        .directory(&inside)
        .symlink("link", out)
        .file("link/target", b"evil")
        .symlink("climb", "../../../../../../../..")
        .file("climb/climbed", b"evil")
        .symlink("file", &format!("{out}/target"))
        .file("file", b"evil");
    let root = dir
        .path()
        .join("images")
        .join(import(&store, layer).unwrap());
    assert_eq!(fs::read(outside.path().join("target")).unwrap(), b"safe");
    assert_eq!(fs::read(root.join(inside).join("target")).unwrap(), b"evil");
    assert_eq!(fs::read(root.join("climbed")).unwrap(), b"evil");
    assert!(fs::symlink_metadata(root.join("file")).unwrap().is_file());
    assert!(!Path::new("/climbed").exists());
}

#[test]
fn hard_links_to_files_outside_do_not_exist() {
    let (_dir, store) = store();
    let layer = Archive::new()
        .symlink("etc", "/etc")
        .hard_link("stolen", "etc/passwd");
    let err = import(&store, layer).unwrap_err();
    assert!(matches!(err, UnpackError::Entry { .. }), "{err:?}");
    let (_dir, store) = self::store();
    let err = import(&store, Archive::new().hard_link("stolen", "/etc/passwd")).unwrap_err();
    assert!(matches!(err, UnpackError::Entry { .. }), "{err:?}");
}

#[test]
fn a_bomb_is_stopped_at_the_limit() {
    let dir = temp_dir();
    let mut config = StoreConfig::new(dir.path());
    config.limits.bytes = 3 << 20;
    config.limits.entries = 100;
    let store = ImageStore::open(config).unwrap();
    let err = import(&store, Archive::new().file("bomb", &vec![0; 4 << 20])).unwrap_err();
    assert!(matches!(err, UnpackError::TooManyBytes { .. }), "{err:?}");
    let mut many = Archive::new();
    for i in 0..101 {
        many = many.file(&format!("file{i}"), b"");
    }
    let err = import(&store, many).unwrap_err();
    assert!(matches!(err, UnpackError::TooManyEntries { .. }), "{err:?}");
    // A name of three MiB, which a reader would take into memory.
    let long = Archive::new().entry("x", EntryType::GNULongName, 0, "", &vec![b'a'; 5 << 19]);
    let err = import(&store, long.file("y", b"")).unwrap_err();
    assert!(matches!(err, UnpackError::Archive(_)), "{err:?}");
}

#[test]
fn whiteouts_devices_attributes_and_modes_become_what_overlayfs_wants() {
    let (dir, store) = store();
    let layer = Archive::new()
        .directory("./")
        .directory("d/")
        .file("d/.wh.gone", b"")
        .file("d/.wh..wh..opq", b"")
        .file("d/.wh..wh.plnk", b"")
        .file("again/.wh.name", b"")
        .directory("again/name/")
        .device("null", 1, 3)
        .entry("set-user-id", EntryType::Regular, 0o4755, "", b"x")
        .attributes(&[
            ("trusted.good", b"1"),
            ("trusted.overlay.redirect", b"/etc"),
        ])
        .file("marked", b"");
    let root = dir
        .path()
        .join("images")
        .join(import(&store, layer).unwrap());
    let stat = |path: &str| fs::symlink_metadata(root.join(path)).unwrap();
    assert!(stat("d/gone").file_type().is_char_device());
    assert_eq!(stat("d/gone").rdev(), 0);
    assert!(!root.join("d/.wh..wh.plnk").exists());
    let attribute = |path: &str, name: &str| {
        let mut value = [0; 16];
        let path = root.join(path);
        let length = rustix::fs::lgetxattr(&path, name, &mut value).ok()?;
        Some(value[..length].to_vec())
    };
    assert_eq!(
        attribute("d", "trusted.overlay.opaque").as_deref(),
        Some(&b"y"[..])
    );
    // Removed below, made anew here: what the lower layers have in it stays hidden.
    assert_eq!(
        attribute("again/name", "trusted.overlay.opaque").as_deref(),
        Some(&b"y"[..])
    );
    assert_eq!(attribute("again", "trusted.overlay.opaque"), None);
    assert!(stat("null").file_type().is_char_device());
    assert_eq!(stat("null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(stat("set-user-id").mode() & 0o7777, 0o4755);
    assert_eq!(stat("set-user-id").mtime(), 1_700_000_000);
    assert_eq!(stat("d").mtime(), 1_700_000_000);
    assert_eq!(
        attribute("marked", "trusted.good").as_deref(),
        Some(&b"1"[..])
    );
    assert_eq!(attribute("marked", "trusted.overlay.redirect"), None);
}
