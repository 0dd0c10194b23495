//! Quantities: fixed-point numbers with a suffix, in the canonical form of apimachinery's `resource.Quantity`.

/// What kube-apiserver says of a text that is no quantity.
pub const WRONG_FORMAT: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
const WRONG_SUFFIX: &str = "unable to parse quantity's suffix";
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Decimal,
    Binary,
    Exponent,
}

impl Quantity {
    /// Parses what a manifest says.
    ///
    /// # Errors
    ///
    /// kube-apiserver's words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let digits_at = text
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .ok_or(WRONG_FORMAT)?;
        let (sign, rest) = text.split_at(digits_at);
        let negative = match sign {
            "" | "+" => false,
            "-" => true,
            _ => return Err(WRONG_FORMAT.into()),
        };
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return Err(WRONG_FORMAT.into());
        }
        if !suffix
            .chars()
            .all(|c| "eEinumkKMGTP+-".contains(c) || c.is_ascii_digit())
        {
            return Err(WRONG_FORMAT.into());
        }
        let (family, base, exponent) = scale(suffix).ok_or(WRONG_SUFFIX)?;
        let mut nano = magnitude(whole, fraction, base, exponent);
        if negative {
            nano = -nano;
        }
        Ok(Self { nano, family })
    }

    /// The number in billionths, for comparisons.
    pub fn nano(self) -> i128 {
        self.nano
    }

    /// The number in thousandths, rounded up.
    pub fn milli(self) -> i128 {
        self.nano.div_euclid(1_000_000) + i128::from(self.nano.rem_euclid(1_000_000) != 0)
    }
}

impl std::fmt::Display for Quantity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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

/// The canonical form of a quantity.
///
/// # Errors
///
/// kube-apiserver's words.
pub fn canonical(text: &str) -> Result<String, String> {
    Quantity::parse(text).map(|quantity| quantity.to_string())
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
    let fraction = &fraction[..fraction.len().min(20)];
    let digits = format!("{}{fraction}", whole.trim_start_matches('0'));
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    let ten = i32::try_from(fraction.len()).expect("at most 20");
    if digits.len() > 36 || exponent > 60 {
        return MAX;
    }
    let number: i128 = digits.parse().expect("at most 36 digits fit");
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
        ] {
            assert_eq!(canonical(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused_in_kubernetes_words() {
        assert_eq!(canonical("abc"), Err(WRONG_FORMAT.into()));
        assert_eq!(canonical(""), Err(WRONG_FORMAT.into()));
        assert_eq!(canonical("1.2.3"), Err(WRONG_FORMAT.into()));
        assert_eq!(canonical("1 Gi"), Err(WRONG_FORMAT.into()));
        assert_eq!(canonical("1mi"), Err(WRONG_SUFFIX.into()));
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
