//! What operators are shown, and where: metrics, profiles and warnings.
//!
//! A part of the configuration, read from the flags when all are known.

use super::flags::Values;

/// See the module text.
#[derive(Debug, Clone, Default)]
pub struct Observe {
    /// `--metrics=extensive`: histograms of gRPC's methods.
    pub extensive_metrics: bool,
}

impl Observe {
    /// What these settings say.
    ///
    /// # Errors
    /// One sentence.
    pub(super) fn of(values: &Values) -> Result<Self, String> {
        Ok(Self { extensive_metrics: values.text("metrics") == "extensive" })
    }
}
