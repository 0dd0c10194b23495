//! Names and addresses of the cluster to records.
//!
//! Source: kubernetes/dns, docs/specification.md. Numbers in comments are its sections.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use hickory_server::proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_server::proto::rr::{Name, RData, Record, RecordType};
use ipnet::IpNet;
use knarr_proxy::Feed;
use knarr_proxy::objects::{Service, ServiceKey, SliceEndpoint, SlicePort};
use parking_lot::Mutex;

/// How long, in seconds, an answer may be kept: short, since endpoints come and go.
const TTL: u32 = 5;

/// What there is to say about a name.
#[derive(Debug, PartialEq)]
pub enum Found {
    /// Records, and others that the client will ask for next.
    Records(Vec<Record>, Vec<Record>),
    /// The name exists, but has nothing of this type.
    NoData,
    /// The name does not exist.
    NoName,
    /// It is somebody else's name.
    NotOurs,
}

/// The cluster's names.
pub struct Zone {
    domain: Name,
    labels: Vec<String>,
    feed: Feed,
    /// The address of this name server.
    server: IpAddr,
    services: Vec<IpNet>,
    reverse: Mutex<Reverse>,
}

/// Which services an address may belong to.
#[derive(Default)]
struct Reverse {
    keys: HashMap<IpAddr, BTreeSet<ServiceKey>>,
    ips: HashMap<ServiceKey, BTreeSet<IpAddr>>,
}

impl Zone {
    /// The zone `domain`, filled by `feed`; addresses in `services` are nobody else's.
    pub fn new(domain: Name, feed: Feed, server: IpAddr, services: Vec<IpNet>) -> Self {
        Self {
            labels: labels(&domain),
            domain,
            feed,
            server,
            services,
            reverse: Mutex::default(),
        }
    }

    /// Brings the reverse names up to date with changes of these services.
    pub fn refresh(&self, changed: impl IntoIterator<Item = ServiceKey>) {
        for key in changed {
            let ips = self
                .feed
                .service(&key)
                .map(|service| self.ips(&service))
                .unwrap_or_default();
            let mut reverse = self.reverse.lock();
            let old = if ips.is_empty() {
                reverse.ips.remove(&key).unwrap_or_default()
            } else {
                reverse
                    .ips
                    .insert(key.clone(), ips.clone())
                    .unwrap_or_default()
            };
            for gone in old.difference(&ips) {
                if let Some(keys) = reverse.keys.get_mut(gone) {
                    keys.remove(&key);
                    if keys.is_empty() {
                        reverse.keys.remove(gone);
                    }
                }
            }
            for new in ips.difference(&old) {
                reverse.keys.entry(*new).or_default().insert(key.clone());
            }
        }
    }

    /// All services that there are, for the first [`refresh`](Self::refresh).
    pub fn all(&self) -> Vec<ServiceKey> {
        self.feed
            .services()
            .iter()
            .map(|service| service.key.clone())
            .collect()
    }

    fn ips(&self, service: &Service) -> BTreeSet<IpAddr> {
        if service.headless {
            self.endpoints(service)
                .into_iter()
                .map(|endpoint| endpoint.ip)
                .collect()
        } else {
            service.cluster_ips.iter().copied().collect()
        }
    }

    /// The zone's start of authority, which says for how long a "no" may be kept.
    pub fn authority(&self) -> Record {
        let server = self.name(&["ns", "dns"]);
        let person = self.name(&["hostmaster"]);
        // The serial number would tell secondary servers of changes; there are none.
        let soa = SOA::new(server, person, 1, 7200, 1800, 86400, TTL);
        Record::from_rdata(self.domain.clone(), TTL, RData::SOA(soa))
    }

