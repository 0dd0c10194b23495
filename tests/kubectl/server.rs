//! What the server tells of itself.

use serde_json::Value;

use super::{BOTH, has};
use crate::harness::Cluster;

#[test]
fn the_server_tells_its_version_health_and_metrics() {
    let cluster = Cluster::start("health");
    for which in BOTH {
        let run = |args: &[&str]| cluster.kubectl_with(which, args);
        has(
            &run(&["version"]),
            &["Client Version: v1.", "Server Version: v1.37."],
        );
        let version: Value = serde_json::from_str(&run(&["version", "-o", "json"])).expect("JSON");
        assert_eq!(version["serverVersion"]["major"], "1");
        has(
            &run(&["cluster-info"]),
            &["Kubernetes control plane", "is running at"],
        );
        has(
            &run(&["api-resources", "-o", "wide"]),
            &[
                "VERBS",
                "deployments",
                "deploy",
                "apps/v1",
                "create,delete,deletecollection,get,list,patch,update,watch",
            ],
        );
        has(
            &run(&["api-resources", "--namespaced=false", "-o", "name"]),
            &[
                "nodes",
                "namespaces",
                "certificatesigningrequests.certificates.k8s.io",
            ],
        );
        for path in ["/healthz", "/readyz", "/livez"] {
            assert_eq!(run(&["get", "--raw", path]), "ok");
            has(
                &run(&["get", "--raw", &format!("{path}?verbose")]),
                &["ok\n", "check passed"],
            );
        }
        has(
            &run(&["get", "--raw", "/metrics"]),
            &[
                "# TYPE apiserver_request counter",
                "apiserver_request_total{",
                "apiserver_request_duration_seconds_bucket",
            ],
        );
        has(&run(&["get", "--raw", "/openapi/v3"]), &["apis/apps/v1"]);
    }
}
