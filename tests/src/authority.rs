//! Certificates of a certificate authority for tests, created with `openssl`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// A certificate authority for servers and clients.
///
/// Dropping it deletes its files.
pub struct Authority(TempDir);

/// A certificate and its key.
pub struct Certificate {
    /// The certificate, in PEM.
    pub certificate: PathBuf,
    /// Its key, in PEM, as PKCS #8.
    pub key: PathBuf,
}

impl Authority {
    /// Creates an authority that nothing trusts yet.
    ///
    /// # Errors
    /// Fails if there is no `openssl`.
    pub fn new() -> Result<Self> {
        let authority = Self(tempfile::tempdir()?);
        let folder = authority.0.path();
        openssl(
            folder,
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout authority.key -out authority.pem",
        )?;
        Ok(authority)
    }

    /// Returns its certificate in PEM, which clients and servers have to trust.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.0.path().join("authority.pem")
    }

    /// Issues a certificate for `name` and the alternative names.
    ///
    /// These have the form `DNS:localhost` or `IP:127.0.0.1`.
    ///
    /// # Errors
    /// Fails if `openssl` fails.
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
