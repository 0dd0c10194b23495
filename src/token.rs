//! `knarr token`: the bootstrap tokens with which nodes join.

use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::PostParams;
use rand::Rng;
use serde_json::json;

use crate::config::Config;
use crate::kubeconfig;

/// Makes a token and prints it: `K10<SHA-256 of the CA certificate>::<id>.<secret>`.
///
/// The secret object is kubeadm's, `bootstrap-token-<id>` in `kube-system` (Kubernetes, "Authenticating with Bootstrap Tokens").
pub async fn create(config: &Config, ttl: &str) -> anyhow::Result<()> {
    let ttl = parse_ttl(ttl)?;
    let (client, ca_cert_pem) = kubeconfig::admin_client(config).await?;
    let hash = knarr_api::pki::ca_hash(&ca_cert_pem).with_context(|| {
        format!(
            "the CA in {} is no certificate",
            config.own_kubeconfig().display()
        )
    })?;
    let (id, secret) = (random(6), random(16));
    let mut data = json!({
        "token-id": id,
        "token-secret": secret,
        "usage-bootstrap-authentication": "true",
        "usage-bootstrap-signing": "true",
        "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
        "description": "knarr token create",
    });
    if let Some(ttl) = ttl {
        let expires = k8s_openapi::jiff::Timestamp::now() + ttl;
        data["expiration"] = expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
    }
    let object: Secret = serde_json::from_value(json!({
        "metadata": { "name": format!("bootstrap-token-{id}"), "namespace": "kube-system" },
        "type": "bootstrap.kubernetes.io/token",
        "stringData": data,
    }))
    .context("make the secret")?;
    Api::<Secret>::namespaced(client, "kube-system")
        .create(&PostParams::default(), &object)
        .await
        .context("create the secret of the token")?;
    println!("K10{hash}::{id}.{secret}");
    Ok(())
}

fn random(length: usize) -> String {
    const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut rng = rand::rng();
    (0..length)
        .map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]))
        .collect()
}

/// `90s`, `30m`, `24h`, `7d`; `0` for no end.
fn parse_ttl(text: &str) -> anyhow::Result<Option<Duration>> {
    if text == "0" {
        return Ok(None);
    }
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86400,
        _ => bail!("--ttl {text:?} is not a duration such as 30m or 24h"),
    };
    let number: u64 = text[..text.len() - 1]
        .parse()
        .with_context(|| format!("--ttl {text:?} is not a duration such as 30m or 24h"))?;
    let seconds = number.checked_mul(unit).filter(|s| *s <= 100 * 366 * 86400);
    match seconds {
        Some(seconds) if seconds > 0 => Ok(Some(Duration::from_secs(seconds))),
        _ => bail!("--ttl {text:?} is not between one second and a hundred years"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_has_a_unit() {
        assert_eq!(parse_ttl("24h").unwrap(), Some(Duration::from_secs(86400)));
        assert_eq!(parse_ttl("0").unwrap(), None);
        for bad in [
            "",
            "5",
            "h",
            "-1h",
            "1y",
            "0s",
            "99999999999999999999h",
            "9999999999999999d",
        ] {
            assert!(parse_ttl(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_is_of_the_form_that_bootstrap_tokens_have() {
        let token = random(16);
        assert_eq!(token.len(), 16);
        assert!(
            token
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()),
            "{token}"
        );
    }
}
