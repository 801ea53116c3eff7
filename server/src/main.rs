//! The `etcore` program: reads the command line, starts a member, waits for a signal.

use std::fs::File;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use etcore_proto::gotext::format_error;
use etcore_server::boot;
use etcore_server::cluster::version;
use etcore_server::config::Config;
use etcore_server::config::file::BYTES_MAX;
use etcore_server::config::flags::{self, Asked, Notes};
use etcore_server::{log, notify, sys};

fn main() -> ExitCode {
    // First, so that every thread inherits both.
    sys::block_stop_signals();
    sys::take_short_turns();
    let (args, variables) = (std::env::args().skip(1), std::env::vars());
    match flags::parse_with_file(args, variables, read_config_file, default_host) {
        Ok(Asked::Print(text)) => {
            // A closed pipe is the reader's business.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(Asked::Run(config, notes)) => run(*config, &notes),
        Err(refused) => {
            complain(refused.message.trim_end());
            ExitCode::from(refused.status)
        }
    }
}

fn run(config: Config, notes: &Notes) -> ExitCode {
    let logger = match log::install(config.log_level, config.log_format, &config.log_output) {
        Ok(logger) => logger,
        Err(error) => {
            complain(&error);
            return ExitCode::FAILURE;
        }
    };
    log::tell_of_lost_pages(config.log_format, config.log_output.clone());
    tell(notes);
    tracing::info!(
        etcd_version = version::ETCD,
        etcore_version = version::OWN,
        name = %config.name,
        data_dir = %config.data_dir,
        "starting an etcd server"
    );
    let code = run_member(config);
    drop(logger);
    code
}

/// What is to be said of the settings and where they came from.
fn tell(notes: &Notes) {
    if let Some(path) = &notes.file {
        tracing::info!(
            path,
            "loaded server configuration, other configuration command line flags and environment \
             variables will be ignored if provided"
        );
    }
    if let Some(host) = &notes.default_host {
        tracing::info!(host, "detected default host for advertise");
    }
    for warning in &notes.warnings {
        tracing::warn!("{warning}");
    }
    for variable in &notes.used {
        // Its value may be a secret.
        tracing::info!(variable_name = %variable, "recognized and used environment variable");
    }
    for variable in &notes.unknown {
        tracing::warn!(environment_variable = %variable, "unrecognized environment variable");
    }
    for key in &notes.unknown_keys {
        tracing::warn!(key, "unrecognized key of the configuration file");
    }
}

/// The address that this machine has towards others: that of its default route. Nothing is sent.
fn default_host() -> Option<String> {
    /// An address that is nobody's (RFC 5737).
    const ELSEWHERE: (&str, u16) = ("192.0.2.1", 9);
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect(ELSEWHERE).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then(|| address.to_string())
}

/// The text of the configuration file.
fn read_config_file(path: &str) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("open {path}: {}", format_error(&error));
    let mut text = String::new();
    let mut file = File::open(path).map_err(failed)?.take(BYTES_MAX + 1);
    file.read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > BYTES_MAX {
        return Err(format!("{path}: longer than {BYTES_MAX} bytes, which no configuration is"));
    }
    Ok(text)
}

fn run_member(config: Config) -> ExitCode {
    let running = match boot::start(config) {
        Ok(running) => running,
        Err(error) => {
            tracing::error!(error = %error, "the member cannot start");
            return ExitCode::FAILURE;
        }
    };
    let (mut idle, mut told) = (IdleTrim::default(), false);
    let _ = running.shared().waiter.set(sys::wake_waiter);
    // A wake that comes before is not lost: it is a signal that stays pending.
    while running.is_running() && !running.shared().lifecycle.is_stopping() {
        if !told && running.shared().lifecycle.is_serving() {
            told = true;
            tell_init_system();
        }
        running.follow_files();
        idle.every_second(running.shared().status.applied.load(Ordering::Relaxed));
        if let Some(signal) = sys::wait_for_stop() {
            tracing::info!(signal, "received signal; shutting down");
            break;
        }
    }
    match running.stop() {
        Ok(()) => {
            tracing::info!("closed etcd server");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            tracing::error!(error = %reason, "stopped after a failure");
            ExitCode::FAILURE
        }
    }
}

/// As etcd does, once the member has joined its cluster.
fn tell_init_system() {
    match notify::ready(std::env::var_os(notify::VARIABLE).as_deref()) {
        Ok(true) => tracing::info!("successfully notified init daemon"),
        Ok(false) => {}
        Err(error) => {
            tracing::error!(error = %error, "failed to notify systemd for readiness");
        }
    }
}

/// Gives memory back once a burst of writes is over: the allocator keeps what the burst needed, and
/// an idle member should not.
#[derive(Default)]
struct IdleTrim {
    applied: u64,
    trimmed_at: Option<u64>,
}

impl IdleTrim {
    /// Trims in the first second in which nothing was applied.
    fn every_second(&mut self, applied: u64) {
        if applied == self.applied && self.trimmed_at != Some(applied) {
            self.trimmed_at = Some(applied);
            sys::trim_memory();
        }
        self.applied = applied;
    }
}

/// Before the logger exists; one line.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
