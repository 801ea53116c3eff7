#!/usr/bin/env bash
# Compares etcore with etcd as servers of watches: latency of events, memory, CPU. The same client
# loads both in one run, with the load on core 1 and the server on core 0. See runs/README.md.
# Touches nothing but its scratch and result folders, and ends only the servers it started.
set -euo pipefail
cd "$(dirname "$0")/.."

etcd_bin=${ETCD_BIN:-target/oracle/etcd}
etcore_bin=${ETCORE_BIN:-target/release/etcore}
benchmark_bin=${BENCHMARK_BIN:-target/release/benchmark}
scratch=${GATES_DIR:-target/gates}
rounds=${GATES_ROUNDS:-3}
client_port=${GATES_PORT:-23790}
peer_port=$((client_port + 10))
# Seconds of puts in each load.
seconds=${GATES_SECONDS:-20}
results=${GATES_OUT:-bench/runs/$(date -u +%Y-%m-%d)-$(hostname -s)-watch}
server_pid=

die() {
    echo "watch-gates: $*" >&2
    exit 1
}

# Ends the server that was started last and waits until it is gone. etcd waits seconds for open
# streams, so it is not asked twice.
stop() {
    [ -n "$server_pid" ] || return 0
    kill -9 "$server_pid" 2>/dev/null || true
    wait "$server_pid" 2>/dev/null || true
    server_pid=
}
trap stop EXIT

# start NAME: starts a server on an empty folder.
start() {
    local name=$1 bin
    case $name in
        etcd) bin=$etcd_bin ;;
        etcore) bin=$etcore_bin ;;
    esac
    rm -rf "${scratch:?}/$name"
    mkdir -p "$scratch/$name"
    taskset -c 0 "$bin" --name gates --data-dir "$scratch/$name/data" \
        --listen-client-urls "http://127.0.0.1:$client_port" \
        --advertise-client-urls "http://127.0.0.1:$client_port" \
        --listen-peer-urls "http://127.0.0.1:$peer_port" \
        --initial-advertise-peer-urls "http://127.0.0.1:$peer_port" \
        --initial-cluster "gates=http://127.0.0.1:$peer_port" \
        >"$scratch/$name/log" 2>&1 &
    server_pid=$!
    for _ in $(seq 100); do
        kill -0 "$server_pid" 2>/dev/null || die "$name ended: see $scratch/$name/log"
        if "$benchmark_bin" --endpoints="127.0.0.1:$client_port" put --total=1 \
            >/dev/null 2>&1; then
            return
        fi
        sleep 0.1
    done
    die "$name does not answer: see $scratch/$name/log"
}

record() {
    echo "$round,$server,$1,$2,$3" | tee -a "$results/raw.csv"
}

# figure OBJECT NAME JSON: a number inside of an object.
figure() {
    sed -n "s/.*\"$1\":[[{]*[^}]*\"$2\":\([0-9.]*\).*/\1/p" <<<"$3"
}

# load NAME ARGUMENTS...: one load on a fresh server.
load() {
    local name=$1 json
    shift
    start "$server"
    json=$(taskset -c 1 "$benchmark_bin" --endpoints="127.0.0.1:$client_port" \
        --server-pid="$server_pid" --json "$@") || die "$name: $json"
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

# Medians of each metric and server, and etcd's divided by etcore's.
summarize() {
    echo "# Watches: etcore against etcd, $(date -u +%Y-%m-%d)"
    echo
    echo "- host: $(hostname -s), $(nproc) cores, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo |
        head -1), Linux $(uname -r), scratch on $(stat -f -c %T "$scratch")"
    echo "- etcd: $("$etcd_bin" --version | head -1)"
    echo "- etcore: commit $(git describe --always --dirty 2>/dev/null || echo unknown)"
    echo "- rounds: $rounds of $seconds s a load"
    echo
    echo "Medians. The ratio is etcd / etcore: above 1 etcore is better."
    echo
    echo "| metric | unit | etcd | etcore | ratio |"
    echo "| --- | --- | --- | --- | --- |"
    tail -n +2 "$results/raw.csv" | sort -t, -k3,3 -k2,2 -k5,5g | awk -F, '
        function median(key) {
            return (value[key, int((count[key] + 1) / 2)] + value[key, int(count[key] / 2) + 1]) / 2
        }
        {
            key = $3 SUBSEP $2
            value[key, ++count[key]] = $5
            if (!($3 in unit)) order[++metrics] = $3
            unit[$3] = $4
        }
        END {
            for (i = 1; i <= metrics; i++) {
                metric = order[i]
                etcd = median(metric SUBSEP "etcd")
                etcore = median(metric SUBSEP "etcore")
                ratio = etcore > 0 ? etcd / etcore : 0
                format = "| %s | %s | %.2f | %.2f | %.2f |\n"
                printf format, metric, unit[metric], etcd, etcore, ratio
            }
        }'
}

for tool in taskset awk; do
    command -v "$tool" >/dev/null || die "$tool is missing"
done
for bin in "$etcd_bin" "$etcore_bin" "$benchmark_bin"; do
    [ -x "$bin" ] || die "$bin is missing: see bench/runs/README.md"
done
[ "$(nproc)" -ge 2 ] || die "two cores are needed"
mkdir -p "$scratch"
case $(stat -f -c %T "$scratch") in
    tmpfs | ramfs) die "$scratch is in memory: set GATES_DIR to a folder on a disk" ;;
esac
mkdir -p "$results"
echo "round,server,metric,unit,value" >"$results/raw.csv"

for round in $(seq "$rounds"); do
    order="etcd etcore"
    [ $((round % 2)) = 1 ] || order="etcore etcd"
    for server in $order; do
        # 10,000 streams on 100 connections; 1,000 small events a second, each for 10 of them.
        load streams --conns=100 watch-latency --streams=10000 --watchers-per-stream=1 \
            --key-space-size=1000 --put-rate=1000 --put-total=$((1000 * seconds))
        # 1,000 watchers of one prefix and events of 3 KB.
        load prefix --conns=100 watch-latency --streams=1000 --watchers-per-stream=1 --prefix \
            --val-size=3072 --put-rate=10 --put-total=$((10 * seconds))
    done
done
summarize | tee "$results/summary.md"
