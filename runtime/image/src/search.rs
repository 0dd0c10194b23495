//! From the name of an image to the manifest for this machine, through lists, lists in lists, and entries that do not say what they are for.
//!
//! Only the order is decided here; whoever asks fetches the documents, from a registry or from a file. Source: containerd,
//! `images.Manifest`.

use std::collections::BTreeSet;

use crate::digest::Digest;
use crate::manifest::{Document, Listed, Manifest, ManifestError};

/// The most documents that one image may have: a list of lists could go on for ever.
const MOST: usize = 50;

/// A search under way.
pub(crate) struct Search {
    top: Digest,
    /// What is to be looked at, the next one last.
    to_go: Vec<Listed>,
    /// What was looked at.
    documents: BTreeSet<Digest>,
}

/// What a document turned out to be.
pub(crate) enum Step {
    /// The manifest.
    Found(Manifest),
    /// A manifest whose configuration says whether it is the one: see [`Manifest::fits`].
    Ask(Manifest),
    /// On to the next one.
    Next,
}

impl Search {
    /// Whatever the name leads to is first.
    pub(crate) fn new(top: Digest) -> Self {
        Self {
            top,
            to_go: Vec::new(),
            documents: BTreeSet::new(),
        }
    }

    /// The document to fetch next.
    ///
    /// # Errors
    ///
    /// There is nothing for this machine.
    pub(crate) fn next(&mut self) -> Result<Listed, ManifestError> {
        while let Some(listed) = self.to_go.pop() {
            if !self.documents.contains(&listed.digest) {
                return Ok(listed);
            }
        }
        Err(ManifestError::no_platform(&self.top))
    }

    /// Takes in a document; `platform_known` if the list had it down as fitting, or if there is no other.
    ///
    /// # Errors
    ///
    /// It is none, or there are too many.
    pub(crate) fn look(
        &mut self,
        digest: &Digest,
        text: &[u8],
        platform_known: bool,
    ) -> Result<Step, ManifestError> {
        self.documents.insert(digest.clone());
        match Document::parse(digest, text)? {
            Document::Image(manifest) if platform_known => Ok(Step::Found(manifest)),
            Document::Image(manifest) => Ok(Step::Ask(manifest)),
            Document::List(list) => {
                if self.documents.len() + list.len() + self.to_go.len() > MOST {
                    return Err(ManifestError::TooMany {
                        digest: self.top.clone(),
                        limit: MOST,
                    });
                }
                self.to_go.extend(list.into_iter().rev());
                Ok(Step::Next)
            }
        }
    }

    /// The documents that led to the manifest, itself included.
    pub(crate) fn into_documents(self) -> BTreeSet<Digest> {
        self.documents
    }
}
