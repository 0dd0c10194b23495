//! What the kernel's maps hold, and what must change in them. Values in, values out.
//!
//! A frontend with N endpoints is one element of a `services` map (`frontend : N`) and N elements of an `endpoints` map
//! (`frontend . index : endpoint`). Which index an endpoint has is remembered, not derived: when one goes, the last
//! takes its place, so that a change costs two or three elements whatever N is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use crate::frontend::{Audience, Endpoint, Family, Frontend, Otherwise, Place, Plan, Target};
use crate::maps::{
    Bytes, Chain, DROP, Data, Lane, Map, Memory, REJECT, Reader, admitted, endpoint_data,
    endpoint_key, frontend_key, hairpin, parse_admitted, parse_endpoint, parse_frontend,
};
use crate::objects::ServiceKey;

/// Changes to the kernel's maps which belong together. Several for one element become one.
#[derive(Debug, Default)]
pub struct Changes {
    /// For each element what it was and what it is to be.
    elements: HashMap<(Map, Bytes), (Option<Data>, Option<Data>)>,
    /// Frontends that are new, or gone, or lost an endpoint: flows to them may be stale.
    pub stale: BTreeSet<Frontend>,
    /// Whether clients may remember an endpoint that they may no longer have.
    pub stale_memories: bool,
}

impl Changes {
    fn put(&mut self, map: Map, key: Bytes, old: Option<Data>, new: Option<Data>) {
        self.elements
            .entry((map, key))
            .and_modify(|change| change.1 = new)
            .or_insert((old, new));
    }

    fn add(&mut self, map: Map, key: Bytes, data: Data) {
        self.put(map, key, None, Some(data));
    }

    fn remove(&mut self, map: Map, key: Bytes, data: Data) {
        self.put(map, key, Some(data), None);
    }

    /// Whether there is nothing to do for the maps.
    pub fn is_empty(&self) -> bool {
        self.elements.values().all(|(old, new)| old == new)
    }

    /// The elements to remove.
    pub fn removed(&self) -> impl Iterator<Item = (Map, Bytes, Data)> {
        let changed = self.elements.iter().filter(|(_, (old, new))| old != new);
        changed.filter_map(|((map, key), (old, _))| Some((*map, *key, (*old)?)))
    }

    /// The elements to add, after the removals.
    pub fn added(&self) -> impl Iterator<Item = (Map, Bytes, Data)> {
        let changed = self.elements.iter().filter(|(_, (old, new))| old != new);
        changed.filter_map(|((map, key), (_, new))| Some((*map, *key, (*new)?)))
    }
}

/// One frontend as it is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Programmed {
    /// Whose it is; `None` for one found in the kernel and not claimed yet.
    owner: Option<ServiceKey>,
    /// The endpoints by index.
    endpoints: Vec<Endpoint>,
    otherwise: Otherwise,
    masquerade: bool,
    affinity: Option<u32>,
    sources: Option<BTreeSet<(IpAddr, IpAddr)>>,
}

/// The clients that the kernel admits, by the key of the frontend.
type Sources = HashMap<Bytes, BTreeSet<(IpAddr, IpAddr)>>;

/// What is in the kernel's maps, and for whom.
#[derive(Debug, Default)]
pub struct Ruleset {
    frontends: HashMap<Frontend, Programmed>,
    /// The frontends that each service has, and its local addresses.
    services: HashMap<ServiceKey, (BTreeSet<Frontend>, BTreeSet<IpAddr>)>,
    /// Services that want a frontend which another has.
    waiting: BTreeMap<Frontend, BTreeSet<ServiceKey>>,
    /// How many services have an endpoint of this address on this node.
    hairpins: HashMap<IpAddr, usize>,
    /// Addresses found in the kernel, not claimed yet.
    found_hairpins: BTreeSet<IpAddr>,
}

