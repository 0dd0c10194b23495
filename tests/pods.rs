//! What goes wrong with pods, in the words that a Kubernetes user knows, and what they can do.

use crate::harness::{Cluster, hello_image};

const HELLO: &str = "knarr.local/hello:v1";
const BUSYBOX: &str = "knarr.local/busybox:1";

/// A pod with one container `main`; `container` and `spec` are more lines of YAML.
fn pod(name: &str, image: &str, container: &str, spec: &str) -> String {
    let indent = |text: &str, by: usize| -> String {
        text.lines()
            .map(|line| format!("{}{line}\n", " ".repeat(by)))
            .collect()
    };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  terminationGracePeriodSeconds: 2\n{}  containers:\n  \
         - name: main\n    image: {image}\n    imagePullPolicy: IfNotPresent\n{}",
        indent(spec, 2),
        indent(container, 4),
    )
}

fn cluster(name: &str) -> Cluster {
    let cluster = Cluster::start(name);
    cluster.import(&hello_image("v1"));
    cluster.import(&crate::harness::busybox_image());
    cluster
}

/// Waits until the first container waits or ended for one of these reasons, and an event of the pod has the other one.
fn expect_reason(cluster: &Cluster, name: &str, reasons: &[&str], event: &str) {
    let path = "jsonpath={.status.containerStatuses[0].state.*.reason} \
                {.status.containerStatuses[0].lastState.terminated.reason}";
    cluster.wait(&format!("{name} to be {reasons:?}"), || {
        let is = cluster.try_kubectl(&["get", "pod", name, "-o", path])?;
        if is.split_whitespace().any(|word| reasons.contains(&word)) {
            Ok(())
        } else {
            Err(is)
        }
    });
    cluster.wait(&format!("an event {event} of {name}"), || {
        let selector = format!("involvedObject.name={name}");
        let events = cluster.try_kubectl(&["get", "events", "--field-selector", &selector])?;
        if events.contains(event) {
            Ok(())
        } else {
            Err(events)
        }
    });
}

#[test]
fn each_mistake_in_a_pod_has_its_reason_and_disturbs_nobody() {
    let cluster = cluster("mistakes");
    cluster.apply(&pod("good", HELLO, "", ""));
    cluster.wait_for("pod/good", "{.status.phase}", "Running");

    cluster.apply(&pod("no-image", "127.0.0.1:1/none:1", "", ""));
    cluster.apply(&pod("bad-name", "UPPER/Case:1", "", ""));
    cluster.apply(&pod("no-command", HELLO, "command: [/does-not-exist]", ""));
    cluster.apply(&pod(
        "no-command-once",
        HELLO,
        "command: [/does-not-exist]",
        "restartPolicy: Never",
    ));
    cluster.apply(&pod(
        "crash",
        BUSYBOX,
        "command: [sh, -c, 'echo going; exit 3']",
        "",
    ));
    cluster.apply(&pod(
        "no-config",
        HELLO,
        "env: [{name: A, valueFrom: {configMapKeyRef: {name: absent, key: a}}}]",
        "",
    ));
    cluster.apply(&pod(
        "oom",
        BUSYBOX,
        "command: [sh, -c, 'tail /dev/zero']\nresources: {limits: {memory: 16Mi}}",
        "restartPolicy: Never",
    ));

    expect_reason(
        &cluster,
        "no-image",
        &["ErrImagePull", "ImagePullBackOff"],
        "Failed to pull image",
    );
    expect_reason(&cluster, "bad-name", &["InvalidImageName"], "InspectFailed");
    expect_no_command(&cluster);
    expect_reason(
        &cluster,
        "crash",
        &["CrashLoopBackOff"],
        "Back-off restarting failed container",
    );
    expect_reason(
        &cluster,
        "no-config",
        &["CreateContainerConfigError"],
        "configmap \"absent\" not found",
    );
    expect_reason(&cluster, "oom", &["OOMKilled"], "Started");
    let exit = "{.status.containerStatuses[0].state.terminated.exitCode}";
    cluster.wait_for("pod/oom", exit, "137");
    assert_eq!(
        cluster.kubectl(&[
            "get",
            "pod",
            "crash",
            "-o",
            "jsonpath={.status.containerStatuses[0].lastState.terminated.exitCode}"
        ]),
        "3"
    );
    assert_eq!(cluster.kubectl(&["logs", "crash", "--previous"]), "going\n");
    assert_eq!(
        cluster.kubectl(&[
            "get",
            "pod",
            "good",
            "-o",
            "jsonpath={.status.phase} {.status.containerStatuses[0].restartCount}"
        ]),
        "Running 0"
    );
}

