//! How the results are told: etcd's report, then what etcd's tool does not say; or all of it as
//! one JSON object.
//!
//! Called once, at the end of a run. The part that etcd's tool prints too must never differ from it
//! in form, since scripts read it.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

use crate::engine::Outcome;
use crate::engine::watching::WatchOutcome;
use crate::gotext;
use crate::json::{Object, quote};
use crate::options::{Options, WatchOptions};
use crate::process::Usage;

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
            true => self.json() + "\n",
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
                .map(|ns| gotext::duration(Duration::from_nanos(ns)));
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

    fn json(&self) -> String {
        let (options, tally) = (self.options, &self.outcome.tally);
        let us = |ns: f64| ns / 1e3;
        let mut latency = Object::new();
        latency
            .number("mean", us(tally.mean_ns()))
            .number("stddev", us(tally.deviation_ns()))
            .number("min", us(tally.fastest_ns() as f64));
        for percent in PERCENTS {
            let name = format!("p{percent}").replace('.', "_");
            latency.number(&name, us(tally.percentile_ns(percent) as f64));
        }
        latency.number("max", us(tally.slowest_ns() as f64));
        let mut errors = Object::new();
        for (error, count) in tally.errors() {
            errors.integer(error, *count);
        }
        let mut object = Object::new();
        object
            .text("command", options.load.name())
            .array("endpoints", options.endpoints.iter().map(|one| quote(&one.authority)))
            .integer("conns", options.conns as u64)
            .integer("clients", options.clients as u64)
            .integer("threads", options.threads as u64)
            .integer("rate", options.rate)
            .integer("total", options.total)
            .boolean("complete", self.outcome.cut_short.is_none())
            .integer("succeeded", tally.count())
            .integer("failed", tally.error_count())
            .integer("began_unix", self.outcome.began_unix)
            .number("seconds", self.outcome.elapsed.as_secs_f64())
            .number("requests_per_second", self.rate())
            .object("latency_us", latency)
            .array("histogram", self.buckets().into_iter().map(bucket_json))
            .object("errors", errors)
            .array("servers", self.servers.iter().map(|server| self.server_json(server)))
            .number("own_cpu_us_per_request", self.per_request(self.own_cpu_us));
        if let Some(seconds) = tally.seconds() {
            object.array(
                "samples",
                seconds.iter().map(|(second, one)| {
                    let mut sample = Object::new();
                    sample
                        .integer("unix", self.outcome.began_unix + second)
                        .number("min_us", us(one.fastest_ns as f64))
                        .number("mean_us", us(one.sum_ns as f64 / one.count as f64))
                        .number("max_us", us(one.slowest_ns as f64))
                        .integer("count", one.count);
                    sample.finish()
                }),
            );
        }
        object.finish()
    }

    fn server_json(&self, (pid, usage): &(u32, Usage)) -> String {
        let mut server = Object::new();
        server
            .integer("pid", u64::from(*pid))
            .number("cpu_us_per_request", self.per_request(usage.cpu_us()))
            .number("user_us_per_request", self.per_request(usage.user_us))
            .number("system_us_per_request", self.per_request(usage.system_us))
            .integer("rss_bytes", usage.rss_bytes)
            .integer("rss_anon_bytes", usage.rss_anon_bytes)
            .integer("rss_file_bytes", usage.rss_file_bytes);
        server.finish()
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
    let rows = [
        ("put", "Put", &outcome.puts),
        ("event_from_put", "Event after its put was due", &outcome.from_put),
        ("event_from_commit", "Event after its put was answered", &outcome.from_commit),
    ];
    let percents = [50.0, 90.0, 99.0, 99.9, 100.0];
    if options.json {
        let mut object = Object::new();
        object.boolean("complete", outcome.failure.is_none());
        object.number("seconds", outcome.elapsed.as_secs_f64());
        for (name, _, tally) in rows {
            let mut row = Object::new();
            row.integer("count", tally.count());
            for percent in percents {
                let name = format!("p{percent}").replace('.', "_");
                row.number(&name, tally.percentile_ns(percent) as f64 / 1e3);
            }
            object.object(&format!("{name}_us"), row);
        }
        let servers = servers.iter().map(|(pid, usage)| {
            let mut server = Object::new();
            server
                .integer("pid", u64::from(*pid))
                .integer("cpu_us", usage.cpu_us())
                .integer("rss_bytes", usage.rss_bytes)
                .integer("rss_anon_bytes", usage.rss_anon_bytes);
            server.finish()
        });
        object.array("servers", servers);
        return writeln!(out, "{}", object.finish());
    }
    for (_, name, tally) in rows {
        write!(out, "{name}:\t{} in all", tally.count())?;
        for percent in percents {
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

fn bucket_json((bound_ns, count): (f64, u64)) -> String {
    let mut bucket = Object::new();
    bucket.number("up_to_us", bound_ns / 1e3).integer("count", count);
    bucket.finish()
}

/// etcd's percentiles, and the slowest.
const PERCENTS: [f64; 9] = [10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 100.0];
/// Steps of the histogram.
const STEPS: u32 = 10;
/// Characters of the longest bar.
const BAR_WIDTH: u64 = 40;
