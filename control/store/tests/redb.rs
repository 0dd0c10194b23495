//! The redb back end against etcd's model: transactions, ranges, watches, restarts, a full disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use knarr_store::{
    Compare, Durability, Event, KeyValue, Op, RedbStore, Store, StoreError, TxnOutcome,
};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use proptest::prelude::*;
use redb::ReadableDatabase as _;

fn open(dir: &Path) -> RedbStore {
    RedbStore::open(&dir.join("state.redb")).unwrap()
}

fn put(key: &str, value: &str) -> Op {
    Op::Put(key.to_owned(), Bytes::copy_from_slice(value.as_bytes()))
}

async fn commit(store: &RedbStore, compares: Vec<Compare>, ops: Vec<Op>) -> u64 {
    match store
        .txn(compares, ops, Durability::Immediate)
        .await
        .unwrap()
    {
        TxnOutcome::Committed(revision) => revision,
        TxnOutcome::Conflict(found) => panic!("conflict with {found:?}"),
    }
}

#[tokio::test]
async fn a_compare_that_does_not_hold_changes_nothing_and_tells_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let first = commit(
        &store,
        vec![Compare::Absent("/a".into())],
        vec![put("/a", "1")],
    )
    .await;
    let second = commit(
        &store,
        vec![Compare::ModRevision("/a".into(), first)],
        vec![put("/a", "2")],
    )
    .await;
    assert_eq!(second, first + 1);

    let outcome = store
        .txn(
            vec![
                Compare::ModRevision("/a".into(), first),
                Compare::Absent("/b".into()),
            ],
            vec![put("/a", "3"), put("/b", "3")],
            Durability::Immediate,
        )
        .await
        .unwrap();
    let there = KeyValue {
        key: "/a".into(),
        value: Bytes::from_static(b"2"),
        create_revision: first,
        mod_revision: second,
    };
    assert_eq!(
        outcome,
        TxnOutcome::Conflict(vec![Some(there.clone()), None])
    );
    assert_eq!(store.get("/a").await.unwrap(), Some(there));
    assert_eq!(store.get("/b").await.unwrap(), None);
    assert_eq!(store.revision(), second);
}

#[tokio::test]
async fn a_range_pages_in_the_order_of_keys() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for key in ["/p/c", "/p/a", "/q/a", "/p/b"] {
        commit(&store, vec![], vec![put(key, key)]).await;
    }
    let page = store.range("/p/", "/p0", 2).await.unwrap();
    assert_eq!(
        page.kvs
            .iter()
            .map(|kv| kv.key.as_str())
            .collect::<Vec<_>>(),
        ["/p/a", "/p/b"]
    );
    assert!(page.more);
    assert_eq!(page.revision, store.revision());
    let rest = store.range("/p/b\0", "/p0", 2).await.unwrap();
    assert_eq!(
        rest.kvs
            .iter()
            .map(|kv| kv.key.as_str())
            .collect::<Vec<_>>(),
        ["/p/c"]
    );
    assert!(!rest.more);
}

#[tokio::test]
async fn a_watch_sees_each_change_of_its_prefix_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let start = store.revision();
    let a = commit(&store, vec![], vec![put("/p/a", "1"), put("/q/x", "1")]).await;
    let mut watch = store.watch("/p/", start).await.unwrap();
    commit(&store, vec![], vec![put("/q/x", "2")]).await;
    let gone = commit(&store, vec![], vec![Op::Delete("/p/a".into())]).await;

    let (revision, events) = watch.recv().await.unwrap();
    assert_eq!(revision, a);
    assert!(
        matches!(&events[..], [Event::Put { kv, previous: None }] if kv.key == "/p/a"),
        "{events:?}"
    );
    let (revision, events) = watch.recv().await.unwrap();
    assert_eq!(revision, gone);
    assert!(
        matches!(&events[..], [Event::Delete { previous, revision }] if previous.value == "1" && *revision == gone),
        "{events:?}"
    );
}

