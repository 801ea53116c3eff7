//! Feature gate InitialCorruptCheck: a member that starts with data compares them with the other
//! members' before it serves anybody (etcd `server/etcdserver/corrupt.go`, InitialCheck).
//!
//! Called once, before the threads run, so it may wait: for its own hash, and for each peer URL as
//! long as for a request. A new member has nothing to compare. Whoever cannot be asked is told of
//! and proves nothing.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use etcore_engine::hash::KvHash;
use etcore_proto::gotext::format_duration;

use super::{Recovered, remote};
use crate::background::hasher::{Hasher, Job};
use crate::channel::{HashAnswers, HashRequester, Shared};
use crate::cluster::hashkv::{self, NoHash};
use crate::cluster::member::Member;
use crate::driver::Waker;

/// How often the hasher's answer is looked for.
const LOOK: Duration = Duration::from_millis(2);

/// Compares, if the gate is open.
///
/// # Errors
/// One line, if a member has other data at the same revision and compaction.
pub(super) fn check(
    shared: &Shared,
    recovered: &Recovered,
    hasher: &Hasher,
    waker: &Waker,
) -> Result<(), String> {
    if !shared.config.feature_gates.initial_corrupt_check || recovered.is_new {
        return Ok(());
    }
    let timeout = Duration::from_millis(shared.config.request_timeout_ms());
    let id = format!("{:x}", shared.member_id);
    tracing::info!(
        local_member_id = %id,
        timeout = %format_duration(timeout),
        "starting initial corruption check"
    );
    let own =
        own_hash(hasher, waker).map_err(|why| format!("{id} failed to fetch hash ({why})"))?;
    let mut others = Member::all_in(&recovered.stored.store);
    others.retain(|member| member.id != shared.member_id);
    // All at once: members that start together do not answer each other yet.
    let differs = std::thread::scope(|scope| {
        let own = &own;
        let ask = |member| scope.spawn(move || !is_same(shared, own, member, timeout));
        let asked: Vec<_> = others.iter().map(ask).collect();
        asked.into_iter().filter_map(|thread| thread.join().ok()).filter(|differs| *differs).count()
    });
    if differs > 0 {
        return Err(format!("{id} found data inconsistency with peers"));
    }
    tracing::info!(local_member_id = %id, "initial corruption checking passed; no corruption");
    Ok(())
}

fn own_hash(hasher: &Hasher, waker: &Waker) -> Result<KvHash, String> {
    let answers: HashAnswers = Arc::new(ArrayQueue::new(1));
    let reply = HashRequester { slot: 0, answers: answers.clone(), waker: waker.clone() };
    if hasher.submit(Job::ByRevision { revision: 0, reply }).is_err() {
        return Err("the hasher takes no job".to_owned());
    }
    loop {
        match answers.pop() {
            Some((_, Ok((hash, _)))) => return Ok(hash),
            Some((_, Err(status))) => return Err(status.message.into_owned()),
            None => std::thread::sleep(LOOK),
        }
    }
}

/// False if the member has other data at the same point.
fn is_same(shared: &Shared, own: &KvHash, member: &Member, timeout: Duration) -> bool {
    let mut outcome = Err(NoHash::NoResponse);
    for url in &member.peer_urls {
        let question = remote::Question {
            path: hashkv::PATH,
            cluster: shared.cluster_id,
            body: &hashkv::question(own.revision.0),
            timeout,
        };
        outcome = remote::ask(url, &shared.tls, &question)
            .map_or(Err(NoHash::NoResponse), |answer| hashkv::read(answer.status, &answer.body));
        match &outcome {
            Ok(_) => break,
            Err(error) => tracing::warn!(
                local_member_id = %format_args!("{:x}", shared.member_id),
                requested_revision = own.revision.0,
                remote_peer_endpoint = %url,
                error = %error,
                "failed hash kv request"
            ),
        }
    }
    // The two lines about other hashes differ in their words alone.
    macro_rules! tell {
        ($text:literal, $hash:expr) => {
            tracing::warn!(
                local_member_id = %format_args!("{:x}", shared.member_id),
                local_member_revision = own.revision.0,
                local_member_compact_revision = own.compact_revision.0,
                local_member_hash = own.hash,
                remote_peer_id = %format_args!("{:x}", member.id),
                remote_peer_endpoints = %member.peer_urls.join(","),
                remote_peer_revision = $hash.newest,
                remote_peer_compact_revision = $hash.compact_revision,
                remote_peer_hash = $hash.hash,
                $text
            )
        };
    }
    match outcome {
        Ok(hash) if hash.hash == own.hash => true,
        Ok(hash) if hash.compact_revision == own.compact_revision.0 => {
            tell!("found different hash values from remote peer", hash);
            false
        }
        Ok(hash) => {
            tell!("found different compact revision values from remote peer", hash);
            true
        }
        Err(NoHash::Future) => tell_unasked(member, own, "cannot fetch hash from slow remote peer"),
        Err(NoHash::Compacted) => {
            let why = "cannot fetch hash from remote peer; local member is behind";
            tell_unasked(member, own, why)
        }
        Err(NoHash::OtherCluster) => tell_unasked(member, own, "cluster ID mismatch"),
        Err(NoHash::Unknown(_) | NoHash::NoResponse) => true,
    }
}

/// Says why a member proves nothing.
fn tell_unasked(member: &Member, own: &KvHash, why: &str) -> bool {
    tracing::warn!(
        local_member_revision = own.revision.0,
        local_member_compact_revision = own.compact_revision.0,
        local_member_hash = own.hash,
        remote_peer_id = %format_args!("{:x}", member.id),
        remote_peer_endpoints = %member.peer_urls.join(","),
        "{why}"
    );
    true
}
