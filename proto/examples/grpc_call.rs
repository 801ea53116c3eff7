//! One unary gRPC call over a blocking socket, message and answer in hexadecimal.
//!
//! Run as `grpc_call address /service/method [hex] [count]`; with a count the call is repeated, 256
//! at a time, and the rate is printed. It shows how to pump a client; it must never be more.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use etcore_proto::grpc::{CallOptions, Client, ClientConfig, ClientEvent};
use etcore_proto::h2::Budget;

const IN_FLIGHT: usize = 256;

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:2379".to_owned());
    let path = arguments.next().unwrap_or_else(|| "/etcdserverpb.KV/Range".to_owned());
    let message = from_hex(&arguments.next().unwrap_or_default());
    let count = arguments.next().and_then(|count| count.parse().ok()).unwrap_or(1);
    let mut socket = TcpStream::connect(&address)?;
    socket.set_nodelay(true)?;
    let config = ClientConfig { authority: address, ..ClientConfig::default() };
    let mut client = Client::new(config, &Budget::default());
    let method = client.method(&path);
    let (mut started, mut done, mut failed) = (0, 0, 0);
    let mut last = String::new();
    let (mut wire, mut input) = (Vec::new(), vec![0; 64 << 10]);
    let start = Instant::now();
    while done < count {
        while started < count && started - done < IN_FLIGHT {
            client
                .start_unary(method, &CallOptions::default(), &message)
                .map_err(std::io::Error::other)?;
            started += 1;
        }
        let mut more = true;
        while more {
            wire.clear();
            more = client.poll_transmit(&mut wire, usize::MAX);
            socket.write_all(&wire)?;
        }
        let length = socket.read(&mut input)?;
        if length == 0 {
            client.fail_all("connection closed");
        } else {
            let now_ms = start.elapsed().as_millis() as u64;
            client.receive(&input[..length], now_ms).map_err(std::io::Error::other)?;
        }
        while let Some(event) = client.next_event() {
            match event {
                ClientEvent::Response { message, .. } => {
                    done += 1;
                    if done == count {
                        last = message.iter().map(|byte| format!("{byte:02x}")).collect();
                    }
                }
                ClientEvent::Status { code, message, .. } => {
                    done += 1;
                    failed += 1;
                    last = format!("{code:?}: {message}");
                }
                _ => {}
            }
        }
    }
    let rate = count as f64 / start.elapsed().as_secs_f64();
    writeln!(std::io::stdout(), "{last}\n{count} calls, {failed} failed, {rate:.0} a second")
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks_exact(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}
