//! Death at any moment, and a full disk.

use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use knarr_image::{Digest, ImageStore, StoreConfig};
use nix::mount::{MsFlags, mount};

use crate::build::{TestImage, temp_dir};
use crate::snapshot::own_mounts;

fn import_in_another_process(store: &Path, file: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::helper_imports_into_the_given_store"])
        .env("KNARR_TEST_STORE", store)
        .env("KNARR_TEST_FILE", file)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn an_import_that_is_killed_at_any_moment_leaves_nothing_half_done() {
    let dir = temp_dir();
    let layout = TestImage::sample().layout("x/y:1");
    let file = dir.path().join("image.tar");
    fs::write(&file, layout.tar()).unwrap();
    let begin = Instant::now();
    let whole = dir.path().join("whole");
    assert!(
        import_in_another_process(&whole, &file)
            .wait()
            .unwrap()
            .success()
    );
    let whole = begin.elapsed();
    let images = dir.path().join("images");
    for moment in 0..20 {
        let mut child = import_in_another_process(&images, &file);
        // Not a wait for something: the moments of death.
        std::thread::sleep(whole * moment / 20);
        child.kill().unwrap();
        child.wait().unwrap();
        let store = ImageStore::open(StoreConfig::new(&images)).unwrap();
        assert_eq!(fs::read_dir(images.join("work")).unwrap().count(), 0);
        for blob in fs::read_dir(images.join("blobs")).unwrap() {
            let blob = blob.unwrap();
            let name = blob.file_name().into_string().unwrap();
            // What a killed process has not renamed yet is no blob.
            if !name.starts_with('.') {
                assert_eq!(Digest::of(&fs::read(blob.path()).unwrap()).hex(), name);
            }
        }
        for image in store.list().unwrap() {
            for layer in &image.layers {
                assert!(images.join("layers").join(layer.hex()).join("fs").is_dir());
            }
        }
    }
    let store = ImageStore::open(StoreConfig::new(&images)).unwrap();
    store.import_path(&file, None).unwrap();
    assert_eq!(store.resolve("x/y:1").unwrap().unwrap().id, layout.config);
    store.remove("x/y:1").unwrap();
    for name in ["blobs", "layers", "work", "partial"] {
        let left: Vec<_> = fs::read_dir(images.join(name)).unwrap().collect();
        assert!(left.is_empty(), "{name}: {left:?}");
    }
}

#[test]
fn a_full_disk_is_an_error_and_there_may_be_room_later() {
    own_mounts();
    let dir = temp_dir();
    let tmpfs = |flags, size: &str| {
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, Some(size)).unwrap();
    };
    tmpfs(MsFlags::empty(), "size=700k");
    let store = ImageStore::open(StoreConfig::new(dir.path().join("images"))).unwrap();
    let layout = TestImage::sample().layout("x/y:1");
    let err = store.import(&*layout.tar(), None).unwrap_err();
    let mut cause: &dyn Error = &err;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let cause = cause.downcast_ref::<io::Error>().map(io::Error::kind);
    assert_eq!(cause, Some(io::ErrorKind::StorageFull), "{err:?}");
    assert_eq!(store.list().unwrap(), []);
    tmpfs(MsFlags::MS_REMOUNT, "size=64m");
    store.import(&*layout.tar(), None).unwrap();
    assert!(store.last_used(&layout.config).unwrap().elapsed().unwrap() < Duration::from_secs(60));
}
