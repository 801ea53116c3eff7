//! A real member as a process, and a tonic client for it: what the end-to-end tests are made of.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use etcore_proto::pb::etcdserverpb as pb;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

pub mod certs;
pub mod cluster;
pub mod links;
pub mod raw;
pub mod turn;
pub mod watch;

/// Both drivers: every end-to-end test runs on each.
pub const DRIVERS: [&str; 2] = ["uring", "portable"];

/// Small segments keep the tests quick; several are used up.
pub const SEGMENT_BYTES: &str = "4194304";

/// UDP sockets that hold the ports of the tests that run.
static HELD: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());

/// Lets the ports go, once no test needs one.
fn release_ports() {
    HELD.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// A free port, this process's until the tests that run beside the caller are over: also while a
/// member that had it is down. It lies below those that the kernel gives to connections, and the
/// UDP port of the same number, which nobody else wants, is held so that tests in other processes
/// leave it alone.
pub fn free_port() -> u16 {
    /// How many were looked at, so that a port is not given again at once.
    static LOOKED_AT: AtomicU32 = AtomicU32::new(0);
    const LOWEST: u16 = 10_000;
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let highest: u16 = range
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .filter(|highest| *highest > LOWEST + 1_000)
        .unwrap_or(32_768);
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    // Processes begin at places of their own.
    let start = std::process::id().wrapping_mul(97);
    for _ in 0..u32::from(highest - LOWEST) {
        let number = start.wrapping_add(LOOKED_AT.fetch_add(1, Ordering::Relaxed));
        let offset = number % u32::from(highest - LOWEST);
        let port = LOWEST + u16::try_from(offset).expect("below u16::MAX");
        let Ok(socket) = UdpSocket::bind(("127.0.0.1", port)) else { continue };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            held.push(socket);
            return port;
        }
    }
    panic!("no port between {LOWEST} and {highest} is free");
}

/// True if this kernel and container let the driver run, which is said loudly if not, and this test
/// is to run on it. With `ETCORE_ONE_DRIVER` each test runs on one alone: half of them on either,
/// and the other way round when the number there is odd and was even.
pub fn is_available(driver: &str) -> bool {
    if io_uring::IoUring::new(8).is_err() {
        if driver == "uring" {
            eprintln!("SKIPPED: io_uring is not available here; the uring driver is not tested");
        }
        return driver != "uring";
    }
    let turn = std::env::var("ETCORE_ONE_DRIVER").ok().and_then(|number| number.parse().ok());
    turn.is_none_or(|turn: usize| driver == DRIVERS[(number_of_test() + turn) % DRIVERS.len()])
}

/// A number that the test has by its name, which is its thread's.
fn number_of_test() -> usize {
    let thread = std::thread::current();
    thread.name().unwrap_or_default().bytes().map(usize::from).sum()
}

