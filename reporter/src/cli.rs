//! The command line, the environment and the configuration file, parsed whole into a `Config`.

mod environment;
mod file;
mod shown;

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clap_complete::Shell;
use clap_markdown::{MarkdownOptions, help_markdown_command_custom};
use redis::{ClientTlsConfig, TlsCertificates};
use verve_protocol::{Endpoint, Keys, Method, Namespace, Partitions, WindowLength};

use crate::admin::Token;
use crate::callbacks::dead::DeadCommand;
use crate::callbacks::{CallbacksConfig, Policy, Signer};
use crate::counts::{Asked, Range};
use crate::kafka::KafkaConfig;
use crate::periods::Periods;
use crate::store::RedisConfig;
use crate::telemetry::LogFormat;
use crate::windows::WindowsConfig;
use file::Settings;

/// The exit code for a bad command line: `EX_USAGE` of sysexits.h.
pub const USAGE: u8 = 64;

// What the settings are listed under in the help.
const REDIS: &str = "Redis and windows";
const KAFKA: &str = "Kafka";
const CALLBACKS: &str = "Callbacks";
const ITSELF: &str = "The reporter itself";

/// At the end of `--help`.
const AFTER_HELP: &str = "\
Examples:
  verve-reporter --redis-urls redis://10.0.0.5:6379 --kafka-brokers 10.0.0.6:9092
  verve-reporter --config verve.toml doctor
  verve-reporter counts --from 2026-11-22T21:00:00Z --json
  verve-reporter dead retry --all

Exit codes:
  0   done; stopped as it was asked to
  1   something failed, or `doctor` has found a problem
  64  the command line, the environment or the file of --config is wrong";

