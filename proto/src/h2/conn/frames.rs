//! What each frame does.
//!
//! Part of [`Conn`]; called by `receive` with whole frames. Every frame that costs work without
//! serving a request is counted against a bound of `limits`.

use super::receive::unpad;
use super::{Conn, Drain, Handler};
use crate::h2::frame::{self, Head};
use crate::h2::settings::WINDOW_BYTES_MAX;
use crate::h2::streams::{
    ANSWERED, Closed, ENDED, HAS_DEADLINE, HEAD_RECEIVED, Pending, RECV_ENDED,
};
use crate::h2::{ConnError, ErrorCode, Flood, StreamId};
use crate::limits;

/// The payload of the PING between the two GOAWAY frames of a graceful end.
pub(super) const DRAIN_PING: [u8; 8] = *b"etcdrain";

impl Conn {
    #[inline]
    pub(super) fn frame<H: Handler>(
        &mut self,
        head: Head,
        payload: &[u8],
        handler: &mut H,
    ) -> Result<(), ConnError> {
        if let Some(open) = &self.open_block
            && (head.kind != frame::CONTINUATION || head.stream != open.block.id)
        {
            return Err(ConnError::protocol("header block interrupted"));
        }
        if !self.settings_received && (head.kind != frame::SETTINGS || head.has(frame::ACK)) {
            return Err(ConnError::protocol("first frame is not SETTINGS"));
        }
        self.dispatch(head, payload, handler)?;
        match self.flood {
            None => Ok(()),
            Some(flood) => Err(ConnError::Flood(flood)),
        }
    }

    #[inline]
    fn dispatch<H: Handler>(
        &mut self,
        head: Head,
        payload: &[u8],
        handler: &mut H,
    ) -> Result<(), ConnError> {
        match head.kind {
            frame::DATA => self.data_frame(head, payload, handler),
            frame::HEADERS => self.headers_frame(head, payload, handler),
            frame::WINDOW_UPDATE => self.window_update_frame(head, payload, handler),
            frame::RST_STREAM => self.reset_frame(head, payload, handler),
            frame::SETTINGS => self.settings_frame(head, payload, handler),
            frame::PING => self.ping_frame(head, payload, handler),
            frame::GOAWAY => self.goaway_frame(head, payload, handler),
            frame::CONTINUATION => self.continuation_frame(head, payload, handler),
            frame::PRIORITY => self.priority_frame(head, payload, handler),
            frame::PUSH_PROMISE => Err(ConnError::protocol("PUSH_PROMISE is not enabled")),
            _ => self.idle_frame(),
        }
    }

    fn data_frame<H: Handler>(
        &mut self,
        head: Head,
        payload: &[u8],
        handler: &mut H,
    ) -> Result<(), ConnError> {
        if head.stream == 0 {
            return Err(ConnError::protocol("DATA on stream 0"));
        }
        self.recv_window -= i64::from(head.length);
        if self.recv_window < 0 {
            return Err(flow_control("DATA beyond the connection window"));
        }
        let data = unpad(head, payload)?;
        let end_stream = head.has(frame::END_STREAM);
        if data.is_empty() && !end_stream {
            self.idle_frame()?;
        }
        let Some(name) = self.streams.find(head.stream) else {
            return self.late_data(head);
        };
        let Some(stream) = self.streams.get_mut(name) else { return Ok(()) };
        if stream.has(RECV_ENDED) || !stream.has(HEAD_RECEIVED) {
            let code = if stream.has(RECV_ENDED) {
                ErrorCode::STREAM_CLOSED
            } else {
                ErrorCode::PROTOCOL_ERROR
            };
            self.release_connection(head.length);
            self.stream_error(name, code, handler);
            return Ok(());
        }
        stream.recv_extra -= head.length as i32;
        let extra = stream.recv_extra;
        if self.recv_window_of(extra) < 0 {
            self.release_connection(head.length);
            self.stream_error(name, ErrorCode::FLOW_CONTROL_ERROR, handler);
            return Ok(());
        }
        let Some(stream) = self.streams.get_mut(name) else { return Ok(()) };
        let mut length_is_wrong = false;
        if let Some(left) = &mut stream.content_left {
            match left.checked_sub(data.len() as u64) {
                Some(rest) => *left = rest,
                None => length_is_wrong = true,
            }
            length_is_wrong |= end_stream && *left > 0;
        }
        if length_is_wrong {
            self.release_connection(head.length);
            self.stream_error(name, ErrorCode::PROTOCOL_ERROR, handler);
            return Ok(());
        }
        if end_stream {
            stream.flags |= RECV_ENDED;
        }
        let padding = payload.len() - data.len();
        if padding > 0 {
            self.release_connection(padding as u32);
            self.release_padding(name, padding as u32);
        }
        handler.data(self, name, data, end_stream);
        if end_stream {
            self.close_if_ended(name);
        }
        Ok(())
    }

