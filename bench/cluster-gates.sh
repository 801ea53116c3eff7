#!/usr/bin/env bash
# Compares three members of etcore with three of etcd: rates, latency, CPU of all three together,
# memory. The same client loads both in one run, on the same cores. See runs/README.md. Touches
# nothing but its scratch and result folders, and ends only the servers it started.
set -euo pipefail
cd "$(dirname "$0")/.."

results=${GATES_OUT:-bench/runs/$(date -u +%Y-%m-%d)-$(hostname -s)-cluster}
# shellcheck source=bench/common.sh
source bench/common.sh
divisor=1
if [ "${GATES_QUICK:-}" = 1 ]; then
    rounds=1
    divisor=20
fi
base_port=${GATES_PORT:-23790}
members=3

# client_port NUMBER, peer_port NUMBER
client_port() { echo $((base_port + $1)); }
peer_port() { echo $((base_port + 100 + $1)); }

# The endpoints of all members.
endpoints() {
    local number list=
    for number in $(seq "$members"); do
        list=$list,127.0.0.1:$(client_port "$number")
    done
    echo "${list#,}"
}

start_cluster() {
    local name=$1 number bin cluster= pids=() ports=()
    bin=$(binary_of "$name")
    for number in $(seq "$members"); do
        cluster=$cluster,m$number=http://127.0.0.1:$(peer_port "$number")
    done
    rm -rf "${scratch:?}/$name"
    for number in $(seq "$members"); do
        mkdir -p "$scratch/$name/m$number"
        "$bin" --name "m$number" --data-dir "$scratch/$name/m$number/data" \
            --listen-client-urls "http://127.0.0.1:$(client_port "$number")" \
            --advertise-client-urls "http://127.0.0.1:$(client_port "$number")" \
            --listen-peer-urls "http://127.0.0.1:$(peer_port "$number")" \
            --initial-advertise-peer-urls "http://127.0.0.1:$(peer_port "$number")" \
            --initial-cluster "${cluster#,}" --initial-cluster-token gates \
            >"$scratch/$name/m$number/log" 2>&1 &
        pids+=($!)
        ports+=("$(client_port "$number")")
    done
    server_pids=("${pids[@]}")
    wait_for "$name" "${ports[@]}"
}

# load METRIC COUNT ARGUMENTS...: the rate of one load and, for many clients, the CPU of each
# request over all members.
load() {
    local metric=$1 count=$(($2 / divisor)) json before after
    shift 2
    before=$(ticks)
    json=$("$benchmark_bin" --endpoints="$(endpoints)" --json "$@" --total="$count") ||
        die "$metric: $json"
    after=$(ticks)
    [ "$(number failed "$json")" = 0 ] || die "$metric: failures: $json"
    record "rate_$metric" 1/s "$(number requests_per_second "$json")"
    record "p50_$metric" us "$(number p50 "$json")"
    record "p99_$metric" us "$(number p99 "$json")"
    record "cpu_$metric" us "$(awk -v t=$((after - before)) -v hz="$(getconf CLK_TCK)" \
        -v n="$count" 'BEGIN { printf "%.3f", t * 1e6 / hz / n }')"
}

put=(put --key-size=8 --val-size=256 --sequential-keys --key-space-size=100000)
one=(--conns=1 --clients=1)
many=(--conns=100 --clients=1000)

prepare getconf awk
for round in $(seq "$rounds"); do
    for server in $(order "$round"); do
        start_cluster "$server"
        load put_leader_1 3000 "${one[@]}" --target-leader "${put[@]}"
        load put_leader_1000 100000 "${many[@]}" --target-leader "${put[@]}"
        load put_all_1000 100000 "${many[@]}" "${put[@]}"
        load range_l_1 5000 "${one[@]}" range 00000001 --consistency=l
        load range_l_1000 200000 "${many[@]}" range 00000001 --consistency=l
        load range_s_1 10000 "${one[@]}" range 00000001 --consistency=s
        load range_s_1000 200000 "${many[@]}" range 00000001 --consistency=s
        record rss_anon MiB "$(rss_anon_mib)"
        stop
    done
done
summarize "Three members: etcore against etcd" \
    "rounds: $rounds$([ "$divisor" = 1 ] || echo ', quick: these figures mean nothing')" |
    tee "$results/summary.md"
