//! The counts of windows: for `/api/counts` and `verve-reporter counts`.

use std::io;

use jiff::Timestamp;
use redis::RedisResult;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use verve_protocol::counter_name::InvalidCounterName;
use verve_protocol::{CounterName, Report, Window, WindowLength, WindowLengths};

use crate::store::{BATCH, Store};
use crate::windows::KeepReports;

/// The number of windows in an answer, without `limit`.
const LIMIT: u64 = 60;
/// The maximum number of windows in an answer.
///
/// A week has so many minutes.
const MOST: u64 = 7 * 24 * 60;
/// The number of batches of windows that are looked at for an answer.
const MOST_BATCHES: usize = 100;
/// The last second of the year 9999.
const LAST_SECOND: u64 = 253_402_300_799;

/// Which reported windows to return.
#[derive(clap::Args, Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Asked {
    /// Windows that start at this time or later: RFC 3339, or Unix seconds
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Windows that start before this time; now if not given
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Maximum number of windows, newest first: from 1 to 10,080, 60 if not given
    #[arg(long, value_name = "N")]
    #[param(minimum = 1, maximum = 10_080, default = 60)]
    limit: Option<u64>,
    /// Named counter of the windows; the counter without a name if not given
    #[arg(long, value_name = "NAME")]
    counter: Option<String>,
    /// Length of the windows in seconds; the main one if not given
    // The command has a flag for it that is the reporter's too.
    #[arg(skip)]
    window_seconds: Option<u32>,
}

/// Which counter to read.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Which {
    /// A named counter; the counter without a name if not given
    counter: Option<String>,
    /// Length of the window in seconds; the main one if not given
    window_seconds: Option<u32>,
}

/// A reported window.
#[derive(Debug, Serialize, ToSchema)]
pub struct Count {
    /// The start of the window in RFC 3339.
    ///
    /// The key of its record in Kafka begins with it.
    #[schema(example = "2026-11-22T21:30:00Z")]
    window: String,
    /// The start of the window in Unix seconds.
    start: u64,
    /// Unique ids.
    count: u64,
    /// 0 for the first report, one more for each correction.
    revision: u64,
    /// Ids that arrived after the window was final.
    ///
    /// The count excludes them, though some may be new.
    late: u64,
    /// Requests, as of the last report.
    requests: u64,
    /// Requests whose id was already in the window, as of the last report.
    duplicates: u64,
    /// Whether the window's allowed lateness is over.
    r#final: bool,
    /// When the window was last reported, in RFC 3339.
    reported_at: Option<String>,
}

/// The open window, and the longer ones that contain it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Current {
    #[serde(flatten)]
    open: Open,
    /// The open windows of the longer lengths, if no length was given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    longer: Vec<Open>,
}

/// An open window.
#[derive(Debug, Serialize, ToSchema)]
pub struct Open {
    /// The start of the window in RFC 3339.
    #[schema(example = "2026-11-22T21:30:00Z")]
    window: String,
    /// The start of the window in Unix seconds.
    start: u64,
    /// The end of the window in Unix seconds.
    end: u64,
    /// The length of the window in seconds.
    window_seconds: u64,
    /// Unique ids so far.
    count: u64,
    /// Requests so far. Statistics arrive some tenths of a second after the ids.
    requests: u64,
    /// Requests whose id was already in the window.
    duplicates: u64,
}

/// A parsed [`Asked`].
#[derive(Debug, PartialEq, Eq)]
pub struct Range {
    length: WindowLength,
    /// The start of the first window, or a time before it.
    from: u64,
    /// A time after the start of the last window.
    to: u64,
    limit: u64,
    counter: Option<CounterName>,
}

/// Some reported windows, newest first.
#[derive(Debug)]
pub struct Page {
    /// At most as many as requested.
    ///
    /// There may be none, and yet earlier windows with reports.
    pub counts: Vec<Count>,
    /// The value of `to` that requests the windows before these, if there are any.
    pub next: Option<u64>,
}

