//! The two forms of `/metrics`: Prometheus' text, which etcd serves, and OpenMetrics, for those who
//! ask for it. Both have etcd's names.
//!
//! The registry writes OpenMetrics; the text is made of that. Nothing here is on a request's path.

/// How metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposition {
    /// `text/plain; version=0.0.4`.
    Text,
    /// `application/openmetrics-text`.
    OpenMetrics,
}

/// Counters whose names in etcd do not end in `_total`. OpenMetrics has no counters of such names:
/// there they are gauges, which is what the registry takes them for.
const COUNTERS: [&str; 6] = [
    "etcd_server_health_success",
    "etcd_server_health_failures",
    "etcd_network_snapshot_send_success",
    "etcd_network_snapshot_send_failures",
    "etcd_network_snapshot_receive_success",
    "etcd_network_snapshot_receive_failures",
];

impl Exposition {
    /// What an `Accept` header asks for: of what is known, what it wants most, and of several that
    /// it wants alike, the first. Prometheus' text if it names neither.
    pub fn accepted(accept: &str) -> Self {
        let mut best = (0.0, Self::Text);
        for part in accept.split(',') {
            let mut words = part.split(';').map(str::trim);
            let known = match words.next().unwrap_or("").to_ascii_lowercase().as_str() {
                "application/openmetrics-text" => Self::OpenMetrics,
                "text/plain" | "text/*" | "*/*" => Self::Text,
                _ => continue,
            };
            let (mut quality, mut version) = (1.0, "");
            for (name, value) in words.filter_map(|word| word.split_once('=')) {
                match name.trim() {
                    "q" => quality = value.trim().parse().unwrap_or(1.0),
                    "version" => version = value.trim(),
                    _ => {}
                }
            }
            let is_served = match known {
                Self::Text => matches!(version, "" | "0.0.4"),
                Self::OpenMetrics => matches!(version, "" | "0.0.1" | "1.0.0"),
            };
            if is_served && quality > best.0 {
                best = (quality, known);
            }
        }
        best.1
    }

    /// Its content type; the text's is word for word etcd's.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8; escaping=underscores",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Prometheus' text of what is written in OpenMetrics: a counter's name has its `_total` in its
/// explanation as well, and nothing marks the end.
pub(super) fn of_open_metrics(open: &str) -> String {
    let mut text = String::with_capacity(open.len() + 1024);
    let mut help = None;
    for line in open.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), explained) => {
                help = Some((name, explained.unwrap_or("")));
            }
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (total, kind) = match kind {
                    "counter" => ("_total", kind),
                    _ if COUNTERS.contains(&name) => ("", "counter"),
                    "unknown" => ("", "untyped"),
                    _ => ("", kind),
                };
                if let Some((_, explained)) = help.take().filter(|(of, _)| *of == name) {
                    text += &format!("# HELP {name}{total} {explained}\n");
                }
                text += &format!("# TYPE {name}{total} {kind}\n");
            }
            (Some("#"), ..) => {}
            _ => {
                text += line;
                text.push('\n');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accept_header_chooses_the_form() {
        let cases = [
            ("", Exposition::Text),
            ("*/*", Exposition::Text),
            ("text/html", Exposition::Text),
            ("application/openmetrics-text", Exposition::OpenMetrics),
            ("text/plain, application/openmetrics-text", Exposition::Text),
            ("text/plain;q=0.5, application/openmetrics-text;q=0.6", Exposition::OpenMetrics),
            ("application/openmetrics-text;version=2.0.0;q=1, text/plain;q=0.1", Exposition::Text),
            // What a Prometheus sends.
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                 application/openmetrics-text;version=0.0.1;q=0.5,\
                 text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
                 text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                Exposition::OpenMetrics,
            ),
        ];
        for (accept, expected) in cases {
            assert_eq!(Exposition::accepted(accept), expected, "{accept:?}");
        }
    }

    #[test]
    fn prometheus_text_has_the_names_of_its_samples() {
        let open = "# HELP a A counter.\n# TYPE a counter\na_total{b=\"c d\"} 1\n\
                    # HELP etcd_server_health_success Good.\n\
                    # TYPE etcd_server_health_success gauge\netcd_server_health_success 2\n\
                    # HELP h Took.\n# TYPE h histogram\n# UNIT h seconds\nh_sum 0.0\n# EOF\n";
        let text = "# HELP a_total A counter.\n# TYPE a_total counter\na_total{b=\"c d\"} 1\n\
                    # HELP etcd_server_health_success Good.\n\
                    # TYPE etcd_server_health_success counter\netcd_server_health_success 2\n\
                    # HELP h Took.\n# TYPE h histogram\nh_sum 0.0\n";
        assert_eq!(of_open_metrics(open), text);
    }
}
