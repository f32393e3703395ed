//! The live page, rendered by the server. It is complete without JavaScript.
//!
//! The script only inserts the contents of `/events`, which the same code renders.

mod chart;
mod runbooks;

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::sse::{Event, Sse};
use axum::response::{Html, IntoResponse};
use futures::stream::{self, StreamExt as _};
use maud::{DOCTYPE, Markup, html};
use redis::RedisResult;
use tokio::sync::watch;
use verve_protocol::keys::stats;
use verve_protocol::{CounterName, WindowLength, WindowLengths};

use super::Admin;
use super::counts::Refused;
use crate::counts;
use crate::named::CounterSnapshot;
use crate::overview::{Snapshot, WindowSnapshot, latest};
use crate::words::{self, NONE, clock, duplicates, number, time};

pub use runbooks::runbooks;

/// How long a page waits for Redis.
const PATIENCE: Duration = Duration::from_secs(3);
/// The age from which on a snapshot is marked as old.
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
struct View {
    /// A named counter; `None` for the counter without a name.
    ///
    /// The page of the latter lists the others.
    counter: Option<CounterName>,
    /// The length of the windows, if that is not the main one.
    longer: Option<WindowLength>,
    listed: Listed,
}

/// Which named counters are listed.
#[derive(Clone)]
struct Listed {
    /// Part of their names.
    find: String,
    /// The number of the page, from 1 on.
    page: usize,
}

/// Where the counters of a length appear.
type Counters = watch::Receiver<Vec<CounterSnapshot>>;

/// The number of named counters on a page.
const COUNTERS: usize = 50;

impl Listed {
    /// Returns the address of another page of the list.
    fn address(&self, longer: Option<WindowLength>, page: usize) -> String {
        // The text to find may have any characters.
        let query = [("find", self.find.as_str()), ("page", &page.to_string())];
        let query = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(query)
            .extend_pairs(longer.map(|length| ("window_seconds", length.to_string())))
            .finish();
        format!("?{query}#named")
    }
}

impl View {
    /// Parses the query. Ignores other parameters, which may be for a proxy.
    fn asked(query: &HashMap<String, String>, lengths: &WindowLengths) -> Result<Self, Refused> {
        let asked = query.get("counter").filter(|name| !name.is_empty());
        let name = counts::named(asked.map(String::as_str)).map_err(Refused::Bad)?;
        let page = query.get("page").map_or(Ok(1), |page| page.parse());
        let page = page.ok().filter(|page| *page > 0);
        let page = page.ok_or_else(|| Refused::Bad("page: expected a number from 1 on".to_owned()))?;
        let find = query.get("find").cloned().unwrap_or_default();
        let seconds = query
            .get("window_seconds")
            .map(|seconds| seconds.parse().unwrap_or_default());
        let length = counts::one_of(lengths, seconds).map_err(Refused::Bad)?;
        Ok(Self {
            counter: name,
            longer: Some(length).filter(|length| *length != lengths.main()),
            listed: Listed { find, page },
        })
    }

    /// Returns the live part of the page, and the ids of the current window.
    async fn content(&self, admin: &Admin) -> RedisResult<(Markup, Option<u64>)> {
        let current = |windows: &[WindowSnapshot]| windows.last().and_then(WindowSnapshot::unique);
        if self.counter.is_none() && self.longer.is_none() {
            let snapshot = admin.snapshot.borrow();
            return Ok((all(admin, &snapshot, &self.listed), current(&snapshot.windows)));
        }
        let store = admin.store.of(self.counter.as_ref());
        let clock = store.clock().await?;
        let windows = WindowSnapshot::read(
            &store,
            &latest(self.longer.unwrap_or(admin.lengths.main()), clock.now_ms()),
        )
        .await?;
        let is_listed = self.counter.is_none();
        let list = is_listed.then(|| named(admin, self.longer, &self.listed));
        Ok((of_counter(&windows, clock.now_ms(), list), current(&windows)))
    }
}

