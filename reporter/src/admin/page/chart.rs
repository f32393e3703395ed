//! The bar chart of the page, as inline SVG.
//!
//! It has no text, because it is stretched to the width.

use maud::{Markup, html};

use crate::overview::WindowSnapshot;
use crate::words::{clock, number, requests};

/// In units of the chart.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 160.0;
/// The height of the mark on a corrected bar.
const MARK: f64 = 5.0;

/// Draws one bar for each window; the highest one has the height of the chart.
pub fn chart(windows: &[WindowSnapshot]) -> Markup {
    // Leaves out the windows before the first known one.
    let begin = windows.iter().position(WindowSnapshot::is_known).unwrap_or_default();
    let windows = &windows[begin..];
    let most = windows
        .iter()
        .filter_map(WindowSnapshot::unique)
        .max()
        .unwrap_or_default();
    let step = WIDTH / windows.len().max(1) as f64;
    let at = |window: Option<&WindowSnapshot>| {
        window.map_or_else(String::new, |snapshot: &WindowSnapshot| clock(snapshot.window))
    };
    html! {
        p .axis { (number(most)) " at the top, half of it at the line" }
        svg #bars tabindex="0" viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) preserveAspectRatio="none" role="img"
            aria-label="Unique ids of each window; the same numbers are in the table below" {
            line .half x1="0" x2=(WIDTH) y1=(MARK + (HEIGHT - MARK) / 2.0) y2=(MARK + (HEIGHT - MARK) / 2.0) {}
            @for (n, snapshot) in windows.iter().enumerate() { (bar(snapshot, n as f64 * step, step, most)) }
        }
        p .axis .ends { span { (at(windows.first())) } span { (at(windows.last())) " UTC" } }
    }
}

fn bar(snapshot: &WindowSnapshot, x: f64, step: f64, most: u64) -> Markup {
    let Some(unique) = snapshot.unique() else {
        return html! {};
    };
    // Leaves room for the marks above the bars.
    let height = (HEIGHT - MARK) * unique as f64 / most.max(1) as f64;
    // Keeps a window without ids visible.
    let height = height.max(1.0);
    let (class, revision) = match snapshot.report {
        None => ("open", 0),
        Some(report) if report.revision > 0 => ("revised", report.revision),
        Some(_) => ("reported", 0),
    };
    let units = |n: f64| format!("{n:.2}");
    html! {
        g class=(class) {
            title { (title(snapshot, unique, revision)) }
            rect x=(units(x)) y=(units(HEIGHT - height)) width=(units(step * 0.8)) height=(units(height)) {}
            @if revision > 0 {
                rect .mark x=(units(x)) y=(units(HEIGHT - height - MARK)) width=(units(step * 0.8)) height=(units(MARK - 1.0)) {}
            }
        }
    }
}

fn title(snapshot: &WindowSnapshot, unique: u64, revision: u64) -> String {
    let corrected = if revision > 0 {
        format!(", revision {revision}")
    } else {
        String::new()
    };
    let asked = number(requests(snapshot));
    format!(
        "{}: {} unique, {asked} requests{corrected}",
        clock(snapshot.window),
        number(unique)
    )
}
