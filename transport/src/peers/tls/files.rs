//! Certificates and keys from files in PEM.

use std::{fs::File, io::Read, path::Path};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::TlsError;

/// No file of certificates is longer; a wrong path may lead to anything.
const BYTES_MAX: u64 = 1 << 20;

const CERTIFICATE: &str = "certificate";
const KEY: &str = "private key";

/// At least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path, CERTIFICATE)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found =
        found.map_err(|error| TlsError::Broken { path: path.into(), what: CERTIFICATE, reason: error.to_string() })?;
    if found.is_empty() {
        return Err(TlsError::Nothing { path: path.into(), what: CERTIFICATE });
    }
    Ok(found)
}

pub(super) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = read(path, KEY)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => TlsError::Nothing { path: path.into(), what: KEY },
        error => TlsError::Broken { path: path.into(), what: KEY, reason: error.to_string() },
    })
}

fn read(path: &Path, what: &'static str) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { path: path.into(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    match bytes.len() as u64 > BYTES_MAX {
        true => Err(TlsError::TooLong { path: path.into(), what, most: BYTES_MAX }),
        false => Ok(bytes),
    }
}
