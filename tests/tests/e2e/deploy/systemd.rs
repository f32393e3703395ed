//! The units of `deploy/systemd`, as far as they can be tried without an init of one's own.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use verve_tests::paths;

/// systemd understands every line of them, and finds them as hardened as they are meant to be.
#[test]
fn the_units_are_valid_and_hardened() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (name, program) in [
        ("verve-host", paths::verve_host()?),
        ("verve-reporter", paths::verve_reporter()?),
    ] {
        let file = format!("{name}.service");
        let unit = fs::read_to_string(paths::repository().join("deploy/systemd").join(&file))?;
        // It looks whether the program is there.
        let installed = format!("/usr/local/bin/{name}");
        assert!(unit.contains(&installed), "{unit}");
        let unit = unit.replace(&installed, &program.display().to_string());
        let path = folder.path().join(&file);
        fs::write(&path, &unit)?;
        let analyze = |arguments: &[&str]| -> Result<String> {
            let output = Command::new("systemd-analyze").args(arguments).arg(&path).output();
            let output = output.context("systemd-analyze")?;
            let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            anyhow::ensure!(output.status.success(), "{name} {arguments:?}: {said}");
            Ok(said.into_owned())
        };
        // What it does not understand it says, and goes on.
        let said = analyze(&["verify", "--man=no"])?;
        assert!(!said.contains(&file), "{said}");
        // 0 is best, 100 is worst.
        analyze(&["security", "--offline=true", "--threshold=20"])?;
        // What is wrong is found.
        fs::write(&path, unit.replace("Restart=always", "Restart=perhaps"))?;
        let said = analyze(&["verify", "--man=no"]).unwrap_or_else(|error| error.to_string());
        assert!(said.contains(&file), "{said}");
    }
    Ok(())
}
