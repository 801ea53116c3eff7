//! h2spec against a member: everything it asks of HTTP/2, with the exceptions that a gRPC server on
//! a port that also speaks HTTP/1.1 must make, each with its reason.
//!
//! h2spec's requests are not gRPC, so the member answers them 415 as soon as it has their head;
//! what h2spec does to the stream afterwards reaches a stream that is closed. The same cases
//! against the same transport without gRPC's impatience, where all of them pass, are in
//! `proto/tests/it/h2spec.rs`.

use std::collections::BTreeMap;
use std::process::Command;

use crate::harness::{DRIVERS, Setup, is_available, oracle};

const ANSWERED: &str = "the request is answered at its head, before what the case sends later";
const TRAILERS_ONLY: &str = "an answer without a body, where the case waits for DATA";
const HTTP1: &str = "what is no HTTP/2 preface is answered in HTTP/1.1, then the connection closes";

/// What may fail: section, the case's name, and why.
const EXCEPTIONS: [(&str, &str, &str); 11] = [
    ("generic/2", "Sends a WINDOW_UPDATE frame on half-closed (remote) stream", TRAILERS_ONLY),
    ("generic/2", "Sends a PRIORITY frame on half-closed (remote) stream", TRAILERS_ONLY),
    ("http2/3.5", "Sends invalid connection preface", HTTP1),
    ("http2/5.1", "closed: Sends a DATA frame after sending RST_STREAM frame", ANSWERED),
    ("http2/5.1", "closed: Sends a HEADERS frame after sending RST_STREAM frame", ANSWERED),
    (
        "http2/6.9",
        "Sends a WINDOW_UPDATE frame with a flow control window increment of 0 on a stream",
        ANSWERED,
    ),
    (
        "http2/6.9.1",
        "Sends multiple WINDOW_UPDATE frames increasing the flow control window to above 2^31-1 on \
         a stream",
        ANSWERED,
    ),
    ("http2/8.1", "Sends a second HEADERS frame without the END_STREAM flag", ANSWERED),
    (
        "http2/8.1.2.1",
        "Sends a HEADERS frame that contains a pseudo-header field as trailers",
        ANSWERED,
    ),
    (
        "http2/8.1.2.6",
        "Sends a HEADERS frame with the \"content-length\" header field which does not equal the \
         DATA frame payload length",
        ANSWERED,
    ),
    (
        "http2/8.1.2.6",
        "Sends a HEADERS frame with the \"content-length\" header field which does not equal the \
         sum of the multiple DATA frames payload length",
        ANSWERED,
    ),
];

/// Cases that h2spec leaves out of itself: four because no answer has a body, one because the
/// member limits no streams.
const LEFT_OUT_MAX: usize = 5;

#[test]
fn a_member_conforms_to_http2_with_listed_exceptions() {
    let _turn = crate::harness::turn::light();
    let Some(h2spec) = oracle("h2spec") else { return };
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver);
        let _member = setup.start();
        let report = dir.path().join("report.xml");
        let port = setup.client_port.to_string();
        let path = "/etcdserverpb.KV/Range";
        let output = Command::new(&h2spec)
            .args(["-h", "127.0.0.1", "-p", &port, "-P", path, "-S", "-o", "1", "-j"])
            .arg(&report)
            .output()
            .expect("h2spec runs");
        let report = std::fs::read_to_string(&report)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stdout)));
        let outcomes = outcomes(&report);
        let count = |wanted| outcomes.values().filter(|outcome| **outcome == wanted).count();
        eprintln!(
            "{driver}: {} cases, {} passed, {} left out, {} failed",
            outcomes.len(),
            count(Outcome::Passed),
            count(Outcome::LeftOut),
            count(Outcome::Failed)
        );
        assert!(outcomes.len() >= 140, "only {} cases", outcomes.len());
        assert!(count(Outcome::LeftOut) <= LEFT_OUT_MAX, "{outcomes:#?}");
        for ((section, name), outcome) in &outcomes {
            let reason = EXCEPTIONS.iter().find(|(in_section, called, _)| {
                (in_section, called) == (&section.as_str(), &name.as_str())
            });
            match (outcome, reason) {
                (Outcome::Failed, None) => panic!("{driver}: {section}: {name}"),
                (Outcome::Passed, Some((.., why))) => {
                    panic!("{section}: {name}: no exception any more: {why}")
                }
                _ => {}
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    LeftOut,
}

/// Section and name of each case in a JUnit report, with what became of it.
fn outcomes(report: &str) -> BTreeMap<(String, String), Outcome> {
    let attribute = |text: &str, name: &str| {
        let (_, rest) = text.split_once(&format!("{name}=\"")).unwrap_or_default();
        let value = rest.split('"').next().unwrap_or_default();
        value.replace("&#34;", "\"").replace("&#39;", "'").replace("&quot;", "\"")
    };
    let cases = report.split("<testcase ").skip(1).map(|text| {
        let text = text.split("</testcase>").next().unwrap_or_default();
        let outcome = if text.contains("<error") || text.contains("<failure") {
            Outcome::Failed
        } else if text.contains("<skipped") {
            Outcome::LeftOut
        } else {
            Outcome::Passed
        };
        ((attribute(text, "package"), attribute(text, "classname")), outcome)
    });
    cases.collect()
}
