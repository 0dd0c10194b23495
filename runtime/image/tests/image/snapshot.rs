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
fn a_layer_may_come_more_than_once() {
    own_mounts();
    let (dir, store) = store();
    let base = || {
        Archive::new()
            .directory("d/")
            .file("d/x", b"base")
            .file("d/y", b"base")
            .file("z", b"base")
            .finish()
    };
    let middle = || {
        Archive::new()
            .file("d/.wh..wh..opq", b"")
            .file("d/x", b"middle")
            .file("d/m", b"middle")
            .file(".wh.z", b"")
            .finish()
    };
    let mount = |key: &str, layers: Vec<Vec<u8>>| {
        let mut image = TestImage::new();
        for layer in layers {
            image = image.layer(layer, Compression::Gzip);
        }
        let tar = image.layout("x/y:1").tar();
        let image = store.import(&*tar, None).unwrap().remove(0);
        let container = dir.path().join("containers").join(key);
        store.prepare(key, &image.id, &container).unwrap().path
    };
    let content = |root: &Path, path: &str| fs::read_to_string(root.join(path)).ok();
    let is = |text: &str| Some(text.to_owned());
    let root = mount("adjacent", vec![base(), base()]);
    assert_eq!(content(&root, "d/x"), is("base"));
    // The middle one hides what is below it, not what comes again above it.
    let root = mount("apart", vec![base(), middle(), base()]);
    assert_eq!(content(&root, "d/x"), is("base"));
    assert_eq!(content(&root, "d/y"), is("base"));
    assert_eq!(content(&root, "d/m"), is("middle"));
    assert_eq!(content(&root, "z"), is("base"));
    let root = mount("under", vec![middle(), base(), middle()]);
    assert_eq!(content(&root, "d/x"), is("middle"));
    assert_eq!(content(&root, "d/y"), None);
    assert_eq!(content(&root, "z"), None);
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

/// A data directory that was copied elsewhere: what is removed there, stays where it was copied from.
#[test]
fn a_copied_store_removes_nothing_of_the_original() {
    own_mounts();
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    let image =
        TestImage::new().layer(Archive::new().file("one", b"1").finish(), Compression::None);
    fs::create_dir(&old).unwrap();
    let store =
        knarr_image::ImageStore::open(knarr_image::StoreConfig::new(old.join("images"))).unwrap();
    let image = store
        .import(&*image.layout("x/y:1").tar(), None)
        .unwrap()
        .remove(0);
    let rootfs = store
        .prepare("c1", &image.id, &old.join("containers/c1"))
        .unwrap();
    fs::write(rootfs.path.join("written"), "x").unwrap();
    store.unmount_snapshot("c1").unwrap();
    drop(store);
    let copied = std::process::Command::new("cp")
        .args(["-a"])
        .args([&old, &new])
        .status()
        .unwrap();
    assert!(copied.success());

    let store =
        knarr_image::ImageStore::open(knarr_image::StoreConfig::new(new.join("images"))).unwrap();
    let snapshots = store.snapshots().unwrap();
    assert_eq!(snapshots[0].dir, new.join("containers/c1"));
    store.remove_snapshot("c1").unwrap();
    assert!(!new.join("containers/c1/upper").exists());
    assert_eq!(
        fs::read(old.join("containers/c1/upper/written")).unwrap(),
        b"x"
    );
}

/// Whatever is mounted in a container's directory: it stays, and so does the record, until it can be removed.
#[test]
fn a_snapshot_with_a_mount_in_it_is_kept_and_so_is_what_is_mounted() {
    own_mounts();
    let (dir, store) = store();
    let image =
        TestImage::new().layer(Archive::new().file("one", b"1").finish(), Compression::None);
    let image = store
        .import(&*image.layout("x/y:1").tar(), None)
        .unwrap()
        .remove(0);
    let (container, host) = (dir.path().join("containers/c1"), dir.path().join("host"));
    let rootfs = store.prepare("c1", &image.id, &container).unwrap();
    fs::create_dir_all(&host).unwrap();
    fs::write(host.join("precious"), "x").unwrap();
    let place = rootfs.upper.join("place");
    fs::create_dir(&place).unwrap();
    let none: Option<&str> = None;
    mount(Some(&host), &place, none, MsFlags::MS_BIND, none).unwrap();
    store.remove_snapshot("c1").unwrap_err();
    assert_eq!(fs::read(host.join("precious")).unwrap(), b"x");
    assert_eq!(store.snapshots().unwrap().len(), 1);
    nix::mount::umount(&place).unwrap();
    store.remove_snapshot("c1").unwrap();
    assert_eq!(fs::read(host.join("precious")).unwrap(), b"x");
    assert!(store.snapshots().unwrap().is_empty());
}
