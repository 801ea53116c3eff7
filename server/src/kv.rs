//! etcd's services: what a request must satisfy, how it is answered. One file a service.
//!
//! Called by the fronts with decoded requests. It never touches sockets, and spells no error text:
//! those come from `etcore_proto::error`.

pub mod answer;
pub mod check;
pub mod counts;
pub mod execute;
pub mod keys;
pub mod pieces;
pub mod plan;
pub mod range;
pub mod reader;
pub mod select;
#[cfg(test)]
mod tests;
