//! Starting and stopping a member: the data directory, recovery, the threads.
//!
//! Called by `main`. Everything that can be wrong with the configuration, the directory or the
//! stored data is found here, before a client is let in, and ends the process with one line.

use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use etcore_engine::bucket::Bucket;
use etcore_engine::checkpoint::Checkpointer;
use etcore_engine::file::{Disk, FileOp, FileOutput, StdDisk, run};
use etcore_engine::store::Store;
use etcore_engine::types::Identity;
use etcore_engine::wire::KvRef;
use etcore_proto::raftpb;
use etcore_raftlog::bootstrap::{Peer, bootstrap};
use etcore_raftlog::log::{Applied, Found, Log};
use etcore_raftlog::node::NodeConfig;
use etcore_raftlog::wal::{self, NewLog, SegmentName, WriterConfig};
use prost::Message;

use crate::clock::Clock;
use crate::cluster::identity;
use crate::cluster::member::Member;
use crate::config::{Config, ListenUrl, cluster};
use crate::driver::{AnyListener, probe};
use crate::front::{Door, Serves};
use crate::lease::{self, Attachments, Lessor};
use crate::limits;
use crate::net::{self, BindOptions};
use crate::replica::REMOVED;
use crate::sys;
use crate::tls::Tls;

pub(crate) mod assemble;
mod corruption;
mod joining;
mod received;
mod remote;
mod threads;

pub use threads::Running;

/// The log's directory below the member's.
const WAL_DIR: &str = "wal";
/// The page file.
pub(crate) const DB_FILE: &str = "etcore.db";
/// Held as long as the member runs.
const LOCK_FILE: &str = "lock";

