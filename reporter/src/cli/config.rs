//! Converts the parsed settings into a [`Config`], and checks them together.

use std::fmt;
use std::fs;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::Duration;

use redis::{ClientTlsConfig, TlsCertificates};
use verve_protocol::{Endpoint, Keys};

use super::problem::{Problem, wrong, wrong_together};
use super::{Args, Config};
use crate::admin::Token;
use crate::callbacks::{CallbacksConfig, Policy, Signer};
use crate::kafka::KafkaConfig;
use crate::periods::Periods;
use crate::store::RedisConfig;
use crate::windows::WindowsConfig;

pub fn redis(args: &Args) -> Result<RedisConfig, Problem> {
    let urls = args.redis_urls.parse().map_err(|error| wrong("redis-urls", error))?;
    let read = |flag: &str, path: &Option<PathBuf>| -> Result<Option<Vec<u8>>, Problem> {
        let Some(path) = path else { return Ok(None) };
        let read = fs::read(path).map(Some);
        read.map_err(|error| wrong(flag, format!("{}: {error}", path.display())))
    };
    let root_cert = read("redis-ca-file", &args.redis_ca_file)?;
    let client_tls = match (
        read("redis-cert-file", &args.redis_cert_file)?,
        read("redis-key-file", &args.redis_key_file)?,
    ) {
        (Some(client_cert), Some(client_key)) => Some(ClientTlsConfig {
            client_cert,
            client_key,
        }),
        (None, None) => None,
        _ => return Err(wrong_together(&["redis-cert-file", "redis-key-file"], "expected both")),
    };
    let given = root_cert.is_some() || client_tls.is_some();
    let redis = RedisConfig {
        urls,
        tls: given.then_some(TlsCertificates { client_tls, root_cert }),
        partitions: args.partitions,
    };
    let checked = redis.check();
    let files = ["redis-ca-file", "redis-cert-file", "redis-key-file"];
    checked.map_err(|problem| wrong_together(&files, problem))?;
    Ok(redis)
}

/// Reads a secret that is given as a flag or in a file. Errors do not show it.
fn secret<T, E: fmt::Display>(
    flag: &str,
    given: Option<String>,
    file: Option<PathBuf>,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<Option<T>, Problem> {
    if given.as_ref().is_some_and(String::is_empty) {
        return Err(wrong(flag, "is empty; expected a secret, or none to be given at all"));
    }
    let of_file = format!("{flag}-file");
    let (flag, text) = match (given, file) {
        (Some(_), Some(_)) => return Err(wrong_together(&[flag, &of_file], "expected one of them")),
        (Some(given), None) => (flag, given),
        (None, Some(path)) => {
            let text = fs::read_to_string(&path);
            let text = text.map_err(|error| wrong(&of_file, format!("{}: {error}", path.display())))?;
            (of_file.as_str(), text.trim().to_owned())
        }
        (None, None) => return Ok(None),
    };
    parse(&text).map(Some).map_err(|error| wrong(flag, error))
}

/// Parses an address and a port.
///
/// Accepts names such as localhost, and prefers IPv4. Without an address (`:9090`) the port is open
/// on 127.0.0.1 only.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let expected = || "expected an address and a port, such as 127.0.0.1:9090".to_owned();
    let text = match text.strip_prefix(':') {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    let addresses: Vec<SocketAddr> = text.to_socket_addrs().map_err(|_| expected())?.collect();
    let ipv4 = addresses.iter().find(|address| address.is_ipv4());
    ipv4.or(addresses.first()).copied().ok_or_else(expected)
}

/// Returns whether brokers accept a topic of this name.
fn is_topic(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=249).contains(&name.len()) && name.chars().all(is_allowed) && name != "." && name != ".."
}

pub fn config(args: Args) -> Result<Config, Problem> {
    let periods = Periods::divided(args.divide_periods);
    let redis = redis(&args)?;
    let fixed = match args.callback_url.filter(|url| !url.is_empty()) {
        None => None,
        Some(url) => {
            let endpoint: Endpoint = url.parse().map_err(|error| wrong("callback-url", error))?;
            Some((endpoint, args.callback_method))
        }
    };
    let policy = Policy::try_new(&args.callback_allow, args.callback_allow_only)
        .map_err(|error| wrong("callback-allow", error))?;
    if let Some((endpoint, _)) = &fixed {
        policy
            .check_literal(&endpoint.to_url())
            .map_err(|error| wrong("callback-url", error))?;
    }
    let callback_lengths = match args.callback_lengths.as_slice() {
        [] => vec![args.window_seconds.main()],
        lengths => lengths.to_vec(),
    };
    if let Some(other) = callback_lengths
        .iter()
        .find(|other| !args.window_seconds.all().any(|length| length == **other))
    {
        let expected = format!("expected some of --window-seconds, {}", args.window_seconds);
        return Err(wrong("callback-lengths", format!("{other}: {expected}")));
    }
    let signer = secret(
        "callback-secret",
        args.callback_secret,
        args.callback_secret_file,
        |secrets| secrets.lines().collect::<Vec<_>>().join(",").parse::<Signer>(),
    )?;
    let admin_token = secret("admin-token", args.admin_token, args.admin_token_file, |token| {
        Token::try_new(token.to_owned())
    })?;
    let mut options = Vec::new();
    for option in args.kafka_option.iter().filter(|option| !option.trim().is_empty()) {
        let (key, value) = option
            .split_once('=')
            .ok_or_else(|| wrong("kafka-option", "expected KEY=VALUE, such as security.protocol=SSL"))?;
        options.push((key.trim().to_owned(), value.to_owned()));
    }
    let kafka = KafkaConfig {
        transactional_id: args.kafka_transactions.then(|| {
            format!(
                "verve-reporter:{}:{}:{}",
                args.namespace,
                args.window_seconds.main(),
                args.kafka_topic
            )
        }),
        brokers: args.kafka_brokers.filter(|brokers| !brokers.is_empty()),
        topic: args.kafka_topic,
        lengths: args.window_seconds.clone(),
        options,
        delivery: periods.delivery,
    };
    kafka.check().map_err(|problem| wrong("kafka-option", problem))?;
    if !is_topic(&kafka.topic) {
        let expected = "expected 1 to 249 of the characters A-Z a-z 0-9 . _ -, and not . or ..";
        return Err(wrong("kafka-topic", format!("{:?}: {expected}", kafka.topic)));
    }
    Ok(Config {
        redis,
        keys: Keys::new(args.namespace),
        windows: WindowsConfig {
            length: args.window_seconds.main(),
            is_main: true,
            grace: Duration::from_millis(args.grace_ms),
            late: Duration::from_secs(args.late_seconds),
            idle: Duration::from_secs(args.idle_seconds),
            keep_reports: args.keep_reports,
            callback: fixed,
            periods,
        },
        lengths: args.window_seconds,
        callback_lengths,
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
        metrics_counters: usize::try_from(args.metrics_counters).unwrap_or(usize::MAX),
        log_format: args.log_format,
    })
}
