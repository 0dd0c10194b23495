//! What the Node authorizer looks up, from the watch cache.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use super::collection::Collection;
use super::entry::Entry;
use super::lanes::View;
use super::table::Table;
use super::write::key;
use crate::auth::node::Lookup;

/// How many pods are kept parsed; with more, they are parsed anew.
const PARSED: usize = 2048;

/// The collections that lead from a node to what its pods use.
pub struct NodeLookup {
    pods: Option<Arc<Collection>>,
    claims: Option<Arc<Collection>>,
    volumes: Option<Arc<Collection>>,
    attachments: Option<Arc<Collection>>,
    slices: Option<Arc<Collection>>,
    certificates: Option<Arc<Collection>>,
    /// A kubelet that starts asks for each of its pods' objects in turn.
    parsed: Mutex<HashMap<Box<str>, Parsed>>,
}

/// An object beside the entry that it was parsed from.
type Parsed = (Arc<Entry>, Arc<Value>);

impl NodeLookup {
    /// Looks up in the collections of a table. All these kinds are built in.
    pub fn new(table: &Table) -> Self {
        let collection = |prefix: &str| table.collection(prefix).cloned();
        Self {
            pods: collection("pods"),
            claims: collection("persistentvolumeclaims"),
            volumes: collection("persistentvolumes"),
            attachments: collection("volumeattachments"),
            slices: collection("resourceslices"),
            certificates: collection("podcertificaterequests"),
            parsed: Mutex::default(),
        }
    }

    fn pod_of(&self, entry: &Arc<Entry>) -> Arc<Value> {
        let mut parsed = self.parsed.lock();
        if let Some((of, pod)) = parsed.get(&entry.key)
            && Arc::ptr_eq(of, entry)
        {
            return pod.clone();
        }
        let pod = Arc::new(entry.parse());
        if parsed.len() >= PARSED {
            parsed.clear();
        }
        parsed.insert(entry.key.clone(), (entry.clone(), pod.clone()));
        pod
    }
}

fn get(collection: Option<&Arc<Collection>>, key: &str) -> Option<Arc<Value>> {
    let entry = collection?.get(key)?;
    Some(Arc::new(entry.parse()))
}

impl Lookup for NodeLookup {
    fn pods_of_node(&self, node: &str) -> Vec<Arc<Value>> {
        let Some(pods) = &self.pods else {
            return Vec::new();
        };
        let of_node = pods.snapshot_of(&View::Field(node.into()), "", "");
        of_node
            .entries
            .iter()
            .map(|entry| self.pod_of(entry))
            .collect()
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let entry = self.pods.as_ref()?.get(&key(namespace, name))?;
        Some(self.pod_of(&entry))
    }

    fn persistent_volume_claim(&self, namespace: &str, name: &str) -> Option<Arc<Value>> {
        get(self.claims.as_ref(), &key(namespace, name))
    }

    fn persistent_volume(&self, name: &str) -> Option<Arc<Value>> {
        get(self.volumes.as_ref(), name)
    }

    fn volume_attachment(&self, name: &str) -> Option<Arc<Value>> {
        get(self.attachments.as_ref(), name)
    }

    fn resource_slice(&self, name: &str) -> Option<Arc<Value>> {
        get(self.slices.as_ref(), name)
    }

    fn pod_certificate_request(&self, namespace: &str, name: &str) -> Option<Arc<Value>> {
        get(self.certificates.as_ref(), &key(namespace, name))
    }
}
