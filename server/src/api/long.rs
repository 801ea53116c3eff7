//! Long answers: those that are not evaluated and encoded at once.
//!
//! What they read is pinned; they are measured first, then written in pieces as the peer's window
//! opens ([`Answer`]), a slice or a piece at a time, so that an answer of any size costs a piece
//! of memory, however slow its reader, and keeps nobody waiting. RangeStream goes the same way,
//! message by message. When a snapshot takes the place of the member's state, answers that are
//! under way are completed from the state of before, for a while.

use etcore_engine::pins::RevisionPin;
use etcore_engine::types::Revision;
use etcore_engine::view::{ReadPoint, View};
use etcore_proto::error::{Code, EtcdError, Status};
use etcore_proto::h2::BudgetLease;
use etcore_proto::pb::etcdserverpb as pb;
use prost::Message as _;

use super::Cx;
use super::call::{Call, Refusal};
use super::pending::{CallKind, PendingCall, To};
use super::reads::refusal;
use super::stats::Asked;
use crate::kv::answer::{Answer, Draft};
use crate::kv::counts::Counts;
use crate::kv::execute::draft_reads;
use crate::kv::keys::{Keys, Look};
use crate::kv::plan::{NoLeases, Plan};
use crate::kv::range;
use crate::kv::reader::{Pinned, Stop};
use crate::limits;
use crate::replies::{CallId, Gone};
use crate::wire::Header;
use crate::work::Job;

/// etcd's first chunk of a RangeStream.
const FIRST_CHUNK_KEYS: u64 = 10;
/// What a gRPC message may be at most (etcd: math.MaxInt32).
const MESSAGE_BYTES_MAX: u64 = i32::MAX as u64;

/// A long answer under way.
pub(super) struct Long {
    work: Work,
    /// Number of the page file in which it began.
    page_file: u64,
    /// What sorting holds is charged here.
    sorting: BudgetLease,
    sorting_bytes: usize,
}

enum Work {
    /// A transaction that only reads is choosing its path.
    Plan { plan: Plan, pinned: PinnedState },
    /// Between two; for a moment.
    Moved,
    /// A unary answer.
    Answer(Sending),
    /// A RangeStream.
    Stream(Box<Stream>),
}

/// A message being measured, or sent.
struct Sending {
    answer: Answer,
    /// Once it is measured.
    length: Option<usize>,
    begun: bool,
}

impl Sending {
    fn new(answer: Answer) -> Self {
        Self { answer, length: None, begun: false }
    }
}

/// A state that is read over several turns.
struct PinnedState {
    pin: RevisionPin,
    revision: Revision,
    compact_revision: Revision,
}

/// A RangeStream under way.
struct Stream {
    request: pb::RangeRequest,
    header: Header,
    point: ReadPoint,
    stage: StreamStage,
    /// The first key of the next message.
    next: Vec<u8>,
    count: u64,
    /// Keys still to be sent.
    left: u64,
    more: bool,
    /// Keys of a message, about.
    chunk_keys: u64,
}

enum StreamStage {
    Count {
        keys: Keys,
        pin: RevisionPin,
    },
    Chunk {
        sending: Sending,
        keys: u64,
        bytes: u64,
    },
    /// Between two; for a moment.
    Moved,
}

/// Why a step ended.
enum Next {
    /// Everything is sent.
    Finished,
    /// There is more to do, and room for it.
    Again,
    /// The peer's window is full.
    Window,
    /// The call is gone.
    Gone,
}