impl Ruleset {
    /// Takes over what the kernel's maps hold. What makes no sense in there is to be removed: that is in the changes.
    pub fn adopt(elements: impl IntoIterator<Item = (Map, Bytes, Data)>) -> (Self, Changes) {
        let mut ruleset = Self::default();
        let mut changes = Changes {
            stale_memories: true,
            ..Changes::default()
        };
        let mut all: HashMap<(Map, Bytes), Data> = HashMap::new();
        let mut services: Vec<(Frontend, Data)> = Vec::new();
        let mut sources = Sources::new();
        for (map, key, data) in elements {
            all.insert((map, key), data);
            let mut reader = Reader(key.as_slice());
            match map {
                Map::Services(lane) => {
                    if let Some(frontend) = parse_frontend(lane, &mut reader) {
                        services.push((frontend, data));
                    }
                }
                Map::Hairpin(family) => {
                    if let Some(ip) = reader.ip(family)
                        && all.remove(&(map, key)).is_some()
                    {
                        ruleset.found_hairpins.insert(ip);
                    }
                }
                Map::Admitted(family) => {
                    if let Data::Until(last) = data
                        && let Some((frontend, range)) = parse_admitted(family, &key, &last)
                    {
                        sources.entry(frontend).or_default().insert(range);
                    }
                }
                Map::Endpoints(_) | Map::External(_) | Map::Affine(_) | Map::Firewalled(_) => {}
            }
        }
        for (frontend, data) in services {
            if let Some(programmed) = read_frontend(&frontend, data, &all, &sources) {
                for (map, key, _) in elements_of(&frontend, &programmed) {
                    all.remove(&(map, key));
                }
                ruleset.frontends.insert(frontend, programmed);
            }
        }
        for ((map, key), data) in all {
            changes.remove(map, key, data);
        }
        (ruleset, changes)
    }

    /// Brings one service to `plan`. Returns services that waited for a frontend which is free now: they are to be updated again.
    pub fn update(
        &mut self,
        key: &ServiceKey,
        plan: Plan,
        changes: &mut Changes,
    ) -> Vec<ServiceKey> {
        let (had, local) = self.services.remove(key).unwrap_or_default();
        let mut again = Vec::new();
        for frontend in &had {
            if !plan.frontends.contains_key(frontend) {
                if let Some(old) = self.frontends.remove(frontend) {
                    remove_frontend(frontend, &old, changes);
                }
                again.extend(self.waiting.remove(frontend).into_iter().flatten());
            }
        }
        self.waiting.retain(|_, keys| {
            keys.remove(key);
            !keys.is_empty()
        });
        let mut has = BTreeSet::new();
        for (frontend, target) in plan.frontends {
            if self.set_frontend(key, frontend, target, changes) {
                has.insert(frontend);
            } else {
                self.waiting
                    .entry(frontend)
                    .or_default()
                    .insert(key.clone());
            }
        }
        for ip in plan.local_ips.difference(&local) {
            let count = self.hairpins.entry(*ip).or_default();
            *count += 1;
            if *count == 1 && !self.found_hairpins.remove(ip) {
                let (map, key) = hairpin(*ip);
                changes.add(map, key, Data::Nothing);
            }
        }
        for ip in local.difference(&plan.local_ips) {
            let count = self.hairpins.entry(*ip).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.hairpins.remove(ip);
                let (map, key) = hairpin(*ip);
                changes.remove(map, key, Data::Nothing);
            }
        }
        if !has.is_empty() || !plan.local_ips.is_empty() {
            self.services.insert(key.clone(), (has, plan.local_ips));
        }
        again
    }

    /// Removes what was found in the kernel and no service claimed. To be called once every service was updated.
    pub fn remove_unclaimed(&mut self, changes: &mut Changes) {
        self.frontends.retain(|frontend, programmed| {
            if programmed.owner.is_none() {
                remove_frontend(frontend, programmed, changes);
            }
            programmed.owner.is_some()
        });
        for ip in std::mem::take(&mut self.found_hairpins) {
            let (map, key) = hairpin(ip);
            changes.remove(map, key, Data::Nothing);
        }
    }

    /// The services that have anything in the kernel.
    pub fn services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.keys()
    }

    /// Who has a frontend.
    pub fn owner(&self, frontend: &Frontend) -> Option<&ServiceKey> {
        self.frontends.get(frontend)?.owner.as_ref()
    }

    /// The endpoints a connection to this frontend may have now; empty for a frontend which is gone.
    pub fn endpoints(&self, frontend: &Frontend) -> &[Endpoint] {
        self.frontends
            .get(frontend)
            .map_or(&[], |programmed| &programmed.endpoints)
    }

    /// Whether what a client's memory says still holds.
    pub fn holds(&self, memory: &Memory) -> bool {
        let family = Family::of(memory.to);
        [Place::Address(memory.to), Place::Node(family)]
            .into_iter()
            .any(|place| {
                [Audience::Everyone, Audience::Outside]
                    .into_iter()
                    .any(|audience| {
                        let frontend = Frontend {
                            place,
                            protocol: memory.protocol,
                            port: memory.port,
                            audience,
                        };
                        self.frontends.get(&frontend).is_some_and(|p| {
                            p.affinity.is_some() && p.endpoints.contains(&memory.endpoint)
                        })
                    })
            })
    }

    /// Returns whether the service got the frontend.
    fn set_frontend(
        &mut self,
        key: &ServiceKey,
        frontend: Frontend,
        target: Target,
        changes: &mut Changes,
    ) -> bool {
        let Some(now) = self.frontends.get_mut(&frontend) else {
            let programmed = Programmed {
                owner: Some(key.clone()),
                endpoints: target.endpoints.into_iter().collect(),
                otherwise: target.otherwise,
                masquerade: target.masquerade,
                affinity: target.affinity,
                sources: target.sources,
            };
            for (map, key, data) in elements_of(&frontend, &programmed) {
                changes.add(map, key, data);
            }
            // Flows from before the service existed went elsewhere.
            changes.stale.insert(frontend);
            self.frontends.insert(frontend, programmed);
            return true;
        };
        match &now.owner {
            Some(owner) if owner != key => return false,
            Some(_) => {}
            None => now.owner = Some(key.clone()),
        }
        move_endpoints(&frontend, now, target, changes);
        true
    }
}

