//! How long the way to each peer takes, and how far its clock is off.
//!
//! The links send a probe to each member every four seconds; here its answer is judged, as etcd's
//! prober does: smoothed round trips, warnings about peers that do not answer or whose clock
//! differs. Called by the links' shell. Nothing depends on its results.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use etcore_proto::civil;
use etcore_raftlog::peer::Event;

use crate::clock::Clock;
use crate::log::rfc3339_micros;
use crate::metrics::Network;

/// Between two looks at a peer that answers (etcd: statusMonitoringInterval).
const LOOK_MS: u64 = 30_000;
/// At first, and while it does not (etcd: statusErrorInterval).
const LOOK_SOON_MS: u64 = 5000;
/// The clock's difference that is worth a warning.
const DRIFT_MAX: Duration = Duration::from_secs(1);
/// What one probe counts for in the smoothed round trip.
const WEIGHT: f64 = 0.125;
/// etcd probes with both of its transports; the streams' is the one that matters.
const ROUND_TRIPPER: &str = "ROUND_TRIPPER_RAFT_MESSAGE";

/// See the module text.
#[derive(Default)]
pub(super) struct Prober {
    peers: BTreeMap<u64, Probed>,
}

struct Probed {
    sent: Option<Duration>,
    smoothed_s: f64,
    /// Positive if the peer's clock is behind, in seconds.
    clock_drift_s: f64,
    error: Option<String>,
    has_answered: bool,
    look_ms: u64,
}

impl Prober {
    /// Forgets whoever is no member any more.
    pub(super) fn keep(&mut self, members: impl Iterator<Item = u64>) {
        let members: Vec<u64> = members.collect();
        self.peers.retain(|peer, _| members.contains(peer));
    }

    /// Takes the transport's events about probes.
    pub(super) fn note(&mut self, event: &Event, clock: &Clock, now_ms: u64) {
        match event {
            Event::ProbeSent { peer } => {
                let first = || Probed::new(now_ms + LOOK_SOON_MS);
                self.peers.entry(*peer).or_insert_with(first).sent = Some(clock.elapsed());
            }
            Event::ProbeEnded { peer, answer } => {
                let first = || Probed::new(now_ms + LOOK_SOON_MS);
                let probed = self.peers.entry(*peer).or_insert_with(first);
                let round_trip = probed.sent.take().map(|sent| clock.elapsed() - sent);
                match (answer, round_trip) {
                    (Ok(body), Some(round_trip)) => {
                        probed.record(body, round_trip, clock.unix());
                    }
                    (Ok(_), None) => {}
                    (Err(error), _) => probed.error = Some(error.clone()),
                }
            }
            _ => {}
        }
    }

    /// Warns about what is wrong, now and then, and feeds the histogram.
    pub(super) fn look(&mut self, network: &Network, now_ms: u64) {
        for (peer, probed) in &mut self.peers {
            if now_ms < probed.look_ms {
                continue;
            }
            let remote_peer_id = format!("{peer:x}");
            let rtt = format!("{:?}", Duration::from_secs_f64(probed.smoothed_s));
            let is_healthy = probed.has_answered && probed.error.is_none();
            probed.look_ms = now_ms + if is_healthy { LOOK_MS } else { LOOK_SOON_MS };
            if !is_healthy {
                tracing::warn!(
                    round_tripper_name = ROUND_TRIPPER,
                    remote_peer_id,
                    rtt,
                    error = probed.error.as_deref().unwrap_or("no answer yet"),
                    "prober detected unhealthy status"
                );
            }
            if probed.clock_drift_s > DRIFT_MAX.as_secs_f64() {
                tracing::warn!(
                    round_tripper_name = ROUND_TRIPPER,
                    remote_peer_id,
                    clock_drift = format!("{:?}", Duration::from_secs_f64(probed.clock_drift_s)),
                    rtt,
                    "prober found high clock drift"
                );
            }
            if probed.has_answered {
                let labels = vec![("To", remote_peer_id)];
                network.round_trip.get_or_create(&labels).observe(probed.smoothed_s);
            }
        }
    }
}