    fn late_data(&mut self, head: Head) -> Result<(), ConnError> {
        self.release_connection(head.length);
        if self.is_idle(head.stream) {
            return Err(ConnError::protocol("DATA on an idle stream"));
        }
        self.idle_frame()?;
        match self.streams.how_closed(head.stream) {
            Some(Closed::ByUs(_)) | None => Ok(()),
            Some(Closed::Ended | Closed::ByPeer) => {
                self.put_reset(head.stream, ErrorCode::STREAM_CLOSED)
            }
        }
    }

    fn reset_frame<H: Handler>(
        &mut self,
        head: Head,
        payload: &[u8],
        handler: &mut H,
    ) -> Result<(), ConnError> {
        let Ok(code) = <[u8; 4]>::try_from(payload) else {
            return Err(ConnError::frame_size("RST_STREAM length is not 4"));
        };
        if head.stream == 0 || self.is_idle(head.stream) {
            return Err(ConnError::protocol("RST_STREAM on an idle stream"));
        }
        // On its way it has met our answer.
        let Some(name) = self.streams.find(head.stream) else { return self.idle_frame() };
        let rapid = self.streams.get(name).is_some_and(|stream| {
            let age_ms = (self.now_ms as u32).wrapping_sub(stream.opened_ms);
            !stream.has(ANSWERED) && age_ms < limits::RAPID_RESET_MS
        });
        self.close(name, Closed::ByPeer);
        handler.reset(self, name, ErrorCode(u32::from_be_bytes(code)), true);
        if rapid && !self.is_client {
            self.count_rapid_reset()?;
        }
        Ok(())
    }

    /// A stream was opened and is gone without an answer: too many make the connection slower, and
    /// end it only if nothing on it is ever answered.
    fn count_rapid_reset(&mut self) -> Result<(), ConnError> {
        self.rapid_resets.count(self.now_ms);
        self.rapid_unanswered += 1;
        if self.answered == 0 && self.rapid_unanswered > limits::RAPID_RESETS_UNANSWERED_MAX {
            return Err(ConnError::Flood(Flood::Resets));
        }
        Ok(())
    }

    fn window_update_frame<H: Handler>(
        &mut self,
        head: Head,
        payload: &[u8],
        handler: &mut H,
    ) -> Result<(), ConnError> {
        let Ok(increment) = <[u8; 4]>::try_from(payload) else {
            return Err(ConnError::frame_size("WINDOW_UPDATE length is not 4"));
        };
        let increment = u32::from_be_bytes(increment) & WINDOW_BYTES_MAX;
        if head.stream == 0 {
            if increment == 0 {
                return Err(ConnError::protocol("WINDOW_UPDATE of zero"));
            }
            self.send_window += i64::from(increment);
            if self.send_window > i64::from(WINDOW_BYTES_MAX) {
                return Err(flow_control("connection window above 2^31-1"));
            }
            return Ok(());
        }
        if self.is_idle(head.stream) {
            return Err(ConnError::protocol("WINDOW_UPDATE on an idle stream"));
        }
        let Some(name) = self.streams.find(head.stream) else { return self.idle_frame() };
        if increment == 0 {
            self.stream_error(name, ErrorCode::PROTOCOL_ERROR, handler);
            return Ok(());
        }
        let base = i64::from(self.peer.stream_window_bytes);
        let Some(stream) = self.streams.get_mut(name) else { return Ok(()) };
        let extra = i64::from(stream.send_extra) + i64::from(increment);
        if base + extra > i64::from(WINDOW_BYTES_MAX) {
            self.stream_error(name, ErrorCode::FLOW_CONTROL_ERROR, handler);
            return Ok(());
        }
        // Above zero it is no larger than the window.
        stream.send_extra = extra as i32;
        self.window_opened(name);
        Ok(())
    }

