//! Cluster addresses and node ports of Services (kube-apiserver, `registry/core/service`).
//!
//! What is taken is kept in memory and rebuilt from the Services themselves at the start, so nothing can leak.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;
use parking_lot::Mutex;
use rand::Rng as _;
use serde_json::{Value, json};

use super::collection::Collection;
use super::write::Target;
use crate::status::{ApiError, FieldError};
use crate::strategy::needs_health_port;

/// Addresses at the start of the range that are given out last, so that they stay free for those who ask by number.
const STATIC_BAND: u128 = 256;

/// Which addresses and ports are taken, and by which service (`namespace/name`).
#[derive(Debug, Default)]
struct Taken {
    addresses: HashMap<IpAddr, String>,
    ports: HashMap<u16, String>,
}

/// The allocator.
#[derive(Debug)]
pub struct Services {
    range: IpNet,
    ports: RangeInclusive<u16>,
    taken: Arc<Mutex<Taken>>,
}

/// What a write took; given back if it is dropped without [`Reservation::keep`].
#[derive(Debug, Default)]
pub struct Reservation {
    taken: Option<Arc<Mutex<Taken>>>,
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
    /// What the service had before and has no more; given back by `keep`.
    left: (Vec<IpAddr>, Vec<u16>),
}

impl Reservation {
    /// The write is done.
    pub fn keep(mut self) {
        let left = std::mem::take(&mut self.left);
        self.addresses = left.0;
        self.ports = left.1;
        // Dropping gives back what the service left.
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(taken) = &self.taken {
            let mut taken = taken.lock();
            self.addresses
                .iter()
                .for_each(|address| drop(taken.addresses.remove(address)));
            self.ports
                .iter()
                .for_each(|port| drop(taken.ports.remove(port)));
        }
    }
}

fn is_service(target: &Target) -> bool {
    target.resource.storage_prefix == "services/specs"
}

impl Services {
    /// An allocator in which nothing is taken.
    pub fn new(range: IpNet, ports: RangeInclusive<u16>) -> Self {
        Self {
            range,
            ports,
            taken: Arc::default(),
        }
    }

    /// Takes what the present services have.
    pub fn recover(&self, services: &Collection) {
        let mut taken = self.taken.lock();
        for entry in services.snapshot("", "").entries {
            let object = entry.parse();
            let owner = entry.key.to_string();
            for address in addresses(&object) {
                if let Some(other) = taken.addresses.insert(address, owner.clone()) {
                    tracing::error!(%address, service = owner, other, "two services have the same cluster address");
                }
            }
            for port in node_ports(&object) {
                taken.ports.insert(port, owner.clone());
            }
        }
    }

    /// The first address of the range: the API's own service.
    pub fn first_address(&self) -> IpAddr {
        add(self.range.network(), 1)
    }

