//! The units of `deploy/systemd`, as far as they can be tested without an init.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use verve_tests::paths;

/// systemd accepts every line of the units, and rates their hardening as intended.
#[test]
fn the_units_are_valid_and_hardened() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (name, program) in [
        ("verve-host", paths::verve_host()?),
        ("verve-reporter", paths::verve_reporter()?),
    ] {
        let file = format!("{name}.service");
        let unit = fs::read_to_string(paths::repository().join("deploy/systemd").join(&file))?;
        // The check requires that the program exists.
        let installed = format!("/usr/local/bin/{name}");
        assert!(unit.contains(&installed), "{unit}");
        let unit = unit.replace(&installed, &program.display().to_string());
        let path = folder.path().join(&file);
        fs::write(&path, &unit)?;
        let analyze = |arguments: &[&str]| -> Result<String> {
            let output = Command::new("systemd-analyze").args(arguments).arg(&path).output();
            let output = output.context("systemd-analyze")?;
            let report = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            anyhow::ensure!(output.status.success(), "{name} {arguments:?}: {report}");
            Ok(report.into_owned())
        };
        // It reports lines that it does not understand, and continues.
        let report = analyze(&["verify", "--man=no"])?;
        assert!(!report.contains(&file), "{report}");
        // 0 is best, 100 is worst.
        analyze(&["security", "--offline=true", "--threshold=20"])?;
        // Mistakes are found.
        fs::write(&path, unit.replace("Restart=always", "Restart=perhaps"))?;
        let report = analyze(&["verify", "--man=no"]).unwrap_or_else(|error| error.to_string());
        assert!(report.contains(&file), "{report}");
    }
    Ok(())
}
