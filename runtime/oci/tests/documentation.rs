//! `docs/oci.md` lists every flag, and names tests that exist.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

const VERBS: [&str; 19] = [
    "create",
    "start",
    "run",
    "state",
    "kill",
    "delete",
    "exec",
    "list",
    "ps",
    "pause",
    "resume",
    "update",
    "events",
    "spec",
    "features",
    "checkpoint",
    "restore",
    "completion",
    "help",
];

fn text() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/oci.md");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of all functions below a directory.
fn functions(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).expect("directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            functions(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = std::fs::read_to_string(&path).expect("source");
            let found = source.lines().filter_map(|line| {
                let (name, _) = line.trim_start().strip_prefix("fn ")?.split_once('(')?;
                Some(name.to_owned())
            });
            names.extend(found);
        }
    }
}

#[test]
fn every_test_that_the_documentation_names_exists() {
    let mut names = BTreeSet::new();
    for directory in ["src", "tests"] {
        functions(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join(directory),
            &mut names,
        );
    }
    let (mut rows, mut unknown) = (0, Vec::new());
    let text = text();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        rows += 1;
        let last = line
            .trim_end_matches(['|', ' '])
            .rsplit('|')
            .next()
            .expect("a column");
        let named: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "names no test: {line}");
        unknown.extend(
            named
                .into_iter()
                .filter(|name| !names.contains(*name))
                .map(str::to_owned),
        );
    }
    assert!(rows > 100, "{rows} rows");
    assert!(unknown.is_empty(), "no such tests: {unknown:?}");
}

#[test]
fn every_verb_and_flag_is_documented() {
    let text = text();
    let mut missing = Vec::new();
    for verb in [""].into_iter().chain(VERBS) {
        if verb == "help" {
            continue;
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_knarr-oci"));
        if !verb.is_empty() {
            command.arg(verb);
        }
        let output = command.arg("--help").output().expect("run");
        assert!(output.status.success(), "{verb} --help");
        let help = String::from_utf8(output.stdout).expect("UTF-8");
        for line in help.lines() {
            let Some(flag) = line.split_whitespace().find(|word| word.starts_with("--")) else {
                continue;
            };
            let flag: String = flag
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || matches!(c, '-' | '0'..='9'))
                .collect();
            let row = if verb.is_empty() {
                format!("| `{flag}` |")
            } else {
                format!("| `{verb} {flag}` |")
            };
            if flag.len() > 2
                && flag != "--help"
                && line.trim_start().starts_with('-')
                && !text.contains(&row)
            {
                missing.push(row);
            }
        }
        if verb.is_empty() {
            let (_, list) = help.split_once("Commands:").expect("a list of verbs");
            let (list, _) = list.split_once("Options:").expect("then options");
            let verbs = list
                .lines()
                .filter_map(|line| line.split_whitespace().next());
            let unlisted: Vec<&str> = verbs
                .filter(|name| {
                    name.chars().all(|c| c.is_ascii_lowercase()) && !VERBS.contains(name)
                })
                .collect();
            missing.extend(
                unlisted
                    .into_iter()
                    .map(|name| format!("verb or continuation {name}")),
            );
        } else if !text.contains(&format!("| `{verb}` |")) {
            missing.push(format!("| `{verb}` |"));
        }
    }
    assert!(missing.is_empty(), "not in docs/oci.md: {missing:#?}");
}
