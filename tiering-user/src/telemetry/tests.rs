//! The API on a real socket, a fake agent behind it, the client before it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{self, PathBuf};

use tokio::task::JoinHandle;

use super::*;
use crate::telemetry::client::{Client, ClientError};
use crate::telemetry::explain::PageInfo;
use crate::telemetry::request::{Location, MapRun};
use crate::telemetry::similar::{Similar, SimilarPair};
use crate::telemetry::socket;
use crate::telemetry::status::TierStatus;

/// An agent that knows two VMs called `db` and one called `web-1`, and does nothing but answer.
struct FakeAgent {
    _folder: tempfile::TempDir,
    path: PathBuf,
    status: watch::Sender<Arc<Status>>,
    stop: oneshot::Sender<()>,
    server: JoinHandle<io::Result<()>>,
    agent: JoinHandle<()>,
}

impl FakeAgent {
    fn start() -> Self {
        let vm = |id: &str, namespace: Option<&str>, name: &str, pid| VmStatus {
            id: id.to_owned(),
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
            pid,
            ..VmStatus::default()
        };
        let tier = |name: &str| TierStatus { name: name.to_owned(), ..TierStatus::default() };
        let (status, seen) = watch::channel(Arc::new(Status {
            version: "1.2.3".to_owned(),
            tiers: vec![tier("dram"), tier("qlc")],
            vms: vec![
                vm("id-web", None, "web-1", 100),
                vm("id-db-p", Some("prod"), "db", 200),
                vm("id-db-t", Some("test"), "db", 300),
            ],
            ..Status::default()
        }));
        let (requests, inbox) = mpsc::channel(4);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiering.sock");
        let listener = socket::listen(&path).unwrap();
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(serve(listener, Handle { status: seen, requests }, async {
            let _ = stopped.await;
        }));
        Self { _folder: folder, path, status, stop, server, agent: tokio::spawn(answer(inbox)) }
    }

    fn client(&self) -> Client {
        Client::new(self.path.clone())
    }
}