#[tokio::test]
async fn a_watch_from_a_compacted_revision_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let old = commit(&store, vec![], vec![put("/a", "1")]).await;
    let new = commit(&store, vec![], vec![put("/a", "2")]).await;
    store.compact(new).await.unwrap();
    assert!(matches!(
        store.watch("/", old - 1).await,
        Err(StoreError::Compacted { asked, .. }) if asked == old - 1
    ));
    store.watch("/", new).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_writers_that_create_one_key_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path()));
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..64 {
        let store = store.clone();
        tasks.spawn(async move {
            let compares = vec![Compare::Absent("/one".into())];
            store
                .txn(
                    compares,
                    vec![put("/one", &n.to_string())],
                    Durability::Immediate,
                )
                .await
                .unwrap()
        });
    }
    let outcomes = tasks.join_all().await;
    let won = outcomes
        .iter()
        .filter(|o| matches!(o, TxnOutcome::Committed(_)))
        .count();
    assert_eq!(won, 1, "{outcomes:?}");
}

#[test]
fn a_full_disk_refuses_growth_takes_deletions_and_renewals_serves_reads_and_recovers() {
    // A thread of its own, so that the small file system is seen by nobody else and dies with it.
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .unwrap();
        let dir = tempfile::tempdir().unwrap();
        mount(
            Some("knarr"),
            dir.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=48m"),
        )
        .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            std::fs::write(dir.path().join("ballast"), vec![0; 12 << 20]).unwrap();
            let store = open(dir.path());
            let value = "x".repeat(1 << 20);
            commit(&store, vec![], vec![put("/status", &"x".repeat(500))]).await;
            for n in 0..40 {
                commit(
                    &store,
                    vec![],
                    vec![put(&format!("/lease/{n}"), &"x".repeat(500))],
                )
                .await;
            }
            let mut written = 0;
            let refused = loop {
                match store
                    .txn(
                        vec![],
                        vec![put(&format!("/{written}"), &value)],
                        Durability::Immediate,
                    )
                    .await
                {
                    Ok(_) => written += 1,
                    Err(error) => break error,
                }
                assert!(written < 64, "48 MiB took 64 MiB");
            };
            assert!(matches!(refused, StoreError::NoSpace { .. }), "{refused:?}");
            for n in 0..written {
                assert_eq!(
                    store
                        .get(&format!("/{n}"))
                        .await
                        .unwrap()
                        .unwrap()
                        .value
                        .len(),
                    value.len()
                );
            }
            // Somebody else's file takes the rest: nothing that grows goes in, whatever is beside it in its group.
            commit(&store, vec![], vec![]).await;
            std::fs::write(dir.path().join("rest"), vec![0; 64 << 20]).unwrap_err();
            for n in 1..40 {
                let (create, delete, change) = tokio::join!(
                    store.txn(vec![], vec![put("/small", "1")], Durability::Immediate),
                    store.txn(
                        vec![],
                        vec![Op::Delete(format!("/lease/{n}"))],
                        Durability::Immediate
                    ),
                    store.txn(
                        vec![],
                        vec![put("/status", &format!("{n:500}"))],
                        Durability::Immediate
                    ),
                );
                let refused = create.unwrap_err();
                assert!(matches!(refused, StoreError::NoSpace { .. }), "{refused:?}");
                delete.unwrap();
                change.unwrap();
                renew(&store, "/lease/0", &format!("{n:500}")).await;
            }
            // Others keep taking what they can get.
            let _ = std::fs::write(dir.path().join("more"), vec![0; 64 << 20]);
            commit(&store, vec![], vec![Op::Delete("/0".to_owned())]).await;
            assert_eq!(store.get("/small").await.unwrap(), None);
            drop(store);
            let store = open(dir.path());
            assert_eq!(store.get("/0").await.unwrap(), None);
            assert_eq!(store.get("/lease/1").await.unwrap(), None);
            renew(&store, "/lease/0", &"x".repeat(500)).await;
            commit(&store, vec![], vec![Op::Delete("/1".to_owned())]).await;
            std::fs::remove_file(dir.path().join("more")).unwrap();
            std::fs::remove_file(dir.path().join("rest")).unwrap();
            std::fs::remove_file(dir.path().join("ballast")).unwrap();
            let room = commit(&store, vec![], vec![put("/again", &value)]).await;
            assert_eq!(
                store.get("/again").await.unwrap().unwrap().mod_revision,
                room
            );
        });
    })
    .join()
    .unwrap();
}

