//! Reading a response's head or trailers.
//!
//! Part of the client's core; as on the server's side, repeated fields cost a match on their tag.

use super::super::{Metadata, decode_message};
use crate::hpack::{Field, FieldSink};

const CUSTOM: u32 = 0;
const IGNORED: u32 = 1;
const CONTENT_TYPE: u32 = 2;
const CONTENT_TYPE_OTHER: u32 = 3;
const STATUS: u32 = 4;
const STATUS_MALFORMED: u32 = 5;
const MESSAGE: u32 = 6;
const ENCODING_GZIP: u32 = 7;
const ENCODING_OTHER: u32 = 8;

/// The block being read; reused for each.
#[derive(Debug, Default)]
pub(super) struct HeadScratch {
    pub(super) is_grpc: bool,
    /// A content type that is not gRPC's, quoted in the error.
    pub(super) content_type: Option<String>,
    pub(super) status: Option<u32>,
    pub(super) status_is_malformed: bool,
    pub(super) message: String,
    pub(super) gzip: bool,
    pub(super) encoding_other: Option<String>,
    pub(super) metadata: Metadata,
}

impl HeadScratch {
    pub(super) fn start(&mut self) {
        self.is_grpc = false;
        self.content_type = None;
        self.status = None;
        self.status_is_malformed = false;
        self.message.clear();
        self.gzip = false;
        self.encoding_other = None;
        self.metadata.clear();
    }

    pub(super) fn take_metadata(&mut self) -> Option<Box<Metadata>> {
        if self.metadata.is_empty() {
            return None;
        }
        Some(Box::new(std::mem::take(&mut self.metadata)))
    }
}

impl FieldSink for HeadScratch {
    fn classify(&mut self, name: &[u8], value: &[u8]) -> u32 {
        match name {
            b":status" | b"date" | b"server" | b"content-length" => IGNORED,
            b"grpc-accept-encoding" | b"accept-encoding" => IGNORED,
            b"content-type" => match value.strip_prefix(b"application/grpc") {
                Some([] | [b'+' | b';', ..]) => CONTENT_TYPE,
                _ => CONTENT_TYPE_OTHER,
            },
            b"grpc-status" => {
                let text = std::str::from_utf8(value).ok();
                // Numbers beyond a tag's room mean nothing to anybody; all become Unknown.
                match text.and_then(|text| text.parse::<u32>().ok()) {
                    Some(number) => STATUS | number.min(0xffff) << 8,
                    None => STATUS_MALFORMED,
                }
            }
            b"grpc-message" => MESSAGE,
            b"grpc-encoding" => match value {
                b"" | b"identity" => IGNORED,
                b"gzip" => ENCODING_GZIP,
                _ => ENCODING_OTHER,
            },
            _ => CUSTOM,
        }
    }

    #[inline]
    fn field(&mut self, field: Field<'_>) {
        match field.tag & 0xff {
            IGNORED => {}
            CONTENT_TYPE => self.is_grpc = true,
            CONTENT_TYPE_OTHER => self.content_type = Some(lossy(field.value)),
            STATUS => self.status = Some(field.tag >> 8),
            STATUS_MALFORMED => self.status_is_malformed = true,
            MESSAGE if !field.value.is_empty() => self.message = decode_message(field.value),
            MESSAGE => self.message.clear(),
            ENCODING_GZIP => self.gzip = true,
            ENCODING_OTHER => self.encoding_other = Some(lossy(field.value)),
            _ => self.metadata.push(field.name, field.value),
        }
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
