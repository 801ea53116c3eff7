//! Clients that watch: from where they were cut off, so that nothing may be missing in between.
//!
//! Called by the clients. Everything that comes is written down as it came.

use etcore_history::types::Watch;
use etcore_history::{KeyRange, wire};
use etcore_proto::h2::StreamId;
use etcore_proto::pb::etcdserverpb as pb;
use prost::Message;

use super::clients::{Client, READABLE, Role};
use super::world::World;

/// A watcher's state.
#[derive(Default)]
pub(super) struct Watching {
    pub(super) stream: Option<StreamId>,
    range: Option<KeyRange>,
    /// The next revision that it has not been told of; 0 before the first.
    next: i64,
    prev_kv: bool,
    fragment: bool,
    /// The watch's number in the history.
    record: Option<usize>,
}

const MS: u64 = 1_000_000;

impl World {
    /// Opens the watch, or asks about its progress, or leaves.
    pub(super) fn advance_watch(&mut self, client: &mut Client) -> Option<u64> {
        let Role::Watches(watching) = &mut client.role else { return None };
        let next_look = self.now + client.prng.below(2_000 * MS);
        if let Some(stream) = watching.stream {
            if client.prng.chance(1, 12) {
                self.hang_up(client);
            } else if let Some(wire) = &mut client.wire {
                let request = pb::WatchProgressRequest {};
                wire.ask_watch(stream, pb::watch_request::RequestUnion::ProgressRequest(request));
            }
            client.next_at = next_look;
            return Some(next_look);
        }
        if watching.range.is_none() || client.prng.chance(1, 8) {
            // A new one, somewhere in the past or from now on.
            let keys = self.plan.keys;
            let first = client.prng.below(keys);
            let few = KeyRange::new(format!("key{first:02}"), format!("key{:02}", first + 4));
            let all = client.prng.chance(1, 2);
            watching.range = Some(if all { KeyRange::all() } else { few });
            watching.prev_kv = client.prng.chance(1, 2);
            watching.fragment = client.prng.chance(1, 4);
            let back = i64::try_from(client.prng.below(400)).unwrap_or(0);
            let past = (self.told - back).max(1);
            watching.next = if client.prng.chance(1, 2) { past } else { 0 };
        }
        let range = watching.range.clone()?;
        let mut create = wire::watch(&range, watching.next, watching.prev_kv);
        create.fragment = watching.fragment;
        create.progress_notify = client.prng.chance(1, 2);
        watching.record = None;
        watching.stream = client.wire.as_mut()?.start_watch(create);
        client.next_at = next_look;
        Some(next_look)
    }

    /// A response of the watch.
    pub(super) fn watch_message(&mut self, client: &mut Client, message: &[u8]) {
        let at = self.history_time();
        let Role::Watches(watching) = &mut client.role else { return };
        let Ok(response) = pb::WatchResponse::decode(message) else {
            return self.violate(READABLE, "a watch response".to_owned());
        };
        let header = response.header.as_ref().map_or(0, |header| header.revision);
        self.trace.event(self.now, "watch", &[header.unsigned_abs()]);
        if response.canceled {
            // Compacted: it begins where something is left.
            watching.next = response.compact_revision;
            return self.hang_up(client);
        }
        if response.created {
            watching.record = Some(self.history.watches.len());
            self.history.watches.push(Watch {
                client: client.number,
                member: client.run,
                range: watching.range.clone().unwrap_or_else(KeyRange::all),
                start: watching.next,
                created: header,
                prev_kv: watching.prev_kv,
                fragment: watching.fragment,
                batches: Vec::new(),
            });
            if watching.next == 0 {
                watching.next = header + 1;
            }
            return;
        }
        let Some(batch) = wire::batch(response, at) else { return };
        if let Some(last) = batch.events.last() {
            if !batch.fragment {
                watching.next = watching.next.max(last.kv.modified + 1);
            }
        } else {
            watching.next = watching.next.max(batch.revision + 1);
        }
        let record = watching.record.and_then(|record| self.history.watches.get_mut(record));
        if let Some(record) = record {
            record.batches.push(batch);
        }
    }

    /// The stream has ended.
    pub(super) fn watch_over(&mut self, client: &mut Client) {
        self.hang_up(client);
    }
}
