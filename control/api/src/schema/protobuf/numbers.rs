//! The numbers of the messages' fields: `protobuf.txt`, parsed once.

use std::collections::HashMap;
use std::sync::OnceLock;

static TEXT: &str = include_str!("../protobuf.txt");

/// What a message consists of.
#[derive(Debug)]
pub struct Message {
    /// Sorted by number.
    fields: Box<[Numbered]>,
}

/// A field of a [`Message`].
#[derive(Debug)]
pub struct Numbered {
    /// Its number.
    pub number: u64,
    /// Its name in JSON.
    pub name: &'static str,
    /// Whether its zero value means that it is absent.
    pub zero_is_absent: bool,
    /// The message's place in the table, if the field is none in JSON and the message's fields stand in its place.
    inline: Option<usize>,
}

/// All messages.
struct Table {
    messages: Vec<Message>,
    by_name: HashMap<&'static str, usize>,
}

/// A message by the name of its definition: `io.k8s.api.core.v1.PodSpec`.
pub fn message(name: &str) -> Option<&'static Message> {
    let table = table();
    let index = *table.by_name.get(name)?;
    Some(&table.messages[index])
}

impl Message {
    /// The fields in order of number.
    pub fn fields(&self) -> &[Numbered] {
        &self.fields
    }

    /// The field with a number.
    pub fn field(&self, number: u64) -> Option<&Numbered> {
        self.fields
            .binary_search_by_key(&number, |field| field.number)
            .ok()
            .map(|index| &self.fields[index])
    }
}

impl Numbered {
    /// The message whose fields stand in JSON where this field would.
    pub fn inline(&self) -> Option<&'static Message> {
        self.inline.map(|index| &table().messages[index])
    }
}

fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| parse(TEXT))
}

fn parse(text: &'static str) -> Table {
    let lines = || {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split_once(' ').expect("a message has fields"))
    };
    let by_name: HashMap<_, _> = lines()
        .enumerate()
        .map(|(index, (name, _))| (name, index))
        .collect();
    let messages = lines().map(|(name, words)| {
        let (package, _) = name.rsplit_once('.').expect("a message is in a package");
        let mut fields: Vec<Numbered> = words
            .split(' ')
            .map(|word| field(word, package, &by_name))
            .collect();
        fields.sort_by_key(|field| field.number);
        Message {
            fields: fields.into_boxed_slice(),
        }
    });
    Table {
        messages: messages.collect(),
        by_name,
    }
}

