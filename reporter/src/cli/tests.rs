use super::*;

fn parse(args: &[&str]) -> Result<Config, String> {
    match parse_task(args)? {
        Task::Report(config) => Ok(*config),
        task => Err(format!("{task:?}")),
    }
}

fn parse_task(args: &[&str]) -> Result<Task, String> {
    parse_from("1.2.3", ["verve-reporter"].iter().chain(args).map(OsString::from))
        .map_err(|refused| refused.to_string())
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
