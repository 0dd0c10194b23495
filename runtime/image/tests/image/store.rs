//! Names, removal, garbage collection, several users of one directory.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use knarr_image::{ImageStore, RemoveError, Removed, StoreConfig, Watermarks};

use crate::build::TestImage;
use crate::import::store;

fn names(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn a_new_image_takes_the_tag_and_the_old_one_goes_by_its_id() {
    let (dir, store) = store();
    let old = TestImage::sample().layout("x/y:1");
    let new = TestImage::sample().env("NEW=1").layout("x/y:1");
    store.import(&*old.tar(), None).unwrap();
    store.import(&*new.tar(), None).unwrap();
    assert_eq!(store.resolve("x/y:1").unwrap().unwrap().id, new.config);
    let left = store.resolve(&old.config.to_string()).unwrap().unwrap();
    assert_eq!(left.tags, [""; 0]);

    store.remove(&old.config.to_string()).unwrap();
    assert_eq!(store.remove("x/y:1").unwrap(), Removed::Deleted(new.config));
    let err = store.remove("x/y:1").unwrap_err();
    assert!(matches!(err, RemoveError::NotFound { .. }), "{err}");
    for what in ["blobs", "layers", "work", "partial"] {
        assert_eq!(names(&dir.path().join("images").join(what)), 0, "{what}");
    }
}

#[test]
fn a_name_among_others_is_only_a_name() {
    let (_dir, store) = store();
    let image = TestImage::sample();
    store.import(&*image.layout("x/y:1").tar(), None).unwrap();
    store.import(&*image.layout("x/y:2").tar(), None).unwrap();
    let removed = store.remove("x/y:1").unwrap();
    assert_eq!(removed, Removed::Untagged("docker.io/x/y:1".to_owned()));
    assert_eq!(store.resolve("x/y:1").unwrap(), None);
    assert!(store.resolve("x/y:2").unwrap().is_some());
}

#[test]
fn garbage_collection_removes_what_was_unused_for_longest() {
    let (_dir, store) = store();
    let mut ids = Vec::new();
    for i in 0..3 {
        let image = TestImage::sample().env(&format!("I={i}"));
        let layout = image.layout(&format!("x/y:{i}"));
        ids.push(store.import(&*layout.tar(), None).unwrap()[0].id.clone());
    }
    let nothing = BTreeSet::new();
    let full = |high, low| Watermarks { high, low };
    assert_eq!(store.gc(full(100, 100), &nothing).unwrap().images, []);
    // Under any real use of the disk: everything must go, except what is used.
    let used = BTreeSet::from([ids[1].clone()]);
    let collected = store.gc(full(0, 0), &used).unwrap();
    assert_eq!(collected.images, [ids[0].clone(), ids[2].clone()]);
    assert_eq!(store.list().unwrap().len(), 1);
    assert!(store.last_used(&ids[1]).unwrap() > SystemTime::now() - Duration::from_secs(60));
}

#[test]
fn what_a_crash_left_is_cleared_and_what_others_work_on_is_not() {
    let (dir, store) = store();
    let work = dir.path().join("images/work");
    let half = "0".repeat(64);
    fs::create_dir_all(work.join(&half).join("fs")).unwrap();
    fs::create_dir(work.join("import-live")).unwrap();
    let live = fs::File::open(work.join("import-live")).unwrap();
    rustix::fs::flock(&live, rustix::fs::FlockOperation::LockExclusive).unwrap();
    drop(store);
    let store = ImageStore::open(StoreConfig::new(dir.path().join("images"))).unwrap();
    assert!(!work.join(&half).exists());
    assert!(work.join("import-live").exists());
    assert_eq!(store.list().unwrap(), []);
}

/// Not a test of its own: the other process of the next one.
#[test]
fn helper_imports_into_the_given_store() {
    let (Ok(dir), Ok(file)) = (
        std::env::var("KNARR_TEST_STORE"),
        std::env::var("KNARR_TEST_FILE"),
    ) else {
        return;
    };
    let store = ImageStore::open(StoreConfig::new(dir)).unwrap();
    store.import_path(Path::new(&file), None).unwrap();
}

#[test]
fn several_processes_import_into_one_store_at_once() {
    let (dir, store) = store();
    let mut children = Vec::new();
    for i in 0..4 {
        let file = dir.path().join(format!("{i}.tar"));
        // Shared layers, so that they meet at each of them.
        let image = TestImage::sample().env(&format!("I={}", i % 2));
        fs::write(&file, image.layout(&format!("x/y:{i}")).tar()).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::helper_imports_into_the_given_store"])
            .env("KNARR_TEST_STORE", dir.path().join("images"))
            .env("KNARR_TEST_FILE", &file)
            .spawn()
            .unwrap();
        children.push(child);
    }
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let images = store.list().unwrap();
    assert_eq!(images.len(), 2);
    for i in 0..4 {
        assert!(store.resolve(&format!("x/y:{i}")).unwrap().is_some());
    }
    assert_eq!(names(&dir.path().join("images/layers")), 2);
    assert_eq!(names(&dir.path().join("images/work")), 0);
}
