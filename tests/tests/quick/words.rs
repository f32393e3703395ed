//! The texts of the project are in plain English.
//!
//! The list holds words and phrases that hide who does what, or that have a standard term.
//! `docs/glossary.md` has the terms to use.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use verve_tests::paths;

use crate::documents::{files, has_extension};

/// Words and phrases that are not used, each with what to write.
const NOT_PLAIN: [(&str, &str); 29] = [
    ("whoever", "name the actor"),
    ("whatever", "name the things"),
    ("somebody", "name the actor"),
    ("gone on with", "resumed"),
    ("goes on with", "resumes"),
    ("mended", "fixed"),
    ("to be warned of", "warnings"),
    ("as ever", "as usual"),
    ("by turns", "alternately"),
    ("what there is", "the list"),
    ("what came of", "the outcome"),
    ("what comes of", "the outcome"),
    ("takes note", "records"),
    ("take note", "record"),
    ("without a word", "silently"),
    ("at once", "immediately, or: in one command, at the same time"),
    ("is away", "is unreachable"),
    ("are away", "are unreachable"),
    ("was away", "was unreachable"),
    ("is back", "is reachable again"),
    ("by itself", "automatically, or: alone"),
    ("put aside", "kept apart"),
    ("said", "the thing: an answer, an output, a message"),
    ("told", "notified, or: logged, reported, published"),
    ("untold", "unpublished"),
    ("anew", "again"),
    ("amid", "during, while"),
    ("news", "a revision, an update"),
    ("says so", "logs it, prints it, reports it"),
];

/// Folders with texts.
const FOLDERS: [&str; 15] = [
    ".github",
    "accept-component",
    "bench",
    "counter",
    "deploy",
    "docs",
    "examples",
    "fuzz",
    "host",
    "protocol",
    "reporter",
    "simulation",
    "tests",
    "wit",
    "xtask",
];

/// The longest line of a comment, in columns.
const COMMENT_WIDTH: usize = 100;

/// The longest first line of a doc comment, in characters: it is a summary.
const SUMMARY_WIDTH: usize = 80;

/// Returns the files that hold texts, without this one.
fn texts() -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for folder in FOLDERS {
        all.extend(files(folder)?);
    }
    let roots = [
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Cargo.toml",
        "README.md",
        "SECURITY.md",
        "spin.toml",
    ];
    all.extend(roots.map(|name| paths::repository().join(name)));
    all.retain(|file| {
        let of_text = ["conf", "lua", "md", "py", "rs", "service", "toml", "wit", "yaml", "yml"];
        has_extension(file, &of_text) && !file.ends_with("quick/words.rs")
    });
    Ok(all)
}

/// Returns whether a line has a phrase, as whole words.
fn has(line: &str, phrase: &str) -> bool {
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(phrase)
        .any(|(at, _)| !is_word(line[..at].chars().next_back()) && !is_word(line[at + phrase.len()..].chars().next()))
}

fn shown(file: &Path, number: usize) -> String {
    let file = file.strip_prefix(paths::repository()).unwrap_or(file);
    format!("{}:{}", file.display(), number + 1)
}

#[test]
fn texts_are_in_plain_english() -> Result<()> {
    let mut found = Vec::new();
    for file in texts()? {
        for (number, line) in fs::read_to_string(&file)?.lines().enumerate() {
            let line = line.to_lowercase();
            let phrases = NOT_PLAIN.iter().filter(|(phrase, _)| has(&line, phrase));
            found.extend(
                phrases.map(|(phrase, better)| format!("{}: {phrase:?}: write {better}", shown(&file, number))),
            );
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}

/// Returns the places of the lines of Rust code that `is_wrong` finds.
fn wrong_lines(mut is_wrong: impl FnMut(&str) -> bool) -> Result<String> {
    let mut found = Vec::new();
    for file in texts()?.iter().filter(|file| has_extension(file, &["rs"])) {
        for (number, line) in fs::read_to_string(file)?.lines().enumerate() {
            if is_wrong(line) {
                found.push(shown(file, number));
            }
        }
    }
    Ok(found.join("\n"))
}

#[test]
fn comments_are_no_wider_than_they_should_be() -> Result<()> {
    let found = wrong_lines(|line| {
        let comment = line.trim_start();
        // A row of a table cannot be wrapped.
        let is_row = comment.trim_start_matches(['/', '!']).trim_start().starts_with('|');
        comment.starts_with("//") && !is_row && line.chars().count() > COMMENT_WIDTH
    })?;
    assert!(found.is_empty(), "over {COMMENT_WIDTH} columns:\n{found}");
    Ok(())
}

#[test]
fn doc_comments_begin_with_a_short_line() -> Result<()> {
    let mut in_comment = false;
    let found = wrong_lines(|line| {
        let line = line.trim_start();
        let text = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
        let is_first = !in_comment;
        in_comment = text.is_some();
        text.is_some_and(|text| is_first && text.trim().chars().count() > SUMMARY_WIDTH)
    })?;
    assert!(found.is_empty(), "over {SUMMARY_WIDTH} characters:\n{found}");
    Ok(())
}

#[test]
fn a_phrase_is_found_as_whole_words() {
    assert!(has("redis is away.", "is away") && has("is away", "is away"));
    assert!(!has("this away", "is away") && !has("a_server_that_is_away", "is away") && !has("is away_for", "is away"));
}
