//! What a hostile client asks for: messages of every call, valid, odd and broken.
//!
//! Used by the generator. It must never write outside its own keys and leases, and not at all if it
//! may not: then every write is one that a member refuses or that changes nothing.

use std::io::Read as _;

use etcore_engine::testing::prng::Prng;
use etcore_proto::pb::etcdserverpb::{self as pb, compare, request_op, watch_request};
use etcore_proto::pb::v3lockpb;
use flate2::Compression;
use flate2::read::GzEncoder;
use prost::Message as _;

use crate::wire::write_varint;

/// The calls that it makes, with their paths. What would harm others by right is not among them:
/// no alarm is raised, no user or role written, no member added or removed: such calls fail.
pub(super) const CALLS: [(Call, &str); 55] = [
    (Call::Range, "/etcdserverpb.KV/Range"),
    (Call::Range, "/etcdserverpb.KV/RangeStream"),
    (Call::Put, "/etcdserverpb.KV/Put"),
    (Call::Delete, "/etcdserverpb.KV/DeleteRange"),
    (Call::Txn, "/etcdserverpb.KV/Txn"),
    (Call::Compact, "/etcdserverpb.KV/Compact"),
    (Call::Grant, "/etcdserverpb.Lease/LeaseGrant"),
    (Call::Revoke, "/etcdserverpb.Lease/LeaseRevoke"),
    (Call::TimeToLive, "/etcdserverpb.Lease/LeaseTimeToLive"),
    (Call::Empty, "/etcdserverpb.Lease/LeaseLeases"),
    (Call::KeepAlive, "/etcdserverpb.Lease/LeaseKeepAlive"),
    (Call::Watch, "/etcdserverpb.Watch/Watch"),
    (Call::MemberList, "/etcdserverpb.Cluster/MemberList"),
    (Call::AddMember, "/etcdserverpb.Cluster/MemberAdd"),
    (Call::Member, "/etcdserverpb.Cluster/MemberRemove"),
    (Call::Member, "/etcdserverpb.Cluster/MemberUpdate"),
    (Call::Member, "/etcdserverpb.Cluster/MemberPromote"),
    (Call::Empty, "/etcdserverpb.Maintenance/Status"),
    (Call::Alarms, "/etcdserverpb.Maintenance/Alarm"),
    (Call::Empty, "/etcdserverpb.Maintenance/Hash"),
    (Call::HashKv, "/etcdserverpb.Maintenance/HashKV"),
    (Call::Empty, "/etcdserverpb.Maintenance/Defragment"),
    (Call::MoveLeader, "/etcdserverpb.Maintenance/MoveLeader"),
    (Call::Health, "/grpc.health.v1.Health/Check"),
    (Call::Health, "/grpc.health.v1.Health/Watch"),
    (Call::Empty, "/grpc.health.v1.Health/List"),
    (Call::Empty, "/etcdserverpb.Auth/AuthStatus"),
    (Call::Named, "/etcdserverpb.Auth/Authenticate"),
    (Call::Empty, "/etcdserverpb.Auth/AuthEnable"),
    (Call::Empty, "/etcdserverpb.Auth/AuthDisable"),
    (Call::Nameless, "/etcdserverpb.Auth/UserAdd"),
    (Call::Named, "/etcdserverpb.Auth/UserGet"),
    (Call::Empty, "/etcdserverpb.Auth/UserList"),
    (Call::Named, "/etcdserverpb.Auth/UserDelete"),
    (Call::Named, "/etcdserverpb.Auth/UserChangePassword"),
    (Call::Named, "/etcdserverpb.Auth/UserGrantRole"),
    (Call::Named, "/etcdserverpb.Auth/UserRevokeRole"),
    (Call::Nameless, "/etcdserverpb.Auth/RoleAdd"),
    (Call::Named, "/etcdserverpb.Auth/RoleGet"),
    (Call::Empty, "/etcdserverpb.Auth/RoleList"),
    (Call::Named, "/etcdserverpb.Auth/RoleDelete"),
    (Call::Named, "/etcdserverpb.Auth/RoleGrantPermission"),
    (Call::Named, "/etcdserverpb.Auth/RoleRevokePermission"),
    (Call::Lock, "/v3lockpb.Lock/Lock"),
    (Call::Named, "/v3lockpb.Lock/Unlock"),
    (Call::Lock, "/v3electionpb.Election/Campaign"),
    (Call::Empty, "/v3electionpb.Election/Proclaim"),
    (Call::Named, "/v3electionpb.Election/Leader"),
    (Call::Named, "/v3electionpb.Election/Observe"),
    (Call::Empty, "/v3electionpb.Election/Resign"),
    (Call::Garbage, "/etcdserverpb.KV/Unknown"),
    (Call::Garbage, "/no.Such/Thing"),
    (Call::Garbage, "no path"),
    (Call::Garbage, "/"),
    (Call::Garbage, ""),
];

/// Kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Range,
    Put,
    Delete,
    Txn,
    Compact,
    Grant,
    Revoke,
    TimeToLive,
    KeepAlive,
    Watch,
    MemberList,
    AddMember,
    /// Its message begins with a member's ID.
    Member,
    Alarms,
    HashKv,
    MoveLeader,
    Health,
    /// Its message begins with the name of nobody: a user, a role, a key.
    Named,
    /// Its message begins with the name of what it would make, which is missing.
    Nameless,
    /// It locks a name of its own, with a lease that does not exist.
    Lock,
    /// Its message has no fields.
    Empty,
    /// There is no such call.
    Garbage,
}

impl Call {
    /// What it changes depends on its bytes: they are sent whole, and none is altered.
    pub(super) fn is_delicate(self, writes: bool) -> bool {
        match self {
            Call::Delete | Call::Txn | Call::Compact | Call::Alarms | Call::MoveLeader => true,
            Call::AddMember | Call::Nameless | Call::Lock => true,
            Call::Put | Call::Grant | Call::Revoke | Call::KeepAlive => !writes,
            _ => false,
        }
    }
}

/// Its keys begin so. Others' keys sort before them.
pub const PREFIX: &str = "hostile/";
/// One past the last of them.
const PREFIX_END: &str = "hostile0";
/// Nobody puts anything there.
const NOWHERE: (&str, &str) = ("hostile-nowhere/", "hostile-nowhere0");
/// Its leases, few enough that they cost nothing.
const FIRST_LEASE: i64 = 0x6873_0000_0000;
const LEASES: u64 = 200;
/// The ids of all leases that a hostile client grants.
pub fn leases() -> std::ops::Range<i64> {
    FIRST_LEASE..FIRST_LEASE + LEASES.cast_signed()
}

/// Lasts for so long, so that what it leaves behind ends soon.
const TTL_MAX: u64 = 20;

/// One of these, or a small number.
fn odd_number(prng: &mut Prng) -> i64 {
    match prng.below(8) {
        0 => i64::MAX,
        1 => i64::MIN,
        2 => -1,
        3 | 4 => 0,
        _ => prng.below(3_000).cast_signed(),
    }
}

fn odd_enum(prng: &mut Prng) -> i32 {
    [0, 0, 0, 1, 2, 3, 4, 5, -1, i32::MAX][prng.index(10)]
}

fn key(prng: &mut Prng) -> Vec<u8> {
    match prng.below(40) {
        0 => format!("{PREFIX}{}", "long".repeat(prng.index(2_000))).into_bytes(),
        1 => [PREFIX.as_bytes(), &[0, 0xff, 0xfe, 0]].concat(),
        _ => format!("{PREFIX}{:02}", prng.below(64)).into_bytes(),
    }
}

fn lease(prng: &mut Prng) -> i64 {
    FIRST_LEASE + prng.below(LEASES).cast_signed()
}

/// A value of at most so many bytes; short ones are common.
fn value(prng: &mut Prng, most: usize) -> Vec<u8> {
    let length = match prng.below(60) {
        0 => most,
        1 => prng.index(most),
        2..10 => prng.index(most.min(20_000)),
        _ => prng.index(100),
    };
    vec![b'v'; length]
}

/// What to read: anything.
fn range(prng: &mut Prng) -> pb::RangeRequest {
    let (key, range_end): (Vec<u8>, Vec<u8>) = match prng.below(8) {
        0 => (vec![0], vec![0]),
        1 => (Vec::new(), Vec::new()),
        2 => (PREFIX_END.into(), PREFIX.into()),
        3 | 4 => (PREFIX.into(), PREFIX_END.into()),
        5 => (key(prng), vec![0]),
        _ => (key(prng), Vec::new()),
    };
    let mut request = pb::RangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        serializable: prng.chance(1, 2),
        ..Default::default()
    };
    if prng.chance(1, 2) {
        request.limit = odd_number(prng);
        request.sort_order = odd_enum(prng);
        request.sort_target = odd_enum(prng);
        request.keys_only = prng.chance(1, 4);
        request.count_only = prng.chance(1, 4);
    }
    if prng.chance(1, 6) {
        request.revision = odd_number(prng);
        request.min_mod_revision = odd_number(prng);
        request.max_mod_revision = odd_number(prng);
        request.min_create_revision = odd_number(prng);
        request.max_create_revision = odd_number(prng);
    }
    request
}

