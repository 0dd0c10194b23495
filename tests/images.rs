//! Images from a real registry (Debian's `docker-registry`) and from files, and the other small commands of `knarr`.

use std::process::{Child, Command, Output, Stdio};

use crate::harness::{Cluster, busybox_image, hello_image, program, wait_until};

/// A registry inside a machine.
struct Registry {
    address: &'static str,
    child: Child,
}

impl Registry {
    /// Starts it on the machine's loopback; `auth` is a section of its configuration.
    fn start(cluster: &Cluster, address: &'static str, auth: &str) -> Self {
        let dir = cluster.machine().dir().join(address);
        std::fs::create_dir(&dir).expect("make a directory");
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}', secret: x}}\n{auth}\n",
            dir.display()
        );
        let file = dir.join("config.yml");
        std::fs::write(&file, config).expect("write the configuration");
        let child = cluster
            .machine()
            .command("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("run nsenter");
        wait_until("the registry to listen", || {
            let output = cluster
                .machine()
                .sh(&format!("curl --silent --max-time 5 http://{address}/v2/"));
            if output.status.success() {
                Ok(())
            } else {
                Err(output.status.to_string())
            }
        });
        Self { address, child }
    }

    /// Copies an image in, with `skopeo`; `args` are more of its arguments. The image's name.
    fn push(&self, cluster: &Cluster, name: &str, from: &str, args: &str) -> String {
        let name = format!("{}/{name}", self.address);
        cluster.machine().sh_ok(&format!(
            "skopeo --insecure-policy --tmpdir /run copy --dest-tls-verify=false {args} {from} docker://{name}"
        ));
        name
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // The registry itself dies with its machine; this is the `nsenter` before it.
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            eprintln!("stop nsenter: {error}");
        }
    }
}

/// Busybox, as `skopeo` calls it.
fn busybox() -> String {
    format!("docker-archive:{}", busybox_image().display())
}

