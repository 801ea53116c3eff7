//! The links between the members of one machine: proxies that carry the bytes of each connection
//! late, and that can cut a member off while its clients stay connected.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Pieces on their way in one direction of one connection; with more the sender waits, as behind a
/// full window.
const PIECES: usize = 256;
const PIECE_BYTES: usize = 64 << 10;

/// All links; clones share them.
#[derive(Clone)]
pub struct Links {
    one_way: Duration,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// The port of a member that nobody reaches, and who it says it is.
    away: Option<(u16, String)>,
    /// By the port that was called and who called.
    open: Vec<(u16, String, TcpStream)>,
}

impl State {
    fn is_cut(&self, port: u16, from: &str) -> bool {
        self.away.as_ref().is_some_and(|(away, id)| *away == port || id == from)
    }
}

impl Links {
    pub fn new(one_way: Duration) -> Self {
        Self { one_way, state: Arc::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing goes to or from the member with this peer port and ID, until [`Links::heal`].
    pub fn cut(&self, peer_port: u16, id: u64) {
        let mut state = self.lock();
        let id = format!("{id:x}");
        state.away = Some((peer_port, id.clone()));
        state.open.retain(|(port, from, socket)| {
            let cut = *port == peer_port || *from == id;
            if cut {
                let _ = socket.shutdown(Shutdown::Both);
            }
            !cut
        });
    }

    pub fn heal(&self) {
        self.lock().away = None;
    }

    /// Listens on `from`, and passes on to `to`, and back, until the process ends.
    pub fn carry(&self, from: u16, to: u16) {
        let listener = TcpListener::bind(("127.0.0.1", from)).expect("the port is ours");
        let links = self.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let links = links.clone();
                std::thread::spawn(move || links.connect(near, to));
            }
        });
    }

    fn connect(&self, mut near: TcpStream, to: u16) -> Option<()> {
        // Members say who they are in the head of each request.
        let mut first = vec![0; PIECE_BYTES];
        let count = near.read(&mut first).ok().filter(|count| *count > 0)?;
        first.truncate(count);
        let head = String::from_utf8_lossy(&first).to_lowercase();
        let from = head.split("x-server-from:").nth(1)?.split("\r\n").next()?.trim().to_owned();
        let far = TcpStream::connect(("127.0.0.1", to)).ok()?;
        for socket in [&near, &far] {
            let _ = socket.set_nodelay(true);
        }
        let (near_too, far_too) = (near.try_clone().ok()?, far.try_clone().ok()?);
        {
            let mut state = self.lock();
            if state.is_cut(to, &from) {
                return None;
            }
            state.open.push((to, from.clone(), near.try_clone().ok()?));
            state.open.push((to, from, far.try_clone().ok()?));
        }
        carry(near, far, first, self.one_way);
        carry(far_too, near_too, Vec::new(), self.one_way);
        Some(())
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, first: Vec<u8>, one_way: Duration) {
    let (sender, pieces) = sync_channel::<(Instant, Vec<u8>)>(PIECES);
    let _ = sender.send((Instant::now() + one_way, first));
    std::thread::spawn(move || {
        for (due, bytes) in pieces {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
    std::thread::spawn(move || {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if sender.send((Instant::now() + one_way, buffer[..count].to_vec())).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Read);
    });
}
