use std::collections::BTreeMap;

use super::*;
use crate::testing::prng::Prng;

type Model = BTreeMap<Vec<u8>, Vec<State>>;

fn random_key(prng: &mut Prng) -> Vec<u8> {
    let mut key = match prng.below(3) {
        0 => b"/registry/pods/".to_vec(),
        1 => b"/registry/leases/kube-system/".to_vec(),
        _ => Vec::new(),
    };
    key.extend_from_slice(format!("{}", prng.below(400)).as_bytes());
    key
}

fn visible(states: &[State], at: Revision) -> Option<State> {
    let below = states.partition_point(|state| state.at().main <= at);
    below.checked_sub(1).map(|last| states[last]).filter(|state| !state.is_tombstone())
}

fn assert_equal(index: &Index, model: &Model, at: Revision, prng: &mut Prng) {
    let (start, end) = (random_key(prng), random_key(prng));
    let end = prng.chance(3, 4).then_some(&end[..]);
    let bounds = Bounds { start: &start, end };
    let mut expected = Vec::new();
    for (key, states) in model.range(start.clone()..) {
        if end.is_none_or(|end| &key[..] < end)
            && let Some(state) = visible(states, at)
        {
            expected.push((key.clone(), state));
        }
    }
    let mut found = Vec::new();
    index.visit(bounds, at, &mut |leaf, slot, state| {
        found.push((leaf.key(slot), state));
        ControlFlow::Continue(())
    });
    assert_eq!(found, expected);
    assert_eq!(index.count(bounds, at), expected.len() as u64);
    assert_eq!(index.key_count(), model.len());
    let key = random_key(prng);
    let states = model.get(&key).map_or(&[][..], |states| states);
    assert_eq!(index.get(&key, at), visible(states, at));
    assert_eq!(index.newest(&key), states.last().copied());
}

fn compact_model(model: &mut Model, compact: Revision) {
    model.retain(|_, states| {
        let below = states.partition_point(|state| state.at().main <= compact);
        if let Some(last) = below.checked_sub(1) {
            let gone = states[last].is_tombstone() && states[last].at().main < compact;
            states.drain(..if gone { below } else { last });
        }
        !states.is_empty()
    });
}

#[test]
fn a_random_history_reads_like_a_map_of_histories_at_every_revision() {
    for seed in 0..4 {
        let mut prng = Prng::new(seed);
        let mut index = Index::new();
        let mut model = Model::new();
        let (mut revision, mut compact) = (1, 0);
        let mut snapshot = (index.clone(), model.clone(), Revision(1));
        for step in 0..6_000 {
            let key = if prng.chance(1, 5) { b"hot".to_vec() } else { random_key(&mut prng) };
            revision += 1;
            let at = RevKey { main: Revision(revision), sub: 0 };
            let current = index.newest(&key).filter(|state| !state.is_tombstone());
            let delete = current.is_some() && prng.chance(1, 4);
            let state = match current {
                _ if delete => State::tombstone(at, 3),
                Some(state) => State::put(at, state.create(), state.version() + 1, 9),
                None => State::put(at, at.main, 1, 9),
            };
            let previous = index.update(&key, |_| state);
            if prng.chance(1, 10) {
                index.revert(&key, previous);
                revision -= 1;
            } else {
                model.entry(key).or_default().push(state);
            }
            if prng.chance(1, 40) {
                snapshot = (index.clone(), model.clone(), Revision(revision));
            }
            if prng.chance(1, 400) {
                compact += i64::try_from(prng.below((revision - compact).cast_unsigned())).unwrap();
                let mut cursor = Some(Vec::new());
                while let Some(from) = cursor {
                    cursor = index.compact(&from, Revision(compact), 3);
                }
                compact_model(&mut model, Revision(compact));
            }
            if step % 7 == 0 {
                let span = (revision - compact + 1).cast_unsigned();
                let at = Revision(compact + i64::try_from(prng.below(span)).unwrap());
                assert_equal(&index, &model, at, &mut prng);
                assert_equal(&snapshot.0, &snapshot.1, snapshot.2, &mut prng);
            }
        }
    }
}

#[test]
fn a_long_history_of_one_key_stays_readable_and_reverts() {
    let mut index = Index::new();
    let mut previous = Vec::new();
    for main in 2..5_000 {
        let at = RevKey::first(Revision(main));
        let state = State::put(at, Revision(2), main.cast_unsigned() - 1, 1);
        previous.push(index.update(b"k", |_| state));
    }
    for main in 2..5_000 {
        let version = index.get(b"k", Revision(main)).unwrap().version();
        assert_eq!(version, main.cast_unsigned() - 1);
        let before = index.previous(b"k", RevKey::first(Revision(main)));
        assert_eq!(before.map_or(1, |state| state.at().main.0), main - 1);
    }
    for main in (2_000..4_999).rev() {
        index.revert(b"k", previous.pop().unwrap());
        assert_eq!(index.newest(b"k").unwrap().at().main, Revision(main));
    }
}

#[test]
fn single_revision_keys_cost_less_than_60_bytes_beyond_the_key() {
    let count = 50_000;
    for random in [false, true] {
        let mut prng = Prng::new(3);
        let mut index = Index::new();
        for main in 0..count {
            let number = if random { prng.next_u64() } else { main };
            let at = RevKey::first(Revision(main.cast_signed() + 2));
            index.update(&number.to_be_bytes(), |_| State::put(at, at.main, 1, 270));
        }
        let per_key = index.memory_bytes() / index.key_count();
        assert!(per_key <= 68, "{per_key} bytes for an 8-byte key, random: {random}");
    }
}
