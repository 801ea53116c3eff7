//! WatchResponse messages as bytes: the head of each, and events as they stand in it.
//!
//! An event's bytes are the same for all watchers that want them, so they are made once and copied;
//! a head belongs to one response. It must produce what a protobuf library would.

use crate::wire::{Header, field_len, int_len, write_int64, write_len, write_uint64};

/// Field of WatchResponse.
const EVENTS: u32 = 11;
/// Fields of Event.
const KV: u32 = 2;
const PREV_KV: u32 = 3;
/// `type: DELETE`.
const DELETE: [u8; 2] = [0x08, 1];
/// Field of KeyValue.
const MOD_REVISION: u32 = 3;

/// Everything of a WatchResponse but its events.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) header: Header,
    pub(super) watch_id: i64,
    pub(super) created: bool,
    pub(super) canceled: bool,
    pub(super) compact_revision: i64,
    pub(super) cancel_reason: &'a str,
    pub(super) fragment: bool,
}

impl Head<'static> {
    pub(super) fn new(header: Header, watch_id: i64) -> Self {
        Self {
            header,
            watch_id,
            created: false,
            canceled: false,
            compact_revision: 0,
            cancel_reason: "",
            fragment: false,
        }
    }
}

impl Head<'_> {
    /// Appends the fields.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        self.header.write(out);
        write_int64(out, 2, self.watch_id);
        write_uint64(out, 3, u64::from(self.created));
        write_uint64(out, 4, u64::from(self.canceled));
        write_int64(out, 5, self.compact_revision);
        if !self.cancel_reason.is_empty() {
            write_len(out, 6, self.cancel_reason.len());
            out.extend_from_slice(self.cancel_reason.as_bytes());
        }
        write_uint64(out, 7, u64::from(self.fragment));
    }
}

/// The lengths of an event's parts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// The stored KeyValue.
    pub(super) kv_bytes: usize,
    /// The stored KeyValue before, if it is to be told.
    pub(super) prev_bytes: Option<usize>,
    pub(super) revision: i64,
    pub(super) tombstone: bool,
}

impl Shape {
    fn kv_len(&self) -> usize {
        // A deletion is stored as its key alone, and told with its revision.
        let revision = if self.tombstone { int_len(MOD_REVISION, self.revision as u64) } else { 0 };
        self.kv_bytes + revision
    }

    fn body_len(&self) -> usize {
        let kind = if self.tombstone { DELETE.len() } else { 0 };
        let prev = self.prev_bytes.map_or(0, |bytes| field_len(PREV_KV, bytes));
        kind + field_len(KV, self.kv_len()) + prev
    }

    /// Bytes of the event as an element of `events`.
    pub(super) fn encoded_len(&self) -> usize {
        field_len(EVENTS, self.body_len())
    }

    /// Appends what stands before the stored KeyValue.
    pub(super) fn write_head(&self, out: &mut Vec<u8>) {
        write_len(out, EVENTS, self.body_len());
        if self.tombstone {
            out.extend_from_slice(&DELETE);
        }
        write_len(out, KV, self.kv_len());
    }

    /// Appends what stands between it and the one before.
    pub(super) fn write_middle(&self, out: &mut Vec<u8>) {
        if self.tombstone {
            write_int64(out, MOD_REVISION, self.revision);
        }
        if let Some(bytes) = self.prev_bytes {
            write_len(out, PREV_KV, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use etcore_engine::types::Revision;
    use etcore_engine::wire::KvRef;
    use etcore_proto::pb::{etcdserverpb as pb, mvccpb};
    use prost::Message;

    use super::*;

    #[test]
    fn responses_are_what_prost_encodes() {
        let header = Header { cluster_id: 300, member_id: 1, revision: 5, raft_term: 2 };
        for tombstone in [false, true] {
            for previous in [None, Some(KvRef { key: b"k", value: b"old", ..KvRef::default() })] {
                let kv = match tombstone {
                    true => KvRef { key: b"k", ..KvRef::default() },
                    false => KvRef {
                        key: b"k",
                        value: b"new",
                        mod_revision: Revision(300),
                        ..KvRef::default()
                    },
                };
                let (stored, before) = (kv.encode(), previous.map(|kv| kv.encode()));
                let shape = Shape {
                    kv_bytes: stored.len(),
                    prev_bytes: before.as_ref().map(Vec::len),
                    revision: 300,
                    tombstone,
                };
                let head = Head {
                    canceled: true,
                    compact_revision: 9,
                    cancel_reason: "why",
                    fragment: true,
                    ..Head::new(header, -1)
                };
                let mut out = Vec::new();
                head.write(&mut out);
                let start = out.len();
                shape.write_head(&mut out);
                out.extend_from_slice(&stored);
                shape.write_middle(&mut out);
                out.extend(before.into_iter().flatten());
                assert_eq!(out.len() - start, shape.encoded_len());
                let told = |kv: KvRef<'_>| mvccpb::KeyValue {
                    key: kv.key.to_vec().into(),
                    value: kv.value.to_vec().into(),
                    mod_revision: kv.mod_revision.0,
                    ..Default::default()
                };
                let kv = mvccpb::KeyValue { mod_revision: 300, ..told(kv) };
                let expected = pb::WatchResponse {
                    header: Some(pb::ResponseHeader {
                        cluster_id: 300,
                        member_id: 1,
                        revision: 5,
                        raft_term: 2,
                    }),
                    watch_id: -1,
                    created: false,
                    canceled: true,
                    compact_revision: 9,
                    cancel_reason: "why".to_owned(),
                    fragment: true,
                    events: vec![mvccpb::Event {
                        r#type: i32::from(tombstone),
                        kv: Some(kv),
                        prev_kv: previous.map(told),
                    }],
                };
                assert_eq!(out, expected.encode_to_vec());
            }
        }
    }
}
