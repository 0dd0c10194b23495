//! Which slices to write so that they hold the wanted endpoints, with as few writes as possible.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::pods::{Family, PortKey, Ports};
use crate::model;

/// How many endpoints a slice holds. Source: kubernetes, `--max-endpoints-per-slice`.
const FULL: usize = 100;

/// What to do.
#[derive(Debug, PartialEq)]
pub(crate) enum Action {
    /// Make a slice.
    Create {
        family: Family,
        ports: Ports,
        endpoints: Vec<Endpoint>,
    },
    /// Give a slice other endpoints; labels are brought up to date too.
    Update {
        name: String,
        endpoints: Vec<Endpoint>,
    },
    /// Remove a slice.
    Delete(String),
}

/// Decides for one family. `stale` says of a slice whether its labels have to be written anyway.
pub(crate) fn plan(
    family: Family,
    wanted: BTreeMap<Ports, Vec<Endpoint>>,
    slices: &[Arc<EndpointSlice>],
    stale: impl Fn(&EndpointSlice) -> bool,
) -> Vec<Action> {
    let mut existing: BTreeMap<Ports, Vec<&Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in slices
        .iter()
        .filter(|slice| slice.address_type == family.name())
    {
        let mut ports: Ports = slice.ports.iter().flatten().map(PortKey::of_api).collect();
        ports.sort();
        existing.entry(ports).or_default().push(slice);
    }
    let mut actions = Vec::new();
    let is_empty = wanted.is_empty();
    for (ports, endpoints) in wanted {
        let slices = existing.remove(&ports).unwrap_or_default();
        actions.extend(group(family, ports, endpoints, slices, &stale));
    }
    // A service without endpoints keeps one empty slice: that it is known to have none is news, too.
    let mut left: Vec<_> = existing.into_values().flatten().collect();
    left.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    if is_empty {
        match left.is_empty() {
            true => actions.push(Action::Create {
                family,
                ports: Ports::new(),
                endpoints: Vec::new(),
            }),
            false => {
                let placeholder = left
                    .iter()
                    .position(|slice| slice.endpoints.as_deref().unwrap_or_default().is_empty())
                    .unwrap_or(0);
                let slice = left.remove(placeholder);
                if !slice.endpoints.as_deref().unwrap_or_default().is_empty() || stale(slice) {
                    actions.push(Action::Update {
                        name: model::name(&slice.metadata).to_owned(),
                        endpoints: Vec::new(),
                    });
                }
            }
        }
    }
    actions.extend(
        left.into_iter()
            .map(|slice| Action::Delete(model::name(&slice.metadata).to_owned())),
    );
    actions
}

/// One group of endpoints with the same ports: endpoints stay in the slice that they are in; new ones fill up slices that are
/// written anyway, then the others, then new slices.
fn group(
    family: Family,
    ports: Ports,
    endpoints: Vec<Endpoint>,
    mut slices: Vec<&Arc<EndpointSlice>>,
    stale: &impl Fn(&EndpointSlice) -> bool,
) -> Vec<Action> {
    slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let wanted: HashMap<String, &Endpoint> = endpoints
        .iter()
        .map(|endpoint| (identity(endpoint), endpoint))
        .collect();
    let mut placed = HashSet::new();
    let mut plans: Vec<(&Arc<EndpointSlice>, Vec<Endpoint>, bool)> = Vec::new();
    for slice in slices {
        let mut kept = Vec::new();
        let mut changed = stale(slice);
        for old in slice.endpoints.iter().flatten() {
            let id = identity(old);
            match wanted.get(&id) {
                Some(new) if placed.insert(id) => {
                    changed |= **new != *old;
                    kept.push((**new).clone());
                }
                _ => changed = true,
            }
        }
        plans.push((slice, kept, changed));
    }
    let mut fresh: Vec<Endpoint> = endpoints
        .into_iter()
        .filter(|endpoint| !placed.contains(&identity(endpoint)))
        .collect();
    for only_changed in [true, false] {
        for (_, kept, changed) in &mut plans {
            if fresh.is_empty() || kept.len() >= FULL || (only_changed && !*changed) {
                continue;
            }
            let room = (FULL - kept.len()).min(fresh.len());
            kept.extend(fresh.drain(..room));
            *changed = true;
        }
    }
    let mut actions: Vec<_> = (plans.into_iter())
        .filter_map(|(slice, kept, changed)| {
            let name = model::name(&slice.metadata).to_owned();
            if kept.is_empty() {
                Some(Action::Delete(name))
            } else {
                changed.then_some(Action::Update {
                    name,
                    endpoints: kept,
                })
            }
        })
        .collect();
    while !fresh.is_empty() {
        let rest = fresh.split_off(FULL.min(fresh.len()));
        actions.push(Action::Create {
            family,
            ports: ports.clone(),
            endpoints: std::mem::replace(&mut fresh, rest),
        });
    }
    actions
}