/// One request as any HTTP client would send it; the whole answer.
async fn raw(socket: &path::Path, method: &str, path: &str, body: &str) -> String {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = UnixStream::connect(socket).unwrap();
    let exchange = move || {
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    tokio::task::spawn_blocking(exchange).await.unwrap()
}

async fn answer(mut inbox: mpsc::Receiver<Request>) {
    while let Some(request) = inbox.recv().await {
        match request {
            Request::FindFrame { pfn: 0xabc, reply, .. } => {
                let _ = reply.send(Ok(0xa000..0xb000));
            }
            Request::FindFrame { .. } => {} // drops the reply
            Request::Map { vm, pages, reply } => {
                let (hva, gpa) = match pages {
                    Pages::Hva(range) => (range.start, None),
                    Pages::Gpa(range) => (0x1000, Some(range.start)),
                    Pages::All | Pages::Frame(_) => (0x1000, None),
                };
                let run = MapRun {
                    hva,
                    gpa,
                    pages: 3,
                    tier: "qlc".to_owned(),
                    frame_or_slot: Some(Location::Slot { area: 2, slot: 77 }),
                    ..MapRun::default()
                };
                let _ = reply.send(Ok(VmMap { vm, page_bytes: 4096, runs: vec![run] }));
            }
            Request::Explain { vm, at, reply } => {
                let hva = |at| match at {
                    Address::Hva(hva) | Address::Gpa(hva) => hva,
                };
                let page = at.map(|at| PageInfo { hva: hva(at), ..PageInfo::default() });
                let _ = reply.send(Ok(Explanation { vm, page, ..Explanation::default() }));
            }
            Request::Record { vms, sink, reply } => {
                let again = vms.contains("id-db-t");
                let answer =
                    if again { Err(ApiError::Refused("somebody else records".to_owned())) } else { Ok(()) };
                let _ = reply.send(answer);
                for piece in ["one", "two"] {
                    let _ = sink.send(piece.as_bytes().to_vec()).await;
                }
            }
            Request::Similar { vm, reply } => {
                let follower = vm.unwrap_or_else(|| "all".to_owned());
                let pairs = vec![SimilarPair { follower, score: 0.5, ..SimilarPair::default() }];
                let _ = reply.send(Ok(Similar { pairs }));
            }
            Request::Move { vm, .. } if vm == "id-db-p" => {} // drops the reply: the agent dies half-way
            Request::Move { to, reply, .. } if to == "dram" => {
                let _ = reply.send(Err(ApiError::Refused("it is locked: leave it".to_owned())));
            }
            Request::Move { hva, reply, .. } => {
                let pages = hva.map_or(100, |range| (range.end - range.start) / 4096);
                let outcome = MoveOutcome {
                    asked_pages: pages,
                    moved_pages: pages - 1,
                    skipped: [("pinned".to_owned(), 1)].into(),
                    ..MoveOutcome::default()
                };
                let _ = reply.send(Ok(outcome));
            }
            Request::Drain { tier, reply } => {
                let _ = reply.send(Ok(DrainOutcome { tier, brought_up_pages: 5, elapsed_ms: 1 }));
            }
        }
    }
}

fn api_error<T: std::fmt::Debug>(result: Result<T, ClientError>) -> ApiError {
    match result {
        Err(ClientError::Agent(error)) => error,
        other => panic!("the agent should have said no, but: {other:?}"),
    }
}

#[tokio::test]
async fn the_status_is_the_latest_one_published() {
    let agent = FakeAgent::start();
    let client = agent.client();
    assert_eq!(client.status().await.unwrap().version, "1.2.3");
    assert_eq!(client.vms().await.unwrap().len(), 3);
    agent.status.send(Arc::new(Status { version: "2.0.0".to_owned(), ..Status::default() })).unwrap();
    let status = client.status().await.unwrap();
    assert_eq!((status.version.as_str(), status.vms.len()), ("2.0.0", 0));
}

#[tokio::test]
async fn a_vm_is_asked_for_in_any_of_its_names() {
    let agent = FakeAgent::start();
    for name in ["test/db", "id-db-t", "300"] {
        assert_eq!(agent.client().vm(name).await.unwrap().id, "id-db-t", "{name}");
    }
    let ApiError::BadRequest(text) = api_error(agent.client().vm("db").await) else { panic!("two match") };
    assert!(text.contains("id-db-p") && text.contains("id-db-t"), "{text}");
}

#[tokio::test]
async fn an_unknown_vm_or_tier_is_not_found() {
    let agent = FakeAgent::start();
    let client = agent.client();
    let error = api_error(client.vm("nobody").await);
    assert!(matches!(&error, ApiError::NotFound(text) if text.contains("nobody")), "{error:?}");
    assert!(matches!(api_error(client.map("nobody", &Pages::All).await), ApiError::NotFound(_)));
    assert!(matches!(api_error(client.move_pages("nobody", "qlc", None).await), ApiError::NotFound(_)));
    let error = api_error(client.move_pages("web-1", "tape", None).await);
    assert!(matches!(&error, ApiError::NotFound(text) if text.contains("dram, qlc")), "{error:?}");
    assert!(matches!(api_error(client.drain("tape").await), ApiError::NotFound(_)));
}

#[tokio::test]
async fn the_map_of_a_vm_reaches_the_client() {
    let agent = FakeAgent::start();
    let map = agent.client().map("web-1", &Pages::Hva(0x7000..0x9000)).await.unwrap();
    assert_eq!((map.vm.as_str(), map.page_bytes), ("id-web", 4096));
    assert_eq!((map.runs[0].hva, map.runs[0].pages), (0x7000, 3));
    assert_eq!(map.runs[0].frame_or_slot, Some(Location::Slot { area: 2, slot: 77 }));
    assert_eq!(agent.client().map("web-1", &Pages::All).await.unwrap().runs[0].hva, 0x1000);
    let map = agent.client().map("web-1", &Pages::Gpa(0x5000..0x6000)).await.unwrap();
    assert_eq!(map.runs[0].gpa, Some(0x5000));
    let map = agent.client().map("web-1", &Pages::Frame(0xabc)).await.unwrap();
    assert_eq!(map.runs[0].hva, 0xa000, "the page that has the frame");
}

#[tokio::test]
async fn a_machine_and_a_page_of_it_are_explained() {
    let agent = FakeAgent::start();
    let client = agent.client();
    assert_eq!(client.explain("web-1", None).await.unwrap().page, None);
    let page = client.explain("web-1", Some(Address::Gpa(0x5000))).await.unwrap().page.unwrap();
    assert_eq!(page.hva, 0x5000);
    assert!(matches!(api_error(client.explain("nobody", None).await), ApiError::NotFound(_)));
}

#[tokio::test]
async fn alike_machines_are_shown_for_all_or_for_one() {
    let agent = FakeAgent::start();
    let client = agent.client();
    assert_eq!(client.similar(None).await.unwrap().pairs[0].follower, "all");
    let of_one = client.similar(Some("web-1")).await.unwrap();
    assert_eq!((of_one.pairs[0].follower.as_str(), of_one.pairs[0].score), ("id-web", 0.5));
    assert!(matches!(api_error(client.similar(Some("nobody")).await), ApiError::NotFound(_)));
}

#[tokio::test]
async fn a_recording_comes_piece_by_piece_until_it_ends() {
    let agent = FakeAgent::start();
    let client = agent.client();
    let mut taken = Vec::new();
    let mut take = |bytes: &[u8]| {
        taken.extend_from_slice(bytes);
        Ok::<_, io::Error>(())
    };
    client.record(&["web-1".to_owned()], &mut take).await.unwrap().unwrap();
    assert_eq!(taken, b"onetwo");
    let full = client.record(&[], |_| Err(io::Error::from(io::ErrorKind::StorageFull))).await.unwrap();
    assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
    let take = |_: &[u8]| Ok::<_, io::Error>(());
    assert!(matches!(api_error(client.record(&["300".to_owned()], take).await), ApiError::Refused(_)));
    assert!(matches!(api_error(client.record(&["nobody".to_owned()], take).await), ApiError::NotFound(_)));
}

#[tokio::test]
async fn moves_and_drains_are_done_or_refused_by_the_agent() {
    let agent = FakeAgent::start();
    let client = agent.client();
    let outcome = client.move_pages("web-1", "qlc", Some(&(0..40960))).await.unwrap();
    assert_eq!((outcome.asked_pages, outcome.moved_pages, outcome.skipped["pinned"]), (10, 9, 1));
    let refused = api_error(client.move_pages("web-1", "dram", None).await);
    assert_eq!(refused, ApiError::Refused("it is locked: leave it".to_owned()));
    assert_eq!(client.drain("qlc").await.unwrap().brought_up_pages, 5);
}

#[tokio::test]
async fn scripts_get_json_errors_with_the_right_http_status() {
    let agent = FakeAgent::start();
    let cases = [
        ("GET", "/v1/nothing", "", "404"),
        ("GET", "/v1/vms/nobody", "", "404"),
        ("GET", "/v1/vms/web-1/map?hva=1", "", "400"),
        ("GET", "/v1/vms/web-1/map?hvaa=0..1", "", "400"),
        ("GET", "/v1/vms/web-1/map?gpa=0", "", "400"),
        ("GET", "/v1/vms/web-1/map?pfn=x", "", "400"),
        ("GET", "/v1/vms/web-1/map?pfn=1&gpa=0..1", "", "400"),
        ("GET", "/v1/vms/web-1/explain?gpa=0..1", "", "400"),
        ("POST", "/v1/vms/web-1/move", "{}", "400"),
        ("POST", "/v1/vms/web-1/move", r#"{"to":"qlc","hva":"x"}"#, "400"),
        ("POST", "/v1/vms/web-1/move", r#"{"to":"dram","hva":null}"#, "409"),
        ("POST", "/v1/vms/prod%2Fdb/move", r#"{"to":"qlc"}"#, "503"),
        ("POST", "/v1/status", "", "405"),
    ];
    for (method, path, body, code) in cases {
        let answer = raw(&agent.path, method, path, body).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{method} {path} {body}: {answer}");
        let json = answer.split_once("\r\n\r\n").unwrap().1;
        let error: ErrorBody = serde_json::from_str(json).expect(&answer);
        assert!(!error.error.is_empty(), "{answer}");
    }
    let healthy = raw(&agent.path, "GET", "/healthz", "").await;
    assert!(healthy.starts_with("HTTP/1.1 200 ") && healthy.ends_with("ok\n"), "{healthy}");
    let metrics = raw(&agent.path, "GET", "/metrics", "").await;
    assert!(metrics.contains("\ntiering_vm_ram_bytes{vm=\"web-1\",id=\"id-web\"} 0\n"), "{metrics}");
    let moved = raw(&agent.path, "POST", "/v1/vms/web-1/move", r#"{"to":"qlc","hva":null}"#).await;
    assert!(moved.starts_with("HTTP/1.1 200 ") && moved.contains(r#""asked_pages":100"#), "{moved}");
}

#[tokio::test]
async fn an_agent_that_died_is_not_healthy() {
    let agent = FakeAgent::start();
    let (path, client) = (agent.path.clone(), agent.client());
    agent.agent.abort();
    let error = api_error(client.map("web-1", &Pages::All).await);
    assert!(matches!(error, ApiError::Unavailable(_)), "{error:?}");
    let FakeAgent { _folder, status, stop, server, .. } = agent;
    drop(status);
    let answer = raw(&path, "GET", "/healthz", "").await;
    assert!(answer.contains(" 503 "), "{answer}");
    drop(stop);
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn shutting_down_does_not_wait_for_a_silent_client() {
    let agent = FakeAgent::start();
    let _silent = UnixStream::connect(&agent.path).unwrap();
    let FakeAgent { _folder, path, stop, server, .. } = agent;
    drop(stop);
    server.await.unwrap().unwrap();
    let error = Client::new(path).status().await.expect_err("nobody listens any more");
    assert!(matches!(error, ClientError::NoAgent { .. }), "{error}");
}

#[tokio::test]
async fn without_an_agent_the_client_says_how_to_start_one() {
    let error = Client::new("/nonexistent/tiering.sock".into()).status().await.expect_err("no socket");
    assert_eq!(
        error.to_string(),
        "no agent answers on /nonexistent/tiering.sock: start it with `tiering run`"
    );
}
