//! What a seed decides once, before anything runs: how large the world is, how fast its parts are,
//! and what goes wrong how often.
//!
//! Made by [`Plan::from_seed`]; tests may change a plan before it is run. About half of all kinds
//! of faults are off in any one seed, so that each kind is met alone as well as among others. One
//! seed in six has troubles of one member at a time instead, see [`hardships`].

use etcore_engine::testing::prng::Prng;

use super::hardships::{self, Planned};

/// A span that values are drawn from, ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Least.
    pub from: u64,
    /// Most.
    pub to: u64,
}

impl Span {
    /// From the one to the other.
    pub const fn new(from: u64, to: u64) -> Self {
        Self { from, to }
    }

    /// One value. The lower end is common, the upper rare, as with latencies.
    pub fn draw(&self, prng: &mut Prng) -> u64 {
        let width = self.to - self.from + 1;
        let first = prng.below(width);
        self.from + first.min(prng.below(width)).min(prng.below(width))
    }
}

/// Kinds of faults, with how many happen in ten virtual seconds; 0 for never.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rates {
    /// A member's process dies; what it gave to the kernel stays.
    pub kills: u64,
    /// A member's machine loses power: what was not synced may be lost, torn, out of order.
    pub power_cuts: u64,
    /// A member is told to stop, and stops in good order.
    pub terminations: u64,
    /// A member's process stands still for a while.
    pub pauses: u64,
    /// A connection breaks.
    pub cuts: u64,
    /// A connection carries nothing for a while.
    pub stalls: u64,
    /// Some members cannot reach some others, one way or both, for a while.
    pub partitions: u64,
    /// A member's disk stands still for a while.
    pub disk_stalls: u64,
    /// A member's disk fails one operation.
    pub disk_errors: u64,
    /// A member's disk is full for a while.
    pub disk_full: u64,
    /// For a while a member's disk returns some pages damaged, or not at all.
    pub rot: u64,
    /// A member's monotonic clock stands still for a while, as that of a suspended machine does;
    /// the member stands still too, or runs on.
    pub clock_stops: u64,
    /// A member's time of day jumps, either way.
    pub wall_steps: u64,
}

impl Rates {
    /// About half of them none, the others low more often than high.
    fn drawn(prng: &mut Prng, members: usize) -> Self {
        let mut maybe = |most: u64| match prng.below(4) {
            0 | 1 => 0,
            2 => 1 + prng.below(most.div_ceil(4)),
            _ => 1 + prng.below(most),
        };
        Self {
            kills: maybe(12),
            power_cuts: maybe(12),
            terminations: maybe(6),
            pauses: maybe(12),
            cuts: maybe(40),
            stalls: maybe(20),
            partitions: if members > 1 { maybe(8) } else { 0 },
            disk_stalls: maybe(12),
            disk_errors: maybe(6),
            disk_full: maybe(4),
            rot: maybe(4),
            clock_stops: maybe(8),
            wall_steps: maybe(8),
        }
    }
}

impl Rates {
    /// All of them, in the order of their names above.
    pub fn all(&self) -> [u64; 13] {
        [
            self.kills,
            self.power_cuts,
            self.terminations,
            self.pauses,
            self.cuts,
            self.stalls,
            self.partitions,
            self.disk_stalls,
            self.disk_errors,
            self.disk_full,
            self.rot,
            self.clock_stops,
            self.wall_steps,
        ]
    }
}

/// See the module text. Times are nanoseconds unless a name says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Everything else is drawn from it.
    pub seed: u64,
    /// How many members.
    pub members: usize,
    /// Machines beside theirs, on which members may join later; members are removed then too.
    pub joiners: usize,
    /// Members refuse what would cost their quorum.
    pub strict: bool,
    /// Fronts of each.
    pub fronts: usize,
    /// The replica shares front 0's thread.
    pub shares_thread: bool,
    /// Clients that ask.
    pub clients: usize,
    /// Clients that watch.
    pub watchers: usize,
    /// Clients that keep a lease.
    pub keepers: usize,
    /// Hostile clients.
    pub intruders: usize,
    /// Keys that clients ask about.
    pub keys: u64,
    /// Bytes that values are filled up to.
    pub value_bytes: Span,
    /// Between two requests of a client.
    pub think: Span,
    /// For how long faults happen.
    pub trouble: u64,
    /// How long everything may take to work again after the last fault.
    pub heal: u64,
    /// Leases are used.
    pub leases: bool,
    /// So many more of a thousand requests are about leases.
    pub more_leases: u64,
    /// Members' clocks run faster or slower by up to this, in millionths.
    pub drift: u64,
    /// One way between a client and a member.
    pub client_latency: Span,
    /// One way between two members.
    pub peer_latency: Span,
    /// An operation of the disk.
    pub disk_latency: Span,
    /// How much longer an operation on a copy of another member's page file takes.
    pub copy_latency: Span,
    /// From the moment a shard could run until it does.
    pub wake_latency: Span,
    /// A round of a shard.
    pub round: Span,
    /// So many of a hundred fronts and replicas have all pages in memory.
    pub warm_percent: u64,
    /// Pages that a replica keeps in memory.
    pub replica_pages: usize,
    /// Length of a segment of the log in bytes.
    pub segment_bytes: u64,
    /// Entries that the log keeps for slow peers.
    pub catchup_entries: u64,
    /// A checkpoint is due after so long, in milliseconds.
    pub checkpoint_ms: u64,
    /// For how long a member is down.
    pub down: Span,
    /// So many of a hundred power cuts come while the log or a checkpoint is being written, and
    /// the log's again soon after the start.
    pub torn_percent: u64,
    /// So many of a thousand operations on copies of other members' page files are cut off.
    pub copy_cuts: u64,
    /// So many of a hundred power cuts damage the newest meta page.
    pub meta_rot_percent: u64,
    /// So many of a thousand starts are cut off in the middle.
    pub start_crashes: u64,
    /// In the end a member is cut off until no log reaches back to it, over links with a round
    /// trip, and must follow again under load.
    pub far_behind: bool,
    /// Faults.
    pub rates: Rates,
    /// Bytes a second that a connection between members carries; 0 if that has no bound.
    pub peer_bytes_per_s: u64,
    /// Troubles of one member at a time, instead of faults.
    pub hardships: Vec<Planned>,
}

