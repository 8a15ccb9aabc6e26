//! HTTP with JSON on the control socket; of it, metrics and health are for others too.
//!
//! In: the latest [`Status`], a channel that takes [`Request`]s, a listening socket. Out: answers, and for an
//! error the fitting HTTP status with `{"error": "what is wrong: what to do"}`. Status routes answer from the
//! latest status and ask nobody. Not here: who may connect (the socket's mode says so), and doing what is asked.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};

use super::explain::{Address, Explanation};
use super::metrics;
use super::record::{BLOCKS, Blocks};
use super::request::{
    ApiError, DrainOutcome, MoveBody, MoveOutcome, Pages, Reply, Request, VmMap, parse_number, parse_range,
};
use super::similar::Similar;
use super::status::{Status, VmStatus};

/// How long open connections may go on after the agent was told to stop.
const GRACE: Duration = Duration::from_secs(2);

/// What the routes work with.
#[derive(Debug, Clone)]
pub struct Handle {
    /// Written by the agent; when the agent drops its end, it is gone.
    pub status: watch::Receiver<Arc<Status>>,
    /// Read by the agent's task, which answers each request.
    pub requests: mpsc::Sender<Request>,
}

/// The body of every error answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: String,
}

/// Serves until `shutdown` is done, then lets open connections finish for a short time.
///
/// # Errors
/// The listening socket's.
pub async fn serve(
    listener: UnixListener,
    handle: Handle,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (stopping, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, router(handle)).with_graceful_shutdown(async move {
        shutdown.await;
        drop(stopping);
    });
    // A client that does not read its answer must not keep the agent alive.
    let overtime = async {
        let _ = stopped.await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        result = server => result,
        () = overtime => Ok(()),
    }
}

/// The routes of the control socket.
pub fn router(handle: Handle) -> Router {
    public_routes()
        .route("/v1/status", get(status))
        .route("/v1/vms", get(vms))
        .route("/v1/vms/{vm}", get(vm))
        .route("/v1/vms/{vm}/map", get(map))
        .route("/v1/vms/{vm}/explain", get(explain))
        .route("/v1/similar", get(similar))
        .route("/v1/record", get(record))
        .route("/v1/vms/{vm}/similar", get(similar_to))
        .route("/v1/vms/{vm}/move", post(move_pages))
        .route("/v1/tiers/{tier}/drain", post(drain))
        .fallback(no_such_route)
        .method_not_allowed_fallback(wrong_method)
        .with_state(handle)
}

/// Those that whoever reaches a TCP address may ask for.
pub fn public_router(handle: Handle) -> Router {
    let not_here = |uri: Uri| async move {
        ApiError::NotFound(format!("no such path {}: here are /metrics and /healthz", uri.path()))
    };
    public_routes().fallback(not_here).method_not_allowed_fallback(wrong_method).with_state(handle)
}

fn public_routes() -> Router<Handle> {
    Router::new().route("/healthz", get(healthz)).route("/metrics", get(scrape))
}

async fn scrape(State(handle): State<Handle>) -> Result<Response, ApiError> {
    // Figures of an agent that has died would look like those of one that lives.
    handle.status.has_changed().map_err(|_| gone())?;
    let text = handle.of_latest(metrics::render).await?;
    let text = text.map_err(|error| ApiError::Unavailable(format!("no metrics: {error}")))?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

async fn healthz(State(handle): State<Handle>) -> Result<&'static str, ApiError> {
    match handle.status.has_changed() {
        Ok(_) => Ok("ok\n"),
        Err(_) => Err(gone()),
    }
}

async fn status(State(handle): State<Handle>) -> Result<Response, ApiError> {
    handle.of_latest(|status| Json(status.as_ref()).into_response()).await
}

async fn vms(State(handle): State<Handle>) -> Result<Response, ApiError> {
    handle.of_latest(|status| Json(&status.vms).into_response()).await
}

