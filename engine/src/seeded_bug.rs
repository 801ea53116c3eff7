//! Faults put in on purpose, for the simulator to find.
//!
//! Without the cargo feature `seeded-bugs` every question here is a constant false, and the
//! compiler leaves the faults out. With it, the simulator switches one on for its thread, and none
//! is made anywhere else. The tests of the server are built so; a member that serves never is. Each
//! fault is named where it is put in.

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeededBug {
    /// The log counts a write as durable when it is handed over.
    AnswerBeforeSync,
    /// A vote is not written.
    VoteForgotten,
    /// A checkpoint says one entry less than it contains.
    ApplyAgainAfterRestart,
    /// A linearizable read does not wait for what was committed before it.
    StaleReadIndex,
    /// A lease is revoked a quarter of its time too early.
    LeaseEndsEarly,
    /// A page that somebody may still read is overwritten.
    PinnedPageReused,
    /// A record of a torn write, a sector of which is missing, is taken for whole.
    TornTailTaken,
    /// A checkpoint forgets who the members are.
    ConfStateForgotten,
    /// A response of a watch is dropped now and then.
    WatchBatchDropped,
    /// A checkpoint's meta page is written before its pages are synced.
    MetaBeforePages,
    /// The log is released up to the newest checkpoint instead of the one before, and without
    /// waiting for the mark that says so.
    LogReleasedEarly,
    /// What a killed process left unsynced is built upon.
    UnsyncedTailTrusted,
    /// A front answers from the view that it had before it slept.
    OldViewServed,
    /// A lease is revoked by a member that no longer leads.
    LeaseRevokedByFollower,
    /// A follower answers the leader before its own sync.
    FollowerAnswersBeforeSync,
    /// A compaction is forgotten by the checkpoint.
    CompactionForgotten,
    /// A leader applies, publishes and answers what the others may not have.
    PublishBeforeCommit,
    /// A leader that is behind renews a lease though its end is on its way through the log.
    EndingLeaseRenewed,
    /// A leader answers for leases without asking whether it still leads.
    LeaseAnsweredUnconfirmed,
    /// What was given to a leader that died is waited for until its time is up.
    LostProposalsWaitOn,
    /// A leader whose disk hangs leads on.
    HungLeaderLeadsOn,
    /// A follower does not look at whether the process of its leader is dead.
    DeadLeaderUnnoticed,
    /// A follower asks its leader about one lease at a time.
    RenewalsOneByOne,
    /// A leader does not keep its log for a member that receives a snapshot.
    SnapshotLogReleased,
    /// A member that was removed goes on counting for the quorum.
    QuorumOfOldMembers,
    /// A checkpoint holds the configuration that the cluster was founded with.
    ConfStateOutdated,
    /// A candidate counts a vote of a member that was removed.
    RemovedVoteCounted,
}

impl SeededBug {
    /// All of them.
    pub const ALL: [Self; 27] = [
        Self::AnswerBeforeSync,
        Self::VoteForgotten,
        Self::ApplyAgainAfterRestart,
        Self::StaleReadIndex,
        Self::LeaseEndsEarly,
        Self::PinnedPageReused,
        Self::TornTailTaken,
        Self::ConfStateForgotten,
        Self::WatchBatchDropped,
        Self::MetaBeforePages,
        Self::LogReleasedEarly,
        Self::UnsyncedTailTrusted,
        Self::OldViewServed,
        Self::LeaseRevokedByFollower,
        Self::FollowerAnswersBeforeSync,
        Self::CompactionForgotten,
        Self::PublishBeforeCommit,
        Self::EndingLeaseRenewed,
        Self::LeaseAnsweredUnconfirmed,
        Self::LostProposalsWaitOn,
        Self::HungLeaderLeadsOn,
        Self::DeadLeaderUnnoticed,
        Self::RenewalsOneByOne,
        Self::SnapshotLogReleased,
        Self::QuorumOfOldMembers,
        Self::ConfStateOutdated,
        Self::RemovedVoteCounted,
    ];
}

#[cfg(feature = "seeded-bugs")]
std::thread_local! {
    static CURRENT: std::cell::Cell<Option<SeededBug>> = const { std::cell::Cell::new(None) };
}

/// Switches a fault on for this thread, or all off.
#[cfg(feature = "seeded-bugs")]
pub fn switch(mutation: Option<SeededBug>) {
    CURRENT.set(mutation);
}

/// True if the fault is to be made.
#[cfg(feature = "seeded-bugs")]
pub fn is_on(mutation: SeededBug) -> bool {
    CURRENT.get() == Some(mutation)
}

/// True if the fault is to be made: never.
#[cfg(not(feature = "seeded-bugs"))]
#[inline(always)]
pub const fn is_on(_: SeededBug) -> bool {
    false
}
