//! The configuration: what an operator may say, checked before anything is started.
//!
//! Every mistake is reported with its line. Flags of `overstream serve` win over the file.

mod check;
pub(crate) use check::{check_mode, check_path, parse_address};
mod file;
mod template;
mod warnings;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex::Regex;

pub(crate) use file::ConfigError;
pub(crate) use template::{Field, Template};

/// Where state lives unless told otherwise.
pub(crate) const DEFAULT_ROOT: &str = "/var/lib/overstream";
/// Where containerd finds us unless told otherwise.
pub(crate) const DEFAULT_SOCKET: &str = "/run/overstream/overstream.sock";
/// Where the configuration is read from if it exists.
pub(crate) const DEFAULT_FILE: &str = "/etc/overstream/config.toml";
/// containerd's own socket unless told otherwise.
const DEFAULT_CONTAINERD: &str = "/run/containerd/containerd.sock";

/// The whole configuration, checked.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Metadata, and the layer store.
    pub root: PathBuf,
    /// The socket containerd connects to.
    pub socket: PathBuf,
    /// Remove deletes files before it answers, instead of leaving them to Cleanup.
    pub sync_remove: bool,
    /// Answers carry the label with the upper's directory.
    pub upperdir_label: bool,
    /// Options added to every overlay mount.
    pub mount_options: Vec<String>,
    /// Whether the kernel is asked to map the ids of layers.
    pub remap_ids: RemapIds,
    /// When the data of committed layers is made durable.
    pub layer_sync: LayerSync,
    /// containerd's socket, asked whose container a snapshot is.
    pub containerd: PathBuf,
    /// Where metrics are served; nowhere by default.
    pub metrics: Option<SocketAddr>,
    /// How long SIGTERM waits for calls under way.
    pub shutdown_grace: Duration,
    /// What is logged, and how.
    pub log: LogConfig,
    /// Labels that may override a rule.
    pub allowed_labels: BTreeSet<LabelOverride>,
    /// Stores by name; the root is not among them.
    pub stores: BTreeMap<String, Store>,
    /// Rules in the order in which they are tried.
    pub rules: Vec<Rule>,
}

/// Whether the kernel is asked to map the ids of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RemapIds {
    /// Where the kernel can.
    Auto,
    /// Always.
    On,
    /// Never; containerd then changes owners file by file.
    Off,
}

/// When the data of committed layers is made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LayerSync {
    /// Soon after Commit; a layer that a power failure overtook is refused as a parent.
    Background,
    /// Before Commit answers.
    Commit,
    /// Whenever the kernel likes; a layer may come back damaged, and nobody is told.
    Off,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogConfig {
    /// Filter in the syntax of `RUST_LOG`.
    pub level: String,
    /// Form of a line.
    pub format: LogFormat,
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// A label that may override what a rule says, where the configuration allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LabelOverride {
    /// `overstream.store`: the name of a configured store.
    Store,
    /// `overstream.mode`: `auto` or `kernel`.
    Mode,
    /// `overstream.retain`: `true` or `false`.
    Retain,
    /// `overstream.resume`: the name of a retained upper.
    Resume,
    /// `overstream.volatile`: `true` or `false`.
    Volatile,
    /// `overstream.pod-uid` and the like: whose container this is.
    Identity,
}

impl LabelOverride {
    /// How `allow` names it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Mode => "mode",
            Self::Retain => "retain",
            Self::Resume => "resume",
            Self::Volatile => "volatile",
            Self::Identity => "identity",
        }
    }
}

/// A named place for uppers.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    /// What it is.
    pub kind: StoreKind,
}

/// What a store is.
#[derive(Clone, Debug)]
pub(crate) enum StoreKind {
    /// A directory, usually on another disk.
    Dir(PathBuf),
    /// Whichever mount of the host has a path that matches.
    Volume(Regex),
}

/// Who gets what; the first rule that matches decides.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    /// Position in the file, from 1.
    pub number: usize,
    /// containerd's namespace.
    pub namespace: Option<String>,
    /// Plugin name.
    pub snapshotter: Option<String>,
    /// Pattern for the key as containerd's client named it.
    pub key: Option<Regex>,
    /// Labels the snapshot must have, with these values.
    pub labels: BTreeMap<String, String>,
    /// Store for the upper; the root if absent.
    pub store: Option<String>,
    /// Remove keeps the upper; a volume's default is yes.
    pub retain: Option<bool>,
    /// Prepare takes back a retained upper of the same name, if there is one.
    pub resume: bool,
    /// The upper is never synced.
    pub volatile: bool,
    /// What each capture of the store's pattern must be.
    pub volume: BTreeMap<String, Template>,
    /// Directory on the volume, one per container.
    pub subdirectory: Template,
    /// What to do for a container of unknown identity, or without a volume.
    pub otherwise: Otherwise,
}

/// What to do for a container that the rule's volume store has no volume for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Otherwise {
    /// Refuse its mounts.
    Refuse,
    /// Go on with the rules below, and the root if none matches.
    Next,
}

impl Config {
    /// Reads and checks a file; the defaults if there is none and none was asked for.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (path, required) = path.map_or((Path::new(DEFAULT_FILE), false), |path| (path, true));
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => {
                Self::parse(path, "")
            }
            Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
        }
    }

    /// Checks the text of a file; `path` is for messages.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        file::parse(path, text)
    }
}

#[cfg(test)]
mod tests;
