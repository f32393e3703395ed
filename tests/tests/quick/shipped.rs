//! The files in `deploy/` agree with the programs, each other, and their promises.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::Value;
use verve_tests::paths;
use verve_tests::shipped::{compose, instructions, strings, text, the_instruction, yaml};

use crate::documents::{Help, files, flags_in, has_extension, spin_variables};

fn kubernetes() -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for file in files("deploy/kubernetes")?.into_iter().chain(files("deploy/spinkube")?) {
        all.extend(yaml(&file)?);
    }
    Ok(all)
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

fn keys(value: &Value) -> BTreeSet<String> {
    value
        .as_object()
        .map(|map| map.keys().cloned().collect())
        .unwrap_or_default()
}

/// Each script for Redis is tested on each kind of Redis.
#[test]
fn each_script_is_tried() -> Result<()> {
    let scripts = text("protocol/src/scripts.rs")?;
    let names: Vec<&str> = scripts
        .lines()
        .filter_map(|line| line.trim().strip_suffix(".lua\";")?.split_once(": \""))
        .map(|(name, _)| name)
        .collect();
    assert!(names.len() > 20, "{names:?}");
    let tried = text("tests/tests/e2e/deploy/redis_scripts.rs")?;
    let words: BTreeSet<&str> = tried.split(|c: char| !c.is_ascii_uppercase() && c != '_').collect();
    let is_tried = |name: &&&str| words.contains(**name);
    let untried: Vec<&&str> = names.iter().filter(|name| !is_tried(name)).collect();
    assert!(untried.is_empty(), "{untried:?}");
    Ok(())
}

#[test]
fn every_yaml_file_parses() -> Result<()> {
    let all = files("deploy")?.into_iter().chain(files(".github")?);
    let all: Vec<_> = all.filter(|file| has_extension(file, &["yaml", "yml"])).collect();
    assert!(all.len() >= 10, "{all:?}");
    for file in all {
        let documents = yaml(&file)?;
        assert!(
            !documents.is_empty() && documents.iter().all(Value::is_object),
            "{}",
            file.display()
        );
    }
    Ok(())
}

#[test]
fn every_variable_and_flag_exists() -> Result<()> {
    let (reporter, host) = (Help::reporter()?, Help::host()?);
    let spin = spin_variables()?;
    let in_host: BTreeSet<String> = spin
        .iter()
        .map(|n| format!("SPIN_VARIABLE_{}", n.to_uppercase()))
        .collect();
    let mut sets = Vec::new();
    for (name, service) in compose()? {
        let known = match service["image"].as_str().unwrap_or_default() {
            image if image.starts_with("verve-reporter:") => reporter.variables(),
            image if image.starts_with("verve-host:") => in_host.clone(),
            _ => continue,
        };
        sets.push((name, keys(&service["environment"]), known));
    }
    let objects = kubernetes()?;
    let named = |list: &Value| -> BTreeSet<String> {
        let names = list
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|one| one["name"].as_str());
        names.map(str::to_owned).collect()
    };
    for app in of_kind(&objects, "SpinApp") {
        sets.push(("SpinApp".to_owned(), named(&app["spec"]["variables"]), spin.clone()));
    }
    for deployment in of_kind(&objects, "Deployment") {
        let set = named(&deployment["spec"]["template"]["spec"]["containers"][0]["env"]);
        sets.push(("Deployment".to_owned(), set, reporter.variables()));
    }
    for hosts in of_kind(&objects, "StatefulSet") {
        let container = &hosts["spec"]["template"]["spec"]["containers"][0];
        sets.push(("StatefulSet".to_owned(), named(&container["env"]), in_host.clone()));
        let flags = flags_in(&strings(&container["args"]).join(" "));
        assert!(flags.is_subset(&host.flags()), "StatefulSet: {flags:?}");
    }
    assert_eq!(
        sets.len(),
        7,
        "3 hosts and a reporter in compose, an app, hosts and a deployment in Kubernetes"
    );
    for (name, set, known) in sets {
        assert!(!set.is_empty(), "{name} sets nothing");
        let unknown: Vec<_> = set.difference(&known).collect();
        assert!(
            unknown.is_empty(),
            "{name} sets {unknown:?}, which the program does not know"
        );
    }
    for (program, help) in [("host", host), ("reporter", reporter)] {
        let mut named = flags_in(&the_instruction(program, "ENTRYPOINT")?);
        named.extend(instructions(program, "CMD")?.iter().flat_map(|line| flags_in(line)));
        assert!(named.is_subset(&help.flags()), "Containerfile.{program}: {named:?}");
        for line in instructions(program, "ENV")? {
            let name = line.split('=').next().unwrap_or_default().to_owned();
            // PATH is for the shells of others, and the second variable is for OpenSSL.
            if name == "PATH" {
                assert_eq!(
                    line,
                    "PATH=/usr/local/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"
                );
                continue;
            }
            assert!(help.variables().contains(&name), "Containerfile.{program}: ENV {name}");
        }
    }
    Ok(())
}

