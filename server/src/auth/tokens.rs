//! Tokens: what stands for a name and a password in the calls behind a login.
//!
//! All shards share it. Simple tokens are added by the replica, on every member, when it applies
//! the login, and looked up by the fronts, which need no lock and wait for nobody. They live in
//! memory alone: a member that restarts knows none, as in etcd (`server/auth/simple_token.go`). A
//! token must never be written to a log line.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use etcore_proto::error::{EtcdError, Status};

use super::jwt::Jwt;

/// Letters of a simple token before its dot.
pub const PREFIX_LETTERS: usize = 16;
const LETTERS: &[u8; 52] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
/// Simple tokens that live at once; a login beyond is refused, until some have expired.
pub const TOKENS: usize = 1 << 20;
/// Seconds that a simple token lives if the operator says 0.
const TTL_S_DEFAULT: u64 = 300;

/// What kind of tokens the member gives out and takes.
pub enum Tokens {
    /// None: nobody can log in.
    None,
    /// Random, known to all members.
    Simple(SimpleTokens),
    /// Signed.
    Jwt(Box<Jwt>),
}

/// Who a token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub name: Arc<str>,
    /// The revision of the auth store that he logged in at; `None` for the newest.
    pub revision: Option<u64>,
}

/// The time, by both clocks.
#[derive(Clone, Copy)]
pub struct Now<'a> {
    /// On the shards' clock.
    pub ms: u64,
    /// Seconds of the Unix epoch, if they are asked for.
    pub unix_s: &'a dyn Fn() -> u64,
}

/// It is no token, or none any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalid;

impl Tokens {
    /// What `--auth-token` and `--auth-token-ttl` ask for; reads the files that it names.
    ///
    /// # Errors
    /// One sentence.
    pub fn new(spec: &str, ttl_s: u64) -> Result<Self, String> {
        let mut parts = spec.split(',');
        let kind = parts.next().unwrap_or_default();
        let mut options = HashMap::new();
        for part in parts {
            let pair: Vec<&str> = part.split('=').collect();
            let [name, value] = pair[..] else {
                return Err("auth: invalid auth options".to_owned());
            };
            if options.insert(name, value).is_some() {
                return Err("auth: invalid auth options".to_owned());
            }
        }
        match kind {
            "simple" => Ok(Self::Simple(SimpleTokens::new(ttl_s))),
            "jwt" => Jwt::new(&options).map(|jwt| Self::Jwt(Box::new(jwt))),
            "" => Ok(Self::None),
            _ => Err("auth: invalid auth options".to_owned()),
        }
    }

    /// Who a token stands for.
    ///
    /// # Errors
    /// [`Invalid`].
    pub fn identify(&self, token: &[u8], now: Now<'_>) -> Result<Identity, Invalid> {
        match self {
            Self::None => Err(Invalid),
            Self::Simple(tokens) => tokens.identify(token, now.ms),
            Self::Jwt(jwt) => jwt.identify(token, (now.unix_s)()).ok_or(Invalid),
        }
    }

    /// The index of the entry by which a token would be given out, if that is to be applied yet.
    pub fn awaits(&self, token: &[u8], applied: u64) -> Option<u64> {
        let tokens = self.simple()?;
        let entry = index_of(token)?.saturating_add(1);
        (entry > applied && !tokens.known.pin().contains_key(token)).then_some(entry)
    }

    /// The simple ones, if tokens are simple.
    pub fn simple(&self) -> Option<&SimpleTokens> {
        match self {
            Self::Simple(tokens) => Some(tokens),
            Self::None | Self::Jwt(_) => None,
        }
    }

    /// A new token of a user who has logged in at this revision, where the member that was asked
    /// makes it; `None` if all members do, when they apply the login.
    ///
    /// # Errors
    /// etcd's.
    pub fn sign(&self, name: &str, revision: u64, unix_s: u64) -> Option<Result<String, Status>> {
        match self {
            Self::Jwt(jwt) => Some(jwt.sign(name, revision, unix_s)),
            Self::None | Self::Simple(_) => None,
        }
    }
}

/// Simple tokens, as the fronts see them.
pub struct SimpleTokens {
    ttl_ms: u64,
    enabled: AtomicBool,
    known: papaya::HashMap<Arc<[u8]>, Known>,
}

struct Known {
    name: Arc<str>,
    /// Moved on with every use, by whoever uses it.
    deadline_ms: AtomicU64,
}

