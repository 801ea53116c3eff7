//! What one unary call costs on each side of the transport, and the parts of that.
//!
//! 64 calls are in flight on one connection, with 264-byte messages and the header blocks of usual
//! clients. Divide by 64 for the cost of a call. The figures go into reports by hand.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use etcore_proto::grpc::{
    CallOptions, Client, ClientConfig, ClientEvent, MethodHandle, MethodId, Routes, Server,
    ServerConfig, ServerEvent,
};
use etcore_proto::h2::Budget;

const IN_FLIGHT: usize = 64;
const MESSAGE: [u8; 264] = [0x5a; 264];

struct Pair {
    client: Client,
    server: Server,
    put: MethodHandle,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
}

impl Pair {
    fn new() -> Self {
        let routes = Routes::new([("/etcdserverpb.KV/Put", MethodId(7), false)]).unwrap();
        let budget = Budget::default();
        let server = Server::new(ServerConfig::default(), Arc::new(routes), &budget);
        let mut client = Client::new(ClientConfig::default(), &budget);
        let put = client.method("/etcdserverpb.KV/Put");
        let mut pair = Pair { client, server, put, to_server: Vec::new(), to_client: Vec::new() };
        for _ in 0..64 {
            pair.start();
            pair.serve();
            pair.finish();
        }
        pair
    }

    fn start(&mut self) {
        for user in 0..IN_FLIGHT as u64 {
            let options = CallOptions { user, ..CallOptions::default() };
            self.client.start_unary(self.put, &options, &MESSAGE).unwrap();
        }
        self.to_server.clear();
        self.client.poll_transmit(&mut self.to_server, usize::MAX);
    }

    fn serve(&mut self) {
        self.server.receive(&self.to_server, 1).unwrap();
        while let Some(event) = self.server.next_event() {
            if let ServerEvent::Unary { stream, message, .. } = event {
                self.server.reply_unary(stream, &message).unwrap();
            }
        }
        self.to_client.clear();
        self.server.poll_transmit(&mut self.to_client, usize::MAX);
    }

    fn finish(&mut self) -> usize {
        self.client.receive(&self.to_client, 1).unwrap();
        let mut done = 0;
        while let Some(event) = self.client.next_event() {
            if let ClientEvent::Response { message, .. } = event {
                done += message.len() / MESSAGE.len();
            }
        }
        done
    }
}

fn transport(criterion: &mut Criterion) {
    let mut pair = Pair::new();
    criterion.bench_function("64 unary calls, both sides", |bencher| {
        bencher.iter(|| {
            pair.start();
            pair.serve();
            assert_eq!(black_box(pair.finish()), IN_FLIGHT);
        });
    });
    criterion.bench_function("64 unary calls, server side", |bencher| {
        bencher.iter_custom(|rounds| {
            let mut spent = std::time::Duration::ZERO;
            for _ in 0..rounds {
                pair.start();
                let start = std::time::Instant::now();
                pair.serve();
                spent += start.elapsed();
                assert_eq!(pair.finish(), IN_FLIGHT);
            }
            spent
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = transport
}
criterion_main!(benches);