/// Brings a frontend that exists to `target`, with the fewest elements.
fn move_endpoints(
    frontend: &Frontend,
    now: &mut Programmed,
    target: Target,
    changes: &mut Changes,
) {
    let lane = Lane::of(frontend);
    let endpoints = Map::Endpoints(lane);
    let before = (count(now), now.masquerade, now.affinity);
    let mut missing = target.endpoints.clone();
    let mut index = 0;
    while index < now.endpoints.len() {
        let endpoint = now.endpoints[index];
        if missing.remove(&endpoint) {
            index += 1;
            continue;
        }
        changes.stale.insert(*frontend);
        changes.stale_memories |= now.affinity.is_some();
        let old = Data::Endpoint(endpoint_data(&endpoint));
        let last = now.endpoints.len() - 1;
        let moved = now.endpoints.swap_remove(index);
        debug_assert_eq!(moved, endpoint);
        if index < last {
            let into = Data::Endpoint(endpoint_data(&now.endpoints[index]));
            changes.put(
                endpoints,
                endpoint_key(frontend, index),
                Some(old),
                Some(into),
            );
            changes.remove(endpoints, endpoint_key(frontend, last), into);
        } else {
            changes.remove(endpoints, endpoint_key(frontend, last), old);
        }
    }
    for endpoint in missing {
        let index = now.endpoints.len();
        now.endpoints.push(endpoint);
        let data = Data::Endpoint(endpoint_data(&endpoint));
        changes.add(endpoints, endpoint_key(frontend, index), data);
    }
    now.otherwise = target.otherwise;
    now.masquerade = target.masquerade;
    now.affinity = target.affinity;
    let after = (count(now), now.masquerade, now.affinity);
    let key = frontend_key(frontend);
    changes.put(Map::Services(lane), key, Some(before.0), Some(after.0));
    if frontend.audience == Audience::Outside {
        return;
    }
    if before.1 != after.1 {
        let data = |yes: bool| yes.then_some(Data::Nothing);
        changes.put(Map::External(lane), key, data(before.1), data(after.1));
    }
    if before.2 != after.2 {
        changes.stale_memories |= before.2.is_some();
        let data = |seconds: Option<u32>| Some(Data::Goto(Chain::Remember(lane.family, seconds?)));
        changes.put(Map::Affine(lane), key, data(before.2), data(after.2));
    }
    if now.sources != target.sources {
        let admit = |sources: &Option<BTreeSet<_>>| {
            admitting(frontend, sources.as_ref()).collect::<BTreeMap<_, _>>()
        };
        let (had, has) = (admit(&now.sources), admit(&target.sources));
        for at in had.keys().chain(has.keys()) {
            changes.put(at.0, at.1, had.get(at).copied(), has.get(at).copied());
        }
        now.sources = target.sources;
    }
}

