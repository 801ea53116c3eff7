//! KeepAlive streams at a front whose replica is played by the test.

use etcore_proto::error::EtcdError;
use etcore_proto::grpc::StreamId;

use super::*;
use crate::channel::{LeaseAnswer, LeaseQuery, Slot};

impl Caller {
    fn keep_alive(&mut self, user: u64, metadata: &[(&str, &[u8])]) -> StreamId {
        let method = self.client.method("/etcdserverpb.Lease/LeaseKeepAlive");
        let options = CallOptions { user, metadata, ..Default::default() };
        self.client.start_stream(method, &options).unwrap()
    }

    fn renew(&mut self, stream: StreamId, id: i64) {
        let message = pb::LeaseKeepAliveRequest { id }.encode_to_vec();
        self.client.send_message(stream, &message).unwrap();
    }

    /// IDs and TTLs of the renewals answered so far.
    fn renewed(&self) -> Vec<(i64, i64)> {
        let decode = |message: &Vec<u8>| pb::LeaseKeepAliveResponse::decode(&message[..]).unwrap();
        self.messages.iter().map(decode).map(|answer| (answer.id, answer.ttl)).collect()
    }
}

impl Rig {
    /// What was asked since the last call.
    fn asked(&mut self) -> Vec<(Slot, i64)> {
        let id = |ask: LeaseRequest| match ask.query {
            LeaseQuery::Renew { id } => (ask.slot, id),
            query => panic!("{query:?}"),
        };
        std::iter::from_fn(|| self.lessor.pop()).map(id).collect()
    }

    fn answer(&mut self, slot: Slot, ttl_s: i64) {
        let answer = LeaseAnswer::Renewed { ttl_s };
        assert!(self.to_front.push(ToFront::Lease { slot, answer }).is_ok());
    }
}

#[test]
fn renewals_of_a_stream_are_answered_in_their_order() {
    let mut rig = Rig::new();
    let mut caller = rig.client();
    let stream = caller.keep_alive(1, &[]);
    (1..=3).for_each(|id| caller.renew(stream, id));
    caller.exchange(&mut rig);
    let asked = rig.asked();
    assert_eq!(asked.iter().map(|(_, id)| *id).collect::<Vec<_>>(), [1, 2, 3]);
    rig.answer(asked[1].0, 0);
    rig.answer(asked[2].0, 30);
    caller.exchange(&mut rig);
    assert!(caller.renewed().is_empty(), "the first is not known yet");
    rig.answer(asked[0].0, 10);
    caller.client.half_close(stream).unwrap();
    caller.exchange(&mut rig);
    assert_eq!(caller.renewed(), [(1, 10), (2, 0), (3, 30)]);
    assert_eq!(caller.answers, [(1, String::new())], "the stream ended well");
    assert!(rig.front.services.is_idle());
}

#[test]
fn a_client_that_asks_and_asks_finds_its_window_shut() {
    let mut rig = Rig::new();
    let mut caller = rig.client();
    let stream = caller.keep_alive(1, &[]);
    let total = 20_000;
    (1..=total).for_each(|id| caller.renew(stream, id));
    caller.exchange(&mut rig);
    let mut asked = rig.asked();
    let window = 65_535 / 7;
    assert!(asked.len() >= limits::KEEP_ALIVES_PER_STREAM);
    assert!(asked.len() <= limits::KEEP_ALIVES_PER_STREAM + window, "{} at once", asked.len());
    while !asked.is_empty() {
        for (slot, id) in std::mem::take(&mut asked) {
            rig.answer(slot, id);
            if rig.to_front.room() == 0 {
                caller.exchange(&mut rig);
            }
        }
        caller.exchange(&mut rig);
        asked = rig.asked();
    }
    let expected: Vec<(i64, i64)> = (1..=total).map(|id| (id, id)).collect();
    assert!(caller.renewed() == expected, "{} answers", caller.renewed().len());
    assert!(rig.front.services.is_idle());
}

