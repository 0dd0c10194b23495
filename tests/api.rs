//! The API's answers to bad requests, and its manners on the wire, seen with curl.

use serde_json::Value;

use crate::harness::Cluster;

/// curl with the administrator's certificate.
pub struct Curl<'a> {
    cluster: &'a Cluster,
}

impl<'a> Curl<'a> {
    /// Unpacks the certificate inside the machine.
    pub fn new(cluster: &'a Cluster) -> Self {
        let extract = "cd /run && for f in certificate-authority client-certificate client-key; do \
                       sed -n \"s/^ *$f-data: *//p\" /var/lib/knarr/admin.kubeconfig | tr -d '\"' | base64 -d > $f.pem; done";
        cluster.machine().sh_ok(extract);
        Self { cluster }
    }

    /// The status code and body of a request; `args` are curl's.
    pub fn send(&self, path: &str, args: &str) -> (u16, String) {
        self.raw(
            &format!("--cert /run/client-certificate.pem --key /run/client-key.pem {args}"),
            path,
        )
    }

    fn raw(&self, args: &str, path: &str) -> (u16, String) {
        let output = self.cluster.machine().sh_ok(&format!(
            "curl --silent --max-time 20 --cacert /run/certificate-authority.pem -w '\\n%{{http_code}}' {args} \
             'https://127.0.0.1:6443{path}'"
        ));
        let (body, code) = output.rsplit_once('\n').expect("a status code");
        (code.parse().expect("a number"), body.to_owned())
    }

    /// Sends, and expects a Status with this code, reason and a part of the message.
    pub fn refused(&self, path: &str, args: &str, code: u16, reason: &str, message: &str) {
        let (is, body) = self.send(path, args);
        let status: Value =
            serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"));
        assert_eq!(is, code, "{path} {args}: {body}");
        assert_eq!(status["kind"], "Status", "{body}");
        assert_eq!(status["code"], code, "{body}");
        assert_eq!(status["reason"], reason, "{body}");
        let text = status["message"].as_str().unwrap_or_default();
        assert!(text.contains(message), "{message} is not in {text}");
    }
}

fn post(body: &str) -> String {
    format!("-X POST -H 'Content-Type: application/json' -d '{body}'")
}

