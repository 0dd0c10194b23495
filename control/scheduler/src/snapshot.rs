//! The nodes and what runs on them, kept current by every single change.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;

use crate::model::Node;
use crate::pod::{HostPort, PodInfo, Uid};
use crate::resources::Resources;

/// A node's place in the snapshot; it stays the same for as long as the node exists.
pub(crate) type NodeId = usize;

/// A node.
#[derive(Debug, Default)]
pub(crate) struct NodeInfo {
    pub name: Arc<str>,
    /// False if only pods have named it so far.
    pub exists: bool,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    pub used: Resources,
    /// CPU and memory as they count in scores.
    pub weight: (i64, i64),
    pub ports: Vec<HostPort>,
    pub pods: Vec<Arc<PodInfo>>,
    /// Pods for which room was made here, and which are not here yet.
    pub nominated: Vec<Arc<PodInfo>>,
}

/// All nodes, and all pods that have one.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    nodes: Vec<NodeInfo>,
    by_name: HashMap<Arc<str>, NodeId>,
    free: Vec<NodeId>,
    pods: HashMap<Uid, (NodeId, Arc<PodInfo>)>,
    owners: HashMap<Arc<str>, HashMap<NodeId, u32>>,
    /// Pods whose affinity terms bind others.
    with_terms: HashSet<Uid>,
    /// The nodes of the nominated pods.
    nominations: HashMap<Uid, Arc<str>>,
    /// Labels of namespaces, for affinity terms that select namespaces.
    pub namespaces: HashMap<String, BTreeMap<String, String>>,
    /// Where the search for a node begins next.
    pub start: usize,
}

impl Snapshot {
    /// How many places there are; some may be empty.
    pub fn places(&self) -> usize {
        self.nodes.len()
    }

    /// The node in a place, if there is one.
    pub fn node(&self, id: NodeId) -> Option<&NodeInfo> {
        self.nodes.get(id).filter(|node| node.exists)
    }