const US: u64 = 1000;
const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;

impl Plan {
    /// Machines that members may run on.
    pub fn machines(&self) -> usize {
        self.members + self.joiners
    }

    /// The plan of a seed, for so many members if the seed is not to choose.
    pub fn from_seed(seed: u64, members: Option<usize>) -> Self {
        let mut prng = Prng::new(seed ^ 0x5157_4d11);
        let drawn = [1, 1, 2, 3, 3, 3, 3, 4, 5, 5, 6, 7, 7][prng.index(13)];
        let members = members.unwrap_or(drawn);
        let rates = Rates::drawn(&mut prng, members);
        let fronts = [1, 1, 1, 2, 3][prng.index(5)];
        let slow_disk = prng.chance(1, 4);
        let leases = prng.chance(1, 2);
        // From elsewhere, so that the other seeds are as they were.
        let far_behind = members >= 3 && Prng::new(seed ^ 0x6265_6869).chance(1, 12);
        let mut plan = Self {
            seed,
            members,
            joiners: 0,
            strict: true,
            fronts,
            shares_thread: fronts == 1 && prng.chance(2, 3),
            clients: 2 + prng.index(7),
            watchers: prng.index(4),
            keepers: if leases { prng.index(3) } else { 0 },
            // From elsewhere, so that the rest of a seed is as it was before there were any.
            intruders: [0, 0, 0, 0, 0, 0, 1, 2][Prng::new(seed ^ 0x686f_7374).index(8)],
            keys: [1, 3, 8, 24, 100][prng.index(5)],
            value_bytes: [Span::new(8, 32), Span::new(8, 400), Span::new(8, 20_000)][prng.index(3)],
            think: [Span::new(0, 500 * US), Span::new(0, 20 * MS), Span::new(0, 200 * MS)]
                [prng.index(3)],
            trouble: 2 * S + prng.below(8 * S),
            heal: 40 * S,
            leases,
            more_leases: [0, 0, 300][prng.index(3)],
            drift: [0, 0, 200, 20_000][prng.index(4)],
            client_latency: [Span::new(20 * US, 200 * US), Span::new(100 * US, 20 * MS)]
                [prng.index(2)],
            peer_latency: [Span::new(20 * US, 200 * US), Span::new(100 * US, 30 * MS)]
                [prng.index(2)],
            disk_latency: if slow_disk {
                Span::new(MS, 80 * MS)
            } else {
                Span::new(50 * US, 2 * MS)
            },
            copy_latency: Span::new(0, 0),
            wake_latency: [Span::new(US, 20 * US), Span::new(US, 3 * MS)][prng.index(2)],
            round: [Span::new(5 * US, 50 * US), Span::new(5 * US, 2 * MS)][prng.index(2)],
            warm_percent: [0, 50, 100][prng.index(3)],
            replica_pages: [8, 64, 4096][prng.index(3)],
            down: [Span::new(0, 20 * MS), Span::new(0, 2 * S), Span::new(0, 5 * S)][prng.index(3)],
            torn_percent: [0, 30, 80][prng.index(3)],
            copy_cuts: [0, 0, 30, 150][prng.index(4)],
            meta_rot_percent: [0, 30, 80][prng.index(3)],
            segment_bytes: [64 << 10, 64 << 10, 256 << 10, 1 << 20][prng.index(4)],
            catchup_entries: [2, 2, 2, 50, 5000][prng.index(5)],
            checkpoint_ms: [20, 100, 500, 500][prng.index(4)],
            start_crashes: [0, 0, 100, 400][prng.index(4)],
            far_behind,
            rates,
            peer_bytes_per_s: 0,
            hardships: Vec::new(),
        };
        if plan.far_behind {
            plan = plan.with_a_fast_log();
        } else if Prng::new(seed ^ 0x7469_6d65).chance(1, 6) {
            hardships::harden(&mut plan);
        } else {
            // From elsewhere, so that the other seeds are as they were.
            let mut own = Prng::new(seed ^ 0x6a6f_696e);
            if own.chance(1, 5) {
                plan.joiners = 1 + own.index(3);
                plan.strict = own.chance(1, 2);
            }
        }
        plan
    }

    /// Clients write much, the log keeps little of it, and members are far apart.
    fn with_a_fast_log(self) -> Self {
        Self {
            clients: 8,
            keys: 100,
            value_bytes: Span::new(2000, 20_000),
            think: Span::new(0, 2 * MS),
            client_latency: Span::new(20 * US, 200 * US),
            peer_latency: Span::new(10 * MS, 11 * MS),
            disk_latency: Span::new(50 * US, 2 * MS),
            copy_latency: Span::new(20 * MS, 60 * MS),
            segment_bytes: 64 << 10,
            catchup_entries: 2,
            checkpoint_ms: 100,
            ..self
        }
    }
}
