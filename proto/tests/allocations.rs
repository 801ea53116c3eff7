//! The usual call allocates nothing, on either side, but a chunk for many messages.

#[path = "it/common.rs"]
mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Link, UNARY};
use etcore_proto::grpc::CallOptions;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and `pointer` is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `realloc`, and `pointer` is the system's.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_thousand_unary_calls_cost_a_handful_of_allocations() {
    let mut link = Link::new();
    let unary = link.client.method(UNARY);
    let token = link.client.register_metadata("token", b"simple.17");
    let version = link.client.register_metadata("client-api-version", b"3.7.1");
    link.cut = usize::MAX;
    let options = CallOptions { registered: &[token, version], ..CallOptions::default() };
    let round = |link: &mut Link| {
        for _ in 0..64 {
            link.client.start_unary(unary, &options, &[7; 264]).unwrap();
        }
        link.run();
        link.events.clear();
    };
    for _ in 0..20 {
        round(&mut link);
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..16 {
        round(&mut link);
    }
    let spent = ALLOCATIONS.load(Ordering::Relaxed) - before;
    // 1,024 calls; 6 allocations a round are the pump's own wire buffer growing, the rest are
    // chunks: 264 bytes twice a call fill one of 16 KiB every 31 calls.
    assert!(spent < 16 * 16 + 2 * 1_024 * 264 / 16_000, "{spent} allocations");
}
