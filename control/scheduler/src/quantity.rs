//! Quantities as numbers: whole units or thousandths, rounded up.

/// A quantity in thousandths (`cpu`), rounded up; `None` if the text is not a quantity.
pub(crate) fn milli(text: &str) -> Option<i64> {
    scaled(text, 1000)
}

/// A quantity in whole units (bytes, pieces), rounded up; `None` if the text is not a quantity.
pub(crate) fn units(text: &str) -> Option<i64> {
    scaled(text, 1)
}

/// Numbers are decimal, with a binary or decimal suffix or an exponent. Source: apimachinery, `resource.Quantity`.
fn scaled(text: &str, factor: i128) -> Option<i64> {
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    // Nothing finer than a nano counts.
    let fraction = fraction.get(..9).unwrap_or(fraction);
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (up, down) = suffix_factors(suffix)?;
    let numerator = digits.checked_mul(factor)?.checked_mul(up)?;
    let denominator = 10_i128
        .checked_pow(u32::try_from(fraction.len()).ok()?)?
        .checked_mul(down)?;
    let rounded = numerator.checked_add(denominator - 1)? / denominator;
    let value = i64::try_from(rounded).unwrap_or(i64::MAX);
    Some(if negative { -value } else { value })
}

/// What a suffix multiplies and divides by.
fn suffix_factors(suffix: &str) -> Option<(i128, i128)> {
    let ten = |power: u32| 10_i128.checked_pow(power);
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, ten(9)?),
        "u" => (1, ten(6)?),
        "m" => (1, ten(3)?),
        "k" => (ten(3)?, 1),
        "M" => (ten(6)?, 1),
        "G" => (ten(9)?, 1),
        "T" => (ten(12)?, 1),
        "P" => (ten(15)?, 1),
        "E" => (ten(18)?, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let exponent: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = ten(exponent.unsigned_abs())?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, thousandths, whole) in [
            ("1", Some(1000), Some(1)),
            ("100m", Some(100), Some(1)),
            ("0.5", Some(500), Some(1)),
            ("1.5Gi", Some(1_610_612_736_000), Some(1_610_612_736)),
            ("1e3", Some(1_000_000), Some(1000)),
            ("12E", Some(i64::MAX), Some(i64::MAX)),
            ("64Mi", Some(67_108_864_000), Some(67_108_864)),
            ("1n", Some(1), Some(1)),
            ("-2", Some(-2000), Some(-2)),
            ("", None, None),
            ("1Q", None, None),
            (".", None, None),
        ] {
            assert_eq!((milli(text), units(text)), (thousandths, whole), "{text:?}");
        }
    }
}