fn count(programmed: &Programmed) -> Data {
    match (programmed.endpoints.len(), programmed.otherwise) {
        (0, Otherwise::Reject) => Data::Count(REJECT),
        (0, Otherwise::Drop) => Data::Count(DROP),
        (n, _) => Data::Count(u32::try_from(n).expect("fewer than 2^32 endpoints")),
    }
}

/// All elements of one frontend.
fn elements_of(frontend: &Frontend, programmed: &Programmed) -> Vec<(Map, Bytes, Data)> {
    let lane = Lane::of(frontend);
    let key = frontend_key(frontend);
    let mut elements = vec![(Map::Services(lane), key, count(programmed))];
    for (index, endpoint) in programmed.endpoints.iter().enumerate() {
        let data = Data::Endpoint(endpoint_data(endpoint));
        elements.push((Map::Endpoints(lane), endpoint_key(frontend, index), data));
    }
    // A frontend for the outside has a twin for everyone, which has these for both.
    if frontend.audience == Audience::Everyone {
        if programmed.masquerade {
            elements.push((Map::External(lane), key, Data::Nothing));
        }
        if let Some(seconds) = programmed.affinity {
            let data = Data::Goto(Chain::Remember(lane.family, seconds));
            elements.push((Map::Affine(lane), key, data));
        }
        let admitting = admitting(frontend, programmed.sources.as_ref());
        elements.extend(admitting.map(|((map, key), data)| (map, key, data)));
    }
    elements
}

/// The elements that close a frontend to all but some clients.
fn admitting<'a>(
    frontend: &'a Frontend,
    sources: Option<&'a BTreeSet<(IpAddr, IpAddr)>>,
) -> impl Iterator<Item = ((Map, Bytes), Data)> + 'a {
    let closed = (
        Map::Firewalled(frontend.place.family()),
        frontend_key(frontend),
    );
    let ranges = sources.into_iter().flatten().map(|(first, last)| {
        let (map, key, data) = admitted(frontend, *first, *last);
        ((map, key), data)
    });
    sources
        .map(|_| (closed, Data::Nothing))
        .into_iter()
        .chain(ranges)
}

fn remove_frontend(frontend: &Frontend, programmed: &Programmed, changes: &mut Changes) {
    for (map, key, data) in elements_of(frontend, programmed) {
        changes.remove(map, key, data);
    }
    changes.stale.insert(*frontend);
    changes.stale_memories |= programmed.affinity.is_some();
}

/// A frontend as the kernel's elements tell it; `None` if they contradict each other.
fn read_frontend(
    frontend: &Frontend,
    number: Data,
    all: &HashMap<(Map, Bytes), Data>,
    sources: &Sources,
) -> Option<Programmed> {
    let lane = Lane::of(frontend);
    let (count, otherwise) = match number {
        Data::Count(DROP) => (0, Otherwise::Drop),
        Data::Count(count) => (count, Otherwise::Reject),
        _ => return None,
    };
    let endpoints = (0..count as usize).map(|index| {
        match all.get(&(Map::Endpoints(lane), endpoint_key(frontend, index))) {
            Some(Data::Endpoint(data)) => parse_endpoint(lane.family, data),
            _ => None,
        }
    });
    let key = frontend_key(frontend);
    let affinity = match all.get(&(Map::Affine(lane), key)) {
        Some(Data::Goto(Chain::Remember(family, seconds))) if *family == lane.family => {
            Some(*seconds)
        }
        Some(_) => return None,
        None => None,
    };
    Some(Programmed {
        owner: None,
        endpoints: endpoints.collect::<Option<_>>()?,
        otherwise,
        masquerade: all.contains_key(&(Map::External(lane), key)),
        affinity,
        sources: all
            .contains_key(&(Map::Firewalled(lane.family), key))
            .then(|| sources.get(&key).cloned().unwrap_or_default()),
    })
}

#[cfg(test)]
mod tests;
