//! `--systemd-cgroup`, against a real bus with a manager on it that takes notes. What systemd itself would do to the group
//! is not tried here: there is none on the machines that run these tests.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::json;
use zbus::object_server::SignalEmitter;
use zbus::zvariant::{OwnedVariant, Variant};
use zbus::{OwnedObjectPath, fdo};

use crate::support::{self, Case, Done, group_file};

/// What was asked of the manager.
#[derive(Clone, Debug, Default)]
struct Notes(Arc<Mutex<Vec<Call>>>);

#[derive(Clone, Debug)]
struct Call {
    method: &'static str,
    unit: String,
    properties: BTreeMap<String, String>,
    /// The parents of the processes that the scope was made with, at that moment.
    alive: bool,
}

struct Manager {
    notes: Notes,
    /// How the next jobs end.
    result: &'static str,
}

type Properties = Vec<(String, OwnedVariant)>;

impl Manager {
    fn note(&self, method: &'static str, unit: &str, properties: &Properties) {
        let mut alive = false;
        let mut seen = BTreeMap::new();
        for (name, value) in properties {
            let value: &Variant<'_> = value;
            if name == "PIDs" {
                let pids = Vec::<u32>::try_from(value.try_clone().unwrap()).unwrap();
                alive = pids.len() == 1
                    && pids
                        .iter()
                        .all(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists());
            }
            seen.insert(name.clone(), value.to_string());
        }
        self.notes.0.lock().unwrap().push(Call {
            method,
            unit: unit.to_owned(),
            properties: seen,
            alive,
        });
    }
}

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    fn subscribe(&self) {}

    async fn start_transient_unit(
        &self,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
        name: String,
        _mode: String,
        properties: Properties,
        _auxiliary: Vec<(String, Properties)>,
    ) -> fdo::Result<OwnedObjectPath> {
        self.note("start", &name, &properties);
        let job = || OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/7").unwrap();
        let other = OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/6").unwrap();
        Self::job_removed(&emitter, 6, other, "other.service", "failed").await?;
        Self::job_removed(&emitter, 7, job(), &name, self.result).await?;
        Ok(job())
    }

    fn stop_unit(&self, name: String, _mode: String) -> OwnedObjectPath {
        self.note("stop", &name, &Vec::new());
        OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/8").unwrap()
    }

    fn reset_failed_unit(&self, name: String) {
        self.note("reset", &name, &Vec::new());
    }

    fn set_unit_properties(&self, name: String, _runtime: bool, properties: Properties) {
        self.note("set", &name, &properties);
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

/// A message bus of our own with a manager on it.
struct Bus {
    daemon: Child,
    address: String,
    notes: Notes,
    _dir: tempfile::TempDir,
}

impl Bus {
    fn new(result: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("bus.conf");
        let text = format!(
            "<busconfig><type>custom</type><listen>unix:dir={}</listen><auth>EXTERNAL</auth>\
             <policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/>\
             <allow eavesdrop=\"true\"/><allow own=\"*\"/></policy></busconfig>",
            dir.path().display()
        );
        std::fs::write(&config, text).unwrap();
        let mut daemon = Command::new("dbus-daemon")
            .arg("--config-file")
            .arg(&config)
            .args(["--nofork", "--print-address"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon is installed");
        let mut address = String::new();
        let out = daemon.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut address).unwrap();
        let address = address.trim().to_owned();
        let notes = Notes::default();
        let manager = Manager {
            notes: notes.clone(),
            result,
        };
        let (ready, wait) = std::sync::mpsc::channel();
        let at = address.clone();
        std::thread::spawn(move || {
            zbus::block_on(async {
                let connection = zbus::connection::Builder::address(at.as_str())
                    .name("org.freedesktop.systemd1")
                    .serve_at("/org/freedesktop/systemd1", manager)
                    .build()
                    .await
                    .unwrap();
                ready.send(()).unwrap();
                connection.closed().await;
            });
        });
        wait.recv_timeout(support::DEADLINE)
            .expect("the manager is on the bus");
        Self {
            daemon,
            address,
            notes,
            _dir: dir,
        }
    }

    fn calls(&self, method: &str) -> Vec<Call> {
        let notes = self.notes.0.lock().unwrap();
        notes
            .iter()
            .filter(|call| call.method == method)
            .cloned()
            .collect()
    }

    fn verb(&self, case: &Case, args: &[&str]) -> Done {
        let all: Vec<&str> = ["--systemd-cgroup"].iter().chain(args).copied().collect();
        let out = std::fs::File::create(case.path("out")).unwrap();
        let err = std::fs::File::create(case.path("err")).unwrap();
        let status = case
            .runtime(&all)
            .env("DBUS_SYSTEM_BUS_ADDRESS", &self.address)
            .stdout(out)
            .stderr(err)
            .status()
            .unwrap();
        Done {
            code: status.code().unwrap_or(-1),
            out: case.output(),
            err: std::fs::read_to_string(case.path("err")).unwrap(),
        }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }
}

/// A container whose group is `<slice>/<scope>`, and the path of it.
fn case(script: &str) -> (Case, String, String) {
    let mut case = Case::new(script);
    let slice = format!("{}.slice", case.id.replace('-', "_"));
    let scope = format!("test-{}.scope", case.id);
    case.linux()["cgroupsPath"] = json!(format!("{slice}:test:{}", case.id));
    (case, slice, scope)
}

#[test]
fn a_scope_is_started_changed_and_stopped() {
    let bus = Bus::new("done");
    let (mut case, slice, scope) = case("sleep 1000");
    case.linux()["resources"]["memory"] = json!({ "limit": 67_108_864 });
    case.linux()["resources"]["pids"] = json!({ "limit": 55 });
    case.config["annotations"] = json!({
        "org.systemd.property.TimeoutStopSec": "uint64 3", "org.systemd.property.CollectMode": "'inactive-or-failed'",
    });
    let created = bus.verb(&case, &["create", &case.id]);
    assert_eq!(created.code, 0, "{created:?}");
    let started = &bus.calls("start")[0];
    assert_eq!(started.unit, scope);
    assert!(started.alive, "{started:?}");
    let property = |name: &str| started.properties.get(name).map(String::as_str);
    assert_eq!(property("Slice"), Some(format!("\"{slice}\"").as_str()));
    assert_eq!(property("Delegate"), Some("true"));
    assert_eq!(property("TimeoutStopUSec"), Some("uint64 3000000"));
    assert_eq!(property("CollectMode"), Some("\"inactive-or-failed\""));
    assert_eq!(property("MemoryLimit"), Some("uint64 67108864"));
    assert_eq!(property("TasksMax"), Some("uint64 55"));
    // The files say the same, also where there is no systemd to write them.
    let group = format!("{slice}/{scope}");
    assert_eq!(group_file(&group, "pids", "pids.max"), "55");
    let procs = group_file(&group, "memory", "cgroup.procs");
    assert_eq!(procs, case.state()["pid"].to_string(), "the helper is gone");

    let updated = bus.verb(&case, &["update", "--pids-limit", "66", &case.id]);
    assert_eq!(updated.code, 0, "{updated:?}");
    let set = &bus.calls("set")[0];
    assert_eq!(set.unit, scope);
    assert_eq!(set.properties["TasksMax"], "uint64 66");
    assert_eq!(group_file(&group, "pids", "pids.max"), "66");

    assert_eq!(bus.calls("stop").len(), 0);
    let deleted = bus.verb(&case, &["delete", "--force", &case.id]);
    assert_eq!(deleted.code, 0, "{deleted:?}");
    assert_eq!(bus.calls("stop")[0].unit, scope);
    let left = std::path::Path::new("/sys/fs/cgroup/pids").join(slice);
    assert!(!left.exists(), "{}", left.display());
    case.assert_nothing_left();
}

#[test]
fn a_scope_that_does_not_start_is_an_error_and_leaves_nothing() {
    let bus = Bus::new("timeout");
    let (case, slice, _) = case("true");
    let done = bus.verb(&case, &["run", &case.id]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.err.contains("timeout"), "{done:?}");
    assert_eq!(bus.calls("reset").len(), 1);
    assert!(
        !std::path::Path::new("/sys/fs/cgroup/pids")
            .join(slice)
            .exists()
    );
    case.assert_nothing_left();
}

#[test]
fn what_fails_later_stops_the_scope() {
    let bus = Bus::new("done");
    let (mut case, slice, scope) = case("true");
    case.config["process"]["args"] = json!(["/no/such/program"]);
    let done = bus.verb(&case, &["run", &case.id]);
    assert_ne!(done.code, 0, "{done:?}");
    assert_eq!(bus.calls("stop")[0].unit, scope);
    assert!(
        !std::path::Path::new("/sys/fs/cgroup/pids")
            .join(slice)
            .exists()
    );
    case.assert_nothing_left();
}

#[test]
fn without_a_bus_or_a_scope_s_name_the_error_says_so() {
    let (mut case, ..) = case("true");
    let run = |case: &Case, flag: &str| {
        let mut command = case.runtime(&[flag, "run", &case.id]);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent");
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    // As runc and as crun have it.
    for flag in ["--systemd-cgroup", "--cgroup-manager=systemd"] {
        let error = run(&case, flag);
        assert!(
            error.contains("cannot use systemd cgroups manager"),
            "{error}"
        );
        case.assert_nothing_left();
    }
    case.linux()["cgroupsPath"] = json!("/a/path");
    let error = run(&case, "--systemd-cgroup");
    assert!(error.contains("slice:prefix:name"), "{error}");
    case.assert_nothing_left();
}