impl Cx<'_> {
    /// The state that a Range reads.
    fn point_of(&self, request: &pb::RangeRequest) -> ReadPoint {
        ReadPoint::at(match request.revision {
            ..=0 => self.api.reads.store().revision,
            revision => Revision(revision),
        })
    }

    fn long(&self, work: Work) -> Box<Long> {
        Box::new(Long {
            work,
            page_file: self.api.reads.page_file(),
            sorting: self.api.reads.sorting_lease(),
            sorting_bytes: 0,
        })
    }

    /// Begins a long unary Range.
    pub(super) fn start_range(
        &mut self,
        mut call: Call,
        request: &pb::RangeRequest,
    ) -> Result<(), Refusal> {
        self.api.ranges += 1;
        call.asked.get_or_insert_with(|| Box::new(Asked::Message(request.encode_to_vec().into())));
        let point = self.point_of(request);
        let pin = self.api.reads.pin(&self.api.shared, point.revision())?;
        let mut draft = Draft::default();
        draft.keys(Keys::of_range(request, point));
        self.start_answer(call, draft.pinned_by(&self.header_bytes(), pin));
        Ok(())
    }

    fn header_bytes(&self) -> Vec<u8> {
        let mut head = Vec::new();
        self.api.shared.header(self.api.reads.store().revision.0).write(&mut head);
        head
    }

    /// Begins to send an answer that names what it reads.
    pub(super) fn start_answer(&mut self, call: Call, answer: Answer) {
        let long = self.long(Work::Answer(Sending::new(answer)));
        self.continue_long(call, long);
    }

    /// Begins a transaction that only reads: at once if it is short.
    pub(super) fn start_read_txn(
        &mut self,
        call: Call,
        request: pb::TxnRequest,
    ) -> Result<(), Refusal> {
        let oldest = self.oldest_read(&request);
        let mut plan = Plan::new(request);
        let view = self.api.reads.store().clone();
        let mut rows = limits::RANGE_CHUNK_KEYS;
        let (pages, hits) = self.api.reads.source();
        let planned = match plan.step(&*view, pages, hits, &mut rows) {
            Err(Stop::NeedsPage(_)) => false,
            planned => planned.map_err(refusal)?,
        };
        if !planned {
            let pin = self.api.reads.pin(&self.api.shared, oldest)?;
            let (revision, compact_revision) = (view.revision, view.compact_revision);
            let pinned = PinnedState { pin, revision, compact_revision };
            let long = self.long(Work::Plan { plan, pinned });
            self.continue_long(call, long);
            return Ok(());
        }
        plan.check(&*view, &NoLeases).map_err(refusal)?;
        Counts::of(&plan).add_to(&self.api.shared.metrics);
        let point = ReadPoint::at(view.revision);
        let draft = draft_reads(&plan, &*view, point, self.api.reads.scratch()).map_err(refusal)?;
        let head = self.header_bytes();
        if !draft.is_short() {
            let pin = self.api.reads.pin(&self.api.shared, oldest)?;
            self.start_answer(call, draft.pinned_by(&head, pin));
            return Ok(());
        }
        let mut answer = self.api.reads.take_buffer();
        draft.write_short(&head, &mut answer);
        self.out.reply(call.id, &answer);
        self.api.ended(&call, Some(&answer));
        self.api.reads.keep_buffer(answer);
        Ok(())
    }

    /// The oldest revision that a transaction may read, of those that can be read.
    fn oldest_read(&self, request: &pb::TxnRequest) -> Revision {
        use pb::request_op::Request;
        let view = self.api.reads.store();
        let revisions = request.success.iter().chain(&request.failure).filter_map(|op| {
            let Some(Request::RequestRange(range)) = &op.request else { return None };
            let revision = Revision(range.revision);
            (revision.0 > 0 && revision >= view.compact_revision).then_some(revision)
        });
        revisions.fold(view.revision, Revision::min)
    }

    /// Begins a RangeStream.
    pub(super) fn start_stream(
        &mut self,
        call: Call,
        request: Box<pb::RangeRequest>,
    ) -> Result<(), Refusal> {
        if self.sorts_chunk(&request) {
            return self.stream_sorted(call, &request);
        }
        let point = self.point_of(&request);
        self.api
            .reads
            .store()
            .count_within(range::key_range(&request), point.revision(), 1)
            .map_err(|error| refusal(error.into()))?;
        let pin = self.api.reads.pin(&self.api.shared, point.revision())?;
        let counted = pb::RangeRequest { count_only: true, ..(*request).clone() };
        let keys = Keys::of_range(&counted, point);
        let stream = Stream {
            header: self.api.shared.header(self.api.reads.store().revision.0),
            point,
            stage: StreamStage::Count { keys, pin },
            next: request.key.to_vec(),
            count: 0,
            left: 0,
            more: false,
            // A negative limit is none, and then etcd does not cut either.
            chunk_keys: if request.limit < 0 { u64::MAX } else { FIRST_CHUNK_KEYS },
            request: *request,
        };
        let long = self.long(Work::Stream(Box::new(stream)));
        self.continue_long(call, long);
        Ok(())
    }

    /// True for a RangeStream that names something else than the key to sort by, but no order, and
    /// fits into one chunk: etcd sorts chunks, as it does Range answers. It loses its way when
    /// there are more (the next chunk starts behind the last key sent); those go in key order
    /// here.
    fn sorts_chunk(&self, request: &pb::RangeRequest) -> bool {
        if request.count_only || !crate::kv::check::sorts_after_limit(request) {
            return false;
        }
        if request.limit < 0 {
            // No limit and one chunk, for etcd.
            return true;
        }
        let at = Revision(request.revision.max(0));
        let view = self.api.reads.store();
        match view.count_within(range::key_range(request), at, limits::RANGE_CHUNK_LEAVES) {
            Ok(Some(count)) => {
                let wanted = match range::limit_of(request) {
                    0 => u64::MAX,
                    limit => limit as u64,
                };
                count.min(wanted) <= FIRST_CHUNK_KEYS
            }
            Ok(None) | Err(_) => false,
        }
    }

    /// A RangeStream whose only message is a sorted Range answer.
    fn stream_sorted(&mut self, call: Call, request: &pb::RangeRequest) -> Result<(), Refusal> {
        let point = self.point_of(request);
        let pin = self.api.reads.pin(&self.api.shared, point.revision())?;
        let mut draft = Draft::default();
        draft.open(1);
        let head = self.header_bytes();
        draft.bytes().extend_from_slice(&head);
        draft.keys(Keys::of_range(request, point));
        draft.close();
        self.start_answer(call, draft.pinned_by(&[], pin));
        Ok(())
    }

    /// One step; what is left waits for the next turn, a page, or the window.
    pub(super) fn continue_long(&mut self, call: Call, mut long: Box<Long>) {
        self.api.work.note(Job::LongAnswers);
        let view = self.api.reads.store_of(long.page_file).clone();
        self.api.listed_bytes += limits::LIST_STEP_COST;
        let id = call.id;
        let stepped = self.long_step(id, &mut long, &view);
        let (run, page) = match stepped {
            Ok(Next::Finished) => return self.api.ended(&call, None),
            Ok(Next::Gone) => return,
            Ok(Next::Again) => (true, false),
            Ok(Next::Window) => (false, false),
            Err(Stop::NeedsPage(_)) => (false, true),
            Err(stop) => {
                if let Refusal::Status(status) = refusal(stop) {
                    self.api.ended(&call, None);
                    self.out.fail(id, &status);
                }
                return;
            }
        };
        let pending = PendingCall {
            to: To::Call(call),
            kind: CallKind::Long(long),
            // A slow reader may take its time; the connection's keepalive finds a dead one.
            deadline_ms: u64::MAX,
            client_deadline: false,
            bytes: 0,
        };
        match self.api.pending.insert(pending) {
            Ok(slot) if run => self.api.pending.run_soon(slot),
            Ok(slot) => {
                if page {
                    self.api.pending.wait_for_page(slot);
                    self.api.reads.fetch_wanted();
                }
            }
            Err(_) => self.out.fail(id, &EtcdError::TooManyRequests.into()),
        }
    }

    fn long_step(&mut self, call: CallId, long: &mut Long, view: &View) -> Result<Next, Stop> {
        let page_file = long.page_file;
        match &mut long.work {
            Work::Plan { plan, pinned } => {
                let PinnedState { pin, revision, compact_revision } = &*pinned;
                let (revision, compact_revision) = (*revision, *compact_revision);
                let reader = Pinned { view, revision, compact_revision, pin };
                let mut rows = limits::RANGE_CHUNK_KEYS;
                self.api.listed_bytes += rows * limits::LIST_KEY_COST;
                let (pages, hits) = self.api.reads.source_of(page_file);
                if !plan.step(&reader, pages, hits, &mut rows)? {
                    return Ok(Next::Again);
                }
                plan.check(&reader, &NoLeases)?;
                Counts::of(plan).add_to(&self.api.shared.metrics);
                let point = ReadPoint::at(revision);
                let draft = draft_reads(plan, &reader, point, self.api.reads.scratch())?;
                let mut head = Vec::new();
                self.api.shared.header(revision.0).write(&mut head);
                let work = std::mem::replace(&mut long.work, Work::Moved);
                let Work::Plan { pinned, .. } = work else { return Ok(Next::Gone) };
                let answer = draft.pinned_by(&head, pinned.pin);
                long.work = Work::Answer(Sending::new(answer));
                Ok(Next::Again)
            }
            Work::Answer(sending) => {
                let next = self.send_some(call, sending, page_file, view)?;
                let bytes = sending.answer.memory_bytes();
                if !long.charge(bytes) {
                    return Err(EtcdError::TooManyRequests.into());
                }
                if matches!(next, Next::Finished) {
                    self.out.finish(call);
                }
                Ok(next)
            }
            Work::Stream(stream) => self.stream_step(call, stream, page_file, view),
            Work::Moved => Ok(Next::Gone),
        }
    }

    /// Measures a slice, or writes a piece: what may be sent at once and no more, since what waits
    /// for the peer would be charged to the connection's budget. The message begins with its first
    /// piece, so that what keeps that from being read can be told in a status.
    fn send_some(
        &mut self,
        call: CallId,
        sending: &mut Sending,
        page_file: u64,
        view: &View,
    ) -> Result<Next, Stop> {
        let (pages, hits) = self.api.reads.source_of(page_file);
        let Some(length) = sending.length else {
            let measured = sending.answer.measure(view, pages, hits)?;
            self.api.listed_bytes += limits::RANGE_CHUNK_KEYS * limits::LIST_KEY_COST;
            if let Some(total) = measured {
                sending.length = Some(message_length(total)?);
            }
            return Ok(Next::Again);
        };
        let Ok(room) = self.out.capacity(call) else { return Ok(Next::Gone) };
        let room = room.min(limits::RANGE_CHUNK_BYTES);
        // An empty message needs no room.
        if room == 0 && length > 0 {
            return Ok(Next::Window);
        }
        let mut piece = self.api.reads.take_buffer();
        let (pages, hits) = self.api.reads.source_of(page_file);
        let written = sending.answer.write(view, pages, hits, room, &mut piece);
        let next = written.map(|finished| {
            self.api.listed_bytes += piece.len();
            let begins = !std::mem::replace(&mut sending.begun, true);
            if begins && self.out.start(call, length).is_err() {
                return Next::Gone;
            }
            match self.out.write(call, &piece) {
                Err(Gone) => Next::Gone,
                Ok(()) if finished => Next::Finished,
                Ok(()) => Next::Again,
            }
        });
        self.api.reads.keep_buffer(piece);
        next
    }

    fn stream_step(
        &mut self,
        call: CallId,
        stream: &mut Stream,
        page_file: u64,
        view: &View,
    ) -> Result<Next, Stop> {
        match &mut stream.stage {
            StreamStage::Count { keys, pin } => {
                self.api.listed_bytes += limits::RANGE_CHUNK_KEYS * limits::LIST_KEY_COST;
                let (pages, hits) = self.api.reads.source_of(page_file);
                let mut look = Look { view, pin, pages, hits };
                if keys.measure(&mut look)? {
                    stream.begin();
                }
                Ok(Next::Again)
            }
            StreamStage::Chunk { sending, bytes, .. } => {
                if !sending.begun && self.out.capacity(call) == Ok(0) {
                    return Ok(Next::Window);
                }
                let before = self.api.listed_bytes;
                let measured = sending.length.is_some();
                let next = self.send_some(call, sending, page_file, view)?;
                if measured {
                    *bytes += (self.api.listed_bytes - before) as u64;
                }
                if !matches!(next, Next::Finished) {
                    return Ok(next);
                }
                if stream.go_on(self.api.shared.config.max_request_bytes as u64) {
                    return Ok(Next::Again);
                }
                self.out.finish(call);
                Ok(Next::Finished)
            }
            StreamStage::Moved => Ok(Next::Gone),
        }
    }
}

