//! Who leads the cluster.
//!
//! Used before a run with `--target-leader`: asks each endpoint for its status, one after the
//! other, over blocking sockets. Must never wait without a limit.

use std::time::Duration;

use etcore_proto::pb::etcdserverpb::{StatusRequest, StatusResponse};

use crate::options::Endpoint;
use crate::unary;

/// Why no leader is known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaderError {
    #[error("no endpoint is the leader")]
    NotAmongEndpoints,
    #[error("no endpoint is the leader; {endpoint}: {reason}")]
    Unreachable { endpoint: String, reason: String },
}

/// The endpoint that leads. Endpoints that do not answer are passed over, since one of the others
/// may lead.
pub(crate) fn find(
    endpoints: &[Endpoint],
    dial_timeout: Duration,
) -> Result<Endpoint, LeaderError> {
    let mut failure = LeaderError::NotAmongEndpoints;
    let request = StatusRequest::default();
    for endpoint in endpoints {
        let status = unary::call::<StatusResponse>(endpoint, STATUS, &request, dial_timeout);
        match status {
            Ok(status) => {
                let own_id = status.header.map_or(0, |header| header.member_id);
                if status.leader != 0 && status.leader == own_id {
                    return Ok(endpoint.clone());
                }
            }
            Err(reason) => {
                let endpoint = endpoint.to_string();
                failure = LeaderError::Unreachable { endpoint, reason };
            }
        }
    }
    Err(failure)
}

const STATUS: &str = "/etcdserverpb.Maintenance/Status";
