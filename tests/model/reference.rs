//! The reference: containerd's rules over a map, one call at a time.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use overstream_testkit::proto::snapshots::{Info, Kind};
use overstream_testkit::proto::types::Mount;
use overstream_testkit::{Client, LabelSlice};
use tonic::{Code, Status};

use super::frame::{Random, is_whole};

type Labels = BTreeMap<String, String>;

/// One snapshot.
#[derive(Clone, Debug)]
struct Entry {
    kind: Kind,
    parent: String,
    labels: Labels,
    mounts: Vec<Mount>,
    /// Files its owner wrote into it.
    files: usize,
}

/// The snapshots whose keys begin with one client's prefix.
#[derive(Debug)]
pub(super) struct Model {
    prefix: String,
    entries: BTreeMap<String, Entry>,
    /// Every call made, for the message of a failure.
    pub(super) history: Vec<String>,
}

/// One call.
#[derive(Clone, Debug)]
pub(super) enum Op {
    New { kind: Kind, key: String, parent: String, labels: Labels, files: usize },
    Commit { name: String, key: String, parent: String, labels: Labels },
    Remove(String),
    Stat(String),
    Update { key: String, labels: Labels, mask: Vec<String> },
    List,
    Usage(String),
    Mounts(String),
    Cleanup,
}

impl Op {
    /// Chooses a call on the few keys that begin with `prefix`.
    pub(super) fn choose(random: &mut Random, prefix: &str) -> Self {
        const KEYS: usize = 7;
        let mut key = || format!("{prefix}{}", random.below(KEYS));
        let (key, name, some) = (key(), key(), key());
        let parent = if random.below(2) == 0 { String::new() } else { some };
        let labels = labels(random);
        match random.below(20) {
            0..=4 => {
                let files = random.below(4);
                Self::New { kind: Kind::Active, key, parent, labels, files }
            }
            5..=6 => Self::New { kind: Kind::View, key, parent, labels, files: 0 },
            7..=10 => Self::Commit { name, key, parent, labels },
            11..=13 => Self::Remove(key),
            14 => Self::Stat(key),
            15 => {
                let paths =
                    [vec![], vec!["labels"], vec!["labels.l0"], vec!["labels.l1", "labels.l2"]];
                let mask = random.pick(&paths).iter().map(|path| (*path).to_owned()).collect();
                Self::Update { key, labels, mask }
            }
            16 => Self::List,
            17 => Self::Usage(key),
            18 => Self::Mounts(key),
            _ => Self::Cleanup,
        }
    }

    /// Makes the call; what it answers does not matter, but its code does.
    pub(super) fn call(&self, client: &Client) -> Result<(), Status> {
        match self {
            Self::New { kind: Kind::View, key, parent, labels, .. } => {
                client.view(key, parent, &slice(labels)).map(drop)
            }
            Self::New { key, parent, labels, .. } => {
                client.prepare(key, parent, &slice(labels)).map(drop)
            }
            Self::Commit { name, key, parent, labels } => {
                client.commit_on(name, key, parent, &slice(labels))
            }
            Self::Remove(key) => client.remove(key),
            Self::Stat(key) => client.stat(key).map(drop),
            Self::Update { key, labels, mask } => update(client, key, labels, mask).map(drop),
            Self::List => client.list(&[]).map(|all| is_whole(&all)),
            Self::Usage(key) => client.usage(key).map(drop),
            Self::Mounts(key) => client.mounts(key).map(drop),
            Self::Cleanup => client.cleanup(),
        }
    }
}

fn labels(random: &mut Random) -> Labels {
    let count = random.below(4);
    let values = ["", "v0", "v1"];
    (0..count).map(|n| (format!("l{n}"), (*random.pick(&values)).to_owned())).collect()
}

