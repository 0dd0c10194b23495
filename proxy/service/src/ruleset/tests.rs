use proptest::prelude::*;

use super::*;
use crate::objects::Protocol;

/// The kernel's maps.
type Model = HashMap<(Map, Bytes), Data>;

/// Does what the kernel does with a transaction, and is as strict.
fn apply(model: &mut Model, changes: &Changes) {
    for (map, key, data) in changes.removed() {
        let was = model.remove(&(map, key));
        assert_eq!(was, Some(data), "{map:?} {key:?} to be removed");
    }
    for (map, key, data) in changes.added() {
        let old = model.insert((map, key), data);
        assert_eq!(old, None, "{map:?} {key:?} is there already");
    }
}

fn elements_in(map: Map, model: &Model) -> usize {
    model.keys().filter(|(of, _)| *of == map).count()
}

/// What the model says of a frontend.
fn target_of(frontend: &Frontend, model: &Model) -> Option<Target> {
    let lane = Lane::of(frontend);
    let key = frontend_key(frontend);
    let number = *model.get(&(Map::Services(lane), key))?;
    let (n, otherwise) = match number {
        Data::Count(DROP) => (0, Otherwise::Drop),
        Data::Count(n) => (n, Otherwise::Reject),
        other => panic!("{frontend:?} leads to {other:?}"),
    };
    let endpoints = (0..n as usize).map(|index| {
        let at = (Map::Endpoints(lane), endpoint_key(frontend, index));
        match model.get(&at) {
            Some(Data::Endpoint(data)) => parse_endpoint(lane.family, data).unwrap(),
            other => panic!("endpoint {index} of {frontend:?} is {other:?}"),
        }
    });
    Some(Target {
        endpoints: endpoints.collect(),
        otherwise,
        masquerade: model.contains_key(&(Map::External(lane), key)),
        affinity: match model.get(&(Map::Affine(lane), key)) {
            Some(Data::Goto(Chain::Remember(_, seconds))) => Some(*seconds),
            other => {
                assert_eq!(other, None);
                None
            }
        },
        sources: model
            .contains_key(&(Map::Firewalled(lane.family), key))
            .then(|| admitted_in(&key, lane.family, model)),
    })
}

fn admitted_in(frontend: &Bytes, family: Family, model: &Model) -> BTreeSet<(IpAddr, IpAddr)> {
    let of_family = model
        .iter()
        .filter(|((map, _), _)| *map == Map::Admitted(family));
    of_family
        .filter_map(|((_, key), data)| match data {
            Data::Until(last) => parse_admitted(family, key, last),
            other => panic!("{key:?} ends at {other:?}"),
        })
        .filter(|(of, _)| of == frontend)
        .map(|(_, range)| range)
        .collect()
}

/// Everything in the model follows from the plans, and the other way round.
fn check(plans: &BTreeMap<ServiceKey, Plan>, ruleset: &Ruleset, model: &Model) {
    let mut elements = 0;
    let mut hairpins: BTreeSet<IpAddr> = BTreeSet::new();
    let all: BTreeSet<Frontend> = plans
        .values()
        .flat_map(|p| p.frontends.keys())
        .copied()
        .collect();
    for frontend in &all {
        let owner = ruleset
            .owner(frontend)
            .expect("somebody wants it, so somebody has it");
        let wanted = plans[owner].frontends[frontend].clone();
        let is = target_of(frontend, model).expect("it is in the model");
        assert_eq!(is.endpoints, wanted.endpoints, "{frontend:?}");
        if wanted.endpoints.is_empty() {
            assert_eq!(is.otherwise, wanted.otherwise);
        }
        elements += 1 + wanted.endpoints.len();
        if frontend.audience == Audience::Everyone {
            assert_eq!(
                (is.masquerade, is.affinity, &is.sources),
                (wanted.masquerade, wanted.affinity, &wanted.sources)
            );
            elements += wanted.sources.map_or(0, |ranges| 1 + ranges.len());
            elements += usize::from(wanted.masquerade) + usize::from(wanted.affinity.is_some());
        }
    }
    for plan in plans.values() {
        hairpins.extend(&plan.local_ips);
    }
    let found =
        elements_in(Map::Hairpin(Family::V4), model) + elements_in(Map::Hairpin(Family::V6), model);
    assert_eq!(found, hairpins.len());
    assert_eq!(model.len(), elements + hairpins.len(), "{model:#?}");
}

