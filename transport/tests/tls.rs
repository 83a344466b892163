//! What makes an identity of a host, and what does not, is said by name.

use std::{fs, sync::Arc, time::SystemTime};

use lapis_transport::peers::tls::{self, Identity, IdentityFiles};
use rcgen::{ExtendedKeyUsagePurpose, KeyPair};
use rustls::{ClientConnection, ServerConnection};

mod certificates;
use certificates::{Authority, DAY, Kind};

fn refused(files: &IdentityFiles, host: &str, words: &str) {
    let error = Identity::load(files, host).expect_err(words).to_string();
    assert!(error.contains(words), "{error:?} does not say {words:?}");
    assert!(!error.contains('\n'), "one line: {error:?}");
}

#[test]
fn an_identity_has_its_names_and_its_end() {
    let authority = Authority::new();
    let kind = Kind { names: vec!["Host-A".into(), "host-a.example".into()], ..Kind::of("a") };
    let files = authority.make("a", &kind);
    for host in ["host-a", "HOST-A.example"] {
        let identity = Identity::load(&files, host).expect("it is one");
        assert_eq!(identity.names(), ["host-a", "host-a.example"]);
        let off = kind.ends.duration_since(identity.expires()).expect("cut to seconds");
        assert!(off.as_secs() == 0, "{off:?}");
    }
}

#[test]
fn files_that_make_no_identity_are_named_with_the_reason() {
    let (authority, other) = (Authority::new(), Authority::new());
    let now = SystemTime::now();
    let a = authority.make("a", &Kind::of("host-a"));
    refused(&a, "host-b", "is of \"host-a\", not of \"host-b\"");
    refused(&IdentityFiles { key: authority.path("none"), ..a.clone() }, "host-a", "none cannot be read: No such file");
    refused(&IdentityFiles { authority: authority.path(""), ..a.clone() }, "host-a", "Is a directory");

    fs::write(authority.path("empty"), "").expect("our own folder");
    let empty = authority.path("empty");
    refused(&IdentityFiles { authority: empty.clone(), ..a.clone() }, "host-a", "no certificate in PEM");
    refused(&IdentityFiles { certificate: empty.clone(), ..a.clone() }, "host-a", "no certificate in PEM");
    refused(&IdentityFiles { key: empty, ..a.clone() }, "host-a", "no private key in PEM");
    refused(&IdentityFiles { certificate: a.key.clone(), ..a.clone() }, "host-a", "no certificate in PEM");
    refused(&IdentityFiles { key: a.certificate.clone(), ..a.clone() }, "host-a", "no private key in PEM");

    let cut = fs::read_to_string(&a.certificate).expect("it is there");
    fs::write(authority.path("cut"), &cut[..cut.len() / 2]).expect("our own folder");
    refused(&IdentityFiles { certificate: authority.path("cut"), ..a.clone() }, "host-a", "no certificate that can be");
    let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    fs::write(authority.path("nonsense"), nonsense).expect("our own folder");
    let nonsense = authority.path("nonsense");
    refused(&IdentityFiles { authority: nonsense.clone(), ..a.clone() }, "host-a", "no certificate of an authority");
    refused(&IdentityFiles { certificate: nonsense, ..a.clone() }, "host-a", "cannot be used");
    fs::write(authority.path("long"), vec![b'x'; (1 << 20) + 1]).expect("our own folder");
    refused(&IdentityFiles { key: authority.path("long"), ..a.clone() }, "host-a", "more than 1048576 bytes");

    fs::write(authority.path("other.key"), KeyPair::generate().expect("a key").serialize_pem()).expect("our folder");
    refused(
        &IdentityFiles { key: authority.path("other.key"), ..a.clone() },
        "host-a",
        "is not that of the certificate",
    );
    let theirs = other.make("a", &Kind::of("host-a"));
    let ours = IdentityFiles { authority: a.authority.clone(), ..theirs };
    refused(&ours, "host-a", "is not signed by this host's authority");

    let old = authority.make("old", &Kind { begins: now - 9 * DAY, ends: now - DAY, ..Kind::of("host-a") });
    refused(&old, "host-a", &format!("ended on {}", tls::day(now - DAY)));
    let new = authority.make("new", &Kind { begins: now + 2 * DAY, ..Kind::of("host-a") });
    refused(&new, "host-a", &format!("begins only on {}: is a clock wrong?", tls::day(now + 2 * DAY)));
    let nameless = authority.make("nameless", &Kind { names: Vec::new(), ..Kind::of("x") });
    refused(&nameless, "host-a", "is of no host: it has no DNS name");
    let address = authority.make("address", &Kind::of("10.0.0.1"));
    refused(&address, "10.0.0.1", "is of no host: it has no DNS name");
    for purpose in [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth] {
        let half = authority.make("half", &Kind { purposes: vec![purpose], ..Kind::of("host-a") });
        refused(&half, "host-a", "is not for both ends");
    }
}

