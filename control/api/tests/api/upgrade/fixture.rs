//! What commit 8ae27c3 left, the last one before authorization by roles (`tests/upgrade/make`).

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use knarr_api::ApiServerConfig;
use knarr_api::pki::Pki;
use knarr_store::RedbStore;
use serde_json::Value;

use crate::support::Server;

/// The store after a stop in peace, and after a kill.
pub const STORES: [&str; 2] = ["data/server/db/state.redb", "crashed.redb"];

/// The fixture, unpacked.
pub struct Old {
    /// The objects as the older version showed them.
    pub objects: Vec<Value>,
    /// The newest revision that it told anybody.
    pub revision: u64,
    /// Tokens that it gave out.
    pub tokens: BTreeMap<String, String>,
    pub dir: tempfile::TempDir,
}

impl Old {
    pub fn unpack() -> Self {
        let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/upgrade/8ae27c3.tar.gz");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut tar = Command::new("tar");
        tar.arg("-xzf").arg(packed).arg("-C").arg(dir.path());
        assert!(tar.status().expect("tar runs").success());
        let read = |name: &str| -> Value {
            let text = std::fs::read(dir.path().join(name)).expect("a file of the fixture");
            serde_json::from_slice(&text).expect("JSON")
        };
        let objects = read("objects.json");
        let revision = objects["revision"].as_str().expect("a revision");
        Self {
            objects: objects["items"].as_array().expect("objects").clone(),
            revision: revision.parse().expect("a number"),
            tokens: serde_json::from_value(read("tokens.json")).expect("tokens"),
            dir,
        }
    }

    pub fn read(&self, name: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// This version's server on a copy of the directory, at the time of the fixture: tokens and certificates end, tests do not.
    pub async fn open(&self, store: &str) -> Server {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(self.dir.path().join("data/server/tls"));
        assert!(copy.arg(dir.path()).status().expect("cp runs").success());
        let path = dir.path().join("state.redb");
        std::fs::copy(self.dir.path().join(store), &path).expect("a copy of the store");
        self.open_at(dir).await
    }

    pub async fn open_at(&self, dir: tempfile::TempDir) -> Server {
        let now: i64 = self.read("now").trim().parse().expect("seconds");
        let now = time::OffsetDateTime::from_unix_timestamp(now).expect("a time");
        let pki = Pki::open_with_clock(&dir.path().join("tls"), Arc::new(move || now));
        let store = RedbStore::open(&dir.path().join("state.redb")).expect("the store opens");
        let config = ApiServerConfig {
            // As the older version was started.
            advertise: "192.168.77.2:6443".parse().expect("an address"),
            hosts: vec!["box".to_owned(), "192.168.77.2".to_owned()],
            // Events end by the system's clock.
            event_ttl: std::time::Duration::from_secs(1000 * 365 * 24 * 3600),
            ..ApiServerConfig::default()
        };
        Server::open_as(dir, config, Arc::new(store), pki.expect("keys")).await
    }

    pub fn of(&self, kind: &str) -> Vec<&Value> {
        let all = self.objects.iter().filter(|object| object["kind"] == kind);
        all.collect()
    }
}

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Where an object is served.
pub fn path(object: &Value) -> String {
    let api = text(&object["apiVersion"]);
    let root = if api.contains('/') { "apis" } else { "api" };
    let mut plural = text(&object["kind"]).to_lowercase();
    if plural != "endpoints" {
        plural.push('s');
    }
    let name = text(&object["metadata"]["name"]);
    match text(&object["metadata"]["namespace"]) {
        "" => format!("/{root}/{api}/{plural}/{name}"),
        namespace => format!("/{root}/{api}/namespaces/{namespace}/{plural}/{name}"),
    }
}

/// The revision of an object.
pub fn revision(object: &Value) -> u64 {
    let revision = text(&object["metadata"]["resourceVersion"]);
    revision.parse().expect("a revision")
}
