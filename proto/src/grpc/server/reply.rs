//! Answering: unary replies, streams, large messages in pieces, and errors.
//!
//! Part of the server; see [`Server`]. The usual reply is three frames appended to the connection's
//! transmit buffer without an allocation.

use super::super::gzip;
use super::super::text::encode_message;
use super::super::{Code, MESSAGE_PREFIX_BYTES, SendError, StreamId};
use super::head::ContentType;
use super::receive::Phase;
use super::{Core, Server};
use crate::h2::Conn;
use crate::hpack::{HeaderItem, SlotId};

/// The constant fields of every answer.
#[derive(Debug)]
pub(super) struct Slots {
    status_200: SlotId,
    content_type: SlotId,
    content_type_proto: SlotId,
    encoding_gzip: SlotId,
    grpc_status: [SlotId; Code::ALL.len()],
    no_message: SlotId,
}

impl Slots {
    pub(super) fn register(conn: &mut Conn) -> Self {
        Slots {
            status_200: conn.register(b":status", b"200"),
            content_type: conn.register(b"content-type", b"application/grpc"),
            content_type_proto: conn.register(b"content-type", b"application/grpc+proto"),
            encoding_gzip: conn.register(b"grpc-encoding", b"gzip"),
            grpc_status: Code::ALL
                .map(|code| conn.register(b"grpc-status", code.as_text().as_bytes())),
            // grpc-go sends it with every status.
            no_message: conn.register(b"grpc-message", b""),
        }
    }

    fn content_type<'a>(&self, asked: ContentType, unusual: &'a [u8]) -> HeaderItem<'a> {
        match asked {
            ContentType::GrpcSub => HeaderItem::Literal(b"content-type", unusual),
            ContentType::GrpcProto => HeaderItem::Slot(self.content_type_proto),
            _ => HeaderItem::Slot(self.content_type),
        }
    }
}

/// The content type of an answer to a request with an unusual one.
fn content_type_of(subtype: Option<&[u8]>) -> Vec<u8> {
    subtype.map_or(Vec::new(), |subtype| [b"application/grpc+", subtype].concat())
}

impl Server {
    /// Answers a unary call: head, message and status in one go. What exceeds the windows is
    /// buffered, so messages larger than [`Server::capacity`] should be written in pieces instead.
    ///
    /// # Errors
    /// [`SendError::Closed`] if the call is over, [`SendError::BufferFull`] if the client leaves
    /// too much unread; in either case the call is gone.
    pub fn reply_unary(&mut self, stream: StreamId, message: &[u8]) -> Result<(), SendError> {
        self.reply_unary_with(stream, message.len(), |out| out.extend_from_slice(message))
    }

    /// Answers a unary call with a message of `length_bytes` that `write` appends straight to the
    /// transmit buffer.
    ///
    /// # Errors
    /// As [`Server::reply_unary`].
    ///
    /// # Panics
    /// If `write` appends another number of bytes.
    pub fn reply_unary_with(
        &mut self,
        stream: StreamId,
        length_bytes: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), SendError> {
        self.core.put_message(&mut self.conn, stream, length_bytes, write)?;
        self.core.finish(&mut self.conn, stream, Code::Ok, "")
    }

    /// Ends a call with an error: trailers alone if nothing was sent yet.
    ///
    /// # Errors
    /// [`SendError::Closed`] if the call is over.
    pub fn reply_error(
        &mut self,
        stream: StreamId,
        code: Code,
        message: &str,
    ) -> Result<(), SendError> {
        self.core.finish(&mut self.conn, stream, code, message)
    }

    /// Sends the head of a streaming answer before its first message.
    ///
    /// # Errors
    /// [`SendError::Closed`] if the call is over.
    pub fn send_head(&mut self, stream: StreamId) -> Result<(), SendError> {
        self.core.put_head(&mut self.conn, stream)
    }

