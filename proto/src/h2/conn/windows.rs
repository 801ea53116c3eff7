//! Windows of both directions, who waits for them, and what the transmit buffer may hold.
//!
//! Part of [`Conn`]. Nothing here costs more the more streams there are, but for what happens
//! seldom: a change of an initial window is a single number, and the streams that it opens are
//! looked for once after a read. Of the streams that wait for capacity only as many are told as can
//! use it.

use super::Conn;
use crate::h2::settings::WINDOW_BYTES_MAX;
use crate::h2::streams::{BLOCKED, HAS_DEADLINE, IN_BLOCKED_QUEUE, IN_READY_QUEUE, RECV_ENDED};
use crate::h2::{ConnError, ErrorCode, StreamId, frame};
use crate::limits;

impl Conn {
    /// Body bytes that can be framed at once. After an answer of zero the stream appears in
    /// [`Conn::next_writable`] when there is room.
    pub fn capacity(&mut self, name: StreamId) -> usize {
        if self.sending(name).is_err() {
            return 0;
        }
        let room = match self.has_pending(name) {
            true => 0,
            false => self.room(name, limits::CAPACITY_GRANT_BYTES_MAX),
        };
        if room == 0 {
            if let Some(stream) = self.streams.get_mut(name) {
                stream.flags |= BLOCKED;
            }
            self.window_opened(name);
        }
        room.min(limits::CAPACITY_GRANT_BYTES_MAX)
    }

    /// A stream that was refused capacity and has it now. Ask again after [`Conn::receive`] and
    /// after [`Conn::poll_transmit`]: in between only as many are named as may find room.
    pub fn next_writable(&mut self) -> Option<StreamId> {
        while self.wakes_left > 0 {
            let Some(name) = self.blocked.pop_front() else { break };
            let base = i64::from(self.peer.stream_window_bytes);
            let Some(stream) = self.streams.get_mut(name) else { continue };
            stream.flags &= !IN_BLOCKED_QUEUE;
            let is_open = base + i64::from(stream.send_extra) > 0 && stream.pending.is_none();
            if is_open && stream.has(BLOCKED) {
                stream.flags &= !BLOCKED;
                if self.sending(name).is_ok() {
                    self.wakes_left -= 1;
                    return Some(name);
                }
            }
        }
        None
    }

    /// Lets as many streams be told of the room there is as may use it.
    #[inline]
    pub(super) fn allow_wakes(&mut self) {
        self.wakes_left = 0;
        if self.blocked.is_empty() || self.send_window <= 0 {
            return;
        }
        let window = usize::try_from(self.send_window).unwrap_or(usize::MAX);
        let room = self.out_room(limits::CAPACITY_GRANT_BYTES_MAX).min(window);
        let (most, each_bytes) = limits::WAKES_PER_ROUND;
        self.wakes_left = room.div_ceil(each_bytes).min(most);
    }

    /// The stream's window grew, or its data is gone: what waits for that may go on.
    pub(super) fn window_opened(&mut self, name: StreamId) {
        let base = i64::from(self.peer.stream_window_bytes);
        let Some(stream) = self.streams.get_mut(name) else { return };
        if base + i64::from(stream.send_extra) <= 0 {
            return;
        }
        if stream.pending.is_some() {
            if !stream.has(IN_READY_QUEUE) {
                stream.flags |= IN_READY_QUEUE;
                self.ready.push_back(name);
            }
        } else if stream.has(BLOCKED) && !stream.has(IN_BLOCKED_QUEUE) {
            stream.flags |= IN_BLOCKED_QUEUE;
            self.blocked.push_back(name);
        }
    }

    /// Looks for the streams that a larger initial window has opened: once for all SETTINGS of a
    /// read, whose number is bounded.
    #[cold]
    pub(super) fn find_opened_windows(&mut self) -> Result<(), ConnError> {
        self.windows_grew = false;
        let base = i64::from(self.peer.stream_window_bytes);
        let names: Vec<StreamId> = self.streams.names().collect();
        for name in names {
            let Some(stream) = self.streams.get(name) else { continue };
            if base + i64::from(stream.send_extra) > i64::from(WINDOW_BYTES_MAX) {
                return Err(ConnError::Protocol {
                    code: ErrorCode::FLOW_CONTROL_ERROR,
                    reason: "SETTINGS overflow a stream window",
                });
            }
            self.window_opened(name);
        }
        Ok(())
    }

