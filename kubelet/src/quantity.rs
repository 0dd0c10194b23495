//! Kubernetes quantities (`500m`, `1Gi`, `1e3`), as far as a node computes with them.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The value in thousandths, rounded up; `None` if the text is no quantity.
///
/// Source: k8s.io/apimachinery, api/resource/quantity.go, the comment on `Quantity`.
pub(crate) fn milli(text: &str) -> Option<i128> {
    let text = text.trim();
    let split = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '+' | '-' | '.')))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (negative, number) = match number.as_bytes().first()? {
        b'-' => (true, &number[1..]),
        b'+' => (false, &number[1..]),
        _ => (false, number),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (base, exponent): (i128, i32) = match suffix {
        "" => (10, 0),
        "n" => (10, -9),
        "u" => (10, -6),
        "m" => (10, -3),
        "k" => (10, 3),
        "M" => (10, 6),
        "G" => (10, 9),
        "T" => (10, 12),
        "P" => (10, 15),
        "E" => (10, 18),
        "Ki" => (1024, 1),
        "Mi" => (1024, 2),
        "Gi" => (1024, 3),
        "Ti" => (1024, 4),
        "Pi" => (1024, 5),
        "Ei" => (1024, 6),
        other => (10, other.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    let mut numerator = digits.checked_mul(1000)?;
    let mut denominator = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let factor = base.checked_pow(exponent.unsigned_abs())?;
    if exponent >= 0 {
        numerator = numerator.checked_mul(factor)?;
    } else {
        denominator = denominator.checked_mul(factor)?;
    }
    let rounded_up = (numerator + denominator - 1) / denominator;
    Some(if negative { -rounded_up } else { rounded_up })
}

/// A quantity in whole units, rounded up; 0 if it cannot be read.
pub(crate) fn units(quantity: &Quantity) -> i64 {
    let value = milli(&quantity.0).unwrap_or(0);
    i64::try_from((value + 999).div_euclid(1000)).unwrap_or(i64::MAX)
}

/// A quantity in thousandths, rounded up; 0 if it cannot be read.
pub(crate) fn millis(quantity: &Quantity) -> i64 {
    i64::try_from(milli(&quantity.0).unwrap_or(0)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_in_every_notation() {
        for (text, expected) in [
            ("1", 1000),
            ("500m", 500),
            ("1.5", 1500),
            ("2k", 2_000_000),
            ("1Ki", 1_024_000),
            ("64Mi", 64 * 1024 * 1024 * 1000),
            ("1e3", 1_000_000),
            ("1u", 1),
            ("-1", -1000),
            (".5", 500),
        ] {
            assert_eq!(milli(text), Some(expected), "{text}");
        }
        for text in ["", "abc", "1Xi", "1.2.3"] {
            assert_eq!(milli(text), None, "{text}");
        }
    }

    #[test]
    fn whole_units_round_up() {
        assert_eq!(units(&Quantity("1500m".into())), 2);
        assert_eq!(millis(&Quantity("0.1".into())), 100);
    }
}
