//! Load by `h2load`, a client that nobody wrote for either server.
//!
//! Used by `member` for CPU per request. Must never count a request that was not answered with a
//! message.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{CompareError, Comparison, LOAD_CORE, io_error};
use crate::options::Endpoint;

/// Whether it is installed.
pub(super) fn is_there() -> bool {
    Command::new("h2load").arg("--version").output().is_ok_and(|output| output.status.success())
}

impl Comparison<'_> {
    /// Writes a gRPC message to a file that `h2load` sends.
    pub(super) fn body(&self, name: &str, message: &[u8]) -> Result<PathBuf, CompareError> {
        let folder = self.args.scratch.join("bodies");
        std::fs::create_dir_all(&folder).map_err(io_error(folder.display()))?;
        let path = folder.join(name);
        std::fs::write(&path, framed(message)).map_err(io_error(path.display()))?;
        Ok(path)
    }

    /// Makes so many calls on 16 connections of `streams` concurrent ones, all of which must
    /// succeed.
    pub(super) fn h2load(
        &self,
        endpoint: &Endpoint,
        (count, streams): (u64, u32),
        method: &str,
        body: &Path,
    ) -> Result<(), CompareError> {
        let mut command = Command::new("h2load");
        command.args(["-n", &count.to_string(), "-c", "16", "-m", &streams.to_string()]);
        command.args(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
        command.arg("-d").arg(body);
        command.arg(format!("http://{endpoint}/etcdserverpb.KV/{method}"));
        let output = self.output(&mut command, Some(LOAD_CORE))?;
        let said = String::from_utf8_lossy(&output.stdout);
        check(&said, count).map_err(|what| CompareError::Failed(format!("h2load: {what}: {said}")))
    }
}

/// A message as gRPC frames it: not compressed, and its length.
fn framed(message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend_from_slice(&(message.len() as u32).to_be_bytes());
    bytes.extend_from_slice(message);
    bytes
}

/// Whether all succeeded, and were answered with more than a frame's head.
fn check(said: &str, count: u64) -> Result<(), String> {
    let line = |start: &str| said.lines().find_map(|line| line.strip_prefix(start)).unwrap_or("");
    let succeeded = line("requests: ").split(", ").find_map(|part| part.strip_suffix(" succeeded"));
    let succeeded: u64 = succeeded.and_then(|number| number.parse().ok()).unwrap_or(0);
    if succeeded != count {
        return Err(format!("{succeeded} of {count} requests succeeded"));
    }
    let data = line("traffic: ").rsplit(", ").next().and_then(|part| part.strip_suffix(" data"));
    let data = data.and_then(|part| part.rsplit_once('(')?.1.strip_suffix(')')?.parse().ok());
    match data {
        Some(bytes) if count * 5 <= bytes => Ok(()),
        _ => Err("answers without a message".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
finished in 12.07ms, 1325.93 req/s, 148.13KB/s
requests: 16 total, 16 started, 16 done, 16 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 16 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 1.79KB (1830) total, 646B (646) headers (space savings 76.09%), 448B (448) data
";

    #[test]
    fn success_is_every_request_answered_with_a_message() {
        assert_eq!(check(SAID, 16), Ok(()));
        assert!(check(SAID, 17).unwrap_err().contains("16 of 17"));
        assert!(check(&SAID.replace("(448)", "(79)"), 16).unwrap_err().contains("without"));
        assert!(check("", 1).is_err());
    }

    #[test]
    fn a_message_is_framed_as_grpc_says() {
        assert_eq!(framed(b"abc"), b"\0\0\0\0\x03abc");
        assert_eq!(framed(&[7; 300])[..6], [0, 0, 0, 1, 44, 7]);
    }
}