impl Probed {
    fn new(look_ms: u64) -> Self {
        Self {
            sent: None,
            smoothed_s: 0.0,
            clock_drift_s: 0.0,
            error: None,
            has_answered: false,
            look_ms,
        }
    }

    fn record(&mut self, body: &Bytes, round_trip: Duration, now: SystemTime) {
        let Some(there) = parse_answer(body) else {
            self.error = Some("the answer to a probe makes no sense".to_owned());
            return;
        };
        let round_trip_s = round_trip.as_secs_f64();
        let before_s = if self.has_answered { self.smoothed_s } else { round_trip_s };
        self.smoothed_s = (1.0 - WEIGHT) * before_s + WEIGHT * round_trip_s;
        let here = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        self.clock_drift_s = here - there - self.smoothed_s / 2.0;
        self.has_answered = true;
        self.error = None;
    }
}

/// The answer to a peer's probe.
pub(super) fn answer(now: SystemTime) -> String {
    format!("{{\"OK\":true,\"Now\":\"{}\"}}\n", rfc3339_micros(now))
}

/// What a peer answers: its time in seconds since 1970, if it says that it is well.
fn parse_answer(body: &[u8]) -> Option<f64> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    if !value.get("OK")?.as_bool()? {
        return None;
    }
    parse_rfc3339(value.get("Now")?.as_str()?)
}

/// Seconds since 1970 of a time as Go writes it: `2026-11-21T16:15:32.123456789+02:00`.
fn parse_rfc3339(text: &str) -> Option<f64> {
    let (date, rest) = text.split_once('T')?;
    let zone_at = rest.find(['Z', '+', '-'])?;
    let (time, zone) = rest.split_at(zone_at);
    let mut date = date.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || !(0..=9999).contains(&year) {
        return None;
    }
    let mut time = time.split(':');
    let hours: f64 = time.next()?.parse().ok()?;
    let minutes: f64 = time.next()?.parse().ok()?;
    let seconds: f64 = time.next()?.parse().ok()?;
    let offset_s = match zone.split_at_checked(1)? {
        ("Z", "") => 0.0,
        (sign, offset) => {
            let (hours, minutes) = offset.split_once(':')?;
            let offset_s =
                hours.parse::<f64>().ok()? * 3600.0 + minutes.parse::<f64>().ok()? * 60.0;
            if sign == "-" { -offset_s } else { offset_s }
        }
    };
    let days = civil::days_of(year, month, day);
    Some(days as f64 * 86_400.0 + hours * 3600.0 + minutes * 60.0 + seconds - offset_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_go_and_as_we_write_them() {
        let near = |text: &str, expected: f64| {
            let got = parse_rfc3339(text).unwrap();
            assert!((got - expected).abs() < 1e-5, "{text}: {got}");
        };
        near("1970-01-01T00:00:00Z", 0.0);
        near("2000-02-29T00:00:00.5Z", 951_782_400.5);
        near("2026-11-21T14:00:00.123456789+02:00", 1_795_262_400.123_456);
        near("2026-11-21T10:30:00-01:30", 1_795_262_400.0);
        let now = UNIX_EPOCH + Duration::from_micros(1_795_262_400_123_456);
        let there = parse_answer(answer(now).as_bytes()).unwrap();
        assert!((there - 1_795_262_400.123_456).abs() < 1e-5);
        for wrong in ["", "T", "1970-13-01T00:00:00Z", "1970-01-01T00:00:00", "1970-01-01Tx:0:0Z"] {
            assert_eq!(parse_rfc3339(wrong), None, "{wrong}");
        }
        assert_eq!(parse_answer(br#"{"OK":false,"Now":"1970-01-01T00:00:00Z"}"#), None);
    }

    #[test]
    fn the_drift_of_a_peers_clock_is_what_its_answer_is_behind() {
        let mut probed = Probed::new(0);
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let behind = answer(now - Duration::from_secs(7));
        probed.record(&Bytes::from(behind), Duration::from_millis(20), now);
        assert!((probed.clock_drift_s - 6.99).abs() < 1e-6, "{}", probed.clock_drift_s);
        assert!((probed.smoothed_s - 0.02).abs() < 1e-9);
        probed.record(&Bytes::from_static(b"no"), Duration::ZERO, now);
        assert!(probed.error.is_some());
    }
}
