//! Notes what the program is built from, for `GET /version`: the commit, its time, the compiler.
//!
//! Without a repository (a source archive) the program says so.

use std::process::Command;

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .env("TZ", "UTC")
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if let Some(log) = output("git", &["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    let format = "--date=format-local:%Y-%m-%dT%H:%M:%SZ";
    let commit = output("git", &["log", "-1", "--format=%H %cd", format]);
    let (commit, date) = commit
        .as_deref()
        .and_then(|line| line.split_once(' '))
        .unwrap_or((
            "0000000000000000000000000000000000000000",
            "1970-01-01T00:00:00Z",
        ));
    let state = match output("git", &["status", "--porcelain", "--untracked-files=no"]) {
        None => "archive",
        Some(changes) if changes.is_empty() => "clean",
        Some(_) => "dirty",
    };
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let compiler = output(&rustc, &["--version"]).unwrap_or_else(|| "rustc".to_owned());
    println!("cargo::rustc-env=KNARR_COMMIT={commit}");
    println!("cargo::rustc-env=KNARR_COMMIT_DATE={date}");
    println!("cargo::rustc-env=KNARR_TREE_STATE={state}");
    println!("cargo::rustc-env=KNARR_COMPILER={compiler}");
}