impl Asked {
    /// Returns the length of the windows, which must be one of these.
    ///
    /// # Errors
    /// The problem, and what was expected.
    pub fn length(&self, lengths: &WindowLengths) -> Result<WindowLength, String> {
        one_of(lengths, self.window_seconds)
    }

    /// Parses the times, for windows of this length.
    ///
    /// # Errors
    /// The problem, and what was expected.
    pub fn range(&self, length: WindowLength) -> Result<Range, String> {
        let seconds = |name: &str, text: &Option<String>| text.as_deref().map(|text| time(name, text)).transpose();
        let to = seconds("to", &self.to)?;
        let from = seconds("from", &self.from)?;
        if let (Some(from), Some(to)) = (from, to)
            && from > to
        {
            return Err("from is after to".to_owned());
        }
        let limit = self.limit.unwrap_or(LIMIT);
        if !(1..=MOST).contains(&limit) {
            return Err(format!("limit: expected a number from 1 to {MOST}"));
        }
        Ok(Range {
            length,
            from: from.unwrap_or_default(),
            to: to.unwrap_or(LAST_SECOND),
            limit,
            counter: named(self.counter.as_deref())?,
        })
    }

    /// Returns the query for the windows before `to`, otherwise unchanged.
    pub fn before(&self, to: u64) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        if let Some(from) = &self.from {
            query.append_pair("from", from);
        }
        query.append_pair("to", &to.to_string());
        if let Some(limit) = self.limit {
            query.append_pair("limit", &limit.to_string());
        }
        if let Some(counter) = &self.counter {
            query.append_pair("counter", counter);
        }
        if let Some(seconds) = self.window_seconds {
            query.append_pair("window_seconds", &seconds.to_string());
        }
        query.finish()
    }
}

impl Which {
    /// Returns the store of this counter.
    ///
    /// # Errors
    /// If the name is not valid for a counter, with the reason.
    pub fn of(&self, store: &Store) -> Result<Store, String> {
        Ok(store.of(named(self.counter.as_deref())?.as_ref()))
    }

    /// Returns the lengths of the windows to read.
    ///
    /// # Errors
    /// If the length that was given is not one of `lengths`.
    pub fn lengths(&self, lengths: &WindowLengths) -> Result<WindowLengths, String> {
        match self.window_seconds {
            None => Ok(lengths.clone()),
            asked => one_of(lengths, asked).map(WindowLengths::from),
        }
    }
}

/// Returns the length that was asked for; the main one if none was.
///
/// # Errors
/// If it is not one of these lengths.
pub fn one_of(lengths: &WindowLengths, asked: Option<u32>) -> Result<WindowLength, String> {
    let Some(asked) = asked else {
        return Ok(lengths.main());
    };
    let found = lengths.all().find(|length| length.seconds() == u64::from(asked));
    found.ok_or_else(|| format!("window_seconds: expected one of {lengths}"))
}

/// Returns the name of the requested counter, if there is one.
///
/// # Errors
/// If the name is not valid for a counter, with the reason.
pub fn named(counter: Option<&str>) -> Result<Option<CounterName>, String> {
    let name = counter.map(str::parse).transpose();
    name.map_err(|error: InvalidCounterName| error.to_string())
}

impl Range {
    /// Returns the windows whose start is in the range at `now_s`, newest first.
    ///
    /// Earlier ones than `kept_from` have no reports, and a window is reported only after its end.
    fn windows(&self, kept_from: Window, now_s: u64) -> impl Iterator<Item = Window> {
        let seconds = self.length.seconds();
        let numbers = self.from.max(kept_from.start()).div_ceil(seconds)..self.to.min(now_s).div_ceil(seconds);
        let starts = numbers.rev().map(move |number| number * seconds);
        starts.filter_map(|start| self.length.window_starting(start))
    }

