//! What a pod's specification can ask of its node: hooks, init containers and sidecars, security, last words.

use crate::harness::{Cluster, busybox_image};

const BUSYBOX: &str = "knarr.local/busybox:1";

fn cluster(name: &str) -> Cluster {
    let cluster = Cluster::start(name);
    cluster.import(&busybox_image());
    cluster
}

/// A pod from the lines of its specification.
fn pod(name: &str, spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 5\n{spec}"
    )
    .replace("BUSYBOX", BUSYBOX)
}

fn get(cluster: &Cluster, name: &str, path: &str) -> String {
    cluster.kubectl(&["get", "pod", name, "-o", &format!("jsonpath={path}")])
}

fn wait_for_event(cluster: &Cluster, name: &str, event: &str) {
    cluster.wait(&format!("an event {event} of {name}"), || {
        let events = cluster.try_kubectl(&[
            "get",
            "events",
            "--field-selector",
            &format!("involvedObject.name={name}"),
            "-o",
            "jsonpath={range .items[*]}{.type} {.reason}: {.message}{\"\\n\"}{end}",
        ])?;
        if events.contains(event) {
            Ok(())
        } else {
            Err(events)
        }
    });
}

#[test]
fn init_containers_sidecars_and_hooks_run_in_their_order() {
    let cluster = cluster("order");
    cluster.apply(&pod(
        "order",
        "initContainers:
- {name: first, image: BUSYBOX, command: [sh, -c, 'echo first > /work/order'], volumeMounts: [{name: work, mountPath: /work}]}
- name: helper
  image: BUSYBOX
  restartPolicy: Always
  command: [sh, -c, 'echo helper >> /work/order; touch /work/up; exec sleep 1004']
  startupProbe: {exec: {command: [test, -e, /work/up]}, periodSeconds: 1}
  volumeMounts: [{name: work, mountPath: /work}]
- {name: second, image: BUSYBOX, command: [sh, -c, 'echo second >> /work/order'], volumeMounts: [{name: work, mountPath: /work}]}
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, 'until [ -e /work/hooked ]; do sleep 0.02; done; echo main >> /work/order; exec httpd -f -p 8080 -h /work']
  lifecycle:
    postStart: {exec: {command: [sh, -c, 'echo hook >> /work/order; touch /work/hooked']}}
    preStop: {exec: {command: [sh, -c, 'cat /work/order > /host/last']}}
  readinessProbe: {httpGet: {path: /order, port: 8080}, periodSeconds: 1}
  volumeMounts: [{name: work, mountPath: /work}, {name: host, mountPath: /host}]
volumes: [{name: work, emptyDir: {}}, {name: host, hostPath: {path: /run/order, type: DirectoryOrCreate}}]",
    ));
    cluster.kubectl(&[
        "wait",
        "pod/order",
        "--for=condition=Ready",
        "--timeout=60s",
    ]);
    let states =
        "{.status.initContainerStatuses[*].ready} {.status.initContainerStatuses[*].started}";
    assert_eq!(
        get(&cluster, "order", states),
        "true true true false true false"
    );

    // A debugger sees the processes of the container that it is aimed at.
    cluster.kubectl(&[
        "debug",
        "order",
        "--image",
        BUSYBOX,
        "--image-pull-policy=IfNotPresent",
        "--target=main",
        "-c",
        "debugger",
        "--attach=false",
        "--",
        "sleep",
        "1005",
    ]);
    let running = "{.status.ephemeralContainerStatuses[0].state.running.startedAt}";
    cluster.wait("the debugger", || {
        let at =
            cluster.try_kubectl(&["get", "pod", "order", "-o", &format!("jsonpath={running}")])?;
        if at.is_empty() { Err(at) } else { Ok(()) }
    });
    let list = cluster.kubectl(&["exec", "order", "-c", "debugger", "--", "ps"]);
    assert!(
        list.contains("httpd -f") && list.contains("sleep 1005"),
        "{list}"
    );
    assert!(!list.contains("sleep 1004"), "{list}");

    cluster.kubectl(&["delete", "pod", "order", "--timeout=60s"]);
    let last = cluster.machine().sh_ok("cat /run/order/last");
    assert_eq!(last, "first\nhelper\nsecond\nhook\nmain\n");
}

