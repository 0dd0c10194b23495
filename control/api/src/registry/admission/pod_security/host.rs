//! The checks of the level baseline against parts of the node: its namespaces, paths and ports.

use std::collections::BTreeSet;

use serde_json::Value;

use super::checks::{Pod, Violation, containers, plural, quoted, setters, text};
use crate::strategy::validation::items;

pub(super) fn host_namespaces(pod: Pod<'_>, _: u32) -> Option<Violation> {
    let shared: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|field| pod.spec[**field] == true)
        .map(|field| format!("{field}=true"))
        .collect();
    (!shared.is_empty()).then(|| Violation {
        reason: "host namespaces",
        detail: shared.join(", "),
    })
}

pub(super) fn host_paths(pod: Pod<'_>, _: u32) -> Option<Violation> {
    let volumes: Vec<&str> = items(&pod.spec["volumes"])
        .filter(|(_, volume)| !volume["hostPath"].is_null())
        .map(|(_, volume)| text(&volume["name"]))
        .collect();
    (!volumes.is_empty()).then(|| Violation {
        reason: "hostPath volumes",
        detail: format!(
            "{} {}",
            plural("volume", "volumes", volumes.len()),
            quoted(&volumes)
        ),
    })
}

pub(super) fn host_ports(pod: Pod<'_>, _: u32) -> Option<Violation> {
    let mut ports = BTreeSet::new();
    let names = pod.where_container(|container| {
        let of_host: Vec<String> = items(&container["ports"])
            .filter_map(|(_, port)| port["hostPort"].as_i64().filter(|port| *port != 0))
            .map(|port| port.to_string())
            .collect();
        ports.extend(of_host.iter().cloned());
        !of_host.is_empty()
    });
    let ports: Vec<String> = ports.into_iter().collect();
    (!names.is_empty()).then(|| Violation {
        reason: "hostPort",
        detail: format!(
            "{} {} {} {}",
            containers(&names),
            plural("uses", "use", names.len()),
            plural("hostPort", "hostPorts", ports.len()),
            ports.join(", ")
        ),
    })
}

pub(super) fn probed_hosts(pod: Pod<'_>, _: u32) -> Option<Violation> {
    let mut hosts = BTreeSet::new();
    let names = pod.where_container(|container| {
        let lifecycle = &container["lifecycle"];
        let handlers = [
            &container["livenessProbe"],
            &container["readinessProbe"],
            &container["startupProbe"],
            &lifecycle["postStart"],
            &lifecycle["preStop"],
        ];
        let of_container: Vec<&str> = handlers
            .into_iter()
            .flat_map(|handler| [&handler["httpGet"], &handler["tcpSocket"]])
            .map(|action| text(&action["host"]))
            .filter(|host| !host.is_empty())
            .collect();
        hosts.extend(of_container.iter().copied());
        !of_container.is_empty()
    });
    let names: Vec<&str> = names
        .into_iter()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    (!names.is_empty()).then(|| Violation {
        reason: "probe or lifecycle host",
        detail: format!(
            "{} {} {} {}",
            containers(&names),
            plural("uses", "use", names.len()),
            plural(
                "probe or lifecycle host",
                "probe or lifecycle hosts",
                hosts.len()
            ),
            quoted(&hosts)
        ),
    })
}

pub(super) fn windows_host_process(pod: Pod<'_>, _: u32) -> Option<Violation> {
    let is_bad = |context: &Value| context["windowsOptions"]["hostProcess"] == true;
    let of_pod = is_bad(&pod.spec["securityContext"]);
    let names = pod.where_container(|container| is_bad(&container["securityContext"]));
    let setters = setters(of_pod, &names)?;
    Some(Violation {
        reason: "hostProcess",
        detail: format!("{setters} must not set securityContext.windowsOptions.hostProcess=true"),
    })
}