const DIR: &str = "KNARR_STORE_TEST_DIR";

async fn renew(store: &RedbStore, key: &str, value: &str) -> u64 {
    match store
        .txn(vec![], vec![put(key, value)], Durability::Deferred)
        .await
        .unwrap()
    {
        TxnOutcome::Committed(revision) => revision,
        TxnOutcome::Conflict(found) => panic!("conflict with {found:?}"),
    }
}

/// Says each revision on its standard output, then waits to be killed.
async fn write_renew_and_wait(dir: &Path) {
    use std::io::{Read as _, Write as _};
    let store = open(dir);
    let mut out = std::io::stdout();
    let mut say = |what: &str, revision: u64| {
        writeln!(out, "\n{what}={revision}").unwrap();
        out.flush().unwrap();
    };
    say("start", store.revision());
    renew(&store, "/lease", "reserves").await;
    renew(&store, "/lease", "deferred, then written with the next").await;
    say(
        "durable",
        commit(&store, vec![], vec![put("/a", "1")]).await,
    );
    for n in 0..5 {
        say(
            "lost",
            renew(&store, "/lease", &format!("renewal {n}")).await,
        );
    }
    say("end", 0);
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// Runs `test` of this program in a process of its own, which is to [`write_renew_and_wait`], until it has said all, and
/// kills it.
fn life(test: &str, dir: &Path) -> Vec<(String, u64)> {
    use std::io::BufRead as _;
    use std::process::{Command, Stdio};
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(DIR, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let said = lines
        .map(Result::unwrap)
        .filter_map(|line| {
            let (what, revision) = line.split_once('=')?;
            Some((what.to_owned(), revision.parse().ok()?))
        })
        .take_while(|(what, _)| what != "end")
        .collect();
    child.kill().unwrap();
    child.wait().unwrap();
    said
}

#[tokio::test]
async fn a_kill_undoes_renewals_and_their_revisions_are_never_given_again() {
    if let Some(dir) = std::env::var_os(DIR) {
        return write_renew_and_wait(Path::new(&dir)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut newest = 0;
    for _ in 0..3 {
        let said = life(
            "a_kill_undoes_renewals_and_their_revisions_are_never_given_again",
            dir.path(),
        );
        assert_eq!(said.len(), 7, "{said:?}");
        assert!(said[0].1 > newest, "{said:?} after {newest}");
        assert!(said.is_sorted_by_key(|(_, revision)| *revision), "{said:?}");
        let durable = said[1].1;
        newest = said[6].1;

        // What a kill leaves, looked at without touching it.
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(
            dir.path().join("state.redb"),
            copy.path().join("state.redb"),
        )
        .unwrap();
        let store = open(copy.path());
        let lease = store.get("/lease").await.unwrap().unwrap();
        assert_eq!(lease.value, "deferred, then written with the next");
        assert!(lease.mod_revision < durable);
        assert_eq!(
            store.get("/a").await.unwrap().unwrap().mod_revision,
            durable
        );
        assert!(store.revision() > newest);
        let page = store.range("/", "0", 0).await.unwrap();
        assert_eq!(page.revision, store.revision());
        for (_, revision) in said {
            assert!(matches!(
                store.watch("/", revision).await,
                Err(StoreError::Compacted { .. })
            ));
        }
        // Whoever saw a renewal that is gone cannot go on from it; what else there is was not touched.
        assert_eq!(
            store.none_removed_since("/lease").await.unwrap(),
            store.revision()
        );
        assert_eq!(store.none_removed_since("/a").await.unwrap(), 1);
        assert_eq!(renew(&store, "/lease", "again").await, page.revision + 1);
    }
}

#[tokio::test]
async fn renewals_are_seen_in_order_and_survive_a_close() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let start = store.revision();
    let mut watch = store.watch("/", start).await.unwrap();
    // More than one reservation.
    for n in 1..=2500 {
        let revision = if n % 100 == 0 {
            commit(&store, vec![], vec![put("/a", &n.to_string())]).await
        } else {
            renew(&store, "/lease", &n.to_string()).await
        };
        assert_eq!(revision, start + n);
        let (seen, events) = watch.recv().await.unwrap();
        assert_eq!(seen, revision);
        assert!(
            matches!(&events[..], [Event::Put { kv, .. }] if kv.value == n.to_string()),
            "{events:?}"
        );
    }
    drop((watch, store));
    let store = open(dir.path());
    assert_eq!(store.revision(), start + 2500);
    assert_eq!(store.get("/lease").await.unwrap().unwrap().value, "2499");
    // Pages that only renewals used are used again.
    let size = std::fs::metadata(dir.path().join("state.redb"))
        .unwrap()
        .len();
    assert!(size < 4 << 20, "{size} bytes for two keys");
}

#[tokio::test]
async fn the_last_removal_of_each_kind_of_key_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (pods, maps) = ("/registry/pods/", "/registry/configmaps/");
    let key = |kind: &str, name: &str| format!("{kind}default/{name}");
    let store = open(dir.path());
    let start = store.revision();
    for name in ["a", "b"] {
        commit(&store, vec![], vec![put(&key(pods, name), "1")]).await;
        commit(&store, vec![], vec![put(&key(maps, name), "1")]).await;
    }
    assert_eq!(store.none_removed_since(pods).await.unwrap(), start);
    let removal = commit(&store, vec![], vec![Op::Delete(key(pods, "a"))]).await;
    // A renewal covers the kind from here on; the removal after it must not take that back.
    renew(&store, &key(maps, "a"), "2").await;
    commit(&store, vec![], vec![Op::Delete(key(maps, "b"))]).await;
    let renewed = renew(&store, &key(maps, "a"), "3").await;
    let check = async |store: RedbStore| {
        assert_eq!(store.none_removed_since(pods).await.unwrap(), removal);
        assert_eq!(store.none_removed_since(maps).await.unwrap(), renewed);
        assert_eq!(
            store.none_removed_since("/registry/x/").await.unwrap(),
            start
        );
    };
    check(store).await;
    check(open(dir.path())).await;
}

#[tokio::test]
async fn a_deletion_is_durable_whatever_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    commit(&store, vec![], vec![put("/a", "1")]).await;
    renew(&store, "/a", "2").await;
    store
        .txn(vec![], vec![Op::Delete("/a".into())], Durability::Deferred)
        .await
        .unwrap();
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(
        dir.path().join("state.redb"),
        copy.path().join("state.redb"),
    )
    .unwrap();
    assert_eq!(open(copy.path()).get("/a").await.unwrap(), None);
}

/// One step of the model test.
#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    CompareAndPut(u8, u8),
    Renew(u8, u8),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6u8, any::<u8>()).prop_map(|(k, v)| Step::Put(k, v)),
        2 => (0..6u8).prop_map(Step::Delete),
        2 => (0..6u8, any::<u8>()).prop_map(|(k, v)| Step::CompareAndPut(k, v)),
        3 => (0..6u8, any::<u8>()).prop_map(|(k, v)| Step::Renew(k, v)),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_store_holds_what_a_map_would(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut store = open(dir.path());
            let mut model: BTreeMap<String, (Vec<u8>, u64, u64)> = BTreeMap::new();
            let mut revision = store.revision();
            for step in steps {
                match step {
                    Step::Put(k, v) | Step::CompareAndPut(k, v) => {
                        let key = format!("/{k}");
                        let old = model.get(&key).cloned();
                        let compares = match (&step, &old) {
                            (Step::CompareAndPut(..), Some((_, _, m))) => vec![Compare::ModRevision(key.clone(), *m)],
                            (Step::CompareAndPut(..), None) => vec![Compare::Absent(key.clone())],
                            _ => vec![],
                        };
                        revision += 1;
                        assert_eq!(commit(&store, compares, vec![Op::Put(key.clone(), vec![v].into())]).await, revision);
                        let create = old.map_or(revision, |(_, c, _)| c);
                        model.insert(key, (vec![v], create, revision));
                    }
                    Step::Renew(k, v) => {
                        let key = format!("/{k}");
                        revision += 1;
                        let op = Op::Put(key.clone(), vec![v].into());
                        let outcome = store.txn(vec![], vec![op], Durability::Deferred).await.unwrap();
                        assert_eq!(outcome, TxnOutcome::Committed(revision));
                        let create = model.get(&key).map_or(revision, |(_, c, _)| *c);
                        model.insert(key, (vec![v], create, revision));
                    }
                    Step::Delete(k) => {
                        let key = format!("/{k}");
                        revision += u64::from(model.remove(&key).is_some());
                        assert_eq!(commit(&store, vec![], vec![Op::Delete(key)]).await, revision);
                    }
                    Step::Reopen => {
                        drop(store);
                        store = open(dir.path());
                    }
                }
                let all = store.range("/", "0", 0).await.unwrap();
                assert_eq!(all.revision, revision);
                let seen: BTreeMap<_, _> = all.kvs.into_iter()
                    .map(|kv| (kv.key, (kv.value.to_vec(), kv.create_revision, kv.mod_revision)))
                    .collect();
                assert_eq!(seen, model);
            }
        });
    }
}

