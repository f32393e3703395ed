//! A child process, and its output line by line.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal;
use nix::unistd::{Pid, getpgid};

pub use nix::sys::signal::Signal;

use crate::wait;

/// A function that is called with each line that a process writes.
pub type OnLine = Box<dyn Fn(&str) + Send + Sync>;

/// A running (or ended) child process. Dropping it kills it.
///
/// Threads, not tasks, read its output, so it can outlive the runtime that started it.
pub struct Process {
    name: String,
    pid: Pid,
    child: Mutex<Child>,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Mutex<Vec<thread::JoinHandle<()>>>,
}

impl Process {
    /// Starts `command`. Errors contain `name`.
    ///
    /// # Errors
    /// Fails if the program cannot be started.
    pub fn spawn(name: &str, command: Command) -> Result<Self> {
        Self::spawn_with(name, command, None)
    }

    /// Starts `command` as [`Self::spawn`] does, and passes each line to `on_line`.
    ///
    /// The lines are those of standard output and standard error.
    ///
    /// # Errors
    /// Fails if the program cannot be started.
    pub fn spawn_with(name: &str, mut command: Command, on_line: Option<OnLine>) -> Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let program = command.get_program().to_owned();
        let mut child = command
            .spawn()
            .with_context(|| format!("{name}: cannot start {}", program.display()))?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let on_line: Arc<Option<OnLine>> = Arc::new(on_line);
        let read = |output: Option<Box<dyn Read + Send>>| {
            let (lines, on_line) = (Arc::clone(&lines), Arc::clone(&on_line));
            output.map(|output| thread::spawn(move || read_lines(output, &lines, on_line.as_ref().as_ref())))
        };
        let readers = [
            read(child.stdout.take().map(|o| Box::new(o) as _)),
            read(child.stderr.take().map(|o| Box::new(o) as _)),
        ];
        Ok(Self {
            name: name.to_owned(),
            pid: Pid::from_raw(i32::try_from(child.id()).context("a process id")?),
            child: Mutex::new(child),
            lines,
            readers: Mutex::new(readers.into_iter().flatten().collect()),
        })
    }

    /// Returns its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Returns its output so far: standard output and error, in the order of arrival.
    #[must_use]
    pub fn log(&self) -> String {
        lock(&self.lines).iter().fold(String::new(), |mut log, line| {
            let _ = writeln!(log, "{line}");
            log
        })
    }

    /// Returns the lines it has written so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        lock(&self.lines).clone()
    }

    /// Waits for a line that `wanted` accepts. Lines written before the call count too.
    ///
    /// # Errors
    /// Fails after `timeout`, or if the process has ended without such a line. The error contains
    /// the log.
    pub async fn wait_for_line(&self, timeout: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let mut seen = 0;
        let line = wait::until("a line", timeout, || {
            // Checked before the lines are read, so that the last lines are not missed.
            let ended = self.exit_status().is_some();
            // A copy, because `wanted` may read the log too, which takes the same lock.
            let new = lock(&self.lines)[seen..].to_vec();
            seen += new.len();
            let found = new.into_iter().find(|line| wanted(line));
            let found = match found {
                None if ended => Some(None),
                None => None,
                line => Some(line),
            };
            async { found }
        })
        .await;
        match line {
            Ok(Some(line)) => Ok(line),
            Ok(None) => bail!("{} ended without the awaited line; its log:\n{}", self.name, self.log()),
            Err(error) => bail!("{}: {error}; its log:\n{}", self.name, self.log()),
        }
    }

    /// Waits for a line that contains `text`.
    ///
    /// # Errors
    /// See [`Self::wait_for_line`].
    pub async fn wait_for_text(&self, text: &str, timeout: Duration) -> Result<String> {
        self.wait_for_line(timeout, |line| line.contains(text))
            .await
            .with_context(|| format!("waiting for {text:?}"))
    }

    /// Returns its exit status, if it has ended.
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        let status = lock(&self.child).try_wait().ok().flatten();
        if status.is_some() {
            // Then all that it wrote before its end is in the log.
            for reader in lock(&self.readers).drain(..) {
                let _ = reader.join();
            }
        }
        status
    }

    /// Sends `signal`, if the process still runs.
    ///
    /// # Errors
    /// Fails if the system refuses.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // While the lock is held, nobody else reaps the child: its id cannot belong to another
        // process.
        let mut child = lock(&self.child);
        if child.try_wait()?.is_none() {
            signal::kill(self.pid, signal).with_context(|| format!("{}: {signal}", self.name))?;
        }
        Ok(())
    }

    /// Stops the process with SIGSTOP, and waits until it has stopped.
    ///
    /// The signal alone returns before that. The process continues when it gets SIGCONT.
    ///
    /// # Errors
    /// Fails if the system refuses, or if the process has not stopped within a second.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        for _ in 0..1000 {
            match fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
                // The state follows the name, which is in parentheses.
                Ok(stat) if stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')) => return Ok(()),
                Ok(_) => thread::sleep(Duration::from_millis(1)),
                // There is no /proc outside Linux, so the state is unknown.
                Err(_) => {
                    thread::sleep(Duration::from_millis(100));
                    return Ok(());
                }
            }
        }
        bail!("{} does not stop", self.name)
    }

    /// Waits until the process ends.
    ///
    /// # Errors
    /// Fails after `timeout`. The error contains the log.
    pub async fn wait(&self, timeout: Duration) -> Result<ExitStatus> {
        wait::until("its end", timeout, || async { self.exit_status() })
            .await
            .with_context(|| format!("{}; its log:\n{}", self.name, self.log()))
    }

    /// Sends SIGTERM and waits until the process ends.
    ///
    /// # Errors
    /// See [`Self::wait`].
    pub async fn terminate(&self, timeout: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(timeout).await
    }

    /// Kills the process and waits until it has ended.
    ///
    /// If it leads a process group, its own children are killed too.
    pub fn kill(&self) {
        let mut child = lock(&self.child);
        let leads = matches!(child.try_wait(), Ok(None)) && getpgid(Some(self.pid)) == Ok(self.pid);
        if leads {
            let _ = signal::killpg(self.pid, Signal::SIGKILL);
        }
        let _ = child.kill();
        let _ = child.wait();
        // A child may still hold the port until it has ended.
        for _ in 0..5_000 {
            if !leads || !has_members(self.pid) {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Returns whether a process of this group runs.
///
/// A dead process that is not reaped yet does not count: it holds no port any more.
fn has_members(group: Pid) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut stats = processes.filter_map(|process| fs::read_to_string(process.path().join("stat")).ok());
    stats.any(|stat| {
        // proc(5): the name in parentheses, which may contain spaces; the state, the parent, the
        // group.
        let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
        let mut fields = fields.split_whitespace();
        let state = fields.next();
        fields.nth(1) == Some(&group.to_string()) && !matches!(state, Some("Z" | "X"))
    })
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns the same command with the same environment, run by another program.
///
/// An example of such a program is `taskset`.
#[must_use]
pub fn under(program: &str, arguments: &[&str], command: &Command) -> Command {
    let mut wrapped = Command::new(program);
    wrapped.args(arguments);
    wrapped.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

/// Returns the memory of a process in KB.
///
/// `which` is `VmRSS` for the current value, or `VmHWM` for the highest value so far. See proc(5),
/// `status`.
///
/// # Errors
/// Fails if the process no longer exists.
pub fn memory_kb(pid: u32, which: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mut fields = status.lines().filter_map(|line| line.split_once(':'));
    let value = fields.find(|(name, _)| *name == which).map(|(_, value)| value.trim());
    let kilobytes = value.and_then(|value| value.strip_suffix(" kB"));
    Ok(kilobytes.with_context(|| which.to_owned())?.parse()?)
}

/// Returns the number of threads of a process.
///
/// # Errors
/// Fails if the process no longer exists.
pub fn threads(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/task"))?.count())
}

/// Returns the processor time of a process so far, in seconds.
///
/// It is 0 if the process no longer exists. See proc(5), `stat`.
#[must_use]
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name in parentheses, utime and stime are fields 12 and 13; a tick is 10 ms on
    // Linux.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let ticks: f64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum();
    ticks / 100.0
}

fn read_lines(output: impl Read, lines: &Mutex<Vec<String>>, on_line: Option<&OnLine>) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while matches!(output.read_until(b'\n', &mut line), Ok(1..)) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if let Some(on_line) = on_line {
            on_line(&text);
        }
        lock(lines).push(text);
        line.clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;

    use super::*;

    /// As with `spin up`: its child holds the port.
    #[tokio::test]
    async fn a_leader_that_is_killed_takes_its_children_along() -> Result<()> {
        for _ in 0..20 {
            let mut command = Command::new("sh");
            command.args(["-c", "sleep 100 & echo $!; wait"]).process_group(0);
            let leader = Process::spawn("sh", command)?;
            let child = leader.wait_for_line(Duration::from_secs(10), |_| true).await?;
            leader.kill();
            let state = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            // The child no longer exists, or it is dead and its new parent has not reaped it yet.
            assert!(state.is_empty() || state.contains(") Z "), "{state}");
        }
        Ok(())
    }
}
