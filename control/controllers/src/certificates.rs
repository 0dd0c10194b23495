//! Certificates for nodes: approves the requests of kubelets that are what they should be, and signs with the cluster's CA.
//!
//! Two signers, as in Kubernetes ("Certificates and Certificate Signing Requests"): `kubernetes.io/kube-apiserver-client-kubelet`, for a
//! joining node's client certificate and its renewal; `kubernetes.io/kubelet-serving`, for its server. Requests for other
//! signers are left to others; a request of these two that is not what it should be is denied, with the reason.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use k8s_openapi::api::core::v1::{Endpoints, Node};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, ResourceExt};
use rcgen::{
    CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::api::{self, Delete};
use crate::cache::{Cache, Cached, Key, follow};
use crate::context::Context;
use crate::queue::{Next, Queue};
use crate::supervise::Loop;

const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING: &str = "kubernetes.io/kubelet-serving";
/// The group of the tokens that `knarr token create` makes.
const JOINING: &str = "system:bootstrappers:kubeadm:default-node-token";
/// For how long a certificate is valid before now, for clocks that run behind.
const BACKDATE: Duration = Duration::from_secs(300);
/// Settled requests are removed after this time, others after a day. Source: kube-controller-manager, csrcleaner,
/// `approvedExpiration`, `deniedExpiration` and `pendingExpiration`.
const KEEP: Duration = Duration::from_secs(3600);
const KEEP_PENDING: Duration = Duration::from_secs(24 * 3600);
/// How many requests are worked on at a time.
const WORKERS: usize = 4;

/// What failed.
#[derive(Debug, thiserror::Error)]
enum CertificateError {
    #[error("{what}")]
    Api {
        what: &'static str,
        source: kube::Error,
    },
    #[error("sign the certificate")]
    Sign { source: rcgen::Error },
}

fn failed(what: &'static str) -> impl FnOnce(kube::Error) -> CertificateError {
    move |source| CertificateError::Api { what, source }
}

/// What a request asks for, read from its PKCS #10 part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Asked {
    common_names: Vec<String>,
    organisations: Vec<String>,
    dns: Vec<String>,
    ips: Vec<IpAddr>,
    /// Whether it has names of other kinds (mail, URI).
    others: bool,
}

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Asker {
    user: String,
    groups: Vec<String>,
}

/// Addresses that say something about whether a node may have them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Addresses {
    /// The asking node's own; `None` if it has not registered yet.
    own: Option<BTreeSet<IpAddr>>,
    /// Those of other nodes and of the API server.
    foreign: BTreeSet<IpAddr>,
}

/// Whether a request is what a kubelet should ask for; the reason if it is not.
fn judge(
    signer: &str,
    asked: &Asked,
    usages: &[String],
    asker: &Asker,
    addresses: &Addresses,
) -> Result<(), String> {
    let [name] = &asked.common_names[..] else {
        return Err("subject must have one common name".into());
    };
    let Some(node) = name
        .strip_prefix("system:node:")
        .filter(|node| !node.is_empty())
    else {
        return Err("subject common name must begin with system:node:".into());
    };
    if asked.organisations != ["system:nodes"] {
        return Err("subject organization must be system:nodes".into());
    }
    let (needed, own_name) = if signer == CLIENT {
        ("client auth", "client")
    } else {
        ("server auth", "serving")
    };
    let allowed = [needed, "digital signature", "key encipherment"];
    if !usages.iter().any(|usage| usage == needed)
        || !usages.iter().all(|usage| allowed.contains(&usage.as_str()))
    {
        return Err(format!(
            "usages of a {own_name} certificate must be {}",
            allowed.join(", ")
        ));
    }
    if asked.others {
        return Err(
            "only DNS names and IP addresses are allowed as subject alternative names".into(),
        );
    }
    if signer == CLIENT {
        if !asked.dns.is_empty() || !asked.ips.is_empty() {
            return Err("a client certificate has no subject alternative names".into());
        }
        let joining = asker.user.starts_with("system:bootstrap:")
            && asker.groups.iter().any(|group| group == JOINING);
        if joining || asker.user == *name {
            return Ok(());
        }
        return Err(format!(
            "user {:?} may not ask for the certificate of {name:?}",
            asker.user
        ));
    }
    if asker.user != *name {
        return Err(format!(
            "user {:?} may not ask for the certificate of {name:?}",
            asker.user
        ));
    }
    if asked.dns.is_empty() && asked.ips.is_empty() {
        return Err("a serving certificate needs a DNS name or an IP address".into());
    }
    if let Some(strange) = asked.dns.iter().find(|dns| *dns != node) {
        return Err(format!("DNS name {strange:?} is not the node's name"));
    }
    let strange = asked.ips.iter().find(|ip| match &addresses.own {
        Some(own) => !own.contains(ip),
        None => addresses.foreign.contains(ip) || ip.is_loopback() || ip.is_unspecified(),
    });
    match strange {
        Some(ip) => Err(format!("IP address {ip} is not the node's")),
        None => Ok(()),
    }
}

