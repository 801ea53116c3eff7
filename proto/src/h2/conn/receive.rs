//! Cutting the byte stream into frames, and header blocks.
//!
//! Part of [`Conn`]; `frames` handles what is cut here. Whole frames are handed on in place; only a
//! frame that a read cut in two is copied.

use super::{Block, Conn, Handler, Headers, OpenBlock};
use crate::h2::block::{BlockCheck, BlockKind, CheckedSink};
use crate::h2::frame::{self, HEAD_BYTES, Head};
use crate::h2::streams::{Closed, HEAD_RECEIVED, RECV_ENDED};
use crate::h2::{ConnError, ErrorCode, Flood, StreamId};
use crate::hpack::Pieces;
use crate::limits;

impl Conn {
    /// Takes what a socket read gave.
    ///
    /// # Errors
    /// A [`ConnError`] ends the connection: GOAWAY is queued, and every later call fails likewise.
    pub fn receive<H: Handler>(
        &mut self,
        bytes: &[u8],
        now_ms: u64,
        handler: &mut H,
    ) -> Result<(), ConnError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.now_ms = now_ms;
        self.last_read_ms = now_ms;
        self.started_ms.get_or_insert(now_ms);
        let mut result = self.cut_frames(bytes, handler);
        if self.windows_grew {
            result = result.and_then(|()| self.find_opened_windows());
        }
        if self.partial.len() > limits::PARTIAL_FREE_BYTES || self.partial_charged > 0 {
            self.charge_partial();
        }
        self.allow_wakes();
        if let Err(error) = result {
            self.fail(error);
        }
        result
    }

    /// A frame is at most 16 KiB, and has come: it is held in any case.
    fn charge_partial(&mut self) {
        let held = self.partial.len();
        let before = std::mem::replace(&mut self.partial_charged, held);
        if held > before {
            self.budget.hold(held - before);
        } else {
            self.budget.release(before - held);
        }
    }

    fn cut_frames<H: Handler>(
        &mut self,
        mut bytes: &[u8],
        handler: &mut H,
    ) -> Result<(), ConnError> {
        self.take_preface(&mut bytes)?;
        if !self.partial.is_empty() && !self.finish_partial(&mut bytes, handler)? {
            return Ok(());
        }
        while let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() {
            let head = Head::parse(head);
            check_length(head)?;
            let Some((payload, rest)) = rest.split_at_checked(head.length as usize) else { break };
            self.frame(head, payload, handler)?;
            bytes = rest;
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    fn take_preface(&mut self, bytes: &mut &[u8]) -> Result<(), ConnError> {
        if self.preface_left > 0 {
            let done = frame::PREFACE.len() - self.preface_left;
            let count = self.preface_left.min(bytes.len());
            let (front, rest) = bytes.split_at(count);
            if front != &frame::PREFACE[done..done + count] {
                return Err(ConnError::BadPreface);
            }
            self.preface_left -= count;
            *bytes = rest;
        }
        Ok(())
    }

    /// Completes the frame that earlier reads began; false if bytes are still missing.
    fn finish_partial<H: Handler>(
        &mut self,
        bytes: &mut &[u8],
        handler: &mut H,
    ) -> Result<bool, ConnError> {
        if !self.fill_partial(HEAD_BYTES, bytes) {
            return Ok(false);
        }
        let Some(head) = self.partial.first_chunk::<HEAD_BYTES>() else { return Ok(false) };
        let head = Head::parse(head);
        check_length(head)?;
        if !self.fill_partial(HEAD_BYTES + head.length as usize, bytes) {
            return Ok(false);
        }
        let mut whole = std::mem::take(&mut self.partial);
        let result = self.frame(head, &whole[HEAD_BYTES..], handler);
        whole.clear();
        self.partial = whole;
        result.map(|()| true)
    }

    fn fill_partial(&mut self, wanted: usize, bytes: &mut &[u8]) -> bool {
        let count = wanted.saturating_sub(self.partial.len()).min(bytes.len());
        let (front, rest) = bytes.split_at(count);
        self.partial.extend_from_slice(front);
        *bytes = rest;
        self.partial.len() >= wanted
    }

    pub(super) fn headers_frame<H: Handler>(
        &mut self,
        head: Head,
        payload: &[u8],
        handler: &mut H,
    ) -> Result<(), ConnError> {
        if head.stream == 0 {
            return Err(ConnError::protocol("HEADERS on stream 0"));
        }
        let mut payload = unpad(head, payload)?;
        let mut depends_on_itself = false;
        if head.has(frame::PRIORITY_FLAG) {
            let Some((dependency, rest)) = payload.split_first_chunk::<5>() else {
                return Err(ConnError::frame_size("HEADERS too short for its priority"));
            };
            let [a, b, c, d, _] = *dependency;
            depends_on_itself = u32::from_be_bytes([a & 0x7f, b, c, d]) == head.stream;
            payload = rest;
        }
        let end_stream = head.has(frame::END_STREAM);
        let mut block = self.begin_block(head.stream, end_stream, handler);
        block.depends_on_itself = depends_on_itself;
        if head.has(frame::END_HEADERS) {
            let mut sink = CheckedSink::new(handler, block.check);
            self.decoder.decode(payload, &mut sink)?;
            block.check = sink.into_check();
            return self.end_block(block, handler);
        }
        let pieces = Pieces::default();
        let mut open = Box::new(OpenBlock { block, fragments: 0, bytes: 0, pieces, charged: 0 });
        self.take_piece(&mut open, payload, handler)?;
        self.open_block = Some(open);
        Ok(())
    }

    fn begin_block<H: Handler>(&mut self, id: u32, end_stream: bool, handler: &mut H) -> Block {
        let found = self.streams.find(id);
        let kind = match found.and_then(|name| self.streams.get(name)) {
            Some(stream) if stream.has(HEAD_RECEIVED) => BlockKind::Trailers,
            _ if self.is_client => BlockKind::Response,
            _ => BlockKind::Request,
        };
        handler.block_start(kind);
        let check = BlockCheck::new(kind, self.config.header_list_bytes_max);
        Block { id, end_stream, depends_on_itself: false, kind, found, check }
    }

    /// Decodes what is complete of a block, and holds no more of it than a field.
    fn take_piece<H: Handler>(
        &mut self,
        open: &mut OpenBlock,
        payload: &[u8],
        handler: &mut H,
    ) -> Result<(), ConnError> {
        open.bytes += payload.len();
        let check = BlockCheck::new(open.block.kind, 0);
        let mut sink = CheckedSink::new(handler, std::mem::replace(&mut open.block.check, check));
        let (budget, charged) = (&mut self.budget, &mut open.charged);
        let result = open.pieces.push(payload, &mut self.decoder, &mut sink, |bytes| {
            let fits = bytes <= *charged || budget.charge(bytes - *charged);
            if fits {
                *charged = bytes.max(*charged);
            }
            fits
        });
        open.block.check = sink.into_check();
        Ok(result?)
    }

    pub(super) fn continuation_frame<H: Handler>(
        &mut self,
        head: Head,
        payload: &[u8],
        handler: &mut H,
    ) -> Result<(), ConnError> {
        let Some(open) = &mut self.open_block else {
            return Err(ConnError::protocol("CONTINUATION without HEADERS"));
        };
        open.fragments += 1;
        let paid = (open.bytes / limits::CONTINUATION_BYTES) as u32;
        if open.fragments > limits::CONTINUATION_FRAMES_MAX + paid
            || open.bytes + payload.len() > limits::HEADER_BLOCK_BYTES_MAX
        {
            return Err(ConnError::Flood(Flood::Continuations));
        }
        let Some(mut open) = self.open_block.take() else { return Ok(()) };
        self.take_piece(&mut open, payload, handler)?;
        if !head.has(frame::END_HEADERS) {
            self.open_block = Some(open);
            return Ok(());
        }
        self.budget.release(open.charged);
        let mut block = open.block;
        if open.pieces.finish()? {
            block.check.see_oversized();
        }
        self.end_block(block, handler)
    }

    /// A whole header block was decoded, as it must be always: the table must stay in step.
    fn end_block<H: Handler>(&mut self, block: Block, handler: &mut H) -> Result<(), ConnError> {
        let Block { id, end_stream, depends_on_itself, kind, found, check } = block;
        let name = match found {
            Some(name) => name,
            None => match self.accept(id)? {
                Some(name) => name,
                None => return Ok(()),
            },
        };
        let Some(stream) = self.streams.get(name) else { return Ok(()) };
        if stream.has(RECV_ENDED) && found.is_some() {
            self.stream_error(name, ErrorCode::STREAM_CLOSED, handler);
        } else if check.is_oversized() {
            self.stream_error(name, ErrorCode::FRAME_SIZE_ERROR, handler);
        } else if depends_on_itself
            || !check.is_well_formed()
            || (kind == BlockKind::Trailers && !end_stream)
        {
            self.stream_error(name, ErrorCode::PROTOCOL_ERROR, handler);
        } else {
            self.deliver_block(name, kind, end_stream, &check, handler);
        }
        Ok(())
    }

    fn deliver_block<H: Handler>(
        &mut self,
        name: StreamId,
        kind: BlockKind,
        end_stream: bool,
        check: &BlockCheck,
        handler: &mut H,
    ) {
        let Some(stream) = self.streams.get_mut(name) else { return };
        let mut kind = kind;
        if kind == BlockKind::Response && check.status < 200 {
            kind = BlockKind::Interim;
            if end_stream {
                return self.stream_error(name, ErrorCode::PROTOCOL_ERROR, handler);
            }
        } else {
            stream.flags |= HEAD_RECEIVED;
            if kind != BlockKind::Trailers {
                stream.content_left = check.content_length;
            }
        }
        if end_stream {
            if stream.content_left.is_some_and(|left| left > 0) {
                return self.stream_error(name, ErrorCode::PROTOCOL_ERROR, handler);
            }
            stream.flags |= RECV_ENDED;
        }
        let headers = Headers {
            kind,
            end_stream,
            status: check.status,
            content_length: check.content_length,
        };
        handler.headers(self, name, headers);
        if end_stream {
            self.close_if_ended(name);
        }
    }

    /// A block for a stream that is not open: a new stream, a late frame, or an error.
    fn accept(&mut self, id: u32) -> Result<Option<StreamId>, ConnError> {
        if self.is_client || id.is_multiple_of(2) || id <= self.last_peer_stream {
            return self.late_block(id).map(|()| None);
        }
        self.last_peer_stream = id;
        if self.drain == super::Drain::Final {
            // The final GOAWAY told the peer that this stream is not processed.
            return Ok(None);
        }
        if self.streams.open_count() >= self.config.concurrent_streams_max as usize
            || !self.budget.charge(limits::STREAM_STATE_BYTES)
        {
            return self.refuse(id).map(|()| None);
        }
        Ok(Some(self.streams.insert(id, self.now_ms)))
    }

    fn late_block(&mut self, id: u32) -> Result<(), ConnError> {
        let own = self.is_client && !id.is_multiple_of(2) && id < self.next_own_stream;
        let peers = !self.is_client && !id.is_multiple_of(2);
        if !own && !peers {
            return Err(ConnError::protocol("HEADERS on an idle stream"));
        }
        match self.streams.how_closed(id) {
            Some(Closed::ByUs(_)) => self.idle_frame(),
            None if own => self.idle_frame(),
            Some(Closed::Ended | Closed::ByPeer) => Err(ConnError::Protocol {
                code: ErrorCode::STREAM_CLOSED,
                reason: "HEADERS on a closed stream",
            }),
            None => Err(ConnError::protocol("stream id not above the last one")),
        }
    }
}

fn check_length(head: Head) -> Result<(), ConnError> {
    if head.length > limits::FRAME_BYTES_MAX {
        return Err(ConnError::frame_size("frame above our maximum"));
    }
    Ok(())
}

/// Takes the padding off a DATA or HEADERS payload.
pub(super) fn unpad(head: Head, payload: &[u8]) -> Result<&[u8], ConnError> {
    if !head.has(frame::PADDED) {
        return Ok(payload);
    }
    let Some((&padding, rest)) = payload.split_first() else {
        return Err(ConnError::frame_size("padded frame without its length"));
    };
    let length = rest.len().checked_sub(usize::from(padding));
    match length {
        Some(length) => Ok(&rest[..length]),
        None => Err(ConnError::protocol("padding longer than its frame")),
    }
}
