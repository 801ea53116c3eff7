//! Where an older etcd answers differently from 3.7.1 and is not to be followed, and what even two
//! members of one release do not agree on.
//!
//! Each difference was seen; what is not listed here is a disagreement.

use std::collections::BTreeMap;

use super::answer::{Answer, Message};
use super::program::Op;

/// The differences that apply to the oracle at hand.
pub(crate) struct Differences {
    /// The oracle is older than 3.7.
    is_old: bool,
}

impl Differences {
    pub(crate) fn between(oracle_version: &str) -> Self {
        let is_old = ["3.4.", "3.5.", "3.6."].iter().any(|old| oracle_version.starts_with(old));
        Self { is_old }
    }

    /// True for what the oracle cannot do at all.
    pub(crate) fn skips(&self, op: &Op) -> bool {
        self.is_old && matches!(op, Op::RangeStream(_))
    }

    /// Changes both answers where they may differ.
    pub(crate) fn forgive(&self, op: &Op, first: &mut Answer, second: &mut Answer) {
        if let Op::Raw(..) = op
            && first.code == 13
            && second.code == 13
        {
            // How a protobuf library describes a malformed message is its own affair.
            second.text.clone_from(&first.text);
        }
        if let Op::TimeToLive(_) = op {
            for answer in [first, second] {
                if let Some(Message::TimeToLive(response)) = answer.messages.first_mut() {
                    response.keys.sort();
                }
            }
        }
    }

    /// The same for what watches brought, by watch id.
    pub(crate) fn forgive_watches(
        &self,
        _first: &mut BTreeMap<i64, Vec<Message>>,
        _second: &mut BTreeMap<i64, Vec<Message>>,
    ) {
    }
}
