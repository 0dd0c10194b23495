//! The whole program on a data directory that an older version wrote: the same objects, the same pods, and all goes on.

use std::process::Command;

use serde_json::Value;

use crate::harness::{Cluster, hello_image, program};

/// What commit 8ae27c3 left (`control/api/tests/upgrade/make`); there was a node called `box`.
const FIXTURE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/control/api/tests/upgrade/8ae27c3.tar.gz"
);

/// The objects as the older version showed them.
fn old_objects() -> Vec<Value> {
    let mut tar = Command::new("tar");
    let output = tar.args(["-xzOf", FIXTURE, "objects.json"]).output();
    let text = output.expect("run tar").stdout;
    let objects: Value = serde_json::from_slice(&text).expect("JSON");
    objects["items"].as_array().expect("a list").clone()
}

/// Kind, namespace, name and uid, and the addresses of a service.
fn identity(object: &Value) -> String {
    let metadata = &object["metadata"];
    let ports = object["spec"]["ports"].as_array().into_iter().flatten();
    let ports: Vec<&Value> = ports.map(|port| &port["nodePort"]).collect();
    let (kind, address) = (&object["kind"], &object["spec"]["clusterIP"]);
    let (namespace, name, uid) = (&metadata["namespace"], &metadata["name"], &metadata["uid"]);
    let identity = format!("{kind} {namespace}/{name} {uid}");
    match kind.as_str() {
        Some("Service") => format!("{identity} {address} {ports:?}"),
        _ => identity,
    }
}

/// What is there now of the kinds that outlive a change of version.
fn identities(cluster: &Cluster) -> Vec<String> {
    let kinds =
        "configmaps,deployments,namespaces,nodes,pods,replicasets,secrets,serviceaccounts,services";
    let list = cluster.kubectl(&["get", kinds, "-A", "-o", "json"]);
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let items = list["items"].as_array().expect("a list");
    items.iter().map(identity).collect()
}

#[test]
fn a_cluster_of_an_older_version_goes_on_where_it_was() {
    let old = old_objects();
    let prepare = format!(
        "tar -xzf {FIXTURE} -C /var/lib/knarr --strip-components=1 data && {} image import {}",
        program("knarr").display(),
        hello_image("v1").display()
    );
    let cluster = Cluster::start_after("box", &prepare);
    let in_shop = |args: &[&str]| cluster.kubectl(&[&["-n", "shop"], args].concat());
    let ready = |label: &str, count: usize| {
        cluster.wait(&format!("{count} pods of {label} to run"), || {
            let path = "-o=jsonpath={.items[*].status.containerStatuses[*].ready}";
            let args = ["-n", "shop", "get", "pods", "-l", label, path];
            let is = cluster.try_kubectl(&args)?;
            let wanted = vec!["true"; count].join(" ");
            if is == wanted { Ok(()) } else { Err(is) }
        });
    };
    let answers = |address: &str| {
        cluster.wait(&format!("an answer of {address}"), || {
            let curl = format!("curl --silent --fail --max-time 2 http://{address}/");
            let output = cluster.machine().sh(&curl);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() && text.contains("web-") {
                Ok(())
            } else {
                Err(format!("{}: {text}", output.status))
            }
        });
    };
    // The pods that were to end have ended, the others run again.
    ready("app=web", 2);
    ready("app=alone", 1);
    let web = in_shop(&["get", "service/web", "-o=jsonpath={.spec.clusterIP}"]);
    answers(&web);
    answers("10.43.0.77");
    answers("192.168.77.2:30080");

    let now = identities(&cluster);
    let lasting = |object: &&Value| {
        let ends = !object["metadata"]["deletionTimestamp"].is_null();
        let moving = [
            "CertificateSigningRequest",
            "Endpoints",
            "EndpointSlice",
            "Event",
            "Lease",
        ];
        !ends && !moving.iter().any(|kind| object["kind"] == *kind)
    };
    let lost: Vec<String> = (old.iter().filter(lasting).map(identity))
        .filter(|object| !now.contains(object))
        .collect();
    assert!(lost.is_empty(), "{lost:#?}\nare not among\n{now:#?}");

    // The controllers know the old objects for theirs, and the scheduler places what is new.
    let sets = |cluster: &Cluster| -> Vec<String> {
        let now = identities(cluster);
        let of_shop = now
            .into_iter()
            .filter(|one| one.starts_with("\"ReplicaSet\" \"shop\""));
        of_shop.collect()
    };
    let before = sets(&cluster);
    assert_eq!(before.len(), 2, "{before:#?}");
    in_shop(&["scale", "deployment/web", "--replicas=3"]);
    ready("app=web", 3);
    in_shop(&["rollout", "undo", "deployment/web"]);
    in_shop(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    ready("app=web", 3);
    assert_eq!(sets(&cluster), before);
    answers(&web);
}
