//! The plain HTTP endpoints: health, version and metrics on the client port; version and members on
//! the peer port.
//!
//! Called by the services' endpoints and by the peer port with parsed requests. A check that must
//! read is a [`HealthCheck`], finished by whoever reads. Nothing here does I/O.

use std::sync::atomic::Ordering;

use etcore_proto::error::EtcdError;
use etcore_proto::pb::etcdserverpb::AlarmType;

use crate::channel::StalledWork;
use crate::channel::{MemberView, Shared};
use crate::cluster::version;
use crate::metrics::Exposition;

mod date;
mod host;
mod query;

pub use date::http_date;
pub use host::{hostname, name_ignored, takes_host, wrong_host};
pub use query::{Query, split};

/// The content type of texts.
pub const TEXT: &str = "text/plain; charset=utf-8";

/// A response without its framing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// HTTP status.
    pub status: u16,
    /// `content-type`; none if empty.
    pub content_type: &'static str,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Page {
    /// A page that says nothing but its status.
    #[must_use]
    pub fn empty(status: u16) -> Self {
        Self { status, content_type: "", headers: Vec::new(), body: Vec::new() }
    }
}

/// A health check that waits for a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// Read locally.
    pub serializable: bool,
    /// Alarms that do not make `/health` unhealthy.
    pub excluded: Vec<String>,
    /// The endpoint that asked.
    pub kind: HealthKind,
}

/// The shape of a health answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthKind {
    /// `/health`: JSON.
    Health,
    /// `/livez` and `/readyz` and their sub-paths: a list of named checks.
    Checks {
        /// The path that was asked for.
        path: Box<str>,
        /// Checks to report, in order.
        names: Vec<&'static str>,
        /// `?verbose`, or a failure, lists them.
        verbose: bool,
    },
}

const LIVEZ: &[&str] = &["serializable_read"];
const READYZ: &[&str] =
    &["data_corruption", "serializable_read", "linearizable_read", "non_learner"];

/// The check that `/health` makes, or the page that says why it makes none.
///
/// # Errors
/// The page.
pub fn health_check(method: &str, query: &Query) -> Result<HealthCheck, Page> {
    if method != "GET" {
        tracing::warn!(status_code = 405, "/health error");
        return Err(not_allowed("GET"));
    }
    Ok(HealthCheck {
        serializable: query.first("serializable") == Some("true"),
        excluded: query.all("exclude").map(str::to_owned).collect(),
        kind: HealthKind::Health,
    })
}

/// The checks that a path at or below `/livez` and `/readyz` makes, or the page that says why it
/// makes none.
///
/// # Errors
/// The page.
pub fn named_checks(method: &str, path: &str, query: &Query) -> Result<HealthCheck, Page> {
    let names = checks_of(path).ok_or_else(not_found)?;
    if method != "GET" {
        tracing::warn!(path = %path, status_code = 405, "Health request error");
        return Err(not_allowed("GET"));
    }
    Ok(checks(path, names, query))
}

/// The page of `/version` on a client URL.
pub fn client_version_page(method: &str, view: &MemberView) -> Page {
    if method == "GET" { version_page(view) } else { not_allowed("GET") }
}

/// The page of `/metrics`. Costs as much as thousands of calls: to be rendered for many at once.
/// What the view knows is read for it; `pins` are the revisions that long reads keep.
pub fn metrics_page(shared: &Shared, view: &MemberView, pins: usize, form: Exposition) -> Page {
    let (metrics, store) = (&shared.metrics, &view.store);
    metrics.keys.set(store.key_count());
    metrics.current_revision.set(store.revision.0.unsigned_abs());
    metrics.storage.compact_revision.set(store.compact_revision.0 as f64);
    metrics.storage.open_reads.set(pins as u64);
    metrics.proposals_committed.set(shared.status.committed.load(Ordering::Relaxed));
    metrics.proposals_applied.set(shared.status.applied.load(Ordering::Relaxed));
    metrics.auth_revision.set(view.auth.revision());
    metrics.is_learner.set(u64::from(view.is_learner));
    if let Some(version) = &view.cluster_version {
        // etcd names no patch in it.
        let minor = version.rsplit_once('.').map_or(&**version, |(minor, _)| minor);
        metrics.set_cluster_version(minor);
    }
    metrics.network.know(shared.member_id, view.members.iter().map(|member| member.id));
    Page {
        status: 200,
        content_type: form.content_type(),
        headers: Vec::new(),
        body: metrics.render(form).into_bytes(),
    }
}

/// Answers a request on a peer URL.
pub fn peer(shared: &Shared, view: &MemberView, method: &str, target: &str) -> Page {
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    match path {
        "/version" | "/members" if method != "GET" => not_allowed("GET"),
        "/version" => version_page(view),
        "/members" => Page {
            status: 200,
            content_type: "application/json",
            headers: vec![("X-Etcd-Cluster-Id", format!("{:x}", shared.cluster_id))],
            body: members_json(view),
        },
        _ => not_found(),
    }
}

