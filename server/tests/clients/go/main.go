// A user of etcd's own Go client: everything it does here must work against a member as it does
// against etcd. Run by server/tests/it/tools/clients.rs with the endpoint as its argument; it prints what
// failed and ends with status 1, or prints "ok".
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: clients <endpoint>")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{os.Args[1]},
		DialTimeout: 5 * time.Second,
		Context:     ctx,
		Logger:      zap.NewNop(),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer client.Close()
	steps := []struct {
		name string
		run  func(context.Context, *clientv3.Client) error
	}{
		{"put and get", putAndGet},
		{"ranges", ranges},
		{"transactions", transactions},
		{"deletes", deletes},
		{"errors", errorsAreMapped},
		{"compaction", compaction},
		{"watches", watches},
		{"leases", leases},
		{"cluster", cluster},
		{"many at once", manyAtOnce},
	}
	for _, step := range steps {
		if err := step.run(ctx, client); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", step.name, err)
			os.Exit(1)
		}
	}
	fmt.Println("ok")
}

func want(what string, got, expected any) error {
	if fmt.Sprint(got) != fmt.Sprint(expected) {
		return fmt.Errorf("%s: got %v, want %v", what, got, expected)
	}
	return nil
}

func putAndGet(ctx context.Context, c *clientv3.Client) error {
	// An earlier run may have left it.
	if _, err := c.Delete(ctx, "foo"); err != nil {
		return err
	}
	put, err := c.Put(ctx, "foo", "bar")
	if err != nil {
		return err
	}
	again, err := c.Put(ctx, "foo", "baz", clientv3.WithPrevKV())
	if err != nil {
		return err
	}
	get, err := c.Get(ctx, "foo")
	if err != nil {
		return err
	}
	old, err := c.Get(ctx, "foo", clientv3.WithRev(put.Header.Revision), clientv3.WithSerializable())
	if err != nil {
		return err
	}
	kv := get.Kvs[0]
	return errors.Join(
		want("previous", string(again.PrevKv.Value), "bar"),
		want("value", string(kv.Value), "baz"),
		want("create", kv.CreateRevision, put.Header.Revision),
		want("mod", kv.ModRevision, again.Header.Revision),
		want("version", kv.Version, 2),
		want("old value", string(old.Kvs[0].Value), "bar"),
	)
}