/// Runs a test on each driver that there is.
pub fn on_each_driver(test: impl Fn(&'static str)) {
    DRIVERS.into_iter().filter(|driver| is_available(driver)).for_each(test);
}

/// Processor time of the member so far.
pub fn cpu_time(member: &Member) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", member.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    // User and system time, in hundredths of a second.
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// Anonymous memory of a process, in KiB.
pub fn rss_anon_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("Linux");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

/// How to start a member.
#[derive(Clone)]
pub struct Setup {
    pub data_dir: PathBuf,
    pub client_port: u16,
    pub peer_port: u16,
    /// `https` if clients connect with TLS.
    pub scheme: &'static str,
    /// `https` if the other members connect with TLS.
    pub peer_scheme: &'static str,
    /// Where the others reach it, if something lies in between.
    pub peer_proxy: Option<u16>,
    pub driver: &'static str,
    pub extra: Vec<String>,
    pub name: String,
    /// `--initial-cluster`; the member alone if empty.
    pub initial_cluster: String,
}

impl Setup {
    pub fn new(dir: &Path, driver: &'static str) -> Self {
        Self {
            data_dir: dir.join("member.etcd"),
            client_port: free_port(),
            peer_port: free_port(),
            scheme: "http",
            peer_scheme: "http",
            peer_proxy: None,
            driver,
            extra: Vec::new(),
            name: "default".to_owned(),
            initial_cluster: String::new(),
        }
    }

    /// With segments as long as a user's, for tests that measure: short ones are always about to
    /// end, and what ends waits for the next.
    pub fn with_long_segments(self) -> Self {
        self.with(&format!("--wal-segment-bytes={}", etcore_raftlog::limits::SEGMENT_BYTES))
    }

    pub fn with(mut self, flag: &str) -> Self {
        self.extra.push(flag.to_owned());
        self
    }

    /// With TLS for clients and peers, by these files; who connects must have a certificate.
    pub fn with_tls(mut self, ca_file: &str, pair: &certs::Pair) -> Self {
        self.scheme = "https";
        self.with_files("", ca_file, pair).with("--client-cert-auth").with_peer_tls(ca_file, pair)
    }

    /// With TLS for peers, by these files; who connects must have a certificate.
    pub fn with_peer_tls(mut self, ca_file: &str, pair: &certs::Pair) -> Self {
        self.peer_scheme = "https";
        self.with_files("peer-", ca_file, pair).with("--peer-client-cert-auth")
    }

    fn with_files(self, side: &str, ca_file: &str, pair: &certs::Pair) -> Self {
        self.with(&format!("--{side}trusted-ca-file={ca_file}"))
            .with(&format!("--{side}cert-file={}", pair.cert))
            .with(&format!("--{side}key-file={}", pair.key))
    }

    /// Where the others reach it.
    pub fn peer_url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.peer_scheme, self.advertised_peer_port())
    }

    pub fn advertised_peer_port(&self) -> u16 {
        self.peer_proxy.unwrap_or(self.peer_port)
    }

    pub fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.client_port)
    }

    pub fn command(&self) -> Command {
        let client = self.endpoint();
        let peer = format!("{}://127.0.0.1:{}", self.peer_scheme, self.peer_port);
        let advertised = self.peer_url();
        let own = format!("{}={advertised}", self.name);
        let cluster = if self.initial_cluster.is_empty() { &own } else { &self.initial_cluster };
        // Another build of the server can be tested in place of the one made for the tests.
        let binary = std::env::var_os("ETCORE_BIN");
        let binary = binary.unwrap_or_else(|| env!("CARGO_BIN_EXE_etcore").into());
        let mut command = Command::new(binary);
        command
            .arg("--data-dir")
            .arg(&self.data_dir)
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={advertised}"))
            .arg(format!("--name={}", self.name))
            .arg(format!("--initial-cluster={cluster}"))
            .arg(format!("--io-driver={}", self.driver))
            .args(self.segment_flag())
            .args(&self.extra)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    /// The usual segment length, unless the test has chosen one.
    fn segment_flag(&self) -> Option<String> {
        let flag = "--wal-segment-bytes=";
        let chosen = self.extra.iter().any(|extra| extra.starts_with(flag));
        (!chosen).then(|| format!("{flag}{SEGMENT_BYTES}"))
    }

    /// Starts the member and waits until it is ready.
    pub fn start(&self) -> Member {
        let mut member = self.spawn();
        member.wait_for_line("ready to serve client requests");
        member
    }

    /// Starts the member.
    pub fn spawn(&self) -> Member {
        Member::spawn(self.command())
    }
}

/// A running member; killed when dropped.
pub struct Member {
    child: Child,
    lines: Receiver<String>,
    pub seen: Vec<String>,
}

