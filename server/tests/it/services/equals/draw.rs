//! Draws what is asked: calls of every method with messages and heads that are right, odd and
//! wrong, watches and renewals, out of a seed.
//!
//! The requests themselves are those of the differential test's programs; here they are put into
//! bytes, altered and dressed. It must never make a call whose answer depends on how fast a server
//! is, except reads with a deadline that has passed: how those end is the server's affair.

use etcore_engine::testing::prng::Prng;
use etcore_proto::pb::etcdserverpb as pb;
use pb::request_op::Request;
use pb::watch_request::RequestUnion;

use super::alter::{Alter, KINDS, Kind};
use super::generate;
use super::peer::{Cut, Head};
use super::program::{Op, current};

/// One step of a program.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// A call with one answer, or with a list of them.
    Call(Call),
    /// A renewal stream with all it asks for.
    KeepAlive(Dress, Vec<(i64, Vec<Alter>)>),
    /// A watch stream, what is asked on it and what happens meanwhile.
    Watch(Dress, Vec<WatchAct>),
}

#[derive(Debug, Clone)]
pub(crate) enum WatchAct {
    Ask(Option<RequestUnion>, Vec<Alter>),
    Do(Op),
}

#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) asked: Asked,
    pub(crate) alters: Vec<Alter>,
    pub(crate) dress: Dress,
}

/// What a call is about.
#[derive(Debug, Clone)]
pub(crate) enum Asked {
    /// A request of the differential test.
    Op(Op),
    /// An alarm of a member: no one, the one asked, or another.
    Alarm { action: i32, alarm: i32, who: Who },
    /// Leadership for a member.
    MoveLeader(Who),
    /// A method by its path, with a message.
    Path(&'static str, &'static [u8]),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Nobody,
    Asked,
    Another,
}

/// How messages are put into a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Envelope {
    Plain,
    /// Compressed as the head says, or without a word.
    Gzip,
    /// What is compressed is broken or goes on.
    BrokenGzip(u64),
    /// The flag says compressed, the message is not.
    FalseFlag(u8),
    /// So much longer or shorter than said.
    Longer(u32),
    Shorter(u32),
    /// No message at all.
    Nothing,
    /// Some bytes of the prefix.
    Prefix(usize),
    /// A second message.
    Twice,
}

/// Everything around the message.
#[derive(Debug, Clone)]
pub(crate) struct Dress {
    pub(crate) edits: Vec<Edit>,
    pub(crate) cut: Cut,
    pub(crate) envelope: Envelope,
    /// Nobody can be in time.
    pub(crate) is_late: bool,
}

impl Dress {
    pub(crate) fn plain() -> Self {
        Self { edits: Vec::new(), cut: Cut::default(), envelope: Envelope::Plain, is_late: false }
    }
}

