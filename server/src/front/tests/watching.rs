//! Watch streams at a front: what ends them besides their clients.

use etcore_proto::error::EtcdError;
use etcore_proto::grpc::StreamId;
use pb::watch_request::RequestUnion;

use super::*;

impl Caller {
    fn watch(&mut self, user: u64, metadata: &[(&str, &[u8])]) -> StreamId {
        let method = self.client.method("/etcdserverpb.Watch/Watch");
        let options = CallOptions { user, metadata, ..Default::default() };
        let stream = self.client.start_stream(method, &options).unwrap();
        let create = pb::WatchCreateRequest { key: "k".into(), ..Default::default() };
        let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        self.client.send_message(stream, &request.encode_to_vec()).unwrap();
        stream
    }
}

#[test]
fn streams_that_want_a_leader_end_after_three_elections_without_one() {
    let mut rig = Rig::new();
    let mut caller = rig.client();
    let wants: [(&str, &[u8]); 1] = [("hasleader", b"true")];
    rig.front.shared.status.leader.store(0, Ordering::Relaxed);
    caller.watch(1, &wants);
    caller.exchange(&mut rig);
    let no_leader = EtcdError::NoLeader.text().to_owned();
    assert_eq!(caller.answers, [(1, no_leader.clone())], "refused at once");
    rig.front.shared.status.leader.store(1, Ordering::Relaxed);
    caller.watch(2, &wants);
    caller.watch(3, &[]);
    caller.exchange(&mut rig);
    assert_eq!((caller.answers.len(), caller.messages.len()), (1, 2));
    let wait = |rig: &mut Rig, caller: &mut Caller, ms: u64| {
        for _ in 0..ms / 100 {
            rig.now_ms += 100;
            caller.exchange(rig);
        }
        caller.answers.len()
    };
    // A leader that comes back in time changes nothing.
    rig.front.shared.status.leader.store(0, Ordering::Relaxed);
    assert_eq!(wait(&mut rig, &mut caller, 2_900), 1);
    rig.front.shared.status.leader.store(1, Ordering::Relaxed);
    wait(&mut rig, &mut caller, 200);
    rig.front.shared.status.leader.store(0, Ordering::Relaxed);
    assert_eq!(wait(&mut rig, &mut caller, 2_900), 1);
    assert_eq!(wait(&mut rig, &mut caller, 400), 2);
    assert_eq!(caller.answers[1], (2, no_leader));
    assert_eq!(rig.front.shared.metrics.watch_streams.get(), 1, "the other one stays");
}

#[test]
fn a_message_that_is_none_ends_its_stream() {
    let mut rig = Rig::new();
    let mut caller = rig.client();
    let stream = caller.watch(1, &[]);
    caller.client.send_message(stream, b"\x0a\xff").unwrap();
    caller.exchange(&mut rig);
    assert_eq!(caller.answers.len(), 1);
    assert!(caller.answers[0].1.starts_with("grpc: failed to unmarshal the received message"));
    rig.turn();
    assert_eq!(rig.front.shared.metrics.watch_streams.get(), 0);
    assert_eq!(rig.front.shared.metrics.watchers.get(), 0);
}

#[test]
fn a_stop_ends_watches_and_a_connection_that_closes_leaves_none() {
    let mut rig = Rig::new();
    let mut gone = rig.client();
    gone.watch(1, &[]);
    gone.exchange(&mut rig);
    rig.front.disconnected(gone.socket, None);
    rig.turn();
    rig.turn();
    assert_eq!(rig.front.shared.metrics.watch_streams.get(), 0);
    assert!(!rig.front.shared.watching[0].load(Ordering::Relaxed));
    let mut caller = rig.client();
    caller.watch(2, &[]);
    caller.exchange(&mut rig);
    assert!(rig.front.shared.watching[0].load(Ordering::Relaxed));
    rig.front.shared.stop();
    caller.exchange(&mut rig);
    assert_eq!(caller.answers, [(2, EtcdError::Stopped.text().to_owned())]);
}
