"""A user of the Python client etcd3: leases as its programs use them.

Run by `run` with a host and a port as arguments; prints "ok" at the end.
"""

import sys
import time

import etcd3


def main():
    client = etcd3.client(host=sys.argv[1], port=int(sys.argv[2]))
    lease = client.lease(2)
    assert lease.ttl == 2, lease.ttl
    client.put("python/lease", "1", lease=lease)
    assert lease.keys == [b"python/lease"], lease.keys
    assert lease.granted_ttl == 2, lease.granted_ttl
    # Kept alive past its TTL, then let go.
    for _ in range(4):
        time.sleep(0.8)
        (answer,) = lease.refresh()
        assert (answer.ID, answer.TTL) == (lease.id, 2), answer
    assert client.get("python/lease")[0] == b"1"
    time.sleep(4)
    assert client.get("python/lease")[0] is None
    (answer,) = lease.refresh()
    assert answer.TTL == 0, answer
    assert lease.remaining_ttl == -1, lease.remaining_ttl
    # Several keys, revoked together.
    lease = client.lease(60, lease_id=815)
    for number in range(3):
        client.put("python/%d" % number, "1", lease=lease)
    lease.revoke()
    assert list(client.get_prefix("python/")) == []
    print("ok")


main()
