#!/usr/bin/env bash
# Where the time of one client's put goes, in etcore and in etcd: the log's write, what any answer
# takes, and what the server adds. See runs/README.md. Touches nothing but its scratch and result
# folders, and ends only the servers it started.
set -euo pipefail
cd "$(dirname "$0")/.."

results=${GATES_OUT:-bench/runs/$(date -u +%Y-%m-%d)-$(hostname -s)-put-latency}
# shellcheck source=bench/common.sh
source bench/common.sh
tune_bin=${TUNE_BIN:-target/release/etcore-tune}
client_port=23790
peer_port=23800
puts=(put --key-size=8 --val-size=256 --sequential-keys --key-space-size=10000)

# wal: how often the server's log was made durable, and the seconds that took in all.
wal() {
    curl -s "http://127.0.0.1:$client_port/metrics" | awk '
        $1 == "etcd_disk_wal_fsync_duration_seconds_count" { count = $2 }
        $1 == "etcd_disk_wal_fsync_duration_seconds_sum" { sum = $2 }
        END { printf "%d %.9f\n", count, sum }'
}

# one ARGUMENTS...: a load of one client; its median and mean in microseconds.
one() {
    local json
    json=$("$benchmark_bin" --endpoints="127.0.0.1:$client_port" --json --conns=1 --clients=1 "$@")
    [ "$(number failed "$json")" = 0 ] || die "benchmark: failures: $json"
    echo "$(number p50 "$json") $(awk -v rate="$(number requests_per_second "$json")" \
        'BEGIN { print 1e6 / rate }')"
}

measure() {
    local before after put range mean
    start_one "$server" "$client_port" "$peer_port"
    one "${puts[@]}" --total=1000 >/dev/null
    read -ra before <<<"$(wal)"
    read -ra put <<<"$(one "${puts[@]}" --total=5000)"
    read -ra after <<<"$(wal)"
    read -ra range <<<"$(one range 00000001 --consistency=s --total=5000)"
    stop
    mean=$(awk -v n=$((after[0] - before[0])) -v from="${before[1]}" -v to="${after[1]}" \
        'BEGIN { print (n > 0 ? (to - from) * 1e6 / n : 0) }')
    record put_p50 us "${put[0]}"
    record put_mean us "${put[1]}"
    record range_s_p50 us "${range[0]}"
    record range_s_mean us "${range[1]}"
    record log_write_mean us "$mean"
    record put_above_both_mean us "$(awk -v p="${put[1]}" -v r="${range[1]}" -v w="$mean" \
        'BEGIN { print p - r - w }')"
}

prepare curl awk
[ -x "$tune_bin" ] || die "$tune_bin is missing: see bench/runs/README.md"
for round in $(seq "$rounds"); do
    for server in $(order "$round"); do
        measure
    done
    mkdir -p "$scratch/probe"
    "$tune_bin" probe --data-dir "$scratch/probe" |
        sed -n "/^Durable writes/,/^Findings/{/^Findings/!{s#$PWD/##;p}}" | tee "$results/disk-$round.txt"
done
summarize "One client's put: etcore against etcd" "rounds: $rounds; the disk by itself: disk-*.txt" |
    tee "$results/summary.md"
