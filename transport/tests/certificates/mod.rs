//! Authorities and hosts' certificates for tests, in a folder of their own.

#![allow(dead_code, reason = "each test uses its part")]

use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use lapis_transport::peers::tls::{Identity, IdentityFiles};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;

pub const DAY: Duration = Duration::from_secs(86_400);

pub struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What is special about a certificate.
#[derive(Clone)]
pub struct Kind {
    pub names: Vec<String>,
    pub begins: SystemTime,
    pub ends: SystemTime,
    pub purposes: Vec<ExtendedKeyUsagePurpose>,
}

impl Kind {
    pub fn of(name: &str) -> Self {
        let now = SystemTime::now();
        Self {
            names: vec![name.into()],
            begins: now - DAY,
            ends: now + 300 * DAY,
            purposes: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        }
    }
}

impl Authority {
    /// All have the same name, as those have that somebody makes a second time.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "authority of a test");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
        fs::write(folder.path().join("ca.pem"), issuer.pem()).expect("our own folder");
        Self { folder, issuer }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Under the name `file`; other files of that name are replaced.
    pub fn make(&self, file: &str, kind: &Kind) -> IdentityFiles {
        let mut params = CertificateParams::new(kind.names.clone()).expect("names of hosts");
        params.not_before = kind.begins.into();
        params.not_after = kind.ends.into();
        params.extended_key_usages = kind.purposes.clone();
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let files = self.files(file);
        fs::write(&files.certificate, certificate.pem()).expect("our own folder");
        fs::write(&files.key, key.serialize_pem()).expect("our own folder");
        files
    }

    pub fn files(&self, file: &str) -> IdentityFiles {
        IdentityFiles {
            authority: self.path("ca.pem"),
            certificate: self.path(&format!("{file}.pem")),
            key: self.path(&format!("{file}.key")),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn identity(&self, name: &str) -> Identity {
        Identity::load(&self.make(name, &Kind::of(name)), name).expect("a whole identity")
    }
}