/// Returns the query for a counter, if it has a name.
///
/// It is for windows of a length, if that is not the main one.
fn query_of(counter: Option<&CounterName>, longer: Option<WindowLength>) -> String {
    let query = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(counter.map(|name| ("counter", name.as_str())))
        .extend_pairs(longer.map(|length| ("window_seconds", length.to_string())))
        .finish();
    if query.is_empty() { query } else { format!("?{query}") }
}

/// `/`, `/?counter=…`, and `/?window_seconds=…`
pub async fn page(
    State(admin): State<Admin>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Html<String>, Refused> {
    let view = View::asked(&query, &admin.lengths)?;
    let answered = tokio::time::timeout(PATIENCE, view.content(&admin)).await;
    let late = |_| Refused::NoAnswer("Redis does not answer".to_owned());
    let (content, current) = answered.map_err(late)??;
    let name = match &view.counter {
        None => "Verve".to_owned(),
        Some(name) => format!("{name} · Verve"),
    };
    let of_length = |longer| query_of(view.counter.as_ref(), longer);
    let query = of_length(view.longer);
    let main = admin.lengths.main();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                (of_every_page())
                title { @if let Some(current) = current { (number(current)) " · " } (name) }
                noscript { meta http-equiv="refresh" content="5"; }
                script src="page.js" defer {}
            }
            body data-name=(name) {
                header {
                    h1 { "Verve" }
                    @if let Some(name) = &view.counter {
                        p { a href="." { "All counters" } "› " strong { (name) } }
                    }
                    p {
                        "Unique ids in windows of "
                        @for length in admin.lengths.all() {
                            @let longer = Some(length).filter(|length| *length != main);
                            @if longer.is_some() { ", " }
                            @if longer == view.longer { (length) } @else { a href=(format!("./{}", of_length(longer))) { (length) } }
                        }
                        " s"
                    }
                    p #state { noscript { "Renewed every 5 s" } }
                }
                (content)
                footer {
                    p {
                        a href=(format!("api/counts{query}")) { "Counts as JSON" } " "
                        a href=(format!("api/counts.csv{query}")) { "as CSV" } " "
                        a href="api/openapi.json" { "how to ask" } " "
                        a href="metrics" { "metrics" } " "
                        a href="runbooks" { "runbooks" }
                    }
                    p {
                        "All answered requests count, also invalid, failed and refused ones. Their number is up to a second behind the ids."
                    }
                }
            }
        }
    };
    Ok(Html(page.into_string()))
}

/// `/events`, with the query of the page: the live part, after each snapshot.
pub async fn events(
    State(admin): State<Admin>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<impl IntoResponse, Refused> {
    let view = View::asked(&query, &admin.lengths)?;
    let stop = admin.stop.clone();
    let mut snapshot = admin.snapshot.clone();
    // The first event is sent immediately.
    snapshot.mark_changed();
    let contents = stream::unfold((admin, view, snapshot), async |(admin, view, mut snapshot)| {
        loop {
            snapshot.changed().await.ok()?;
            snapshot.mark_unchanged();
            // While Redis does not answer, the page shows how long it has received nothing.
            if let Ok((content, _)) = view.content(&admin).await {
                // The library refuses a carriage return, and the text of an error may contain one.
                let event = Event::default().data(content.into_string().replace('\r', " "));
                return Some((Ok::<_, Infallible>(event), (admin, view, snapshot)));
            }
        }
    });
    // An open stream would prevent the process from stopping.
    let events: Sse<_> = Sse::new(contents.take_until(stop.cancelled_owned()));
    // Without it nginx would buffer the events.
    Ok(([("x-accel-buffering", "no")], events))
}

/// Returns the part of the head that all pages share.
fn of_every_page() -> Markup {
    html! {
        meta charset="utf-8";
        meta name="viewport" content="width=device-width, initial-scale=1";
        meta name="color-scheme" content="light dark";
        link rel="stylesheet" href="page.css";
        link rel="icon" href="icon.svg" type="image/svg+xml";
    }
}

/// Returns the live part of the main page.
fn all(admin: &Admin, snapshot: &Snapshot, listed: &Listed) -> Markup {
    let now_ms = snapshot.clock.map_or(0, |clock| clock.now_ms());
    html! {
        main {
            div #now .cards data-live { (current(&snapshot.windows, now_ms)) (last(&snapshot.windows)) (callbacks(snapshot)) }
            (longer(admin))
            (bars(&snapshot.windows))
            section .card {
                h2 { "Health" }
                ul #health .health data-live { (health(snapshot, &admin.replica)) }
            }
            (named(admin, None, listed))
            (table(&snapshot.windows))
        }
    }
}

/// Shows the longer windows of the counter without a name.
fn longer(admin: &Admin) -> Markup {
    let of_length = |(length, counters): &(WindowLength, Counters)| {
        let counters = counters.borrow();
        let unnamed = counters.iter().find(|counter| counter.name.is_none());
        unnamed.map(|counter| (*length, counter.clone()))
    };
    let longer: Vec<(WindowLength, CounterSnapshot)> = admin.counters.iter().filter_map(of_length).collect();
    html! {
        @if !longer.is_empty() {
            div #longer .cards data-live { @for (length, counter) in longer {
                section .card {
                    h2 { a href=(query_of(None, Some(length))) { "Windows of " (length) " s" } }
                    p .big { (number(counter.current.unique().unwrap_or_default())) }
                    p { "since " (clock(counter.current.window)) " UTC" }
                    p { (number(counter.last.unique().unwrap_or_default())) " in the window before" }
                }
            } }
        }
    }
}

