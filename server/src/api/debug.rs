//! `/debug/vars`, and profiles below `/debug/pprof` where `--enable-pprof` asks for them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_queue::ArrayQueue;

use super::{Cx, Services};
use crate::background::profiler::{self, Profiles};
use crate::driver::Waker;
use crate::http::{self, Page, Query};
use crate::limits;
use crate::replies::HttpId;

/// Profiles that are asked for and not there yet.
pub(super) struct Debugging {
    done: Profiles<HttpId>,
    waker: Waker,
}

/// What `/debug/pprof/` answers to.
const INDEX: &str = "<html><head><title>/debug/pprof/</title></head><body>\n\
    <a href=\"profile?seconds=30\">profile</a>: where processor time goes\n\
    <a href=\"cmdline\">cmdline</a>: the command line\n\
    </body></html>\n";

impl Debugging {
    pub(super) fn new(waker: Waker) -> Self {
        Self { done: Arc::new(ArrayQueue::new(1)), waker }
    }

    pub(super) fn has_answers(&self) -> bool {
        !self.done.is_empty()
    }
}

fn page(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Page {
    let headers = vec![("X-Content-Type-Options", "nosniff".to_owned())];
    Page { status, content_type, headers, body: body.into() }
}

impl Services {
    /// The command line as etcd shows it: words between zero bytes.
    fn command_line() -> Vec<String> {
        std::env::args().collect()
    }

    fn vars(&self) -> Page {
        let shared = &self.shared;
        let load = |cell: &std::sync::atomic::AtomicU64| cell.load(Ordering::Relaxed);
        let (leader, own) = (load(&shared.status.leader), shared.member_id);
        let role = if leader == own { "StateLeader" } else { "StateFollower" };
        let vars = serde_json::json!({
            "cmdline": Self::command_line(),
            "file_descriptor_limit": crate::sys::descriptors_max(),
            "raft.status": {
                "id": format!("{own:x}"),
                "term": load(&shared.status.term),
                "commit": load(&shared.status.committed),
                "lead": format!("{leader:x}"),
                "raftState": role,
                "applied": load(&shared.status.applied),
            },
        });
        page(200, "application/json; charset=utf-8", format!("{vars:#}\n"))
    }
}

impl Cx<'_> {
    pub(super) fn debug_vars(&mut self, id: HttpId, method: &str) {
        let page = if method == "GET" { self.api.vars() } else { http::not_allowed("GET") };
        self.out.respond(id, &page);
    }

    /// Anything at or below `/debug/pprof`.
    pub(super) fn debug_pprof(&mut self, id: HttpId, path: &str, query: &Query) {
        if !self.api.shared.config.observe.enable_pprof {
            return self.out.respond(id, &http::not_found());
        }
        let answer = match path.strip_prefix("/debug/pprof") {
            Some("" | "/") => page(200, "text/html; charset=utf-8", INDEX),
            Some("/cmdline") => page(200, http::TEXT, Services::command_line().join("\0")),
            Some("/symbol") => page(200, http::TEXT, "num_symbols: 0\n"),
            Some("/profile") => match self.start_profile(id, query) {
                Ok(()) => return,
                Err(refused) => refused,
            },
            _ => page(
                404,
                http::TEXT,
                "etcore has no such profile: it has no Go runtime to take it from\n",
            ),
        };
        self.out.respond(id, &answer);
    }

    fn start_profile(&mut self, id: HttpId, query: &Query) -> Result<(), Page> {
        // Go takes a text that is no number for 0 as well.
        let asked = query.first("seconds").and_then(|text| text.parse().ok()).unwrap_or(0);
        let seconds = if asked == 0 { limits::PROFILE_SECONDS } else { asked };
        if seconds > limits::PROFILE_SECONDS_MAX {
            let text = format!("at most {} seconds are profiled\n", limits::PROFILE_SECONDS_MAX);
            return Err(page(400, http::TEXT, text));
        }
        let debugging = &self.api.debugging;
        let answer = (id, debugging.done.clone(), debugging.waker.clone());
        profiler::start(self.api.shared.clone(), seconds, answer)
            .map_err(|text| page(500, http::TEXT, text + "\n"))
    }

    /// Answers with the profile that is done.
    pub(super) fn take_profiles(&mut self) {
        while let Some((id, profile)) = self.api.debugging.done.pop() {
            let answer = match profile {
                Ok(profile) => {
                    let mut page = page(200, "application/octet-stream", profile);
                    let name = "attachment; filename=\"profile\"".to_owned();
                    page.headers.push(("Content-Disposition", name));
                    page
                }
                Err(text) => page(500, http::TEXT, text + "\n"),
            };
            self.out.respond(id, &answer);
        }
    }
}
