//! The figures: each one in `raw.csv` as soon as it is known, and the medians in a table.
//!
//! Filled by `Comparison::record`. Must never lose a figure of a comparison that ends early.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use super::{CompareError, io_error};

/// One measurement.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figure {
    pub(super) round: u32,
    pub(super) side: String,
    pub(super) metric: String,
    pub(super) unit: &'static str,
    pub(super) value: f64,
}

/// All measurements of a comparison.
#[derive(Debug)]
pub(super) struct Figures {
    raw: File,
    all: Vec<Figure>,
}

impl Figures {
    /// Opens `raw.csv` in this folder, which is made if need be.
    pub(super) fn create(folder: &Path) -> Result<Self, CompareError> {
        std::fs::create_dir_all(folder).map_err(io_error(folder.display()))?;
        let path = folder.join("raw.csv");
        let mut raw = File::create(&path).map_err(io_error(path.display()))?;
        writeln!(raw, "round,server,metric,unit,value").map_err(io_error(path.display()))?;
        Ok(Figures { raw, all: Vec::new() })
    }

    pub(super) fn add(&mut self, figure: Figure) -> Result<(), CompareError> {
        let Figure { round, side, metric, unit, value } = &figure;
        writeln!(self.raw, "{round},{side},{metric},{unit},{value:.3}")
            .map_err(io_error("raw.csv"))?;
        self.all.push(figure);
        Ok(())
    }

    /// Medians of each metric, and how many times better the right side is.
    pub(super) fn table(&self, sides: [&str; 2]) -> String {
        table(&self.all, sides)
    }
}

fn table(figures: &[Figure], [left, right]: [&str; 2]) -> String {
    let mut metrics: BTreeMap<&str, (&str, [Vec<f64>; 2])> = BTreeMap::new();
    for figure in figures {
        let (_, values) =
            metrics.entry(&figure.metric).or_insert((figure.unit, Default::default()));
        values[usize::from(figure.side == right)].push(figure.value);
    }
    let mut text = format!("| metric | unit | {left} | {right} | ratio |\n");
    text.push_str("| --- | --- | --- | --- | --- |\n");
    for (metric, (unit, [lefts, rights])) in metrics {
        let (left, right) = (median(lefts), median(rights));
        let (above, below) = if unit == RATE { (right, left) } else { (left, right) };
        let ratio = if below > 0.0 { above / below } else { 0.0 };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {metric} | {unit} | {left:.2} | {right:.2} | {ratio:.2} |");
    }
    text
}

/// The value in the middle, or the mean of the two there; 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match (values.get(values.len().saturating_sub(1) / 2), values.get(values.len() / 2)) {
        (Some(lower), Some(upper)) => f64::midpoint(*lower, *upper),
        _ => 0.0,
    }
}

/// The unit of what is better if it is more.
pub(super) const RATE: &str = "1/s";

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(side: &str, metric: &str, unit: &'static str, value: f64) -> Figure {
        Figure { round: 1, side: side.to_owned(), metric: metric.to_owned(), unit, value }
    }

    #[test]
    fn medians_are_in_the_middle_or_between_two() {
        assert_eq!(median(vec![3.0, 1.0, 100.0]), 3.0);
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
        assert_eq!((median(vec![7.0]), median(Vec::new())), (7.0, 0.0));
    }

    #[test]
    fn a_ratio_above_one_says_that_the_right_side_is_better() {
        let figures = [
            figure("a", "rate_put", RATE, 10.0),
            figure("b", "rate_put", RATE, 40.0),
            figure("a", "cpu_put", "us", 9.0),
            figure("b", "cpu_put", "us", 3.0),
            figure("a", "idle", "us", 9.0),
            figure("b", "idle", "us", 0.0),
        ];
        let expected = "| metric | unit | a | b | ratio |\n\
                        | --- | --- | --- | --- | --- |\n\
                        | cpu_put | us | 9.00 | 3.00 | 3.00 |\n\
                        | idle | us | 9.00 | 0.00 | 0.00 |\n\
                        | rate_put | 1/s | 10.00 | 40.00 | 4.00 |\n";
        assert_eq!(table(&figures, ["a", "b"]), expected);
    }

    #[test]
    fn every_figure_is_in_the_file_at_once() {
        let folder = std::env::temp_dir().join(format!("etcore-figures-{}", std::process::id()));
        let mut figures = Figures::create(&folder).unwrap();
        figures.add(figure("a", "cpu_put", "us", 1.5)).unwrap();
        let raw = std::fs::read_to_string(folder.join("raw.csv")).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(raw, "round,server,metric,unit,value\n1,a,cpu_put,us,1.500\n");
    }
}
