//! Asking the cluster for a certificate.

use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::runtime::wait::{Condition, await_condition};
use kube::{Api, Client};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

use super::{BootstrapError, Join};
use crate::runtime::chain;

const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// How long the cluster may take to sign.
const SIGN_TIMEOUT: Duration = Duration::from_secs(120);

/// One of the node's two certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Client,
    Serving,
}

impl Purpose {
    pub(super) fn file(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Serving => "serving",
        }
    }

    pub(super) fn signer(self) -> &'static str {
        match self {
            Self::Client => CLIENT_SIGNER,
            Self::Serving => SERVING_SIGNER,
        }
    }

    pub(super) fn usages(self) -> [&'static str; 2] {
        match self {
            Self::Client => ["digital signature", "client auth"],
            Self::Serving => ["digital signature", "server auth"],
        }
    }
}

/// A certificate and its key, in PEM.
pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) key: String,
}

/// Asks for a certificate with a fresh key, and waits for it.
pub(super) async fn ask(
    client: &Client,
    join: &Join,
    purpose: Purpose,
) -> Result<Pair, BootstrapError> {
    let request = |source| BootstrapError::Request { source };
    let key = KeyPair::generate().map_err(request)?;
    let csr = parameters(join, purpose)
        .serialize_request(&key)
        .and_then(|r| r.pem())
        .map_err(request)?;
    let signer = purpose.signer();
    let object = CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some("csr-".to_owned()),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(csr.into_bytes()),
            signer_name: signer.to_owned(),
            usages: Some(purpose.usages().map(str::to_owned).to_vec()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let created = api
        .create(&PostParams::default(), &object)
        .await
        .map_err(|source| BootstrapError::Ask {
            signer,
            source: Box::new(source),
        })?;
    let unsigned = |message: String| BootstrapError::Unsigned { signer, message };
    let name = created.metadata.name.unwrap_or_default();
    let wait = await_condition(api, &name, Decided);
    let decided = match tokio::time::timeout(SIGN_TIMEOUT, wait).await {
        Ok(Ok(Some(object))) => object,
        Ok(Ok(None)) => return Err(unsigned("the request was deleted".to_owned())),
        Ok(Err(error)) => return Err(unsigned(chain(&error))),
        Err(_) => {
            return Err(unsigned(format!(
                "still waiting after {} s",
                SIGN_TIMEOUT.as_secs()
            )));
        }
    };
    let status = decided.status.unwrap_or_default();
    match status.certificate {
        Some(ByteString(bytes)) => {
            let certificate = String::from_utf8(bytes).map_err(|e| unsigned(e.to_string()))?;
            Ok(Pair {
                certificate,
                key: key.serialize_pem(),
            })
        }
        None => {
            let condition = status
                .conditions
                .into_iter()
                .flatten()
                .find(|c| refuses(&c.type_));
            Err(unsigned(condition.map_or_else(
                || "the request has no certificate".to_owned(),
                |c| format!("{}: {}", c.type_, c.message.unwrap_or_default()),
            )))
        }
    }
}

pub(super) fn refuses(condition: &str) -> bool {
    matches!(condition, "Denied" | "Failed")
}

/// The request is signed, or will never be.
pub(super) struct Decided;

impl Condition<CertificateSigningRequest> for Decided {
    fn matches_object(&self, object: Option<&CertificateSigningRequest>) -> bool {
        object
            .and_then(|o| o.status.as_ref())
            .is_some_and(|status| {
                status.certificate.is_some()
                    || status
                        .conditions
                        .iter()
                        .flatten()
                        .any(|c| refuses(&c.type_))
            })
    }
}

pub(super) fn parameters(join: &Join, purpose: Purpose) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "system:nodes");
    name.push(
        DnType::CommonName,
        format!("system:node:{}", join.node_name),
    );
    parameters.distinguished_name = name;
    if purpose == Purpose::Serving {
        let dns = join.node_name.clone().try_into().map(SanType::DnsName);
        parameters.subject_alt_names = dns.into_iter().collect();
        parameters
            .subject_alt_names
            .extend(join.node_ips.iter().map(|ip| SanType::IpAddress(*ip)));
    }
    parameters
}