/// Counts the unique ids of each closed window, publishes the counts to Kafka, and delivers callbacks.
///
/// Runs beside Redis, in any number of replicas: one of them reports windows, all deliver callbacks.
#[derive(Parser, Debug)]
#[command(name = "verve-reporter", allow_negative_numbers = true, after_help = AFTER_HELP)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// A file with settings, in TOML, named as the flags are: `window-seconds = 60`. The command line comes first, then the environment,
    /// then the file
    #[arg(long, env = "VERVE_CONFIG", global = true, value_name = "FILE", help_heading = ITSELF)]
    config: Option<PathBuf>,
    /// Where Redis is, a server or some nodes of one cluster, comma-separated: the same as the component's `redis_urls`
    // Parsed after clap, whose errors show the value, and so a password.
    #[arg(
        long,
        env = "VERVE_REDIS_URLS",
        global = true,
        value_name = "URLS",
        default_value = "redis://127.0.0.1:6379",
        hide_env_values = true,
        help_heading = REDIS
    )]
    redis_urls: String,
    /// A file with the certificates of the authorities that vouch for Redis servers of `rediss://`, in PEM; those that this machine
    /// trusts if not given
    #[arg(long, env = "VERVE_REDIS_CA_FILE", global = true, value_name = "FILE", help_heading = REDIS)]
    redis_ca_file: Option<PathBuf>,
    /// A file with the certificate to show to Redis, in PEM; with --redis-key-file
    #[arg(long, env = "VERVE_REDIS_CERT_FILE", global = true, value_name = "FILE", help_heading = REDIS)]
    redis_cert_file: Option<PathBuf>,
    /// A file with the key of that certificate, in PEM (PKCS #8)
    #[arg(long, env = "VERVE_REDIS_KEY_FILE", global = true, value_name = "FILE", help_heading = REDIS)]
    redis_key_file: Option<PathBuf>,
    /// How many sets a window's ids are in, up to 256: the same as the component's `partitions`
    #[arg(long, env = "VERVE_PARTITIONS", global = true, value_name = "COUNT", default_value_t, help_heading = REDIS)]
    partitions: Partitions,
    /// What all keys in Redis begin with: the same as the component's `namespace`
    #[arg(long, env = "VERVE_NAMESPACE", global = true, default_value = "verve", help_heading = REDIS)]
    namespace: Namespace,
    /// Length of a window, in seconds: the same as the component's `window_seconds`
    #[arg(
        long,
        env = "VERVE_WINDOW_SECONDS",
        global = true,
        value_name = "SECONDS",
        default_value = "60",
        help_heading = REDIS
    )]
    window_seconds: WindowLength,
    /// How long after a window's end it is first reported, in milliseconds (at most 10 minutes)
    #[arg(long, env = "VERVE_GRACE_MS", global = true, value_name = "MS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(0..=600_000), help_heading = REDIS)]
    grace_ms: u64,
    /// How long a reported window is still watched for late ids, in seconds (at most 12 hours)
    #[arg(long, env = "VERVE_LATE_SECONDS", global = true, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(0..=43_200), help_heading = REDIS)]
    late_seconds: u64,
    /// Kafka brokers, `host:port`, comma-separated; without them counts are only logged
    #[arg(long, env = "VERVE_KAFKA_BROKERS", global = true, value_name = "HOST:PORT", help_heading = KAFKA)]
    kafka_brokers: Option<String>,
    /// Kafka topic of the counts
    #[arg(long, env = "VERVE_KAFKA_TOPIC", global = true, default_value = "unique-requests", help_heading = KAFKA)]
    kafka_topic: String,
    /// A librdkafka setting, such as `security.protocol=SSL`; repeatable (in the environment: one a line)
    #[arg(
        long,
        env = "VERVE_KAFKA_OPTION",
        global = true,
        value_name = "KEY=VALUE",
        value_delimiter = '\n',
        hide_env_values = true,
        help_heading = KAFKA
    )]
    kafka_option: Vec<String>,
    /// Publish in transactions, so that a replica which lost the lease can publish nothing any more; `false` for brokers that
    /// have none
    #[arg(long, env = "VERVE_KAFKA_TRANSACTIONS", global = true, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, help_heading = KAFKA)]
    kafka_transactions: bool,

    /// A fixed callback for every reported window
    #[arg(long, env = "VERVE_CALLBACK_URL", global = true, value_name = "URL", hide_env_values = true, help_heading = CALLBACKS)]
    callback_url: Option<String>,
    /// How the fixed callback is called
    #[arg(long, env = "VERVE_CALLBACK_METHOD", global = true, value_name = "METHOD", default_value = "post", value_parser = method(), help_heading = CALLBACKS)]
    callback_method: Method,
    /// Hosts, addresses or CIDRs that callbacks may reach although they are private; repeatable, or comma-separated
    #[arg(long, env = "VERVE_CALLBACK_ALLOW", global = true, value_name = "HOST|CIDR", value_delimiter = ',', help_heading = CALLBACKS)]
    callback_allow: Vec<String>,
    /// Callbacks may reach what --callback-allow lists, and nothing else
    #[arg(long, env = "VERVE_CALLBACK_ALLOW_ONLY", global = true, value_parser = clap::builder::FalseyValueParser::new(), help_heading = CALLBACKS)]
    callback_allow_only: bool,
    /// How often a callback is tried before it is given up on
    #[arg(long, env = "VERVE_CALLBACK_ATTEMPTS", global = true, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=100), help_heading = CALLBACKS)]
    callback_attempts: u32,
    /// The wait before a callback's second attempt, in milliseconds; doubled, with jitter, for each further one
    #[arg(long, env = "VERVE_CALLBACK_BACKOFF_MS", global = true, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=600_000), help_heading = CALLBACKS)]
    callback_backoff_ms: u64,
    /// Signs callbacks by the Standard Webhooks scheme: `whsec_` and base64; two, comma-separated, while one is replaced
    // Parsed after clap, whose errors show the value. So is the token.
    #[arg(long, env = "VERVE_CALLBACK_SECRET", global = true, value_name = "SECRETS", hide_env_values = true, help_heading = CALLBACKS)]
    callback_secret: Option<String>,
    /// A file with the secrets, one a line, in place of --callback-secret
    #[arg(long, env = "VERVE_CALLBACK_SECRET_FILE", global = true, value_name = "FILE", help_heading = CALLBACKS)]
    callback_secret_file: Option<PathBuf>,
    /// Address of the admin port: /healthz, /readyz, /metrics, /api/counts, and a page at /
    #[arg(long, env = "VERVE_LISTEN", global = true, value_name = "ADDRESS", default_value = "127.0.0.1:9090", value_parser = listen_address, help_heading = ITSELF)]
    listen: SocketAddr,
    /// What the admin port wants to see before it tells anything but that it lives and is ready: a bearer token, or the password in
    /// a browser
    #[arg(long, env = "VERVE_ADMIN_TOKEN", global = true, value_name = "TOKEN", hide_env_values = true, help_heading = ITSELF)]
    admin_token: Option<String>,
    /// A file with the token, in place of --admin-token
    #[arg(long, env = "VERVE_ADMIN_TOKEN_FILE", global = true, value_name = "FILE", help_heading = ITSELF)]
    admin_token_file: Option<PathBuf>,
    /// How the log is written
    #[arg(long, env = "VERVE_LOG_FORMAT", global = true, value_name = "FORMAT", default_value = "text", help_heading = ITSELF)]
    log_format: LogFormat,
    /// Leases, calls, sweeps and the like are so many times as short: for tests, which would wait for them
    #[arg(long, hide = true, global = true, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=20))]
    divide_periods: u32,
}

