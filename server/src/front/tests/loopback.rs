//! Connections whose client is in the same process.

use super::*;

/// Hands bytes to and fro until nothing more comes, and returns what each call ended with.
fn exchange(rig: &mut Rig, client: &mut Client, id: ConnId) -> Vec<(u64, String)> {
    let mut ended = Vec::new();
    for _ in 0..10 {
        let mut bytes = Vec::new();
        client.poll_transmit(&mut bytes, usize::MAX);
        if !bytes.is_empty() {
            rig.front.wire.received(id, &bytes);
            rig.front.handle_events(id);
        }
        rig.turn();
        let unread = rig.front.wire.take_unread(id);
        client.receive(&unread, rig.now_ms).unwrap();
        while let Some(event) = client.next_event() {
            match event {
                ClientEvent::Response { user, .. } => ended.push((user, String::new())),
                ClientEvent::Status { user, message, .. } => ended.push((user, message)),
                _ => {}
            }
        }
    }
    ended
}

#[test]
fn a_client_within_the_process_is_served_like_any_other() {
    let mut rig = Rig::new();
    let id = rig.front.wire.connect(&door(Serves::Everything));
    let mut client = Client::new(ClientConfig::default(), &Budget::new(8 << 30, 8 << 30));
    let member_list = client.method("/etcdserverpb.Cluster/MemberList");
    let unknown = client.method("/etcdserverpb.KV/Nothing");
    let request = pb::MemberListRequest { linearizable: false }.encode_to_vec();
    let options = |user| CallOptions { user, ..CallOptions::default() };
    client.start_unary(member_list, &options(1), &request).unwrap();
    client.start_unary(unknown, &options(2), b"").unwrap();
    let mut ended = exchange(&mut rig, &mut client, id);
    ended.sort();
    let refusal = "unknown method Nothing for service etcdserverpb.KV".to_owned();
    assert_eq!(ended, [(1, String::new()), (2, refusal)]);
    assert!(rig.driver.sends.is_empty(), "no socket has seen anything");
    assert_eq!(rig.connections(), 0, "it takes no client's place");
}
