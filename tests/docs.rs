//! The documentation is true: every rule has a test, every example is valid, every target exists.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(top().join(name)).unwrap()
}

fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|ext| ext == extension) {
            found.push(path);
        }
    }
    found
}

fn documents() -> Vec<PathBuf> {
    let mut all = files(&top().join("docs"), "md");
    all.extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| top().join(name)));
    all
}

/// Fenced blocks of one language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|rest| rest.split("\n```").next().unwrap().to_owned()).collect()
}

/// Rule numbers after `marker`: a capital and a number.
fn rules(text: &str, marker: &str) -> BTreeSet<String> {
    let number =
        |rest: &str| rest.chars().take_while(char::is_ascii_alphanumeric).collect::<String>();
    text.split(marker).skip(1).map(number).filter(|id| id.len() >= 2).collect()
}

#[test]
fn every_rule_has_a_test_that_carries_its_number() {
    let stated: BTreeSet<_> = rules(&read("docs/SEMANTICS.md"), "- **");
    assert!(stated.len() > 40, "{stated:?}");
    let mut tested = BTreeSet::new();
    for directory in ["src", "tests", "fuse"] {
        for file in files(&top().join(directory), "rs") {
            for line in fs::read_to_string(&file).unwrap().lines() {
                if let Some((_, list)) = line.split_once("/// SEMANTICS ") {
                    tested.extend(list.split([',', ' ', '.', ':']).map(str::to_owned));
                }
            }
        }
    }
    let untested: Vec<_> = stated.difference(&tested).collect();
    assert!(untested.is_empty(), "rules without a test: {untested:?}");
}

#[test]
fn examples_of_the_configuration_are_valid() {
    let scratch = std::env::temp_dir().join(format!("overstream-docs-{}", std::process::id()));
    fs::create_dir_all(&scratch).unwrap();
    let mut examples = vec![read("dist/config.toml")];
    // The commented parts of the example must be valid as well.
    examples.push(
        examples[0].replace("\n# [", "\n[").lines().map(uncomment).collect::<Vec<_>>().join("\n"),
    );
    for document in ["docs/CONFIGURATION.md", "README.md"] {
        examples.extend(
            blocks(&read(document), "toml")
                .into_iter()
                .filter(|text| !text.contains("proxy_plugins")),
        );
    }
    assert!(examples.len() >= 6);
    for (number, example) in examples.iter().enumerate() {
        let file = scratch.join(format!("{number}.toml"));
        fs::write(&file, example).unwrap();
        let checked = Command::new(env!("CARGO_BIN_EXE_overstream"))
            .args(["config", "check"])
            .arg(&file)
            .output();
        let checked = checked.unwrap();
        assert!(
            checked.status.success(),
            "{example}\n{}",
            String::from_utf8_lossy(&checked.stderr)
        );
    }
    fs::remove_dir_all(&scratch).unwrap();
}

/// `# key = value` is a commented setting; other comments are words.
fn uncomment(line: &str) -> String {
    let setting = line.strip_prefix("# ").filter(|rest| {
        let key = rest.split(" = ").next().unwrap_or_default();
        rest.starts_with('[')
            || (rest.contains(" = ") && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
    });
    setting.unwrap_or(line).to_owned()
}

#[test]
fn commands_in_the_documents_exist() {
    let overstream = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_overstream")).args(arguments).output().unwrap()
    };
    let makefile = read("Makefile");
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        let code = ["sh", "console"]
            .iter()
            .flat_map(|language| blocks(&text, language))
            .collect::<Vec<_>>()
            .join("\n");
        for line in code.lines() {
            let words: Vec<_> = line.trim_start_matches("$ ").split_whitespace().collect();
            match words.as_slice() {
                ["make", target, ..] => {
                    assert!(
                        makefile.contains(&format!("\n{target}:")),
                        "{document:?}: make {target}"
                    );
                }
                ["overstream", command, ..] => {
                    let help = overstream(&[command, "--help"]);
                    assert!(help.status.success(), "{document:?}: overstream {command}");
                }
                _ => {}
            }
        }
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if !link.contains("://") && !link.starts_with('#') {
                let target = document.parent().unwrap().join(link.split('#').next().unwrap());
                assert!(target.exists(), "{}: {link}", document.display());
            }
        }
    }
}

#[test]
fn every_mount_option_is_described() {
    let text = read("docs/MOUNT.md");
    for name in overstream_fuse::MountOptions::names() {
        let written =
            [format!("`{name}`"), format!("`{name}=")].iter().any(|form| text.contains(form));
        assert!(written, "docs/MOUNT.md does not describe the option {name}");
    }
}

#[test]
fn the_readme_is_short() {
    assert!(read("README.md").lines().count() <= 150);
}
