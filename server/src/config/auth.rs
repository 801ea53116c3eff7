//! What logging in costs, and what clients get for it.
//!
//! A part of the configuration.

use super::flags::Values;
use crate::auth::passwords;
use crate::auth::tokens::Tokens;

/// See the module text.
#[derive(Debug, Clone, Default)]
pub struct Auth {
    /// `--auth-token`, as given: a kind and its options.
    pub token: String,
    /// `--auth-token-ttl`: seconds that a simple token lives without use.
    pub token_ttl_s: u64,
    /// `--bcrypt-cost`.
    pub bcrypt_cost: u32,
}

impl Auth {
    /// What these settings say.
    ///
    /// # Errors
    /// One sentence.
    pub(super) fn of(values: &Values) -> Result<Self, String> {
        let cost = values.uint("bcrypt-cost");
        let known = u32::try_from(cost).ok().filter(|_| passwords::COSTS.contains(&cost));
        if known.is_none() {
            tracing::warn!(
                "min-cost" = *passwords::COSTS.start(),
                "max-cost" = *passwords::COSTS.end(),
                "default-cost" = passwords::COST_DEFAULT,
                "given-cost" = cost,
                "use default bcrypt cost instead of the invalid given cost"
            );
        }
        let auth = Self {
            token: values.text("auth-token"),
            token_ttl_s: values.uint("auth-token-ttl"),
            bcrypt_cost: known.unwrap_or(passwords::COST_DEFAULT),
        };
        Tokens::new(&auth.token, auth.token_ttl_s)?;
        Ok(auth)
    }

    /// The tokens that are given out and taken. Should a file be gone that was there when the
    /// settings were checked, nobody can log in.
    pub fn tokens(&self) -> Tokens {
        Tokens::new(&self.token, self.token_ttl_s).unwrap_or_else(|error| {
            tracing::error!(error = %error, "there are no tokens");
            Tokens::None
        })
    }
}