async fn vm(State(handle): State<Handle>, Path(vm): Path<String>) -> Result<Json<VmStatus>, ApiError> {
    find(&handle.latest(), &vm).cloned().map(Json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MapQuery {
    hva: Option<String>,
    gpa: Option<String>,
    pfn: Option<String>,
}

impl MapQuery {
    fn pages(&self) -> Result<Pages, ApiError> {
        let pages = match (&self.hva, &self.gpa, &self.pfn) {
            (None, None, None) => Ok(Pages::All),
            (Some(hva), None, None) => parse_range(hva).map(Pages::Hva),
            (None, Some(gpa), None) => parse_range(gpa).map(Pages::Gpa),
            (None, None, Some(pfn)) => parse_number(pfn).map(Pages::Frame),
            _ => Err("give one of hva, gpa and pfn".to_owned()),
        };
        pages.map_err(ApiError::BadRequest)
    }
}

async fn map(
    State(handle): State<Handle>,
    Path(vm): Path<String>,
    query: Result<Query<MapQuery>, QueryRejection>,
) -> Result<Json<VmMap>, ApiError> {
    let Query(query) = query.map_err(|rejection| ApiError::BadRequest(rejection.body_text()))?;
    let vm = find(&handle.latest(), &vm)?.id.clone();
    let pages = match query.pages()? {
        Pages::Frame(pfn) => {
            let Json(found) = handle.ask(|reply| Request::FindFrame { vm: vm.clone(), pfn, reply }).await?;
            Pages::Hva(found)
        }
        pages => pages,
    };
    handle.ask(|reply| Request::Map { vm, pages, reply }).await
}

async fn similar(State(handle): State<Handle>) -> Result<Json<Similar>, ApiError> {
    handle.ask(|reply| Request::Similar { vm: None, reply }).await
}

async fn similar_to(State(handle): State<Handle>, Path(vm): Path<String>) -> Result<Json<Similar>, ApiError> {
    let vm = Some(find(&handle.latest(), &vm)?.id.clone());
    handle.ask(|reply| Request::Similar { vm, reply }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExplainQuery {
    hva: Option<String>,
    gpa: Option<String>,
}

async fn explain(
    State(handle): State<Handle>,
    Path(vm): Path<String>,
    query: Result<Query<ExplainQuery>, QueryRejection>,
) -> Result<Json<Explanation>, ApiError> {
    let Query(query) = query.map_err(|rejection| ApiError::BadRequest(rejection.body_text()))?;
    let vm = find(&handle.latest(), &vm)?.id.clone();
    let at = match (query.hva, query.gpa) {
        (None, None) => Ok(None),
        (Some(hva), None) => parse_number(&hva).map(Address::Hva).map(Some),
        (None, Some(gpa)) => parse_number(&gpa).map(Address::Gpa).map(Some),
        (Some(_), Some(_)) => Err("give one of hva and gpa".to_owned()),
    };
    let at = at.map_err(ApiError::BadRequest)?;
    handle.ask(|reply| Request::Explain { vm, at, reply }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordQuery {
    /// Ids, separated by commas.
    vms: Option<String>,
}

async fn record(
    State(handle): State<Handle>,
    query: Result<Query<RecordQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|rejection| ApiError::BadRequest(rejection.body_text()))?;
    let status = handle.latest();
    let vms = query.vms.iter().flat_map(|vms| vms.split(','));
    let vms = vms.map(|vm| find(&status, vm).map(|vm| vm.id.clone())).collect::<Result<_, _>>()?;
    let (sink, blocks) = mpsc::channel(BLOCKS);
    let Json(()) = handle.ask(|reply| Request::Record { vms, sink, reply }).await?;
    Ok(Body::new(Blocks(blocks)).into_response())
}

async fn move_pages(
    State(handle): State<Handle>,
    Path(vm): Path<String>,
    body: Result<Json<MoveBody>, JsonRejection>,
) -> Result<Json<MoveOutcome>, ApiError> {
    let Json(body) = body.map_err(|rejection| ApiError::BadRequest(rejection.body_text()))?;
    let status = handle.latest();
    let vm = find(&status, &vm)?.id.clone();
    let to = known_tier(&status, body.to)?;
    let hva = optional_range(body.hva.as_deref())?;
    handle.ask(|reply| Request::Move { vm, to, hva, reply }).await
}

async fn drain(
    State(handle): State<Handle>,
    Path(tier): Path<String>,
) -> Result<Json<DrainOutcome>, ApiError> {
    let tier = known_tier(&handle.latest(), tier)?;
    handle.ask(|reply| Request::Drain { tier, reply }).await
}

async fn no_such_route(uri: Uri) -> ApiError {
    ApiError::NotFound(format!("no such path {}: see /v1/status, /v1/vms and /metrics", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    let error = format!("{method} is not what {} takes: GET reads, POST acts", uri.path());
    (StatusCode::METHOD_NOT_ALLOWED, Json(ErrorBody { error })).into_response()
}

impl Handle {
    fn latest(&self) -> Arc<Status> {
        Arc::clone(&self.status.borrow())
    }

    /// Makes something of the latest status. Not on the agent's own thread: with many VMs it is long.
    async fn of_latest<T: Send + 'static>(
        &self,
        make: impl FnOnce(Arc<Status>) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let status = self.latest();
        tokio::task::spawn_blocking(move || make(status)).await.map_err(|_| gone())
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<Json<T>, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map(Json)
    }
}

fn gone() -> ApiError {
    ApiError::Unavailable("the agent is shutting down: start it again with `tiering run`".to_owned())
}

fn find<'a>(status: &'a Status, vm: &str) -> Result<&'a VmStatus, ApiError> {
    match status.find_vms(vm).as_slice() {
        [found] => Ok(found),
        [] => {
            Err(ApiError::NotFound(format!("no VM `{vm}` is known: `tiering vm list` shows those that are")))
        }
        several => {
            let ids: Vec<_> = several.iter().map(|vm| vm.id.as_str()).collect();
            Err(ApiError::BadRequest(format!("several VMs are called `{vm}`: use one of {}", ids.join(", "))))
        }
    }
}

fn known_tier(status: &Status, tier: String) -> Result<String, ApiError> {
    if status.tiers.iter().any(|known| known.name == tier) {
        return Ok(tier);
    }
    let names: Vec<_> = status.tiers.iter().map(|known| known.name.as_str()).collect();
    Err(ApiError::NotFound(format!("no tier `{tier}` is configured: use one of {}", names.join(", "))))
}

fn optional_range(text: Option<&str>) -> Result<Option<Range<u64>>, ApiError> {
    text.map(parse_range).transpose().map_err(ApiError::BadRequest)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let code = match self {
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Refused(_) => StatusCode::CONFLICT,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
        };
        (code, Json(ErrorBody { error: self.to_string() })).into_response()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