fn read(pem: &[u8]) -> Option<Asked> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem).ok()?;
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).ok()?;
    request.verify_signature().ok()?;
    let subject = &request.certification_request_info.subject;
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attribute.as_str().map(str::to_owned).ok()
    };
    let mut asked = Asked {
        common_names: subject
            .iter_common_name()
            .map(text)
            .collect::<Option<_>>()?,
        organisations: subject
            .iter_organization()
            .map(text)
            .collect::<Option<_>>()?,
        ..Asked::default()
    };
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else {
            continue;
        };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(dns) => asked.dns.push((*dns).to_owned()),
                GeneralName::IPAddress(octets) => {
                    match (<[u8; 4]>::try_from(*octets), <[u8; 16]>::try_from(*octets)) {
                        (Ok(v4), _) => asked.ips.push(v4.into()),
                        (_, Ok(v6)) => asked.ips.push(v6.into()),
                        _ => return None,
                    }
                }
                _ => asked.others = true,
            }
        }
    }
    Some(asked)
}

fn sign(
    signer: &str,
    pem: &str,
    issuer: &Issuer<'_, KeyPair>,
    lifetime: Duration,
    now: OffsetDateTime,
) -> Result<String, rcgen::Error> {
    let mut request = CertificateSigningRequestParams::from_pem(pem)?;
    let usage = if signer == CLIENT {
        ExtendedKeyUsagePurpose::ClientAuth
    } else {
        ExtendedKeyUsagePurpose::ServerAuth
    };
    // What the request says about anything but names and key does not count.
    request.params.is_ca = IsCa::NoCa;
    request.params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    request.params.extended_key_usages = vec![usage];
    request.params.custom_extensions.clear();
    request.params.use_authority_key_identifier_extension = true;
    request.params.serial_number = None;
    request.params.not_before = now - BACKDATE;
    request.params.not_after = now + lifetime;
    Ok(request.signed_by(issuer)?.pem())
}

// Nothing is trimmed: the whole object is written back.
impl Cached for CertificateSigningRequest {}

/// Registers for changes; what the returned function makes follows the requests and works until stopped. `None` where
/// there is no key to sign with.
pub(crate) fn start(ctx: Context) -> Option<Loop> {
    let issuer = Arc::new(issuer(&ctx)?);
    let requests: Arc<Cache<CertificateSigningRequest>> = Arc::default();
    let queue = Arc::new(Queue::default());
    let keys = queue.clone();
    requests.on_change(move |change| {
        if let Some(request) = change.new {
            keys.add(Key::of(&request.metadata));
        }
    });
    let (work, known) = (ctx.clone(), requests.clone());
    let work = queue.worker("certificates", WORKERS, ctx.stop.clone(), move |key| {
        let (ctx, issuer, requests) = (work.clone(), issuer.clone(), known.clone());
        async move {
            match requests.get(&key) {
                Some(request) => sync(&ctx, &issuer, &request).await,
                None => Ok(Next::OnChange),
            }
        }
    });
    Some(Box::new(move || {
        let api = Api::all(ctx.client.clone());
        let watch = follow(api, None, requests.clone(), ctx.stop.clone());
        let work = work();
        async move { ((), ()) = tokio::join!(watch, work) }.boxed()
    }))
}

/// Settles a request, and removes it once it is old.
async fn sync(
    ctx: &Context,
    issuer: &Issuer<'static, KeyPair>,
    request: &CertificateSigningRequest,
) -> Result<Next, CertificateError> {
    let now = k8s_openapi::jiff::Timestamp::now();
    let left = left(request, now);
    if left.is_zero() {
        return api::delete::<CertificateSigningRequest>(
            &ctx.client,
            &request.metadata,
            Delete::default(),
        )
        .await
        .map(|()| Next::OnChange)
        .map_err(failed("remove the old request"));
    }
    settle(ctx, issuer, request.clone()).await?;
    Ok(Next::After(left))
}