/// Why a member does not start: one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The data directory cannot be used.
    #[error("cannot use data directory {path}: {error}")]
    DataDir {
        /// Its path.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// The log's own directory cannot be used.
    #[error("cannot use --wal-dir={path}: {error}")]
    LogDir {
        /// Its path.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// Another member has it.
    #[error("data directory {0} is used by another process; stop that one or choose --data-dir")]
    Locked(String),
    /// A URL cannot be listened on.
    #[error("cannot listen on {url}: {error}")]
    Listen {
        /// The URL.
        url: String,
        /// What the system said.
        error: io::Error,
    },
    /// The stored data are damaged or do not fit together.
    #[error("{0}")]
    Stored(String),
    /// The flags about the cluster do not fit together, or not the cluster that runs.
    #[error("{0}")]
    Cluster(String),
    /// Certificates or keys cannot be used.
    #[error("{0}")]
    Tls(String),
    /// The machine cannot do what was asked.
    #[error("{0}")]
    Machine(String),
}

/// The member's directory, locked.
struct DataDir {
    member: PathBuf,
    lock: File,
}

/// Bound sockets.
struct Listeners {
    /// The client URLs', those for HTTP and metrics among them.
    client: Vec<(AnyListener, Arc<Door>)>,
    /// The peer URLs'.
    peer: Vec<AnyListener>,
}

/// What a member's files hold, ready to go on.
pub struct Stored {
    /// The store, at the page file's newest checkpoint.
    pub store: Store,
    /// The leases in it.
    pub lessor: Lessor,
    /// The page file's writing side.
    pub checkpointer: Checkpointer,
    /// Raft and the log: what the store has not applied comes out of it as committed.
    pub log: Log,
    /// This member.
    pub member_id: u64,
    /// Its cluster.
    pub cluster_id: u64,
    /// Tells this start from others: nanoseconds since 1970, or of a simulated clock.
    pub nonce: u64,
}

/// Everything that was recovered, before any thread runs.
struct Recovered {
    stored: Stored,
    /// It was founded or has joined with this start.
    is_new: bool,
    /// See [`boot_nonce`].
    nonce: u64,
    page_disk: StdDisk,
    log_disk: StdDisk,
}

/// Starts a member; it serves when this returns, or soon after.
///
/// # Errors
/// [`BootError`].
pub fn start(config: Config) -> Result<Running, BootError> {
    let clock = Clock::start();
    if config.locks_memory {
        sys::lock_memory()
            .map_err(|error| BootError::Machine(format!("--memory-mlock: {error}")))?;
    }
    let dir = open_data_dir(&config.data_dir)?;
    let config = with_log_dir(config, &dir.member)?;
    let tls = load_tls(&config)?;
    let doors = doors(&config);
    let urls: Vec<ListenUrl> = doors.iter().map(|(url, _)| (*url).clone()).collect();
    let client = bind_all(&urls, &config)?;
    let doors: Vec<Arc<Door>> = doors.into_iter().map(|(_, door)| door).collect();
    let peer = bind_all(&config.listen_peer_urls, &config)?;
    let choice = probe::choose(config.io_driver).map_err(BootError::Machine)?;
    tracing::info!(
        io_driver = if choice.kind == probe::DriverKind::Uring { "uring" } else { "portable" },
        reason = %choice.reason,
        "io driver chosen"
    );
    let recovered = recover(&config, &tls, &dir.member)?;
    let any = |sockets: Vec<std::os::fd::OwnedFd>| -> Vec<AnyListener> {
        sockets.into_iter().map(|socket| Arc::new(socket).into()).collect()
    };
    // Bound in the order of their URLs.
    let client = any(client).into_iter().zip(doors).collect();
    let listeners = Listeners { client, peer: any(peer) };
    assemble::run(config, clock, dir, &choice, recovered, tls, listeners)
        .map_err(|error| BootError::Machine(error.to_string()))
}

/// The URLs for clients, and what is served at each. With URLs for HTTP of its own, the others are
/// for gRPC alone.
fn doors(config: &Config) -> Vec<(&ListenUrl, Arc<Door>)> {
    let observe = &config.observe;
    let split = !observe.listen_client_http_urls.is_empty();
    let client = if split { Serves::Grpc } else { Serves::Everything };
    let groups = [
        (&config.listen_client_urls, client),
        (&observe.listen_client_http_urls, Serves::Http),
        (&observe.listen_metrics_urls, Serves::Metrics),
    ];
    let doors = groups.into_iter().flat_map(|(urls, serves)| {
        urls.iter().map(move |url| (url, Arc::new(Door { url: url.to_string(), serves })))
    });
    doors.collect()
}

fn open_data_dir(path: &str) -> Result<DataDir, BootError> {
    let failed = |error| BootError::DataDir { path: path.to_owned(), error };
    let member = Path::new(path).join("member");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&member).map_err(failed)?;
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(member.join(LOCK_FILE))
        .map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(DataDir { member, lock }),
        Err(std::fs::TryLockError::WouldBlock) => Err(BootError::Locked(path.to_owned())),
        Err(std::fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Makes the log's directory, if it is to be another than the usual one.
fn with_log_dir(mut config: Config, member_dir: &Path) -> Result<Config, BootError> {
    if config.wal_dir.is_empty() {
        return Ok(config);
    }
    let failed = |error| BootError::LogDir { path: config.wal_dir.clone(), error };
    // Names are resolved below the member's directory otherwise.
    let path = std::path::absolute(&config.wal_dir).map_err(failed)?;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?;
    let mut disk = StdDisk::new(member_dir);
    let path = path.display().to_string();
    let path = path.trim_end_matches('/').to_owned();
    if segments(&mut disk, &path)?.is_empty() && !segments(&mut disk, WAL_DIR)?.is_empty() {
        return Err(BootError::Stored(format!(
            "--wal-dir={path} holds no log, but {}/{WAL_DIR} does; move its files there, or leave \
             the flag out",
            member_dir.display()
        )));
    }
    config.wal_dir = path;
    Ok(config)
}

/// The log's directory, seen from the member's.
fn log_dir(config: &Config) -> &str {
    if config.wal_dir.is_empty() { WAL_DIR } else { &config.wal_dir }
}

/// Reads certificates and keys, or makes them.
fn load_tls(config: &Config) -> Result<Arc<Tls>, BootError> {
    let hosts = |urls: &[ListenUrl]| -> Vec<String> { urls.iter().map(ListenUrl::host).collect() };
    let (client, peer) = (&config.listen_client_urls, &config.listen_peer_urls);
    let data_dir = Path::new(&config.data_dir);
    let tls = Tls::load(&config.tls, data_dir, &hosts(client), &hosts(peer));
    let tls = tls.map_err(BootError::Tls)?;
    tell_of_plain_urls(config);
    Ok(Arc::new(tls))
}

/// As etcd does, of URLs that are served without TLS although there are flags for it.
fn tell_of_plain_urls(config: &Config) {
    let plain = |url: &&ListenUrl| !url.is_tls();
    let (client, peer) = (&config.tls.client, &config.tls.peer);
    for url in config.listen_peer_urls.iter().filter(plain) {
        if peer.serves() {
            tracing::warn!(
                peer_url = %url,
                "scheme is HTTP while key and cert files are present; ignoring key and cert files"
            );
        }
        if peer.client_cert_auth {
            tracing::warn!(
                peer_url = %url,
                "scheme is HTTP while --peer-client-cert-auth is enabled; ignoring client cert auth for this URL"
            );
        }
    }
    for url in config.listen_client_urls.iter().filter(plain) {
        if client.serves() {
            tracing::warn!(
                client_url = %url,
                "scheme is http or unix while key and cert files are present; ignoring key and cert files"
            );
        }
        if client.client_cert_auth {
            tracing::warn!(
                client_url = %url,
                "scheme is http or unix while --client-cert-auth is enabled; ignoring client cert auth for this URL"
            );
        }
    }
}

fn bind_all(urls: &[ListenUrl], config: &Config) -> Result<Vec<std::os::fd::OwnedFd>, BootError> {
    let options = BindOptions {
        reuse_port: config.socket_reuse_port,
        reuse_address: config.socket_reuse_address,
    };
    urls.iter()
        .map(|url| {
            bind_patiently(url, options)
                .map_err(|error| BootError::Listen { url: url.to_string(), error })
        })
        .collect()
}

/// The sockets of a member that was killed are closed by the kernel a moment after its end if
/// io_uring held them: a restart waits for that, briefly.
fn bind_patiently(url: &ListenUrl, options: BindOptions) -> io::Result<std::os::fd::OwnedFd> {
    const TRIES: u32 = 40;
    const STEP: std::time::Duration = std::time::Duration::from_millis(25);
    for _ in 1..TRIES {
        match net::bind(url, options) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => std::thread::sleep(STEP),
            other => return other,
        }
    }
    net::bind(url, options)
}

fn recover(config: &Config, tls: &Tls, member_dir: &Path) -> Result<Recovered, BootError> {
    let disk = || match StdDisk::with_locks(member_dir) {
        disk if config.no_fsync => disk.without_syncs(),
        disk => disk,
    };
    let (mut page_disk, mut log_disk) = (disk(), disk());
    if config.no_fsync {
        tracing::warn!("--unsafe-no-fsync: what was acknowledged may be lost with the power");
    }
    let nonce = boot_nonce();
    let mut joined = None;
    let is_new = segments(&mut log_disk, log_dir(config))?.is_empty();
    if is_new {
        if config.joins_existing {
            joined = Some(joining::ask(config, tls).map_err(BootError::Cluster)?);
        } else {
            check_founding(config, tls)?;
        }
    }
    let disks: (&mut dyn Disk, &mut dyn Disk) = (&mut page_disk, &mut log_disk);
    let mut stored = open_stored_as(config, nonce, member_dir, disks, joined)?;
    refuse_removed(&stored)?;
    defragment_at_start(config, &mut stored);
    Ok(Recovered { stored, is_new, nonce, page_disk, log_disk })
}

/// Has the page file defragmented if that frees enough; the member serves meanwhile.
fn defragment_at_start(config: &Config, stored: &mut Stored) {
    let threshold_bytes = config.defrag_threshold_bytes;
    if threshold_bytes == 0 {
        return;
    }
    let (size_bytes, free_bytes) = stored.checkpointer.size_bytes();
    let is_worth_it = free_bytes >= threshold_bytes;
    if is_worth_it {
        stored.store.defragment();
    }
    tracing::info!(
        current_db_size_bytes = size_bytes,
        current_db_size_in_use_bytes = size_bytes - free_bytes,
        bootstrap_defrag_threshold_bytes = threshold_bytes,
        "{}",
        if is_worth_it { "starting defragment" } else { "Skipping defragmentation" }
    );
}

/// Reads the page file and the log below `member_dir`, which both disks have as their root, and
/// ties them together: what a start does before any thread runs. A new member's files are made.
/// `nonce` differs between starts.
///
/// # Errors
/// [`BootError::Stored`]: damaged files, or files that do not belong together.
pub fn open_stored(
    config: &Config,
    nonce: u64,
    member_dir: &Path,
    page_disk: &mut dyn Disk,
    log_disk: &mut dyn Disk,
) -> Result<Stored, BootError> {
    open_stored_as(config, nonce, member_dir, (page_disk, log_disk), None)
}

/// As [`open_stored`]; a new member joins a running cluster as the one it is `joined` as there, and
/// founds its part of a new one otherwise. The disks are the page file's and the log's.
///
/// # Errors
/// As [`open_stored`].
pub fn open_stored_as(
    config: &Config,
    nonce: u64,
    member_dir: &Path,
    (page_disk, log_disk): (&mut dyn Disk, &mut dyn Disk),
    joined: Option<Identity>,
) -> Result<Stored, BootError> {
    let stored = |error: &dyn std::fmt::Display| BootError::Stored(error.to_string());
    let dir = log_dir(config);
    received::settle(member_dir, dir, page_disk, log_disk)?;
    let segments = segments(log_disk, dir)?;
    refuse_lost_page_file(page_disk, &segments)?;
    let mut attachments = Attachments::default();
    let mut visit = |row: &KvRef<'_>| attachments.visit(row);
    let (mut store, checkpointer) =
        Store::open_visiting(page_disk, config.engine.clone(), &mut visit)
            .map_err(|error| stored(&error))?;
    let lessor = recover_leases(config, &store, attachments)?;
    let is_new = segments.is_empty();
    if is_new {
        refuse_lost_log(member_dir, &store)?;
        match joined {
            Some(identity) => create_empty_log(config, identity, log_disk)?,
            None => create_log(config, own_member_id(config), log_disk)?,
        }
    }
    let (index, term) = store.applied();
    let conf_state = raftpb::ConfState::decode(store.conf_state())
        .map_err(|error| BootError::Stored(format!("page file: configuration: {error}")))?;
    // Whose log it is says the log, whatever the flags would make of a new member.
    let owner = wal::owner(log_disk, dir).map_err(|error| stored(&error))?;
    let own_id = owner.and_then(|owner| owner.node_id).unwrap_or_else(|| own_member_id(config));
    let known = store.identity();
    // Before the log is opened, which may have to cut its tail.
    refuse_page_file_of_another(member_dir, known, own_id)?;
    let writer = WriterConfig {
        segment_bytes: config.wal_segment_bytes,
        catchup_entries: config.snapshot_catchup_entries,
    };
    let applied = Applied { index, term, conf_state };
    let node = node_config(config, own_id, nonce);
    let (log, found) =
        Log::open(log_disk, dir, node, writer, applied).map_err(|error| stored(&error))?;
    tell_cut(&found);
    if let Some(skip) = config.unsafe_skip_entry {
        let committed = log.node.status().commit;
        if let Some(obstacle) = skip.obstacle(index, committed, |index| log.node.term(index)) {
            return Err(BootError::Stored(obstacle));
        }
    }
    let (member_id, cluster_id) =
        (found.metadata.node_id.unwrap_or(0), found.metadata.cluster_id.unwrap_or(0));
    let identity = Identity { cluster_id, member_id };
    if known != Identity::default() && known != identity {
        return Err(BootError::Stored(format!(
            "{}/{DB_FILE} belongs to cluster {:x}, but the log beside it to cluster \
             {cluster_id:x}; restore both from the same copy",
            member_dir.display(),
            known.cluster_id
        )));
    }
    store.set_identity(identity);
    tracing::info!(
        local_member_id = %format_args!("{member_id:x}"),
        cluster_id = %format_args!("{cluster_id:x}"),
        is_new,
        applied_index = index.0,
        last_index = found.last_index.0,
        revision = store.revision().0,
        "recovered the member's data"
    );
    Ok(Stored { store, lessor, checkpointer, log, member_id, cluster_id, nonce })
}

/// Without its log a member can start only with a page file that has nothing of one.
fn refuse_lost_log(member_dir: &Path, store: &Store) -> Result<(), BootError> {
    let applied = store.applied().0;
    if applied.0 == 0 {
        return Ok(());
    }
    Err(BootError::Stored(format!(
        "{}: the page file has applied entry {applied}, but the log is gone; restore this member \
         from a snapshot",
        member_dir.display(),
    )))
}

/// The page file must be that of the log's member, or of nobody yet.
fn refuse_page_file_of_another(
    member_dir: &Path,
    known: Identity,
    log_of: u64,
) -> Result<(), BootError> {
    if known == Identity::default() || known.member_id == log_of {
        return Ok(());
    }
    Err(BootError::Stored(format!(
        "{}/{DB_FILE} belongs to member {:x}, but the log beside it to member {log_of:x}; restore \
         both from the same copy",
        member_dir.display(),
        known.member_id
    )))
}

/// Says what recovery has cut off the log.
fn tell_cut(found: &Found) {
    if let Some(cut) = &found.cut {
        tracing::warn!(
            file = %cut.file,
            offset = cut.offset_bytes,
            torn_bytes = cut.torn_bytes,
            "cut a torn batch off the write-ahead log: the machine stopped while writing it"
        );
    }
}

/// The log's segments, oldest first.
fn segments(disk: &mut dyn Disk, dir: &str) -> Result<Vec<SegmentName>, BootError> {
    let mut names: Vec<SegmentName> =
        list(disk, dir)?.iter().filter_map(|name| SegmentName::parse(name)).collect();
    names.sort();
    Ok(names)
}

/// Without its page file a member can start only from a log that has every entry. It must not be
/// given an empty page file otherwise: the refusal would have changed the directory.
fn refuse_lost_page_file(disk: &mut dyn Disk, segments: &[SegmentName]) -> Result<(), BootError> {
    let Some(first) = segments.first().filter(|first| first.sequence > 0) else { return Ok(()) };
    if list(disk, "")?.iter().any(|name| name == DB_FILE) {
        return Ok(());
    }
    Err(BootError::Stored(format!(
        "{DB_FILE} is gone, and the log begins only at segment {first}; restore this member from \
         a snapshot"
    )))
}

fn list(disk: &mut dyn Disk, name: &str) -> Result<Vec<String>, BootError> {
    match run(disk, FileOp::List { name: name.to_owned() }) {
        Ok(FileOutput::Names(names)) => Ok(names),
        Ok(_) => Err(BootError::Stored(format!("{name}: the disk answered another operation"))),
        Err(error) => Err(BootError::Stored(format!("{name}: list: {error}"))),
    }
}

/// The leases of the page file; entries of the log that are applied later change them.
fn recover_leases(
    config: &Config,
    store: &Store,
    attachments: Attachments,
) -> Result<Lessor, BootError> {
    let settings = lease::Settings {
        ttl_s_min: config.lease_ttl_s_min(),
        checkpoint_ms: config.feature_gates.lease_checkpoint.then(|| {
            u64::try_from(config.lease_checkpoint_interval.as_millis()).unwrap_or(u64::MAX)
        }),
    };
    Lessor::recover(settings, store.bucket_iter(Bucket::Lease, b""), attachments)
        .map_err(|error| BootError::Stored(format!("page file: {error}")))
}

/// As a new member of its initial cluster: the URLs that the others know count.
fn own_member_id(config: &Config) -> u64 {
    let urls = config.initial_cluster.get(&config.name).unwrap_or(&config.advertise_peer_urls);
    identity::member_id(urls, &config.initial_cluster_token)
}

fn node_config(config: &Config, id: u64, nonce: u64) -> NodeConfig {
    let mut node = NodeConfig::new(id, id, nonce);
    node.election_ticks = config.election_ticks();
    node.pre_vote = config.pre_vote;
    node.window_bytes = limits::LOG_WINDOW_BYTES;
    node
}

/// Differs between starts; nothing secret.
fn boot_nonce() -> u64 {
    std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(1, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Whether this member, which has no log, may found a new cluster, or its part of it.
fn check_founding(config: &Config, tls: &Tls) -> Result<(), BootError> {
    cluster::verify_bootstrap(config, remote::resolved).map_err(BootError::Cluster)?;
    let own_id = own_member_id(config);
    if remote::is_bootstrapped(config, tls, own_id) {
        return Err(BootError::Cluster(format!("member {own_id:x} has already been bootstrapped")));
    }
    Ok(())
}

/// The log of a new cluster: metadata, and the entries that add its members, the same for all.
fn create_log(config: &Config, own_id: u64, disk: &mut dyn Disk) -> Result<(), BootError> {
    let mut peers: Vec<Peer> = config
        .initial_cluster
        .iter()
        .map(|(name, urls)| {
            let id = identity::member_id(urls, &config.initial_cluster_token);
            let member =
                Member { id, peer_urls: urls.clone(), name: name.clone(), ..Default::default() };
            Peer { id, context: member.to_json().into() }
        })
        .collect();
    peers.sort_by_key(|peer| peer.id);
    let ids: Vec<u64> = peers.iter().map(|peer| peer.id).collect();
    let (entries, hard_state) = bootstrap(&peers);
    let metadata =
        raftpb::Metadata { node_id: Some(own_id), cluster_id: Some(identity::cluster_id(&ids)) };
    let log =
        NewLog { metadata, entries: &entries, hard_state, segment_bytes: config.wal_segment_bytes };
    wal::create(disk, log_dir(config), log).map_err(|error| BootError::Stored(error.to_string()))
}

/// The log of a member that joins: nothing but whose it is. The others give it the rest.
fn create_empty_log(
    config: &Config,
    identity: Identity,
    disk: &mut dyn Disk,
) -> Result<(), BootError> {
    let Identity { cluster_id, member_id } = identity;
    let metadata = raftpb::Metadata { node_id: Some(member_id), cluster_id: Some(cluster_id) };
    let (entries, hard_state) = bootstrap(&[]);
    let log =
        NewLog { metadata, entries: &entries, hard_state, segment_bytes: config.wal_segment_bytes };
    wal::create(disk, log_dir(config), log).map_err(|error| BootError::Stored(error.to_string()))
}

/// A member that was removed from its cluster is never one of it again.
///
/// # Errors
/// [`BootError::Cluster`].
pub(crate) fn refuse_removed(stored: &Stored) -> Result<(), BootError> {
    let key = Member::bucket_key(stored.member_id);
    if stored.store.bucket_get(Bucket::MembersRemoved, &key).is_none() {
        return Ok(());
    }
    Err(BootError::Cluster(format!(
        "{REMOVED}; data-dir used by this member must be removed (member {:x})",
        stored.member_id
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.etcd").display().to_string();
        let first = open_data_dir(&path).unwrap();
        assert!(matches!(open_data_dir(&path), Err(BootError::Locked(_))));
        drop(first);
        assert!(open_data_dir(&path).is_ok());
    }
}
