//! What the words of the file mean together, and which combinations are mistakes.
//!
//! All mistakes are collected, so that one run of `overstream config check` shows them all.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex::Regex;
use toml::Spanned;

use super::file::{self, File, Mistake, line_of};
use super::template::{Field, Template};
use super::{
    Config, DEFAULT_CONTAINERD, DEFAULT_ROOT, DEFAULT_SOCKET, LogConfig, LogFormat, Otherwise,
    Rule, Store, StoreKind,
};
use crate::layout;
use crate::metastore::ROOT_STORE;

/// Longest path a Unix socket address holds.
const SOCKET_PATH_MAX: usize = 107;

/// Options that are ours to set, or that would break what is stored.
const RESERVED_OPTIONS: &[&str] =
    &["lowerdir", "upperdir", "workdir", "uidmap", "gidmap", "volatile", "ro", "rw"];

struct Checker<'a> {
    text: &'a str,
    mistakes: Vec<Mistake>,
}

impl Checker<'_> {
    fn mistake(&mut self, span: Range<usize>, problem: impl Into<String>) {
        let line = line_of(self.text, span.start);
        self.mistakes.push(Mistake { line, problem: problem.into() });
    }

    /// Notes the problem, if any, at the place of the value.
    fn noted<T, E: ToString>(&mut self, span: Range<usize>, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.mistake(span, error.to_string())).ok()
    }
}

pub(super) fn check(file: File, text: &str) -> Result<Config, Vec<Mistake>> {
    let mut checker = Checker { text, mistakes: Vec::new() };
    let root = path(&mut checker, file.root, DEFAULT_ROOT);
    let socket = path(&mut checker, file.socket, DEFAULT_SOCKET);
    let stores = stores(&mut checker, &root, file.stores);
    let rules = file
        .rules
        .into_iter()
        .enumerate()
        .map(|(index, rule)| check_rule(&mut checker, index + 1, rule, &stores))
        .collect();
    let config = Config {
        socket,
        sync_remove: file.sync_remove,
        upperdir_label: file.upperdir_label,
        mount_options: mount_options(&mut checker, file.mount_options),
        remap_ids: file.remap_ids,
        layer_sync: file.layer_sync,
        containerd: file.containerd.address.unwrap_or_else(|| DEFAULT_CONTAINERD.into()),
        metrics: file
            .metrics
            .address
            .and_then(|address| checker.noted(address.span(), parse_address(address.get_ref()))),
        shutdown_grace: Duration::from_secs(file.shutdown_grace_seconds),
        log: log(&mut checker, file.log),
        allowed_labels: file.labels.allow.into_iter().collect(),
        root,
        stores,
        rules,
    };
    if checker.mistakes.is_empty() { Ok(config) } else { Err(checker.mistakes) }
}

fn path(checker: &mut Checker<'_>, value: Option<Spanned<PathBuf>>, default: &str) -> PathBuf {
    let Some(value) = value else { return default.into() };
    checker.noted(value.span(), check_path(value.get_ref()));
    value.into_inner()
}

/// Checks a path that flags or the file give for the root, the socket or a store.
pub(crate) fn check_path(path: &Path) -> Result<(), String> {
    if path.as_os_str().len() > SOCKET_PATH_MAX && path.extension().is_some_and(|ext| ext == "sock")
    {
        return Err(format!(
            "{}: a socket's path has at most {SOCKET_PATH_MAX} bytes",
            path.display()
        ));
    }
    layout::check_mountable(path).map_err(|error| error.to_string())
}

/// Reads an address to listen at.
pub(crate) fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is no address: write IP:PORT, such as 127.0.0.1:9415 or [::]:9415")
    })
}

fn mount_options(checker: &mut Checker<'_>, options: Vec<Spanned<String>>) -> Vec<String> {
    for option in &options {
        let name = option.get_ref().split('=').next().unwrap_or_default();
        if RESERVED_OPTIONS.contains(&name) {
            checker.mistake(
                option.span(),
                format!("mount option {name:?} is set by Overstream itself"),
            );
        } else if name.is_empty() || option.get_ref().contains([',', '\0']) {
            checker.mistake(option.span(), "each mount option is one word, without a comma");
        }
    }
    options.into_iter().map(Spanned::into_inner).collect()
}