/// What else there is to do than to report.
#[derive(Subcommand, Debug)]
enum Command {
    /// List, retry or drop the callbacks that were given up on
    #[command(subcommand, arg_required_else_help = false)]
    Dead(DeadCommand),
    /// Show what was reported, the newest windows first
    Counts {
        #[command(flatten)]
        asked: Asked,
        /// As one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show in the terminal what is going on in Redis, until q is pressed
    Top,
    /// Look at Redis, Kafka and what the components write, and say what to change
    Doctor,
    /// Ask the reporter at --listen whether it lives, for a container's health check: exit code 0 if it does, else 1
    Healthcheck,
    /// See what the settings come to
    Config {
        #[command(subcommand)]
        command: Option<ConfigCommand>,
    },
    /// Print what lets a shell complete these commands and flags
    Completions { shell: Shell },
    /// Print the manual page
    Man,
    /// Print every command and flag, in Markdown
    #[command(hide = true)]
    Markdown,
}

#[derive(Subcommand, Debug)]
enum ConfigCommand {
    /// Print every setting and where it is from, secrets hidden, or what is wrong with one
    Check,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Task {
    /// To report, until a stop is asked for.
    Report(Box<Config>),
    /// To look after dead callbacks.
    Dead(Where, DeadCommand),
    /// To show what was reported.
    Counts {
        at: Where,
        range: Range,
        length: WindowLength,
        json: bool,
    },
    /// To look at what the reporter would work with.
    Doctor(Box<Config>),
    /// To ask whether the reporter there lives.
    Healthcheck(SocketAddr),
    /// To show what is going on.
    Top(Box<Config>),
    /// To print this, and no more.
    Print(String),
}

/// Where a command finds what it is about.
#[derive(Debug)]
pub struct Where {
    pub redis: RedisConfig,
    pub keys: Keys,
}

/// What the reporter is configured to do.
#[derive(Clone, Debug)]
pub struct Config {
    pub redis: RedisConfig,
    pub keys: Keys,
    pub windows: WindowsConfig,
    pub kafka: KafkaConfig,
    pub callbacks: CallbacksConfig,
    pub listen: SocketAddr,
    /// Without one the admin port answers everybody.
    pub admin_token: Option<Token>,
    pub log_format: LogFormat,
}

/// Reads the command line, the environment and the configuration file. What is wrong is said in one line on standard error.
pub fn parse(version: &'static str) -> Result<Task, ExitCode> {
    let environment: Vec<_> = std::env::vars_os().collect();
    let parsed = parse_from(version, std::env::args_os(), &environment);
    parsed.map_err(|refused| {
        if let Refused::Clap(help) = &refused
            && !help.use_stderr()
        {
            // Whoever reads may have seen enough, such as `head`.
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
        let refused = environment::with_source(&refused.to_string(), std::env::args_os(), &environment);
        eprintln!("verve-reporter: {refused}; see --help");
        ExitCode::from(USAGE)
    })
}

/// Why a command line is refused.
#[derive(Debug)]
enum Refused {
    Clap(clap::Error),
    Value(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // clap explains itself over several lines; those before the first empty one say what was wrong.
            Self::Clap(error) => {
                let text = error.to_string();
                let mut lines = text.lines().map(str::trim);
                let line = lines.by_ref().take_while(|line| !line.is_empty());
                let line = line.collect::<Vec<_>>().join(" ");
                f.write_str(line.strip_prefix("error: ").unwrap_or(&line))?;
                // What was meant, perhaps.
                match lines.find_map(|line| line.strip_prefix("tip: ")) {
                    Some(tip) => write!(f, " ({tip})"),
                    None => Ok(()),
                }
            }
            Self::Value(text) => f.write_str(text),
        }
    }
}

fn parse_from(
    version: &'static str,
    args: impl IntoIterator<Item = OsString>,
    environment: &[(OsString, OsString)],
) -> Result<Task, Refused> {
    let command = environment::without_empty(Args::command().version(version), environment);
    let mut line: Vec<OsString> = args.into_iter().collect();
    let given = command.clone().try_get_matches_from(&line).map_err(Refused::Clap)?;
    // What only prints what the program is, has no settings.
    if !matches!(given.subcommand_name(), Some("completions" | "man" | "markdown")) {
        environment::check(&command, environment).map_err(Refused::Value)?;
    }
    let Some(path) = given.get_one::<PathBuf>("config") else {
        return task(&given, &given, &Settings::default(), command).map_err(Refused::Value);
    };
    let settings = Settings::read(path, &command).map_err(Refused::Value)?;
    // Behind the program's name.
    let at = line.len().min(1);
    line.splice(at..at, settings.flags(&given, &command));
    // Without the file the line was right, so what is wrong now is wrong there.
    let matches = command.clone().try_get_matches_from(line);
    let matches = matches.map_err(|error| Refused::Value(format!("{}: {}", path.display(), Refused::Clap(error))))?;
    task(&matches, &given, &settings, command).map_err(|problem| {
        if settings.are_meant_by(&problem) {
            return Refused::Value(format!("{}: {problem}", path.display()));
        }
        Refused::Value(problem)
    })
}

fn task(
    matches: &ArgMatches,
    given: &ArgMatches,
    settings: &Settings,
    mut command: clap::Command,
) -> Result<Task, String> {
    let mut args = Args::from_arg_matches(matches).map_err(|error| error.to_string())?;
    let Some(asked) = args.command.take() else {
        return Ok(Task::Report(Box::new(config(args)?)));
    };
    let at = |args: &Args| {
        Ok::<_, String>(Where {
            redis: redis(args)?,
            keys: Keys::new(args.namespace.clone()),
        })
    };
    Ok(match asked {
        Command::Dead(command) => Task::Dead(at(&args)?, command),
        Command::Counts { asked, json } => {
            let at = at(&args)?;
            let range = asked.range(args.window_seconds);
            let range = range.map_err(|problem| format!("--{problem}"))?;
            let length = args.window_seconds;
            Task::Counts {
                at,
                range,
                length,
                json,
            }
        }
        Command::Healthcheck => Task::Healthcheck(args.listen),
        Command::Top => Task::Top(Box::new(config(args)?)),
        Command::Doctor => Task::Doctor(Box::new(config(args)?)),
        Command::Config { command: None } => {
            let help = command.find_subcommand_mut("config").map(clap::Command::render_help);
            Task::Print(help.unwrap_or_default().to_string())
        }
        Command::Config {
            command: Some(ConfigCommand::Check),
        } => {
            config(args)?;
            Task::Print(shown::text(&command, matches, given, settings))
        }
        Command::Completions { shell } => Task::Print(printed(|text| {
            clap_complete::generate(shell, &mut command, "verve-reporter", text);
            Ok(())
        })?),
        Command::Man => Task::Print(printed(|text| clap_mangen::Man::new(command).render(text))?),
        Command::Markdown => {
            let options = MarkdownOptions::new().title("verve-reporter: commands and flags".to_owned());
            Task::Print(help_markdown_command_custom(&command, &options.show_footer(false)))
        }
    })
}

/// Says which methods there are, to shells too.
fn method() -> impl TypedValueParser<Value = Method> {
    let names = [Method::Get, Method::Post].map(Method::as_str);
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Method>())
}

/// What is written, as text.
fn printed(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> Result<String, String> {
    let mut text = Vec::new();
    write(&mut text).map_err(|error| error.to_string())?;
    String::from_utf8(text).map_err(|error| error.to_string())
}

fn redis(args: &Args) -> Result<RedisConfig, String> {
    let urls = args
        .redis_urls
        .parse()
        .map_err(|error| format!("--redis-urls: {error}"))?;
    let read = |flag: &str, path: &Option<PathBuf>| -> Result<Option<Vec<u8>>, String> {
        let Some(path) = path else { return Ok(None) };
        let read = fs::read(path).map(Some);
        read.map_err(|error| format!("{flag}: {}: {error}", path.display()))
    };
    let root_cert = read("--redis-ca-file", &args.redis_ca_file)?;
    let client_tls = match (
        read("--redis-cert-file", &args.redis_cert_file)?,
        read("--redis-key-file", &args.redis_key_file)?,
    ) {
        (Some(client_cert), Some(client_key)) => Some(ClientTlsConfig {
            client_cert,
            client_key,
        }),
        (None, None) => None,
        _ => return Err("--redis-cert-file and --redis-key-file: expected both".to_owned()),
    };
    let given = root_cert.is_some() || client_tls.is_some();
    let redis = RedisConfig {
        urls,
        tls: given.then_some(TlsCertificates { client_tls, root_cert }),
        partitions: args.partitions,
    };
    let checked = redis.check();
    checked.map_err(|problem| format!("--redis-ca-file, --redis-cert-file, --redis-key-file: {problem}"))?;
    Ok(redis)
}

/// What is given as a flag or in a file. Errors do not show it.
fn secret<T, E: fmt::Display>(
    flag: &str,
    given: Option<String>,
    file: Option<PathBuf>,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<Option<T>, String> {
    if given.as_ref().is_some_and(String::is_empty) {
        return Err(format!(
            "{flag}: is empty; expected a secret, or none to be given at all"
        ));
    }
    let (flag, text) = match (given, file) {
        (Some(_), Some(_)) => return Err(format!("{flag} and {flag}-file: expected one of them")),
        (Some(given), None) => (flag.to_owned(), given),
        (None, Some(path)) => {
            let flag = format!("{flag}-file");
            let text = fs::read_to_string(&path).map_err(|error| format!("{flag}: {}: {error}", path.display()))?;
            (flag, text.trim().to_owned())
        }
        (None, None) => return Ok(None),
    };
    let parsed = parse(&text).map_err(|error| format!("{flag}: {error}"));
    parsed.map(Some)
}

/// An address and a port. Names such as localhost are fine too, and IPv4 is preferred; without either it is this machine alone.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let expected = || "expected an address and a port, such as 127.0.0.1:9090".to_owned();
    let text = match text.strip_prefix(':') {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    let addresses: Vec<SocketAddr> = text.to_socket_addrs().map_err(|_| expected())?.collect();
    let ipv4 = addresses.iter().find(|address| address.is_ipv4());
    ipv4.or(addresses.first()).copied().ok_or_else(expected)
}

/// Whether brokers take a topic of this name.
fn is_topic(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=249).contains(&name.len()) && name.chars().all(is_allowed) && name != "." && name != ".."
}

fn config(args: Args) -> Result<Config, String> {
    let periods = Periods::divided(args.divide_periods);
    let redis = redis(&args)?;
    let fixed = match args.callback_url.filter(|url| !url.is_empty()) {
        None => None,
        Some(url) => {
            let endpoint: Endpoint = url.parse().map_err(|error| format!("--callback-url: {error}"))?;
            Some((endpoint, args.callback_method))
        }
    };
    let policy = Policy::try_new(&args.callback_allow, args.callback_allow_only)
        .map_err(|error| format!("--callback-allow: {error}"))?;
    if let Some((endpoint, _)) = &fixed {
        policy
            .check_literal(&endpoint.to_url())
            .map_err(|error| format!("--callback-url: {error}"))?;
    }
    let signer = secret(
        "--callback-secret",
        args.callback_secret,
        args.callback_secret_file,
        |secrets| secrets.lines().collect::<Vec<_>>().join(",").parse::<Signer>(),
    )?;
    let admin_token = secret("--admin-token", args.admin_token, args.admin_token_file, |token| {
        Token::try_new(token.to_owned())
    })?;
    let mut options = Vec::new();
    for option in args.kafka_option.iter().filter(|option| !option.trim().is_empty()) {
        let (key, value) = option
            .split_once('=')
            .ok_or("--kafka-option: expected KEY=VALUE, such as security.protocol=SSL")?;
        options.push((key.trim().to_owned(), value.to_owned()));
    }
    let kafka = KafkaConfig {
        transactional_id: args.kafka_transactions.then(|| {
            format!(
                "verve-reporter:{}:{}:{}",
                args.namespace, args.window_seconds, args.kafka_topic
            )
        }),
        brokers: args.kafka_brokers.filter(|brokers| !brokers.is_empty()),
        topic: args.kafka_topic,
        options,
        delivery: periods.delivery,
    };
    kafka.check()?;
    if !is_topic(&kafka.topic) {
        return Err(format!(
            "--kafka-topic {:?}: expected 1 to 249 of the characters A-Z a-z 0-9 . _ -, and not . or ..",
            kafka.topic
        ));
    }
    Ok(Config {
        redis,
        keys: Keys::new(args.namespace),
        windows: WindowsConfig {
            length: args.window_seconds,
            grace: Duration::from_millis(args.grace_ms),
            late: Duration::from_secs(args.late_seconds),
            callback: fixed,
            periods,
        },
        kafka,
        callbacks: CallbacksConfig {
            policy,
            signer,
            attempts: args.callback_attempts,
            backoff: Duration::from_millis(args.callback_backoff_ms),
            periods,
        },
        listen: args.listen,
        admin_token,
        log_format: args.log_format,
    })
}

#[cfg(test)]
mod tests;
