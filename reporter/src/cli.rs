//! Parses the command line, the environment and the file into a [`Config`].

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

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clap_complete::Shell;
use clap_markdown::{MarkdownOptions, help_markdown_command_custom};
use verve_protocol::{Keys, Method, Namespace, Partitions, WindowLength, WindowLengths};

use crate::admin::Token;
use crate::callbacks::CallbacksConfig;
use crate::callbacks::dead::DeadCommand;
use crate::counts::{Asked, Range};
use crate::kafka::KafkaConfig;
use crate::store::RedisConfig;
use crate::telemetry::LogFormat;
use crate::windows::{KeepReports, WindowsConfig};
use config::{config, listen_address, redis};
use environment::Variable;
use file::Settings;
use problem::{Problem, Refused};

/// The exit code for an invalid command line: `EX_USAGE` of sysexits.h.
pub const USAGE: u8 = 64;

// The headings of the settings in the help.
const REDIS: &str = "Redis and windows";
const KAFKA: &str = "Kafka";
const CALLBACKS: &str = "Callbacks";
const ITSELF: &str = "The reporter itself";

/// The text at the end of `--help`.
const AFTER_HELP: &str = "\
Examples:
  verve-reporter --redis-urls redis://10.0.0.5:6379 --kafka-brokers 10.0.0.6:9092
  verve-reporter --config verve.toml doctor
  verve-reporter counts --from 2026-11-22T21:00:00Z --json
  verve-reporter dead retry --all

Exit codes:
  0   completed, or stopped by a signal
  1   something failed, or `doctor` has found a problem
  64  the command line, the environment or the file of --config is wrong";

