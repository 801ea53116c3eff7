//! The tool over TLS: endpoints with and without a scheme, a server that asks for a certificate,
//! and one that nobody vouches for.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use common::{Behaviour, Fake, benchmark};
use etcore_proto::tls::Session;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

/// An authority, and a server's configuration that believes it.
struct Authority {
    config: Arc<ServerConfig>,
    ca: String,
    cert: String,
    key: String,
}

impl Authority {
    fn new(dir: &Path, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let own = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let leaf_key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(own.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let chain: Vec<CertificateDer<'static>> = vec![leaf.der().clone()];
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(chain, PrivatePkcs8KeyDer::from(leaf_key.serialize_der()).into())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let write = |file: &str, text: &str| {
            let path = dir.join(format!("{name}-{file}"));
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        Self {
            config: Arc::new(config),
            ca: write("ca", &own.pem()),
            cert: write("cert", &leaf.pem()),
            key: write("key", &leaf_key.serialize_pem()),
        }
    }

    /// A port that speaks TLS for `address`.
    fn serve(&self, address: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().to_string();
        let (config, address) = (self.config.clone(), address.to_owned());
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let session = Session::server(config.clone()).unwrap();
                let inner = TcpStream::connect(&address).unwrap();
                carry(socket.unwrap(), inner, session);
            }
        });
        own
    }
}

/// Carries both ways until one side ends.
fn carry(outer: TcpStream, inner: TcpStream, session: Session) {
    let session = Arc::new(Mutex::new(session));
    let (mut outer_in, mut inner_in) = (outer.try_clone().unwrap(), inner.try_clone().unwrap());
    let (mut outer_out, mut inner_out) = (outer, inner);
    let opening = session.clone();
    let mut writer = outer_out.try_clone().unwrap();
    std::thread::spawn(move || {
        let (mut buf, mut scratch, mut plain) = (vec![0; 64 << 10], Vec::new(), Vec::new());
        while let Ok(bytes @ 1..) = outer_in.read(&mut buf) {
            let mut session = opening.lock().unwrap();
            plain.clear();
            let take = &mut |text: &[u8]| plain.extend_from_slice(text);
            let outcome = session.receive(&buf[..bytes], &mut scratch, take);
            let mut out = Vec::new();
            session.transmit(&mut out);
            writer.write_all(&out).unwrap();
            drop(session);
            if outcome.is_err() || inner_out.write_all(&plain).is_err() {
                break;
            }
        }
        let _ = outer_in.shutdown(Shutdown::Both);
        let _ = inner_out.shutdown(Shutdown::Both);
    });
    std::thread::spawn(move || {
        let mut buf = vec![0; 64 << 10];
        while let Ok(bytes @ 1..) = inner_in.read(&mut buf) {
            // A server may speak first; it waits until the client is known.
            let mut session = loop {
                let session = session.lock().unwrap();
                if !session.is_handshaking() {
                    break session;
                }
                drop(session);
                std::thread::sleep(std::time::Duration::from_millis(1));
            };
            let mut out = Vec::new();
            session.seal(&buf[..bytes], &mut out).unwrap();
            if outer_out.write_all(&out).is_err() {
                break;
            }
        }
        let _ = outer_out.shutdown(Shutdown::Both);
    });
}

#[test]
fn loads_run_over_tls_with_a_certificate_and_not_without() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, stranger) =
        (Authority::new(dir.path(), "a"), Authority::new(dir.path(), "stranger"));
    let fake = Fake::start(Behaviour::default());
    let address = authority.serve(&fake.address);
    let flags =
        format!("--cacert={} --cert={} --key={}", authority.ca, authority.cert, authority.key);
    for scheme in ["https://", ""] {
        let (status, report, complaints) = benchmark(&format!(
            "--endpoints={scheme}{address} {flags} --conns=3 --clients=30 --target-leader put \
             --total=2000 --val-size=3000"
        ));
        assert_eq!((status, complaints.as_str()), (0, ""), "{report}");
        assert!(report.contains("2000 succeeded, 0 failed"), "{report}");
    }
    // Without TLS all the same, where the scheme says so.
    let (status, _, complaints) =
        benchmark(&format!("--endpoints=http://{} {flags} put --total=10", fake.address));
    assert_eq!((status, complaints.as_str()), (0, ""));
    for flags in [
        format!("--cacert={}", authority.ca),
        format!("--cacert={}", stranger.ca),
        format!("--cacert={} --cert={} --key={}", authority.ca, stranger.cert, stranger.key),
    ] {
        let line = format!("--endpoints={address} {flags} put --total=10");
        let (status, report, complaints) = benchmark(&line);
        assert_eq!(status, 1, "{line}: {report} {complaints}");
    }
}
