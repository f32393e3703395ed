//! `GET /api/counts`: what was reported, as JSON.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use verve_protocol::{Report, Window, WindowLength};

use super::Admin;
use crate::clock::now_ms;

/// Where the time begins to be asked for, without `from`.
const LAST: u64 = 3600;
/// The most windows asked for at once: as many as a week, which is what is kept, has minutes.
const MOST: u64 = 7 * 24 * 60;
/// The last second of the year 9999.
const LAST_SECOND: u64 = 253_402_300_799;

/// The query.
#[derive(Debug, Deserialize)]
pub struct Asked {
    from: Option<String>,
    to: Option<String>,
}

/// One reported window.
#[derive(Debug, Serialize)]
pub struct Count {
    /// Its start in RFC 3339: the key of its record.
    window: String,
    /// The same in Unix seconds.
    start: u64,
    count: u64,
    revision: u64,
    /// Whether its late period is over.
    r#final: bool,
    /// When its last revision was, in RFC 3339; `null` where Redis lost it.
    reported_at: Option<String>,
}

/// What went wrong, for the client.
type Refused = (StatusCode, String);

/// Answers the reported windows that start in the time asked for, in order.
pub async fn counts(
    State(admin): State<Admin>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Json<Vec<Count>>, Refused> {
    let bad = |problem: String| (StatusCode::BAD_REQUEST, format!("{problem}\n"));
    let Query(asked) = asked.map_err(|rejection| bad(rejection.body_text()))?;
    let windows = windows(&asked, admin.length, now_ms() / 1000).map_err(bad)?;
    let reports = admin.store.reports(&windows).await.map_err(|error| {
        let problem = format!("Redis did not answer: {error}\n");
        (StatusCode::SERVICE_UNAVAILABLE, problem)
    })?;
    let reported = windows.into_iter().zip(reports);
    Ok(Json(
        reported
            .filter_map(|(window, report)| Some(count(window, report?)))
            .collect(),
    ))
}

fn count(window: Window, report: Report) -> Count {
    let reported_at = Timestamp::from_millisecond(report.time.cast_signed());
    Count {
        window: window.to_string(),
        start: window.start(),
        count: report.count,
        revision: report.revision,
        r#final: report.is_final,
        reported_at: reported_at.ok().map(|time| time.to_string()),
    }
}

/// The windows that start from `from` on and before `to`.
fn windows(asked: &Asked, length: WindowLength, now_s: u64) -> Result<Vec<Window>, String> {
    let seconds = |name: &str, text: &Option<String>| text.as_deref().map(|text| time(name, text)).transpose();
    let to = seconds("to", &asked.to)?.unwrap_or(now_s);
    let from = seconds("from", &asked.from)?.unwrap_or(to.saturating_sub(LAST));
    if from > to {
        return Err("from is after to".to_owned());
    }
    let first = from.next_multiple_of(length.seconds());
    let windows = to.saturating_sub(first).div_ceil(length.seconds());
    if windows > MOST {
        return Err(format!(
            "{windows} windows from {from} to {to}: at most {MOST} may be asked for at once"
        ));
    }
    let starts = (0..windows).map(|n| first + n * length.seconds());
    Ok(starts.filter_map(|start| length.window_starting(start)).collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_795_383_012;

    fn asked(from: Option<&str>, to: Option<&str>) -> Result<Vec<u64>, String> {
        let asked = Asked {
            from: from.map(str::to_owned),
            to: to.map(str::to_owned),
        };
        let length = WindowLength::try_new(60).expect("valid");
        Ok(windows(&asked, length, NOW)?
            .iter()
            .map(|window| window.start())
            .collect())
    }

    #[test]
    fn windows_that_start_in_the_time_asked_for() {
        let hour = asked(None, None).expect("the last hour");
        assert_eq!((hour.len(), hour[0], hour[59]), (60, NOW - 12 - 59 * 60, NOW - 12));
        for (from, to, starts) in [
            ("1795383000", "1795383060", vec![1_795_383_000]),
            ("1795383000", "1795383061", vec![1_795_383_000, 1_795_383_060]),
            ("1795383001", "1795383060", vec![]),
            ("1795383000", "1795383000", vec![]),
            ("2026-11-22T21:30:00Z", "2026-11-22T22:31:00+01:00", vec![1_795_383_000]),
        ] {
            assert_eq!(asked(Some(from), Some(to)), Ok(starts), "{from} {to}");
        }
        assert_eq!(asked(None, Some("60")), Ok(vec![0]));
        assert_eq!(asked(Some("0"), Some("604800")).map(|all| all.len()), Ok(10_080));
    }

    #[test]
    fn what_makes_no_sense_or_is_too_much_is_refused() {
        for (from, to, word) in [
            ("2", "1", "after"),
            ("0", "604801", "10080"),
            ("0", "253402300799", "10080"),
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
    }
}
