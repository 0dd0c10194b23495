//! The budgets of a whole cluster: `make bench` prints them as rows of a table.
//!
//! `make bench` prints all of them; `cargo bench -p knarr-bench -- pods` (or `idle`, `api`) only those.
//!
//! The bench starts a simulated machine and itself again inside it, so that its client shares the cluster's network.

#[path = "../tests/harness/mod.rs"]
#[expect(
    dead_code,
    unused_imports,
    reason = "the benches need only a part of the harness"
)]
mod harness;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::api::{DeleteParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde_json::json;

const KUBECONFIG: &str = "/var/lib/knarr/admin.kubeconfig";
const IMAGE: &str = "knarr.local/hello:v1";
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> anyhow::Result<()> {
    let inside = std::env::args().any(|arg| arg == "inside");
    if inside {
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok()
            .context("install ring")?;
        return tokio::runtime::Runtime::new()?.block_on(measure());
    }
    let machine = harness::Machine::start("bench", "192.168.77.2/24", harness::Disk::Real);
    let wanted = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let status = machine
        .command(std::env::current_exe()?)
        .arg("inside")
        .args(wanted)
        .env(
            "KNARR_BIN_DIR",
            harness::program("knarr").parent().context("a directory")?,
        )
        .status()
        .context("start the bench inside the machine")?;
    if !status.success() {
        bail!("the bench inside the machine failed: {status}");
    }
    Ok(())
}

fn row(what: &str, measured: &str, budget: &str) {
    println!("| {what} | {measured} | {budget} |");
}

struct Knarr(Child);

impl Drop for Knarr {
    fn drop(&mut self) {
        // The machine ends with the bench, and everything in it; an error here changes nothing.
        self.0.kill().ok();
    }
}

async fn measure() -> anyhow::Result<()> {
    println!("| what | measured | budget |\n|---|---|---|");
    let start = Instant::now();
    let knarr = Knarr(
        Command::new(harness::program("knarr"))
            .arg("up")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create("/var/log/knarr.log")?)
            .spawn()
            .context("start knarr up")?,
    );
    let client = ready(start).await?;
    row(
        "`knarr up` to a Ready node, cold",
        &format!("{:.2} s", start.elapsed().as_secs_f64()),
        "1 s",
    );

    let import = Command::new(harness::program("knarr"))
        .args(["image", "import"])
        .arg(harness::hello_image("v1"))
        .output()?;
    if !import.status.success() {
        bail!("import: {}", String::from_utf8_lossy(&import.stderr));
    }
    let pid = knarr.0.id();
    let wanted: Vec<String> = std::env::args().skip(2).collect();
    let wants = |part: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == part);
    if wants("idle") {
        idle(pid).await?;
    }
    if wants("pods") {
        one_at_a_time(&client, pid, 50).await?;
        at_once(&client, pid, 50).await?;
    }
    if wants("api") {
        api_rows(&client, pid).await?;
    }
    Ok(())
}

/// The CPU time that a process has used so far, in ticks of 10 ms. On a noisy machine it says more than a rate.
fn cpu(pid: u32) -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let behind_name = stat.rsplit(')').next().context("stat")?;
    let fields: Vec<&str> = behind_name.split_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

/// The CPU time since then, in milliseconds for each of so many.
fn cpu_each(pid: u32, before: u64, count: usize) -> anyhow::Result<f64> {
    Ok((cpu(pid)? - before) as f64 * 10.0 / count as f64)
}

