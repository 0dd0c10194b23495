//! Cluster addresses: who gets which, and the IPAddress that stands for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rand::Rng as _;
use serde_json::{Value, json};

use super::Services;
use crate::registry::defaults::KUBERNETES;
use crate::registry::meta;
use crate::status::FieldError;

/// The label of an IPAddress that belongs to a service, with its value.
pub(super) const MANAGED_BY: (&str, &str) =
    ("ipaddress.kubernetes.io/managed-by", "ipallocator.k8s.io");

/// Addresses at the start of the range that are given out last, so that they stay free for those who ask by number.
const STATIC_BAND: u128 = 256;

/// The IPAddress of a service's address; the service as namespace and name.
pub(super) fn address_object(address: IpAddr, (namespace, name): &(String, String)) -> Value {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let (managed_by, allocator) = MANAGED_BY;
    json!({
        "kind": "IPAddress",
        "apiVersion": "networking.k8s.io/v1",
        "metadata": {
            "name": address.to_string(),
            "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": meta::now(),
            "labels": { "ipaddress.kubernetes.io/ip-family": family, managed_by: allocator },
        },
        "spec": { "parentRef": { "group": "", "resource": "services", "namespace": namespace, "name": name } },
    })
}

impl Services {
    /// Fills in the addresses of a service; those of them that are new.
    pub(super) fn give_addresses(
        &self,
        owner: &(String, String),
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<Option<IpAddr>, FieldError> {
        let spec = &mut object["spec"];
        if spec["type"] == "ExternalName" {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                spec.as_object_mut().map(|spec| spec.remove(field));
            }
            return Ok(None);
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut wanted = text(&spec["clusterIP"]);
        if wanted.is_empty() {
            wanted = text(&spec["clusterIPs"][0]);
        }
        let had = old
            .map(|old| text(&old["spec"]["clusterIP"]))
            .unwrap_or_default();
        if wanted.is_empty() {
            wanted.clone_from(&had);
        } else if !had.is_empty() && wanted != had {
            return Err(FieldError::invalid(
                "spec.clusterIPs[0]",
                &json!([wanted]),
                "may not change once set",
            ));
        }
        let mut taken = None;
        let address = if wanted == "None" || !wanted.is_empty() && wanted == had {
            wanted
        } else {
            let address = self.address(owner, &wanted)?;
            taken = Some(address);
            address.to_string()
        };
        let family = if address.contains(':') || (address == "None" && self.range.addr().is_ipv6())
        {
            "IPv6"
        } else {
            "IPv4"
        };
        spec["clusterIPs"] = json!([address]);
        spec["clusterIP"] = address.into();
        if spec["ipFamilies"].as_array().is_none_or(Vec::is_empty) {
            spec["ipFamilies"] = json!([family]);
        }
        if spec["ipFamilyPolicy"].is_null() {
            spec["ipFamilyPolicy"] = "SingleStack".into();
        }
        Ok(taken)
    }

    /// The address that is wanted, or any that is free.
    fn address(&self, owner: &(String, String), wanted: &str) -> Result<IpAddr, FieldError> {
        let invalid =
            |detail: String| FieldError::invalid("spec.clusterIPs", &json!([wanted]), &detail);
        if wanted.is_empty() {
            return self.free_address().ok_or_else(|| FieldError {
                reason: "InternalError",
                field: "spec.clusterIPs".to_owned(),
                message: "Internal error: failed to allocate a serviceIP: range is full".to_owned(),
            });
        }
        let address: IpAddr = wanted.parse().map_err(|_| {
            invalid("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned())
        })?;
        let (first, count) = self.usable();
        let usable = offset(first, address).is_some_and(|offset| offset < count);
        if !usable {
            return Err(invalid(format!(
                "failed to allocate IP {address}: the provided IP ({address}) is not in the valid range. The range of \
                 valid IPs is {}",
                self.range
            )));
        }
        let reserved = address == first && (&*owner.0, &*owner.1) != KUBERNETES;
        if reserved || self.addresses.get(&address.to_string()).is_some() {
            return Err(invalid(format!(
                "failed to allocate IP {address}: provided IP is already allocated"
            )));
        }
        Ok(address)
    }

    /// The first address that may be used, and how many there are: not the network's own, nor the broadcast address.
    fn usable(&self) -> (IpAddr, u128) {
        let bits = u32::from(self.range.max_prefix_len() - self.range.prefix_len());
        let all = 1_u128.checked_shl(bits).unwrap_or(u128::MAX);
        let lost = if self.range.addr().is_ipv4() { 2 } else { 1 };
        (
            add(self.range.network(), 1),
            all.saturating_sub(lost).min(1 << 20),
        )
    }

    fn free_address(&self) -> Option<IpAddr> {
        let (first, count) = self.usable();
        if count == 0 {
            return None;
        }
        let band = (count / 16)
            .clamp(16, STATIC_BAND)
            .min(count.saturating_sub(1));
        let upper = count - band;
        let start = rand::rng().random_range(0..upper);
        // The first is the API's own service's, also while that is not there.
        let is_free = |address: &IpAddr| {
            *address != first && self.addresses.get(&address.to_string()).is_none()
        };
        (0..upper)
            .map(|step| add(first, band + (start + step) % upper))
            .find(is_free)
            .or_else(|| (0..band).map(|step| add(first, step)).find(is_free))
    }
}

/// The cluster addresses that a service has.
pub(super) fn addresses(service: &Value) -> Vec<IpAddr> {
    let list = service["spec"]["clusterIPs"]
        .as_array()
        .into_iter()
        .flatten();
    list.filter_map(|address| address.as_str()?.parse().ok())
        .collect()
}

/// The address so many behind another.
pub(super) fn add(address: IpAddr, offset: u128) -> IpAddr {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::from((u128::from(u32::from(v4)) + offset) as u32).into(),
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) + offset).into(),
    }
}

fn offset(first: IpAddr, address: IpAddr) -> Option<u128> {
    match (first, address) {
        (IpAddr::V4(first), IpAddr::V4(address)) => u32::from(address)
            .checked_sub(u32::from(first))
            .map(u128::from),
        (IpAddr::V6(first), IpAddr::V6(address)) => {
            u128::from(address).checked_sub(u128::from(first))
        }
        _ => None,
    }
}
