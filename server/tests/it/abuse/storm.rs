//! Thousands of new TLS connections at once, as after a load balancer's restart: all are let in,
//! and nobody else waits for their signatures.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etcore_proto::tls::Session;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use crate::harness::certs::Authority;
use crate::harness::cluster::Cluster;
use crate::harness::{Client, Setup, block_on, free_port};

const CONNECTIONS: usize = 5000;
/// Others' waiting time that is fine in any case.
const P99_MS: u128 = 20;
/// A machine that is busy with something else is given another chance.
const TRIES: usize = 3;

struct One {
    socket: TcpStream,
    session: Session,
}

/// A client's configuration that believes this authority and resumes nothing.
fn config(ca_file: &str) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca_file).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

/// Begins all handshakes at once, then ends one after the other.
fn storm(port: u16, config: &Arc<ClientConfig>) -> Duration {
    let name = || ServerName::try_from("localhost").unwrap();
    let hellos: Vec<(Session, Vec<u8>)> = (0..CONNECTIONS)
        .map(|_| {
            let mut session = Session::client(config.clone(), name()).unwrap();
            let mut hello = Vec::new();
            session.transmit(&mut hello);
            (session, hello)
        })
        .collect();
    let began = Instant::now();
    let all: Vec<One> = hellos
        .into_iter()
        .map(|(session, hello)| {
            let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("the member listens");
            socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            socket.write_all(&hello).unwrap();
            One { socket, session }
        })
        .collect();
    let (mut scratch, mut out, mut buf) = (Vec::new(), Vec::new(), vec![0; 16 << 10]);
    let mut ended = Vec::new();
    for mut one in all {
        while one.session.is_handshaking() {
            let bytes = one.socket.read(&mut buf).expect("the member answers");
            assert!(bytes > 0, "a connection was refused");
            one.session.receive(&buf[..bytes], &mut scratch, &mut |_| {}).unwrap();
        }
        out.clear();
        one.session.transmit(&mut out);
        one.socket.write_all(&out).unwrap();
        ended.push(one);
    }
    began.elapsed()
}

/// What ninety-nine of a hundred puts wait at most, one put after the other, for as long as
/// `goes_on` says.
fn p99(setup: &Setup, goes_on: &dyn Fn() -> bool) -> Duration {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut took = Vec::new();
    runtime.block_on(async {
        let client = Client::connect(setup).await;
        while goes_on() || took.len() < 200 {
            let began = Instant::now();
            client.put_kv("k", "v").await;
            took.push(began.elapsed());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

#[test]
fn five_thousand_new_connections_at_once_keep_nobody_waiting_and_cost_no_election() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ca");
    let pair = authority.issue("server");
    let flags = [format!("--cert-file={}", pair.cert), format!("--key-file={}", pair.key)];
    let mut cluster = Cluster::new(dir.path(), "portable", 3, &[&flags[0], &flags[1]]);
    let ports: Vec<u16> = cluster
        .setups
        .iter_mut()
        .map(|setup| {
            let port = free_port();
            let urls = format!("{},https://127.0.0.1:{port}", setup.endpoint());
            setup.extra.push(format!("--listen-client-urls={urls}"));
            port
        })
        .collect();
    let cluster = cluster.started();
    let leader = block_on(cluster.leader());
    let setup = &cluster.setups[leader];
    let config = config(&authority.ca_file);
    let term = || block_on(cluster.status(leader)).raft_term;
    let term_before = term();
    let mut seen = Vec::new();
    for _ in 0..TRIES {
        let quiet_until = Instant::now() + Duration::from_secs(1);
        let idle = p99(setup, &|| Instant::now() < quiet_until);
        let is_over = AtomicBool::new(false);
        let (took, busy) = std::thread::scope(|scope| {
            let others = scope.spawn(|| p99(setup, &|| !is_over.load(Ordering::Relaxed)));
            let took = storm(ports[leader], &config);
            is_over.store(true, Ordering::Relaxed);
            (took, others.join().unwrap())
        });
        assert_eq!(term(), term_before, "an election");
        seen.push((took, idle, busy));
        if busy.as_millis() <= P99_MS || busy <= 3 * idle {
            eprintln!("{CONNECTIONS} connections, p99 of others idle and meanwhile: {seen:?}");
            return;
        }
    }
    panic!("others have waited: {seen:?}");
}