/// Counts the unique ids of each closed window
///
/// Publishes the counts to Kafka, and delivers callbacks. Runs next to Redis in any number of
/// replicas. One of them reports windows; all of them deliver callbacks.
#[derive(Parser, Debug)]
#[command(name = "verve-reporter", allow_negative_numbers = true, after_help = AFTER_HELP)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// TOML file with settings, named like the flags: `window-seconds = 60`
    ///
    /// The command line takes precedence over the environment, and the environment over the file.
    #[arg(long, env = "VERVE_CONFIG", global = true, value_name = "FILE", help_heading = ITSELF)]
    config: Option<PathBuf>,
    /// Redis URLs, comma-separated: one server, or some nodes of one cluster
    ///
    /// Same as the component's `redis_urls`.
    // Parsed after clap, because clap's errors show the value, which may contain a password.
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
    /// PEM file with the authorities that sign certificates of `rediss://` servers
    ///
    /// It contains the certificates of these authorities. Without it, the authorities are those
    /// that this machine trusts.
    #[arg(long, env = "VERVE_REDIS_CA_FILE", global = true, value_name = "FILE", help_heading = REDIS)]
    redis_ca_file: Option<PathBuf>,
    /// PEM file with the client certificate for Redis; requires --redis-key-file
    #[arg(long, env = "VERVE_REDIS_CERT_FILE", global = true, value_name = "FILE", help_heading = REDIS)]
    redis_cert_file: Option<PathBuf>,
    /// PEM file with the key of the client certificate (PKCS #8)
    #[arg(long, env = "VERVE_REDIS_KEY_FILE", global = true, value_name = "FILE", help_heading = REDIS)]
    redis_key_file: Option<PathBuf>,
    /// Number of sets that hold the ids of a window, up to 256
    ///
    /// Same as the component's `partitions`.
    #[arg(long, env = "VERVE_PARTITIONS", global = true, value_name = "COUNT", default_value_t, help_heading = REDIS)]
    partitions: Partitions,
    /// Prefix of all keys in Redis. Same as the component's `namespace`
    #[arg(long, env = "VERVE_NAMESPACE", global = true, default_value = "verve", help_heading = REDIS)]
    namespace: Namespace,
    /// Lengths of windows, in seconds. Same as the component's `window_seconds`
    ///
    /// Up to four, separated by commas, each a multiple of the one before: 60,3600,86400. The first
    /// is the main one.
    #[arg(
        long,
        env = "VERVE_WINDOW_SECONDS",
        global = true,
        value_name = "SECONDS",
        default_value = "60",
        help_heading = REDIS
    )]
    window_seconds: WindowLengths,
    /// Time from a window's end to its first report, in milliseconds
    ///
    /// At most 10 minutes.
    #[arg(long, env = "VERVE_GRACE_MS", global = true, value_name = "MS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(0..=600_000), help_heading = REDIS)]
    grace_ms: u64,
    /// Allowed lateness, in seconds
    ///
    /// How long a reported window is still watched for late ids. At most 12 hours.
    #[arg(long, env = "VERVE_LATE_SECONDS", global = true, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(0..=43_200), help_heading = REDIS)]
    late_seconds: u64,
    /// How long a named counter without ids is reported as 0, in seconds
    ///
    /// From its last window with ids on. Then it is not reported until it has ids again. 10 seconds
    /// to a day.
    #[arg(long, env = "VERVE_IDLE_SECONDS", global = true, value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u64).range(10..=86_400), help_heading = REDIS)]
    idle_seconds: u64,
    /// How long reports are kept, in seconds, and how many of each window length
    ///
    /// From the end of their window on; two days to ten years. The number, after a comma, is of
    /// all counters together, a million if not given: beyond it, those with the most reports lose
    /// their oldest ones, but none of the last two days.
    #[arg(long, env = "VERVE_KEEP_REPORTS", global = true, value_name = "SECONDS[,NUMBER]", default_value_t, help_heading = REDIS)]
    keep_reports: KeepReports,
    /// Kafka brokers as `host:port`, comma-separated
    ///
    /// Without them, counts are only logged.
    #[arg(long, env = "VERVE_KAFKA_BROKERS", global = true, value_name = "HOST:PORT", help_heading = KAFKA)]
    kafka_brokers: Option<String>,
    /// Kafka topic for the counts
    #[arg(long, env = "VERVE_KAFKA_TOPIC", global = true, default_value = "unique-requests", help_heading = KAFKA)]
    kafka_topic: String,
    /// Setting of librdkafka, such as `security.protocol=SSL`; repeatable
    ///
    /// In the environment: one per line.
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
    /// Publish in transactions
    ///
    /// With them, a replica that has lost the lease can no longer publish. Set `false` for brokers
    /// without transactions.
    #[arg(long, env = "VERVE_KAFKA_TRANSACTIONS", global = true, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, help_heading = KAFKA)]
    kafka_transactions: bool,

    /// URL of the fixed callback, which is called for every reported window
    #[arg(long, env = "VERVE_CALLBACK_URL", global = true, value_name = "URL", hide_env_values = true, help_heading = CALLBACKS)]
    callback_url: Option<String>,
    /// HTTP method of the fixed callback
    #[arg(long, env = "VERVE_CALLBACK_METHOD", global = true, value_name = "METHOD", default_value = "post", value_parser = method(), help_heading = CALLBACKS)]
    callback_method: Method,
    /// Lengths of windows for which the fixed callback is called, in seconds
    ///
    /// Some of `--window-seconds`, repeatable or comma-separated. Without it, the main one.
    #[arg(long, env = "VERVE_CALLBACK_LENGTHS", global = true, value_name = "SECONDS", value_delimiter = ',', value_parser = length(), help_heading = CALLBACKS)]
    callback_lengths: Vec<WindowLength>,
    /// Hosts, addresses or CIDRs that callbacks may reach although they are private
    ///
    /// Repeatable or comma-separated.
    #[arg(long, env = "VERVE_CALLBACK_ALLOW", global = true, value_name = "HOST|CIDR", value_delimiter = ',', help_heading = CALLBACKS)]
    callback_allow: Vec<String>,
    /// Let callbacks reach only what --callback-allow lists
    #[arg(long, env = "VERVE_CALLBACK_ALLOW_ONLY", global = true, value_parser = clap::builder::FalseyValueParser::new(), help_heading = CALLBACKS)]
    callback_allow_only: bool,
    /// Number of attempts before a callback is given up
    #[arg(long, env = "VERVE_CALLBACK_ATTEMPTS", global = true, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=100), help_heading = CALLBACKS)]
    callback_attempts: u32,
    /// Delay before the second attempt of a callback, in milliseconds
    ///
    /// It doubles with each further attempt, with jitter.
    #[arg(long, env = "VERVE_CALLBACK_BACKOFF_MS", global = true, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=600_000), help_heading = CALLBACKS)]
    callback_backoff_ms: u64,
    /// Secret that signs callbacks by the Standard Webhooks scheme
    ///
    /// It consists of `whsec_` and base64. Two secrets, comma-separated, while one is replaced.
    // Parsed after clap, because clap's errors show the value. The same applies to the token.
    #[arg(long, env = "VERVE_CALLBACK_SECRET", global = true, value_name = "SECRETS", hide_env_values = true, help_heading = CALLBACKS)]
    callback_secret: Option<String>,
    /// File with the secrets, one per line, instead of --callback-secret
    #[arg(long, env = "VERVE_CALLBACK_SECRET_FILE", global = true, value_name = "FILE", help_heading = CALLBACKS)]
    callback_secret_file: Option<PathBuf>,
    /// Address of the admin port
    ///
    /// It serves /healthz, /readyz, /metrics, /api/counts, and a page at /.
    #[arg(long, env = "VERVE_LISTEN", global = true, value_name = "ADDRESS", default_value = "127.0.0.1:9090", value_parser = listen_address, help_heading = ITSELF)]
    listen: SocketAddr,
    /// Token that the admin port requires
    ///
    /// It is required for everything except /healthz and the status of /readyz: as a bearer token,
    /// or as the password in a browser.
    #[arg(long, env = "VERVE_ADMIN_TOKEN", global = true, value_name = "TOKEN", hide_env_values = true, help_heading = ITSELF)]
    admin_token: Option<String>,
    /// File with the token, instead of --admin-token
    #[arg(long, env = "VERVE_ADMIN_TOKEN_FILE", global = true, value_name = "FILE", help_heading = ITSELF)]
    admin_token_file: Option<PathBuf>,
    /// How many named counters have metrics of their own
    ///
    /// Those of the rest are summed up, with the label counter="other". At most 10,000.
    #[arg(long, env = "VERVE_METRICS_COUNTERS", global = true, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u64).range(0..=10_000), help_heading = ITSELF)]
    metrics_counters: u64,
    /// Format of the log
    #[arg(long, env = "VERVE_LOG_FORMAT", global = true, value_name = "FORMAT", default_value = "text", help_heading = ITSELF)]
    log_format: LogFormat,
    /// Divide the periods of leases, calls, sweeps and others by this number
    ///
    /// For tests, which would otherwise wait for them.
    #[arg(long, hide = true, global = true, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=20))]
    divide_periods: u32,
}