fn ip(n: u8, family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 0, 0, n]),
        Family::V6 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)]),
    }
}

fn a_frontend() -> impl Strategy<Value = Frontend> {
    let place = prop_oneof![
        (0_u8..3, any::<bool>()).prop_map(|(n, six)| {
            Place::Address(ip(n, if six { Family::V6 } else { Family::V4 }))
        }),
        any::<bool>().prop_map(|six| Place::Node(if six { Family::V6 } else { Family::V4 })),
    ];
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    let audience = prop_oneof![3 => Just(Audience::Everyone), 1 => Just(Audience::Outside)];
    (place, protocol, 80_u16..82, audience).prop_map(|(place, protocol, port, audience)| Frontend {
        place,
        protocol,
        port,
        audience,
    })
}

fn a_plan() -> impl Strategy<Value = Plan> {
    let endpoints = proptest::collection::btree_set((10_u8..18, 8080_u16..8082), 0..6);
    let affinity = prop_oneof![Just(None), Just(Some(60)), Just(Some(90))];
    let sources = proptest::option::of(proptest::collection::btree_set(0_u8..4, 0..3));
    let target = (endpoints, any::<bool>(), any::<bool>(), affinity, sources);
    let frontends = proptest::collection::btree_map(a_frontend(), target, 0..5);
    let local = proptest::collection::btree_set(10_u8..14, 0..3);
    (frontends, local).prop_map(|(frontends, local)| Plan {
        frontends: frontends
            .into_iter()
            .map(
                |(frontend, (endpoints, drop, masquerade, affinity, sources))| {
                    let family = frontend.place.family();
                    let endpoint = |(n, port)| Endpoint {
                        ip: ip(n, family),
                        port,
                    };
                    let target = Target {
                        endpoints: endpoints.into_iter().map(endpoint).collect(),
                        otherwise: if drop {
                            Otherwise::Drop
                        } else {
                            Otherwise::Reject
                        },
                        masquerade,
                        affinity,
                        sources: sources
                            .filter(|_| matches!(frontend.place, Place::Address(_)))
                            .map(|sources| {
                                let range = |n: u8| (ip(20 * n, family), ip(20 * n + 9, family));
                                sources.into_iter().map(range).collect()
                            }),
                    };
                    (frontend, target)
                },
            )
            .collect(),
        local_ips: local.into_iter().map(|n| ip(n, Family::V4)).collect(),
    })
}

/// A service gets a plan; then perhaps the transaction ends, or the program restarts.
#[derive(Clone, Debug)]
enum Step {
    Update(u8, Plan),
    Apply,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0_u8..4, a_plan()).prop_map(|(service, plan)| Step::Update(service, plan)),
        2 => Just(Step::Apply),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..40)
}

fn update_all(
    first: ServiceKey,
    plans: &BTreeMap<ServiceKey, Plan>,
    ruleset: &mut Ruleset,
    changes: &mut Changes,
) {
    let mut dirty = vec![first];
    while let Some(key) = dirty.pop() {
        let plan = plans.get(&key).cloned().unwrap_or_default();
        dirty.extend(ruleset.update(&key, plan, changes));
    }
}

