//! The watch cache of one storage prefix: every object's bytes, and a window of recent changes.
//!
//! The feed is the one writer. Readers take the lock only to copy references. A change is encoded once, by the feed;
//! watchers of the whole follow the window with a cursor of their own, so a slow one holds nobody up: when the window has
//! moved past it, it is told that it is too late. Who watches one object, or the pods of one node, has a lane of its own
//! and hears of nothing else: with a thousand nodes, a change of a pod wakes one kubelet.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use imbl::OrdMap;
use knarr_store::{Event, KeyValue, Revision};
use parking_lot::RwLock;
use tokio::sync::watch;

use super::entry::{ChangeType, Entry};
use super::lanes::{Lane, Lanes, View};
use crate::strategy::Strategy;

/// The window keeps at least this many changes …
const WINDOW_MIN: usize = 256;
/// … at most this many …
const WINDOW_MAX: usize = 16_384;
/// … and, above the minimum, at most this many bytes.
const WINDOW_BYTES: usize = 8 << 20;

/// How long the next page of a list may be asked for, as with kube-apiserver, where the store is compacted then …
const KEPT: Duration = Duration::from_secs(300);
/// … for how many lists of a collection at most, the oldest of which go first …
const KEPT_MAX: usize = 16;
/// … and as long as no more than this was written meanwhile, in bytes: a kept state holds what has changed since.
const KEPT_BYTES: u64 = 16 << 20;

/// One change of one object.
#[derive(Debug)]
pub struct Change {
    /// The revision in which it happened.
    pub revision: Revision,
    /// The object now; `None` if it is gone.
    pub current: Option<Arc<Entry>>,
    /// The object before; `None` if it is new.
    pub previous: Option<Arc<Entry>>,
    /// The watch frame for those who see the object before and after.
    pub frame: Bytes,
}

impl Change {
    /// What happened, to those who see the object before and after.
    pub fn change_type(&self) -> ChangeType {
        match (&self.previous, &self.current) {
            (_, None) => ChangeType::Deleted,
            (None, Some(_)) => ChangeType::Added,
            (Some(_), Some(_)) => ChangeType::Modified,
        }
    }

    pub(super) fn concerns(&self, view: &View, indexed: Option<&'static str>) -> bool {
        let mut sides = self.current.iter().chain(&self.previous);
        match view {
            View::Whole => true,
            View::Object(key) => self.key() == &**key,
            View::Field(value) => {
                sides.any(|entry| indexed.is_some_and(|field| entry.field(field) == &**value))
            }
        }
    }

    /// The object's key.
    pub fn key(&self) -> &str {
        self.current
            .as_ref()
            .or(self.previous.as_ref())
            .map_or("", |entry| &entry.key)
    }
}

/// The objects by their keys, in parts that several states of them share: a copy costs nothing.
type Entries = OrdMap<Box<str>, Arc<Entry>>;
/// Those with one value of the indexed field.
type OfField = BTreeMap<Box<str>, Arc<Entry>>;

/// All objects as of one revision. Whoever goes through them holds nobody up.
#[derive(Clone, Debug, Default)]
pub struct Frozen {
    entries: Entries,
    /// The collection's newest change at that time.
    pub newest: Revision,
}

impl Frozen {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Those whose keys start with `scope`, from `start` on, in the order of their keys.
    pub fn range<'a>(
        &'a self,
        scope: &'a str,
        start: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Entry>> {
        range(&self.entries, scope, start).map(|(_, entry)| entry)
    }
}

/// A state that somebody reads in pages.
#[derive(Debug)]
struct Kept {
    revision: Revision,
    since: Instant,
    /// How much had been written then.
    written: u64,
    frozen: Frozen,
}

#[derive(Debug, Default)]
struct State {
    entries: Entries,
    /// The objects by the value of the kind's indexed field, where it has one.
    by_field: HashMap<Box<str>, OfField>,
    /// The states whose next pages may be asked for, oldest first.
    kept: VecDeque<Kept>,
    /// How many bytes all changes had.
    written: u64,
    lanes: Lanes,
    window: VecDeque<Arc<Change>>,
    window_bytes: usize,
    /// The number of the window's first change; each change has one, counted from the start of the process.
    first: u64,
    /// Every change after this revision is in the window.
    floor: Revision,
    /// The revision of the newest change.
    newest: Revision,
}

