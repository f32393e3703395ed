use std::fs;

use super::problem::wrong;
use super::*;

fn parse(args: &[&str]) -> Result<Config, String> {
    match parse_task(args)? {
        Task::Report(config) => Ok(*config),
        task => Err(format!("{task:?}")),
    }
}

fn parse_task(args: &[&str]) -> Result<Task, String> {
    parse_task_in(args, &[])
}

fn parse_task_in(args: &[&str], environment: &[(&str, &str)]) -> Result<Task, String> {
    let args = ["verve-reporter"].iter().chain(args).map(OsString::from);
    let environment: Vec<(OsString, OsString)> = environment
        .iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    parse_from("1.2.3", args, &environment).map_err(|refused| refused.to_string())
}

#[test]
fn dead_callbacks_are_found_by_the_same_flags_before_or_after() {
    for args in [
        ["--redis-urls", "redis://e.com", "dead", "--namespace", "n", "list"],
        ["dead", "list", "--redis-urls", "redis://e.com", "--namespace", "n"],
    ] {
        match parse_task(&args).expect("valid") {
            Task::Dead(
                Where { redis, keys },
                DeadCommand::List {
                    json: false,
                    limit: 100,
                },
            ) => {
                assert_eq!(redis.urls.first().to_string(), "redis://e.com");
                assert_eq!(keys.callbacks_dead(), "{n}:callbacks:dead");
            }
            task => panic!("{args:?}: {task:?}"),
        }
    }
}