/// Waits for a Ready node.
async fn ready(start: Instant) -> anyhow::Result<Client> {
    loop {
        match try_ready().await {
            Ok(client) => return Ok(client),
            Err(error) if start.elapsed() > PATIENCE => return Err(error.context("no Ready node")),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn try_ready() -> anyhow::Result<Client> {
    let kubeconfig = Kubeconfig::read_from(KUBECONFIG)?;
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    let nodes = Api::<Node>::all(client.clone())
        .list(&kube::api::ListParams::default())
        .await?;
    let is_ready = nodes.items.iter().any(|node| {
        let conditions = node
            .status
            .as_ref()
            .and_then(|status| status.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
    });
    if is_ready {
        Ok(client)
    } else {
        bail!("not Ready")
    }
}

/// PSS, private memory and CPU of an idle cluster.
async fn idle(pid: u32) -> anyhow::Result<()> {
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = cpu(pid)?;
    let time = Duration::from_secs(15);
    tokio::time::sleep(time).await;
    let share = (cpu(pid)? - before) as f64 * 0.01 / time.as_secs_f64() * 100.0;
    row(
        "idle memory of `knarr up`, PSS",
        &format!("{:.1} MiB", rollup(pid, &["Pss"])?),
        "64 MiB",
    );
    row(
        "idle CPU of `knarr up`",
        &format!("{share:.2} % of one core"),
        "0.5 %",
    );
    syncs(pid)
}

/// The sum of fields of `/proc/<pid>/smaps_rollup`, in MiB.
fn rollup(pid: u32, fields: &[&str]) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kib: f64 = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| fields.contains(name))
        .filter_map(|(_, value)| value.trim().trim_end_matches(" kB").parse::<f64>().ok())
        .sum();
    Ok(kib / 1024.0)
}

fn pod(name: &str) -> anyhow::Result<Pod> {
    Ok(serde_json::from_value(json!({
        "metadata": { "name": name, "labels": { "bench": "yes" } },
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "containers": [{ "name": "hello", "image": IMAGE }],
        },
    }))?)
}

/// From the create request to `Running` in a watch's event, one pod after another.
async fn one_at_a_time(client: &Client, pid: u32, count: usize) -> anyhow::Result<()> {
    let pods = Api::<Pod>::default_namespaced(client.clone());
    wait_for_service_account(client).await?;
    let mut times = Vec::new();
    let before = cpu(pid)?;
    for n in 0..count {
        let name = format!("one-{n}");
        let start = Instant::now();
        pods.create(&PostParams::default(), &pod(&name)?).await?;
        wait_running(&pods, 1, Some(&name)).await?;
        times.push(start.elapsed());
        pods.delete(&name, &DeleteParams::default().grace_period(1))
            .await?;
        // Nothing of one pod is left to be taken down while the next one starts.
        wait_gone(&pods).await?;
    }
    times.sort();
    let ms = |at: usize| times[at].as_secs_f64() * 1000.0;
    row(
        "pod from create to Running, one at a time",
        &format!("p50 {:.0} ms, p99 {:.0} ms", ms(count / 2), ms(count - 1)),
        "p50 60 ms",
    );
    row(
        "CPU of knarr for a pod, created, run and deleted",
        &format!("{:.1} ms", cpu_each(pid, before, count)?),
        "",
    );
    Ok(())
}

/// Private memory of the shims of `count` pods that have been left alone for a moment.
async fn shims(count: usize) -> anyhow::Result<()> {
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut private = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let name = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("comm"));
        if name.is_ok_and(|name| name.trim() == "knarr-shim") {
            private.push(rollup(pid, &["Private_Clean", "Private_Dirty"])?);
        }
    }
    if private.len() != count {
        bail!("{} shims for {count} pods", private.len());
    }
    row(
        &format!("a shim's private memory, the largest of {count}"),
        &format!("{:.2} MiB", private.iter().copied().fold(0.0, f64::max)),
        "1 MiB",
    );
    Ok(())
}

/// What the idle cluster writes to the disk: fsync(2) and its kin, as strace(1) sees them.
fn syncs(pid: u32) -> anyhow::Result<()> {
    let seconds = 30;
    let output = Command::new("timeout")
        .args([
            "--signal=INT",
            &seconds.to_string(),
            "strace",
            "--follow-forks",
        ])
        .args(["--trace=fsync,fdatasync,sync_file_range,msync,io_uring_enter"])
        .args(["--attach", &pid.to_string()])
        .output()
        .context("strace")?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !text.contains("attached") {
        bail!("strace: {text}");
    }
    let calls = text
        .lines()
        .filter(|line| line.contains("sync") && line.contains(") = "))
        .count();
    row(
        &format!("fsyncs of the idle `knarr up` in {seconds} s"),
        &calls.to_string(),
        "0",
    );
    Ok(())
}

