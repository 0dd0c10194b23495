//! Cluster addresses and node ports of Services (kube-apiserver, `registry/core/service`).
//!
//! What is taken is in the store: an IPAddress for each address (KEP-1880), and one RangeAllocation whose bits are the node ports,
//! both under kube-apiserver's own keys. They change in the transaction that writes the Service, so that neither a crash nor a
//! second server can give one thing twice or keep what nobody has.

mod addresses;
mod ports;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ipnet::IpNet;
use knarr_store::{Compare, Durability, KeyValue, Op, StoreError, TxnOutcome};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::Registry;
use super::collection::{Change, Collection};
use super::lanes::View;
use super::write::{Target, key};
use crate::status::ApiError;
use addresses::{address_object, addresses};
use ports::{Ports, node_ports};

/// Where the services are.
const SERVICES: &str = "services/specs";
/// The pause after a repair.
const PAUSE: Duration = Duration::from_millis(500);

/// The allocator.
pub struct Services {
    range: IpNet,
    ports: RangeInclusive<u16>,
    /// The addresses that are taken.
    addresses: Arc<Collection>,
    /// The node ports that are taken.
    allocated: Arc<Collection>,
}

/// What a write takes and gives back; committed with it.
#[derive(Debug, Default)]
pub struct Allocation {
    compares: Vec<Compare>,
    ops: Vec<Op>,
}

impl Allocation {
    /// Adds the write itself, whose compare stands first.
    pub fn with(self, compare: Compare, op: Op) -> (Vec<Compare>, Vec<Op>) {
        let (mut compares, mut ops) = (vec![compare], vec![op]);
        compares.extend(self.compares);
        ops.extend(self.ops);
        (compares, ops)
    }

    /// Whether a transaction with it failed because somebody else took or gave back something meanwhile: the first compare, of the
    /// write itself, held. It may be tried again once that is seen here.
    pub fn was_beaten(compares: &[Compare], now: &[Option<KeyValue>]) -> bool {
        let held = match (compares.first(), now.first()) {
            (Some(Compare::Absent(_)), Some(now)) => now.is_none(),
            (Some(Compare::ModRevision(_, revision)), Some(Some(now))) => {
                now.mod_revision == *revision
            }
            _ => false,
        };
        held && compares.len() > 1
    }
}

impl Services {
    /// The allocator of these ranges, on the collections of IPAddresses and of RangeAllocations.
    pub fn new(
        range: IpNet,
        ports: RangeInclusive<u16>,
        addresses: Arc<Collection>,
        allocated: Arc<Collection>,
    ) -> Self {
        Self {
            range,
            ports,
            addresses,
            allocated,
        }
    }

    /// The first address of the range: the API's own service.
    pub fn first_address(&self) -> IpAddr {
        addresses::add(self.range.network(), 1)
    }