/// A change of a head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Edit {
    Set(&'static str, &'static [u8]),
    Add(&'static str, &'static [u8]),
    First(&'static str, &'static [u8]),
    Drop(&'static str),
    Double(&'static str),
    /// So many more bytes.
    Long(usize),
}

/// True for what RFC 9113 calls malformed (section 8): etcd takes some of it, etcore resets the
/// stream, as h2spec demands. (A wrong content-length is too, but shows only later.)
pub(crate) fn is_malformed(head: &Head) -> bool {
    let mut is_regular = false;
    let mut counts = [0; 4];
    for (name, value) in head {
        let name_bytes = name.strip_prefix(':').unwrap_or(name).as_bytes();
        let is_name = |byte: &u8| {
            let is_mark = b"!#$%&'*+-.^_`|~".contains(byte);
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || is_mark
        };
        let edge = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        let is_wrong = match name.as_str() {
            "connection" | "proxy-connection" | "keep-alive" | "transfer-encoding" | "upgrade" => {
                true
            }
            "te" => value != b"trailers",
            _ => false,
        };
        if is_wrong
            || name_bytes.is_empty()
            || !name_bytes.iter().all(is_name)
            || edge(value.first())
            || edge(value.last())
            || value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t')
        {
            return true;
        }
        if let Some(pseudo) = name.strip_prefix(':') {
            let known = ["method", "scheme", "path", "authority"];
            match known.iter().position(|other| *other == pseudo) {
                Some(at) if !is_regular => counts[at] += 1,
                _ => return true,
            }
        } else {
            is_regular = true;
        }
    }
    let path = head.iter().find(|(name, _)| name == ":path");
    counts[..3] != [1; 3] || counts[3] > 1 || path.is_none_or(|(_, path)| path.is_empty())
}

/// The head of a call, changed.
pub(crate) fn head(path: &str, edits: &[Edit]) -> Head {
    let field = |name: &str, value: &[u8]| (name.to_owned(), value.to_vec());
    let mut head: Head = super::wire::grpc_fields(path)
        .iter()
        .map(|(name, value)| field(name, value.as_bytes()))
        .collect();
    for edit in edits {
        match edit {
            Edit::Set(name, value) => {
                let found = head.iter_mut().find(|(other, _)| other == name);
                found.into_iter().for_each(|(_, old)| *old = value.to_vec());
            }
            Edit::Add(name, value) => head.push(field(name, value)),
            Edit::First(name, value) => head.insert(0, field(name, value)),
            Edit::Drop(name) => head.retain(|(other, _)| other != name),
            Edit::Double(name) => {
                let found = head.iter().find(|(other, _)| other == name).cloned();
                head.extend(found);
            }
            Edit::Long(bytes) => head.push(field("long", &vec![b'l'; *bytes])),
        }
    }
    head
}

const TIMEOUTS: [&[u8]; 20] = [
    b"1H",
    b"99999999S",
    b"99999999H",
    b"5M",
    b"00000100S",
    b"100000000n",
    b"99999999n1",
    b"1",
    b"S",
    b"",
    b"1X",
    b"1s",
    b"-1S",
    b"+9S",
    b" 9S",
    b"9 S",
    b"1.5S",
    b"0x9S",
    b"9SS",
    b"\xff9S",
];
const CONTENT_TYPES: [&[u8]; 16] = [
    b"application/grpc",
    b"application/grpc+proto",
    b"application/grpc+json",
    b"application/grpc+",
    b"application/grpc;charset=utf-8",
    b"application/grpc;",
    b"application/grpcx",
    b"application/grpc ",
    b" application/grpc",
    b"Application/gRPC",
    b"application/grpc-web",
    b"application/json",
    b"text/plain",
    b"application",
    b"",
    b"\xff",
];
const METHODS: [&[u8]; 5] = [b"GET", b"PUT", b"post", b"", b"OPTIONS"];
const PATHS: [&[u8]; 16] = [
    b"/etcdserverpb.KV/Nothing",
    b"/etcdserverpb.Nothing/Range",
    b"/etcdserverpb.KV/range",
    b"/etcdserverpb.KV/Range/",
    b"/etcdserverpb.KV//Range",
    b"//etcdserverpb.KV/Range",
    b"/etcdserverpb.KV",
    b"etcdserverpb.KV/Range",
    b"/",
    b"//",
    b"*",
    b"x",
    b"",
    b"/etcdserverpb.KV/Range?x=1",
    b"/etcdserverpb%2eKV/Range",
    b"/etcdserverpb.KV/R\xc3\xa4nge",
];
const FIELDS: [(&str, &[u8]); 44] = [
    ("a(b", b"a"),
    ("a|b", b"a"),
    ("x", b"a\x01b"),
    ("token", b"x.1"),
    ("token", b""),
    ("authorization", b"x.1"),
    ("authorization", b"Bearer x"),
    ("hasleader", b"true"),
    ("hasleader", b"false"),
    ("client-api-version", b"3.7"),
    ("client-api-version", b"\xff\xfe"),
    ("client-api-version", b""),
    ("x-bin", b"aGVsbG8"),
    ("x-bin", b"aGVsbG8="),
    ("x-bin", b"!!!"),
    ("x-bin", b""),
    ("x-bin", b"\xff"),
    ("x", b"\xff\xfe"),
    ("x", b"a b\tc"),
    ("x", b" a "),
    ("x", b"a\0b"),
    ("x", b"a\nb"),
    ("x", b"a\rb"),
    ("x", b"a\x7fb"),
    ("X-Upper", b"a"),
    ("", b"a"),
    ("a b", b"a"),
    ("a:b", b"a"),
    (":late", b"a"),
    (":path", b"/etcdserverpb.KV/Range"),
    (":status", b"200"),
    ("host", b"other"),
    ("connection", b"close"),
    ("transfer-encoding", b"chunked"),
    ("te", b"gzip"),
    ("upgrade", b"h2c"),
    ("expect", b"100-continue"),
    ("grpc-encoding", b"identity"),
    ("grpc-encoding", b"zstd"),
    ("grpc-encoding", b""),
    ("grpc-accept-encoding", b"gzip"),
    ("grpc-previous-rpc-attempts", b"x"),
    ("grpc-tags-bin", b"!"),
    ("grpc-trace-bin", b"AAAA"),
];
const NAMES: [&str; 6] = [":method", ":scheme", ":path", ":authority", "content-type", "te"];
const PLAIN_PATHS: [(&str, &[u8]); 14] = [
    ("/grpc.health.v1.Health/Check", b""),
    ("/grpc.health.v1.Health/Check", b"\x0a\x0fetcdserverpb.KV"),
    ("/grpc.health.v1.Health/Check", b"\x0a\x01\xff"),
    ("/grpc.health.v1.Health/List", b""),
    ("/etcdserverpb.Maintenance/Hash", b""),
    ("/etcdserverpb.Maintenance/Defragment", b""),
    ("/etcdserverpb.Maintenance/Status", b""),
    ("/etcdserverpb.Cluster/MemberList", b"\x08\x01"),
    ("/etcdserverpb.Cluster/MemberList", b""),
    ("/etcdserverpb.Lease/LeaseLeases", b""),
    ("/etcdserverpb.Cluster/Nothing", b""),
    ("/etcdserverpb.Nothing/Nothing", b""),
    ("/no.Such/Thing", b"\xff"),
    ("/v3/kv/range", b"{}"),
];

/// The program of a seed.
pub(crate) fn program(seed: u64, length: usize) -> Vec<Step> {
    let mut prng = Prng::new(seed ^ 0x65_7175_616c);
    // Even programs name the ids of their leases, so that what is stored is the same.
    let ops = generate::program(seed.wrapping_mul(2), length);
    let mut steps = Vec::new();
    for (number, op) in ops.into_iter().enumerate() {
        if number % 60 == 59 {
            // An alarm may have been raised by what was altered.
            for (alarm, who) in
                [(1, Who::Asked), (2, Who::Asked), (1, Who::Nobody), (1, Who::Another)]
            {
                let asked = Asked::Alarm { action: 2, alarm, who };
                steps.push(Step::Call(Call { asked, alters: Vec::new(), dress: Dress::plain() }));
            }
        }
        steps.push(step(&mut prng, op));
    }
    steps
}

/// The kind of a step: its method, or what it is besides.
pub(crate) fn class(step: &Step) -> String {
    match step {
        Step::KeepAlive(..) => "renewals".to_owned(),
        Step::Watch(..) => "watches".to_owned(),
        Step::Call(call) => match &call.asked {
            Asked::Op(op) => {
                let text = format!("{op:?}");
                let end = text.find(|letter: char| !letter.is_alphanumeric());
                text[..end.unwrap_or(text.len())].to_owned()
            }
            Asked::Alarm { .. } => "Alarm".to_owned(),
            Asked::MoveLeader(_) => "MoveLeader".to_owned(),
            Asked::Path(..) => "other methods".to_owned(),
        },
    }
}

fn step(prng: &mut Prng, op: Op) -> Step {
    match prng.below(100) {
        0..3 => return watch(prng),
        3..6 => return keep_alive(prng),
        6..14 => {
            let asked = other(prng);
            return Step::Call(Call { asked, alters: alters(prng), dress: dress(prng, false) });
        }
        _ => {}
    }
    let asked = match op {
        Op::Watch(..)
        | Op::CancelWatch(..)
        | Op::Progress(_)
        | Op::EndStream(_)
        | Op::KeepAlive(_)
        | Op::NoSpace(_)
        | Op::Expire(_)
        | Op::GrantShort(_)
        | Op::Alarms => other(prng),
        op => Asked::Op(op),
    };
    let reads = matches!(
        asked,
        Asked::Op(Op::Range(_) | Op::Status | Op::Members(_) | Op::TimeToLive(_) | Op::Leases)
    );
    Step::Call(Call { asked, alters: alters(prng), dress: dress(prng, reads) })
}

fn other(prng: &mut Prng) -> Asked {
    let who = [Who::Nobody, Who::Asked, Who::Another][prng.index(3)];
    match prng.below(20) {
        // etcd dies of an action that does not exist.
        0..4 => {
            let action = [0, 0, 1, 2][prng.index(4)];
            Asked::Alarm { action, alarm: odd_enum(prng), who }
        }
        4 => Asked::MoveLeader(who),
        5 => Asked::Op(Op::HashKv(current(-2))),
        _ => {
            let (path, message) = PLAIN_PATHS[prng.index(PLAIN_PATHS.len())];
            Asked::Path(path, message)
        }
    }
}

fn odd_enum(prng: &mut Prng) -> i32 {
    [0, 0, 0, 1, 1, 2, 3, -1, i32::MAX][prng.index(9)]
}

fn alters(prng: &mut Prng) -> Vec<Alter> {
    let count = match prng.below(10) {
        0..4 => 0,
        4..8 => 1,
        _ => 2 + prng.index(2),
    };
    (0..count).map(|_| alter(prng)).collect()
}

fn alter(prng: &mut Prng) -> Alter {
    // Fields of fields are where most of a request is.
    let kind = if prng.chance(1, 4) { Kind::Inside } else { KINDS[prng.index(KINDS.len())] };
    Alter { kind, seed: prng.next_u64() }
}

fn dress(prng: &mut Prng, reads: bool) -> Dress {
    let mut dress = Dress::plain();
    if prng.chance(1, 4) {
        dress.edits = (0..=prng.index(2)).map(|_| edit(prng)).collect();
    }
    if reads && prng.chance(1, 30) {
        let late: &[u8] = [&b"0n"[..], b"1n", b"0S", b"1u", b"00000000H"][prng.index(5)];
        dress.edits = vec![Edit::Add("grpc-timeout", late)];
        dress.is_late = true;
    }
    if prng.chance(1, 5) {
        dress.envelope = envelope(prng);
        let says_so = matches!(
            dress.envelope,
            Envelope::Gzip | Envelope::BrokenGzip(_) | Envelope::FalseFlag(1)
        );
        if says_so && prng.chance(7, 8) {
            dress.edits.push(Edit::Add("grpc-encoding", b"gzip"));
        }
    }
    if prng.chance(1, 4) {
        dress.cut = Cut {
            data: [0, 1, 7, 1_000][prng.index(4)],
            head: prng.index(60),
            is_padded: prng.chance(1, 4),
            has_priority: prng.chance(1, 4),
            ends_apart: prng.chance(1, 2),
            never_ends: false,
        };
        // Without an end, what is not complete would be waited for.
        let is_whole = matches!(dress.envelope, Envelope::Plain | Envelope::Twice);
        dress.cut.never_ends = is_whole && prng.chance(1, 4);
    }
    // A call that ends with its head is never answered by etcd: it waits for more.
    dress.cut.ends_apart |= dress.envelope == Envelope::Nothing;
    dress
}

fn envelope(prng: &mut Prng) -> Envelope {
    match prng.below(12) {
        0..3 => Envelope::Gzip,
        3 => Envelope::BrokenGzip(prng.next_u64()),
        4 => Envelope::FalseFlag(1),
        5 => Envelope::FalseFlag([2, 3, 128, 255][prng.index(4)]),
        6 => Envelope::Longer([1, 5, 1_000, 1 << 20, u32::MAX][prng.index(5)]),
        7 => Envelope::Shorter(1 + u32::try_from(prng.below(4)).expect("small")),
        8 => Envelope::Nothing,
        9 => Envelope::Prefix(1 + prng.index(4)),
        _ => Envelope::Twice,
    }
}

fn edit(prng: &mut Prng) -> Edit {
    match prng.below(20) {
        0..5 => Edit::Add("grpc-timeout", TIMEOUTS[prng.index(TIMEOUTS.len())]),
        5..7 => Edit::Set("content-type", CONTENT_TYPES[prng.index(CONTENT_TYPES.len())]),
        7 => Edit::Set(":method", METHODS[prng.index(METHODS.len())]),
        8 => Edit::Set(":path", PATHS[prng.index(PATHS.len())]),
        9 => Edit::Drop(NAMES[prng.index(NAMES.len())]),
        10 => Edit::Double(NAMES[prng.index(NAMES.len())]),
        11 => Edit::Long([100, 3_000, 20_000][prng.index(3)]),
        12 => {
            let (name, value) = FIELDS[prng.index(FIELDS.len())];
            Edit::First(name, value)
        }
        13 => {
            let values: [(&str, &[u8]); 6] = [
                ("te", b"gzip"),
                ("te", b""),
                (":scheme", b"https"),
                (":scheme", b""),
                (":authority", b""),
                (":authority", b"a b"),
            ];
            let (name, value) = values[prng.index(6)];
            Edit::Set(name, value)
        }
        _ => {
            let (name, value) = FIELDS[prng.index(FIELDS.len())];
            Edit::Add(name, value)
        }
    }
}

fn keep_alive(prng: &mut Prng) -> Step {
    let count = 1 + prng.index(4);
    let renewals = (0..count)
        .map(|_| {
            let id = match prng.below(6) {
                0 => [0, -1, i64::MAX, i64::MIN][prng.index(4)],
                _ => super::program::lease(1 + u32::try_from(prng.below(12)).expect("small")),
            };
            (id, alters(prng))
        })
        .collect();
    Step::KeepAlive(long_dress(prng), renewals)
}

/// A dress for calls of many messages.
fn long_dress(prng: &mut Prng) -> Dress {
    let mut dress = dress(prng, false);
    dress.cut.never_ends = false;
    if !matches!(dress.envelope, Envelope::Gzip | Envelope::FalseFlag(_)) {
        dress.envelope = Envelope::Plain;
    }
    dress
}

fn watch(prng: &mut Prng) -> Step {
    let seed = prng.next_u64() | 1;
    let mut acts = Vec::new();
    for op in generate::program(seed << 1, 200) {
        let alters = if prng.chance(1, 3) { alters(prng) } else { Vec::new() };
        match op {
            Op::Watch(_, request) => {
                acts.push(WatchAct::Ask(Some(RequestUnion::CreateRequest(request)), alters));
            }
            Op::CancelWatch(_, watch_id) => {
                let request = pb::WatchCancelRequest { watch_id };
                acts.push(WatchAct::Ask(Some(RequestUnion::CancelRequest(request)), alters));
            }
            Op::Progress(_) => {
                let request = pb::WatchProgressRequest {};
                acts.push(WatchAct::Ask(Some(RequestUnion::ProgressRequest(request)), alters));
            }
            Op::EndStream(_) => acts.push(WatchAct::Ask(None, alters)),
            Op::Put(_) | Op::Delete(_) if prng.chance(1, 8) => acts.push(WatchAct::Do(op)),
            Op::Txn(ref request) if prng.chance(1, 12) && !has_lease(request) => {
                acts.push(WatchAct::Do(op));
            }
            _ => {}
        }
        if acts.len() > 10 {
            break;
        }
    }
    let mut dress = long_dress(prng);
    dress.cut.ends_apart = false;
    Step::Watch(dress, acts)
}

/// Another program's leases mean nothing in this one.
fn has_lease(request: &pb::TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).any(|op| match &op.request {
        Some(Request::RequestPut(put)) => put.lease != 0,
        Some(Request::RequestTxn(nested)) => has_lease(nested),
        _ => false,
    })
}