async fn wait_for_service_account(client: &Client) -> anyhow::Result<()> {
    let accounts =
        Api::<k8s_openapi::api::core::v1::ServiceAccount>::default_namespaced(client.clone());
    let start = Instant::now();
    while accounts.get_opt("default").await?.is_none() {
        if start.elapsed() > PATIENCE {
            bail!("no default service account");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Waits until `count` pods, or the one of this name, are Running.
async fn wait_running(pods: &Api<Pod>, count: usize, name: Option<&str>) -> anyhow::Result<()> {
    let mut params = WatchParams::default().labels("bench=yes");
    if let Some(name) = name {
        params = params.fields(&format!("metadata.name={name}"));
    }
    let wait = async {
        let mut running = std::collections::BTreeSet::new();
        let mut events = Box::pin(pods.watch(&params, "0").await?);
        while let Some(event) = events.try_next().await? {
            if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event {
                let phase = pod
                    .status
                    .as_ref()
                    .and_then(|status| status.phase.as_deref());
                if phase == Some("Running") && pod.metadata.deletion_timestamp.is_none() {
                    running.extend(pod.metadata.name);
                }
                if running.len() >= count {
                    return Ok(());
                }
            }
        }
        bail!("the watch ended")
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .context("pods did not run")?
}

async fn at_once(client: &Client, pid: u32, count: usize) -> anyhow::Result<()> {
    let pods = Api::<Pod>::default_namespaced(client.clone());
    wait_gone(&pods).await?;
    let before = cpu(pid)?;
    let start = Instant::now();
    let creates = (0..count).map(|n| {
        let pods = pods.clone();
        async move {
            pods.create(&PostParams::default(), &pod(&format!("many-{n}"))?)
                .await?;
            anyhow::Ok(())
        }
    });
    futures::future::try_join_all(creates).await?;
    wait_running(&pods, count, None).await?;
    row(
        &format!("{count} pods at once, all Running"),
        &format!("{:.2} s", start.elapsed().as_secs_f64()),
        "3 s",
    );
    row(
        &format!("CPU of knarr for each of {count} pods at once"),
        &format!("{:.1} ms", cpu_each(pid, before, count)?),
        "",
    );
    shims(count).await?;
    let start = Instant::now();
    pods.delete_collection(
        &DeleteParams::default().grace_period(1),
        &kube::api::ListParams::default().labels("bench=yes"),
    )
    .await?;
    wait_gone(&pods).await?;
    row(
        &format!("{count} pods deleted, all gone"),
        &format!("{:.2} s", start.elapsed().as_secs_f64()),
        "3 s",
    );
    Ok(())
}

async fn wait_gone(pods: &Api<Pod>) -> anyhow::Result<()> {
    let start = Instant::now();
    let params = kube::api::ListParams::default().labels("bench=yes");
    while !pods.list(&params).await?.items.is_empty() {
        if start.elapsed() > PATIENCE {
            bail!("the pods do not go");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// What the API serves to clients with a certificate, and to clients with a service account's token, as everything inside a
/// cluster has.
async fn api_rows(certificate: &Client, pid: u32) -> anyhow::Result<()> {
    let token = token_client(certificate).await?;
    let mut rates = Vec::new();
    // Alternated, so that neither has the warmer machine.
    for (round, (who, client)) in [
        ("certificate", certificate),
        ("token", &token),
        ("certificate", certificate),
        ("token", &token),
    ]
    .into_iter()
    .enumerate()
    {
        let created = config_maps(client, pid, round).await?;
        let read = reads(client, pid).await?;
        rates.push((who, created, read));
    }
    let best = |wanted: &str, of: fn(&(&str, Rate, Rate)) -> Rate| -> anyhow::Result<Rate> {
        let own = rates.iter().filter(|(who, ..)| *who == wanted).map(of);
        own.max_by(|a, b| a.each_second.total_cmp(&b.each_second))
            .context("no rates")
    };
    for (what, of, budget) in [
        (
            "ConfigMap create, 16 clients",
            (|row| row.1) as fn(&(&str, Rate, Rate)) -> Rate,
            "8,675/s, p99 7.7 ms",
        ),
        ("ConfigMap get, 16 clients", |row| row.2, "11,264/s"),
    ] {
        let (certificate, token) = (best("certificate", of)?, best("token", of)?);
        for (who, rate) in [("a certificate", certificate), ("a token", token)] {
            let measured = format!(
                "{:.0}/s, p99 {:.1} ms, {:.0} us of CPU",
                rate.each_second, rate.p99_ms, rate.cpu_us
            );
            row(&format!("{what} with {who}"), &measured, budget);
        }
        let share = token.each_second / certificate.each_second;
        row(
            &format!("{what}: token to certificate"),
            &format!("{share:.2} x"),
            "0.9 x",
        );
    }
    Ok(())
}

/// A client with a token of the default service account, and no certificate.
async fn token_client(admin: &Client) -> anyhow::Result<Client> {
    use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
    use k8s_openapi::api::core::v1::ServiceAccount;
    let accounts = Api::<ServiceAccount>::default_namespaced(admin.clone());
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            expiration_seconds: Some(3600),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request("default", &PostParams::default(), &request)
        .await
        .context("ask for a token")?;
    let token = answer
        .status
        .and_then(|status| status.token)
        .context("no token")?;
    let kubeconfig = Kubeconfig::read_from(KUBECONFIG)?;
    let mut config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.auth_info = kube::config::AuthInfo {
        token: Some(token.into()),
        ..kube::config::AuthInfo::default()
    };
    Ok(Client::try_from(config)?)
}

/// How many requests were answered, and how long all but the slowest hundredth took at most.
#[derive(Clone, Copy)]
struct Rate {
    each_second: f64,
    p99_ms: f64,
    /// The server's.
    cpu_us: f64,
}

/// 16 clients, each with so many requests one after another.
async fn sixteen<F>(
    pid: u32,
    each: usize,
    request: impl Fn(usize, usize) -> F + Clone + Send + 'static,
) -> anyhow::Result<Rate>
where
    F: Future<Output = anyhow::Result<()>> + Send,
{
    let before = cpu(pid)?;
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..16 {
        let request = request.clone();
        tasks.spawn(async move {
            let mut times = Vec::new();
            for n in 0..each {
                let start = Instant::now();
                request(worker, n).await?;
                times.push(start.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times.extend(done??);
    }
    let each_second = times.len() as f64 / start.elapsed().as_secs_f64();
    times.sort();
    Ok(Rate {
        each_second,
        p99_ms: times[times.len() * 99 / 100].as_secs_f64() * 1000.0,
        cpu_us: cpu_each(pid, before, times.len())? * 1000.0,
    })
}

async fn config_maps(client: &Client, pid: u32, round: usize) -> anyhow::Result<Rate> {
    let maps = Api::<ConfigMap>::default_namespaced(client.clone());
    sixteen(pid, 300, move |worker, n| {
        let maps = maps.clone();
        async move {
            let map: ConfigMap = serde_json::from_value(json!({
                "metadata": { "name": format!("bench-{round}-{worker}-{n}") },
                "data": { "key": "value".repeat(20) },
            }))?;
            maps.create(&PostParams::default(), &map).await?;
            Ok(())
        }
    })
    .await
}

async fn reads(client: &Client, pid: u32) -> anyhow::Result<Rate> {
    let maps = Api::<ConfigMap>::default_namespaced(client.clone());
    sixteen(pid, 600, move |worker, _| {
        let maps = maps.clone();
        async move {
            maps.get(&format!("bench-0-{worker}-0")).await?;
            Ok(())
        }
    })
    .await
}
