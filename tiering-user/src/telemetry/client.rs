//! The other end of the control socket, for the command line.
//!
//! In: the socket's path and typed questions. Out: typed answers, or a [`ClientError`] that says what to do.
//! Not here: retries and time limits; a move takes as long as it takes, and Ctrl-C ends the waiting.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use axum::http::{Method, Request as HttpRequest, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{Connection, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::api::ErrorBody;
use super::explain::{Address, Explanation};
use super::request::{ApiError, DrainOutcome, MoveBody, MoveOutcome, Pages, VmMap, format_range};
use super::similar::Similar;
use super::status::{Status, VmStatus};

/// A question without an answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no agent answers on {}: start it with `tiering run`", socket.display())]
    NoAgent { socket: PathBuf },
    #[error("no permission to use {}: run this as the agent's user, as a rule root", socket.display())]
    Denied { socket: PathBuf },
    #[error("{}: connecting failed ({source}): check the path given with --socket", socket.display())]
    Connect { socket: PathBuf, source: io::Error },
    /// The agent said no.
    #[error(transparent)]
    Agent(#[from] ApiError),
    #[error("the connection to the agent broke ({0}): see its log")]
    Broken(#[from] hyper::Error),
    #[error("the answer is not what this version of `tiering` understands ({0}): use the agent's version")]
    Unreadable(String),
}

/// Asks the agent behind one socket; each question has a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Does not connect yet.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// The whole status.
    ///
    /// # Errors
    /// [`ClientError`], as for all questions.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status").await
    }

    /// All VMs.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn vms(&self) -> Result<Vec<VmStatus>, ClientError> {
        self.get("/v1/vms").await
    }

    /// One VM, by name, UUID, pid or NAMESPACE/NAME.
    ///
    /// # Errors
    /// [`ClientError`]; [`ApiError::NotFound`] in it for an unknown VM.
    pub async fn vm(&self, vm: &str) -> Result<VmStatus, ClientError> {
        self.get(&format!("/v1/vms/{}", segment(vm))).await
    }

    /// The mapping table of a VM, or a part of it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn map(&self, vm: &str, pages: &Pages) -> Result<VmMap, ClientError> {
        let query = match pages {
            Pages::All => String::new(),
            Pages::Hva(range) => format!("?hva={}", format_range(range)),
            Pages::Gpa(range) => format!("?gpa={}", format_range(range)),
            Pages::Frame(pfn) => format!("?pfn={pfn}"),
        };
        self.get(&format!("/v1/vms/{}/map{query}", segment(vm))).await
    }

    /// Why a VM, or one page of it, is where it is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn explain(&self, vm: &str, at: Option<Address>) -> Result<Explanation, ClientError> {
        let query = match at {
            None => String::new(),
            Some(Address::Hva(hva)) => format!("?hva={hva:#x}"),
            Some(Address::Gpa(gpa)) => format!("?gpa={gpa:#x}"),
        };
        self.get(&format!("/v1/vms/{}/explain{query}", segment(vm))).await
    }

    /// How alike VMs are: all that were compared, or one and its leaders.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn similar(&self, vm: Option<&str>) -> Result<Similar, ClientError> {
        match vm {
            None => self.get("/v1/similar").await,
            Some(vm) => self.get(&format!("/v1/vms/{}/similar", segment(vm))).await,
        }
    }

    /// A trace of what happens to these VMs from now on, or to all if there are none. Each piece of it goes to `take`,
    /// until that fails or the agent ends.
    ///
    /// # Errors
    /// [`ClientError`]; [`ApiError::Refused`] in it where somebody records already. The inner result is that of `take`.
    pub async fn record<E>(
        &self,
        vms: &[String],
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Result<(), E>, ClientError> {
        let vms: Vec<_> = vms.iter().map(|vm| segment(vm)).collect();
        let query = if vms.is_empty() { String::new() } else { format!("?vms={}", vms.join(",")) };
        let (mut sender, connection) = self.connect().await?;
        let request = request(Method::GET, &format!("/v1/record{query}"), Bytes::new());
        let taking = async move {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let mut body = response.into_body();
            if !status.is_success() {
                return Err(refusal(status, &body.collect().await?.to_bytes()));
            }
            while let Some(frame) = body.frame().await {
                if let Some(Err(error)) = frame?.data_ref().map(|bytes| take(bytes)) {
                    return Ok(Err(error));
                }
            }
            Ok(Ok(()))
        };
        // Whichever ends first: who stops taking leaves the connection open.
        tokio::select! {
            taken = taking => taken,
            ended = connection => Err(ended.err().map_or_else(|| ClientError::Unreadable("it ended early".to_owned()), ClientError::Broken)),
        }
    }

    /// Moves a VM's pages to the tier `to`; returns when they are moved.
    ///
    /// # Errors
    /// [`ClientError`]; [`ApiError::Refused`] in it where the VM must be left alone.
    pub async fn move_pages(
        &self,
        vm: &str,
        to: &str,
        hva: Option<&Range<u64>>,
    ) -> Result<MoveOutcome, ClientError> {
        let body = MoveBody { to: to.to_owned(), hva: hva.map(format_range) };
        self.post(&format!("/v1/vms/{}/move", segment(vm)), &body).await
    }

    /// Empties a tier and switches it off; returns when it is done.
    ///
    /// # Errors
    /// [`ClientError`]; [`ApiError::Refused`] in it where the memory above has no room.
    pub async fn drain(&self, tier: &str) -> Result<DrainOutcome, ClientError> {
        self.post(&format!("/v1/tiers/{}/drain", segment(tier)), &()).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Unreadable(error.to_string()))?;
        self.ask(Method::POST, path, body.into()).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let (mut sender, connection) = self.connect().await?;
        let request = request(method, path, body);
        let answer = async move {
            let response = sender.send_request(request).await?;
            let status = response.status();
            Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
        };
        // The connection has to be driven for the answer to come; it ends when `sender` is dropped after it.
        let ((status, bytes), _) = tokio::try_join!(answer, connection)?;
        if status.is_success() {
            return serde_json::from_slice(&bytes)
                .map_err(|error| ClientError::Unreadable(error.to_string()));
        }
        Err(refusal(status, &bytes))
    }

    async fn connect(
        &self,
    ) -> Result<(SendRequest<Full<Bytes>>, Connection<TokioIo<UnixStream>, Full<Bytes>>), ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| {
            let socket = self.socket.clone();
            match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoAgent { socket },
                io::ErrorKind::PermissionDenied => ClientError::Denied { socket },
                _ => ClientError::Connect { socket, source },
            }
        })?;
        Ok(hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?)
    }
}

fn request(method: Method, path: &str, body: Bytes) -> HttpRequest<Full<Bytes>> {
    HttpRequest::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "tiering")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .expect("method and headers are fixed, and the path is percent-encoded")
}

/// What the agent says where it says no.
fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    let text = match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => body.error,
        Err(_) => return ClientError::Unreadable(format!("HTTP status {status} without a reason")),
    };
    let error = match status {
        StatusCode::NOT_FOUND => ApiError::NotFound(text),
        StatusCode::CONFLICT => ApiError::Refused(text),
        StatusCode::BAD_REQUEST => ApiError::BadRequest(text),
        _ => ApiError::Unavailable(text),
    };
    error.into()
}

/// One segment of a path: everything but unreserved characters is percent-encoded (RFC 3986, section 2).
fn segment(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' | b'.' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::segment;

    #[test]
    fn names_stay_one_path_segment() {
        assert_eq!(segment("web-1"), "web-1");
        assert_eq!(segment("prod/db 1?%"), "prod%2Fdb%201%3F%25");
    }
}