#[test]
fn a_failed_hook_restarts_its_container_and_a_sidecar_does_not_keep_a_pod() {
    let cluster = cluster("hooks");
    cluster.apply(&pod(
        "bad-hook",
        "containers:
- name: main
  image: BUSYBOX
  command: [sleep, '1000']
  lifecycle: {postStart: {exec: {command: [sh, -c, 'echo no such luck; exit 3']}}}",
    ));
    cluster.apply(&pod(
        "finite",
        "restartPolicy: Never
initContainers: [{name: helper, image: BUSYBOX, restartPolicy: Always, command: [sleep, '1000']}]
containers: [{name: main, image: BUSYBOX, command: ['true']}]",
    ));
    cluster.apply(&pod(
        "bad-init",
        "restartPolicy: Never
initContainers: [{name: first, image: BUSYBOX, command: ['false']}]
containers: [{name: main, image: BUSYBOX, command: [sleep, '1000']}]",
    ));
    cluster.apply(&pod(
        "patient",
        "containers:
- name: main
  image: BUSYBOX
  command: [sleep, '1000']
  lifecycle: {preStop: {sleep: {seconds: 2}}}",
    ));
    cluster.wait_for("pod/bad-init", "{.status.phase}", "Failed");
    let listed = cluster.kubectl(&["get", "pod", "bad-init", "--no-headers"]);
    assert!(listed.contains("Init:Error"), "{listed}");
    cluster.wait_for("pod/finite", "{.status.phase}", "Succeeded");
    wait_for_event(&cluster, "bad-hook", "Warning FailedPostStartHook: ");
    cluster.wait_for(
        "pod/bad-hook",
        "{.status.containerStatuses[0].restartCount}",
        "1",
    );
    cluster.wait_for("pod/patient", "{.status.phase}", "Running");
    let start = std::time::Instant::now();
    cluster.kubectl(&["delete", "pod", "patient", "--timeout=60s"]);
    assert!(start.elapsed() >= std::time::Duration::from_secs(2));
}

#[test]
fn a_security_context_is_what_the_processes_have() {
    let cluster = cluster("secure");
    cluster.machine().sh_ok(
        "mkdir -p /var/lib/knarr/node/seccomp && \
         echo '{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{\"names\":[\"mkdir\",\"mkdirat\"],\"action\":\"SCMP_ACT_ERRNO\"}]}' \
         > /var/lib/knarr/node/seccomp/no-mkdir.json",
    );
    cluster.apply(&pod(
        "tight",
        "securityContext:
  runAsUser: 1000
  runAsGroup: 2000
  runAsNonRoot: true
  fsGroup: 3000
  supplementalGroups: [4000]
  sysctls: [{name: net.ipv4.ip_local_port_range, value: '40000 50000'}, {name: kernel.shm_rmid_forced, value: '1'}]
containers:
- name: main
  image: BUSYBOX
  command: [sleep, '1000']
  securityContext:
    readOnlyRootFilesystem: true
    allowPrivilegeEscalation: false
    capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}
    seccompProfile: {type: Localhost, localhostProfile: no-mkdir.json}
  volumeMounts: [{name: scratch, mountPath: /scratch}]
- name: open
  image: BUSYBOX
  command: [sleep, '1000']
  securityContext: {runAsUser: 0, runAsNonRoot: false, privileged: true}
volumes: [{name: scratch, emptyDir: {}}]",
    ));
    cluster.wait_for("pod/tight", "{.status.phase}", "Running");
    let sh = |container: &str, script: &str| {
        cluster.kubectl(&["exec", "tight", "-c", container, "--", "sh", "-c", script])
    };
    assert_eq!(
        sh("main", "id -u; id -g; id -G"),
        "1000\n2000\n2000 3000 4000\n"
    );
    let status = sh("main", "cat /proc/1/status");
    for line in [
        "CapBnd:\t0000000000000400",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(status.contains(line), "{line}: {status}");
    }
    assert_eq!(
        sh(
            "main",
            "touch /file 2>&1; mkdir /scratch/dir 2>&1; touch /scratch/file && stat -c %g /scratch/file"
        ),
        "touch: /file: Read-only file system\nmkdir: can't create directory '/scratch/dir': Operation not permitted\n3000\n"
    );
    assert_eq!(
        sh(
            "main",
            "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced"
        ),
        "40000\t50000\n1\n"
    );
    let open = sh(
        "open",
        "id -u; grep -E 'Seccomp:|NoNewPrivs' /proc/1/status; mkdir /mnt && mount -t tmpfs x /mnt && echo mounted",
    );
    assert!(
        open.starts_with("0\n") && open.contains("Seccomp:\t0") && open.ends_with("mounted\n"),
        "{open}"
    );

    for (name, context, reason, why) in [
        (
            "root",
            "runAsNonRoot: true",
            "CreateContainerConfigError",
            "container has runAsNonRoot and image will run as root (pod: \"root_default(",
        ),
        (
            "zero",
            "runAsNonRoot: true, runAsUser: 0",
            "CreateContainerConfigError",
            "container's runAsUser breaks non-root policy (pod: \"zero_default(",
        ),
        (
            "no-profile",
            "seccompProfile: {type: Localhost, localhostProfile: absent.json}",
            "CreateContainerError",
            "absent.json",
        ),
    ] {
        cluster.apply(&pod(
            name,
            &format!("securityContext: {{{context}}}\ncontainers: [{{name: main, image: BUSYBOX, command: [sleep, '1000']}}]"),
        ));
        let waiting = "{.status.containerStatuses[0].state.waiting.reason}";
        cluster.wait_for(&format!("pod/{name}"), waiting, reason);
        let message = get(
            &cluster,
            name,
            "{.status.containerStatuses[0].state.waiting.message}",
        );
        assert!(message.contains(why), "{message}");
    }

    cluster.apply(&pod(
        "unsafe",
        "securityContext: {sysctls: [{name: kernel.msgmax, value: '1'}]}\ncontainers: [{name: main, image: BUSYBOX}]",
    ));
    let state = "{.status.phase} {.status.reason}: {.status.message}";
    let why = "forbidden sysctl: \"kernel.msgmax\" not allowlisted";
    cluster.wait_for(
        "pod/unsafe",
        state,
        &format!("Failed SysctlForbidden: Pod was rejected: {why}"),
    );
    wait_for_event(
        &cluster,
        "unsafe",
        &format!("Warning SysctlForbidden: {why}"),
    );
}

