//! Volumes, and what removing them must not touch: the host's own files.

use crate::harness::{Cluster, busybox_image};

/// All that is mounted for pods, wherever.
fn mounts(cluster: &Cluster) -> String {
    cluster.machine().sh_ok(
        "grep -E '/node/pods/|/containers/|/run/knarr/sandboxes' /proc/self/mountinfo || true",
    )
}

/// What a pod that has ended printed.
fn printed(cluster: &Cluster, pod: &str) -> String {
    cluster.wait_for(&format!("pod/{pod}"), "{.status.phase}", "Succeeded");
    cluster.kubectl(&["logs", pod])
}

/// The host's directory is on the file system of the data directory, where a bind mount of it looks like a plain directory; and a link
/// leads to the data directory, so that the kernel's names of mounts do not begin with the path that we are given.
#[test]
fn a_data_directory_behind_a_link_loses_nothing_of_the_host() {
    let cluster = Cluster::start("linked");
    cluster.import(&busybox_image());
    cluster.machine().sh_ok(
        "mkdir -p /var/lib/knarr/host/sub && echo precious >/var/lib/knarr/host/sub/file && \
         mkdir /run/links && ln -s /var/lib/knarr /run/links/data",
    );
    let manifest = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
             - name: main\n    image: knarr.local/busybox:1\n    command: [sleep, '300']\n    \
             volumeMounts: [{{name: h, mountPath: /x, subPath: sub}}, {{name: m, mountPath: /m}}, {{name: d, mountPath: /d, subPath: a}}]\n  \
             volumes: [{{name: h, hostPath: {{path: /var/lib/knarr/host}}}}, {{name: m, emptyDir: {{medium: Memory}}}}, {{name: d, emptyDir: {{}}}}]\n"
        )
    };
    let precious = || {
        let file = cluster.machine().sh("cat /var/lib/knarr/host/sub/file");
        assert_eq!(String::from_utf8_lossy(&file.stdout), "precious\n");
    };
    // From one start to the next the path changes, the directory does not.
    for path in [
        "/run/links/data/",
        "/run/../run/links/data/node/..",
        "/var/lib/knarr",
    ] {
        cluster.apply(&manifest("before"));
        cluster.kubectl(&[
            "wait",
            "pod/before",
            "--for=condition=Ready",
            "--timeout=60s",
        ]);
        cluster.kill();
        cluster.up_with(&["--data-dir", path]);
        cluster.wait_ready();
        cluster.apply(&manifest("after"));
        cluster.kubectl(&[
            "wait",
            "pod/after",
            "--for=condition=Ready",
            "--timeout=60s",
        ]);
        cluster.kubectl(&["delete", "pod", "before", "after", "--timeout=20s"]);
        precious();
        assert_eq!(mounts(&cluster), "", "{path}");
        let left = cluster
            .machine()
            .sh_ok("ls /var/lib/knarr/node/pods /var/lib/knarr/containers");
        assert!(!left.contains('-'), "{left}");
    }
    // A pod that went while nobody looked after the node: its directory is an orphan.
    cluster.apply(&manifest("orphan"));
    cluster.kubectl(&[
        "wait",
        "pod/orphan",
        "--for=condition=Ready",
        "--timeout=60s",
    ]);
    cluster.kill();
    cluster.machine().sh_ok(
        "rm -r /var/lib/knarr/server/db /var/lib/knarr/sandboxes && mkdir /var/lib/knarr/sandboxes",
    );
    cluster.up_with(&["--data-dir", "/run/links/data"]);
    cluster.wait_ready();
    cluster.wait("the orphan to go", || {
        let left = cluster.machine().sh_ok("ls /var/lib/knarr/node/pods");
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    precious();
}

#[test]
fn volumes_have_the_modes_sizes_and_devices_of_kubernetes() {
    let cluster = Cluster::start("modes");
    cluster.import(&busybox_image());
    let pod = |name: &str, spec: &str| {
        cluster.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n{spec}"
        ));
    };
    let stat = |paths: &str| {
        format!("command: [sh, -c, 'stat -c \"%a %u:%g %n\" {paths}; touch /data/x && echo wrote']")
    };
    pod(
        "user",
        &format!(
            "  securityContext: {{runAsUser: 1000}}\n  containers:\n  - name: main\n    image: knarr.local/busybox:1\n    {}\n    \
             volumeMounts: [{{name: v, mountPath: /data, subPath: a/b}}, {{name: m, mountPath: /m, subPath: x}}, {{name: v, mountPath: /v}}]\n  \
             volumes: [{{name: v, emptyDir: {{}}}}, {{name: m, emptyDir: {{medium: Memory}}}}]\n",
            stat("/data /m /v /v/a")
        ),
    );
    pod(
        "group",
        &format!(
            "  securityContext: {{runAsUser: 35, fsGroup: 100}}\n  containers:\n  - name: main\n    image: knarr.local/busybox:1\n    {}\n    \
             volumeMounts: [{{name: v, mountPath: /data, subPath: a}}, {{name: c, mountPath: /c}}]\n  \
             volumes: [{{name: v, emptyDir: {{}}}}, {{name: c, configMap: {{name: kube-root-ca.crt, defaultMode: 0400}}}}]\n",
            stat("/data /c /c/ca.crt /c/..data/").replace("stat -c", "stat -Lc")
        ),
    );
    pod(
        "memory",
        "  volumes: [{name: a, emptyDir: {medium: Memory}}, {name: b, emptyDir: {medium: Memory, sizeLimit: 1Gi}}, \
           {name: c, emptyDir: {medium: Memory, sizeLimit: 8Mi}}]\n  containers:\n  - name: main\n    image: knarr.local/busybox:1\n    \
           resources: {limits: {memory: 32Mi}}\n    command: [df, -k, /a, /b, /c]\n    \
           volumeMounts: [{name: a, mountPath: /a}, {name: b, mountPath: /b}, {name: c, mountPath: /c}]\n",
    );
    pod(
        "devices",
        "  containers:\n  - name: main\n    image: knarr.local/busybox:1\n    securityContext: {privileged: true}\n    \
         command: [sh, -c, 'cd /dev && find . -type b -o -type c | grep -v pts | sort']\n",
    );
    assert_eq!(
        printed(&cluster, "user"),
        "777 0:0 /data\n1777 0:0 /m\n777 0:0 /v\n777 0:0 /v/a\nwrote\n"
    );
    assert_eq!(
        printed(&cluster, "group"),
        "2777 0:100 /data\n2777 0:100 /c\n440 0:100 /c/ca.crt\n2755 0:100 /c/..data/\nwrote\n"
    );
    let sizes: Vec<String> = printed(&cluster, "memory")
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(1).map(str::to_owned))
        .collect();
    assert_eq!(sizes, ["32768", "32768", "8192"]);
    let script = "cd /dev && find . -xdev -type b -o -xdev -type c | grep -vE '^./(pts|shm|fd|mqueue|console|ptmx)' | sort";
    assert_eq!(
        printed(&cluster, "devices"),
        cluster.machine().sh_ok(script)
    );
}