impl SimpleTokens {
    fn new(ttl_s: u64) -> Self {
        let ttl_s = if ttl_s == 0 { TTL_S_DEFAULT } else { ttl_s };
        let ttl = Duration::from_secs(ttl_s);
        Self {
            ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX / 2),
            enabled: AtomicBool::new(false),
            known: papaya::HashMap::new(),
        }
    }

    fn identify(&self, token: &[u8], now_ms: u64) -> Result<Identity, Invalid> {
        let known = self.known.pin();
        let found = known.get(token).ok_or(Invalid)?;
        if found.deadline_ms.load(Ordering::Relaxed) < now_ms {
            return Err(Invalid);
        }
        found.deadline_ms.fetch_max(now_ms.saturating_add(self.ttl_ms), Ordering::Relaxed);
        Ok(Identity { name: found.name.clone(), revision: None })
    }
}

/// The index of the entry before the one that a simple token was given out by.
fn index_of(token: &[u8]) -> Option<u64> {
    let mut parts = std::str::from_utf8(token).ok()?.split('.');
    let (_, index) = (parts.next()?, parts.next()?);
    let is_number = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
    if parts.next().is_some() || !is_number { None } else { index.parse().ok() }
}

/// The letters of a new token, out of so many random bytes that they are all alike.
///
/// `draw` fills in bytes that nobody can guess.
pub fn new_prefix(mut draw: impl FnMut(&mut [u8])) -> String {
    let mut prefix = String::with_capacity(PREFIX_LETTERS);
    while prefix.len() < PREFIX_LETTERS {
        let mut bytes = [0; 2 * PREFIX_LETTERS];
        draw(&mut bytes);
        // 208 is four alphabets: what lies above would favour some letters.
        let fair = bytes.iter().filter(|byte| **byte < 208);
        let room = PREFIX_LETTERS - prefix.len();
        prefix.extend(fair.map(|byte| LETTERS[usize::from(byte % 52)] as char).take(room));
    }
    prefix
}

/// The replica's side of simple tokens: it alone adds and removes them.
///
/// Invariant: what is known is in `by_name` under its user, and has an entry in `due`.
#[derive(Default)]
pub struct TokenKeeper {
    by_name: HashMap<Arc<str>, HashSet<Arc<[u8]>>>,
    /// When to look at a token again.
    due: BinaryHeap<Reverse<(u64, Arc<[u8]>)>>,
}

impl TokenKeeper {
    /// Tokens are given out from now on, or all are forgotten.
    pub fn enable(&mut self, tokens: &SimpleTokens, enabled: bool) {
        tokens.enabled.store(enabled, Ordering::Relaxed);
        if !enabled {
            tokens.known.pin().clear();
            self.by_name.clear();
            self.due.clear();
        }
    }

    /// Gives a user the token of this prefix, whose entry has this index. The token says which was
    /// applied before: members of etcd in the same cluster call it so.
    ///
    /// # Errors
    /// [`EtcdError::TooManyRequests`] if there are too many tokens.
    pub fn assign(
        &mut self,
        tokens: &SimpleTokens,
        name: &str,
        prefix: &str,
        index: u64,
        now_ms: u64,
    ) -> Result<String, EtcdError> {
        let token = format!("{prefix}.{}", index.saturating_sub(1));
        if !tokens.enabled.load(Ordering::Relaxed) {
            return Ok(token);
        }
        if self.due.len() >= TOKENS {
            return Err(EtcdError::TooManyRequests);
        }
        let bytes: Arc<[u8]> = token.as_bytes().into();
        let name = self.by_name.get_key_value(name).map_or_else(|| name.into(), |(n, _)| n.clone());
        self.by_name.entry(name.clone()).or_default().insert(bytes.clone());
        let deadline_ms = now_ms.saturating_add(tokens.ttl_ms);
        self.due.push(Reverse((deadline_ms, bytes.clone())));
        let known = Known { name, deadline_ms: AtomicU64::new(deadline_ms) };
        tokens.known.pin().insert(bytes, known);
        Ok(token)
    }

    /// The user's tokens are worth nothing any more.
    pub fn forget_user(&mut self, tokens: &SimpleTokens, name: &str) {
        let known = tokens.known.pin();
        for token in self.by_name.remove(name).into_iter().flatten() {
            known.remove(&token);
        }
    }