/// For how long a request is kept yet: a while after it was settled, a day if nobody does.
fn left(request: &CertificateSigningRequest, now: k8s_openapi::jiff::Timestamp) -> Duration {
    let conditions = (request.status.iter()).flat_map(|status| status.conditions.iter().flatten());
    let settled = conditions
        .filter_map(|condition| condition.last_update_time.as_ref())
        .map(|Time(at)| (*at, KEEP))
        .max();
    let created = request
        .creation_timestamp()
        .map(|Time(at)| (at, KEEP_PENDING));
    let Some((since, keep)) = settled.or(created) else {
        return KEEP_PENDING;
    };
    let age = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    keep.saturating_sub(age)
}

fn issuer(ctx: &Context) -> Option<Issuer<'static, KeyPair>> {
    let key = KeyPair::from_pem(ctx.config.ca_key_pem.as_deref()?);
    match key.and_then(|key| Issuer::from_ca_cert_pem(&ctx.config.ca_certificate_pem, key)) {
        Ok(issuer) => Some(issuer),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "the cluster's CA cannot sign");
            None
        }
    }
}

async fn settle(
    ctx: &Context,
    issuer: &Issuer<'static, KeyPair>,
    mut request: CertificateSigningRequest,
) -> Result<(), CertificateError> {
    let signer = request.spec.signer_name.clone();
    if signer != CLIENT && signer != SERVING {
        return Ok(());
    }
    let status = request.status.clone().unwrap_or_default();
    let has = |kind: &str| {
        status
            .conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == kind)
    };
    if status.certificate.is_some() || has("Denied") || has("Failed") {
        return Ok(());
    }
    let requests = Api::<CertificateSigningRequest>::all(ctx.client.clone());
    let name = request.name_any();
    if !has("Approved") {
        let condition = match verdict(ctx, &request).await? {
            Ok(()) => condition(
                "Approved",
                "AutoApproved",
                "Auto approving kubelet certificate",
            ),
            Err(reason) => condition("Denied", "NotAsAKubeletAsks", &reason),
        };
        let denied = condition.type_ == "Denied";
        request
            .status
            .get_or_insert_default()
            .conditions
            .get_or_insert_default()
            .push(condition);
        request = requests
            .replace_subresource("approval", &name, &PostParams::default(), &request)
            .await
            .map_err(failed("approve the request"))?;
        if denied {
            return Ok(());
        }
    }
    let pem = String::from_utf8_lossy(&request.spec.request.0).into_owned();
    let asked_for = request
        .spec
        .expiration_seconds
        .and_then(|seconds| u64::try_from(seconds).ok());
    let lifetime = asked_for.map_or(ctx.config.certificate_lifetime, |seconds| {
        // Source: kube-controller-manager, `duration`: not under ten minutes, not over what is configured.
        Duration::from_secs(seconds.max(600)).min(ctx.config.certificate_lifetime)
    });
    let certificate = sign(&signer, &pem, issuer, lifetime, OffsetDateTime::now_utc())
        .map_err(|source| CertificateError::Sign { source })?;
    request.status.get_or_insert_default().certificate = Some(ByteString(certificate.into_bytes()));
    requests
        .replace_status(&name, &PostParams::default(), &request)
        .await
        .map_err(failed("hand out the certificate"))?;
    Ok(())
}

async fn verdict(
    ctx: &Context,
    request: &CertificateSigningRequest,
) -> Result<Result<(), String>, CertificateError> {
    let Some(asked) = read(&request.spec.request.0) else {
        return Ok(Err("the request is not a valid PKCS #10 request".into()));
    };
    let asker = Asker {
        user: request.spec.username.clone().unwrap_or_default(),
        groups: request.spec.groups.clone().unwrap_or_default(),
    };
    let node = asker
        .user
        .strip_prefix("system:node:")
        .unwrap_or_default()
        .to_owned();
    let addresses = addresses(&ctx.client, &node).await?;
    let usages = request.spec.usages.clone().unwrap_or_default();
    Ok(judge(
        &request.spec.signer_name,
        &asked,
        &usages,
        &asker,
        &addresses,
    ))
}

/// Nodes join rarely, so listing them here costs little.
async fn addresses(client: &Client, name: &str) -> Result<Addresses, CertificateError> {
    let nodes = Api::<Node>::all(client.clone())
        .list(&ListParams::default())
        .await
        .map_err(failed("list the nodes"))?;
    let mut addresses = Addresses::default();
    for node in nodes {
        let all = node
            .status
            .iter()
            .flat_map(|status| status.addresses.iter().flatten());
        let ips = all
            .filter_map(|address| address.address.parse().ok())
            .collect::<BTreeSet<IpAddr>>();
        if node.name_any() == name {
            addresses.own = Some(ips).filter(|ips| !ips.is_empty());
        } else {
            addresses.foreign.extend(ips);
        }
    }
    let servers = Api::<Endpoints>::namespaced(client.clone(), "default")
        .get_opt("kubernetes")
        .await
        .map_err(failed("read the API server's addresses"))?;
    for subset in servers
        .into_iter()
        .flat_map(|endpoints| endpoints.subsets.unwrap_or_default())
    {
        addresses.foreign.extend(
            subset
                .addresses
                .iter()
                .flatten()
                .filter_map(|address| address.ip.parse::<IpAddr>().ok()),
        );
    }
    Ok(addresses)
}

