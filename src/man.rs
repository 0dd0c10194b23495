//! The manual pages of `knarr`, one per command, from the same description as `--help`.
//!
//! They are made by this test, so that the program that is shipped carries no generator: `make man` gives it a directory
//! to keep them in.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use clap::{Command, CommandFactory};

/// By their names, `knarr.8`, `knarr-up.8`, `knarr-image-pull.8`; section 8: commands of administrators.
fn pages() -> BTreeMap<String, String> {
    let mut command = crate::cli::Cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = BTreeMap::new();
    add(command, &mut pages);
    pages
}

fn add(command: Command, pages: &mut BTreeMap<String, String>) {
    for part in command.get_subcommands().cloned() {
        add(part, pages);
    }
    let name = command.get_display_name().unwrap_or("knarr").to_owned();
    let man = clap_mangen::Man::new(command)
        .title(&name)
        .section("8")
        .source(format!("knarr {}", env!("CARGO_PKG_VERSION")))
        .manual("System Manager's Manual");
    let mut text = Vec::new();
    man.render(&mut text).expect("a vector takes all");
    let text = String::from_utf8(text).expect("clap's texts are UTF-8");
    pages.insert(format!("{name}.8"), text);
}

/// Every flag of a command and of those below it that its page lacks.
fn missing(command: &Command, pages: &BTreeMap<String, String>, found: &mut Vec<String>) {
    let file = format!("{}.8", command.get_display_name().unwrap_or("knarr"));
    let Some(page) = pages.get(&file) else {
        return found.push(file);
    };
    // The minus that can be searched for is written with a backslash.
    let page = page.replace("\\-", "-");
    let sections = ["NAME", "SYNOPSIS", "DESCRIPTION"].map(|name| format!("\n.SH {name}\n"));
    for wanted in sections.iter().chain([&"\n.TH ".to_owned()]) {
        if !page.contains(wanted) {
            found.push(format!("{file} {wanted:?}"));
        }
    }
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    for flag in shown.filter_map(|arg| arg.get_long()) {
        if !page.contains(&format!("--{flag}\\fR")) {
            found.push(format!("{file} --{flag}"));
        }
    }
    for part in command.get_subcommands() {
        missing(part, pages, found);
    }
}

#[test]
fn every_command_and_every_flag_has_its_place_in_the_manual() {
    let pages = pages();
    let mut command = crate::cli::Cli::command().disable_help_subcommand(true);
    command.build();
    let mut found = Vec::new();
    missing(&command, &pages, &mut found);
    assert!(found.is_empty(), "{found:?}");
    assert!(
        pages.contains_key("knarr-image-pull.8"),
        "{:?}",
        pages.keys()
    );
    if let Some(directory) = std::env::var_os("KNARR_MAN_DIR").map(PathBuf::from) {
        fs::create_dir_all(&directory).expect("the directory for the pages");
        for (name, text) in &pages {
            fs::write(directory.join(name), text).expect("write a page");
        }
    }
}