    /// What there is of type `kind` under `name`.
    pub fn find(&self, name: &Name, kind: RecordType) -> Found {
        let all = labels(name);
        if let Some(local) = all.strip_suffix(self.labels.as_slice()) {
            let local: Vec<&str> = local.iter().map(String::as_str).collect();
            return self.find_local(name, &local, kind);
        }
        match all.as_slice() {
            [.., family, arpa] if arpa == "arpa" && (family == "in-addr" || family == "ip6") => {
                match name.parse_arpa_name() {
                    Ok(net) if net.prefix_len() == net.max_prefix_len() => {
                        self.find_reverse(name, net.addr(), kind)
                    }
                    _ => Found::NotOurs,
                }
            }
            _ => Found::NotOurs,
        }
    }

    fn find_local(&self, name: &Name, local: &[&str], kind: RecordType) -> Found {
        match *local {
            [] => match kind {
                RecordType::SOA => Found::Records(vec![self.authority()], Vec::new()),
                RecordType::NS => {
                    let ns = RData::NS(NS(self.name(&["ns", "dns"])));
                    Found::Records(vec![Record::from_rdata(name.clone(), TTL, ns)], Vec::new())
                }
                _ => Found::NoData,
            },
            ["dns"] | ["svc"] | ["pod"] | [_, "pod"] => Found::NoData,
            ["ns", "dns"] => addresses(name, kind, [self.server]),
            // 2.2
            ["dns-version"] => match kind {
                RecordType::TXT => {
                    let txt = RData::TXT(TXT::new(vec!["1.1.0".to_owned()]));
                    Found::Records(vec![Record::from_rdata(name.clone(), TTL, txt)], Vec::new())
                }
                _ => Found::NoData,
            },
            // 2.6
            [ip, _, "pod"] => match dashed(ip) {
                Some(ip) => addresses(name, kind, [ip]),
                None => Found::NoName,
            },
            [namespace, "svc"] => {
                if self.feed.has_services_in(namespace) {
                    Found::NoData
                } else {
                    Found::NoName
                }
            }
            [.., service, namespace, "svc"] => {
                match self.feed.service(&ServiceKey::new(namespace, service)) {
                    Some(service) => {
                        self.find_service(name, &service, &local[..local.len() - 3], kind)
                    }
                    None => Found::NoName,
                }
            }
            _ => Found::NoName,
        }
    }

    /// `below` is what stands before `<service>.<ns>.svc.<zone>`.
    fn find_service(
        &self,
        name: &Name,
        service: &Arc<Service>,
        below: &[&str],
        kind: RecordType,
    ) -> Found {
        if let Some(target) = &service.external_name {
            // 2.5
            if !below.is_empty() {
                return Found::NoName;
            }
            let absolute = format!("{}.", target.trim_end_matches('.'));
            return match Name::from_ascii(absolute) {
                Ok(target) => {
                    let cname = RData::CNAME(CNAME(target));
                    Found::Records(
                        vec![Record::from_rdata(name.clone(), TTL, cname)],
                        Vec::new(),
                    )
                }
                Err(_) => Found::NoName,
            };
        }
        match *below {
            [] if service.headless => {
                // 2.4.1
                let endpoints = self.endpoints(service);
                if endpoints.is_empty() {
                    return Found::NoName;
                }
                addresses(name, kind, endpoints.iter().map(|endpoint| endpoint.ip))
            }
            // 2.3.1
            [] => addresses(name, kind, service.cluster_ips.iter().copied()),
            [protocol] if protocol.starts_with('_') => Found::NoData,
            [host] if service.headless => {
                let endpoints = self.endpoints(service);
                let named = endpoints.iter().filter(|e| host_label(e) == host);
                let ips: BTreeSet<IpAddr> = named.map(|e| e.ip).collect();
                if ips.is_empty() {
                    return Found::NoName;
                }
                addresses(name, kind, ips)
            }
            [port, protocol] => match (port.strip_prefix('_'), protocol.strip_prefix('_')) {
                (Some(port), Some(protocol)) => self.find_port(name, service, port, protocol, kind),
                _ => Found::NoName,
            },
            _ => Found::NoName,
        }
    }