/// Returns the live part of the page of a named counter, or of longer windows.
fn of_counter(windows: &[WindowSnapshot], now_ms: u64, list: Option<Markup>) -> Markup {
    html! {
        main {
            div #now .cards data-live { (current(windows, now_ms)) (last(windows)) }
            (bars(windows))
            @if let Some(list) = list { (list) }
            (table(windows))
        }
    }
}

fn bars(windows: &[WindowSnapshot]) -> Markup {
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

fn table(windows: &[WindowSnapshot]) -> Markup {
    html! {
        section .card {
            h2 { "Windows" }
            div .scroll tabindex="0" role="region" aria-label="Windows" {
                table {
                    thead {
                        tr { @for column in words::COLUMNS { th { (column) } } }
                    }
                    tbody #windows data-live data-rows { (rows(windows)) }
                }
            }
        }
    }
}

fn current(windows: &[WindowSnapshot], now_ms: u64) -> Markup {
    let Some(current) = windows.last() else {
        return html! { section .card { h2 { "Current window" } p .big { (NONE) } p { "Redis has not answered yet" } } };
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

fn last(windows: &[WindowSnapshot]) -> Markup {
    let reported = windows.iter().rev().find(|snapshot| snapshot.report.is_some());
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
                p .big { (NONE) }
                p { "Nothing reported in the time shown" }
            }
        }
    }
}

/// Shows the requests, the share of duplicates, and the failures.
///
/// The share is that among the recorded requests.
fn requests(snapshot: &WindowSnapshot) -> Markup {
    html! {
        p { (number(words::requests(snapshot))) " requests, " (duplicates(snapshot)) " duplicates" }
        @for (outcome, label) in [
            (stats::SPOOLED, "spooled"),
            (stats::INVALID, "invalid"),
            (stats::LIMITED, "beyond a limit"),
            (stats::FAILED, "failed"),
        ] {
            @if snapshot.requests_of(outcome) > 0 {
                p .(if [stats::LIMITED, stats::FAILED].contains(&outcome) { "bad" } else { "quiet" }) {
                    (number(snapshot.requests_of(outcome))) " " (label)
                }
            }
        }
    }
}

