//! Runs the commands other than reporting, such as `dead` and `counts`.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use verve_protocol::Keys;

use crate::health::Health;
use crate::metrics::Metrics;
use crate::periods::Periods;
use crate::store::{RedisConfig, Store};

/// Runs a command on this Redis, [to its end](to_its_end).
pub fn run(
    redis: &RedisConfig,
    keys: Keys,
    command: impl AsyncFnOnce(Store) -> anyhow::Result<Vec<String>>,
) -> ExitCode {
    to_its_end(async {
        // This health is not read: a command returns its failures.
        let store = Store::new(
            redis,
            keys,
            &Arc::new(Health::new(Periods::default().quiet)),
            &Metrics::default(),
        )?;
        command(store).await
    })
}

/// Runs a command to its end.
///
/// The command returns its problems, which are written to standard error, one per line.
pub fn to_its_end(run: impl Future<Output = anyhow::Result<Vec<String>>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let problems = match runtime
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(run))
    {
        Ok(problems) => problems,
        Err(error) => vec![format!("{error:#}")],
    };
    for problem in &problems {
        eprintln!("verve-reporter: {problem}");
    }
    if problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Writes to standard output.
///
/// # Errors
/// If the write fails. A reader that has closed the pipe, such as `head`, is not an error.
pub fn print(text: &str) -> io::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Writes to standard output, and returns the exit code.
pub fn print_all(text: &str) -> ExitCode {
    match print(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("verve-reporter: {error}");
            ExitCode::FAILURE
        }
    }
}
