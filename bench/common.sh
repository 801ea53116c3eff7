# What the comparison scripts share: how servers are found, started and ended, and how results are
# kept and summed up. Sourced by them, from the project's root, after `results` is set.
# Ends only the servers it started.

etcd_bin=${ETCD_BIN:-target/oracle/etcd}
etcore_bin=${ETCORE_BIN:-target/release/etcore}
benchmark_bin=${BENCHMARK_BIN:-target/release/benchmark}
scratch=${GATES_DIR:-target/gates}
rounds=${GATES_ROUNDS:-3}
server_pids=()

die() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# Ends the servers that were started last and waits until they are gone. With open streams etcd
# takes seconds to end by itself.
stop() {
    for pid in "${server_pids[@]}"; do
        kill -9 "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    server_pids=()
}
trap stop EXIT

binary_of() {
    case $1 in
        etcd) echo "$etcd_bin" ;;
        etcore) echo "$etcore_bin" ;;
    esac
}

# wait_for NAME PORT...: until each endpoint takes a put.
wait_for() {
    local name=$1 port pid
    shift
    for port in "$@"; do
        for attempt in $(seq 200); do
            for pid in "${server_pids[@]}"; do
                kill -0 "$pid" 2>/dev/null || die "$name ended: see $scratch/$name"
            done
            if "$benchmark_bin" --endpoints="127.0.0.1:$port" put --total=1 >/dev/null 2>&1; then
                break
            fi
            [ "$attempt" -lt 200 ] || die "$name does not answer: see $scratch/$name"
            sleep 0.1
        done
    done
}

# start_one NAME CLIENT_PORT PEER_PORT [PREFIX...]: one member on an empty folder, under a prefix
# such as taskset.
start_one() {
    local name=$1 client_port=$2 peer_port=$3
    shift 3
    rm -rf "${scratch:?}/$name"
    mkdir -p "$scratch/$name"
    "$@" "$(binary_of "$name")" --name gates --data-dir "$scratch/$name/data" \
        --listen-client-urls "http://127.0.0.1:$client_port" \
        --advertise-client-urls "http://127.0.0.1:$client_port" \
        --listen-peer-urls "http://127.0.0.1:$peer_port" \
        --initial-advertise-peer-urls "http://127.0.0.1:$peer_port" \
        --initial-cluster "gates=http://127.0.0.1:$peer_port" \
        >"$scratch/$name/log" 2>&1 &
    server_pids=($!)
    wait_for "$name" "$client_port"
}

# Clock ticks of user and system time of all servers. A name may hold spaces and brackets.
ticks() {
    for pid in "${server_pids[@]}"; do
        sed 's/.*) //' "/proc/$pid/stat"
    done | awk '{ sum += $12 + $13 } END { print sum }'
}

# A server's anonymous memory; the kernel says it in KiB. Of several servers, the largest.
rss_anon_mib() {
    for pid in "${server_pids[@]}"; do
        awk '$1 == "RssAnon:" { print $2 / 1024 }' "/proc/$pid/status"
    done | sort -g | tail -1
}

record() {
    echo "$round,$server,$1,$2,$3" | tee -a "$results/raw.csv"
}

# number NAME JSON: the first number of that name.
number() {
    sed -n "s/.*\"$1\":\([0-9.]*\).*/\1/p" <<<"$2"
}

# prepare TOOL...: checks what is needed and opens the results.
prepare() {
    local needed
    for needed in "$@"; do
        command -v "$needed" >/dev/null || die "$needed is missing"
    done
    for needed in "$etcd_bin" "$etcore_bin" "$benchmark_bin"; do
        [ -x "$needed" ] || die "$needed is missing: see bench/runs/README.md"
    done
    [ "$(nproc)" -ge 2 ] || die "two cores are needed"
    mkdir -p "$scratch/bodies"
    case $(stat -f -c %T "$scratch") in
        tmpfs | ramfs) die "$scratch is in memory: set GATES_DIR to a folder on a disk" ;;
    esac
    mkdir -p "$results"
    echo "round,server,metric,unit,value" >"$results/raw.csv"
}

# order ROUND: every second round in the other order.
order() {
    if [ $(($1 % 2)) = 1 ]; then echo etcd etcore; else echo etcore etcd; fi
}

# summarize TITLE NOTE: medians of each metric and server, and how many times better etcore is.
summarize() {
    echo "# $1, $(date -u +%Y-%m-%d)"
    echo
    echo "- host: $(hostname -s), $(nproc) cores, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo |
        head -1), Linux $(uname -r), scratch on $(stat -f -c %T "$scratch")"
    echo "- etcd: $("$etcd_bin" --version | head -1)"
    echo "- etcore: commit $(git describe --always --dirty 2>/dev/null || echo unknown)"
    echo "- $2"
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
