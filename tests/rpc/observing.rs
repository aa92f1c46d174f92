//! Metrics and logs.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use overstream_testkit::wait_for;
use serde_json::Value;

use super::frame::{Bed, serve_as};

/// An address that is free, or was a moment ago.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

fn get(address: &str, path: &str) -> (String, String) {
    let mut answer = String::new();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn a_call_of_each_outcome(bed: &Bed) {
    bed.prepare("a", "");
    bed.client.stat("a").unwrap();
    bed.client.stat("none").unwrap_err();
    bed.client.stat("neither").unwrap_err();
    bed.client.list(&[]).unwrap();
}

#[test]
fn metrics_count_calls_by_method_and_code() {
    let address = free_address();
    let configured = address.clone();
    serve_as(
        move |daemon| daemon.with_arg("--metrics-address").with_arg(configured),
        move |bed| {
            a_call_of_each_outcome(bed);
            let (head, body) = get(&address, "/metrics");
            assert!(
                head.starts_with("HTTP/1.1 200") && head.contains("openmetrics-text"),
                "{head}"
            );
            let expected = [
                "overstream_rpc_total{method=\"Prepare\",code=\"Ok\"} 1",
                "overstream_rpc_total{method=\"Stat\",code=\"Ok\"} 1",
                "overstream_rpc_total{method=\"Stat\",code=\"NotFound\"} 2",
                "overstream_rpc_total{method=\"List\",code=\"Ok\"} 1",
                "overstream_rpc_duration_seconds_count{method=\"Stat\"} 3",
                "overstream_rpc_in_flight{method=\"Stat\"} 0",
                "overstream_build_info{version=",
                "overstream_start_time_seconds ",
            ];
            for line in expected {
                assert!(body.lines().any(|found| found.starts_with(line)), "{line}\n{body}");
            }
            assert!(body.ends_with("# EOF\n"), "{body}");
            assert!(get(&address, "/other").0.starts_with("HTTP/1.1 404"));
        },
    );
}

#[test]
fn a_taken_metrics_address_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    serve_as(
        |daemon| daemon,
        move |bed| {
            bed.daemon.stop();
            bed.daemon.set_config(&format!("[metrics]\naddress = \"{address}\"\n"));
            bed.daemon.launch();
            assert_eq!(bed.daemon.wait_exit(Duration::from_secs(10)).code(), Some(1));
            let log = bed.daemon.log();
            assert!(log.contains(&address) && log.contains("choose another address"), "{log}");
            assert_eq!(log.matches("serving").count(), 1, "{log}");
            drop(taken);
        },
    );
}

#[test]
fn json_logs_tell_of_each_call_in_a_span() {
    serve_as(
        |daemon| daemon.with_arg("--log-format=json").with_arg("--log-level").with_arg("debug"),
        |bed| {
            a_call_of_each_outcome(bed);
            let written = || bed.daemon.log().matches("\"done\"").count() >= 3;
            wait_for("the log", Duration::from_secs(10), written);
            let log = bed.daemon.log();
            let lines: Vec<Value> =
                log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
            let call = |method: &str, key: &str, message: &str| {
                let found = lines.iter().find(|line| {
                    line["span"]["method"] == method
                        && line["span"]["key"] == key
                        && line["fields"]["message"] == message
                });
                found.unwrap_or_else(|| panic!("no {method} of {key}: {log}")).clone()
            };
            for line in [call("Prepare", "a", "done"), call("Stat", "a", "done")] {
                assert_eq!(line["span"]["name"], "rpc");
                assert_eq!(line["span"]["snapshotter"], "over");
                assert!(line["fields"]["milliseconds"].is_number(), "{line}");
            }
            let refused =
                lines.iter().find(|line| line["span"]["key"] == "none").expect("a refusal");
            assert_eq!(refused["fields"]["code"], "NotFound");
            assert_eq!(refused["level"], "INFO");
            assert_eq!(refused["fields"]["message"], "refused");
            assert_eq!(refused["fields"]["error"], "snapshot \"none\": not found");
        },
    );
}
