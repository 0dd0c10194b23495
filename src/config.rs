//! The configuration of a server, a node or both: made once from the command line and a file, then passed down.
//!
//! A flag wins over the file, the file over the default. Every mistake is reported, not just the first.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::Ipv4Net;
use knarr_controllers::EvictionLimits;
use serde::Deserialize;

use crate::logging::{self, Format, Logging};

/// What a user may set, on the command line or, under the same names, in a YAML file.
#[derive(clap::Args, Deserialize, Clone, Debug, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    /// Where everything that must survive a reboot is kept [default: /var/lib/knarr]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where sockets and namespaces of running pods are kept [default: /run/knarr]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Where the logs of pods are kept [default: /var/log]
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
    /// How the log's lines are written [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<Format>,
    /// What is logged: error, warn, info, debug or trace, for modules apart as in info,knarr_kubelet=debug [default: info, and
    /// warn for commands that end; or what the environment variable KNARR_LOG says]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// The address and port of the API server [default: 0.0.0.0:6443]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Where the administrator's kubeconfig is written [default: admin.kubeconfig in the data directory]
    #[arg(long, value_name = "FILE")]
    pub write_kubeconfig: Option<PathBuf>,
    /// The name of this node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// The address of this node [default: the source address of the default route]
    #[arg(long, value_name = "ADDRESS")]
    pub node_ip: Option<String>,
    /// The addresses of pods; each node gets a /24 of it [default: 10.42.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pub cluster_cidr: Option<String>,
    /// The addresses of services [default: 10.43.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pub service_cidr: Option<String>,
    /// The address of the cluster's DNS [default: 10.43.0.10]
    #[arg(long, value_name = "ADDRESS")]
    pub cluster_dns: Option<String>,
    /// The domain of the cluster's DNS [default: cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    pub cluster_domain: Option<String>,
    /// After how long without a sign of life a node counts as unreachable, in seconds [default: 50]
    #[arg(long, value_name = "SECONDS")]
    pub node_monitor_grace_period: Option<u64>,
    /// The same for a node that has never reported, in seconds [default: 60]
    #[arg(long, value_name = "SECONDS")]
    pub node_startup_grace_period: Option<u64>,
    /// How many nodes that are not ready may lose their pods per second, in each zone [default: 0.1]
    #[arg(long, value_name = "NUMBER")]
    pub node_eviction_rate: Option<f64>,
    /// The same in a large zone of which many nodes are not ready [default: 0.01]
    #[arg(long, value_name = "NUMBER")]
    pub secondary_node_eviction_rate: Option<f64>,
    /// Which part of a zone's nodes counts as many; three are too few [default: 0.55]
    #[arg(long, value_name = "FRACTION")]
    pub unhealthy_zone_threshold: Option<f64>,
    /// How many nodes a zone may have and still be small: a small zone of which many are not ready evicts nobody [default: 50]
    #[arg(long, value_name = "NUMBER")]
    pub large_cluster_size_threshold: Option<usize>,
    /// How many requests that only read the API server carries out at once; 0 for any number [default: 400]
    #[arg(long, value_name = "NUMBER")]
    pub max_requests_inflight: Option<usize>,
    /// The same for requests that change something [default: 200]
    #[arg(long, value_name = "NUMBER")]
    pub max_mutating_requests_inflight: Option<usize>,
    /// The port of the kubelet's HTTPS server [default: 10250]
    #[arg(long, value_name = "PORT")]
    pub kubelet_port: Option<u16>,
    /// The most processes and threads of one pod [default: no limit]
    #[arg(long, value_name = "NUMBER")]
    pub pod_pids_limit: Option<u32>,
    /// Stop and remove all pods when this program ends; by default they go on running
    #[arg(long)]
    pub kill_pods_on_exit: bool,
}