    /// Reads the reports of the windows.
    ///
    /// # Errors
    /// If Redis fails.
    pub async fn read(&self, store: &Store) -> RedisResult<Page> {
        let store = &store.of(self.counter.as_ref());
        let mut page = Page {
            counts: Vec::new(),
            next: None,
        };
        let now_s = store.clock().await?.now_ms() / 1000;
        let kept_from = store.kept_from(self.length).await?.unwrap_or_else(|| {
            // No leader has noted it yet.
            let week_s = KeepReports::default().time.as_secs();
            self.length.window_at_ms(now_s.saturating_sub(week_s) * 1000)
        });
        let mut windows = self.windows(kept_from, now_s);
        for _ in 0..MOST_BATCHES {
            let batch: Vec<Window> = windows.by_ref().take(BATCH).collect();
            let Some(oldest) = batch.last().copied() else {
                page.next = None;
                return Ok(page);
            };
            page.next = Some(oldest.start());
            let reports = store.reports(&batch).await?;
            for (window, report) in batch.into_iter().zip(reports) {
                let Some(report) = report else { continue };
                if page.counts.len() as u64 == self.limit {
                    page.next = page.counts.last().map(|last| last.start);
                    return Ok(page);
                }
                page.counts.push(Count::new(window, report));
            }
        }
        Ok(page)
    }
}

impl Count {
    fn new(window: Window, report: Report) -> Self {
        let reported_at = Timestamp::from_millisecond(report.time.cast_signed());
        Self {
            window: window.to_string(),
            start: window.start(),
            count: report.count,
            revision: report.revision,
            late: report.late,
            requests: report.requests,
            duplicates: report.duplicates,
            r#final: report.is_final,
            reported_at: reported_at.ok().map(|time| time.to_string()),
        }
    }
}

/// Reads the counts of the open windows.
///
/// # Errors
/// If Redis fails.
pub async fn current(store: &Store, lengths: &WindowLengths) -> RedisResult<Current> {
    let now_ms = store.clock().await?.now_ms();
    let longer = lengths.longer().iter();
    let longer = futures::future::try_join_all(longer.map(|length| open(store, length.window_at_ms(now_ms))));
    let (open, longer) = futures::try_join!(open(store, lengths.main().window_at_ms(now_ms)), longer)?;
    Ok(Current { open, longer })
}

async fn open(store: &Store, window: Window) -> RedisResult<Open> {
    let windows = [window];
    let (counts, requests) = futures::try_join!(store.counts(&windows), store.requests(&windows))?;
    let [requests, duplicates] = requests.first().copied().unwrap_or_default();
    Ok(Open {
        window_seconds: window.length().seconds(),
        window: window.to_string(),
        start: window.start(),
        end: window.end(),
        count: counts.first().copied().unwrap_or_default(),
        requests,
        duplicates,
    })
}

fn time(name: &str, text: &str) -> Result<u64, String> {
    let seconds = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        text.parse::<Timestamp>()
            .ok()
            .and_then(|time| u64::try_from(time.as_second()).ok())
    };
    seconds.filter(|seconds| *seconds <= LAST_SECOND).ok_or_else(|| {
        format!("{name}: expected a time since 1970 as in RFC 3339, such as 2026-11-22T21:30:00Z, or in Unix seconds")
    })
}

/// Returns the page as comma-separated values (RFC 4180).
///
/// The names are in the first line. No value contains a comma or a quotation mark.
pub fn csv(page: &Page) -> String {
    let mut text = "window,start,count,revision,late,requests,duplicates,final,reported_at\r\n".to_owned();
    for count in &page.counts {
        let Count {
            window,
            start,
            count,
            revision,
            late,
            requests,
            duplicates,
            r#final: is_final,
            reported_at,
        } = count;
        let reported_at = reported_at.as_deref().unwrap_or_default();
        text +=
            &format!("{window},{start},{count},{revision},{late},{requests},{duplicates},{is_final},{reported_at}\r\n");
    }
    text
}