    /// Sends one message of a streaming call, its head first if that was not sent. What exceeds the
    /// windows is buffered: ask [`Server::capacity`] first, and wait for `Writable` while it is 0.
    /// Returns what capacity is left.
    ///
    /// # Errors
    /// As [`Server::reply_unary`].
    pub fn send_message(&mut self, stream: StreamId, message: &[u8]) -> Result<usize, SendError> {
        self.send_message_with(stream, message.len(), |out| out.extend_from_slice(message))
    }

    /// Sends a message of `length_bytes` that `write` appends, as [`Server::send_message`] does.
    ///
    /// # Errors
    /// As [`Server::reply_unary`].
    ///
    /// # Panics
    /// If `write` appends another number of bytes.
    pub fn send_message_with(
        &mut self,
        stream: StreamId,
        length_bytes: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<usize, SendError> {
        self.core.put_message(&mut self.conn, stream, length_bytes, write)?;
        Ok(self.conn.capacity(stream))
    }

    /// Sends messages framed by [`frame_message`](crate::grpc::frame_message) in one go, the head
    /// first if that was not sent. Many small ones take few frames so, which costs less and spares
    /// clients that count frames. They are not compressed whatever the request was, which gRPC
    /// allows. Returns what capacity is left.
    ///
    /// # Errors
    /// As [`Server::reply_unary`].
    ///
    /// # Panics
    /// If an earlier message is not complete.
    pub fn send_framed(&mut self, stream: StreamId, framed: &[u8]) -> Result<usize, SendError> {
        self.core.put_head(&mut self.conn, stream)?;
        let call = self.core.calls.get(stream).ok_or(SendError::Closed)?;
        assert_eq!(call.message_left, 0, "the earlier message is complete");
        self.core.send(&mut self.conn, stream, framed)?;
        Ok(self.conn.capacity(stream))
    }

    /// Begins a message of `length_bytes` that follows by [`Server::write`]. It is not compressed
    /// whatever the request was, which gRPC allows.
    ///
    /// # Errors
    /// As [`Server::reply_unary`].
    ///
    /// # Panics
    /// If an earlier message is not complete, or the length does not fit 32 bits.
    pub fn start_message(
        &mut self,
        stream: StreamId,
        length_bytes: usize,
    ) -> Result<(), SendError> {
        self.core.put_head(&mut self.conn, stream)?;
        let call = self.core.calls.get_mut(stream).ok_or(SendError::Closed)?;
        assert_eq!(call.message_left, 0, "the earlier message is complete");
        call.message_left = length_bytes;
        self.conn.send_data(stream, &prefix(false, length_bytes), false)
    }

    /// Body bytes that can be sent at once; after 0 a `Writable` event follows when there is room.
    pub fn capacity(&mut self, stream: StreamId) -> usize {
        self.conn.capacity(stream)
    }

    /// Sends a piece of the message begun by [`Server::start_message`]: at most
    /// [`Server::capacity`] bytes, or the rest is buffered.
    ///
    /// # Errors
    /// As [`Server::reply_unary`].
    ///
    /// # Panics
    /// If the piece is longer than what the message lacks.
    pub fn write(&mut self, stream: StreamId, piece: &[u8]) -> Result<(), SendError> {
        let call = self.core.calls.get_mut(stream).ok_or(SendError::Closed)?;
        assert!(piece.len() <= call.message_left, "{} of {}", piece.len(), call.message_left);
        call.message_left -= piece.len();
        self.core.send(&mut self.conn, stream, piece)
    }

    /// Whether a message begun by [`Server::start_message`] is not complete.
    #[must_use]
    pub fn message_is_open(&self, stream: StreamId) -> bool {
        self.core.calls.get(stream).is_some_and(|call| call.message_left > 0)
    }

    /// Ends a call with a status.
    ///
    /// # Errors
    /// [`SendError::Closed`] if the call is over.
    ///
    /// # Panics
    /// If the message begun by [`Server::start_message`] is not complete: use [`Server::abort`].
    pub fn finish(&mut self, stream: StreamId, code: Code, message: &str) -> Result<(), SendError> {
        let left = self.core.calls.get(stream).map_or(0, |call| call.message_left);
        assert_eq!(left, 0, "the message is complete");
        self.core.finish(&mut self.conn, stream, code, message)
    }

    /// Keeps the client of a streaming call from sending more than its stream's window still
    /// allows, or lets it send again. Messages of up to a window come all the same.
    pub fn hold(&mut self, stream: StreamId, held: bool) {
        if let Some(call) = self.core.calls.get_mut(stream) {
            call.hold(&mut self.conn, stream, held);
        }
    }

    /// Breaks a call off midway: the client sees a reset stream.
    pub fn abort(&mut self, stream: StreamId) {
        self.core.drop_call(&mut self.conn, stream);
        self.conn.reset(stream, crate::h2::ErrorCode::INTERNAL_ERROR);
    }

    /// Sends the head of an answer to a request that is not gRPC.
    ///
    /// # Errors
    /// [`SendError::Closed`] if the request is over.
    pub fn http_response(
        &mut self,
        stream: StreamId,
        status: u16,
        fields: &[(&[u8], &[u8])],
        end_stream: bool,
    ) -> Result<(), SendError> {
        let status = status.to_string();
        let mut items = vec![HeaderItem::Literal(b":status", status.as_bytes())];
        items.extend(fields.iter().map(|(name, value)| HeaderItem::Literal(name, value)));
        self.conn.send_headers(stream, &items, end_stream)?;
        if end_stream {
            self.core.drop_call(&mut self.conn, stream);
        }
        Ok(())
    }

    /// Sends a piece of such an answer's body; ask [`Server::capacity`] first.
    ///
    /// # Errors
    /// As [`Server::reply_unary`].
    pub fn http_body(
        &mut self,
        stream: StreamId,
        piece: &[u8],
        end_stream: bool,
    ) -> Result<(), SendError> {
        let sent = self.conn.send_data(stream, piece, end_stream);
        if end_stream || sent.is_err() {
            self.core.drop_call(&mut self.conn, stream);
        }
        sent
    }

    /// The owner no longer holds `bytes` of such a request's body.
    pub fn http_consumed(&mut self, stream: StreamId, bytes: usize) {
        self.conn.release_connection(bytes as u32);
        self.conn.release_stream(stream, bytes as u32);
    }
}

impl Core {
    /// Ends a call: trailers after what was sent, or trailers alone.
    pub(super) fn finish(
        &mut self,
        conn: &mut Conn,
        stream: StreamId,
        code: Code,
        message: &str,
    ) -> Result<(), SendError> {
        let Some(call) = self.calls.get(stream) else { return Err(SendError::Closed) };
        let unusual = content_type_of(call.subtype.as_deref());
        let content_type = self.slots.content_type(call.content_type, &unusual);
        let head_sent = call.head_sent;
        self.drop_call(conn, stream);
        let status = HeaderItem::Slot(self.slots.grpc_status[code as usize]);
        if code == Code::Ok && head_sent {
            let no_message = HeaderItem::Slot(self.slots.no_message);
            return conn.send_trailers(stream, &[status, no_message]);
        }
        let text = encode_message(message);
        let text = HeaderItem::Literal(b"grpc-message", text.as_bytes());
        if head_sent {
            conn.send_trailers(stream, &[status, text])
        } else {
            let ok = HeaderItem::Slot(self.slots.status_200);
            conn.send_headers(stream, &[ok, content_type, status, text], true)
        }
    }

