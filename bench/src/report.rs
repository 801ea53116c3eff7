//! How the results are told: etcd's report, then what etcd's tool does not say; or all of it as
//! one JSON object.
//!
//! Called once, at the end of a run. The part that etcd's tool prints too must never differ from it
//! in form, since scripts read it.

mod json;

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

use etcore_proto::gotext::format_duration;
use serde::Serialize;

use crate::engine::Outcome;
use crate::engine::watching::WatchOutcome;
use crate::gotext;
use crate::options::{Options, WatchOptions};
use crate::process::Usage;
use crate::tally::Second;

/// Everything there is to tell.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    pub(crate) options: &'a Options,
    pub(crate) outcome: &'a Outcome,
    /// CPU used in the run, and memory after it, of each watched process.
    pub(crate) servers: Vec<(u32, Usage)>,
    /// CPU that this tool used, in microseconds.
    pub(crate) own_cpu_us: u64,
}

impl Report<'_> {
    /// Writes the report in the form that the options ask for.
    pub(crate) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let text = match self.options.json {
            true => json_line(&self.json())?,
            false => self.text().map_err(io::Error::other)?,
        };
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    fn text(&self) -> Result<String, std::fmt::Error> {
        let tally = &self.outcome.tally;
        let mut text = String::new();
        if tally.count() > 0 {
            self.summary(&mut text)?;
            self.histogram(&mut text)?;
            self.distribution(&mut text)?;
            self.samples(&mut text)?;
        }
        if tally.error_count() > 0 {
            text.push_str("\nError distribution:\n");
            for (error, count) in tally.errors() {
                writeln!(text, "  [{count}]\t{error}")?;
            }
        }
        if tally.count() > 0 {
            self.details(&mut text)?;
        }
        Ok(text)
    }

    fn summary(&self, text: &mut String) -> std::fmt::Result {
        let tally = &self.outcome.tally;
        writeln!(text, "\nSummary:")?;
        let rows = [
            ("Total", self.outcome.elapsed.as_secs_f64()),
            ("Slowest", seconds(tally.slowest_ns() as f64)),
            ("Fastest", seconds(tally.fastest_ns() as f64)),
            ("Average", seconds(tally.mean_ns())),
            ("Stddev", seconds(tally.deviation_ns())),
        ];
        for (name, value) in rows {
            writeln!(text, "  {name}:\t{} secs.", self.number(value))?;
        }
        writeln!(text, "  Requests/sec:\t{}", self.number(self.rate()))
    }

    fn histogram(&self, text: &mut String) -> std::fmt::Result {
        let rows = self.buckets();
        let most = rows.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
        writeln!(text, "\nResponse time histogram:")?;
        for (bound_ns, count) in rows {
            let bar = "∎".repeat((count * BAR_WIDTH / most) as usize);
            writeln!(text, "  {} [{count}]\t|{bar}", self.number(seconds(bound_ns)))?;
        }
        Ok(())
    }

    fn distribution(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "\nLatency distribution:")?;
        for percent in PERCENTS {
            let latency = seconds(self.outcome.tally.percentile_ns(percent) as f64);
            writeln!(text, "  {percent}% in {} secs.", self.number(latency))?;
        }
        Ok(())
    }

    fn samples(&self, text: &mut String) -> std::fmt::Result {
        let Some(seconds) = self.outcome.tally.seconds() else { return Ok(()) };
        writeln!(text, "\nSample in one second (unix latency throughput):")?;
        writeln!(text, "UNIX-SECOND,MIN-LATENCY-MS,AVG-LATENCY-MS,MAX-LATENCY-MS,AVG-THROUGHPUT")?;
        let last = seconds.last_key_value().map_or(0, |(second, _)| *second);
        for second in 0..=last {
            let unix = self.outcome.began_unix + second;
            let Some(one) = seconds.get(&second) else {
                writeln!(text, "{unix},0s,0s,0s,0")?;
                continue;
            };
            let [fastest, mean, slowest] = [one.fastest_ns, one.sum_ns / one.count, one.slowest_ns]
                .map(|ns| format_duration(Duration::from_nanos(ns)));
            writeln!(text, "{unix},{fastest},{mean},{slowest},{}", one.count)?;
        }
        writeln!(text)
    }

    /// What etcd's tool does not print.
    fn details(&self, text: &mut String) -> std::fmt::Result {
        let tally = &self.outcome.tally;
        writeln!(text, "\nDetails:")?;
        write!(text, "  Latency:\t")?;
        for percent in [50.0, 90.0, 99.0, 99.9] {
            write!(text, "p{percent} {:.1} us, ", tally.percentile_ns(percent) as f64 / 1e3)?;
        }
        writeln!(text, "max {:.1} us.", tally.slowest_ns() as f64 / 1e3)?;
        writeln!(
            text,
            "  Requests:\t{} succeeded, {} failed.",
            tally.count(),
            tally.error_count()
        )?;
        for (pid, usage) in &self.servers {
            writeln!(
                text,
                "  Server {pid}:\t{:.2} us CPU per request ({:.2} user, {:.2} system).",
                self.per_request(usage.cpu_us()),
                self.per_request(usage.user_us),
                self.per_request(usage.system_us),
            )?;
            let [rss, anon, file] = [usage.rss_bytes, usage.rss_anon_bytes, usage.rss_file_bytes]
                .map(|bytes| bytes as f64 / f64::from(1 << 20));
            writeln!(
                text,
                "  Server {pid}:\tRSS {rss:.1} MiB (anonymous {anon:.1}, file {file:.1})."
            )?;
        }
        let own = self.per_request(self.own_cpu_us);
        writeln!(text, "  This tool:\t{own:.2} us CPU per request.")
    }

    fn json(&self) -> json::Run<'_> {
        let (options, tally) = (self.options, &self.outcome.tally);
        let sample = |(second, one): (&u64, &Second)| json::Sample {
            unix: self.outcome.began_unix + second,
            min_us: json::us(one.fastest_ns as f64),
            mean_us: json::us(one.sum_ns as f64 / one.count as f64),
            max_us: json::us(one.slowest_ns as f64),
            count: one.count,
        };
        let bucket = |(bound_ns, count)| json::Bucket { up_to_us: json::us(bound_ns), count };
        json::Run {
            command: options.load.name(),
            endpoints: options.endpoints.iter().map(|one| one.authority.as_str()).collect(),
            conns: options.conns,
            clients: options.clients,
            threads: options.threads,
            rate: options.rate,
            total: options.total,
            complete: self.outcome.cut_short.is_none(),
            succeeded: tally.count(),
            failed: tally.error_count(),
            began_unix: self.outcome.began_unix,
            seconds: self.outcome.elapsed.as_secs_f64(),
            requests_per_second: self.rate(),
            latency_us: tally.into(),
            histogram: self.buckets().into_iter().map(bucket).collect(),
            errors: tally.errors(),
            servers: self.servers.iter().map(|server| self.server_json(server)).collect(),
            own_cpu_us_per_request: self.per_request(self.own_cpu_us),
            samples: tally.seconds().map(|seconds| seconds.iter().map(sample).collect()),
        }
    }

    fn server_json(&self, (pid, usage): &(u32, Usage)) -> json::Server {
        json::Server {
            pid: *pid,
            cpu_us_per_request: self.per_request(usage.cpu_us()),
            user_us_per_request: self.per_request(usage.user_us),
            system_us_per_request: self.per_request(usage.system_us),
            rss_bytes: usage.rss_bytes,
            rss_anon_bytes: usage.rss_anon_bytes,
            rss_file_bytes: usage.rss_file_bytes,
        }
    }

    /// Upper bounds in nanoseconds and counts: the fastest, then ten equal steps to the slowest.
    fn buckets(&self) -> Vec<(f64, u64)> {
        let tally = &self.outcome.tally;
        let (fastest, slowest) = (tally.fastest_ns() as f64, tally.slowest_ns() as f64);
        let step = (slowest - fastest) / f64::from(STEPS);
        let bounds: Vec<f64> = (0..=STEPS)
            .map(|at| if at == STEPS { slowest } else { fastest + step * f64::from(at) })
            .collect();
        let counts = tally.buckets(&bounds);
        bounds.into_iter().zip(counts).collect()
    }

    /// Requests that succeeded in a second.
    fn rate(&self) -> f64 {
        let seconds = self.outcome.elapsed.as_secs_f64();
        if seconds > 0.0 { self.outcome.tally.count() as f64 / seconds } else { 0.0 }
    }

    /// A share of something for each request, failed ones included: they cost too.
    fn per_request(&self, amount: u64) -> f64 {
        let requests = self.outcome.tally.count() + self.outcome.tally.error_count();
        amount as f64 / requests.max(1) as f64
    }

    /// `%4.4f`, or `%g` with `--precise`.
    fn number(&self, value: f64) -> String {
        match self.options.precise {
            true => gotext::shortest(value),
            false => format!("{value:4.4}"),
        }
    }
}

