//! Windows: the periods of equal length in which ids are counted.
//!
//! A window starts at a multiple of its length since the Unix epoch, UTC, and ends just before the
//! next one starts.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

/// The length of every window, in whole seconds, from one second to one day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WindowLength(NonZeroU32);

/// The error for a text or a number that is not a [`WindowLength`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("window length {0:?} is not a whole number of seconds from 1 to 86400")]
pub struct InvalidWindowLength(String);

impl WindowLength {
    /// The maximum length: a day, because unreported ids are kept for a day.
    pub const MAX_SECONDS: u32 = 86_400;

    /// Creates a length of `seconds`.
    ///
    /// # Errors
    /// If `seconds` is 0 or more than [`Self::MAX_SECONDS`].
    pub fn try_new(seconds: u32) -> Result<Self, InvalidWindowLength> {
        NonZeroU32::new(seconds)
            .filter(|s| s.get() <= Self::MAX_SECONDS)
            .map(Self)
            .ok_or_else(|| InvalidWindowLength(seconds.to_string()))
    }

    /// Returns the length in seconds.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        self.0.get() as u64
    }

    /// Returns the length in ISO 8601: `PT1M`, `PT1H`, `P1D`.
    #[must_use]
    pub fn iso_8601(self) -> String {
        let seconds = self.seconds();
        if seconds == u64::from(Self::MAX_SECONDS) {
            return "P1D".to_owned();
        }
        let parts = [(seconds / 3600, 'H'), (seconds / 60 % 60, 'M'), (seconds % 60, 'S')];
        let parts = parts.iter().filter(|(number, _)| *number > 0);
        let parts: String = parts.map(|(number, unit)| format!("{number}{unit}")).collect();
        format!("PT{parts}")
    }

    /// Returns the window that contains the moment `unix_ms`.
    ///
    /// The moment is in milliseconds since the Unix epoch.
    #[must_use]
    pub const fn window_at_ms(self, unix_ms: u64) -> Window {
        let seconds = unix_ms / 1000;
        Window {
            start: seconds - seconds % self.seconds(),
            length: self,
        }
    }

    /// Returns the window that starts at `start`, in Unix seconds.
    ///
    /// `None` if no window of this length starts there.
    #[must_use]
    pub const fn window_starting(self, start: u64) -> Option<Window> {
        if start.is_multiple_of(self.seconds()) && start <= Window::MAX_START {
            Some(Window { start, length: self })
        } else {
            None
        }
    }
}

impl fmt::Display for WindowLength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for WindowLength {
    type Err = InvalidWindowLength;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidWindowLength(text.to_owned());
        if !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(invalid());
        }
        Self::try_new(text.parse().map_err(|_| invalid())?).map_err(|_| invalid())
    }
}

/// One window: its start and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Window {
    start: u64,
    length: WindowLength,
}

impl Window {
    /// The latest start, 9999-12-30T22:00:00Z: the last second of `jiff::Timestamp`.
    const MAX_START: u64 = 253_402_207_200;

    /// Returns the start of the window, in Unix seconds.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// Returns the end of the window, in Unix seconds.
    ///
    /// The next window starts at this moment.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start + self.length.seconds()
    }

    /// Returns the end of the window, in milliseconds since the Unix epoch.
    #[must_use]
    pub const fn end_ms(self) -> u64 {
        self.end() * 1000
    }

    /// Returns the length of the window.
    #[must_use]
    pub const fn length(self) -> WindowLength {
        self.length
    }

    /// Returns the window of this length that contains the start of this window.
    #[must_use]
    pub const fn within(self, length: WindowLength) -> Self {
        length.window_at_ms(self.start * 1000)
    }

    /// Returns the window after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self {
            start: self.end(),
            length: self.length,
        }
    }

    /// Returns the window before this one; `None` for the first window.
    #[must_use]
    pub const fn previous(self) -> Option<Self> {
        match self.start.checked_sub(self.length.seconds()) {
            Some(start) => Some(Self {
                start,
                length: self.length,
            }),
            None => None,
        }
    }
}

/// Writes the start of the window in RFC 3339: `2026-11-22T21:30:00Z`.
///
/// The time is in UTC, to the second.
impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match i64::try_from(self.start).map(jiff::Timestamp::from_second) {
            Ok(Ok(start)) => write!(f, "{start:.0}"),
            // Outside the range of jiff. Neither a clock nor `window_starting` gives such a start.
            _ => write!(f, "@{}", self.start),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn length(seconds: u32) -> WindowLength {
        WindowLength::try_new(seconds).expect("a valid length")
    }

    #[test]
    fn a_window_is_written_as_its_start_in_rfc_3339() {
        for (seconds, start, text) in [
            (60, 0, "1970-01-01T00:00:00Z"),
            (60, 1_795_383_000, "2026-11-22T21:30:00Z"),
            (1, 1_709_251_199, "2024-02-29T23:59:59Z"),
            (10, Window::MAX_START, "9999-12-30T22:00:00Z"),
        ] {
            let window = length(seconds).window_starting(start).expect("a start");
            assert_eq!(window.to_string(), text);
        }
    }

    #[test]
    fn the_first_and_last_millisecond_of_a_window_belong_to_it() {
        let minute = length(60);
        assert_eq!(minute.window_at_ms(59_999).start(), 0);
        assert_eq!(minute.window_at_ms(60_000).start(), 60);
    }

    #[test]
    fn lengths_are_written_in_iso_8601() {
        for (seconds, text) in [
            (1, "PT1S"),
            (60, "PT1M"),
            (90, "PT1M30S"),
            (3600, "PT1H"),
            (5400, "PT1H30M"),
            (43_200, "PT12H"),
            (86_400, "P1D"),
        ] {
            assert_eq!(length(seconds).iso_8601(), text);
        }
    }

    #[test]
    fn lengths_out_of_range_are_refused() {
        for bad in ["", "0", "-1", "+5", " 5", "5 ", "5.0", "86401", "99999999999", "٥"] {
            let error = bad.parse::<WindowLength>().expect_err(bad);
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
        assert_eq!("86400".parse(), Ok(length(86_400)));
    }

    #[test]
    fn a_start_between_windows_is_refused() {
        assert_eq!(length(60).window_starting(61), None);
        assert_eq!(length(60).window_starting(u64::MAX - u64::MAX % 60), None);
    }

    proptest! {
        #[test]
        fn every_moment_lies_in_exactly_one_window(seconds in 1..=86_400u32, ms in 0..253_402_207_200_000u64) {
            let window = length(seconds).window_at_ms(ms);
            prop_assert!(window.start() * 1000 <= ms && ms < window.end_ms());
            prop_assert_eq!(window.next().previous(), Some(window));
            prop_assert_eq!(length(seconds).window_starting(window.start()), Some(window));
            prop_assert_eq!(length(seconds).window_at_ms(window.end_ms()), window.next());
        }

        #[test]
        fn the_written_form_reads_back_as_the_start(seconds in 1..=86_400u32, ms in 0..253_402_207_200_000u64) {
            let window = length(seconds).window_at_ms(ms);
            let read: jiff::Timestamp = window.to_string().parse().expect("RFC 3339");
            prop_assert_eq!(read.as_second() as u64, window.start());
        }
    }
}
