//! `cargo xtask images`: builds and tests the images of `deploy/`, with buildah.
//!
//! This needs no daemon, and no image from elsewhere.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::build::{self, HOST, REPORTER};
use crate::{install, sys};

/// The maximum number of health checks of a container, one each second.
const ATTEMPTS: u32 = 30;

pub fn run() -> Result<()> {
    install::ensure(&[install::BUILDAH])?;
    build::roots()?;
    for program in [HOST, REPORTER] {
        let short = program.trim_start_matches("verve-");
        let container = Container::of(short, &build::root(program))?;
        let version = container.run(&[program, "--version"])?;
        ensure!(version.starts_with(program), "{version}");
        sys::log(&format!("{version}: the image of {short} runs"));
        let address = format!("127.0.0.1:{}", sys::free_port()?);
        let (serve, ask) = if program == HOST {
            let app = ["--from", "/opt/verve/spin.toml", "--state-dir", "/var/lib/verve"];
            let serve = [&[program], &app[..], &["--listen", &address]].concat();
            (serve, vec![program, "healthcheck", &address])
        } else {
            let serve = vec![program, "--listen", &address];
            (serve.clone(), [&serve[..], &["healthcheck"]].concat())
        };
        if program == REPORTER {
            // Name resolution must not need the machine's libraries.
            let doctor = container
                .command(&[program, "--redis-urls", "redis://localhost:1", "doctor"])
                .output()?;
            let found = String::from_utf8_lossy(&doctor.stdout);
            ensure!(found.contains("redis://localhost:1: Connection refused"), "{found}");
        }
        ensure!(container.run(&ask).is_err(), "health where nobody is");
        container.serve(&serve, &ask)?;
        sys::log(&format!("the image of {short} is healthy"));
    }
    Ok(())
}

/// A container of an image that was just built.
///
/// It is in a folder that is removed with it.
struct Container {
    /// The folder where buildah keeps both.
    storage: TempDir,
    name: String,
}

impl Container {
    /// Builds the last stage of a Containerfile.
    ///
    /// Its input is what the first stage would have provided.
    fn of(short: &str, root: &Path) -> Result<Self> {
        let shipped = fs::read_to_string(sys::root().join(format!("deploy/Containerfile.{short}")))?;
        let (_, last) = shipped
            .split_once("\nFROM scratch\n")
            .context("expected a stage from scratch")?;
        let context = tempfile::tempdir()?;
        let file = context.path().join("Containerfile");
        let folder = root.file_name().and_then(|name| name.to_str()).context("a folder")?;
        fs::write(
            &file,
            format!("FROM scratch AS build\nCOPY {folder} /out\nFROM scratch\n{last}"),
        )?;
        let mut container = Self {
            storage: tempfile::tempdir()?,
            name: String::new(),
        };
        let mut build = container.buildah();
        build.args([
            "build",
            "--isolation",
            "chroot",
            "--format",
            "docker",
            "--tag",
            short,
            "--file",
        ]);
        sys::run(
            build
                .arg(&file)
                .arg(root.parent().context("a folder")?)
                .stdout(Stdio::null()),
        )?;
        container.name = printed(container.buildah().args(["from", short]))?;
        Ok(container)
    }

    /// Returns a buildah command with its own storage.
    ///
    /// It needs no file system with layers.
    fn buildah(&self) -> Command {
        let mut buildah = Command::new("buildah");
        buildah
            .args(["--storage-driver", "vfs", "--root"])
            .arg(self.storage.path());
        buildah
    }

    /// Returns a command in the container, as the user of the image.
    fn command(&self, line: &[&str]) -> Command {
        let mut run = self.buildah();
        run.args(["run", "--isolation", "chroot", &self.name, "--"]).args(line);
        run
    }

    fn run(&self, line: &[&str]) -> Result<String> {
        printed(&mut self.command(line))
    }

    /// Runs the server until a health check succeeds, and then stops it.
    fn serve(&self, serve: &[&str], ask: &[&str]) -> Result<()> {
        let mut server = self.command(serve).stdout(Stdio::null()).spawn()?;
        let mut healthy = self.run(ask);
        for _ in 0..ATTEMPTS {
            if healthy.is_ok() || server.try_wait()?.is_some() {
                break;
            }
            thread::sleep(Duration::from_secs(1));
            healthy = self.run(ask);
        }
        // Sends SIGTERM, which buildah passes on.
        let _ = Command::new("kill").arg(server.id().to_string()).status();
        server.wait()?;
        match healthy {
            Ok(_) => Ok(()),
            Err(error) => bail!("{serve:?} is not healthy: {error:#}"),
        }
    }
}

/// Runs a command, and returns its standard output.
fn printed(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| sys::shown(command))?;
    ensure!(
        output.status.success(),
        "{} failed: {}",
        sys::shown(command),
        output.status
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
