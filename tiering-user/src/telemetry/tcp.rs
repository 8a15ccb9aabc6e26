//! Metrics and health on a TCP address, for a Prometheus that cannot read the control socket.
//!
//! In: an address, the latest status. Out: `/metrics` and `/healthz`, and nothing else, to whoever reaches the address:
//! on loopback every user of the host. Such a client is not trusted: each connection has one request and little time,
//! and few are open at once, so that the agent has threads and descriptors left. Not here: TLS and passwords; a proxy
//! has those.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::api::{Handle, public_router};

const MOST_CONNECTIONS: usize = 8;
/// From the connection to the end of the answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// After a connection could not be taken, because of what may pass (no descriptors).
const REST: Duration = Duration::from_secs(1);

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("another program listens on {0}: stop it, or set another `listen` in [telemetry]")]
    InUse(SocketAddr),
    #[error(
        "{0} is no address of this host: set `listen` in [telemetry] to one that is, such as \"127.0.0.1:9469\""
    )]
    NotLocal(SocketAddr),
    #[error("cannot listen on {address} ({source}): set another `listen` in [telemetry]")]
    Io { address: SocketAddr, source: io::Error },
}

/// Opens the address. Needs a tokio runtime.
///
/// # Errors
/// [`ListenError`].
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let listener = TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(address),
        io::ErrorKind::AddrNotAvailable => ListenError::NotLocal(address),
        _ => ListenError::Io { address, source },
    })?;
    if !address.ip().to_canonical().is_loopback() {
        tracing::warn!(%address, "metrics can be read from other hosts, names of VMs and images among them");
    }
    Ok(listener)
}

/// Serves until it is dropped, and what it serves with it.
pub async fn serve(listener: TcpListener, handle: Handle) {
    serve_within(DEADLINE, listener, handle).await;
}

async fn serve_within(deadline: Duration, listener: TcpListener, handle: Handle) {
    let router = public_router(handle);
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // Never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection for metrics was not taken");
                sleep(REST).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let connection =
                http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
            timeout(deadline, connection).await.ok();
            drop(place);
        });
    }
}

#[cfg(test)]
#[path = "tcp_tests.rs"]
mod tests;
