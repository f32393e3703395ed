//! A game's login: `GET /login?player=<number>[&friend=<number>…]` welcomes a player and those who come along, and counts them. It knows
//! nothing of Verve but an interface: the component that counts is composed with this one.
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
    let query = request.uri().query().unwrap_or_default();
    let players = query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("player=").or_else(|| pair.strip_prefix("friend=")));
    let Ok(players) = players.map(str::parse).collect::<Result<Vec<i64>, _>>() else {
        return (StatusCode::BAD_REQUEST, "expected ?player=<number>\n".to_owned());
    };
    let counted = match players.as_slice() {
        [] => return (StatusCode::BAD_REQUEST, "expected ?player=<number>\n".to_owned()),
        [player] => vec![counter::add(*player).await],
        players => counter::add_many(players.to_vec()).await,
    };
    let welcomed: Result<Vec<String>, Error> = players
        .iter()
        .zip(counted)
        .map(|(player, counted)| {
            Ok(match counted? {
                Outcome::New | Outcome::Spooled => format!("Welcome, {player}!\n"),
                Outcome::Duplicate => format!("Welcome back, {player}!\n"),
            })
        })
        .collect();
    match welcomed {
        Ok(lines) => (StatusCode::OK, lines.concat()),
        Err(Error::Unavailable | Error::WindowLimit) => (StatusCode::SERVICE_UNAVAILABLE, "later, please\n".to_owned()),
        Err(Error::InvalidVariable(error)) => {
            eprintln!("{error}");
            (StatusCode::INTERNAL_SERVER_ERROR, String::new())
        }
    }
}
