//! The scripts that Redis runs, by the component and by the reporter. Each is a file of `protocol/scripts`, in Lua, which says at its top what it does,
//! with which keys and arguments, and what it answers. What is here is sent to Redis: the file without its comments.

/// Whether the line that begins there is a comment.
const fn is_comment(text: &[u8], mut at: usize) -> bool {
    while at < text.len() && text[at] == b' ' {
        at += 1;
    }
    at + 1 < text.len() && text[at] == b'-' && text[at + 1] == b'-'
}

/// The text without its comments, at the beginning of as much room as all of it takes; and how long it is.
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

        /// All of them, each with its name.
        #[cfg(test)]
        const ALL: &[(&str, &str)] = &[$((stringify!($name), $name)),*];
    };
}

scripts! {
    /// Has a set of ids expire.
    KEEP: "keep.lua", "keep_ids.lua";
    /// Adds ids to a set as far as there is room, and answers for each what came of it.
    ADD_WITHIN: "keep.lua", "add_within.lua";
    /// Adds a callback job, and answers 1, or 0 if its endpoint has had enough of them in its window.
    ADD_JOB_WITHIN: "add_job_within.lua";
    /// Registers that a named counter is in use now, unless there may be no more of them.
    REGISTER_COUNTER: "register_counter.lua";
    /// Adds ids to sets, and answers for each whether it was there before, or that its set is elsewhere.
    ADD_TOGETHER: "add_together.lua";
    /// Runs a batch of commands unless it has run already, and if there is room where it has callback jobs.
    RUN_ONCE: "run_once.lua";
    /// Records a request in one trip, and answers what came of it.
    RECORD: "keep.lua", "record.lua";
    /// Takes the names of counters that nobody has added to for long off the list, and answers them.
    FORGET_COUNTERS: "forget_counters.lua";
    /// Takes due jobs of the sorted set, and moves them to when they are free again.
    TAKE_WAITING: "take_waiting.lua";
    /// Removes consumers that have been idle for some time.
    REMOVE_CONSUMERS: "remove_consumers.lua";
    /// Moves a job from where it is.
    SETTLE: "settle.lua";
    /// Puts jobs back into the stream of new ones, where they have all their attempts before them.
    RETRY_DEAD: "retry_dead.lua";
    /// Writes down what is about to be published.
    PREPARE: "prepare.lua";
    /// Records reports, and queues fixed callbacks.
    RECORD_REPORTS: "record_reports.lua";
    /// Makes windows final, and writes down that what they were counted by is to be removed.
    FINISH: "finish.lua";
    /// Takes back that windows are final, and that what they were counted by is to be removed.
    REOPEN: "reopen.lua";
    /// Forgets that closed sets are to be removed.
    REMOVED: "removed.lua";
    /// Notes which windows have a report, from what is there.
    NOTE_REPORTS: "note_reports.lua";
    /// Notes how far the reporter is.
    NOTE_PROGRESS: "note_progress.lua";
    /// Notes where the first reporter of all began, unless one has, and answers where that was.
    NOTE_BEGIN: "note_begin.lua";
    /// Gets the lease unless somebody has it, and answers whether it did.
    ACQUIRE_LEASE: "acquire_lease.lua";
    /// Renews the lease, if it is still held by the same.
    RENEW_LEASE: "renew_lease.lua";
    /// Gives the lease up, if it is still held by the same.
    RELEASE_LEASE: "release_lease.lua";
    /// Forgets that windows had ids, unless that was noted again since.
    FORGET_WINDOWS: "forget_windows.lua";
    /// Notes that ids of windows are about to be put aside.
    NOTE_LATE: "note_late.lua";
    /// Closes a set of a window, and answers how many ids are in it.
    CLOSE: "close.lua";
    /// Removes the ids of a set of a closed window.
    REMOVE_CLOSED: "remove_closed.lua";
    /// Puts ids aside that came after their window was final, and answers how many.
    PUT_ASIDE: "put_aside.lua";
    /// The time.
    TIME: "time.lua";
    /// Tries commands, and answers those that are refused.
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
