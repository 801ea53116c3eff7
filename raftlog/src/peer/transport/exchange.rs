//! Requests of this member, one at a time on connections of their lane to each peer: messages that
//! no stream takes, questions, probes.
//!
//! Part of the transport. A request that fails on a connection that had been idle is tried once
//! more on another: its peer may have closed it meanwhile. Raft's messages and the questions asked
//! here may arrive twice, but proposals must not: each would take effect.

use bytes::Bytes;
use etcore_proto::http1::ClientEvent;
use etcore_proto::raftpb::{Message, MessageType};

use super::{IDLE_MS, PROBE_MS, SILENCE_MS, Transport, host};
use crate::limits;
use crate::peer::conn::{Exchange, Job, Purpose, Role};
use crate::peer::link::Queued;
use crate::peer::queue::weight;
use crate::peer::{
    Channel, ConnId, Event, Lane, PeerReport, PeerResponse, Refusal, RequestError, StreamKind,
};

const _: () = assert!(IDLE_MS > PROBE_MS && IDLE_MS < SILENCE_MS);

/// What the peer answers to a message of a member that was removed.
const FROM_REMOVED: &[u8] = b"cannot process message from removed member";

impl Transport {
    /// Posts a message, or drops one if too many wait. A post takes a round trip, so a few
    /// hundred a second pass at most: entries and proposals wait for the rest, since leadership and
    /// linearizable reads depend on it.
    pub(super) fn post(&mut self, peer: u64, message: Message) {
        let kind = message.r#type.unwrap_or(0);
        let deadline_ms = self.now_ms + SILENCE_MS;
        let Some(link) = self.link(peer) else { return };
        let jobs = &mut link.lane(Lane::Messages).jobs;
        let job = Job::Post(Box::new(message));
        let dropped = if let Some(earlier) = jobs.iter_mut().find(|queued| queued.says_less(&job)) {
            *earlier = Queued { job, deadline_ms };
            return;
        } else if jobs.len() < limits::PEER_PIPELINE_MESSAGES {
            None
        } else {
            let last = (!job.is_bulk()).then(|| jobs.iter().rposition(|last| last.job.is_bulk()));
            match last.flatten().and_then(|at| jobs.remove(at)) {
                None => return self.drop_message(peer, kind, Channel::Pipeline),
                dropped => dropped,
            }
        };
        let first_bulk = jobs.iter().position(|queued| queued.job.is_bulk());
        let at = if job.is_bulk() { jobs.len() } else { first_bulk.unwrap_or(jobs.len()) };
        jobs.insert(at, Queued { job, deadline_ms });
        if let Some(Queued { job: Job::Post(message), .. }) = dropped {
            self.drop_message(peer, message.r#type.unwrap_or(0), Channel::Pipeline);
        }
        self.start_jobs(peer, Lane::Messages);
    }

    pub(super) fn queue_job(&mut self, peer: u64, job: Job, deadline_ms: u64) {
        let lane = job.lane();
        if let Some(link) = self.link(peer) {
            link.lane(lane).jobs.push_back(Queued { job, deadline_ms });
            self.start_jobs(peer, lane);
        }
    }

    /// Asks every member whether it is there, when that is due.
    pub(super) fn probe(&mut self) {
        let now_ms = self.now_ms;
        for at in 0..self.links.len() {
            let link = &mut self.links[at];
            if link.is_remote || link.is_probing || now_ms < link.next_probe_ms {
                continue;
            }
            link.is_probing = true;
            link.next_probe_ms = now_ms + PROBE_MS;
            let peer = link.id;
            self.queue_job(peer, Job::Probe, now_ms + PROBE_MS);
        }
    }

    /// Gives waiting jobs to idle connections, and dials more while there are too few.
    pub(super) fn start_jobs(&mut self, peer: u64, lane: Lane) {
        loop {
            let Some(link) = self.link(peer) else { return };
            let end = link.lane(lane);
            if end.jobs.is_empty() {
                return;
            }
            if let Some(id) = end.idle.pop() {
                if self.is_idle(id) {
                    self.start_job(id, peer, lane);
                }
                continue;
            }
            if end.dialling >= end.jobs.len() || end.conns.len() >= lane.connections_max() {
                return;
            }
            let Some(id) = self.dial(peer, Purpose::Exchange(lane)) else {
                return self.fail_jobs(peer, lane, "no address");
            };
            if let Some(link) = self.link(peer) {
                let end = link.lane(lane);
                end.conns.push(id);
                end.dialling += 1;
            }
        }
    }

    /// A connection that was dialled is there, or will not be.
    pub(super) fn dial_ended(&mut self, peer: u64, lane: Lane) {
        if let Some(link) = self.link(peer) {
            link.lane(lane).dialling -= 1;
        }
    }

    /// Lists a connection that has nothing to do any more. The one that was used last is the first
    /// to be used again, so that those nobody needs are closed for it.
    pub(super) fn list_idle(&mut self, id: ConnId) {
        let is_idle = self.is_idle(id);
        let Some(conn) = self.conn(id) else { return };
        let Role::Exchange(exchange) = &mut conn.role else { return };
        if !is_idle || std::mem::replace(&mut exchange.is_listed, true) {
            return;
        }
        let (peer, lane) = (exchange.peer, exchange.lane);
        if let Some(link) = self.link(peer) {
            link.lane(lane).idle.push(id);
        }
    }

    fn role(&self, id: ConnId) -> Option<&Role> {
        let conn = self.conns.get(id.slot as usize)?.conn.as_deref()?;
        (conn.id == id).then_some(&conn.role)
    }

    /// A connection that could take a job.
    fn is_idle(&self, id: ConnId) -> bool {
        match self.role(id) {
            Some(Role::Exchange(exchange)) => {
                exchange.job.is_none() && exchange.client.is_reusable()
            }
            _ => false,
        }
    }

    fn start_job(&mut self, id: ConnId, peer: u64, lane: Lane) {
        let Some(link) = self.link(peer) else { return };
        let Some(Queued { job, deadline_ms }) = link.lane(lane).jobs.pop_front() else { return };
        let host = link.url().map(host).unwrap_or_default().to_owned();
        let fields = self.local.fields();
        let Some(conn) = self.conn(id) else { return };
        let Role::Exchange(exchange) = &mut conn.role else { return };
        let (method, target, content_type, body) = job.request();
        let mut borrowed = vec![("Host", host.as_str())];
        if !content_type.is_empty() {
            borrowed.push(("Content-Type", content_type));
        }
        borrowed.extend(fields.iter().map(|(name, value)| (*name, value.as_str())));
        let length = (method != "GET" || !body.is_empty()).then_some(body.len() as u64);
        exchange.client.request(method, target, &borrowed, length);
        if length.is_some() {
            exchange.client.write(&body);
        }
        exchange.job = Some(job);
        exchange.is_listed = false;
        exchange.deadline_ms = deadline_ms;
        exchange.status = 0;
        exchange.body.clear();
        exchange.is_sent = false;
        self.mark_dirty(id);
    }

    pub(super) fn write_request(&mut self, exchange: &mut Exchange, out: &mut Vec<u8>) {
        let before = out.len();
        exchange.client.poll_transmit(out, limits::PEER_SEND_BYTES);
        if exchange.is_sent || out.len() == before {
            return;
        }
        // For good: a later call has nothing left to give.
        exchange.is_sent = true;
        if matches!(exchange.job, Some(Job::Probe)) {
            self.event(Event::ProbeSent { peer: exchange.peer });
        }
    }

    pub(super) fn read_answer(
        &mut self,
        exchange: &mut Exchange,
        bytes: &[u8],
    ) -> Result<(), String> {
        exchange.client.receive(bytes).map_err(|error| error.to_string())?;
        while let Some(event) = exchange.client.next_event() {
            match event {
                ClientEvent::Response(head) => exchange.status = head.status,
                ClientEvent::Body(piece) => {
                    if exchange.body.len() + piece.len() > limits::PEER_ANSWER_BYTES {
                        return Err("the answer is too long".to_owned());
                    }
                    exchange.body.extend_from_slice(&piece);
                }
                ClientEvent::End => self.answered(exchange),
            }
        }
        if exchange.job.is_none() && !exchange.client.is_reusable() {
            return Err("done".to_owned());
        }
        Ok(())
    }

    /// The peer closed the connection: an answer may end there.
    pub(super) fn answer_ended(&mut self, exchange: &mut Exchange) -> String {
        if exchange.client.closed().is_ok()
            && exchange.job.is_some()
            && exchange.client.next_event() == Some(ClientEvent::End)
        {
            self.answered(exchange);
        }
        "EOF".to_owned()
    }

    /// Draws the consequences of a complete answer.
    fn answered(&mut self, exchange: &mut Exchange) {
        exchange.done += 1;
        let Some(job) = exchange.job.take() else { return };
        let (peer, status) = (exchange.peer, exchange.status);
        let body = Bytes::from(std::mem::take(&mut exchange.body));
        match job {
            Job::Post(message) if status == 204 => {
                if let Some(link) = self.link(peer) {
                    link.counters.sent_bytes += weight(&message) as u64;
                }
                self.activate(peer);
            }
            Job::Post(message) => {
                let error = self.post_refused(peer, status, &body);
                self.fail_job(peer, Job::Post(message), RequestError::Unreachable, &error);
            }
            Job::Request(request) => {
                let answer = Ok(PeerResponse { status, body });
                self.reports.push(PeerReport::Answered { token: request.token, answer });
            }
            Job::Probe => {
                let answer = match status {
                    200 => Ok(body),
                    _ => Err(format!("got unexpected HTTP status code {status}")),
                };
                self.probe_ended(peer, answer);
            }
        }
        let now_ms = self.now_ms;
        if let Some(link) = self.link(peer) {
            link.seen_alive(now_ms);
        }
    }

    fn post_refused(&mut self, peer: u64, status: u16, body: &[u8]) -> String {
        if status == 403 && body.starts_with(FROM_REMOVED) {
            if !self.reports.contains(&PeerReport::Removed) {
                self.reports.push(PeerReport::Removed);
            }
            return "the member has been permanently removed from the cluster".to_owned();
        }
        match Refusal::from_answer(status, body) {
            Some(refusal @ (Refusal::Version | Refusal::Cluster)) => {
                self.event(Event::RefusedByPeer { peer, refusal });
                refusal.to_string()
            }
            _ => format!("unexpected http status {status} while posting"),
        }
    }

    fn probe_ended(&mut self, peer: u64, answer: Result<Bytes, String>) {
        if let Some(link) = self.link(peer) {
            link.is_probing = false;
            self.event(Event::ProbeEnded { peer, answer });
        }
    }

    /// A job ends without success.
    pub(super) fn fail_job(&mut self, peer: u64, job: Job, why: RequestError, error: &str) {
        match job {
            Job::Post(message) => {
                if message.r#type == Some(MessageType::MsgSnap as i32) {
                    self.reports.push(PeerReport::SnapshotSent { to: peer, ok: false });
                }
                if let Some(link) = self.link(peer) {
                    link.counters.sent_failures += 1;
                }
                self.report_unreachable(peer);
                // A stream that was established meanwhile takes what follows, and nothing would
                // ever call the peer active again.
                let writer = self.link(peer).map(|link| link.writer(StreamKind::Message).conn);
                if writer.is_none_or(|conn| conn.is_none()) {
                    let error = format!("failed to write {peer:x} on pipeline ({error})");
                    self.deactivate(peer, error);
                }
            }
            Job::Request(request) => {
                self.reports.push(PeerReport::Answered { token: request.token, answer: Err(why) });
            }
            Job::Probe => self.probe_ended(peer, Err(error.to_owned())),
        }
    }

