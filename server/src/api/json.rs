//! The JSON gateway: requests below `/v3/` become calls, as grpc-gateway v2 makes them of etcd's
//! methods (etcd `server/embed/serve.go`, `api/etcdserverpb/gw`).
//!
//! Such a call goes through the same table, gate and services as one of gRPC, so that every check
//! and limit stands once; the front writes what it is answered as JSON. The body of a unary call is
//! kept until it is complete, charged to the budgets; that of a stream is taken value by value.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use etcore_proto::error::{Code, Status};
use etcore_proto::grpc::{Metadata, MethodId, RequestMeta};
use etcore_proto::json::{self, Method, Scanned, Scanner};

use super::call::Call;
use super::endpoints::HttpRequest;
use super::routes::{Unary, method_id};
use super::{Cx, Services};
use crate::http::Page;
use crate::limits;
use crate::replies::{CallId, Caller, ConnId, HttpId, Replies};

mod websocket;

/// Every path below `/v3/`, and its method's.
const PATHS: &[(&str, &str)] = &[
    ("kv/range", "/etcdserverpb.KV/Range"),
    ("kv/put", "/etcdserverpb.KV/Put"),
    ("kv/deleterange", "/etcdserverpb.KV/DeleteRange"),
    ("kv/txn", "/etcdserverpb.KV/Txn"),
    ("kv/compaction", "/etcdserverpb.KV/Compact"),
    ("watch", "/etcdserverpb.Watch/Watch"),
    ("lease/grant", "/etcdserverpb.Lease/LeaseGrant"),
    ("lease/revoke", "/etcdserverpb.Lease/LeaseRevoke"),
    ("kv/lease/revoke", "/etcdserverpb.Lease/LeaseRevoke"),
    ("lease/keepalive", "/etcdserverpb.Lease/LeaseKeepAlive"),
    ("lease/timetolive", "/etcdserverpb.Lease/LeaseTimeToLive"),
    ("kv/lease/timetolive", "/etcdserverpb.Lease/LeaseTimeToLive"),
    ("lease/leases", "/etcdserverpb.Lease/LeaseLeases"),
    ("kv/lease/leases", "/etcdserverpb.Lease/LeaseLeases"),
    ("cluster/member/add", "/etcdserverpb.Cluster/MemberAdd"),
    ("cluster/member/remove", "/etcdserverpb.Cluster/MemberRemove"),
    ("cluster/member/update", "/etcdserverpb.Cluster/MemberUpdate"),
    ("cluster/member/list", "/etcdserverpb.Cluster/MemberList"),
    ("cluster/member/promote", "/etcdserverpb.Cluster/MemberPromote"),
    ("maintenance/alarm", "/etcdserverpb.Maintenance/Alarm"),
    ("maintenance/status", "/etcdserverpb.Maintenance/Status"),
    ("maintenance/defragment", "/etcdserverpb.Maintenance/Defragment"),
    ("maintenance/hash", "/etcdserverpb.Maintenance/Hash"),
    ("maintenance/hashkv", "/etcdserverpb.Maintenance/HashKV"),
    ("maintenance/snapshot", "/etcdserverpb.Maintenance/Snapshot"),
    ("maintenance/transfer-leadership", "/etcdserverpb.Maintenance/MoveLeader"),
    ("maintenance/downgrade", "/etcdserverpb.Maintenance/Downgrade"),
    ("auth/enable", "/etcdserverpb.Auth/AuthEnable"),
    ("auth/disable", "/etcdserverpb.Auth/AuthDisable"),
    ("auth/status", "/etcdserverpb.Auth/AuthStatus"),
    ("auth/authenticate", "/etcdserverpb.Auth/Authenticate"),
    ("auth/user/add", "/etcdserverpb.Auth/UserAdd"),
    ("auth/user/get", "/etcdserverpb.Auth/UserGet"),
    ("auth/user/list", "/etcdserverpb.Auth/UserList"),
    ("auth/user/delete", "/etcdserverpb.Auth/UserDelete"),
    ("auth/user/changepw", "/etcdserverpb.Auth/UserChangePassword"),
    ("auth/user/grant", "/etcdserverpb.Auth/UserGrantRole"),
    ("auth/user/revoke", "/etcdserverpb.Auth/UserRevokeRole"),
    ("auth/role/add", "/etcdserverpb.Auth/RoleAdd"),
    ("auth/role/get", "/etcdserverpb.Auth/RoleGet"),
    ("auth/role/list", "/etcdserverpb.Auth/RoleList"),
    ("auth/role/delete", "/etcdserverpb.Auth/RoleDelete"),
    ("auth/role/grant", "/etcdserverpb.Auth/RoleGrantPermission"),
    ("auth/role/revoke", "/etcdserverpb.Auth/RoleRevokePermission"),
    ("election/campaign", "/v3electionpb.Election/Campaign"),
    ("election/proclaim", "/v3electionpb.Election/Proclaim"),
    ("election/leader", "/v3electionpb.Election/Leader"),
    ("election/observe", "/v3electionpb.Election/Observe"),
    ("election/resign", "/v3electionpb.Election/Resign"),
    ("lock/lock", "/v3lockpb.Lock/Lock"),
    ("lock/unlock", "/v3lockpb.Lock/Unlock"),
];

