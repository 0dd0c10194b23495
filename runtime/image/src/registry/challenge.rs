//! What a registry wants to see: the challenges of its `WWW-Authenticate` lines.

use http_auth::parser::ChallengeParser;

/// One way to be let in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    /// In lower case.
    scheme: String,
    /// Names in lower case.
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// All that can be understood of all lines; a line may have several, and may be broken.
    pub(super) fn parse<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Vec<Self> {
        let mut challenges = Vec::new();
        for line in lines {
            // The parser wants ASCII, and other letters are only ever in a name for people.
            let plain = |byte: &u8| {
                if byte.is_ascii() {
                    char::from(*byte)
                } else {
                    '?'
                }
            };
            let line: String = line.iter().map(plain).collect();
            for challenge in ChallengeParser::new(&line).map_while(Result::ok) {
                let parameters = challenge.params.iter();
                challenges.push(Self {
                    scheme: challenge.scheme.to_ascii_lowercase(),
                    parameters: parameters
                        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_unescaped()))
                        .collect(),
                });
            }
        }
        challenges
    }

    pub(super) fn is(&self, scheme: &str) -> bool {
        self.scheme == scheme
    }

    /// A parameter that says something.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| &**value).filter(|v| !v.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(lines: &[&str]) -> Vec<String> {
        let challenges = Challenge::parse(lines.iter().map(|line| line.as_bytes()));
        let shown = challenges.into_iter().map(|challenge| {
            let parameters = challenge.parameters.iter();
            let parameters: Vec<_> = parameters.map(|(k, v)| format!("{k}={v}")).collect();
            format!("{} {}", challenge.scheme, parameters.join("|"))
        });
        shown.collect()
    }

    #[test]
    fn challenges_are_found_on_all_lines_and_between_others() {
        let basic = "Basic realm=\"registry, with comma\"";
        let bearer =
            "bearer Realm=\"https://a/t?x=1\",service=\"a\",scope=\"repository:x/y:pull,push\"";
        let want = [
            "basic realm=registry, with comma",
            "bearer realm=https://a/t?x=1|service=a|scope=repository:x/y:pull,push",
        ];
        assert_eq!(parse(&[basic, bearer]), want);
        assert_eq!(parse(&[&format!("{basic}, {bearer}")]), want);
        assert_eq!(
            parse(&[&format!("Negotiate, {basic} , {bearer}")])[1..],
            want
        );
        assert_eq!(
            parse(&["Bearer realm = \"q\\\"uote\" , error=x"]),
            ["bearer realm=q\"uote|error=x"]
        );
        assert_eq!(
            parse(&["Basic realm=\"Régistre\""]),
            ["basic realm=R??gistre"]
        );
        // What is broken does not hide what is not.
        assert_eq!(parse(&["=", "", "Bearer realm=\"r", basic]), want[..1]);
    }
}
