//! Runs a little of `make bench-fuse`, so that it cannot rot between two whole runs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use overstream_testkit::{
    Output, Scratch, limit, mounts_below, not_run, require_command, require_fuse, require_root,
    run_within,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);

/// Runs the benchmark with a few words, and returns what it wrote as JSON.
fn bench(scratch: &Scratch, words: &[&str]) -> (Output, Value) {
    let json = scratch.join("report.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench-fuse"));
    command.args(words).arg("--quick").arg("--json").arg(&json);
    command.env("OVERSTREAM_SCRATCH", scratch.dir("b"));
    let output = run_within(LIMIT, &mut command);
    let text = std::fs::read_to_string(json).unwrap_or_else(|_| panic!("no report: {output}"));
    (output, serde_json::from_str(&text).unwrap())
}

/// The result of a subject in a row.
fn result<'a>(report: &'a Value, row: &str, subject: &str) -> &'a Value {
    let find = |list: &'a Value, key: &str, name: &str| {
        list.as_array().unwrap().iter().find(|value| value[key] == name)
    };
    let found = find(&report["rows"], "row", row).map(|row| &row["results"]);
    let found = found.and_then(|results| find(results, "name", subject));
    found.unwrap_or_else(|| panic!("no {subject} in {row}: {report:#}"))
}

/// Checks that a subject was measured twice, and that its daemon had its share.
fn assert_measured(report: &Value, row: &str, subject: &str) {
    let found = result(report, row, subject);
    assert_eq!(found["problem"], Value::Null, "{found:#}");
    let sum = |key: &str| {
        let each: Vec<f64> =
            found[key].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
        assert_eq!(each.len(), 2, "{found:#}");
        each.iter().sum::<f64>()
    };
    assert!(sum("wall_seconds") > 0.0 && sum("client_cpu_seconds") > 0.0, "{found:#}");
    assert_eq!(sum("daemon_cpu_seconds") > 0.0, subject != "kernel", "{found:#}");
    assert_eq!(found["ratio"].is_array(), subject != "kernel", "{found:#}");
}

/// Overstream, built beside the benchmark.
fn overstream() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_BIN_EXE_bench-fuse")).with_file_name("overstream");
    let found = path.is_file();
    if !found {
        not_run("overstream", "it is not built; `cargo test --workspace` builds it");
    }
    found.then_some(path)
}

#[test]
fn the_kernel_and_a_peer_are_measured_side_by_side() {
    limit(LIMIT, || {
        if !require_root() || !require_fuse() || !require_command("peers", "fuse-overlayfs") {
            return;
        }
        let scratch = Scratch::new();
        let words = ["--only", "create,walk-first", "--subjects", "kernel,c"];
        let (output, report) = bench(&scratch, &words);
        for row in ["create", "walk-first"] {
            assert_measured(&report, row, "kernel");
            assert_measured(&report, row, "c");
        }
        assert!(output.ok().text().contains("| create "));
        assert!(mounts_below(scratch.path()).is_empty());
    });
}

#[test]
fn overstream_is_measured_and_judged() {
    limit(LIMIT, || {
        if !require_root() || !require_fuse() || overstream().is_none() {
            return;
        }
        let scratch = Scratch::new();
        let words = ["--only", "walk-first", "--subjects", "kernel,overstream", "--read-only"];
        let (output, report) = bench(&scratch, &words);
        assert_measured(&report, "walk-first", "overstream");
        assert_ne!(result(&report, "walk-memory", "overstream")["figure"], Value::Null);
        let rows = report["rows"].as_array().unwrap();
        let missed = rows.iter().any(|row| row["met"] == Value::Bool(false));
        assert!(rows.iter().all(|row| row["met"].is_boolean()), "{report:#}");
        assert_eq!(output.code(), Some(if missed { 2 } else { 0 }), "{output}");
    });
}

#[test]
fn a_subject_that_fails_is_reported_and_the_others_are_measured() {
    limit(LIMIT, || {
        if !require_root() {
            return;
        }
        let scratch = Scratch::new();
        let add = "broken=/bin/false {target}";
        let words = ["--only", "create", "--subjects", "kernel", "--add", add];
        let (output, report) = bench(&scratch, &words);
        assert_measured(&report, "create", "kernel");
        let problem = result(&report, "create", "broken")["problem"].as_str().unwrap();
        assert!(problem.contains("/bin/false"), "{problem}");
        assert!(output.ok().text().contains("NOT RUN: create of broken"));
    });
}

#[test]
fn a_row_that_does_not_exist_is_refused() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench-fuse"));
    let output = run_within(LIMIT, command.args(["--only", "nonsense"])).fails();
    let expected = if nix::unistd::geteuid().is_root() { "no row \"nonsense\"" } else { "root" };
    assert!(output.errors().contains(expected), "{output}");
}
