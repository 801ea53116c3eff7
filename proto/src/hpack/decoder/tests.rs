//! Tests of the decoder, alone and against the encoder.

use super::super::{Encoder, HeaderItem};
use super::*;

#[derive(Default)]
struct Collect {
    fields: Vec<(String, String)>,
    classified: usize,
}

impl FieldSink for Collect {
    fn classify(&mut self, _name: &[u8], value: &[u8]) -> u32 {
        self.classified += 1;
        value.len() as u32
    }

    fn field(&mut self, field: Field<'_>) {
        assert_eq!(field.tag, field.value.len() as u32, "the tag belongs to the field");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        self.fields.push((text(field.name), text(field.value)));
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn the_request_examples_of_the_rfc_decode() {
    let mut sink = Collect::default();
    let mut decoder = Decoder::new(4096, &mut sink);
    for (wire, last, table_bytes) in [
        ("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", "www.example.com", 57),
        ("8286 84be 5886 a8eb 1064 9cbf", "no-cache", 110),
        ("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf", "custom-value", 164),
    ] {
        sink.fields.clear();
        decoder.decode(&hex(wire), &mut sink).unwrap();
        assert_eq!(sink.fields.last().unwrap().1, last);
        assert_eq!(decoder.table_bytes(), table_bytes);
    }
}

#[test]
fn entries_are_evicted_as_the_response_examples_of_the_rfc_show() {
    let mut sink = Collect::default();
    let mut decoder = Decoder::new(256, &mut sink);
    for (wire, count) in [
        (
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6
             2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
            4,
        ),
        ("4883 640e ffc1 c0bf", 4),
        (
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab
             77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f
             9587 3160 65c0 03ed 4ee5 b106 3d50 07",
            6,
        ),
    ] {
        sink.fields.clear();
        decoder.decode(&hex(wire), &mut sink).unwrap();
        assert_eq!(sink.fields.len(), count);
    }
    assert_eq!(decoder.table_bytes(), 215);
    assert_eq!(sink.fields[5].0, "set-cookie");
}

#[test]
fn a_repeated_block_classifies_nothing() {
    let mut encoder = Encoder::new(4096);
    let slots: Vec<_> = [(":path", "/a/b"), ("te", "trailers"), ("user-agent", "me")]
        .iter()
        .map(|(name, value)| HeaderItem::Slot(encoder.register(name.as_bytes(), value.as_bytes())))
        .collect();
    let mut sink = Collect::default();
    let mut decoder = Decoder::new(4096, &mut sink);
    for round in 0..3 {
        let mut wire = Vec::new();
        encoder.encode(&slots, &mut wire);
        sink.fields.clear();
        sink.classified = 0;
        decoder.decode(&wire, &mut sink).unwrap();
        assert_eq!(sink.fields.len(), 3);
        if round > 0 {
            assert_eq!(wire.len(), 3);
            assert_eq!(sink.classified, 0);
        }
    }
    // A literal outside the table that repeats is remembered too.
    let mut wire = Vec::new();
    encoder.encode(&[HeaderItem::Literal(b":path", b"/x/y")], &mut wire);
    decoder.decode(&wire, &mut sink).unwrap();
    sink.classified = 0;
    decoder.decode(&wire, &mut sink).unwrap();
    assert_eq!(sink.classified, 0);
    assert_eq!(sink.fields.last().unwrap().1, "/x/y");
}

#[test]
fn encoder_and_decoder_agree_while_the_table_churns_and_shrinks() {
    let mut sink = Collect::default();
    let mut decoder = Decoder::new(4096, &mut sink);
    let mut encoder = Encoder::new(4096);
    let fields: Vec<_> = (0..90)
        .map(|number: usize| (format!("name-{}", number % 17), "v".repeat(number * 3)))
        .collect();
    let slots: Vec<_> = fields
        .iter()
        .map(|(name, value)| encoder.register(name.as_bytes(), value.as_bytes()))
        .collect();
    let mut state = 7u32;
    for round in 0..400 {
        if round % 50 == 49 {
            encoder.peer_allows([0, 100, 4096, 700][round / 50 % 4]);
        }
        let mut expected = Vec::new();
        let mut items = Vec::new();
        for _ in 0..6 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let pick = (state >> 16) as usize % fields.len();
            expected.push(fields[pick].clone());
            let (name, value) = (fields[pick].0.as_bytes(), fields[pick].1.as_bytes());
            items.push(match state >> 30 {
                0 => HeaderItem::Literal(name, value),
                1 => HeaderItem::Sensitive(name, value),
                _ => HeaderItem::Slot(slots[pick]),
            });
        }
        let mut wire = Vec::new();
        encoder.encode(&items, &mut wire);
        sink.fields.clear();
        decoder.decode(&wire, &mut sink).unwrap();
        assert_eq!(sink.fields, expected);
        assert!(decoder.arena.len() <= 2 * 4096);
    }
}

#[test]
fn malformed_blocks_are_refused_with_their_reason() {
    let cases: [(&[u8], HpackError); 7] = [
        (&[0x80], HpackError::BadIndex(0)),
        (&[0xbe], HpackError::BadIndex(62)),
        (&[0x7f, 0x00], HpackError::BadIndex(63)),
        (&[0x40], HpackError::Truncated),
        (&[0x40, 0x05, b'a'], HpackError::Truncated),
        (&[0x82, 0x20], HpackError::MisplacedSizeUpdate),
        (&[0x3f, 0xe2, 0x1f], HpackError::TableSizeTooLarge { asked: 4097, limit: 4096 }),
    ];
    for (wire, expected) in cases {
        let mut sink = Collect::default();
        let mut decoder = Decoder::new(4096, &mut sink);
        assert_eq!(decoder.decode(wire, &mut sink), Err(expected), "{wire:02x?}");
    }
}

#[test]
fn a_lowered_limit_demands_an_update_first() {
    let mut sink = Collect::default();
    let mut decoder = Decoder::new(4096, &mut sink);
    decoder.set_size_limit(100);
    assert_eq!(decoder.decode(&[0x82], &mut sink), Err(HpackError::MissingSizeUpdate));
    assert_eq!(decoder.decode(&[0x3f, 0x45, 0x82], &mut sink), Ok(()));
}

#[test]
fn an_entry_larger_than_the_table_empties_it() {
    let mut sink = Collect::default();
    let mut decoder = Decoder::new(64, &mut sink);
    decoder.decode(&[0x40, 1, b'a', 1, b'b'], &mut sink).unwrap();
    assert_eq!(decoder.table_bytes(), 34);
    let mut wire = vec![0x40, 1, b'a', 60];
    wire.extend([b'x'; 60]);
    decoder.decode(&wire, &mut sink).unwrap();
    assert_eq!(decoder.table_bytes(), 0);
    assert_eq!(sink.fields.len(), 2);
}
