//! The file as written: TOML, every unknown word refused, positions kept for messages.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::{Config, LabelOverride, LayerSync, LogFormat, Otherwise, RemapIds, check};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// How it failed.
        source: std::io::Error,
    },
    /// The file says something wrong; one entry per mistake.
    #[error("{}", list(path, mistakes))]
    Mistakes {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        mistakes: Vec<Mistake>,
    },
}

/// One mistake in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mistake {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub problem: String,
}

fn list(path: &Path, mistakes: &[Mistake]) -> String {
    let lines: Vec<_> = mistakes
        .iter()
        .map(|mistake| format!("{}:{}: {}", path.display(), mistake.line, mistake.problem))
        .collect();
    lines.join("\n")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) root: Option<Spanned<PathBuf>>,
    pub(super) socket: Option<Spanned<PathBuf>>,
    pub(super) sync_remove: bool,
    pub(super) upperdir_label: bool,
    pub(super) mount_options: Vec<Spanned<String>>,
    pub(super) remap_ids: RemapIds,
    pub(super) layer_sync: LayerSync,
    pub(super) shutdown_grace_seconds: u64,
    pub(super) containerd: Containerd,
    pub(super) metrics: Metrics,
    pub(super) log: Log,
    pub(super) labels: Labels,
    pub(super) stores: BTreeMap<Spanned<String>, Spanned<Store>>,
    pub(super) rules: Vec<Spanned<Rule>>,
}

impl Default for File {
    fn default() -> Self {
        Self {
            root: None,
            socket: None,
            sync_remove: false,
            upperdir_label: false,
            mount_options: Vec::new(),
            remap_ids: RemapIds::Auto,
            layer_sync: LayerSync::Background,
            shutdown_grace_seconds: 30,
            containerd: Containerd::default(),
            metrics: Metrics::default(),
            log: Log::default(),
            labels: Labels::default(),
            stores: BTreeMap::new(),
            rules: Vec::new(),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Containerd {
    pub(super) address: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Metrics {
    pub(super) address: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    pub(super) level: Option<Spanned<String>>,
    pub(super) format: Option<LogFormat>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Labels {
    pub(super) allow: Vec<LabelOverride>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Store {
    #[serde(rename = "type")]
    pub(super) kind: Spanned<String>,
    pub(super) path: Option<Spanned<PathBuf>>,
    #[serde(rename = "match")]
    pub(super) pattern: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    pub(super) namespace: Option<String>,
    pub(super) snapshotter: Option<String>,
    pub(super) key: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    pub(super) store: Option<Spanned<String>>,
    pub(super) mode: Option<Spanned<String>>,
    pub(super) retain: Option<bool>,
    pub(super) resume: Option<bool>,
    pub(super) volatile: Option<Spanned<bool>>,
    pub(super) volume: Option<Spanned<BTreeMap<Spanned<String>, Spanned<String>>>>,
    pub(super) subdirectory: Option<Spanned<String>>,
    pub(super) otherwise: Option<Spanned<Otherwise>>,
}

pub(super) fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
    let (file, mut mistakes) = read(text);
    let checked = file.map(|file| check::check(file, text));
    if let (Some(Ok(config)), true) = (&checked, mistakes.is_empty()) {
        return Ok(config.clone());
    }
    mistakes.extend(checked.and_then(Result::err).unwrap_or_default());
    mistakes.sort_by_key(|mistake| mistake.line);
    Err(ConfigError::Mistakes { path: path.to_owned(), mistakes })
}

/// Reads what can be read: a line with a word or value that cannot stand there is noted and left out,
/// so that one run shows the others, too. What is no TOML at all is the only mistake reported.
fn read(text: &str) -> (Option<File>, Vec<Mistake>) {
    let (mut rest, mut mistakes) = (text.to_owned(), Vec::new());
    loop {
        let error = match toml::from_str::<File>(&rest) {
            Ok(file) => return (Some(file), mistakes),
            Err(error) => error,
        };
        let span = error.span().unwrap_or_default();
        let is_toml = toml::from_str::<toml::Table>(&rest).is_ok();
        if is_toml || mistakes.is_empty() {
            let line = line_of(text, span.start);
            mistakes.push(Mistake { line, problem: error.message().to_owned() });
        }
        match without_line(&rest, span.start) {
            Some(shorter) if is_toml => rest = shorter,
            _ => return (None, mistakes),
        }
    }
}

/// Blanks the line at `offset`, so that the places of the others stay; nothing if it is blank already.
fn without_line(text: &str, offset: usize) -> Option<String> {
    let start = text.get(..offset)?.rfind('\n').map_or(0, |newline| newline + 1);
    let end = text.get(offset..)?.find('\n').map_or(text.len(), |newline| offset + newline);
    let line = text.get(start..end).filter(|line| !line.trim().is_empty())?;
    Some(format!("{}{}{}", text.get(..start)?, " ".repeat(line.len()), text.get(end..)?))
}

/// Number of the line that holds the byte at `offset`, from 1.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}