/// Tells what came of `watch-latency`.
pub(crate) fn write_watch(
    options: &WatchOptions,
    outcome: &WatchOutcome,
    servers: &[(u32, Usage)],
    out: &mut dyn Write,
) -> io::Result<()> {
    if options.json {
        let report = json::Watch {
            complete: outcome.failure.is_none(),
            seconds: outcome.elapsed.as_secs_f64(),
            put_us: (&outcome.puts).into(),
            event_from_put_us: (&outcome.from_put).into(),
            event_from_commit_us: (&outcome.from_commit).into(),
            servers: servers.iter().map(json::WatchServer::from).collect(),
        };
        out.write_all(json_line(&report)?.as_bytes())?;
        return out.flush();
    }
    let rows = [
        ("Put", &outcome.puts),
        ("Event after its put was due", &outcome.from_put),
        ("Event after its put was answered", &outcome.from_commit),
    ];
    for (name, tally) in rows {
        write!(out, "{name}:\t{} in all", tally.count())?;
        for percent in [50.0, 90.0, 99.0, 99.9, 100.0] {
            let us = tally.percentile_ns(percent) as f64 / 1e3;
            write!(out, ", p{percent} {us:.1} us")?;
        }
        writeln!(out, ".")?;
    }
    for (pid, usage) in servers {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            out,
            "Server {pid}:\t{:.3} s CPU, RSS {:.1} MiB (anonymous {:.1}).",
            usage.cpu_us() as f64 / 1e6,
            mib(usage.rss_bytes),
            mib(usage.rss_anon_bytes),
        )?;
    }
    out.flush()
}

fn seconds(ns: f64) -> f64 {
    ns / 1e9
}

fn json_line(report: &impl Serialize) -> io::Result<String> {
    Ok(serde_json::to_string(report)? + "\n")
}

/// etcd's percentiles, and the slowest.
const PERCENTS: [f64; 9] = [10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 100.0];
/// Steps of the histogram.
const STEPS: u32 = 10;
/// Characters of the longest bar.
const BAR_WIDTH: u64 = 40;
