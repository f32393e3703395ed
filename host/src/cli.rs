//! The command line. Its flags are those of `spin up`, so that the one can stand in for the other, and so are their
//! defaults, except that instances are reused for longer: this host runs one component, which it knows to bear it.

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

/// How long a health check waits for a connection, and for an answer.
const HEALTH_WITHIN: Duration = Duration::from_secs(2);

/// At the end of `--help`.
const AFTER_HELP: &str = "\
Examples:
  verve-host --from spin.toml --listen 0.0.0.0:3000 --state-dir /var/lib/verve
  SPIN_VARIABLE_REDIS_URLS=redis://10.0.0.5:6379 verve-host
  verve-host --variable window_seconds=10 --variable log=all

Exit codes:
  0   stopped as it was asked to
  1   something failed, or requests were still under way when there was no time left
  64  the command line, the environment or the manifest is wrong";

/// Runs Verve's component where no Spin is installed.
#[derive(Parser)]
#[command(name = "verve-host", args_conflicts_with_subcommands = true, after_help = AFTER_HELP)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    /// The application's manifest, or a folder with a `spin.toml`
    #[arg(short = 'f', long, value_name = "PATH", default_value = "spin.toml")]
    pub from: PathBuf,

    /// Where to serve HTTP: `127.0.0.1:3000`, `localhost:3000` or `:3000` for this machine alone, `0.0.0.0:3000` for all; port 0 picks a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:3000", value_parser = socket_address)]
    pub listen: SocketAddr,

    /// Sets a variable of the manifest; repeatable, for one after the other. The flag beats the environment's `SPIN_VARIABLE_NAME`
    // A secret may be in here: never shown, which is why it is taken apart later and by hand.
    #[arg(long = "variable", value_name = "NAME=VALUE")]
    pub variables: Vec<String>,

    /// Where the SQLite database is kept, and with it what Redis does not have yet [default: .spin beside the manifest]
    #[arg(long, value_name = "FOLDER")]
    pub state_dir: Option<PathBuf>,

    #[command(flatten)]
    pub reuse: Reuse,

    /// How long it goes on serving after SIGTERM, so that load balancers can turn away: its health check answers 503 meanwhile, and
    /// each response closes its connection. SIGINT stops without that
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub stop_grace: Duration,

    /// How long a kept-alive connection may be idle, and a client may take for a request's head. Longer than what load balancers keep
    /// idle connections for, or they send requests on a connection that is being closed
    #[arg(long, value_name = "DURATION", default_value = "75s", value_parser = duration)]
    pub keep_alive_timeout: Duration,

    /// The most connections at once. Further ones wait until one ends. Each needs an open file, and memory: 10 KB when idle
    #[arg(long, value_name = "N", default_value = "20000")]
    pub max_connections: NonZeroUsize,

    /// The most bytes of a request's head, from 8192 on; a longer one is answered 431
    #[arg(long, value_name = "BYTES", default_value = "32768", value_parser = head_bytes)]
    pub max_head_bytes: usize,

    /// How the host and the component log
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// Leaves Nagle's algorithm on, to measure what it costs: a response in two writes waits for a delayed ACK
    #[arg(long)]
    pub no_tcp_nodelay: bool,
}

/// How a log is written.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// A line to read
    Text,
    /// A JSON object in each line
    Json,
}

/// What else there is to do than to run a component.
#[derive(Subcommand)]
enum Command {
    /// Ask a host on this machine whether it can serve, for a container's health check: exit code 0 if it can, else 1
    Healthcheck {
        /// Where it listens
        #[arg(value_name = "ADDRESS:PORT", default_value = "127.0.0.1:3000", value_parser = socket_address)]
        address: SocketAddr,
    },
    #[command(flatten)]
    Print(Print),
}

/// What is printed, and no more.
#[derive(Subcommand)]
enum Print {
    /// Print what lets a shell complete these flags
    Completions { shell: Shell },
    /// Print the manual page
    Man,
    /// Print every flag, in Markdown
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
    /// How many requests one component instance serves before it is dropped (128 in Spin)
    #[arg(long = "max-instance-reuse-count", value_name = "REQUESTS", default_value = "100000")]
    pub requests: NonZeroUsize,

    /// How many of them at once (16 in Spin)
    #[arg(
        long = "max-instance-concurrent-reuse-count",
        value_name = "REQUESTS",
        default_value = "1000"
    )]
    pub concurrent: NonZeroUsize,

    /// How long an instance with nothing to do is kept: 1s, 500ms, 2m
    #[arg(long = "idle-instance-timeout", value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub idle: Duration,
}

impl Arguments {
    /// Reads the command line of this process. `version` is what `--version` tells.
    ///
    /// # Errors
    /// The exit code, once what was asked for, or what was wrong, has been printed.
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
        // Whoever reads may have seen enough, such as `head`.
        let printed = print.text(command).and_then(|text| io::stdout().write_all(&text));
        Err(ExitCode::from(u8::from(printed.is_err())))
    }
}

/// Asks for the health of who listens there, and takes nothing but 200 for an answer.
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

/// clap explains itself over several lines; those before the first empty one say what was wrong, and a tip what was meant, perhaps.
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
    // Names such as localhost are fine too, and IPv4 is preferred, as in Spin.
    let addresses: Vec<SocketAddr> = text.to_socket_addrs().map_err(|_| expected())?.collect();
    let ipv4 = addresses.iter().find(|address| address.is_ipv4());
    ipv4.or(addresses.first()).copied().ok_or_else(expected)
}

/// What hyper takes: its buffer is never smaller than that.
fn head_bytes(text: &str) -> Result<usize, String> {
    let bytes = text.parse().ok().filter(|bytes| (8192..=1 << 20).contains(bytes));
    bytes.ok_or_else(|| "expected a whole number from 8192 to 1048576".to_owned())
}

/// A number and a unit (`ms`, `s`, `m`), seconds if there is none.
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
