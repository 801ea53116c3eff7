//! What operators are told of the links: etcd's log lines and etcd's metrics.
//!
//! Fed by the links' shell with the transport's events and counters. It decides nothing.

use std::collections::BTreeMap;

use etcore_proto::raftpb::MessageType;
use etcore_raftlog::peer::{Counters, End, Event, Refusal, Transport};

use crate::channel::Shared;

/// See the module text.
#[derive(Default)]
pub(super) struct Reporter {
    /// What was counted already.
    counted: BTreeMap<u64, Counters>,
}

impl Reporter {
    /// Adds to the metrics what went over the links since the last time.
    pub(super) fn count(&mut self, shared: &Shared, transport: &Transport) {
        let network = &shared.metrics.network;
        for (peer, now) in transport.counters() {
            let before = self.counted.insert(peer, now).unwrap_or_default();
            if now == before {
                continue;
            }
            // A member that was removed and added again counts from zero.
            let grown = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
            let add = |family: &crate::metrics::Counters, label, by: u64| {
                if by > 0 {
                    family.get_or_create(&vec![(label, format!("{peer:x}"))]).inc_by(by);
                }
            };
            add(&network.sent_bytes, "To", grown(now.sent_bytes, before.sent_bytes));
            add(&network.received_bytes, "From", grown(now.received_bytes, before.received_bytes));
            add(&network.sent_failures, "To", grown(now.sent_failures, before.sent_failures));
            let failures = grown(now.received_failures, before.received_failures);
            add(&network.received_failures, "From", failures);
            let disconnects = grown(now.disconnects, before.disconnects);
            if disconnects > 0 {
                network.disconnected.get_or_create(&pair(shared, peer)).inc_by(disconnects);
            }
        }
    }

    /// Writes an event into the log.
    pub(super) fn log(&mut self, shared: &Shared, event: &Event) {
        let local_member_id = format!("{:x}", shared.member_id);
        let hex = |peer: u64| format!("{peer:x}");
        match event {
            Event::Added { peer } => {
                tracing::info!(local_member_id, remote_peer_id = hex(*peer), "added remote peer");
            }
            Event::Updated { peer } => {
                tracing::info!(
                    local_member_id,
                    updated_remote_peer_id = hex(*peer),
                    "updated remote peer"
                );
            }
            Event::Removed { peer } => {
                self.counted.remove(peer);
                shared.metrics.network.active.get_or_create(&pair(shared, *peer)).set(0);
                tracing::info!(
                    local_member_id,
                    removed_remote_peer_id = hex(*peer),
                    "removed remote peer"
                );
            }
            Event::AddedRemote { peer } => {
                tracing::info!(
                    local_member_id,
                    remote_peer_id = hex(*peer),
                    "added new remote peer"
                );
            }
            Event::Established { .. } | Event::Lost { .. } => log_stream(&local_member_id, event),
            Event::Replaced { peer, kind } => {
                tracing::warn!(
                    stream_writer_type = kind.name(),
                    local_member_id,
                    remote_peer_id = hex(*peer),
                    "closed TCP streaming connection with remote peer"
                );
            }
            Event::Active { peer } => {
                shared.metrics.network.active.get_or_create(&pair(shared, *peer)).set(1);
                tracing::info!(peer_id = hex(*peer), "peer became active");
            }
            Event::Inactive { peer, error } => {
                shared.metrics.network.active.get_or_create(&pair(shared, *peer)).set(0);
                tracing::warn!(
                    peer_id = hex(*peer),
                    error,
                    "peer became inactive (message send to peer failed)"
                );
            }
            Event::Dropped { .. } => log_dropped(&local_member_id, event),
            Event::RefusedByPeer { peer, refusal } => {
                log_refused_by_peer(&local_member_id, &hex(*peer), refusal);
            }
            Event::Refused { from, refusal } => {
                let text = refused_text(refusal);
                tracing::warn!(local_member_id, remote_peer_id_from = from, "{text}");
            }
            Event::Unreadable { error } => {
                tracing::warn!(local_member_id, error, "failed to unmarshal Raft message");
            }
            Event::ProbeSent { .. } | Event::ProbeEnded { .. } => {}
        }
    }
}

fn pair(shared: &Shared, peer: u64) -> crate::metrics::Labels {
    vec![("Local", format!("{:x}", shared.member_id)), ("Remote", format!("{peer:x}"))]
}

fn message_name(number: i32) -> String {
    MessageType::try_from(number).map_or_else(|_| number.to_string(), |kind| format!("{kind:?}"))
}

/// A stream that came or went.
fn log_stream(local_member_id: &str, event: &Event) {
    match event {
        Event::Established { peer, kind, end } => {
            let remote_peer_id = format!("{peer:x}");
            let text = "established TCP streaming connection with remote peer";
            let kind = kind.name();
            match end {
                End::Reader => tracing::info!(
                    stream_reader_type = kind,
                    local_member_id,
                    remote_peer_id,
                    "{text}"
                ),
                End::Writer => tracing::info!(
                    stream_writer_type = kind,
                    local_member_id,
                    remote_peer_id,
                    "{text}"
                ),
            }
        }
        Event::Lost { peer, kind, end, error } => {
            let remote_peer_id = format!("{peer:x}");
            let text = "lost TCP streaming connection with remote peer";
            let kind = kind.name();
            match end {
                End::Reader => tracing::warn!(
                    stream_reader_type = kind,
                    local_member_id,
                    remote_peer_id,
                    error,
                    "{text}"
                ),
                End::Writer => tracing::warn!(
                    stream_writer_type = kind,
                    local_member_id,
                    remote_peer_id,
                    error,
                    "{text}"
                ),
            }
        }
        _ => {}
    }
}

fn log_dropped(local_member_id: &str, event: &Event) {
    let Event::Dropped { peer, message, channel, active, count } = event else { return };
    tracing::warn!(
        message_type = message_name(*message),
        local_member_id,
        remote_peer_id = format!("{peer:x}"),
        remote_peer_name = channel.name(),
        remote_peer_active = *active,
        dropped = *count,
        "dropped internal Raft message since sending buffer is full"
    );
}

fn log_refused_by_peer(local_member_id: &str, remote_peer_id: &str, refusal: &Refusal) {
    let error = refusal.to_string();
    match refusal {
        Refusal::Version => tracing::warn!(
            local_member_id,
            remote_peer_id,
            error,
            "request sent was ignored by remote peer due to server version incompatibility"
        ),
        Refusal::Cluster => tracing::warn!(
            local_member_id,
            remote_peer_id,
            error,
            "request sent was ignored by remote peer due to cluster ID mismatch"
        ),
        _ => tracing::debug!(local_member_id, remote_peer_id, error, "refused by peer"),
    }
}

/// etcd's text for what this member refuses.
fn refused_text(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Version => "failed version compatibility check",
        Refusal::Cluster => "request cluster ID mismatch",
        Refusal::Removed => "rejected stream from remote peer because it was removed",
        Refusal::Unknown => "failed to find remote peer in cluster",
        Refusal::Receiver => "ignored streaming request; ID mismatch",
        Refusal::Path => "ignored unexpected streaming request path",
        Refusal::From => "failed to parse path into ID",
    }
}
