//! curl, nghttp and h2load against our server. A tool that is not installed is skipped, and the
//! test says so.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::time::Instant;

use crate::common::Service;
use etcore_proto::grpc::ServerConfig;
use etcore_proto::h2::Budget;

/// Serves our test service; returns its base address.
fn start() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let budget = Budget::default();
        for socket in listener.incoming() {
            let service = Service::new(ServerConfig::default(), &budget);
            std::thread::spawn(move || serve(socket.unwrap(), service));
        }
    });
    format!("http://{address}")
}

fn serve(mut socket: TcpStream, mut service: Service) {
    let origin = Instant::now();
    let mut input = vec![0; 64 << 10];
    let mut output = Vec::new();
    while let Ok(count @ 1..) = socket.read(&mut input) {
        let now_ms = origin.elapsed().as_millis() as u64;
        let result = service.server.receive(&input[..count], now_ms);
        loop {
            service.turn();
            output.clear();
            service.server.poll_transmit(&mut output, usize::MAX);
            if output.is_empty() || socket.write_all(&output).is_err() {
                break;
            }
        }
        if result.is_err() {
            return;
        }
    }
}

/// Runs a tool; `None`, loudly, if it is not there.
fn run(tool: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(tool).args(arguments).output() {
        Ok(output) => Some(output),
        Err(error) => {
            eprintln!("SKIPPED: {tool} cannot be run here: {error}");
            None
        }
    }
}

/// A file with one gRPC message of 264 bytes.
fn request_file(name: &str) -> String {
    let path = std::env::temp_dir().join(format!("etcore-proto-{}-{name}", std::process::id()));
    let mut framed = vec![0, 0, 0, 1, 8];
    framed.extend([b'm'; 264]);
    std::fs::write(&path, framed).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn h2load_succeeds_with_every_request() {
    let file = request_file("h2load");
    let url = format!("{}/test.Service/Unary", start());
    let arguments =
        ["-n", "5000", "-c", "4", "-m", "64", "-d", &file, "-H", "content-type: application/grpc"];
    let arguments: Vec<&str> = arguments.into_iter().chain([url.as_str()]).collect();
    let output = run("h2load", &arguments);
    std::fs::remove_file(&file).unwrap();
    if let Some(output) = output {
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("5000 succeeded, 0 failed, 0 errored"), "{text}");
        assert!(text.contains("5000 2xx"), "{text}");
    }
}

#[test]
fn curl_and_nghttp_see_head_body_and_trailers() {
    let file = request_file("curl");
    let url = format!("{}/test.Service/Unary", start());
    let data = format!("@{file}");
    let header = "content-type: application/grpc";
    let flags = ["-sv", "--http2-prior-knowledge", "-H", header, "--data-binary", &data, &url];
    let curl = run("curl", &flags);
    let nghttp = run("nghttp", &["-v", "-H", header, "-d", &file, &url]);
    std::fs::remove_file(&file).unwrap();
    if let Some(output) = curl {
        assert_eq!(output.stdout.len(), 269);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("< HTTP/2 200") && text.contains("< grpc-status: 0"), "{text}");
    }
    if let Some(output) = nghttp {
        let text = String::from_utf8_lossy(&output.stdout);
        for part in [":status: 200", "content-type: application/grpc", "grpc-status: 0"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}

#[test]
fn curl_without_grpc_gets_415_and_get_405() {
    let url = format!("{}/health", start());
    let print = ["-s", "-o", "/dev/null", "-w", "%{http_code}", "--http2-prior-knowledge"];
    let codes = [
        (vec![url.as_str()], "415"),
        (vec!["-H", "content-type: application/grpc", url.as_str()], "405"),
    ];
    for (more, code) in codes {
        let arguments: Vec<&str> = print.into_iter().chain(more).collect();
        if let Some(output) = run("curl", &arguments) {
            assert_eq!(String::from_utf8_lossy(&output.stdout), code);
        }
    }
}
