//! Runs some parts of the benchmark, as short as possible.

use std::fs;
use std::process::Command;

use anyhow::Result;

#[test]
fn parts_are_measured_and_written() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let page = folder.path().join("page.md");
    let output = Command::new(verve_tests::paths::program("verve-bench")?)
        .args([
            "--only",
            "component,commands",
            "--rounds",
            "1",
            "--seconds",
            "1",
            "--page",
        ])
        .arg(&page)
        .output()?;
    let log = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    let text = fs::read_to_string(&page)?;
    for row in [
        "| size of hello |",
        "| to instantiate hello, and end it |",
        "| verve-host |",
    ] {
        assert!(text.contains(row), "no {row}: {text}");
    }
    Ok(())
}
