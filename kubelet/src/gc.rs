//! What is left behind: directories and logs of pods that no longer exist, and images that nobody uses.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::ctx::Ctx;
use crate::runtime::{RuntimeError, chain};
use crate::volumes;

/// How often unused images are looked for.
const IMAGE_INTERVAL: Duration = Duration::from_secs(300);
/// Above this share of the disk, unused images go, …
const HIGH_PERCENT: u64 = 85;
/// … until it is below this one.
const LOW_PERCENT: u64 = 80;
/// The least age of an image that goes.
const MIN_IMAGE_AGE: Duration = Duration::from_secs(120);

/// How often what could not be removed is tried again.
pub(crate) const ORPHANS_INTERVAL: Duration = Duration::from_secs(10);

/// Removes directories and logs of pods that are not `known`, and links to logs that are gone; returns whether none is left.
///
/// Logs go only together with the pod's own directory: others may log to the same place.
pub(crate) fn orphaned_directories(ctx: &Ctx, known: impl Fn(&str) -> bool) -> bool {
    let logs = entries(&ctx.config.log_root.join("pods"));
    let mut all = true;
    for (uid, path) in entries(&ctx.config.node_dir.join("pods")) {
        if known(&uid) {
            continue;
        }
        // The directory goes last: as long as it is there, the logs are found.
        let own = |name: &str| name.rsplit('_').next() == Some(uid.as_str());
        let removed = logs
            .iter()
            .filter(|(name, _)| own(name))
            .try_for_each(|(_, log)| knarr_tree::remove(log));
        if let Err(error) = removed {
            tracing::warn!(error = chain(&error), "remove orphaned logs");
            all = false;
        } else if let Err(error) = volumes::remove_pod_dir(&path) {
            tracing::warn!(error = chain(&error), "remove an orphaned pod directory");
            all = false;
        }
    }
    for (_, path) in entries(&ctx.config.log_root.join("containers")) {
        // A link to a log that is gone.
        if path.is_symlink()
            && !path.exists()
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!(%error, path = %path.display(), "remove an orphaned log link");
        }
    }
    all
}

fn entries(directory: &Path) -> Vec<(String, std::path::PathBuf)> {
    let Ok(list) = fs::read_dir(directory) else {
        return Vec::new();
    };
    list.flatten()
        .map(|e| (e.file_name().to_string_lossy().into_owned(), e.path()))
        .collect()
}

/// Removes unused images whenever the disk gets full.
pub(crate) async fn images(ctx: Arc<Ctx>) {
    let mut ticks = tokio::time::interval(IMAGE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut unused_since: std::collections::HashMap<String, SystemTime> =
        std::collections::HashMap::new();
    loop {
        ticks.tick().await;
        let disk = || used_percent(&ctx.config.node_dir).unwrap_or(0);
        match collect(&ctx, &mut unused_since, disk, SystemTime::now()).await {
            Ok(()) => {}
            Err(error) => tracing::warn!(error = chain(&error), "collect unused images"),
        }
    }
}

/// How full the node's disk is, in percent.
fn used_percent(path: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    let total = stat.blocks();
    (total > 0).then(|| 100 - 100 * stat.blocks_available() / total)
}

async fn collect(
    ctx: &Ctx,
    unused_since: &mut std::collections::HashMap<String, SystemTime>,
    disk: impl Fn() -> u64,
    now: SystemTime,
) -> Result<(), RuntimeError> {
    let used: HashSet<String> = ctx
        .runtime
        .list_containers()
        .await?
        .into_iter()
        .map(|c| c.config.image_id)
        .collect();
    let images = ctx.runtime.list_images().await?;
    unused_since.retain(|id, _| !used.contains(id) && images.iter().any(|i| i.id == *id));
    for image in images.iter().filter(|i| !used.contains(&i.id)) {
        unused_since.entry(image.id.clone()).or_insert(now);
    }
    if disk() < HIGH_PERCENT {
        return Ok(());
    }
    let mut candidates: Vec<(&String, &SystemTime)> = unused_since.iter().collect();
    candidates.sort_by_key(|(_, since)| **since);
    for (id, since) in candidates {
        if disk() < LOW_PERCENT {
            break;
        }
        if now.duration_since(*since).unwrap_or_default() < MIN_IMAGE_AGE {
            continue;
        }
        // One that cannot be removed keeps no other one from making room.
        match ctx.runtime.remove_image(id).await {
            Ok(()) => tracing::info!(image = id, "removed an unused image"),
            Err(error) => {
                tracing::warn!(image = id, error = chain(&error), "remove an unused image");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fake::{FakeApi, FakeRuntime};
    use crate::testing::{self, at, t0};

    #[tokio::test]
    async fn an_image_that_cannot_be_removed_keeps_no_other_from_going() {
        let directory = tempfile::tempdir().expect("a directory");
        let runtime = Arc::new(FakeRuntime::new());
        for id in ["one", "two", "three"] {
            runtime.add_image(id);
        }
        runtime.unremovable.lock().insert("one".to_owned());
        let (ctx, _events) = testing::ctx(directory.path(), runtime.clone(), &FakeApi::new(&[]));
        let mut unused = std::collections::HashMap::new();
        unused.insert("one".to_owned(), t0());
        unused.insert("two".to_owned(), at(1));
        unused.insert("three".to_owned(), at(300));
        let collected = collect(&ctx, &mut unused, || 90, at(301)).await;
        collected.expect("collected");
        // The third one is too young.
        let left: Vec<String> = runtime.image_ids();
        assert_eq!(left, ["one", "three"]);
    }
}
