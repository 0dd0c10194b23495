//! Bootstrap tokens: the Secrets `kube-system/bootstrap-token-<id>`, with which nodes ask for their first certificate.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::UserInfo;
use crate::registry::Registry;

/// Every user of a bootstrap token.
pub const BOOTSTRAPPERS: &str = "system:bootstrappers";

/// The user of a token `<id>.<secret>`, if there is such a token and it is still good.
pub fn user(registry: &Registry, token: &str) -> Option<UserInfo> {
    let (id, secret) = token.split_once('.')?;
    let letters = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    if id.len() != 6 || secret.len() != 16 || !letters(id) || !letters(secret) {
        return None;
    }
    let entry = registry
        .collection("secrets")?
        .get(&format!("kube-system/bootstrap-token-{id}"))?;
    let object = entry.parse();
    if object["type"] != "bootstrap.kubernetes.io/token"
        || !object["metadata"]["deletionTimestamp"].is_null()
    {
        return None;
    }
    let field = |name: &str| decode(&object["data"][name]);
    let same =
        field("token-id")? == id && equal(field("token-secret")?.as_bytes(), secret.as_bytes());
    let expired = match field("expiration") {
        None => false,
        Some(time) => time
            .parse::<jiff::Timestamp>()
            .map_or(true, |time| time <= jiff::Timestamp::now()),
    };
    if !same || expired || field("usage-bootstrap-authentication").as_deref() != Some("true") {
        return None;
    }
    let mut groups = vec![BOOTSTRAPPERS.to_owned()];
    if let Some(extra) = field("auth-extra-groups") {
        groups.extend(
            extra
                .split(',')
                .map(str::trim)
                .filter(|g| g.starts_with("system:bootstrappers:"))
                .map(str::to_owned),
        );
    }
    Some(UserInfo::new(format!("system:bootstrap:{id}"), groups))
}

fn decode(value: &Value) -> Option<String> {
    String::from_utf8(STANDARD.decode(value.as_str()?).ok()?).ok()
}

/// Compares in a time that does not depend on where the two differ.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}
