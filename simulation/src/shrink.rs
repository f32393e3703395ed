//! Makes a plan with a problem smaller, as long as there still is a problem.

use crate::plan::Plan;
use crate::run::run;

/// The maximum number of runs to shrink one plan.
const MOST_RUNS: usize = 400;

/// Returns a plan with fewer faults and requests that also has a problem.
#[must_use]
pub fn shrink(plan: &Plan) -> Plan {
    let mut runs = 0;
    let mut is_wrong = |plan: &Plan| {
        runs += 1;
        runs <= MOST_RUNS && !run(plan, false, None).wrong.is_empty()
    };
    let mut plan = plan.clone();
    let faults = without(&plan.faults, |faults| {
        is_wrong(&Plan {
            faults: faults.to_vec(),
            ..plan.clone()
        })
    });
    plan.faults = faults;
    let steady = Plan {
        drifts_ppm: Vec::new(),
        ..plan.clone()
    };
    if is_wrong(&steady) {
        plan = steady;
    }
    let requests = without(&plan.requests, |requests| {
        is_wrong(&Plan {
            requests: requests.to_vec(),
            ..plan.clone()
        })
    });
    plan.requests = requests;
    plan
}

/// Removes as many elements as possible.
///
/// It tries halves first, then smaller and smaller parts, down to single elements.
fn without<T: Clone>(all: &[T], mut is_wrong: impl FnMut(&[T]) -> bool) -> Vec<T> {
    let mut kept = all.to_vec();
    let mut part = kept.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        while at < kept.len() {
            let end = (at + part).min(kept.len());
            let rest = [&kept[..at], &kept[end..]].concat();
            if is_wrong(&rest) {
                kept = rest;
            } else {
                at = end;
            }
        }
        if part == 1 {
            return kept;
        }
        part = part.div_ceil(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relevant_lines_remain() {
        let all: Vec<u32> = (0..100).collect();
        let left = without(&all, |some| some.contains(&17) && some.contains(&63));
        assert_eq!(left, [17, 63]);
        assert_eq!(without(&[1], |_| true), [0; 0]);
    }
}
