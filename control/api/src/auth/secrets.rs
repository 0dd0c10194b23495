//! Secrets of type `kubernetes.io/service-account-token`: filled, and removed with their account (kube-controller-manager,
//! `tokens_controller.go`).
//!
//! The tokens are signed here, so this task lives beside the key and follows the collections themselves. A token is bound to
//! its secret: it ends with the secret, which ends with the account. It never expires by itself, as people who ask for it in
//! this way expect.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::token::{Grant, Reference};
use crate::registry::collection::{Change, Collection, Cursor};
use crate::registry::delete::DeleteRequest;
use crate::registry::entry::Entry;
use crate::registry::lanes::View;
use crate::registry::meta;
use crate::registry::write::Target;
use crate::resource::Resource;
use crate::server::Inner;
use crate::status::ApiError;
use crate::strategy::Context;

/// The type of the secrets.
pub const TYPE: &str = "kubernetes.io/service-account-token";
const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";
/// How long the tokens are good, in seconds: a hundred years.
const SECONDS: i64 = 100 * 365 * 24 * 3600;
/// Changes taken from a window in one go.
const BATCH: usize = 256;
/// What failed is tried again after this time.
const AGAIN: Duration = Duration::from_secs(1);

/// A kind and where its objects are.
struct Kind {
    resource: Arc<Resource>,
    collection: Arc<Collection>,
}

impl Kind {
    fn find(inner: &Inner, plural: &str) -> Option<Self> {
        let (resource, collection) = inner.registry.find("", "v1", plural)?;
        Some(Self {
            resource,
            collection: collection?,
        })
    }

