//! Requests that are not gRPC: health checks, metrics and versions.
//!
//! A check that must read waits for its linearizable point as a call does; pages that cost much are
//! rendered for all who ask at about the same time.

use std::sync::Arc;

use etcore_proto::error::EtcdError;

use super::pending::{CallKind, PendingCall, To};
use super::{Cx, Services};
use crate::http::{self, Answer, HealthCheck, HealthKind, Page};
use crate::limits;
use crate::replies::{ConnId, Replies};
use crate::work::Job;

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
    /// A request that is not gRPC came; `target` is its target with the query, `accept` its header
    /// of this name.
    pub fn http_request(
        &mut self,
        out: &mut dyn Replies,
        conn: ConnId,
        method: &str,
        target: &str,
        accept: &str,
    ) {
        if method == "OPTIONS" {
            let page =
                Page { status: 200, content_type: "", headers: Vec::new(), body: Vec::new() };
            return out.respond(conn, &page);
        }
        match http::client(self.reads.view(), method, target, accept) {
            Answer::Page(page) => out.respond(conn, &page),
            Answer::Metrics(form) => {
                let (shared, view) = (&self.shared, self.reads.view());
                let render = || http::metrics_page(shared, view, form);
                self.work.note(Job::Page);
                let page = self.rendered.get(form.content_type(), render);
                out.respond(conn, &page);
            }
            Answer::Malformed => out.refuse_request(conn),
            Answer::Health(check) => self.with(out).check_health(conn, check),
        }
    }
}

impl Cx<'_> {
    fn check_health(&mut self, conn: ConnId, check: HealthCheck) {
        if check.serializable {
            return self.finish_health(conn, &check, Ok(()));
        }
        let pending = PendingCall {
            to: To::Http(conn),
            kind: CallKind::Health(check),
            deadline_ms: self.api.now_ms + self.api.shared.config.request_timeout_ms(),
            client_deadline: false,
            bytes: 0,
        };
        match self.api.pending.insert(pending) {
            Ok(slot) => self.api.wait_for_ticket(slot),
            Err(refused) => {
                if let CallKind::Health(check) = refused.kind {
                    self.finish_health(conn, &check, Err(EtcdError::TooManyRequests));
                }
            }
        }
    }

    /// Answers a health check whose read has ended.
    pub(super) fn finish_health(
        &mut self,
        conn: ConnId,
        check: &HealthCheck,
        outcome: Result<(), EtcdError>,
    ) {
        let (shared, view) = (&self.api.shared, self.api.reads.view());
        let page = match &check.kind {
            HealthKind::Health => http::health_page(shared, view, check, outcome),
            HealthKind::Checks { path, names, verbose } => {
                http::check_page(shared, view, path, names, *verbose, outcome)
            }
        };
        self.out.respond(conn, &page);
    }
}