#[test]
fn while_an_authority_is_replaced_both_are_believed() {
    let (former, next) = (Authority::new(), Authority::new());
    let files = next.make("a", &Kind::of("host-a"));
    let both = IdentityFiles { authority: next.path("both"), ..files };
    fs::write(&both.authority, former.pem() + &next.pem()).expect("our own folder");
    Identity::load(&both, "host-a").expect("one of the two has signed it");
    fs::write(&both.authority, former.pem()).expect("our own folder");
    refused(&both, "host-a", "is not signed");
}

/// The handshake of two ends in memory; what the client has to say of the server.
fn meet(client: &Identity, server: &Identity, called: &str) -> Result<(ClientConnection, ServerConnection), String> {
    let name = tls::server_name(called).map_err(|error| error.to_string())?;
    let mut client = ClientConnection::new(client.client().clone(), name).expect("a client");
    let mut server = ServerConnection::new(server.server().clone()).expect("a server");
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).expect("a vector takes all");
        }
        server.read_tls(&mut bytes.as_slice()).expect("from memory");
        server.process_new_packets().map_err(|error| format!("server: {error}"))?;
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).expect("a vector takes all");
        }
        client.read_tls(&mut bytes.as_slice()).expect("from memory");
        client.process_new_packets().map_err(|error| format!("client: {error}"))?;
    }
    Ok((client, server))
}

#[test]
fn both_ends_know_each_other_by_name() {
    let authority = Authority::new();
    let (a, b) = (authority.identity("host-a"), authority.identity("host-b"));
    let (client, server) = meet(&a, &b, "host-b").expect("they belong together");
    assert_eq!(tls::peer_names(&client), ["host-b"]);
    assert_eq!(tls::peer_names(&server), ["host-a"]);
    tls::check_peer(&client, "Host-B").expect("the one that was called");
    let error = tls::check_peer(&server, "host-b").expect_err("another one").to_string();
    assert_eq!(error, "\"host-b\" has shown the certificate of \"host-a\"");
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(client.handshake_kind(), Some(rustls::HandshakeKind::Full));
    let (again, _) = meet(&a, &b, "host-b").expect("they belong together");
    assert_eq!(again.handshake_kind(), Some(rustls::HandshakeKind::Full), "none is resumed");
}

#[test]
fn a_certificate_of_a_whole_domain_is_nobodys() {
    let authority = Authority::new();
    let all = authority.make("all", &Kind::of("*.pool.example"));
    refused(&all, "b.pool.example", "is of \"*.pool.example\", not of \"b.pool.example\"");
    let all = Arc::new(Identity::load_unnamed(&all).expect("whole, and nobody's"));
    let (client, _) = meet(&authority.identity("host-a"), &all, "b.pool.example").expect("TLS takes it");
    let error = tls::check_peer(&client, "b.pool.example").expect_err("we do not").to_string();
    assert_eq!(error, "\"b.pool.example\" has shown the certificate of \"*.pool.example\"");
}

#[test]
fn a_name_that_no_certificate_can_have_is_refused() {
    for name in ["", "10.0.0.1", "::1", "a b", "a..b", &"x".repeat(300)] {
        let error = tls::server_name(name).expect_err(name).to_string();
        assert!(error.contains("cannot be a host's name"), "{error}");
    }
}
