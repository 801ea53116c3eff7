//! Signed tokens: JSON Web Tokens with a user's name, the revision that he logged in at, and an
//! end.
//!
//! A member that has the private key makes them; one that has only the public key takes what others
//! have made (etcd `server/auth/jwt.go`, `options.go`; Go's `golang-jwt`). Asked by the fronts.
//! What was verified once is remembered, since a signature costs more than a request. Neither a
//! token nor a key may be logged.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, ParsedPublicKey, RsaEncoding,
    RsaKeyPair,
};
use aws_lc_rs::{hmac, signature as s};
use etcore_proto::error::{Code, Status};
use etcore_proto::gotext;
use etcore_proto::grpc::decode_base64;
use etcore_proto::tls::x509;
use serde_json::Value;

use super::tokens::Identity;

/// What tokens are made for, if the operator does not say: seconds.
const TTL_S_DEFAULT: u64 = 300;
/// Tokens whose signatures are remembered; with more, all are forgotten and looked at again.
const REMEMBERED: usize = 16 << 10;

const INVALID_OPTIONS: &str = "auth: invalid auth options";
const MISSING_KEY: &str = "auth: missing key data";
const KEY_MISMATCH: &str = "auth: public and private keys don't match";
const VERIFY_ONLY: &str = "auth: token signing attempted with verify-only key";

/// See the module text.
pub struct Jwt {
    /// As tokens name it.
    method: &'static str,
    verifier: Verifier,
    /// `None` cannot sign.
    signer: Option<Signer>,
    ttl_s: u64,
    remembered: papaya::HashMap<Arc<[u8]>, Claims>,
}

enum Verifier {
    Hmac(Box<hmac::Key>),
    Public(ParsedPublicKey),
}

enum Signer {
    Hmac(Box<hmac::Key>),
    Rsa(Box<RsaKeyPair>, &'static dyn RsaEncoding),
    Ec(Box<EcdsaKeyPair>),
    Ed(Box<Ed25519KeyPair>),
}

/// A way to sign.
enum Method {
    Hmac(hmac::Algorithm),
    Rsa(&'static s::RsaParameters, &'static dyn RsaEncoding),
    Ec(&'static s::EcdsaVerificationAlgorithm, &'static EcdsaSigningAlgorithm),
    Ed,
}

fn method(name: &str) -> Option<(&'static str, Method)> {
    Some(match name {
        "HS256" => ("HS256", Method::Hmac(hmac::HMAC_SHA256)),
        "HS384" => ("HS384", Method::Hmac(hmac::HMAC_SHA384)),
        "HS512" => ("HS512", Method::Hmac(hmac::HMAC_SHA512)),
        "RS256" => ("RS256", Method::Rsa(&s::RSA_PKCS1_2048_8192_SHA256, &s::RSA_PKCS1_SHA256)),
        "RS384" => ("RS384", Method::Rsa(&s::RSA_PKCS1_2048_8192_SHA384, &s::RSA_PKCS1_SHA384)),
        "RS512" => ("RS512", Method::Rsa(&s::RSA_PKCS1_2048_8192_SHA512, &s::RSA_PKCS1_SHA512)),
        "PS256" => ("PS256", Method::Rsa(&s::RSA_PSS_2048_8192_SHA256, &s::RSA_PSS_SHA256)),
        "PS384" => ("PS384", Method::Rsa(&s::RSA_PSS_2048_8192_SHA384, &s::RSA_PSS_SHA384)),
        "PS512" => ("PS512", Method::Rsa(&s::RSA_PSS_2048_8192_SHA512, &s::RSA_PSS_SHA512)),
        "ES256" => {
            ("ES256", Method::Ec(&s::ECDSA_P256_SHA256_FIXED, &s::ECDSA_P256_SHA256_FIXED_SIGNING))
        }
        "ES384" => {
            ("ES384", Method::Ec(&s::ECDSA_P384_SHA384_FIXED, &s::ECDSA_P384_SHA384_FIXED_SIGNING))
        }
        "ES512" => {
            ("ES512", Method::Ec(&s::ECDSA_P521_SHA512_FIXED, &s::ECDSA_P521_SHA512_FIXED_SIGNING))
        }
        "EdDSA" => ("EdDSA", Method::Ed),
        _ => return None,
    })
}

/// What a token says.
#[derive(Debug, Clone, PartialEq)]
struct Claims {
    name: Arc<str>,
    revision: u64,
    /// Seconds of the Unix epoch.
    expires_s: Option<f64>,
    not_before_s: Option<f64>,
}

impl Claims {
    /// `None` if something is missing, or not what it should be.
    fn parse(json: &[u8]) -> Option<Self> {
        let claims: Value = serde_json::from_slice(json).ok()?;
        let time = |name: &str| match claims.get(name) {
            None | Some(Value::Null) => Some(None),
            Some(value) => value.as_f64().map(Some),
        };
        Some(Self {
            name: claims.get("username")?.as_str()?.into(),
            // Go has a float there, and takes the whole part.
            revision: claims.get("revision")?.as_f64()? as u64,
            expires_s: time("exp")?,
            not_before_s: time("nbf")?,
        })
    }