/// What stands before them: today's, and those of etcd before 3.4.
const VERSIONS: [&str; 3] = ["/v3/", "/v3beta/", "/v3alpha/"];

#[derive(Clone, Copy)]
struct Route {
    /// `None` for a method that this server does not have.
    id: Option<MethodId>,
    method: &'static Method,
}

/// A request whose body is still to come, or a stream.
struct Incoming {
    route: Route,
    meta: RequestMeta,
    /// What has come and was not taken.
    body: Vec<u8>,
    scanner: Scanner,
    /// It is a stream that was opened as this call.
    stream: Option<MethodId>,
    /// The body does not end: its first value is a request.
    is_websocket: bool,
}

/// See the module text.
pub(super) struct Gateway {
    routes: HashMap<&'static str, Route>,
    incoming: BTreeMap<HttpId, Incoming>,
    /// Calls that have come whole.
    ready: VecDeque<Unary>,
    body_bytes_max: usize,
    message_bytes_max: usize,
}

/// The path of a method below its version.
fn below_version(path: &str) -> Option<&str> {
    VERSIONS.iter().find_map(|version| path.strip_prefix(version))
}

impl Gateway {
    pub(super) fn new(max_request_bytes: usize) -> Self {
        let route = |(path, method): &(&'static str, &str)| {
            let id = method_id(method);
            json::method(method).map(|method| (*path, Route { id, method }))
        };
        Self {
            routes: PATHS.iter().filter_map(route).collect(),
            incoming: BTreeMap::new(),
            ready: VecDeque::new(),
            body_bytes_max: limits::json_body_bytes(max_request_bytes),
            message_bytes_max: max_request_bytes + limits::GRPC_OVERHEAD_BYTES,
        }
    }

    /// The connection is closed.
    pub(super) fn connection_closed(&mut self, conn: ConnId) {
        if !self.incoming.is_empty() {
            self.incoming.retain(|id, _| id.conn != conn);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.incoming.len()
    }
}

/// A page without a call: grpc-gateway's `HTTPError`.
fn error_page(http_status: u16, code: Code, message: &str) -> Page {
    let mut body = format!("{{\"code\":{},\"message\":", code as i32).into_bytes();
    json::write_text(message, false, &mut body);
    body.push(b'}');
    Page { status: http_status, content_type: "application/json", headers: Vec::new(), body }
}

fn invalid(message: &str) -> Page {
    error_page(400, Code::InvalidArgument, message)
}

/// What header fields say that gRPC's metadata would (grpc-gateway's `annotateContext`).
fn metadata(fields: &Metadata, now_ms: u64) -> Result<RequestMeta, Page> {
    let passed = |name: &str| fields.get(format!("grpc-metadata-{name}").as_bytes());
    let authorization = || fields.get(b"authorization").or_else(|| passed("authorization"));
    let deadline_ms = match fields.get(b"grpc-timeout") {
        None | Some(b"") => None,
        Some(text) => {
            let shown = String::from_utf8_lossy(text);
            let timeout_ms = timeout_ms(&shown)
                .ok_or_else(|| invalid(&format!("invalid grpc-timeout: {shown}")))?;
            Some(now_ms.saturating_add(timeout_ms)).filter(|_| timeout_ms > 0)
        }
    };
    Ok(RequestMeta {
        deadline_ms,
        gzip: false,
        has_leader: passed("hasleader") == Some(b"true"),
        token: passed("token").or_else(authorization).map(Bytes::copy_from_slice),
        client_api_version: passed("client-api-version").map(Bytes::copy_from_slice),
    })
}

/// Milliseconds of a timeout, rounded up; one that is negative has passed.
fn timeout_ms(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: i64 = number.parse().ok()?;
    let nanos: i64 = match unit {
        "H" => 3_600_000_000_000,
        "M" => 60_000_000_000,
        "S" => 1_000_000_000,
        "m" => 1_000_000,
        "u" => 1_000,
        "n" => 1,
        _ => return None,
    };
    Some(number.saturating_mul(nanos).max(1).unsigned_abs().div_ceil(1_000_000))
}

impl Services {
    /// The next call that has come whole as JSON.
    pub fn next_json_call(&mut self) -> Option<Unary> {
        self.gateway.ready.pop_front()
    }