#[test]
fn bad_requests_get_the_status_that_kubernetes_returns() {
    let cluster = Cluster::start("badrequests");
    let curl = Curl::new(&cluster);
    let maps = "/api/v1/namespaces/default/configmaps";
    let strict = format!("{maps}?fieldValidation=Strict");

    curl.refused(
        maps,
        &post("{not json"),
        400,
        "BadRequest",
        "invalid character",
    );
    curl.refused(
        maps,
        &post(r#"{"kind":"Pod","apiVersion":"v1"}"#),
        400,
        "BadRequest",
        "cannot be handled as a ConfigMap",
    );
    curl.refused(
        maps,
        &post(r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"},"data":[]}"#),
        400,
        "BadRequest",
        "cannot unmarshal",
    );
    curl.refused(
        &strict,
        &post(r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"},"dat":{}}"#),
        400,
        "BadRequest",
        r#"unknown field "dat""#,
    );
    curl.refused(
        maps,
        &post(r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"No_Name"}}"#),
        422,
        "Invalid",
        "RFC 1123 subdomain",
    );
    curl.refused(
        "/api/v1/namespaces/absent/configmaps",
        &post(r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"}}"#),
        404,
        "NotFound",
        r#"namespaces "absent" not found"#,
    );
    curl.refused(
        "/api/v1/namespaces/default/configmaps/absent",
        "",
        404,
        "NotFound",
        r#"configmaps "absent" not found"#,
    );
    curl.refused(
        "/apis/none.example/v1/things",
        "",
        404,
        "NotFound",
        "could not find the requested resource",
    );
    curl.refused(
        maps,
        "-X PUT",
        405,
        "MethodNotAllowed",
        "does not allow this method",
    );
    curl.refused(
        &format!("{maps}?labelSelector=a=b=c"),
        "",
        400,
        "BadRequest",
        "unable to parse requirement",
    );
    curl.refused(
        &format!("{maps}?fieldSelector=spec.color=red"),
        "",
        400,
        "BadRequest",
        "is not a known field selector",
    );
    curl.refused(
        maps,
        "-X POST -H 'Content-Type: text/fancy' -d x",
        415,
        "UnsupportedMediaType",
        "unknown format",
    );

    cluster
        .machine()
        .sh_ok("head -c 4000000 /dev/zero | tr '\\0' x > /run/large");
    curl.refused(
        maps,
        "--http1.1 -X POST -H 'Content-Type: application/json' --data-binary @/run/large",
        413,
        "RequestEntityTooLarge",
        "Request entity too large",
    );
    // The server goes on.
    assert_eq!(curl.send("/readyz", "").0, 200);
}

#[test]
fn a_stale_write_conflicts_and_a_watch_goes_on_from_a_version() {
    let cluster = Cluster::start("stale");
    let curl = Curl::new(&cluster);
    let maps = "/api/v1/namespaces/default/configmaps";
    let (code, body) = curl.send(
        maps,
        &post(r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"},"data":{"k":"1"}}"#),
    );
    assert_eq!(code, 201, "{body}");
    let first: Value = serde_json::from_str(&body).unwrap();
    let version = first["metadata"]["resourceVersion"].as_str().unwrap();
    let put = |version: &str, value: &str| {
        let body = format!(
            r#"{{"kind":"ConfigMap","apiVersion":"v1","metadata":{{"name":"a","resourceVersion":"{version}"}},"data":{{"k":"{value}"}}}}"#
        );
        format!("-X PUT -H 'Content-Type: application/json' -d '{body}'")
    };
    assert_eq!(curl.send(&format!("{maps}/a"), &put(version, "2")).0, 200);
    curl.refused(&format!("{maps}/a"), &put(version, "3"), 409, "Conflict", "the object has been modified; please apply your changes to the latest version and try again");
    curl.refused(
        maps,
        &post(r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"}}"#),
        409,
        "AlreadyExists",
        r#"configmaps "a" already exists"#,
    );

    let (code, body) = curl.send(
        &format!("{maps}?watch=1&resourceVersion={version}&timeoutSeconds=1"),
        "",
    );
    assert_eq!(code, 200);
    let event: Value = serde_json::from_str(body.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["data"]["k"]),
        (&"MODIFIED".into(), &"2".into())
    );
}

#[test]
fn nobody_is_admitted_without_an_identity_but_to_the_health_endpoints() {
    let cluster = Cluster::start("anonymous");
    let curl = Curl::new(&cluster);
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(curl.raw("", path), (200, "ok".to_owned()), "{path}");
    }
    for path in [
        "/api",
        "/apis",
        "/api/v1/namespaces/default/secrets",
        "/metrics",
        "/openapi/v2",
    ] {
        let (code, body) = curl.raw("", path);
        assert!(code == 401 || code == 403, "{path}: {code}: {body}");
        let (code, _) = curl.raw("-H 'Authorization: Bearer forged.token.here'", path);
        assert_eq!(code, 401, "{path} with a forged token");
    }
}

#[test]
fn a_list_is_paged_and_a_deletion_of_a_namespace_takes_its_contents() {
    let cluster = Cluster::start("paging");
    cluster.kubectl(&["create", "namespace", "many"]);
    for n in 0..7 {
        cluster.kubectl(&["-n", "many", "create", "configmap", &format!("m{n}")]);
    }
    let curl = Curl::new(&cluster);
    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let (code, body) = curl.send(
            &format!("/api/v1/namespaces/many/configmaps?limit=3&continue={token}"),
            "",
        );
        assert_eq!(code, 200, "{body}");
        let page: Value = serde_json::from_str(&body).unwrap();
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 3);
        seen.extend(
            items
                .iter()
                .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()),
        );
        match page["metadata"]["continue"].as_str() {
            Some(next) if !next.is_empty() => token = next.to_owned(),
            _ => break,
        }
    }
    let mut sorted = seen.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(seen, sorted);
    assert!(seen.len() >= 7, "{seen:?}");

    cluster.kubectl(&["delete", "namespace", "many", "--timeout=60s"]);
    let gone = cluster.kubectl_fails(&["-n", "many", "get", "configmap", "m0"]);
    assert!(gone.contains("not found"), "{gone}");
}