    fn settings_frame<H: Handler>(
        &mut self,
        head: Head,
        payload: &[u8],
        handler: &mut H,
    ) -> Result<(), ConnError> {
        if head.stream != 0 {
            return Err(ConnError::protocol("SETTINGS on a stream"));
        }
        if head.has(frame::ACK) {
            if !payload.is_empty() {
                return Err(ConnError::frame_size("SETTINGS acknowledgement with a payload"));
            }
            self.idle_frame()?;
            if self.settings_acknowledged() {
                handler.settings_acknowledged(self);
            }
            return Ok(());
        }
        if !self.settings_frames.take(self.now_ms) {
            return Err(ConnError::Flood(Flood::Settings));
        }
        let before = self.peer.stream_window_bytes;
        self.peer.apply(payload, self.is_client)?;
        self.encoder.peer_allows(self.peer.header_table_bytes as usize);
        self.windows_grew |= self.peer.stream_window_bytes > before;
        self.settings_received = true;
        self.control_reply()?;
        frame::put_head(0, frame::SETTINGS, frame::ACK, 0, &mut self.out);
        handler.settings();
        Ok(())
    }

    fn goaway_frame<H: Handler>(
        &mut self,
        head: Head,
        payload: &[u8],
        handler: &mut H,
    ) -> Result<(), ConnError> {
        if head.stream != 0 {
            return Err(ConnError::protocol("GOAWAY on a stream"));
        }
        let Some((&[a, b, c, d, code @ ..], debug)) = payload.split_first_chunk::<8>() else {
            return Err(ConnError::frame_size("GOAWAY too short"));
        };
        self.idle_frame()?;
        let last = u32::from_be_bytes([a, b, c, d]) & WINDOW_BYTES_MAX;
        self.peer_goaway = Some(self.peer_goaway.map_or(last, |earlier| earlier.min(last)));
        if self.is_client {
            let young: Vec<StreamId> =
                self.streams.names().filter(|name| name.id() > last).collect();
            for name in young {
                self.close(name, Closed::ByPeer);
                handler.reset(self, name, ErrorCode::REFUSED_STREAM, true);
            }
        }
        handler.go_away(last, ErrorCode(u32::from_be_bytes(code)), debug);
        Ok(())
    }

    fn ping_frame<H: Handler>(
        &mut self,
        head: Head,
        payload: &[u8],
        handler: &mut H,
    ) -> Result<(), ConnError> {
        let Ok(payload) = <[u8; 8]>::try_from(payload) else {
            return Err(ConnError::frame_size("PING length is not 8"));
        };
        if head.stream != 0 {
            return Err(ConnError::protocol("PING on a stream"));
        }
        if !self.pings.take(self.now_ms) {
            return Err(ConnError::Flood(Flood::Pings));
        }
        if head.has(frame::ACK) {
            if payload == DRAIN_PING && matches!(self.drain, Drain::Announced { .. }) {
                self.finish_drain();
            } else {
                self.ping_sent_ms = None;
                handler.pong(payload);
            }
            return Ok(());
        }
        self.control_reply()?;
        frame::put_ping(true, payload, &mut self.out);
        self.judge_ping()
    }

