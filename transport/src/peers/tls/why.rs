//! What goes wrong between two hosts' certificates, in words for whoever has to mend it. Pure.

use std::{io, time::SystemTime};

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

/// Why a connection with TLS was not made, or ended.
pub fn reason(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(error) => format!("the other side {}", peer_words(error)),
        None => error.to_string(),
    }
}

/// What a certificate or a key of our own is. Follows the words "the certificate in FILE".
pub(super) fn words(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => certificate(error),
        error => format!("cannot be used: {error}"),
    }
}

/// Follows the words "the other side".
fn peer_words(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => format!("has shown a certificate that {}", certificate(error)),
        Error::NoCertificatesPresented => "has shown no certificate".into(),
        Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
            "does not speak TLS: it may have no certificates (peers.ca, peers.certificate, peers.key)".into()
        }
        Error::PeerIncompatible(why) => format!("speaks TLS, but not as this one, which asks for 1.3: {why:?}"),
        Error::AlertReceived(alert) => alert_words(*alert),
        error => format!("broke TLS: {error}"),
    }
}

fn certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "is not signed by this host's authority".into()
        }
        CertificateError::ExpiredContext { not_after, .. } => format!("ended on {}", unix_day(not_after.as_secs())),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("begins only on {}: is a clock wrong?", unix_day(not_before.as_secs()))
        }
        CertificateError::NotValidForNameContext { expected, presented } if presented.is_empty() => {
            format!("has no name, not {:?}", expected.to_str())
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            // As in `DnsName("host-b")`.
            let names: Vec<&str> = presented.iter().map(|name| name.split('"').nth(1).unwrap_or(name)).collect();
            format!("is for {:?}, not for {:?}", names.join(", "), expected.to_str())
        }
        CertificateError::InvalidPurposeContext { .. } | CertificateError::InvalidPurpose => {
            "is not for both ends of a connection (extended key usage: serverAuth and clientAuth)".into()
        }
        error => format!("cannot be used: {error}"),
    }
}

/// What the other side said of us as it hung up.
fn alert_words(alert: AlertDescription) -> String {
    use AlertDescription as A;
    let why = match alert {
        A::UnknownCA => "it is not signed by that side's authority",
        A::DecryptError | A::BadCertificate => "it is not signed by that side's authority, or is damaged",
        A::CertificateExpired => "it has ended, or a clock is wrong",
        A::CertificateRequired => return "asks for a certificate, and this one has shown none".into(),
        A::CertificateUnknown | A::UnsupportedCertificate | A::CertificateRevoked => "it cannot be used there",
        alert => return format!("broke TLS off: {alert:?}"),
    };
    format!("refuses this host's certificate: {why}")
}

/// The day of a time, in UTC: "2027-03-09".
pub fn day(time: SystemTime) -> String {
    unix_day(time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// Days of the proleptic Gregorian calendar, counted in eras of 400 years from March 1 of the year 0.
fn unix_day(seconds: u64) -> String {
    const DAYS_OF_400_YEARS: u64 = 146_097;
    const DAYS_TO_1970: u64 = 719_468;
    let days = seconds / 86_400 + DAYS_TO_1970;
    let (era, day) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day_of_month:02}", era * 400 + year + next_year)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_that_of_the_calendar() {
        let cases = [
            (0, "1970-01-01"),
            (951_782_399, "2000-02-28"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_767_225_599, "2025-12-31"),
            (1_767_225_600, "2026-01-01"),
            (4_107_542_399, "2100-02-28"),
            (4_107_542_400, "2100-03-01"),
            (253_402_300_799, "9999-12-31"),
        ];
        for (seconds, day) in cases {
            assert_eq!(unix_day(seconds), day, "{seconds}");
        }
    }
}
