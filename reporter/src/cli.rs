//! The command line and the environment, parsed whole into a `Config`.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use verve_protocol::{Endpoint, Keys, Method, Namespace, RedisUrls, WindowLength};

use crate::callbacks::Policy;

/// The exit code for a bad command line: `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;

/// Counts the unique ids of each closed window, publishes the counts to Kafka, and delivers callbacks.
///
/// Runs beside Redis, in any number of replicas: one of them reports windows, all deliver callbacks.
#[derive(Parser, Debug)]
#[command(name = "verve-reporter", version, allow_negative_numbers = true)]
struct Args {
    /// Redis servers, comma-separated: the same list in the same order as the component's `redis_urls`
    // Parsed after clap, whose errors show the value, and so a password.
    #[arg(
        long,
        env,
        value_name = "URLS",
        default_value = "redis://127.0.0.1:6379",
        hide_env_values = true
    )]
    redis_urls: String,
    /// What all keys in Redis begin with: the same as the component's `namespace`
    #[arg(long, env, default_value = "verve")]
    namespace: Namespace,
    /// Length of a window, in seconds: the same as the component's `window_seconds`
    #[arg(long, env, value_name = "SECONDS", default_value = "60")]
    window_seconds: WindowLength,
    /// How long after a window's end it is first reported, in milliseconds (at most 10 minutes)
    #[arg(long, env, value_name = "MS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(0..=600_000))]
    grace_ms: u64,
    /// How long a reported window is still watched for late ids, in seconds (at most 12 hours)
    #[arg(long, env, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(0..=43_200))]
    late_seconds: u64,
    /// Kafka brokers, `host:port`, comma-separated; without them counts are only logged
    #[arg(long, env, value_name = "HOST:PORT")]
    kafka_brokers: Option<String>,
    /// Kafka topic of the counts
    #[arg(long, env, default_value = "unique-requests")]
    kafka_topic: String,
    /// A librdkafka setting, such as `security.protocol=SSL`; repeatable (in the environment: one a line)
    #[arg(long, env, value_name = "KEY=VALUE", value_delimiter = '\n', hide_env_values = true)]
    kafka_option: Vec<String>,
    /// A fixed callback for every reported window
    #[arg(long, env, value_name = "URL", hide_env_values = true)]
    callback_url: Option<String>,
    /// How the fixed callback is called: get or post
    #[arg(long, env, value_name = "METHOD", default_value = "post")]
    callback_method: Method,
    /// Hosts, addresses or CIDRs that callbacks may reach although they are private; repeatable, or comma-separated
    #[arg(long, env, value_name = "HOST|CIDR", value_delimiter = ',')]
    callback_allow: Vec<String>,
    /// Callbacks may reach what --callback-allow lists, and nothing else
    #[arg(long, env, value_parser = clap::builder::FalseyValueParser::new())]
    callback_allow_only: bool,
    /// How often a callback is tried before it is given up on
    #[arg(long, env, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=100))]
    callback_attempts: u32,
    /// The wait before a callback's second attempt, in milliseconds; doubled, with jitter, for each further one
    #[arg(long, env, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    callback_backoff_ms: u64,
    /// Address of the admin port: /healthz, /readyz
    #[arg(long, env, value_name = "ADDRESS", default_value = "127.0.0.1:9090")]
    listen: SocketAddr,
    /// text or json
    #[arg(long, env, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("expected text or json".to_owned()),
        }
    }
}

/// What the reporter is configured to do.
#[derive(Clone, Debug)]
pub struct Config {
    pub redis_urls: RedisUrls,
    pub keys: Keys,
    pub window_length: WindowLength,
    /// From a window's end to its first report.
    pub grace: Duration,
    /// From a window's first report on: how long late ids correct it.
    pub late: Duration,
    pub kafka: KafkaConfig,
    pub callback: CallbackConfig,
    pub listen: SocketAddr,
    pub log_format: LogFormat,
}

/// Where records go.
#[derive(Clone, Debug)]
pub struct KafkaConfig {
    /// Without brokers, counts are only logged.
    pub brokers: Option<String>,
    pub topic: String,
    /// librdkafka settings; may hold passwords.
    pub options: Vec<(String, String)>,
}

/// How callbacks are delivered.
#[derive(Clone, Debug)]
pub struct CallbackConfig {
    /// The fixed callback.
    pub fixed: Option<(Endpoint, Method)>,
    pub policy: Policy,
    pub attempts: u32,
    /// Before the second attempt.
    pub backoff: Duration,
}

