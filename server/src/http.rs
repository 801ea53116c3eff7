//! The plain HTTP endpoints: health, version and metrics on the client port; version and members on
//! the peer port.
//!
//! Called by the fronts with parsed requests. A check that needs raft returns [`Answer::Health`]
//! and the front finishes it. Nothing here does I/O.

use std::sync::atomic::Ordering;

use etcore_proto::error::EtcdError;
use etcore_proto::pb::etcdserverpb::AlarmType;

use crate::replica::watchdog::Work;
use crate::shared::{MemberView, Shared};
use crate::version;

/// The content type of texts.
pub const TEXT: &str = "text/plain; charset=utf-8";

/// A response without its framing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// HTTP status.
    pub status: u16,
    /// `content-type`.
    pub content_type: &'static str,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// What to do with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Send this.
    Page(Page),
    /// Make a read, linearizable unless `serializable`, and answer by [`health_page`] or
    /// [`check_page`].
    Health(HealthCheck),
}

/// A health check that waits for a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// Read locally.
    pub serializable: bool,
    /// Alarms that do not make `/health` unhealthy.
    pub excluded: Vec<String>,
    /// Which endpoint asked.
    pub kind: HealthKind,
}

/// The shape of a health answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthKind {
    /// `/health`: JSON.
    Health,
    /// `/livez` and `/readyz` and their sub-paths: a list of named checks.
    Checks {
        /// Checks to report, in order.
        names: Vec<&'static str>,
        /// `?verbose`, or a failure, lists them.
        verbose: bool,
    },
}

const LIVEZ: &[&str] = &["serializable_read"];
const READYZ: &[&str] =
    &["data_corruption", "serializable_read", "linearizable_read", "non_learner"];

/// Answers a request on a client URL. `target` is the request target with its query.
pub fn client(shared: &Shared, view: &MemberView, method: &str, target: &str) -> Answer {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    match path {
        "/health" | "/livez" | "/readyz" if method != "GET" => Answer::Page(not_allowed("GET")),
        "/health" => Answer::Health(HealthCheck {
            serializable: query_value(query, "serializable") == Some("true"),
            excluded: excluded(query).map(str::to_owned).collect(),
            kind: HealthKind::Health,
        }),
        "/livez" => checks(LIVEZ, query),
        "/readyz" => checks(READYZ, query),
        "/version" if method != "GET" => Answer::Page(not_allowed("GET")),
        "/version" => Answer::Page(version_page(view)),
        "/metrics" => Answer::Page(Page {
            status: 200,
            content_type: "application/openmetrics-text; version=1.0.0; charset=utf-8",
            headers: Vec::new(),
            body: shared.metrics.render().into_bytes(),
        }),
        _ => match sub_check(path) {
            Some(name) => Answer::Health(HealthCheck {
                serializable: name != "linearizable_read",
                excluded: Vec::new(),
                kind: HealthKind::Checks { names: vec![name], verbose: false },
            }),
            None => Answer::Page(not_found()),
        },
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
        (Some(name), _) => Err(format!("ALARM {name}")),
        (None, _) if !check.serializable && !shared.has_leader() => {
            Err("RAFT NO LEADER".to_owned())
        }
        (None, Ok(())) => stalled(shared).map_or(Ok(()), |work| Err(format!("STALLED {work}"))),
        (None, Err(error)) => Err(format!("RANGE ERROR:{error}")),
    };
    let (status, healthy, reason) = match outcome {
        Ok(()) => {
            shared.metrics.health_success.inc();
            (200, "true", String::new())
        }
        Err(reason) => {
            shared.metrics.health_failures.inc();
            (503, "false", reason)
        }
    };
    let body = serde_json::json!({ "health": healthy, "reason": reason }).to_string();
    Page { status, content_type: "application/json", headers: Vec::new(), body: body.into() }
}

/// The body of `/livez` and `/readyz` once their read has ended.
pub fn check_page(
    shared: &Shared,
    view: &MemberView,
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
    let status = if failed { 503 } else { 200 };
    let mut body = if verbose || failed { list } else { String::new() };
    if !failed {
        body += "ok\n";
    }
    Page {
        status,
        content_type: TEXT,
        headers: vec![("X-Content-Type-Options", "nosniff".to_owned())],
        body: body.into(),
    }
}

/// What the member waits for and does not go on.
fn stalled(shared: &Shared) -> Option<String> {
    let bits = shared.status.stalled.load(Ordering::Relaxed);
    let names: Vec<&str> = Work::of_bits(bits).map(Work::name).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

fn checks(all: &[&'static str], query: &str) -> Answer {
    let excluded: Vec<&str> = excluded(query).collect();
    let names: Vec<_> = all.iter().copied().filter(|name| !excluded.contains(name)).collect();
    let verbose = query.split('&').any(|pair| pair == "verbose" || pair.starts_with("verbose="));
    Answer::Health(HealthCheck {
        serializable: !names.contains(&"linearizable_read"),
        excluded: Vec::new(),
        kind: HealthKind::Checks { names, verbose },
    })
}

fn excluded(query: &str) -> impl Iterator<Item = &str> {
    query.split('&').filter_map(|pair| pair.strip_prefix("exclude="))
}

fn sub_check(path: &str) -> Option<&'static str> {
    let (all, name) = match path.strip_prefix("/livez/") {
        Some(name) => (LIVEZ, name),
        None => (READYZ, path.strip_prefix("/readyz/")?),
    };
    all.iter().copied().find(|known| *known == name)
}

fn query_value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
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

fn not_found() -> Page {
    text_page(404, "404 page not found\n")
}

fn not_allowed(allow: &str) -> Page {
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
