//! What is recorded together, and what comes of each part of it; what is in the spool.

use std::collections::{BTreeMap, BTreeSet};
use std::vec;

use verve_protocol::{CounterName, Id, Partition, Partitions};

use crate::answer::{Answer, Outcome};

/// The most ids recorded together, for requests that wait: Redis' scripts take some thousand arguments.
pub const MOST: usize = 500;
/// From how many ids on no more spooled rows are added to those brought to Redis together.
pub const MOST_SPOOLED: usize = 1000;

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

/// The ids of each partition, in their order.
#[must_use]
pub fn by_partition(ids: &[Id], partitions: Partitions) -> BTreeMap<Partition, Vec<Id>> {
    let mut sets: BTreeMap<Partition, Vec<Id>> = BTreeMap::new();
    for id in ids {
        sets.entry(id.partition(partitions)).or_default().push(*id);
    }
    sets
}

/// What came of each id, by what came of those of each partition, as [`by_partition`] has put them. `unavailable` of one of which nothing
/// is said.
pub fn in_order<E: Clone>(
    ids: &[Id],
    partitions: Partitions,
    of_partitions: BTreeMap<Partition, Result<Vec<Answer>, E>>,
) -> Vec<Result<Answer, E>> {
    let of_partitions = of_partitions.into_iter();
    let mut of_partitions: BTreeMap<Partition, Result<vec::IntoIter<Answer>, E>> = of_partitions
        .map(|(partition, answers)| (partition, answers.map(Vec::into_iter)))
        .collect();
    let answers = ids
        .iter()
        .map(|id| match of_partitions.get_mut(&id.partition(partitions)) {
            Some(Ok(answers)) => Ok(answers.next().unwrap_or(Answer::Unavailable)),
            Some(Err(error)) => Err(error.clone()),
            None => Ok(Answer::Unavailable),
        });
    answers.collect()
}

/// Ids of one window, each once, though several requests may have brought it.
#[derive(Debug)]
pub struct Distinct {
    members: BTreeSet<i64>,
    requests: Vec<i64>,
}

impl Distinct {
    /// The distinct ones of these.
    #[must_use]
    pub fn of(ids: &[Id]) -> Self {
        Self {
            members: ids.iter().map(|id| id.0).collect(),
            requests: ids.iter().map(|id| id.0).collect(),
        }
    }

    /// The members of the window's set, in the order of their numbers.
    #[must_use]
    pub fn members(&self) -> Vec<String> {
        self.members.iter().map(ToString::to_string).collect()
    }

    /// The answer to each request, by what came of each member. The first that brought a new id is `new`, and all others are
    /// duplicates. None if there is not one for each member.
    #[must_use]
    pub fn answers(&self, of_members: &[Answer]) -> Option<Vec<Answer>> {
        if of_members.len() != self.members.len() {
            return None;
        }
        let mut of_members: BTreeMap<i64, Answer> =
            self.members.iter().copied().zip(of_members.iter().copied()).collect();
        let answers = self.requests.iter().filter_map(|id| {
            let next = of_members.get_mut(id)?;
            let answer = *next;
            if answer == Answer::Recorded(Outcome::New) {
                *next = Answer::Recorded(Outcome::Duplicate);
            }
            Some(answer)
        });
        Some(answers.collect())
    }
}

/// Spooled ids of one set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpooledIds {
    /// The rows that they are in, each a JSON array of all that is in it.
    pub rows: Vec<String>,
    /// The ids.
    pub ids: Vec<Id>,
}

impl SpooledIds {
    /// Of rows of the spool, each with its ids, those that are brought to Redis together: the first, until there are
    /// [`MOST_SPOOLED`] ids.
    pub fn leading(rows: impl IntoIterator<Item = (String, Vec<Id>)>) -> Self {
        let mut leading = Self::default();
        for (row, ids) in rows {
            leading.rows.push(row);
            leading.ids.extend(ids);
            if leading.ids.len() >= MOST_SPOOLED {
                break;
            }
        }
        leading
    }
}

/// Commands that run together, once.
#[derive(Debug)]
pub struct Batch {
    /// Its name, unlike that of any other. Of a named counter's batch it begins with that counter's name and a `/`.
    pub name: String,
    /// Each a JSON array of the command and its arguments.
    pub commands: Vec<String>,
}

/// The command, as in a [`Batch`], that adds a callback job begins so.
pub const ADDS_A_JOB: &str = r#"["XADD""#;

impl Batch {
    /// The named counter whose keys it is about, if it is one's: they are where a cluster has that counter's keys.
    #[must_use]
    pub fn counter(&self) -> Option<CounterName> {
        self.name.split_once('/')?.0.parse().ok()
    }

