//! The requirements of the machine besides Rust, and their installation.

use std::fs;
use std::io::{self, BufRead, BufReader, IsTerminal as _};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};

use crate::sys;

/// A requirement of the machine.
pub struct Need {
    /// The name for the user, with a short description.
    pub what: &'static str,
    /// The Debian packages that provide it.
    pub packages: &'static [&'static str],
    /// Returns whether it is present.
    pub present: fn() -> bool,
}

/// The requirements to compile and link Rust, and librdkafka with it.
pub const NATIVE: [Need; 5] = [
    Need {
        what: "a C and C++ compiler",
        packages: &["gcc", "g++", "libc6-dev"],
        present: || sys::succeeds("cc", &["--version"]) && sys::succeeds("c++", &["--version"]),
    },
    Need {
        what: "make",
        packages: &["make"],
        present: || sys::which("make").is_some(),
    },
    Need {
        what: "pkg-config",
        packages: &["pkg-config"],
        present: || sys::which("pkg-config").is_some(),
    },
    Need {
        what: "OpenSSL's headers",
        packages: &["libssl-dev"],
        present: || sys::succeeds("pkg-config", &["--exists", "openssl"]),
    },
    Need {
        what: "zlib's headers",
        packages: &["zlib1g-dev"],
        present: || sys::succeeds("pkg-config", &["--exists", "zlib"]),
    },
];

/// A Redis server.
pub const REDIS: Need = Need {
    what: "redis-server",
    packages: &["redis-server"],
    present: || sys::which("redis-server").is_some(),
};

/// An nginx in front of several hosts.
///
/// Debian installs it in a folder that is only on root's PATH.
pub const NGINX: Need = Need {
    what: "nginx",
    packages: &["nginx"],
    present: || sys::which("nginx").is_some() || Path::new("/usr/sbin/nginx").is_file(),
};

/// The load generator for closed loops.
pub const WRK: Need = Need {
    what: "wrk",
    packages: &["wrk"],
    present: || sys::which("wrk").is_some(),
};

/// The checker of the scripts that Redis runs.
pub const LUACHECK: Need = Need {
    what: "luacheck",
    packages: &["lua-check"],
    present: || sys::which("luacheck").is_some(),
};

/// The checker of the units of `deploy/systemd`.
pub const SYSTEMD: Need = Need {
    what: "systemd-analyze",
    packages: &["systemd"],
    present: || sys::which("systemd-analyze").is_some(),
};

/// The program that builds images without a daemon, and runs them.
pub const BUILDAH: Need = Need {
    what: "buildah",
    packages: &["buildah"],
    present: || sys::which("buildah").is_some(),
};

/// The certificates of the trusted authorities.
pub const AUTHORITIES: Need = Need {
    what: "certificates of authorities",
    packages: &["ca-certificates"],
    present: || Path::new(CERTIFICATES).is_file(),
};

/// The file with these certificates.
pub const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The library that gives names other addresses.
///
/// Tests use it to check which addresses callbacks may reach.
pub const NSS_WRAPPER: Need = Need {
    what: "libnss_wrapper",
    packages: &["libnss-wrapper"],
    present: || {
        let folders = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        folders
            .into_iter()
            .any(|folder| folder.path().join("libnss_wrapper.so").is_file())
    },
};

/// The Python that makes the Python example a component.
pub const PYTHON: Need = Need {
    what: "Python 3 with venv",
    packages: &["python3", "python3-venv"],
    present: || sys::succeeds("python3", &["-c", "import ensurepip, venv"]),
};

/// The checker of metrics and alert rules.
pub const PROMTOOL: Need = Need {
    what: "promtool",
    packages: &["prometheus"],
    present: || sys::which("promtool").is_some(),
};

/// The browser that shows the reporter's page to the tests.
///
/// The first run downloads it, 100 MB and more.
pub const BROWSER: Need = Need {
    what: "Chromium",
    packages: &["chromium"],
    present: || sys::which("chromium").is_some(),
};