fn log(checker: &mut Checker<'_>, log: file::Log) -> LogConfig {
    if let Some(level) = &log.level {
        checker.noted(level.span(), level.get_ref().parse::<tracing_subscriber::EnvFilter>());
    }
    LogConfig {
        level: log.level.map_or_else(|| "info".to_owned(), Spanned::into_inner),
        format: log.format.unwrap_or(LogFormat::Text),
    }
}

fn stores(
    checker: &mut Checker<'_>,
    root: &Path,
    stores: BTreeMap<Spanned<String>, Spanned<file::Store>>,
) -> BTreeMap<String, Store> {
    let mut checked: BTreeMap<String, Store> = BTreeMap::new();
    for (name, store) in stores {
        if !is_store_name(name.get_ref()) {
            checker.mistake(
                name.span(),
                format!(
                    "{:?} cannot be a store's name: write a-z, 0-9 and '-' ({ROOT_STORE:?} is the layer store)",
                    name.get_ref()
                ),
            );
        }
        let span = store.span();
        if let Some(kind) = store_kind(checker, span.clone(), store.into_inner()) {
            if let StoreKind::Dir(path) = &kind {
                overlap(checker, span, root, path, &checked);
            }
            checked.insert(name.into_inner(), Store { kind });
        }
    }
    checked
}

fn is_store_name(name: &str) -> bool {
    let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty() && name.len() <= 63 && name != ROOT_STORE && name.bytes().all(valid)
}

fn store_kind(
    checker: &mut Checker<'_>,
    span: Range<usize>,
    store: file::Store,
) -> Option<StoreKind> {
    match (store.kind.get_ref().as_str(), store.path, store.pattern) {
        ("dir", Some(path), None) => {
            checker.noted(path.span(), check_path(path.get_ref()))?;
            Some(StoreKind::Dir(path.into_inner()))
        }
        ("volume", None, Some(pattern)) => {
            // The pattern is for the whole path, so that no other mount can match.
            checker.noted(pattern.span(), parse_pattern(pattern.get_ref()))?;
            let whole = format!(r"\A(?:{})\z", pattern.get_ref());
            let regex = checker.noted(pattern.span(), parse_pattern(&whole))?;
            Some(StoreKind::Volume(regex))
        }
        ("dir", ..) => {
            checker.mistake(span, "a store of type \"dir\" needs `path`, and nothing else");
            None
        }
        ("volume", ..) => {
            checker.mistake(span, "a store of type \"volume\" needs `match`, and nothing else");
            None
        }
        (other, ..) => {
            checker.mistake(
                store.kind.span(),
                format!("there is no store type {other:?}; types are \"dir\" and \"volume\""),
            );
            None
        }
    }
}

/// Reads a pattern; the error is one line.
fn parse_pattern(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| {
        let whole = error.to_string();
        let last = whole.lines().last().unwrap_or_default();
        format!("pattern {text:?}: {}", last.trim_start_matches("error: "))
    })
}

/// Two stores, or a store and the root's own directories, must not hold each other.
fn overlap(
    checker: &mut Checker<'_>,
    span: Range<usize>,
    root: &Path,
    path: &Path,
    others: &BTreeMap<String, Store>,
) {
    let nested = |a: &Path, b: &Path| a.starts_with(b) || b.starts_with(a);
    if path == root || nested(path, &layout::snapshots(root)) {
        checker.mistake(span, format!("{} overlaps the root {}", path.display(), root.display()));
        return;
    }
    for (name, other) in others {
        if let StoreKind::Dir(other) = &other.kind
            && nested(path, other)
        {
            checker.mistake(span, format!("{} overlaps store {name:?}", path.display()));
            return;
        }
    }
}

