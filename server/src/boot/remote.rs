//! What a new member asks of others before it starts: whether the cluster knows it already.
//!
//! A member whose data directory was lost must not found its cluster a second time: it has
//! forgotten its votes and its part of the log. Called by boot, before any thread runs, so it may
//! wait, for a second per URL. Nobody answers while a cluster is being founded.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use etcore_proto::tls::Session;

use crate::cluster::member::Member;
use crate::config::{Config, ListenUrl};
use crate::tls::{self, Tls};

/// etcd's BootstrapTimeoutEffective.
const TIMEOUT: Duration = Duration::from_secs(1);
/// What etcd gives each URL when it asks whom it joins.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer taken; a member's record is a few hundred bytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// What a peer says of its cluster.
pub(super) struct RemoteCluster {
    pub(super) id: u64,
    pub(super) members: Vec<Member>,
}

/// What the first peer that answers at one of these URLs says (etcd `GetClusterFromRemotePeers`).
///
/// # Errors
/// etcd's text if nobody answers.
pub(super) fn cluster(mut urls: Vec<&String>, tls: &Tls) -> Result<RemoteCluster, String> {
    urls.sort();
    for url in urls {
        let Some((Some(id), members)) = ask_members(url, tls, ASK_TIMEOUT) else {
            tracing::warn!(address = format!("{url}/members"), "failed to get cluster response");
            continue;
        };
        if members.is_empty() {
            return Err("failed to get raft cluster member(s) from the given URLs".to_owned());
        }
        return Ok(RemoteCluster { id, members });
    }
    Err("could not retrieve cluster information from the given URLs".to_owned())
}

/// True if a peer of the initial cluster says that this member has published itself before.
pub(super) fn is_bootstrapped(config: &Config, tls: &Tls, own_id: u64) -> bool {
    let others = config.initial_cluster.iter().filter(|(name, _)| **name != config.name);
    let mut urls: Vec<&String> = others.flat_map(|(_, urls)| urls).collect();
    urls.sort();
    // The first that answers counts, as in etcd.
    urls.into_iter().find_map(|url| ask_members(url, tls, TIMEOUT)).is_some_and(|(_, members)| {
        members.iter().any(|member| member.id == own_id && !member.client_urls.is_empty())
    })
}

/// What a URL resolves to, in a form that can be compared.
pub(super) fn resolved(text: &str) -> Result<String, String> {
    match ListenUrl::parse(text)? {
        ListenUrl::Unix { .. } => Ok(text.to_owned()),
        ListenUrl::Tcp { tls, host, port } => {
            let failed =
                |why: &dyn std::fmt::Display| format!("failed to resolve {text:?} ({why})");
            let mut found =
                (host.as_str(), port).to_socket_addrs().map_err(|error| failed(&error))?;
            let first = found.next().ok_or_else(|| failed(&"no address"))?;
            let scheme = if tls { "https" } else { "http" };
            Ok(format!("{scheme}://{first}"))
        }
    }
}

/// The cluster's ID and the members as the peer at this URL knows them; `None` if it does not
/// answer.
fn ask_members(url: &str, tls: &Tls, timeout: Duration) -> Option<(Option<u64>, Vec<Member>)> {
    let question = Question { path: "/members", cluster: 0, body: b"", timeout };
    let answer = ask(url, tls, &question).filter(|answer| answer.status == 200)?;
    Some((answer.cluster, serde_json::from_slice(&answer.body).ok()?))
}

/// A GET to a peer's HTTP handlers.
pub(super) struct Question<'a> {
    /// The path.
    pub(super) path: &'a str,
    /// The cluster that it must be of; 0 for any.
    pub(super) cluster: u64,
    /// JSON; empty for none.
    pub(super) body: &'a [u8],
    /// How long each step may take.
    pub(super) timeout: Duration,
}

/// A peer's answer.
pub(super) struct Answer {
    /// HTTP status.
    pub(super) status: u16,
    /// The cluster that the peer is of, if it says so.
    pub(super) cluster: Option<u64>,
    /// JSON or text.
    pub(super) body: Vec<u8>,
}

impl Question<'_> {
    fn request(&self, authority: &str) -> Vec<u8> {
        let mut head =
            format!("GET {} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n", self.path);
        if self.cluster != 0 {
            head.push_str(&format!("X-Etcd-Cluster-ID: {:x}\r\n", self.cluster));
        }
        if !self.body.is_empty() {
            let length = self.body.len();
            head.push_str(&format!(
                "Content-Type: application/json\r\nContent-Length: {length}\r\n"
            ));
        }
        [head.as_bytes(), b"\r\n", self.body].concat()
    }
}

