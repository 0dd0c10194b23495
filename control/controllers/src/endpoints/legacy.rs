//! The older `Endpoints` object of a service, which some clients still read.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset};

use super::pods::{Family, Ports, families, hostname, ports, target_ref};
use crate::model::{Pod, Service, is_deleting};

/// More addresses than these do not go into one object. Source: kubernetes, `maxCapacity`.
const MOST: usize = 1000;

/// The subsets: addresses that share their ports, ready ones apart from the others.
pub(crate) fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let family = families(service).first().copied().unwrap_or(Family::V4);
    let mut sorted: Vec<_> = pods.iter().filter(|pod| !pod.is_terminal()).collect();
    sorted.sort_by(|left, right| left.metadata.name.cmp(&right.metadata.name));
    let mut groups: BTreeMap<Ports, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    let mut count = 0;
    for pod in sorted {
        let publishes = service.spec.publish_not_ready_addresses;
        let Some(ip) = pod.addresses().find(|address| family.has(address)) else {
            continue;
        };
        if (is_deleting(&pod.metadata) && !publishes) || count >= MOST {
            continue;
        }
        count += 1;
        let address = EndpointAddress {
            ip: ip.to_owned(),
            hostname: hostname(service, pod),
            node_name: pod.spec.node_name.as_deref().map(str::to_owned),
            target_ref: Some(target_ref(pod)),
        };
        let (ready, not_ready) = groups.entry(ports(service, pod)).or_default();
        if publishes || pod.is_ready() {
            ready.push(address)
        } else {
            not_ready.push(address)
        }
    }
    (groups.into_iter())
        .map(|(ports, (ready, not_ready))| EndpointSubset {
            addresses: (!ready.is_empty()).then_some(ready),
            not_ready_addresses: (!not_ready.is_empty()).then_some(not_ready),
            ports: (!ports.is_empty()).then(|| {
                (ports.into_iter())
                    .map(|port| EndpointPort {
                        name: (!port.name.is_empty()).then_some(port.name),
                        port: port.port,
                        protocol: Some(port.protocol),
                        app_protocol: port.app_protocol,
                    })
                    .collect()
            }),
        })
        .collect()
}