fn callbacks(snapshot: &Snapshot) -> Markup {
    let jobs = snapshot.jobs;
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

fn health(snapshot: &Snapshot, replica: &str) -> Markup {
    let item = |is_good: bool, of: &str, text: &str, runbook: Option<&str>| {
        html! {
            li .good[is_good] .bad[!is_good] {
                strong { (of) } " "
                span {
                    (text)
                    @if let Some(runbook) = runbook { " " a href=(format!("runbooks#{}", runbook.to_lowercase())) { "what to do" } }
                }
            }
        }
    };
    html! {
        @if !snapshot.dependencies.keys().any(|name| name.starts_with("Kafka")) {
            (item(true, "Kafka", "none is configured (--kafka-brokers): counts are only logged", None))
        }
        @for state in words::states(snapshot, replica) {
            (item(state.is_good, &state.of, &state.text, (!state.is_good).then_some(state.runbook)))
        }
        @if let Some(clock) = snapshot.clock && clock.age() > OLD {
            (item(false, "This page", &format!("as of {} s ago", clock.age().as_secs()), None))
        }
    }
}

/// Shows the named counters that are in use.
fn named(admin: &Admin, longer: Option<WindowLength>, listed: &Listed) -> Markup {
    let length = longer.unwrap_or(admin.lengths.main());
    let all = admin.counters.iter().find(|(of, _)| *of == length);
    let all = all.map(|(_, counters)| counters.borrow());
    let all = all.as_ref().map_or(&[][..], |all| all.as_slice());
    html! {
        section #named .card {
            h2 { "Named counters" }
            form action="#named" {
                @if let Some(length) = longer { input type="hidden" name="window_seconds" value=(length); }
                input type="search" name="find" value=(listed.find) placeholder="Part of a name" aria-label="Part of a name";
                " " button { "Find" }
            }
            div #counters data-live { (counters(all, longer, listed)) }
        }
    }
}

/// Shows one page of the named counters, those with most ids first.
fn counters(all: &[CounterSnapshot], longer: Option<WindowLength>, listed: &Listed) -> Markup {
    let named = all.iter().filter_map(|counter| Some((counter.name.as_ref()?, counter)));
    let mut found: Vec<(&CounterName, &CounterSnapshot)> =
        named.filter(|(name, _)| name.as_str().contains(&listed.find)).collect();
    let ids =
        |counter: &CounterSnapshot| [&counter.current, &counter.last].map(|window| window.unique().unwrap_or_default());
    found.sort_by(|(a, of_a), (b, of_b)| ids(of_b).cmp(&ids(of_a)).then_with(|| a.cmp(b)));
    let first = COUNTERS.saturating_mul(listed.page - 1).min(found.len());
    let last = first.saturating_add(COUNTERS).min(found.len());
    html! {
        div .scroll tabindex="0" role="region" aria-label="Named counters" {
            table {
                thead {
                    tr { th { "Counter" } th { "Current window" } th { "Window before" } th { "Requests" } th { "Duplicates" } th { "Reported" } }
                }
                tbody {
                    @for (name, CounterSnapshot { current, last, .. }) in &found[first..last] {
                        tr {
                            td { a href=(query_of(Some(name), longer)) { (name) } }
                            td { (number(current.unique().unwrap_or_default())) }
                            td { (number(last.unique().unwrap_or_default())) }
                            td { (number(last.requests())) }
                            td { (duplicates(last)) }
                            td { (last.report.map_or_else(|| NONE.to_owned(), |report| time(report.time))) }
                        }
                    }
                }
            }
        }
        p .legend {
            @if first > 0 { a href=(listed.address(longer, listed.page - 1)) { "‹ before" } " " }
            @if first == last { "None of " (number(found.len() as u64)) } @else { (number(first as u64 + 1)) " to " (number(last as u64)) " of " (number(found.len() as u64)) }
            @if last < found.len() { " " a href=(listed.address(longer, listed.page + 1)) { "next ›" } }
        }
    }
}

fn rows(windows: &[WindowSnapshot]) -> Markup {
    html! {
        @for snapshot in windows.iter().rev().filter(|snapshot| snapshot.is_known()) {
            @let [window, unique, revision, requests, duplicates, late, reported] = words::row(snapshot);
            // The script finds the row by this id.
            tr id=(format!("w{}", snapshot.window.start())) {
                td { time datetime=(snapshot.window) { (window) } }
                td { (unique) }
                td .revised[snapshot.report.is_some_and(|report| report.revision > 0)] { (revision) }
                td { (requests) }
                td { (duplicates) }
                td { (late) }
                td { (reported) }
            }
        }
    }
}