/// A container that cannot be started, as kubelet and containerd show it.
fn expect_no_command(cluster: &Cluster) {
    let why = "exec: \"/does-not-exist\": stat /does-not-exist: no such file or directory";
    let get = |name: &str, path: &str| {
        let output = format!("jsonpath={path}");
        cluster.kubectl(&["get", "pod", name, "-o", &output])
    };
    let terminated = |name: &str, which: &str| {
        let at = format!(".status.containerStatuses[0].{which}.terminated");
        let head = format!("{{{at}.reason}} {{{at}.exitCode}} {{{at}.startedAt}} {{{at}.message}}");
        get(name, &head)
    };
    let expected = |is: &str| {
        assert!(
            is.starts_with("StartError 128 1970-01-01T00:00:00Z failed to create container task: ")
                && is.ends_with(why),
            "{is}"
        );
    };
    // Without a restart: that is how it ended.
    cluster.wait_for("pod/no-command-once", "{.status.phase}", "Failed");
    expected(&terminated("no-command-once", "state"));
    // With restarts: the second try comes at once, the next ones wait, and the last end stays in sight.
    let waiting = "{.status.containerStatuses[0].state.waiting.reason}";
    let mut seen = Vec::new();
    cluster.wait("no-command to wait in vain, and then for longer", || {
        let is = cluster.try_kubectl(&[
            "get",
            "pod",
            "no-command",
            "-o",
            &format!("jsonpath={waiting}"),
        ])?;
        seen.push(is.clone());
        if is == "CrashLoopBackOff" {
            Ok(())
        } else {
            Err(is)
        }
    });
    let allowed = [
        "",
        "ContainerCreating",
        "RunContainerError",
        "CrashLoopBackOff",
    ];
    assert!(
        seen.iter().all(|reason| allowed.contains(&reason.as_str())),
        "{seen:?}"
    );
    expected(&terminated("no-command", "lastState"));
    let count = "{.status.containerStatuses[0].restartCount}";
    assert_eq!(get("no-command", count), "1");
    let events = cluster.kubectl(&[
        "get",
        "events",
        "--field-selector",
        "involvedObject.name=no-command",
        "-o",
        "jsonpath={range .items[*]}{.reason}: {.message}{\"\\n\"}{end}",
    ]);
    for event in [
        "Failed: Error: failed to create container task: ",
        "BackOff: Back-off restarting failed container main in pod no-command_default(",
    ] {
        assert!(events.contains(event), "{event}: {events}");
    }
    assert!(events.contains(why), "{events}");
}