    fn holds(&self, now_s: u64) -> bool {
        let now_s = now_s as f64;
        self.expires_s.is_none_or(|at_s| now_s < at_s)
            && self.not_before_s.is_none_or(|at_s| now_s >= at_s)
    }

    fn identity(&self) -> Identity {
        Identity { name: self.name.clone(), revision: Some(self.revision) }
    }
}

impl Jwt {
    /// By the options of `--auth-token=jwt,...`; reads the files that they name.
    ///
    /// # Errors
    /// One sentence, etcd's where it has one.
    pub(super) fn new(options: &HashMap<&str, &str>) -> Result<Self, String> {
        let given = |name: &str| options.get(name).copied().filter(|value| !value.is_empty());
        let ttl_s = match given("ttl").map(gotext::parse_duration) {
            None => TTL_S_DEFAULT,
            Some(ttl) => {
                let ttl = ttl.ok_or(INVALID_OPTIONS)?;
                u64::try_from(ttl / 1_000_000_000).unwrap_or(0)
            }
        };
        let read = |name: &str| match given(name) {
            None => Ok(None),
            Some(path) => std::fs::read(path).map(Some).map_err(|_| INVALID_OPTIONS.to_owned()),
        };
        let (public, private) = (read("pub-key")?, read("priv-key")?);
        let named = options.get("sign-method").copied().unwrap_or_default();
        let (name, method) = method(named).ok_or(INVALID_OPTIONS)?;
        let (public, private) = (public.as_deref(), private.as_deref());
        let (verifier, signer) = match method {
            Method::Hmac(algorithm) => {
                let key = private.filter(|key| !key.is_empty()).ok_or(MISSING_KEY)?;
                let key = Box::new(hmac::Key::new(algorithm, key));
                (Verifier::Hmac(key.clone()), Some(Signer::Hmac(key)))
            }
            Method::Rsa(verification, encoding) => {
                let pair = private.map(rsa_pair).transpose()?;
                let own = pair.as_ref().map(|pair| spki(pair.public_key())).transpose()?;
                let verifier = verifier(verification, public, own)?;
                (verifier, pair.map(|pair| Signer::Rsa(Box::new(pair), encoding)))
            }
            Method::Ec(verification, signing) => {
                let pair = private.map(|pem| ec_pair(pem, signing)).transpose()?;
                let own = pair.as_ref().map(|pair| spki(pair.public_key())).transpose()?;
                let verifier = verifier(verification, public, own)?;
                (verifier, pair.map(|pair| Signer::Ec(Box::new(pair))))
            }
            Method::Ed => {
                let pair = private.map(ed_pair).transpose()?;
                let own = pair.as_ref().map(|pair| spki(pair.public_key())).transpose()?;
                let verifier = verifier(&s::ED25519, public, own)?;
                (verifier, pair.map(|pair| Signer::Ed(Box::new(pair))))
            }
        };
        let remembered = papaya::HashMap::new();
        Ok(Self { method: name, verifier, signer, ttl_s, remembered })
    }

    /// Who a token stands for; `None` if it is none.
    pub(super) fn identify(&self, token: &[u8], now_s: u64) -> Option<Identity> {
        let remembered = self.remembered.pin();
        if let Some(claims) = remembered.get(token) {
            return claims.holds(now_s).then(|| claims.identity());
        }
        let claims = self.verify(token)?;
        let identity = claims.holds(now_s).then(|| claims.identity())?;
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(token.into(), claims);
        Some(identity)
    }

