use std::io::{Read, Write};
use std::net::TcpStream;

use tokio::sync::{mpsc, watch};

use super::*;
use crate::telemetry::status::Status;

const ANY_PORT: &str = "127.0.0.1:0";

/// Serves this status; the sender stands for the agent.
async fn start(deadline: Duration) -> (SocketAddr, watch::Sender<Arc<Status>>) {
    let listener = listen(ANY_PORT.parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (agent, status) =
        watch::channel(Arc::new(Status { version: "1.2.3".to_owned(), ..Status::default() }));
    // Nobody answers requests: none may get there.
    let (requests, _) = mpsc::channel(1);
    tokio::spawn(serve_within(deadline, listener, Handle { status, requests }));
    (address, agent)
}

async fn ask(address: SocketAddr, method: &str, path: &str) -> String {
    let exchange = move |request: String| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    // The client would keep the connection: the server ends it.
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
    tokio::task::spawn_blocking(move || exchange(request)).await.unwrap()
}

#[tokio::test]
async fn metrics_are_those_of_the_latest_status() {
    let (address, agent) = start(DEADLINE).await;
    let answer = ask(address, "GET", "/metrics").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0"), "{answer}");
    assert!(answer.contains("\ntiering_build_info{version=\"1.2.3\"} 1\n"), "{answer}");
    agent.send_replace(Arc::new(Status { version: "2.0.0".to_owned(), ..Status::default() }));
    let answer = ask(address, "GET", "/metrics").await;
    assert!(answer.contains("\ntiering_build_info{version=\"2.0.0\"} 1\n"), "{answer}");
    drop(agent);
    assert!(ask(address, "GET", "/metrics").await.starts_with("HTTP/1.1 503 "), "the agent has died");
}

#[tokio::test]
async fn nothing_but_metrics_and_health_is_served() {
    let (address, _agent) = start(DEADLINE).await;
    assert!(ask(address, "GET", "/healthz").await.ends_with("\r\n\r\nok\n"));
    let others = [
        ("GET", "/"),
        ("GET", "/v1/status"),
        ("GET", "/v1/vms"),
        ("GET", "/v1/vms/web/map"),
        ("GET", "/v1/similar"),
        ("POST", "/v1/vms/web/move"),
        ("POST", "/v1/tiers/qlc/drain"),
    ];
    for (method, path) in others {
        let answer = ask(address, method, path).await;
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("/metrics"), "{path}: {answer}");
    }
    assert!(ask(address, "POST", "/metrics").await.starts_with("HTTP/1.1 405 "));
}

#[tokio::test]
async fn an_address_that_is_taken_or_elsewhere_is_told_with_what_to_do() {
    let first = listen(ANY_PORT.parse().unwrap()).await.unwrap();
    let address = first.local_addr().unwrap();
    assert_eq!(
        listen(address).await.expect_err("it is taken").to_string(),
        format!("another program listens on {address}: stop it, or set another `listen` in [telemetry]")
    );
    // TEST-NET-1: no host has it.
    let error = listen("192.0.2.1:9469".parse().unwrap()).await.expect_err("not of this host").to_string();
    assert!(error.starts_with("192.0.2.1:9469 is no address of this host: set `listen`"), "{error}");
}

#[tokio::test]
async fn clients_that_say_nothing_do_not_keep_others_out_for_long() {
    let (address, _agent) = start(Duration::from_millis(100)).await;
    let silent: Vec<_> = (0..2 * MOST_CONNECTIONS).map(|_| TcpStream::connect(address).unwrap()).collect();
    let answer = ask(address, "GET", "/healthz").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    drop(silent);
}
