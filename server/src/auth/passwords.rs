//! Hashing passwords and comparing them with hashes, which is slow on purpose.
//!
//! Called by the threads that may be kept busy, never by a shard's. Neither a password nor a hash
//! may reach a log line (etcd `server/auth/store.go`, Go's `golang.org/x/crypto/bcrypt`).

use bcrypt::Version;
use etcore_proto::error::{Code, Status};
use etcore_proto::grpc::encode_base64;

/// The costs that bcrypt has.
pub const COSTS: std::ops::RangeInclusive<u64> = 4..=31;
/// What a cost outside of them means.
pub const COST_DEFAULT: u32 = 10;
/// Bytes of a password at most.
const PASSWORD_BYTES: usize = 72;

/// Random bytes that make the hashes of equal passwords differ.
pub type Salt = [u8; 16];

/// Whether a password can be hashed.
///
/// # Errors
/// Go's words about one that is too long.
pub fn check(password: &[u8]) -> Result<(), Status> {
    if password.len() > PASSWORD_BYTES {
        let text = "bcrypt: password length exceeds 72 bytes";
        return Err(Status::new(Code::Unknown, text));
    }
    Ok(())
}

/// The hash of a password, as an entry carries it.
///
/// # Errors
/// Go's words about a password that is too long.
pub fn hash(password: &[u8], cost: u32, salt: Salt) -> Result<String, Status> {
    check(password)?;
    let hashed = bcrypt::hash_with_salt(password, cost, salt)
        .map_err(|_| Status::new(Code::Internal, "a password cannot be hashed"))?;
    Ok(encode_base64(hashed.format_for_version(Version::TwoA).as_bytes()))
}

/// Whether a password is the one of a hash.
pub fn is_right(password: &[u8], hash: &[u8]) -> bool {
    std::str::from_utf8(hash).is_ok_and(|hash| bcrypt::verify(password, hash).unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use etcore_proto::grpc::decode_base64;

    use super::*;

    #[test]
    fn a_hash_is_one_that_go_reads_and_knows_its_password_alone() {
        let hashed = decode_base64(hash(b"secret", 4, [7; 16]).unwrap().as_bytes()).unwrap();
        assert!(hashed.starts_with(b"$2a$04$") && hashed.len() == 60);
        assert!(is_right(b"secret", &hashed));
        assert!(!is_right(b"Secret", &hashed) && !is_right(b"", &hashed));
        assert!(!is_right(b"secret", b"") && !is_right(b"secret", b"$2a$04$x"));
        // Made by Go.
        let go = b"$2a$10$XajjQvNhvvRt5GSeFk1xFeyqRrsxkhBkUiQeg0dt.wU1qD4aFDcga";
        assert!(is_right(b"allmine", go));
    }

    #[test]
    fn a_password_beyond_bcrypts_reach_is_refused_in_gos_words() {
        assert!(hash(&[b'x'; 72], 4, [0; 16]).is_ok());
        let refused = hash(&[b'x'; 73], 4, [0; 16]).unwrap_err();
        assert_eq!(refused.message, "bcrypt: password length exceeds 72 bytes");
    }
}
