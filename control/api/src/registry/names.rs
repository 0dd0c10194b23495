//! What names, labels and annotations may look like (apimachinery, `util/validation`).

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";

/// The mistake in a DNS label (RFC 1123), if there is one.
///
/// # Errors
///
/// The mistake, in Kubernetes' words.
pub fn dns_label(name: &str) -> Result<(), String> {
    if name.len() > 63 {
        return Err("must be no more than 63 bytes".to_owned());
    }
    if is_label(name) {
        return Ok(());
    }
    Err(format!(
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end \
         with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{LABEL}')"
    ))
}

/// The mistake in a DNS label (RFC 1035: it starts with a letter), if there is one.
///
/// # Errors
///
/// The mistake, in Kubernetes' words.
pub fn dns_1035_label(name: &str) -> Result<(), String> {
    if name.len() > 63 {
        return Err("must be no more than 63 bytes".to_owned());
    }
    if is_label(name) && name.as_bytes()[0].is_ascii_lowercase() {
        return Ok(());
    }
    Err("a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, \
         and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is \
         '[a-z]([-a-z0-9]*[a-z0-9])?')"
        .to_owned())
}

/// The mistake in a DNS subdomain, if there is one.
///
/// # Errors
///
/// The mistake, in Kubernetes' words.
pub fn dns_subdomain(name: &str) -> Result<(), String> {
    if name.len() > 253 {
        return Err("must be no more than 253 bytes".to_owned());
    }
    if name.split('.').all(is_label) {
        return Ok(());
    }
    Err(format!(
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and \
         end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{LABEL}(\\.{LABEL})*')"
    ))
}

/// The mistake in a name that only has to fit into a path (RBAC), if there is one.
///
/// # Errors
///
/// The mistake, in Kubernetes' words.
pub fn path_segment(name: &str) -> Result<(), String> {
    match name {
        "." | ".." => Err(format!("may not be '{name}'")),
        _ if name.contains('/') => Err("may not contain '/'".to_owned()),
        _ if name.contains('%') => Err("may not contain '%'".to_owned()),
        _ => Ok(()),
    }
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|b| alphanumeric(b) || *b == b'-')
}

/// The mistake in a qualified name, such as the key of a label, if there is one.
///
/// # Errors
///
/// The mistake, in Kubernetes' words.
pub fn label_key(key: &str) -> Result<(), String> {
    const RULE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
        alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
        '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    let name = match key.split_once('/') {
        None => key,
        Some(("", _)) => return Err("prefix part must be non-empty".to_owned()),
        Some((prefix, name)) if !name.contains('/') => {
            dns_subdomain(prefix).map_err(|detail| format!("prefix part {detail}"))?;
            name
        }
        Some(_) => {
            return Err(format!(
                "a qualified name {RULE} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            ));
        }
    };
    if name.is_empty() {
        return Err(format!("name part must be non-empty; name part {RULE}"));
    }
    if name.len() > 63 {
        return Err("name part must be no more than 63 bytes".to_owned());
    }
    if is_qualified(name) {
        Ok(())
    } else {
        Err(format!("name part {RULE}"))
    }
}

/// The mistake in the value of a label, if there is one.
///
/// # Errors
///
/// The mistake, in Kubernetes' words.
pub fn label_value(value: &str) -> Result<(), String> {
    if value.len() > 63 {
        return Err("must be no more than 63 bytes".to_owned());
    }
    if value.is_empty() || is_qualified(value) {
        return Ok(());
    }
    Err("a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and \
         end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
         '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
        .to_owned())
}

fn is_qualified(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_their_rules() {
        assert!(
            dns_subdomain("a.b-c.0").is_ok()
                && dns_label("0a").is_ok()
                && dns_1035_label("a0").is_ok()
        );
        assert!(
            dns_subdomain("No_Name")
                .unwrap_err()
                .contains("RFC 1123 subdomain")
        );
        assert!(
            dns_label("a.b").is_err()
                && dns_1035_label("0a").is_err()
                && dns_subdomain("a..b").is_err()
        );
        assert!(
            label_key("example.com/A_b").is_ok()
                && label_key("/a").is_err()
                && label_key("a/b/c").is_err()
        );
        assert!(label_value("").is_ok() && label_value("a b").is_err());
        assert!(path_segment("system:node").is_ok() && path_segment("a/b").is_err());
    }
}
