#!/usr/bin/env bash
# Compares etcore with etcd: CPU per request, latency, throughput, memory. See runs/README.md for
# what is measured and how to read it. Touches nothing but its scratch and result folders, and ends
# only the servers it started.
set -euo pipefail
cd "$(dirname "$0")/.."

etcd_bin=${ETCD_BIN:-target/oracle/etcd}
etcore_bin=${ETCORE_BIN:-target/release/etcore}
benchmark_bin=${BENCHMARK_BIN:-target/release/benchmark}
scratch=${GATES_DIR:-target/gates}
rounds=${GATES_ROUNDS:-3}
divisor=1
if [ "${GATES_QUICK:-}" = 1 ]; then
    rounds=1
    divisor=20
fi
results=${GATES_OUT:-bench/runs/$(date -u +%Y-%m-%d)-$(hostname -s)}
client_port=23790
peer_port=23800
server_pid=

die() {
    echo "gates: $*" >&2
    exit 1
}

# Ends the server that was started last and waits until it is gone.
stop() {
    [ -n "$server_pid" ] || return 0
    kill "$server_pid" 2>/dev/null || true
    wait "$server_pid" 2>/dev/null || true
    server_pid=
}
trap stop EXIT

# start NAME [PREFIX...]: starts a server on an empty folder, under a prefix such as taskset.
start() {
    local name=$1 bin
    shift
    case $name in
        etcd) bin=$etcd_bin ;;
        etcore) bin=$etcore_bin ;;
    esac
    rm -rf "${scratch:?}/$name"
    mkdir -p "$scratch/$name"
    "$@" "$bin" --name gates --data-dir "$scratch/$name/data" \
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

# Clock ticks of user and system time of the server. Its name may hold spaces and brackets.
ticks() {
    sed 's/.*) //' "/proc/$server_pid/stat" | awk '{ print $12 + $13 }'
}

# The server's anonymous memory; the kernel says it in KiB.
rss_anon_mib() {
    awk '$1 == "RssAnon:" { printf "%.2f", $2 / 1024 }' "/proc/$server_pid/status"
}

record() {
    echo "$round,$server,$1,$2,$3" | tee -a "$results/raw.csv"
}

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

# figure NAME JSON
figure() {
    sed -n "s/.*\"$1\":\([0-9.]*\).*/\1/p" <<<"$2"
}

# p50 METRIC ARGUMENTS...
p50() {
    local metric=$1 json
    shift
    json=$(taskset -c 1 "$benchmark_bin" --endpoints="127.0.0.1:$client_port" --json "$@")
    [ "$(figure failed "$json")" = 0 ] || die "benchmark: failures: $json"
    record "$metric" us "$(figure p50 "$json")"
}

pinned() {
    start "$server" taskset -c 0
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
    start "$server"
    json=$("$benchmark_bin" --endpoints="127.0.0.1:$client_port" --json --conns=100 --clients=1000 \
        put --val-size=256 --sequential-keys --key-space-size="$total" --total="$total")
    [ "$(figure failed "$json")" = 0 ] || die "benchmark: failures: $json"
    record rate_put_1000 1/s "$(figure requests_per_second "$json")"
    record rss_anon MiB "$(rss_anon_mib)"
    stop
}

# Medians of each metric and server, and how many times better etcore is.
summarize() {
    echo "# etcore against etcd, $(date -u +%Y-%m-%d)"
    echo
    echo "- host: $(hostname -s), $(nproc) cores, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo |
        head -1), Linux $(uname -r), scratch on $(stat -f -c %T "$scratch")"
    echo "- etcd: $("$etcd_bin" --version | head -1)"
    echo "- etcore: commit $(git describe --always --dirty 2>/dev/null || echo unknown)"
    echo "- rounds: $rounds$([ "$divisor" = 1 ] || echo ', quick: these figures mean nothing')"
    echo
    echo "Medians. The ratio is etcd / etcore, for rates etcore / etcd: above 1 etcore is better."
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
                ratio = unit[metric] == "1/s" ? etcore / etcd : (etcore > 0 ? etcd / etcore : 0)
                format = "| %s | %s | %.2f | %.2f | %.2f |\n"
                printf format, metric, unit[metric], etcd, etcore, ratio
            }
        }'
}

for tool in h2load taskset getconf awk; do
    command -v "$tool" >/dev/null || die "$tool is missing"
done
for bin in "$etcd_bin" "$etcore_bin" "$benchmark_bin"; do
    [ -x "$bin" ] || die "$bin is missing: see bench/runs/README.md"
done
[ "$(nproc)" -ge 2 ] || die "two cores are needed"
mkdir -p "$scratch/bodies"
case $(stat -f -c %T "$scratch") in
    tmpfs | ramfs) die "$scratch is in memory: set GATES_DIR to a folder on a disk" ;;
esac
mkdir -p "$results"
echo "round,server,metric,unit,value" >"$results/raw.csv"

# Field tags: key 012, value 022, serializable 070; a length of 256 is 0200 002.
value=$(printf 'x%.0s' $(seq 256))
frame range_l '\0012\0003foo'
frame range_s '\0012\0003foo\0070\0001'
frame put "\\0012\\0010abcdefgh\\0022\\0200\\0002$value"
frame put_foo "\\0012\\0003foo\\0022\\0200\\0002$value"

for round in $(seq "$rounds"); do
    order="etcd etcore"
    [ $((round % 2)) = 1 ] || order="etcore etcd"
    for server in $order; do
        pinned
        unpinned
    done
done
summarize | tee "$results/summary.md"