    /// Whether it may add callback jobs.
    #[must_use]
    pub fn has_jobs(&self) -> bool {
        self.commands.iter().any(|command| command.starts_with(ADDS_A_JOB))
    }
}

/// What is in the spool.
#[derive(Debug, Default)]
pub struct Contents {
    /// Whether there are ids or commands.
    pub any: bool,
    /// Until when what is the case: see `tell` of the spool.
    pub state: Vec<(String, u64)>,
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use verve_protocol::{Window, WindowLength};

    use super::*;
    use crate::answer::Limit;

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

        /// Each id is in its own partition's set, and gets its own answer, or its set's error.
        #[test]
        fn answers_of_partitions_come_in_the_order_of_ids(
            numbers in vec(-50..50i64, 0..40), partitions in 1..9u16, failing in 0..9u16,
        ) {
            let ids: Vec<Id> = numbers.into_iter().map(Id).collect();
            let partitions = Partitions::try_new(partitions).expect("valid");
            let answer = |id: &Id| Answer::Recorded(if id.0 < 0 { Outcome::New } else { Outcome::Duplicate });
            let sets = by_partition(&ids, partitions);
            prop_assert_eq!(sets.values().map(Vec::len).sum::<usize>(), ids.len());
            let of_partitions = sets.into_iter().map(|(partition, ids)| {
                let answers: Vec<Answer> = ids.iter().map(answer).collect();
                (partition, if partition.number() == failing { Err(failing) } else { Ok(answers) })
            });
            let expected: Vec<Result<Answer, u16>> = ids
                .iter()
                .map(|id| if id.partition(partitions).number() == failing { Err(failing) } else { Ok(answer(id)) })
                .collect();
            prop_assert_eq!(in_order(&ids, partitions, of_partitions.collect()), expected);
        }

        /// However requests that bring the same ids come together, each new id is `new` once, for who brought it first, as if
        /// they had come one after the other.
        #[test]
        fn each_new_id_is_new_once(ids in vec(-5..5i64, 1..60), known in vec(-5..5i64, 0..9)) {
            let known: BTreeSet<i64> = known.into_iter().collect();
            let ids: Vec<Id> = ids.into_iter().map(Id).collect();
            let distinct = Distinct::of(&ids);
            let members = distinct.members();
            let parsed = members.iter().map(|member| member.parse::<i64>().expect("a number"));
            let beyond = Answer::Limited(Limit::Window);
            let of_members: Vec<Answer> = parsed
                .map(|member| match (known.contains(&member), member) {
                    (true, _) => Answer::Recorded(Outcome::Duplicate),
                    (false, 3..) => beyond,
                    (false, _) => Answer::Recorded(Outcome::New),
                })
                .collect();
            let mut set = known;
            let one_by_one: Vec<Answer> = ids
                .iter()
                .map(|id| match (set.contains(&id.0), id.0) {
                    (false, 3..) => beyond,
                    _ if set.insert(id.0) => Answer::Recorded(Outcome::New),
                    _ => Answer::Recorded(Outcome::Duplicate),
                })
                .collect();
            prop_assert_eq!(distinct.answers(&of_members), Some(one_by_one));
            // What was said of other members tells nothing.
            prop_assert_eq!(distinct.answers(&of_members[1..]), None);
            prop_assert_eq!(distinct.answers(&[&of_members[..], &[beyond]].concat()), None);
        }

        /// Each row is brought once, with all its ids, in the spool's order, and neither too much nor needlessly little at once.
        #[test]
        fn spooled_rows_are_brought_once_and_in_order(sizes in vec(1..=MOST, 0..40)) {
            let rows = sizes.iter().enumerate().map(|(number, size)| (number.to_string(), vec![Id(7); *size]));
            let rows: Vec<(String, Vec<Id>)> = rows.collect();
            let mut unread = rows.as_slice();
            while !unread.is_empty() {
                let together = SpooledIds::leading(unread.to_vec());
                let (read, later) = unread.split_at(together.rows.len());
                prop_assert!(read.iter().map(|(row, _)| row).eq(&together.rows));
                prop_assert_eq!(together.ids.len(), read.iter().map(|(_, ids)| ids.len()).sum::<usize>());
                prop_assert!(together.ids.len() < MOST_SPOOLED + MOST);
                prop_assert!(later.is_empty() || together.ids.len() >= MOST_SPOOLED);
                unread = later;
            }
            prop_assert_eq!(SpooledIds::leading([]), SpooledIds::default());
        }
    }
}