/// The commands other than reporting.
#[derive(Subcommand, Debug)]
enum Command {
    /// List, retry or drop callbacks that were given up (dead letters)
    #[command(subcommand, arg_required_else_help = false)]
    Dead(DeadCommand),
    /// Show the reported windows, newest first
    Counts {
        #[command(flatten)]
        asked: Asked,
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show the live state of Redis in the terminal until q is pressed
    Top,
    /// Check Redis, Kafka and what the components write, and print what to change
    Doctor,
    /// Check whether the reporter at --listen is alive
    ///
    /// For the health check of a container: exit code 0 if it is alive, else 1.
    Healthcheck,
    /// Show the settings in force
    Config {
        #[command(subcommand)]
        command: Option<ConfigCommand>,
    },
    /// Print completions of the commands and flags for a shell
    Completions { shell: Shell },
    /// Print the manual page
    Man,
    /// Print all commands and flags in Markdown
    #[command(hide = true)]
    Markdown,
}

#[derive(Subcommand, Debug)]
enum ConfigCommand {
    /// Print every setting and its source, or the problem with a setting
    ///
    /// Secrets are hidden.
    Check,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Task {
    /// Reports until a stop is requested.
    Report(Box<Config>),
    /// Lists, retries or drops dead letters.
    Dead(Where, DeadCommand),
    /// Shows the reported windows.
    Counts {
        at: Where,
        range: Range,
        length: WindowLength,
        json: bool,
    },
    /// Checks everything that the reporter depends on.
    Doctor(Box<Config>),
    /// Checks whether the reporter at this address is alive.
    Healthcheck(SocketAddr),
    /// Shows the live state.
    Top(Box<Config>),
    /// Prints this text.
    Print(String),
}

/// The Redis and the keys that a command uses.
#[derive(Debug)]
pub struct Where {
    pub redis: RedisConfig,
    pub keys: Keys,
}

/// The configuration of the reporter.
#[derive(Clone, Debug)]
pub struct Config {
    pub redis: RedisConfig,
    pub keys: Keys,
    /// For main windows.
    pub windows: WindowsConfig,
    /// The lengths of windows.
    pub lengths: WindowLengths,
    /// The lengths of windows for which the fixed callback is called.
    pub callback_lengths: Vec<WindowLength>,
    pub kafka: KafkaConfig,
    pub callbacks: CallbacksConfig,
    pub listen: SocketAddr,
    /// Without a token, the admin port answers every client.
    pub admin_token: Option<Token>,
    /// How many named counters have metrics of their own.
    pub metrics_counters: usize,
    pub log_format: LogFormat,
}

/// Reads the command line, the environment and the configuration file.
///
/// Reports a problem in one line on standard error.
pub fn parse(version: &'static str) -> Result<Task, ExitCode> {
    let environment: Vec<_> = std::env::vars_os().collect();
    let parsed = parse_from(version, std::env::args_os(), &environment);
    parsed.map_err(|refused| {
        if let Refused::Clap(help) = &refused
            && !help.use_stderr()
        {
            // The reader, such as `head`, may have closed the pipe.
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
    // Commands that only print documentation use no settings.
    if !matches!(given.subcommand_name(), Some("completions" | "man" | "markdown")) {
        environment::check(&command, variables)?;
    }
    let Some(path) = given.get_one::<PathBuf>("config") else {
        return task(&given, &given, &Settings::default(), command);
    };
    let settings = Settings::read(path, &command)?;
    // The settings of the file follow the program's name.
    let at = line.len().min(1);
    line.splice(at..at, settings.flags(&given, &command));
    let in_file = |refused: &dyn fmt::Display| Refused::Other(format!("{}: {refused}", path.display()));
    // The command line is valid without the file, so a problem found now is in the file.
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
            let length = args.window_seconds.main();
            let range = asked.range(length);
            let range = range.map_err(|problem| format!("--{problem}"))?;
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

/// Returns whether the command line or the environment gives this flag.
fn is_given(given: &ArgMatches, flag: &str) -> bool {
    let source = given.value_source(&flag.replace('-', "_"));
    matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
}

/// Parses a method, and lists the possible values for the help and for shells.
fn method() -> impl TypedValueParser<Value = Method> {
    let names = [Method::Get, Method::Post].map(Method::as_str);
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Method>())
}

/// Parses the length of windows, with spaces around it.
fn length() -> impl TypedValueParser<Value = WindowLength> {
    NonEmptyStringValueParser::new().try_map(|seconds| seconds.trim().parse::<WindowLength>())
}

/// Returns the written bytes as text.
fn printed(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> Result<String, String> {
    let mut text = Vec::new();
    write(&mut text).map_err(|error| error.to_string())?;
    String::from_utf8(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