    /// Takes a request if it is one for the gateway; gives it back if not.
    pub(super) fn json_opened(
        &mut self,
        out: &mut dyn Replies,
        request: HttpRequest,
        path: &str,
        is_whole: bool,
    ) -> Option<HttpRequest> {
        if path == "/v3" && self.shared.config.access.gateway {
            let headers = vec![("Location", "/v3/".to_owned())];
            out.respond(request.id, &Page { headers, ..Page::empty(307) });
            return None;
        }
        let Some(below) = below_version(path).filter(|_| self.shared.config.access.gateway) else {
            return Some(request);
        };
        let (id, now_ms) = (request.id, self.now_ms);
        let is_websocket = websocket::is_asked_for(&request);
        let mut fields = request.fields;
        if is_websocket {
            match websocket::open(out, id, &request.method, &fields) {
                Ok(passed) => fields = passed,
                Err(page) => {
                    out.respond(id, &page);
                    return None;
                }
            }
        }
        let opened = match self.gateway.routes.get(below) {
            None => Err(error_page(404, Code::NotFound, "Not Found")),
            Some(_) if request.method != "POST" && !is_websocket => {
                Err(error_page(501, Code::Unimplemented, "Method Not Allowed"))
            }
            Some(route) => metadata(&fields, now_ms).map(|meta| (*route, meta)),
        };
        let (route, meta) = match opened {
            Ok(opened) => opened,
            Err(page) => {
                out.respond(id, &page);
                return None;
            }
        };
        let (body, scanner) = (Vec::new(), Scanner::default());
        let mut incoming = Incoming { route, meta, body, scanner, stream: None, is_websocket };
        if route.method.client_streams {
            let Some(method) = route.id else {
                out.respond(id, &unknown(route.method));
                return None;
            };
            incoming.stream = Some(method);
            let meta = incoming.meta.clone();
            self.gateway.incoming.insert(id, incoming);
            out.answer_as_json(id, (method, route.method));
            let caller = caller_of(&meta);
            self.stream_opened(out, CallId::of_json(id), method, &meta, &caller);
        } else {
            self.gateway.incoming.insert(id, incoming);
        }
        if is_whole && !is_websocket {
            self.with(out).json_ended(id);
        }
        None
    }

    /// A stream has ended from this side, or a client has gone away: what is kept of
    /// the request's body is let go.
    pub fn json_ended(&mut self, out: &mut dyn Replies, id: HttpId) {
        if let Some(incoming) = self.gateway.incoming.remove(&id) {
            out.release_body(id, incoming.body.len());
        }
    }

    /// A piece of such a request's body came; false if it is none.
    pub(super) fn json_body(
        &mut self,
        out: &mut dyn Replies,
        id: HttpId,
        piece: &[u8],
        is_last: bool,
    ) -> bool {
        let Some(incoming) = self.gateway.incoming.get_mut(&id) else { return false };
        let fits = incoming.body.len() + piece.len() <= self.gateway.body_bytes_max;
        if !fits || !out.keep_body(id, piece.len()) {
            let kept = incoming.body.len();
            let stream = incoming.stream;
            self.gateway.incoming.remove(&id);
            out.release_body(id, kept);
            let status = Status::new(Code::ResourceExhausted, "the body is too large");
            if stream.is_some() {
                self.cancelled(out, CallId::of_json(id));
                out.fail(CallId::of_json(id), &status);
            } else {
                out.respond(id, &error_page(413, status.code, &status.message));
            }
            return true;
        }
        incoming.body.extend_from_slice(piece);
        let mut cx = self.with(out);
        cx.take_json_values(id);
        if is_last {
            cx.json_ended(id);
        }
        true
    }
}

/// A method that the gateway knows and this server does not have, in grpc-go's words.
fn unknown(method: &Method) -> Page {
    let (service, name) = method.path.trim_start_matches('/').split_once('/').unwrap_or_default();
    let text = format!("unknown method {name} for service {service}");
    error_page(501, Code::Unimplemented, &text)
}

impl Cx<'_> {
    /// Takes the values of a stream that are complete. Another request over a WebSocket is complete
    /// with its first one.
    fn take_json_values(&mut self, id: HttpId) {
        // What was taken is let go in one go: thousands of values may come in one piece.
        let mut taken = 0;
        while let Some(incoming) = self.api.gateway.incoming.get_mut(&id) {
            if incoming.stream.is_none() && !incoming.is_websocket {
                return;
            }
            let scanned = incoming.scanner.scan(&incoming.body[taken..]);
            let (method, value) = match (incoming.stream, scanned) {
                (None, scanned) => {
                    if scanned != Ok(Scanned::Incomplete) {
                        incoming.scanner = Scanner::default();
                        self.json_ended(id);
                    }
                    return;
                }
                (_, Ok(Scanned::Incomplete)) => {
                    incoming.body.drain(..taken);
                    self.out.release_body(id, taken);
                    return;
                }
                (Some(method), Ok(Scanned::Value { begin, end })) => {
                    (method, Some((taken + begin)..(taken + end)))
                }
                (Some(method), Err(_)) => (method, None),
            };
            let mut message = Vec::new();
            let request = incoming.route.method.request;
            let read = value.clone().is_some_and(|value| {
                json::read(request, &incoming.body[value], &mut message).is_ok()
            });
            let Some(value) = value.filter(|_| read) else {
                // The gateway sends no more of what it cannot read.
                return self.json_half_closed(id);
            };
            taken = value.end;
            incoming.scanner = Scanner::default();
            self.api.stream_message(self.out, CallId::of_json(id), method, message.into());
        }
    }