impl Long {
    /// Number of the page file in which it began.
    pub(super) fn page_file(&self) -> u64 {
        self.page_file
    }

    /// Charges what sorting holds; false if that is too much.
    fn charge(&mut self, bytes: usize) -> bool {
        let before = std::mem::replace(&mut self.sorting_bytes, bytes);
        if bytes <= before {
            self.sorting.release(before - bytes);
            return true;
        }
        let fits = self.sorting.charge(bytes - before);
        if !fits {
            self.sorting_bytes = before;
        }
        fits
    }
}

impl Stream {
    /// The keys are counted: the first message follows.
    fn begin(&mut self) {
        let stage = std::mem::replace(&mut self.stage, StreamStage::Moved);
        let StreamStage::Count { keys, pin } = stage else { return };
        self.count = keys.count();
        self.left = match (self.request.count_only, range::limit_of(&self.request)) {
            (true, _) => 0,
            (false, 0) => self.count,
            (false, limit) => self.count.min(limit as u64),
        };
        self.more = !self.request.count_only && self.left < self.count;
        self.next_chunk(pin);
    }

    /// `RangeStreamResponse {range_response: …}`: some keys, and in the last one what a
    /// RangeResponse tells besides.
    fn next_chunk(&mut self, pin: RevisionPin) {
        let keys = self.left.min(self.chunk_keys);
        let last = keys == self.left;
        let mut draft = Draft::default();
        draft.open(1);
        if last {
            self.header.write(draft.bytes());
        }
        if keys > 0 {
            let limit = usize::try_from(keys).unwrap_or(usize::MAX);
            draft.keys(Keys::part(&self.request, &self.next, self.point, limit));
        }
        if last {
            range::write_tail(self.more, self.count, draft.bytes());
        }
        draft.close();
        let sending = Sending::new(draft.pinned_by(&[], pin));
        self.stage = StreamStage::Chunk { sending, keys, bytes: 0 };
    }

