//! The scripts that Redis runs for the component and for the reporter.
//!
//! Each script is a Lua file in `protocol/scripts`. The comment at its top describes what it does,
//! its keys and arguments, and what it returns. The constants here are sent to Redis: they contain
//! the file without its comments.

/// Returns whether the line that begins at `at` is a comment.
const fn is_comment(text: &[u8], mut at: usize) -> bool {
    while at < text.len() && text[at] == b' ' {
        at += 1;
    }
    at + 1 < text.len() && text[at] == b'-' && text[at + 1] == b'-'
}

/// Returns the text without its comments, and the length of the result.
///
/// The result is at the beginning of the array, which has room for the whole text.
const fn code<const N: usize>(text: &str) -> ([u8; N], usize) {
    let text = text.as_bytes();
    let (mut code, mut length, mut at) = ([0; N], 0, 0);
    while at < text.len() {
        let keep = !is_comment(text, at);
        loop {
            if keep {
                code[length] = text[at];
                length += 1;
            }
            at += 1;
            if at == text.len() || text[at - 1] == b'\n' {
                break;
            }
        }
    }
    (code, length)
}

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident: $($file:literal),+;)*) => {
        $(
            $(#[$doc])*
            pub const $name: &str = {
                const TEXT: &str = concat!($(include_str!(concat!("../scripts/", $file))),+);
                const CODE: ([u8; TEXT.len()], usize) = code(TEXT);
                match std::str::from_utf8(CODE.0.split_at(CODE.1).0) {
                    Ok(code) => code,
                    Err(_) => panic!("a script is text"),
                }
            };
        )*

        /// All scripts with their names.
        #[cfg(test)]
        const ALL: &[(&str, &str)] = &[$((stringify!($name), $name)),*];
    };
}

scripts! {
    /// Sets the expiry of a set of ids.
    KEEP: "keep.lua", "keep_ids.lua";
    /// Adds ids to a set as long as there is room, and returns the outcome of each.
    ADD_WITHIN: "keep.lua", "add_within.lua";
    /// Adds a callback job, unless its endpoint has reached its limit in the window.
    ///
    /// Returns 1 if the job is added, or else 0.
    ADD_JOB_WITHIN: "add_job_within.lua";
    /// Registers that a named counter is in use now.
    ///
    /// It does not register a new one if there are too many.
    REGISTER_COUNTER: "register_counter.lua";
    /// Adds ids to sets, and returns for each id whether it was already there.
    ///
    /// If the set of an id is elsewhere, the answer reports it.
    ADD_TOGETHER: "add_together.lua";
    /// Runs a batch of commands once, if there is room for its callback jobs.
    RUN_ONCE: "run_once.lua";
    /// Records a request in one round trip, and returns its outcome.
    RECORD: "keep.lua", "record.lua";
    /// Removes the names of long unused counters from the list, and returns them.
    FORGET_COUNTERS: "forget_counters.lua";
    /// Removes a named counter from those that a reporter has to look at.
    RETIRE_COUNTER: "retire_counter.lua";
    /// Takes the due jobs of the retry set, and moves them to when they are free again.
    TAKE_WAITING: "take_waiting.lua";
    /// Removes consumers that have been idle for some time.
    REMOVE_CONSUMERS: "remove_consumers.lua";
    /// Moves a job away from where it is, by the verdict on it.
    SETTLE: "settle.lua";
    /// Moves dead letters back to the stream of new jobs, with all their attempts left.
    RETRY_DEAD: "retry_dead.lua";
    /// Stores what is about to be published.
    PREPARE: "prepare.lua";
    /// Records reports, and queues fixed callbacks.
    RECORD_REPORTS: "record_reports.lua";
    /// Makes windows final, and stores that their closed sets are to be removed.
    FINISH: "finish.lua";
    /// Reverts that windows are final, and that their closed sets are to be removed.
    REOPEN: "reopen.lua";
    /// Removes the note that closed sets are to be removed.
    REMOVED: "removed.lua";
    /// Removes reports, and notes before which window there are none.
    TRIM_REPORTS: "trim_reports.lua";
    /// Notes which windows have a report, from the reports themselves.
    NOTE_REPORTS: "note_reports.lua";
    /// Notes the progress of the reporter.
    NOTE_PROGRESS: "note_progress.lua";
    /// Notes the window with which the first reporter began, unless there is a note.
    ///
    /// Returns the start of that window.
    NOTE_BEGIN: "note_begin.lua";
    /// Acquires the lease if nobody holds it, and returns whether it did.
    ACQUIRE_LEASE: "acquire_lease.lua";
    /// Renews the lease, if the same holder still has it.
    RENEW_LEASE: "renew_lease.lua";
    /// Releases the lease, if the same holder still has it.
    RELEASE_LEASE: "release_lease.lua";
    /// Removes windows from the index, unless their entries were written again since.
    FORGET_WINDOWS: "forget_windows.lua";
    /// Notes that ids of windows are about to be kept apart as late ids.
    NOTE_LATE: "note_late.lua";
    /// Closes a set of a window, and returns the number of its ids.
    CLOSE: "close.lua";
    /// Removes the ids of a set of a closed window.
    REMOVE_CLOSED: "remove_closed.lua";
    /// Moves ids that arrived after their window was final to the late ids.
    ///
    /// Returns how many late ids this adds.
    PUT_ASIDE: "put_aside.lua";
    /// Returns the time.
    TIME: "time.lua";
    /// Tries commands, and returns those that Redis refuses.
    TRY_COMMANDS: "try_commands.lua";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_not_sent() {
        assert_eq!(TIME, "return redis.call('TIME')\n");
        for (name, code) in ALL {
            let comment = code.lines().find(|line| line.trim_start().starts_with("--"));
            assert_eq!(comment, None, "{name}");
            assert!(code.contains("redis.") && code.ends_with('\n'), "{name}: {code}");
        }
    }
}
