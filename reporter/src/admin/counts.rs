//! `GET /api/counts`, `/api/counts.csv` and `/api/counts/current`.
//!
//! `/api/openapi.json` describes them.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::{CONTENT_TYPE, LINK};
use axum::http::{HeaderName, StatusCode};
use axum::response::{AppendHeaders, IntoResponse, Response};
use redis::RedisError;
use utoipa::OpenApi;

use super::Admin;
use crate::counts::{self, Asked, Count, Current, Page, Which};

/// Why a request failed, in one line for the client.
#[derive(utoipa::IntoResponses)]
pub enum Refused {
    /// A parameter is invalid: the line names it, and what was expected
    #[response(status = 400, content_type = "text/plain")]
    Bad(String),
    /// Redis does not answer
    #[response(status = 503, content_type = "text/plain")]
    NoAnswer(String),
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, problem) = match self {
            Self::Bad(problem) => (StatusCode::BAD_REQUEST, problem),
            Self::NoAnswer(problem) => (StatusCode::SERVICE_UNAVAILABLE, problem),
        };
        (status, problem + "\n").into_response()
    }
}

impl From<RedisError> for Refused {
    fn from(error: RedisError) -> Self {
        Self::NoAnswer(format!("Redis did not answer: {error}"))
    }
}

impl From<QueryRejection> for Refused {
    fn from(rejection: QueryRejection) -> Self {
        Self::Bad(rejection.body_text())
    }
}

/// Returns the reported windows that start within a time range, newest first.
#[utoipa::path(
    get,
    path = "/api/counts",
    params(Asked),
    responses(
        (status = 200, body = Vec<Count>, headers(
            ("link" = Option<String>, description = "with `rel=\"next\"` (RFC 8288): the address of the windows before these, if there are any; relative to the address of this request"),
        )),
        Refused,
    )
)]
pub async fn counts(
    State(admin): State<Admin>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<impl IntoResponse, Refused> {
    let (next, page) = page(&admin, asked).await?;
    Ok((next, Json(page.counts)))
}

/// Returns the same as comma-separated values, with the names in the first line.
#[utoipa::path(
    get,
    path = "/api/counts.csv",
    params(Asked),
    responses(
        (status = 200, body = String, content_type = "text/csv", headers(
            ("link" = Option<String>, description = "as of `/api/counts`"),
        )),
        Refused,
    )
)]
pub async fn csv(
    State(admin): State<Admin>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<impl IntoResponse, Refused> {
    let (next, page) = page(&admin, asked).await?;
    Ok((next, [(CONTENT_TYPE, "text/csv; charset=utf-8")], counts::csv(&page)))
}

/// Returns the requested page, and a header with the link to earlier windows.
async fn page(
    admin: &Admin,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<(AppendHeaders<Option<(HeaderName, String)>>, Page), Refused> {
    let Query(asked) = asked?;
    let length = asked.length(&admin.lengths).map_err(Refused::Bad)?;
    let range = asked.range(length).map_err(Refused::Bad)?;
    let page = range.read(&admin.store).await?;
    let next = page
        .next
        // Relative, because a proxy may serve this under another path.
        .map(|to| format!("<?{}>; rel=\"next\"", asked.before(to)));
    Ok((AppendHeaders(next.map(|next| (LINK, next))), page))
}

/// Returns the open window of each length with its counts so far.
#[utoipa::path(
    get,
    path = "/api/counts/current",
    params(Which),
    responses(
        (status = 200, body = Current),
        Refused,
    )
)]
pub async fn current(
    State(admin): State<Admin>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Json<Current>, Refused> {
    let Query(which) = which?;
    let store = which.of(&admin.store).map_err(Refused::Bad)?;
    let lengths = which.lengths(&admin.lengths).map_err(Refused::Bad)?;
    Ok(Json(counts::current(&store, &lengths).await?))
}

/// The description of this API.
#[derive(OpenApi)]
#[openapi(
    info(title = "Verve", description = "Unique ids, counted exactly in windows of time"),
    paths(counts, csv, current)
)]
struct Description;

/// `/api/openapi.json`
pub async fn description() -> impl IntoResponse {
    Json(Description::openapi())
}