#[test]
fn logs_exec_and_cp_reach_the_container() {
    let cluster = cluster("reach");
    let shell = pod(
        "shell",
        BUSYBOX,
        "command: [sh, -c, 'for i in 1 2 3; do echo line $i; done; echo wrong >&2; exec sleep 1000']",
        "",
    );
    cluster.apply(&shell);
    cluster.wait_for("pod/shell", "{.status.phase}", "Running");
    cluster.wait("the log", || {
        let log = cluster.try_kubectl(&["logs", "shell"])?;
        if log.contains("line 1\nline 2\nline 3\n") && log.contains("wrong\n") {
            Ok(())
        } else {
            Err(log)
        }
    });
    assert_eq!(
        cluster
            .kubectl(&["logs", "shell", "--tail=1"])
            .lines()
            .count(),
        1
    );
    let stamped = cluster.kubectl(&["logs", "shell", "--timestamps"]);
    assert!(
        stamped
            .lines()
            .all(|line| line.contains('T') && line.contains('Z')),
        "{stamped}"
    );
    assert_eq!(
        cluster
            .kubectl(&["logs", "shell", "--since=1h"])
            .lines()
            .count(),
        4
    );

    assert_eq!(
        cluster.kubectl(&["exec", "shell", "--", "hostname"]),
        "shell\n"
    );
    assert_eq!(
        cluster.kubectl_stdin(&["exec", "-i", "shell", "--", "cat"], "through\n"),
        "through\n"
    );
    let failed = cluster.kubectl_fails(&["exec", "shell", "--", "sh", "-c", "exit 7"]);
    assert!(
        failed.contains("exit status: 7") && failed.contains("command terminated with exit code 7"),
        "{failed}"
    );
    let absent = cluster.kubectl_fails(&["exec", "shell", "--", "absent"]);
    assert!(absent.contains("executable file not found"), "{absent}");

    // A terminal: `script` gives kubectl one.
    let kubectl = "KUBECONFIG=/var/lib/knarr/admin.kubeconfig kubectl exec -it shell -- sh -c 'tty; stty size'";
    let terminal = cluster.machine().sh_ok(&format!(
        "script --quiet --return --command \"{kubectl}\" /dev/null < /dev/null"
    ));
    assert!(terminal.contains("/dev/pts/"), "{terminal}");

    let here = cluster.machine().dir().join("file");
    std::fs::write(&here, vec![7; 300_000]).expect("write a file");
    let there = cluster.machine().dir().join("back");
    cluster.kubectl(&["cp", here.to_str().expect("UTF-8"), "shell:/tmp/file"]);
    cluster.kubectl(&["cp", "shell:/tmp/file", there.to_str().expect("UTF-8")]);
    assert_eq!(
        std::fs::read(&here).expect("read"),
        std::fs::read(&there).expect("read")
    );
}

#[test]
fn configuration_and_secrets_reach_a_pod_and_follow_changes() {
    let cluster = cluster("config");
    cluster.kubectl(&[
        "create",
        "configmap",
        "settings",
        "--from-literal=color=red",
    ]);
    cluster.kubectl(&[
        "create",
        "secret",
        "generic",
        "keys",
        "--from-literal=key=s3cret",
    ]);
    let manifest = pod(
        "reader",
        BUSYBOX,
        "command: [sleep, '1000']\n\
         env:\n- {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}\n\
         - {name: KEY, valueFrom: {secretKeyRef: {name: keys, key: key}}}\n\
         - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}\n\
         - {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory}}}\n\
         resources: {limits: {memory: 64Mi, cpu: 500m}}\n\
         volumeMounts:\n- {name: settings, mountPath: /settings}\n- {name: keys, mountPath: /keys, readOnly: true}\n\
         - {name: scratch, mountPath: /scratch}\n- {name: about, mountPath: /about}",
        "volumes:\n- {name: settings, configMap: {name: settings}}\n- {name: keys, secret: {secretName: keys, defaultMode: 0400}}\n\
         - {name: scratch, emptyDir: {medium: Memory, sizeLimit: 8Mi}}\n\
         - {name: about, downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}",
    );
    cluster.apply(&manifest);
    cluster.wait_for("pod/reader", "{.status.phase}", "Running");
    let sh = |script: &str| cluster.kubectl(&["exec", "reader", "--", "sh", "-c", script]);
    assert_eq!(
        sh("echo $COLOR $KEY $NODE $LIMIT"),
        "red s3cret config 67108864\n"
    );
    assert_eq!(
        sh("cat /settings/color /keys/key /about/name"),
        "reds3cretreader"
    );
    assert_eq!(sh("stat -L -c %a /keys/key"), "400\n");
    assert_eq!(
        sh("touch /keys/new 2>/dev/null || echo refused"),
        "refused\n"
    );
    assert_eq!(sh("stat -f -c %T /scratch"), "tmpfs\n");
    let token = "/var/run/secrets/kubernetes.io/serviceaccount";
    assert_eq!(sh(&format!("cat {token}/namespace")), "default");
    assert!(sh(&format!("cat {token}/token")).split('.').count() == 3);
    assert!(sh("cat /etc/resolv.conf").contains("nameserver 10.43.0.10"));
    assert!(sh("nslookup -type=a kubernetes.default.svc.cluster.local").contains("10.43.0.1"));

    cluster.kubectl(&[
        "patch",
        "configmap",
        "settings",
        "--type=merge",
        "-p",
        r#"{"data":{"color":"blue"}}"#,
    ]);
    cluster.wait("the volume to follow", || {
        let color = cluster.try_kubectl(&["exec", "reader", "--", "cat", "/settings/color"])?;
        if color == "blue" { Ok(()) } else { Err(color) }
    });
}