    /// Forgets tokens that nobody has used for too long. Called with ticks.
    pub fn tick(&mut self, tokens: &SimpleTokens, now_ms: u64) {
        let known = tokens.known.pin();
        while self.due.peek().is_some_and(|Reverse((at_ms, _))| *at_ms < now_ms) {
            let Some(Reverse((_, token))) = self.due.pop() else { return };
            let Some(found) = known.get(&token) else { continue };
            let deadline_ms = found.deadline_ms.load(Ordering::Relaxed);
            if deadline_ms >= now_ms {
                self.due.push(Reverse((deadline_ms, token)));
                continue;
            }
            if let Some(tokens) = self.by_name.get_mut(&found.name) {
                tokens.remove(&token);
                if tokens.is_empty() {
                    self.by_name.remove(&found.name);
                }
            }
            known.remove(&token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn simple(ttl_s: u64) -> (Tokens, TokenKeeper) {
        let tokens = Tokens::new("simple", ttl_s).unwrap();
        let mut keeper = TokenKeeper::default();
        keeper.enable(tokens.simple().unwrap(), true);
        (tokens, keeper)
    }

    fn now(ms: u64) -> Now<'static> {
        Now { ms, unix_s: &|| 0 }
    }

    #[test]
    fn a_simple_token_lives_as_long_as_it_is_used() {
        let (tokens, mut keeper) = simple(10);
        let of = tokens.simple().unwrap();
        let token = keeper.assign(of, "ann", "abcdefghijklmnop", 7, 1000).unwrap();
        assert_eq!(token, "abcdefghijklmnop.6");
        let who = |at_ms| tokens.identify(token.as_bytes(), now(at_ms));
        assert_eq!(&*who(9000).unwrap().name, "ann");
        keeper.tick(of, 12_000);
        assert_eq!(&*who(19_000).unwrap().name, "ann", "used at 9 s");
        assert_eq!(who(30_000), Err(Invalid));
        keeper.tick(of, 30_000);
        assert!(keeper.by_name.is_empty() && keeper.due.is_empty() && of.known.pin().is_empty());
    }

    #[test]
    fn tokens_of_a_removed_user_and_of_before_auth_was_off_are_worth_nothing() {
        let (tokens, mut keeper) = simple(10);
        let of = tokens.simple().unwrap();
        let ann = keeper.assign(of, "ann", "a", 7, 0).unwrap();
        let bob = keeper.assign(of, "bob", "b", 8, 0).unwrap();
        keeper.forget_user(of, "ann");
        assert_eq!(tokens.identify(ann.as_bytes(), now(1)), Err(Invalid));
        assert!(tokens.identify(bob.as_bytes(), now(1)).is_ok());
        keeper.enable(of, false);
        assert_eq!(tokens.identify(bob.as_bytes(), now(1)), Err(Invalid));
        let late = keeper.assign(of, "bob", "c", 9, 0).unwrap();
        assert_eq!(tokens.identify(late.as_bytes(), now(1)), Err(Invalid));
    }

    #[test]
    fn a_token_of_an_entry_to_come_is_waited_for_and_other_words_are_not() {
        let (tokens, _) = simple(10);
        let awaits = |token: &[u8]| tokens.awaits(token, 7);
        assert_eq!(awaits(b"x.7"), Some(8));
        for word in [&b"x.6"[..], b"x", b"", b"x.8.9", b"x.-8", b"x.+8", b"x.", b"\xff.9"] {
            assert_eq!(
                (awaits(word), tokens.identify(word, now(0))),
                (None, Err(Invalid)),
                "{word:?}"
            );
        }
        assert_eq!(awaits(b"x.99999999999999999999"), None);
    }

    #[test]
    fn kinds_of_tokens_are_told_apart() {
        assert!(matches!(Tokens::new("", 0), Ok(Tokens::None)));
        for spec in ["plain", "simple,a", "simple,a=b=c", "simple,a=b,a=b", "jwt"] {
            assert!(Tokens::new(spec, 0).is_err(), "{spec}");
        }
    }

    #[test]
    fn prefixes_are_letters() {
        let mut next = 0u8;
        let prefix = new_prefix(|bytes| {
            bytes.fill_with(|| {
                next = next.wrapping_add(101);
                next
            });
        });
        assert_eq!(prefix.len(), PREFIX_LETTERS);
        assert!(prefix.bytes().all(|letter| letter.is_ascii_alphabetic()));
    }
}