    /// The nodes with their places.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &NodeInfo)> {
        self.nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| node.exists)
    }

    /// The place of a node.
    pub fn id(&self, name: &str) -> Option<NodeId> {
        self.by_name.get(name).copied()
    }

    /// The pods that have affinity terms, with the places of their nodes.
    pub fn pods_with_terms(&self) -> impl Iterator<Item = (NodeId, &Arc<PodInfo>)> {
        self.with_terms
            .iter()
            .filter_map(|uid| self.pods.get(uid))
            .map(|(id, pod)| (*id, pod))
    }

    /// How many pods of each node have this controller.
    pub fn siblings(&self, owner: &str) -> Option<&HashMap<NodeId, u32>> {
        self.owners.get(owner)
    }

    /// Every pod that has a node.
    pub fn uids(&self) -> impl Iterator<Item = &Uid> {
        self.pods.keys()
    }

    /// The names of the nodes that exist.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.nodes().map(|(_, node)| &node.name)
    }

    /// Takes over a node; answers whether anything changed that could let a pod in.
    pub fn set_node(&mut self, node: Node) -> bool {
        let name = node.metadata.name.unwrap_or_default();
        let id = self.place(&name);
        let known = &mut self.nodes[id];
        let labels = node.metadata.labels.unwrap_or_default();
        let allocatable = Resources::parse(&node.status.allocatable);
        let changed = !known.exists
            || known.labels != labels
            || known.taints != node.spec.taints
            || known.unschedulable != node.spec.unschedulable
            || known.allocatable != allocatable;
        known.exists = true;
        known.labels = labels;
        known.taints = node.spec.taints;
        known.unschedulable = node.spec.unschedulable;
        known.allocatable = allocatable;
        changed
    }

    /// Forgets a node; pods that still name it keep its place.
    pub fn remove_node(&mut self, name: &str) {
        let Some(id) = self.id(name) else { return };
        self.nodes[id].exists = false;
        self.release(id);
    }

    /// Puts a pod on a node, taking it off another where needed.
    pub fn add_pod(&mut self, pod: Arc<PodInfo>, node: &str) {
        if let Some((id, known)) = self.pods.get(&pod.uid)
            && *self.nodes[*id].name == *node
            && **known == *pod
        {
            return;
        }
        self.remove_pod(&pod.uid);
        let id = self.place(node);
        let info = &mut self.nodes[id];
        info.used.add(&pod.requests, 1);
        info.weight.0 += pod.weight.0;
        info.weight.1 += pod.weight.1;
        info.ports.extend(pod.ports.iter().cloned());
        info.pods.push(pod.clone());
        if let Some(owner) = &pod.owner {
            *self
                .owners
                .entry(owner.clone())
                .or_default()
                .entry(id)
                .or_insert(0) += 1;
        }
        if pod.terms.is_some() {
            self.with_terms.insert(pod.uid.clone());
        }
        self.pods.insert(pod.uid.clone(), (id, pod));
    }

    /// Keeps room on a node for a pod, against others that do not have more priority.
    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.forget_nomination(&pod.uid);
        let Some(id) = self.id(node) else { return };
        let info = &mut self.nodes[id];
        self.nominations.insert(pod.uid.clone(), info.name.clone());
        info.nominated.push(pod);
    }

    /// The node on which room was made for a pod.
    pub fn nomination(&self, uid: &str) -> Option<NodeId> {
        self.id(self.nominations.get(uid)?)
    }

    /// Keeps no more room for a pod.
    pub fn forget_nomination(&mut self, uid: &str) {
        if let Some(name) = self.nominations.remove(uid)
            && let Some(id) = self.id(&name)
        {
            self.nodes[id].nominated.retain(|pod| *pod.uid != *uid);
        }
    }

    /// Takes a pod off its node; answers which node that was.
    pub fn remove_pod(&mut self, uid: &str) -> Option<NodeId> {
        let (id, pod) = self.pods.remove(uid)?;
        let info = &mut self.nodes[id];
        info.used.add(&pod.requests, -1);
        info.weight.0 -= pod.weight.0;
        info.weight.1 -= pod.weight.1;
        for port in &pod.ports {
            if let Some(at) = info.ports.iter().position(|known| known == port) {
                info.ports.swap_remove(at);
            }
        }
        info.pods.retain(|known| known.uid != pod.uid);
        if let Some(owner) = &pod.owner
            && let Some(counts) = self.owners.get_mut(owner)
        {
            if let Some(count) = counts.get_mut(&id) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&id);
                }
            }
            if counts.is_empty() {
                self.owners.remove(owner);
            }
        }
        self.with_terms.remove(uid);
        self.release(id);
        Some(id)
    }

    fn place(&mut self, name: &str) -> NodeId {
        if let Some(id) = self.id(name) {
            return id;
        }
        let name: Arc<str> = name.into();
        let info = NodeInfo {
            name: name.clone(),
            ..NodeInfo::default()
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.nodes[id] = info;
                id
            }
            None => {
                self.nodes.push(info);
                self.nodes.len() - 1
            }
        };
        self.by_name.insert(name, id);
        id
    }

    /// Frees the place of a node that neither exists nor has pods.
    fn release(&mut self, id: NodeId) {
        let info = &self.nodes[id];
        if !info.exists && info.pods.is_empty() && self.by_name.remove(&info.name).is_some() {
            self.nodes[id] = NodeInfo::default();
            self.free.push(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn pod(uid: u8, owner: u8) -> Arc<PodInfo> {
        let pod = json!({
            "metadata": {"uid": uid.to_string(), "name": uid.to_string(), "namespace": "ns",
                "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "x", "uid": owner.to_string(), "controller": true}]},
            "spec": {"nodeName": "x", "containers": [{"resources": {"requests": {"cpu": format!("{uid}m"), "gpu": "1"}}, "ports": [{"hostPort": 80}]}]},
        });
        Arc::new(PodInfo::of(serde_json::from_value(pod).expect("a pod")))
    }

    fn node(name: u8) -> Node {
        serde_json::from_value(json!({"metadata": {"name": name.to_string()}, "status": {"allocatable": {"cpu": "4"}}})).expect("a node")
    }

    #[derive(Clone, Debug)]
    enum Step {
        AddPod(u8, u8),
        RemovePod(u8),
        AddNode(u8),
        RemoveNode(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..6_u8, 0..3_u8).prop_map(|(pod, node)| Step::AddPod(pod, node)),
            (0..6_u8).prop_map(Step::RemovePod),
            (0..3_u8).prop_map(Step::AddNode),
            (0..3_u8).prop_map(Step::RemoveNode),
        ]
    }

    proptest! {
        /// However pods and nodes come and go, in whatever order: the sums are those of the pods that are there.
        #[test]
        fn the_sums_are_those_of_the_pods(steps in proptest::collection::vec(step(), 0..40)) {
            let mut snapshot = Snapshot::default();
            let mut expected: HashMap<u8, u8> = HashMap::new();
            let mut nodes = HashSet::new();
            for step in steps {
                match step {
                    Step::AddPod(uid, name) => { snapshot.add_pod(pod(uid, uid % 2), &name.to_string()); expected.insert(uid, name); }
                    Step::RemovePod(uid) => { snapshot.remove_pod(&uid.to_string()); expected.remove(&uid); }
                    Step::AddNode(name) => { snapshot.set_node(node(name)); nodes.insert(name); }
                    Step::RemoveNode(name) => { snapshot.remove_node(&name.to_string()); nodes.remove(&name); }
                }
                prop_assert_eq!(snapshot.nodes().count(), nodes.len());
                for name in 0..3_u8 {
                    let here: Vec<u8> = expected.iter().filter(|(_, node)| **node == name).map(|(uid, _)| *uid).collect();
                    let Some(info) = snapshot.id(&name.to_string()).map(|id| &snapshot.nodes[id]) else {
                        prop_assert!(here.is_empty() && !nodes.contains(&name));
                        continue;
                    };
                    prop_assert_eq!(info.used.cpu, here.iter().map(|uid| i64::from(*uid)).sum::<i64>());
                    prop_assert_eq!(info.used.pods, i64::try_from(here.len()).unwrap());
                    prop_assert_eq!(info.ports.len(), here.len());
                    prop_assert_eq!(info.exists, nodes.contains(&name));
                }
            }
        }
    }
}
