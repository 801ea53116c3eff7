//! TLS for clients, with everybody else's programs: curl, openssl and etcdctl.
//!
//! Where etcd is at hand it is held to the same: who is let in, and what is said of those who are
//! not.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rcgen::ExtendedKeyUsagePurpose;

use crate::harness::certs::{Authority, Pair, Wanted};
use crate::harness::{DRIVERS, Etcd, Member, Setup, free_port, has_program, is_available, oracle};

/// What a run of a program has printed, both ways, and whether it went well.
fn outcome(command: &mut Command) -> (bool, String) {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().expect("the program runs");
    let text = [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (status.success(), text.concat())
}

fn curl(url: &str, ca_file: &str, pair: Option<&Pair>, more: &[&str]) -> (bool, String) {
    let mut command = Command::new("curl");
    command.args(["-sS", "-m", "10", "--cacert", ca_file]).args(more);
    if let Some(pair) = pair {
        command.args(["--cert", &pair.cert, "--key", &pair.key]);
    }
    outcome(command.arg(url))
}

const REJECTED: &str = "rejected connection on client endpoint";

/// True if the member at this URL says that it is well.
fn is_well(url: &str, ca_file: &str, pair: Option<&Pair>) -> bool {
    let (ok, text) = curl(&format!("{url}/health"), ca_file, pair, &[]);
    ok && text.contains(r#""health":"true""#)
}

/// `openssl s_client` against a port, with what it prints.
fn s_client(port: u16, ca_file: &str, pair: &Pair, more: &[&str]) -> String {
    let mut command = Command::new("openssl");
    command
        .args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-CAfile", ca_file])
        .args(["-cert", &pair.cert, "-key", &pair.key])
        .args(more);
    outcome(&mut command).1
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    until(what, || is_so().then_some(()));
}

/// What `look` finds, which may take a moment.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Certificates of clients that are let in, and of those that are not, with etcd's reason.
struct Clients {
    authority: Authority,
    server: Pair,
    good: Pair,
    refused: Vec<(Pair, &'static str)>,
    crl: String,
}

impl Clients {
    fn new(dir: &Path) -> Self {
        let authority = Authority::new(dir, "ca");
        let client = &[ExtendedKeyUsagePurpose::ClientAuth][..];
        let stranger = Authority::new(dir, "stranger").issue("stranger");
        let expired = Wanted { is_expired: true, ..Wanted::default() };
        let server_only =
            Wanted { usages: &[ExtendedKeyUsagePurpose::ServerAuth], ..Wanted::default() };
        let revoked = Wanted { usages: client, serial: 66, ..Wanted::default() };
        let elsewhere = Wanted { names: &["elsewhere"], usages: client, ..Wanted::default() };
        let good = Wanted { usages: client, serial: 65, ..Wanted::default() };
        let unknown = "tls: failed to verify certificate: x509: certificate signed by unknown";
        let refused = vec![
            (stranger, unknown),
            (
                authority.issue_as("expired", &expired),
                "x509: certificate has expired or is not yet valid",
            ),
            (
                authority.issue_as("server-only", &server_only),
                "x509: certificate specifies an incompatible key usage",
            ),
            (authority.issue_as("revoked", &revoked), "transport: certificate serial 42 revoked"),
            (
                authority.issue_as("elsewhere", &elsewhere),
                "client certificate authentication failed",
            ),
        ];
        Self {
            server: authority.issue("server"),
            good: authority.issue_as("good", &good),
            refused,
            crl: authority.revoke("crl", &[3, 66]),
            authority,
        }
    }

    /// Served on one port with TLS and on another without.
    fn setup(&self, dir: &Path, driver: &'static str) -> (Setup, u16) {
        let (setup, plain) = (Setup::new(dir, driver), free_port());
        let setup = setup
            .with_tls(&self.authority.ca_file, &self.server)
            .with(&format!("--client-crl-file={}", self.crl))
            .with("--client-cert-allowed-hostname=nobody,localhost");
        let urls = format!("--listen-client-urls={},http://127.0.0.1:{plain}", setup.endpoint());
        (setup.with(&urls), plain)
    }

    /// Asks as everybody; the log lines that must have come of it.
    fn ask(&self, setup: &Setup, plain: u16) -> Vec<&'static str> {
        let (url, ca_file) = (setup.endpoint(), &self.authority.ca_file);
        assert!(is_well(&url, ca_file, Some(&self.good)));
        assert!(is_well(&format!("http://127.0.0.1:{plain}"), ca_file, None));
        for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
            let more = [flag, "-o", "/dev/null", "-w", "%{http_version}"];
            let got = curl(&format!("{url}/version"), ca_file, Some(&self.good), &more);
            assert_eq!(got, (true, version.to_owned()));
        }
        assert!(!is_well(&url, ca_file, None), "without a certificate");
        let mut lines = vec![
            "tls: client didn't provide a certificate",
            "tls: first record does not look like a TLS handshake",
            "tls: client offered only unsupported versions",
        ];
        for (pair, line) in &self.refused {
            assert!(!is_well(&url, ca_file, Some(pair)), "{line}");
            lines.push(line);
        }
        // HTTP to the port with TLS, and TLS to the one without: not a byte is answered.
        let mut socket = TcpStream::connect(("127.0.0.1", setup.client_port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        let end = socket.read_to_end(&mut answer).map_err(|error| error.kind());
        assert!(matches!(end, Ok(0) | Err(ErrorKind::ConnectionReset)), "{end:?}");
        let wrong = curl(&format!("https://127.0.0.1:{plain}/health"), ca_file, None, &["-k"]);
        assert!(!wrong.0 && wrong.1.contains("SSL_ERROR_SYSCALL"), "{wrong:?}");
        let old = s_client(setup.client_port, ca_file, &self.good, &["-tls1_1"]);
        assert!(old.contains("alert protocol version"), "{old}");
        lines
    }
}

#[test]
fn who_may_come_in_with_tls_is_as_with_etcd_and_so_is_what_is_said_of_the_others() {
    let _turn = crate::harness::turn::light();
    if !has_program("curl") || !has_program("openssl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let clients = Clients::new(dir.path());
    if let Some(etcd) = oracle("etcd") {
        let (setup, plain) = clients.setup(&dir.path().join("etcd"), "uring");
        let _etcd = Etcd::start(&etcd, &setup);
        clients.ask(&setup, plain);
    }
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let (setup, plain) = clients.setup(&dir.path().join(driver), driver);
        let mut member = setup.start();
        for line in clients.ask(&setup, plain) {
            let is_it = |told: &&String| told.contains(REJECTED) && told.contains(line);
            let rejected = || member.lines_so_far().iter().find(is_it).cloned();
            let rejected = until(line, rejected);
            assert!(rejected.contains(r#""remote-addr":"127.0.0.1:"#), "{rejected}");
        }
        let told = member.lines_so_far().join("\n");
        for line in [
            "starting with client TLS",
            "starting with peer TLS",
            "serving client traffic securely",
            "scheme is http or unix while key and cert files are present; ignoring key and cert",
            "scheme is http or unix while --client-cert-auth is enabled",
        ] {
            assert!(told.contains(line), "{line}: {told}");
        }
        talk_with_etcdctl(&setup, &clients);
        look_at_the_protocol(&setup, &clients);
    }
}

/// Stock etcdctl puts and gets, unless its certificate will not do.
fn talk_with_etcdctl(setup: &Setup, clients: &Clients) {
    let Some(etcdctl) = oracle("etcdctl") else { return };
    let run = |pair: &Pair, args: &[&str]| {
        outcome(
            // It tells of variables that it does not know.
            Command::new(&etcdctl)
                .env_remove("ETCDCTL_BIN")
                .args(["--endpoints", &setup.endpoint(), "--command-timeout=3s"])
                .args(["--cacert", &clients.authority.ca_file])
                .args(["--cert", &pair.cert, "--key", &pair.key])
                .args(args),
        )
    };
    assert_eq!(run(&clients.good, &["put", "k", "v"]), (true, "OK\n".to_owned()));
    assert_eq!(run(&clients.good, &["get", "k"]), (true, "k\nv\n".to_owned()));
    let (ok, text) = run(&clients.refused[0].0, &["get", "k"]);
    assert!(!ok && text.contains("deadline exceeded"), "{text}");
}

/// Versions, suites and resumption, as openssl sees them.
fn look_at_the_protocol(setup: &Setup, clients: &Clients) {
    let (port, ca_file) = (setup.client_port, &clients.authority.ca_file);
    let client = |more: &[&str]| s_client(port, ca_file, &clients.good, more);
    let modern = client(&["-alpn", "h2"]);
    for line in ["New, TLSv1.3", "Verify return code: 0 (ok)", "ALPN protocol: h2"] {
        assert!(modern.contains(line), "{line}: {modern}");
    }
    let old = client(&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"]);
    assert!(old.contains("New, TLSv1.2, Cipher is ECDHE-ECDSA-AES256-GCM-SHA384"), "{old}");
    let weak = client(&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-SHA"]);
    assert!(weak.contains("alert handshake failure"), "{weak}");
    let resumed = client(&["-tls1_2", "-reconnect"]);
    assert_eq!(resumed.matches("Reused, TLSv1.2").count(), 5, "{resumed}");
    let odd = client(&["-alpn", "spdy/3"]);
    assert!(odd.contains("no application protocol"), "{odd}");
}

/// Certificates that openssl finds on a port.
fn serial_on(port: u16, authority: &Authority, pair: &Pair) -> String {
    let text = s_client(port, &authority.ca_file, pair, &["-showcerts"]);
    let begin = text.find("-----BEGIN").unwrap_or(0);
    let mut openssl = Command::new("openssl")
        .args(["x509", "-noout", "-serial"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    openssl.stdin.take().unwrap().write_all(&text.as_bytes()[begin..]).unwrap();
    String::from_utf8(openssl.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn files_that_change_are_used_at_once_and_no_connection_is_dropped() {
    let _turn = crate::harness::turn::light();
    if !has_program("curl") || !has_program("openssl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let clients = Clients::new(dir.path());
    let (setup, _) = clients.setup(&dir.path().join("member"), "portable");
    let mut member = setup.start();
    let (url, authority) = (setup.endpoint(), &clients.authority);
    let is_in = |pair: &Pair| is_well(&url, &authority.ca_file, Some(pair));
    let mut open = Watcher::start(&setup, &clients);
    assert_eq!(serial_on(setup.client_port, authority, &clients.good), "serial=07\n");

    // A new certificate with its key, and somebody else on the revocation list.
    authority.issue_as("server", &Wanted { serial: 0x77, ..Wanted::default() });
    wait_until("the new certificate is shown", || {
        serial_on(setup.client_port, authority, &clients.good) == "serial=77\n"
    });
    authority.revoke("crl", &[65]);
    wait_until("the list is used", || !is_in(&clients.good));
    let (revoked, _) = &clients.refused[3];
    assert!(is_in(revoked), "whoever is on the list no more is let in");
    open.expect_event(&setup, &clients, revoked, "one");

    // Another authority is believed as well, and what it has issued.
    let both = [&*authority.ca_file, &dir.path().join("stranger.pem").display().to_string()]
        .map(|file| std::fs::read_to_string(file).unwrap());
    let own = authority.ca_file.clone() + ".own";
    std::fs::copy(&authority.ca_file, &own).unwrap();
    std::fs::write(&authority.ca_file, both.concat()).unwrap();
    let (stranger, _) = &clients.refused[0];
    wait_until("the new authority is believed", || is_well(&url, &own, Some(stranger)));

    // What cannot be used is told of, and changes nothing.
    std::fs::write(&clients.server.cert, "no certificate").unwrap();
    member.wait_for_line("cannot be used; what was there before stays");
    let text = member.seen.last().unwrap();
    assert!(text.contains("server.crt: tls: failed to find any PEM data"), "{text}");
    assert_eq!(serial_on(setup.client_port, authority, revoked), "serial=77\n");
    open.expect_event(&setup, &clients, revoked, "two");
}

/// `etcdctl watch` over TLS, if it is at hand.
struct Watcher {
    child: Option<std::process::Child>,
    lines: Option<std::io::Lines<std::io::BufReader<std::process::ChildStdout>>>,
}

impl Watcher {
    fn etcdctl(setup: &Setup, clients: &Clients, pair: &Pair) -> Option<Command> {
        let mut command = Command::new(oracle("etcdctl")?);
        command
            .args(["--endpoints", &setup.endpoint()])
            .args(["--cacert", &clients.authority.ca_file])
            .args(["--cert", &pair.cert, "--key", &pair.key]);
        Some(command)
    }

    fn start(setup: &Setup, clients: &Clients) -> Self {
        use std::io::BufRead;
        let Some(mut command) = Self::etcdctl(setup, clients, &clients.good) else {
            return Self { child: None, lines: None };
        };
        let mut child = command
            .args(["watch", "--prefix", "w", "--progress-notify"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let mut watcher = Self { child: Some(child), lines: Some(lines) };
        // Until a put is seen, the watch may not be there yet.
        watcher.expect_event(setup, clients, &clients.good, "zero");
        watcher
    }

    /// Puts as `pair` until the watch, opened before, tells of it.
    fn expect_event(&mut self, setup: &Setup, clients: &Clients, pair: &Pair, value: &str) {
        let Some(lines) = &mut self.lines else { return };
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let put = Self::etcdctl(setup, clients, pair).map(|mut command| {
                        outcome(command.args(["--command-timeout=5s", "put", "w", value]))
                    });
                    assert!(put.is_some_and(|(ok, _)| ok), "{value}");
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
            let told = lines.by_ref().map_while(Result::ok).any(|line| line == value);
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(told, "the watch has ended before {value}");
        });
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn auto_tls_makes_certificates_once_and_etcd_takes_them() {
    let _turn = crate::harness::turn::light();
    if !has_program("curl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let setup =
        Setup { scheme: "https", peer_scheme: "https", ..Setup::new(dir.path(), "portable") }
            .with("--auto-tls")
            .with("--peer-auto-tls")
            .with("--self-signed-cert-validity=3");
    let files = |kind: &str| setup.data_dir.join("fixtures").join(kind);
    let read = || {
        ["client", "peer"].map(|kind| {
            ["cert.pem", "key.pem"].map(|file| std::fs::read(files(kind).join(file)).unwrap())
        })
    };
    let well = |setup: &Setup| {
        is_well(&setup.endpoint(), &files("client").join("cert.pem").display().to_string(), None)
    };
    let mut member = setup.start();
    assert!(well(&setup), "the certificate is for the address that is listened on");
    assert!(member.lines_so_far().join("\n").contains("automatically generate certificates"));
    let made = read();
    member.terminate();
    assert!(member.wait().success());
    let mut member = setup.start();
    assert!(well(&setup));
    assert!(!member.lines_so_far().join("\n").contains("automatically generate certificates"));
    assert_eq!(read(), made, "they are kept");
    drop(member);
    if let Some(etcd) = oracle("etcd") {
        let theirs = Setup { data_dir: dir.path().join("etcd"), ..setup.clone() };
        let fixtures = theirs.data_dir.join("fixtures");
        for kind in ["client", "peer"] {
            std::fs::create_dir_all(fixtures.join(kind)).unwrap();
            for file in ["cert.pem", "key.pem"] {
                let to = fixtures.join(kind).join(file);
                std::fs::copy(files(kind).join(file), to).unwrap();
            }
        }
        let _etcd = Etcd::start(&etcd, &theirs);
        assert!(well(&theirs), "etcd serves with them");
    }
}

#[test]
fn keys_of_every_form_are_taken_and_a_key_of_another_certificate_is_refused() {
    let _turn = crate::harness::turn::light();
    if !has_program("curl") || !has_program("openssl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ca");
    let pair = authority.issue("server");
    let other = authority.issue("other");
    // The key as SEC1, behind its parameters and its certificate, in one file.
    let run = |args: &[&str]| assert!(outcome(Command::new("openssl").args(args)).0, "{args:?}");
    let sec1 = dir.path().join("sec1.key").display().to_string();
    run(&["ec", "-in", &pair.key, "-out", &sec1]);
    let parameters =
        "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
    let all = [&pair.cert, &sec1].map(|file| std::fs::read_to_string(file).unwrap());
    let combined = dir.path().join("all.pem").display().to_string();
    std::fs::write(&combined, [&all[0], parameters, &all[1]].concat()).unwrap();
    // An RSA key as PKCS#1, with a certificate that is its own authority.
    let (rsa, rsa_cert) = [dir.path().join("rsa.key"), dir.path().join("rsa.crt")]
        .map(|p| p.display().to_string())
        .into();
    run(&["genrsa", "-traditional", "-out", &rsa, "2048"]);
    let subject = ["-subj", "/CN=rsa", "-addext", "subjectAltName=IP:127.0.0.1"];
    let request = ["req", "-x509", "-key", &rsa, "-out", &rsa_cert, "-days", "2"];
    run(&[&request[..], &subject].concat());
    let text = std::fs::read_to_string(&rsa).unwrap();
    assert!(text.contains("BEGIN RSA PRIVATE KEY"), "{text}");
    for (name, cert, key, ca_file) in
        [("sec1", &combined, &combined, &authority.ca_file), ("rsa", &rsa_cert, &rsa, &rsa_cert)]
    {
        let setup = Setup { scheme: "https", ..Setup::new(&dir.path().join(name), "portable") }
            .with(&format!("--cert-file={cert}"))
            .with(&format!("--key-file={key}"));
        let _member: Member = setup.start();
        assert!(is_well(&setup.endpoint(), ca_file, None), "{name}");
    }
    let setup = Setup::new(dir.path(), "portable")
        .with(&format!("--cert-file={}", pair.cert))
        .with(&format!("--key-file={}", other.key));
    let mut member = setup.spawn();
    assert_eq!(member.wait().code(), Some(1));
    let last = member.seen.last().unwrap();
    assert!(last.contains("tls: private key does not match public key"), "{last}");
}
