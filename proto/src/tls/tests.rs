use std::net::IpAddr;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, RevokedCertParams,
    SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion, version};

use super::x509::{Facts, Usages, revoked};
use super::{Session, TlsError};

/// Certificates of one authority, and configurations with them.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    roots: Arc<RootCertStore>,
}

impl Authority {
    fn new() -> Self {
        Self::named("authority")
    }

    fn named(name: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        Self { issuer: Issuer::new(params, key), roots: Arc::new(roots) }
    }

    fn issue(&self, names: &[&str]) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        (certificate.der().clone(), key)
    }

    fn server(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ServerConfig> {
        let (certificate, key) = self.issue(&["localhost", "127.0.0.1"]);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider.clone());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(vec![certificate], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        Arc::new(config)
    }

    fn client(&self) -> Arc<ClientConfig> {
        let (certificate, key) = self.issue(&["127.0.0.2"]);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(vec![certificate], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

/// Carries what both have to say, in pieces, until nobody has anything left; with the errors of the
/// client and of the server.
fn carry(client: &mut Session, server: &mut Session, piece_bytes: usize) -> [Option<TlsError>; 2] {
    let (mut scratch, mut wire) = (Vec::new(), Vec::new());
    let mut failed = [None, None];
    loop {
        let mut is_quiet = true;
        for is_server in [false, true] {
            let (from, to) =
                if is_server { (&mut *server, &mut *client) } else { (&mut *client, &mut *server) };
            wire.clear();
            from.transmit(&mut wire);
            is_quiet &= wire.is_empty();
            for piece in wire.chunks(piece_bytes) {
                if let Err(error) = to.receive(piece, &mut scratch, &mut |_| {}) {
                    failed[usize::from(!is_server)] = Some(error);
                }
            }
        }
        if is_quiet {
            return failed;
        }
    }
}

fn pair(authority: &Authority, versions: &[&'static SupportedProtocolVersion]) -> [Session; 2] {
    let client = Session::client(authority.client(), localhost()).unwrap();
    [client, Session::server(authority.server(versions)).unwrap()]
}

#[test]
fn both_versions_carry_both_ways_however_the_bytes_are_cut() {
    let authority = Authority::new();
    for versions in [&[&version::TLS13][..], &[&version::TLS12]] {
        for piece_bytes in [1, 7, 1000, usize::MAX] {
            let [mut client, mut server] = pair(&authority, versions);
            assert!(client.is_handshaking() && server.is_handshaking());
            assert_eq!(carry(&mut client, &mut server, piece_bytes), [None, None]);
            assert!(!client.is_handshaking() && !server.is_handshaking());
            assert_eq!(server.alpn(), Some(&b"h2"[..]));
            assert_eq!(server.version(), Some(versions[0].version));
            assert_eq!(server.server_name(), "localhost");
            assert_eq!(server.peer_certificates().len(), 1);
            let text: Vec<u8> = (0..100_000u32).map(|n| (n * 7 % 251) as u8).collect();
            let (mut scratch, mut wire, mut got) = (Vec::new(), Vec::new(), Vec::new());
            for (from, to) in [(0, 1), (1, 0)] {
                let sides = [&mut client, &mut server];
                wire.clear();
                got.clear();
                sides[from].seal(&text, &mut wire).unwrap();
                for piece in wire.chunks(piece_bytes) {
                    let take = &mut |plain: &[u8]| got.extend_from_slice(plain);
                    sides[to].receive(piece, &mut scratch, take).unwrap();
                }
                assert_eq!(got, text);
                assert_eq!(sides[to].held_bytes(), 0);
            }
        }
    }
}

#[test]
fn an_end_that_was_announced_is_told_from_one_that_was_not() {
    let [mut client, mut server] = pair(&Authority::new(), &[&version::TLS13]);
    assert_eq!(carry(&mut client, &mut server, usize::MAX), [None, None]);
    let (mut wire, mut scratch, mut got) = (Vec::new(), Vec::new(), Vec::new());
    client.seal(b"last words", &mut wire).unwrap();
    client.announce_end(&mut wire);
    client.announce_end(&mut wire);
    client.seal(b"more", &mut wire).unwrap();
    assert!(!server.peer_has_closed());
    let take = &mut |plain: &[u8]| got.extend_from_slice(plain);
    server.receive(&wire, &mut scratch, take).unwrap();
    assert!(server.peer_has_closed());
    assert_eq!(got, b"last words");
    // The other way is still open.
    wire.clear();
    server.seal(b"answer", &mut wire).unwrap();
    got.clear();
    client.receive(&wire, &mut scratch, &mut |plain| got.extend_from_slice(plain)).unwrap();
    assert_eq!(got, b"answer");
}

#[test]
fn a_client_that_comes_again_resumes_and_its_certificate_is_known() {
    let authority = Authority::new();
    for versions in [&[&version::TLS13][..], &[&version::TLS12]] {
        let (server_config, client_config) = (authority.server(versions), authority.client());
        for is_second in [false, true] {
            let mut client = Session::client(client_config.clone(), localhost()).unwrap();
            let mut server = Session::server(server_config.clone()).unwrap();
            assert_eq!(carry(&mut client, &mut server, usize::MAX), [None, None]);
            assert_eq!(server.is_resumed(), is_second, "{versions:?}");
            assert_eq!(server.peer_certificates().len(), 1);
        }
    }
}

#[test]
fn errors_have_gos_words_and_the_peer_gets_an_alert() {
    let (authority, stranger) = (Authority::new(), Authority::named("stranger"));
    let mut client = Session::client(stranger.client(), localhost()).unwrap();
    let mut server = Session::server(authority.server(rustls::ALL_VERSIONS)).unwrap();
    let [at_client, at_server] = carry(&mut client, &mut server, 100);
    let told = |error: Option<TlsError>| error.map(|error| error.to_string());
    let unknown =
        "tls: failed to verify certificate: x509: certificate signed by unknown authority";
    assert_eq!(told(at_client).as_deref(), Some(unknown));
    let alert = "remote error: tls: unknown certificate authority";
    assert_eq!(told(at_server).as_deref(), Some(alert));
    // What comes after is not looked at.
    server.receive(b"anything", &mut Vec::new(), &mut |_| panic!("plaintext")).unwrap();

    let mut server = Session::server(authority.server(rustls::ALL_VERSIONS)).unwrap();
    let plain = server.receive(b"GET / HTTP/1.1\r\n\r\n", &mut Vec::new(), &mut |_| {});
    assert_eq!(plain, Err(TlsError::NotTls));
    assert!(!server.wants_transmit(), "whoever speaks HTTP is sent no alert");

    // TLS 1.1 without a single extension.
    let body = [&[3, 2][..], &[7; 32], &[0, 0, 2, 0xc0, 0x09, 1, 0]].concat();
    let message = [&[1, 0, 0, u8::try_from(body.len()).unwrap()][..], &body].concat();
    let record = [&[22, 3, 1, 0, u8::try_from(message.len()).unwrap()][..], &message].concat();
    let mut server = Session::server(authority.server(rustls::ALL_VERSIONS)).unwrap();
    let old = server.receive(&record, &mut Vec::new(), &mut |_| {}).unwrap_err();
    assert_eq!(old.to_string(), "tls: client offered only unsupported versions: [302 301]");
    let mut alert = Vec::new();
    server.transmit(&mut alert);
    assert_eq!(alert, [21, 3, 1, 0, 2, 2, 70]);
}

#[test]
fn changed_bytes_of_a_handshake_or_a_record_never_come_through() {
    let authority = Authority::new();
    let (server_config, client_config) =
        (authority.server(rustls::ALL_VERSIONS), authority.client());
    let mut hello = Vec::new();
    Session::client(client_config, localhost()).unwrap().transmit(&mut hello);
    let mut scratch = Vec::new();
    for at in 0..hello.len() {
        let mut server = Session::server(server_config.clone()).unwrap();
        hello[at] ^= 0x55;
        let _ = server.receive(&hello, &mut scratch, &mut |_| panic!("plaintext at {at}"));
        assert!(server.is_handshaking());
        assert!(server.held_bytes() <= 64 << 10);
        hello[at] ^= 0x55;
    }
    let [mut client, mut server] = pair(&authority, &[&version::TLS13]);
    assert_eq!(carry(&mut client, &mut server, usize::MAX), [None, None]);
    let mut wire = Vec::new();
    client.seal(b"put", &mut wire).unwrap();
    *wire.last_mut().unwrap() ^= 1;
    let outcome = server.receive(&wire, &mut scratch, &mut |_| panic!("plaintext"));
    assert_eq!(outcome.unwrap_err().to_string(), "local error: tls: bad record MAC");
    assert!(server.wants_transmit());
}

#[test]
fn certificates_are_read_as_they_were_made() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let names = ["a.example", "*.b.example", "10.0.0.1", "::1"].map(str::to_owned);
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "m1");
    params.serial_number = Some(SerialNumber::from(vec![0, 0x90, 7]));
    params.not_before = date_time_ymd(1999, 12, 31);
    params.not_after = date_time_ymd(2050, 3, 1);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.self_signed(&key).unwrap();
    let facts = Facts::parse(certificate.der()).unwrap();
    assert_eq!(facts.serial, [0x90, 7]);
    assert_eq!(facts.common_name, "m1");
    assert_eq!((facts.not_before_s, facts.not_after_s), (946_598_400, 2_529_705_600));
    assert_eq!(facts.dns_names, ["a.example", "*.b.example"]);
    let addresses = ["10.0.0.1", "::1"].map(|text| text.parse::<IpAddr>().unwrap());
    assert_eq!(facts.ip_addresses, addresses);
    assert_eq!(facts.usages, Usages { server: true, client: false });
    for (host, is_for) in [
        ("a.example", true),
        ("A.Example.", true),
        ("x.b.example", true),
        ("b.example", false),
        ("y.x.b.example", false),
        ("10.0.0.1", true),
        ("[::1]", true),
        ("10.0.0.2", false),
        ("", false),
    ] {
        assert_eq!(facts.is_for(host), is_for, "{host}");
    }
    for at in 0..certificate.der().len() {
        let _ = Facts::parse(&certificate.der()[..at]);
    }
}

#[test]
fn a_revocation_list_names_its_serial_numbers() {
    let authority = Authority::new();
    let revoked_cert = |serial: Vec<u8>| RevokedCertParams {
        serial_number: SerialNumber::from(serial),
        revocation_time: date_time_ymd(2024, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let list = |revoked_certs| {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2060, 1, 1),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&authority.issuer).unwrap().der().to_vec()
    };
    let two = list(vec![revoked_cert(vec![0x90, 7]), revoked_cert(vec![5])]);
    assert_eq!(revoked(&two).unwrap(), [vec![5], vec![0x90, 7]]);
    assert_eq!(revoked(&list(Vec::new())), Some(Vec::new()));
    assert_eq!(revoked(b"-----BEGIN"), None);
}
