//! What operators are shown, and where: metrics, profiles and warnings.
//!
//! A part of the configuration, read from the flags when all are known.

use std::time::Duration;

use super::ListenUrl;
use super::check::listen_urls;
use super::flags::Values;

/// See the module text.
#[derive(Debug, Clone, Default)]
pub struct Observe {
    /// `--metrics=extensive`: histograms of gRPC's methods.
    pub extensive_metrics: bool,
    /// `--listen-metrics-urls`: for `/metrics` and the health checks alone.
    pub listen_metrics_urls: Vec<ListenUrl>,
    /// `--listen-client-http-urls`: clients' HTTP, which is then not served beside gRPC.
    pub listen_client_http_urls: Vec<ListenUrl>,
    /// `--enable-pprof`; everything logged means that as well.
    pub enable_pprof: bool,
    /// `--warning-apply-duration`.
    pub slow_apply: Duration,
    /// `--warning-unary-request-duration`.
    pub slow_request: Duration,
}

impl Observe {
    /// What these settings say.
    ///
    /// # Errors
    /// One sentence.
    pub(super) fn of(values: &Values) -> Result<Self, String> {
        let listen_client_http_urls = listen_urls(values, "listen-client-http-urls")?;
        let client_urls = listen_urls(values, "listen-client-urls")?;
        if let Some(url) = listen_client_http_urls.iter().find(|url| client_urls.contains(url)) {
            return Err(format!(
                "cannot bind both --listen-client-urls and --listen-client-http-urls on the same \
                 url {url}"
            ));
        }
        Ok(Self {
            extensive_metrics: values.text("metrics") == "extensive",
            listen_metrics_urls: listen_urls(values, "listen-metrics-urls")?,
            listen_client_http_urls,
            enable_pprof: values.bool("enable-pprof") || values.text("log-level") == "debug",
            slow_apply: values.duration("warning-apply-duration")?,
            slow_request: match values.duration("warning-unary-request-duration")? {
                // To etcd it was not set.
                Duration::ZERO => Duration::from_millis(300),
                slow => slow,
            },
        })
    }
}
