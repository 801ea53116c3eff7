//! HTTP/1.1 requests on a front: the plain endpoints, and the health checks that wait for a read.
//!
//! A connection is answered one request a round, and only while the budgets have room for the
//! answer; pages that cost much are rendered for all who ask at about the same time.

use std::sync::Arc;

use etcore_proto::error::EtcdError;
use etcore_proto::http1::ServerEvent;

use super::Front;
use super::conn::Conn;
use super::tasks::{Kind, Task, To};
use crate::driver::SocketId;
use crate::http::{self, Answer, HealthCheck, HealthKind, Page};
use crate::limits;
use crate::work::Job;

/// What etcd's handlers say to browsers of any origin.
const CORS: [(&str, &str); 3] = [
    ("Access-Control-Allow-Headers", "accept, content-type, authorization"),
    ("Access-Control-Allow-Methods", "POST, GET, OPTIONS, PUT, DELETE"),
    ("Access-Control-Allow-Origin", "*"),
];

/// Pages rendered for everybody, by their format.
pub(super) struct Rendered {
    pages: Vec<(&'static str, Arc<Page>)>,
    /// Renders left until the next tick.
    left: u32,
    /// Renders so far.
    renders: u64,
}

impl Default for Rendered {
    fn default() -> Self {
        Self { pages: Vec::new(), left: limits::PAGE_RENDERS, renders: 0 }
    }
}

impl Rendered {
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

impl Front {
    /// Handles what an HTTP/1.1 connection has to say: one request, since the next comes after its
    /// answer has left.
    pub(super) fn handle_plain(&mut self, socket: SocketId) {
        loop {
            let Some(conn) = self.conn(socket) else { return };
            conn.charge_plain();
            if conn.http1().is_none() || !conn.may_answer() {
                // Looked at again when something was sent, and at each tick.
                return;
            }
            let Some(event) = conn.http1().and_then(etcore_proto::http1::Server::next_event) else {
                return;
            };
            if let ServerEvent::Request { head, .. } = event {
                let accept = head.fields.get(b"accept").unwrap_or_default();
                let accept = String::from_utf8_lossy(accept);
                self.client_request(socket, &head.method, &head.target, &accept);
            }
            self.mark_dirty(socket);
        }
    }

    fn client_request(&mut self, socket: SocketId, method: &str, target: &str, accept: &str) {
        if method == "OPTIONS" {
            let page =
                Page { status: 200, content_type: "", headers: Vec::new(), body: Vec::new() };
            return self.reply_page(socket, &page);
        }
        match http::client(&self.view, method, target, accept) {
            Answer::Page(page) => self.reply_page(socket, &page),
            Answer::Metrics(form) => {
                let (shared, view) = (&self.shared, &self.view);
                let render = || http::metrics_page(shared, view, form);
                self.work.note(Job::Page);
                let page = self.rendered.get(form.content_type(), render);
                self.reply_page(socket, &page);
            }
            Answer::Malformed => {
                if let Some(server) = self.conn(socket).and_then(Conn::http1) {
                    server.refuse_request();
                    self.mark_dirty(socket);
                }
            }
            Answer::Health(check) if check.serializable => {
                self.finish_health(socket, &check, Ok(()));
            }
            Answer::Health(check) => {
                let timeout_ms = self.shared.config.request_timeout_ms();
                let task = Task {
                    socket,
                    to: To::Plain,
                    kind: Kind::Health(check),
                    deadline_ms: self.now_ms + timeout_ms,
                    client_deadline: false,
                    bytes: 0,
                };
                match self.tasks.insert(task) {
                    Ok(slot) => {
                        self.next_ticket += 1;
                        self.tasks.wait_for_ticket(slot, self.next_ticket);
                    }
                    Err(task) => {
                        if let Kind::Health(check) = task.kind {
                            let error = Err(EtcdError::TooManyRequests);
                            self.finish_health(socket, &check, error);
                        }
                    }
                }
            }
        }
    }

    /// Answers a health check whose read has ended.
    pub(super) fn finish_health(
        &mut self,
        socket: SocketId,
        check: &HealthCheck,
        outcome: Result<(), EtcdError>,
    ) {
        let page = match &check.kind {
            HealthKind::Health => http::health_page(&self.shared, &self.view, check, outcome),
            HealthKind::Checks { path, names, verbose } => {
                http::check_page(&self.shared, &self.view, path, names, *verbose, outcome)
            }
        };
        self.reply_page(socket, &page);
    }

    pub(super) fn reply_page(&mut self, socket: SocketId, page: &Page) {
        let date = http::http_date(self.shared.clock.unix());
        let Some(conn) = self.conn(socket) else { return };
        let Some(server) = conn.http1() else { return };
        if !server.is_answer_due() {
            return;
        }
        let mut fields: Vec<(&str, &str)> = CORS.to_vec();
        fields.push(("Date", &date));
        if !page.content_type.is_empty() {
            fields.push(("Content-Type", page.content_type));
        }
        fields.extend(page.headers.iter().map(|(name, value)| (*name, value.as_str())));
        server.respond_with(page.status, &fields, &page.body);
        conn.charge_plain();
        self.mark_dirty(socket);
    }
}
