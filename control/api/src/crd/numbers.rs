//! Numbers of JSON, compared and shown as Go does.

use serde_json::{Number, Value};

/// Whether a number has no fraction.
pub fn is_integer(number: &Number) -> bool {
    number.is_i64() || number.is_u64() || number.as_f64().is_some_and(|n| n.fract() == 0.0)
}

/// A number as Go's `%v` shows it.
pub fn go_number(number: &Number) -> String {
    match number.as_f64() {
        Some(value) if !number.is_i64() && value.fract() == 0.0 && value.abs() < 1e21 => {
            format!("{value:.0}")
        }
        _ => number.to_string(),
    }
}

/// Whether two values are equal; `1` and `1.0` are.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => compare(a, b).is_eq(),
        _ => a == b,
    }
}

/// The order of two numbers.
pub fn compare(a: &Number, b: &Number) -> std::cmp::Ordering {
    if let (Some(a), Some(b)) = (a.as_i64(), b.as_i64()) {
        return a.cmp(&b);
    }
    let float = |n: &Number| n.as_f64().unwrap_or(f64::NAN);
    float(a).total_cmp(&float(b))
}

/// Whether a number is a multiple of a unit, as far as floating point tells.
pub fn is_multiple(number: &Number, unit: &Number) -> bool {
    match (number.as_i64(), unit.as_i64()) {
        (_, Some(0)) => true,
        (Some(number), Some(unit)) => number % unit == 0,
        _ => {
            let float = |n: &Number| n.as_f64().unwrap_or_default();
            let quotient = float(number) / float(unit);
            quotient.is_finite() && (quotient - quotient.round()).abs() < 1e-9
        }
    }
}