/// The revision asked for is older than the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooOld {
    /// The oldest revision from which changes are known.
    pub floor: Revision,
}

/// A range of a collection as of one revision.
#[derive(Debug)]
pub struct Snapshot {
    /// The objects, in the order of their keys.
    pub entries: Vec<Arc<Entry>>,
    /// The collection's newest change at that time.
    pub newest: Revision,
}

/// The objects of one storage prefix.
pub struct Collection {
    /// The storage prefix: `pods`, `services/specs`.
    pub prefix: String,
    strategy: Arc<dyn Strategy>,
    state: RwLock<State>,
    /// The field by whose value the objects are found.
    indexed: Option<&'static str>,
    /// The number of the next change.
    next: watch::Sender<u64>,
    /// Whether it shows what the store held at some time.
    filled: AtomicBool,
}

impl Collection {
    /// An empty collection.
    pub fn new(prefix: &str, strategy: Arc<dyn Strategy>) -> Self {
        Self {
            prefix: prefix.to_owned(),
            indexed: strategy.indexed_field(),
            strategy,
            state: RwLock::default(),
            next: watch::Sender::new(0),
            filled: AtomicBool::new(false),
        }
    }

    /// The key in the store of `namespace/name` or `name`.
    pub fn store_key(&self, key: &str) -> String {
        format!("/registry/{}/{key}", self.prefix)
    }

    /// Fills the collection with what the store holds as of `revision`, and has held since `unchanged_since`. Objects that cannot be read are left out, with an
    /// error in the log: one broken value must not take the rest down.
    pub(super) fn load(&self, kvs: &[KeyValue], unchanged_since: Revision, revision: Revision) {
        let mut state = self.state.write();
        state.entries = kvs
            .iter()
            .filter_map(|kv| {
                let key = self.relative(&kv.key)?;
                let (entry, _) = self.entry(key, kv, ChangeType::Added)?;
                Some((entry.key.clone(), entry))
            })
            .collect();
        state.by_field = HashMap::new();
        if let Some(field) = self.indexed {
            let State {
                entries, by_field, ..
            } = &mut *state;
            for entry in entries.values() {
                index(by_field, entry.field(field), entry);
            }
        }
        state.lanes.close();
        // Watchers that are under way notice that the window moved past them, and end.
        state.first += state.window.len() as u64 + 1;
        state.window.clear();
        state.window_bytes = 0;
        state.floor = unchanged_since;
        state.newest = revision;
        let next = state.first;
        drop(state);
        self.filled.store(true, Ordering::Release);
        self.next.send_replace(next);
    }

    /// Lets go of everything, because its kind is served no more: watches end as if they were too old.
    pub(super) fn close(&self) {
        let mut state = self.state.write();
        let gone = (
            std::mem::take(&mut state.entries),
            std::mem::take(&mut state.by_field),
            std::mem::take(&mut state.kept),
        );
        state.lanes.close();
        state.first += state.window.len() as u64 + 1;
        state.window.clear();
        state.window_bytes = 0;
        state.floor = Revision::MAX;
        let next = state.first;
        drop(state);
        drop(gone);
        self.next.send_replace(next);
    }

    /// Whether it shows what the store held at some time.
    pub fn is_filled(&self) -> bool {
        self.filled.load(Ordering::Acquire)
    }

