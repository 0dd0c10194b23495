//! Query strings, where a name may come several times.

/// The pairs of a query string, decoded.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(text: Option<&str>) -> Self {
        Self(
            form_urlencoded::parse(text.unwrap_or_default().as_bytes())
                .into_owned()
                .collect(),
        )
    }

    /// The first value of a name.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// All values of a name.
    pub(super) fn all(&self, name: &str) -> Vec<String> {
        self.0
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, v)| v.clone())
            .collect()
    }

    /// Whether one of the names is set to yes, as Go reads booleans.
    pub(super) fn on(&self, names: &[&str]) -> bool {
        names
            .iter()
            .filter_map(|n| self.get(n))
            .any(|v| matches!(v, "1" | "t" | "T" | "true" | "TRUE" | "True"))
    }
}
