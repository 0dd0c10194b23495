//! Kubernetes quantities: fixed-point numbers with a suffix (`500m`, `1.5Gi`, `1e3`), read, compared, added and written in the
//! canonical form of apimachinery's `resource.Quantity`.
//!
//! The API server, the scheduler and the kubelet all read them; what they make of one must be the same. No crate does this: `kube_quantity`
//! goes through floating point, knows no exponents, does not round up, and has no canonical form.

#![forbid(unsafe_code)]

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

const NANO: i128 = 1_000_000_000;
/// The largest magnitude: larger numbers are capped.
const MAX: i128 = i64::MAX as i128 * NANO;

/// A number, and the family of suffixes in which it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantity {
    /// Billionths.
    nano: i128,
    family: Family,
}

/// Why a text is no quantity, in kube-apiserver's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// It has not the form of one.
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    /// It has the form, but there is no such suffix.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Decimal,
    Binary,
    Exponent,
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let digits_at = text
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .ok_or(ParseError::Format)?;
        let (sign, rest) = text.split_at(digits_at);
        let negative = match sign {
            "" | "+" => false,
            "-" => true,
            _ => return Err(ParseError::Format),
        };
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return Err(ParseError::Format);
        }
        if !suffix
            .chars()
            .all(|c| "eEinumkKMGTP+-".contains(c) || c.is_ascii_digit())
        {
            return Err(ParseError::Format);
        }
        let (family, base, exponent) = scale(suffix).ok_or(ParseError::Suffix)?;
        let mut nano = magnitude(whole, fraction, base, exponent);
        if negative {
            nano = -nano;
        }
        Ok(Self { nano, family })
    }
}

impl Quantity {
    /// The number in billionths, for comparisons.
    pub fn nano(self) -> i128 {
        self.nano
    }

    /// The number in thousandths, rounded away from zero, and capped.
    pub fn milli(self) -> i64 {
        self.in_units_of(NANO / 1000)
    }

    /// The number in whole units, rounded away from zero, and capped.
    pub fn units(self) -> i64 {
        self.in_units_of(NANO)
    }

    fn in_units_of(self, nanos: i128) -> i64 {
        let rest = self.nano % nanos;
        let value = self.nano / nanos + rest.signum();
        i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
    }
}

impl From<i64> for Quantity {
    /// So many whole units, in the decimal family.
    fn from(units: i64) -> Self {
        Self {
            nano: i128::from(units) * NANO,
            family: Family::Decimal,
        }
    }
}

impl Add for Quantity {
    type Output = Self;

    /// The sum, capped, in the family of the first; in that of the second if the first is zero.
    fn add(self, other: Self) -> Self {
        Self {
            nano: (self.nano + other.nano).clamp(-MAX, MAX),
            family: if self.nano == 0 {
                other.family
            } else {
                self.family
            },
        }
    }
}

impl Sub for Quantity {
    type Output = Self;

    /// The difference, capped, in the same family as the sum.
    fn sub(self, other: Self) -> Self {
        self + Self {
            nano: -other.nano,
            ..other
        }
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, and the largest suffix of its family that leaves none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        let whole = self.nano % NANO == 0;
        if self.family == Family::Binary && whole && self.nano.abs() >= 1024 * NANO {
            let (mut value, mut power) = (self.nano / NANO, 0);
            while value % 1024 == 0 && power < 6 {
                value /= 1024;
                power += 1;
            }
            return write!(
                f,
                "{value}{}",
                ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]
            );
        }
        let (mut value, mut thousands) = (self.nano, -3_i32);
        while value % 1000 == 0 && thousands < 6 {
            value /= 1000;
            thousands += 1;
        }
        if self.family == Family::Exponent {
            return match thousands {
                0 => write!(f, "{value}"),
                n => write!(f, "{value}e{}", n * 3),
            };
        }
        let suffix = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][(thousands + 3) as usize];
        write!(f, "{value}{suffix}")
    }
}

fn scale(suffix: &str) -> Option<(Family, i128, i32)> {
    let decimal = |power| Some((Family::Decimal, 10, power));
    let binary = |power| Some((Family::Binary, 2, power));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let power: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            Some((Family::Exponent, 10, power))
        }
    }
}

