//! `knarr image`: the images of this machine. The store is a directory that several processes may use at once, so these
//! commands need no running `knarr`.

use std::path::Path;
use std::str::FromStr;

use anyhow::Context;
use knarr_image::{Image, ImageStore, Reference, Removed, StoreConfig};

use crate::cli::{Credentials, ImageCommand, Run};
use crate::data_dir;
use crate::login;

/// Executes one of the commands.
///
/// # Errors
///
/// In the words of the command.
pub async fn execute(command: ImageCommand) -> anyhow::Result<()> {
    match command {
        ImageCommand::Import { from, run } => import(&open(run)?, &from),
        ImageCommand::Pull {
            reference,
            credentials,
            run,
        } => pull(&open(run)?, &reference, &credentials).await,
        ImageCommand::Ls { run } => list(&open(run)?),
        ImageCommand::Rm { images, run } => remove(&open(run)?, &images),
    }
}

fn open(run: Run) -> anyhow::Result<ImageStore> {
    let config = crate::load(run)?;
    data_dir::close(&config.data_dir, &["images"])?;
    Ok(ImageStore::open(StoreConfig::new(
        config.data_dir.join("images"),
    ))?)
}

fn import(store: &ImageStore, from: &str) -> anyhow::Result<()> {
    let images = if from == "-" {
        store.import(std::io::stdin().lock(), None)
    } else {
        store.import_path(Path::new(from), None)
    };
    for image in images.with_context(|| format!("import {from}"))? {
        print_names(&image);
    }
    Ok(())
}

async fn pull(store: &ImageStore, reference: &str, given: &Credentials) -> anyhow::Result<()> {
    let reference = Reference::from_str(reference)?;
    let auths = login::find(given, &reference)?;
    let image = store
        .pull_with_any(&reference, &auths)
        .await
        .with_context(|| format!("pull {}", reference.name()))?;
    print_names(&image);
    Ok(())
}

fn print_names(image: &Image) {
    if image.tags.is_empty() {
        println!("{}", image.id);
    }
    for tag in &image.tags {
        println!("{tag}");
    }
}

fn list(store: &ImageStore) -> anyhow::Result<()> {
    let mut rows = vec![["IMAGE".to_owned(), "ID".to_owned(), "SIZE".to_owned()]];
    for image in store.list()? {
        let id = image.id.to_string();
        let short = id
            .trim_start_matches("sha256:")
            .chars()
            .take(12)
            .collect::<String>();
        let names = if image.tags.is_empty() {
            image.digests.clone()
        } else {
            image.tags.clone()
        };
        let names = if names.is_empty() {
            vec!["<none>".to_owned()]
        } else {
            names
        };
        rows.extend(
            names
                .into_iter()
                .map(|name| [name, short.clone(), size(image.size)]),
        );
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let (name, id) = (width(0), width(1));
    for [a, b, c] in &rows {
        println!("{a:name$}   {b:id$}   {c}");
    }
    Ok(())
}

/// As people read it: `4.2 MB`.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" {
                format!("{bytes} B")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

fn remove(store: &ImageStore, images: &[String]) -> anyhow::Result<()> {
    for image in images {
        match store.remove(image)? {
            Removed::Untagged(name) => println!("untagged {name}"),
            Removed::Deleted(id) => println!("deleted {id}"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(999), "999 B");
        assert_eq!(size(4_200_000), "4.2 MB");
        assert_eq!(size(3_000_000_000_000), "3.0 TB");
    }
}
