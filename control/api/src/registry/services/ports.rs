//! Node ports: who gets which, and the RangeAllocation whose bits they are.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use knarr_store::Revision;
use rand::Rng as _;
use serde_json::{Value, json};

use super::Services;
use crate::registry::entry::Entry;
use crate::status::{ApiError, FieldError};
use crate::strategy::needs_health_port;

/// Where kube-apiserver keeps them, below `/registry/ranges`.
pub(super) const KEY: &str = "servicenodeports";

/// The node ports that are taken: a bit for each of the range.
pub(super) struct Ports {
    range: RangeInclusive<u16>,
    taken: Vec<bool>,
    /// The stored object and its revision; none if there is none yet.
    stored: Option<(Revision, Value)>,
}

impl Ports {
    /// From the stored object. What another range says counts as nothing: a repair writes it anew.
    pub(super) fn read(range: RangeInclusive<u16>, entry: Option<&Entry>) -> Self {
        let mut ports = Self {
            taken: vec![false; range.len()],
            range,
            stored: entry.map(|entry| (entry.revision, entry.parse())),
        };
        if let Some((_, object)) = &ports.stored
            && object["range"] == ports.range_text()
        {
            let data = object["data"].as_str().unwrap_or_default();
            // As Go's big.Int writes itself: the last byte has the lowest bits.
            let bytes = STANDARD.decode(data).unwrap_or_default();
            for (bit, taken) in ports.taken.iter_mut().enumerate() {
                let byte = bytes.iter().rev().nth(bit / 8);
                *taken = byte.is_some_and(|byte| byte >> (bit % 8) & 1 == 1);
            }
        }
        ports
    }

    fn range_text(&self) -> String {
        format!("{}-{}", self.range.start(), self.range.end())
    }

    /// The revision of the stored object.
    pub(super) fn revision(&self) -> Option<Revision> {
        self.stored.as_ref().map(|(revision, _)| *revision)
    }

    /// The object as it is to be stored, if that has changed.
    pub(super) fn changed(&self) -> Option<Value> {
        let mut bytes = vec![0_u8; self.taken.len().div_ceil(8)];
        let last = bytes.len().saturating_sub(1);
        for (bit, _) in self.taken.iter().enumerate().filter(|(_, taken)| **taken) {
            bytes[last - bit / 8] |= 1 << (bit % 8);
        }
        let leading = bytes.iter().take_while(|byte| **byte == 0).count();
        let data = STANDARD.encode(&bytes[leading..]);
        let range = self.range_text();
        let same = |object: &Value| {
            let has = object["data"].as_str().unwrap_or_default();
            object["range"] == range && has == data
        };
        match &self.stored {
            Some((_, object)) if same(object) => None,
            None if data.is_empty() => None,
            _ => Some(json!({ "kind": "RangeAllocation", "apiVersion": "v1",
                "metadata": { "creationTimestamp": null }, "range": range, "data": data })),
        }
    }

    fn place(&mut self, port: u16) -> Option<&mut bool> {
        let at = usize::from(port.checked_sub(*self.range.start())?);
        self.taken.get_mut(at)
    }

    /// Takes a port; one outside the range is nobody's.
    pub(super) fn take(&mut self, port: u16) {
        if let Some(place) = self.place(port) {
            *place = true;
        }
    }

    /// Gives it back.
    pub(super) fn free(&mut self, port: u16) {
        if let Some(place) = self.place(port) {
            *place = false;
        }
    }

    /// Gives all back.
    pub(super) fn clear(&mut self) {
        self.taken.fill(false);
    }

    fn is_taken(&mut self, port: u16) -> bool {
        self.place(port).is_some_and(|taken| *taken)
    }

    /// One that is free, by chance.
    fn any(&self) -> Option<u16> {
        let count = self.taken.len();
        let start = rand::rng().random_range(0..count.max(1));
        let mut places = (0..count).map(|step| (start + step) % count);
        let free = places.find(|place| !self.taken[*place])?;
        Some(*self.range.start() + u16::try_from(free).ok()?)
    }
}

impl Services {
    /// Fills in the node ports of a service.
    pub(super) fn give_ports(
        &self,
        object: &mut Value,
        old: Option<&Value>,
        taken: &mut Ports,
    ) -> Result<(), FieldError> {
        let spec = &mut object["spec"];
        let automatic = match spec["type"].as_str().unwrap_or("ClusterIP") {
            "NodePort" => true,
            "LoadBalancer" => spec["allocateLoadBalancerNodePorts"]
                .as_bool()
                .unwrap_or(true),
            _ => return Ok(()),
        };
        let mut hand = Hand(taken);
        let ports = spec["ports"].as_array_mut().map(Vec::as_mut_slice);
        match old {
            None => hand.new_ports(ports.unwrap_or_default(), automatic),
            Some(old) => hand.changed_ports(ports.unwrap_or_default(), automatic, &node_ports(old)),
        }
    }

    /// The port for health checks of a load balancer whose traffic stays on the node.
    pub(super) fn give_health_port(
        &self,
        object: &mut Value,
        old: Option<&Value>,
        taken: &mut Ports,
    ) -> Result<(), ApiError> {
        let spec = &mut object["spec"];
        if !needs_health_port(spec) {
            return Ok(());
        }
        let had = old.map(node_ports).unwrap_or_default();
        let wanted = spec["healthCheckNodePort"].as_u64().unwrap_or(0);
        let number = match u16::try_from(wanted) {
            Ok(0) => taken.any(),
            Ok(number) if had.contains(&number) => return Ok(()),
            Ok(number) => {
                Some(number).filter(|port| self.ports.contains(port) && !taken.is_taken(*port))
            }
            Err(_) => None,
        };
        let number = number.ok_or_else(|| {
            let message = format!(
                "Internal error occurred: failed to allocate requested HealthCheck NodePort {wanted}: provided port is already allocated"
            );
            ApiError::new(500, "InternalError", message)
        })?;
        spec["healthCheckNodePort"] = number.into();
        taken.take(number);
        Ok(())
    }
}