    /// Gives a service its addresses and ports, and takes back what it had before. Does nothing for other kinds.
    ///
    /// # Errors
    ///
    /// 422 for what is taken or outside the range.
    pub fn allocate(
        &self,
        target: &Target,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<Allocation, ApiError> {
        let mut allocation = Allocation::default();
        if !target.resource.strategy.holds_addresses() {
            return Ok(allocation);
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let owner = (target.namespace.clone(), name.to_owned());
        let invalid = |error| ApiError::invalid("", "Service", &owner.1, &[error]);
        let taken = self.give_addresses(&owner, object, old).map_err(invalid)?;
        if let Some(address) = taken {
            let key = self.addresses.store_key(&address.to_string());
            let value = super::entry::encode(&address_object(address, &owner));
            allocation.compares.push(Compare::Absent(key.clone()));
            allocation.ops.push(Op::Put(key, value.into()));
        }
        let mut ports = self.taken_ports();
        self.give_ports(object, old, &mut ports).map_err(invalid)?;
        self.give_health_port(object, old, &mut ports)?;
        if let Some(old) = old {
            self.take_back(old, Some(object), &mut ports, &mut allocation);
        }
        self.put_ports(&ports, &mut allocation);
        Ok(allocation)
    }

    /// Takes back what a service had that goes. Does nothing for other kinds.
    pub fn release(&self, target: &Target, object: &Value) -> Allocation {
        let mut allocation = Allocation::default();
        if target.resource.strategy.holds_addresses() {
            let mut ports = self.taken_ports();
            self.take_back(object, None, &mut ports, &mut allocation);
            self.put_ports(&ports, &mut allocation);
        }
        allocation
    }

    /// Takes back what the service `old` had and `new` has no more.
    fn take_back(
        &self,
        old: &Value,
        new: Option<&Value>,
        ports: &mut Ports,
        allocation: &mut Allocation,
    ) {
        let kept = new.map(addresses).unwrap_or_default();
        for address in addresses(old) {
            let name = address.to_string();
            if !kept.contains(&address) && self.addresses.get(&name).is_some() {
                let key = self.addresses.store_key(&name);
                allocation.ops.push(Op::Delete(key));
            }
        }
        let kept = new.map(node_ports).unwrap_or_default();
        for port in node_ports(old) {
            if !kept.contains(&port) {
                ports.free(port);
            }
        }
    }

    /// The node ports that are taken, as far as is known here.
    fn taken_ports(&self) -> Ports {
        Ports::read(
            self.ports.clone(),
            self.allocated.get(ports::KEY).as_deref(),
        )
    }

    fn put_ports(&self, ports: &Ports, allocation: &mut Allocation) {
        if let Some(value) = ports.changed() {
            let key = self.allocated.store_key(ports::KEY);
            allocation.compares.push(match ports.revision() {
                Some(revision) => Compare::ModRevision(key.clone(), revision),
                None => Compare::Absent(key.clone()),
            });
            let value = super::entry::encode(&value);
            allocation.ops.push(Op::Put(key, value.into()));
        }
    }

    /// What has to change for the allocations to be those that the services have.
    fn repairs(&self, services: &Collection) -> Allocation {
        let mut allocation = Allocation::default();
        let mut ports = self.taken_ports();
        ports.clear();
        let mut owners = std::collections::BTreeMap::new();
        for entry in services.snapshot("", "").entries {
            let service = entry.parse();
            let owner = (entry.namespace().to_owned(), entry.name().to_owned());
            node_ports(&service)
                .into_iter()
                .for_each(|port| ports.take(port));
            for address in addresses(&service) {
                if let Some(other) = owners.insert(address.to_string(), (address, owner.clone())) {
                    tracing::error!(%address, service = ?owner, other = ?other.1, "two services have the same cluster address");
                }
            }
        }
        for (name, (address, owner)) in &owners {
            if self.addresses.get(name).is_none() {
                let key = self.addresses.store_key(name);
                let value = super::entry::encode(&address_object(*address, owner));
                allocation.compares.push(Compare::Absent(key.clone()));
                allocation.ops.push(Op::Put(key, value.into()));
            }
        }
        for entry in self.addresses.snapshot("", "").entries {
            let ours = (entry.labels.iter())
                .any(|(key, value)| (&**key, &**value) == addresses::MANAGED_BY);
            if ours && !owners.contains_key(&*entry.key) {
                let key = self.addresses.store_key(&entry.key);
                let compare = Compare::ModRevision(key.clone(), entry.revision);
                allocation.compares.push(compare);
                allocation.ops.push(Op::Delete(key));
            }
        }
        self.put_ports(&ports, &mut allocation);
        allocation
    }
}

impl Registry {
    /// Brings the allocations in line with the services: those of a store that knew none, and those that somebody deleted.
    /// Returns whether they are; if not, something has changed meanwhile.
    ///
    /// # Errors
    ///
    /// If the store refuses.
    pub(super) async fn repair_services(&self) -> Result<bool, StoreError> {
        let Some(services) = self.collection(SERVICES) else {
            return Ok(true);
        };
        let repairs = self.services.repairs(&services);
        if repairs.ops.is_empty() {
            return Ok(true);
        }
        tracing::info!(
            changes = repairs.ops.len(),
            "allocations of services are brought in line"
        );
        let outcome = self
            .store
            .txn(repairs.compares, repairs.ops, Durability::Immediate)
            .await?;
        match outcome {
            TxnOutcome::Committed(revision) => {
                self.feed.reached(revision).await;
                Ok(true)
            }
            TxnOutcome::Conflict(_) => Ok(false),
        }
    }

    /// Whether somebody deleted the address of a service that still has it.
    fn misses(&self, change: &Change) -> bool {
        let (None, Some(gone)) = (&change.current, &change.previous) else {
            return false;
        };
        let parent = gone.parse()["spec"]["parentRef"].take();
        let text = |field: &str| parent[field].as_str().unwrap_or_default();
        let owner = key(text("namespace"), text("name"));
        let service = self.collection(SERVICES).and_then(|all| all.get(&owner));
        service.is_some_and(|service| {
            let has = addresses(&service.parse());
            has.iter().any(|address| address.to_string() == gone.name())
        })
    }
}

/// Brings the allocations in line at the start, and whenever somebody deletes one of a service that is there, until `stop` or the
/// end of the registry. The deletion of a service costs no look at the others.
pub async fn keep(registry: Weak<Registry>, stop: CancellationToken) {
    let Some(addresses) = registry.upgrade().map(|all| all.services.addresses.clone()) else {
        return;
    };
    let mut cursor = addresses.snapshot_and_follow(&View::Whole, "").1;
    let mut in_line = false;
    loop {
        if !in_line {
            let Some(registry) = registry.upgrade() else {
                return;
            };
            in_line = match registry.repair_services().await {
                Ok(in_line) => in_line,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "allocations of services are not as they should be"
                    );
                    false
                }
            };
            drop(registry);
            // So that somebody who deletes them again and again costs little.
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
            continue;
        }
        // Losing the wait loses nothing: the cursor stays where it is.
        tokio::select! {
            () = stop.cancelled() => return,
            () = cursor.changed() => {}
        }
        let Some(registry) = registry.upgrade() else {
            return;
        };
        in_line = match addresses.read(&mut cursor, usize::MAX) {
            Ok(changes) => !changes.iter().any(|change| registry.misses(change)),
            Err(_too_old) => {
                cursor = addresses.snapshot_and_follow(&View::Whole, "").1;
                false
            }
        };
    }
}