    /// The peer cannot be reached: nothing that waits for a connection will get one now.
    pub(super) fn fail_jobs(&mut self, peer: u64, lane: Lane, error: &str) {
        let Some(link) = self.link(peer) else { return };
        link.next_url();
        for queued in std::mem::take(&mut link.lane(lane).jobs) {
            self.fail_job(peer, queued.job, RequestError::Unreachable, error);
        }
    }

    /// Ends the jobs whose time has passed before they got a connection.
    pub(super) fn expire_jobs(&mut self) {
        let now_ms = self.now_ms;
        for at in 0..self.links.len() {
            let link = &mut self.links[at];
            let peer = link.id;
            let mut late = Vec::new();
            for lane in &mut link.lanes {
                if lane.jobs.iter().all(|queued| now_ms < queued.deadline_ms) {
                    continue;
                }
                let (kept, over): (Vec<_>, Vec<_>) = std::mem::take(&mut lane.jobs)
                    .into_iter()
                    .partition(|queued| now_ms < queued.deadline_ms);
                lane.jobs = kept.into();
                late.extend(over);
            }
            for queued in late {
                self.fail_job(peer, queued.job, RequestError::TimedOut, "i/o timeout");
            }
        }
    }

    pub(super) fn exchange_gone(&mut self, peer: u64, lane: Lane, id: ConnId) {
        if let Some(link) = self.link(peer) {
            let end = link.lane(lane);
            end.conns.retain(|conn| *conn != id);
            end.idle.retain(|conn| *conn != id);
        }
    }

    pub(super) fn exchange_ended(&mut self, id: ConnId, exchange: Exchange, reason: &str) {
        let Exchange { peer, lane, job, done, status, deadline_ms, is_sent, .. } = exchange;
        let now_ms = self.now_ms;
        self.exchange_gone(peer, lane, id);
        let Some(job) = job else { return };
        let is_late = now_ms >= deadline_ms;
        let may_repeat = !is_sent || !job.is_proposal();
        if done > 0 && status == 0 && !is_late && may_repeat {
            // The connection had been idle: its peer may have closed it before it saw the request.
            if let Some(link) = self.link(peer) {
                link.lane(lane).jobs.push_front(Queued { job, deadline_ms });
            }
            return;
        }
        let why = if is_late { RequestError::TimedOut } else { RequestError::Unreachable };
        if let Some(link) = self.link(peer) {
            link.next_url();
        }
        self.fail_job(peer, job, why, reason);
    }
}
