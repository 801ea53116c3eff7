//! Which request an entry holds: the first of those that are set, in the order in which etcd's
//! apply asks.
//!
//! Called by apply, the alarms and the checks before a proposal, so that all mean the same one.

use etcore_proto::pb::{etcdserverpb as pb, membershippb};

macro_rules! requests {
    ($($name:ident $field:ident $message:ty;)*) => {
        /// See the module text.
        #[derive(Debug, Clone, Copy)]
        #[allow(missing_docs, reason = "they are named as in the message")]
        pub enum Request<'a> {
            $($name(&'a $message),)*
        }

        impl<'a> Request<'a> {
            /// The request that counts; `None` if none is set that this version knows.
            pub fn of(entry: &'a pb::InternalRaftRequest) -> Option<Self> {
                $(if let Some(request) = &entry.$field {
                    return Some(Self::$name(request));
                })*
                None
            }
        }
    };
}

requests! {
    ClusterVersionSet cluster_version_set membershippb::ClusterVersionSetRequest;
    ClusterMemberAttrSet cluster_member_attr_set membershippb::ClusterMemberAttrSetRequest;
    DowngradeInfoSet downgrade_info_set membershippb::DowngradeInfoSetRequest;
    DowngradeVersionTest downgrade_version_test pb::DowngradeVersionTestRequest;
    Range range pb::RangeRequest;
    Put put pb::PutRequest;
    DeleteRange delete_range pb::DeleteRangeRequest;
    Txn txn pb::TxnRequest;
    Compaction compaction pb::CompactionRequest;
    LeaseGrant lease_grant pb::LeaseGrantRequest;
    LeaseRevoke lease_revoke pb::LeaseRevokeRequest;
    LeaseCheckpoint lease_checkpoint pb::LeaseCheckpointRequest;
    Alarm alarm pb::AlarmRequest;
    Authenticate authenticate pb::InternalAuthenticateRequest;
    AuthEnable auth_enable pb::AuthEnableRequest;
    AuthDisable auth_disable pb::AuthDisableRequest;
    AuthStatus auth_status pb::AuthStatusRequest;
    UserAdd auth_user_add pb::AuthUserAddRequest;
    UserDelete auth_user_delete pb::AuthUserDeleteRequest;
    UserChangePassword auth_user_change_password pb::AuthUserChangePasswordRequest;
    UserGrantRole auth_user_grant_role pb::AuthUserGrantRoleRequest;
    UserGet auth_user_get pb::AuthUserGetRequest;
    UserRevokeRole auth_user_revoke_role pb::AuthUserRevokeRoleRequest;
    RoleAdd auth_role_add pb::AuthRoleAddRequest;
    RoleGrantPermission auth_role_grant_permission pb::AuthRoleGrantPermissionRequest;
    RoleGet auth_role_get pb::AuthRoleGetRequest;
    RoleRevokePermission auth_role_revoke_permission pb::AuthRoleRevokePermissionRequest;
    RoleDelete auth_role_delete pb::AuthRoleDeleteRequest;
    UserList auth_user_list pb::AuthUserListRequest;
    RoleList auth_role_list pb::AuthRoleListRequest;
}
