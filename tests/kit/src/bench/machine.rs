//! What the numbers were measured on.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use nix::sys::stat::{major, minor};

use super::{Settings, stats};
use crate::{Scratch, run};

/// Describes the machine and both parties in one line.
pub(super) fn describe(scratch: &Scratch, settings: &Settings) -> String {
    let containerd = run(Command::new("containerd").arg("--version")).ok().text();
    let version = run(Command::new(&settings.binary).arg("--version")).ok().text();
    let containerd = containerd.split_whitespace().skip(1).collect::<Vec<_>>().join(" ");
    format!("{}; {version}; {containerd}", hardware(scratch))
}

/// Describes the machine in one line.
pub(crate) fn hardware(scratch: &Scratch) -> String {
    let first = |file: &str, key: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default().to_owned();
        line.split_once(':').map_or(line.clone(), |(_, value)| value.trim().to_owned())
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "Linux {}, {cpus} x {}, {} of memory, {}, 4 KiB write + fdatasync {:.2} ms (median)",
        kernel.trim(),
        first("/proc/cpuinfo", "model name"),
        first("/proc/meminfo", "MemTotal"),
        file_system(scratch.path()),
        sync_time(scratch) * 1e3,
    )
}

/// Type and options of the file system that holds `path`.
fn file_system(path: &Path) -> String {
    let device = fs::metadata(path).map(|found| found.dev()).unwrap_or_default();
    let number = format!("{}:{}", major(device), minor(device));
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let line = table.lines().find(|line| line.split(' ').nth(2) == Some(&number));
    let tail = line.and_then(|line| line.split_once(" - ")).map_or("", |(_, tail)| tail);
    let mut words = tail.split(' ');
    format!("{} on {}", words.next().unwrap_or("?"), words.next().unwrap_or("?"))
}

/// What a durable write costs here, in seconds.
fn sync_time(scratch: &Scratch) -> f64 {
    let mut file = File::create(scratch.join("sync")).expect("create a file");
    let times: Vec<f64> = (0..100)
        .map(|_| {
            let begin = Instant::now();
            file.write_all(&[1; 4096]).and_then(|()| file.sync_data()).expect("write a file");
            begin.elapsed().as_secs_f64()
        })
        .collect();
    stats::median(&times)
}
