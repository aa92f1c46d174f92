//! Shows Overstream at work: a real containerd, a real image, a running container, and where what
//! the container writes ends up.
//!
//! Everything lies in one scratch directory and is gone at the end. With `--wait` it stays up until
//! Enter is pressed, to look around from another terminal.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a demo ends by telling"
)]

use std::io::IsTerminal;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use overstream_testkit::{Containerd, Daemon, Options, Output, Scratch, Version, image, run};

const IMAGE: &str = "localhost/demo:1";
const NAME: &str = "overstream";

/// Set by Ctrl-C; looked at between two commands, so that the cleaning up is never skipped.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wait = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--wait"] => true,
        _ => return refuse("usage: demo [--wait]"),
    };
    let binary = match find_parts() {
        Ok(binary) => binary,
        Err(problem) => return refuse(&problem),
    };
    watch_for_interrupt();
    panic::set_hook(Box::new(|info| {
        eprintln!("\ndemo: {}", info.payload_as_str().unwrap_or("failed in an unforeseen way"));
    }));
    let began = Instant::now();
    match panic::catch_unwind(|| show(&binary, wait)) {
        Ok(()) => {
            farewell(began);
            ExitCode::SUCCESS
        }
        Err(_) => refuse("ended early; all it started was stopped and deleted"),
    }
}

fn refuse(problem: &str) -> ExitCode {
    eprintln!("demo: {problem}");
    ExitCode::FAILURE
}

/// Finds the daemon's program, and whatever else a container needs; says how to get what is missing.
fn find_parts() -> Result<PathBuf, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("mounting and running containers needs root; try `sudo make demo`".to_owned());
    }
    for program in ["containerd", "ctr", "runc", "busybox"] {
        let found = run(Command::new("sh").args(["-c", &format!("command -v {program}")]));
        if !found.status.success() {
            return Err(format!(
                "{program} is not installed; `scripts/deps.sh containerd` does it"
            ));
        }
    }
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let binary = std::env::var_os("OVERSTREAM_BIN")
        .map_or_else(|| own.with_file_name("overstream"), PathBuf::from);
    if binary.is_file() {
        Ok(binary)
    } else {
        let missing = binary.display();
        Err(format!("{missing} does not exist; `cargo build --release --bin overstream` makes it"))
    }
}

fn watch_for_interrupt() {
    std::thread::spawn(|| {
        overstream_testkit::block_on(async {
            if tokio::signal::ctrl_c().await.is_ok() {
                INTERRUPTED.store(true, Ordering::Relaxed);
            }
        });
    });
}

/// The whole demonstration, step by step.
fn show(binary: &Path, wait: bool) {
    let scratch = Scratch::new();
    let stage = Stage::new(&scratch, binary);
    let mut daemon = start_overstream(&stage, &scratch, binary);
    let containerd = start_containerd(&stage, &scratch, daemon.socket());
    unpack_image(&stage, &containerd);
    run_containers(&stage, &containerd);
    look_at_running(&stage, &containerd);
    if wait {
        wait_for_enter(&stage);
    }
    remove_containers(&stage);
    containerd.stop();
    daemon.stop();
}

fn start_overstream(stage: &Stage, scratch: &Scratch, binary: &Path) -> Daemon {
    stage.step(
        "Start Overstream",
        "Layers go below the root directory. One rule sends what containers named web* write to a\n\
         second directory, which would be another, faster disk.",
    );
    let other = scratch.dir("fast-disk");
    let mut daemon = Daemon::new(scratch, binary).with_config(&format!(
        "[stores.fast]\ntype = \"dir\"\npath = \"{}\"\n\n[[rules]]\nkey = \"^web\"\nstore = \"fast\"\n",
        other.display()
    ));
    stage.sh("cat $D/over.toml");
    stage.sh("overstream config check $D/over.toml");
    stage.command("overstream serve --config $D/over.toml --root $D/over --socket $D/over.sock &");
    daemon.start();
    stage.print(&daemon.log());
    daemon
}