    /// Nothing more of the request is read; its answers go on.
    fn json_half_closed(&mut self, id: HttpId) {
        if let Some(incoming) = self.api.gateway.incoming.remove(&id) {
            self.out.release_body(id, incoming.body.len());
            self.api.half_closed(self.out, CallId::of_json(id));
        }
    }

    /// The body is complete.
    fn json_ended(&mut self, id: HttpId) {
        let Some(incoming) = self.api.gateway.incoming.get(&id) else { return };
        if incoming.stream.is_some() {
            return self.json_half_closed(id);
        }
        let Some(incoming) = self.api.gateway.incoming.remove(&id) else { return };
        self.out.release_body(id, incoming.body.len());
        if let Err(page) = self.json_call(id, incoming) {
            self.out.respond(id, &page);
        }
    }

    /// Makes a call of a request that has come whole.
    fn json_call(&mut self, id: HttpId, incoming: Incoming) -> Result<(), Page> {
        let Incoming { route, meta, body, mut scanner, .. } = incoming;
        let value = match scanner.scan(&body).map_err(|error| invalid(&error.to_string()))? {
            Scanned::Value { begin, end } => Some((begin, end)),
            // An empty body is a request without fields.
            Scanned::Incomplete => scanner.end().map_err(|error| invalid(&error.to_string()))?,
        };
        let mut message = Vec::new();
        if let Some((begin, end)) = value {
            json::read(route.method.request, &body[begin..end], &mut message)
                .map_err(|error| invalid(&error))?;
        }
        let method = route.id.ok_or_else(|| unknown(route.method))?;
        let most = self.api.gateway.message_bytes_max;
        if message.len() > most {
            let text =
                format!("grpc: received message larger than max ({} vs. {most})", message.len());
            return Err(error_page(429, Code::ResourceExhausted, &text));
        }
        self.out.answer_as_json(id, (method, route.method));
        let began = self.api.shared.clock.elapsed();
        let caller = caller_of(&meta);
        let call = Call::new(CallId::of_json(id), method, &meta, caller, began);
        let message = Bytes::from(message).into();
        self.api.gateway.ready.push_back(Unary { call, method, meta, message });
        Ok(())
    }
}

/// Who asks: as in etcd, the gateway has no certificate to show, so only a token says it.
fn caller_of(meta: &RequestMeta) -> Arc<Caller> {
    Arc::<Caller>::default().with_token(meta.token.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_leads_to_a_method_of_etcds() {
        let gateway = Gateway::new(1 << 20);
        assert_eq!(gateway.routes.len(), PATHS.len());
        assert!(gateway.routes.values().filter(|route| route.id.is_some()).count() > 20);
        assert_eq!(below_version("/v3beta/kv/put"), Some("kv/put"));
        assert_eq!(below_version("/v3"), None);
    }

    #[test]
    fn timeouts_are_read_as_the_gateway_reads_them() {
        let cases = [("1S", 1000), ("20m", 20), ("1n", 1), ("1H", 3_600_000), ("-5S", 1)];
        for (text, wanted) in cases {
            assert_eq!(timeout_ms(text), Some(wanted), "{text}");
        }
        for text in ["", "S", "5", "5s", "x5S"] {
            assert_eq!(timeout_ms(text), None, "{text}");
        }
    }
}
