//! The configuration of a server, a node or both: made once from the command line and a file, then passed down.
//!
//! A flag wins over the file, the file over the default. Every mistake is reported, not just the first.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::Deserialize;

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
            listen: self.listen.or(under.listen),
            write_kubeconfig: self.write_kubeconfig.or(under.write_kubeconfig),
            node_name: self.node_name.or(under.node_name),
            node_ip: self.node_ip.or(under.node_ip),
            cluster_cidr: self.cluster_cidr.or(under.cluster_cidr),
            service_cidr: self.service_cidr.or(under.service_cidr),
            cluster_dns: self.cluster_dns.or(under.cluster_dns),
            cluster_domain: self.cluster_domain.or(under.cluster_domain),
            kubelet_port: self.kubelet_port.or(under.kubelet_port),
            pod_pids_limit: self.pod_pids_limit.or(under.pod_pids_limit),
            kill_pods_on_exit: self.kill_pods_on_exit || under.kill_pods_on_exit,
        }
    }
}

/// A configuration without mistakes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What must survive a reboot.
    pub data_dir: PathBuf,
    /// What belongs to running pods.
    pub run_dir: PathBuf,
    /// The parent of `pods` and `containers`.
    pub log_dir: PathBuf,
    /// The API server's address.
    pub listen: SocketAddr,
    /// The administrator's kubeconfig.
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

    fn check(settings: Settings, host_name: &str) -> Result<Self, Mistakes> {
        let mut mistakes = Vec::new();
        let data_dir = absolute(
            &mut mistakes,
            "data-dir",
            settings.data_dir,
            "/var/lib/knarr",
        );
        let run_dir = absolute(&mut mistakes, "run-dir", settings.run_dir, "/run/knarr");
        let log_dir = absolute(&mut mistakes, "log-dir", settings.log_dir, "/var/log");
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
            listen,
            kubeconfig,
            node_name,
            node_ip,
            cluster_cidr,
            service_cidr,
            cluster_dns,
            cluster_domain,
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

fn absolute(
    mistakes: &mut Vec<String>,
    name: &str,
    value: Option<PathBuf>,
    default: &str,
) -> PathBuf {
    let path = value.unwrap_or_else(|| default.into());
    match std::path::absolute(&path) {
        Ok(path) => path,
        Err(error) => {
            mistakes.push(format!("{name}: {}: {error}", path.display()));
            path
        }
    }
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
        });
        let text = Config::load(flags, None, "box").unwrap_err().to_string();
        for part in [
            "4 mistakes",
            "listen: \"6443\"",
            "node-ip: \"nowhere\"",
            "overlap",
            "Not_A_Name",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
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