    /// Answers a request that never became a call.
    #[cold]
    pub(super) fn abort(
        &mut self,
        conn: &mut Conn,
        stream: StreamId,
        http_status: &str,
        code: Code,
        message: &str,
    ) {
        let text = encode_message(message);
        let unusual = content_type_of(Some(&self.head.subtype));
        let items = [
            HeaderItem::Literal(b":status", http_status.as_bytes()),
            self.slots.content_type(self.head.content_type, &unusual),
            HeaderItem::Slot(self.slots.grpc_status[code as usize]),
            HeaderItem::Literal(b"grpc-message", text.as_bytes()),
        ];
        // The stream was opened in this very call, so it is there.
        let _ = conn.send_headers(stream, &items, true);
    }

    #[inline]
    pub(super) fn put_head(&mut self, conn: &mut Conn, stream: StreamId) -> Result<(), SendError> {
        let call = self.calls.get_mut(stream).ok_or(SendError::Closed)?;
        if call.head_sent || call.phase == Phase::Http {
            return Ok(());
        }
        call.head_sent = true;
        let status = HeaderItem::Slot(self.slots.status_200);
        let unusual = content_type_of(call.subtype.as_deref());
        let content_type = self.slots.content_type(call.content_type, &unusual);
        if call.gzip {
            let encoding = HeaderItem::Slot(self.slots.encoding_gzip);
            conn.send_headers(stream, &[status, content_type, encoding], false)
        } else {
            conn.send_headers(stream, &[status, content_type], false)
        }
    }

