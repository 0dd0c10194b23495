//! Device rules: text for v1, a BPF program for v2.

use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::CgroupError;
use crate::sys;

/// What every container may use: making any node, the default devices, and terminals (runtime-spec, config-linux.md,
/// "Default Devices", and what runc adds to it).
pub(super) const DEFAULT_RULES: [&str; 11] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

/// One rule in the words of v1's `devices.allow` and `devices.deny`.
pub(super) fn v1_rule(rule: &LinuxDeviceCgroup) -> String {
    let kind = match rule.typ().unwrap_or_default() {
        LinuxDeviceType::B => 'b',
        LinuxDeviceType::C | LinuxDeviceType::U => 'c',
        _ => 'a',
    };
    let number = |number: Option<i64>| match number {
        Some(number) if number >= 0 => number.to_string(),
        _ => "*".into(),
    };
    // Other letters have no meaning, and the kernel refuses them.
    let known = |letter: &char| ACCESS.iter().any(|(name, _)| name == letter);
    let access = rule.access().as_deref().unwrap_or_default();
    let access: String = match access.is_empty() {
        true => "rwm".to_owned(),
        false => access.chars().filter(known).collect(),
    };
    format!(
        "{kind} {}:{} {access}",
        number(rule.major()),
        number(rule.minor())
    )
}

