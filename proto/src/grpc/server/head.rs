//! Reading a request's head: each field is classified once when it enters the header table, and
//! later costs a match on its tag.
//!
//! Part of the server's core. Values are kept only for fields the server asks for.

use std::sync::Arc;

use bytes::Bytes;

use super::super::base64::first_bad_byte;
use super::super::text::timeout_error_text;
use super::super::{Metadata, Routes, parse_timeout_ms};
use crate::hpack::{Field, FieldSink, NameClass};
use crate::limits;

/// Kinds of fields; a tag is a kind in the low byte and a number above it.
const CUSTOM: u32 = 0;
const IGNORED: u32 = 1;
const KNOWN_PATH: u32 = 2;
const OTHER_PATH: u32 = 3;
const CONTENT_TYPE: u32 = 4;
const CONTENT_TYPE_PROTO: u32 = 5;
const CONTENT_TYPE_OTHER: u32 = 6;
const POST: u32 = 7;
const OTHER_METHOD: u32 = 8;
const TIMEOUT: u32 = 9;
const ENCODING_IDENTITY: u32 = 10;
const ENCODING_GZIP: u32 = 11;
const ENCODING_OTHER: u32 = 12;
const AUTHORITY: u32 = 13;
const HOST: u32 = 14;
const TOKEN: u32 = 15;
const AUTHORIZATION: u32 = 16;
const HAS_LEADER: u32 = 17;
const CLIENT_API_VERSION: u32 = 18;
const CONTENT_TYPE_SUB: u32 = 19;

/// What `content-type` said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum ContentType {
    #[default]
    Missing,
    Grpc,
    GrpcProto,
    /// gRPC with a subtype that answers repeat.
    GrpcSub,
    Other,
}

/// What `grpc-encoding` said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Encoding {
    #[default]
    Identity,
    Gzip,
    Other,
}

/// The head being read; reused for each block.
#[derive(Debug)]
pub(super) struct HeadScratch {
    routes: Arc<Routes>,
    collect_all: bool,
    pub(super) content_type: ContentType,
    pub(super) encoding: Encoding,
    pub(super) is_post: bool,
    pub(super) route: Option<u32>,
    pub(super) has_leader: bool,
    pub(super) timeout_ms: Option<u64>,
    pub(super) token: Option<Bytes>,
    pub(super) authorization: Option<Bytes>,
    pub(super) client_api_version: Option<Bytes>,
    pub(super) authorities: u8,
    pub(super) hosts: u8,
    /// An error text that the whole request is answered with.
    pub(super) malformed: Option<String>,
    /// Whatever unusual value the error texts will need: path, method, content type, encoding.
    pub(super) path: Vec<u8>,
    pub(super) method: Vec<u8>,
    pub(super) content_type_text: Vec<u8>,
    /// The text behind `application/grpc+`, if it is unusual.
    pub(super) subtype: Vec<u8>,
    pub(super) encoding_text: Vec<u8>,
    pub(super) all: Metadata,
    authority: Vec<u8>,
}

impl HeadScratch {
    pub(super) fn new(routes: Arc<Routes>, collect_all: bool) -> Self {
        HeadScratch {
            routes,
            collect_all,
            content_type: ContentType::Missing,
            encoding: Encoding::Identity,
            is_post: false,
            route: None,
            has_leader: false,
            timeout_ms: None,
            token: None,
            authorization: None,
            client_api_version: None,
            authorities: 0,
            hosts: 0,
            malformed: None,
            path: Vec::new(),
            method: Vec::new(),
            content_type_text: Vec::new(),
            subtype: Vec::new(),
            encoding_text: Vec::new(),
            all: Metadata::new(),
            authority: Vec::new(),
        }
    }

    pub(super) fn start(&mut self) {
        self.content_type = ContentType::Missing;
        self.encoding = Encoding::Identity;
        self.is_post = false;
        self.route = None;
        self.has_leader = false;
        self.timeout_ms = None;
        self.token = None;
        self.authorization = None;
        self.client_api_version = None;
        self.authorities = 0;
        self.hosts = 0;
        self.malformed = None;
        self.all.clear();
        self.content_type_text.clear();
        self.subtype.clear();
    }

    pub(super) fn authority(&self) -> &[u8] {
        &self.authority
    }

    fn see_timeout(&mut self, value: &[u8]) {
        match parse_timeout_ms(value) {
            Ok(timeout_ms) => self.timeout_ms = Some(timeout_ms),
            Err(error) => self.malformed = Some(timeout_error_text(error, shortened(value))),
        }
    }

    fn see_authority(&mut self, value: &[u8]) {
        let value = shortened(value);
        if self.authority != value {
            copy(value, &mut self.authority);
        }
    }

