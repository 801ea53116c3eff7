#!/usr/bin/env bash
# Compares etcore with etcd as servers of watches: latency of events, memory, CPU. The same client
# loads both in one run, with the load on core 1 and the server on core 0. See runs/README.md.
# Touches nothing but its scratch and result folders, and ends only the servers it started.
set -euo pipefail
cd "$(dirname "$0")/.."

results=${GATES_OUT:-bench/runs/$(date -u +%Y-%m-%d)-$(hostname -s)-watch}
# shellcheck source=bench/common.sh
source bench/common.sh
client_port=${GATES_PORT:-23790}
peer_port=$((client_port + 10))
# Seconds of puts in each load.
seconds=${GATES_SECONDS:-20}

# figure OBJECT NAME JSON: a number inside of an object.
figure() {
    sed -n "s/.*\"$1\":[[{]*[^}]*\"$2\":\([0-9.]*\).*/\1/p" <<<"$3"
}

# load NAME ARGUMENTS...: one load on a fresh server.
load() {
    local name=$1 json
    shift
    start_one "$server" "$client_port" "$peer_port" taskset -c 0
    json=$(taskset -c 1 "$benchmark_bin" --endpoints="127.0.0.1:$client_port" \
        --server-pid="${server_pids[0]}" --json "$@") || die "$name: $json"
    for percentile in p50 p99; do
        record "${name}_put_to_event_$percentile" us \
            "$(figure event_from_put_us $percentile "$json")"
        record "${name}_commit_to_event_$percentile" us \
            "$(figure event_from_commit_us $percentile "$json")"
    done
    for bytes in rss_bytes rss_anon_bytes; do
        record "${name}_$bytes" MiB \
            "$(awk -v b="$(figure servers $bytes "$json")" 'BEGIN { printf "%.2f", b / 1048576 }')"
    done
    record "${name}_cpu" s \
        "$(awk -v u="$(figure servers cpu_us "$json")" 'BEGIN { printf "%.3f", u / 1e6 }')"
    stop
}

prepare taskset awk

for round in $(seq "$rounds"); do
    for server in $(order "$round"); do
        # 10,000 streams on 100 connections; 1,000 small events a second, each for 10 of them.
        load streams --conns=100 watch-latency --streams=10000 --watchers-per-stream=1 \
            --key-space-size=1000 --put-rate=1000 --put-total=$((1000 * seconds))
        # 1,000 watchers of one prefix and events of 3 KB.
        load prefix --conns=100 watch-latency --streams=1000 --watchers-per-stream=1 --prefix \
            --val-size=3072 --put-rate=10 --put-total=$((10 * seconds))
    done
done
summarize "Watches: etcore against etcd" "rounds: $rounds of $seconds s a load" |
    tee "$results/summary.md"
