//! Schedules of cron jobs: five fields, or a word such as `@hourly` (robfig/cron v3, `ParseStandard`).

/// A field of a schedule: its lowest and highest number, and the names that stand for numbers.
struct Field {
    lowest: u32,
    highest: u32,
    names: &'static [&'static str],
}

const MONTHS: &[&str] = &[
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

#[rustfmt::skip] // A table: minute, hour, day of the month, month, day of the week.
const FIELDS: [Field; 5] = [
    Field { lowest: 0, highest: 59, names: &[] },
    Field { lowest: 0, highest: 23, names: &[] },
    Field { lowest: 1, highest: 31, names: &[] },
    Field { lowest: 1, highest: 12, names: MONTHS },
    Field { lowest: 0, highest: 6, names: DAYS },
];

/// The units of a Go duration.
const UNITS: [&str; 8] = ["ns", "us", "µs", "μs", "ms", "s", "m", "h"];

/// Checks a schedule.
///
/// # Errors
///
/// What is wrong with it, in the words of the library that Kubernetes uses.
pub(super) fn check(schedule: &str) -> Result<(), String> {
    if schedule.is_empty() {
        return Err("empty spec string".to_owned());
    }
    let zoned = ["TZ=", "CRON_TZ="]
        .iter()
        .find_map(|prefix| schedule.strip_prefix(prefix));
    let schedule = match zoned {
        None => schedule,
        Some(rest) => {
            let (zone, rest) = rest
                .split_once(' ')
                .ok_or("runtime error: slice bounds out of range [:-1]")?;
            if !zone.is_empty() && super::cronjob::zone(zone).is_none() {
                return Err(format!(
                    "provided bad location {zone}: unknown time zone {zone}"
                ));
            }
            rest.trim()
        }
    };
    if schedule.starts_with('@') {
        return descriptor(schedule);
    }
    let words: Vec<&str> = schedule.split_whitespace().collect();
    if words.len() != FIELDS.len() {
        let (found, words) = (words.len(), words.join(" "));
        return Err(format!(
            "expected exactly 5 fields, found {found}: [{words}]"
        ));
    }
    for (word, field) in words.iter().zip(&FIELDS) {
        for part in word.split(',').filter(|part| !part.is_empty()) {
            field.check(part)?;
        }
    }
    Ok(())
}

fn descriptor(word: &str) -> Result<(), String> {
    match word {
        "@yearly" | "@annually" | "@monthly" | "@weekly" | "@daily" | "@midnight" | "@hourly" => {
            return Ok(());
        }
        _ => {}
    }
    match word.strip_prefix("@every ") {
        Some(time) => duration(time)
            .map_err(|wrong| format!("failed to parse duration {word}: time: {wrong}")),
        None => Err(format!("unrecognized descriptor: {word}")),
    }
}

/// Checks a Go duration, such as `1h30m` or `1.5s`.
fn duration(text: &str) -> Result<(), String> {
    let invalid = || format!("invalid duration {text:?}");
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Ok(());
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let digits = number.bytes().any(|c| c.is_ascii_digit());
        if !digits || number.bytes().filter(|c| *c == b'.').count() > 1 {
            return Err(invalid());
        }
        let end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        if unit.is_empty() {
            return Err(format!("missing unit in duration {text:?}"));
        }
        if !UNITS.contains(&unit) {
            return Err(format!("unknown unit {unit:?} in duration {text:?}"));
        }
        rest = after;
    }
    Ok(())
}

impl Field {
    /// Checks one of a field's parts: `*`, `5`, `mon-fri`, `*/15`, `10-50/20`.
    fn check(&self, part: &str) -> Result<(), String> {
        let slashes: Vec<&str> = part.split('/').collect();
        let hyphens: Vec<&str> = slashes[0].split('-').collect();
        let single = hyphens.len() == 1;
        let (start, mut end) = match hyphens.as_slice() {
            ["*" | "?", ..] => (self.lowest, self.highest),
            [one] => {
                let one = self.number(one)?;
                (one, one)
            }
            [first, last] => (self.number(first)?, self.number(last)?),
            _ => return Err(format!("too many hyphens: {part}")),
        };
        let step = match slashes.as_slice() {
            [_] => 1,
            [_, step] => {
                if single {
                    end = self.highest;
                }
                integer(step)?
            }
            _ => return Err(format!("too many slashes: {part}")),
        };
        let (lowest, highest) = (self.lowest, self.highest);
        if start < lowest {
            return Err(format!(
                "beginning of range ({start}) below minimum ({lowest}): {part}"
            ));
        }
        if end > highest {
            return Err(format!(
                "end of range ({end}) above maximum ({highest}): {part}"
            ));
        }
        if start > end {
            return Err(format!(
                "beginning of range ({start}) beyond end of range ({end}): {part}"
            ));
        }
        if step == 0 {
            return Err(format!("step of range should be a positive number: {part}"));
        }
        Ok(())
    }

    fn number(&self, text: &str) -> Result<u32, String> {
        let name = text.to_lowercase();
        let found = (self.lowest..).zip(self.names).find(|(_, n)| **n == name);
        found.map_or_else(|| integer(text), |(number, _)| Ok(number))
    }
}

fn integer(text: &str) -> Result<u32, String> {
    let wrong = |why: &str| {
        format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: {why}")
    };
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return Err(wrong("invalid syntax"));
    }
    let number: i64 = text.parse().map_err(|_| wrong("value out of range"))?;
    if number < 0 {
        return Err(format!("negative number ({number}) not allowed: {text}"));
    }
    Ok(u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_those_of_the_standard_parser() {
        for good in [
            "* * * * *",
            "*/15 0-6,22 ? jan-mar,DEC Mon-fri",
            "5 4 * * sun",
            "10-50/20 1 1 1 0",
            "@hourly",
            "@every 1h30m",
            "@every 1.5s",
            "TZ=UTC 0 0 * * *",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        #[rustfmt::skip] // A table.
        let rows = [
            ("", "empty spec string"),
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("*/2/3 * * * *", "too many slashes: */2/3"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"),
            ("* * * * 7", "end of range (7) above maximum (6): 7"),
            ("@often", "unrecognized descriptor: @often"),
            ("@every x", "failed to parse duration @every x: time: invalid duration \"x\""),
            ("@every 5", "failed to parse duration @every 5: time: missing unit in duration \"5\""),
            ("@every 5d", "failed to parse duration @every 5d: time: unknown unit \"d\" in duration \"5d\""),
            ("CRON_TZ=No/Where * * * * *", "provided bad location No/Where: unknown time zone No/Where"),
        ];
        for (bad, message) in rows {
            assert_eq!(check(bad), Err(message.to_owned()), "{bad}");
        }
    }
}
