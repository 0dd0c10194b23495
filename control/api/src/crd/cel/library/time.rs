//! Functions on times and durations.

use jiff::Zoned;
use jiff::tz::TimeZone;

use super::super::eval::{Failure, Outcome};
use super::super::value::Val;

/// Calls a function whose first argument is a time or a duration; nothing for one that is not here.
pub fn call(name: &str, arguments: &[Val]) -> Option<Outcome> {
    match arguments {
        [Val::Duration(nanoseconds)] => duration(name, *nanoseconds),
        [Val::Timestamp(_)] if name == "timestamp" => Some(Ok(arguments[0].clone())),
        [Val::Timestamp(time)] => part(name, &time.to_zoned(TimeZone::UTC)),
        [Val::Timestamp(time), Val::String(zone)] => match zone_of(zone) {
            Ok(zone) => part(name, &time.to_zoned(zone)),
            Err(failure) => Some(Err(failure)),
        },
        _ => None,
    }
}

/// A zone by its offset: `+02:00`, `UTC`.
fn zone_of(text: &str) -> Result<TimeZone, Failure> {
    if matches!(text, "UTC" | "Z" | "") {
        return Ok(TimeZone::UTC);
    }
    let offset = || {
        let (sign, rest) = match text.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, text.strip_prefix('+').unwrap_or(text)),
        };
        let (hours, minutes) = rest.split_once(':')?;
        let hours: i32 = hours.parse().ok().filter(|h| (0..24).contains(h))?;
        let minutes: i32 = minutes.parse().ok().filter(|m| (0..60).contains(m))?;
        jiff::tz::Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok()
    };
    match offset() {
        Some(offset) => Ok(TimeZone::fixed(offset)),
        None => TimeZone::get(text).map_err(|_| format!("unknown time zone {text}").into()),
    }
}

fn part(name: &str, time: &Zoned) -> Option<Outcome> {
    let number: i64 = match name {
        "getFullYear" => time.year().into(),
        // Months and days count from 0, as in JavaScript; `getDate` from 1.
        "getMonth" => i64::from(time.month()) - 1,
        "getDate" => time.day().into(),
        "getDayOfMonth" => i64::from(time.day()) - 1,
        "getDayOfYear" => i64::from(time.day_of_year()) - 1,
        "getDayOfWeek" => time.weekday().to_sunday_zero_offset().into(),
        "getHours" => time.hour().into(),
        "getMinutes" => time.minute().into(),
        "getSeconds" => time.second().into(),
        "getMilliseconds" => time.millisecond().into(),
        _ => return None,
    };
    Some(Ok(Val::Int(number)))
}

fn duration(name: &str, nanoseconds: i64) -> Option<Outcome> {
    let unit = match name {
        "duration" => return Some(Ok(Val::Duration(nanoseconds))),
        "getHours" => 3_600_000_000_000,
        "getMinutes" => 60_000_000_000,
        "getSeconds" => 1_000_000_000,
        "getMilliseconds" => 1_000_000,
        _ => return None,
    };
    Some(Ok(Val::Int(nanoseconds / unit)))
}