fn put(prng: &mut Prng, writes: bool, most: usize) -> pb::PutRequest {
    let mut request = pb::PutRequest {
        key: key(prng).into(),
        value: value(prng, most).into(),
        prev_kv: prng.chance(1, 4),
        ..Default::default()
    };
    match prng.below(10) {
        0 => request.key = Vec::new().into(),
        1 => request.lease = i64::MAX - 7,
        2 => request.lease = lease(prng),
        3 => (request.ignore_value, request.ignore_lease) = (prng.chance(1, 2), true),
        _ => {}
    }
    if !writes {
        // Refused for its empty key, for its value, or for a lease that nobody has.
        match prng.below(3) {
            0 => request.key = Vec::new().into(),
            1 => (request.ignore_value, request.value) = (true, b"v".to_vec().into()),
            _ => (request.lease, request.ignore_lease) = (i64::MAX - 7, false),
        }
    }
    request
}

fn delete(prng: &mut Prng, writes: bool) -> pb::DeleteRangeRequest {
    let (key, range_end): (Vec<u8>, Vec<u8>) = match prng.below(6) {
        0 => (Vec::new(), Vec::new()),
        1 if writes => (PREFIX.into(), PREFIX_END.into()),
        2..5 if writes => (key(prng), Vec::new()),
        _ => (NOWHERE.0.into(), NOWHERE.1.into()),
    };
    pb::DeleteRangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        prev_kv: prng.chance(1, 2),
    }
}

fn compared(prng: &mut Prng) -> pb::Compare {
    let number = odd_number(prng);
    let target_union = match prng.below(7) {
        0 => Some(compare::TargetUnion::Version(number)),
        1 => Some(compare::TargetUnion::CreateRevision(number)),
        2 => Some(compare::TargetUnion::ModRevision(number)),
        3 | 4 => Some(compare::TargetUnion::Value(value(prng, 100).into())),
        5 => Some(compare::TargetUnion::Lease(number)),
        _ => None,
    };
    let range_end = if prng.chance(1, 4) { vec![0] } else { Vec::new() };
    pb::Compare {
        result: odd_enum(prng),
        target: odd_enum(prng),
        key: key(prng).into(),
        range_end: range_end.into(),
        target_union,
    }
}

fn operations(prng: &mut Prng, writes: bool, most: usize, depth: u32) -> Vec<pb::RequestOp> {
    let count = match prng.below(60) {
        0 => 129,
        1 => 128,
        _ => prng.index(5),
    };
    let operation = |_| {
        let request = match prng.below(8) {
            0 => None,
            1 if depth < 4 => {
                let nested = txn(prng, writes, most, depth + 1);
                Some(request_op::Request::RequestTxn(Box::new(nested)))
            }
            2 | 3 => Some(request_op::Request::RequestPut(put(prng, writes, most))),
            4 => Some(request_op::Request::RequestDeleteRange(delete(prng, writes))),
            _ => Some(request_op::Request::RequestRange(range(prng))),
        };
        pb::RequestOp { request }
    };
    (0..count).map(operation).collect()
}

fn txn(prng: &mut Prng, writes: bool, most: usize, depth: u32) -> pb::TxnRequest {
    let most = most / 4;
    let compare = (0..prng.index(4)).map(|_| compared(prng)).collect();
    let success = operations(prng, writes, most, depth);
    let failure = operations(prng, writes, most, depth);
    let mut request = pb::TxnRequest { compare, success, failure };
    if depth == 0 && prng.chance(1, 20) {
        // One in another, around what it says.
        for _ in 0..prng.below(140) {
            let nested = request_op::Request::RequestTxn(Box::new(request));
            let only = pb::RequestOp { request: Some(nested) };
            request = pb::TxnRequest { success: vec![only], ..Default::default() };
        }
    }
    request
}

