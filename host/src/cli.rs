//! The command line of `verve-host`.
//!
//! The flags and their defaults are those of `spin up`, so that one program can replace the other.
//! One default differs: instances are reused for longer, because this host runs one component that
//! is known to support it.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use clap_markdown::{MarkdownOptions, help_markdown_command_custom};

use crate::EX_USAGE;

/// The time limit of a health check for the connection, and again for the answer.
const HEALTH_WITHIN: Duration = Duration::from_secs(2);

/// The text at the end of `--help`.
const AFTER_HELP: &str = "\
Examples:
  verve-host --from spin.toml --listen 0.0.0.0:3000 --state-dir /var/lib/verve
  SPIN_VARIABLE_REDIS_URLS=redis://10.0.0.5:6379 verve-host
  verve-host --variable window_seconds=10 --variable log=all

Exit codes:
  0   stopped by a signal
  1   something failed, or requests were still running when the time to stop was over
  64  the command line, the environment or the manifest is wrong";

/// Runs Verve's component on a machine without Spin
#[derive(Parser)]
#[command(name = "verve-host", args_conflicts_with_subcommands = true, after_help = AFTER_HELP)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    /// The application's manifest, or a folder with a `spin.toml`
    #[arg(short = 'f', long, value_name = "PATH", default_value = "spin.toml")]
    pub from: PathBuf,

    /// Address to serve HTTP on
    ///
    /// `127.0.0.1:3000`, `localhost:3000` and `:3000` are for this machine only, `0.0.0.0:3000` is
    /// for all machines. Port 0 selects a free port.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:3000", value_parser = socket_address)]
    pub listen: SocketAddr,

    /// Sets a variable of the manifest; repeat the flag for each variable
    ///
    /// The flag takes precedence over `SPIN_VARIABLE_NAME` in the environment.
    // A value may be secret and must never be shown, so `Values` parses it later, instead of clap.
    #[arg(long = "variable", value_name = "NAME=VALUE")]
    pub variables: Vec<String>,

    /// Folder of the SQLite database [default: .spin beside the manifest]
    ///
    /// The database holds the data that is not in Redis yet.
    #[arg(long, value_name = "FOLDER")]
    pub state_dir: Option<PathBuf>,

    #[command(flatten)]
    pub reuse: Reuse,

    /// How long the host continues to serve after SIGTERM
    ///
    /// Load balancers can stop sending requests during this time. Meanwhile the host's health check
    /// answers 503, and each response closes its connection. SIGINT stops without this delay.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub stop_grace: Duration,

    /// Time limit for an idle connection, and for the head of a request
    ///
    /// It limits how long a keep-alive connection may be idle, and how long a client may take to
    /// send the head of a request. It has to be longer than load balancers keep idle connections,
    /// or they send requests on a connection that is being closed.
    #[arg(long, value_name = "DURATION", default_value = "75s", value_parser = duration)]
    pub keep_alive_timeout: Duration,

    /// Maximum number of open connections
    ///
    /// Further connections wait until one ends. Each connection needs an open file, and memory:
    /// 10 KB when idle.
    #[arg(long, value_name = "N", default_value = "20000")]
    pub max_connections: NonZeroUsize,

    /// Maximum size of the head of a request in bytes, at least 8192
    ///
    /// A longer head is answered 431.
    #[arg(long, value_name = "BYTES", default_value = "32768", value_parser = head_bytes)]
    pub max_head_bytes: usize,

    /// Log format of the host and the component
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// Leaves Nagle's algorithm enabled, to measure its cost
    ///
    /// With the algorithm, a response in two writes waits for a delayed ACK.
    #[arg(long)]
    pub no_tcp_nodelay: bool,
}

/// The format of the log.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// A line of plain text for each event
    Text,
    /// A JSON object on each line
    Json,
}

/// The commands besides running the component.
#[derive(Subcommand)]
enum Command {
    /// Ask a host on this machine whether it can serve
    ///
    /// This is for a container's health check. The exit code is 0 if the host can serve, else 1.
    Healthcheck {
        /// Address that the host listens on
        #[arg(value_name = "ADDRESS:PORT", default_value = "127.0.0.1:3000", value_parser = socket_address)]
        address: SocketAddr,
    },
    #[command(flatten)]
    Print(Print),
}

/// The commands that only print a text.
#[derive(Subcommand)]
enum Print {
    /// Print a script that lets a shell complete these flags
    Completions { shell: Shell },
    /// Print the manual page
    Man,
    /// Print all flags in Markdown
    #[command(hide = true)]
    Markdown,
}

impl Print {
    fn text(self, mut command: clap::Command) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        match self {
            Self::Completions { shell } => clap_complete::generate(shell, &mut command, "verve-host", &mut text),
            Self::Man => clap_mangen::Man::new(command).render(&mut text)?,
            Self::Markdown => {
                let options = MarkdownOptions::new().title("verve-host: flags".to_owned());
                text = help_markdown_command_custom(&command, &options.show_footer(false)).into_bytes();
            }
        }
        Ok(text)
    }
}

/// How component instances are reused.
#[derive(Args, Clone, Copy, Debug)]
pub struct Reuse {
    /// Maximum number of requests that an instance serves (128 in Spin)
    ///
    /// A component instance is dropped after that many requests.
    #[arg(long = "max-instance-reuse-count", value_name = "REQUESTS", default_value = "100000")]
    pub requests: NonZeroUsize,

    /// Maximum number of concurrent requests of a component instance (16 in Spin)
    #[arg(
        long = "max-instance-concurrent-reuse-count",
        value_name = "REQUESTS",
        default_value = "1000"
    )]
    pub concurrent: NonZeroUsize,

    /// How long an idle instance is kept: 1s, 500ms, 2m
    #[arg(long = "idle-instance-timeout", value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub idle: Duration,
}

