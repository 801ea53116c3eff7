//! What is asked: the messages of `put` and `range`.
//!
//! One per thread of the engine. A put's message is a template in which only the key changes, and a
//! plain range's message never changes: making a request must cost next to nothing. Keys depend on
//! the request's number alone, so runs can be repeated.

use bytes::Bytes;
use etcore_proto::grpc::{CallOptions, Client, MethodHandle, StartError};
use etcore_proto::pb::etcdserverpb::{RangeRequest, RangeResponse};
use etcore_proto::{splitmix, varint};
use prost::Message as _;

use crate::limits;
use crate::options::{Load, PutOptions, RangeOptions};

/// The methods of one connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Methods {
    put: MethodHandle,
    range: MethodHandle,
    range_stream: MethodHandle,
    pub(crate) compact: MethodHandle,
}

/// The source of requests.
#[derive(Debug)]
pub(crate) enum Workload {
    Put(Puts),
    Range(Ranges),
}

/// Puts of one value under changing keys.
#[derive(Debug)]
pub(crate) struct Puts {
    /// A `PutRequest`; the key stands at `key_at`.
    message: Vec<u8>,
    key_at: usize,
    key_bytes: usize,
    key_space: u64,
    sequential: bool,
}

/// Ranges that are all the same.
#[derive(Debug)]
pub(crate) struct Ranges {
    request: RangeRequest,
    message: Vec<u8>,
    stream: bool,
    /// With pages: the next page's request of each client.
    pages: Option<Vec<Option<RangeRequest>>>,
}

/// Whether an answer ends a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Complete,
    /// Another page is to be asked for with [`Workload::start_page`].
    Partial,
    /// The answer is no answer.
    Malformed,
}

impl Methods {
    pub(crate) fn register(client: &mut Client) -> Self {
        Methods {
            put: client.method("/etcdserverpb.KV/Put"),
            range: client.method("/etcdserverpb.KV/Range"),
            range_stream: client.method("/etcdserverpb.KV/RangeStream"),
            compact: client.method("/etcdserverpb.KV/Compact"),
        }
    }

    pub(crate) fn range(&self) -> MethodHandle {
        self.range
    }
}

impl Workload {
    /// Requests of `clients` clients, numbered from 0.
    pub(crate) fn new(load: &Load, clients: usize) -> Self {
        match load {
            Load::Put(options) => Workload::Put(Puts::new(options)),
            Load::Range(options) => Workload::Range(Ranges::new(options, clients)),
        }
    }

    /// Starts the request with this number for a client, whose number its events will carry.
    pub(crate) fn start(
        &mut self,
        client: &mut Client,
        methods: &Methods,
        user: u32,
        number: u64,
    ) -> Result<(), StartError> {
        let options = CallOptions { user: u64::from(user), ..CallOptions::default() };
        match self {
            Workload::Put(puts) => {
                puts.set_key(number);
                client.start_unary(methods.put, &options, &puts.message).map(drop)
            }
            Workload::Range(ranges) if ranges.stream => {
                let stream = client.start_stream(methods.range_stream, &options)?;
                let sent = client.send_message(stream, &ranges.message);
                sent.and_then(|()| client.half_close(stream)).map_err(|_| {
                    client.cancel(stream);
                    StartError::Budget
                })
            }
            Workload::Range(ranges) => {
                if let Some(pages) = &mut ranges.pages {
                    pages[user as usize] = None;
                }
                client.start_unary(methods.range, &options, &ranges.message).map(drop)
            }
        }
    }

    /// Looks at an answer as far as the next request depends on it.
    #[inline]
    pub(crate) fn answer(&mut self, user: u32, message: Bytes) -> Answer {
        match self {
            Workload::Range(Ranges { pages: Some(pages), request, .. }) => {
                next_page(request, &mut pages[user as usize], message)
            }
            _ => Answer::Complete,
        }
    }

    /// Asks for the page that the latest answer to this client said to follow.
    pub(crate) fn start_page(
        &mut self,
        client: &mut Client,
        methods: &Methods,
        user: u32,
    ) -> Result<(), StartError> {
        let Workload::Range(Ranges { pages: Some(pages), .. }) = self else { return Ok(()) };
        let Some(page) = &pages[user as usize] else { return Ok(()) };
        let options = CallOptions { user: u64::from(user), ..CallOptions::default() };
        client.start_unary(methods.range, &options, &page.encode_to_vec()).map(drop)
    }
}

impl Puts {
    fn new(options: &PutOptions) -> Self {
        let mut message = vec![KEY_TAG];
        varint::write(&mut message, options.key_bytes as u64);
        let key_at = message.len();
        message.resize(key_at + options.key_bytes, 0);
        if options.value_bytes > 0 {
            message.push(VALUE_TAG);
            varint::write(&mut message, options.value_bytes as u64);
            // Noise, so that nothing on the way gains by compressing it.
            let noise = (0..options.value_bytes).map(|at| splitmix::at(at as u64) as u8);
            message.extend(noise);
        }
        Puts {
            message,
            key_at,
            key_bytes: options.key_bytes,
            key_space: options.key_space,
            sequential: options.sequential,
        }
    }