/// Reads the command line and the environment. What is wrong is said in one line on standard error.
pub fn parse() -> Result<Config, ExitCode> {
    parse_from(std::env::args_os()).map_err(|refused| {
        if let Refused::Clap(help) = &refused
            && !help.use_stderr()
        {
            print!("{help}");
            return ExitCode::SUCCESS;
        }
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
            // clap explains itself over several lines; the first says what was wrong.
            Self::Clap(error) => {
                let text = error.to_string();
                let line = text.lines().next().unwrap_or_default();
                f.write_str(line.strip_prefix("error: ").unwrap_or(line))
            }
            Self::Value(text) => f.write_str(text),
        }
    }
}

fn parse_from(args: impl IntoIterator<Item = OsString>) -> Result<Config, Refused> {
    let args = Args::try_parse_from(args).map_err(Refused::Clap)?;
    config(args).map_err(Refused::Value)
}

fn config(args: Args) -> Result<Config, String> {
    let fixed = match args.callback_url {
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
    let mut options = Vec::new();
    for option in args.kafka_option.iter().filter(|option| !option.trim().is_empty()) {
        let (key, value) = option
            .split_once('=')
            .ok_or("--kafka-option: expected KEY=VALUE, such as security.protocol=SSL")?;
        options.push((key.trim().to_owned(), value.to_owned()));
    }
    let kafka = KafkaConfig {
        brokers: args.kafka_brokers,
        topic: args.kafka_topic,
        options,
    };
    kafka.check()?;
    Ok(Config {
        redis_urls: args
            .redis_urls
            .parse()
            .map_err(|error| format!("--redis-urls: {error}"))?,
        keys: Keys::new(args.namespace),
        window_length: args.window_seconds,
        grace: Duration::from_millis(args.grace_ms),
        late: Duration::from_secs(args.late_seconds),
        kafka,
        callback: CallbackConfig {
            fixed,
            policy,
            attempts: args.callback_attempts,
            backoff: Duration::from_millis(args.callback_backoff_ms),
        },
        listen: args.listen,
        log_format: args.log_format,
    })
}

/// Sends log lines to standard error. `RUST_LOG` chooses which; by default those of level info and above.
pub fn init_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => registry.with(lines.with_ansi(false)).init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Config, String> {
        parse_from(["verve-reporter"].iter().chain(args).map(OsString::from)).map_err(|refused| refused.to_string())
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let config = parse(&[]).expect("valid");
        assert_eq!(config.redis_urls.first().to_string(), "redis://127.0.0.1:6379");
        assert_eq!(config.keys.callbacks(), "verve:callbacks");
        assert_eq!(config.window_length.seconds(), 60);
        assert_eq!((config.grace.as_millis(), config.late.as_secs()), (2000, 120));
        assert_eq!(
            (config.kafka.brokers, config.kafka.topic.as_str()),
            (None, "unique-requests")
        );
        assert_eq!(config.listen.to_string(), "127.0.0.1:9090");
        assert_eq!(config.log_format, LogFormat::Text);
    }

    #[test]
    fn a_bad_value_is_refused_with_its_flag_and_without_secrets() {
        for args in [
            ["--redis-urls", "http://u:hunter2@a"],
            ["--namespace", "a b"],
            ["--window-seconds", "0"],
            ["--grace-ms", "-1"],
            ["--late-seconds", "x"],
            ["--kafka-option", "hunter2"],
            ["--kafka-option", "no.such.option=hunter2"],
            ["--callback-url", "ftp://hunter2"],
            ["--callback-url", "http://127.0.0.1:8080/"],
            ["--callback-method", "put"],
            ["--callback-allow", "10.0.0.0/33"],
            ["--callback-attempts", "0"],
            ["--listen", "nowhere"],
            ["--log-format", "xml"],
            ["--no-such-flag", "x"],
        ] {
            let error = parse(&args).expect_err(args[1]);
            assert!(error.contains(args[0]), "{args:?}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn kafka_options_are_split_at_the_first_equals_sign() {
        let config = parse(&["--kafka-option", "sasl.password=a=b"]).expect("valid");
        assert_eq!(config.kafka.options, [("sasl.password".to_owned(), "a=b".to_owned())]);
    }
}
