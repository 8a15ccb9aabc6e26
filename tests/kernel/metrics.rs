//! What Prometheus scrapes is what the status says, and nothing else is to be had over TCP.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use tiering_testkit::agent::Agent;
use tiering_testkit::guest::Backend;
use tiering_testkit::skip::skip_or_fail;

use crate::host::{Host, assert_memory_right, drain_and_end, guest, vm, wait_for};

const ADDRESS: &str = "127.0.0.1:19469";

/// Head and body of the answer.
fn get(path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(ADDRESS).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// The one sample of this metric with all of these labels.
fn sample(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let is_it = |line: &&str| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    };
    text.lines().find(is_it)?.rsplit(' ').next()?.parse().ok()
}

#[test]
fn a_scrape_says_what_the_status_says() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let config = format!("{}\n[telemetry]\nlisten = \"{ADDRESS}\"\n", host.config("1h"));
    let agent = Agent::start(&config, &[]).unwrap();
    let mut guest = guest("tt-metrics", Backend::Anonymous);
    vm(&agent, "tt-metrics");
    agent.tiering(&["move", "tt-metrics", "--to", "nvme"]).unwrap();
    guest.stop().unwrap();

    let same = wait_for("the scrape to be of the same second as the status", || {
        let status = vm(&agent, "tt-metrics");
        let (head, text) = get("/metrics");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let vm = "vm=\"tt-metrics\"";
        let found = |name: &str, labels: &[&str]| sample(&text, name, &[labels, &[vm]].concat());
        let wanted = |value: &serde_json::Value| value.as_f64();
        let pairs = [
            (found("tiering_vm_faults_total", &[]), wanted(&status["faults_total"])),
            (found("tiering_vm_demoted_bytes_total", &[]), wanted(&status["demoted_bytes_total"])),
            (found("tiering_vm_tier_bytes", &["tier=\"nvme\""]), wanted(&status["tier_bytes"]["nvme"])),
        ];
        println!("{pairs:?}");
        (pairs.iter().all(|(found, wanted)| found.is_some() && found == wanted) && pairs[2].1 > Some(1e6))
            .then_some(text)
    });
    let text = same.unwrap_or_else(|| panic!("{}\n{}", get("/metrics").1, vm(&agent, "tt-metrics")));
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert!(get("/healthz").0.starts_with("HTTP/1.1 200"));
    for path in ["/v1/status", "/", "/v1/vms"] {
        assert!(get(path).0.starts_with("HTTP/1.1 404"), "{path}");
    }
    guest.cont().unwrap();
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}
