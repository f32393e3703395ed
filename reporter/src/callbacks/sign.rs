//! Signs callbacks by the [Standard Webhooks] scheme.
//!
//! An endpoint can distinguish Verve's calls from those of others, and from replayed calls.
//!
//! [Standard Webhooks]: https://www.standardwebhooks.com

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// The prefix of a secret.
const PREFIX: &str = "whsec_";
/// The permitted lengths of a secret, in bytes, by the scheme.
const LENGTHS: std::ops::RangeInclusive<usize> = 24..=64;

/// Signs with one secret, or with several while one replaces another.
///
/// It never shows them.
#[derive(Clone)]
pub struct Signer(Vec<Hmac<Sha256>>);

/// Why a text is not a list of secrets. Never shows the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("secret {position} of {count} is not whsec_ and the base64 of 24 to 64 bytes; several are comma-separated")]
pub struct InvalidSecrets {
    position: usize,
    count: usize,
}

impl FromStr for Signer {
    type Err = InvalidSecrets;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let secrets: Vec<&str> = text.split(',').map(str::trim).collect();
        let keys = secrets.iter().enumerate().map(|(index, secret)| {
            key(secret).ok_or(InvalidSecrets {
                position: index + 1,
                count: secrets.len(),
            })
        });
        keys.collect::<Result<_, _>>().map(Self)
    }
}

fn key(secret: &str) -> Option<Hmac<Sha256>> {
    let key = STANDARD.decode(secret.strip_prefix(PREFIX)?).ok()?;
    LENGTHS.contains(&key.len()).then_some(())?;
    Hmac::new_from_slice(&key).ok()
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({} secrets)", self.0.len())
    }
}

impl Signer {
    /// Returns the headers of a signed call.
    ///
    /// They are the id of the message, which is the same for each attempt; the time of the call in
    /// Unix seconds; and the signatures. Each secret signs each of the contents, together with the
    /// id and the time. A receiver that verifies one of the contents needs one matching signature.
    pub fn headers(&self, id: &str, unix_s: u64, contents: &[&str]) -> [(&'static str, String); 3] {
        let signatures = contents.iter().flat_map(|content| {
            let signed = format!("{id}.{unix_s}.{content}");
            self.0.iter().map(move |key| {
                let code = key.clone().chain_update(&signed).finalize().into_bytes();
                format!("v1,{}", STANDARD.encode(code))
            })
        });
        [
            ("webhook-id", id.to_owned()),
            ("webhook-timestamp", unix_s.to_string()),
            ("webhook-signature", signatures.collect::<Vec<_>>().join(" ")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn the_example_of_the_scheme_has_its_signature() {
        let signer: Signer = SECRET.parse().expect("a secret");
        let headers = signer.headers(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            &[r#"{"test": 2432232314}"#],
        );
        assert_eq!(headers[0].1, "msg_p5jXN8AQM9LWM0D4loKWxJek");
        assert_eq!(headers[1].1, "1614265330");
        assert_eq!(headers[2].1, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn two_secrets_make_two_signatures() {
        let other = format!("whsec_{}", STANDARD.encode([7; 64]));
        let signer: Signer = format!("{SECRET}, {other}").parse().expect("secrets");
        let both = signer.headers("1-0", 1, &["{}"])[2].1.clone();
        let alone = |secret: &str| {
            secret.parse::<Signer>().expect("a secret").headers("1-0", 1, &["{}"])[2]
                .1
                .clone()
        };
        assert_eq!(both, format!("{} {}", alone(SECRET), alone(&other)));
    }

    #[test]
    fn an_invalid_secret_is_refused_and_never_shown() {
        let short = format!("whsec_{}", STANDARD.encode([1; 23]));
        let long = format!("whsec_{}", STANDARD.encode([1; 65]));
        for bad in ["", "hunter2", "whsec_", "whsec_hunter2!", &SECRET[6..], &short, &long] {
            let error = format!("{SECRET},{bad}").parse::<Signer>().expect_err(bad).to_string();
            assert!(error.starts_with("secret 2 of 2 is not whsec_"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let shown = format!("{:?}", SECRET.parse::<Signer>());
        assert_eq!(shown, "Ok(Signer(1 secrets))");
    }
}