#[test]
fn a_dead_callback_is_chosen_by_its_id_or_all_are() {
    for good in [
        &["retry", "1-0", "2-0"][..],
        &["drop", "1-0"],
        &["retry", "--all"],
        &["drop", "--all"],
    ] {
        let args = [&["dead"], good].concat();
        assert!(matches!(parse_task(&args), Ok(Task::Dead { .. })), "{args:?}");
    }
    for (bad, word) in [
        (&[][..], "list"),
        (&["retry"], "--all"),
        (&["drop"], "--all"),
        (&["retry", "--all", "1-0"], "--all"),
        (&["drop", "1-0", "--all"], "--all"),
        (&["retry", "1-0", "hunter"], "hunter"),
        (&["drop", "1"], "1795383012345-0"),
        (&["list", "1-0"], "1-0"),
        (&["list", "--limit", "0"], "--limit"),
        (&["list", "--redis-urls", "x"], "--redis-urls"),
        (&["bury"], "bury"),
    ] {
        let error = parse_task(&[&["dead"], bad].concat()).expect_err(word);
        assert!(error.contains(word) && !error.contains('\n'), "{bad:?}: {error}");
    }
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let config = parse(&[]).expect("valid");
    assert_eq!(config.redis.urls.first().to_string(), "redis://127.0.0.1:6379");
    assert_eq!(config.keys.callbacks(), "{verve}:callbacks");
    assert_eq!(config.windows.length.seconds(), 60);
    assert_eq!(
        (config.windows.grace.as_millis(), config.windows.late.as_secs()),
        (2000, 120)
    );
    assert_eq!(config.windows.idle.as_secs(), 3600);
    assert_eq!(config.windows.keep_reports.to_string(), "604800,1000000");
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
        ["--idle-seconds", "9"],
        ["--keep-reports", "7d"],
        ["--kafka-option", "hunter2"],
        ["--kafka-option", "no.such.option=hunter2"],
        // Refused only when a producer is created with it.
        ["--kafka-option", "security.protocol=ssl\nssl.ca.location=/no/such/file"],
        [
            "--kafka-option",
            "sasl.mechanism=NONE-SUCH\nsecurity.protocol=sasl_plaintext",
        ],
        ["--kafka-topic", "a b"],
        ["--kafka-topic", ""],
        ["--kafka-topic", ".."],
        ["--callback-url", "ftp://hunter2"],
        ["--callback-url", "http://127.0.0.1:8080/"],
        ["--callback-method", "put"],
        ["--callback-allow", "10.0.0.0/33"],
        ["--callback-attempts", "0"],
        ["--callback-secret", "whsec_hunter2"],
        ["--admin-token", "hunter2 "],
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

#[test]
fn transactions_are_on_unless_switched_off() {
    let id = |args: &[&str]| parse(args).expect("valid").kafka.transactional_id;
    assert_eq!(
        id(&["--namespace", "n"]),
        Some("verve-reporter:n:60:unique-requests".to_owned())
    );
    assert_eq!(
        id(&["--kafka-transactions", "true"]),
        Some("verve-reporter:verve:60:unique-requests".to_owned())
    );
    assert_eq!(id(&["--kafka-transactions", "false"]), None);
    assert!(parse(&["--kafka-transactions", "perhaps"]).is_err());
}

#[test]
fn an_unknown_setting_is_refused_with_a_suggestion() {
    for (args, environment, words) in [
        (&["--redis-url", "x"][..], &[][..], &["--redis-url", "--redis-urls"][..]),
        (&["doctr"], &[], &["doctr", "doctor"]),
        (
            &[],
            &[("VERVE_REDIS_URL", "x")],
            &["VERVE_REDIS_URL ", "VERVE_REDIS_URLS?"],
        ),
        (&["counts"], &[("VERVE_TYPO", "x")], &["VERVE_TYPO in the environment"]),
        (&[], &[("VERVE_PORT", "9090")], &["VERVE_PORT"]),
    ] {
        let error = parse_task_in(args, environment).expect_err(words[0]);
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    // Variables that Kubernetes sets automatically, and variables of other programs.
    let kubernetes = [
        ("VERVE_SERVICE_HOST", "10.0.0.1"),
        ("VERVE_SERVICE_PORT", "9090"),
        ("VERVE_SERVICE_PORT_ADMIN", "9090"),
        ("VERVE_PORT", "tcp://10.0.0.1:9090"),
        ("VERVE_PORT_9090_TCP", "tcp://10.0.0.1:9090"),
        ("VERVE_PORT_9090_TCP_ADDR", "10.0.0.1"),
        ("VERVE_REPORTER_PORT_9090_TCP_PROTO", "tcp"),
        ("SPIN_VARIABLE_REDIS_URLS", "redis://a"),
        ("VERVE_WINDOW_SECONDS", "60"),
        ("VERVE_CONFIG", ""),
    ];
    assert!(parse_task_in(&[], &kubernetes).is_ok());
}

#[test]
fn an_empty_value_counts_as_not_given_unless_it_is_a_secret() {
    let config = parse(&["--kafka-brokers=", "--callback-url="]).expect("valid");
    assert!(config.kafka.brokers.is_none() && config.windows.callback.is_none());
    for args in [
        "--admin-token=",
        "--callback-secret=",
        "--admin-token-file=",
        "--redis-urls=",
    ] {
        let error = parse(&[args]).expect_err(args);
        assert!(error.contains(args.trim_end_matches('=')), "{error}");
    }
}

#[test]
fn the_admin_port_listens_on_loopback_by_default() {
    let listen = |text: &str| parse(&["--listen", text]).map(|config| config.listen.to_string());
    for (text, expected) in [
        (":9091", "127.0.0.1:9091"),
        ("localhost:9091", "127.0.0.1:9091"),
        ("0.0.0.0:9091", "0.0.0.0:9091"),
        ("[::1]:9091", "[::1]:9091"),
    ] {
        assert_eq!(listen(text).as_deref(), Ok(expected));
    }
    for wrong in ["", ":", "9091", "localhost", ":99999"] {
        assert!(listen(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn an_error_in_the_environment_names_the_variable() {
    let environment = [("VERVE_LISTEN", "x"), ("VERVE_REDIS_URLS", "x"), ("HOME", "/")];
    let environment = environment.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let message = |args: &[&str], refused: Refused| refused.with_source(args.iter().map(OsString::from), &environment);
    assert_eq!(
        message(&["verve-reporter"], wrong("listen", "no").into()),
        "--listen: no (it is from VERVE_LISTEN in the environment)"
    );
    for given in ["--listen=y", "--listen"] {
        assert_eq!(message(&[given], wrong("listen", "no").into()), "--listen: no");
    }
    assert_eq!(message(&[], wrong("listener", "no").into()), "--listener: no");
    // The same for clap's errors.
    let refused = Args::command()
        .try_get_matches_from(["", "--grace-ms", "x"])
        .expect_err("no number");
    assert_eq!(Refused::Clap(refused).flags(), ["grace-ms"]);
}

#[test]
fn an_error_in_a_file_names_the_file() {
    let file = std::env::temp_dir().join(format!("verve-cli-{}.toml", std::process::id()));
    let config = format!("--config={}", file.display());
    let wrong = [
        "admin-token = \"hunter2 \"",
        "kafka-topic = \"\"",
        "kafka-option = [\"x\"]",
        "redis-key-file = \"/no/such\"",
        "grace-ms = \"x\"",
    ];
    for text in wrong {
        fs::write(&file, text).expect("written");
        let error = parse(&[&config]).expect_err(text);
        assert!(error.starts_with(&file.display().to_string()), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    // The command line takes precedence, and a problem there is not a problem of the file.
    fs::write(&file, "kafka-topic = \"x\"").expect("written");
    let error = parse(&[&config, "--kafka-topic=.."]).expect_err("no topic");
    assert!(error.starts_with("--kafka-topic"), "{error}");
    fs::remove_file(&file).expect("removed");
}