    fn see_custom(&mut self, field: &Field<'_>) {
        if field.name.ends_with(b"-bin")
            && let Some(at) = first_bad_byte(field.value)
        {
            self.malformed = Some(format!(
                "malformed binary metadata {} in header {}: illegal base64 data at input byte {at}",
                super::super::text::go_quote(shortened(field.value)),
                super::super::text::go_quote(shortened(field.name))
            ));
        }
    }
}

impl FieldSink for HeadScratch {
    fn classify(&mut self, name: &[u8], value: &[u8]) -> u32 {
        match name {
            b":path" => match self.routes.find(value) {
                Some(index) => KNOWN_PATH | index << 8,
                None => OTHER_PATH,
            },
            b":method" if value == b"POST" => POST,
            b":method" => OTHER_METHOD,
            b":scheme"
            | b"user-agent"
            | b"te"
            | b"grpc-accept-encoding"
            | b"accept-encoding"
            | b"content-length" => IGNORED,
            b":authority" => AUTHORITY,
            b"host" => HOST,
            b"content-type" => classify_content_type(value),
            b"grpc-timeout" => TIMEOUT,
            b"grpc-encoding" => match value {
                b"" | b"identity" => ENCODING_IDENTITY,
                b"gzip" => ENCODING_GZIP,
                _ => ENCODING_OTHER,
            },
            b"token" => TOKEN,
            b"authorization" => AUTHORIZATION,
            b"hasleader" if value == b"true" => HAS_LEADER,
            b"client-api-version" => CLIENT_API_VERSION,
            _ => CUSTOM,
        }
    }

    #[inline]
    fn field(&mut self, mut field: Field<'_>) {
        if self.collect_all {
            self.all.push(field.name, field.value);
        }
        match field.tag & 0xff {
            IGNORED => {}
            KNOWN_PATH => self.route = Some(field.tag >> 8),
            OTHER_PATH => copy(field.value, &mut self.path),
            CONTENT_TYPE => self.content_type = ContentType::Grpc,
            CONTENT_TYPE_PROTO => self.content_type = ContentType::GrpcProto,
            CONTENT_TYPE_SUB => {
                self.content_type = ContentType::GrpcSub;
                self.subtype.clear();
                let subtype = field.value.get(GRPC.len() + 1..).unwrap_or_default();
                self.subtype.extend_from_slice(shortened(subtype));
            }
            // If there are several, a right one is enough.
            CONTENT_TYPE_OTHER => {
                if self.content_type == ContentType::Missing {
                    self.content_type = ContentType::Other;
                }
                copy(field.value, &mut self.content_type_text);
            }
            POST => self.is_post = true,
            OTHER_METHOD => copy(field.value, &mut self.method),
            TIMEOUT => self.see_timeout(field.value),
            ENCODING_IDENTITY => self.encoding = Encoding::Identity,
            ENCODING_GZIP => self.encoding = Encoding::Gzip,
            ENCODING_OTHER => {
                self.encoding = Encoding::Other;
                copy(field.value, &mut self.encoding_text);
            }
            AUTHORITY => {
                self.authorities = self.authorities.saturating_add(1);
                self.see_authority(field.value);
            }
            HOST => {
                self.hosts = self.hosts.saturating_add(1);
                if self.authorities == 0 {
                    self.see_authority(field.value);
                }
            }
            TOKEN => self.token = Some(field.shared_value()),
            AUTHORIZATION => self.authorization = Some(field.shared_value()),
            HAS_LEADER => self.has_leader = true,
            // The first of several counts.
            CLIENT_API_VERSION if self.client_api_version.is_none() => {
                self.client_api_version = Some(field.shared_value());
            }
            CLIENT_API_VERSION => {}
            _ if field.class != NameClass::Status => self.see_custom(&field),
            _ => {}
        }
    }
}

fn classify_content_type(value: &[u8]) -> u32 {
    match value.strip_prefix(GRPC) {
        Some(b"" | b"+" | b";") => CONTENT_TYPE,
        Some(b"+proto" | b";proto") => CONTENT_TYPE_PROTO,
        Some([b'+' | b';', ..]) => CONTENT_TYPE_SUB,
        _ => CONTENT_TYPE_OTHER,
    }
}

const GRPC: &[u8] = b"application/grpc";

/// Bytes of a value kept for an error text, which a connection holds until the next one.
fn shortened(value: &[u8]) -> &[u8] {
    &value[..value.len().min(limits::ERROR_VALUE_BYTES_MAX)]
}

fn copy(value: &[u8], into: &mut Vec<u8>) {
    into.clear();
    into.extend_from_slice(shortened(value));
}
