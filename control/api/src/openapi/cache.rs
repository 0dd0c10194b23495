//! The documents, made once for a table of resources, and kept as they travel: compressed. Those of a table that has been
//! replaced go when the first of the next one is asked for.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::registry::table::Table;

/// One document.
pub struct Document {
    /// Its entity tag.
    pub tag: String,
    packed: Bytes,
}

impl Document {
    fn new(text: &[u8]) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        let packed = encoder.write_all(text).and_then(|()| encoder.finish());
        Self {
            tag: super::etag(text),
            packed: packed.expect("writing to memory cannot fail").into(),
        }
    }

    /// In gzip's format.
    pub fn gzip(&self) -> Bytes {
        self.packed.clone()
    }

    /// As it is.
    pub fn plain(&self) -> Bytes {
        let mut text = Vec::new();
        GzDecoder::new(&*self.packed)
            .read_to_end(&mut text)
            .expect("it was packed here");
        text.into()
    }
}

type Cell = Arc<OnceCell<Option<Document>>>;

/// The documents that were asked for so far.
#[derive(Default)]
pub struct Documents(Mutex<Kept>);

/// Those of one table, by name.
#[derive(Default)]
struct Kept {
    version: u64,
    cells: BTreeMap<String, Cell>,
}

impl Kept {
    /// The place of a document; one of a table that another has replaced meanwhile is kept nowhere.
    fn cell(&mut self, version: u64, name: &str) -> Cell {
        if version > self.version {
            *self = Self {
                version,
                cells: BTreeMap::new(),
            };
        }
        if version < self.version {
            return Cell::default();
        }
        self.cells.entry(name.to_owned()).or_default().clone()
    }
}

/// A document that somebody made, if there is one of the name.
pub struct Made(Cell);

impl Made {
    /// The document.
    pub fn document(&self) -> Option<&Document> {
        self.0.get()?.as_ref()
    }
}

impl Documents {
    /// The document of this name of a table; `make` makes it, off the threads that serve, once however many ask for it. Only names that
    /// there can be may be asked for: each is kept.
    pub async fn get(
        &self,
        table: &Arc<Table>,
        name: &str,
        make: impl FnOnce(&Table) -> Option<Vec<u8>> + Send + 'static,
    ) -> Made {
        let cell = self.0.lock().cell(table.version, name);
        cell.get_or_init(|| async {
            let table = table.clone();
            let made =
                tokio::task::spawn_blocking(move || Some(Document::new(&make(&table)?))).await;
            match made {
                Ok(made) => made,
                // A panic of ours costs this request, as if it had happened here.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        })
        .await;
        Made(cell)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::kinds::Kinds;

    #[tokio::test]
    async fn a_document_is_made_once_and_read_by_all() {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let documents = Documents::default();
        let none = || Kinds {
            resources: Vec::new(),
            schemas: Arc::default(),
        };
        let first = Arc::new(Table::first(none(), Vec::new()));
        let second = Arc::new(first.next(none()));
        let ask = || {
            documents.get(&first, "v2", |_| {
                MADE.fetch_add(1, Ordering::SeqCst);
                Some(b"a document".repeat(100))
            })
        };
        let all = futures::future::join_all((0..8).map(|_| ask())).await;
        assert_eq!(MADE.load(Ordering::SeqCst), 1);
        for made in &all {
            let document = made.document().expect("it was made");
            assert_eq!(*document.plain(), *b"a document".repeat(100));
            assert!(document.gzip().len() < 100);
            assert_eq!(document.tag, crate::openapi::etag(&document.plain()));
        }
        let other = documents.get(&second, "v2", |_| Some(b"another".to_vec()));
        let other = other.await;
        assert_eq!(*other.document().expect("it was made").plain(), *b"another");
        let old = documents
            .get(&first, "v2", |_| Some(b"late".to_vec()))
            .await;
        assert_eq!(*old.document().expect("it was made").plain(), *b"late");
        let again = documents.get(&second, "v2", |_| unreachable!("it is kept"));
        let again = again.await;
        assert_eq!(*again.document().expect("it was made").plain(), *b"another");
    }
}
