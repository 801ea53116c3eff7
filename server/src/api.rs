//! etcd's services: what a request must satisfy, how it is answered. One file a service.
//!
//! Called by the fronts with decoded requests. It never touches sockets, and spells no error text:
//! those come from `etcore_proto::error`.

pub mod check;
pub mod range;
pub mod reader;
pub mod txn;
