//! `verve-reporter top`: the live state of Redis, in a terminal.
//!
//! It shows nothing about Kafka, because it is not a reporter.

use std::io::{self, IsTerminal as _};
use std::pin::pin;
use std::sync::Arc;
use std::thread;

use anyhow::Context as _;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Block, Paragraph, Row, Sparkline, SparklineBar, Table};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use verve_protocol::Keys;
use verve_protocol::keys::stats;

use crate::health::Health;
use crate::metrics::Metrics;
use crate::overview::{Overview, Snapshot, WindowSnapshot};
use crate::store::{RedisConfig, Store};
use crate::windows::WindowsConfig;
use crate::words::{self, NONE, number};

/// What a key asks for.
enum Asked {
    Nothing,
    End,
}

/// Shows the live state until `q` is pressed.
///
/// # Errors
/// If standard output is not a terminal, or the terminal fails.
pub async fn run(redis: &RedisConfig, keys: Keys, config: WindowsConfig) -> anyhow::Result<()> {
    anyhow::ensure!(
        io::stdout().is_terminal(),
        "top: expected a terminal as standard output; `verve-reporter counts` prints what was reported"
    );
    let title = format!(
        "Verve: unique ids in windows of {} s, namespace {}, {}",
        config.length,
        keys.namespace(),
        redis.urls
    );
    let (health, metrics) = (Arc::new(Health::new(config.periods.quiet)), Metrics::default());
    let store = Store::new(redis, keys, &health, &metrics)?;
    // It is never the leader, so it counts nothing and forgets nothing.
    let (overview, mut snapshot) = Overview::new(config, store, health, metrics);
    let looking = tokio::spawn(overview.run(CancellationToken::new()));

    let mut asked = keys_pressed();
    let mut terminal = ratatui::try_init().context("top: the terminal")?;
    let shown = async {
        // Listens before the first frame is drawn, so that no signal is missed.
        let mut stopped = pin!(crate::stop_signal());
        loop {
            terminal.draw(|frame| draw(frame, &title, &snapshot.borrow_and_update()))?;
            tokio::select! {
                changed = snapshot.changed() => changed.context("nobody looks any more")?,
                pressed = asked.recv() => if !matches!(pressed, Some(Asked::Nothing)) { break },
                stopped = &mut stopped => { stopped?; break }
            }
        }
        anyhow::Ok(())
    };
    let shown = shown.await;
    ratatui::restore();
    // A read from a Redis that does not answer takes a while.
    looking.abort();
    shown
}

/// Reads keys as long as the process lives, because a read cannot be cancelled.
fn keys_pressed() -> mpsc::Receiver<Asked> {
    let (sender, receiver) = mpsc::channel(1);
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(asked(&event)).is_err() {
                break;
            }
        }
    });
    receiver
}

fn asked(event: &Event) -> Asked {
    let Event::Key(KeyEvent {
        code,
        modifiers,
        kind: KeyEventKind::Press,
        ..
    }) = event
    else {
        // The terminal may have another size: draw it again.
        return Asked::Nothing;
    };
    let is_interrupt = *code == KeyCode::Char('c') && modifiers.contains(KeyModifiers::CONTROL);
    if is_interrupt || matches!(code, KeyCode::Char('q') | KeyCode::Esc) {
        Asked::End
    } else {
        Asked::Nothing
    }
}

fn draw(frame: &mut Frame<'_>, title: &str, snapshot: &Snapshot) {
    let states = words::states(snapshot, "");
    let known: Vec<&WindowSnapshot> = snapshot.windows.iter().filter(|snapshot| snapshot.is_known()).collect();
    let health = u16::try_from(states.len()).unwrap_or(u16::MAX).saturating_add(2);
    let areas = [
        Constraint::Length(1),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Min(4),
        Constraint::Length(health),
        Constraint::Length(1),
    ];
    let [head, cards, chart, windows, health, foot] = Layout::vertical(areas).areas(frame.area());
    frame.render_widget(Line::from(title).bold(), head);
    let [now, last, callbacks] = Layout::horizontal([Constraint::Fill(1); 3]).areas(cards);
    card(frame, now, "Current window", &current(snapshot));
    card(frame, last, "Last reported", &reported(snapshot));
    card(frame, callbacks, "Callbacks", &jobs(snapshot));
    bars(frame, chart, &known);
    table(frame, windows, &known);
    let states: Vec<Line<'_>> = (states.iter())
        .map(|state| {
            let (mark, colour) = if state.is_good {
                ("● ", Color::Green)
            } else {
                ("▲ ", Color::Red)
            };
            Line::from(vec![
                mark.fg(colour),
                state.of.as_str().bold(),
                " ".into(),
                state.text.as_str().into(),
            ])
        })
        .collect();
    frame.render_widget(Paragraph::new(states).block(Block::bordered().title("Health")), health);
    frame.render_widget(Line::from("q ends").dim(), foot);
}

/// Draws a number, and lines about it.
fn card(frame: &mut Frame<'_>, area: Rect, title: &str, lines: &[String]) {
    let mut text = Text::from_iter(lines.iter().map(String::as_str));
    if let Some(first) = text.lines.first_mut() {
        *first = std::mem::take(first).bold();
    }
    frame.render_widget(Paragraph::new(text).block(Block::bordered().title(title)), area);
}