    /// Bytes that can be framed for this stream now, other data of the stream aside; `wanted` may
    /// be more.
    #[inline]
    pub(super) fn room(&mut self, name: StreamId, wanted: usize) -> usize {
        let base = i64::from(self.peer.stream_window_bytes);
        let stream = self.streams.get(name).map_or(0, |stream| base + i64::from(stream.send_extra));
        let window = stream.min(self.send_window).max(0) as usize;
        window.min(self.out_room(wanted.min(window)))
    }

    /// Bytes that the transmit buffer still takes. Beyond what is free it must be charged.
    #[inline]
    pub(super) fn out_room(&mut self, wanted: usize) -> usize {
        let queued = self.out.len() - self.transmitted + self.in_flight;
        let allowed = limits::TRANSMIT_FREE_BYTES + self.out_charged;
        if queued + wanted <= allowed {
            return allowed - queued;
        }
        self.charge_out(queued + wanted);
        (limits::TRANSMIT_FREE_BYTES + self.out_charged).saturating_sub(queued)
    }

    fn charge_out(&mut self, wanted: usize) {
        let most = limits::TRANSMIT_HIGH_WATER_BYTES - limits::TRANSMIT_FREE_BYTES;
        let wanted = wanted
            .saturating_sub(limits::TRANSMIT_FREE_BYTES)
            .next_multiple_of(limits::TRANSMIT_FREE_BYTES)
            .min(most);
        if wanted > self.out_charged && self.budget.charge(wanted - self.out_charged) {
            self.out_charged = wanted;
        }
    }

    /// Gives back what the transmit buffer was charged, once everything has left.
    #[inline]
    pub(super) fn settle_out(&mut self) {
        if self.out_charged > 0 && self.out.is_empty() && self.in_flight == 0 {
            self.budget.release(std::mem::take(&mut self.out_charged));
        }
    }

    /// Says how many bytes of what [`Conn::poll_transmit`] gave away the socket has not taken:
    /// they count as what is queued. An owner that never says so has a socket that takes all.
    pub fn set_in_flight(&mut self, bytes: usize) {
        self.in_flight = bytes;
        self.settle_out();
    }

    /// Gives `bytes` of the connection's receive window back to the peer.
    #[inline]
    pub fn release_connection(&mut self, bytes: u32) {
        self.recv_consumed += bytes;
        if self.recv_consumed >= self.config.connection_window_bytes / 2 {
            frame::put_window_update(0, self.recv_consumed, &mut self.out);
            self.recv_window += i64::from(self.recv_consumed);
            self.recv_consumed = 0;
        }
    }

    /// Gives `bytes` of a stream's receive window back to the peer.
    #[inline]
    pub fn release_stream(&mut self, name: StreamId, bytes: u32) {
        let threshold = self.own_stream_window / 2;
        if let Some(stream) = self.streams.get_mut(name)
            && !stream.has(RECV_ENDED)
        {
            stream.recv_consumed += bytes;
            if stream.recv_consumed >= threshold {
                self.announce(name);
            }
        }
    }

    /// Gives back the window that padding took, which nobody waits for: a window that was opened
    /// for just the rest of a message would otherwise end before it.
    pub(super) fn release_padding(&mut self, name: StreamId, bytes: u32) {
        let threshold = i64::from(self.own_stream_window / 2);
        let Some(stream) = self.streams.get_mut(name) else { return };
        if stream.has(RECV_ENDED) {
            return;
        }
        stream.recv_consumed += bytes;
        let extra = stream.recv_extra;
        if self.recv_window_of(extra) < threshold {
            self.announce(name);
        }
    }

    /// Tells the peer what was consumed of a stream.
    fn announce(&mut self, name: StreamId) {
        if let Some(stream) = self.streams.get_mut(name)
            && stream.recv_consumed > 0
        {
            let increment = std::mem::take(&mut stream.recv_consumed);
            stream.recv_extra += increment as i32;
            frame::put_window_update(name.id(), increment, &mut self.out);
        }
    }