/// What makes two endpoints the same: the pod. One with other addresses is an update of the first.
fn identity(endpoint: &Endpoint) -> String {
    match &endpoint.target_ref {
        Some(target) => target.uid.clone().unwrap_or_default(),
        None => endpoint.addresses.join(","),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ObjectReference;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use proptest::prelude::*;

    fn endpoint(number: usize) -> Endpoint {
        let target = ObjectReference {
            uid: Some(number.to_string()),
            ..ObjectReference::default()
        };
        Endpoint {
            addresses: vec![format!("10.0.{}.{}", number / 256, number % 256)],
            target_ref: Some(target),
            ..Endpoint::default()
        }
    }

    fn ports() -> Ports {
        vec![PortKey {
            name: "http".into(),
            port: 80,
            protocol: "TCP".into(),
            app_protocol: None,
        }]
    }

    fn wanted(numbers: impl IntoIterator<Item = usize>) -> BTreeMap<Ports, Vec<Endpoint>> {
        let endpoints: Vec<_> = numbers.into_iter().map(endpoint).collect();
        if endpoints.is_empty() {
            BTreeMap::new()
        } else {
            BTreeMap::from([(ports(), endpoints)])
        }
    }

    /// Does what the actions say, as the API server would.
    fn apply(slices: &mut Vec<Arc<EndpointSlice>>, actions: Vec<Action>, next: &mut usize) {
        for action in actions {
            match action {
                Action::Create {
                    family,
                    ports,
                    endpoints,
                } => {
                    *next += 1;
                    slices.push(Arc::new(EndpointSlice {
                        address_type: family.name().into(),
                        endpoints: Some(endpoints),
                        ports: Some(ports.iter().map(PortKey::to_api).collect()),
                        metadata: ObjectMeta {
                            name: Some(format!("s{next}")),
                            ..ObjectMeta::default()
                        },
                    }));
                }
                Action::Update { name, endpoints } => {
                    let slice = slices
                        .iter_mut()
                        .find(|slice| slice.metadata.name.as_deref() == Some(&name))
                        .expect("it exists");
                    Arc::make_mut(slice).endpoints = Some(endpoints);
                }
                Action::Delete(name) => {
                    slices.retain(|slice| slice.metadata.name.as_deref() != Some(&name))
                }
            }
        }
    }

    #[test]
    fn one_change_writes_one_slice() {
        let (mut slices, mut next) = (Vec::new(), 0);
        let actions = plan(Family::V4, wanted(0..250), &[], |_| false);
        apply(&mut slices, actions, &mut next);
        assert_eq!(slices.len(), 3);
        assert_eq!(
            plan(
                Family::V4,
                wanted((0..250).filter(|n| *n != 7)),
                &slices,
                |_| false
            )
            .len(),
            1
        );
        assert_eq!(
            plan(Family::V4, wanted(0..251), &slices, |_| false).len(),
            1
        );
        assert_eq!(plan(Family::V4, wanted(0..250), &slices, |_| false), []);
        assert_eq!(
            plan(Family::V4, wanted(0..250), &slices, |_| true).len(),
            3,
            "labels changed"
        );
    }

    #[test]
    fn a_service_without_endpoints_keeps_one_empty_slice() {
        let (mut slices, mut next) = (Vec::new(), 0);
        let actions = plan(Family::V4, wanted([]), &[], |_| false);
        apply(&mut slices, actions, &mut next);
        assert_eq!(slices.len(), 1);
        assert_eq!(plan(Family::V4, wanted([]), &slices, |_| false), []);
        let actions = plan(Family::V4, wanted([1]), &slices, |_| false);
        apply(&mut slices, actions, &mut next);
        assert_eq!(slices.len(), 1, "{slices:?}");
        let actions = plan(Family::V4, wanted([]), &slices, |_| false);
        apply(&mut slices, actions, &mut next);
        assert_eq!(
            (slices.len(), slices[0].endpoints.as_ref().map(Vec::len)),
            (1, Some(0))
        );
    }

    proptest! {
        /// After any sequence of wishes the slices hold exactly what is wanted, none too full, and nothing is left to do.
        #[test]
        fn slices_hold_what_is_wanted(steps in proptest::collection::vec(proptest::collection::btree_set(0..260_usize, 0..260), 1..6)) {
            let (mut slices, mut next) = (Vec::new(), 0);
            for numbers in steps {
                let actions = plan(Family::V4, wanted(numbers.iter().copied()), &slices, |_| false);
                apply(&mut slices, actions, &mut next);
                let mut held: Vec<usize> = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten()).map(|endpoint| identity(endpoint).parse().unwrap()).collect();
                held.sort_unstable();
                prop_assert_eq!(held, numbers.iter().copied().collect::<Vec<_>>());
                prop_assert!(slices.iter().all(|slice| slice.endpoints.as_ref().is_none_or(|list| list.len() <= FULL)));
                prop_assert_eq!(plan(Family::V4, wanted(numbers.iter().copied()), &slices, |_| false), vec![]);
            }
        }
    }
}
