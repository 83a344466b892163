//! How a thread waits for a controller that gives no sign of its own: it looks again and again while something is expected,
//! and sleeps a little once nothing has come for long. Pure.

use std::time::Duration;

/// Commands take 10-100 us, and a deep queue of large ones a millisecond or two: until then looking is cheaper than sleeping.
const LOOKS_FOR: Duration = Duration::from_millis(5);
/// Then something is wrong, or the device slow: sleeps between two looks, a part of the time since something came.
const NAP_PART: u32 = 16;
const NAP_MIN: Duration = Duration::from_micros(50);
const NAP_MAX: Duration = Duration::from_millis(2);
/// While nothing is expected, the controller's own news are looked at so often.
pub(crate) const ADMIN_EVERY: Duration = Duration::from_millis(100);

/// How long to sleep, by how long nothing has come and how long one may sleep at all. `None`: look again at once.
pub(crate) fn nap(is_working: bool, quiet: Duration, most: Duration) -> Option<Duration> {
    match (is_working, quiet) {
        (false, _) => Some(most.min(ADMIN_EVERY)),
        (true, quiet) if quiet < LOOKS_FOR => None,
        (true, quiet) => Some((quiet / NAP_PART).clamp(NAP_MIN, NAP_MAX).min(most)),
    }
}

#[test]
fn there_is_no_sleep_while_something_is_expected_soon() {
    let (us, ms) = (Duration::from_micros, Duration::from_millis);
    assert_eq!(nap(true, us(0), ms(9)), None);
    assert_eq!(nap(true, us(4999), ms(9)), None);
    assert_eq!(nap(true, ms(5), ms(9)), Some(us(312) + Duration::from_nanos(500)));
    assert_eq!(nap(true, ms(900), ms(9)), Some(ms(2)));
    assert_eq!(nap(true, ms(900), us(7)), Some(us(7)), "no longer than asked");
    assert_eq!(nap(false, us(0), Duration::MAX), Some(ADMIN_EVERY));
    assert_eq!(nap(false, us(0), us(3)), Some(us(3)));
}
