//! etcd's error table: the one place where an error's gRPC code and text are written down.
//!
//! Clients match the text (Go) or the code (others), so both are part of the contract
//! (etcd `api/v3rpc/rpctypes/error.go`, `server/etcdserver/api/v3rpc/util.go`). Every service
//! answers through it; nothing else may spell a text or choose a code.

pub use crate::grpc::Code;

macro_rules! etcd_errors {
    ($($name:ident $code:ident $text:literal)*) => {
        /// An error that etcd names. The code and the text leave the server as they stand here.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
        pub enum EtcdError {
            $(#[doc = $text] #[error($text)] $name,)*
        }

        impl EtcdError {
            /// Every row of the table.
            pub const TABLE: &'static [Self] = &[$(Self::$name,)*];

            /// The gRPC code.
            pub fn code(self) -> Code {
                match self { $(Self::$name => Code::$code,)* }
            }

            /// The text, prefix included.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

// "too many requests" and "not enough started members" leave etcd as Unknown: its map holds the
// client-side error there, which carries no gRPC status.
etcd_errors! {
    EmptyKey InvalidArgument "etcdserver: key is not provided"
    KeyNotFound InvalidArgument "etcdserver: key not found"
    ValueProvided InvalidArgument "etcdserver: value is provided"
    LeaseProvided InvalidArgument "etcdserver: lease is provided"
    TooManyOps InvalidArgument "etcdserver: too many operations in txn request"
    DuplicateKey InvalidArgument "etcdserver: duplicate key given in txn request"
    InvalidClientApiVersion InvalidArgument "etcdserver: invalid client api version"
    InvalidSortOption InvalidArgument "etcdserver: invalid sort option"
    Compacted OutOfRange "etcdserver: mvcc: required revision has been compacted"
    FutureRev OutOfRange "etcdserver: mvcc: required revision is a future revision"
    NoSpace ResourceExhausted "etcdserver: mvcc: database space exceeded"
    LeaseNotFound NotFound "etcdserver: requested lease not found"
    LeaseExist FailedPrecondition "etcdserver: lease already exists"
    LeaseTtlTooLarge OutOfRange "etcdserver: too large lease TTL"
    WatchCanceled Canceled "etcdserver: watch canceled"
    MemberExist FailedPrecondition "etcdserver: member ID already exist"
    PeerUrlExist FailedPrecondition "etcdserver: Peer URLs already exists"
    MemberNotEnoughStarted Unknown "etcdserver: re-configuration failed due to not enough started members"
    MemberBadUrls InvalidArgument "etcdserver: given member URLs are invalid"
    MemberNotFound NotFound "etcdserver: member not found"
    MemberNotLearner FailedPrecondition "etcdserver: can only promote a learner member"
    LearnerNotReady FailedPrecondition "etcdserver: can only promote a learner member which is in sync with leader"
    TooManyLearners FailedPrecondition "etcdserver: too many learner members in cluster"
    ClusterIdMismatch FailedPrecondition "etcdserver: cluster ID mismatch"
    RequestTooLarge InvalidArgument "etcdserver: request is too large"
    TooManyRequests Unknown "etcdserver: too many requests"
    RootUserNotExist FailedPrecondition "etcdserver: root user does not exist"
    RootRoleNotExist FailedPrecondition "etcdserver: root user does not have root role"
    UserAlreadyExist FailedPrecondition "etcdserver: user name already exists"
    UserEmpty InvalidArgument "etcdserver: user name is empty"
    UserNotFound FailedPrecondition "etcdserver: user name not found"
    RoleAlreadyExist FailedPrecondition "etcdserver: role name already exists"
    RoleNotFound FailedPrecondition "etcdserver: role name not found"
    RoleEmpty InvalidArgument "etcdserver: role name is empty"
    AuthFailed InvalidArgument "etcdserver: authentication failed, invalid user ID or password"
    PermissionNotGiven InvalidArgument "etcdserver: permission not given"
    PermissionDenied PermissionDenied "etcdserver: permission denied"
    RoleNotGranted FailedPrecondition "etcdserver: role is not granted to the user"
    PermissionNotGranted FailedPrecondition "etcdserver: permission is not granted to the role"
    AuthNotEnabled FailedPrecondition "etcdserver: authentication is not enabled"
    InvalidAuthToken Unauthenticated "etcdserver: invalid auth token"
    InvalidAuthMgmt InvalidArgument "etcdserver: invalid auth management"
    AuthOldRevision InvalidArgument "etcdserver: revision of auth store is old"
    NoLeader Unavailable "etcdserver: no leader"
    NotLeader FailedPrecondition "etcdserver: not leader"
    LeaderChanged Unavailable "etcdserver: leader changed"
    NotCapable FailedPrecondition "etcdserver: not capable"
    Stopped Unavailable "etcdserver: server stopped"
    Timeout Unavailable "etcdserver: request timed out"
    TimeoutDueToLeaderFail Unavailable "etcdserver: request timed out, possibly due to previous leader failure"
    TimeoutDueToConnectionLost Unavailable "etcdserver: request timed out, possibly due to connection lost"
    TimeoutWaitAppliedIndex Unavailable "etcdserver: request timed out, waiting for the applied index took too long"
    TimeoutLeaderTransfer Unknown "etcdserver: request timed out, leader transfer took too long"
    Unhealthy Unavailable "etcdserver: unhealthy cluster"
    Corrupt DataLoss "etcdserver: corrupt cluster"
    NotSupportedForLearner FailedPrecondition "etcdserver: rpc not supported for learner"
    BadLeaderTransferee FailedPrecondition "etcdserver: bad leader transferee"
    WrongDowngradeVersionFormat InvalidArgument "etcdserver: wrong downgrade target version format"
    InvalidDowngradeTargetVersion InvalidArgument "etcdserver: invalid downgrade target version"
    ClusterVersionUnavailable FailedPrecondition "etcdserver: cluster version not found during downgrade"
    DowngradeInProcess FailedPrecondition "etcdserver: cluster has a downgrade job in progress"
    NoInflightDowngrade FailedPrecondition "etcdserver: no inflight downgrade job"
    RangeStreamSortOrder Unimplemented "RangeStream does not support custom sort orders"
    RangeStreamRevisionFilters Unimplemented "RangeStream does not support revision filters"
    ContextCanceled Canceled "context canceled"
    ContextDeadlineExceeded DeadlineExceeded "context deadline exceeded"
}

/// A gRPC status as it leaves the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The code.
    pub code: Code,
    /// The text; may hold any Unicode (the transport percent-encodes it).
    pub message: std::borrow::Cow<'static, str>,
}

impl Status {
    /// A status with a text of its own, for errors that only one place can raise.
    pub fn new(code: Code, message: impl Into<std::borrow::Cow<'static, str>>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<EtcdError> for Status {
    fn from(error: EtcdError) -> Self {
        Self { code: error.code(), message: error.text().into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_unique_so_that_clients_can_match_it() {
        let mut texts: Vec<_> = EtcdError::TABLE.iter().map(|error| error.text()).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), EtcdError::TABLE.len());
    }

    #[test]
    fn errors_that_etcd_maps_to_the_client_side_type_leave_as_unknown() {
        assert_eq!(EtcdError::TooManyRequests.code(), Code::Unknown);
        assert_eq!(EtcdError::MemberNotEnoughStarted.code(), Code::Unknown);
    }
}
