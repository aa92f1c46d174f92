//! Metrics and logs.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use overstream_testkit::{not_run, wait_for};
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

/// A daemon with metrics, a store `fast`, whose directory is given, and a volume store without volumes.
fn with_stores(body: fn(&mut Bed, &Path, &str)) {
    serve_as(
        |daemon| daemon,
        move |bed| {
            let (fast, address) = (bed.scratch.dir("fast"), free_address());
            bed.daemon.stop();
            bed.daemon.set_config(&format!(
                "[metrics]\naddress = \"{address}\"\n[stores.fast]\ntype = \"dir\"\npath = \"{}\"\n\
                 [stores.away]\ntype = \"volume\"\nmatch = \"/nowhere/(?P<pod>.*)\"\n\
                 [[rules]]\nkey = \"^kept\"\nstore = \"fast\"\nretain = true\n",
                fast.display()
            ));
            bed.daemon.start();
            body(bed, &fast, &address);
        },
    );
}

/// Checks that the metrics have these lines, each without its prefix.
#[track_caller]
fn told(address: &str, lines: &[&str]) -> String {
    let body = get(address, "/metrics").1;
    for line in lines {
        assert!(body.contains(&format!("\noverstream_store_{line}\n")), "{line}: {body}");
    }
    body
}

#[test]
fn metrics_tell_of_the_stores() {
    with_stores(|bed, fast, address| {
        bed.layer("layer", "");
        bed.view("view", "layer");
        bed.prepare("kept-1", "layer");
        bed.prepare("kept-2", "layer");
        fs::write(fast.join("snapshots/3/fs/file"), "x").unwrap();
        bed.client.remove("kept-1").unwrap();
        bed.prepare("gone", "");
        bed.client.remove("gone").unwrap();
        let lines = [
            "answering{store=\"root\"} 1",
            "answering{store=\"fast\"} 1",
            "usable{store=\"root\"} 1",
            "usable{store=\"fast\"} 1",
            "snapshots{store=\"root\",kind=\"committed\"} 1",
            "snapshots{store=\"root\",kind=\"view\"} 1",
            "snapshots{store=\"root\",kind=\"active\"} 0",
            "snapshots{store=\"fast\",kind=\"active\"} 1",
            "snapshots{store=\"away\",kind=\"active\"} 0",
            "retained{store=\"root\"} 0",
            "retained{store=\"fast\"} 1",
            "garbage{store=\"root\"} 1",
            "garbage{store=\"fast\"} 0",
        ];
        let body = told(address, &lines);
        let bytes = |name: &str| {
            let start = format!("overstream_store_{name}_bytes{{store=\"fast\"}} ");
            let found = body.lines().find_map(|line| line.strip_prefix(start.as_str()));
            found.unwrap_or_else(|| panic!("{body}")).parse::<u64>().unwrap()
        };
        assert!(bytes("size") >= bytes("available") && bytes("available") > 0, "{body}");
        for absent in ["usable{store=\"away\"}", "retained{store=\"away\"}"] {
            assert!(!body.contains(absent), "{absent}: {body}");
        }
        assert_eq!(body.matches("# EOF").count(), 1, "{body}");
    });
}

#[test]
fn metrics_tell_of_a_disk_that_is_not_mounted() {
    with_stores(|_, fast, address| {
        let (marker, aside) = (fast.join(".overstream-store"), fast.join("aside"));
        fs::rename(&marker, &aside).unwrap();
        let lines =
            ["answering{store=\"fast\"} 1", "usable{store=\"fast\"} 0", "usable{store=\"root\"} 1"];
        let body = told(address, &lines);
        assert!(!body.contains("bytes{store=\"fast\"}"), "{body}");
        fs::rename(&aside, &marker).unwrap();
        told(address, &["usable{store=\"fast\"} 1"]);
    });
}

/// A file system over a directory whose disk never answers, until this is dropped.
struct Hung<'a> {
    path: &'a Path,
    _device: fs::File,
}

impl<'a> Hung<'a> {
    fn over(path: &'a Path) -> Option<Self> {
        let device = fs::File::options().read(true).write(true).open("/dev/fuse").ok()?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            std::os::fd::AsRawFd::as_raw_fd(&device)
        );
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("hung"), path, Some("fuse"), flags, Some(options.as_str())).ok()?;
        Some(Self { path, _device: device })
    }
}

impl Drop for Hung<'_> {
    fn drop(&mut self) {
        // Whoever waits gets an error as soon as the device is closed, which follows.
        nix::mount::umount2(self.path, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_disk_that_never_answers_does_not_hang_the_metrics() {
    with_stores(|bed, fast, address| {
        let Some(hung) = Hung::over(fast) else {
            not_run("fuse", "/dev/fuse cannot be opened or mounted");
            return;
        };
        let began = Instant::now();
        for _ in 0..2 {
            let lines = [
                "answering{store=\"fast\"} 0",
                "usable{store=\"fast\"} 0",
                "usable{store=\"root\"} 1",
            ];
            let body = told(address, &lines);
            assert!(body.contains("overstream_store_snapshots{"), "{body}");
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        // At most one thread waits for the disk.
        let tasks = fs::read_dir(format!("/proc/{}/task", bed.daemon.pid())).unwrap();
        let waiting = tasks
            .filter(|task| {
                let name = fs::read_to_string(task.as_ref().unwrap().path().join("comm"));
                name.is_ok_and(|name| name.trim() == "store metrics")
            })
            .count();
        assert_eq!(waiting, 1);
        drop(hung);
        let answers = || get(address, "/metrics").1.contains("answering{store=\"fast\"} 1\n");
        wait_for("the disk", Duration::from_secs(10), answers);
    });
}

#[test]
fn a_store_that_refuses_calls_because_it_hangs_does_not_count_as_answering() {
    with_stores(|bed, fast, address| {
        bed.layer("layer", "");
        let Some(hung) = Hung::over(fast) else {
            not_run("fuse", "/dev/fuse cannot be opened or mounted");
            return;
        };
        let client = &bed.client;
        std::thread::scope(move |scope| {
            let hung = hung;
            let prepare = |number| move || client.prepare(&format!("kept-{number}"), "layer", &[]);
            // One more than are let in.
            let calls: Vec<_> = (0..9).map(|number| scope.spawn(prepare(number))).collect();
            let refused = || calls.iter().any(|call| call.is_finished());
            wait_for("a call to be refused", Duration::from_secs(10), refused);
            told(address, &["answering{store=\"fast\"} 0"]);
            drop(hung);
        });
    });
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
            bed.prepare("ns/7/container", "");
            let written = || bed.daemon.log().matches("\"done\"").count() >= 4;
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
                let shown = line["fields"]["milliseconds"].as_f64().unwrap().to_string();
                let decimals = shown.split_once('.').map_or("", |(_, decimals)| decimals);
                assert!(decimals.len() <= 3, "{line}");
                assert_eq!(line["span"]["namespace"], "");
            }
            assert_eq!(call("Prepare", "ns/7/container", "done")["span"]["namespace"], "ns");
            let refused =
                lines.iter().find(|line| line["span"]["key"] == "none").expect("a refusal");
            assert_eq!(refused["fields"]["code"], "NotFound");
            assert_eq!(refused["level"], "INFO");
            assert_eq!(refused["fields"]["message"], "refused");
            assert_eq!(refused["fields"]["error"], "snapshot \"none\": not found");
        },
    );
}
