//! Three members on this machine: rates, latency, CPU of all three, memory.
//!
//! The clusters are founded anew in every round and not pinned. The same client loads both.

use super::figures::RATE;
use super::load::number;
use super::servers::{Ports, Servers};
use super::{CompareError, Comparison};

/// Measures one cluster.
pub(super) fn measure(comparison: &mut Comparison<'_>) -> Result<(), CompareError> {
    let port = comparison.args.port;
    let ports = [1, 2, 3].map(|number| Ports { client: port + number, peer: port + 100 + number });
    let servers = Servers::start(comparison, &ports, None)?;
    let one = ["--conns=1", "--clients=1"];
    let many = ["--conns=100", "--clients=1000"];
    let leader = ["--target-leader"];
    let put =
        ["put", "--key-size=8", "--val-size=256", "--sequential-keys", "--key-space-size=100000"];
    let range_l = ["range", "00000001", "--consistency=l"];
    let range_s = ["range", "00000001", "--consistency=s"];
    let loads: [(&str, u64, Vec<&str>); 7] = [
        ("put_leader_1", 3_000, [&one[..], &leader, &put].concat()),
        ("put_leader_1000", 100_000, [&many[..], &leader, &put].concat()),
        ("put_all_1000", 100_000, [&many[..], &put].concat()),
        ("range_l_1", 5_000, [&one[..], &range_l].concat()),
        ("range_l_1000", 200_000, [&many[..], &range_l].concat()),
        ("range_s_1", 10_000, [&one[..], &range_s].concat()),
        ("range_s_1000", 200_000, [&many[..], &range_s].concat()),
    ];
    for (metric, count, mut arguments) in loads {
        let count = comparison.count(count);
        let total = format!("--total={count}");
        arguments.push(&total);
        let before = servers.cpu_us()?;
        let report = comparison.benchmark(&servers.endpoints(), None, &arguments)?;
        let used = servers.cpu_us()?.saturating_sub(before);
        let rate = number(&report, "/requests_per_second")?;
        comparison.record(&format!("rate_{metric}"), RATE, rate)?;
        for percentile in ["p50", "p99"] {
            let latency = number(&report, &format!("/latency_us/{percentile}"))?;
            comparison.record(&format!("{percentile}_{metric}"), "us", latency)?;
        }
        comparison.record(&format!("cpu_{metric}"), "us", used as f64 / count as f64)?;
    }
    comparison.record("rss_anon", "MiB", servers.rss_anon_mib()?)
}
