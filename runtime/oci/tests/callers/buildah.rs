//! Buildah.

use super::{Done, Host, finish, runtime};

struct Buildah {
    host: Host,
}

impl Buildah {
    /// `buildah`, with storage, state and settings in the machine's directory.
    fn run(&self, args: &[&str]) -> Done {
        let mut command = self.host.machine.command("buildah");
        command
            .env("CONTAINERS_CONF", self.host.path("containers.conf"))
            .arg("--root")
            .arg(self.host.path("storage"))
            .args(["--runroot", "/run/buildah", "--storage-driver", "overlay"])
            .args(args);
        finish(&mut command)
    }

    fn ok(&self, args: &[&str]) -> String {
        self.run(args).ok(args)
    }
}

#[test]
fn buildah_runs_the_steps_of_a_build() {
    let buildah = Buildah {
        host: Host::start("buildah"),
    };
    let runtime = runtime();
    let runtime = runtime.to_str().expect("path");
    let name = buildah.ok(&["from", "scratch"]);
    let rootfs = buildah.host.path("rootfs");
    buildah.ok(&["copy", "-q", &name, rootfs.to_str().expect("path"), "/"]);
    let run = |flags: &[&str], script: &str| {
        let fixed = ["run", "--runtime", runtime, "--network", "none"];
        let command = [name.as_str(), "--", "sh", "-c", script];
        buildah.run(&[&fixed[..], flags, &command[..]].concat())
    };
    assert_eq!(
        run(&[], "echo built > /made; cat /made").ok(&["run"]),
        "built"
    );
    assert_eq!(run(&[], "cat /made").ok(&["run"]), "built");
    assert_eq!(
        run(&["--user", "7:8", "--env", "A=b"], "id -u; echo $A").ok(&["run"]),
        "7\nb"
    );
    let volume = format!("{}:/host:ro", rootfs.display());
    run(
        &["--volume", &volume],
        "test -f /host/etc/passwd && ! touch /host/x",
    )
    .ok(&["run"]);
    let caps = ["--cap-add", "CAP_SYS_ADMIN"];
    let seen = run(&caps, "grep CapEff /proc/self/status").ok(&["run"]);
    assert!(
        u64::from_str_radix(seen.rsplit('\t').next().expect("a word"), 16).expect("hex")
            & (1 << 21)
            != 0,
        "{seen}"
    );
    let failed = run(&[], "exit 7");
    assert_eq!(failed.code, 7, "{failed:?}");
    buildah.ok(&["commit", "-q", &name, "localhost/made"]);
    buildah.ok(&["rm", &name]);
    let name = buildah.ok(&["from", "--pull-never", "localhost/made"]);
    let args = [
        "run",
        "--runtime",
        runtime,
        "--network",
        "none",
        &name,
        "cat",
        "/made",
    ];
    assert_eq!(buildah.ok(&args), "built");
}
