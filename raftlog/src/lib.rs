//! The replicated log: etcd's write-ahead log on disk and raft above it.
//!
//! A proposal's way: `Node::propose` puts a whole batch into raft in one step; `Node::ready` says
//! what to write, send, apply and answer; `Writer` turns the entries into one synced write; when it
//! is done `Node::on_persisted` lets raft count this member, and the next `ready` brings the
//! committed entries. [`log::Log`] ties the two together. A leader's messages leave while its own
//! write is under way; a follower's answers wait for it inside the node.
//!
//! Nothing here opens a socket, starts a thread, reads a clock or draws a random number. Files are
//! operations handed out and results taken in; time is `tick`; randomness is a seed.
//!
//! # What always holds
//!
//! * Raft counts a write of this member only after its sync, and a follower's answer leaves after
//!   that.
//! * What was acknowledged is found again: recovery cuts a torn tail only where nothing behind it
//!   was ever acknowledged, and refuses any other damage with file and offset.
//! * A log is released only behind a checkpoint that is durable and marked.
//! * Files and messages are etcd's, byte for byte; etcd's own programs read them.
//! * No message of a peer panics: what cannot be is refused with a reason.
//!
//! # Who uses it
//!
//! The server's replica drives a [`log::Log`] and its peers' shell a [`peer::Transport`]; boot
//! opens and founds logs. The simulator runs both unchanged.
//!
//! # Where to begin reading
//!
//! In reading order:
//!
//! - [`types`], [`limits`]: the numbers, and the bounds.
//! - [`wal`]: record format, writer, recovery with its decision table, inspection. FORMAT.md is its
//!   specification.
//! - [`bootstrap`]: the first entries of a new cluster.
//! - [`node`]: raft-rs behind plain values.
//! - [`log`]: both together.
//! - [`peer`]: the links to the other members.
//! - `testing`: what tests of a log share (behind the feature of that name).
//!
//! # What raft-rs 0.7 leaves to its user, and where it is covered
//!
//! | raft-rs | here |
//! | --- | --- |
//! | `applied > commit` is fatal at the start | `Node::new` raises the commit to `applied` |
//! | election timeouts are drawn from thread_rng | set from seed, id and term after every call |
//! | campaigning with an unsynced tail panics | `tick`, `step` and `campaign` wait for the sync |
//! | ReadIndex before a term's first commit is dropped | `reads`: rounds wait, and are repeated |
//! | MsgReadIndex has no term | contexts are member, boot nonce and counter |
//! | a removed leader goes on leading | `apply_conf_change` makes it a follower |
//! | a follower's messages must wait for the sync | held in the node, except forwarded requests |
//! | a leader's messages may precede its own vote's sync | held until that vote is synced |
//! | `MemStorage`'s snapshot index is wrong for async ready | own storage; snapshots are provided |
//! | readies without a write are remembered until the next write | reported as persisted at once |
//! | there is no Bootstrap | `bootstrap`, and its voters are known before they are applied |
//! | learners are number 2, in etcd 3; etcd's "update" is unknown | `node::conf_change` |
//! | impossible messages panic | `node::inbound` refuses them |

pub mod bootstrap;
mod convert;
mod index;
pub mod limits;
pub mod log;
pub mod node;
pub mod peer;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod types;
pub mod wal;
