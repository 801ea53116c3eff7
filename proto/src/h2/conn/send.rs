//! Sending: headers, data within the windows, and the transmit buffer.
//!
//! Part of [`Conn`]. What fits the windows is framed at once into one buffer; the rest waits in its
//! stream, charged to the budget, and is framed in turns as windows open. Bodies of unbounded size
//! are pulled: the owner asks [`Conn::capacity`] and waits for [`Conn::next_writable`].

use super::{Conn, Drain, OpenError, SendError};
use crate::h2::frame::{self, HEAD_BYTES};
use crate::h2::settings::WINDOW_BYTES_MAX;
use crate::h2::streams::{
    ANSWERED, Closed, HEAD_RECEIVED, IN_READY_QUEUE, OwnedItem, RECV_ENDED, SEND_ENDED,
};
use crate::h2::{ErrorCode, StreamId};
use crate::hpack::HeaderItem;
use crate::limits;

impl Conn {
    /// Opens a stream with a request's header list (client only).
    ///
    /// # Errors
    /// An [`OpenError`]; nothing was sent then.
    pub fn open(
        &mut self,
        items: &[HeaderItem<'_>],
        end_stream: bool,
    ) -> Result<StreamId, OpenError> {
        if self.failed.is_some() || self.peer_goaway.is_some() || self.drain != Drain::No {
            return Err(OpenError::GoingAway);
        }
        if self.streams.open_count() >= self.peer.concurrent_streams_max as usize {
            return Err(OpenError::TooManyStreams);
        }
        let id = self.next_own_stream;
        if id > WINDOW_BYTES_MAX {
            return Err(OpenError::IdsExhausted);
        }
        if !self.budget.charge(limits::STREAM_STATE_BYTES) {
            return Err(OpenError::Budget);
        }
        self.next_own_stream += 2;
        let name = self.streams.insert(id, self.now_ms);
        self.put_block(id, items, end_stream);
        if end_stream && let Some(stream) = self.streams.get_mut(name) {
            stream.flags |= SEND_ENDED;
        }
        Ok(name)
    }

    /// Sends a response's header list.
    ///
    /// # Errors
    /// [`SendError::Closed`].
    #[inline]
    pub fn send_headers(
        &mut self,
        name: StreamId,
        items: &[HeaderItem<'_>],
        end_stream: bool,
    ) -> Result<(), SendError> {
        self.sending(name)?;
        self.note_answer(name);
        self.put_block(name.id(), items, end_stream);
        if end_stream {
            self.end_sending(name);
        }
        Ok(())
    }

    /// The stream is no rapid reset any more, and pays for one.
    #[inline]
    fn note_answer(&mut self, name: StreamId) {
        if let Some(stream) = self.streams.get_mut(name)
            && !stream.has(ANSWERED)
        {
            stream.flags |= ANSWERED;
            self.answered += 1;
            self.rapid_unanswered = 0;
            self.rapid_resets.forgive();
        }
    }

    /// Sends body bytes; what exceeds the windows waits.
    ///
    /// # Errors
    /// [`SendError::Closed`], or [`SendError::BufferFull`] after which the stream is reset.
    pub fn send_data(
        &mut self,
        name: StreamId,
        data: &[u8],
        end_stream: bool,
    ) -> Result<(), SendError> {
        self.sending(name)?;
        let must_wait = self.has_pending(name);
        let now = if must_wait { 0 } else { self.room(name, data.len()).min(data.len()) };
        let (front, rest) = data.split_at(now);
        if rest.is_empty() && !must_wait {
            self.put_data(name, front, end_stream);
            if end_stream {
                self.end_sending(name);
            }
            return Ok(());
        }
        if !self.budget.charge(rest.len()) {
            self.reset(name, ErrorCode::ENHANCE_YOUR_CALM);
            return Err(SendError::BufferFull);
        }
        if !front.is_empty() {
            self.put_data(name, front, false);
        }
        self.pending_bytes += rest.len();
        let base = i64::from(self.peer.stream_window_bytes);
        if let Some(stream) = self.streams.get_mut(name) {
            let pending = stream.pending.get_or_insert_default();
            if pending.sent > pending.data.len() / 2 {
                // What was sent is dead weight that no budget counts.
                pending.data.drain(..pending.sent);
                pending.sent = 0;
            }
            pending.data.extend_from_slice(rest);
            pending.end_stream = end_stream;
            if base + i64::from(stream.send_extra) > 0 && !stream.has(IN_READY_QUEUE) {
                stream.flags |= IN_READY_QUEUE;
                self.ready.push_back(name);
            }
        }
        Ok(())
    }

    /// Lets `write` append exactly `length` body bytes straight to the transmit buffer. False, and
    /// `write` was not called, if they do not fit one frame and the windows right now.
    ///
    /// # Errors
    /// [`SendError::Closed`].
    ///
    /// # Panics
    /// If `write` appends another number of bytes: the stream would be corrupt.
    #[inline]
    pub fn send_data_with(
        &mut self,
        name: StreamId,
        length: usize,
        end_stream: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<bool, SendError> {
        self.sending(name)?;
        if length > self.peer.frame_bytes_max as usize
            || self.has_pending(name)
            || self.room(name, length) < length
        {
            return Ok(false);
        }
        let flags = if end_stream { frame::END_STREAM } else { 0 };
        frame::put_head(length, frame::DATA, flags, name.id(), &mut self.out);
        let start = self.out.len();
        write(&mut self.out);
        assert_eq!(self.out.len() - start, length, "the body is as long as announced");
        self.sent_since_ping = true;
        self.send_window -= length as i64;
        if let Some(stream) = self.streams.get_mut(name) {
            stream.send_extra -= length as i32;
        }
        if end_stream {
            self.end_sending(name);
        }
        Ok(true)
    }

    /// Ends the stream with trailers, after all data.
    ///
    /// # Errors
    /// [`SendError::Closed`].
    #[inline]
    pub fn send_trailers(
        &mut self,
        name: StreamId,
        items: &[HeaderItem<'_>],
    ) -> Result<(), SendError> {
        self.sending(name)?;
        if let Some(stream) = self.streams.get_mut(name)
            && let Some(pending) = &mut stream.pending
        {
            pending.trailers = Some(items.iter().map(OwnedItem::new).collect());
            pending.end_stream = true;
            return Ok(());
        }
        self.put_block(name.id(), items, true);
        self.end_sending(name);
        Ok(())
    }

    /// Resets a stream. Nothing happens if it is over already.
    pub fn reset(&mut self, name: StreamId, code: ErrorCode) {
        if self.streams.get(name).is_some() {
            frame::put_reset(name.id(), code, &mut self.out);
            self.close(name, Closed::ByUs(code));
        }
    }

    /// The answer of this stream is complete (client only): if the request is not, the server is
    /// told that the rest will not come.
    pub fn reset_unfinished(&mut self, name: StreamId) {
        let state = self.streams.get(name).map(|stream| (stream.flags, stream.has(RECV_ENDED)));
        match state {
            Some((flags, true)) if flags & SEND_ENDED != 0 => {}
            Some((_, true)) => self.reset(name, ErrorCode::NO_ERROR),
            Some((_, false)) => self.reset(name, ErrorCode::CANCEL),
            None => {}
        }
    }

    /// Appends at most `budget_bytes` wire bytes to `out`; true if more is ready.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>, budget_bytes: usize) -> bool {
        self.pump();
        let ready = self.out.len() - self.transmitted;
        if ready <= budget_bytes {
            if out.is_empty() && self.transmitted == 0 {
                std::mem::swap(out, &mut self.out);
            } else {
                out.extend_from_slice(&self.out[self.transmitted..]);
            }
            self.out.clear();
            self.transmitted = 0;
            self.control_replies = 0;
            self.settle_out();
            self.pump();
        } else {
            let end = self.transmitted + budget_bytes;
            out.extend_from_slice(&self.out[self.transmitted..end]);
            self.transmitted = end;
            if self.transmitted > self.out.len() / 2 {
                self.out.drain(..self.transmitted);
                self.transmitted = 0;
            }
        }
        self.allow_wakes();
        self.out.len() > self.transmitted
    }

    /// Whether the owner should read from the socket: false while the peer leaves so much unread
    /// that its next requests can wait.
    /// Or too many streams that it reset at once.
    #[must_use]
    pub fn wants_read(&self) -> bool {
        self.out.len() - self.transmitted < limits::TRANSMIT_STOP_READING_BYTES
            && self.control_replies < limits::CONTROL_REPLIES_QUEUED
            && !self.rapid_resets.is_over(self.now_ms)
    }

    /// Bytes queued for the peer: framed, and waiting for its windows.
    #[must_use]
    pub fn unsent_bytes(&self) -> usize {
        self.out.len() - self.transmitted + self.pending_bytes
    }

    /// Frames what waits, in turns, as far as windows and the transmit buffer allow.
    fn pump(&mut self) {
        let mut turns = self.ready.len();
        while self.send_window > 0 && turns > 0 {
            if self.out_room(limits::FRAME_BYTES_MAX as usize) == 0 {
                break;
            }
            let Some(name) = self.ready.pop_front() else { break };
            turns -= 1;
            if self.pump_stream(name) {
                self.ready.push_back(name);
                turns += 1;
            }
        }
    }

    /// One frame of one stream; true if the stream can send more.
    fn pump_stream(&mut self, name: StreamId) -> bool {
        let frame_max = self.peer.frame_bytes_max.min(limits::FRAME_BYTES_MAX) as usize;
        let window = usize::try_from(self.send_window).unwrap_or(0);
        let base = i64::from(self.peer.stream_window_bytes);
        let Some(stream) = self.streams.get_mut(name) else { return false };
        stream.flags &= !IN_READY_QUEUE;
        let Some(mut pending) = stream.pending.take() else { return false };
        let room = usize::try_from(base + i64::from(stream.send_extra)).unwrap_or(0).min(window);
        let count = pending.left().min(room).min(frame_max);
        let is_last = count == pending.left();
        let end_here = is_last && pending.end_stream && pending.trailers.is_none();
        let start = pending.sent;
        self.put_data(name, &pending.data[start..start + count], end_here);
        pending.sent += count;
        self.pending_bytes -= count;
        self.budget.release(count);
        if !is_last {
            if let Some(stream) = self.streams.get_mut(name) {
                let more = base + i64::from(stream.send_extra) > 0;
                if more {
                    stream.flags |= IN_READY_QUEUE;
                }
                stream.pending = Some(pending);
                return more;
            }
            return false;
        }
        if let Some(trailers) = &pending.trailers {
            let items: Vec<_> = trailers.iter().map(OwnedItem::borrow).collect();
            self.put_block(name.id(), &items, true);
        }
        if pending.end_stream {
            self.end_sending(name);
        } else {
            self.window_opened(name);
        }
        false
    }

    #[inline]
    pub(super) fn sending(&self, name: StreamId) -> Result<(), SendError> {
        match self.streams.get(name) {
            Some(stream)
                if !stream.has(SEND_ENDED)
                    && stream.pending.as_ref().is_none_or(|pending| !pending.end_stream) =>
            {
                Ok(())
            }
            _ => Err(SendError::Closed),
        }
    }

    #[inline]
    pub(super) fn has_pending(&self, name: StreamId) -> bool {
        self.streams.get(name).is_some_and(|stream| stream.pending.is_some())
    }

    fn end_sending(&mut self, name: StreamId) {
        if let Some(stream) = self.streams.get_mut(name) {
            stream.flags |= SEND_ENDED;
            if !self.is_client && !stream.has(RECV_ENDED) {
                // RFC 9113 §8.1: the answer is complete, the rest of the request is not wanted.
                return self.reset(name, ErrorCode::NO_ERROR);
            }
        }
        self.close_if_ended(name);
    }

    /// Frames data that fits the windows.
    fn put_data(&mut self, name: StreamId, data: &[u8], end_stream: bool) {
        let Some(stream) = self.streams.get_mut(name) else { return };
        stream.send_extra -= data.len() as i32;
        self.send_window -= data.len() as i64;
        self.sent_since_ping = true;
        let frame_max = self.peer.frame_bytes_max.min(limits::FRAME_BYTES_MAX) as usize;
        let mut rest = data;
        while rest.len() > frame_max {
            let (front, tail) = rest.split_at(frame_max);
            frame::put_head(frame_max, frame::DATA, 0, name.id(), &mut self.out);
            self.out.extend_from_slice(front);
            rest = tail;
        }
        if !rest.is_empty() || end_stream {
            let flags = if end_stream { frame::END_STREAM } else { 0 };
            frame::put_head(rest.len(), frame::DATA, flags, name.id(), &mut self.out);
            self.out.extend_from_slice(rest);
        }
    }

    /// Frames a header block, cut into CONTINUATION frames if it is large.
    #[inline]
    fn put_block(&mut self, id: u32, items: &[HeaderItem<'_>], end_stream: bool) {
        self.sent_since_ping = true;
        let end = if end_stream { frame::END_STREAM } else { 0 };
        let start = self.out.len();
        frame::put_head(0, frame::HEADERS, end | frame::END_HEADERS, id, &mut self.out);
        self.encoder.encode(items, &mut self.out);
        let length = self.out.len() - start - HEAD_BYTES;
        if length <= self.peer.frame_bytes_max as usize {
            frame::patch_length(start, &mut self.out);
        } else {
            self.split_block(id, start, end);
        }
    }

    #[cold]
    fn split_block(&mut self, id: u32, start: usize, end: u8) {
        let block = self.out.split_off(start + HEAD_BYTES);
        self.out.truncate(start);
        let chunks = block.chunks(self.peer.frame_bytes_max as usize);
        let last = chunks.len() - 1;
        for (index, chunk) in chunks.enumerate() {
            let kind = if index == 0 { frame::HEADERS } else { frame::CONTINUATION };
            let mut flags = if index == 0 { end } else { 0 };
            if index == last {
                flags |= frame::END_HEADERS;
            }
            frame::put_head(chunk.len(), kind, flags, id, &mut self.out);
            self.out.extend_from_slice(chunk);
        }
    }

    /// Whether the peer's header block for this stream was seen.
    #[must_use]
    pub fn has_peer_headers(&self, name: StreamId) -> bool {
        self.streams.get(name).is_some_and(|stream| stream.has(HEAD_RECEIVED))
    }
}
