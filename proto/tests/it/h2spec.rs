//! h2spec against the transport with a plain page behind it: every case passes.
//!
//! The member itself answers requests that are not gRPC as soon as it sees them, which hides some
//! cases; `server/tests/h2spec.rs` runs those that it can.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use etcore_proto::grpc::{MethodId, Routes, Server, ServerConfig, ServerEvent};
use etcore_proto::h2::Budget;

/// The program, if it can be had; says loudly if not.
fn h2spec() -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/oracle/h2spec");
    let found = std::env::var_os("H2SPEC_BIN")
        .map(PathBuf::from)
        .or_else(|| built.exists().then_some(built));
    let found = found.or_else(|| {
        std::env::split_paths(&std::env::var_os("PATH")?)
            .map(|dir| dir.join("h2spec"))
            .find(|path| path.exists())
    });
    if found.is_none() {
        eprintln!(
            "SKIPPED: h2spec is not here; build bench/oracle/h2spec with Go to run this test"
        );
    }
    found
}

fn serve(mut socket: TcpStream, mut server: Server) {
    let origin = Instant::now();
    let mut input = vec![0; 64 << 10];
    let mut output = Vec::new();
    socket.set_nodelay(true).unwrap();
    while let Ok(count @ 1..) = socket.read(&mut input) {
        let now_ms = u64::try_from(origin.elapsed().as_millis()).unwrap();
        let result = server.receive(&input[..count], now_ms);
        loop {
            while let Some(event) = server.next_event() {
                answer(&mut server, event);
            }
            output.clear();
            server.poll_transmit(&mut output, usize::MAX);
            if output.is_empty() || socket.write_all(&output).is_err() {
                break;
            }
        }
        if result.is_err() {
            return;
        }
    }
}

/// A page when the request is complete. An error means that the client is gone.
fn answer(server: &mut Server, event: ServerEvent) {
    match event {
        ServerEvent::HttpOpened { stream, end_stream: true, .. }
        | ServerEvent::HttpData { stream, end_stream: true, .. } => {
            let fields: [(&[u8], &[u8]); 1] = [(b"content-type", b"text/plain")];
            let _ = server.http_response(stream, 200, &fields, false);
            let _ = server.http_body(stream, b"hello\n", true);
        }
        ServerEvent::HttpData { stream, data, .. } => server.http_consumed(stream, data.len()),
        _ => {}
    }
}

#[test]
fn the_transport_passes_every_case_of_h2spec() {
    let Some(h2spec) = h2spec() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    std::thread::spawn(move || {
        let routes = Arc::new(Routes::new([("/test/Unary", MethodId(1), false)]).unwrap());
        let budget = Budget::default();
        for socket in listener.incoming() {
            let mut config = ServerConfig { plain_http: true, ..ServerConfig::default() };
            // Or the case about the limit would be left out.
            config.h2.concurrent_streams_max = 100;
            let server = Server::new(config, routes.clone(), &budget);
            std::thread::spawn(move || serve(socket.unwrap(), server));
        }
    });
    let output =
        Command::new(h2spec).args(["-h", "127.0.0.1", "-p", &port, "-S"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let summary = text.lines().rev().find(|line| line.contains(" tests, ")).unwrap_or_default();
    assert!(output.status.success() && summary.ends_with(", 0 skipped, 0 failed"), "{text}");
    assert!(!summary.starts_with("0 tests"), "{text}");
}