/// `whole.fraction x base^exponent` in billionths, rounded up and capped.
fn magnitude(whole: &str, fraction: &str, base: i128, exponent: i32) -> i128 {
    let (fraction, beyond) = fraction.split_at(fraction.len().min(20));
    let digits = format!("{}{fraction}", whole.trim_start_matches('0'));
    let digits = digits.trim_start_matches('0');
    // What is finer than a nano of the largest suffix still rounds up.
    let beyond = i128::from(beyond.bytes().any(|digit| digit != b'0'));
    if digits.is_empty() && beyond == 0 {
        return 0;
    }
    let ten = i32::try_from(fraction.len()).expect("at most 20");
    if digits.len() > 36 || exponent > 60 {
        return MAX;
    }
    let number = match digits {
        "" => beyond,
        digits => beyond + digits.parse::<i128>().expect("at most 36 digits fit"),
    };
    let power = 9 - ten + if base == 10 { exponent } else { 0 };
    let binary = if base == 2 { 1_i128 << exponent } else { 1 };
    let scaled = number.checked_mul(binary);
    let result = if power >= 0 {
        let factor = 10_i128.checked_pow(power.unsigned_abs());
        scaled
            .zip(factor)
            .and_then(|(scaled, factor)| scaled.checked_mul(factor))
    } else {
        match (scaled, 10_i128.checked_pow(power.unsigned_abs())) {
            (Some(scaled), Some(divisor)) => {
                Some(scaled / divisor + i128::from(scaled % divisor != 0))
            }
            (Some(_), None) => Some(1),
            (None, _) => None,
        }
    };
    result.map_or(MAX, |value| value.min(MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> Result<String, ParseError> {
        text.parse::<Quantity>()
            .map(|quantity| quantity.to_string())
    }

    #[test]
    fn quantities_take_the_form_that_kubernetes_writes() {
        for (text, expected) in [
            ("1", "1"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("1000Mi", "1000Mi"),
            ("1000000", "1M"),
            ("0.1Mi", "104857600m"),
            ("1e3", "1e3"),
            ("100e1", "1e3"),
            ("1E3", "1e3"),
            ("5E", "5E"),
            ("0.1n", "1n"),
            ("+2", "2"),
            ("-3", "-3"),
            ("0", "0"),
            ("0Mi", "0"),
            ("512Ki", "512Ki"),
            (".5", "500m"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("123456789", "123456789"),
            ("2500m", "2500m"),
            ("100M", "100M"),
            ("1e-3", "1e-3"),
            ("-1.5Gi", "-1536Mi"),
            ("-0.1n", "-1n"),
            ("0.000000000000000000000001", "1n"),
            ("1.0000000000000000000000000", "1"),
            ("1e400", "9223372036854775807"),
            ("12E", "9223372036854775807"),
        ] {
            assert_eq!(canonical(text), Ok(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn numbers_are_rounded_away_from_zero_and_capped() {
        for (text, milli, units) in [
            ("1", 1000, 1),
            ("100m", 100, 1),
            ("0.5", 500, 1),
            ("1.5Gi", 1_610_612_736_000, 1_610_612_736),
            ("64Mi", 67_108_864_000, 67_108_864),
            ("2k", 2_000_000, 2000),
            ("1e3", 1_000_000, 1000),
            ("1u", 1, 1),
            ("1n", 1, 1),
            ("-2", -2000, -2),
            ("-1500m", -1500, -2),
            ("12E", i64::MAX, i64::MAX),
        ] {
            let quantity: Quantity = text.parse().expect(text);
            assert_eq!(
                (quantity.milli(), quantity.units()),
                (milli, units),
                "{text}"
            );
        }
    }

    #[test]
    fn sums_keep_the_family_of_what_was_there_first() {
        for (left, right, sum, difference) in [
            ("1Gi", "512Mi", "1536Mi", "512Mi"),
            ("1Gi", "1G", "2073741824", "73741824"),
            ("1G", "1Gi", "2073741824", "-73741824"),
            ("0", "1Gi", "1Gi", "-1Gi"),
            ("1Gi", "0", "1Gi", "1Gi"),
            ("100m", "900m", "1", "-800m"),
            ("5E", "5E", "9223372036854775807", "0"),
        ] {
            let [left, right]: [Quantity; 2] = [left, right].map(|text| text.parse().expect(text));
            assert_eq!((left + right).to_string(), sum, "{left} + {right}");
            assert_eq!((left - right).to_string(), difference, "{left} - {right}");
        }
        assert_eq!(Quantity::from(2000).to_string(), "2k");
    }

    #[test]
    fn what_is_no_quantity_is_refused_in_kubernetes_words() {
        assert_eq!(canonical("abc"), Err(ParseError::Format));
        assert_eq!(canonical(""), Err(ParseError::Format));
        assert_eq!(canonical("1.2.3"), Err(ParseError::Format));
        assert_eq!(canonical("1 Gi"), Err(ParseError::Format));
        assert_eq!(canonical("."), Err(ParseError::Format));
        assert_eq!(canonical("1Xi"), Err(ParseError::Format));
        assert_eq!(canonical("1mi"), Err(ParseError::Suffix));
    }

    proptest! {
        #[test]
        fn any_text_gives_a_form_that_stays_or_an_error(text in "[-+]?[0-9.]{0,30}[eEinumkKMGTP]{0,2}[-+]?[0-9]{0,3}") {
            if let Ok(first) = canonical(&text) {
                prop_assert_eq!(canonical(&first), Ok(first.clone()), "{}", text);
            }
        }
    }
}
