//! `--feature-gates`: etcd's switches for features that are not settled yet.
//!
//! Parsed by the flags. A gate of a feature that this server lacks may be off, and is refused when
//! it is to be on: it must never be taken for granted and then not be there.

use etcore_proto::gotext::parse_bool;

/// What the gates say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeatureGates {
    /// The leader sends the remaining time of long leases through the log.
    pub lease_checkpoint: bool,
    /// Renewals of leases that exist do not wait for entries on their way.
    pub fast_lease_keep_alive: bool,
    /// A start with data compares them with the other members' first.
    pub initial_corrupt_check: bool,
    /// The leader compares the hashes that compactions leave.
    pub compact_hash_check: bool,
}

impl Default for FeatureGates {
    fn default() -> Self {
        Self {
            lease_checkpoint: false,
            fast_lease_keep_alive: true,
            initial_corrupt_check: false,
            compact_hash_check: false,
        }
    }
}

impl FeatureGates {
    /// All gates of etcd 3.7 with their stages, and whether they are on.
    pub fn listed(&self) -> impl Iterator<Item = (&'static str, &'static str, bool)> {
        [
            ("AllAlpha", "ALPHA", false),
            ("AllBeta", "BETA", false),
            ("CompactHashCheck", "ALPHA", self.compact_hash_check),
            ("FastLeaseKeepAlive", "BETA", self.fast_lease_keep_alive),
            ("InitialCorruptCheck", "ALPHA", self.initial_corrupt_check),
            ("LeaseCheckpoint", "ALPHA", self.lease_checkpoint),
            // Checkpoints are always kept on disk.
            ("LeaseCheckpointPersist", "ALPHA", self.lease_checkpoint),
            ("PriorityRequest", "ALPHA", false),
            ("SetMemberLocalAddr", "ALPHA", false),
            ("StopGRPCServiceOnDefrag", "ALPHA", false),
            ("TxnModeWriteWithSharedBuffer", "BETA", true),
        ]
        .into_iter()
    }
}

/// What was typed; the last word on each gate counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Typed {
    gates: Vec<(Gate, bool)>,
}

