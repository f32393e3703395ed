//! A strict parser for `/metrics`.
//!
//! A text that violates the OpenMetrics format, or our own rules for it, is an error.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

use crate::http;
use crate::reporter::Reporter;

/// All samples of one scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// By name and labels, as in the text: `verve_requests_total{outcome="new"}`.
    samples: BTreeMap<String, f64>,
}

/// The metadata of a family, which precedes its samples.
#[derive(Default)]
struct Family {
    name: String,
    help: bool,
    unit: Option<String>,
    kind: String,
}

impl Metrics {
    /// Scrapes a reporter.
    ///
    /// # Errors
    /// Fails if it does not answer, or if the answer is not OpenMetrics.
    pub async fn scrape(reporter: &Reporter) -> Result<Self> {
        let request = "GET /metrics HTTP/1.1\r\nhost: verve.test\r\naccept: application/openmetrics-text\r\n\r\n";
        let mut connection = http::Connection::open(reporter.address()).await?;
        let text = connection.exchange(request.as_bytes()).await?.text();
        Self::parse(&text).with_context(|| text.clone())
    }

    /// Parses the text format.
    ///
    /// # Errors
    /// Fails if a line violates the format. The error contains the line.
    pub fn parse(text: &str) -> Result<Self> {
        let body = text.strip_suffix("# EOF\n").context("no EOF at the end")?;
        let (mut metrics, mut family, mut seen) = (Self::default(), Family::default(), BTreeSet::new());
        for line in body.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let (what, rest) = comment.split_once(' ').context(line.to_owned())?;
                let (name, value) = rest.split_once(' ').context(line.to_owned())?;
                if name != family.name {
                    ensure!(seen.insert(name.to_owned()), "{name} comes twice");
                    family = Family {
                        name: name.to_owned(),
                        ..Family::default()
                    };
                }
                match what {
                    "HELP" => family.help = value.len() > 10,
                    "UNIT" => family.unit = Some(value.to_owned()),
                    "TYPE" => family.kind = value.to_owned(),
                    _ => anyhow::bail!("unknown: {line}"),
                }
            } else {
                let (name, value) = line.rsplit_once(' ').context(line.to_owned())?;
                family.check(name).with_context(|| line.to_owned())?;
                let before = metrics.samples.insert(name.to_owned(), value.parse()?);
                ensure!(before.is_none(), "{name} comes twice");
            }
        }
        Ok(metrics)
    }

    /// Returns a sample's value, by its name and labels.
    #[must_use]
    pub fn get(&self, sample: &str) -> Option<f64> {
        self.samples.get(sample).copied()
    }

    /// Returns the sum of all samples of this name.
    #[must_use]
    pub fn sum(&self, name: &str) -> f64 {
        let of_name = |sample: &&String| bare(sample) == name;
        self.samples
            .keys()
            .filter(of_name)
            .map(|sample| self.samples[sample])
            .sum()
    }

    /// Returns the names of the samples, without labels.
    #[must_use]
    pub fn names(&self) -> BTreeSet<&str> {
        self.samples.keys().map(|sample| bare(sample)).collect()
    }
}

fn bare(sample: &str) -> &str {
    sample.split('{').next().unwrap_or_default()
}

impl Family {
    fn check(&self, sample: &str) -> Result<()> {
        let suffix = bare(sample)
            .strip_prefix(&self.name)
            .with_context(|| format!("not of {}", self.name))?;
        ensure!(self.help, "without a help");
        let fits = match self.kind.as_str() {
            "counter" => suffix == "_total",
            "gauge" => suffix.is_empty(),
            "histogram" => matches!(suffix, "_bucket" | "_sum" | "_count"),
            _ => false,
        };
        ensure!(fits, "no sample of a {:?}", self.kind);
        let letters = |c: char| c.is_ascii_lowercase() || c == '_';
        ensure!(
            self.name.starts_with("verve_") && self.name.chars().all(letters),
            "a strange name"
        );
        match &self.unit {
            Some(unit) => ensure!(self.name.ends_with(unit.as_str()), "not named after its unit"),
            None => ensure!(!self.name.ends_with("_seconds"), "a unit without a name"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn format_violations_are_found() {
        let help = "# HELP verve_a Something that counts.\n# TYPE verve_a counter\n";
        let good = Metrics::parse(&format!(
            "{help}verve_a_total{{b=\"c\"}} 2\nverve_a_total{{b=\"d\"}} 3\n# EOF\n"
        ));
        let good = good.expect("metrics");
        assert_eq!(good.get("verve_a_total{b=\"c\"}"), Some(2.0));
        assert!((good.sum("verve_a_total") - 5.0).abs() < 1e-9);
        for bad in [
            format!("{help}verve_a_total 2\n"),
            format!("{help}verve_a 2\n# EOF\n"),
            format!("{help}verve_b_total 2\n# EOF\n"),
            format!("{help}verve_a_total 2\nverve_a_total 2\n# EOF\n"),
            format!("{help}verve_a_total x\n# EOF\n"),
            "# TYPE verve_a counter\nverve_a_total 2\n# EOF\n".to_owned(),
            "# HELP verve_a_seconds Something measured.\n# TYPE verve_a_seconds gauge\nverve_a_seconds 1\n# EOF\n"
                .to_owned(),
        ] {
            assert!(Metrics::parse(&bad).is_err(), "{bad}");
        }
    }
}