    /// Gives a service its addresses and ports. Does nothing for other kinds.
    ///
    /// # Errors
    ///
    /// 422 for what is taken or outside the range.
    pub fn reserve(
        &self,
        target: &Target,
        object: &mut Value,
        old: Option<&Value>,
        _dry_run: bool,
    ) -> Result<Reservation, ApiError> {
        let mut reservation = Reservation::default();
        if !is_service(target) {
            return Ok(reservation);
        }
        reservation.taken = Some(self.taken.clone());
        let name = object["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let owner = format!("{}/{name}", target.namespace);
        let result = self
            .reserve_addresses(&owner, object, old, &mut reservation)
            .and_then(|()| self.reserve_ports(&owner, object, old, &mut reservation));
        result.map_err(|error| ApiError::invalid("", "Service", &name, &[error]))?;
        self.reserve_health_port(&owner, object, old, &mut reservation)?;
        if let Some(old) = old {
            let (now_addresses, now_ports) = (addresses(object), node_ports(object));
            reservation.left = (
                addresses(old)
                    .into_iter()
                    .filter(|a| !now_addresses.contains(a))
                    .collect(),
                node_ports(old)
                    .into_iter()
                    .filter(|p| !now_ports.contains(p))
                    .collect(),
            );
        }
        Ok(reservation)
    }

    /// Gives back what a deleted service had. Does nothing for other kinds.
    pub fn release(&self, target: &Target, object: &Value) {
        if is_service(target) {
            let mut taken = self.taken.lock();
            for address in addresses(object) {
                taken.addresses.remove(&address);
            }
            for port in node_ports(object) {
                taken.ports.remove(&port);
            }
        }
    }

    fn reserve_addresses(
        &self,
        owner: &str,
        object: &mut Value,
        old: Option<&Value>,
        reservation: &mut Reservation,
    ) -> Result<(), FieldError> {
        let spec = &mut object["spec"];
        if spec["type"] == "ExternalName" {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                spec.as_object_mut().map(|spec| spec.remove(field));
            }
            return Ok(());
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
        let address = if wanted == "None" {
            wanted
        } else if !wanted.is_empty() && wanted == had {
            had
        } else {
            self.take_address(owner, &wanted, reservation)?.to_string()
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
        Ok(())
    }

    fn take_address(
        &self,
        owner: &str,
        wanted: &str,
        reservation: &mut Reservation,
    ) -> Result<IpAddr, FieldError> {
        let mut taken = self.taken.lock();
        let invalid =
            |detail: String| FieldError::invalid("spec.clusterIPs", &json!([wanted]), &detail);
        let address = if wanted.is_empty() {
            self.free_address(&taken).ok_or_else(|| FieldError {
                reason: "InternalError",
                field: "spec.clusterIPs".to_owned(),
                message: "Internal error: failed to allocate a serviceIP: range is full".to_owned(),
            })?
        } else {
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
            if taken.addresses.contains_key(&address) {
                return Err(invalid(format!(
                    "failed to allocate IP {address}: provided IP is already allocated"
                )));
            }
            address
        };
        taken.addresses.insert(address, owner.to_owned());
        reservation.addresses.push(address);
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

    fn free_address(&self, taken: &Taken) -> Option<IpAddr> {
        let (first, count) = self.usable();
        if count == 0 {
            return None;
        }
        let band = (count / 16)
            .clamp(16, STATIC_BAND)
            .min(count.saturating_sub(1));
        let upper = count - band;
        let start = rand::rng().random_range(0..upper);
        let is_free = |address: &IpAddr| !taken.addresses.contains_key(address);
        (0..upper)
            .map(|step| add(first, band + (start + step) % upper))
            .find(is_free)
            .or_else(|| (0..band).map(|step| add(first, step)).find(is_free))
    }

    fn reserve_ports(
        &self,
        owner: &str,
        object: &mut Value,
        old: Option<&Value>,
        reservation: &mut Reservation,
    ) -> Result<(), FieldError> {
        let spec = &mut object["spec"];
        let kind = spec["type"].as_str().unwrap_or("ClusterIP");
        let automatic = match kind {
            "NodePort" => true,
            "LoadBalancer" => spec["allocateLoadBalancerNodePorts"]
                .as_bool()
                .unwrap_or(true),
            _ => {
                // A service that is reachable only inside keeps none of the ports it had.
                let old_kind = old
                    .and_then(|old| old["spec"]["type"].as_str())
                    .unwrap_or(kind);
                if old_kind != kind {
                    for port in spec["ports"].as_array_mut().into_iter().flatten() {
                        port.as_object_mut().map(|port| port.remove("nodePort"));
                    }
                }
                return Ok(());
            }
        };
        let had = old.map(node_ports).unwrap_or_default();
        let mut given: Vec<(u16, String)> = Vec::new();
        let mut taken = self.taken.lock();
        for (index, port) in spec["ports"]
            .as_array_mut()
            .into_iter()
            .flatten()
            .enumerate()
        {
            let path = format!("spec.ports[{index}].nodePort");
            let wanted = port["nodePort"].as_u64().unwrap_or(0);
            let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
            let number = match u16::try_from(wanted) {
                Ok(0) if !automatic => continue,
                Ok(0) => {
                    // The same port in two protocols gets one number, as with kube-apiserver.
                    let number = self.free_port(&taken).ok_or_else(|| FieldError {
                        reason: "InternalError",
                        field: path,
                        message: "Internal error: failed to allocate a nodePort: range is full"
                            .to_owned(),
                    })?;
                    port["nodePort"] = number.into();
                    number
                }
                Ok(number) if had.contains(&number) => {
                    given.push((number, protocol));
                    continue;
                }
                Ok(number) if self.ports.contains(&number) => {
                    let own = given
                        .iter()
                        .any(|(other, p)| *other == number && *p != protocol);
                    if taken.ports.contains_key(&number) && !own {
                        return Err(FieldError::invalid(
                            path,
                            &number.into(),
                            "provided port is already allocated",
                        ));
                    }
                    number
                }
                _ => {
                    return Err(FieldError::invalid(
                        path,
                        &wanted.into(),
                        &format!(
                            "provided port is not in the valid range. The range of valid ports is {}-{}",
                            self.ports.start(),
                            self.ports.end()
                        ),
                    ));
                }
            };
            taken.ports.insert(number, owner.to_owned());
            reservation.ports.push(number);
            given.push((number, protocol));
        }
        Ok(())
    }

    /// The port for health checks of a load balancer whose traffic stays on the node.
    fn reserve_health_port(
        &self,
        owner: &str,
        object: &mut Value,
        old: Option<&Value>,
        reservation: &mut Reservation,
    ) -> Result<(), ApiError> {
        let spec = &mut object["spec"];
        if !needs_health_port(spec) {
            return Ok(());
        }
        let had = old.map(node_ports).unwrap_or_default();
        let wanted = spec["healthCheckNodePort"].as_u64().unwrap_or(0);
        let mut taken = self.taken.lock();
        let number = match u16::try_from(wanted) {
            Ok(0) => self.free_port(&taken),
            Ok(number) if had.contains(&number) => return Ok(()),
            Ok(number) => Some(number)
                .filter(|port| self.ports.contains(port) && !taken.ports.contains_key(port)),
            Err(_) => None,
        };
        let number = number.ok_or_else(|| {
            let message = format!(
                "Internal error occurred: failed to allocate requested HealthCheck NodePort {wanted}: provided port is already allocated"
            );
            ApiError::new(500, "InternalError", message)
        })?;
        spec["healthCheckNodePort"] = number.into();
        taken.ports.insert(number, owner.to_owned());
        reservation.ports.push(number);
        Ok(())
    }

    fn free_port(&self, taken: &Taken) -> Option<u16> {
        let count = u32::from(*self.ports.end()) - u32::from(*self.ports.start()) + 1;
        let start = rand::rng().random_range(0..count);
        (0..count)
            .map(|step| *self.ports.start() + ((start + step) % count) as u16)
            .find(|port| !taken.ports.contains_key(port))
    }
}

fn addresses(service: &Value) -> Vec<IpAddr> {
    let list = service["spec"]["clusterIPs"]
        .as_array()
        .into_iter()
        .flatten();
    list.filter_map(|address| address.as_str()?.parse().ok())
        .collect()
}

fn node_ports(service: &Value) -> Vec<u16> {
    let list = service["spec"]["ports"].as_array().into_iter().flatten();
    let mut ports: Vec<u16> = list
        .filter_map(|port| port["nodePort"].as_u64())
        .chain(service["spec"]["healthCheckNodePort"].as_u64())
        .filter_map(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
        .collect();
    ports.dedup();
    ports
}

fn add(address: IpAddr, offset: u128) -> IpAddr {
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