    /// 2.3.2, 2.4.2
    fn find_port(
        &self,
        name: &Name,
        service: &Service,
        port: &str,
        protocol: &str,
        kind: RecordType,
    ) -> Found {
        let own = self.service_name(&service.key);
        let mut targets: Vec<(Name, u16, Vec<IpAddr>)> = Vec::new();
        if service.headless {
            for slice in self.feed.slices(&service.key) {
                let is_it = |p: &&SlicePort| p.name == port && p.protocol.name() == protocol;
                let Some(number) = slice.ports.iter().find(is_it) else {
                    continue;
                };
                for endpoint in slice.endpoints.iter().filter(|e| is_published(service, e)) {
                    if let Ok(target) = own.prepend_label(host_label(endpoint)) {
                        targets.push((target, number.port, vec![endpoint.ip]));
                    }
                }
            }
        } else {
            let is_it = service
                .ports
                .iter()
                .find(|p| p.name == port && p.protocol.name() == protocol);
            if let Some(number) = is_it {
                targets.push((own, number.port, service.cluster_ips.clone()));
            }
        }
        if targets.is_empty() || port.is_empty() {
            return Found::NoName;
        }
        if kind != RecordType::SRV {
            return Found::NoData;
        }
        let weight = u16::try_from(100 / targets.len()).unwrap_or(1).max(1);
        let mut records = Vec::new();
        let mut more = Vec::new();
        for (target, number, ips) in targets {
            let srv = RData::SRV(SRV::new(0, weight, number, target.clone()));
            let record = Record::from_rdata(name.clone(), TTL, srv);
            if !records.contains(&record) {
                records.push(record);
            }
            for ip in ips {
                let record = Record::from_rdata(target.clone(), TTL, address(ip));
                if !more.contains(&record) {
                    more.push(record);
                }
            }
        }
        Found::Records(records, more)
    }

    /// 2.3.3, 2.4.3
    fn find_reverse(&self, name: &Name, ip: IpAddr, kind: RecordType) -> Found {
        let keys = self
            .reverse
            .lock()
            .keys
            .get(&ip)
            .cloned()
            .unwrap_or_default();
        let mut records = Vec::new();
        for key in keys {
            let Some(service) = self.feed.service(&key) else {
                continue;
            };
            let own = self.service_name(&key);
            if service.cluster_ips.contains(&ip) && !service.headless {
                records.push(own);
            } else {
                let endpoints = self.endpoints(&service);
                let here = endpoints
                    .iter()
                    .filter(|e| e.ip == ip && e.hostname.is_some());
                records.extend(here.filter_map(|e| own.prepend_label(host_label(e)).ok()));
            }
        }
        records.dedup();
        if records.is_empty() {
            let ours = ip == self.server || self.services.iter().any(|net| net.contains(&ip));
            return if ours { Found::NoName } else { Found::NotOurs };
        }
        if kind != RecordType::PTR {
            return Found::NoData;
        }
        let records = records.into_iter().map(|target| {
            let ptr = RData::PTR(PTR(target));
            Record::from_rdata(name.clone(), TTL, ptr)
        });
        Found::Records(records.collect(), Vec::new())
    }

    fn endpoints(&self, service: &Service) -> Vec<SliceEndpoint> {
        let slices = self.feed.slices(&service.key);
        let all = slices.iter().flat_map(|slice| &slice.endpoints);
        all.filter(|endpoint| is_published(service, endpoint))
            .cloned()
            .collect()
    }

    fn service_name(&self, key: &ServiceKey) -> Name {
        self.name(&[key.name.as_str(), key.namespace.as_str(), "svc"])
    }

    /// A name in the zone. Labels are names of Kubernetes' objects, which are valid labels; were one not, the domain's own name comes.
    fn name(&self, labels: &[&str]) -> Name {
        let below = Name::from_labels(labels.iter().map(|label| label.as_bytes()));
        below
            .and_then(|name| name.append_domain(&self.domain))
            .unwrap_or_else(|_| self.domain.clone())
    }
}