fn watch(prng: &mut Prng) -> pb::WatchRequest {
    let request = match prng.below(12) {
        0 => None,
        1 => Some(watch_request::RequestUnion::ProgressRequest(pb::WatchProgressRequest {})),
        2 | 3 => {
            let watch_id =
                if prng.chance(1, 8) { odd_number(prng) } else { prng.below(200).cast_signed() };
            Some(watch_request::RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id }))
        }
        _ => {
            let read = range(prng);
            let filters = (0..prng.index(3)).map(|_| odd_enum(prng)).collect();
            Some(watch_request::RequestUnion::CreateRequest(pb::WatchCreateRequest {
                key: read.key,
                range_end: read.range_end,
                start_revision: if prng.chance(1, 3) { odd_number(prng) } else { 0 },
                progress_notify: prng.chance(1, 3),
                filters,
                prev_kv: prng.chance(1, 3),
                watch_id: if prng.chance(1, 4) { odd_number(prng) } else { 0 },
                fragment: prng.chance(1, 3),
            }))
        }
    };
    pb::WatchRequest { request_union: request }
}

/// How requests are made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    /// They may change something.
    pub(super) writes: bool,
    /// Bytes of their values.
    pub(super) value_bytes: usize,
    /// One in so many has fields that nobody knows, and as many are altered.
    pub(super) odd_one_in: u64,
}

/// A request that would harm others if it were granted: what it is about does not exist.
fn futile(call: Call, prng: &mut Prng) -> Vec<u8> {
    match call {
        // Members that were added by somebody who means no good would cost the quorum.
        Call::AddMember => {
            let url = ["", "nowhere", "http://a/b", "ftp://a:1"][prng.index(4)].to_owned();
            let peer_ur_ls = vec![url; prng.index(3)];
            pb::MemberAddRequest { peer_ur_ls, is_learner: prng.chance(1, 2) }.encode_to_vec()
        }
        // No member has this ID.
        Call::Member => {
            let peer_ur_ls = vec!["http://a:1".to_owned(); prng.index(3)];
            pb::MemberUpdateRequest { id: prng.below(9), peer_ur_ls }.encode_to_vec()
        }
        Call::Named => {
            let (name, password) = (format!("nobody{}", prng.below(9)), "x".to_owned());
            pb::AuthenticateRequest { name, password }.encode_to_vec()
        }
        Call::Nameless => {
            let (name, password) = (String::new(), "x".to_owned());
            pb::AuthenticateRequest { name, password }.encode_to_vec()
        }
        // With a lease that nobody has.
        _ => {
            let name = format!("{PREFIX}lock{}", prng.below(9)).into();
            v3lockpb::LockRequest { name, lease: -7 }.encode_to_vec()
        }
    }
}

/// A request of this kind.
pub(super) fn message(call: Call, prng: &mut Prng, style: Style) -> Vec<u8> {
    let Style { writes, value_bytes: most, odd_one_in } = style;
    let mut bytes = match call {
        Call::Range => range(prng).encode_to_vec(),
        Call::Put => put(prng, writes, most).encode_to_vec(),
        Call::Delete => delete(prng, writes).encode_to_vec(),
        Call::Txn => txn(prng, writes, most, 0).encode_to_vec(),
        Call::Compact => {
            // Nobody reads so far back, and nobody can compact the future.
            let old = if writes { 1 + prng.below(10).cast_signed() } else { i64::MAX };
            let revision = if prng.chance(1, 2) { i64::MAX } else { old };
            let physical = prng.chance(1, 4);
            pb::CompactionRequest { revision, physical }.encode_to_vec()
        }
        Call::Grant => {
            let ttl = match prng.below(6) {
                0 => [0, -1, i64::MIN, i64::MAX, 9_000_000_001][prng.index(5)],
                _ => 1 + prng.below(TTL_MAX).cast_signed(),
            };
            pb::LeaseGrantRequest { id: lease(prng), ttl }.encode_to_vec()
        }
        Call::Revoke => pb::LeaseRevokeRequest { id: lease(prng) }.encode_to_vec(),
        Call::TimeToLive => {
            let keys = prng.chance(1, 2);
            pb::LeaseTimeToLiveRequest { id: lease(prng), keys }.encode_to_vec()
        }
        Call::KeepAlive => pb::LeaseKeepAliveRequest { id: lease(prng) }.encode_to_vec(),
        Call::Watch => watch(prng).encode_to_vec(),
        Call::MemberList => {
            pb::MemberListRequest { linearizable: prng.chance(1, 2) }.encode_to_vec()
        }
        Call::AddMember | Call::Member | Call::Named | Call::Nameless | Call::Lock => {
            futile(call, prng)
        }
        Call::Alarms => pb::AlarmRequest::default().encode_to_vec(),
        Call::HashKv => pb::HashKvRequest { revision: odd_number(prng) }.encode_to_vec(),
        // No member has this ID.
        Call::MoveLeader => pb::MoveLeaderRequest { target_id: prng.below(9) }.encode_to_vec(),
        Call::Health => {
            let name = [&b""[..], b"etcdserverpb.KV", b"\xff"][prng.index(3)];
            let length = u8::try_from(name.len()).expect("a short name");
            [&[0x0a, length], name].concat()
        }
        Call::Empty => Vec::new(),
        Call::Garbage => noise(prng, 200),
    };
    if prng.chance(1, odd_one_in) {
        add_unknown(&mut bytes, prng);
    }
    if prng.chance(1, odd_one_in) && !call.is_delicate(writes) {
        mutate(&mut bytes, prng);
    }
    bytes
}

