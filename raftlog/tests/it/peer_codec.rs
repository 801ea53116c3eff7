//! The framings of the peer streams: any messages, any cuts, any garbage.
//!
//! `ETCORE_LONG=1` makes a hundred times as many rounds.

use bytes::Bytes;
use etcore_engine::testing::prng::Prng;
use etcore_proto::raftpb::{Entry, Message, MessageType};
use etcore_raftlog::limits;
use etcore_raftlog::peer::StreamKind;
use etcore_raftlog::peer::codec::{DecodeError, Decoder, Encoder, decode_message};
use prost::Message as _;

const LOCAL: u64 = 0x8e9e_05c5_2164_694d;
const REMOTE: u64 = 7;

fn rounds() -> u64 {
    if std::env::var_os("ETCORE_LONG").is_some() { 50_000 } else { 500 }
}

fn bytes(random: &mut Prng, max: usize) -> Bytes {
    let mut bytes = vec![0; random.index(max)];
    random.fill(&mut bytes);
    bytes.into()
}

fn entry(random: &mut Prng, term: u64, index: u64) -> Entry {
    let max = if random.chance(1, 50) { 100_000 } else { 300 };
    let data = random.chance(9, 10).then(|| bytes(random, max));
    // An empty field of bytes is not on the wire.
    let data = data.filter(|data| !data.is_empty());
    Entry { r#type: Some(0), term: Some(term), index: Some(index), data }
}

/// Appends as a leader makes them: mostly one behind the other, now and then anything.
struct Leader {
    term: u64,
    index: u64,
}

impl Leader {
    fn next(&mut self, random: &mut Prng) -> Message {
        if random.chance(1, 20) {
            self.term += random.below(3);
        }
        let log_term = if random.chance(1, 10) { self.term.saturating_sub(1) } else { self.term };
        if random.chance(1, 15) {
            self.index = self.index.saturating_sub(random.below(5));
        }
        let before = self.index;
        let count = random.below(6);
        let entries = (0..count).map(|at| entry(random, self.term, before + 1 + at)).collect();
        self.index += count;
        Message {
            r#type: Some(MessageType::MsgApp as i32),
            to: Some(LOCAL),
            from: Some(REMOTE),
            term: Some(self.term),
            log_term: Some(log_term),
            index: Some(before),
            entries,
            commit: Some(random.below(self.index + 1)),
            ..Message::default()
        }
    }
}

fn any_message(random: &mut Prng) -> Message {
    let mut message = Leader { term: 1 + random.below(9), index: random.below(99) }.next(random);
    message.r#type = Some(random.below(19) as i32);
    message.reject = random.chance(1, 2).then_some(true);
    message.reject_hint = random.chance(1, 2).then(|| random.next_u64());
    message.context = random.chance(1, 2).then(|| bytes(random, 50)).filter(|b| !b.is_empty());
    message
}

/// Feeds a stream in pieces of any length.
fn read_in_pieces(
    decoder: &mut Decoder,
    mut stream: &[u8],
    random: &mut Prng,
) -> Result<Vec<Message>, DecodeError> {
    let mut out = Vec::new();
    let most = [1, 20, 5000, 1 << 20][random.index(4)];
    let most = 1 + random.index(most);
    while !stream.is_empty() {
        let (piece, rest) = stream.split_at((1 + random.index(most)).min(stream.len()));
        stream = rest;
        decoder.receive(piece, &mut |message| out.push(message))?;
    }
    Ok(out)
}

/// What an append looks like when term and index were left out on the way: fields that are not
/// needed are absent.
fn canonical(message: &Message) -> Message {
    Message {
        r#type: message.r#type,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.entries.clone(),
        commit: message.commit,
        ..Message::default()
    }
}

#[test]
fn appends_come_out_of_their_stream_as_they_went_in_however_it_is_cut() {
    let mut random = Prng::new(1);
    let mut predicted = 0;
    for _ in 0..rounds() {
        let mut leader = Leader { term: 1 + random.below(5), index: random.below(100) };
        let mut encoder = Encoder::new(StreamKind::Append);
        let (mut stream, mut sent) = (Vec::new(), Vec::new());
        for _ in 0..random.below(30) {
            if random.chance(1, 8) {
                encoder.encode_heartbeat(&mut stream);
            }
            let message = leader.next(&mut random);
            let at = stream.len();
            encoder.encode(&message, &mut stream);
            predicted += u64::from(stream[at] == 1);
            sent.push(message);
        }
        let mut decoder = Decoder::new(StreamKind::Append, LOCAL, REMOTE);
        let got = read_in_pieces(&mut decoder, &stream, &mut random).unwrap();
        assert_eq!(got.iter().map(canonical).collect::<Vec<_>>(), sent);
        assert_eq!(decoder.held_bytes(), 0);
    }
    assert!(predicted > rounds(), "the short form was used {predicted} times");
}

#[test]
fn the_short_form_of_an_append_means_what_the_long_one_does() {
    let mut random = Prng::new(2);
    for _ in 0..rounds() {
        let mut leader = Leader { term: 3, index: 10 };
        let (mut short, mut long) = (Vec::new(), Vec::new());
        let mut encoder = Encoder::new(StreamKind::Append);
        for _ in 0..20 {
            let message = leader.next(&mut random);
            encoder.encode(&message, &mut short);
            // A new encoder predicts nothing.
            Encoder::new(StreamKind::Append).encode(&message, &mut long);
        }
        assert_ne!(short, long);
        let decode = |stream: &[u8]| {
            let mut out = Vec::new();
            let mut decoder = Decoder::new(StreamKind::Append, LOCAL, REMOTE);
            decoder.receive(stream, &mut |message| out.push(canonical(&message))).unwrap();
            out
        };
        assert_eq!(decode(&short), decode(&long));
    }
}

#[test]
fn any_message_comes_out_of_the_message_stream_as_it_went_in() {
    let mut random = Prng::new(3);
    for _ in 0..rounds() {
        let mut encoder = Encoder::new(StreamKind::Message);
        let (mut stream, mut sent) = (Vec::new(), Vec::new());
        for _ in 0..random.below(20) {
            if random.chance(1, 8) {
                encoder.encode_heartbeat(&mut stream);
            }
            let message = any_message(&mut random);
            encoder.encode(&message, &mut stream);
            sent.push(message);
        }
        let mut decoder = Decoder::new(StreamKind::Message, LOCAL, REMOTE);
        assert_eq!(read_in_pieces(&mut decoder, &stream, &mut random).unwrap(), sent);
    }
}

#[test]
fn the_bytes_are_those_that_etcd_writes() {
    let append = |index: u64, data: &'static [u8]| Message {
        r#type: Some(MessageType::MsgApp as i32),
        to: Some(2),
        from: Some(1),
        term: Some(1),
        log_term: Some(1),
        index: Some(index),
        commit: Some(3),
        entries: vec![Entry {
            r#type: Some(0),
            term: Some(1),
            index: Some(index + 1),
            data: Some(Bytes::from_static(data)),
        }],
        ..Message::default()
    };
    let mut stream = Vec::new();
    let mut encoder = Encoder::new(StreamKind::Append);
    encoder.encode_heartbeat(&mut stream);
    encoder.encode(&append(4, b"ab"), &mut stream);
    encoder.encode(&append(5, b"c"), &mut stream);
    let mut expected = vec![0, 2, 0, 0, 0, 0, 0, 0, 0, 26];
    expected.extend([8, 3, 16, 2, 24, 1, 32, 1, 40, 1, 48, 4]);
    expected.extend([58, 10, 8, 0, 16, 1, 24, 5, 34, 2, b'a', b'b', 64, 3]);
    expected.extend([1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9]);
    expected.extend([8, 0, 16, 1, 24, 6, 34, 1, b'c', 0, 0, 0, 0, 0, 0, 0, 3]);
    assert_eq!(stream, expected);
    let mut stream = Vec::new();
    Encoder::new(StreamKind::Message).encode_heartbeat(&mut stream);
    assert_eq!(stream, [0, 0, 0, 0, 0, 0, 0, 2, 8, 8]);
}

