//! The selection of waiting entries that are recorded together.

/// The maximum number of ids that are recorded together, for requests that wait.
///
/// Redis' scripts accept a few thousand arguments.
pub const MOST: usize = 500;
/// Removes the entries that are recorded together from those that wait.
///
/// These are the entries of the first one's counter window, in their order, at most [`MOST`]. They
/// need not be at the front: otherwise interleaved entries of two counter windows would each be
/// recorded alone.
pub fn take_alike<W, P: PartialEq>(waiting: &mut Vec<W>, counter_window: impl Fn(&W) -> P) -> Vec<W> {
    let Some(first) = waiting.first().map(&counter_window) else {
        return Vec::new();
    };
    let mut room = MOST;
    let alike = waiting.extract_if(.., |waiter| {
        let is_taken = room > 0 && counter_window(waiter) == first;
        room -= usize::from(is_taken);
        is_taken
    });
    alike.collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use verve_protocol::{Window, WindowLength};

    use super::*;

    fn window(number: u64) -> Window {
        let length = WindowLength::try_new(60).expect("valid");
        length.window_at_ms(number * 60_000)
    }

    proptest! {
        /// Entries are recorded with those of their own window, in order.
        ///
        /// All of them are recorded, and never too many together.
        #[test]
        fn waiting_ids_are_recorded_in_order_with_those_of_the_same_window(numbers in vec(0..3u64, 0..2500)) {
            let mut waiting: Vec<(usize, u64)> = numbers.into_iter().enumerate().collect();
            let all = waiting.clone();
            let mut recorded = Vec::new();
            while let Some((_, oldest)) = waiting.first().copied() {
                let now = take_alike(&mut waiting, |(_, number)| window(*number));
                prop_assert!((1..=MOST).contains(&now.len()));
                prop_assert!(now.iter().all(|(_, number)| *number == oldest));
                prop_assert!(now.is_sorted() && waiting.is_sorted());
                // As many as possible.
                prop_assert!(now.len() == MOST || waiting.iter().all(|(_, number)| *number != oldest));
                recorded.extend(now);
            }
            recorded.sort_unstable();
            prop_assert_eq!(recorded, all);
            prop_assert!(take_alike(&mut waiting, |(_, number)| window(*number)).is_empty());
        }
    }
}