fn check_rule(
    checker: &mut Checker<'_>,
    number: usize,
    rule: Spanned<file::Rule>,
    stores: &BTreeMap<String, Store>,
) -> Rule {
    let span = rule.span();
    let rule = rule.into_inner();
    let store = rule.store.as_ref().and_then(|store| rule_store(checker, store, stores));
    if let Some(mode) = &rule.mode {
        checker.noted(mode.span(), check_mode(mode.get_ref()));
    }
    let volume_store = match store {
        Some(StoreKind::Volume(pattern)) => Some(pattern),
        _ => None,
    };
    let retain = rule.retain.unwrap_or(volume_store.is_some());
    check_volatile(
        checker,
        rule.volatile.as_ref(),
        retain || rule.resume == Some(true) || volume_store.is_some(),
    );
    if rule.resume == Some(true) && volume_store.is_some() {
        checker.mistake(
            span.clone(),
            "`resume` goes with a store of type \"dir\"; an upper on a volume is found there again anyway",
        );
    }
    let volume = volume_table(checker, span, rule.volume, volume_store);
    let subdirectory = rule.subdirectory.as_ref().and_then(|template| {
        if volume_store.is_none() {
            checker.mistake(template.span(), "`subdirectory` goes with a store of type \"volume\"");
        }
        checker.noted(template.span(), Template::parse(template.get_ref()))
    });
    if let (Some(otherwise), None) = (&rule.otherwise, volume_store) {
        checker.mistake(otherwise.span(), "`otherwise` goes with a store of type \"volume\"");
    }
    Rule {
        number,
        namespace: rule.namespace,
        snapshotter: rule.snapshotter,
        key: rule.key.and_then(|key| checker.noted(key.span(), parse_pattern(key.get_ref()))),
        labels: rule.labels,
        store: rule.store.map(Spanned::into_inner).filter(|name| name != ROOT_STORE),
        retain: rule.retain,
        resume: rule.resume.unwrap_or(false),
        volatile: rule.volatile.is_some_and(Spanned::into_inner),
        volume,
        subdirectory: subdirectory.unwrap_or_else(|| Template::of(Field::ContainerName)),
        otherwise: rule.otherwise.map_or(Otherwise::Refuse, Spanned::into_inner),
    }
}

fn rule_store<'a>(
    checker: &mut Checker<'_>,
    store: &Spanned<String>,
    stores: &'a BTreeMap<String, Store>,
) -> Option<&'a StoreKind> {
    let found = stores.get(store.get_ref()).map(|store| &store.kind);
    if found.is_none() && store.get_ref() != ROOT_STORE {
        let mut known: Vec<_> = stores.keys().map(String::as_str).collect();
        known.push(ROOT_STORE);
        checker.mistake(
            store.span(),
            format!("there is no store {:?}; stores are {}", store.get_ref(), known.join(", ")),
        );
    }
    found
}

/// Reads a mode; only kernel mounts are served so far.
pub(crate) fn check_mode(mode: &str) -> Result<(), String> {
    match mode {
        "auto" | "kernel" => Ok(()),
        "fuse" => {
            Err("mode \"fuse\" is not available in this version; modes are \"auto\" and \"kernel\""
                .to_owned())
        }
        other => Err(format!("there is no mode {other:?}; modes are \"auto\" and \"kernel\"")),
    }
}

fn check_volatile(checker: &mut Checker<'_>, volatile: Option<&Spanned<bool>>, must_last: bool) {
    if let Some(volatile) = volatile
        && *volatile.get_ref()
        && must_last
    {
        checker.mistake(
            volatile.span(),
            "`volatile` uppers may be lost in a crash; they cannot be retained, resumed or lie on a volume",
        );
    }
}

/// The captures a rule ties to the container's identity; at least one, or any free volume would do.
fn volume_table(
    checker: &mut Checker<'_>,
    rule: Range<usize>,
    table: Option<Spanned<BTreeMap<Spanned<String>, Spanned<String>>>>,
    pattern: Option<&Regex>,
) -> BTreeMap<String, Template> {
    let Some(pattern) = pattern else {
        if let Some(table) = table {
            checker.mistake(table.span(), "`volume` goes with a store of type \"volume\"");
        }
        return BTreeMap::new();
    };
    let captures: BTreeSet<&str> = pattern.capture_names().flatten().collect();
    let mut templates = BTreeMap::new();
    for (capture, template) in table.map(Spanned::into_inner).unwrap_or_default() {
        if !captures.contains(capture.get_ref().as_str()) {
            checker.mistake(
                capture.span(),
                format!(
                    "the store's pattern has no capture {:?}; write (?P<{0}>..)",
                    capture.get_ref()
                ),
            );
        }
        if let Some(parsed) = checker.noted(template.span(), Template::parse(template.get_ref())) {
            templates.insert(capture.into_inner(), parsed);
        }
    }
    if !templates.values().any(|template| template.fields().next().is_some()) {
        checker.mistake(
            rule,
            "a rule for a volume ties a capture of the pattern to the container, as in \
             `volume = { pod = \"{pod.uid}\" }`; else two pods could get each other's volume",
        );
    }
    templates
}
