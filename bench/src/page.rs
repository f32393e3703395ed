//! The page: sections of text and tables, and plots beside it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::Options;

/// The interpretation of the figures, at the end of the page.
///
/// It is written by hand, and has to be reviewed after each run.
const NOTES: &str = include_str!("../notes.md");

/// A page that is being written. Each addition is printed immediately.
pub struct Page {
    text: String,
    plots: Vec<(String, String)>,
}

impl Page {
    /// Starts a page with a description of the machine and of the measurement.
    pub fn new(options: &Options) -> Result<Self> {
        let mut page = Self {
            text: "# Benchmarks\n\n".to_owned(),
            plots: Vec::new(),
        };
        let first = |command: &str, arguments: &[&str]| {
            let output = Command::new(command).args(arguments).output().ok();
            let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            text.as_deref()
                .and_then(|text| text.lines().next())
                .unwrap_or("?")
                .to_owned()
        };
        let cpu = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpu
            .lines()
            .find_map(|line| line.strip_prefix("model name"))
            .unwrap_or("?");
        let memory = fs::read_to_string("/proc/meminfo")?;
        let memory = memory
            .split_whitespace()
            .nth(1)
            .and_then(|kb| kb.parse::<u64>().ok())
            .unwrap_or_default();
        page.paragraph(&format!(
            "Measured with `cargo xtask bench --rounds {} --seconds {}` on {} processors ({}) with {} GB of memory.\n\
             Versions: {}; {}; {}; {}.\n\
             Redis, the load generator and the measured program share the processors.\nAll figures of a table come from one run with {} interleaved rounds, and are medians.\n\
             Absolute figures drift from hour to hour; ratios are stable.\n",
            options.rounds,
            options.seconds,
            std::thread::available_parallelism()?,
            model.trim_start_matches([' ', '\t', ':']),
            memory / 1_000_000,
            first("uname", &["-sr"]),
            first("redis-server", &["--version"]).split(" sha").next().unwrap_or_default(),
            first("rustc", &["--version"]),
            first("go", &["version"]),
            options.rounds,
        ));
        Ok(page)
    }

    /// Begins a section.
    pub fn section(&mut self, title: &str) {
        self.paragraph(&format!("## {title}\n"));
    }

    /// Adds a paragraph.
    pub fn paragraph(&mut self, text: &str) {
        println!("{text}");
        let _ = writeln!(self.text, "{text}");
    }

    /// Adds a table; the first row is its head.
    pub fn table(&mut self, rows: &[Vec<String>]) {
        let mut text = String::new();
        for (number, row) in rows.iter().enumerate() {
            let _ = writeln!(text, "| {} |", row.join(" | "));
            if number == 0 {
                let _ = writeln!(text, "|{}", "---|".repeat(row.len()));
            }
        }
        self.paragraph(&text);
    }

    /// Adds a bar chart of names and values.
    pub fn bars(&mut self, file: &str, title: &str, bars: &[(String, f64)]) {
        let longest = bars.iter().map(|(_, value)| *value).fold(1.0, f64::max);
        let height = 40 + 26 * bars.len();
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
             <style>text{{fill:#333}}rect{{fill:#3b82c4}}@media(prefers-color-scheme:dark){{text{{fill:#ddd}}rect{{fill:#6aa9e0}}}}</style>\n\
             <text x=\"8\" y=\"20\" font-weight=\"bold\">{title}</text>\n"
        );
        for (number, (name, value)) in bars.iter().enumerate() {
            let y = 34 + 26 * number;
            let width = value / longest * 380.0;
            let _ = writeln!(
                svg,
                "<text x=\"250\" y=\"{}\" text-anchor=\"end\">{name}</text>",
                y + 15
            );
            let _ = writeln!(
                svg,
                "<rect x=\"258\" y=\"{y}\" width=\"{width:.0}\" height=\"20\" rx=\"2\"/>"
            );
            let _ = writeln!(
                svg,
                "<text x=\"{:.0}\" y=\"{}\">{}</text>",
                264.0 + width,
                y + 15,
                grouped(*value)
            );
        }
        svg.push_str("</svg>\n");
        self.plots.push((file.to_owned(), svg));
        self.paragraph(&format!("![{title}]({file})\n"));
    }

    /// Writes the page, and its plots beside it.
    pub fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, format!("{}\n\n{}", self.text.trim_end(), NOTES))?;
        for (file, svg) in &self.plots {
            fs::write(path.with_file_name(file), svg)?;
        }
        Ok(())
    }
}

/// Formats a number for readers: `12,345`, and `1.23` below ten.
pub fn grouped(value: f64) -> String {
    if value < 10.0 {
        return format!("{value:.2}");
    }
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns the median, or 0 if there are no values.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
