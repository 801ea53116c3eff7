//! Requests that are not gRPC: health checks, metrics and versions, as a table of endpoints.
//!
//! They come over HTTP/1.1 and HTTP/2 alike. A new endpoint is one line of the table and a
//! function. A check that must read waits for its linearizable point as a call does; pages that
//! cost much are rendered for all who ask at about the same time.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use etcore_proto::error::EtcdError;
use etcore_proto::grpc::Metadata;

use super::pending::{CallKind, PendingCall, To};
use super::{Cx, Services};
use crate::http::{self, HealthCheck, HealthKind, Page, Query};
use crate::limits;
use crate::metrics::Exposition;
use crate::replies::{ConnId, HttpId, Replies};
use crate::work::Job;

/// A request that is not gRPC, as it came.
pub struct HttpRequest {
    /// Answer here.
    pub id: HttpId,
    /// Its method.
    pub method: String,
    /// Its target: a path, and a query as a rule.
    pub target: String,
    /// Its header fields; names in lower case.
    pub fields: Metadata,
    /// How it came.
    pub via: Via,
}

/// What of a request's connection matters to endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Via {
    /// It came to a URL for metrics and health checks alone.
    pub observes: bool,
    /// It came over TLS.
    pub is_secure: bool,
    /// Its client's certificate names a user.
    pub names_user: bool,
}

/// A request that an endpoint is to answer.
struct HttpCall {
    id: HttpId,
    method: String,
    path: String,
    query: Query,
    fields: Metadata,
    body: Vec<u8>,
}