    fn priority_frame<H: Handler>(
        &mut self,
        head: Head,
        payload: &[u8],
        handler: &mut H,
    ) -> Result<(), ConnError> {
        if head.stream == 0 {
            return Err(ConnError::protocol("PRIORITY on stream 0"));
        }
        self.idle_frame()?;
        let code = match payload {
            [a, b, c, d, _] => {
                if u32::from_be_bytes([a & 0x7f, *b, *c, *d]) != head.stream {
                    return Ok(());
                }
                ErrorCode::PROTOCOL_ERROR
            }
            _ => ErrorCode::FRAME_SIZE_ERROR,
        };
        match self.streams.find(head.stream) {
            Some(name) => self.stream_error(name, code, handler),
            // RST_STREAM may not name an idle stream, so this one ends the connection.
            None => return Err(ConnError::Protocol { code, reason: "malformed PRIORITY" }),
        }
        Ok(())
    }

    /// Whether no HEADERS was ever seen for this id.
    fn is_idle(&self, id: u32) -> bool {
        if id.is_multiple_of(2) {
            return true;
        }
        if self.is_client { id >= self.next_own_stream } else { id > self.last_peer_stream }
    }

    /// Counts a frame without use.
    pub(super) fn idle_frame(&mut self) -> Result<(), ConnError> {
        if self.idle_frames.take(self.now_ms) {
            Ok(())
        } else {
            Err(ConnError::Flood(Flood::IdleFrames))
        }
    }

    /// Counts a reply that the peer makes us queue.
    pub(super) fn control_reply(&mut self) -> Result<(), ConnError> {
        self.control_replies += 1;
        if self.control_replies > limits::CONTROL_REPLIES_QUEUED_MAX {
            return Err(ConnError::Flood(Flood::UnreadReplies));
        }
        Ok(())
    }

    fn put_reset(&mut self, id: u32, code: ErrorCode) -> Result<(), ConnError> {
        self.control_reply()?;
        frame::put_reset(id, code, &mut self.out);
        Ok(())
    }

    /// A client that knows no limit yet, or has no room here, tries again: it is slowed down.
    pub(super) fn refuse(&mut self, id: u32) -> Result<(), ConnError> {
        self.put_reset(id, ErrorCode::REFUSED_STREAM)?;
        self.count_rapid_reset()
    }

    /// A reset that the peer provokes costs as much as one it sends: work begun and thrown away.
    /// The connection ends after the current frame if there are too many.
    fn count_provoked_reset(&mut self) {
        if !self.is_client && !self.stream_errors.take(self.now_ms) {
            self.flood = Some(Flood::Resets);
        }
        if self.control_reply().is_err() {
            self.flood = Some(Flood::UnreadReplies);
        }
    }

    /// Resets a stream because of what the peer did on it.
    pub(super) fn stream_error<H: Handler>(
        &mut self,
        name: StreamId,
        code: ErrorCode,
        handler: &mut H,
    ) {
        if self.streams.get(name).is_some() {
            self.count_provoked_reset();
            frame::put_reset(name.id(), code, &mut self.out);
            self.close(name, Closed::ByUs(code));
            handler.reset(self, name, code, false);
        }
    }

    /// Closes the stream if both sides ended it and all is sent.
    #[inline]
    pub(super) fn close_if_ended(&mut self, name: StreamId) {
        if let Some(stream) = self.streams.get(name)
            && stream.flags & ENDED == ENDED
        {
            self.close(name, Closed::Ended);
        }
    }

    pub(super) fn close(&mut self, name: StreamId, how: Closed) {
        let Some((flags, pending)) = self.streams.remove(name, how) else { return };
        if flags & HAS_DEADLINE != 0 {
            self.deadlines.ended();
        }
        if flags & ANSWERED != 0 {
            self.answered -= 1;
        }
        if flags & ANSWERED != 0 || matches!(how, Closed::ByUs(_)) {
            self.idle_frames.give(limits::IDLE_FRAMES_PER_STREAM);
        }
        let unsent = pending.as_deref().map_or(0, Pending::left);
        self.pending_bytes -= unsent;
        self.budget.release(limits::STREAM_STATE_BYTES + unsent);
    }
}

fn flow_control(reason: &'static str) -> ConnError {
    ConnError::Protocol { code: ErrorCode::FLOW_CONTROL_ERROR, reason }
}
