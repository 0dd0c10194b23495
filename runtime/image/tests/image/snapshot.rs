//! Root file systems of containers, in a mount namespace of the test's own.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use knarr_image::{RemoveError, Removed, SnapshotError};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tar::EntryType;

use crate::build::{Archive, Compression, TestImage};
use crate::import::store;

/// What this thread mounts from here on is gone when it ends.
pub fn own_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).expect("the tests run as root");
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    table.contains(path.to_str().unwrap())
}

#[test]
fn layers_lie_on_each_other_and_writes_go_to_the_container() {
    own_mounts();
    let (dir, store) = store();
    let base = Archive::new()
        .directory("a/")
        .file("a/one", b"1")
        .file("a/two", b"2")
        .directory("b/")
        .file("b/three", b"3");
    let top = Archive::new()
        .directory("a/")
        .file("a/.wh.one", b"")
        .file("b/.wh..wh..opq", b"")
        .file("b/four", b"4");
    let image = TestImage::new()
        .layer(base.finish(), Compression::Gzip)
        .layer(top.finish(), Compression::None);
    let image = store
        .import(&*image.layout("x/y:1").tar(), None)
        .unwrap()
        .remove(0);

    let container = dir.path().join("containers/c1");
    let rootfs = store.prepare("c1", &image.id, &container).unwrap();
    assert!(is_mounted(&rootfs.path));
    let exists = |path: &str| rootfs.path.join(path).exists();
    assert!(!exists("a/one") && exists("a/two") && !exists("b/three") && exists("b/four"));
    fs::write(rootfs.path.join("a/two"), "changed").unwrap();
    assert_eq!(fs::read(rootfs.upper.join("a/two")).unwrap(), b"changed");

    // Once more changes nothing, and another use of the key is refused.
    assert_eq!(store.prepare("c1", &image.id, &container).unwrap(), rootfs);
    assert_eq!(fs::read(rootfs.path.join("a/two")).unwrap(), b"changed");
    let err = store
        .prepare("c1", &image.id, &dir.path().join("other"))
        .unwrap_err();
    assert!(matches!(err, SnapshotError::Taken { .. }), "{err}");

    // After a reboot nothing is mounted; what the container wrote is there still.
    store.unmount_snapshot("c1").unwrap();
    assert!(!is_mounted(&rootfs.path));
    store.prepare("c1", &image.id, &container).unwrap();
    assert_eq!(fs::read(rootfs.path.join("a/two")).unwrap(), b"changed");

    let err = store.remove("x/y:1").unwrap_err();
    assert!(matches!(err, RemoveError::InUse { .. }), "{err}");
    store.remove_snapshot("c1").unwrap();
    store.remove_snapshot("c1").unwrap();
    assert!(!is_mounted(&rootfs.path));
    assert_eq!(fs::read_dir(&container).unwrap().count(), 0);
    assert_eq!(
        store.remove("x/y:1").unwrap(),
        Removed::Deleted(image.id.clone())
    );
    let err = store.prepare("c2", &image.id, &container).unwrap_err();
    assert!(matches!(err, SnapshotError::NoImage { .. }), "{err}");
}

#[test]
fn a_directory_without_an_entry_keeps_the_attributes_it_has_below() {
    own_mounts();
    let (dir, store) = store();
    let base = Archive::new()
        .directory("var/")
        .entry("var/tmp/", EntryType::Directory, 0o1777, "", b"")
        .file("var/tmp/one", b"1");
    let top = Archive::new().file("var/tmp/two", b"2").file("new/x", b"3");
    let image = TestImage::new()
        .layer(base.finish(), Compression::None)
        .layer(top.finish(), Compression::None);
    let image = store
        .import(&*image.layout("x/y:1").tar(), None)
        .unwrap()
        .remove(0);
    let rootfs = store
        .prepare("c1", &image.id, &dir.path().join("c"))
        .unwrap();
    let mode = |path: &str| fs::metadata(rootfs.path.join(path)).unwrap().mode() & 0o7777;
    assert_eq!(
        (mode("var/tmp"), mode("new"), mode("")),
        (0o1777, 0o755, 0o755)
    );
    for path in ["var/tmp/one", "var/tmp/two", "new/x"] {
        assert!(rootfs.path.join(path).exists(), "{path}");
    }
    store.remove_snapshot("c1").unwrap();
}

#[test]
fn an_image_of_a_hundred_layers_with_long_paths_is_mounted() {
    own_mounts();
    let (dir, store) = store();
    let mut image = TestImage::new();
    for i in 0..100 {
        let layer = Archive::new().file(&format!("file{i}"), b"").finish();
        image = image.layer(layer, Compression::None);
    }
    let image = store
        .import(&*image.layout("x/y:1").tar(), None)
        .unwrap()
        .remove(0);
    let container = dir.path().join("c".repeat(240)).join("a:b,c");
    let rootfs = store.prepare("c1", &image.id, &container).unwrap();
    assert_eq!(fs::read_dir(&rootfs.path).unwrap().count(), 100);
    store.remove_snapshot("c1").unwrap();
}

#[test]
fn an_image_without_layers_is_an_empty_root() {
    own_mounts();
    let (dir, store) = store();
    let image = TestImage::new().layout("x/y:1");
    let image = store.import(&*image.tar(), None).unwrap().remove(0);
    let rootfs = store
        .prepare("c1", &image.id, &dir.path().join("c"))
        .unwrap();
    assert_eq!(fs::read_dir(&rootfs.path).unwrap().count(), 0);
    fs::write(rootfs.path.join("file"), "").unwrap();
    store.remove_snapshot("c1").unwrap();
}

#[test]
fn keys_are_plain_names() {
    let (dir, store) = store();
    let id = knarr_image::Digest::of(b"");
    for key in ["", ".", "..", "../x", "a/b", ".new-x"] {
        let err = store.prepare(key, &id, dir.path()).unwrap_err();
        assert!(matches!(err, SnapshotError::Key { .. }), "{err}");
        assert!(matches!(
            store.remove_snapshot(key),
            Err(SnapshotError::Key { .. })
        ));
    }
}