    /// A key is a signed varint, as Go's `binary.PutVarint` makes it, then zeros.
    fn set_key(&mut self, number: u64) {
        let position = if self.sequential { number } else { splitmix::at(number) };
        let mut value = (position % self.key_space) << 1;
        let key = &mut self.message[self.key_at..self.key_at + self.key_bytes];
        key.fill(0);
        for byte in key {
            *byte = value as u8 & 0x7f;
            value >>= 7;
            if value == 0 {
                return;
            }
            *byte |= 0x80;
        }
    }
}

impl Ranges {
    fn new(options: &RangeOptions, clients: usize) -> Self {
        let request = RangeRequest {
            key: Bytes::copy_from_slice(&options.key),
            range_end: Bytes::copy_from_slice(&options.end),
            limit: if options.paginate { limits::PAGE_KEYS } else { options.limit },
            serializable: options.serializable,
            count_only: options.count_only,
            keys_only: options.keys_only,
            ..RangeRequest::default()
        };
        Ranges {
            message: request.encode_to_vec(),
            request,
            stream: options.stream,
            pages: options.paginate.then(|| vec![None; clients]),
        }
    }
}

/// Pages follow each other at the first page's revision, so that they are one view together.
fn next_page(first: &RangeRequest, page: &mut Option<RangeRequest>, message: Bytes) -> Answer {
    let Ok(response) = RangeResponse::decode(message) else { return Answer::Malformed };
    let Some(last) = response.kvs.last().filter(|_| response.more) else {
        *page = None;
        return Answer::Complete;
    };
    let next = page.get_or_insert_with(|| RangeRequest {
        revision: response.header.map_or(0, |header| header.revision),
        ..first.clone()
    });
    let mut key = Vec::with_capacity(last.key.len() + 1);
    key.extend_from_slice(&last.key);
    key.push(0);
    next.key = Bytes::from(key);
    Answer::Partial
}

/// Bytes of a key's varint for this position in the key space.
pub(crate) fn varint_bytes(position: u64) -> usize {
    let bits = 64 - (position << 1 | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Field 1 of a `PutRequest`, length-delimited.
const KEY_TAG: u8 = 0x0a;
/// Field 2 of a `PutRequest`, length-delimited.
const VALUE_TAG: u8 = 0x12;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use etcore_proto::pb::etcdserverpb::{PutRequest, ResponseHeader};
    use etcore_proto::pb::mvccpb::KeyValue;

    use super::*;

    fn puts(key_bytes: usize, value_bytes: usize, key_space: u64, sequential: bool) -> Puts {
        Puts::new(&PutOptions {
            key_bytes,
            value_bytes,
            key_space,
            sequential,
            compact_interval: Duration::ZERO,
            compact_delta: 0,
        })
    }

    #[test]
    fn puts_are_put_requests_of_the_asked_sizes_with_go_s_varint_keys() {
        for (key_bytes, value_bytes) in [(8, 256), (200, 0), (2, 70_000)] {
            let mut puts = puts(key_bytes, value_bytes, 1_000, true);
            puts.set_key(300);
            let request = PutRequest::decode(puts.message.as_slice()).unwrap();
            assert_eq!((request.key.len(), request.value.len()), (key_bytes, value_bytes));
            // 300 zigzags to 600, which is 0b100_1011000.
            assert_eq!(request.key[..2], [0xd8, 0x04]);
            assert!(request.key[2..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn keys_stay_in_their_space_and_fill_it() {
        for sequential in [true, false] {
            let mut puts = puts(8, 1, 50, sequential);
            let mut keys = BTreeSet::new();
            for number in 0..2_000 {
                puts.set_key(number);
                keys.insert(puts.message[2..10].to_vec());
            }
            assert_eq!(keys.len(), 50, "sequential: {sequential}");
        }
    }

    #[test]
    fn varint_sizes_are_those_of_the_largest_position() {
        let cases = [(0, 1), (63, 1), (64, 2), (8_191, 2), (8_192, 3), (i64::MAX as u64, 10)];
        for (position, expected) in cases {
            assert_eq!(varint_bytes(position), expected, "{position}");
        }
    }

    #[test]
    fn pages_follow_the_last_key_at_the_first_revision_until_there_is_no_more() {
        let first = RangeRequest { key: Bytes::from_static(b"a"), ..RangeRequest::default() };
        let answer = |key: &'static [u8], revision, more| {
            let header = Some(ResponseHeader { revision, ..ResponseHeader::default() });
            let kv = KeyValue { key: Bytes::from_static(key), ..KeyValue::default() };
            let response = RangeResponse { header, kvs: vec![kv], more, ..Default::default() };
            Bytes::from(response.encode_to_vec())
        };
        let mut page = None;
        assert_eq!(next_page(&first, &mut page, answer(b"k", 7, true)), Answer::Partial);
        assert_eq!(next_page(&first, &mut page, answer(b"m", 9, true)), Answer::Partial);
        let next = page.clone().unwrap();
        assert_eq!((next.key.as_ref(), next.revision), (&b"m\0"[..], 7));
        assert_eq!(next_page(&first, &mut page, answer(b"z", 9, false)), Answer::Complete);
        assert_eq!(page, None);
        let nonsense = Bytes::from_static(b"\xff");
        assert_eq!(next_page(&first, &mut page, nonsense), Answer::Malformed);
    }
}
