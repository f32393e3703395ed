//! The lengths of the windows in which a deployment counts.

use std::fmt;
use std::str::FromStr;

use crate::{Window, WindowLength};

/// The lengths in which each id is counted, the shortest first.
///
/// Each is a multiple of the one before. So windows nest: each window is within one window of each
/// longer length. The first length is the main one: callbacks and limits are about its windows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WindowLengths {
    main: WindowLength,
    longer: Vec<WindowLength>,
}

/// The error for a text that is not a list of [`WindowLengths`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not 1 to 4 whole numbers of seconds from 1 to 86400, separated by commas, each a multiple of the one before"
)]
pub struct InvalidWindowLengths(String);

impl WindowLengths {
    /// The maximum number of lengths.
    pub const MOST: usize = 4;

    /// Returns the main length: the shortest.
    #[must_use]
    pub const fn main(&self) -> WindowLength {
        self.main
    }

    /// Returns the lengths after the main one, the shortest first.
    #[must_use]
    pub fn longer(&self) -> &[WindowLength] {
        &self.longer
    }

    /// Returns all lengths, the shortest first.
    pub fn all(&self) -> impl Iterator<Item = WindowLength> + Clone + '_ {
        std::iter::once(self.main).chain(self.longer.iter().copied())
    }

    /// Returns the key of a record of this window, without the name of a counter.
    ///
    /// The key is the start of the window, and the length in ISO 8601 if that is not the main one:
    /// `2026-11-22T21:00:00Z/PT1H`.
    #[must_use]
    pub fn key(&self, window: Window) -> String {
        if window.length() == self.main {
            window.to_string()
        } else {
            format!("{window}/{}", window.length().iso_8601())
        }
    }
}

impl From<WindowLength> for WindowLengths {
    fn from(main: WindowLength) -> Self {
        let longer = Vec::new();
        Self { main, longer }
    }
}

impl FromStr for WindowLengths {
    type Err = InvalidWindowLengths;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lengths: Result<Vec<WindowLength>, _> = text.split(',').map(|length| length.trim().parse()).collect();
        let invalid = || InvalidWindowLengths(text.to_owned());
        let lengths = lengths.map_err(|_| invalid())?;
        let nests = |pair: &[WindowLength]| pair[0] < pair[1] && pair[1].seconds().is_multiple_of(pair[0].seconds());
        match lengths.split_first() {
            Some((main, longer)) if lengths.len() <= Self::MOST && lengths.windows(2).all(nests) => Ok(Self {
                main: *main,
                longer: longer.to_vec(),
            }),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for WindowLengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.main.fmt(f)?;
        self.longer.iter().try_for_each(|length| write!(f, ",{length}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_nest() {
        for (text, shown) in [
            ("60", "60"),
            ("60, 3600", "60,3600"),
            ("60,3600,86400", "60,3600,86400"),
            ("1,5,60,3600", "1,5,60,3600"),
        ] {
            let lengths: WindowLengths = text.parse().expect("valid");
            assert_eq!(lengths.to_string(), shown);
            assert_eq!(lengths.all().count(), lengths.longer().len() + 1);
            assert_eq!(lengths.all().next(), Some(lengths.main()));
        }
        let bad = [
            "",
            ",",
            "60,",
            "60,60",
            "60,90",
            "3600,60",
            "60,3600,86401",
            "1,2,4,8,16",
            "60;3600",
            "x",
        ];
        for bad in bad {
            let error = bad.parse::<WindowLengths>().expect_err(bad);
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn the_keys_of_records_are_pinned() {
        let lengths: WindowLengths = "60,3600,86400".parse().expect("valid");
        let minute = lengths.main().window_at_ms(1_795_383_012_345);
        let keys: Vec<String> = lengths.all().map(|length| lengths.key(minute.within(length))).collect();
        assert_eq!(
            keys,
            [
                "2026-11-22T21:30:00Z",
                "2026-11-22T21:00:00Z/PT1H",
                "2026-11-22T00:00:00Z/P1D"
            ]
        );
        let hours = WindowLengths::from(lengths.longer()[0]);
        assert_eq!(hours.key(minute.within(hours.main())), "2026-11-22T21:00:00Z");
    }
}