#[test]
fn renewals_beyond_the_bound_of_a_front_end_their_stream() {
    let mut rig = Rig::new();
    let mut caller = rig.client();
    let per_stream = limits::KEEP_ALIVES_PER_STREAM;
    let streams = limits::KEEP_ALIVES / per_stream;
    for user in 0..streams as u64 {
        let stream = caller.keep_alive(user, &[]);
        (0..per_stream as i64).for_each(|id| caller.renew(stream, id));
        caller.exchange(&mut rig);
        rig.asked();
    }
    assert!(caller.answers.is_empty());
    let stream = caller.keep_alive(1 << 32, &[]);
    caller.renew(stream, 1);
    caller.exchange(&mut rig);
    assert_eq!(caller.answers, [(1 << 32, EtcdError::TooManyRequests.text().to_owned())]);
}

#[test]
fn a_cancelled_stream_and_a_closed_connection_leave_nothing_behind() {
    let mut rig = Rig::new();
    let mut caller = rig.client();
    let cancelled = caller.keep_alive(1, &[]);
    caller.renew(cancelled, 1);
    let other = caller.keep_alive(2, &[]);
    caller.renew(other, 2);
    caller.exchange(&mut rig);
    let asked = rig.asked();
    caller.client.cancel(cancelled);
    caller.exchange(&mut rig);
    rig.answer(asked[0].0, 10);
    caller.exchange(&mut rig);
    assert!(caller.renewed().is_empty(), "a late answer finds nobody");
    rig.front.disconnected(caller.socket, None);
    rig.turn();
    assert!(rig.front.services.is_idle());
    rig.answer(asked[1].0, 10);
    rig.turn();
}

#[test]
fn without_a_leader_renewals_wait_and_then_say_why_nothing_came() {
    let mut rig = Rig::new();
    let mut caller = rig.client();
    let refused = caller.keep_alive(1, &[("hasleader", b"true")]);
    caller.exchange(&mut rig);
    assert_eq!(caller.answers, [(1, EtcdError::NoLeader.text().to_owned())], "{refused:?}");
    caller.answers.clear();
    let patient = caller.keep_alive(2, &[]);
    caller.renew(patient, 7);
    rig.front.shared.status.leader.store(1, Ordering::Relaxed);
    let led = caller.keep_alive(3, &[("hasleader", b"true")]);
    caller.exchange(&mut rig);
    rig.now_ms += 200;
    caller.exchange(&mut rig);
    rig.front.shared.status.leader.store(0, Ordering::Relaxed);
    rig.now_ms += 2500;
    caller.exchange(&mut rig);
    assert!(caller.answers.is_empty(), "three elections may take so long, {led:?}");
    rig.now_ms += 1000;
    caller.exchange(&mut rig);
    assert_eq!(caller.answers, [(3, EtcdError::NoLeader.text().to_owned())]);
    rig.now_ms += 5000;
    caller.exchange(&mut rig);
    assert_eq!(caller.answers.last(), Some(&(2, EtcdError::NoLeader.text().to_owned())));
    assert!(rig.front.services.is_idle());
}

#[test]
fn a_stop_answers_what_was_asked_and_ends_the_streams() {
    let mut rig = Rig::new();
    let mut caller = rig.client();
    let idle = caller.keep_alive(1, &[]);
    let busy = caller.keep_alive(2, &[]);
    caller.renew(busy, 5);
    caller.exchange(&mut rig);
    let asked = rig.asked();
    rig.front.shared.stop();
    caller.exchange(&mut rig);
    let stopped = EtcdError::Stopped.text().to_owned();
    assert_eq!(caller.answers, [(1, stopped.clone())], "{idle:?}");
    rig.answer(asked[0].0, 60);
    caller.exchange(&mut rig);
    assert_eq!(caller.renewed(), [(5, 60)]);
    assert_eq!(caller.answers.last(), Some(&(2, stopped)));
    caller.exchange(&mut rig);
    assert!(rig.front.is_stopped());
}
