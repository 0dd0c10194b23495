//! The indexes of an indexed job in text: `0,3-5,7`, in rising order and below the number of completions.

use std::ops::RangeInclusive;

fn number(text: &str, completions: i64) -> Result<i64, String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let number = digits
        .bytes()
        .all(|c| c.is_ascii_digit())
        .then(|| text.parse::<i64>().ok())
        .flatten()
        .ok_or_else(|| format!("cannot convert string to integer for index: {text:?}"))?;
    if number >= completions {
        return Err(format!("too large index: {text:?}"));
    }
    Ok(number)
}

fn interval(text: &str, completions: i64) -> Result<RangeInclusive<i64>, String> {
    let parts: Vec<&str> = text.split('-').collect();
    match parts.as_slice() {
        [one] => {
            let one = number(one, completions)?;
            Ok(one..=one)
        }
        [first, last] => {
            let (first, last) = (number(first, completions)?, number(last, completions)?);
            if first >= last {
                return Err(format!(
                    "non-increasing order, previous: {first}, current: {last}"
                ));
            }
            Ok(first..=last)
        }
        _ => Err(format!(
            "the fragment {text:?} violates the requirement that an index interval can have at most two parts separated by '-'"
        )),
    }
}

/// How many indexes `text` lists.
///
/// # Errors
///
/// What is wrong with the list, in Kubernetes' words.
pub(super) fn count(text: &str, completions: i64) -> Result<i64, String> {
    let mut total = 0;
    let mut last = None;
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let interval = interval(part, completions)?;
        if let Some(last) = last.filter(|last| last >= interval.start()) {
            let current = interval.start();
            return Err(format!(
                "non-increasing order, previous: {last}, current: {current}"
            ));
        }
        total += interval.end() - interval.start() + 1;
        last = Some(*interval.end());
    }
    Ok(total)
}

/// The first index that two lists share; intervals that cannot be read share none.
pub(super) fn overlap(a: &str, b: &str, completions: i64) -> Option<i64> {
    let read = |text: &str| -> Vec<RangeInclusive<i64>> {
        let parts = text.split(',');
        parts
            .filter_map(|part| interval(part, completions).ok())
            .collect()
    };
    let (a, b) = (read(a), read(b));
    // Both are in rising order: the interval that starts first cannot meet what follows.
    let (mut i, mut j) = (0, 0);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        if x.start() <= y.end() && y.start() <= x.end() {
            return Some(*x.start().max(y.start()));
        }
        if x.start() <= y.start() {
            i += 1;
        } else {
            j += 1;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_rise_and_stay_below_the_completions() {
        for (text, expected) in [
            ("", Ok(0)),
            ("0,3-5,7", Ok(5)),
            ("3,1", Err("non-increasing order, previous: 3, current: 1")),
            ("5-3", Err("non-increasing order, previous: 5, current: 3")),
            (
                "1-2-3",
                Err(
                    "the fragment \"1-2-3\" violates the requirement that an index interval can have at most two parts separated by '-'",
                ),
            ),
            (
                "a",
                Err("cannot convert string to integer for index: \"a\""),
            ),
            (
                "1,",
                Err("cannot convert string to integer for index: \"\""),
            ),
            ("10", Err("too large index: \"10\"")),
            ("8-10", Err("too large index: \"10\"")),
        ] {
            assert_eq!(count(text, 10), expected.map_err(str::to_owned), "{text}");
        }
        assert_eq!(overlap("0-3,8", "4,7-9", 10), Some(8));
        assert_eq!(overlap("0-3", "4,x", 10), None);
    }
}
