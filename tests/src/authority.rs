//! Certificates of an authority of our own, by the program `openssl`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// An authority that vouches for servers and clients. Its files go with it.
pub struct Authority(TempDir);

/// A certificate, and its key.
pub struct Certificate {
    /// The certificate, in PEM.
    pub certificate: PathBuf,
    /// Its key, in PEM, as PKCS #8.
    pub key: PathBuf,
}

impl Authority {
    /// A new authority, whom nobody trusts yet.
    ///
    /// # Errors
    /// When there is no `openssl`.
    pub fn new() -> Result<Self> {
        let authority = Self(tempfile::tempdir()?);
        let folder = authority.0.path();
        openssl(
            folder,
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout authority.key -out authority.pem",
        )?;
        Ok(authority)
    }

    /// What it is trusted by, in PEM.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.0.path().join("authority.pem")
    }

    /// Vouches for someone: `DNS:localhost`, `IP:127.0.0.1`.
    ///
    /// # Errors
    /// When `openssl` fails.
    pub fn vouch_for(&self, name: &str, alternative_names: &str) -> Result<Certificate> {
        let folder = self.0.path();
        fs::write(
            folder.join("extensions"),
            format!("subjectAltName = {alternative_names}\n"),
        )?;
        openssl(
            folder,
            &format!("req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"),
        )?;
        openssl(
            folder,
            &format!(
                "x509 -req -in {name}.csr -CA authority.pem -CAkey authority.key -CAcreateserial -days 2 -extfile extensions -out {name}.pem"
            ),
        )?;
        Ok(Certificate {
            certificate: folder.join(format!("{name}.pem")),
            key: folder.join(format!("{name}.key")),
        })
    }
}

fn openssl(folder: &Path, arguments: &str) -> Result<()> {
    let mut command = Command::new("openssl");
    command.current_dir(folder).args(arguments.split(' '));
    let output = command.output().context("openssl")?;
    ensure!(
        output.status.success(),
        "openssl {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