fn start_containerd(stage: &Stage, scratch: &Scratch, socket: &Path) -> Containerd {
    stage.step(
        "Start containerd with Overstream as a snapshotter",
        "Three lines in its configuration are all it takes.",
    );
    let containerd = Containerd::start(scratch, Options::with_proxy(Version::System, NAME, socket));
    stage.sh("grep -A2 proxy_plugins $D/ctd/config.toml");
    stage.command("containerd -c $D/ctd/config.toml &");
    stage.sh("ctr plugins ls | grep -E 'TYPE|snapshotter.*(overlayfs|overstream)'");
    containerd
}

fn unpack_image(stage: &Stage, containerd: &Containerd) {
    stage.step(
        "Unpack an image of four layers",
        "containerd asks Overstream for a place for each layer, fills it, and commits it. (The image\n\
         was built on the spot, from busybox.)",
    );
    image::demo().write_oci_archive(containerd.directory().join("../demo.tar"), IMAGE);
    stage.sh("ctr images import $D/demo.tar");
    stage.sh("overstream ls");
}

fn run_containers(stage: &Stage, containerd: &Containerd) {
    stage.step(
        "Run two containers, and write in them",
        "`web` matches the rule, `batch` does not. Both change, add and delete a file.",
    );
    for name in ["web", "batch"] {
        // The kit adds two options that keep these containers apart from others of the host.
        let mut command =
            containerd.ctr_command("default", &["run", "-d", IMAGE, name, "sleep", "1000"]);
        stage.command(&format!("ctr run -d {IMAGE} {name} sleep 1000"));
        stage.print_output(&run(&mut command));
        let script =
            format!("echo hello from {name} >/data/new; echo more >>/data/one; rm /data/three");
        stage.sh(&format!("ctr tasks exec --exec-id write {name} sh -c '{script}'"));
    }
    stage.sh("ctr tasks exec --exec-id read web sh -c 'cd /data; cat new one; [ -e three ] || echo three is gone'");
}

fn look_at_running(stage: &Stage, containerd: &Containerd) {
    let pid = containerd.task_pid("web");
    stage.step(
        "Look at the running container from the host",
        "First its root mount as the kernel has it: plain overlayfs, nothing of ours in the way of\n\
         reads and writes. Its lower directories (layers) and its upper lie on different \"disks\".",
    );
    stage.sh(&format!("grep ' / / ' /proc/{pid}/mountinfo | tr ',' '\\n'"));
    stage.note("The snapshots of both containers. The upper of `web` is in the second directory.");
    stage.sh("overstream ls kind==active");
    stage.note("Why it lies there: the line `store` names the rule that decided.");
    stage.sh("overstream mounts web");
    stage.sh("overstream mounts batch | grep store");
    let upper = stage.upper_of("web");
    stage.note(
        "And here is what `web` wrote. A deleted file is a character device 0, 0 in the upper;\n\
         the layers below never change.",
    );
    stage.sh(&format!("ls -l {upper}/data"));
    stage.sh(&format!("cat {upper}/data/new"));
    stage.sh("cat $D/over/snapshots/[1-4]/fs/data/one      # in two of the layers");
    stage.sh(&format!("cat {upper}/data/one      # in the upper: copied up, then changed"));
    stage.sh("overstream usage");
}

fn remove_containers(stage: &Stage) {
    stage.step(
        "Remove the containers",
        "Their uppers go, the image's layers stay. (A lease that is deleted with --sync makes\n\
         containerd collect its garbage now.)",
    );
    for name in ["web", "batch"] {
        stage.sh(&format!("ctr tasks rm -f {name} 2>/dev/null; ctr containers rm {name}"));
    }
    stage.sh("(ctr leases create --id now && ctr leases rm --sync now) >/dev/null");
    stage.sh("overstream ls");
    stage.sh("ls -A $D/fast-disk/snapshots | wc -l");
}