    /// What the peer may send on a stream, by the larger of the windows it may go by.
    pub(super) fn recv_window_of(&self, extra: i32) -> i64 {
        i64::from(self.own_stream_window.max(self.own_stream_window_before)) + i64::from(extra)
    }

    /// Opens a stream's receive window to at least `bytes`, for a body known to be that long.
    pub fn widen_stream(&mut self, name: StreamId, bytes: u32) {
        let base = i64::from(self.own_stream_window);
        if let Some(stream) = self.streams.get_mut(name)
            && !stream.has(RECV_ENDED)
        {
            let target = i64::from(bytes.min(WINDOW_BYTES_MAX));
            let increment = target - base - i64::from(stream.recv_extra);
            if increment > 0 {
                // Both differences of windows fit.
                stream.recv_extra = (target - base) as i32;
                let increment = increment.min(i64::from(WINDOW_BYTES_MAX)) as u32;
                // The credit covers what was consumed and not announced before.
                stream.recv_consumed = stream.recv_consumed.saturating_sub(increment);
                frame::put_window_update(name.id(), increment, &mut self.out);
            }
        }
    }

    /// Opens a stream's receive window to the size of a fresh one, whatever was consumed.
    pub fn restore_stream(&mut self, name: StreamId) {
        self.widen_stream(name, self.own_stream_window);
    }

    /// Changes the receive window of all streams, those to come and those that are open, whose
    /// windows may end below zero. False while the peer has not acknowledged an earlier change.
    /// Costs a look at each stream: for a change that follows megabytes.
    pub fn set_stream_window(&mut self, bytes: u32) -> bool {
        if self.settings_unacknowledged > 0 || self.failed.is_some() {
            return false;
        }
        let before = std::mem::replace(&mut self.own_stream_window, bytes.min(WINDOW_BYTES_MAX));
        self.own_stream_window_before = before;
        self.settings_unacknowledged = 1;
        frame::put_initial_window(self.own_stream_window, &mut self.out);
        if bytes < before {
            // What was consumed silently may be all that a small window has.
            let names: Vec<StreamId> = self.streams.names().collect();
            for name in names {
                if self.streams.get(name).is_some_and(|stream| !stream.has(RECV_ENDED)) {
                    self.announce(name);
                }
            }
        }
        true
    }

    /// Makes it what it was at the beginning.
    pub fn restore_stream_windows(&mut self) -> bool {
        self.set_stream_window(self.config.stream_window_bytes)
    }

    /// Whether the peer goes by all SETTINGS of ours.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.settings_unacknowledged == 0
    }

    /// The peer acknowledged SETTINGS; true if they were the last.
    pub(super) fn settings_acknowledged(&mut self) -> bool {
        if self.settings_unacknowledged != 1 {
            return false;
        }
        self.settings_unacknowledged = 0;
        self.own_stream_window_before = self.own_stream_window;
        true
    }

    /// The stream is to be over by then. When it is not, [`Conn::next_expired`] names it.
    pub fn set_deadline(&mut self, name: StreamId, deadline_ms: u64) {
        let Some(stream) = self.streams.get_mut(name) else { return };
        if !stream.has(HAS_DEADLINE) {
            stream.flags |= HAS_DEADLINE;
            let streams = &self.streams;
            self.deadlines.insert(deadline_ms, name, |name| streams.get(name).is_some());
        }
    }

    /// The next open stream whose time is up; it is reset (CANCEL).
    pub fn next_expired(&mut self) -> Option<StreamId> {
        loop {
            let name = self.deadlines.pop_due(self.now_ms)?;
            if self.is_open(name) {
                self.reset(name, ErrorCode::CANCEL);
                return Some(name);
            }
        }
    }

    /// When the next stream's time may be up.
    #[must_use]
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.deadlines.next_ms()
    }

    /// Buffers that a burst has left behind are for others to use. Called now and then.
    pub(super) fn give_back_buffers(&mut self) {
        if self.out.is_empty() && self.out.capacity() > limits::TRANSMIT_FREE_BYTES {
            self.out = Vec::new();
        }
        if self.partial.is_empty() && self.partial.capacity() > 0 {
            self.partial = Vec::new();
        }
    }
}