fn condition(kind: &str, reason: &str, message: &str) -> CertificateSigningRequestCondition {
    let now = Time(k8s_openapi::jiff::Timestamp::now());
    CertificateSigningRequestCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: &str) -> Asked {
        Asked {
            common_names: vec![name.into()],
            organisations: vec!["system:nodes".into()],
            ..Asked::default()
        }
    }

    fn usages(own: &str) -> Vec<String> {
        vec![own.into(), "digital signature".into()]
    }

    fn by(user: &str, groups: &[&str]) -> Asker {
        Asker {
            user: user.into(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
        }
    }

    #[test]
    fn a_joining_node_and_a_node_that_renews_get_client_certificates_and_nobody_else_does() {
        let none = Addresses::default();
        let client = |asked: &Asked, asker: Asker| {
            judge(CLIENT, asked, &usages("client auth"), &asker, &none)
        };
        let node = asked("system:node:n1");
        assert!(client(&node, by("system:bootstrap:abc", &[JOINING])).is_ok());
        assert!(client(&node, by("system:node:n1", &[])).is_ok());
        assert!(client(&node, by("system:node:n2", &[])).is_err());
        assert!(client(&node, by("system:bootstrap:abc", &["system:bootstrappers"])).is_err());
        assert!(client(&asked("admin"), by("system:bootstrap:abc", &[JOINING])).is_err());
        let masters = Asked {
            organisations: vec!["system:masters".into()],
            ..node.clone()
        };
        assert!(client(&masters, by("system:bootstrap:abc", &[JOINING])).is_err());
        let named = Asked {
            dns: vec!["kubernetes".into()],
            ..node
        };
        assert!(client(&named, by("system:bootstrap:abc", &[JOINING])).is_err());
    }

    #[test]
    fn a_serving_certificate_covers_only_the_nodes_own_name_and_addresses() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let judge = |asked: &Asked, own: Option<&str>| {
            let addresses = Addresses {
                own: own.map(|own| BTreeSet::from([ip(own)])),
                foreign: BTreeSet::from([ip("10.0.0.1")]),
            };
            judge(
                SERVING,
                asked,
                &usages("server auth"),
                &by("system:node:n1", &["system:nodes"]),
                &addresses,
            )
        };
        let node = asked("system:node:n1");
        let with = |dns: &[&str], ips: &[&str]| Asked {
            dns: dns.iter().map(|d| (*d).to_owned()).collect(),
            ips: ips.iter().map(|i| ip(i)).collect(),
            ..node.clone()
        };
        assert!(judge(&with(&["n1"], &["10.0.0.2"]), None).is_ok());
        assert!(judge(&with(&["n1"], &["10.0.0.2"]), Some("10.0.0.2")).is_ok());
        assert!(judge(&with(&["n1"], &["10.0.0.3"]), Some("10.0.0.2")).is_err());
        assert!(
            judge(&with(&["n1"], &["10.0.0.1"]), None).is_err(),
            "the API server's address"
        );
        assert!(judge(&with(&["n1"], &["127.0.0.1"]), None).is_err());
        assert!(judge(&with(&["kubernetes"], &[]), None).is_err());
        assert!(judge(&with(&[], &[]), None).is_err());
    }

    #[test]
    fn what_is_signed_has_the_requests_names_and_our_limits() {
        let key = KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::default();
        ca.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&key).unwrap().pem();
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key).unwrap();
        let mut params =
            rcgen::CertificateParams::new(vec!["n1".to_owned(), "10.0.0.2".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "system:node:n1");
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, "system:nodes");
        let request = params
            .serialize_request(&KeyPair::generate().unwrap())
            .unwrap()
            .pem()
            .unwrap();
        let read = read(request.as_bytes()).unwrap();
        assert_eq!((&read.dns[..], read.ips.len()), (&["n1".to_owned()][..], 1));

        let now = OffsetDateTime::now_utc();
        let pem = sign(SERVING, &request, &issuer, Duration::from_secs(3600), now).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        assert!(!certificate.is_ca());
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && !usage.client_auth);
        let end = certificate.validity().not_after.to_datetime();
        assert!((end - now - Duration::from_secs(3600)).abs() < Duration::from_secs(5));
    }
}