    fn target(&self, key: &str) -> Target {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        Target {
            resource: self.resource.clone(),
            collection: self.collection.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

/// What is known of the secrets, and what is to be looked at.
#[derive(Default)]
struct Work {
    /// The secrets that name each account (`namespace/name`).
    of_account: BTreeMap<String, BTreeSet<String>>,
    /// The account that each secret names.
    account_of: BTreeMap<String, String>,
    /// Secrets whose state is to be looked at.
    secrets: BTreeSet<String>,
    /// References from accounts to secrets that are gone.
    references: BTreeSet<(String, String)>,
}

impl Work {
    fn is_done(&self) -> bool {
        self.secrets.is_empty() && self.references.is_empty()
    }

    fn secret(&mut self, key: &str, current: Option<&Entry>) {
        let account = current.and_then(account_of);
        if let Some(before) = self.account_of.remove(key) {
            if let Some(others) = self.of_account.get_mut(&before) {
                others.remove(key);
                if others.is_empty() {
                    self.of_account.remove(&before);
                }
            }
            if current.is_none() {
                self.references.insert((before, key.to_owned()));
            }
        }
        self.secrets.remove(key);
        if let Some(account) = account {
            self.account_of.insert(key.to_owned(), account.clone());
            self.of_account
                .entry(account)
                .or_default()
                .insert(key.to_owned());
            self.secrets.insert(key.to_owned());
        }
    }

    fn account(&mut self, key: &str) {
        if let Some(secrets) = self.of_account.get(key) {
            self.secrets.extend(secrets.iter().cloned());
        }
    }
}

/// The account (`namespace/name`) that a secret is for; `None` for one of another type, or on its way out.
fn account_of(entry: &Entry) -> Option<String> {
    let secret = entry.parse();
    let is_ours = secret["type"] == TYPE && !meta::is_terminating(&secret);
    let name = secret["metadata"]["annotations"][NAME].as_str()?;
    is_ours.then(|| format!("{}/{name}", entry.namespace()))
}

/// Keeps the secrets right until `stop` or the end of the server.
pub async fn run(server: Weak<Inner>, stop: CancellationToken) {
    let found = server.upgrade().and_then(|inner| {
        Some((
            Kind::find(&inner, "secrets")?,
            Kind::find(&inner, "serviceaccounts")?,
        ))
    });
    let Some((secrets, accounts)) = found else {
        return;
    };
    let mut work = Work::default();
    let mut of_secrets = start(&mut work, &secrets.collection);
    let (_, mut of_accounts) = accounts.collection.snapshot_and_follow(&View::Whole, "");
    loop {
        read(&secrets.collection, &mut of_secrets, |change| {
            work.secret(key(change), change.current.as_deref());
        })
        .unwrap_or_else(|()| of_secrets = start(&mut work, &secrets.collection));
        // An account matters when it goes or is another one of the same name; what it says does not.
        read(&accounts.collection, &mut of_accounts, |change| {
            let uid = |entry: &Option<Arc<Entry>>| entry.as_ref().map(|entry| entry.uid.clone());
            if uid(&change.current) != uid(&change.previous) {
                work.account(key(change));
            }
        })
        .unwrap_or_else(|()| {
            (_, of_accounts) = accounts.collection.snapshot_and_follow(&View::Whole, "");
            work.secrets.extend(work.account_of.keys().cloned());
        });
        {
            let Some(inner) = server.upgrade() else {
                return;
            };
            sync(&inner, &secrets, &accounts, &mut work).await;
        }
        let again = !work.is_done();
        // Whichever branch wins, the cursors and the work stay as they are.
        tokio::select! {
            () = of_secrets.changed() => {}
            () = of_accounts.changed() => {}
            () = tokio::time::sleep(AGAIN), if again => {}
            () = stop.cancelled() => return,
        }
    }
}

fn key(change: &Change) -> &str {
    let entry = change.current.as_ref().or(change.previous.as_ref());
    entry.map_or("", |entry| &entry.key)
}

/// Looks at every secret once.
fn start(work: &mut Work, secrets: &Collection) -> Cursor {
    let (snapshot, cursor) = secrets.snapshot_and_follow(&View::Whole, "");
    let present: BTreeSet<&str> = snapshot.entries.iter().map(|entry| &*entry.key).collect();
    let gone: Vec<String> = (work.account_of.keys())
        .filter(|key| !present.contains(key.as_str()))
        .cloned()
        .collect();
    for key in gone {
        work.secret(&key, None);
    }
    for entry in &snapshot.entries {
        work.secret(&entry.key, Some(entry));
    }
    cursor
}

/// Reads all changes at a cursor; fails if the window has moved past it.
fn read(
    collection: &Collection,
    cursor: &mut Cursor,
    mut see: impl FnMut(&Change),
) -> Result<(), ()> {
    loop {
        let changes = collection.read(cursor, BATCH).map_err(|_| ())?;
        if changes.is_empty() {
            return Ok(());
        }
        changes.iter().for_each(|change| see(change));
    }
}

/// Does the work; what fails stays to be done.
async fn sync(inner: &Inner, secrets: &Kind, accounts: &Kind, work: &mut Work) {
    for key in std::mem::take(&mut work.secrets) {
        if let Err(error) = sync_secret(inner, &secrets.target(&key), accounts).await {
            tracing::warn!(secret = key, %error, "cannot keep a service account's token");
            // What is invalid stays so until it is changed.
            if error.code != 422 {
                work.secrets.insert(key);
            }
        }
    }
    for (account, secret) in std::mem::take(&mut work.references) {
        if let Err(error) = drop_reference(inner, &accounts.target(&account), &secret).await {
            tracing::warn!(account, %error, "cannot drop the reference to a secret that is gone");
            work.references.insert((account, secret));
        }
    }
}

fn context() -> Context {
    Context::component("system:kube-controller-manager")
}

/// Gone, or changed by somebody else: then there is another change to look at.
fn unless_moved<T>(result: Result<T, ApiError>) -> Result<(), ApiError> {
    match result {
        Err(error) if !matches!(error.code, 404 | 409) => Err(error),
        _ => Ok(()),
    }
}

async fn sync_secret(inner: &Inner, target: &Target, accounts: &Kind) -> Result<(), ApiError> {
    let Some(entry) = target.collection.get(&target.key()) else {
        return Ok(());
    };
    let Some(account_key) = account_of(&entry) else {
        return Ok(());
    };
    let secret = entry.parse();
    let named = secret["metadata"]["annotations"][UID]
        .as_str()
        .unwrap_or_default();
    let account = accounts
        .collection
        .get(&account_key)
        .filter(|account| named.is_empty() || named == &*account.uid);
    let Some(account) = account else {
        let request = DeleteRequest {
            uid: Some(entry.uid.to_string()),
            ..DeleteRequest::default()
        };
        return unless_moved(inner.registry.delete(target, &request, &context()).await);
    };
    if missing(&secret, &inner.ca_cert_pem).is_empty() && !named.is_empty() {
        return Ok(());
    }
    let grant = Grant {
        namespace: target.namespace.clone(),
        account: Reference {
            name: account.name().to_owned(),
            uid: account.uid.to_string(),
        },
        audiences: Vec::new(),
        seconds: SECONDS,
        pod: None,
        secret: Some(Reference {
            name: target.name.clone(),
            uid: entry.uid.to_string(),
        }),
        node: None,
    };
    let (token, _) = inner.tokens.sign(&grant)?;
    let change = |old: &Value| {
        let mut secret = old.clone();
        // Only of the secret that was looked at: another of its name has a token of its own.
        meta::metadata(&mut secret).insert("uid".to_owned(), (&*entry.uid).into());
        for field in missing(old, &inner.ca_cert_pem) {
            let value = match field {
                "ca.crt" => inner.ca_cert_pem.as_str(),
                "namespace" => target.namespace.as_str(),
                _ => token.as_str(),
            };
            secret["data"][field] = STANDARD.encode(value).into();
        }
        secret["metadata"]["annotations"][UID] = (&*account.uid).into();
        Ok(secret)
    };
    let context = context();
    let written = inner.registry.update(target, None, &change, &context);
    unless_moved(written.await)
}

/// What a secret lacks.
fn missing(secret: &Value, ca_certificate: &str) -> Vec<&'static str> {
    let data = |field: &str| secret["data"][field].as_str().unwrap_or_default();
    let mut missing = Vec::new();
    if data("ca.crt") != STANDARD.encode(ca_certificate) {
        missing.push("ca.crt");
    }
    missing.extend(
        ["namespace", "token"]
            .into_iter()
            .filter(|field| data(field).is_empty()),
    );
    missing
}

/// Takes a secret that is gone from the list of its account.
async fn drop_reference(inner: &Inner, target: &Target, secret: &str) -> Result<(), ApiError> {
    let name = secret.split_once('/').map_or(secret, |(_, name)| name);
    let names = |account: &Value| -> bool {
        let list = account["secrets"].as_array();
        list.is_some_and(|list| list.iter().any(|reference| reference["name"] == name))
    };
    let present = target.collection.get(&target.key());
    if !present.is_some_and(|account| names(&account.parse())) {
        return Ok(());
    }
    let change = |old: &Value| {
        let mut account = old.clone();
        if let Some(list) = account["secrets"].as_array_mut() {
            list.retain(|reference| reference["name"] != name);
            if list.is_empty()
                && let Some(fields) = account.as_object_mut()
            {
                fields.remove("secrets");
            }
        }
        Ok(account)
    };
    let context = context();
    let written = inner.registry.update(target, None, &change, &context);
    unless_moved(written.await)
}