/// The paths of an endpoint.
#[derive(Debug, Clone, Copy)]
enum Paths {
    Exactly(&'static str),
    /// This one and all below it.
    From(&'static str),
}

impl Paths {
    fn contain(self, path: &str) -> bool {
        match self {
            Self::Exactly(own) => path == own,
            Self::From(own) => path
                .strip_prefix(own)
                .is_some_and(|below| below.is_empty() || below.starts_with('/')),
        }
    }
}

/// What of a request's body an endpoint sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    /// Nothing: it answers at once, and the body is let pass.
    Ignored,
    /// All of it, if it has no more than so many bytes; larger ones are answered by 413.
    #[cfg_attr(not(test), expect(dead_code, reason = "the first endpoint with bodies is to come"))]
    Whole { bytes_max: usize },
}

struct Endpoint {
    paths: Paths,
    body: Body,
    /// It is served at URLs for metrics too.
    observes: bool,
    serve: fn(&mut Cx<'_>, HttpCall),
}

const fn endpoint(paths: Paths, serve: fn(&mut Cx<'_>, HttpCall)) -> Endpoint {
    Endpoint { paths, body: Body::Ignored, observes: false, serve }
}

/// One for those who watch over the member.
const fn observing(paths: Paths, serve: fn(&mut Cx<'_>, HttpCall)) -> Endpoint {
    Endpoint { observes: true, ..endpoint(paths, serve) }
}

const ENDPOINTS: &[Endpoint] = &[
    observing(Paths::Exactly("/health"), |cx, call| {
        let check = http::health_check(&call.method, &call.query);
        cx.check_or_refuse(call.id, check);
    }),
    observing(Paths::From("/livez"), |cx, call| cx.named_checks(&call)),
    observing(Paths::From("/readyz"), |cx, call| cx.named_checks(&call)),
    endpoint(Paths::Exactly("/version"), |cx, call| {
        let page = http::client_version_page(&call.method, cx.api.reads.view());
        cx.out.respond(call.id, &page);
    }),
    observing(Paths::Exactly("/metrics"), |cx, call| {
        let accept = call.fields.get(b"accept").unwrap_or_default();
        let form = Exposition::accepted(&String::from_utf8_lossy(accept));
        cx.metrics(call.id, form);
    }),
    endpoint(Paths::Exactly("/debug/vars"), |cx, call| cx.debug_vars(call.id, &call.method)),
    endpoint(Paths::From("/debug/pprof"), |cx, call| {
        cx.debug_pprof(call.id, &call.path, &call.query);
    }),
    #[cfg(test)]
    Endpoint {
        paths: Paths::Exactly("/echo"),
        body: Body::Whole { bytes_max: 100 },
        observes: false,
        serve: echo,
    },
];

/// Answers with what was asked, in two pieces: so that tests have an endpoint with bodies.
#[cfg(test)]
fn echo(cx: &mut Cx<'_>, call: HttpCall) {
    let page =
        Page { status: 200, content_type: http::TEXT, headers: Vec::new(), body: Vec::new() };
    if cx.out.begin_body(call.id, &page, None).is_ok() {
        let (first, second) = call.body.split_at(call.body.len() / 2);
        for piece in [first, second] {
            let _ = cx.out.write_body(call.id, piece);
        }
        cx.out.end_body(call.id);
    }
}

/// Requests whose bodies are still to come. Each is bounded by its endpoint, all of a connection by
/// the transport's windows, which open as bodies are let go.
#[derive(Default)]
pub(super) struct Uploads {
    by_id: BTreeMap<HttpId, (&'static Endpoint, HttpCall)>,
}

impl Uploads {
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The connection is closed.
    pub(super) fn connection_closed(&mut self, conn: ConnId) {
        if !self.by_id.is_empty() {
            self.by_id.retain(|id, _| id.conn != conn);
        }
    }
}

/// Pages rendered for everybody, by their format.
pub(super) struct RenderedPages {
    pages: Vec<(&'static str, Arc<Page>)>,
    /// Renders left until the next tick.
    left: u32,
    /// Renders so far.
    renders: u64,
}

impl Default for RenderedPages {
    fn default() -> Self {
        Self { pages: Vec::new(), left: limits::PAGE_RENDERS, renders: 0 }
    }
}

impl RenderedPages {
    /// Called ten times a second.
    pub(super) fn tick(&mut self) {
        self.left = (self.left + limits::PAGE_RENDERS_PER_TICK).min(limits::PAGE_RENDERS);
    }

    #[cfg(test)]
    pub(super) fn renders(&self) -> u64 {
        self.renders
    }

    /// The page in this format, rendered anew unless that was done often enough.
    fn get(&mut self, format: &'static str, render: impl FnOnce() -> Page) -> Arc<Page> {
        let known = self.pages.iter().position(|(known, _)| *known == format);
        if self.left == 0
            && let Some(at) = known
        {
            return self.pages[at].1.clone();
        }
        self.left = self.left.saturating_sub(1);
        self.renders += 1;
        let page = Arc::new(render());
        match known {
            Some(at) => self.pages[at].1 = page.clone(),
            None => self.pages.push((format, page.clone())),
        }
        page
    }
}

impl Services {
    /// Refuses requests for a host that is not to be served, and of users by certificate, whom the
    /// gateway does not know; says whose pages may read the response. False if it is refused.
    fn lets_in(&self, out: &mut dyn Replies, request: &HttpRequest) -> bool {
        let HttpRequest { id, target, fields, via, .. } = request;
        let id = *id;
        let access = &self.shared.config.access;
        let host = fields.get(b"host").or_else(|| fields.get(b":authority")).unwrap_or_default();
        let host = http::hostname(&String::from_utf8_lossy(host)).to_owned();
        // The certificate has named the host where there is one.
        if !via.is_secure && !http::takes_host(&access.hosts, &host) {
            tracing::warn!(
                host = %host,
                "rejecting HTTP request to prevent DNS rebinding attacks"
            );
            out.respond(id, &http::wrong_host(&host));
            return false;
        }
        // CVE-2018-16886.
        if via.names_user
            && access.gateway
            && target.starts_with("/v3/")
            && self.auth().is_enabled()
        {
            out.respond(id, &http::name_ignored());
            return false;
        }
        if !access.origins.iter().any(|known| known == "*") {
            let origin = fields.get(b"origin").map(String::from_utf8_lossy);
            let allowed =
                origin.filter(|origin| access.origins.iter().any(|known| known == origin));
            out.allow_origin(id, allowed.map(Cow::into_owned));
        }
        true
    }

    /// A request that is not gRPC came; `is_whole` if no body follows.
    pub fn http_opened(&mut self, out: &mut dyn Replies, request: HttpRequest, is_whole: bool) {
        let observes = request.via.observes;
        // Who may ask for metrics is the listener's business, as in etcd.
        if !observes && !self.lets_in(out, &request) {
            return;
        }
        if request.method == "OPTIONS" && !observes {
            return out.respond(request.id, &Page::empty(200));
        }
        let Some((path, query)) = http::split(&request.target) else {
            return out.refuse_request(request.id);
        };
        let mut request = Some(request);
        if !observes {
            request = request.and_then(|request| self.json_opened(out, request, &path, is_whole));
        }
        let Some(HttpRequest { id, method, fields, .. }) = request else { return };
        let mut endpoints = ENDPOINTS.iter().filter(|endpoint| endpoint.observes || !observes);
        let Some(endpoint) = endpoints.find(|endpoint| endpoint.paths.contain(&path)) else {
            return out.respond(id, &http::not_found());
        };
        let call = HttpCall { id, method, path, query, fields, body: Vec::new() };
        if is_whole || endpoint.body == Body::Ignored {
            (endpoint.serve)(&mut self.with(out), call);
        } else {
            self.uploads.by_id.insert(id, (endpoint, call));
        }
    }

    /// A piece of such a request's body came.
    pub fn http_body(&mut self, out: &mut dyn Replies, id: HttpId, piece: &Bytes, is_last: bool) {
        if self.json_body(out, id, piece, is_last) {
            return out.consumed(id, piece.len());
        }
        out.consumed(id, piece.len());
        let Some((endpoint, call)) = self.uploads.by_id.get_mut(&id) else { return };
        let Body::Whole { bytes_max } = endpoint.body else { return };
        if call.body.len() + piece.len() > bytes_max {
            self.uploads.by_id.remove(&id);
            return out.respond(id, &Page::empty(413));
        }
        call.body.extend_from_slice(piece);
        if is_last && let Some((endpoint, call)) = self.uploads.by_id.remove(&id) {
            (endpoint.serve)(&mut self.with(out), call);
        }
    }

    /// The client has gone away from such a request, or broke it off.
    pub fn http_cancelled(&mut self, id: HttpId) {
        self.uploads.by_id.remove(&id);
    }
}

impl Services {
    /// What etcd counts of a check's reads.
    fn count_reads(&self, check: &HealthCheck, success: bool) {
        let reads = match &check.kind {
            HealthKind::Health => 1,
            HealthKind::Checks { names, .. } => {
                names.iter().filter(|name| name.ends_with("_read")).count()
            }
        };
        for _ in 0..reads {
            self.shared.metrics.ranges.inc();
            self.calls.own_read(success, Duration::ZERO);
        }
    }
}

impl Cx<'_> {
    fn named_checks(&mut self, call: &HttpCall) {
        let check = http::named_checks(&call.method, &call.path, &call.query);
        self.check_or_refuse(call.id, check);
    }

    fn check_or_refuse(&mut self, id: HttpId, check: Result<HealthCheck, Page>) {
        match check {
            Ok(check) => self.check_health(id, check),
            Err(page) => self.out.respond(id, &page),
        }
    }

    fn metrics(&mut self, id: HttpId, form: Exposition) {
        let api = &mut *self.api;
        api.work.note(Job::Page);
        let (shared, view) = (&api.shared, api.reads.view());
        let pins = api.reads.pins().count();
        let render = || http::metrics_page(shared, view, pins, form);
        let page = api.rendered.get(form.content_type(), render);
        self.out.respond(id, &page);
    }

    fn check_health(&mut self, id: HttpId, check: HealthCheck) {
        if check.serializable {
            return self.finish_health(id, &check, Ok(()));
        }
        if self.api.pending.is_full() {
            return self.finish_health(id, &check, Err(EtcdError::TooManyRequests));
        }
        let pending = PendingCall {
            to: To::Http(id),
            kind: CallKind::Health(Box::new(check)),
            deadline_ms: self.api.now_ms + self.api.shared.config.request_timeout_ms(),
            client_deadline: false,
            bytes: 0,
        };
        if let Ok(slot) = self.api.pending.insert(pending) {
            self.api.wait_for_ticket(slot);
        }
    }

    /// Answers a health check whose read has ended.
    pub(super) fn finish_health(
        &mut self,
        id: HttpId,
        check: &HealthCheck,
        outcome: Result<(), EtcdError>,
    ) {
        self.api.count_reads(check, outcome.is_ok());
        let (shared, view) = (&self.api.shared, self.api.reads.view());
        let page = match &check.kind {
            HealthKind::Health => http::health_page(shared, view, check, outcome),
            HealthKind::Checks { path, names, verbose } => {
                http::check_page(shared, view, path, names, *verbose, outcome)
            }
        };
        self.out.respond(id, &page);
    }
}