    fn verify(&self, token: &[u8]) -> Option<Claims> {
        let text = std::str::from_utf8(token).ok()?;
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header: Value = serde_json::from_slice(&decode_url(header)?).ok()?;
        // The member's own method alone: never the one that a token would like.
        if header.get("alg").and_then(Value::as_str) != Some(self.method) {
            return None;
        }
        let signature = decode_url(signature)?;
        let is_good = match &self.verifier {
            Verifier::Hmac(key) => hmac::verify(key, signed.as_bytes(), &signature).is_ok(),
            Verifier::Public(key) => key.verify_sig(signed.as_bytes(), &signature).is_ok(),
        };
        if is_good { Claims::parse(&decode_url(claims)?) } else { None }
    }

    /// A token for a user who has logged in at this revision.
    ///
    /// # Errors
    /// etcd's, if there is no private key.
    pub(super) fn sign(&self, name: &str, revision: u64, now_s: u64) -> Result<String, Status> {
        let signer = self.signer.as_ref().ok_or_else(|| Status::new(Code::Unknown, VERIFY_ONLY))?;
        let header = BTreeMap::from([("alg", self.method), ("typ", "JWT")]);
        let claims = BTreeMap::from([
            ("exp", Value::from(now_s.saturating_add(self.ttl_s))),
            ("revision", Value::from(revision)),
            ("username", Value::from(name)),
        ]);
        let mut token = encode_url(&serde_json::to_vec(&header).unwrap_or_default());
        token.push('.');
        token.push_str(&encode_url(&serde_json::to_vec(&claims).unwrap_or_default()));
        let signature = signer
            .sign(token.as_bytes())
            .ok_or_else(|| Status::new(Code::Unknown, "auth: a token cannot be signed"))?;
        token.push('.');
        token.push_str(&encode_url(&signature));
        Ok(token)
    }
}

impl Signer {
    fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        match self {
            Self::Hmac(key) => Some(hmac::sign(key, message).as_ref().to_vec()),
            Self::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(*encoding, &random, message, &mut signature).ok()?;
                Some(signature)
            }
            Self::Ec(pair) => Some(pair.sign(&random, message).ok()?.as_ref().to_vec()),
            Self::Ed(pair) => Some(pair.sign(message).as_ref().to_vec()),
        }
    }
}

/// A public key as X.509 writes it.
fn spki<'a, K>(key: &K) -> Result<Vec<u8>, String>
where
    K: AsDer<aws_lc_rs::encoding::PublicKeyX509Der<'a>>,
{
    let der = key.as_der().map_err(|_| MISSING_KEY.to_owned())?;
    Ok(der.as_ref().to_vec())
}

/// Verifies by the public key: that of the file, or of the private key, or both if they are one.
fn verifier(
    algorithm: &'static dyn s::VerificationAlgorithm,
    public: Option<&[u8]>,
    own: Option<Vec<u8>>,
) -> Result<Verifier, String> {
    let parse = |der: &[u8]| {
        ParsedPublicKey::new(algorithm, der).map_err(|_| "auth: the public key cannot be read")
    };
    let public = public.map(|pem| public_key(pem).ok_or("auth: the public key is no PEM"));
    let key = match (public.transpose()?, own) {
        (None, None) => return Err(MISSING_KEY.to_owned()),
        (Some(public), None) => public,
        (None, Some(own)) => own,
        (Some(public), Some(own)) if public == own => own,
        (Some(public), Some(_)) => {
            parse(&public)?;
            return Err(KEY_MISMATCH.to_owned());
        }
    };
    Ok(Verifier::Public(parse(&key)?))
}

const UNREADABLE: &str = "auth: the private key cannot be read";

fn rsa_pair(pem: &[u8]) -> Result<RsaKeyPair, String> {
    let der = unwrap_pem(pem).ok_or(UNREADABLE)?;
    let pair = RsaKeyPair::from_pkcs8(&der).or_else(|_| RsaKeyPair::from_der(&der));
    pair.map_err(|_| UNREADABLE.to_owned())
}

fn ec_pair(pem: &[u8], signing: &'static EcdsaSigningAlgorithm) -> Result<EcdsaKeyPair, String> {
    // `openssl ecparam -genkey` writes the curve into a block of its own before it.
    let der = unwrap_pem(pem).ok_or(UNREADABLE)?;
    EcdsaKeyPair::from_private_key_der(signing, &der).map_err(|_| UNREADABLE.to_owned())
}

