//! The login of a game, which counts the players.
//!
//! `GET /login?player=<number>[&friend=<number>…][&game=<name>]` welcomes a player and the friends,
//! and counts all of them. It also counts the player by game. This component knows only an
//! interface of Verve; the component that counts is composed with it.
#![cfg(target_family = "wasm")]

use spin_sdk::http::{IntoResponse, Request, StatusCode};
use spin_sdk::http_service;

use bindings::verve::unique::counter::{self, Error, Outcome};

#[allow(unsafe_code, missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "example:login/login",
        generate_all,
    });
}

#[http_service]
async fn login(request: Request) -> impl IntoResponse {
    match welcome(request.uri().query().unwrap_or_default()).await {
        Ok(welcome) => (StatusCode::OK, welcome),
        Err(Refusal::Bad(expected)) => (StatusCode::BAD_REQUEST, expected),
        Err(Refusal::Uncounted(Error::InvalidName(error))) => (StatusCode::BAD_REQUEST, error + "\n"),
        Err(Refusal::Uncounted(Error::InvalidVariable(error))) => {
            eprintln!("{error}");
            (StatusCode::INTERNAL_SERVER_ERROR, String::new())
        }
        Err(Refusal::Uncounted(Error::Unavailable | Error::WindowLimit | Error::TooManyCounters)) => {
            (StatusCode::SERVICE_UNAVAILABLE, "later, please\n".to_owned())
        }
    }
}

/// The reason why a login is refused.
enum Refusal {
    Bad(String),
    Uncounted(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Uncounted(error)
    }
}

async fn welcome(query: &str) -> Result<String, Refusal> {
    let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name));
    let bad = |_| Refusal::Bad("expected ?player=<number>\n".to_owned());
    let player: i64 = value("player=").unwrap_or_default().parse().map_err(bad)?;
    let friends = query.split('&').filter_map(|pair| pair.strip_prefix("friend="));
    let friends: Vec<i64> = friends.map(str::parse).collect::<Result<_, _>>().map_err(bad)?;

    let mut counted = vec![(player, counter::add(player).await)];
    if !friends.is_empty() {
        counted.extend(friends.iter().copied().zip(counter::add_many(friends.clone()).await));
    }
    if let Some(game) = value("game=") {
        counter::open(&format!("game-{game}"))?.add(player).await?;
    }
    let mut welcome = String::new();
    for (player, counted) in counted {
        let back = if counted? == Outcome::Duplicate { " back" } else { "" };
        welcome.push_str(&format!("Welcome{back}, {player}!\n"));
    }
    Ok(welcome)
}