/// `bpf_cgroup_dev_ctx` packs the kind into the low, the access into the high half of its first word.
const KIND_BLOCK: u32 = 1;
const KIND_CHAR: u32 = 2;
const ACCESS: [(char, u32); 3] = [('m', 1), ('r', 2), ('w', 4)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

impl Rule {
    /// `None` for a number that no device can have (it must not come to mean all devices): such a rule is about nothing.
    fn parse(text: &str, allow: bool) -> Option<Self> {
        let mut fields = text.split(' ');
        let kind = match fields.next()? {
            "b" => Some(KIND_BLOCK),
            "c" => Some(KIND_CHAR),
            _ => None,
        };
        let (major, minor) = fields.next()?.split_once(':')?;
        let number = |text: &str| match text {
            "*" => Some(None),
            digits => digits.parse().ok().map(Some),
        };
        let access = fields.next()?;
        let access = ACCESS
            .iter()
            .filter(|(name, _)| access.contains(*name))
            .fold(0, |all, (_, bit)| all | bit);
        Some(Self {
            allow,
            kind,
            major: number(major)?,
            minor: number(minor)?,
            access,
        })
    }
}

/// Attaches the rules, followed by the defaults, to a v2 group.
///
/// Programs on a group only ever restrict together, so this is done once for a group; runc replaces on update, we refuse
/// to loosen: a second program makes it stricter.
pub(super) fn install(directory: &Path, rules: &[LinuxDeviceCgroup]) -> Result<(), CgroupError> {
    let failed = |source| CgroupError::DeviceProgram { source };
    let program = sys::bpf_load_device_program(&program(rules)).map_err(failed)?;
    let group = std::fs::File::open(directory).map_err(failed)?;
    sys::bpf_attach_device_program(
        std::os::fd::AsFd::as_fd(&group),
        std::os::fd::AsFd::as_fd(&program),
    )
    .map_err(failed)
}

/// The rules, followed by the defaults, as a program.
pub(super) fn program(rules: &[LinuxDeviceCgroup]) -> Vec<[u8; 8]> {
    let rules: Vec<Rule> = rules
        .iter()
        .filter_map(|rule| Rule::parse(&v1_rule(rule), rule.allow()))
        .chain(
            DEFAULT_RULES
                .iter()
                .filter_map(|rule| Rule::parse(rule, true)),
        )
        .collect();
    compile(&rules)
}

/// One eBPF instruction in the kernel's layout (`struct bpf_insn`).
fn instruction(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[0] = code;
    bytes[1] = dst | src << 4;
    bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
    bytes[4..8].copy_from_slice(&immediate.to_ne_bytes());
    bytes
}

/// The last rule that speaks about an access decides, so they are tried backwards; nothing matching means yes, as on v1.
///
/// r2: kind, r3: access wanted, r4: major, r5: minor. An allowing rule must cover all that is wanted, a denying one any.
fn compile(rules: &[Rule]) -> Vec<[u8; 8]> {
    const LOAD_WORD: u8 = 0x61;
    const AND: u8 = 0x54;
    const MOVE: u8 = 0xbc;
    const MOVE_NUMBER: u8 = 0xb4;
    const SHIFT_RIGHT: u8 = 0x74;
    const JUMP_NOT_EQUAL: u8 = 0x56;
    const JUMP_EQUAL: u8 = 0x16;
    const EXIT: u8 = 0x95;
    let mut program = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(LOAD_WORD, 3, 1, 0, 0),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        // Each test that fails jumps over the rest of this rule: the distance is known once the rule is complete.
        let mut body: Vec<([u8; 8], Option<u8>)> = Vec::new();
        let mut skip_unless = |register: u8, value: u32| {
            body.push((
                instruction(JUMP_NOT_EQUAL, register, 0, 0, value as i32),
                Some(JUMP_NOT_EQUAL),
            ));
        };
        rule.kind.into_iter().for_each(|kind| skip_unless(2, kind));
        rule.major
            .into_iter()
            .for_each(|major| skip_unless(4, major));
        rule.minor
            .into_iter()
            .for_each(|minor| skip_unless(5, minor));
        if rule.access != 7 {
            body.push((instruction(MOVE, 1, 3, 0, 0), None));
            if rule.allow {
                // Anything wanted outside the rule's access: not this rule.
                body.push((instruction(AND, 1, 0, 0, (7 & !rule.access) as i32), None));
                body.push((
                    instruction(JUMP_NOT_EQUAL, 1, 0, 0, 0),
                    Some(JUMP_NOT_EQUAL),
                ));
            } else {
                body.push((instruction(AND, 1, 0, 0, rule.access as i32), None));
                body.push((instruction(JUMP_EQUAL, 1, 0, 0, 0), Some(JUMP_EQUAL)));
            }
        }
        body.push((
            instruction(MOVE_NUMBER, 0, 0, 0, i32::from(rule.allow)),
            None,
        ));
        body.push((instruction(EXIT, 0, 0, 0, 0), None));
        let length = body.len();
        let unconditional = body.iter().all(|(_, jump)| jump.is_none());
        for (index, (mut bytes, jump)) in body.into_iter().enumerate() {
            if jump.is_some() {
                let distance = (length - index - 1) as i16;
                bytes[2..4].copy_from_slice(&distance.to_ne_bytes());
            }
            program.push(bytes);
        }
        // The verifier refuses instructions that nothing reaches ("unreachable insn", EINVAL): a rule about everything is the end.
        if unconditional {
            return program;
        }
    }
    program.push(instruction(MOVE_NUMBER, 0, 0, 0, 1));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would, for the few instructions that [`compile`] uses.
    fn decide(program: &[[u8; 8]], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [kind | access << 16, major, minor];
        let mut registers = [0u32; 6];
        let mut at = 0usize;
        loop {
            let [code, regs, o0, o1, i0, i1, i2, i3] = program[at];
            let (dst, src) = (usize::from(regs & 15), usize::from(regs >> 4));
            let offset = usize::try_from(i16::from_ne_bytes([o0, o1])).unwrap();
            let number = u32::from_ne_bytes([i0, i1, i2, i3]);
            at += 1;
            match code {
                0x61 => registers[dst] = context[offset / 4],
                0x54 => registers[dst] &= number,
                0x74 => registers[dst] >>= number,
                0xbc => registers[dst] = registers[src],
                0xb4 => registers[dst] = number,
                0x56 if registers[dst] != number => at += offset,
                0x16 if registers[dst] == number => at += offset,
                0x56 | 0x16 => {}
                0x95 => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn a_number_that_no_device_has_does_not_mean_all_devices() {
        assert_eq!(Rule::parse("c 4294967296:1 rwm", true), None);
        let any = Rule::parse("c *:1 rwm", true).unwrap();
        assert_eq!((any.major, any.minor), (None, Some(1)));
    }

    #[test]
    fn the_last_rule_that_speaks_about_an_access_decides() {
        let rules: Vec<Rule> = [
            ("a *:* rwm", false),
            ("c 1:3 rwm", true),
            ("c 10:* r", true),
            ("b 8:0 w", false),
        ]
        .iter()
        .map(|(text, allow)| Rule::parse(text, *allow).unwrap())
        .collect();
        let program = compile(&rules);
        let (make, read, write) = (1, 2, 4);
        assert!(decide(&program, KIND_CHAR, read | write, 1, 3));
        assert!(decide(&program, KIND_CHAR, read, 10, 200));
        assert!(!decide(&program, KIND_CHAR, read | write, 10, 200));
        assert!(!decide(&program, KIND_CHAR, make, 1, 4));
        assert!(!decide(&program, KIND_BLOCK, read | write, 8, 0));
        assert!(!decide(&program, KIND_BLOCK, read, 1, 3));
        assert!(decide(&compile(&[]), KIND_BLOCK, read, 8, 0));
        // Nothing follows the rule about everything: the kernel's verifier would refuse it.
        let everything = compile(&rules[..1]);
        assert_eq!(everything.len(), 8);
        assert!(!decide(&everything, KIND_BLOCK, read, 8, 0));
    }
}
