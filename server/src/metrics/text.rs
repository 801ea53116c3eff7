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
const COUNTERS: [&str; 8] = [
    "etcd_server_learner_promote_failures",
    "etcd_server_learner_promote_successes",
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

/// A page in this form of what the registry has written in OpenMetrics: families in the order of
/// their names and series in that of their labels, as Prometheus' own library has them.
///
/// In the text a counter's name has its `_total` in its explanation as well, numbers are as Go
/// writes them, and nothing marks the end.
pub(super) fn page(open: &str, form: Exposition) -> String {
    let mut families: Vec<Family<'_>> = Vec::new();
    let mut help = "";
    for line in open.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            if let Some(family) = families.last_mut() {
                family.push(line);
            }
            continue;
        };
        let mut words = comment.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("HELP"), Some(_), explained) => {
                // The registry has put a full stop behind it.
                let explained = explained.unwrap_or("");
                help = explained.strip_suffix('.').unwrap_or(explained);
            }
            (Some("TYPE"), Some(name), Some(kind)) => {
                families.push(Family { name, kind, help, series: Vec::new(), open: false });
            }
            _ => {}
        }
    }
    families.sort_by_key(|family| family.name);
    let mut text = String::with_capacity(open.len() + 1024);
    families.iter_mut().filter(|family| !family.series.is_empty()).for_each(|family| {
        family.write(form, &mut text);
    });
    if form == Exposition::OpenMetrics {
        text += "# EOF\n";
    }
    text
}

/// A metric with all its series.
struct Family<'a> {
    name: &'a str,
    kind: &'a str,
    help: &'a str,
    series: Vec<Vec<&'a str>>,
    /// The last one is a histogram that is not complete.
    open: bool,
}

impl<'a> Family<'a> {
    fn push(&mut self, line: &'a str) {
        match self.series.last_mut().filter(|_| self.open) {
            Some(series) => series.push(line),
            None => self.series.push(vec![line]),
        }
        self.open = self.kind == "histogram" && !line.contains("le=\"+Inf\"");
    }

    fn write(&mut self, form: Exposition, text: &mut String) {
        let (mut name, mut kind, as_text) =
            (self.name.to_owned(), self.kind, form == Exposition::Text);
        if as_text {
            match kind {
                "counter" => name += "_total",
                _ if COUNTERS.contains(&self.name) => kind = "counter",
                "unknown" => kind = "untyped",
                _ => {}
            }
        }
        *text += &format!("# HELP {name} {}\n# TYPE {name} {kind}\n", self.help);
        self.series.sort_by_key(|series| labels(series.last().copied().unwrap_or("")));
        for series in &mut self.series {
            if kind == "histogram" {
                // The sum and the count come last.
                series.rotate_left(2);
            }
            for line in series {
                write_sample(line, as_text, text);
            }
        }
    }
}

/// Where a sample's name, with its labels, ends.
fn split(line: &str) -> (&str, &str) {
    line.rsplit_once(' ').unwrap_or((line, ""))
}

/// The labels of a sample, without `le`.
fn labels(line: &str) -> &str {
    let name = split(line).0;
    let labels = name.split_once('{').map_or("", |(_, labels)| labels);
    labels.strip_prefix("le=\"+Inf\",").unwrap_or(labels)
}

/// Writes a sample; a bucket's `le` comes behind its other labels.
fn write_sample(line: &str, as_text: bool, text: &mut String) {
    let (name, value) = split(line);
    let bucket = name.split_once("{le=\"").and_then(|(name, rest)| {
        let (bound, rest) = rest.split_once('"')?;
        Some((name, bound, rest))
    });
    if let Some((name, bound, rest)) = bucket {
        let others = rest.strip_prefix(',').and_then(|rest| rest.strip_suffix('}')).unwrap_or("");
        let comma = if others.is_empty() { "" } else { "," };
        *text += &format!("{name}{{{others}{comma}le=\"");
        number(bound, as_text, text);
        *text += "\"}";
    } else {
        *text += name;
    }
    text.push(' ');
    number(value, as_text, text);
    text.push('\n');
}

/// A number: in the text, the shortest form that Go knows (`strconv` with 'g').
fn number(digits: &str, as_text: bool, text: &mut String) {
    match digits.parse::<f64>() {
        // Whole numbers that are short are the same in both.
        Ok(_) if !as_text || digits.len() <= 6 && digits.bytes().all(|b| b.is_ascii_digit()) => {
            *text += digits;
        }
        Ok(value) if value.is_finite() => {
            let scientific = format!("{value:e}");
            let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
            match exponent.parse::<i32>() {
                Ok(exponent) if value != 0.0 && !(-4..6).contains(&exponent) => {
                    *text += &format!("{mantissa}e{exponent:+03}");
                }
                _ => *text += &value.to_string(),
            }
        }
        _ => *text += digits,
    }
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
    fn prometheus_text_has_the_names_and_numbers_of_gos_library() {
        let open = "# HELP h Took..\n# TYPE h histogram\nh_sum{a=\"2\"} 0.0\nh_count{a=\"2\"} 1\n\
                    h_bucket{le=\"1.0\",a=\"2\"} 1\nh_bucket{le=\"+Inf\",a=\"2\"} 1\n\
                    h_sum{a=\"1\"} 2.5\nh_count{a=\"1\"} 1234567\n\
                    h_bucket{le=\"1048576.0\",a=\"1\"} 0\nh_bucket{le=\"+Inf\",a=\"1\"} 1\n\
                    # HELP a A counter.\n# TYPE a counter\na_total{b=\"c d\"} 1\n\
                    # HELP none Nothing.\n# TYPE none gauge\n\
                    # HELP etcd_server_health_success Good.\n\
                    # TYPE etcd_server_health_success gauge\netcd_server_health_success 2\n# EOF\n";
        let text = "# HELP a_total A counter\n# TYPE a_total counter\na_total{b=\"c d\"} 1\n\
                    # HELP etcd_server_health_success Good\n\
                    # TYPE etcd_server_health_success counter\netcd_server_health_success 2\n\
                    # HELP h Took.\n# TYPE h histogram\n\
                    h_bucket{a=\"1\",le=\"1.048576e+06\"} 0\nh_bucket{a=\"1\",le=\"+Inf\"} 1\n\
                    h_sum{a=\"1\"} 2.5\nh_count{a=\"1\"} 1.234567e+06\n\
                    h_bucket{a=\"2\",le=\"1\"} 1\nh_bucket{a=\"2\",le=\"+Inf\"} 1\n\
                    h_sum{a=\"2\"} 0\nh_count{a=\"2\"} 1\n";
        assert_eq!(page(open, Exposition::Text), text);
        let open = page(open, Exposition::OpenMetrics);
        assert!(open.starts_with("# HELP a A counter\n# TYPE a counter\na_total{b=\"c d\"} 1\n"));
        assert!(
            open.contains("\nh_bucket{a=\"1\",le=\"1048576.0\"} 0\n") && open.ends_with("# EOF\n")
        );
    }
}