impl Settings {
    /// These settings, and `under`'s where these say nothing.
    fn over(self, under: Self) -> Self {
        Self {
            data_dir: self.data_dir.or(under.data_dir),
            run_dir: self.run_dir.or(under.run_dir),
            log_dir: self.log_dir.or(under.log_dir),
            log_format: self.log_format.or(under.log_format),
            log_level: self.log_level.or(under.log_level),
            listen: self.listen.or(under.listen),
            write_kubeconfig: self.write_kubeconfig.or(under.write_kubeconfig),
            node_name: self.node_name.or(under.node_name),
            node_ip: self.node_ip.or(under.node_ip),
            cluster_cidr: self.cluster_cidr.or(under.cluster_cidr),
            service_cidr: self.service_cidr.or(under.service_cidr),
            cluster_dns: self.cluster_dns.or(under.cluster_dns),
            cluster_domain: self.cluster_domain.or(under.cluster_domain),
            node_monitor_grace_period: self
                .node_monitor_grace_period
                .or(under.node_monitor_grace_period),
            node_startup_grace_period: self
                .node_startup_grace_period
                .or(under.node_startup_grace_period),
            node_eviction_rate: self.node_eviction_rate.or(under.node_eviction_rate),
            secondary_node_eviction_rate: self
                .secondary_node_eviction_rate
                .or(under.secondary_node_eviction_rate),
            unhealthy_zone_threshold: self
                .unhealthy_zone_threshold
                .or(under.unhealthy_zone_threshold),
            large_cluster_size_threshold: self
                .large_cluster_size_threshold
                .or(under.large_cluster_size_threshold),
            max_requests_inflight: self.max_requests_inflight.or(under.max_requests_inflight),
            max_mutating_requests_inflight: self
                .max_mutating_requests_inflight
                .or(under.max_mutating_requests_inflight),
            kubelet_port: self.kubelet_port.or(under.kubelet_port),
            pod_pids_limit: self.pod_pids_limit.or(under.pod_pids_limit),
            kill_pods_on_exit: self.kill_pods_on_exit || under.kill_pods_on_exit,
        }
    }
}

/// When nodes count as unreachable, and how fast they lose their pods.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeHealth {
    /// How long a node may be silent.
    pub grace: Duration,
    /// The same for one that has never reported.
    pub startup_grace: Duration,
    /// How fast nodes lose their pods.
    pub eviction: EvictionLimits,
}

/// A configuration without mistakes.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What must survive a reboot.
    pub data_dir: PathBuf,
    /// What belongs to running pods.
    pub run_dir: PathBuf,
    /// The parent of `pods` and `containers`.
    pub log_dir: PathBuf,
    /// What is logged, and how.
    pub logging: Logging,
    /// The API server's address.
    pub listen: SocketAddr,
    /// Where the administrator wants a kubeconfig; [`Config::own_kubeconfig`] is there besides.
    pub kubeconfig: PathBuf,
    /// This node's name.
    pub node_name: String,
    /// This node's address; `None` to ask the kernel.
    pub node_ip: Option<IpAddr>,
    /// Addresses of pods.
    pub cluster_cidr: Ipv4Net,
    /// Addresses of services.
    pub service_cidr: Ipv4Net,
    /// The cluster's DNS server.
    pub cluster_dns: IpAddr,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// What becomes of nodes that do not answer.
    pub node_health: NodeHealth,
    /// How many requests that read, and that change something, are carried out at once; 0 for any number.
    pub max_inflight: (usize, usize),
    /// The kubelet's port.
    pub kubelet_port: u16,
    /// The most processes and threads of one pod.
    pub pod_pids_limit: Option<u32>,
    /// Whether pods end with the program.
    pub kill_pods_on_exit: bool,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct Mistakes(Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0[..] {
            [one] => write!(f, "invalid configuration: {one}"),
            many => {
                write!(f, "invalid configuration, {} mistakes:", many.len())?;
                many.iter()
                    .try_for_each(|mistake| write!(f, "\n  {mistake}"))
            }
        }
    }
}

impl std::error::Error for Mistakes {}

