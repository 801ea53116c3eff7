//! A user of the Rust crate etcd-client: everything it does here must work against a member as it
//! does against etcd. Run by `../run` with the endpoint as its argument; prints "ok" at the end.

use etcd_client::{
    Client, CompactionOptions, Compare, CompareOp, DeleteOptions, Error, EventType, GetOptions,
    LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp,
    WatchOptions,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let endpoint = std::env::args().nth(1).expect("usage: etcd-client <endpoint>");
    let mut client = Client::connect([endpoint], None).await?;
    puts_and_gets(&mut client).await?;
    ranges(&mut client).await?;
    transactions(&mut client).await?;
    errors(&mut client).await?;
    watches(&mut client).await?;
    leases(&mut client).await?;
    let status = client.status().await?;
    assert_eq!(status.version(), "3.7.1");
    assert_eq!(client.member_list().await?.members().len(), 1);
    println!("ok");
    Ok(())
}

async fn puts_and_gets(client: &mut Client) -> Result<(), Error> {
    // An earlier run may have left it.
    client.delete("foo", None).await?;
    client.put("foo", "bar", None).await?;
    let options = PutOptions::new().with_prev_key();
    let put = client.put("foo", "baz", Some(options)).await?;
    assert_eq!(put.prev_key().expect("a previous value").value(), b"bar");
    let get = client.get("foo", None).await?;
    let kv = &get.kvs()[0];
    assert_eq!((kv.value(), kv.version()), (&b"baz"[..], 2));
    let old = GetOptions::new().with_revision(kv.create_revision()).with_serializable();
    assert_eq!(client.get("foo", Some(old)).await?.kvs()[0].value(), b"bar");
    Ok(())
}

async fn ranges(client: &mut Client) -> Result<(), Error> {
    for number in 0..20 {
        client.put(format!("range/{number:02}"), format!("{}", 40 - number), None).await?;
    }
    let options = GetOptions::new()
        .with_prefix()
        .with_limit(5)
        .with_sort(SortTarget::Value, SortOrder::Ascend);
    let some = client.get("range/", Some(options)).await?;
    assert_eq!((some.kvs().len(), some.more(), some.count()), (5, true, 20));
    assert_eq!(some.kvs()[0].key(), b"range/19");
    let options = GetOptions::new().with_from_key().with_keys_only();
    assert!(client.get("range/10", Some(options)).await?.count() >= 10);
    let options = DeleteOptions::new().with_prefix().with_prev_key();
    let deleted = client.delete("range/", Some(options)).await?;
    assert_eq!((deleted.deleted(), deleted.prev_kvs().len()), (20, 20));
    Ok(())
}

async fn watches(client: &mut Client) -> Result<(), Error> {
    let first = client.put("watched/1", "a", None).await?;
    let start = first.header().expect("a header").revision();
    let options =
        WatchOptions::new().with_prefix().with_start_revision(start).with_prev_key();
    let mut stream = client.watch("watched/", Some(options)).await?;
    client.put("watched/2", "b", None).await?;
    client.delete("watched/1", None).await?;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let response = stream.message().await?.expect("the stream is open");
        for event in response.events() {
            let kv = event.kv().expect("a key");
            let before = event.prev_kv().map(|kv| kv.value().to_vec());
            seen.push((event.event_type(), kv.mod_revision() - start, before));
        }
    }
    let expected = [
        (EventType::Put, 0, None),
        (EventType::Put, 1, None),
        (EventType::Delete, 2, Some(b"a".to_vec())),
    ];
    assert_eq!(seen, expected);
    stream.request_progress().await?;
    let progress = stream.message().await?.expect("progress");
    assert_eq!(progress.header().expect("a header").revision(), start + 2);
    stream.cancel(0).await?;
    assert!(stream.message().await?.expect("an answer").canceled());
    client.delete("watched/", Some(DeleteOptions::new().with_prefix())).await?;
    Ok(())
}

async fn leases(client: &mut Client) -> Result<(), Error> {
    let granted = client.lease_grant(60, Some(LeaseGrantOptions::new().with_id(4711))).await?;
    assert_eq!((granted.id(), granted.ttl()), (4711, 60));
    let chosen = client.lease_grant(60, None).await?.id();
    assert!(chosen > 0);
    client.put("lease/a", "1", Some(PutOptions::new().with_lease(4711))).await?;
    let options = LeaseTimeToLiveOptions::new().with_keys();
    let times = client.lease_time_to_live(4711, Some(options)).await?;
    assert_eq!((times.granted_ttl(), times.keys()), (60, &[b"lease/a".to_vec()][..]));
    assert!((50..=60).contains(&times.ttl()));
    let listed = client.leases().await?;
    assert!(listed.leases().iter().any(|lease| lease.id() == chosen));
    let (mut keeper, mut answers) = client.lease_keep_alive(4711).await?;
    for _ in 0..3 {
        keeper.keep_alive().await?;
        let answer = answers.message().await?.expect("an answer");
        assert_eq!((answer.id(), answer.ttl()), (4711, 60));
    }
    client.lease_revoke(4711).await?;
    assert_eq!(client.get("lease/a", None).await?.count(), 0);
    keeper.keep_alive().await?;
    assert_eq!(answers.message().await?.expect("an answer").ttl(), 0);
    assert_eq!(client.lease_time_to_live(4711, None).await?.ttl(), -1);
    let Err(Error::GRpcStatus(twice)) = client.lease_revoke(4711).await else {
        panic!("a lease is revoked once");
    };
    assert_eq!(twice.message(), "etcdserver: requested lease not found");
    client.lease_revoke(chosen).await?;
    Ok(())
}

async fn transactions(client: &mut Client) -> Result<(), Error> {
    for expected in [true, false] {
        let txn = Txn::new()
            .when([Compare::version("txn", CompareOp::Equal, 0)])
            .and_then([TxnOp::put("txn", "made", None), TxnOp::get("txn", None)])
            .or_else([TxnOp::delete("txn", None)]);
        assert_eq!(client.txn(txn).await?.succeeded(), expected);
    }
    Ok(())
}

async fn errors(client: &mut Client) -> Result<(), Error> {
    let put = client.put("compacted", "1", None).await?;
    let old = put.header().expect("a header").revision();
    client.put("compacted", "2", None).await?;
    client.compact(old + 1, Some(CompactionOptions::new().with_physical())).await?;
    for (revision, text) in [
        (old, "etcdserver: mvcc: required revision has been compacted"),
        (1 << 40, "etcdserver: mvcc: required revision is a future revision"),
    ] {
        let options = GetOptions::new().with_revision(revision);
        match client.get("compacted", Some(options)).await {
            Err(Error::GRpcStatus(status)) => assert_eq!(status.message(), text),
            other => panic!("revision {revision}: {other:?}"),
        }
    }
    Ok(())
}
