//! The constant part of the table in the kernel: whether it is as the skeleton's script made it, and making it.
//!
//! What the kernel makes of the script's text is not known beforehand. So once the script has run, the rules are read and summed up, and a
//! chain without rules carries the sum in its name: `made-from-<script>-<rules>`. Later the rules are read and summed up
//! again. Somebody who flushes the rules leaves the chain, and is found out all the same.

use knarr_network::nfnl::Netfilter;
use knarr_network::table::{Digest, Structure, structure, undisturbed};

use crate::batch::Batch;
use crate::frontend::Family;
use crate::kernel::{KernelError, nft, read_map};
use crate::maps::{Chain, DROP, Lane, REJECT};
use crate::skeleton::{self, Ranges, TABLE};

/// What the names of chains begin with that say what the table was made from.
const MARKER: &str = "made-from-";

/// `NFTA_CHAIN_HOOK`.
const HOOK: u16 = 4;

/// `NF_DROP` and `NFT_GOTO`.
const VERDICT_DROP: i32 = 0;
const VERDICT_GOTO: i32 = -4;

/// The table's chains and rules, if all that does not depend on services is as it should be.
pub(crate) fn intact(
    netfilter: &Netfilter,
    ranges: &Ranges,
) -> Result<Option<Structure>, KernelError> {
    let Some(structure) = read(netfilter)? else {
        return Ok(None);
    };
    let marker = marker(&structure, ranges);
    let whole = structure.chains.contains_key(&marker) && made_chains_are_plain(&structure);
    Ok((whole && has_fixed_elements(netfilter)?).then_some(structure))
}

/// Makes the constant part. Where only rules are missing or wrong, the maps keep their elements and no connection is lost; else the table is
/// made anew, without any services.
pub(crate) fn make(netfilter: &Netfilter, ranges: &Ranges) -> Result<(), KernelError> {
    let maps_are_right = match read(netfilter)? {
        Some(before) => {
            was_made_from(&before, ranges)
                && made_chains_are_plain(&before)
                && has_fixed_elements(netfilter)?
        }
        None => false,
    };
    let made = match maps_are_right.then(|| made_by(netfilter, &skeleton::rules_again(ranges))) {
        Some(Ok(made)) => made,
        // Refused if a map that the rules look into is not there, or is another; or if a chain is hooked in elsewhere.
        Some(Err(KernelError::Skeleton(_))) | None => {
            made_by(netfilter, &skeleton::script(ranges))?
        }
        Some(Err(error)) => return Err(error),
    };
    let made = made.ok_or_else(|| KernelError::Read {
        what: "what was made, because others change the ruleset all the time".to_owned(),
        source: std::io::ErrorKind::Interrupted.into(),
    })?;
    let mut batch = Batch::new();
    for old in made.chains.keys().filter(|name| name.starts_with(MARKER)) {
        batch.remove_chain(old);
    }
    batch.chain(&marker(&made, ranges));
    batch.send(netfilter)
}

/// What the kernel makes of a script; `None` if others come between all the time.
fn made_by(netfilter: &Netfilter, script: &str) -> Result<Option<Structure>, KernelError> {
    let failed = |source| KernelError::Read {
        what: "the generation".to_owned(),
        source,
    };
    // The script is one transaction, the batch another.
    undisturbed(netfilter, 2, failed, || {
        nft(script)?;
        let mut batch = Batch::new();
        for family in [Family::V4, Family::V6] {
            batch.learning_rules(family);
        }
        batch.send(netfilter)?;
        expect(netfilter)
    })
}

fn expect(netfilter: &Netfilter) -> Result<Structure, KernelError> {
    read(netfilter)?.ok_or_else(|| KernelError::Read {
        what: "the table that was just made".to_owned(),
        source: std::io::ErrorKind::NotFound.into(),
    })
}

fn read(netfilter: &Netfilter) -> Result<Option<Structure>, KernelError> {
    structure(netfilter, TABLE).map_err(|source| KernelError::Read {
        what: "chains and rules".to_owned(),
        source,
    })
}

fn script_mark(ranges: &Ranges) -> String {
    let mut digest = Digest::default();
    digest.add(skeleton::script(ranges).as_bytes());
    format!("{MARKER}{:016x}-", digest.0)
}

fn marker(structure: &Structure, ranges: &Ranges) -> String {
    let constant = |name: &str| !name.starts_with(MARKER) && Chain::parse(name).is_none();
    format!("{}{:016x}", script_mark(ranges), structure.digest(constant))
}

fn was_made_from(structure: &Structure, ranges: &Ranges) -> bool {
    let mark = script_mark(ranges);
    structure.chains.keys().any(|name| name.starts_with(&mark))
}

/// Whether the chains that are made when needed are hooked in nowhere, as an element that leads to one requires.
fn made_chains_are_plain(structure: &Structure) -> bool {
    let made = |name: &String| Chain::parse(name).is_some();
    let hooked = |base: &[(u16, Vec<u8>)]| base.iter().any(|(kind, _)| *kind == HOOK);
    structure
        .chains
        .iter()
        .all(|(name, chain)| !made(name) || !hooked(&chain.base))
}

/// Whether connections to frontends without endpoints are refused, and dropped.
fn has_fixed_elements(netfilter: &Netfilter) -> Result<bool, KernelError> {
    for lane in Lane::all() {
        let fixed = read_map(netfilter, &lane.balancers(), |element| {
            let count = u32::from_ne_bytes(*element.value(1)?.first_chunk()?);
            Some(match count {
                REJECT => {
                    element.verdict() == Some(VERDICT_GOTO) && element.chain() == Some("refuse")
                }
                DROP => element.verdict() == Some(VERDICT_DROP),
                _ => return None,
            })
        });
        match fixed {
            Ok(fixed) if fixed == [true, true] => {}
            Ok(_) => return Ok(false),
            Err(KernelError::Read { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