/// Checks the requirements, and installs missing Debian packages where possible.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !(need.present)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().flat_map(|need| need.packages).copied().collect();
    let names: Vec<&str> = missing.iter().map(|need| need.what).collect();
    let names = names.join(", ");
    if let Err(error) = apt_install(&packages) {
        bail!("please install {names} (on Debian: {}): {error}", packages.join(" "));
    }
    match missing.iter().find(|need| !(need.present)()) {
        Some(need) => bail!(
            "please install {}: the packages {} did not bring it",
            need.what,
            packages.join(" ")
        ),
        None => Ok(()),
    }
}

/// Installs Debian packages, and updates the package list if necessary.
pub fn apt_install(packages: &[&str]) -> Result<()> {
    let apt = apt(packages)?;
    sys::log(&format!("installing {} by apt-get", packages.join(" ")));
    let install = || {
        let args = ["install", "-y", "-qq", "--no-install-recommends"];
        sys::run(apt.command().args(args).args(packages))
    };
    // Without a package list, or with an old one, the first attempt fails: the package is unknown,
    // or its file no longer exists.
    install().or_else(|_| {
        sys::log("updating the package list first");
        sys::run(apt.command().args(["update", "-qq"]))?;
        install()
    })
}

/// Returns whether the package list has an installable version of a package.
pub fn apt_knows(package: &str) -> bool {
    sys::output("apt-cache", &["policy", package]).is_some_and(|policy| has_candidate(&policy))
}

fn has_candidate(policy: &str) -> bool {
    policy
        .lines()
        .any(|line| line.trim().starts_with("Candidate:") && !line.ends_with("(none)"))
}

/// The way in which this user can install packages.
enum Apt {
    AsRoot,
    BySudo,
}

/// Whether sudo may run without asking.
static MAY_SUDO: AtomicBool = AtomicBool::new(false);

/// Allows sudo to install packages without asking from now on.
pub fn allow_sudo() {
    MAY_SUDO.store(true, Ordering::Relaxed);
}

/// Returns how to install packages: root installs, other users are asked first.
fn apt(packages: &[&str]) -> Result<Apt> {
    if sys::which("apt-get").is_none() {
        bail!("there is no apt-get");
    }
    if sys::output("id", &["-u"]).as_deref() == Some("0") {
        return Ok(Apt::AsRoot);
    }
    if sys::which("sudo").is_none() {
        bail!("that takes root's rights");
    }
    if MAY_SUDO.load(Ordering::Relaxed) {
        return Ok(Apt::BySudo);
    }
    let mut input = io::stdin();
    if !input.is_terminal() {
        bail!("with --install it is installed by sudo");
    }
    eprint!("xtask: run `sudo apt-get install {}`? [y/N] ", packages.join(" "));
    if is_yes(&mut BufReader::new(&mut input))? {
        return Ok(Apt::BySudo);
    }
    bail!("not installed, as you answered")
}

/// Returns whether the next line is a yes.
fn is_yes(input: &mut impl BufRead) -> Result<bool> {
    let mut answer = String::new();
    input.read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

impl Apt {
    fn command(&self) -> Command {
        // `env` sets the variable, because sudo passes few variables on.
        let mut command = match self {
            Self::AsRoot => Command::new("env"),
            Self::BySudo => {
                let mut command = Command::new("sudo");
                command.arg("env");
                command
            }
        };
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        // Another apt may be running, for example on a machine that has just started.
        command.args(["-o", "DPkg::Lock::Timeout=120"]);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::{has_candidate, is_yes};

    #[test]
    fn a_package_without_candidate_is_not_known() {
        assert!(has_candidate("maven:\n  Installed: (none)\n  Candidate: 3.8.7-1\n"));
        assert!(!has_candidate("maven:\n  Installed: (none)\n  Candidate: (none)\n"));
        assert!(!has_candidate(""));
    }

    #[test]
    fn only_yes_confirms() {
        for (line, expected) in [
            ("y\n", true),
            ("Yes\n", true),
            ("\n", false),
            ("n\n", false),
            ("", false),
        ] {
            assert_eq!(is_yes(&mut line.as_bytes()).ok(), Some(expected), "{line:?}");
        }
    }
}
