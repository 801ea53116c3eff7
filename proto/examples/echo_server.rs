//! A gRPC echo server over blocking sockets, for h2spec, h2load, grpcurl and the like.
//!
//! Run as `echo_server [address]`; every request that is not gRPC is answered with a small page.
//! It is a demonstration and a test subject: it must never be more than the transport and a socket.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use etcore_proto::grpc::{Code, MethodId, Routes, Server, ServerConfig, ServerEvent, StreamId};
use etcore_proto::h2::Budget;

const UNARY: MethodId = MethodId(1);
const STREAM: MethodId = MethodId(2);
const LARGE: MethodId = MethodId(3);

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:50051".to_owned());
    let routes = Routes::new([
        ("/echo.Echo/Unary", UNARY, false),
        ("/echo.Echo/Stream", STREAM, true),
        ("/echo.Echo/Large", LARGE, false),
    ])
    .map_err(std::io::Error::other)?;
    let routes = Arc::new(routes);
    let budget = Budget::default();
    let listener = TcpListener::bind(address)?;
    let origin = Instant::now();
    for socket in listener.incoming() {
        let socket = socket?;
        let config = ServerConfig { plain_http: true, ..ServerConfig::default() };
        let server = Server::new(config, Arc::clone(&routes), &budget);
        // A broken connection concerns nobody else.
        std::thread::spawn(move || serve(socket, server, origin));
    }
    Ok(())
}

fn serve(mut socket: TcpStream, mut server: Server, origin: Instant) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut input = vec![0; 64 << 10];
    let mut output = Vec::new();
    let mut bodies = HashMap::new();
    loop {
        let count = socket.read(&mut input)?;
        if count == 0 {
            return Ok(());
        }
        let now_ms = origin.elapsed().as_millis() as u64;
        let result = server.receive(&input[..count], now_ms);
        loop {
            while let Some(event) = server.next_event() {
                answer(&mut server, event, &mut bodies);
            }
            output.clear();
            server.poll_transmit(&mut output, usize::MAX);
            if output.is_empty() {
                break;
            }
            socket.write_all(&output)?;
        }
        if result.is_err() {
            return Ok(());
        }
    }
}

/// A send error means that the client is gone; there is nobody to tell.
fn answer(server: &mut Server, event: ServerEvent, bodies: &mut HashMap<StreamId, usize>) {
    match event {
        ServerEvent::Unary { stream, method: LARGE, message, .. } => {
            // The request is the decimal length of the answer, sent as windows open.
            let length = std::str::from_utf8(&message).ok().and_then(|text| text.parse().ok());
            let length = length.unwrap_or(0);
            let _ = server.start_message(stream, length);
            bodies.insert(stream, length);
            pull(server, stream, bodies);
        }
        ServerEvent::Unary { stream, message, .. } => {
            let _ = server.reply_unary(stream, &message);
        }
        ServerEvent::StreamMessage { stream, message, .. } => {
            let _ = server.send_message(stream, &message);
        }
        ServerEvent::StreamHalfClosed { stream } => {
            let _ = server.finish(stream, Code::Ok, "");
        }
        ServerEvent::Writable { stream } => pull(server, stream, bodies),
        ServerEvent::Cancelled { stream, .. } => {
            bodies.remove(&stream);
        }
        ServerEvent::HttpOpened { stream, end_stream: true, .. }
        | ServerEvent::HttpData { stream, end_stream: true, .. } => {
            let fields: [(&[u8], &[u8]); 1] = [(b"content-type", b"text/plain")];
            let _ = server.http_response(stream, 200, &fields, false);
            let _ = server.http_body(stream, b"hello\n", true);
        }
        ServerEvent::HttpData { stream, data, .. } => server.http_consumed(stream, data.len()),
        ServerEvent::StreamOpened { .. } | ServerEvent::HttpOpened { .. } => {}
    }
}

fn pull(server: &mut Server, stream: StreamId, bodies: &mut HashMap<StreamId, usize>) {
    const PIECE: [u8; 16 << 10] = [b'x'; 16 << 10];
    let Some(left) = bodies.get_mut(&stream) else { return };
    while *left > 0 {
        let count = server.capacity(stream).min(*left).min(PIECE.len());
        if count == 0 {
            return;
        }
        let _ = server.write(stream, &PIECE[..count]);
        *left -= count;
    }
    bodies.remove(&stream);
    let _ = server.finish(stream, Code::Ok, "");
}
