//! Servers: started on empty folders, watched, and ended.
//!
//! Used by everything that measures. Must never end a process that it did not start, and never
//! leave one behind: whatever drops a [`Servers`] ends them.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use etcore_proto::pb::etcdserverpb::{PutRequest, PutResponse};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::{CompareError, Comparison, io_error, side_folder};
use crate::options::Endpoint;
use crate::{process, unary};

/// The members of one cluster, which run.
#[derive(Debug)]
pub(super) struct Servers {
    children: Vec<Child>,
    endpoints: Vec<Endpoint>,
}

/// The ports of a member.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) client: u16,
    pub(super) peer: u16,
}

impl Servers {
    /// Starts the side that is measured: a member for each pair of ports, on empty folders, on one
    /// core if one is named. They serve when this returns.
    pub(super) fn start(
        comparison: &mut Comparison<'_>,
        ports: &[Ports],
        core: Option<usize>,
    ) -> Result<Self, CompareError> {
        let side = comparison.side().clone();
        comparison.say(&format!("{}: starts", side.name));
        let folder = side_folder(&comparison.args.scratch, &side);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io_error(folder.display())(error));
            }
            _ => {}
        }
        let mut servers = Servers { children: Vec::new(), endpoints: Vec::new() };
        for (number, one) in ports.iter().enumerate() {
            require_free(one.client)?;
            require_free(one.peer)?;
            let folder = folder.join(member_name(number));
            let mut command = member(&side.path, &folder, number, ports)?;
            let child = spawn(&mut command, core).map_err(io_error(side.path.display()))?;
            servers.children.push(child);
            servers.endpoints.push(Endpoint::plain(&format!("127.0.0.1:{}", one.client)));
        }
        servers.wait_until_served(comparison, &folder)?;
        Ok(servers)
    }

    /// All members, as `--endpoints` takes them.
    pub(super) fn endpoints(&self) -> String {
        let all: Vec<&str> = self.endpoints.iter().map(|one| one.authority.as_str()).collect();
        all.join(",")
    }

    pub(super) fn first(&self) -> &Endpoint {
        &self.endpoints[0]
    }

    pub(super) fn first_pid(&self) -> u32 {
        self.children[0].id()
    }

    /// CPU that all members used since they started, in microseconds, in steps of a clock tick.
    pub(super) fn cpu_us(&self) -> Result<u64, CompareError> {
        self.usages(|usage| usage.cpu_us()).map(|all| all.iter().sum())
    }

    /// The largest member's anonymous memory in MiB.
    pub(super) fn rss_anon_mib(&self) -> Result<f64, CompareError> {
        let all = self.usages(|usage| usage.rss_anon_bytes)?;
        Ok(mib(all.into_iter().max().unwrap_or(0) as f64))
    }

    fn usages(&self, what: impl Fn(process::Usage) -> u64) -> Result<Vec<u64>, CompareError> {
        let one = |child: &Child| {
            process::usage(child.id())
                .map(&what)
                .map_err(|error| CompareError::Failed(format!("a server ended: {error}")))
        };
        self.children.iter().map(one).collect()
    }

    /// Waits until each member takes a put.
    fn wait_until_served(
        &mut self,
        comparison: &Comparison<'_>,
        folder: &Path,
    ) -> Result<(), CompareError> {
        let failed = |what: &str| {
            let name = &comparison.side().name;
            Err(CompareError::Failed(format!("{name} {what}: see {}", folder.display())))
        };
        let end = Instant::now() + START_PATIENCE;
        let put = PutRequest { key: "ready".into(), ..PutRequest::default() };
        for endpoint in &self.endpoints {
            loop {
                comparison.check_stopped()?;
                let has_ended = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
                if self.children.iter_mut().any(has_ended) {
                    return failed("ended");
                }
                let answer: Result<PutResponse, String> =
                    unary::call(endpoint, "/etcdserverpb.KV/Put", &put, RETRY_INTERVAL);
                if answer.is_ok() {
                    break;
                }
                if Instant::now() > end {
                    return failed("does not answer");
                }
                std::thread::sleep(RETRY_INTERVAL);
            }
        }
        Ok(())
    }
}

impl Drop for Servers {
    /// At once: with open streams etcd takes seconds to end by itself, and nothing here is kept.
    fn drop(&mut self) {
        for child in &mut self.children {
            // One that has ended already needs neither.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The command that starts the member with this number.
fn member(
    path: &Path,
    folder: &Path,
    number: usize,
    ports: &[Ports],
) -> Result<Command, CompareError> {
    std::fs::create_dir_all(folder).map_err(io_error(folder.display()))?;
    let log = File::create(folder.join("log")).map_err(io_error(folder.display()))?;
    let errors = log.try_clone().map_err(io_error(folder.display()))?;
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let all = ports.iter().enumerate();
    let all: Vec<String> =
        all.map(|(number, one)| format!("{}={}", member_name(number), url(one.peer))).collect();
    let own = ports[number];
    let mut command = Command::new(path);
    command.args(["--name", &member_name(number)]);
    command.arg("--data-dir").arg(folder.join("data"));
    command.args(["--listen-client-urls", &url(own.client)]);
    command.args(["--advertise-client-urls", &url(own.client)]);
    command.args(["--listen-peer-urls", &url(own.peer)]);
    command.args(["--initial-advertise-peer-urls", &url(own.peer)]);
    command.args(["--initial-cluster", &all.join(","), "--initial-cluster-token", "compare"]);
    command.stdin(Stdio::null()).stdout(log).stderr(errors);
    Ok(command)
}

fn member_name(number: usize) -> String {
    format!("m{}", number + 1)
}

/// Another server there would be measured in place of ours. One that was killed may listen on for a
/// moment: the kernel ends its io_uring, which holds the socket, after the process.
fn require_free(port: u16) -> Result<(), CompareError> {
    let end = Instant::now() + PORT_PATIENCE;
    loop {
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(_) => return Ok(()),
            Err(_) if Instant::now() < end => std::thread::sleep(RETRY_INTERVAL),
            Err(error) => {
                let why = format!("port {port} cannot be used: {error}; see --port");
                return Err(CompareError::Failed(why));
            }
        }
    }
}

/// Starts a process on one core, or on all. A process runs where the thread that started it may
/// run: hence a thread.
pub(super) fn spawn(command: &mut Command, core: Option<usize>) -> std::io::Result<Child> {
    let Some(core) = core else { return command.spawn() };
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let allowed = sched_getaffinity(None)?;
            let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
            let mut one = CpuSet::new();
            one.set(cores.nth(core).ok_or_else(|| std::io::Error::other("no such core"))?);
            sched_setaffinity(None, &one)?;
            command.spawn()
        });
        thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the starting thread failed")))
    })
}

pub(super) fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// Time for all members to serve.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long a port may stay in use after its server was killed.
const PORT_PATIENCE: Duration = Duration::from_secs(3);
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