/// Gives node ports to the ports of one service (`registry/core/service/storage/alloc.go`).
struct Hand<'a>(&'a mut Ports);

fn node_port(port: &Value) -> u64 {
    port["nodePort"].as_u64().unwrap_or(0)
}

impl Hand<'_> {
    /// The ports of a new service: one number for a port in all its protocols, the one asked for at any of them.
    fn new_ports(&mut self, ports: &mut [Value], automatic: bool) -> Result<(), FieldError> {
        let mut given: HashMap<u64, u64> = HashMap::new();
        for index in 0..ports.len() {
            let (port, wanted) = (
                ports[index]["port"].as_u64().unwrap_or(0),
                node_port(&ports[index]),
            );
            if wanted == 0 && !automatic {
                continue;
            }
            let number = match given.get(&port) {
                Some(number) if wanted == 0 || wanted == *number => *number,
                Some(_) => self.take(index, wanted)?,
                None => {
                    let of_port = |other: &&Value| {
                        other["port"].as_u64() == Some(port) && node_port(other) != 0
                    };
                    let number = match ports.iter().find(of_port).map(node_port) {
                        Some(wanted) => self.take(index, wanted)?,
                        None => self.take_any(index)?,
                    };
                    given.insert(port, number);
                    number
                }
            };
            ports[index]["nodePort"] = number.into();
        }
        Ok(())
    }

    /// The ports of a changed service, which may keep and share those that it `had`.
    fn changed_ports(
        &mut self,
        ports: &mut [Value],
        automatic: bool,
        had: &[u16],
    ) -> Result<(), FieldError> {
        let mut given: Vec<u64> = had.iter().copied().map(u64::from).collect();
        for (index, port) in ports.iter_mut().enumerate() {
            match node_port(port) {
                0 if !automatic => {}
                0 => port["nodePort"] = self.take_any(index)?.into(),
                wanted if given.contains(&wanted) => {}
                wanted => given.push(self.take(index, wanted)?),
            }
        }
        Ok(())
    }

    fn take(&mut self, index: usize, wanted: u64) -> Result<u64, FieldError> {
        let refused = |detail: &str| {
            let path = format!("spec.ports[{index}].nodePort");
            Err(FieldError::invalid(path, &wanted.into(), detail))
        };
        let range = self.0.range.clone();
        match u16::try_from(wanted) {
            Ok(number) if self.0.is_taken(number) => refused("provided port is already allocated"),
            Ok(number) if range.contains(&number) => {
                self.0.take(number);
                Ok(wanted)
            }
            _ => refused(&format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                range.start(),
                range.end()
            )),
        }
    }

    fn take_any(&mut self, index: usize) -> Result<u64, FieldError> {
        let number = self.0.any().ok_or_else(|| FieldError {
            reason: "InternalError",
            field: format!("spec.ports[{index}].nodePort"),
            message: "Internal error: failed to allocate a nodePort: range is full".to_owned(),
        })?;
        self.0.take(number);
        Ok(number.into())
    }
}

/// The node ports that a service holds, each once; what other types wrote there is nothing that they hold.
pub(super) fn node_ports(service: &Value) -> Vec<u16> {
    if !matches!(
        service["spec"]["type"].as_str(),
        Some("NodePort" | "LoadBalancer")
    ) {
        return Vec::new();
    }
    let list = service["spec"]["ports"].as_array().into_iter().flatten();
    let mut ports: Vec<u16> = list
        .filter_map(|port| port["nodePort"].as_u64())
        .chain(service["spec"]["healthCheckNodePort"].as_u64())
        .filter_map(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bits_are_those_of_kube_apiserver() {
        let mut ports = Ports::read(30000..=32767, None);
        assert!(ports.changed().is_none(), "nothing is taken");
        for port in [30000, 30009, 32767, 80] {
            ports.take(port);
        }
        let object = ports.changed().expect("something is");
        assert_eq!(object["range"], "30000-32767");
        let bytes = STANDARD.decode(object["data"].as_str().expect("text"));
        let bytes = bytes.expect("base64");
        // 2,768 ports: the highest bit is the last port's.
        assert_eq!((bytes.len(), bytes[0]), (346, 0x80));
        assert_eq!(bytes[344..], [0x02, 0x01]);
        let kv = knarr_store::KeyValue {
            key: String::new(),
            value: object.to_string().into(),
            create_revision: 7,
            mod_revision: 7,
        };
        let plain = crate::strategy::Plain;
        let change = crate::registry::entry::ChangeType::Added;
        let (entry, _) = Entry::new(KEY, &kv, &plain, change).expect("JSON");
        let mut again = Ports::read(30000..=32767, Some(&entry));
        assert_eq!((again.revision(), again.changed()), (Some(7), None));
        assert!(again.is_taken(30009) && !again.is_taken(30008) && !again.is_taken(80));
        again.free(30009);
        assert!(again.changed().is_some());
        let other = Ports::read(20000..=20010, Some(&entry));
        assert!(!other.taken.contains(&true), "another range");
    }
}
