//! The sets of ids, one for each partition of a window.
//!
//! This module decides which id goes into which set, and which answer each id gets.

use std::collections::{BTreeMap, BTreeSet};
use std::vec;

use verve_protocol::{Id, Partition, Partitions};

use crate::answer::{Answer, Outcome};

/// Returns the ids of each partition, in their order.
#[must_use]
pub fn by_partition(ids: &[Id], partitions: Partitions) -> BTreeMap<Partition, Vec<Id>> {
    let mut sets: BTreeMap<Partition, Vec<Id>> = BTreeMap::new();
    for id in ids {
        sets.entry(id.partition(partitions)).or_default().push(*id);
    }
    sets
}

/// Returns the answer of each id, from the answers of each partition.
///
/// `of_partitions` has the answers in the order of [`by_partition`]. An id without an answer has
/// the answer `none`.
pub fn in_order<T: Clone, E: Clone>(
    ids: &[Id],
    partitions: Partitions,
    of_partitions: BTreeMap<Partition, Result<Vec<T>, E>>,
    none: &T,
) -> Vec<Result<T, E>> {
    let of_partitions = of_partitions.into_iter();
    let mut of_partitions: BTreeMap<Partition, Result<vec::IntoIter<T>, E>> = of_partitions
        .map(|(partition, answers)| (partition, answers.map(Vec::into_iter)))
        .collect();
    let answers = ids
        .iter()
        .map(|id| match of_partitions.get_mut(&id.partition(partitions)) {
            Some(Ok(answers)) => Ok(answers.next().unwrap_or_else(|| none.clone())),
            Some(Err(error)) => Err(error.clone()),
            None => Ok(none.clone()),
        });
    answers.collect()
}

/// Distinct ids of one window. Several requests may have sent the same id.
#[derive(Debug)]
pub struct Distinct {
    members: BTreeSet<i64>,
    requests: Vec<i64>,
}

impl Distinct {
    /// Returns the distinct ids of these.
    #[must_use]
    pub fn of(ids: &[Id]) -> Self {
        Self {
            members: ids.iter().map(|id| id.0).collect(),
            requests: ids.iter().map(|id| id.0).collect(),
        }
    }

    /// Returns the members of the window's set, in numerical order.
    #[must_use]
    pub fn members(&self) -> Vec<String> {
        self.members.iter().map(ToString::to_string).collect()
    }

    /// Returns the answer of each request, from the answers of the members.
    ///
    /// The first request with a new id is `new`, and all others are duplicates. Returns `None` if
    /// the number of answers is not the number of members.
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
            if answer == Ok(Outcome::New) {
                *next = Ok(Outcome::Duplicate);
            }
            Some(answer)
        });
        Some(answers.collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::answer::{Limit, NotCounted};

    proptest! {
        /// Each id is in its partition's set, and gets its own answer or its set's error.
        #[test]
        fn answers_of_partitions_come_in_the_order_of_ids(
            numbers in vec(-50..50i64, 0..40), partitions in 1..9u16, failing in 0..9u16,
        ) {
            let ids: Vec<Id> = numbers.into_iter().map(Id).collect();
            let partitions = Partitions::try_new(partitions).expect("valid");
            let answer = |id: &Id| -> Answer { Ok(if id.0 < 0 { Outcome::New } else { Outcome::Duplicate }) };
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
            let none = Err(NotCounted::Unavailable);
            prop_assert_eq!(in_order(&ids, partitions, of_partitions.collect(), &none), expected);
        }

        /// Each new id is `new` once, for the first request that sent it.
        ///
        /// The answers are the same as if the requests had come one after the other.
        #[test]
        fn each_new_id_is_new_once(ids in vec(-5..5i64, 1..60), known in vec(-5..5i64, 0..9)) {
            let known: BTreeSet<i64> = known.into_iter().collect();
            let ids: Vec<Id> = ids.into_iter().map(Id).collect();
            let distinct = Distinct::of(&ids);
            let members = distinct.members();
            let parsed = members.iter().map(|member| member.parse::<i64>().expect("a number"));
            let beyond: Answer = Err(NotCounted::Limited(Limit::Window));
            let of_members: Vec<Answer> = parsed
                .map(|member| match (known.contains(&member), member) {
                    (true, _) => Ok(Outcome::Duplicate),
                    (false, 3..) => beyond,
                    (false, _) => Ok(Outcome::New),
                })
                .collect();
            let mut set = known;
            let one_by_one: Vec<Answer> = ids
                .iter()
                .map(|id| match (set.contains(&id.0), id.0) {
                    (false, 3..) => beyond,
                    _ if set.insert(id.0) => Ok(Outcome::New),
                    _ => Ok(Outcome::Duplicate),
                })
                .collect();
            prop_assert_eq!(distinct.answers(&of_members), Some(one_by_one));
            // Answers that do not match the members are not used.
            prop_assert_eq!(distinct.answers(&of_members[1..]), None);
            prop_assert_eq!(distinct.answers(&[&of_members[..], &[beyond]].concat()), None);
        }
    }
}
