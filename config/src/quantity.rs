//! Sizes and durations as people write them: a number, perhaps with a decimal point, and a unit. Pure.

use std::fmt;
use std::time::Duration;

use crate::mistake::Mistake;

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;
pub(crate) const TIB: u64 = 1 << 40;

/// Bytes, shown in the largest unit that divides them, binary ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
        let units = binary.into_iter().chain([(1_000_000_000, "GB"), (1_000_000, "MB")]);
        let unit = units.into_iter().find(|(bytes, _)| self.0 != 0 && self.0.is_multiple_of(*bytes));
        match unit {
            Some((bytes, name)) => write!(f, "{}{name}", self.0 / bytes),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// A duration, shown in the largest unit that divides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(pub Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.0.as_micros();
        let units = [(3_600_000_000, "h"), (60_000_000, "min"), (1_000_000, "s"), (1_000, "ms")];
        match units.iter().find(|(unit, _)| us != 0 && us.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", us / unit),
            None => write!(f, "{us}us"),
        }
    }
}

const SIZE_UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("KiB", KIB),
    ("MiB", MIB),
    ("GiB", GIB),
    ("TiB", TIB),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];
const SIZE_UNIT_NAMES: &str = "B, KiB, MiB, GiB, TiB, kB, MB, GB, TB";

const TIME_UNITS: &[(&str, u64)] =
    &[("us", 1), ("ms", 1_000), ("s", 1_000_000), ("min", 60_000_000), ("h", 3_600_000_000)];
const TIME_UNIT_NAMES: &str = "us, ms, s, min, h";

/// Bytes of a text such as "64GiB", "1.5 GiB" or "4096B".
pub fn size(text: &str) -> Result<u64, Mistake> {
    quantity(text, SIZE_UNITS, SIZE_UNIT_NAMES, "a size like \"64GiB\" of whole bytes", "GiB", "B")
}

/// The duration of a text such as "50ms" or "1.5 s", to the microsecond.
pub fn duration(text: &str) -> Result<Duration, Mistake> {
    let expected = "a duration like \"50ms\" of whole microseconds";
    quantity(text, TIME_UNITS, TIME_UNIT_NAMES, expected, "ms", "s").map(Duration::from_micros)
}

/// Digits, perhaps with a decimal point, then a unit. The result must be a whole number of the smallest unit: what
/// is written is what is meant.
fn quantity(
    text: &str,
    units: &[(&str, u64)],
    names: &'static str,
    expected: &'static str,
    suggest: &str,
    otherwise: &str,
) -> Result<u64, Mistake> {
    let given = text.trim();
    let not_a = || Mistake::NotA { given: given.into(), expected };
    let digits = given.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(given.len());
    let (number, unit) = (&given[..digits], given[digits..].trim_start());
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || (number.contains('.') && fraction.is_empty()) {
        return Err(not_a());
    }
    if unit.is_empty() {
        let suggestion = format!("\"{number}{suggest}\" or \"{number}{otherwise}\"");
        return Err(Mistake::NoUnit { given: given.into(), suggestion });
    }
    let &(_, scale) = units
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(|| Mistake::UnknownUnit { given: given.into(), units: names })?;
    let too_large = |_| Mistake::TooLarge { given: given.into(), most: u64::MAX.to_string() };
    let whole: u64 = whole.parse().map_err(too_large)?;
    let fraction = scaled_fraction(fraction, scale).ok_or_else(not_a)?;
    let total = u128::from(whole) * u128::from(scale) + u128::from(fraction);
    u64::try_from(total).map_err(|_| Mistake::TooLarge { given: given.into(), most: u64::MAX.to_string() })
}

/// `scale` times 0.`digits`, or `None` if that is not whole.
fn scaled_fraction(digits: &str, scale: u64) -> Option<u64> {
    let digits = digits.trim_end_matches('0');
    if digits.is_empty() {
        return Some(0);
    }
    // 2^40 times the first 20 digits fits in 128 bits; longer ones are never whole at these scales.
    let numerator: u64 = digits.get(..digits.len().min(20))?.parse().ok()?;
    let denominator = 10u128.checked_pow(u32::try_from(digits.len()).ok()?)?;
    let product = u128::from(numerator) * u128::from(scale);
    (digits.len() <= 19 && product.is_multiple_of(denominator)).then(|| (product / denominator) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_size_is_what_it_shows(bytes: u64) {
            prop_assert_eq!(size(&Bytes(bytes).to_string()), Ok(bytes));
        }

        #[test]
        fn a_duration_is_what_it_shows(us in 0u64..1 << 60) {
            let value = Duration::from_micros(us);
            prop_assert_eq!(duration(&Seconds(value).to_string()), Ok(value));
        }

        #[test]
        fn a_number_and_a_unit_multiply_or_are_refused(n: u64, unit in 0..SIZE_UNITS.len(), space in 0..3usize) {
            let (name, scale) = SIZE_UNITS[unit];
            let read = size(&format!("{n}{}{name}", " ".repeat(space)));
            match n.checked_mul(scale) {
                Some(bytes) => prop_assert_eq!(read, Ok(bytes)),
                None => prop_assert!(matches!(read, Err(Mistake::TooLarge { .. })), "{read:?}"),
            }
        }

        #[test]
        fn a_decimal_is_exact_or_refused(n in 0u64..1 << 20, thousandths in 0u64..1000) {
            let read = size(&format!("{n}.{thousandths:03}KiB"));
            let total = n * 1000 * KIB + thousandths * KIB;
            if total.is_multiple_of(1000) {
                prop_assert_eq!(read, Ok(total / 1000));
            } else {
                prop_assert!(matches!(read, Err(Mistake::NotA { .. })), "{read:?}");
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}", digits in "[0-9.]{0,40}(B|KiB|TiB|GB)?") {
            let _ = (size(&text), duration(&text), size(&digits));
        }
    }

    #[test]
    fn decimal_units_are_decimal_and_binary_ones_binary() {
        let read = |text| size(text).expect("a size");
        assert_eq!((read("1.5GiB"), read("2 GB"), read("4096B")), (3 << 29, 2_000_000_000, 4096));
        assert_eq!((read("0.5KiB"), read(" 1TiB "), read("1KB")), (512, 1 << 40, 1000));
        assert_eq!(duration("1.5ms"), Ok(Duration::from_micros(1500)));
    }
}