fn ed_pair(pem: &[u8]) -> Result<Ed25519KeyPair, String> {
    let der = unwrap_pem(pem).ok_or(UNREADABLE)?;
    Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map_err(|_| UNREADABLE.to_owned())
}

/// The public key of a PEM file, which may be in a certificate.
fn public_key(pem: &[u8]) -> Option<Vec<u8>> {
    let key = || Some(x509::public_key(&unwrap_block(pem, "CERTIFICATE-----")?)?.to_vec());
    unwrap_pem(pem).or_else(key)
}

/// The bytes of a PEM file's first block that holds a key.
fn unwrap_pem(pem: &[u8]) -> Option<Vec<u8>> {
    unwrap_block(pem, "KEY-----")
}

/// The bytes of a PEM file's first block whose label ends so.
fn unwrap_block(pem: &[u8], label: &str) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(pem).ok()?;
    let mut lines = text.lines().map(str::trim);
    let begins = |line: &str| line.starts_with("-----BEGIN ") && line.ends_with(label);
    lines.by_ref().find(|line| begins(line))?;
    let body = lines.take_while(|line| !line.starts_with("-----END "));
    decode_base64(body.collect::<String>().as_bytes())
}

fn encode_url(bytes: &[u8]) -> String {
    etcore_proto::grpc::encode_base64(bytes).replace('+', "-").replace('/', "_")
}