#[test]
fn a_pod_ends_within_its_grace_period_or_is_killed() {
    let cluster = cluster("grace");
    let stubborn = pod(
        "stubborn",
        BUSYBOX,
        "command: [sh, -c, \"trap '' TERM; while true; do sleep 1; done\"]",
        "",
    );
    for name in ["stubborn", "forced"] {
        cluster.apply(&stubborn.replace("name: stubborn", &format!("name: {name}")));
        cluster.wait_for(&format!("pod/{name}"), "{.status.phase}", "Running");
    }
    let start = std::time::Instant::now();
    cluster.kubectl(&["delete", "pod", "stubborn", "--timeout=60s"]);
    assert!(
        start.elapsed() >= std::time::Duration::from_secs(2),
        "SIGKILL came before the grace period was over"
    );
    cluster.kubectl(&["delete", "pod", "forced", "--force", "--grace-period=0"]);
    cluster.wait("the containers to be gone", || {
        let processes = cluster.machine().sh_ok("ps -e -o args=");
        if processes.contains("trap '' TERM") {
            Err(processes)
        } else {
            Ok(())
        }
    });
}

#[test]
fn probes_decide_about_traffic_and_restarts() {
    let cluster = cluster("probes");
    let manifest = |name: &str, probes: &str| {
        pod(
            name,
            BUSYBOX,
            &format!("command: [sh, -c, 'touch /tmp/ok; exec sleep 1000']\n{probes}"),
            "",
        )
    };
    let check = "exec: {command: [cat, /tmp/ok]}, periodSeconds: 1, failureThreshold: 1";
    cluster.apply(&manifest("ready", &format!("readinessProbe: {{{check}}}")));
    cluster.apply(&manifest("live", &format!("livenessProbe: {{{check}}}")));
    for name in ["ready", "live"] {
        cluster.wait_for(
            &format!("pod/{name}"),
            "{.status.containerStatuses[0].ready}",
            "true",
        );
        cluster.kubectl(&["exec", name, "--", "rm", "/tmp/ok"]);
    }
    cluster.wait_for("pod/ready", "{.status.containerStatuses[0].ready}", "false");
    cluster.wait_for(
        "pod/live",
        "{.status.containerStatuses[0].restartCount}",
        "1",
    );
    cluster.kubectl(&["exec", "ready", "--", "touch", "/tmp/ok"]);
    cluster.wait_for(
        "pod/ready",
        "{.status.conditions[?(@.type==\"Ready\")].status}",
        "True",
    );
    let events = cluster.kubectl(&[
        "get",
        "events",
        "--field-selector",
        "involvedObject.name=live",
    ]);
    assert!(
        events.contains("Unhealthy") && events.contains("Killing"),
        "{events}"
    );
}

#[test]
fn the_containers_of_a_pod_can_share_their_processes() {
    let cluster = cluster("share");
    let manifest = format!(
        "{}  - name: side\n    image: {BUSYBOX}\n    command: [sleep, '1002']\n",
        pod(
            "shared",
            BUSYBOX,
            "command: [sleep, '1001']",
            "shareProcessNamespace: true",
        )
    );
    cluster.apply(&manifest);
    cluster.wait_for("pod/shared", "{.status.phase}", "Running");
    let expect_all = |cluster: &Cluster| {
        for container in ["main", "side"] {
            let list = cluster.kubectl(&["exec", "shared", "-c", container, "--", "ps"]);
            for command in ["1 65535 ", "/pause", "sleep 1001", "sleep 1002"] {
                let command = command.trim_end();
                assert!(list.contains(command), "{command}: {list}");
            }
        }
    };
    expect_all(&cluster);
    // One restarts, the other does not notice.
    let kill = "for p in /proc/[0-9]*; do \
                  [ \"$(tr '\\0' ' ' < $p/cmdline)\" = 'sleep 1002 ' ] && kill ${p#/proc/}; \
                done; true";
    cluster.kubectl(&["exec", "shared", "-c", "main", "--", "sh", "-c", kill]);
    let restarts = "{.status.containerStatuses[?(@.name==\"side\")].restartCount}";
    cluster.wait_for("pod/shared", restarts, "1");
    let code = "{.status.containerStatuses[?(@.name==\"side\")].lastState.terminated.exitCode}";
    cluster.wait_for("pod/shared", code, "143");
    cluster.wait_for(
        "pod/shared",
        "{.status.containerStatuses[*].restartCount} {.status.containerStatuses[*].ready}",
        "0 1 true true",
    );
    cluster.kill();
    cluster.up();
    cluster.wait_ready();
    expect_all(&cluster);
    cluster.kubectl(&["delete", "pod", "shared", "--timeout=60s"]);
    let processes = cluster
        .machine()
        .sh_ok("ps -e -o stat=,args= | grep -v '^Z'");
    assert!(
        !processes.contains("/pause") && !processes.contains("sleep 100"),
        "{processes}"
    );

    let both = manifest.replace("spec:\n", "spec:\n  hostPID: true\n");
    let refused = cluster.kubectl_stdin_fails(&["apply", "-f", "-"], &both);
    assert!(
        refused.contains("ShareProcessNamespace and HostPID cannot both be enabled"),
        "{refused}"
    );
}

