//! What a namespace demands of its pods: a level and a version of the standards for each mode (pod-security-admission, `api`).

use std::fmt;

use crate::status::FieldError;

/// How strict a policy is, the least strict first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything is allowed.
    Privileged,
    /// What is known to break out of a container is not.
    Baseline,
    /// Pods follow what is known to be good practice.
    Restricted,
}

/// The minor version of Kubernetes whose standards hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// That of `v1.x`, whatever comes later.
    Minor(u32),
    /// This server's.
    Latest,
}

/// The standards that one mode goes by; shown as `restricted:latest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelVersion {
    /// How strict they are.
    pub level: Level,
    /// From when they are.
    pub version: Version,
}

/// What a namespace demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Pods that violate these standards are refused.
    pub enforce: LevelVersion,
    /// Violations of these are recorded.
    pub audit: LevelVersion,
    /// Of violations of these the client is warned.
    pub warn: LevelVersion,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        })
    }
}

impl fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Version::Latest => write!(f, "{}:latest", self.level),
            Version::Minor(minor) => write!(f, "{}:v1.{minor}", self.level),
        }
    }
}

impl Policy {
    /// The policy of a namespace with these labels, and what is wrong with them.
    ///
    /// Without labels everything is allowed. A label that cannot be read makes the namespace's pods as safe as possible and
    /// nobody else's life harder: `enforce` is then restricted, the other modes are off, a version is the latest.
    pub fn of<'a>(label: impl Fn(&str) -> Option<&'a str>) -> (Self, Vec<FieldError>) {
        let mut errors = Vec::new();
        let mut mode = |mode: &str, instead: Level| {
            let key = format!("pod-security.kubernetes.io/{mode}");
            let level = label(&key).map_or(Level::Privileged, |text| {
                level(text).unwrap_or_else(|detail| {
                    errors.push(mistake(&key, text, detail));
                    instead
                })
            });
            let key = format!("{key}-version");
            let version = label(&key).map_or(Version::Latest, |text| {
                version(text).unwrap_or_else(|detail| {
                    errors.push(mistake(&key, text, detail));
                    Version::Latest
                })
            });
            LevelVersion { level, version }
        };
        let policy = Self {
            enforce: mode("enforce", Level::Restricted),
            audit: mode("audit", Level::Privileged),
            warn: mode("warn", Level::Privileged),
        };
        (policy, errors)
    }
}

fn mistake(label: &str, value: &str, detail: &str) -> FieldError {
    FieldError::invalid(format!("metadata.labels[{label}]"), &value.into(), detail)
}

fn level(text: &str) -> Result<Level, &'static str> {
    match text {
        "privileged" => Ok(Level::Privileged),
        "baseline" => Ok(Level::Baseline),
        "restricted" => Ok(Level::Restricted),
        _ => Err("must be one of privileged, baseline, restricted"),
    }
}

fn version(text: &str) -> Result<Version, &'static str> {
    if text == "latest" {
        return Ok(Version::Latest);
    }
    text.strip_prefix("v1.")
        .filter(|minor| minor.bytes().all(|digit| digit.is_ascii_digit()))
        .filter(|minor| *minor == "0" || !minor.starts_with('0'))
        .and_then(|minor| minor.parse().ok())
        .map(Version::Minor)
        .ok_or("must be \"latest\" or \"v1.x\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENFORCE: &str = "pod-security.kubernetes.io/enforce";
    const ENFORCE_VERSION: &str = "pod-security.kubernetes.io/enforce-version";
    const WARN: &str = "pod-security.kubernetes.io/warn";

    fn of(labels: &[(&str, &'static str)]) -> (Policy, Vec<String>) {
        let label = |key: &str| {
            let mut labels = labels.iter();
            labels.find(|(name, _)| *name == key).map(|(_, v)| *v)
        };
        let (policy, errors) = Policy::of(label);
        let errors = errors.into_iter();
        let text = errors.map(|error| format!("{}: {}", error.field, error.message));
        (policy, text.collect())
    }

    #[test]
    fn labels_give_a_policy_and_wrong_ones_a_safe_one() {
        let level = r#"must be one of privileged, baseline, restricted"#;
        #[rustfmt::skip] // The columns are compared.
        let table = [
            (vec![], "privileged:latest", "privileged:latest", vec![]),
            (vec![(ENFORCE, "baseline"), (ENFORCE_VERSION, "v1.25")], "baseline:v1.25", "privileged:latest", vec![]),
            (vec![(WARN, "restricted")], "privileged:latest", "restricted:latest", vec![]),
            (vec![(ENFORCE, "x"), (WARN, "y")], "restricted:latest", "privileged:latest", vec![
                format!("metadata.labels[{ENFORCE}]: Invalid value: \"x\": {level}"),
                format!("metadata.labels[{WARN}]: Invalid value: \"y\": {level}"),
            ]),
            (vec![(ENFORCE, "baseline"), (ENFORCE_VERSION, "v1.01")], "baseline:latest", "privileged:latest", vec![
                format!("metadata.labels[{ENFORCE_VERSION}]: Invalid value: \"v1.01\": must be \"latest\" or \"v1.x\""),
            ]),
        ];
        for (labels, enforce, warn, errors) in table {
            let (policy, found) = of(&labels);
            assert_eq!(policy.enforce.to_string(), enforce, "{labels:?}");
            assert_eq!(policy.warn.to_string(), warn, "{labels:?}");
            assert_eq!(found, errors, "{labels:?}");
        }
    }
}