/// The body of `/health` once its read has ended.
pub fn health_page(
    shared: &Shared,
    view: &MemberView,
    check: &HealthCheck,
    outcome: Result<(), EtcdError>,
) -> Page {
    let alarm = view.alarms.names().find(|name| !check.excluded.iter().any(|known| known == name));
    let outcome = match (alarm, outcome) {
        (Some(name), _) => {
            tracing::warn!(alarm = name, "serving /health false due to an alarm");
            Err(format!("ALARM {name}"))
        }
        (None, _) if !check.serializable && !shared.has_leader() => {
            tracing::warn!("serving /health false; no leader");
            Err("RAFT NO LEADER".to_owned())
        }
        (None, Ok(())) => match stalled(shared) {
            Some(work) => {
                tracing::warn!(work, "serving /health false; work stands still");
                Err(format!("STALLED {work}"))
            }
            None => Ok(()),
        },
        (None, Err(error)) => {
            tracing::warn!(error = %error, "serving /health false; Range fails");
            Err(format!("RANGE ERROR:{error}"))
        }
    };
    let body = |healthy: &str, reason: &str| {
        serde_json::json!({ "health": healthy, "reason": reason }).to_string()
    };
    match outcome {
        Ok(()) => {
            shared.metrics.health_success.inc();
            let body = body("true", "").into();
            tracing::debug!(status_code = 200, "/health OK");
            Page { status: 200, content_type: TEXT, headers: Vec::new(), body }
        }
        Err(reason) => {
            shared.metrics.health_failures.inc();
            let output = body("false", &reason);
            tracing::warn!(output = %output, status_code = 503, "/health error");
            text_page(503, &(output + "\n"))
        }
    }
}

/// The body of `/livez` and `/readyz` once their read has ended.
pub fn check_page(
    shared: &Shared,
    view: &MemberView,
    path: &str,
    names: &[&'static str],
    verbose: bool,
    outcome: Result<(), EtcdError>,
) -> Page {
    let read = match outcome {
        Err(error) => Some(error.to_string()),
        Ok(()) if !shared.has_leader() && names.contains(&"linearizable_read") => {
            Some(EtcdError::NoLeader.to_string())
        }
        Ok(()) => None,
    };
    let corrupt = view.alarms.is_on(AlarmType::Corrupt);
    let mut failed = false;
    let mut list = String::new();
    for name in names {
        let why = match *name {
            "data_corruption" if corrupt => Some("alarm activated: CORRUPT"),
            name if name.ends_with("_read") => read.as_deref(),
            _ => None,
        };
        failed |= why.is_some();
        let kind = if path.starts_with("/livez") { "livez" } else { "readyz" };
        shared.metrics.health_checked(kind, name, why.is_none());
        match why {
            Some(why) => list += &format!("[-]{name} failed: {why}\n"),
            None => list += &format!("[+]{name} ok\n"),
        }
    }
    if names.len() > 1
        && names.contains(&"linearizable_read")
        && let Some(work) = stalled(shared)
    {
        // etcd has no such check: it is listed only when it fails.
        failed = true;
        list += &format!("[-]stalled_work failed: {work}\n");
    }
    if failed {
        let reason = &list;
        tracing::error!(path, reason = %reason, status_code = 503, "Health check error");
        return text_page(503, &(list + "\n"));
    }
    text_page(200, &if verbose { list + "ok\n" } else { "ok\n".to_owned() })
}

/// What the member waits for and does not go on.
fn stalled(shared: &Shared) -> Option<String> {
    let bits = shared.status.stalled.load(Ordering::Relaxed);
    let names: Vec<&str> = StalledWork::of_bits(bits).map(StalledWork::name).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// The checks behind a path: all of a kind, or the one that it names.
fn checks_of(path: &str) -> Option<Vec<&'static str>> {
    let (all, name) = match path.strip_prefix("/livez") {
        Some(name) => (LIVEZ, name),
        None => (READYZ, path.strip_prefix("/readyz")?),
    };
    if name.is_empty() {
        return Some(all.to_vec());
    }
    let name = name.strip_prefix('/')?;
    all.iter().copied().find(|known| *known == name).map(|name| vec![name])
}

fn checks(path: &str, mut names: Vec<&'static str>, query: &Query) -> HealthCheck {
    let known = |excluded: &&str| excluded.is_empty() || names.contains(excluded);
    let unknown: Vec<&str> = query.all("exclude").filter(|excluded| !known(excluded)).collect();
    if !unknown.is_empty() && matches!(path, "/livez" | "/readyz") {
        let missing = format!("{unknown:?}");
        let missing = missing.trim_matches(['[', ']']);
        tracing::warn!(missing_health_checks = missing, "some health checks cannot be excluded");
    }
    // A check that is asked for by its own path is made.
    if matches!(path, "/livez" | "/readyz") {
        names.retain(|name| !query.all("exclude").any(|excluded| excluded == *name));
    }
    HealthCheck {
        serializable: !names.contains(&"linearizable_read"),
        excluded: Vec::new(),
        kind: HealthKind::Checks { path: path.into(), names, verbose: query.has("verbose") },
    }
}

fn version_page(view: &MemberView) -> Page {
    let cluster = view.cluster_version.as_deref().unwrap_or("not_decided");
    let body = format!(
        r#"{{"etcdserver":"{}","etcdcluster":"{cluster}","storage":"{}"}}"#,
        version::ETCD,
        version::STORAGE
    );
    Page { status: 200, content_type: "application/json", headers: Vec::new(), body: body.into() }
}

fn members_json(view: &MemberView) -> Vec<u8> {
    let mut body =
        serde_json::to_vec(&*view.members).expect("strings and numbers always serialize");
    body.push(b'\n');
    body
}

/// What Go says of a path that nobody serves.
pub fn not_found() -> Page {
    text_page(404, "404 page not found\n")
}

/// What Go says of a method that is not served, with the one that is.
pub fn not_allowed(allow: &str) -> Page {
    let mut page = text_page(405, "Method Not Allowed\n");
    page.headers.push(("Allow", allow.to_owned()));
    page
}

fn text_page(status: u16, text: &str) -> Page {
    Page {
        status,
        content_type: TEXT,
        headers: vec![("X-Content-Type-Options", "nosniff".to_owned())],
        body: text.into(),
    }
}