func ranges(ctx context.Context, c *clientv3.Client) error {
	for i := range 20 {
		if _, err := c.Put(ctx, fmt.Sprintf("range/%02d", i), fmt.Sprint(20-i)); err != nil {
			return err
		}
	}
	all, err := c.Get(ctx, "range/", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	some, err := c.Get(ctx, "range/", clientv3.WithPrefix(), clientv3.WithLimit(5),
		clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend))
	if err != nil {
		return err
	}
	count, err := c.Get(ctx, "range/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	last, err := c.Get(ctx, "range/", clientv3.WithLastKey()...)
	if err != nil {
		return err
	}
	stream, err := c.GetStream(ctx, "range/", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	streamed, err := clientv3.GetStreamToGetResponse(stream)
	if err != nil {
		return err
	}
	return errors.Join(
		want("all", len(all.Kvs), 20),
		want("some", len(some.Kvs), 5),
		want("more", some.More, true),
		want("newest", string(some.Kvs[0].Key), "range/19"),
		want("count", count.Count, 20),
		want("last", string(last.Kvs[0].Key), "range/19"),
		want("streamed", len(streamed.Kvs), 20),
	)
}

func transactions(ctx context.Context, c *clientv3.Client) error {
	key := "txn"
	txn := func() (*clientv3.TxnResponse, error) {
		return c.Txn(ctx).
			If(clientv3.Compare(clientv3.Version(key), "=", 0)).
			Then(clientv3.OpPut(key, "made"), clientv3.OpGet(key)).
			Else(clientv3.OpGet(key), clientv3.OpDelete(key, clientv3.WithPrevKV())).
			Commit()
	}
	first, err := txn()
	if err != nil {
		return err
	}
	second, err := txn()
	if err != nil {
		return err
	}
	return errors.Join(
		want("first", first.Succeeded, true),
		want("read its write", string(first.Responses[1].GetResponseRange().Kvs[0].Value), "made"),
		want("second", second.Succeeded, false),
		want("deleted", second.Responses[1].GetResponseDeleteRange().Deleted, 1),
		want("revision", second.Header.Revision, first.Header.Revision+1),
	)
}

func deletes(ctx context.Context, c *clientv3.Client) error {
	one, err := c.Delete(ctx, "range/00", clientv3.WithPrevKV())
	if err != nil {
		return err
	}
	rest, err := c.Delete(ctx, "range/", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	return errors.Join(
		want("one", one.Deleted, 1),
		want("previous", string(one.PrevKvs[0].Value), "20"),
		want("rest", rest.Deleted, 19),
	)
}

// Clients compare errors with rpctypes' values, which are found by code and text.
func errorsAreMapped(ctx context.Context, c *clientv3.Client) error {
	_, future := c.Get(ctx, "foo", clientv3.WithRev(1<<40))
	_, empty := c.Put(ctx, "", "x")
	_, lease := c.Put(ctx, "foo", "x", clientv3.WithLease(0x1234))
	_, missing := c.Put(ctx, "missing", "", clientv3.WithIgnoreValue())
	_, twice := c.Txn(ctx).Then(clientv3.OpPut("a", "1"), clientv3.OpPut("a", "2")).Commit()
	large := make([]byte, 1600<<10)
	_, tooLarge := c.Put(ctx, "large", string(large))
	return errors.Join(
		want("future", future, rpctypes.ErrFutureRev),
		want("empty key", empty, rpctypes.ErrEmptyKey),
		want("lease", lease, rpctypes.ErrLeaseNotFound),
		want("missing", missing, rpctypes.ErrKeyNotFound),
		want("twice", twice, rpctypes.ErrDuplicateKey),
		want("too large", tooLarge, rpctypes.ErrRequestTooLarge),
	)
}

func compaction(ctx context.Context, c *clientv3.Client) error {
	old, err := c.Put(ctx, "compacted", "1")
	if err != nil {
		return err
	}
	now, err := c.Put(ctx, "compacted", "2")
	if err != nil {
		return err
	}
	if _, err := c.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		return err
	}
	_, gone := c.Get(ctx, "compacted", clientv3.WithRev(old.Header.Revision))
	_, again := c.Compact(ctx, now.Header.Revision)
	return errors.Join(
		want("read", gone, rpctypes.ErrCompacted),
		want("again", again, rpctypes.ErrCompacted),
	)
}

// A watch from the past, one that lives, progress, and one that was compacted.
func watches(ctx context.Context, c *clientv3.Client) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	first, err := c.Put(ctx, "watched/1", "a")
	if err != nil {
		return err
	}
	start := first.Header.Revision
	past := c.Watch(ctx, "watched/", clientv3.WithPrefix(), clientv3.WithRev(start))
	live := c.Watch(ctx, "watched/1", clientv3.WithPrevKV(), clientv3.WithFilterPut(),
		clientv3.WithCreatedNotify())
	if created := <-live; !created.Created {
		return fmt.Errorf("not created: %v", created)
	}
	if _, err := c.Put(ctx, "watched/2", "b"); err != nil {
		return err
	}
	if _, err := c.Delete(ctx, "watched/1"); err != nil {
		return err
	}
	var seen []string
	for len(seen) < 3 {
		response := <-past
		if err := response.Err(); err != nil {
			return err
		}
		for _, event := range response.Events {
			seen = append(seen, fmt.Sprint(event.Type, string(event.Kv.Key), event.Kv.ModRevision-start))
		}
	}
	deleted := <-live
	if err := c.RequestProgress(ctx); err != nil {
		return err
	}
	progress := <-past
	now, err := c.Put(ctx, "watched/1", "c")
	if err != nil {
		return err
	}
	if _, err := c.Compact(ctx, now.Header.Revision); err != nil {
		return err
	}
	gone := <-c.Watch(ctx, "watched/1", clientv3.WithRev(start))
	return errors.Join(
		want("past", seen, "[PUTwatched/10 PUTwatched/21 DELETEwatched/12]"),
		want("deleted", deleted.Events[0].Type, "DELETE"),
		want("previous", string(deleted.Events[0].PrevKv.Value), "a"),
		want("progress", progress.IsProgressNotify(), true),
		want("progress revision", progress.Header.Revision, start+2),
		want("compacted", gone.CompactRevision, now.Header.Revision),
		want("compacted", gone.Err(), rpctypes.ErrCompacted),
	)
}

func cluster(ctx context.Context, c *clientv3.Client) error {
	endpoint := c.Endpoints()[0]
	status, err := c.Status(ctx, endpoint)
	if err != nil {
		return err
	}
	members, err := c.MemberList(ctx)
	if err != nil {
		return err
	}
	health := grpc_health_v1.NewHealthClient(c.ActiveConnection())
	serving, err := health.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		return err
	}
	return errors.Join(
		want("version", status.Version, "3.7.1"),
		want("leader", status.Leader, status.Header.MemberId),
		want("members", len(members.Members), 1),
		want("id", members.Members[0].ID, status.Leader),
		want("client URL", members.Members[0].ClientURLs[0], endpoint),
		want("health", serving.Status, grpc_health_v1.HealthCheckResponse_SERVING),
	)
}

func manyAtOnce(ctx context.Context, c *clientv3.Client) error {
	const writers, each = 32, 20
	failures := make(chan error, writers)
	for w := range writers {
		go func() {
			for i := range each {
				if _, err := c.Put(ctx, fmt.Sprintf("many/%d/%d", w, i), "v"); err != nil {
					failures <- err
					return
				}
			}
			failures <- nil
		}()
	}
	for range writers {
		if err := <-failures; err != nil {
			return err
		}
	}
	count, err := c.Get(ctx, "many/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	return want("count", count.Count, writers*each)
}
