//! What the machine must have besides Rust, and how it gets there.

use std::fs;
use std::io::{self, BufRead, BufReader, IsTerminal as _};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};

use crate::sys;

/// Something the machine must have.
pub struct Need {
    /// For the user, with a word on what it is.
    pub what: &'static str,
    /// The Debian packages that bring it.
    pub packages: &'static [&'static str],
    /// Whether it is there.
    pub present: fn() -> bool,
}

/// What compiling and linking Rust, and librdkafka with it, takes.
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

/// A Redis to run.
pub const REDIS: Need = Need {
    what: "redis-server",
    packages: &["redis-server"],
    present: || sys::which("redis-server").is_some(),
};

/// An nginx to run before several hosts. Debian has it in a folder that is on root's PATH alone.
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

/// What checks the scripts that Redis runs.
pub const LUACHECK: Need = Need {
    what: "luacheck",
    packages: &["lua-check"],
    present: || sys::which("luacheck").is_some(),
};

/// What checks the units of `deploy/systemd`.
pub const SYSTEMD: Need = Need {
    what: "systemd-analyze",
    packages: &["systemd"],
    present: || sys::which("systemd-analyze").is_some(),
};

/// What builds images without a daemon, and runs them.
pub const BUILDAH: Need = Need {
    what: "buildah",
    packages: &["buildah"],
    present: || sys::which("buildah").is_some(),
};

/// The certificates of the authorities that are trusted.
pub const AUTHORITIES: Need = Need {
    what: "certificates of authorities",
    packages: &["ca-certificates"],
    present: || Path::new(CERTIFICATES).is_file(),
};

/// Where these are.
pub const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What gives names other addresses, for tests of what callbacks may reach.
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

/// What makes the example in Python a component.
pub const PYTHON: Need = Need {
    what: "Python 3 with venv",
    packages: &["python3", "python3-venv"],
    present: || sys::succeeds("python3", &["-c", "import ensurepip, venv"]),
};

/// What checks metrics and alert rules.
pub const PROMTOOL: Need = Need {
    what: "promtool",
    packages: &["prometheus"],
    present: || sys::which("promtool").is_some(),
};

/// A browser that shows the reporter's page to the tests (the first time it is fetched, 100 MB and more).
pub const BROWSER: Need = Need {
    what: "Chromium",
    packages: &["chromium"],
    present: || sys::which("chromium").is_some(),
};

/// Sees to it that every need is met, by Debian's packages where that can be done.
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

/// Installs Debian packages, with the package list brought up to date if it has to be.
pub fn apt_install(packages: &[&str]) -> Result<()> {
    let apt = apt(packages)?;
    sys::say(&format!("installing {} by apt-get", packages.join(" ")));
    let install = || {
        let args = ["install", "-y", "-qq", "--no-install-recommends"];
        sys::run(apt.command().args(args).args(packages))
    };
    // Without a package list, or with an old one, the first try fails: it knows no such package, or the file is gone.
    install().or_else(|_| {
        sys::say("updating the package list first");
        sys::run(apt.command().args(["update", "-qq"]))?;
        install()
    })
}

/// Whether a package can be installed, as far as the package list knows.
pub fn apt_knows(package: &str) -> bool {
    sys::output("apt-cache", &["policy", package]).is_some_and(|policy| has_candidate(&policy))
}

fn has_candidate(policy: &str) -> bool {
    policy
        .lines()
        .any(|line| line.trim().starts_with("Candidate:") && !line.ends_with("(none)"))
}

/// How packages can be installed by this user.
enum Apt {
    AsRoot,
    BySudo,
}

/// Whether sudo may be run without asking.
static MAY_SUDO: AtomicBool = AtomicBool::new(false);

/// From now on packages are installed by sudo without asking.
pub fn allow_sudo() {
    MAY_SUDO.store(true, Ordering::Relaxed);
}

/// Root installs what is missing; others say first whether they want it.
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
    bail!("not installed, as you said")
}

/// Whether the next line is a yes.
fn is_yes(input: &mut impl BufRead) -> Result<bool> {
    let mut answer = String::new();
    input.read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

impl Apt {
    fn command(&self) -> Command {
        // `env`, since sudo passes few variables on.
        let mut command = match self {
            Self::AsRoot => Command::new("env"),
            Self::BySudo => {
                let mut command = Command::new("sudo");
                command.arg("env");
                command
            }
        };
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        // Another apt may be at work, as on a machine that has just started.
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
    fn only_a_yes_is_a_yes() {
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
