//! The Election service over gRPC and JSON: campaigns that wait, and what observers are told. What
//! it answers is held against etcd in `json.rs`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use etcore_proto::pb::etcdserverpb as pb;
use etcore_proto::pb::v3electionpb as epb;

use super::json::request;
use crate::harness::{Client, Setup, block_on, turn};

async fn campaign(
    client: &Client,
    lease: i64,
    value: &'static str,
) -> Result<epb::CampaignResponse, tonic::Status> {
    let request = epb::CampaignRequest { name: "e".into(), lease, value: value.into() };
    client.unary("/v3electionpb.Election/Campaign", request).await
}

/// An observer over JSON: what it has been told so far.
struct Observer {
    socket: TcpStream,
    seen: String,
}

impl Observer {
    fn new(port: u16) -> Self {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let observe = request("POST", "/v3/election/observe", "", br#"{"name":"ZQ=="}"#);
        socket.write_all(&observe).unwrap();
        Self { socket, seen: String::new() }
    }

    fn until(&mut self, wanted: &str) {
        let mut buf = [0; 4096];
        while !self.seen.contains(wanted) {
            let count = self.socket.read(&mut buf).expect("it goes on");
            assert!(count > 0, "ended before {wanted}: {}", self.seen);
            self.seen += &String::from_utf8_lossy(&buf[..count]);
        }
    }
}

#[test]
fn leaders_follow_each_other_and_observers_are_told_of_each() {
    let _turn = turn::light();
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), "portable");
    let _member = setup.start();
    block_on(async {
        let client = Client::connect(&setup).await;
        for id in [1, 2, 3] {
            client.lease_grant(pb::LeaseGrantRequest { ttl: 600, id }).await.unwrap();
        }
        // It watches before there is a leader.
        let mut observer = Observer::new(setup.client_port);
        let first = campaign(&client, 1, "one").await.unwrap().leader.unwrap();
        assert_eq!((&first.key[..], first.lease), (&b"e/1"[..], 1));
        observer.until(r#""value":"b25l""#);
        let wait = |lease, value| {
            let client = client.clone();
            tokio::spawn(async move { campaign(&client, lease, value).await })
        };
        let second = wait(2, "two");
        let proclaim = epb::ProclaimRequest { leader: Some(first.clone()), value: "uno".into() };
        let told: epb::ProclaimResponse =
            client.unary("/v3electionpb.Election/Proclaim", proclaim).await.unwrap();
        assert!(told.header.is_some());
        observer.until(r#""value":"dW5v""#);
        assert!(!second.is_finished());
        let resign = epb::ResignRequest { leader: Some(first.clone()) };
        let _: epb::ResignResponse =
            client.unary("/v3electionpb.Election/Resign", resign).await.unwrap();
        let second = second.await.unwrap().unwrap().leader.unwrap();
        observer.until(r#""value":"dHdv""#);
        let leader: epb::LeaderResponse = client
            .unary("/v3electionpb.Election/Leader", epb::LeaderRequest { name: "e".into() })
            .await
            .unwrap();
        assert_eq!(leader.kv.unwrap().key, second.key);
        // Another value for a key that is there is proclaimed.
        let again = campaign(&client, 2, "zwei").await.unwrap().leader.unwrap();
        assert_eq!(again, second);
        observer.until(r#""value":"endlaQ==""#);
        let late = epb::ProclaimRequest { leader: Some(first), value: "x".into() };
        let error = client
            .unary::<_, epb::ProclaimResponse>("/v3electionpb.Election/Proclaim", late)
            .await
            .unwrap_err();
        assert_eq!((error.code(), error.message()), (tonic::Code::Unknown, "election: not leader"));
        let third = wait(3, "three");
        let revoked: Result<pb::LeaseRevokeResponse, _> =
            client.unary("/etcdserverpb.Lease/LeaseRevoke", pb::LeaseRevokeRequest { id: 2 }).await;
        revoked.unwrap();
        assert_eq!(third.await.unwrap().unwrap().leader.unwrap().key, "e/3");
        observer.until(r#""value":"dGhyZWU=""#);
    });
}