    fn relative<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix("/registry/")?
            .strip_prefix(&*self.prefix)?
            .strip_prefix('/')
    }

    fn entry(&self, key: &str, kv: &KeyValue, change: ChangeType) -> Option<(Arc<Entry>, Bytes)> {
        match Entry::new(key, kv, &*self.strategy, change) {
            Ok((entry, frame)) => Some((Arc::new(entry), frame)),
            Err(error) => {
                tracing::error!(key = kv.key, %error, "a stored object cannot be read");
                None
            }
        }
    }

    /// Takes in the changes of one revision. Watchers learn of them by `announce`.
    pub(super) fn apply(&self, revision: Revision, events: &[Event]) {
        let mut changes = Vec::with_capacity(events.len());
        for event in events {
            let Some(key) = self.relative(event.key()) else {
                continue;
            };
            match event {
                Event::Put { kv, previous } => {
                    let change = if previous.is_some() {
                        ChangeType::Modified
                    } else {
                        ChangeType::Added
                    };
                    if let Some((entry, frame)) = self.entry(key, kv, change) {
                        changes.push((key, Some(entry), frame));
                    }
                }
                Event::Delete { previous, revision } => {
                    let frame =
                        super::entry::frame(ChangeType::Deleted, &previous.value, *revision);
                    changes.push((key, None, frame));
                }
            }
        }
        let mut state = self.state.write();
        for (key, current, frame) in changes {
            let previous = match &current {
                Some(entry) => state.entries.insert(entry.key.clone(), entry.clone()),
                None => state.entries.remove(key),
            };
            if current.is_none() && previous.is_none() {
                continue;
            }
            state.window_bytes += frame.len();
            state.written += frame.len() as u64;
            let change = Arc::new(Change {
                revision,
                current,
                previous,
                frame,
            });
            state.reindex(&change, self.indexed);
            state.window.push_back(change);
        }
        state.newest = revision;
        while state.window.len() > WINDOW_MIN
            && (state.window.len() > WINDOW_MAX || state.window_bytes > WINDOW_BYTES)
        {
            let Some(oldest) = state.window.pop_front() else {
                break;
            };
            state.window_bytes -= oldest.frame.len();
            state.first += 1;
            state.floor = oldest.revision;
        }
        let gone = state.let_go();
        drop(state);
        drop(gone);
    }

    /// Wakes the watchers, after one or many calls of `apply`.
    pub(super) fn announce(&self) {
        let state = self.state.read();
        let next = state.first + state.window.len() as u64;
        drop(state);
        self.next.send_replace(next);
    }

    /// One object, as of now.
    pub fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.state.read().entries.get(key).cloned()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.state.read().entries.len()
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The field by whose value the objects are found, if there is one.
    pub fn indexed(&self) -> Option<&'static str> {
        self.indexed
    }

    /// All objects as of now.
    pub fn freeze(&self) -> Frozen {
        let state = self.state.read();
        Frozen {
            entries: state.entries.clone(),
            newest: state.newest,
        }
    }

    /// All objects as of an earlier revision, if that is the present still, or was kept.
    pub fn frozen_at(&self, at: Revision) -> Option<Frozen> {
        let state = self.state.read();
        let kept = state.kept.iter().rev().find(|kept| kept.revision == at);
        if let Some(kept) = kept {
            return Some(kept.frozen.clone());
        }
        (at >= state.newest).then(|| Frozen {
            entries: state.entries.clone(),
            newest: state.newest,
        })
    }

    /// Keeps a state for a while, from now on, for those who will ask for its next page by this revision.
    pub fn keep(&self, revision: Revision, frozen: &Frozen) {
        let mut state = self.state.write();
        state.kept.retain(|kept| kept.revision != revision);
        let written = state.written;
        state.kept.push_back(Kept {
            revision,
            since: Instant::now(),
            written,
            frozen: frozen.clone(),
        });
        let gone = state.let_go();
        drop(state);
        drop(gone);
    }

    /// Lets go of the states whose time is over, for a collection in which nothing happens any more.
    pub(super) fn sweep(&self) {
        let gone = self.state.write().let_go();
        drop(gone);
    }

    /// The objects whose keys start with `scope`, from `start` on, as of now.
    pub fn snapshot(&self, scope: &str, start: &str) -> Snapshot {
        self.snapshot_of(&View::Whole, scope, start)
    }

    /// The same, of what is in view.
    pub fn snapshot_of(&self, view: &View, scope: &str, start: &str) -> Snapshot {
        match view {
            // Copied outside of the lock.
            View::Whole => {
                let all = self.freeze();
                Snapshot {
                    entries: all.range(scope, start).cloned().collect(),
                    newest: all.newest,
                }
            }
            view => self.state.read().snapshot(view, scope, start),
        }
    }

    /// The same as of an earlier revision: the present, with the changes since taken back.
    ///
    /// # Errors
    ///
    /// [`TooOld`] if the changes since then are no longer known.
    pub fn snapshot_at(&self, scope: &str, start: &str, at: Revision) -> Result<Snapshot, TooOld> {
        let state = self.state.read();
        if at < state.floor {
            return Err(TooOld { floor: state.floor });
        }
        let mut undone: BTreeMap<&str, Option<&Arc<Entry>>> = BTreeMap::new();
        for change in state
            .window
            .iter()
            .rev()
            .take_while(|change| change.revision > at)
        {
            let key = change.key();
            if key.starts_with(scope) && key >= start {
                undone.insert(key, change.previous.as_ref());
            }
        }
        let mut entries = Vec::new();
        let mut undone = undone.into_iter().peekable();
        for (key, entry) in range(&state.entries, scope, start) {
            while let Some((_, was)) = undone.next_if(|(undone, _)| *undone < &**key) {
                entries.extend(was.cloned());
            }
            match undone.next_if(|(undone, _)| *undone == &**key) {
                Some((_, was)) => entries.extend(was.cloned()),
                None => entries.push(entry.clone()),
            }
        }
        entries.extend(undone.filter_map(|(_, was)| was.cloned()));
        Ok(Snapshot {
            entries,
            newest: at,
        })
    }

    /// A cursor at the changes after `revision` of what is in view.
    ///
    /// # Errors
    ///
    /// [`TooOld`] if not all of them are known.
    pub fn follow(&self, view: &View, revision: Revision) -> Result<Cursor, TooOld> {
        let receiver = self.next.subscribe();
        let mut state = self.state.write();
        if revision < state.floor {
            return Err(TooOld { floor: state.floor });
        }
        let behind = state
            .window
            .partition_point(|change| change.revision <= revision);
        Ok(match view {
            View::Whole => Cursor::Window {
                next: state.first + behind as u64,
                changed: receiver,
            },
            view => {
                let missed = (state.window.iter().skip(behind))
                    .filter(|change| change.concerns(view, self.indexed))
                    .cloned()
                    .collect();
                Cursor::Lane(state.lanes.open(view, missed))
            }
        })
    }

    /// The objects in `scope` and in view as of now, and a cursor at everything after.
    pub fn snapshot_and_follow(&self, view: &View, scope: &str) -> (Snapshot, Cursor) {
        let receiver = self.next.subscribe();
        let mut state = self.state.write();
        let snapshot = state.snapshot(view, scope, "");
        let cursor = match view {
            View::Whole => Cursor::Window {
                next: state.first + state.window.len() as u64,
                changed: receiver,
            },
            view => Cursor::Lane(state.lanes.open(view, VecDeque::new())),
        };
        (snapshot, cursor)
    }

    /// Whether there is nothing at the cursor, which is one of all changes ([`View::Whole`]).
    pub fn is_at_end(&self, cursor: &Cursor) -> bool {
        match cursor {
            Cursor::Window { next, .. } => {
                let state = self.state.read();
                *next == state.first + state.window.len() as u64
            }
            Cursor::Lane(_) => false,
        }
    }

    /// The changes at the cursor, which moves behind them; at most `limit`.
    ///
    /// # Errors
    ///
    /// [`TooOld`] if the window has moved past the cursor.
    pub fn read(&self, cursor: &mut Cursor, limit: usize) -> Result<Vec<Arc<Change>>, TooOld> {
        let (next, state) = match cursor {
            Cursor::Window { next, .. } => (next, self.state.read()),
            Cursor::Lane(lane) => {
                return lane.read(limit).ok_or_else(|| TooOld {
                    floor: self.state.read().floor,
                });
            }
        };
        let Some(offset) = next.checked_sub(state.first) else {
            return Err(TooOld { floor: state.floor });
        };
        let changes: Vec<_> = state
            .window
            .iter()
            .skip(offset as usize)
            .take(limit)
            .cloned()
            .collect();
        *next += changes.len() as u64;
        Ok(changes)
    }
}