#[test]
fn ports_agree() -> Result<()> {
    let host = the_instruction("host", "EXPOSE")?;
    assert_eq!(
        the_instruction("host", "CMD")?,
        format!(r#"["--listen", "0.0.0.0:{host}"]"#)
    );
    let nginx = text("deploy/nginx.conf")?;
    let upstreams: BTreeSet<&str> = nginx
        .lines()
        .filter_map(|line| line.trim().strip_prefix("server ")?.split(' ').next())
        .filter(|server| *server != "{")
        .collect();
    let services = compose()?;
    let is_host = |service: &Value| {
        service["image"]
            .as_str()
            .is_some_and(|image| image.starts_with("verve-host:"))
    };
    let hosts: BTreeSet<String> = services
        .iter()
        .filter(|(_, service)| is_host(service))
        .map(|(name, _)| format!("{name}:{host}"))
        .collect();
    assert_eq!(upstreams, hosts.iter().map(String::as_str).collect());
    assert_eq!(hosts.len(), 3);

    let admin = the_instruction("reporter", "EXPOSE")?;
    let set = instructions("reporter", "ENV")?;
    assert!(set.contains(&format!("VERVE_LISTEN=0.0.0.0:{admin}")), "{set:?}");
    assert_eq!(
        services["reporter"]["environment"]["VERVE_LISTEN"],
        format!("0.0.0.0:{admin}")
    );
    let scrape = yaml(&paths::repository().join("deploy/prometheus.yml"))?.remove(0);
    let discovery = &scrape["scrape_configs"][0]["dns_sd_configs"][0];
    assert_eq!(
        (&discovery["names"][0], discovery["port"].to_string()),
        (&"reporter".into(), admin.clone())
    );

    let objects = kubernetes()?;
    let deployment = of_kind(&objects, "Deployment")[0];
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["ports"][0]["containerPort"].to_string(), admin);
    let name = &container["ports"][0]["name"];
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        assert_eq!(
            container[probe]["httpGet"],
            serde_json::json!({"path": path, "port": name})
        );
    }
    let listen = strings_of_env(container, "VERVE_LISTEN");
    assert_eq!(listen, format!("0.0.0.0:{admin}"));

    let container = &of_kind(&objects, "StatefulSet")[0]["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["ports"][0]["containerPort"].to_string(), host);
    let listen = format!("0.0.0.0:{host}");
    assert!(strings(&container["args"]).contains(&listen), "{container}");
    let policies = yaml(&paths::repository().join("deploy/kubernetes/networkpolicy.yaml"))?;
    assert_eq!(policies[0]["spec"]["ingress"][0]["ports"][0]["port"].to_string(), host);
    Ok(())
}

/// A host has enough time to stop after SIGTERM.
///
/// It needs the time in which it continues to serve, 30 s for requests in progress, and 5 s for the
/// work after the responses.
#[test]
fn hosts_have_time_to_stop() -> Result<()> {
    let objects = kubernetes()?;
    let pod = &of_kind(&objects, "StatefulSet")[0]["spec"]["template"]["spec"];
    let args = strings(&pod["containers"][0]["args"]);
    let at = args
        .iter()
        .position(|arg| *arg == "--stop-grace")
        .context("--stop-grace")?;
    let serves_on: u64 = args[at + 1].trim_end_matches('s').parse()?;
    let has = pod["terminationGracePeriodSeconds"]
        .as_u64()
        .context("a grace period")?;
    assert!(has >= serves_on + 35, "{has} s");
    let unit = text("deploy/systemd/verve-host.service")?;
    let has = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec="));
    let has: u64 = has.context("TimeoutStopSec")?.trim_end_matches('s').parse()?;
    // The default of --stop-grace.
    assert!(has >= 5 + 35, "{has} s");
    Ok(())
}

/// A kustomization names only files that exist, and all files of its folder.
///
/// An optional file is named in a comment.
#[test]
fn each_file_for_kubernetes_is_named() -> Result<()> {
    for folder in ["deploy/kubernetes", "deploy/kubernetes/base", "deploy/spinkube"] {
        let kustomization = text(&format!("{folder}/kustomization.yaml"))?;
        let named = kustomization
            .lines()
            .filter_map(|line| line.trim().trim_start_matches("# ").strip_prefix("- "));
        let named: BTreeSet<&str> = named.filter(|name| !name.contains(':')).collect();
        let folder = paths::repository().join(folder);
        for name in &named {
            assert!(folder.join(name).exists(), "{}: {name}", folder.display());
        }
        for entry in std::fs::read_dir(&folder)? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            assert!(
                name == "kustomization.yaml" || named.contains(&*name),
                "{}: {name}",
                folder.display()
            );
        }
    }
    Ok(())
}

#[test]
fn units_start_programs_with_flags_that_they_have() -> Result<()> {
    for (program, help) in [("verve-host", Help::host()?), ("verve-reporter", Help::reporter()?)] {
        let unit = text(&format!("deploy/systemd/{program}.service"))?;
        let start = unit
            .lines()
            .find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/"));
        let (name, flags) = start.and_then(|start| start.split_once(' ')).context("ExecStart")?;
        assert_eq!(name, program);
        let flags = flags_in(flags);
        assert!(
            !flags.is_empty() && flags.is_subset(&help.flags()),
            "{program}: {flags:?}"
        );
    }
    Ok(())
}

