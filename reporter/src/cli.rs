//! The command line, the environment and the configuration file, parsed whole into a `Config`.

mod config;
mod environment;
mod file;
mod problem;
mod shown;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clap_complete::Shell;
use clap_markdown::{MarkdownOptions, help_markdown_command_custom};
use verve_protocol::{Keys, Method, Namespace, Partitions, WindowLength};

use crate::admin::Token;
use crate::callbacks::CallbacksConfig;
use crate::callbacks::dead::DeadCommand;
use crate::counts::{Asked, Range};
use crate::kafka::KafkaConfig;
use crate::store::RedisConfig;
use crate::telemetry::LogFormat;
use crate::windows::WindowsConfig;
use config::{config, listen_address, redis};
use environment::Variable;
use file::Settings;
use problem::{Problem, Refused};

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
        let refused = refused.with_source(std::env::args_os(), &environment);
        eprintln!("verve-reporter: {refused}; see --help");
        ExitCode::from(USAGE)
    })
}

fn parse_from(
    version: &'static str,
    args: impl IntoIterator<Item = OsString>,
    variables: &[Variable],
) -> Result<Task, Refused> {
    let command = environment::without_empty(Args::command().version(version), variables);
    let mut line: Vec<OsString> = args.into_iter().collect();
    let given = command.clone().try_get_matches_from(&line).map_err(Refused::Clap)?;
    // What only prints what the program is, has no settings.
    if !matches!(given.subcommand_name(), Some("completions" | "man" | "markdown")) {
        environment::check(&command, variables)?;
    }
    let Some(path) = given.get_one::<PathBuf>("config") else {
        return task(&given, &given, &Settings::default(), command);
    };
    let settings = Settings::read(path, &command)?;
    // Behind the program's name.
    let at = line.len().min(1);
    line.splice(at..at, settings.flags(&given, &command));
    let in_file = |refused: &dyn fmt::Display| Refused::Other(format!("{}: {refused}", path.display()));
    // Without the file the line was right, so what is wrong now is wrong there.
    let matches = command.clone().try_get_matches_from(line);
    let matches = matches.map_err(|error| in_file(&Refused::Clap(error)))?;
    task(&matches, &given, &settings, command).map_err(|refused| {
        let is_from_file = refused
            .flags()
            .iter()
            .any(|flag| settings.has(flag) && !is_given(&given, flag));
        if is_from_file { in_file(&refused) } else { refused }
    })
}

fn task(
    matches: &ArgMatches,
    given: &ArgMatches,
    settings: &Settings,
    mut command: clap::Command,
) -> Result<Task, Refused> {
    let mut args = Args::from_arg_matches(matches).map_err(Refused::Clap)?;
    let Some(asked) = args.command.take() else {
        return Ok(Task::Report(Box::new(config(args)?)));
    };
    let at = |args: &Args| {
        Ok::<_, Problem>(Where {
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

/// Whether the command line or the environment gives this flag.
fn is_given(given: &ArgMatches, flag: &str) -> bool {
    let source = given.value_source(&flag.replace('-', "_"));
    matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
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

#[cfg(test)]
mod tests;