impl State {
    /// Forgets the states that are kept too long or cost too much; they are large, and dropped once nobody waits for the lock.
    #[must_use]
    fn let_go(&mut self) -> Vec<Kept> {
        let mut gone = Vec::new();
        while let Some(oldest) = self.kept.front()
            && (self.kept.len() > KEPT_MAX
                || self.written - oldest.written > KEPT_BYTES
                || oldest.since.elapsed() > KEPT)
        {
            gone.extend(self.kept.pop_front());
        }
        gone
    }

    fn snapshot(&self, view: &View, scope: &str, start: &str) -> Snapshot {
        let mut entries = Vec::new();
        match view {
            View::Whole => {
                entries.extend(range(&self.entries, scope, start).map(|(_, entry)| entry.clone()));
            }
            View::Object(key) => entries.extend(
                (self.entries.get(key))
                    .filter(|entry| entry.key.starts_with(scope) && *entry.key >= *start)
                    .cloned(),
            ),
            View::Field(value) => {
                let of_value = self.by_field.get(value).into_iter();
                entries.extend(
                    of_value
                        .flat_map(|entries| range_of_field(entries, scope, start))
                        .cloned(),
                );
            }
        }
        Snapshot {
            entries,
            newest: self.newest,
        }
    }

    /// Brings the index in line with a change, and tells the lanes that it concerns.
    fn reindex(&mut self, change: &Arc<Change>, indexed: Option<&'static str>) {
        let value = |entry: &'_ Option<Arc<Entry>>| -> Option<Box<str>> {
            Some(entry.as_ref()?.field(indexed?).into())
        };
        let (was, is) = (value(&change.previous), value(&change.current));
        if let Some(was) = &was
            && was != &is.clone().unwrap_or_default()
            && let Some(entries) = self.by_field.get_mut(was)
        {
            entries.remove(change.key());
            if entries.is_empty() {
                self.by_field.remove(was);
            }
        }
        if let (Some(is), Some(entry)) = (&is, &change.current) {
            index(&mut self.by_field, is, entry);
        }
        let key: Box<str> = change.key().into();
        self.lanes.tell(&View::Object(key), change);
        if let Some(was) = &was {
            self.lanes.tell(&View::Field(was.clone()), change);
        }
        if is != was
            && let Some(is) = is
        {
            self.lanes.tell(&View::Field(is), change);
        }
    }
}