/// Reads `<number><name>`, with `?` where zero means absent and `>Message` where a message stands inline.
fn field(word: &'static str, package: &str, by_name: &HashMap<&'static str, usize>) -> Numbered {
    let (word, inline) = match word.split_once('>') {
        Some((word, inline)) => (word, Some(format!("{package}.{inline}"))),
        None => (word, None),
    };
    let name = word.trim_start_matches(|c: char| c.is_ascii_digit());
    let digits = &word[..word.len() - name.len()];
    Numbered {
        number: digits.parse().expect("a field has a number"),
        name: name.trim_end_matches('?'),
        zero_is_absent: name.ends_with('?'),
        inline: inline.map(|name| by_name[&*name]),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::schema::{Schemas, Shape, Type};

    /// Fields of Kubernetes 1.36 and 1.37 whose numbers we do not know, and the types that only they use.
    #[rustfmt::skip] // A table.
    const UNKNOWN: &[&str] = &[
        "admissionregistration.v1.ApplyConfiguration",
        "admissionregistration.v1.JSONPatch",
        "admissionregistration.v1.MutatingAdmissionPolicy",
        "admissionregistration.v1.MutatingAdmissionPolicyBinding",
        "admissionregistration.v1.MutatingAdmissionPolicyBindingSpec",
        "admissionregistration.v1.MutatingAdmissionPolicySpec",
        "admissionregistration.v1.Mutation",
        "authentication.v1.TokenRequestSpec attestations",
        "autoscaling.v2.HorizontalPodAutoscalerCondition observedGeneration",
        "batch.v1.JobSchedulingConfiguration",
        "batch.v1.JobSpec scheduling",
        "certificates.v1.PodCertificateRequest",
        "certificates.v1.PodCertificateRequestSpec",
        "certificates.v1.PodCertificateRequestStatus",
        "core.v1.ClusterTrustBundleProjection user",
        "core.v1.ConfigMapVolumeSource defaultUser",
        "core.v1.DownwardAPIVolumeFile user",
        "core.v1.DownwardAPIVolumeSource defaultUser",
        "core.v1.EmptyDirVolumeSource mode",
        "core.v1.EvictionResponder",
        "core.v1.GRPCAction mode",
        "core.v1.HTTPGetAction protocol",
        "core.v1.KeyToPath user",
        "core.v1.NodeAllocatableMappedResources",
        "core.v1.NodeAllocatableOverheadResources",
        "core.v1.NodeAllocatableResourceClaimStatus",
        "core.v1.NodePodPreemptionPolicy",
        "core.v1.NodeSpec podPreemptionPolicy",
        "core.v1.NodeSystemInfo runningInUserNamespace",
        "core.v1.PersistentVolumeClaimStatus healthStatus",
        "core.v1.PodCertificateProjection user",
        "core.v1.PodSchedulingGroup",
        "core.v1.PodSpec evictionResponders",
        "core.v1.PodSpec schedulingGroup",
        "core.v1.PodStatus nodeAllocatableResourceClaimStatuses",
        "core.v1.PodStatus volumeHealth",
        "core.v1.PodVolumeHealth",
        "core.v1.ProjectedVolumeSource defaultUser",
        "core.v1.ResourceHealth message",
        "core.v1.SecretVolumeSource defaultUser",
        "core.v1.ServiceAccountTokenProjection user",
        "core.v1.VolumeHealthCondition",
        "core.v1.VolumeHealthStatus",
        "core.v1.VolumeMount bindMountOptions",
        "meta.v1.ListMeta shardInfo",
        "meta.v1.ShardInfo",
        "resource.v1.Device nodeAllocatableResources",
        "resource.v1.DeviceAttribute bools",
        "resource.v1.DeviceAttribute ints",
        "resource.v1.DeviceAttribute strings",
        "resource.v1.DeviceAttribute versions",
        "resource.v1.DeviceCounterConsumption compatibilityGroups",
        "resource.v1.DeviceDerivedAttribute",
        "resource.v1.DeviceRequestAllocationResult skipNodeOperations",
        "resource.v1.DeviceSubRequest derivedAttributes",
        "resource.v1.ExactDeviceRequest derivedAttributes",
        "resource.v1.NodeAllocatableMapping",
        "resource.v1.NodeAllocatableOverhead",
        "resource.v1.NodeAllocatableResource",
        "resource.v1.ResourceSliceSpec partitionTypeAttribute",
        "resource.v1.ResourceSliceSpec skipNodeOperations",
        "scheduling.v1alpha3.TopologyConstraint",
        "scheduling.v1alpha3.WorkloadPodGroupDisruptionMode",
        "scheduling.v1alpha3.WorkloadPodGroupGangSchedulingPolicy",
        "scheduling.v1alpha3.WorkloadPodGroupResourceClaim",
        "scheduling.v1alpha3.WorkloadPodGroupSchedulingConstraints",
        "scheduling.v1alpha3.WorkloadPodGroupSchedulingPolicy",
        "storage.v1.CSIDriverSpec preventPodSchedulingIfMissing",
        "storage.v1.CSINode status",
        "storage.v1.CSINodeStatus",
        "storage.v1.StorageHealth",
        "storage.v1.StorageHealthCondition",
    ];

    /// Packages whose messages we do not have at all: their kinds are read and written as text.
    const TEXT_ONLY: &[&str] = &["io.k8s.apiextensions-apiserver.", "io.k8s.kube-aggregator."];

    fn names(message: &Message, into: &mut BTreeSet<&'static str>) {
        for field in message.fields() {
            match field.inline() {
                Some(inline) => names(inline, into),
                None => _ = into.insert(field.name),
            }
        }
    }

    #[test]
    fn every_field_of_the_builtin_kinds_has_a_number_but_the_listed_ones() {
        let schemas = Schemas::builtin();
        let schema = schemas.kinds.values().next().expect("there are kinds");
        let mut missing = BTreeSet::new();
        let text_only = |name: &str| TEXT_ONLY.iter().any(|package| name.starts_with(package));
        for kind in schema.types.iter().filter(|kind| !text_only(&kind.name)) {
            let short = short(kind);
            let Some(message) = message(&kind.name) else {
                missing.insert(short);
                continue;
            };
            let mut numbered = BTreeSet::from(["apiVersion", "kind"]);
            names(message, &mut numbered);
            for field in kind.fields.iter().filter(|f| !numbered.contains(&*f.name)) {
                missing.insert(format!("{short} {}", field.name));
            }
        }
        let listed: BTreeSet<String> = UNKNOWN.iter().map(|line| (*line).to_owned()).collect();
        assert_eq!(missing, listed);
    }

    fn short(kind: &Type) -> String {
        let name = kind.name.trim_start_matches("io.k8s.");
        let name = name.trim_start_matches("apimachinery.pkg.apis.");
        name.trim_start_matches("api.").to_owned()
    }

    #[test]
    fn only_scalars_have_a_zero_value_that_means_absent() {
        let schemas = Schemas::builtin();
        let schema = schemas.kinds.values().next().expect("there are kinds");
        for kind in &*schema.types {
            let marked = message(&kind.name).into_iter().flat_map(Message::fields);
            for marked in marked.filter(|field| field.zero_is_absent) {
                let field = kind.field(marked.name);
                let shape = field.map(|field| &field.shape);
                let scalar = matches!(
                    shape,
                    Some(Shape::String | Shape::Int32 | Shape::Int64 | Shape::Bool | Shape::Bytes)
                );
                assert!(scalar, "{} {}: {shape:?}", kind.name, marked.name);
            }
        }
    }

    #[test]
    fn no_number_stands_twice_in_a_message() {
        for (name, index) in &table().by_name {
            let fields = table().messages[*index].fields();
            let numbers: BTreeSet<u64> = fields.iter().map(|field| field.number).collect();
            assert_eq!(numbers.len(), fields.len(), "{name}");
        }
    }
}