proptest! {
    #[test]
    fn the_kernels_maps_follow_the_plans(steps in steps()) {
        let mut plans: BTreeMap<ServiceKey, Plan> = BTreeMap::new();
        let mut model = Model::new();
        let mut ruleset = Ruleset::default();
        let mut changes = Changes::default();
        for step in steps {
            match step {
                Step::Update(service, plan) => {
                    let key = ServiceKey::new("default", service.to_string());
                    plans.insert(key.clone(), plan);
                    update_all(key, &plans, &mut ruleset, &mut changes);
                }
                Step::Apply => {
                    apply(&mut model, &std::mem::take(&mut changes));
                    check(&plans, &ruleset, &model);
                }
                Step::Restart => {
                    // What was planned and not applied is lost.
                    let elements = model.iter().map(|((map, key), data)| (*map, *key, *data));
                    (ruleset, changes) = Ruleset::adopt(elements.collect::<Vec<_>>());
                    prop_assert!(changes.is_empty(), "{changes:?}");
                    for key in plans.keys() {
                        update_all(key.clone(), &plans, &mut ruleset, &mut changes);
                    }
                    ruleset.remove_unclaimed(&mut changes);
                    apply(&mut model, &std::mem::take(&mut changes));
                    check(&plans, &ruleset, &model);

                    // And again, when nothing has changed.
                    let elements = model.iter().map(|((map, key), data)| (*map, *key, *data));
                    let (mut same, mut none) = Ruleset::adopt(elements.collect::<Vec<_>>());
                    let by_owner = plans.iter().map(|(key, plan)| {
                        let mut plan = plan.clone();
                        plan.frontends.retain(|f, _| ruleset.owner(f) == Some(key));
                        (key, plan)
                    });
                    for (key, plan) in by_owner {
                        same.update(key, plan, &mut none);
                    }
                    same.remove_unclaimed(&mut none);
                    prop_assert!(none.is_empty(), "{none:?}");
                }
            }
        }
    }

    /// Whatever somebody put into our maps, taking over leaves only what makes sense.
    #[test]
    fn nonsense_in_the_kernel_is_removed(steps in steps(), junk in proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 1..6)) {
        let mut model = Model::new();
        let mut ruleset = Ruleset::default();
        let mut changes = Changes::default();
        for step in steps {
            if let Step::Update(service, plan) = step {
                ruleset.update(&ServiceKey::new("default", service.to_string()), plan, &mut changes);
            }
        }
        apply(&mut model, &changes);
        for (index, remove) in junk {
            let mut keys: Vec<_> = model.keys().copied().collect();
            keys.sort();
            if keys.is_empty() {
                continue;
            }
            let at = *index.get(&keys);
            if remove {
                model.remove(&at);
            } else {
                model.insert((Map::External(Lane { on_node: true, audience: Audience::Everyone, family: Family::V4 }), at.1), Data::Nothing);
            }
        }
        let elements = model.iter().map(|((map, key), data)| (*map, *key, *data));
        let (mut adopted, mut changes) = Ruleset::adopt(elements.collect::<Vec<_>>());
        apply(&mut model, &std::mem::take(&mut changes));
        adopted.remove_unclaimed(&mut changes);
        apply(&mut model, &changes);
        prop_assert!(model.is_empty(), "{model:#?}");
    }
}

#[test]
fn one_endpoint_less_costs_three_elements_whatever_there_are() {
    let frontend = Frontend {
        place: Place::Address(ip(1, Family::V4)),
        protocol: Protocol::Tcp,
        port: 80,
        audience: Audience::Everyone,
    };
    let plan = |endpoints: BTreeSet<u8>| Plan {
        frontends: BTreeMap::from([(
            frontend,
            Target {
                endpoints: endpoints
                    .into_iter()
                    .map(|n| Endpoint {
                        ip: ip(n, Family::V4),
                        port: 80,
                    })
                    .collect(),
                ..Target::default()
            },
        )]),
        local_ips: BTreeSet::new(),
    };
    let key = ServiceKey::new("default", "web");
    let mut ruleset = Ruleset::default();
    ruleset.update(&key, plan((0..200).collect()), &mut Changes::default());
    let mut changes = Changes::default();
    ruleset.update(
        &key,
        plan((0..200).filter(|n| *n != 7).collect()),
        &mut changes,
    );
    assert_eq!((changes.removed().count(), changes.added().count()), (3, 2));
    let mut changes = Changes::default();
    ruleset.update(&key, plan((0..200).collect()), &mut changes);
    assert_eq!((changes.removed().count(), changes.added().count()), (1, 2));
}
