//! The bar chart of the page, as inline SVG. Stretched to the width there is, so it holds no text.

use maud::{Markup, html};

use crate::overview::SeenWindow;
use crate::words::{clock, number, requests};

/// In the chart's own units.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 160.0;
/// Of the mark on a corrected bar.
const MARK: f64 = 5.0;

/// One bar a window, the highest as high as the chart.
pub fn chart(windows: &[SeenWindow]) -> Markup {
    // From where something is known on.
    let begin = windows.iter().position(SeenWindow::is_known).unwrap_or_default();
    let windows = &windows[begin..];
    let most = windows.iter().filter_map(SeenWindow::unique).max().unwrap_or_default();
    let step = WIDTH / windows.len().max(1) as f64;
    let at = |window: Option<&SeenWindow>| window.map_or_else(String::new, |seen: &SeenWindow| clock(seen.window));
    html! {
        p .axis { (number(most)) " at the top, half of it at the line" }
        svg #bars tabindex="0" viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) preserveAspectRatio="none" role="img"
            aria-label="Unique ids of each window; the same numbers are in the table below" {
            line .half x1="0" x2=(WIDTH) y1=(MARK + (HEIGHT - MARK) / 2.0) y2=(MARK + (HEIGHT - MARK) / 2.0) {}
            @for (n, seen) in windows.iter().enumerate() { (bar(seen, n as f64 * step, step, most)) }
        }
        p .axis .ends { span { (at(windows.first())) } span { (at(windows.last())) " UTC" } }
    }
}

fn bar(seen: &SeenWindow, x: f64, step: f64, most: u64) -> Markup {
    let Some(unique) = seen.unique() else { return html! {} };
    // The marks are above the bars.
    let height = (HEIGHT - MARK) * unique as f64 / most.max(1) as f64;
    // Something to see of a window without ids, too.
    let height = height.max(1.0);
    let (class, revision) = match seen.report {
        None => ("open", 0),
        Some(report) if report.revision > 0 => ("revised", report.revision),
        Some(_) => ("reported", 0),
    };
    let units = |n: f64| format!("{n:.2}");
    html! {
        g class=(class) {
            title { (told(seen, unique, revision)) }
            rect x=(units(x)) y=(units(HEIGHT - height)) width=(units(step * 0.8)) height=(units(height)) {}
            @if revision > 0 {
                rect .mark x=(units(x)) y=(units(HEIGHT - height - MARK)) width=(units(step * 0.8)) height=(units(MARK - 1.0)) {}
            }
        }
    }
}

fn told(seen: &SeenWindow, unique: u64, revision: u64) -> String {
    let corrected = if revision > 0 {
        format!(", revision {revision}")
    } else {
        String::new()
    };
    let asked = number(requests(seen));
    format!(
        "{}: {} unique, {asked} requests{corrected}",
        clock(seen.window),
        number(unique)
    )
}
