//! Where the data of a persistent volume is.

use serde_json::{Map, Value};

use crate::status::FieldError;
use crate::strategy::fields::{anything, driver_name, required_text};
use crate::strategy::pod::volume_source;
use crate::strategy::validation::{Errors, no_backsteps};

/// The sources of a persistent volume, in the order in which Kubernetes checks them.
const SOURCES: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

/// The secrets that a CSI volume may name.
const SECRETS: &[&str] = &[
    "controllerPublishSecretRef",
    "controllerExpandSecretRef",
    "nodePublishSecretRef",
    "nodeExpandSecretRef",
];

/// Mistakes in the source of a volume: there must be one.
pub(super) fn validate(errors: &mut Errors, at: &str, spec: &Value) {
    let mut given = SOURCES.iter().filter(|source| !spec[**source].is_null());
    let Some(kind) = given.next() else {
        return errors.required(at, "must specify a volume type");
    };
    let source = &spec[*kind];
    match *kind {
        "local" => {
            let at = format!("{at}.local.path");
            required_text(errors, &at, &source["path"], no_backsteps);
            if spec["nodeAffinity"].is_null() {
                let at = at.replace("local.path", "nodeAffinity");
                errors.required(at, "Local volume requires node affinity");
            }
        }
        "csi" => csi(errors, &format!("{at}.csi"), source),
        // The path in the messages is the one of kube-apiserver.
        "gcePersistentDisk" => volume_source(errors, &format!("{at}.persistentDisk"), kind, source),
        _ => volume_source(errors, &format!("{at}.{kind}"), kind, source),
    }
    for other in given {
        let detail = "may not specify more than 1 volume type";
        errors
            .0
            .push(FieldError::forbidden(format!("{at}.{other}"), detail));
    }
}

fn csi(errors: &mut Errors, at: &str, source: &Value) {
    driver_name(errors, &format!("{at}.driver"), &source["driver"]);
    required_text(
        errors,
        &format!("{at}.volumeHandle"),
        &source["volumeHandle"],
        anything,
    );
    for secret in SECRETS.iter().filter(|secret| !source[**secret].is_null()) {
        for field in ["name", "namespace"] {
            let at = format!("{at}.{secret}.{field}");
            required_text(errors, &at, &source[*secret][field], anything);
        }
    }
}

/// The source of a volume without what may be added later: the secret with which the driver expands it.
pub(super) fn of(spec: &Value, old: &Value) -> Value {
    let given = SOURCES.iter().filter(|source| !spec[**source].is_null());
    let mut found: Map<_, _> = given
        .map(|source| ((*source).to_owned(), spec[*source].clone()))
        .collect();
    if old["csi"].is_object() && old["csi"]["controllerExpandSecretRef"].is_null() {
        let csi = found.get_mut("csi").and_then(Value::as_object_mut);
        csi.map(|csi| csi.remove("controllerExpandSecretRef"));
    }
    Value::Object(found)
}
