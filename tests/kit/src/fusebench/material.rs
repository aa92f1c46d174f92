//! What lies in the layers before a mount: trees, directories full of files, big files, a repository.
//!
//! Everything is the same in every run, and made straight on the disk, through no overlay.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use super::names::{self, TOP, flat, in_tree};
use crate::random::Random;
use crate::run;

pub(super) const MIB: usize = 1 << 20;

/// Fills a layer with `TOP` and what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Material {
    /// An empty directory.
    Nothing,
    /// A tree of small files.
    Tree(usize),
    /// The same under version control, all of it committed.
    Repository(usize),
    /// Small files in one directory.
    Flat(usize),
    /// A file of so many MiB, named `big`.
    Big(usize),
    /// Such a file, and a tree.
    BigAndTree(usize, usize),
    /// A file of so many MiB, named `hole`, that has data only in the middle, one byte.
    Hole(usize),
}

impl Material {
    /// The same at a tenth of the size.
    pub(super) fn smaller(self) -> Self {
        match self {
            Self::Tree(files) => Self::Tree(files / 10),
            Self::Repository(files) => Self::Repository(files / 10),
            Self::Flat(files) => Self::Flat(files / 10),
            Self::Big(size) => Self::Big(size / 8),
            Self::BigAndTree(size, files) => Self::BigAndTree(size / 8, files / 10),
            Self::Nothing | Self::Hole(_) => self,
        }
    }

    /// Puts it into the directory `layer`.
    pub(super) fn fill(self, layer: &Path) -> io::Result<()> {
        let top = layer.join(TOP);
        fs::create_dir_all(&top)?;
        match self {
            Self::Nothing => Ok(()),
            Self::Tree(files) => tree(&top, files),
            Self::Repository(files) => repository(&top, files),
            Self::Flat(files) => {
                (0..files).try_for_each(|number| small(&top.join(flat("file-", number)), number))
            }
            Self::Big(size) => big(&top.join("big"), size),
            Self::BigAndTree(size, files) => {
                big(&top.join("big"), size)?;
                tree(&top, files)
            }
            Self::Hole(size) => {
                let hole = File::create(top.join("hole"))?;
                hole.write_all_at(b"+", (size * MIB / 2) as u64)?;
                hole.set_len((size * MIB) as u64)
            }
        }
    }
}

fn tree(top: &Path, files: usize) -> io::Result<()> {
    for number in 0..files {
        if number.is_multiple_of(names::PER_DIRECTORY) {
            fs::create_dir_all(top.join(names::directory(number / names::PER_DIRECTORY)))?;
        }
        small(&top.join(in_tree(number)), number)?;
    }
    Ok(())
}

/// Writes a file of 100 bytes to 6 KiB that has no twin.
fn small(path: &Path, number: usize) -> io::Result<()> {
    let mut text = format!("/* {number} */\n");
    let length = 100 + number * 37 % 6000;
    while text.len() < length {
        text.push_str("int the_same_line_in_every_file(void);\n");
    }
    fs::write(path, &text.as_bytes()[..length.max(20)])
}

/// Writes a file without holes.
fn big(path: &Path, size: usize) -> io::Result<()> {
    let mut random = Random::new(3);
    let block: Vec<u8> = (0..MIB / 8).flat_map(|_| random.number().to_le_bytes()).collect();
    let mut file = File::create(path)?;
    (0..size).try_for_each(|_| file.write_all(&block))
}

fn repository(top: &Path, files: usize) -> io::Result<()> {
    tree(top, files)?;
    // What is as young as the index is read again by every `git status`.
    let past = SystemTime::now() - Duration::from_secs(100);
    for number in 0..files {
        File::options().write(true).open(top.join(in_tree(number)))?.set_modified(past)?;
    }
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.envs(GIT).arg("-C").arg(top).args(arguments);
        drop(run(&mut command).ok());
    };
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "everything"]);
    git(&["status"]);
    Ok(())
}

/// Makes git independent of who calls it, and on which machine.
pub(super) const GIT: [(&str, &str); 10] = [
    ("GIT_CONFIG_NOSYSTEM", "1"),
    ("GIT_CONFIG_GLOBAL", "/dev/null"),
    ("GIT_CONFIG_COUNT", "1"),
    ("GIT_CONFIG_KEY_0", "gc.auto"),
    ("GIT_CONFIG_VALUE_0", "0"),
    ("GIT_AUTHOR_NAME", "bench"),
    ("GIT_AUTHOR_EMAIL", "bench@localhost"),
    ("GIT_COMMITTER_NAME", "bench"),
    ("GIT_COMMITTER_EMAIL", "bench@localhost"),
    ("HOME", "/nonexistent"),
];