    /// A message was sent; false if it was the last.
    fn go_on(&mut self, target_bytes: u64) -> bool {
        let stage = std::mem::replace(&mut self.stage, StreamStage::Moved);
        let StreamStage::Chunk { sending, keys, bytes } = stage else { return false };
        self.left -= keys;
        if self.left == 0 {
            return false;
        }
        // Too small wastes round trips, too large wastes memory (etcd `adjustChunkLimit`).
        self.chunk_keys = match bytes {
            size if size < target_bytes / 2 => self.chunk_keys.saturating_mul(2),
            size if size > target_bytes * 2 => (self.chunk_keys / 2).max(1),
            _ => self.chunk_keys,
        };
        let (keys, Some(pin)) = sending.answer.into_parts() else { return false };
        if let Some(next) = keys.and_then(Keys::into_next) {
            self.next = next;
        }
        self.next_chunk(pin);
        true
    }
}

/// The length of a message, if gRPC can carry it (grpc-go `encode`, `sendResponse`).
fn message_length(total: u64) -> Result<usize, Stop> {
    let text = if total > u64::from(u32::MAX) {
        format!("grpc: message too large ({total} bytes)")
    } else if total > MESSAGE_BYTES_MAX {
        format!("grpc: trying to send message larger than max ({total} vs. {MESSAGE_BYTES_MAX})")
    } else {
        return Ok(usize::try_from(total).unwrap_or(usize::MAX));
    };
    Err(Stop::Refused(Status::new(Code::ResourceExhausted, text)))
}
