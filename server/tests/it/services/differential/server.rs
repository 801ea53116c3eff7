//! The servers of the differential test as processes with fresh data: etcd of any release, and
//! etcore.
//!
//! Each is killed when dropped.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use etcore_proto::pb::etcdserverpb as pb;
use prost::Message as _;

use super::answer::{Answer, Identity, Message, STATUS};
use super::client::Client;
use super::generate::{REQUEST_BYTES_MAX, TXN_OPS_MAX};
use crate::harness::Setup;

/// What to start.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Etcd(PathBuf),
    Etcore(&'static str),
}

impl Kind {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Kind::Etcd(_) => "etcd",
            Kind::Etcore(_) => "etcore",
        }
    }
}

/// A running server without a history, and its only client.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) client: Client,
    pub(crate) identity: Identity,
    pub(crate) version: String,
    pub(crate) port: u16,
    process: Process,
    _dir: tempfile::TempDir,
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const START: Duration = Duration::from_secs(30);
const ATTEMPTS: usize = 3;

impl Server {
    /// True if the process is no more.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.process.0.try_wait(), Ok(None))
    }

    /// Starts anew if it does not come up: somebody else may have taken the port.
    pub(crate) fn start(kind: &Kind) -> Self {
        (0..ATTEMPTS)
            .find_map(|_| Self::try_start(kind))
            .unwrap_or_else(|| panic!("{} does not start", kind.name()))
    }

    fn try_start(kind: &Kind) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let driver = match kind {
            Kind::Etcd(_) => "portable",
            Kind::Etcore(driver) => driver,
        };
        let setup = Setup::new(dir.path(), driver);
        let (client_url, peer_url) =
            (setup.endpoint(), format!("http://127.0.0.1:{}", setup.peer_port));
        let mut command = match kind {
            Kind::Etcore(_) => setup.command(),
            Kind::Etcd(program) => etcd(program, &setup),
        };
        command
            .arg(format!("--max-request-bytes={REQUEST_BYTES_MAX}"))
            .arg(format!("--max-txn-ops={TXN_OPS_MAX}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut process = Process(command.spawn().expect("the server starts"));
        let deadline = Instant::now() + START;
        loop {
            if let Ok(mut client) = Client::connect(setup.client_port)
                && let Some((identity, version)) = who(&mut client)
            {
                let identity = Identity { client_url, peer_url, ..identity };
                let name = kind.name();
                return Some(Self {
                    name,
                    client,
                    identity,
                    version,
                    port: setup.client_port,
                    process,
                    _dir: dir,
                });
            }
            let is_over = process.0.try_wait().expect("our child").is_some();
            if is_over || Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn etcd(program: &PathBuf, setup: &Setup) -> Command {
    let client = setup.endpoint();
    let peer = format!("http://127.0.0.1:{}", setup.peer_port);
    let mut command = Command::new(program);
    // What the environment says about etcd is about another one.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ETCD_") {
            command.env_remove(name);
        }
    }
    command
        .arg("--name=default")
        .arg("--data-dir")
        .arg(&setup.data_dir)
        .arg(format!("--listen-client-urls={client}"))
        .arg(format!("--advertise-client-urls={client}"))
        .arg(format!("--listen-peer-urls={peer}"))
        .arg(format!("--initial-advertise-peer-urls={peer}"))
        .arg(format!("--initial-cluster=default={peer}"))
        .arg("--unsafe-no-fsync")
        .arg("--log-level=error");
    command
}

/// Who answers, once it has a leader.
fn who(client: &mut Client) -> Option<(Identity, String)> {
    let call = client.start(STATUS, &pb::StatusRequest::default().encode_to_vec());
    let answer = Answer::new(STATUS, client.finish(call, Duration::from_secs(10)));
    let Some(Message::Status(status)) = answer.messages.into_iter().next() else { return None };
    let header = status.header?;
    if status.leader == 0 {
        return None;
    }
    let identity = Identity {
        cluster: header.cluster_id,
        member: header.member_id,
        term: header.raft_term,
        ..Identity::default()
    };
    Some((identity, status.version))
}
