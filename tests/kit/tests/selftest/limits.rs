use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::{Duration, Instant};

use overstream_testkit::{Output, Scratch, limit, not_run, run, run_within};

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

#[test]
fn a_test_that_hangs_is_ended_with_its_children() {
    let begin = Instant::now();
    let result = catch_unwind(|| {
        limit(Duration::from_millis(300), || {
            let scratch = Scratch::new();
            let process = scratch.spawn("hang", Command::new("sleep").arg("1000"));
            process.wait_exit(Duration::from_secs(1000));
        });
    });
    let text = message(&*result.unwrap_err());
    assert!(text.contains("a_test_that_hangs_is_ended_with_its_children"), "{text}");
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn what_the_body_returns_is_returned() {
    assert_eq!(limit(Duration::from_secs(5), || 7), 7);
}

#[test]
fn a_failing_command_is_shown_with_everything() {
    let script = "echo out; echo err >&2; exit 7";
    let output = run(Command::new("sh").args(["-c", script]));
    assert_eq!(output.code(), Some(7));
    let text = message(&*catch_unwind(|| output.ok()).unwrap_err());
    for part in [script, "exit status: 7", "out", "err"] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
}

#[test]
fn a_hanging_command_is_killed() {
    let result = catch_unwind(AssertUnwindSafe(|| {
        run_within(Duration::from_millis(100), Command::new("sleep").arg("1000"))
    }));
    assert!(message(&*result.unwrap_err()).contains("not done within 100ms"));
}

#[test]
#[ignore = "run by the tests below in a process of its own"]
fn says_not_run() {
    not_run("moonlight", "the sun shines");
}

fn run_says_not_run(scratch: &Scratch, required: &str) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "selftest::limits::says_not_run"]);
    command.env("OVERSTREAM_REQUIRE", required);
    run(command.env("OVERSTREAM_NOT_RUN_FILE", scratch.join("not-run")))
}

#[test]
fn what_did_not_run_is_told_aloud() {
    let line = "NOT RUN selftest::limits::says_not_run: moonlight: the sun shines";
    let scratch = Scratch::new();
    let output = run_says_not_run(&scratch, "").ok();
    assert!(output.errors().contains(line), "{output}");
    assert_eq!(std::fs::read_to_string(scratch.join("not-run")).unwrap().trim_end(), line);
}

#[test]
fn what_is_required_must_run() {
    let scratch = Scratch::new();
    for required in ["all", "root, moonlight"] {
        let output = run_says_not_run(&scratch, required).fails();
        assert!(output.text().contains("moonlight: the sun shines"), "{output}");
    }
    run_says_not_run(&scratch, "root").ok();
}
