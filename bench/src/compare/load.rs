//! The programs that make the load, and what they say.
//!
//! Used by everything that measures. Must never wait for one after a signal to stop.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::servers::spawn;
use super::{CompareError, Comparison, io_error};

impl Comparison<'_> {
    /// Runs `benchmark` on one core or on all, and reads its report: no request may fail.
    pub(super) fn benchmark(
        &self,
        endpoints: &str,
        core: Option<usize>,
        arguments: &[&str],
    ) -> Result<Value, CompareError> {
        let program = match &self.args.benchmark {
            Some(path) => path.clone(),
            None => std::env::current_exe().map_err(io_error("this program"))?,
        };
        let mut command = Command::new(program);
        command.arg(format!("--endpoints={endpoints}")).arg("--json").args(arguments);
        let output = self.output(&mut command, core)?;
        report(&output).map_err(|what| {
            CompareError::Failed(format!("benchmark {}: {what}", arguments.join(" ")))
        })
    }

    /// What a program says, once it has ended.
    pub(super) fn output(
        &self,
        command: &mut Command,
        core: Option<usize>,
    ) -> Result<Output, CompareError> {
        let name = PathBuf::from(command.get_program()).display().to_string();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(command, core).map_err(io_error(&name))?;
        // All that is run here says less than a pipe holds, so it need not be read meanwhile.
        while child.try_wait().map_err(io_error(&name))?.is_none() {
            if let Err(error) = self.check_stopped() {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        child.wait_with_output().map_err(io_error(&name))
    }
}

/// The report of a run in which everything succeeded.
fn report(output: &Output) -> Result<Value, String> {
    let text = String::from_utf8_lossy(&output.stdout);
    let said = || format!("{text}{}", String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        return Err(format!("{}: {}", output.status, said()));
    }
    let report: Value =
        serde_json::from_str(&text).map_err(|_| format!("no report: {}", said()))?;
    let failed = report.get("failed").and_then(Value::as_u64).unwrap_or(0);
    match report.get("complete") {
        Some(Value::Bool(true)) if failed == 0 => Ok(report),
        _ => Err(format!("failures: {text}")),
    }
}

/// The number at this place in a report (RFC 6901).
pub(super) fn number(report: &Value, place: &str) -> Result<f64, CompareError> {
    let number = report.pointer(place).and_then(Value::as_f64);
    number.ok_or_else(|| CompareError::Failed(format!("no {place} in {report}")))
}

/// Time between two looks at a program that runs: short against any load.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use super::*;

    fn output(status: i32, text: &str) -> Output {
        let status = ExitStatus::from_raw(status << 8);
        Output { status, stdout: text.into(), stderr: Vec::new() }
    }

    #[test]
    fn only_a_run_without_failures_is_a_report() {
        let report = report(&output(0, r#"{"complete":true,"failed":0,"a":{"b":[7.5]}}"#));
        let report = report.unwrap();
        assert_eq!(number(&report, "/a/b/0").unwrap(), 7.5);
        assert!(number(&report, "/a/c").unwrap_err().to_string().contains("no /a/c"));
        let refused = [
            (0, r#"{"complete":true,"failed":1}"#),
            (0, r#"{"complete":false,"failed":0}"#),
            (0, "bench with linearizable range"),
            (1, r#"{"complete":true,"failed":0}"#),
        ];
        for (status, text) in refused {
            assert!(super::report(&output(status, text)).is_err(), "{status}: {text}");
        }
    }
}