#[test]
fn entries_share_the_memory_of_what_was_read() {
    let mut leader = Leader { term: 1, index: 1 };
    let mut random = Prng::new(4);
    let message = loop {
        let message = leader.next(&mut random);
        if message.entries.iter().filter(|entry| entry.data.is_some()).count() > 1 {
            break message;
        }
    };
    let frame = Bytes::from(message.encode_to_vec());
    let within = frame.as_ptr_range();
    let read = decode_message(frame.clone()).unwrap();
    for entry in &read.entries {
        let Some(data) = &entry.data else { continue };
        assert!(within.contains(&data.as_ptr()), "the data was copied");
    }
}

#[test]
fn a_length_that_nobody_would_send_is_refused_before_memory_is_spent_on_it() {
    let too_long = limits::PEER_MESSAGE_BYTES_MAX + 1;
    let mut none = |_: Message| panic!("no message is complete");
    let mut message = Decoder::new(StreamKind::Message, LOCAL, REMOTE);
    let error = message.receive(&too_long.to_be_bytes(), &mut none).unwrap_err();
    assert_eq!(error, DecodeError::TooLong(too_long));
    let mut append = Decoder::new(StreamKind::Append, LOCAL, REMOTE);
    let mut frame = vec![2];
    frame.extend(u64::MAX.to_be_bytes());
    assert_eq!(append.receive(&frame, &mut none).unwrap_err(), DecodeError::TooLong(u64::MAX));
    let mut append = Decoder::new(StreamKind::Append, LOCAL, REMOTE);
    let mut frame = vec![1];
    frame.extend(u64::MAX.to_be_bytes());
    let error = append.receive(&frame, &mut none).unwrap_err();
    assert_eq!(error, DecodeError::TooManyEntries(u64::MAX));
    let mut append = Decoder::new(StreamKind::Append, LOCAL, REMOTE);
    assert_eq!(append.receive(&[9], &mut none).unwrap_err(), DecodeError::Type(9));
    // Two bytes for each entry, a hundred times that in memory.
    let many = [58, 0].repeat(limits::PEER_MESSAGE_ENTRIES_MAX as usize + 1);
    let error = decode_message(many.into()).unwrap_err();
    assert!(matches!(error, DecodeError::TooManyEntries(_)), "{error}");
    // A frame that was announced and has not come costs nothing.
    let mut message = Decoder::new(StreamKind::Message, LOCAL, REMOTE);
    message.receive(&limits::PEER_MESSAGE_BYTES_MAX.to_be_bytes(), &mut none).unwrap();
    assert!(message.held_bytes() < 100);
}

#[test]
fn no_garbage_makes_a_decoder_panic_or_hold_more_than_it_was_given() {
    let mut random = Prng::new(5);
    let mut errors = 0;
    for round in 0..10 * rounds() {
        let kind = [StreamKind::Message, StreamKind::Append][(round % 2) as usize];
        let mut stream = Vec::new();
        let mut encoder = Encoder::new(kind);
        let mut leader = Leader { term: 1, index: 1 };
        for _ in 0..random.below(4) {
            encoder.encode(&leader.next(&mut random), &mut stream);
        }
        for _ in 0..random.below(8) {
            let place = random.index(stream.len());
            match random.below(4) {
                0 if !stream.is_empty() => stream[place] ^= 1 << random.below(8),
                1 if !stream.is_empty() => stream[place] = random.below(256) as u8,
                2 => stream.truncate(place),
                _ => stream.extend(bytes(&mut random, 20)),
            }
        }
        let mut decoder = Decoder::new(kind, LOCAL, REMOTE);
        errors += u64::from(read_in_pieces(&mut decoder, &stream, &mut random).is_err());
        assert!(decoder.held_bytes() <= stream.len());
    }
    assert!(errors > rounds(), "only {errors} streams were refused");
}