/// Returns the page as a table, or its windows as a JSON array.
///
/// # Errors
/// If they cannot be written as JSON, which is not expected to happen.
pub fn text(page: &Page, json: bool) -> io::Result<String> {
    if json {
        return Ok(serde_json::to_string_pretty(&page.counts)? + "\n");
    }
    let columns = |[window, unique, revision, late, requests, duplicates, is_final]: [&str; 7]| {
        format!("{window:<20}  {unique:>12}  {revision:>8}  {late:>8}  {requests:>12}  {duplicates:>12}  {is_final}\n")
    };
    let mut text = columns([
        "WINDOW",
        "UNIQUE",
        "REVISION",
        "LATE",
        "REQUESTS",
        "DUPLICATES",
        "FINAL",
    ]);
    for count in &page.counts {
        let numbers = [
            count.count,
            count.revision,
            count.late,
            count.requests,
            count.duplicates,
        ];
        let [unique, revision, late, requests, duplicates] = numbers.map(|number| number.to_string());
        let is_final = if count.r#final { "yes" } else { "no" };
        text += &columns([
            &count.window,
            &unique,
            &revision,
            &late,
            &requests,
            &duplicates,
            is_final,
        ]);
    }
    if let Some(next) = page.next {
        text += &format!("There are more, before these: --to {next}\n");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_795_383_012;
    const KEPT_FROM: u64 = NOW - 12 - 600;

    fn asked(from: Option<&str>, to: Option<&str>) -> Result<Vec<u64>, String> {
        let asked = Asked {
            from: from.map(str::to_owned),
            to: to.map(str::to_owned),
            limit: None,
            counter: None,
            window_seconds: None,
        };
        let length = WindowLength::try_new(60).expect("valid");
        let range = asked.range(length)?;
        let kept_from = length.window_at_ms(KEPT_FROM * 1000);
        Ok(range.windows(kept_from, NOW).map(|window| window.start()).collect())
    }

    #[test]
    fn windows_that_start_in_the_requested_time_newest_first() {
        let all = asked(None, None).expect("all that is kept");
        assert_eq!(
            (all.len(), all[0], all[1], all[10]),
            (11, NOW - 12, NOW - 72, KEPT_FROM)
        );
        for (from, to, starts) in [
            ("1795383000", "1795383060", vec![1_795_383_000]),
            ("1795382940", "1795383001", vec![1_795_383_000, 1_795_382_940]),
            ("1795382941", "1795383000", vec![]),
            ("1795383000", "1795383000", vec![]),
            ("2026-11-22T21:30:00Z", "2026-11-22T22:31:00+01:00", vec![1_795_383_000]),
            // In the distant past, and in the future.
            ("0", "1000000000", vec![]),
            ("1795383060", "1795389999", vec![]),
        ] {
            assert_eq!(asked(Some(from), Some(to)), Ok(starts), "{from} {to}");
        }
    }

    #[test]
    fn contradictory_settings_are_refused() {
        for (from, to, word) in [
            ("2", "1", "after"),
            ("", "1", "from:"),
            ("-1", "1", "from:"),
            ("1.5", "2", "from:"),
            ("1", "soon", "to:"),
            ("1969-12-31T23:59:59Z", "1", "from:"),
            ("1", "99999999999999999999", "to:"),
            ("1", "253402300800", "to:"),
            ("2026-11-22T21:30:00", "2026-11-22T21:31:00Z", "from:"),
        ] {
            match asked(Some(from), Some(to)) {
                Err(error) => assert!(error.contains(word), "{from} {to}: {error}"),
                Ok(windows) => panic!("{from} {to}: {windows:?}"),
            }
        }
        for limit in [0, MOST + 1] {
            let asked = Asked {
                limit: Some(limit),
                ..Asked::default()
            };
            let length = WindowLength::try_new(60).expect("valid");
            assert!(asked.range(length).is_err_and(|error| error.contains("limit")));
        }
    }

    #[test]
    fn the_next_page_asks_for_the_same() {
        let asked = Asked {
            from: Some("2026-11-22T21:30:00+01:00".to_owned()),
            to: Some("soon".to_owned()),
            limit: Some(5),
            counter: Some("logins".to_owned()),
            window_seconds: Some(3600),
        };
        assert_eq!(
            asked.before(1_795_383_000),
            "from=2026-11-22T21%3A30%3A00%2B01%3A00&to=1795383000&limit=5&counter=logins&window_seconds=3600"
        );
    }
}