fn current(snapshot: &Snapshot) -> Vec<String> {
    let (Some(current), Some(clock)) = (snapshot.windows.last(), snapshot.clock) else {
        return vec![NONE.to_owned(), "Redis has not answered yet".to_owned()];
    };
    let left = current.window.end().saturating_sub(clock.now_ms() / 1000);
    let mut lines = vec![
        number(current.unique().unwrap_or_default()),
        format!("since {} UTC, {left} s left", words::clock(current.window)),
    ];
    lines.extend(requests(current));
    lines
}

fn reported(snapshot: &Snapshot) -> Vec<String> {
    let reported = snapshot
        .windows
        .iter()
        .rev()
        .find_map(|snapshot| Some((snapshot, snapshot.report?)));
    let Some((last, report)) = reported else {
        return vec![NONE.to_owned(), "Nothing reported in the time shown".to_owned()];
    };
    let mut lines = vec![
        number(report.count),
        format!("{} UTC, revision {}", words::clock(last.window), report.revision),
    ];
    lines.extend(requests(last));
    lines
}

fn requests(snapshot: &WindowSnapshot) -> Vec<String> {
    let failed = snapshot.requests_of(stats::FAILED);
    let mut lines = vec![
        format!("{} requests", number(words::requests(snapshot))),
        format!("{} duplicates", words::duplicates(snapshot)),
    ];
    lines.extend((failed > 0).then(|| format!("{} failed", number(failed))));
    lines
}

fn jobs(snapshot: &Snapshot) -> Vec<String> {
    let jobs = snapshot.jobs;
    vec![
        number(jobs.stream),
        format!("waiting, the oldest for {} s", jobs.oldest_s),
        format!("{} to be tried again", number(jobs.retry)),
        format!("{} dead", number(jobs.dead)),
    ]
}

/// Draws one bar for each window, as many of the newest as fit.
fn bars(frame: &mut Frame<'_>, area: Rect, known: &[&WindowSnapshot]) {
    let most = known
        .iter()
        .filter_map(|snapshot| snapshot.unique())
        .max()
        .unwrap_or_default();
    let block = Block::bordered().title(format!("Unique ids, window by window: {} at the top", number(most)));
    let room = usize::from(block.inner(area).width);
    let bars = known[known.len().saturating_sub(room)..].iter().map(|snapshot| {
        let style = match snapshot.report {
            None => Style::new().dark_gray(),
            Some(report) if report.revision > 0 => Style::new().yellow(),
            Some(_) => Style::new().blue(),
        };
        SparklineBar::from(snapshot.unique()).style(style)
    });
    frame.render_widget(Sparkline::default().data(bars).block(block), area);
}

/// Draws the newest windows first, as many as fit.
fn table(frame: &mut Frame<'_>, area: Rect, known: &[&WindowSnapshot]) {
    let rows = known.iter().rev().map(|snapshot| Row::new(words::row(snapshot)));
    let widths = [20, 14, 9, 14, 11, 10, 16].map(Constraint::Length);
    let table = Table::new(rows, widths).header(Row::new(words::COLUMNS).bold());
    frame.render_widget(table.block(Block::bordered().title("Windows")), area);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use verve_protocol::{Report, WindowLength};

    use super::*;
    use crate::clock::RedisClock;

    /// Returns what a terminal of this size shows.
    fn drawn(snapshot: &Snapshot, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| draw(frame, "Verve", snapshot)).expect("drawn");
        terminal.backend().to_string()
    }

    #[test]
    fn a_terminal_of_any_size_shows_what_is_going_on() {
        let config = WindowLength::try_new(60).expect("valid");
        let now_ms = 1_795_383_012_345;
        let newest = config.window_at_ms(now_ms);
        let report = Report {
            count: 1234,
            requests: 2000,
            duplicates: 766,
            revision: 2,
            ..Report::default()
        };
        let window = |window, ids, report| WindowSnapshot {
            window,
            ids,
            report,
            requests: [0; crate::metrics::OUTCOMES.len()],
        };
        let mut snapshot = Snapshot::default();
        let before = drawn(&snapshot, 100, 40);
        assert!(before.contains("Redis has not answered yet"), "{before}");
        snapshot.clock = Some(RedisClock::read_now(now_ms));
        snapshot.windows = vec![
            window(newest.previous().expect("not 1970"), Some(1234), Some(report)),
            window(newest, Some(77), None),
        ];
        snapshot.leader = Some("0a".to_owned());
        let shown = drawn(&snapshot, 100, 40);
        for text in [
            "77",
            "1,234",
            "revision 2",
            "2,000 requests",
            "38.3 % duplicates",
            "1,234 at the top",
            "held by replica 0a",
            "reported in time",
            "q ends",
        ] {
            assert!(shown.contains(text), "{text}: {shown}");
        }
        // Nothing fits.
        for (width, height) in [(1, 1), (20, 5), (300, 3)] {
            drawn(&snapshot, width, height);
        }
    }

    #[test]
    fn q_escape_and_an_interrupt_end_it() {
        let key = |code, modifiers| Event::Key(KeyEvent::new(code, modifiers));
        let none = KeyModifiers::NONE;
        for event in [
            key(KeyCode::Char('q'), none),
            key(KeyCode::Esc, none),
            key(KeyCode::Char('c'), KeyModifiers::CONTROL),
        ] {
            assert!(matches!(asked(&event), Asked::End), "{event:?}");
        }
        for event in [key(KeyCode::Char('c'), none), Event::Resize(10, 10)] {
            assert!(matches!(asked(&event), Asked::Nothing), "{event:?}");
        }
    }
}