impl Member {
    /// Starts a member of one's own making.
    pub fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the member starts");
        let stderr = child.stderr.take().expect("piped");
        let (sender, lines) = sync_channel(10_000);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // The test may have stopped listening; the pipe must be emptied all the same.
                let _ = sender.try_send(line);
            }
        });
        Self { child, lines, seen: Vec::new() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How many sockets it has open.
    pub fn sockets(&self) -> usize {
        let all = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs");
        all.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
            .filter(|target| target.to_string_lossy().starts_with("socket:"))
            .count()
    }

    /// The first log line, from now on, that contains `text`.
    pub fn wait_for_line(&mut self, text: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("no log line with {text:?}; the log was:\n{}", self.seen.join("\n"));
                }
            }
        }
    }

    /// Waits until the member is ready, or until it has ended: then with its status.
    pub fn wait_for_ready(&mut self, limit: Duration) -> Result<Option<ExitStatus>, String> {
        let deadline = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(Duration::from_millis(20)) {
                Ok(line) => {
                    self.seen.push(line);
                    if self.seen.last().is_some_and(|line| line.contains("ready to serve client")) {
                        return Ok(None);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(Some(self.wait())),
                Err(RecvTimeoutError::Timeout) if Instant::now() > deadline => {
                    return Err(format!("neither ready nor ended:\n{}", self.seen.join("\n")));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Everything it has logged.
    pub fn lines_so_far(&mut self) -> &[String] {
        self.seen.extend(self.lines.try_iter());
        &self.seen
    }

    /// The status, if the member ends by itself within `limit`.
    pub fn has_ended(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        while self.child.try_wait().expect("our child").is_none() {
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(self.wait())
    }

    pub fn kill(mut self) {
        self.child.kill().expect("SIGKILL");
        self.child.wait().expect("reaped");
    }

    pub fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.pid()).expect("a pid");
        // SAFETY: a signal to our own child, which has not been reaped.
        unsafe { libc::kill(pid, signal) };
    }

    /// Waits for the end, which must come soon.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                while let Ok(line) = self.lines.recv_timeout(Duration::from_millis(200)) {
                    self.seen.push(line);
                }
                return status;
            }
            assert!(Instant::now() < deadline, "the member does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A stock etcd with the flags that a member gets; killed when dropped.
pub struct Etcd(Child);

impl Etcd {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn start(binary: &Path, setup: &Setup) -> Self {
        let ours = ["--io-driver", "--wal-segment-bytes"];
        let command = setup.command();
        let args = command.get_args().filter(|arg| {
            let arg = arg.to_string_lossy();
            !ours.iter().any(|flag| arg.starts_with(flag))
        });
        let mut child = Command::new(binary)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("etcd starts");
        let mut log = BufReader::new(child.stderr.take().expect("piped")).lines();
        let ready = log.by_ref().map_while(Result::ok).any(|line| line.contains("ready to serve"));
        assert!(ready, "etcd ended before it was ready");
        // The pipe must be emptied, or etcd would stop at its next line.
        std::thread::spawn(move || log.for_each(drop));
        Self(child)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a test's future on a small runtime.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

/// A tonic client with etcd's methods by path.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    /// What its calls show of a login.
    pub token: Option<String>,
}

macro_rules! calls {
    ($($name:ident $path:literal $request:ident $response:ident)*) => {
        impl Client {
            $(pub async fn $name(
                &self,
                request: pb::$request,
            ) -> Result<pb::$response, tonic::Status> {
                self.unary($path, request).await
            })*
        }
    };
}

calls! {
    range "/etcdserverpb.KV/Range" RangeRequest RangeResponse
    put "/etcdserverpb.KV/Put" PutRequest PutResponse
    delete_range "/etcdserverpb.KV/DeleteRange" DeleteRangeRequest DeleteRangeResponse
    txn "/etcdserverpb.KV/Txn" TxnRequest TxnResponse
    compact "/etcdserverpb.KV/Compact" CompactionRequest CompactionResponse
    status "/etcdserverpb.Maintenance/Status" StatusRequest StatusResponse
    alarm "/etcdserverpb.Maintenance/Alarm" AlarmRequest AlarmResponse
    hash "/etcdserverpb.Maintenance/Hash" HashRequest HashResponse
    hash_kv "/etcdserverpb.Maintenance/HashKV" HashKvRequest HashKvResponse
    defragment "/etcdserverpb.Maintenance/Defragment" DefragmentRequest DefragmentResponse
    member_list "/etcdserverpb.Cluster/MemberList" MemberListRequest MemberListResponse
    member_add "/etcdserverpb.Cluster/MemberAdd" MemberAddRequest MemberAddResponse
    member_remove "/etcdserverpb.Cluster/MemberRemove" MemberRemoveRequest MemberRemoveResponse
    member_update "/etcdserverpb.Cluster/MemberUpdate" MemberUpdateRequest MemberUpdateResponse
    member_promote "/etcdserverpb.Cluster/MemberPromote" MemberPromoteRequest MemberPromoteResponse
    lease_grant "/etcdserverpb.Lease/LeaseGrant" LeaseGrantRequest LeaseGrantResponse
    move_leader "/etcdserverpb.Maintenance/MoveLeader" MoveLeaderRequest MoveLeaderResponse
}

impl Client {
    pub async fn connect(setup: &Setup) -> Self {
        let endpoint = Endpoint::from_shared(setup.endpoint()).expect("a URL");
        Self { channel: endpoint.connect().await.expect("the member listens"), token: None }
    }

    /// The same connection, with another token or none.
    pub fn with_token(&self, token: Option<&str>) -> Self {
        Self { channel: self.channel.clone(), token: token.map(str::to_owned) }
    }

    /// Logs in.
    pub async fn token_of(&self, name: &str, password: &str) -> Result<String, tonic::Status> {
        let (name, password) = (name.to_owned(), password.to_owned());
        let request = pb::AuthenticateRequest { name, password };
        let path = "/etcdserverpb.Auth/Authenticate";
        let answer: pb::AuthenticateResponse = self.unary(path, request).await?;
        Ok(answer.token)
    }

    /// The connection, for calls that have no function here.
    pub fn grpc(&self) -> Grpc<Channel> {
        Grpc::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    pub fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.parse().expect("a token"));
        }
        request
    }

    pub async fn try_connect(setup: &Setup) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(setup.endpoint()).expect("a URL");
        Ok(Self { channel: endpoint.connect().await?, token: None })
    }

    pub async fn unary<Q, R>(&self, path: &'static str, request: Q) -> Result<R, tonic::Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        R: prost::Message + Default + Send + Sync + 'static,
    {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(usize::MAX);
        grpc.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let codec: ProstCodec<Q, R> = ProstCodec::default();
        let path = PathAndQuery::from_static(path);
        Ok(grpc.unary(self.request(request), path, codec).await?.into_inner())
    }

    /// All messages of a RangeStream.
    pub async fn range_stream(
        &self,
        request: pb::RangeRequest,
    ) -> Result<Vec<pb::RangeResponse>, tonic::Status> {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(usize::MAX);
        grpc.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let codec: ProstCodec<pb::RangeRequest, pb::RangeStreamResponse> = ProstCodec::default();
        let path = PathAndQuery::from_static("/etcdserverpb.KV/RangeStream");
        let mut stream =
            grpc.server_streaming(self.request(request), path, codec).await?.into_inner();
        let mut chunks = Vec::new();
        while let Some(message) = stream.message().await? {
            chunks.push(message.range_response.unwrap_or_default());
        }
        Ok(chunks)
    }

    pub async fn put_kv(&self, key: &str, value: &str) -> i64 {
        let request = pb::PutRequest {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            ..Default::default()
        };
        self.put(request).await.expect("put").header.expect("header").revision
    }

    pub async fn get(&self, key: &str) -> Option<String> {
        let request = pb::RangeRequest { key: key.to_owned().into(), ..Default::default() };
        let response = self.range(request).await.expect("range");
        let kv = response.kvs.first()?;
        Some(String::from_utf8(kv.value.to_vec()).expect("text"))
    }
}

pub fn has_program(name: &str) -> bool {
    let mut command = Command::new(name);
    let quiet = command.arg("version").stdin(Stdio::null());
    let found = quiet.output().is_ok();
    if !found {
        eprintln!("SKIPPED: {name} is not here");
    }
    found
}

/// A plain HTTP/1.1 request over a fresh connection: status and body.
pub fn http_get(port: u16, target: &str) -> (u16, String) {
    use std::io::{Read, Write};
    let mut socket = std::net::TcpStream::connect(("127.0.0.1", port)).expect("listens");
    write!(socket, "GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("sent");
    let mut text = String::new();
    socket.read_to_string(&mut text).expect("an answer");
    let status = text.split(' ').nth(1).expect("a status").parse().expect("a number");
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
    (status, body)
}

/// etcd's own client, if it can be had; says loudly if not.
pub fn oracle(name: &str) -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/oracle").join(name);
    let found = std::env::var_os(format!("{}_BIN", name.to_uppercase()))
        .map(PathBuf::from)
        .or_else(|| built.exists().then_some(built))
        .or_else(|| {
            std::env::split_paths(&std::env::var_os("PATH")?)
                .map(|dir| dir.join(name))
                .find(|path| path.exists())
        });
    if found.is_none() {
        eprintln!("SKIPPED: {name} is not here; build bench/oracle with Go to run this test");
    }
    found
}
