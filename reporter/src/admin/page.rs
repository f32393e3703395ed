//! The live page: made here, whole, so that it says everything without JavaScript. The script only puts in what `/events` brings,
//! which is made by the same code.

mod chart;

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::sse::{Event, Sse};
use axum::response::{Html, IntoResponse};
use futures::stream::{self, StreamExt as _};
use jiff::Timestamp;
use maud::{DOCTYPE, Markup, html};
use redis::RedisResult;
use verve_protocol::keys::stats;
use verve_protocol::{CounterName, Window};

use super::Admin;
use super::counts::Refused;
use crate::counts::Which;
use crate::named::SeenCounter;
use crate::overview::{Seen, SeenWindow, latest};

/// From when on what was seen last is said to be old.
const OLD: Duration = Duration::from_secs(5);

const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");
const ICON: &str = include_str!("page/icon.svg");

/// `/page.css`
pub async fn style() -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/css; charset=utf-8")], STYLE)
}

/// `/page.js`
pub async fn script() -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/javascript; charset=utf-8")], SCRIPT)
}

/// `/icon.svg`
pub async fn icon() -> impl IntoResponse {
    ([(CONTENT_TYPE, "image/svg+xml")], ICON)
}

/// What a page shows.
#[derive(Clone)]
enum View {
    /// The counter without a name, and what goes on.
    All,
    /// A named counter.
    Counter(CounterName),
}

impl View {
    fn asked(which: Result<Query<Which>, QueryRejection>) -> Result<Self, Refused> {
        let Query(which) = which?;
        let name = which.named().map_err(Refused::Bad)?;
        Ok(name.map_or(Self::All, Self::Counter))
    }

    /// What changes, and the ids of the current window.
    async fn content(&self, admin: &Admin) -> RedisResult<(Markup, Option<u64>)> {
        let (content, windows) = match self {
            Self::All => {
                let seen = admin.seen.borrow();
                (all(admin, &seen), seen.windows.clone())
            }
            Self::Counter(name) => {
                let store = admin.store.of(Some(name));
                let clock = store.clock().await?;
                let windows = SeenWindow::read(&store, &latest(admin.length, clock.now_ms())).await?;
                (of_counter(&windows, clock.now_ms()), windows)
            }
        };
        Ok((content, windows.last().and_then(SeenWindow::unique)))
    }
}

/// `/`, and `/?counter=…`
pub async fn page(
    State(admin): State<Admin>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Html<String>, Refused> {
    let view = View::asked(which)?;
    let (content, current) = view.content(&admin).await?;
    let (name, query) = match &view {
        View::All => ("Verve".to_owned(), String::new()),
        View::Counter(name) => (format!("{name} · Verve"), format!("?counter={name}")),
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { @if let Some(current) = current { (number(current)) " · " } (name) }
                link rel="stylesheet" href="page.css";
                link rel="icon" href="icon.svg" type="image/svg+xml";
                noscript { meta http-equiv="refresh" content="5"; }
                script src="page.js" defer {}
            }
            body data-name=(name) {
                header {
                    h1 { "Verve" }
                    @if let View::Counter(name) = &view {
                        p { a href="." { "All counters" } "› " strong { (name) } }
                    }
                    p { "Unique ids in windows of " (admin.length) " s" }
                    p #state { noscript { "Renewed every 5 s" } }
                }
                (content)
                footer {
                    p {
                        a href=(format!("api/counts{query}")) { "Counts as JSON" } " "
                        a href=(format!("api/counts.csv{query}")) { "as CSV" } " "
                        a href="api/openapi.json" { "how to ask" } " "
                        a href="metrics" { "metrics" }
                    }
                    p {
                        "A request is whatever was answered, what was invalid, failed or refused too. How many they are is told up to a second after their ids."
                    }
                }
            }
        }
    };
    Ok(Html(page.into_string()))
}