impl Arguments {
    /// Parses the command line of this process; `--version` prints `version`.
    ///
    /// # Errors
    /// Returns the exit code if there is nothing to serve: the requested text or the error is
    /// already printed, or the health check has run.
    pub fn read(version: &'static str) -> Result<Self, ExitCode> {
        let command = Self::command().version(version);
        let read = (command.clone().try_get_matches()).and_then(|matches| Self::from_arg_matches(&matches));
        let mut arguments = read.map_err(|error| {
            if !error.use_stderr() {
                print!("{error}");
                return ExitCode::SUCCESS;
            }
            eprintln!("verve-host: {}; see --help", in_a_line(&error));
            ExitCode::from(EX_USAGE)
        })?;
        let print = match arguments.command.take() {
            None => return Ok(arguments),
            Some(Command::Healthcheck { address }) => {
                let healthy = healthcheck(address).map_err(|error| eprintln!("verve-host: {address}: {error}"));
                return Err(ExitCode::from(u8::from(healthy.is_err())));
            }
            Some(Command::Print(print)) => print,
        };
        // The reader may close the pipe early, as `head` does; `print!` would panic.
        let printed = print.text(command).and_then(|text| io::stdout().write_all(&text));
        Err(ExitCode::from(u8::from(printed.is_err())))
    }
}

/// Asks the host at this address for its health; only status 200 is a success.
fn healthcheck(mut address: SocketAddr) -> io::Result<()> {
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let mut stream = TcpStream::connect_timeout(&address, HEALTH_WITHIN)?;
    stream.set_read_timeout(Some(HEALTH_WITHIN))?;
    stream.write_all(b"GET /.well-known/spin/health HTTP/1.0\r\n\r\n")?;
    let mut status = [0; b"HTTP/1.1 200".len()];
    stream.read_exact(&mut status)?;
    if status.ends_with(b" 200") {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "it answers {}",
        String::from_utf8_lossy(&status)
    )))
}

/// Shortens an error of clap to one line: the problem, and the tip if there is one.
///
/// clap prints several lines. The lines before the first empty one describe the problem.
fn in_a_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim);
    let line = lines.by_ref().take_while(|line| !line.is_empty());
    let line = line.collect::<Vec<_>>().join(" ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    match lines.find_map(|line| line.strip_prefix("tip: ")) {
        Some(tip) => format!("{line} ({tip})"),
        None => line.to_owned(),
    }
}

fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let expected = || "expected an address and a port, such as 127.0.0.1:3000".to_owned();
    let text = match text.strip_prefix(':') {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    // Names such as localhost are valid too, and IPv4 is preferred, as in Spin.
    let addresses: Vec<SocketAddr> = text.to_socket_addrs().map_err(|_| expected())?.collect();
    let ipv4 = addresses.iter().find(|address| address.is_ipv4());
    ipv4.or(addresses.first()).copied().ok_or_else(expected)
}

/// Parses the maximum size of a head. Its minimum is that of hyper's buffer.
fn head_bytes(text: &str) -> Result<usize, String> {
    let bytes = text.parse().ok().filter(|bytes| (8192..=1 << 20).contains(bytes));
    bytes.ok_or_else(|| "expected a whole number from 8192 to 1048576".to_owned())
}

/// Parses a number with a unit (`ms`, `s`, `m`); without a unit it means seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit {
        "ms" => 1,
        "s" | "" => 1_000,
        "m" => 60_000,
        _ => 0,
    };
    match number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(milliseconds))
    {
        Some(total) if milliseconds > 0 => Ok(Duration::from_millis(total)),
        _ => Err("expected a whole number with the unit ms, s or m, such as 500ms".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let cases = [
            ("1s", Some(1_000)),
            ("500ms", Some(500)),
            ("2m", Some(120_000)),
            ("3", Some(3_000)),
            ("0s", Some(0)),
            ("", None),
            ("s", None),
            ("1h", None),
            ("1.5s", None),
            ("-1s", None),
            ("99999999999999999999s", None),
            ("18446744073709551615m", None),
        ];
        for (text, milliseconds) in cases {
            assert_eq!(duration(text).ok(), milliseconds.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn command_lines() {
        let parse = |line: &str| Arguments::try_parse_from(line.split(' '));

        let arguments = parse("verve-host --from app -f x --listen 127.0.0.1:0 --variable a=1 --variable b=2");
        assert!(arguments.is_err(), "--from and -f are one flag");

        let arguments =
            parse("verve-host -f app --listen localhost:4000 --variable a=1 --variable b=2=3 --state-dir s").ok();
        let arguments = arguments.expect("a good command line");
        assert_eq!(arguments.from, PathBuf::from("app"));
        assert_eq!(arguments.listen.port(), 4000);
        assert_eq!(arguments.state_dir, Some(PathBuf::from("s")));
        assert_eq!(arguments.variables, ["a=1", "b=2=3"]);
        assert_eq!(
            (arguments.reuse.requests.get(), arguments.reuse.concurrent.get()),
            (100_000, 1_000)
        );
        assert_eq!(arguments.reuse.idle, Duration::from_secs(1));

        for (line, expected) in [
            ("verve-host --listen 3000", "expected an address and a port"),
            ("verve-host --max-instance-reuse-count 0", "number would be zero"),
            ("verve-host --idle-instance-timeout soon", "expected a whole number"),
            ("verve-host --quiet", "unexpected argument '--quiet'"),
        ] {
            let error = parse(line).err().map(|error| in_a_line(&error)).unwrap_or_default();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