fn knarr(cluster: &Cluster) -> Command {
    cluster.machine().command(program("knarr"))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What `knarr` printed.
#[track_caller]
fn good(cluster: &Cluster, args: &[&str]) -> String {
    let output = knarr(cluster).args(args).output().expect("run knarr");
    assert!(output.status.success(), "{args:?}: {}", text(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// What `knarr` complained of.
#[track_caller]
fn bad(cluster: &Cluster, args: &[&str]) -> String {
    let output = knarr(cluster).args(args).output().expect("run knarr");
    assert!(!output.status.success(), "{args:?}: {}", text(&output));
    text(&output)
}

fn pod(name: &str, image: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n{more}  containers:\n  \
         - {{name: main, image: '{image}', command: [sleep, '1000']}}\n"
    )
}

/// Waits until a pod's container waits for one of these reasons.
fn waits(cluster: &Cluster, name: &str, reasons: &[&str]) {
    let path = "jsonpath={.status.containerStatuses[0].state.waiting.reason}";
    cluster.wait(&format!("{name} to wait for {reasons:?}"), || {
        let is = cluster.try_kubectl(&["get", "pod", name, "-o", path])?;
        if reasons.contains(&&*is) {
            Ok(())
        } else {
            Err(is)
        }
    });
}

fn wait_event(cluster: &Cluster, name: &str, part: &str) {
    cluster.wait(&format!("an event {part} of {name}"), || {
        let selector = format!("involvedObject.name={name}");
        let events = cluster.try_kubectl(&["get", "events", "--field-selector", &selector])?;
        if events.contains(part) {
            Ok(())
        } else {
            Err(events)
        }
    });
}

#[test]
fn images_come_from_a_registry_and_a_broken_one_disturbs_nobody() {
    let cluster = Cluster::start("registry");
    let registry = Registry::start(&cluster, "127.0.0.1:5000", "");
    let image = registry.push(&cluster, "tools/busybox:1", &busybox(), "");

    // The command, while `knarr up` runs on the same store.
    assert_eq!(
        good(&cluster, &["image", "pull", &image]),
        format!("{image}\n")
    );
    let list = good(&cluster, &["image", "ls"]);
    assert!(list.starts_with("IMAGE") && list.contains(&image), "{list}");
    assert!(good(&cluster, &["image", "rm", &image]).starts_with("deleted sha256:"));
    assert!(!good(&cluster, &["image", "ls"]).contains(&image));
    let absent = bad(&cluster, &["image", "rm", &image]);
    assert!(absent.contains(&image), "{absent}");
    let absent = bad(&cluster, &["image", "pull", "127.0.0.1:5000/none:1"]);
    assert!(
        absent.contains("127.0.0.1:5000/none:1") && absent.contains("not found"),
        "{absent}"
    );
    let nobody = bad(&cluster, &["image", "pull", "127.0.0.1:1/none:1"]);
    assert!(nobody.contains("reach registry 127.0.0.1:1"), "{nobody}");
    let name = bad(&cluster, &["image", "pull", "UPPER/case"]);
    assert!(name.contains("UPPER/case"), "{name}");

    // The kubelet, by tag and by digest.
    cluster.apply(&pod("pulled", &image, ""));
    cluster.wait_for("pod/pulled", "{.status.phase}", "Running");
    wait_event(&cluster, "pulled", "Successfully pulled image");
    let id = cluster.kubectl(&[
        "get",
        "pod",
        "pulled",
        "-o",
        "jsonpath={.status.containerStatuses[0].imageID}",
    ]);
    assert!(
        id.starts_with("127.0.0.1:5000/tools/busybox@sha256:"),
        "{id}"
    );
    cluster.apply(&pod("by-digest", &id, ""));
    cluster.wait_for("pod/by-digest", "{.status.phase}", "Running");
    // The image of a running container stays.
    let in_use = bad(&cluster, &["image", "rm", &image]);
    assert!(in_use.contains("is in use by"), "{in_use}");
    assert_eq!(
        cluster.kubectl(&["exec", "pulled", "--", "echo", "alive"]),
        "alive\n"
    );

    // A layer that is not what its digest says.
    let demo = format!("oci-archive:{}", hello_image("v1").display());
    let broken = registry.push(&cluster, "broken:1", &demo, "");
    cluster.machine().sh_ok(&format!(
        "cd {}/127.0.0.1:5000/docker/registry/v2/blobs && f=$(find . -name data -size +100k -printf '%T@ %p\\n' | sort -n | tail -1 | cut -d' ' -f2) && \
         cp $f /run/good && echo $f > /run/which && printf broken | dd of=$f bs=1 seek=50000 conv=notrunc status=none",
        cluster.machine().dir().display()
    ));
    cluster.apply(&pod("corrupt", &broken, "").replace(", command: [sleep, '1000']", ""));
    cluster.apply(&pod("bad-name", "UPPER/Case:1", ""));
    cluster.apply(&pod("bad-registry", "no-such-registry.invalid/x:1", ""));
    waits(&cluster, "corrupt", &["ErrImagePull", "ImagePullBackOff"]);
    wait_event(&cluster, "corrupt", "Failed to pull image");
    wait_event(&cluster, "corrupt", "Error: ErrImagePull");
    waits(&cluster, "corrupt", &["ImagePullBackOff"]);
    wait_event(&cluster, "corrupt", "Back-off pulling image");
    waits(&cluster, "bad-name", &["InvalidImageName"]);
    waits(
        &cluster,
        "bad-registry",
        &["ErrImagePull", "ImagePullBackOff"],
    );
    let message = bad(&cluster, &["image", "pull", &broken]);
    assert!(message.contains("sha256:"), "{message}");
    // It goes on by itself once the registry is mended.
    cluster.machine().sh_ok(&format!(
        "cd {}/127.0.0.1:5000/docker/registry/v2/blobs && cp /run/good $(cat /run/which)",
        cluster.machine().dir().display()
    ));
    cluster.wait_for("pod/corrupt", "{.status.phase}", "Running");
    assert_eq!(
        cluster.kubectl(&[
            "get",
            "pod",
            "pulled",
            "-o",
            "jsonpath={.status.containerStatuses[0].restartCount}"
        ]),
        "0"
    );
}

#[test]
fn a_registry_with_passwords_gives_only_to_those_who_have_one() {
    let cluster = Cluster::start("private");
    let file = cluster.machine().dir().join("htpasswd");
    let file = file.to_str().expect("UTF-8");
    cluster
        .machine()
        .sh_ok(&format!("htpasswd -Bbc {file} anna secret 2>/dev/null"));
    let auth = format!("auth: {{htpasswd: {{realm: test, path: {file}}}}}");
    let registry = Registry::start(&cluster, "127.0.0.1:5001", &auth);
    let image = registry.push(
        &cluster,
        "private:1",
        &busybox(),
        "--dest-creds anna:secret",
    );

    let refused = bad(&cluster, &["image", "pull", &image]);
    assert!(refused.contains("pull access denied"), "{refused}");
    cluster.apply(&pod("nobody", &image, ""));
    waits(&cluster, "nobody", &["ErrImagePull", "ImagePullBackOff"]);
    wait_event(&cluster, "nobody", "pull access denied");

    for (name, password) in [("wrong", "guess"), ("right", "secret")] {
        cluster.kubectl(&[
            "create",
            "secret",
            "docker-registry",
            name,
            "--docker-server=127.0.0.1:5001",
            "--docker-username=anna",
            &format!("--docker-password={password}"),
        ]);
    }
    cluster.apply(&pod(
        "stranger",
        &image,
        "  imagePullSecrets: [{name: wrong}]\n",
    ));
    waits(&cluster, "stranger", &["ErrImagePull", "ImagePullBackOff"]);
    cluster.apply(&pod(
        "anna",
        &image,
        "  imagePullSecrets: [{name: right}]\n",
    ));
    cluster.wait_for("pod/anna", "{.status.phase}", "Running");
    cluster.kubectl(&["delete", "pods", "--all"]);

    // The command takes the login from its arguments, or from what `podman login` and `skopeo login` leave.
    let pull = |args: &[&str]| good(&cluster, &[&["image", "pull", &image], args].concat());
    let refused = |args: &[&str]| bad(&cluster, &[&["image", "pull", &image], args].concat());
    let remove = |name: &str| {
        let said = good(&cluster, &["image", "rm", name]);
        assert!(!good(&cluster, &["image", "ls"]).contains(&image), "{said}");
    };
    // The pod is gone from the API a moment before its container is gone from the node.
    cluster.wait("the image to be free", || {
        let output = knarr(&cluster).args(["image", "rm", &image]).output();
        let output = output.expect("run knarr");
        if output.status.success() {
            Ok(())
        } else {
            Err(text(&output))
        }
    });
    assert!(refused(&["--creds", "anna:guess"]).contains("pull access denied"));
    assert!(refused(&["--creds", "anna"]).contains("--creds is not USER:PASSWORD"));
    assert_eq!(pull(&["--creds", "anna:secret"]), format!("{image}\n"));
    let id = good(&cluster, &["image", "ls"]);
    let id = (id.lines())
        .find_map(|line| line.strip_prefix(&image)?.split_whitespace().next())
        .expect("the image's id");
    remove(id);

    let file = cluster.machine().dir().join("auth.json");
    let file = file.to_str().expect("UTF-8");
    assert!(refused(&["--authfile", file]).contains("is not there"));
    let login = "skopeo login --tls-verify=false --username anna --password secret 127.0.0.1:5001";
    cluster
        .machine()
        .sh_ok(&format!("{login} --authfile {file}"));
    pull(&["--authfile", file]);
    let digest = cluster.machine().sh_ok(&format!(
        "skopeo inspect --authfile {file} --tls-verify=false --format '{{{{.Digest}}}}' docker://{image}"
    ));
    remove(digest.trim());
    assert!(refused(&[]).contains("pull access denied"));
    cluster.machine().sh_ok(login);
    pull(&[]);
    remove(&image);
    let broken = format!("echo '{{\"auths\": {{\"x\": {{\"auth\": \"%\"}}}}}}' > {file}");
    cluster.machine().sh_ok(&broken);
    assert!(refused(&["--authfile", file]).contains("the auth of registry x"));
}

#[test]
fn images_are_imported_from_a_file_a_directory_and_a_pipe() {
    let cluster = Cluster::start("import");
    let dir = cluster.machine().dir();
    let archive = busybox_image();
    let (layout, tar) = (dir.join("layout"), dir.join("layout.tar"));
    let (layout, tar) = (
        layout.to_str().expect("UTF-8"),
        tar.to_str().expect("UTF-8"),
    );
    cluster.machine().sh_ok(&format!(
        "skopeo --insecure-policy --tmpdir /run copy docker-archive:{0} oci:{layout}:knarr.local/dir:1 && \
         skopeo --insecure-policy --tmpdir /run copy docker-archive:{0} oci-archive:{tar}:knarr.local/tar:1",
        archive.display()
    ));
    assert_eq!(
        good(&cluster, &["image", "import", layout]),
        "knarr.local/dir:1\n"
    );
    // It is the same image, which has both names now.
    assert_eq!(
        good(&cluster, &["image", "import", tar]),
        "knarr.local/dir:1\nknarr.local/tar:1\n"
    );
    let piped = knarr(&cluster)
        .args(["image", "import", "-"])
        .stdin(std::fs::File::open(&archive).expect("open the archive"))
        .output()
        .expect("run knarr");
    assert!(
        piped.status.success() && text(&piped).contains("knarr.local/busybox:1\n"),
        "{}",
        text(&piped)
    );
    let list = good(&cluster, &["image", "ls"]);
    for name in ["dir", "tar", "busybox"] {
        assert!(list.contains(&format!("knarr.local/{name}:1")), "{list}");
        cluster.apply(&pod(name, &format!("knarr.local/{name}:1"), ""));
    }
    for name in ["dir", "tar", "busybox"] {
        cluster.wait_for(&format!("pod/{name}"), "{.status.phase}", "Running");
    }

    std::fs::write(dir.join("junk"), "no archive").expect("write a file");
    let junk = dir.join("junk");
    for from in ["/does/not/exist", junk.to_str().expect("UTF-8")] {
        let refused = bad(&cluster, &["image", "import", from]);
        assert!(refused.contains(from), "{refused}");
    }
    // Half an archive imports nothing.
    let whole = std::fs::read(tar).expect("read the archive");
    std::fs::write(&junk, &whole[..whole.len() / 2]).expect("write a file");
    bad(
        &cluster,
        &["image", "import", junk.to_str().expect("UTF-8")],
    );
    assert_eq!(good(&cluster, &["image", "ls"]), list);
}

#[test]
fn the_small_commands_work_beside_a_running_cluster() {
    let cluster = Cluster::start("small");
    assert!(good(&cluster, &["version"]).starts_with("knarr "));
    // Wherever the administrator's own kubeconfig is.
    let theirs = "/var/lib/knarr/admin.kubeconfig";
    cluster
        .machine()
        .sh_ok(&format!("mv {theirs} {theirs}.aside"));
    let token = good(&cluster, &["token", "create"]);
    cluster
        .machine()
        .sh_ok(&format!("mv {theirs}.aside {theirs}"));
    let log = std::fs::read(cluster.log_path()).expect("the log");
    let text_of_log = String::from_utf8_lossy(&log);
    assert!(
        text_of_log.contains(" INFO knarr::server: the API server is ready address=")
            && !text_of_log.contains('\u{1b}'),
        "a file has no colours: {text_of_log}"
    );
    let (hash, secret) = token
        .trim()
        .strip_prefix("K10")
        .and_then(|rest| rest.split_once("::"))
        .expect("K10HASH::ID.SECRET");
    assert_eq!(hash.len(), 64, "{token}");
    let (id, _) = secret.split_once('.').expect("ID.SECRET");
    let kept = cluster.kubectl(&[
        "-n",
        "kube-system",
        "get",
        "secret",
        &format!("bootstrap-token-{id}"),
        "-o",
        "jsonpath={.type}",
    ]);
    assert_eq!(kept, "bootstrap.kubernetes.io/token");
    assert!(bad(&cluster, &["token", "create", "--ttl", "soon"]).contains("soon"));

    let kubeconfig = good(&cluster, &["kubeconfig"]);
    std::fs::write(cluster.machine().dir().join("mine"), &kubeconfig).expect("write a file");
    let nodes = cluster.machine().sh_ok(&format!(
        "kubectl --kubeconfig {}/mine get nodes -o name",
        cluster.machine().dir().display()
    ));
    assert_eq!(nodes, "node/small\n");
    assert_eq!(
        cluster
            .machine()
            .sh_ok("stat -c %a /var/lib/knarr/admin.kubeconfig"),
        "600\n"
    );

    for (shell, part) in [
        ("bash", "complete -F _knarr"),
        ("zsh", "#compdef knarr"),
        ("fish", "complete -c knarr"),
    ] {
        assert!(
            good(&cluster, &["completion", shell]).contains(part),
            "{shell}"
        );
    }
    let script = format!(
        ". <({0} completion bash); COMP_WORDS=(knarr im); COMP_CWORD=1; _knarr knarr im knarr; echo ${{COMPREPLY[@]}}",
        program("knarr").display()
    );
    let completed = cluster
        .machine()
        .command("bash")
        .args(["-c", &script])
        .output()
        .expect("run bash");
    assert_eq!(text(&completed), "image\n");
}

#[test]
fn all_mistakes_of_a_configuration_are_reported_at_once() {
    let cluster = Cluster::start("mistaken");
    let file = cluster.machine().dir().join("config.yaml");
    let path = file.to_str().expect("UTF-8");
    let write = |text: &str| std::fs::write(&file, text).expect("write a file");
    write(
        "listen: nowhere\ncluster-cidr: 10.42.0.0\nservice-cidr: 10.300.0.0/16\ncluster-dns: none\nnode-name: Not_A_Name\n",
    );
    let said = bad(
        &cluster,
        &["up", "--config", path, "--node-ip", "256.1.1.1"],
    );
    for setting in [
        "listen",
        "cluster-cidr",
        "service-cidr",
        "cluster-dns",
        "node-name",
        "node-ip",
        "6 mistakes",
    ] {
        assert!(said.contains(setting), "{setting} is not in {said}");
    }
    write("colour: red\n");
    let said = bad(&cluster, &["up", "--config", path]);
    assert!(said.contains("colour"), "{said}");
    let said = bad(&cluster, &["up", "--config", "/does/not/exist"]);
    assert!(said.contains("/does/not/exist"), "{said}");
    // A flag wins over the file.
    write("data-dir: /does/not/exist\n");
    good(
        &cluster,
        &[
            "kubeconfig",
            "--config",
            path,
            "--data-dir",
            "/var/lib/knarr",
        ],
    );
    bad(&cluster, &["kubeconfig", "--config", path]);
}
