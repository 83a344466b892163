//! Bytes a day, as a budget is written: "68TB/day". Pure.

use crate::mistake::Mistake;
use crate::quantity::{Bytes, size};
use crate::units::{Described, Raw, Unit};

const PER_DAY: &str = "/day";
const UNLIMITED: &str = "unlimited";
const EXPECTED: &str = "bytes a day like \"68TB/day\", or \"unlimited\"";
const LEAST: u64 = 1_000_000_000;
const MOST: u64 = 1_000_000_000_000_000_000;

/// Bytes a day, or no bound at all.
pub struct BytesADay;

/// In the largest decimal unit that divides it: that is how drives are sold.
fn shown(bytes: u64) -> String {
    let units = [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB")];
    match units.iter().find(|(unit, _)| bytes != 0 && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}{PER_DAY}", bytes / unit),
        None => format!("{}{PER_DAY}", Bytes(bytes)),
    }
}

impl Described for BytesADay {
    fn hint(&self) -> &'static str {
        "SIZE/day"
    }
    fn bounds(&self) -> String {
        format!("{} to {}, or {UNLIMITED:?}", shown(LEAST), shown(MOST))
    }
}

impl Unit for BytesADay {
    type Value = Option<u64>;
    fn read(&self, raw: &Raw) -> Result<Self::Value, Mistake> {
        let text = match raw {
            Raw::Integer(n) => n.to_string(),
            // A line of its own for each error: whatever stands between its words.
            Raw::Word(text) | Raw::Text(text) => text.split_whitespace().collect::<Vec<_>>().join(" "),
            other => return Err(Mistake::WrongType { expected: EXPECTED, found: other.kind() }),
        };
        if text == UNLIMITED {
            return Ok(None);
        }
        let given = || text.clone();
        let Some((amount, unit)) = text.split_once('/') else {
            return match size(&text) {
                Ok(_) => Err(Mistake::NoUnit { given: given(), suggestion: format!("\"{text}{PER_DAY}\"") }),
                Err(Mistake::NoUnit { .. }) => {
                    Err(Mistake::NoUnit { given: given(), suggestion: format!("\"{text}TB{PER_DAY}\"") })
                }
                Err(Mistake::UnknownUnit { units, .. }) => Err(Mistake::UnknownUnit { given: given(), units }),
                Err(_) => Err(Mistake::NotA { given: given(), expected: EXPECTED }),
            };
        };
        if unit.trim() != "day" {
            return Err(Mistake::NotA { given: given(), expected: EXPECTED });
        }
        let bytes = match size(amount) {
            Ok(bytes) => bytes,
            Err(Mistake::NoUnit { .. }) => {
                let suggestion = format!("\"{}TB{PER_DAY}\"", amount.trim());
                return Err(Mistake::NoUnit { given: given(), suggestion });
            }
            Err(Mistake::UnknownUnit { units, .. }) => return Err(Mistake::UnknownUnit { given: given(), units }),
            Err(Mistake::TooLarge { .. }) => return Err(Mistake::TooLarge { given: given(), most: shown(MOST) }),
            Err(_) => return Err(Mistake::NotA { given: given(), expected: EXPECTED }),
        };
        match bytes {
            _ if bytes < LEAST => Err(Mistake::TooSmall { given: given(), least: shown(LEAST) }),
            _ if bytes > MOST => Err(Mistake::TooLarge { given: given(), most: shown(MOST) }),
            _ => Ok(Some(bytes)),
        }
    }
    fn show(&self, value: &Self::Value) -> String {
        value.map_or(UNLIMITED.into(), shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Option<u64>, Mistake> {
        BytesADay.read(&Raw::Text(text.into()))
    }

    proptest! {
        #[test]
        fn a_budget_is_what_it_shows(bytes in LEAST..=MOST, unit in 0u32..13) {
            let rounded = (bytes / 10u64.pow(unit) * 10u64.pow(unit)).max(LEAST);
            prop_assert_eq!(read(&BytesADay.show(&Some(rounded))), Ok(Some(rounded)));
        }

        #[test]
        fn any_text_is_read_or_refused_in_a_line(
            text in "(?s).{0,40}", amount in "[-0-9.]{0,20}[ \n]{0,2}(GB|TB|XB)?[ \n]{0,2}/?[ \n]{0,2}(day|s)?"
        ) {
            for text in [text, amount] {
                let said = read(&text).err().map(|mistake| mistake.to_string());
                prop_assert!(said.is_none_or(|said| said.lines().count() == 1), "{text:?}");
            }
        }
    }

    #[test]
    fn a_day_and_a_unit_are_asked_for_by_what_was_written() {
        assert_eq!(read("68TB/day"), Ok(Some(68_000_000_000_000)));
        assert_eq!((read("1.5 TB/day"), read("unlimited")), (Ok(Some(1_500_000_000_000)), Ok(None)));
        assert_eq!(BytesADay.show(&Some(68_000_000_000_000)), "68TB/day");
        let said = |text| read(text).expect_err("a mistake").to_string();
        assert_eq!(said("68TB"), "\"68TB\" has no unit: write \"68TB/day\"");
        assert_eq!(said("68"), "\"68\" has no unit: write \"68TB/day\"");
        assert_eq!(said("68/day"), "\"68/day\" has no unit: write \"68TB/day\"");
        assert!(said("68XB/day").starts_with("unknown unit in \"68XB/day\": use one of B, KiB"));
        assert_eq!(said("0TB/day"), "0TB/day is less than the least, 1GB/day");
        assert!(said("-1").starts_with("\"-1\" is not bytes a day like \"68TB/day\""));
        assert!(said("68TB/s").starts_with("\"68TB/s\" is not bytes a day"));
    }
}
