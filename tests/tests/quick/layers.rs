//! The modules of each program have no circular imports, not even indirect ones.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use verve_tests::paths;

use crate::documents::{files, has_extension};

/// Returns which of a program's top modules use which others, without tests.
fn imports(program: &str) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let folder = format!("{program}/src");
    let sources = paths::repository().join(&folder);
    let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let files = files(&folder)?;
    let is_rust = |file: &&PathBuf| has_extension(file, &["rs"]);
    for file in files.iter().filter(is_rust) {
        let inside = file.strip_prefix(&sources)?;
        let first = inside.components().next().context("a file")?;
        let module = Path::new(first.as_os_str()).file_stem().context("a name")?;
        let module = module.to_string_lossy().into_owned();
        let text = fs::read_to_string(file)?;
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let uses = imports.entry(module.clone()).or_default();
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for used in line.split("crate::").skip(1) {
                let name: String = used
                    .chars()
                    .take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_')
                    .collect();
                if name != module && !name.is_empty() {
                    uses.insert(name);
                }
            }
        }
    }
    Ok(imports)
}

/// Returns the modules in import cycles, and those that use them.
///
/// It repeatedly removes the modules that use no remaining module.
fn circular(mut imports: BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, BTreeSet<String>> {
    loop {
        let names: BTreeSet<String> = imports.keys().cloned().collect();
        let before = imports.len();
        imports.retain(|_, uses| uses.iter().any(|used| names.contains(used)));
        if imports.len() == before {
            return imports;
        }
    }
}

#[test]
fn no_module_imports_one_that_imports_it() -> Result<()> {
    for (program, some) in [
        ("accept-component", ("accept", "response")),
        ("bench", ("requests", "load")),
        ("counter", ("counter", "spin3")),
        ("counter/core", ("stats", "spooled")),
        ("host", ("workers", "server")),
        ("reporter", ("windows", "store")),
        ("simulation", ("host", "executor")),
        ("tests", ("host", "process")),
        ("xtask", ("test", "cargo")),
    ] {
        let imports = imports(program)?;
        let known = imports.get(some.0).is_some_and(|uses| uses.contains(some.1));
        assert!(known, "{program}: nothing was read: {imports:?}");
        let circular = circular(imports);
        assert!(circular.is_empty(), "{program}: {circular:#?}");
    }
    Ok(())
}

#[test]
fn a_circle_is_found() {
    let uses = |pairs: &[(&str, &[&str])]| {
        let all = pairs.iter();
        let all = all.map(|(name, uses)| ((*name).to_owned(), uses.iter().map(|&used| used.to_owned()).collect()));
        circular(all.collect()).into_keys().collect::<Vec<_>>()
    };
    assert!(uses(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])]).is_empty());
    assert_eq!(
        uses(&[("a", &["b"]), ("b", &["c"]), ("c", &["a"]), ("d", &[])]),
        ["a", "b", "c"]
    );
}

/// No compiled program contains the path of its clone.
///
/// Clones may share a target folder.
#[test]
fn no_program_knows_where_it_was_compiled() -> Result<()> {
    let mut found = Vec::new();
    for folder in [
        "accept-component",
        "bench",
        "counter",
        "fuzz",
        "host",
        "protocol",
        "reporter",
        "simulation",
        "tests",
    ] {
        for file in files(folder)?.iter().filter(|file| has_extension(file, &["rs"])) {
            // This file asks at run time first.
            if file.ends_with("tests/src/paths.rs") {
                continue;
            }
            let text = fs::read_to_string(file)?;
            let knows = ["CARGO_MANIFEST_DIR", "CARGO_BIN_EXE_"].map(|name| format!("env!(\"{name}"));
            if knows.iter().any(|name| text.contains(name)) {
                found.push(file.display().to_string());
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
    Ok(())
}