macro_rules! gates {
    ($($name:ident)*) => {
        /// etcd 3.7's gates.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Gate { $($name),* }

        impl Gate {
            fn named(name: &str) -> Option<Self> {
                match name {
                    $(stringify!($name) => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

gates! {
    AllAlpha
    AllBeta
    CompactHashCheck
    FastLeaseKeepAlive
    InitialCorruptCheck
    LeaseCheckpoint
    LeaseCheckpointPersist
    PriorityRequest
    SetMemberLocalAddr
    StopGRPCServiceOnDefrag
    TxnModeWriteWithSharedBuffer
}

/// Gates of features that are not there. TxnModeWriteWithSharedBuffer is none of them: it is about
/// etcd's read buffers, and either value means what is done here anyway.
const MISSING: [Gate; 3] =
    [Gate::PriorityRequest, Gate::SetMemberLocalAddr, Gate::StopGRPCServiceOnDefrag];

/// The flag's name.
pub(super) const FLAG: &str = "feature-gates";

/// True for a gate of etcd's.
#[cfg(test)]
pub(super) fn is_known(name: &str) -> bool {
    Gate::named(name).is_some()
}

/// Gates that are on unless they are switched off.
const BETA: [Gate; 2] = [Gate::FastLeaseKeepAlive, Gate::TxnModeWriteWithSharedBuffer];

/// Parses `name=bool` pairs, separated by commas.
///
/// # Errors
/// etcd's text.
pub(super) fn parse(text: &str) -> Result<Typed, String> {
    let mut gates = Vec::new();
    for pair in text.split(',').filter(|pair| !pair.is_empty()) {
        let (name, value) = match pair.split_once('=') {
            Some((name, value)) => (name.trim(), value.trim()),
            None => return Err(format!("missing bool value for {}", pair.trim())),
        };
        let on = parse_bool(value).ok_or_else(|| {
            format!(
                "invalid value of {name}={value}, err: strconv.ParseBool: parsing {value:?}: \
                 invalid syntax"
            )
        })?;
        gates.push((name, on));
    }
    let known = gates.into_iter().map(|(name, on)| match Gate::named(name) {
        Some(gate) => Ok((gate, on)),
        None => Err(format!("unrecognized feature gate: {name}")),
    });
    Ok(Typed { gates: known.collect::<Result<_, _>>()? })
}

impl Typed {
    /// What the gates mean together.
    ///
    /// # Errors
    /// A gate that needs another, or whose feature is not there.
    pub(super) fn check(&self) -> Result<FeatureGates, String> {
        let last = |gate| self.gates.iter().rev().find(|(other, _)| *other == gate);
        // A gate of its own name wins over that of its stage.
        let on = |gate, default| {
            let stage = if BETA.contains(&gate) { Gate::AllBeta } else { Gate::AllAlpha };
            last(gate).or_else(|| last(stage)).map_or(default, |(_, on)| *on)
        };
        for gate in MISSING {
            if on(gate, false) {
                return Err(format!(
                    "--feature-gates={gate:?}=true: etcore does not have this feature yet"
                ));
            }
        }
        let defaults = FeatureGates::default();
        let found = FeatureGates {
            lease_checkpoint: on(Gate::LeaseCheckpoint, defaults.lease_checkpoint),
            fast_lease_keep_alive: on(Gate::FastLeaseKeepAlive, defaults.fast_lease_keep_alive),
            initial_corrupt_check: on(Gate::InitialCorruptCheck, defaults.initial_corrupt_check),
            compact_hash_check: on(Gate::CompactHashCheck, defaults.compact_hash_check),
        };
        // Checkpoints are always kept on disk, as in etcd from cluster version 3.6 on.
        let persists = on(Gate::LeaseCheckpointPersist, false);
        if persists && !found.lease_checkpoint {
            return Err("enabling feature gate LeaseCheckpointPersist requires enabling feature \
                        gate LeaseCheckpoint"
                .to_owned());
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<FeatureGates, String> {
        parse(text)?.check()
    }

    #[test]
    fn the_defaults_are_etcds_and_a_pair_changes_one() {
        let defaults = FeatureGates::default();
        let both =
            FeatureGates { lease_checkpoint: true, fast_lease_keep_alive: false, ..defaults };
        assert_eq!(check(""), Ok(FeatureGates::default()));
        assert_eq!(check("LeaseCheckpoint=true,, FastLeaseKeepAlive = F"), Ok(both));
        let alone = FeatureGates { lease_checkpoint: true, ..FeatureGates::default() };
        assert_eq!(check("LeaseCheckpoint=true,LeaseCheckpointPersist=true"), Ok(alone));
        assert_eq!(check("TxnModeWriteWithSharedBuffer=false"), Ok(FeatureGates::default()));
        assert_eq!(check("AllBeta=true,AllAlpha=false"), Ok(defaults));
        let stage = FeatureGates { fast_lease_keep_alive: false, ..defaults };
        assert_eq!(check("AllBeta=false"), Ok(stage));
        assert_eq!(check("FastLeaseKeepAlive=true,AllBeta=false"), Ok(defaults));
    }

    #[test]
    fn what_etcd_refuses_is_refused_with_its_words() {
        let text = |text: &str| check(text).unwrap_err();
        assert_eq!(text("Foo=true"), "unrecognized feature gate: Foo");
        assert_eq!(text("LeaseCheckpoint"), "missing bool value for LeaseCheckpoint");
        assert_eq!(
            text("LeaseCheckpoint=maybe"),
            "invalid value of LeaseCheckpoint=maybe, err: strconv.ParseBool: parsing \"maybe\": \
             invalid syntax"
        );
        assert_eq!(
            text("LeaseCheckpointPersist=true"),
            "enabling feature gate LeaseCheckpointPersist requires enabling feature gate \
             LeaseCheckpoint"
        );
    }

    #[test]
    fn a_feature_that_is_not_there_may_only_be_off() {
        assert!(check("PriorityRequest=false").is_ok());
        assert!(check("PriorityRequest=true,PriorityRequest=false").is_ok());
        assert!(check("AllAlpha=true").is_err());
        assert!(check("PriorityRequest=true").unwrap_err().contains("PriorityRequest"));
    }
}
