//! Every row of the request contract, as raw HTTP, on every available host.

use std::collections::BTreeSet;

use anyhow::Result;
use verve_tests::host::Kind;
use verve_tests::http::{self, Connection, Response};

use crate::site::Site;

const ROUTE: &str = "/api/verve/accept";

/// The answers of the contract.
#[derive(Clone, Copy, Debug)]
enum Expected {
    New,
    Duplicate,
    Bad(&'static str),
}
use Expected::{Bad, Duplicate, New};

/// Asserts everything that the contract specifies for this answer.
#[track_caller]
fn assert_answer(response: &Response, expected: Expected, context: &str) {
    let (status, body, outcome, error) = match expected {
        New => (200, "ok", Some("new"), None),
        Duplicate => (200, "ok", Some("duplicate"), None),
        Bad(error) => (400, "failed", None, Some(error)),
    };
    assert_eq!(
        (
            response.status,
            response.text().as_str(),
            response.header("verve-outcome"),
            response.header("verve-error")
        ),
        (status, body, outcome, error),
        "{context}"
    );
    assert_common_headers(response, context);
}

#[track_caller]
fn assert_common_headers(response: &Response, context: &str) {
    let length = response.body.len().to_string();
    for (name, value) in [
        ("content-type", "text/plain; charset=utf-8"),
        ("content-length", &length),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(response.header(name), Some(value), "{name} of {context}: {response:?}");
    }
}

/// Sends the requests in order on one connection.
///
/// Returns the ids that are in the window afterwards.
async fn check(kind: Kind, table: &[(&str, Expected)]) -> Result<BTreeSet<String>> {
    let site = Site::with_one_window().await?;
    let instance = site.host(kind).start().await?;
    let mut connection = Connection::open(instance.addr()).await?;
    for (query, expected) in table {
        let response = connection.get(&format!("{ROUTE}{query}")).await?;
        let shown: String = query.chars().take(200).collect();
        assert_answer(&response, *expected, &format!("{kind:?} {shown}"));
    }
    let window = verve_tests::clock::current_window(site.length);
    Ok(site.members(window).await?.remove(0))
}

fn set(members: &[&str]) -> BTreeSet<String> {
    members.iter().map(|&member| member.to_owned()).collect()
}

#[tokio::test]
async fn ids() -> Result<()> {
    let many_zeros = format!("?id={}81", "0".repeat(10_000));
    let table = [
        ("", Bad("missing-id")),
        ("?", Bad("missing-id")),
        ("?ID=1", Bad("missing-id")),
        ("?xid=1&idx=2", Bad("missing-id")),
        ("?id=1", New),
        ("?id=1", Duplicate),
        ("?id=-1", New),
        // The number is compared, not its spelling.
        ("?id=007", New),
        ("?id=7", Duplicate),
        ("?id=-007", New),
        ("?id=-7", Duplicate),
        ("?id=-0", New),
        ("?id=0", Duplicate),
        ("?id=-000", Duplicate),
        (&many_zeros, New),
        ("?id=81", Duplicate),
        // The limits of the range.
        ("?id=9223372036854775807", New),
        ("?id=-9223372036854775808", New),
        ("?id=09223372036854775807", Duplicate),
        ("?id=9223372036854775808", Bad("invalid-id")),
        ("?id=-9223372036854775809", Bad("invalid-id")),
        ("?id=18446744073709551616", Bad("invalid-id")),
        ("?id=99999999999999999999999999", Bad("invalid-id")),
        // Values that are not integers.
        ("?id=", Bad("invalid-id")),
        ("?id", Bad("invalid-id")),
        ("?id=-", Bad("invalid-id")),
        ("?id=--5", Bad("invalid-id")),
        ("?id=5-", Bad("invalid-id")),
        ("?id=+5", Bad("invalid-id")),
        ("?id=%2B5", Bad("invalid-id")),
        ("?id=%205", Bad("invalid-id")),
        ("?id=5%20", Bad("invalid-id")),
        ("?id=5+", Bad("invalid-id")),
        ("?id=%095", Bad("invalid-id")),
        ("?id=5%0A", Bad("invalid-id")),
        ("?id=5%00", Bad("invalid-id")),
        ("?id=%005", Bad("invalid-id")),
        ("?id=5.0", Bad("invalid-id")),
        ("?id=5e0", Bad("invalid-id")),
        ("?id=0x5", Bad("invalid-id")),
        ("?id=5_000", Bad("invalid-id")),
        ("?id=5,000", Bad("invalid-id")),
        ("?id=five", Bad("invalid-id")),
        ("?id=null", Bad("invalid-id")),
        // Digits of other scripts (Arabic-Indic, full-width, superscript), and the typographic
        // minus sign.
        ("?id=%D9%A5", Bad("invalid-id")),
        ("?id=%EF%BC%95", Bad("invalid-id")),
        ("?id=%C2%B2", Bad("invalid-id")),
        ("?id=%E2%88%925", Bad("invalid-id")),
        // Broken percent-encoding, or percent-encoded bytes that are not UTF-8.
        ("?id=%", Bad("invalid-id")),
        ("?id=5%3", Bad("invalid-id")),
        ("?id=%zz", Bad("invalid-id")),
        ("?id=%FF", Bad("invalid-id")),
    ];
    let expected = set(&[
        "1",
        "-1",
        "7",
        "-7",
        "0",
        "81",
        "9223372036854775807",
        "-9223372036854775808",
    ]);
    for kind in Kind::every() {
        assert_eq!(check(kind, &table).await?, expected, "{kind:?}");
    }
    Ok(())
}

#[tokio::test]
async fn parameters() -> Result<()> {
    let padding = "x".repeat(10_000);
    let long_value = format!("?padding={padding}&id=41");
    let long_name = format!("?{padding}=1&id=42");
    let table = [
        // Names and values may be percent-encoded.
        ("?id=%31%32", New),
        ("?%69%64=12", Duplicate),
        ("?id=%2d13", New),
        // Other parameters are ignored, also long, empty and malformed ones.
        ("?a=b&id=20&c", New),
        ("?id=21&", New),
        ("?&&id=22", New),
        ("?=&id=23", New),
        ("?id=24&%zz=%zz", New),
        (&long_value, New),
        (&long_name, New),
        // Parameters that are given twice.
        ("?id=30&id=30", Bad("repeated-parameter")),
        ("?id=30&id=31", Bad("repeated-parameter")),
        ("?id=30&%69d=30", Bad("repeated-parameter")),
        ("?id=30&x=1&id=", Bad("repeated-parameter")),
        (
            "?id=30&endpoint=http://e.com&endpoint=http://e.com",
            Bad("repeated-parameter"),
        ),
        ("?id=30&method=get&method=get", Bad("repeated-parameter")),
        ("?id=30&method=get&method=post", Bad("repeated-parameter")),
        ("?id=30&method=put", Bad("invalid-method")),
        ("?id=30&method=", Bad("invalid-method")),
        ("?id=30&method=GET", Bad("invalid-method")),
        ("?id=30&method=get%20", Bad("invalid-method")),
        ("?id=30&endpoint=http://e.com&method=put", Bad("invalid-method")),
        ("?id=50&method=get", New),
        ("?id=51&method=%70ost", New),
    ];
    let expected = set(&["12", "-13", "20", "21", "22", "23", "24", "41", "42", "50", "51"]);
    for kind in Kind::every() {
        assert_eq!(check(kind, &table).await?, expected, "{kind:?}");
    }
    Ok(())
}

#[tokio::test]
async fn endpoints_that_are_refused() -> Result<()> {
    let too_long = format!("?id=1&endpoint=http://e.com/{}", "x".repeat(2049 - 13));
    // Within the limit in characters and in UTF-16 code units, over it in bytes of UTF-8.
    let too_long_utf8 = format!("?id=1&endpoint=http://e.com/{}", "%C3%A4".repeat(1018));
    let far_too_long = format!("?id=1&endpoint=http://e.com/{}", "x".repeat(10_000));
    let rows = [
        "?id=1&endpoint=",
        "?id=1&endpoint",
        "?id=1&endpoint=example.com",
        "?id=1&endpoint=/relative",
        "?id=1&endpoint=//example.com/x",
        "?id=1&endpoint=http:example.com",
        "?id=1&endpoint=http://",
        "?id=1&endpoint=http:///x",
        "?id=1&endpoint=http://e.com:99999/",
        "?id=1&endpoint=ftp://example.com/",
        "?id=1&endpoint=file:///etc/passwd",
        "?id=1&endpoint=javascript:alert(1)",
        "?id=1&endpoint=redis://example.com/",
        "?id=1&endpoint=http://user@example.com/",
        "?id=1&endpoint=http://user:password@example.com/",
        "?id=1&endpoint=http%3A%2F%2Fuser%40example.com%2F",
        "?id=1&endpoint=http://@example.com/",
        "?id=1&endpoint=%20http://example.com/",
        "?id=1&endpoint=http://example.com/%0D%0Ax:y",
        "?id=1&endpoint=http://example.com/%FF",
        &too_long,
        &too_long_utf8,
        &far_too_long,
    ];
    let table: Vec<_> = rows.map(|query| (query, Bad("invalid-endpoint"))).into();
    for kind in Kind::every() {
        assert_eq!(check(kind, &table).await?, set(&[]), "{kind:?}");
    }
    Ok(())
}

#[tokio::test]
async fn other_methods() -> Result<()> {
    for kind in Kind::every() {
        let site = Site::with_one_window().await?;
        let instance = site.host(kind).start().await?;
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "BREW", "get"] {
            for target in [format!("{ROUTE}?id=1"), ROUTE.to_owned()] {
                let mut connection = Connection::open(instance.addr()).await?;
                let response = connection.request(method, &target).await?;
                let context = format!("{kind:?} {method} {target}");
                assert_eq!(response.status, 405, "{context}");
                assert_eq!(response.header("allow"), Some("GET"), "{context}");
                if method != "HEAD" {
                    assert_eq!(response.text(), "failed", "{context}");
                    assert_common_headers(&response, &context);
                }
            }
        }
        // With a body, whether the host reads it or not.
        let request = b"POST /api/verve/accept?id=1 HTTP/1.1\r\nhost: verve.test\r\ncontent-length: 4\r\n\r\nid=1";
        let response = Connection::open(instance.addr()).await?.exchange(request).await?;
        assert_eq!((response.status, response.text().as_str()), (405, "failed"), "{kind:?}");
        let window = verve_tests::clock::current_window(site.length);
        assert_eq!(site.members(window).await?, [set(&[])], "{kind:?}: 405 records nothing");
    }
    Ok(())
}

#[tokio::test]
async fn other_paths() -> Result<()> {
    for kind in Kind::every() {
        let site = Site::with_one_window().await?;
        let instance = site.host(kind).start().await?;
        for path in [
            "/",
            "/api/verve",
            "/api/verve/acceptx",
            "/api/verve/accept/x",
            "/API/verve/accept",
        ] {
            let response = http::get(instance.addr(), &format!("{path}?id=1")).await?;
            assert_eq!(response.status, 404, "{kind:?} {path}");
        }
    }
    Ok(())
}