/// Objects without a value are many or few, but nobody asks for them often: they are found by looking at all.
fn index(by_field: &mut HashMap<Box<str>, OfField>, value: &str, entry: &Arc<Entry>) {
    if value.is_empty() {
        return;
    }
    let of_value = by_field.entry(value.into()).or_default();
    of_value.insert(entry.key.clone(), entry.clone());
}

/// Where a watcher stands in a collection's changes.
#[derive(Debug)]
pub enum Cursor {
    /// In the window of all changes.
    Window {
        /// The number of the next change.
        next: u64,
        /// The number of the one that will come next.
        changed: watch::Receiver<u64>,
    },
    /// In a lane with changes of few objects.
    Lane(Lane),
}

impl Cursor {
    /// Waits until there is a change at the cursor, or the window has moved. Losing the wait loses nothing.
    pub async fn changed(&mut self) {
        let (next, changed) = match self {
            Self::Window { next, changed } => (*next, changed),
            Self::Lane(lane) => return lane.changed().await,
        };
        if changed.wait_for(|newest| *newest > next).await.is_err() {
            // The collection is gone (a resource was removed): nothing will ever change.
            std::future::pending::<()>().await;
        }
    }
}

fn range<'a>(
    entries: &'a Entries,
    scope: &'a str,
    start: &'a str,
) -> impl Iterator<Item = (&'a Box<str>, &'a Arc<Entry>)> {
    let from = if start > scope { start } else { scope };
    entries
        .range::<_, str>((Bound::Included(from), Bound::Unbounded))
        .take_while(move |(key, _)| key.starts_with(scope))
}

fn range_of_field<'a>(
    entries: &'a OfField,
    scope: &'a str,
    start: &'a str,
) -> impl Iterator<Item = &'a Arc<Entry>> {
    let from = if start > scope { start } else { scope };
    entries
        .range::<str, _>((Bound::Included(from), Bound::Unbounded))
        .take_while(move |(key, _)| key.starts_with(scope))
        .map(|(_, entry)| entry)
}
