use super::*;
use crate::deployment::rolling::Limits;
use serde_json::{Value, json};

const NONE: &dyn Fn(Option<&ReplicaSet>) -> bool = &|_| false;

fn deployment(replicas: i32, image: &str, more: Value) -> Deployment {
    let mut spec = json!({"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "progressDeadlineSeconds": 600,
        "revisionHistoryLimit": 1, "template": template(image)});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns", "uid": "d", "generation": 1}, "spec": spec})).expect("a deployment")
}

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn set(name: &str, image: &str, size: i32, available: i32, revision: i64) -> Arc<ReplicaSet> {
    let set = json!({
        "metadata": {"name": name, "uid": name, "labels": {"app": "web"}, "creationTimestamp": format!("2026-01-01T00:00:{revision:02}Z"), "generation": 1,
            "annotations": {REVISION: revision.to_string(), revision::DESIRED: "2", revision::MAXIMUM: "3"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d", "controller": true}]},
        "spec": {"replicas": size, "selector": {"matchLabels": {"app": "web"}}, "template": template(image)},
        "status": {"replicas": size, "readyReplicas": available, "availableReplicas": available, "observedGeneration": 1},
    });
    Arc::new(serde_json::from_value(set).expect("a set"))
}

fn planned(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    old: &dyn Fn(Option<&ReplicaSet>) -> bool,
) -> Vec<Action> {
    let mut actions = plan(
        &Observed {
            deployment,
            sets,
            old_pods_run: old,
        },
        Timestamp::UNIX_EPOCH,
    );
    actions.retain(|action| {
        !matches!(
            action,
            Action::Status(_) | Action::Wait(_) | Action::SetRevision(_)
        )
    });
    actions
}

#[test]
fn a_new_deployment_gets_its_replica_set_at_full_size() {
    let deployment = deployment(3, "a", json!({}));
    match planned(&deployment, &[], NONE).as_slice() {
        [
            Action::Create {
                replicas: 3,
                annotations,
                ..
            },
        ] => {
            assert_eq!(annotations.get(REVISION).map(String::as_str), Some("1"));
            assert_eq!(
                annotations.get(revision::MAXIMUM).map(String::as_str),
                Some("4")
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_changed_template_makes_a_set_within_the_surge_then_moves_pods() {
    let deployment = deployment(2, "b", json!({}));
    assert_eq!(
        limits(&deployment),
        Limits {
            surge: 1,
            unavailable: 0
        }
    );
    let old = set("web-1", "a", 2, 2, 1);
    assert!(matches!(
        planned(&deployment, std::slice::from_ref(&old), NONE).as_slice(),
        [Action::Create { replicas: 1, .. }]
    ));
    let sets = [old, set("web-2", "b", 1, 1, 2)];
    assert_eq!(
        planned(&deployment, &sets, NONE),
        [Action::Scale {
            name: "web-1".into(),
            from: 2,
            to: 1
        }]
    );
    let sets = [set("web-1", "a", 1, 1, 1), set("web-2", "b", 1, 1, 2)];
    assert_eq!(
        planned(&deployment, &sets, NONE),
        [Action::Scale {
            name: "web-2".into(),
            from: 1,
            to: 2
        }]
    );
}

#[test]
fn a_rollback_takes_the_old_set_up_again_under_a_new_number() {
    let deployment = deployment(2, "a", json!({}));
    let sets = [set("web-1", "a", 0, 0, 1), set("web-2", "b", 2, 2, 2)];
    match planned(&deployment, &sets, NONE).as_slice() {
        [
            Action::Annotate { name, annotations },
            Action::Scale {
                name: grown, to: 1, ..
            },
        ] => {
            assert_eq!((name.as_str(), grown.as_str()), ("web-1", "web-1"));
            assert_eq!(annotations.get(REVISION).map(String::as_str), Some("3"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn recreate_waits_until_no_old_pod_runs() {
    let deployment = deployment(2, "b", json!({"strategy": {"type": "Recreate"}}));
    let old = [set("web-1", "a", 2, 2, 1)];
    assert_eq!(
        planned(&deployment, &old, NONE),
        [Action::Scale {
            name: "web-1".into(),
            from: 2,
            to: 0
        }]
    );
    let emptied = [set("web-1", "a", 0, 0, 1)];
    assert_eq!(planned(&deployment, &emptied, &|_| true), []);
    assert!(matches!(
        planned(&deployment, &emptied, NONE).as_slice(),
        [Action::Create { replicas: 2, .. }]
    ));
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let paused = json!({"paused": true});
    let deployment = deployment(4, "b", paused);
    let old = [set("web-1", "a", 2, 2, 1)];
    assert_eq!(
        planned(&deployment, &old, NONE),
        [Action::Scale {
            name: "web-1".into(),
            from: 2,
            to: 4
        }]
    );
}

#[test]
fn a_complete_rollout_keeps_the_history_short_and_then_rests() {
    let mut deployment = deployment(2, "c", json!({}));
    deployment.metadata.annotations = Some([(REVISION.to_owned(), "3".to_owned())].into());
    let sets = [
        set("web-1", "a", 0, 0, 1),
        set("web-2", "b", 0, 0, 2),
        set("web-3", "c", 2, 2, 3),
    ];
    for _ in 0..2 {
        if let Some(Action::Status(status)) = plan(
            &Observed {
                deployment: &deployment,
                sets: &sets,
                old_pods_run: NONE,
            },
            Timestamp::UNIX_EPOCH,
        )
        .into_iter()
        .find(|action| matches!(action, Action::Status(_)))
        {
            deployment.status = status;
        }
    }
    assert_eq!(
        planned(&deployment, &sets, NONE),
        [Action::Delete("web-1".into())]
    );
    assert_eq!(
        plan(
            &Observed {
                deployment: &deployment,
                sets: &sets[1..],
                old_pods_run: NONE
            },
            Timestamp::UNIX_EPOCH
        ),
        []
    );
}

#[test]
fn replica_sets_are_claimed_by_labels() {
    let deployment = deployment(2, "a", json!({}));
    let mut orphan = (*set("web-1", "a", 2, 2, 1)).clone();
    orphan.metadata.owner_references = None;
    let mut stranger = (*set("web-2", "b", 2, 2, 2)).clone();
    stranger.metadata.labels = None;
    let actions = planned(&deployment, &[Arc::new(orphan), Arc::new(stranger)], NONE);
    assert_eq!(
        actions,
        [
            Action::Adopt("web-1".into()),
            Action::Release("web-2".into())
        ]
    );
}