impl Config {
    /// Reads the file, if one is given, lays the flags over it and checks the whole.
    ///
    /// # Errors
    ///
    /// All mistakes of the file and the flags.
    pub fn load(flags: Settings, file: Option<&Path>, host_name: &str) -> Result<Self, Mistakes> {
        let settings = match file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| Mistakes(vec![format!("read {}: {error}", path.display())]))?;
                let under = parse_file(&text)
                    .map_err(|error| Mistakes(vec![format!("{}: {error}", path.display())]))?;
                flags.over(under)
            }
            None => flags,
        };
        Self::check(settings, host_name)
    }

    /// The kubeconfig by which commands on this machine find the server: beside its keys, wherever the administrator wants
    /// another.
    pub fn own_kubeconfig(&self) -> PathBuf {
        self.data_dir.join("server/admin.kubeconfig")
    }

    fn check(settings: Settings, host_name: &str) -> Result<Self, Mistakes> {
        let mut mistakes = Vec::new();
        let data_dir = directory(
            &mut mistakes,
            "data-dir",
            settings.data_dir,
            "/var/lib/knarr",
        );
        let run_dir = directory(&mut mistakes, "run-dir", settings.run_dir, "/run/knarr");
        let log_dir = directory(&mut mistakes, "log-dir", settings.log_dir, "/var/log");
        if let Some(level) = &settings.log_level
            && let Err(mistake) = logging::check(level)
        {
            mistakes.push(format!("log-level: {mistake}"));
        }
        let kubeconfig = settings
            .write_kubeconfig
            .unwrap_or_else(|| data_dir.join("admin.kubeconfig"));
        let listen = parse(
            &mut mistakes,
            "listen",
            settings.listen,
            "0.0.0.0:6443",
            "an address and a port",
        );
        let cluster_cidr: Ipv4Net = parse(
            &mut mistakes,
            "cluster-cidr",
            settings.cluster_cidr,
            "10.42.0.0/16",
            "an IPv4 network",
        );
        let service_cidr: Ipv4Net = parse(
            &mut mistakes,
            "service-cidr",
            settings.service_cidr,
            "10.43.0.0/16",
            "an IPv4 network",
        );
        let default_dns = service_cidr
            .hosts()
            .nth(9)
            .map_or_else(String::new, |ip| ip.to_string());
        let cluster_dns: IpAddr = parse(
            &mut mistakes,
            "cluster-dns",
            settings.cluster_dns,
            &default_dns,
            "an address",
        );
        let node_ip = settings
            .node_ip
            .map(|text| parse(&mut mistakes, "node-ip", Some(text), "", "an address"));
        let node_name = settings
            .node_name
            .unwrap_or_else(|| host_name.to_lowercase());
        let cluster_domain = settings
            .cluster_domain
            .unwrap_or_else(|| "cluster.local".to_owned());

        let limits = EvictionLimits::default();
        let mut rate = |name: &str, value: Option<f64>, default: f64, most: f64| {
            let value = value.unwrap_or(default);
            if !(0.0..=most).contains(&value) {
                mistakes.push(format!("{name}: {value} is not a number from 0 to {most}"));
            }
            value
        };
        let eviction = EvictionLimits {
            node_eviction_rate: rate(
                "node-eviction-rate",
                settings.node_eviction_rate,
                limits.node_eviction_rate,
                1e6,
            ),
            secondary_node_eviction_rate: rate(
                "secondary-node-eviction-rate",
                settings.secondary_node_eviction_rate,
                limits.secondary_node_eviction_rate,
                1e6,
            ),
            unhealthy_zone_threshold: rate(
                "unhealthy-zone-threshold",
                settings.unhealthy_zone_threshold,
                limits.unhealthy_zone_threshold,
                1.0,
            ),
            large_cluster_size_threshold: settings
                .large_cluster_size_threshold
                .unwrap_or(limits.large_cluster_size_threshold),
        };
        let node_health = NodeHealth {
            grace: Duration::from_secs(settings.node_monitor_grace_period.unwrap_or(50)),
            startup_grace: Duration::from_secs(settings.node_startup_grace_period.unwrap_or(60)),
            eviction,
        };
        if node_health.grace.is_zero() || node_health.startup_grace.is_zero() {
            mistakes.push(
                "node-monitor-grace-period and node-startup-grace-period: 0 leaves a node no time"
                    .to_owned(),
            );
        }

        if cluster_cidr.prefix_len() > 24 {
            mistakes.push(format!(
                "cluster-cidr: {cluster_cidr} has no room for one node's /24"
            ));
        }
        if service_cidr.prefix_len() > 28 {
            mistakes.push(format!(
                "service-cidr: {service_cidr} is smaller than a /28"
            ));
        }
        if cluster_cidr.contains(&service_cidr.network())
            || service_cidr.contains(&cluster_cidr.network())
        {
            mistakes.push(format!(
                "cluster-cidr {cluster_cidr} and service-cidr {service_cidr} overlap"
            ));
        }
        let dns_inside = match cluster_dns {
            IpAddr::V4(dns) => {
                service_cidr.contains(&dns) && Some(dns) != service_cidr.hosts().next()
            }
            IpAddr::V6(_) => false,
        };
        if !dns_inside {
            mistakes.push(format!(
                "cluster-dns: {cluster_dns} is not a free address of service-cidr {service_cidr}"
            ));
        }
        for (what, name) in [
            ("node-name", &node_name),
            ("cluster-domain", &cluster_domain),
        ] {
            if !is_dns_subdomain(name) {
                mistakes.push(format!(
                    "{what}: {name:?} is not a lowercase RFC 1123 subdomain (letters, digits, '-' and '.')"
                ));
            }
        }
        if !mistakes.is_empty() {
            return Err(Mistakes(mistakes));
        }
        Ok(Self {
            data_dir,
            run_dir,
            log_dir,
            logging: Logging {
                format: settings.log_format.unwrap_or_default(),
                level: settings.log_level,
            },
            listen,
            kubeconfig,
            node_name,
            node_ip,
            cluster_cidr,
            service_cidr,
            cluster_dns,
            cluster_domain,
            node_health,
            max_inflight: (
                settings.max_requests_inflight.unwrap_or(400),
                settings.max_mutating_requests_inflight.unwrap_or(200),
            ),
            kubelet_port: settings.kubelet_port.unwrap_or(10250),
            pod_pids_limit: settings.pod_pids_limit,
            kill_pods_on_exit: settings.kill_pods_on_exit,
        })
    }
}

