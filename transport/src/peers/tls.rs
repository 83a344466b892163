//! Who this host is to others, and whether others are who they say: TLS 1.3 with certificates of one private authority on
//! both sides.
//!
//! A host's name is a DNS name in its certificate. Invariant: an `Identity` is whole: its key is its certificate's, its own
//! authority has signed it for its own name, and it was valid when it was loaded.

mod current;
mod files;
pub mod server;
mod why;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lapis_config::Options;
use rustls::{
    ClientConfig, CommonState, RootCertStore, ServerConfig,
    client::{Resumption, WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, SignatureVerificationAlgorithm, UnixTime},
    server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::TLS13,
};

pub use self::current::Credentials;
pub use self::why::{day, reason};

/// The three files of a host, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    /// Certificates of authorities: one, or while it is replaced the old and the new one.
    pub authority: PathBuf,
    /// This host's certificate, then those between it and the authority, if any.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl IdentityFiles {
    /// As configured; `None`: this host has no certificates, and so no peers beyond loopback.
    pub fn of(options: &Options) -> Option<Self> {
        Some(Self {
            authority: options.peers_ca.clone()?,
            certificate: options.peers_certificate.clone()?,
            key: options.peers_key.clone()?,
        })
    }
}

/// Why files make no identity.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{} has more than {most} bytes: it is no {what} in PEM", path.display())]
    TooLong { path: PathBuf, what: &'static str, most: u64 },
    #[error("there is no {what} in PEM in {}", path.display())]
    Nothing { path: PathBuf, what: &'static str },
    #[error("{} holds no {what} that can be used: {reason}", path.display())]
    Broken { path: PathBuf, what: &'static str, reason: String },
    #[error("the key in {} is not that of the certificate in {}", key.display(), certificate.display())]
    OtherKey { key: PathBuf, certificate: PathBuf },
    /// It is not signed by our authority, is not valid now, or is for other purposes.
    #[error("the certificate in {} {reason}", path.display())]
    Refused { path: PathBuf, reason: String },
    #[error(
        "the certificate in {} is of {}, not of {host:?}, as this host is called (peers.host): make one for that name, or \
         give the host the name of its certificate", path.display(), listed(names)
    )]
    OtherHost { path: PathBuf, host: String, names: Vec<String> },
    #[error("{name:?} cannot be a host's name in a certificate")]
    NoName { name: String },
    #[error("{host:?} has shown the certificate of {}", listed(names))]
    OtherPeer { host: String, names: Vec<String> },
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "no host: it has no DNS name".into(),
        names => names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", "),
    }
}

/// What this host shows to others, and what it asks of them. Connections made with it go on when another one takes its
/// place.
#[derive(Debug)]
pub struct Identity {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    names: Vec<String>,
    expires: SystemTime,
}

impl Identity {
    /// Reads and checks everything. `host`: as this host is called.
    pub fn load(files: &IdentityFiles, host: &str) -> Result<Self, TlsError> {
        let identity = Self::load_unnamed(files)?;
        if !identity.names.iter().any(|name| name.eq_ignore_ascii_case(host)) {
            let (path, names) = (files.certificate.clone(), identity.names);
            return Err(TlsError::OtherHost { path, host: host.into(), names });
        }
        Ok(identity)
    }

    /// Whosever certificate it is.
    pub fn load_unnamed(files: &IdentityFiles) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let authorities = files::certificates(&files.authority)?;
        let chain = files::certificates(&files.certificate)?;
        let key = files::key(&files.key)?;
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority).map_err(|error| TlsError::Broken {
                path: files.authority.clone(),
                what: "certificate of an authority",
                reason: why::words(&error),
            })?;
        }
        let roots = Arc::new(roots);
        let verifiers = Verifiers::new(&roots, &provider, files)?;
        let names = names_in(&chain[0]);
        verifiers.check(&chain, UnixTime::now()).map_err(|error| TlsError::Refused {
            path: files.certificate.clone(),
            reason: format!("{} (peers.ca is {})", why::words(&error), files.authority.display()),
        })?;
        let expires = verifiers.expires(&chain);
        let (client, server) = configs(&provider, verifiers, chain, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                TlsError::OtherKey { key: files.key.clone(), certificate: files.certificate.clone() }
            }
            error => TlsError::Broken { path: files.key.clone(), what: "private key", reason: why::words(&error) },
        })?;
        Ok(Self { client: Arc::new(client), server: Arc::new(server), names, expires })
    }

    /// For connections that this host makes: to `server_name` of who is called, then `check_peer`.
    pub fn client(&self) -> &Arc<ClientConfig> {
        &self.client
    }

    /// For connections that others make: only with a certificate.
    pub fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }

    /// The DNS names in this host's own certificate.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// When its certificate, or one between it and the authority, ends.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }
}

