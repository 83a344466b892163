//! TLS towards a server that is no host of the cache, such as etcd: known by an authority of its own.

use std::{path::Path, sync::Arc};

use rustls::{ClientConfig, RootCertStore, crypto::ring, version::TLS13};

use super::{TlsError, files, why};

/// What this host shows to such a server, if anything (a certificate and its key), and whom it takes for one.
pub fn config(authority: &Path, identity: Option<(&Path, &Path)>) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in files::certificates(authority)? {
        roots.add(certificate).map_err(|error| TlsError::Broken {
            path: authority.into(),
            what: "certificate of an authority",
            reason: why::words(&error),
        })?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .expect("ring has TLS 1.3")
        .with_root_certificates(roots);
    let Some((certificate, key)) = identity else { return Ok(Arc::new(builder.with_no_client_auth())) };
    let chain = files::certificates(certificate)?;
    let config = builder.with_client_auth_cert(chain, files::key(key)?).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => TlsError::OtherKey { key: key.into(), certificate: certificate.into() },
        error => TlsError::Broken { path: key.into(), what: "private key", reason: why::words(&error) },
    })?;
    Ok(Arc::new(config))
}
