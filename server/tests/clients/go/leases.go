package main

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// Leases as Go programs use them: by hand, kept alive in the background, and as a session.
func leases(ctx context.Context, c *clientv3.Client) error {
	long, err := c.Grant(ctx, 500)
	if err != nil {
		return err
	}
	if _, err := c.Put(ctx, "lease/a", "1", clientv3.WithLease(long.ID)); err != nil {
		return err
	}
	times, err := c.TimeToLive(ctx, long.ID, clientv3.WithAttachedKeys())
	if err != nil {
		return err
	}
	once, err := c.KeepAliveOnce(ctx, long.ID)
	if err != nil {
		return err
	}
	list, err := c.Leases(ctx)
	if err != nil {
		return err
	}
	found := false
	for _, lease := range list.Leases {
		found = found || lease.ID == long.ID
	}
	if _, err := c.Revoke(ctx, long.ID); err != nil {
		return err
	}
	gone, err := c.Get(ctx, "lease/a")
	if err != nil {
		return err
	}
	_, twice := c.Revoke(ctx, long.ID)
	_, unknown := c.KeepAliveOnce(ctx, long.ID)
	expired, err := c.TimeToLive(ctx, long.ID)
	if err != nil {
		return err
	}
	_, tooLong := c.Grant(ctx, 9_000_000_001)
	err = errors.Join(
		want("granted", long.TTL, 500),
		want("granted TTL", times.GrantedTTL, 500),
		want("left", times.TTL >= 490 && times.TTL <= 500, true),
		want("keys", string(times.Keys[0]), "lease/a"),
		want("kept alive once", once.TTL, 500),
		want("listed", found, true),
		want("deleted with its lease", gone.Count, 0),
		want("revoked twice", twice, rpctypes.ErrLeaseNotFound),
		want("kept alive after", unknown, rpctypes.ErrLeaseNotFound),
		want("left of an unknown one", expired.TTL, -1),
		want("too long", tooLong, rpctypes.ErrLeaseTTLTooLarge),
	)
	if err != nil {
		return err
	}
	return errors.Join(keptAlive(ctx, c), session(ctx, c))
}

// Two short leases on the client's one stream, one of which is then let go.
func keptAlive(ctx context.Context, c *clientv3.Client) error {
	kept, err := c.Grant(ctx, 2)
	if err != nil {
		return err
	}
	left, err := c.Grant(ctx, 2)
	if err != nil {
		return err
	}
	for key, lease := range map[string]clientv3.LeaseID{"lease/kept": kept.ID, "lease/left": left.ID} {
		if _, err := c.Put(ctx, key, "1", clientv3.WithLease(lease)); err != nil {
			return err
		}
	}
	keptCtx, letGo := context.WithCancel(ctx)
	defer letGo()
	answers, err := c.KeepAlive(keptCtx, kept.ID)
	if err != nil {
		return err
	}
	brief, cancel := context.WithCancel(ctx)
	if _, err := c.KeepAlive(brief, left.ID); err != nil {
		cancel()
		return err
	}
	cancel()
	until := time.After(4 * time.Second)
	renewals := 0
loop:
	for {
		select {
		case answer, ok := <-answers:
			if !ok {
				return errors.New("the keep-alive ended")
			}
			if answer.TTL != 2 {
				return want("TTL", answer.TTL, 2)
			}
			renewals++
		case <-until:
			break loop
		}
	}
	alive, err := c.Get(ctx, "lease/kept")
	if err != nil {
		return err
	}
	dead, err := c.Get(ctx, "lease/left")
	if err != nil {
		return err
	}
	return errors.Join(
		want("renewed some times", renewals >= 3, true),
		want("kept", alive.Count, 1),
		want("let go", dead.Count, 0),
	)
}

func session(ctx context.Context, c *clientv3.Client) error {
	session, err := concurrency.NewSession(c, concurrency.WithTTL(5))
	if err != nil {
		return err
	}
	if _, err := c.Put(ctx, "lease/session", "1", clientv3.WithLease(session.Lease())); err != nil {
		return err
	}
	if err := session.Close(); err != nil {
		return err
	}
	gone, err := c.Get(ctx, "lease/session")
	if err != nil {
		return err
	}
	return want("gone with its session", gone.Count, 0)
}
