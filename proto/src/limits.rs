//! Every bound of the transport, with what happens at it.
//!
//! Read by `h2`, `grpc` and `http1`; the server may lower the configurable ones through the
//! `Config` types. Nothing in this crate may queue, buffer or count without a bound named here.

/// Largest frame payload we accept, in bytes; larger ones end the connection (FRAME_SIZE_ERROR).
pub const FRAME_BYTES_MAX: u32 = 16_384;
/// HPACK table we offer to the peer and use of the peer's, in bytes.
pub const HEADER_TABLE_BYTES: u32 = 4_096;
/// Encoded size of one header block over all its CONTINUATION frames, in bytes; past it the
/// connection ends (ENHANCE_YOUR_CALM). It is decoded as it comes. (grpc-go: the same.)
pub const HEADER_BLOCK_BYTES_MAX: usize = 16 << 20;
/// CONTINUATION frames of one block, besides one for each [`CONTINUATION_BYTES`] of it; past it the
/// connection ends (ENHANCE_YOUR_CALM).
pub const CONTINUATION_FRAMES_MAX: u32 = 64;
/// So many bytes of a block pay for a further frame of it.
pub const CONTINUATION_BYTES: usize = 1 << 10;
/// Encoded size of a field that comes in several frames, in bytes; a longer one is passed over and
/// its stream is reset, as is one that the budgets have no room for.
pub const HEADER_FIELD_BYTES_MAX: usize = 256 << 10;
/// Decoded size of one header list by RFC 9113's count, in bytes; past it the stream is reset.
pub const HEADER_LIST_BYTES_MAX: usize = 256 << 10;
/// Bytes of an incomplete frame that are charged to nobody: most are shorter.
pub const PARTIAL_FREE_BYTES: usize = 1 << 10;
/// Receive window of each new stream, in bytes.
pub const STREAM_WINDOW_BYTES: u32 = 65_535;
/// Receive window of a connection, in bytes: what may be between the peer and us.
pub const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// What an open stream is charged to the budgets for its state, in bytes. Refused (REFUSED_STREAM)
/// when it does not fit: streams have no other bound than the peer's sense.
pub const STREAM_STATE_BYTES: usize = 512;
/// Bytes one connection may hold in partial messages, stream state and unsent data. Streams past it
/// are refused (REFUSED_STREAM before a message was delivered, which clients retry).
pub const CONNECTION_HELD_BYTES_MAX: usize = 64 << 20;
/// Bytes that all connections of the process may hold together.
pub const PROCESS_HELD_BYTES_MAX: usize = 1 << 30;
/// A connection takes its share of the process budget in steps of so many bytes, larger ones the
/// more it holds.
pub const BUDGET_STEPS_BYTES: [usize; 3] = [2 << 10, 16 << 10, 64 << 10];
/// A connection that has drawn no more than this is modest, in bytes.
pub const MODEST_BYTES: usize = 256 << 10;
/// The part of the process budget (one in so many) that only modest connections may use.
pub const MODEST_SHARE: usize = 4;
/// Wire bytes ready to be sent, or with the socket, beyond which data waits in its stream and
/// writers get no capacity.
pub const TRANSMIT_HIGH_WATER_BYTES: usize = 256 << 10;
/// Bytes ready to be sent that a connection always has; more is charged to the budgets.
pub const TRANSMIT_FREE_BYTES: usize = 16 << 10;
/// Wire bytes ready to be sent beyond which the owner should stop reading from the socket.
pub const TRANSMIT_STOP_READING_BYTES: usize = 1 << 20;
/// Streams that are told in one round that they may write, and what of the room each is thought to
/// take, in bytes: those that wait for it are not all woken for a window of one byte.
pub const WAKES_PER_ROUND: (usize, usize) = (256, 1 << 10);
/// The most `capacity` grants at once, so that large bodies on one connection take turns, in bytes.
pub const CAPACITY_GRANT_BYTES_MAX: usize = 64 << 10;
/// Acknowledgements and resets that wait for a peer that does not read; with more it is not read
/// from either.
pub const CONTROL_REPLIES_QUEUED: u32 = 1_024;
/// What was received before that took effect may add to them; past this the connection ends
/// (ENHANCE_YOUR_CALM).
pub const CONTROL_REPLIES_QUEUED_MAX: u32 = 16_384;
/// Pings faster than the enforcement policy allows before the connection ends (ENHANCE_YOUR_CALM,
/// `too_many_pings`).
pub const PING_STRIKES_MAX: u32 = 2;
/// A stream that a client resets before it was answered, and sooner than this after it was opened,
/// in milliseconds, is a rapid reset (CVE-2023-44487): it may have been opened only to make work.
/// Calls that run out of time, and most hedges that lost, have lived for longer.
pub const RAPID_RESET_MS: u32 = 20;
/// Rapid resets and refused streams: burst and rate a second; past it the connection is read more
/// slowly. A reset costs about a microsecond. Each answer pays for one.
pub const RAPID_RESETS: (u32, u32) = (1_024, 2_048);
/// Rapid resets since the last answer of a connection whose open streams were not answered either;
/// past it the connection ends (ENHANCE_YOUR_CALM). Whoever was answered is only slowed down.
pub const RAPID_RESETS_UNANSWERED_MAX: u32 = 4_096;
/// Streams that a peer's own mistakes end (RST_STREAM of ours): burst and refill a second; past it
/// ENHANCE_YOUR_CALM. No time-out, cancellation or retry makes any.
pub const STREAM_ERRORS: (u32, u32) = (1_024, 1_024);
/// SETTINGS frames of a peer: burst and refill a second; past it ENHANCE_YOUR_CALM.
pub const SETTINGS: (u32, u32) = (64, 4);
/// PING frames of a peer whatever the enforcement policy: burst and refill a second; past it
/// ENHANCE_YOUR_CALM. grpc-go pings after every message it reads while it estimates the bandwidth,
/// both as a client and as a server, so an honest peer sends as many as there are calls on the
/// connection; a ping costs less than a call.
pub const PINGS: (u32, u32) = (65_536, 65_536);
/// Frames without use (empty DATA, PRIORITY, unknown types, frames on closed streams): burst and
/// refill a second; past it ENHANCE_YOUR_CALM.
pub const IDLE_FRAMES: (u32, u32) = (4_096, 1_024);
/// Frames without use that a stream pays for when it was answered or when we end it: its peer's
/// last DATA, WINDOW_UPDATE and RST_STREAM cross our end on the way.
pub const IDLE_FRAMES_PER_STREAM: u32 = 4;
/// DATA frames that complete no message and carry fewer than [`FRAGMENT_BYTES`] of it: burst and
/// refill a second; past it ENHANCE_YOUR_CALM. Honest clients fill their frames: they cut a message
/// at a frame's maximum and where a window ends, some also behind its prefix.
pub const FRAGMENTS: (u32, u32) = (4_096, 1_024);
/// So many bytes of a message in one frame make it no fragment, and pay for another one.
pub const FRAGMENT_BYTES: u32 = 64;
/// Fragments that a message pays for when it is complete.
pub const FRAGMENTS_PER_MESSAGE: u32 = 16;
/// Closed streams whose manner of closing is remembered, so that late frames are judged rightly.
pub const CLOSED_STREAMS_REMEMBERED: usize = 128;
/// Time for the peer's preface and SETTINGS, in milliseconds; past it the connection ends.
pub const HANDSHAKE_MS_MAX: u64 = 120_000;
/// Time between the two GOAWAY frames of a graceful end if the peer does not answer our PING.
pub const DRAIN_PING_MS_MAX: u64 = 5_000;
/// Largest gRPC request message unless configured, in bytes: etcd's 1.5 MiB plus 512 KiB.
pub const GRPC_MESSAGE_BYTES_MAX: usize = 2 << 20;
/// What padding adds to a frame at most, its own length included, in bytes.
pub const FRAME_PADDING_BYTES_MAX: u32 = 256;
/// Bytes of an unusual header value that are kept for the text of its error.
pub const ERROR_VALUE_BYTES_MAX: usize = 4 << 10;
/// Chunk into which small messages are copied, in bytes; one allocation serves many messages.
pub const MESSAGE_CHUNK_BYTES: usize = 16 << 10;
/// Messages larger than this get a buffer of their own and must be admitted by the budgets, in
/// bytes.
pub const MESSAGE_SMALL_BYTES_MAX: usize = 16 << 10;
/// The part of a connection's budget (one in so many) that large messages may hold while they wait
/// for the rest, so that the first in the queue always finds room in the end.
pub const WAITING_SHARE: usize = 2;
/// Bytes of waiting messages from which on the windows of a connection's streams are shut, as long
/// as any wait: what comes besides is at most a connection's window, and a little for each stream.
pub const SHUT_WAITING_BYTES: usize = 1 << 20;
/// The window of a stream meanwhile, in bytes: enough for renewals and watches.
pub const SHUT_WINDOW_BYTES: u32 = 1 << 10;
/// Longest wait of a message for the budgets while nothing of an admitted one comes on its
/// connection, in milliseconds; past it its stream is refused.
pub const ADMISSION_WAIT_MS_MAX: u64 = 10_000;
/// How often a connection with waiting large messages looks at the process budget, in milliseconds.
pub const ADMISSION_RETRY_MS: u64 = 10;
/// Largest head of an HTTP/1.1 message, in bytes; past it 431.
pub const HTTP1_HEAD_BYTES_MAX: usize = 64 << 10;
/// Fields of an HTTP/1.1 head; past it 431.
pub const HTTP1_FIELDS_MAX: usize = 100;
/// Longest size line of a chunk with its extensions, in bytes; past it 400.
pub const HTTP1_CHUNK_LINE_BYTES_MAX: usize = 1_024;
/// Largest trailers of a chunked body, in bytes; past it 400.
pub const HTTP1_TRAILER_BYTES_MAX: usize = 8 << 10;
/// Messages in one another that are decoded, as in Go's protobuf; past it an error.
pub const DECODE_DEPTH: u32 = 10_000;
/// Objects and lists of JSON in one another, as in Go's `encoding/json`; past it an error.
pub const JSON_DEPTH: usize = 10_000;
/// Unknown groups in one another that are skipped, as in Go's protobuf; past it an error.
pub const DECODE_GROUPS: usize = 10_001;
/// Stack that is taken for looking at a message that nests deeply, in bytes ...
pub const STACK_BYTES: usize = 1 << 20;
/// ... and what each level of transactions may use of it, in bytes.
pub const STACK_BYTES_PER_TXN: usize = if cfg!(debug_assertions) { 8 << 10 } else { 4 << 10 };

const _: () = assert!(STREAM_WINDOW_BYTES as usize > MESSAGE_SMALL_BYTES_MAX);
const _: () = assert!(CONNECTION_HELD_BYTES_MAX <= PROCESS_HELD_BYTES_MAX);
const _: () = assert!(TRANSMIT_FREE_BYTES < TRANSMIT_HIGH_WATER_BYTES);
const _: () = assert!(TRANSMIT_HIGH_WATER_BYTES < TRANSMIT_STOP_READING_BYTES);

/// Ciphertext of records and handshake messages that are incomplete, in bytes; past it the
/// connection ends. rustls refuses a longer handshake message by itself.
pub const TLS_INCOMPLETE_BYTES_MAX: usize = 96 << 10;
