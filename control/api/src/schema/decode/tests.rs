use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::kinds::gvk;

fn decode_as(
    api_version: &str,
    kind: &str,
    body: &str,
    mode: FieldValidation,
) -> Result<Decoded, String> {
    decode(
        &Schemas::builtin(),
        &gvk(api_version, kind),
        body.as_bytes(),
        Format::Json,
        mode,
    )
    .map_err(|err| {
        assert_eq!((err.code, err.reason), (400, "BadRequest"));
        err.message
    })
}

#[test]
fn mistakes_are_worded_as_kubernetes_words_them() {
    for (api, kind, body, message) in [
        (
            "apps/v1",
            "Deployment",
            r#"{"spec":{"replicas":"3"}}"#,
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            "v1",
            "Pod",
            r#"{"spec":{"containers":[{"env":[{"name":"A","value":1}]}]}}"#,
            "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal number into Go struct field EnvVar.spec.containers.env.value of type string",
        ),
        (
            "v1",
            "Pod",
            r#"{"spec":{"containers":"x"}}"#,
            "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type []v1.Container",
        ),
        (
            "v1",
            "Pod",
            r#"{"metadata":{"annotations":{"a":true}}}"#,
            "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.annotations of type string",
        ),
        (
            "v1",
            "Pod",
            r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"lots"}}}]}}"#,
            "Pod in version \"v1\" cannot be handled as a Pod: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            "v1",
            "Pod",
            r#"{"kind":"Pod","apiVersion":"apps/v1"}"#,
            "Pod in version \"v1\" cannot be handled as a Pod: no kind \"Pod\" is registered for version \"apps/v1\" in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
        ),
        (
            "v1",
            "Pod",
            r#"{"kind":"Deployment","apiVersion":"apps/v1"}"#,
            "the API version in the data (apps/v1) does not match the expected API version (v1)",
        ),
        (
            "v1",
            "Pod",
            "",
            "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: unexpected end of JSON input (<empty>)",
        ),
    ] {
        assert_eq!(
            decode_as(api, kind, body, FieldValidation::Strict),
            Err(message.to_owned()),
            "{body}"
        );
    }
}

#[test]
fn unknown_and_duplicate_fields_are_refused_reported_or_dropped() {
    let body =
        r#"{"spec":{"nodeName":"a","nodeName":"b","foo":1,"containers":[{"name":"c","bar":2}]}}"#;
    assert_eq!(
        decode_as("v1", "Pod", body, FieldValidation::Strict),
        Err("Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: duplicate field \"spec.nodeName\", unknown field \"spec.containers[0].bar\", unknown field \"spec.foo\"".into())
    );
    let warned = decode_as("v1", "Pod", body, FieldValidation::Warn).expect("decodes");
    assert_eq!(
        warned.warnings,
        [
            "duplicate field \"spec.nodeName\"",
            "unknown field \"spec.containers[0].bar\"",
            "unknown field \"spec.foo\""
        ]
    );
    let expected = json!({ "apiVersion": "v1", "kind": "Pod", "spec": { "nodeName": "b", "containers": [{ "name": "c" }] } });
    assert_eq!(warned.object, expected);
    assert_eq!(
        decode_as("v1", "Pod", body, FieldValidation::Ignore)
            .expect("decodes")
            .warnings,
        [""; 0]
    );
}

#[test]
fn values_take_the_form_that_is_stored() {
    let body = r#"{"metadata":{"creationTimestamp":null,"labels":{},"annotations":{"a":null}},
        "spec":{"volumes":[{"name":"v","emptyDir":{}}],"containers":[{"name":"c","args":[],
        "resources":{"requests":{"cpu":0.5,"memory":"1024Mi"}},"livenessProbe":{"httpGet":{"port":"http"}}}]},
        "status":{"startTime":"2026-01-01T01:00:00+01:00"}}"#;
    let object = decode_as("v1", "Pod", body, FieldValidation::Strict)
        .expect("decodes")
        .object;
    assert_eq!(object["metadata"], json!({ "annotations": { "a": "" } }));
    let container = &object["spec"]["containers"][0];
    assert_eq!(
        container["resources"]["requests"],
        json!({ "cpu": "500m", "memory": "1Gi" })
    );
    assert!(container.get("args").is_none());
    assert_eq!(object["spec"]["volumes"][0]["emptyDir"], json!({}));
    assert_eq!(object["status"]["startTime"], "2026-01-01T00:00:00Z");
}

#[test]
fn yaml_is_read_too() {
    let body = b"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  k: \"1\"\n";
    let decoded = decode(
        &Schemas::builtin(),
        &gvk("v1", "ConfigMap"),
        body,
        Format::Yaml,
        FieldValidation::Strict,
    );
    assert_eq!(
        decoded.expect("decodes").object["data"],
        json!({ "k": "1" })
    );
}

proptest! {
    #[test]
    fn no_body_makes_the_decoder_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        for format in [Format::Json, Format::Yaml] {
            let _ = decode(&Schemas::builtin(), &gvk("v1", "Pod"), &body, format, FieldValidation::Warn);
        }
    }

    #[test]
    fn no_value_makes_decoder_or_strategies_panic(
        spec in crate::patch::tests::value(),
        container in crate::patch::tests::value(),
        field in prop_oneof![Just("ports"), Just("env"), Just("resources"), Just("livenessProbe"), Just("volumeMounts")],
    ) {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let mut first = json!({ "name": "a" });
        first[field] = container;
        for (api, kind) in [("v1", "Pod"), ("apps/v1", "Deployment"), ("v1", "Service"), ("v1", "Node")] {
            for body in [json!({ "spec": spec }), json!({ "spec": { "containers": [first] }, "status": spec })] {
                let decoded = check(&Schemas::builtin(), &gvk(api, kind), body, FieldValidation::Ignore);
                let Ok(Decoded { mut object, .. }) = decoded else { continue };
                Schemas::builtin().apply_defaults(&gvk(api, kind), &mut object);
                let again = check(&Schemas::builtin(), &gvk(api, kind), object.clone(), FieldValidation::Strict);
                prop_assert_eq!(&again.expect("what was decoded decodes").object, &object);
                let resource = crate::kinds::builtin().resources.into_iter().find(|r| r.gvk == gvk(api, kind)).expect("built in");
                resource.strategy.default(&mut object);
                let errors = resource.strategy.validate(&object);
                resource.strategy.validate_update(None, &object, &object);
                resource.strategy.cells(&object, now);
                prop_assert!(errors.iter().all(|e| !e.message.is_empty()));
            }
        }
    }
}