#[test]
fn the_last_words_the_deadline_and_parts_of_volumes() {
    let cluster = cluster("words");
    let once = |name: &str, container: &str| {
        cluster.apply(&pod(
            name,
            &format!(
                "restartPolicy: Never\ncontainers:\n- name: main\n  image: BUSYBOX\n{container}"
            ),
        ));
    };
    once(
        "path",
        "  terminationMessagePath: /tmp/last\n  command: [sh, -c, 'printf goodbye > /tmp/last']",
    );
    once(
        "log",
        "  terminationMessagePolicy: FallbackToLogsOnError\n  command: [sh, -c, 'echo it broke; exit 1']",
    );
    cluster.apply(&pod(
        "late",
        "activeDeadlineSeconds: 1\ncontainers: [{name: main, image: BUSYBOX, command: [sleep, '1000']}]",
    ));
    cluster.apply(&pod(
        "parts",
        "initContainers:
- {name: fill, image: BUSYBOX, command: [sh, -c, 'mkdir -p /all/a /all/parts; echo one > /all/a/file; echo two > /all/parts/file'], volumeMounts: [{name: data, mountPath: /all}]}
containers:
- name: main
  image: BUSYBOX
  command: [sleep, '1000']
  env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
  volumeMounts:
  - {name: data, mountPath: /one, subPath: a}
  - {name: data, mountPath: /one-file, subPath: a/file, readOnly: true}
  - {name: data, mountPath: /mine, subPathExpr: $(POD)}
volumes: [{name: data, emptyDir: {}}]",
    ));
    let message = "{.status.containerStatuses[0].state.terminated.message}";
    cluster.wait_for("pod/path", message, "goodbye");
    cluster.wait_for("pod/log", message, "it broke\n");
    cluster.wait_for(
        "pod/late",
        "{.status.phase} {.status.reason}",
        "Failed DeadlineExceeded",
    );
    wait_for_event(
        &cluster,
        "late",
        "Normal DeadlineExceeded: Pod was active on the node longer",
    );
    cluster.wait_for("pod/parts", "{.status.phase}", "Running");
    let script = "cat /one/file /one-file /mine/file; touch /one-file 2>&1; echo more >> /one/file; cat /one-file";
    assert_eq!(
        cluster.kubectl(&["exec", "parts", "--", "sh", "-c", script]),
        "one\none\ntwo\ntouch: /one-file: Read-only file system\none\nmore\n"
    );
}