const META: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");

/// The format that the file at `path` says it has.
fn format(path: &Path) -> Option<u64> {
    let database = redb::Database::open(path).unwrap();
    let meta = database.begin_read().unwrap().open_table(META).unwrap();
    meta.get("format").unwrap().map(|guard| guard.value())
}

/// Writes the format into the file at `path`, or takes it out; what is returned keeps the file open.
fn set_format(path: &Path, format: Option<u64>) -> redb::Database {
    let database = redb::Database::open(path).unwrap();
    let txn = database.begin_write().unwrap();
    let mut meta = txn.open_table(META).unwrap();
    match format {
        Some(format) => drop(meta.insert("format", format).unwrap()),
        None => drop(meta.remove("format").unwrap()),
    }
    drop(meta);
    txn.commit().unwrap();
    database
}

#[tokio::test]
async fn a_file_of_a_newer_format_is_refused_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    commit(&open(dir.path()), vec![], vec![put("/a", "1")]).await;
    assert_eq!(format(&path), Some(1));
    let database = set_format(&path, Some(2));
    // As after a crash: redb would repair it.
    let crashed = dir.path().join("crashed.redb");
    std::fs::copy(&path, &crashed).unwrap();
    drop(database);
    for path in [path, crashed] {
        let before = std::fs::read(&path).unwrap();
        let error = RedbStore::open(&path).err().expect("it is refused");
        assert_eq!(
            error.to_string(),
            format!(
                "{} has store format 2, and this version of Knarr reads formats up to 1: start the version that wrote it, or a \
                 newer one, or restore a copy of the data directory from before the upgrade",
                path.display()
            )
        );
        assert!(std::fs::read(&path).unwrap() == before, "{path:?} changed");
        // The lock is gone with the refusal.
        drop(set_format(&path, Some(1)));
        let store = RedbStore::open(&path).unwrap();
        assert_eq!(store.get("/a").await.unwrap().unwrap().value, "1");
    }
}

#[tokio::test]
async fn a_file_without_a_format_has_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let revision = commit(&open(dir.path()), vec![], vec![put("/a", "1")]).await;
    drop(set_format(&path, None));
    let store = open(dir.path());
    assert_eq!(store.get("/a").await.unwrap().unwrap().value, "1");
    assert_eq!(store.revision(), revision);
    drop(store);
    assert_eq!(format(&path), Some(1));
}
