//! The manual pages, one per verb, from the same description as `--help`.
//!
//! They are made by this test, so that the program that is shipped carries no generator: `make man` gives it a directory
//! to keep them in.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use clap::{Command, CommandFactory};

/// By their names, `knarr-oci.8` and `knarr-oci-<verb>.8`; section 8 as runc's.
fn pages() -> BTreeMap<String, String> {
    let mut command = super::Cli::command().disable_help_subcommand(true);
    command.build();
    let verbs = command.get_subcommands().cloned();
    let all = verbs.chain([command.clone()]);
    all.map(page).collect()
}

fn page(command: Command) -> (String, String) {
    let name = command.get_display_name().unwrap_or("knarr-oci").to_owned();
    let version = format!("knarr-oci {}", env!("CARGO_PKG_VERSION"));
    let man = clap_mangen::Man::new(command)
        .title(&name)
        .section("8")
        .source(version)
        .manual("System Manager's Manual");
    let mut text = Vec::new();
    man.render(&mut text).expect("a vector takes all");
    let text = String::from_utf8(text).expect("clap's texts are UTF-8");
    (format!("{name}.8"), text)
}

#[test]
fn every_verb_and_every_flag_has_its_place_in_the_manual() {
    let pages = pages();
    let mut command = super::Cli::command();
    command.build();
    let mut missing = Vec::new();
    let verbs = command
        .get_subcommands()
        .filter(|verb| verb.get_name() != "help");
    for part in verbs.chain([&command]) {
        let file = format!("{}.8", part.get_display_name().unwrap_or("knarr-oci"));
        let Some(page) = pages.get(&file) else {
            missing.push(file);
            continue;
        };
        // The minus that can be searched for is written with a backslash.
        let page = page.replace("\\-", "-");
        assert!(page.contains("\n.TH "), "{file} has no title:\n{page}");
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION"] {
            assert!(
                page.contains(&format!("\n.SH {section}\n")),
                "{file}: {section}"
            );
        }
        let shown = part.get_arguments().filter(|arg| !arg.is_hide_set());
        let flags = shown.filter_map(|arg| arg.get_long());
        missing.extend(
            flags
                .filter(|flag| !page.contains(&format!("--{flag}\\fR")))
                .map(|flag| format!("{file} --{flag}")),
        );
    }
    assert!(missing.is_empty(), "{missing:?}");
    assert!(pages.len() > 15, "{:?}", pages.keys());
    if let Some(directory) = std::env::var_os("KNARR_MAN_DIR").map(PathBuf::from) {
        fs::create_dir_all(&directory).expect("the directory for the pages");
        for (name, text) in &pages {
            fs::write(directory.join(name), text).expect("write a page");
        }
    }
}