fn strings_of_env(container: &Value, name: &str) -> String {
    let all = container["env"].as_array().into_iter().flatten();
    let found = all
        .filter(|one| one["name"] == name)
        .find_map(|one| one["value"].as_str());
    found.unwrap_or_default().to_owned()
}

#[test]
fn every_image_has_a_tag() -> Result<()> {
    let mut images: Vec<String> = Vec::new();
    let toolchain: toml::Table = text("rust-toolchain.toml")?.parse()?;
    let rust = toolchain["toolchain"]["channel"].as_str().context("a channel")?;
    for program in ["host", "reporter"] {
        let from = instructions(program, "FROM")?;
        assert_eq!(from.len(), 2, "Containerfile.{program}");
        assert!(
            from[0].starts_with(&format!("rust:{rust}-")),
            "Containerfile.{program}: another Rust than {rust}"
        );
        assert_eq!(from[1], "scratch", "Containerfile.{program}");
        images.extend(from[0].split(' ').next().map(str::to_owned));
    }
    for service in compose()?.into_values() {
        images.extend(service["image"].as_str().map(str::to_owned));
    }
    for object in kubernetes()? {
        let spec = &object["spec"];
        let found = [&spec["image"], &spec["template"]["spec"]["containers"][0]["image"]];
        images.extend(found.iter().filter_map(|image| image.as_str()).map(str::to_owned));
    }
    assert!(images.len() > 11, "{images:?}");
    for image in &images {
        let tag = image
            .rsplit('/')
            .next()
            .and_then(|name| name.split_once(':'))
            .map(|(_, tag)| tag);
        assert!(
            tag.is_some_and(|tag| !tag.is_empty() && tag != "latest"),
            "{image} has no tag"
        );
    }
    // All files use the Kafka version that the tests run on.
    let pom = text("tests/kafka/pom.xml")?;
    let version = pom
        .split("<kafka.version>")
        .nth(1)
        .and_then(|rest| rest.split('<').next());
    let kafka = format!("apache/kafka:{}", version.context("<kafka.version>")?);
    assert!(images.contains(&kafka), "{kafka} is not among {images:?}");
    assert!(
        text(".github/workflows/ci.yml")?.contains(&kafka),
        "CI runs another Kafka than {kafka}"
    );
    Ok(())
}

#[test]
fn no_service_has_more_rights_than_it_needs() -> Result<()> {
    for (name, service) in compose()? {
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(strings(&service["cap_drop"]), ["ALL"], "{name}");
        assert_eq!(strings(&service["security_opt"]), ["no-new-privileges:true"], "{name}");
        for limit in ["cpus", "memory", "pids"] {
            assert!(
                !service["deploy"]["resources"]["limits"][limit].is_null(),
                "{name}: no limit of {limit}"
            );
        }
        // Our images contain a health check. A service that ends on its own needs none.
        let ours = service["image"]
            .as_str()
            .is_some_and(|image| image.starts_with("verve-"));
        assert_eq!(service["healthcheck"].is_null(), ours || name == "topic", "{name}");
        let published = strings(&service["ports"]);
        let reachable = published.iter().any(|port| !port.starts_with("127.0.0.1:"));
        assert_eq!(reachable, name == "nginx", "{name} publishes {published:?}");
    }
    let objects = kubernetes()?;
    for (kind, program) in [("StatefulSet", "host"), ("Deployment", "reporter")] {
        let pod = &of_kind(&objects, kind)[0]["spec"]["template"]["spec"];
        let user = &pod["securityContext"]["runAsUser"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["automountServiceAccountToken"], false);
        let container = &pod["containers"][0]["securityContext"];
        assert_eq!(container["readOnlyRootFilesystem"], true);
        assert_eq!(container["allowPrivilegeEscalation"], false);
        assert_eq!(strings(&container["capabilities"]["drop"]), ["ALL"]);
        let account = the_instruction(program, "USER")?;
        assert_eq!(account, format!("{user}:{user}"), "Containerfile.{program}");
    }
    Ok(())
}

/// `.dockerignore` keeps exactly what an image is built from.
///
/// These are the whole workspace and the files that the build needs.
#[test]
fn images_are_built_from_the_whole_workspace() -> Result<()> {
    let workspace: toml::Table = text("Cargo.toml")?.parse()?;
    let members: Vec<String> = workspace["workspace"]["members"].clone().try_into()?;
    let ignored = text(".dockerignore")?;
    let kept: BTreeSet<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    assert!(ignored.lines().any(|line| line == "*"), "everything else is left out");
    let others = [".cargo", "Cargo.lock", "Cargo.toml", "docs", "spin.toml", "wit"];
    let folders = members.iter().filter_map(|member| member.split('/').next());
    let needed: BTreeSet<&str> = folders.chain(others).collect();
    assert_eq!(kept, needed);
    Ok(())
}
