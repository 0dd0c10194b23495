//! The kinds whose objects are collected: custom ones come and go while the collector works.
//!
//! What the server has is asked again whenever a definition of custom resources changes, and every [`RESYNC`] besides, as
//! kube-controller-manager does: a kind may come otherwise, or its definition may change before it is served.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::{Shared, Unlisted, discover_until, follow, is_collected};
use crate::context::Context;
use crate::discovery::Resource;
use crate::supervise::supervise;

/// How often the server is asked for its resources when nothing tells of a change.
const RESYNC: Duration = Duration::from_secs(30);
/// How many kinds that went are remembered: definitions may come and go without end.
const GONE: usize = 1024;
/// Changes of definitions that come together are one.
const QUIET: Duration = Duration::from_millis(100);

/// The kinds that there are, and those that there were.
#[derive(Default)]
pub(super) struct Kinds(Mutex<Known>);

#[derive(Default)]
struct Known {
    present: Vec<Arc<Resource>>,
    /// Their objects went with them: an owner of such a kind is asked for, and not found. The last [`GONE`].
    gone: Vec<Arc<Resource>>,
}

impl Kinds {
    /// The resource of a kind that there is or was.
    pub fn find(&self, group: &str, kind: &str) -> Option<Arc<Resource>> {
        let known = self.0.lock();
        let mut all = known.present.iter().chain(&known.gone);
        all.find(|resource| resource.group == group && resource.kind == kind)
            .cloned()
    }

    /// Takes over what the server has now.
    fn set(&self, present: Vec<Arc<Resource>>) {
        let mut known = self.0.lock();
        let Known {
            present: old,
            mut gone,
        } = std::mem::take(&mut *known);
        let same =
            |one: &Resource, other: &Resource| one.group == other.group && one.kind == other.kind;
        gone.extend(old);
        gone.retain(|resource| !present.iter().any(|one| same(one, resource)));
        gone.drain(..gone.len().saturating_sub(GONE));
        *known = Known { present, gone };
    }
}

/// The watches, one for each kind that no cache holds. They end when this is dropped.
pub(super) struct Watches<'a> {
    pub unlisted: Unlisted,
    pub kinds: Arc<Kinds>,
    ctx: &'a Context,
    shared: &'a Arc<Shared>,
    /// Kinds that a cache holds, by group and name.
    covered: &'a HashSet<(String, String)>,
    running: Vec<(Arc<Resource>, AbortOnDropHandle<()>)>,
}

impl<'a> Watches<'a> {
    /// No watches yet.
    pub fn new(
        ctx: &'a Context,
        shared: &'a Arc<Shared>,
        covered: &'a HashSet<(String, String)>,
    ) -> Self {
        Self {
            ctx,
            shared,
            covered,
            unlisted: Unlisted::default(),
            kinds: Arc::default(),
            running: Vec::new(),
        }
    }

    /// Watches these resources and no others. What an object of a kind that is gone owned is looked at again.
    pub async fn set(&mut self, resources: Vec<Arc<Resource>>) {
        let watched = |resource: &&Arc<Resource>| {
            is_collected(resource)
                && !self
                    .covered
                    .contains(&(resource.group.clone(), resource.kind.clone()))
        };
        let wanted: Vec<_> = resources.iter().filter(watched).cloned().collect();
        self.kinds.set(resources);
        let (stay, end): (Vec<_>, Vec<_>) = std::mem::take(&mut self.running)
            .into_iter()
            .partition(|(resource, _)| wanted.contains(resource));
        self.running = stay;
        for (resource, watch) in end {
            self.end(&resource, watch).await;
        }
        for resource in wanted {
            if !self.running.iter().any(|(running, _)| *running == resource) {
                self.start(resource);
            }
        }
    }

    fn start(&mut self, resource: Arc<Resource>) {
        self.unlisted.add(&resource);
        let (ctx, shared, unlisted) =
            (self.ctx.clone(), self.shared.clone(), self.unlisted.clone());
        let of = resource.clone();
        let watch = async move {
            let (health, stop) = (ctx.health.clone(), ctx.stop.clone());
            let watch = || {
                let (client, stop) = (ctx.client.clone(), ctx.stop.clone());
                follow(client, of.clone(), shared.clone(), unlisted.clone(), stop)
            };
            supervise(&name(&of), &health, &stop, watch).await;
        };
        let watch = AbortOnDropHandle::new(tokio::spawn(watch));
        self.running.push((resource, watch));
    }

    async fn end(&self, resource: &Resource, watch: AbortOnDropHandle<()>) {
        watch.abort();
        // Until it has ended it may still observe an object, which then nobody would take out of the graph.
        if let Err(error) = watch.await
            && error.is_panic()
        {
            tracing::error!(%error, kind = resource.kind, "the watch of a kind that is gone panicked");
        }
        self.ctx.health.forget(&name(resource));
        self.unlisted.listed(resource);
        let objects: Vec<_> = self
            .shared
            .graph
            .lock()
            .of_resource(resource)
            .cloned()
            .collect();
        objects.iter().for_each(|uid| self.shared.remove(uid));
    }

    /// Follows what the server has until stopped.
    pub async fn keep_up(&mut self, mut known: Vec<Arc<Resource>>) {
        let (ctx, shared) = (self.ctx, self.shared);
        loop {
            tokio::select! {
                () = ctx.stop.cancelled() => return,
                () = tokio::time::sleep(RESYNC) => {}
                // What comes within the pause is answered by the same question, or else wakes this once more.
                () = shared.definitions.notified() => tokio::time::sleep(QUIET).await,
            }
            let Some(resources) = discover_until(&ctx.client, &ctx.stop).await else {
                return;
            };
            if resources != known {
                known.clone_from(&resources);
                self.set(resources).await;
            }
        }
    }
}

fn name(resource: &Resource) -> String {
    format!("garbage-collector-{}", resource.qualified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(group: &str, version: &str, kind: &str) -> Arc<Resource> {
        Arc::new(Resource {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: kind.to_owned(),
            plural: kind.to_lowercase(),
            namespaced: true,
            verbs: Vec::new(),
        })
    }

    #[test]
    fn a_kind_that_went_is_known_and_one_that_comes_back_counts_anew() {
        let kinds = Kinds::default();
        let version = |kinds: &Kinds| kinds.find("g", "Kind").map(|found| found.version.clone());
        assert_eq!(version(&kinds), None);
        kinds.set(vec![resource("g", "v1", "Kind"), resource("", "v1", "Pod")]);
        kinds.set(vec![resource("", "v1", "Pod")]);
        assert_eq!(version(&kinds).as_deref(), Some("v1"));
        kinds.set(vec![resource("g", "v2", "Kind")]);
        assert_eq!(version(&kinds).as_deref(), Some("v2"));
        assert_eq!(kinds.0.lock().gone, [resource("", "v1", "Pod")]);
    }

    #[test]
    fn kinds_that_come_and_go_without_end_are_forgotten() {
        let kinds = Kinds::default();
        for n in 0..GONE + 2 {
            kinds.set(vec![resource("g", "v1", &format!("Kind{n}"))]);
        }
        let is_known = |n: usize| kinds.find("g", &format!("Kind{n}")).is_some();
        assert_eq!(
            [0, 1, GONE, GONE + 1].map(is_known),
            [false, true, true, true]
        );
        assert_eq!(kinds.0.lock().gone.len(), GONE);
    }
}