/// What the peer at this URL answers; `None` if it does not.
pub(super) fn ask(url: &str, tls: &Tls, question: &Question<'_>) -> Option<Answer> {
    let parsed = ListenUrl::parse(url).ok()?;
    let ListenUrl::Tcp { tls: is_tls, host, port } = &parsed else { return None };
    let address = (host.as_str(), *port).to_socket_addrs().ok()?.next()?;
    let mut socket = TcpStream::connect_timeout(&address, question.timeout).ok()?;
    socket.set_read_timeout(Some(question.timeout)).ok()?;
    socket.set_write_timeout(Some(question.timeout)).ok()?;
    let request = question.request(&parsed.authority());
    let mut answer = Vec::new();
    if *is_tls {
        exchange(socket, tls::dial(&tls.peer(), host).ok()?, &request, &mut answer).ok()?;
    } else {
        socket.write_all(&request).ok()?;
        // What came before an error or a time-out may be the whole answer.
        let _ = socket.take(ANSWER_BYTES_MAX).read_to_end(&mut answer);
    }
    let text = String::from_utf8(answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    // Chunked or not, an array or an object is all that has brackets at its ends.
    let begin = body.find(['[', '{']).filter(|_| status == 200).unwrap_or(0);
    let end = body.rfind([']', '}']).filter(|_| status == 200).map_or(body.len(), |end| end + 1);
    let cluster = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_id = name.eq_ignore_ascii_case("x-etcd-cluster-id");
        is_id.then(|| u64::from_str_radix(value.trim(), 16).ok()).flatten()
    });
    Some(Answer { status, cluster, body: body.get(begin..end)?.as_bytes().to_vec() })
}

/// A request and what is answered, over TLS, until the other side ends.
fn exchange(
    mut socket: TcpStream,
    mut session: Session,
    request: &[u8],
    answer: &mut Vec<u8>,
) -> std::io::Result<()> {
    let (mut out, mut scratch, mut buffer) = (Vec::new(), Vec::new(), [0; 4096]);
    let mut is_asked = false;
    while !session.peer_has_closed() && answer.len() as u64 <= ANSWER_BYTES_MAX {
        session.transmit(&mut out);
        if !is_asked && !session.is_handshaking() {
            is_asked = true;
            session.seal(request, &mut out).map_err(std::io::Error::other)?;
        }
        socket.write_all(&out)?;
        out.clear();
        let bytes = match socket.read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes) => bytes,
            // What came before may be the whole answer.
            Err(_) if !answer.is_empty() => break,
            Err(error) => return Err(error),
        };
        let outcome = session.receive(&buffer[..bytes], &mut scratch, &mut |plaintext| {
            answer.extend_from_slice(plaintext);
        });
        if let Err(error) = outcome {
            tracing::debug!(error = %error, "a peer could not be asked for its members over TLS");
            session.transmit(&mut out);
            return socket.write_all(&out);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;
    use std::path::Path;

    use super::*;
    use crate::config::flags::{self, Asked};

    #[test]
    fn a_member_that_a_peer_knows_is_not_new() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let answering = std::thread::spawn(move || {
            for body in [r#"[{"id":5,"clientURLs":["http://c:1"]}]"#, r#"[{"id":5}]"#] {
                let (mut socket, _) = listener.accept().unwrap();
                let mut line = String::new();
                std::io::BufReader::new(&socket).read_line(&mut line).unwrap();
                assert_eq!(line, "GET /members HTTP/1.1\r\n");
                write!(socket, "HTTP/1.1 200 OK\r\n\r\n{body}\n").unwrap();
            }
        });
        let cluster = format!("--initial-cluster=a=http://h:1,b=http://127.0.0.1:{port}");
        let args = ["--name=a".to_owned(), cluster];
        let Ok(Asked::Run(config, _)) = flags::parse(args, []) else { panic!("flags") };
        let tls = Tls::load(&config.tls, Path::new(""), &[], &[]).unwrap();
        assert!(is_bootstrapped(&config, &tls, 5), "it has published itself");
        assert!(!is_bootstrapped(&config, &tls, 5), "it was never there");
        answering.join().unwrap();
        assert!(!is_bootstrapped(&config, &tls, 5), "nobody answers");
        assert_eq!(resolved("http://127.0.0.1:2").unwrap(), "http://127.0.0.1:2");
    }
}
