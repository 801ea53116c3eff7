//! etcd's static pod as kubeadm writes it: the command lines of 1.29 and 1.36 start a member, with
//! certificates like kubeadm's, whose probes answer and whom the API server's client reaches.

use std::path::Path;
use std::process::Command;

use rcgen::ExtendedKeyUsagePurpose;

use crate::harness::certs::{Authority, Pair, Wanted};
use crate::harness::{Member, free_port, http_get, oracle};

/// What kubeadm puts below `/etc/kubernetes/pki`.
struct Pki {
    authority: Authority,
    server: Pair,
    peer: Pair,
    health_check: Pair,
    api_server: Pair,
}

impl Pki {
    fn new(dir: &Path) -> Self {
        let authority = Authority::new(dir, "etcd-ca");
        let names = ["node", "localhost", "127.0.0.1", "::1"];
        let own = Wanted { names: &names, common_name: "node", ..Wanted::default() };
        let client = |name| Wanted {
            names: &[],
            common_name: name,
            usages: &[ExtendedKeyUsagePurpose::ClientAuth],
            ..Wanted::default()
        };
        Self {
            server: authority.issue_as("server", &own),
            peer: authority.issue_as("peer", &own),
            health_check: authority
                .issue_as("healthcheck-client", &client("kube-etcd-healthcheck-client")),
            api_server: authority
                .issue_as("apiserver-etcd-client", &client("kube-apiserver-etcd-client")),
            authority,
        }
    }
}

/// A version's command line and probes.
struct Pod {
    flags: &'static [&'static str],
    probes: &'static [&'static str],
}

const PODS: [Pod; 2] = [
    Pod {
        flags: &[
            "--experimental-initial-corrupt-check=true",
            "--experimental-watch-progress-notify-interval=5s",
        ],
        probes: &["/health?exclude=NOSPACE&serializable=true", "/health?serializable=false"],
    },
    Pod {
        flags: &["--feature-gates=InitialCorruptCheck=true", "--watch-progress-notify-interval=5s"],
        probes: &["/livez", "/readyz"],
    },
];

/// The ports that the pod has in place of 2379, 2380 and 2381.
struct Ports {
    client: u16,
    peer: u16,
    metrics: u16,
}

fn command(pod: &Pod, dir: &Path, pki: &Pki, ports: &Ports) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_etcore"));
    let ca_file = &pki.authority.ca_file;
    let client = format!("https://127.0.0.1:{}", ports.client);
    let peer = format!("https://127.0.0.1:{}", ports.peer);
    command
        .arg(format!("--advertise-client-urls={client}"))
        .arg(format!("--cert-file={}", pki.server.cert))
        .arg("--client-cert-auth=true")
        .arg(format!("--data-dir={}", dir.join("etcd").display()))
        .args(pod.flags)
        .arg(format!("--initial-advertise-peer-urls={peer}"))
        .arg(format!("--initial-cluster=node={peer}"))
        .arg(format!("--key-file={}", pki.server.key))
        .arg(format!("--listen-client-urls={client},https://[::1]:{}", ports.client))
        .arg(format!("--listen-metrics-urls=http://127.0.0.1:{}", ports.metrics))
        .arg(format!("--listen-peer-urls={peer}"))
        .arg("--name=node")
        .arg(format!("--peer-cert-file={}", pki.peer.cert))
        .arg("--peer-client-cert-auth=true")
        .arg(format!("--peer-key-file={}", pki.peer.key))
        .arg(format!("--peer-trusted-ca-file={ca_file}"))
        .arg("--snapshot-count=10000")
        .arg(format!("--trusted-ca-file={ca_file}"))
        // The pod has a disk of its own; tests share one.
        .arg(format!("--wal-segment-bytes={}", crate::harness::SEGMENT_BYTES));
    command
}

/// What etcdctl prints, with a client's certificate.
fn etcdctl(port: u16, pki: &Pki, pair: &Pair, args: &[&str]) -> Option<String> {
    let output = Command::new(oracle("etcdctl")?)
        .arg(format!("--endpoints=https://127.0.0.1:{port}"))
        .arg(format!("--cacert={}", pki.authority.ca_file))
        .arg(format!("--cert={}", pair.cert))
        .arg(format!("--key={}", pair.key))
        .args(args)
        // It tells of variables that it does not know.
        .env_remove("ETCDCTL_BIN")
        .output()
        .expect("etcdctl runs");
    let text = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn kubeadms_static_pods_start_and_their_probes_answer() {
    let _turn = crate::harness::turn::light();
    for pod in &PODS {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::new(dir.path());
        let ports = Ports { client: free_port(), peer: free_port(), metrics: free_port() };
        let mut member = Member::spawn(command(pod, dir.path(), &pki, &ports));
        member.wait_for_line("ready to serve client requests");
        for probe in pod.probes {
            let (status, body) = http_get(ports.metrics, probe);
            assert_eq!(status, 200, "{probe}: {body}");
        }
        let (status, page) = http_get(ports.metrics, "/metrics");
        assert!(status == 200 && page.contains("\netcd_server_has_leader 1\n"), "{page}");
        let run = |pair: &Pair, args: &[&str]| etcdctl(ports.client, &pki, pair, args);
        let Some(put) = run(&pki.api_server, &["put", "/registry/a", "b"]) else { continue };
        assert_eq!(put, "OK\n");
        let got = run(&pki.api_server, &["get", "/registry/", "--prefix"]);
        assert_eq!(got.as_deref(), Some("/registry/a\nb\n"));
        let health = run(&pki.health_check, &["endpoint", "health"]).unwrap_or_default();
        assert!(health.contains("is healthy"), "{health}");
    }
}
