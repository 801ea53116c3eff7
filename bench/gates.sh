#!/usr/bin/env bash
# Compares etcore with etcd: CPU per request, latency, throughput, memory. See runs/README.md for
# what is measured and how to read it. Touches nothing but its scratch and result folders, and ends
# only the servers it started.
set -euo pipefail
cd "$(dirname "$0")/.."

results=${GATES_OUT:-bench/runs/$(date -u +%Y-%m-%d)-$(hostname -s)}
# shellcheck source=bench/common.sh
source bench/common.sh
divisor=1
if [ "${GATES_QUICK:-}" = 1 ]; then
    rounds=1
    divisor=20
fi
client_port=23790
peer_port=23800

# frame NAME BODY: a file with the gRPC message of this octal-escaped body and its prefix.
frame() {
    local file=$scratch/bodies/$1 body=$scratch/bodies/$1.body length
    printf '%b' "$2" >"$body"
    length=$(stat -c %s "$body")
    printf '%b' "$(printf '\\000\\000\\000\\%03o\\%03o' $((length / 256)) $((length % 256)))" \
        >"$file"
    cat "$body" >>"$file"
}

# load COUNT STREAMS METHOD BODY: h2load on core 1; every request must succeed and carry a message.
load() {
    local count=$1 streams=$2 method=$3 body=$4 said done_count data
    said=$(taskset -c 1 h2load -n "$count" -c 16 -m "$streams" -d "$scratch/bodies/$body" \
        -H 'content-type: application/grpc' -H 'te: trailers' \
        "http://127.0.0.1:$client_port/etcdserverpb.KV/$method")
    done_count=$(sed -n 's/^requests: .* \([0-9]*\) succeeded.*/\1/p' <<<"$said")
    [ "$done_count" = "$count" ] || die "h2load: $done_count of $count requests succeeded"
    data=$(sed -n 's/^traffic: .*(\([0-9]*\)) data.*/\1/p' <<<"$said")
    [ "${data:-0}" -ge $((count * 5)) ] || die "h2load: answers without a message: $said"
}

# cpu METRIC COUNT STREAMS METHOD BODY
cpu() {
    local metric=$1 count=$(($2 / divisor)) before after
    shift 2
    load $((count / 10)) "$@"
    before=$(ticks)
    load "$count" "$@"
    after=$(ticks)
    record "$metric" us "$(awk -v t=$((after - before)) -v hz="$(getconf CLK_TCK)" -v n="$count" \
        'BEGIN { printf "%.3f", t * 1e6 / hz / n }')"
}

# p50 METRIC ARGUMENTS...
p50() {
    local metric=$1 json
    shift
    json=$(taskset -c 1 "$benchmark_bin" --endpoints="127.0.0.1:$client_port" --json "$@")
    [ "$(number failed "$json")" = 0 ] || die "benchmark: failures: $json"
    record "$metric" us "$(number p50 "$json")"
}

pinned() {
    start_one "$server" "$client_port" "$peer_port" taskset -c 0
    # The key that is ranged over.
    load 16 1 Put put_foo
    cpu cpu_range_s_16x64 200000 64 Range range_s
    cpu cpu_range_s_16x1 100000 1 Range range_s
    cpu cpu_range_l_16x64 200000 64 Range range_l
    cpu cpu_range_l_16x1 50000 1 Range range_l
    cpu cpu_put_16x64 100000 64 Put put
    cpu cpu_put_16x1 20000 1 Put put
    p50 p50_put_1 --conns=1 --clients=1 put --val-size=256 --sequential-keys \
        --key-space-size=10000 --total=$((10000 / divisor))
    p50 p50_range_s_1 --conns=1 --clients=1 range foo --consistency=s \
        --total=$((20000 / divisor))
    stop
}

unpinned() {
    local json total=$((100000 / divisor))
    start_one "$server" "$client_port" "$peer_port"
    json=$("$benchmark_bin" --endpoints="127.0.0.1:$client_port" --json --conns=100 --clients=1000 \
        put --val-size=256 --sequential-keys --key-space-size="$total" --total="$total")
    [ "$(number failed "$json")" = 0 ] || die "benchmark: failures: $json"
    record rate_put_1000 1/s "$(number requests_per_second "$json")"
    record rss_anon MiB "$(rss_anon_mib)"
    stop
}

prepare h2load taskset getconf awk

# Field tags: key 012, value 022, serializable 070; a length of 256 is 0200 002.
value=$(printf 'x%.0s' $(seq 256))
frame range_l '\0012\0003foo'
frame range_s '\0012\0003foo\0070\0001'
frame put "\\0012\\0010abcdefgh\\0022\\0200\\0002$value"
frame put_foo "\\0012\\0003foo\\0022\\0200\\0002$value"

for round in $(seq "$rounds"); do
    for server in $(order "$round"); do
        pinned
        unpinned
    done
done
summarize "etcore against etcd" \
    "rounds: $rounds$([ "$divisor" = 1 ] || echo ', quick: these figures mean nothing')" |
    tee "$results/summary.md"
