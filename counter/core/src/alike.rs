//! What is recorded together, of what waits.

/// The most ids recorded together, for requests that wait: Redis' scripts take some thousand arguments.
pub const MOST: usize = 500;
/// Takes what is recorded together out of what waits: all of the place of the first, [`MOST`] at most, in their order. Not only those at the front:
/// who counts in two places by turns would have nothing recorded together.
pub fn take_alike<W, P: PartialEq>(waiting: &mut Vec<W>, place: impl Fn(&W) -> P) -> Vec<W> {
    let Some(first) = waiting.first().map(&place) else {
        return Vec::new();
    };
    let mut room = MOST;
    let alike = waiting.extract_if(.., |waiter| {
        let is_taken = room > 0 && place(waiter) == first;
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
        /// Whatever waits is recorded with all of its own window, in order, all of it, and never too much at once.
        #[test]
        fn who_waits_is_recorded_in_order_with_those_of_the_same_window(numbers in vec(0..3u64, 0..2500)) {
            let mut waiting: Vec<(usize, u64)> = numbers.into_iter().enumerate().collect();
            let all = waiting.clone();
            let mut recorded = Vec::new();
            while let Some((_, oldest)) = waiting.first().copied() {
                let now = take_alike(&mut waiting, |(_, number)| window(*number));
                prop_assert!((1..=MOST).contains(&now.len()));
                prop_assert!(now.iter().all(|(_, number)| *number == oldest));
                prop_assert!(now.is_sorted() && waiting.is_sorted());
                // No fewer than there could be.
                prop_assert!(now.len() == MOST || waiting.iter().all(|(_, number)| *number != oldest));
                recorded.extend(now);
            }
            recorded.sort_unstable();
            prop_assert_eq!(recorded, all);
            prop_assert!(take_alike(&mut waiting, |(_, number)| window(*number)).is_empty());
        }
    }
}