fn decode_url(text: &str) -> Option<Vec<u8>> {
    if text.contains(['+', '/', '=']) {
        return None;
    }
    decode_base64(text.replace('-', "+").replace('_', "/").as_bytes())
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    use aws_lc_rs::rsa::KeySize;

    use super::*;

    /// Keys of all kinds in files: private and public.
    fn keys(dir: &std::path::Path) -> HashMap<&'static str, (String, String)> {
        let mut files = HashMap::new();
        let mut write = |kind: &'static str, private: &[u8], public: &[u8]| {
            let path = |side: &str| dir.join(format!("{kind}-{side}")).to_str().unwrap().to_owned();
            let pem = |label: &str, der: &[u8]| {
                let body = etcore_proto::grpc::encode_base64(der);
                format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
            };
            std::fs::write(path("priv"), pem("PRIVATE KEY", private)).unwrap();
            std::fs::write(path("pub"), pem("PUBLIC KEY", public)).unwrap();
            files.insert(kind, (path("priv"), path("pub")));
        };
        let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let private = AsDer::<Pkcs8V1Der<'_>>::as_der(&rsa).unwrap();
        write("RSA", private.as_ref(), &spki(rsa.public_key()).unwrap());
        for (kind, signing) in [
            ("P256", &s::ECDSA_P256_SHA256_FIXED_SIGNING),
            ("P384", &s::ECDSA_P384_SHA384_FIXED_SIGNING),
            ("P521", &s::ECDSA_P521_SHA512_FIXED_SIGNING),
        ] {
            let pair = EcdsaKeyPair::generate(signing).unwrap();
            let private = pair.to_pkcs8v1().unwrap();
            write(kind, private.as_ref(), &spki(pair.public_key()).unwrap());
        }
        let pair = Ed25519KeyPair::generate().unwrap();
        let private = pair.to_pkcs8v1().unwrap();
        write("Ed", private.as_ref(), &spki(pair.public_key()).unwrap());
        files
    }

    fn jwt(spec: &[(&str, &str)]) -> Result<Jwt, String> {
        Jwt::new(&spec.iter().copied().collect())
    }

    const METHODS: [(&str, &str); 13] = [
        ("HS256", "RSA"),
        ("HS384", "RSA"),
        ("HS512", "RSA"),
        ("RS256", "RSA"),
        ("RS384", "RSA"),
        ("RS512", "RSA"),
        ("PS256", "RSA"),
        ("PS384", "RSA"),
        ("PS512", "RSA"),
        ("ES256", "P256"),
        ("ES384", "P384"),
        ("ES512", "P521"),
        ("EdDSA", "Ed"),
    ];

    #[test]
    fn tokens_of_every_method_are_known_until_they_end_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let keys = keys(dir.path());
        for (method, kind) in METHODS {
            let (private, public) = &keys[kind];
            let both = [("sign-method", method), ("priv-key", private), ("pub-key", public)];
            let maker = jwt(&both).unwrap_or_else(|error| panic!("{method}: {error}"));
            let token = maker.sign("ann", 7, 1000).unwrap();
            let who = Some(Identity { name: "ann".into(), revision: Some(7) });
            assert_eq!(maker.identify(token.as_bytes(), 1299), who, "{method}");
            assert_eq!(maker.identify(token.as_bytes(), 1300), None, "{method}: it has ended");
            if !method.starts_with("HS") {
                let taker = jwt(&[("sign-method", method), ("pub-key", public)]).unwrap();
                assert_eq!(taker.identify(token.as_bytes(), 1000), who, "{method}");
                assert_eq!(taker.sign("ann", 7, 0).unwrap_err().message, VERIFY_ONLY);
            }
            for at in 0..token.len() {
                let mut other = token.clone().into_bytes();
                other[at] = if other[at] == b'A' { b'B' } else { b'A' };
                let found = maker.verify(&other);
                // The last letter of a part has bits that mean nothing.
                let is_loose = token.as_bytes().get(at + 1).is_none_or(|next| *next == b'.');
                assert!(found.is_none() || is_loose, "{method}: changed at {at}");
            }
        }
    }

    #[test]
    fn a_token_that_chooses_its_method_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let keys = keys(dir.path());
        let (private, public) = &keys["RSA"];
        let taker = jwt(&[("sign-method", "RS256"), ("pub-key", public)]).unwrap();
        let claims = encode_url(br#"{"username":"root","revision":9}"#);
        for alg in ["none", "None", "HS256", "RS256", ""] {
            let header = encode_url(format!(r#"{{"alg":"{alg}","typ":"JWT"}}"#).as_bytes());
            let signed = format!("{header}.{claims}");
            // The public key as a secret, as forgers would have it.
            let secret = std::fs::read(public).unwrap();
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), signed.as_bytes());
            for signature in [String::new(), encode_url(tag.as_ref())] {
                let token = format!("{signed}.{signature}");
                assert_eq!(taker.identify(token.as_bytes(), 0), None, "{alg}");
            }
        }
        let maker = jwt(&[("sign-method", "PS256"), ("priv-key", private)]).unwrap();
        let other = maker.sign("root", 9, 0).unwrap();
        assert_eq!(taker.identify(other.as_bytes(), 0), None, "the same key, another method");
    }

    #[test]
    fn claims_that_are_missing_or_odd_make_it_none() {
        let good = r#"{"username":"u","revision":3.9,"exp":10,"nbf":5}"#;
        let claims = Claims::parse(good.as_bytes()).unwrap();
        assert_eq!(claims.revision, 3);
        assert!(claims.holds(5) && claims.holds(9) && !claims.holds(4) && !claims.holds(10));
        for odd in [
            r#"{"revision":3}"#,
            r#"{"username":"u"}"#,
            r#"{"username":1,"revision":3}"#,
            r#"{"username":"u","revision":"3"}"#,
            r#"{"username":"u","revision":3,"exp":"soon"}"#,
            r#"["username"]"#,
            "x",
        ] {
            assert_eq!(Claims::parse(odd.as_bytes()), None, "{odd}");
        }
    }

    #[test]
    fn options_without_a_key_or_with_two_that_differ_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (keys, others) = (keys(dir.path()), tempfile::tempdir().unwrap());
        let others = self::keys(others.path());
        let refused = |spec: &[(&str, &str)]| jwt(spec).err().unwrap_or_default();
        assert_eq!(refused(&[]), INVALID_OPTIONS);
        assert_eq!(refused(&[("sign-method", "XX256")]), INVALID_OPTIONS);
        assert_eq!(refused(&[("sign-method", "RS256")]), MISSING_KEY);
        assert_eq!(refused(&[("sign-method", "HS256")]), MISSING_KEY);
        let (private, public) = (&keys["RSA"].0, &others["RSA"].1);
        let both = [("sign-method", "RS256"), ("priv-key", private), ("pub-key", public)];
        assert_eq!(refused(&both), KEY_MISMATCH);
        let ttl = [("sign-method", "RS256"), ("priv-key", private), ("ttl", "soon")];
        assert_eq!(refused(&ttl), INVALID_OPTIONS);
        let none = [("sign-method", "RS256"), ("priv-key", "/nowhere")];
        assert_eq!(refused(&none), INVALID_OPTIONS);
        assert!(refused(&[("sign-method", "ES256"), ("priv-key", private)]).contains("cannot"));
    }
}