    /// Sends a whole message, in place if it fits.
    #[inline]
    fn put_message(
        &mut self,
        conn: &mut Conn,
        stream: StreamId,
        length: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), SendError> {
        self.put_head(conn, stream)?;
        let call = self.calls.get(stream).ok_or(SendError::Closed)?;
        assert_eq!(call.message_left, 0, "the earlier message is complete");
        let prefix = prefix(false, length);
        let framed_length = MESSAGE_PREFIX_BYTES + length;
        if !call.gzip {
            let mut write = Some(write);
            let sent = conn.send_data_with(stream, framed_length, false, |out| {
                out.extend_from_slice(&prefix);
                if let Some(write) = write.take() {
                    write(out);
                }
            })?;
            let Some(write) = write.filter(|_| !sent) else { return Ok(()) };
            let mut framed = Vec::with_capacity(framed_length);
            framed.extend_from_slice(&prefix);
            write(&mut framed);
            assert_eq!(framed.len(), framed_length, "the message is as long as announced");
            return self.send(conn, stream, &framed);
        }
        let mut message = Vec::with_capacity(length);
        write(&mut message);
        let compressed = gzip::deflate(&message);
        let mut framed = self::prefix(true, compressed.len()).to_vec();
        framed.extend_from_slice(&compressed);
        self.send(conn, stream, &framed)
    }

    fn send(&mut self, conn: &mut Conn, stream: StreamId, data: &[u8]) -> Result<(), SendError> {
        let sent = conn.send_data(stream, data, false);
        if sent.is_err() {
            self.drop_call(conn, stream);
        }
        sent
    }

    /// Forgets a call; the stream itself is the connection's.
    #[inline]
    pub(super) fn drop_call(&mut self, conn: &mut Conn, stream: StreamId) {
        if let Some(mut call) = self.calls.remove(stream) {
            self.forget_body(conn, &mut call);
        }
    }
}

/// Appends an uncompressed message as it travels.
///
/// # Panics
/// If the message's length does not fit 32 bits.
pub fn frame_message(message: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&prefix(false, message.len()));
    out.extend_from_slice(message);
}

/// What stands before a message.
///
/// # Panics
/// If the length does not fit 32 bits; callers refuse such messages with a status.
#[inline]
pub(in crate::grpc) fn prefix(compressed: bool, length: usize) -> [u8; MESSAGE_PREFIX_BYTES] {
    let length = u32::try_from(length).expect("gRPC messages are shorter than 4 GiB");
    let [a, b, c, d] = length.to_be_bytes();
    [u8::from(compressed), a, b, c, d]
}
