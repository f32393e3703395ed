//! The search through all states, and the properties that must hold in them.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use super::requests::Runner;
use super::world::{Move, Outcome, World};

/// Enough steps for any correct end.
const STEPS: usize = 200;

/// The states visited so far, by their hash.
/// Among millions of states, two share a hash in one of a million runs.
#[derive(Default)]
struct VisitedStates(HashSet<u64>);

impl VisitedStates {
    fn is_new(&mut self, world: &World) -> bool {
        self.0
            .insert(BuildHasherDefault::<DefaultHasher>::default().hash_one(world))
    }
}

/// Visits every state that can be reached from `first`.
/// Returns how many there are, or the first problem.
pub fn explore(first: World) -> Result<usize, String> {
    let runner = Runner::new();
    let (mut seen, mut recovered) = (VisitedStates::default(), VisitedStates::default());
    seen.is_new(&first);
    let mut open = vec![first];
    while let Some(world) = open.pop() {
        check_log(&world)?;
        check_end(&world, &mut recovered, &runner)?;
        let moves = world.moves().into_iter();
        open.extend(
            moves
                .filter_map(|chosen| world.after(chosen, &runner))
                .filter(|world| seen.is_new(world)),
        );
    }
    Ok(seen.0.len())
}

/// Checks the order of each window's records.
/// Revision 0 comes first, then each revision with more ids, or with more ids that came too late.
/// The same record may come again.
fn check_log(world: &World) -> Result<(), String> {
    let mut last = BTreeMap::new();
    for record in &world.log {
        let problem = match last.insert(record.window, record) {
            None if record.revision == 0 => continue,
            None => "begins with a correction".to_owned(),
            Some(before) if before == record => continue,
            Some(before)
                if record.revision == before.revision + 1
                    && (record.count > before.count && record.late == 0
                        || record.count == before.count && record.late > before.late) =>
            {
                continue;
            }
            Some(before) => format!(
                "has revision {} = {} after revision {} = {}",
                record.revision, record.count, before.revision, before.count
            ),
        };
        return Err(format!("{} {problem}: {world:#?}", record.window));
    }
    Ok(())
}

/// Checks that a reporter that is started now, alone, reaches a correct end.
/// At this end, every window's last record is right.
fn check_end(world: &World, recovered: &mut VisitedStates, runner: &Runner) -> Result<(), String> {
    let mut end = world.clone();
    end.restart(0);
    end.expire();
    let mut idle = 0;
    for _ in 0..STEPS {
        if !recovered.is_new(&end) {
            // This state has led to a correct end before.
            return Ok(());
        }
        match end.after(Move::Request(0, Outcome::Done), runner) {
            Some(next) => (end, idle) = (next, 0),
            None if idle == 3 => {
                if let Some(swept) = end.after(Move::Sweep(0), runner) {
                    (end, idle) = (swept, 0);
                    continue;
                }
                return check_last(&end).map_err(|problem| format!("{problem}: {end:#?}\nfrom: {world:#?}"));
            }
            None => {
                end.tick();
                idle += 1;
            }
        }
    }
    Err(format!("comes to no end: {end:#?}\nfrom: {world:#?}"))
}

fn check_last(world: &World) -> Result<(), String> {
    check_log(world)?;
    for window in &world.windows {
        let Some(last) = world.log.iter().rfind(|record| record.window == *window) else {
            return Err(format!("{window} is not reported"));
        };
        let report = world.reports.get(window);
        if report
            .is_none_or(|report| !report.is_final || (report.count, report.revision) != (last.count, last.revision))
        {
            return Err(format!("{window} is not final as {last:?}"));
        }
        if last.count + last.late != world.added[window] {
            return Err(format!("{window}: ids are neither counted nor reported as too late"));
        }
        if last.count < world.in_time[window] {
            return Err(format!("{window}: ids that came in time are not counted"));
        }
    }
    let left = world.sets.values().chain(world.closed.values());
    if !world.pending.is_empty() || left.flatten().any(|ids| *ids > 0) {
        return Err("something is left".to_owned());
    }
    Ok(())
}