/// `/events`, and `/events?counter=…`: the page's content, each time it is looked at.
pub async fn events(
    State(admin): State<Admin>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<impl IntoResponse, Refused> {
    let view = View::asked(which)?;
    let stop = admin.stop.clone();
    let mut seen = admin.seen.clone();
    // The first one at once.
    seen.mark_changed();
    let contents = stream::unfold((admin, view, seen), async |(admin, view, mut seen)| {
        loop {
            seen.changed().await.ok()?;
            seen.mark_unchanged();
            // While Redis does not answer, the page says since when it has heard nothing.
            if let Ok((content, _)) = view.content(&admin).await {
                // Else the library would refuse it: an error's text may have any character.
                let event = Event::default().data(content.into_string().replace('\r', " "));
                return Some((Ok::<_, Infallible>(event), (admin, view, seen)));
            }
        }
    });
    // An open stream would keep the process from stopping.
    let events: Sse<_> = Sse::new(contents.take_until(stop.cancelled_owned()));
    // For nginx, which would gather them first.
    Ok(([("x-accel-buffering", "no")], events))
}

/// What changes of the page with everything.
fn all(admin: &Admin, seen: &Seen) -> Markup {
    let now_ms = seen.clock.map_or(0, |clock| clock.now_ms());
    html! {
        main {
            div #now .cards data-live { (current(&seen.windows, now_ms)) (last(&seen.windows)) (callbacks(seen)) }
            (bars(&seen.windows))
            section .card {
                h2 { "Health" }
                ul #health .health data-live { (health(seen, &admin.replica)) }
            }
            div #counters data-live { (counters(&admin.counters.borrow())) }
            (table(&seen.windows))
        }
    }
}

/// What changes of the page of a named counter.
fn of_counter(windows: &[SeenWindow], now_ms: u64) -> Markup {
    html! {
        main {
            div #now .cards data-live { (current(windows, now_ms)) (last(windows)) }
            (bars(windows))
            (table(windows))
        }
    }
}

fn bars(windows: &[SeenWindow]) -> Markup {
    html! {
        section .card {
            h2 { "Unique ids, window by window" }
            div #chart data-live { (chart::chart(windows)) }
            p #bar .axis {}
            p .legend {
                span .key .reported {} "reported "
                span .key .revised {} "reported again since, for late ids "
                span .key .open {} "not reported yet"
            }
        }
    }
}

fn table(windows: &[SeenWindow]) -> Markup {
    html! {
        section .card {
            h2 { "Windows" }
            div .scroll tabindex="0" role="region" aria-label="Windows" {
                table {
                    thead {
                        tr {
                            th { "Window (UTC)" } th { "Unique" } th { "Revision" } th { "Requests" }
                            th { "Duplicates" } th { "Too late" } th { "Reported" }
                        }
                    }
                    tbody #windows data-live data-rows { (rows(windows)) }
                }
            }
        }
    }
}

fn current(windows: &[SeenWindow], now_ms: u64) -> Markup {
    let Some(current) = windows.last() else {
        return html! { section .card { h2 { "Current window" } p .big { "–" } p { "Redis has not answered yet" } } };
    };
    let left = current.window.end().saturating_sub(now_ms / 1000);
    html! {
        section .card {
            h2 { "Current window" }
            p .big #current { (number(current.unique().unwrap_or_default())) }
            p { "since " (clock(current.window)) " UTC" span .left { ", " (left) " s left" } }
            (requests(current))
        }
    }
}

fn last(windows: &[SeenWindow]) -> Markup {
    let reported = windows.iter().rev().find(|seen| seen.report.is_some());
    html! {
        section .card {
            h2 { "Last reported" }
            @if let Some((last, report)) = reported.and_then(|last| Some((last, last.report?))) {
                p .big { (number(report.count)) }
                p {
                    (clock(last.window)) " UTC, "
                    @if report.revision == 0 { "first report" } @else { "revision " (report.revision) }
                }
                (requests(last))
                @if report.late > 0 { p .quiet { (number(report.late)) " ids came too late, and are not in it" } }
            } @else {
                p .big { "–" }
                p { "Nothing reported in the time shown" }
            }
        }
    }
}

/// Requests, as far as it is known: statistics come a little later than the ids that they are of.
fn requests_told(seen: &SeenWindow) -> u64 {
    seen.requests().max(seen.unique().unwrap_or_default())
}

/// Requests, the share of duplicates among what was recorded, and what went wrong.
fn requests(seen: &SeenWindow) -> Markup {
    html! {
        p { (number(requests_told(seen))) " requests, " (duplicates(seen)) " duplicates" }
        @for (outcome, told) in [
            (stats::SPOOLED, "spooled"),
            (stats::INVALID, "invalid"),
            (stats::LIMITED, "beyond a limit"),
            (stats::FAILED, "failed"),
        ] {
            @if seen.requests_of(outcome) > 0 {
                p .(if [stats::LIMITED, stats::FAILED].contains(&outcome) { "bad" } else { "quiet" }) {
                    (number(seen.requests_of(outcome))) " " (told)
                }
            }
        }
    }
}

fn callbacks(seen: &Seen) -> Markup {
    let jobs = seen.jobs;
    html! {
        section .card {
            h2 { "Callbacks" }
            p .big { (number(jobs.stream)) }
            p {
                "waiting"
                @if jobs.oldest_s > 0 { ", the oldest for " (jobs.oldest_s) " s" }
            }
            p { (number(jobs.retry)) " to be tried again" }
            p .(if jobs.dead > 0 { "bad" } else { "" }) { (number(jobs.dead)) " dead" }
            @if jobs.dead > 0 { p .quiet { "verve-reporter dead list" } }
        }
    }
}

fn health(seen: &Seen, replica: &str) -> Markup {
    let leader = match seen.leader.as_deref() {
        Some(leader) if leader == replica => "held by this replica".to_owned(),
        Some(leader) => format!("held by replica {leader}"),
        None => "held by nobody".to_owned(),
    };
    let item = |good: bool, name: &str, text: &str| {
        html! { li .good[good] .bad[!good] { strong { (name) } " " span { (text) } } }
    };
    html! {
        @for (name, problem) in &seen.dependencies {
            (item(problem.is_none(), name, problem.as_ref().map_or("answers", |problem| problem.error.as_str())))
        }
        @if !seen.dependencies.keys().any(|name| name.starts_with("Kafka")) {
            (item(true, "Kafka", "none is named (--kafka-brokers): counts are only logged"))
        }
        (item(seen.leader.is_some(), "Lease", &leader))
        @if seen.overdue_s > 0 {
            (item(false, "Windows", &format!("overdue for {} s", seen.overdue_s)))
        } @else {
            (item(true, "Windows", "reported in time"))
        }
        @if seen.silent_s() > 0 {
            (item(false, "Ids", &format!("none for {} s: no requests come, or edge hosts do not reach Redis and spool them", number(seen.silent_s()))))
        }
        @if seen.spooled() > 0 {
            (item(false, "Spools", &format!("{} ids and callback jobs wait on edge hosts", number(seen.spooled()))))
        }
        @if let Some(clock) = seen.clock && clock.age() > OLD {
            (item(false, "This page", &format!("as of {} s ago", clock.age().as_secs())))
        }
    }
}

/// The named counters, if there are any.
fn counters(seen: &[SeenCounter]) -> Markup {
    html! {
        @if !seen.is_empty() {
            section .card {
                h2 { "Named counters" }
                div .scroll tabindex="0" role="region" aria-label="Named counters" {
                    table {
                        thead {
                            tr { th { "Counter" } th { "Current window" } th { "Window before" } th { "Requests" } th { "Duplicates" } th { "Reported" } }
                        }
                        tbody {
                            @for SeenCounter { name, current, last } in seen {
                                tr {
                                    td { a href=(format!("?counter={name}")) { (name) } }
                                    td { (number(current.unique().unwrap_or_default())) }
                                    td { (number(last.unique().unwrap_or_default())) }
                                    td { (number(last.requests())) }
                                    td { (duplicates(last)) }
                                    td { (last.report.map_or_else(|| "–".to_owned(), |report| time(report.time))) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn rows(windows: &[SeenWindow]) -> Markup {
    html! {
        @for seen in windows.iter().rev().filter(|seen| seen.is_known()) {
            // By which the script finds it again.
            tr id=(format!("w{}", seen.window.start())) {
                td { time datetime=(seen.window) { (clock(seen.window)) } }
                td { (seen.unique().map_or_else(|| "–".to_owned(), number)) }
                @match seen.report {
                    Some(report) => {
                        td .revised[report.revision > 0] { (report.revision) }
                    }
                    None => td { "–" }
                }
                td { (number(requests_told(seen))) }
                td { (duplicates(seen)) }
                td { @match seen.report { Some(report) if report.late > 0 => (number(report.late)), _ => "–" } }
                td {
                    @match seen.report {
                        Some(report) => { (time(report.time)) @if report.is_final { " final" } }
                        None => "–"
                    }
                }
            }
        }
    }
}

fn duplicates(seen: &SeenWindow) -> String {
    seen.duplicates()
        .map_or_else(|| "–".to_owned(), |share| format!("{:.1} %", 100.0 * share))
}

/// `1234567` as `1,234,567`.
fn number(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = (digits.as_bytes().rchunks(3).rev())
        .filter_map(|group| std::str::from_utf8(group).ok())
        .collect();
    groups.join(",")
}

/// A window's start, the time alone; with the day where windows are so long that it is needed.
fn clock(window: Window) -> String {
    let (day, time) = (window.to_string(), window.length().seconds());
    let (date, clock) = day.split_at(10);
    let clock = clock.trim_start_matches('T').trim_end_matches('Z');
    if time * 24 > 86_400 {
        format!("{date} {clock}")
    } else {
        clock.to_owned()
    }
}

/// A moment in Unix milliseconds, the time alone.
fn time(ms: u64) -> String {
    let time = Timestamp::from_millisecond(ms.cast_signed()).unwrap_or_default();
    time.strftime("%H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(number(n), text);
        }
    }
}