fn wait_for_enter(stage: &Stage) {
    stage.step("Look around", "In another terminal, as root:");
    for (name, value) in &stage.environment {
        println!("    export {name}={value}");
    }
    println!("\nThen any of the commands above. Enter ends the demo.");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("read a line");
}

fn farewell(began: Instant) {
    println!(
        "\n{}\nDone in {:.1} s; everything it started was stopped, and its files were deleted.\n\n\
         What else to try:\n\
         \x20 cargo run -q --release -p overstream-testkit --bin demo -- --wait\n\
         \x20                  the same, but it stays up to look around until Enter is pressed\n\
         \x20 overstream --help         all commands; each has --help, and --json where it prints\n\
         \x20 docs/CONFIGURATION.md     stores, rules, keeping the writable layer of a container\n\
         \x20 make bench                how fast it is, beside containerd's own overlayfs snapshotter\n\
         \x20 make test                 everything against real containerds",
        rule(),
        began.elapsed().as_secs_f64()
    );
}

/// Prints commands and what they say, with `$D` for the scratch directory.
struct Stage {
    directory: String,
    environment: Vec<(&'static str, String)>,
    number: std::cell::Cell<u32>,
    colours: bool,
}

impl Stage {
    fn new(scratch: &Scratch, binary: &Path) -> Self {
        let directory = scratch.path().display().to_string();
        let programs = binary.parent().unwrap_or(Path::new("/")).display();
        let path = std::env::var("PATH").unwrap_or_default();
        let environment = vec![
            ("D", directory.clone()),
            ("PATH", format!("{programs}:{path}")),
            ("CONTAINERD_ADDRESS", format!("{directory}/ctd/c.sock")),
            ("CONTAINERD_SNAPSHOTTER", NAME.to_owned()),
            ("OVERSTREAM_SOCKET", format!("{directory}/over.sock")),
        ];
        let colours = std::io::stdout().is_terminal();
        let stage = Self { directory, environment, number: 0.into(), colours };
        println!(
            "Overstream is a containerd snapshotter: it keeps the layers of images and the files\n\
             that containers write. Below, $D is {}, and these are set:\n\
             CONTAINERD_ADDRESS, CONTAINERD_SNAPSHOTTER={NAME}, OVERSTREAM_SOCKET.",
            stage.directory
        );
        stage
    }

    fn step(&self, title: &str, why: &str) {
        self.number.set(self.number.get() + 1);
        println!("\n{}\n{}", rule(), self.bold(&format!("{}. {title}", self.number.get())));
        println!("{why}");
    }

    fn note(&self, text: &str) {
        println!("\n{text}");
    }

    /// Shows a command line.
    fn command(&self, line: &str) {
        assert!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
        println!("\n{}", self.bold(&format!("$ {line}")));
    }

    /// Shows a command line, runs it and shows what it says.
    fn sh(&self, line: &str) {
        self.command(line);
        self.print_output(&self.run(line));
    }

    fn run(&self, line: &str) -> Output {
        let variables = self.environment.iter().map(|(name, value)| (name, value));
        run(Command::new("sh").args(["-c", line]).envs(variables))
    }

    fn print_output(&self, output: &Output) {
        if !output.status.success() {
            panic!("{output}");
        }
        self.print(&output.text());
        self.print(&output.errors());
    }

    fn print(&self, text: &str) {
        for line in text.trim_end().lines() {
            println!("{}", line.replace(&self.directory, "$D").trim_end());
        }
    }

    fn upper_of(&self, name: &str) -> String {
        let answer = self.run(&format!("overstream mounts --json {name}")).ok();
        let answer: serde_json::Value = serde_json::from_slice(&answer.stdout).expect("JSON");
        let upper = answer.pointer("/snapshot/upper").and_then(serde_json::Value::as_str);
        upper.expect("an upper").replace(&self.directory, "$D")
    }

    fn bold(&self, text: &str) -> String {
        if self.colours { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn rule() -> String {
    "-".repeat(80)
}