/// A host's name as TLS wants it.
pub fn server_name(host: &str) -> Result<ServerName<'static>, TlsError> {
    let no_name = || TlsError::NoName { name: host.into() };
    match ServerName::try_from(host.to_owned()) {
        Ok(name @ ServerName::DnsName(_)) => Ok(name),
        _ => Err(no_name()),
    }
}

/// The DNS names in the certificate that the other side has shown; none before the handshake is over.
pub fn peer_names(connection: &CommonState) -> Vec<String> {
    connection.peer_certificates().and_then(|chain| chain.first()).map_or(Vec::new(), |leaf| names_in(leaf))
}

/// Whether the other side has shown the certificate of this very host. One for all hosts of a domain ("*.example") is
/// nobody's: TLS alone would take it.
pub fn check_peer(connection: &CommonState, host: &str) -> Result<(), TlsError> {
    let names = peer_names(connection);
    match names.iter().any(|name| name.eq_ignore_ascii_case(host)) {
        true => Ok(()),
        false => Err(TlsError::OtherPeer { host: host.into(), names }),
    }
}

fn names_in(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(parsed) = webpki::EndEntityCert::try_from(certificate) else { return Vec::new() };
    parsed.valid_dns_names().map(str::to_ascii_lowercase).collect()
}

/// What checks the certificates of others, and our own as others will.
struct Verifiers {
    of_servers: Arc<WebPkiServerVerifier>,
    of_clients: Arc<dyn ClientCertVerifier>,
    roots: Arc<RootCertStore>,
    algorithms: &'static [&'static dyn SignatureVerificationAlgorithm],
}

impl Verifiers {
    fn new(
        roots: &Arc<RootCertStore>,
        provider: &Arc<CryptoProvider>,
        files: &IdentityFiles,
    ) -> Result<Self, TlsError> {
        let broken = |reason: String| TlsError::Broken {
            path: files.authority.clone(),
            what: "certificate of an authority",
            reason,
        };
        let of_servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
        let of_clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
        Ok(Self {
            of_servers: of_servers.map_err(|error| broken(error.to_string()))?,
            of_clients: of_clients.map_err(|error| broken(error.to_string()))?,
            roots: roots.clone(),
            algorithms: provider.signature_verification_algorithms.all,
        })
    }

    /// At both ends of a connection, whosever it is.
    fn check(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), rustls::Error> {
        let (leaf, between) = chain.split_first().expect("there is a certificate");
        self.of_clients.verify_client_cert(leaf, between, now)?;
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, between, now, self.algorithms)
    }

    /// Asked as if it were the end of all days, the check says when the first of the chain ends.
    fn expires(&self, chain: &[CertificateDer<'_>]) -> SystemTime {
        let mut ends = UNIX_EPOCH + FAR;
        for at in 0..chain.len() {
            let (leaf, between) = (&chain[at], &chain[at + 1..]);
            let told = self.of_clients.verify_client_cert(leaf, between, UnixTime::since_unix_epoch(FAR));
            if let Err(rustls::Error::InvalidCertificate(rustls::CertificateError::ExpiredContext {
                not_after, ..
            })) = told
            {
                ends = ends.min(UNIX_EPOCH + Duration::from_secs(not_after.as_secs()));
            }
        }
        ends
    }
}

/// The last second that a certificate can name, in the year 9999.
const FAR: Duration = Duration::from_secs(253_402_300_799);

fn configs(
    provider: &Arc<CryptoProvider>,
    verifiers: Verifiers,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<(ClientConfig, ServerConfig), rustls::Error> {
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_webpki_verifier(verifiers.of_servers)
        .with_client_auth_cert(chain.clone(), key.clone_key())?;
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifiers.of_clients)
        .with_single_cert(chain, key)?;
    // Connections are few and last: none is resumed, so that each is judged by the certificates of its day.
    client.resumption = Resumption::disabled();
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok((client, server))
}
