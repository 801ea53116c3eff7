//! The member: one process that serves etcd's API to clients, speaks etcd's protocol to the other
//! members, and keeps its log and its page file.
//!
//! A member is a few threads, one a core, each a [`shard`]: a loop over a [`driver`] that runs a
//! [`front`] (connections of clients), the [`replica`] (raft, log, store) with its [`peers`], or
//! all of them. Fronts answer reads from a published view by themselves; what changes the store
//! goes to the replica through bounded rings ([`channel`]) and comes back as a reply. The whole is
//! drawn in `docs/ARCHITECTURE.md`, with the ways of a put, a read, a watch event and a peer's
//! message.
//!
//! # What always holds
//!
//! * Nothing is answered before its log write was synced and its entry applied; nothing is visible
//!   before it is committed.
//! * Each piece of state has one owner, and no thread waits for another: not for a lock, not for
//!   the disk. The only wait is the driver's.
//! * Every queue has a bound ([`limits`]), and the bound says what happens when it is reached.
//! * After a failed write or sync the member stops; it never tries again.
//! * Entries are applied alike on all members: apply reads no clock and draws no number.
//! * A room uses only those below it; `tests/tidy.rs` has the table.
//!
//! # Who uses it
//!
//! The program `etcore` (`main.rs`) starts a member through [`config`] and [`boot`]. The simulator
//! (`sim`, behind the feature of that name) runs whole members in one thread, with a driver, a disk
//! and a clock of its own. Tests start the program as a process.
//!
//! # Where to begin reading
//!
//! [`shard`] (`Shard::work` is one round of everything), then [`front`] and [`api`] downwards
//! ([`kv`], [`watch`], [`replies`]), [`channel`], and [`replica`] with [`lease`], [`cluster`] and
//! [`auth`]; [`boot`] last.

pub mod api;
pub mod auth;
pub mod background;
pub mod boot;
pub mod channel;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod disk;
pub mod driver;
pub mod entry;
pub mod freer;
pub mod front;
pub mod http;
pub mod ids;
pub mod kv;
pub mod lease;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod net;
pub mod notify;
pub mod peers;
pub mod quota;
pub mod replica;
pub mod replies;
pub mod shard;
#[cfg(feature = "sim")]
pub mod sim;
pub mod sys;
pub mod tls;
pub mod watch;
pub mod wire;
pub mod work;