fn parse_file(text: &str) -> Result<Settings, serde_saphyr::Error> {
    if text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    {
        return Ok(Settings::default());
    }
    serde_saphyr::from_str(text)
}

/// The real path of a directory of ours, looked up once: the kernel names mounts by such paths, and a link that is changed while we run
/// must not lead us elsewhere.
fn directory(
    mistakes: &mut Vec<String>,
    name: &str,
    value: Option<PathBuf>,
    default: &str,
) -> PathBuf {
    let path = value.unwrap_or_else(|| default.into());
    match real_path(&path) {
        Ok(real) => real,
        Err(error) => {
            mistakes.push(format!("{name}: {}: {error}", path.display()));
            path
        }
    }
}

/// Where a path leads: absolute, without links, `.` and `..`. What is not there yet is taken as it is written.
fn real_path(path: &Path) -> io::Result<PathBuf> {
    if path.as_os_str().is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path is empty",
        ));
    }
    let mut links = 0;
    let mut real = match path.is_absolute() {
        true => PathBuf::from("/"),
        false => std::env::current_dir()?,
    };
    let parts = |path: &Path| -> Vec<OsString> { path.iter().rev().map(OsString::from).collect() };
    // What is still to be looked up, the next one last.
    let mut rest = parts(path);
    while let Some(part) = rest.pop() {
        if part == "/" {
            real = PathBuf::from("/");
        } else if part == ".." {
            real.pop();
        } else if part != "." {
            let next = real.join(&part);
            match std::fs::symlink_metadata(&next) {
                Ok(found) if found.is_symlink() => {
                    links += 1;
                    // As many as the kernel follows (path_resolution(7)).
                    if links > 40 {
                        return Err(nix::Error::ELOOP.into());
                    }
                    rest.extend(parts(&std::fs::read_link(&next)?));
                }
                Ok(found) if !found.is_dir() => return Err(io::ErrorKind::NotADirectory.into()),
                Ok(_) => real = next,
                Err(error) if error.kind() == io::ErrorKind::NotFound => real = next,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(real)
}

/// The parsed value; after a mistake the parsed default, so that the checks that follow have something to look at.
fn parse<T: std::str::FromStr + Placeholder>(
    mistakes: &mut Vec<String>,
    name: &str,
    value: Option<String>,
    default: &str,
    what: &str,
) -> T {
    let text = value.unwrap_or_else(|| default.to_owned());
    text.parse().unwrap_or_else(|_| {
        mistakes.push(format!("{name}: {text:?} is not {what}"));
        default.parse().unwrap_or_else(|_| T::placeholder())
    })
}

/// A value to go on checking with after a mistake; it never leaves [`Config::check`].
trait Placeholder {
    fn placeholder() -> Self;
}

impl Placeholder for IpAddr {
    fn placeholder() -> Self {
        IpAddr::from([127, 0, 0, 1])
    }
}

impl Placeholder for SocketAddr {
    fn placeholder() -> Self {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }
}

impl Placeholder for Ipv4Net {
    fn placeholder() -> Self {
        Ipv4Net::default()
    }
}

/// RFC 1123, as Kubernetes checks names: labels of lower-case letters, digits and `-`, at most 253 characters in all.
fn is_dns_subdomain(name: &str) -> bool {
    let label = |label: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        label.len() <= 63
            && label.starts_with(inner)
            && label.ends_with(inner)
            && label.chars().all(|c| inner(c) || c == '-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flag(set: impl FnOnce(&mut Settings)) -> Settings {
        let mut settings = Settings::default();
        set(&mut settings);
        settings
    }

    #[test]
    fn nothing_given_is_the_documented_default() {
        let config = Config::load(Settings::default(), None, "Box-1").unwrap();
        assert_eq!(config.data_dir, Path::new("/var/lib/knarr"));
        assert_eq!(
            config.kubeconfig,
            Path::new("/var/lib/knarr/admin.kubeconfig")
        );
        assert_eq!(config.listen, "0.0.0.0:6443".parse().unwrap());
        assert_eq!(config.cluster_dns, IpAddr::from([10, 43, 0, 10]));
        assert_eq!(config.node_name, "box-1");
        assert!(!config.kill_pods_on_exit);
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("knarr.yaml");
        std::fs::write(
            &file,
            "# ours\nnode-name: from-file\nservice-cidr: 10.50.0.0/16\nkill-pods-on-exit: true\n",
        )
        .unwrap();
        let flags = flag(|s| s.node_name = Some("from-flag".into()));
        let config = Config::load(flags, Some(&file), "box").unwrap();
        assert_eq!(config.node_name, "from-flag");
        assert_eq!(config.cluster_dns, IpAddr::from([10, 50, 0, 10]));
        assert!(config.kill_pods_on_exit);
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let flags = flag(|s| {
            s.listen = Some("6443".into());
            s.node_ip = Some("nowhere".into());
            s.cluster_cidr = Some("10.43.0.0/16".into());
            s.node_name = Some("Not_A_Name".into());
            s.unhealthy_zone_threshold = Some(55.0);
            s.node_eviction_rate = Some(f64::NAN);
        });
        let text = Config::load(flags, None, "box").unwrap_err().to_string();
        for part in [
            "6 mistakes",
            "listen: \"6443\"",
            "node-ip: \"nowhere\"",
            "overlap",
            "Not_A_Name",
            "unhealthy-zone-threshold: 55",
            "node-eviction-rate: NaN",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn directories_are_real_paths_whatever_leads_to_them() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("real/deep")).unwrap();
        std::fs::write(root.join("file"), "").unwrap();
        for (link, target) in [
            ("link", root.join("real").to_str().unwrap()),
            ("relative", "real/../link/deep"),
            ("dangling", "real/later/dir"),
            ("loop", "loop"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        let config = |path: &Path| {
            let flags = flag(|s| {
                s.data_dir = Some(path.into());
                s.run_dir = Some(path.into());
                s.log_dir = Some(path.into());
            });
            Config::load(flags, None, "box")
        };
        for (given, real) in [
            ("real", "real"),
            ("link", "real"),
            ("link/", "real"),
            ("link/./deep//", "real/deep"),
            ("relative", "real/deep"),
            // Of what the link leads to, as the kernel has it.
            ("relative/..", "real"),
            ("relative/../new/dir", "real/new/dir"),
            ("link/new/../dir", "real/dir"),
            ("dangling", "real/later/dir"),
            ("dangling/below", "real/later/dir/below"),
        ] {
            let config = config(&root.join(given)).unwrap();
            for found in [&config.data_dir, &config.run_dir, &config.log_dir] {
                assert_eq!(*found, root.join(real), "{given}");
            }
            assert_eq!(config.kubeconfig, root.join(real).join("admin.kubeconfig"));
        }
        let here = std::env::current_dir().unwrap().canonicalize().unwrap();
        assert_eq!(real_path(Path::new("x/../y")).unwrap(), here.join("y"));
        for (bad, why) in [
            ("loop", "data-dir"),
            ("file", "not a directory"),
            ("file/x", "log-dir"),
        ] {
            let text = config(&root.join(bad)).unwrap_err().to_string();
            assert!(text.contains("3 mistakes") && text.contains(why), "{text}");
        }
        assert!(config(Path::new("")).is_err());
    }

    #[test]
    fn an_unknown_name_in_the_file_is_a_mistake() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("knarr.yaml");
        std::fs::write(&file, "cluster-cdir: 10.42.0.0/16\n").unwrap();
        let text = Config::load(Settings::default(), Some(&file), "box")
            .unwrap_err()
            .to_string();
        assert!(text.contains("cluster-cdir"), "{text}");
    }

    #[test]
    fn an_empty_file_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("knarr.yaml");
        std::fs::write(&file, "# nothing here\n\n").unwrap();
        let config = Config::load(Settings::default(), Some(&file), "box");
        assert_eq!(config, Config::load(Settings::default(), None, "box"));
    }
}
