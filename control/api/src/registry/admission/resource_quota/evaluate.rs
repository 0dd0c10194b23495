//! Whether what an object uses still fits a quota, and what all objects of a namespace use of it.

use jiff::Timestamp;
use knarr_quantity::Quantity;
use serde_json::Value;

use super::measure::Measure;
use super::scope::covers;
use crate::registry::admission::amounts::{self, Amounts};
use crate::registry::meta;

/// What is to be charged to quotas.
pub struct Charge<'a> {
    /// How the object is measured.
    pub measure: &'a Measure,
    /// The object as it is to be.
    pub object: &'a Value,
    /// What is there; none for a creation.
    pub old: Option<&'a Value>,
    /// When pods that should have gone are counted no more.
    pub now: Timestamp,
    /// Whether it has happened already and is only recorded, whatever the bounds.
    pub may_exceed: bool,
}

/// What `status.used` of a quota becomes; none if it stays as it is.
///
/// # Errors
///
/// Why the quota forbids it.
pub fn evaluate(quota: &Value, charge: &Charge<'_>) -> Result<Option<Amounts>, String> {
    let Charge {
        measure, object, ..
    } = charge;
    let (name, status) = (meta::text(quota, "name"), &quota["status"]);
    let (hard, mut used) = (
        amounts::read(&status["hard"]),
        amounts::read(&status["used"]),
    );
    let bounded: Vec<&str> = hard
        .keys()
        .map(String::as_str)
        .filter(|name| measure.measures(name))
        .collect();
    if bounded.is_empty() || !covers(quota, measure, object) {
        return Ok(None);
    }
    if let Some(lacks) = measure.lacks(object, &bounded) {
        return Err(format!("failed quota: {name}: {lacks}"));
    }
    if !bounded.iter().all(|name| used.contains_key(*name)) {
        let bounded = bounded.join(",");
        return Err(format!(
            "status unknown for quota: {name}, resources: {bounded}"
        ));
    }
    let mut requested = measure.usage(object, charge.now);
    let negative: Vec<&str> = requested
        .iter()
        .filter(|(_, amount)| amount.nano() < 0)
        .map(|(name, _)| name.as_str())
        .collect();
    if !negative.is_empty() {
        let negative = negative.join(",");
        return Err(format!(
            "quota usage is negative for resource(s): {negative}"
        ));
    }
    if let Some(old) = charge.old.filter(|old| covers(quota, measure, old)) {
        let before = measure.usage(old, charge.now);
        for (name, amount) in &mut requested {
            let had = before.get(name).copied();
            *amount = *amount - had.unwrap_or(Quantity::from(0));
        }
    }
    // What becomes less is given back by the quota controller.
    requested.retain(|name, amount| amount.nano() > 0 && hard.contains_key(name));
    if requested.is_empty() {
        return Ok(None);
    }
    let before = used.clone();
    amounts::add(&mut used, &requested);
    let exceeds = |name: &String| used[name].nano() > hard[name].nano();
    let exceeded: Vec<&String> = requested.keys().filter(|name| exceeds(name)).collect();
    if !exceeded.is_empty() && !charge.may_exceed {
        let of = |amounts: &Amounts| {
            let mut amounts = amounts.clone();
            amounts.retain(|name, _| exceeded.contains(&name));
            amounts::print(&amounts)
        };
        return Err(format!(
            "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
            of(&requested),
            of(&before),
            of(&hard)
        ));
    }
    Ok(Some(used))
}

/// What objects of one kind use of what a quota bounds; zero where they use nothing.
pub fn usage<'a>(
    quota: &Value,
    measure: &Measure,
    objects: impl IntoIterator<Item = &'a Value>,
    now: Timestamp,
) -> Amounts {
    let mut used: Amounts = amounts::read(&quota["spec"]["hard"])
        .into_keys()
        .filter(|name| measure.measures(name))
        .map(|name| (name, Quantity::from(0)))
        .collect();
    for object in objects {
        if covers(quota, measure, object) {
            let mut own = measure.usage(object, now);
            own.retain(|name, _| used.contains_key(name));
            amounts::add(&mut used, &own);
        }
    }
    used
}
