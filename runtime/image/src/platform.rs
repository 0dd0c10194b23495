//! Which images this machine runs: platforms as the builders of images write them, and as containerd reads them.
//!
//! Source: containerd, `platforms`: database.go (what a name stands for) and compare.go (what runs what).

use serde::Deserialize;

/// A platform as an index or a configuration has it, in whatever words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    variant: Option<String>,
}

/// This machine's architecture, in Go's words.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// What a machine runs, by architecture and variant, the best first.
fn runs(architecture: &str) -> Vec<(&str, &'static str)> {
    let arm = [("arm", "v8"), ("arm", "v7"), ("arm", "v6"), ("arm", "v5")];
    match architecture {
        "amd64" => vec![("amd64", ""), ("386", "")],
        "arm64" => [("arm64", "")].into_iter().chain(arm).collect(),
        "arm" => arm[1..].to_vec(),
        other => vec![(other, "")],
    }
}

impl Platform {
    /// How well an image of this platform fits this machine: the lower the better; `None` if not at all.
    pub(crate) fn rank(&self) -> Option<usize> {
        self.rank_on(architecture())
    }

    fn rank_on(&self, machine: &str) -> Option<usize> {
        let lower = |text: &Option<String>| text.as_deref().unwrap_or_default().to_lowercase();
        // An image that names no system is for ours.
        if !matches!(&*lower(&self.os), "linux" | "") {
            return None;
        }
        let (architecture, variant) = normal(lower(&self.architecture), lower(&self.variant));
        let runs = runs(machine);
        (runs.iter()).position(|known| *known == (&*architecture, &*variant))
    }
}

/// The one name of an architecture and its variant that have several.
fn normal(architecture: String, variant: String) -> (String, String) {
    let (architecture, variant) = match (&*architecture, &*variant) {
        ("i386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64", _) => ("amd64", &*variant),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
        ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
        ("aarch64", _) => ("arm64", &*variant),
        ("armhf", _) => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("arm", "" | "7") => ("arm", "v7"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "6") => ("arm", "v6"),
        ("arm", "8") => ("arm", "v8"),
        (architecture, variant) => (architecture, variant),
    };
    (architecture.to_owned(), variant.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_fit_as_containerd_sees_it() {
        // The machine, then system, architecture and variant of the image.
        #[rustfmt::skip]
        let table = [
            ("amd64", "linux", "amd64", "", Some(0)),
            ("amd64", "Linux", "AMD64", "", Some(0)),
            ("amd64", "", "amd64", "", Some(0)),
            ("amd64", "linux", "x86_64", "", Some(0)),
            ("amd64", "linux", "x86-64", "V1", Some(0)),
            ("amd64", "linux", "amd64", "v1", Some(0)),
            ("amd64", "linux", "amd64", "v3", None),
            ("amd64", "linux", "i386", "x", Some(1)),
            ("amd64", "linux", "386", "", Some(1)),
            ("amd64", "linux", "arm64", "", None),
            ("amd64", "linux", "", "", None),
            ("amd64", "linux", "unknown", "", None),
            ("amd64", "unknown", "unknown", "", None),
            ("amd64", "windows", "amd64", "", None),
            ("arm64", "linux", "aarch64", "", Some(0)),
            ("arm64", "linux", "arm64", "v8", Some(0)),
            ("arm64", "linux", "arm64", "8", Some(0)),
            ("arm64", "linux", "arm64", "v9", None),
            ("arm64", "linux", "arm", "v8", Some(1)),
            ("arm64", "linux", "arm", "", Some(2)),
            ("arm64", "linux", "armhf", "", Some(2)),
            ("arm64", "linux", "armel", "", Some(3)),
            ("arm64", "linux", "arm", "5", Some(4)),
            ("arm", "linux", "arm64", "", None),
            ("arm", "linux", "arm", "v8", None),
            ("arm", "linux", "armhf", "", Some(0)),
            ("riscv64", "linux", "riscv64", "", Some(0)),
        ];
        for (machine, os, architecture, variant, want) in table {
            let text = |text: &str| Some(text.to_owned());
            let platform = Platform {
                architecture: text(architecture),
                os: text(os),
                variant: text(variant),
            };
            assert_eq!(platform.rank_on(machine), want, "{machine}: {platform:?}");
        }
        assert_eq!(Platform::default().rank(), None);
    }
}