fn slice(labels: &Labels) -> Vec<(&str, &str)> {
    labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

fn stored(labels: &Labels) -> Labels {
    labels.iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn update(client: &Client, key: &str, labels: &Labels, mask: &[String]) -> Result<Info, Status> {
    let labels = labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    let info = Info { name: key.to_owned(), labels, ..Info::default() };
    client.update(info, &mask.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The directory that an active snapshot's mounts write to.
pub(super) fn upper(mounts: &[Mount]) -> PathBuf {
    let mount = &mounts[0];
    let upper = mount.options.iter().find_map(|option| option.strip_prefix("upperdir="));
    PathBuf::from(upper.unwrap_or(&mount.source))
}

impl Model {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), entries: BTreeMap::new(), history: Vec::new() }
    }

    /// Makes a call, and compares code and answer with what the model says. Returns the upper of a
    /// new active snapshot.
    pub(super) fn compare(&mut self, client: &Client, op: &Op) -> Option<PathBuf> {
        let expected = self.expected(op);
        self.history.push(format!("{op:?} -> {expected:?}"));
        if expected != Code::Ok {
            let found = op.call(client).map_err(|status| status.code());
            assert_eq!(found, Err(expected), "{op:?}");
            return None;
        }
        match op {
            Op::New { kind, key, parent, labels, files } => {
                return self.create(client, *kind, key, parent, labels, *files);
            }
            Op::Commit { name, key, parent, labels } => {
                op.call(client).unwrap();
                let mut entry = self.entries.remove(key).unwrap();
                if entry.parent.is_empty() {
                    entry.parent.clone_from(parent);
                }
                entry.kind = Kind::Committed;
                entry.labels = stored(labels);
                self.entries.insert(name.clone(), entry);
            }
            Op::Remove(key) => {
                op.call(client).unwrap();
                self.entries.remove(key);
            }
            Op::Stat(key) => self.is(&client.stat(key).unwrap()),
            Op::Update { key, labels, mask } => self.update(client, key, labels, mask),
            Op::List => self.list(client),
            Op::Usage(key) => {
                let entry = &self.entries[key];
                let inodes = if entry.kind == Kind::View { 0 } else { entry.files + 1 };
                let (bytes, found) = client.usage(key).unwrap();
                assert_eq!(usize::try_from(found).unwrap(), inodes, "{key}");
                assert_eq!(bytes == 0, entry.kind == Kind::View, "{key}");
            }
            Op::Mounts(key) => assert_eq!(client.mounts(key).unwrap(), self.entries[key].mounts),
            Op::Cleanup => op.call(client).unwrap(),
        }
        None
    }

    /// The code that containerd's order of checks leads to.
    pub(super) fn expected(&self, op: &Op) -> Code {
        let kind = |key: &str| self.entries.get(key).map(|entry| entry.kind);
        let there = |key: &str| if kind(key).is_some() { Code::Ok } else { Code::NotFound };
        match op {
            Op::New { key, parent, .. } => match kind(parent) {
                None if !parent.is_empty() => Code::NotFound,
                Some(Kind::Active | Kind::View) => Code::InvalidArgument,
                _ if kind(key).is_some() => Code::AlreadyExists,
                _ => Code::Ok,
            },
            Op::Commit { name, key, parent, .. } => self.expected_commit(name, key, parent),
            Op::Remove(key) => match there(key) {
                Code::Ok if self.entries.values().any(|entry| entry.parent == *key) => {
                    Code::FailedPrecondition
                }
                other => other,
            },
            Op::Mounts(key) if kind(key) == Some(Kind::Committed) => Code::FailedPrecondition,
            Op::Stat(key) | Op::Update { key, .. } | Op::Usage(key) | Op::Mounts(key) => there(key),
            Op::List | Op::Cleanup => Code::Ok,
        }
    }

    fn expected_commit(&self, name: &str, key: &str, parent: &str) -> Code {
        let Some(entry) = self.entries.get(key) else { return Code::NotFound };
        if self.entries.contains_key(name) {
            Code::AlreadyExists
        } else if entry.kind != Kind::Active {
            Code::FailedPrecondition
        } else if parent.is_empty() || parent == entry.parent {
            Code::Ok
        } else if !entry.parent.is_empty() {
            Code::InvalidArgument
        } else {
            match self.entries.get(parent).map(|parent| parent.kind) {
                None => Code::NotFound,
                Some(Kind::Committed) => Code::Ok,
                Some(_) => Code::FailedPrecondition,
            }
        }
    }

    fn create(
        &mut self,
        client: &Client,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: &Labels,
        files: usize,
    ) -> Option<PathBuf> {
        let pairs = slice(labels);
        let pairs: LabelSlice<'_> = &pairs;
        let active = kind == Kind::Active;
        let mounts = match active {
            true => client.prepare(key, parent, pairs),
            false => client.view(key, parent, pairs),
        };
        let mounts = mounts.unwrap();
        let upper = upper(&mounts);
        if active {
            for number in 0..files {
                fs::write(upper.join(number.to_string()), "x").unwrap();
            }
        }
        let (parent, labels) = (parent.to_owned(), stored(labels));
        self.entries.insert(key.to_owned(), Entry { kind, parent, labels, mounts, files });
        active.then_some(upper)
    }

    fn update(&mut self, client: &Client, key: &str, labels: &Labels, mask: &[String]) {
        let entry = self.entries.get_mut(key).unwrap();
        let picked: Vec<&str> =
            mask.iter().filter_map(|path| path.strip_prefix("labels.")).collect();
        if picked.is_empty() {
            entry.labels = stored(labels);
        }
        for name in picked {
            entry.labels.remove(name);
            if let Some(value) = labels.get(name).filter(|value| !value.is_empty()) {
                entry.labels.insert(name.to_owned(), value.clone());
            }
        }
        self.is(&update(client, key, labels, mask).unwrap());
    }

    fn list(&self, client: &Client) {
        let all = client.list(&[]).unwrap();
        is_whole(&all);
        let own: Vec<&Info> =
            all.iter().filter(|info| info.name.starts_with(&self.prefix)).collect();
        assert_eq!(own.len(), self.entries.len(), "{own:#?}, expected {:#?}", self.entries);
        own.into_iter().for_each(|info| self.is(info));
    }

    fn is(&self, info: &Info) {
        let entry = self.entries.get(&info.name).unwrap_or_else(|| panic!("{info:?} is not there"));
        let labels: Labels = info.labels.clone().into_iter().collect();
        let found = (info.kind(), &info.parent, labels);
        assert_eq!(found, (entry.kind, &entry.parent, entry.labels.clone()), "{}", info.name);
        assert!(info.created_at.is_some() && info.updated_at.is_some(), "{info:?}");
    }
}
