//! Validation of a pod's volumes.

use serde_json::Value;

use super::containers::{downward_field, resource_field};
use super::spec::Owner;
use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::validation::{
    Errors, descending_path, dns_label, file_path, items, label_selector, no_backsteps, subdomain,
};

const VOLUME_SOURCES: &[&str] = &[
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "hostPath",
    "image",
    "iscsi",
    "nfs",
    "persistentVolumeClaim",
    "photonPersistentDisk",
    "portworxVolume",
    "projected",
    "quobyte",
    "rbd",
    "scaleIO",
    "secret",
    "storageos",
    "vsphereVolume",
];

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// The text fields that a source must have, where that is nearly all there is to check.
#[rustfmt::skip] // One kind of volume a line.
const NEEDED: &[(&str, &[&str])] = &[
    ("awsElasticBlockStore", &["volumeID"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("azureFile", &["secretName", "shareName"]),
    ("cinder", &["volumeID"]),
    ("configMap", &["name"]),
    ("csi", &["driver"]),
    ("flexVolume", &["driver"]),
    ("gcePersistentDisk", &["pdName"]),
    ("gitRepo", &["repository"]),
    ("glusterfs", &["endpoints", "path"]),
    ("hostPath", &["path"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("nfs", &["server", "path"]),
    ("persistentVolumeClaim", &["claimName"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("quobyte", &["registry", "volume"]),
    ("rbd", &["image"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("secret", &["secretName"]),
    ("vsphereVolume", &["volumePath"]),
];

/// A volume without mistakes: what mounts and devices may use.
pub struct Volume<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether it can be a block device.
    pub is_claim: bool,
}

/// Checks volumes; returns those without mistakes.
pub fn validate<'a>(
    errors: &mut Errors,
    at: &str,
    volumes: &'a Value,
    owner: Owner,
) -> Vec<Volume<'a>> {
    let mut good: Vec<Volume<'a>> = Vec::new();
    for (index, volume) in items(volumes) {
        let path = format!("{at}[{index}]");
        let before = errors.0.len();
        source_of(errors, &path, volume, owner);
        let name = text(&volume["name"]);
        if name.is_empty() {
            errors.required(format!("{path}.name"), "");
        } else {
            errors.invalid(&format!("{path}.name"), name, dns_label(name));
        }
        if good.iter().any(|other| other.name == name) {
            errors.0.push(FieldError::duplicate(
                format!("{path}.name"),
                &volume["name"],
            ));
        }
        if errors.0.len() == before {
            let is_claim =
                !volume["persistentVolumeClaim"].is_null() || !volume["ephemeral"].is_null();
            good.push(Volume { name, is_claim });
        }
    }
    good
}

fn source_of(errors: &mut Errors, path: &str, volume: &Value, owner: Owner) {
    let sources: Vec<&str> = VOLUME_SOURCES
        .iter()
        .copied()
        .filter(|source| !volume[*source].is_null())
        .collect();
    match sources.as_slice() {
        [] => errors.required(path, "must specify a volume type"),
        [source] => source_fields(
            errors,
            &format!("{path}.{source}"),
            source,
            &volume[*source],
            owner,
        ),
        [_, rest @ ..] => {
            for source in rest {
                errors.0.push(FieldError::forbidden(
                    format!("{path}.{source}"),
                    "may not specify more than 1 volume type",
                ));
            }
        }
    }
}

/// Mistakes in the source of a persistent volume of a kind that pods have too.
pub fn source(errors: &mut Errors, at: &str, kind: &str, source: &Value) {
    source_fields(errors, at, kind, source, Owner::Template);
}

fn source_fields(errors: &mut Errors, at: &str, kind: &str, source: &Value, owner: Owner) {
    let before = errors.0.len();
    for field in NEEDED
        .iter()
        .filter(|(name, _)| *name == kind)
        .flat_map(|(_, fields)| *fields)
    {
        if text(&source[*field]).is_empty() {
            errors.required(format!("{at}.{field}"), "");
        }
    }
    let complete = errors.0.len() == before;
    mode(errors, format!("{at}.defaultMode"), &source["defaultMode"]);
    match kind {
        "hostPath" if complete => host_path(errors, at, source),
        "nfs" if !text(&source["path"]).starts_with('/') => {
            errors.add(
                format!("{at}.path"),
                &text(&source["path"]).into(),
                "must be an absolute path",
            );
        }
        "secret" | "configMap" => {
            for (index, item) in items(&source["items"]) {
                key_to_path(errors, &format!("{at}.items[{index}]"), item);
            }
        }
        "downwardAPI" => {
            for (_, item) in items(&source["items"]) {
                downward_file(errors, at, item);
            }
        }
        "projected" => projected(errors, at, source),
        "emptyDir" if text(&source["sizeLimit"]).starts_with('-') => {
            errors.0.push(FieldError::forbidden(
                format!("{at}.sizeLimit"),
                "SizeLimit field must be a valid resource quantity",
            ));
        }
        "gitRepo" => {
            let directory = text(&source["directory"]);
            errors.invalid(
                &format!("{at}.directory"),
                directory,
                descending_path(directory),
            );
        }
        "iscsi" if complete => iscsi(errors, at, source),
        "csi" if complete => {
            let driver = text(&source["driver"]);
            errors.invalid(
                &format!("{at}.driver"),
                driver,
                subdomain(&driver.to_lowercase()),
            );
        }
        "cephfs" | "rbd" if items(&source["monitors"]).next().is_none() => {
            errors.required(format!("{at}.monitors"), "");
        }
        "awsElasticBlockStore" | "gcePersistentDisk"
            if !(0..=255).contains(&source["partition"].as_i64().unwrap_or(0)) =>
        {
            errors.add(
                format!("{at}.partition"),
                &source["partition"],
                "must be between 0 and 255, inclusive",
            );
        }
        "fc" => fibre_channel(errors, at, source),
        "ephemeral" => {
            let template = &source["volumeClaimTemplate"];
            let path = format!("{at}.volumeClaimTemplate");
            if template.is_null() {
                errors.required(path, "");
            } else if items(&template["spec"]["accessModes"]).next().is_none() {
                errors.required(
                    format!("{path}.spec.accessModes"),
                    "at least 1 access mode is required",
                );
            }
        }
        "image" => {
            if owner == Owner::Pod && text(&source["reference"]).is_empty() {
                errors.required(format!("{at}.reference"), "");
            }
            if !source["pullPolicy"].is_null() {
                errors.one_of(
                    format!("{at}.pullPolicy"),
                    &source["pullPolicy"],
                    &["Always", "IfNotPresent", "Never"],
                );
            }
        }
        _ => {}
    }
}

fn host_path(errors: &mut Errors, at: &str, source: &Value) {
    let path = text(&source["path"]);
    errors.invalid(&format!("{at}.path"), path, no_backsteps(path));
    if !source["type"].is_null() {
        #[rustfmt::skip] // One list.
        let kinds = ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
        errors.one_of(format!("{at}.type"), &source["type"], &kinds);
    }
}

fn iscsi(errors: &mut Errors, at: &str, source: &Value) {
    let iqn = text(&source["iqn"]);
    if !["iqn", "eui", "naa"]
        .iter()
        .any(|start| iqn.starts_with(start))
    {
        errors.add(
            format!("{at}.iqn"),
            &source["iqn"],
            "must be valid format starting with iqn, eui, or naa",
        );
    }
    let lun = &source["lun"];
    if !(0..=255).contains(&lun.as_i64().unwrap_or(0)) {
        errors.add(
            format!("{at}.lun"),
            lun,
            "must be between 0 and 255, inclusive",
        );
    }
}

fn fibre_channel(errors: &mut Errors, at: &str, source: &Value) {
    let some = |field: &str| items(&source[field]).next().is_some();
    match (some("targetWWNs"), some("wwids")) {
        (false, false) => errors.required(
            format!("{at}.targetWWNs"),
            "must specify either targetWWNs or wwids, but not both",
        ),
        (true, true) => errors.add(
            format!("{at}.targetWWNs"),
            &source["targetWWNs"],
            "targetWWNs and wwids can not be specified simultaneously",
        ),
        (true, false) if source["lun"].is_null() => errors.required(
            format!("{at}.lun"),
            "lun is required if targetWWNs is specified",
        ),
        _ => {}
    }
}

fn mode(errors: &mut Errors, at: String, mode: &Value) {
    if mode.as_i64().is_some_and(|n| !(0..=0o777).contains(&n)) {
        errors.add(at, mode, MODE);
    }
}

fn key_to_path(errors: &mut Errors, at: &str, item: &Value) {
    for field in ["key", "path"] {
        if text(&item[field]).is_empty() {
            errors.required(format!("{at}.{field}"), "");
        }
    }
    let path = text(&item["path"]);
    errors.invalid(&format!("{at}.path"), path, file_path(path));
    mode(errors, format!("{at}.mode"), &item["mode"]);
}

/// A file of the downward API; kube-apiserver's paths name the list, not the item.
fn downward_file(errors: &mut Errors, at: &str, file: &Value) {
    const FIELDS: &[&str] = &[
        "metadata.annotations",
        "metadata.labels",
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
    ];
    let path = text(&file["path"]);
    if path.is_empty() {
        errors.required(format!("{at}.path"), "");
    }
    errors.invalid(&format!("{at}.path"), path, file_path(path));
    let (field, resource) = (&file["fieldRef"], &file["resourceFieldRef"]);
    if !field.is_null() {
        downward_field(errors, &format!("{at}.fieldRef"), field, FIELDS);
        if !resource.is_null() {
            errors.add(
                at,
                &"resource".into(),
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            );
        }
    } else if !resource.is_null() {
        resource_field(errors, &format!("{at}.resourceFieldRef"), resource, true);
    } else {
        errors.required(at, "one of fieldRef and resourceFieldRef is required");
    }
    mode(errors, format!("{at}.mode"), &file["mode"]);
}

/// Several sources in one directory: no two files may have the same path.
fn projected(errors: &mut Errors, at: &str, volume: &Value) {
    const KINDS: &[&str] = &[
        "secret",
        "configMap",
        "downwardAPI",
        "serviceAccountToken",
        "clusterTrustBundle",
        "podCertificate",
    ];
    let mut paths: Vec<&str> = Vec::new();
    for (index, source) in items(&volume["sources"]) {
        let here = format!("{at}.sources[{index}]");
        for kind in ["secret", "configMap"] {
            let inner = &source[kind];
            if inner.is_null() {
                continue;
            }
            if text(&inner["name"]).is_empty() {
                errors.required(format!("{here}.{kind}.name"), "");
            }
            for (number, item) in items(&inner["items"]) {
                key_to_path(errors, &format!("{here}.{kind}.items[{number}]"), item);
                take_path(errors, at, &mut paths, item, &inner["name"]);
            }
        }
        let count = KINDS
            .iter()
            .filter(|kind| !source[**kind].is_null())
            .count();
        for (_, item) in items(&source["downwardAPI"]["items"]) {
            downward_file(errors, &format!("{here}.downwardAPI"), item);
            take_path(errors, at, &mut paths, item, &item["path"]);
        }
        token(errors, at, &here, &source["serviceAccountToken"]);
        let bundle = &source["clusterTrustBundle"];
        if !bundle.is_null() {
            trust_bundle(errors, &format!("{here}.clusterTrustBundle"), bundle);
            take_path(errors, at, &mut paths, bundle, &bundle["path"]);
        }
        if count > 1 {
            errors.0.push(FieldError::forbidden(
                here,
                "may not specify more than 1 volume type per source",
            ));
        }
    }
}

/// Notes the path of a file; `shown` is what is wrong if another file has it.
fn take_path<'a>(
    errors: &mut Errors,
    at: &str,
    paths: &mut Vec<&'a str>,
    file: &'a Value,
    shown: &Value,
) {
    let path = text(&file["path"]);
    if path.is_empty() {
        return;
    }
    if paths.contains(&path) {
        errors.add(at, shown, "conflicting duplicate paths");
    }
    paths.push(path);
}

fn token(errors: &mut Errors, volume: &str, here: &str, token: &Value) {
    if token.is_null() {
        return;
    }
    let seconds = &token["expirationSeconds"];
    let detail = match seconds.as_i64().unwrap_or(3600) {
        ..600 => Some("may not specify a duration less than 10 minutes"),
        4_294_967_297.. => Some("may not specify a duration larger than 2^32 seconds"),
        _ => None,
    };
    if let Some(detail) = detail {
        errors.add(
            format!("{here}.serviceAccountToken.expirationSeconds"),
            seconds,
            detail,
        );
    }
    let path = text(&token["path"]);
    if path.is_empty() {
        errors.required(format!("{volume}.path"), "");
    } else {
        errors.invalid(&format!("{volume}.path"), path, file_path(path));
    }
}

fn trust_bundle(errors: &mut Errors, at: &str, bundle: &Value) {
    match (bundle["name"].is_null(), bundle["signerName"].is_null()) {
        (false, false) => errors.add(at, bundle, "only one of name and signerName may be used"),
        (true, true) => errors.required(at, "either name or signerName must be specified"),
        (false, true) => {
            if text(&bundle["name"]).is_empty() {
                errors.required(format!("{at}.name"), "must be a valid object name");
            }
            if !bundle["labelSelector"].is_null() {
                errors.add(
                    format!("{at}.labelSelector"),
                    &bundle["labelSelector"],
                    "labelSelector must be unset if name is specified",
                );
            }
        }
        (true, false) => {
            if text(&bundle["signerName"]).is_empty() {
                errors.required(format!("{at}.signerName"), "must be a valid signer name");
            }
            label_selector(
                errors,
                &format!("{at}.labelSelector"),
                &bundle["labelSelector"],
            );
        }
    }
    let path = text(&bundle["path"]);
    if path.is_empty() {
        errors.required(format!("{at}.path"), "");
    }
    errors.invalid(&format!("{at}.path"), path, file_path(path));
}
