//! The `etcore` program: reads the command line, starts a member, waits for a signal.

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use etcore_server::boot;
use etcore_server::cluster::version;
use etcore_server::config::Config;
use etcore_server::config::flags::{self, Asked, Notes};
use etcore_server::{log, notify, sys};

fn main() -> ExitCode {
    // First, so that every thread inherits both.
    sys::block_stop_signals();
    sys::take_short_turns();
    match flags::parse(std::env::args().skip(1), std::env::vars()) {
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
    let logger = match log::install(config.log_level, config.log_format, config.log_output) {
        Ok(logger) => logger,
        Err(error) => {
            complain(&error);
            return ExitCode::FAILURE;
        }
    };
    log::tell_of_lost_pages(config.log_format, config.log_output);
    for warning in &notes.warnings {
        tracing::warn!("{warning}");
    }
    for variable in &notes.unknown {
        tracing::warn!(environment_variable = %variable, "unrecognized environment variable");
    }
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