fn is_published(service: &Service, endpoint: &SliceEndpoint) -> bool {
    endpoint.ready || service.publish_not_ready
}

/// The name of an endpoint below its service: its host name, or else its address.
fn host_label(endpoint: &SliceEndpoint) -> String {
    match &endpoint.hostname {
        Some(name) => name.to_lowercase(),
        None => endpoint.ip.to_string().replace(['.', ':'], "-"),
    }
}

fn labels(name: &Name) -> Vec<String> {
    let labels = name.iter().map(String::from_utf8_lossy);
    labels.map(|label| label.to_lowercase()).collect()
}

/// `10-42-0-5`, `fd00--5`.
fn dashed(text: &str) -> Option<IpAddr> {
    let dots: Option<IpAddr> = text.replace('-', ".").parse().ok();
    dots.or_else(|| text.replace('-', ":").parse().ok())
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

/// The addresses of the family that is asked for.
fn addresses(name: &Name, kind: RecordType, ips: impl IntoIterator<Item = IpAddr>) -> Found {
    let wanted = |ip: &IpAddr| match kind {
        RecordType::A => ip.is_ipv4(),
        RecordType::AAAA => ip.is_ipv6(),
        _ => false,
    };
    let unique: BTreeSet<IpAddr> = ips.into_iter().filter(wanted).collect();
    if unique.is_empty() {
        return Found::NoData;
    }
    let record = |ip| Record::from_rdata(name.clone(), TTL, address(ip));
    Found::Records(unique.into_iter().map(record).collect(), Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use knarr_proxy::objects::{Protocol, ServicePort, Slice};

    fn service(name: &str, ip: Option<&str>) -> Service {
        Service {
            key: ServiceKey::new("shop", name),
            cluster_ips: ip.map(|ip| ip.parse().unwrap()).into_iter().collect(),
            headless: ip.is_none(),
            ports: vec![ServicePort {
                name: "http".to_owned(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: None,
            }],
            ..Service::default()
        }
    }

    fn endpoint(ip: &str, hostname: Option<&str>, ready: bool) -> SliceEndpoint {
        SliceEndpoint {
            ip: ip.parse().unwrap(),
            ready,
            serving: ready,
            terminating: false,
            hostname: hostname.map(ToOwned::to_owned),
            node: None,
        }
    }

    fn zone() -> Zone {
        let feed = Feed::new();
        feed.set_service(service("web", Some("10.43.0.5")));
        feed.set_service(service("db", None));
        feed.set_service(service("empty", None));
        let mut alias = service("alias", None);
        (alias.headless, alias.external_name) = (false, Some("www.example.org".to_owned()));
        feed.set_service(alias);
        feed.set_slice(Slice {
            service: ServiceKey::new("shop", "db"),
            name: "db-1".to_owned(),
            ports: vec![SlicePort {
                name: "http".to_owned(),
                protocol: Protocol::Tcp,
                port: 5432,
            }],
            endpoints: vec![
                endpoint("10.42.0.2", Some("db-0"), true),
                endpoint("10.42.0.3", None, true),
                endpoint("10.42.0.4", Some("db-2"), false),
            ],
        });
        let zone = Zone::new(
            Name::from_ascii("cluster.local.").unwrap(),
            feed,
            "10.43.0.10".parse().unwrap(),
            vec!["10.43.0.0/16".parse().unwrap()],
        );
        zone.refresh(zone.all());
        zone
    }

    /// The data of the answers, or what there is instead.
    fn ask(name: &str, kind: RecordType) -> String {
        match zone().find(&Name::from_ascii(name).unwrap(), kind) {
            Found::Records(records, more) => {
                let text = |records: Vec<Record>| {
                    let data: Vec<_> = records.iter().map(|r| r.data.to_string()).collect();
                    data.join(", ")
                };
                match more.is_empty() {
                    true => text(records),
                    false => format!("{} + {}", text(records), text(more)),
                }
            }
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn names_of_the_specification() {
        use RecordType as T;
        let cases = [
            ("web.shop.svc.cluster.local.", T::A, "10.43.0.5"),
            ("WEB.Shop.SVC.cluster.LOCAL.", T::A, "10.43.0.5"),
            ("web.shop.svc.cluster.local.", T::AAAA, "NoData"),
            (
                "_http._tcp.web.shop.svc.cluster.local.",
                T::SRV,
                "0 100 80 web.shop.svc.cluster.local. + 10.43.0.5",
            ),
            ("_http._tcp.web.shop.svc.cluster.local.", T::A, "NoData"),
            ("_http._udp.web.shop.svc.cluster.local.", T::SRV, "NoName"),
            ("_tcp.web.shop.svc.cluster.local.", T::SRV, "NoData"),
            ("x.web.shop.svc.cluster.local.", T::A, "NoName"),
            ("db.shop.svc.cluster.local.", T::A, "10.42.0.2, 10.42.0.3"),
            ("db-0.db.shop.svc.cluster.local.", T::A, "10.42.0.2"),
            ("10-42-0-3.db.shop.svc.cluster.local.", T::A, "10.42.0.3"),
            ("db-2.db.shop.svc.cluster.local.", T::A, "NoName"),
            (
                "_http._tcp.db.shop.svc.cluster.local.",
                T::SRV,
                "0 50 5432 db-0.db.shop.svc.cluster.local., 0 50 5432 10-42-0-3.db.shop.svc.cluster.local. + 10.42.0.2, 10.42.0.3",
            ),
            ("empty.shop.svc.cluster.local.", T::A, "NoName"),
            ("alias.shop.svc.cluster.local.", T::A, "www.example.org."),
            ("none.shop.svc.cluster.local.", T::A, "NoName"),
            ("shop.svc.cluster.local.", T::A, "NoData"),
            ("none.svc.cluster.local.", T::A, "NoName"),
            ("web.shop.cluster.local.", T::A, "NoName"),
            ("10-42-0-9.shop.pod.cluster.local.", T::A, "10.42.0.9"),
            ("10-42-0.shop.pod.cluster.local.", T::A, "NoName"),
            ("dns-version.cluster.local.", T::TXT, "1.1.0"),
            ("cluster.local.", T::NS, "ns.dns.cluster.local."),
            ("ns.dns.cluster.local.", T::A, "10.43.0.10"),
            ("cluster.local.", T::A, "NoData"),
            (
                "5.0.43.10.in-addr.arpa.",
                T::PTR,
                "web.shop.svc.cluster.local.",
            ),
            (
                "2.0.42.10.in-addr.arpa.",
                T::PTR,
                "db-0.db.shop.svc.cluster.local.",
            ),
            ("3.0.42.10.in-addr.arpa.", T::PTR, "NotOurs"),
            ("99.0.43.10.in-addr.arpa.", T::PTR, "NoName"),
            ("1.1.1.1.in-addr.arpa.", T::PTR, "NotOurs"),
            ("www.example.org.", T::A, "NotOurs"),
            ("notcluster.local.", T::A, "NotOurs"),
        ];
        for (name, kind, wanted) in cases {
            assert_eq!(ask(name, kind), wanted, "{name} {kind}");
        }
    }

    #[test]
    fn reverse_names_follow_changes() {
        let zone = zone();
        zone.feed.remove_service(&ServiceKey::new("shop", "web"));
        zone.refresh([ServiceKey::new("shop", "web")]);
        let name = Name::from_ascii("5.0.43.10.in-addr.arpa.").unwrap();
        assert_eq!(zone.find(&name, RecordType::PTR), Found::NoName);
    }
}