/// Fields that no message has: of unknown numbers, of other wire types, groups in groups.
fn add_unknown(bytes: &mut Vec<u8>, prng: &mut Prng) {
    // No message has a field of 64 or 32 fixed bits, or a group.
    let number = if prng.chance(1, 2) { 1 + prng.below(8) } else { 1_000 + prng.below(90_000) };
    match prng.below(5) {
        0 => {
            write_varint(bytes, number << 3 | 1);
            bytes.extend([7; 8]);
        }
        1 => {
            write_varint(bytes, number << 3 | 5);
            bytes.extend([7; 4]);
        }
        2 => {
            write_varint(bytes, (900 + number) << 3 | 2);
            let length = prng.index(300);
            write_varint(bytes, length as u64);
            bytes.extend(std::iter::repeat_n(0xff, length));
        }
        3 => {
            write_varint(bytes, (900 + number) << 3);
            write_varint(bytes, u64::MAX);
        }
        _ => {
            let depth = [1, 3, 99, 101, 9_999, 10_001, 12_000][prng.index(7)];
            (0..depth).for_each(|_| write_varint(bytes, number << 3 | 3));
            // Sometimes one is not ended.
            let open = u64::from(prng.chance(1, 6));
            (open..depth).for_each(|_| write_varint(bytes, number << 3 | 4));
        }
    }
}

/// Bytes without meaning.
pub(super) fn noise(prng: &mut Prng, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; prng.index(most)];
    prng.fill(&mut bytes);
    bytes
}

/// Changes, cuts off, doubles or adds some bytes.
pub(super) fn mutate(bytes: &mut Vec<u8>, prng: &mut Prng) {
    for _ in 0..=prng.index(4) {
        let at = prng.index(bytes.len());
        match prng.below(5) {
            _ if bytes.is_empty() => bytes.push(0xff),
            0 => bytes.truncate(at),
            1 => bytes.insert(at, prng.next_u64().to_le_bytes()[0]),
            2 => {
                let some = bytes[at..(at + 20).min(bytes.len())].to_vec();
                bytes.extend(some);
            }
            _ => bytes[at] ^= 1 << prng.index(8),
        }
    }
}

/// How a message is put into a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame {
    /// As it should be.
    Plain,
    /// Compressed, and said to be.
    Compressed,
    /// Wrong in some way.
    Wrong,
}

/// A message with its prefix. `bomb_bytes` is what a small one may become.
/// A message of a delicate call is never cut short: its beginning could mean something else.
pub(super) fn prefixed(
    frame: Frame,
    message: &[u8],
    prng: &mut Prng,
    (bomb_bytes, is_delicate): (usize, bool),
) -> Vec<u8> {
    let prefix = |flag: u8, length: usize, message: &[u8]| {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        [&[flag][..], &length.to_be_bytes(), message].concat()
    };
    match frame {
        Frame::Plain => prefix(0, message.len(), message),
        Frame::Compressed => {
            let mut packed = gzip(message);
            match prng.below(8) {
                0 => mutate(&mut packed, prng),
                1 => packed = gzip(&vec![0; bomb_bytes]),
                2 => packed.extend(gzip(message)),
                _ => {}
            }
            prefix(1, packed.len(), &packed)
        }
        Frame::Wrong => match prng.below(6) {
            0 => prefix(1, message.len(), message),
            1 => prefix(2 + prng.next_u64().to_le_bytes()[0] % 254, message.len(), message),
            2 => prefix(0, message.len() + 1 + prng.index(100_000), message),
            3 if !is_delicate => prefix(0, message.len() / 2, message),
            4 => prefix(0, usize::MAX, message),
            _ => prefix(0, message.len(), message)[..prng.index(5)].to_vec(),
        },
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    let outcome = GzEncoder::new(bytes, Compression::fast()).read_to_end(&mut packed);
    assert!(outcome.is_ok(), "reading from memory has no error to report");
    packed
}