#[test]
fn a_pod_can_be_on_the_host() {
    let cluster = cluster("host");
    cluster.machine().sh_ok("cp /etc/hosts /run/hosts && echo '192.0.2.7 neighbour' >> /run/hosts && mount --bind /run/hosts /etc/hosts");
    let dns = "hostAliases: [{ip: 192.0.2.9, hostnames: [first, second]}]\nhostNetwork: true\nhostPID: true\nhostIPC: true";
    let container = "command: [sleep, '1001']";
    cluster.apply(&pod("on-host", BUSYBOX, container, dns));
    let cluster_first = format!("{dns}\ndnsPolicy: ClusterFirstWithHostNet");
    cluster.apply(&pod("with-dns", BUSYBOX, container, &cluster_first));
    let own = "dnsPolicy: None\ndnsConfig: {nameservers: [192.0.2.53], searches: [example.org], options: [{name: ndots, value: '3'}, {name: rotate}]}";
    cluster.apply(&pod("own-dns", BUSYBOX, container, own));
    let default = "dnsPolicy: Default\ndnsConfig: {searches: [example.org]}";
    cluster.apply(&pod("default-dns", BUSYBOX, container, default));
    for name in ["on-host", "with-dns", "own-dns", "default-dns"] {
        cluster.wait_for(&format!("pod/{name}"), "{.status.phase}", "Running");
    }
    let sh = |name: &str, script: &str| cluster.kubectl(&["exec", name, "--", "sh", "-c", script]);
    let machine = |script: &str| cluster.machine().sh_ok(script);
    let hosts = format!(
        "# Kubernetes-managed hosts file (host network).\n{}\n# Entries added by HostAliases.\n192.0.2.9\tfirst\tsecond\n",
        machine("cat /etc/hosts")
    );
    assert_eq!(sh("on-host", "cat /etc/hosts"), hosts);
    assert_eq!(sh("on-host", "hostname; cat /etc/hostname"), "host\nhost\n");
    assert_eq!(
        sh("on-host", "cat /etc/resolv.conf | grep -v '^#'"),
        machine("cat /etc/resolv.conf | grep -v '^#'")
    );
    for kind in ["pid", "ipc", "net", "uts"] {
        let link = format!("readlink /proc/self/ns/{kind}");
        assert_eq!(sh("on-host", &link), machine(&link), "{kind}");
    }
    assert!(sh("on-host", "ps").contains("knarr up"));
    let with_dns = sh("with-dns", "cat /etc/resolv.conf");
    assert!(
        with_dns.contains("nameserver 10.43.0.10\n") && with_dns.contains("options ndots:5\n"),
        "{with_dns}"
    );
    assert_eq!(
        sh("own-dns", "cat /etc/resolv.conf"),
        "search example.org\nnameserver 192.0.2.53\noptions ndots:3 rotate\n"
    );
    let default = sh("default-dns", "cat /etc/resolv.conf");
    assert!(
        default.contains("example.org") && !default.contains("10.43.0.10"),
        "{default}"
    );
    let address = "{.status.podIP} {.status.hostIP}";
    cluster.wait_for("pod/on-host", address, "192.168.77.2 192.168.77.2");
}
