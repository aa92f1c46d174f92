//! Any sequence of calls, against a map.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::snapshot::{Kind, Labels, Usage};

#[derive(Clone, Debug)]
enum Call {
    Create { name: bool, key: u8, parent: Option<u8>, kind: Kind },
    Commit { key: u8, to: u8, parent: Option<u8> },
    Remove { key: u8, retain: bool },
    Label { key: u8, value: String },
    Collect,
    Reopen,
}

/// What the map holds of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    id: u64,
    kind: Kind,
    parent: Option<String>,
    labels: Labels,
    usage: Usage,
}

#[derive(Debug, Default)]
struct Model {
    entries: BTreeMap<(String, String), Entry>,
    garbage: Vec<u64>,
    retained: Vec<u64>,
    last_id: u64,
}

/// How a call ended, as far as the map can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Done,
    NotFound,
    Exists,
    Invalid,
    Forbidden,
    Other,
}

fn end<T>(result: &Result<T>) -> End {
    match result {
        Ok(_) => End::Done,
        Err(Error::NotFound(_)) => End::NotFound,
        Err(Error::AlreadyExists(_)) => End::Exists,
        Err(Error::InvalidArgument(_)) => End::Invalid,
        Err(Error::FailedPrecondition(_)) => End::Forbidden,
        Err(_) => End::Other,
    }
}

fn call() -> impl Strategy<Value = Call> {
    let key = || 0..6u8;
    let parent = || prop::option::of(0..6u8);
    let kind = prop_oneof![3 => Just(Kind::Active), 1 => Just(Kind::View)];
    prop_oneof![
        5 => (any::<bool>(), key(), parent(), kind)
            .prop_map(|(name, key, parent, kind)| Call::Create { name, key, parent, kind }),
        4 => (key(), key(), parent()).prop_map(|(key, to, parent)| Call::Commit { key, to, parent }),
        3 => (key(), any::<bool>()).prop_map(|(key, retain)| Call::Remove { key, retain }),
        2 => (key(), "[a\0\"]{0,3}").prop_map(|(key, value)| Call::Label { key, value }),
        1 => Just(Call::Collect),
        1 => Just(Call::Reopen),
    ]
}

fn key_of(number: u8) -> String {
    format!("ns/{number}/key")
}

/// Most calls are for one plugin name, so that a second one's rows stand beside it.
fn plugin(other: bool) -> &'static str {
    if other { "other" } else { "s" }
}

impl Model {
    fn find(&self, plugin: &str, key: &str) -> Option<&Entry> {
        self.entries.get(&(plugin.to_owned(), key.to_owned()))
    }

    fn kind(&self, key: &str) -> Option<Kind> {
        self.find("s", key).map(|entry| entry.kind)
    }

    fn create(&mut self, plugin: &str, key: &str, parent: &str, kind: Kind) -> End {
        match self.find(plugin, parent).map(|parent| parent.kind) {
            None if !parent.is_empty() => return End::NotFound,
            Some(Kind::Active | Kind::View) => return End::Invalid,
            _ => {}
        }
        if self.find(plugin, key).is_some() {
            return End::Exists;
        }
        self.last_id += 1;
        let parent = (!parent.is_empty()).then(|| parent.to_owned());
        let (id, labels, usage) = (self.last_id, Labels::new(), Usage::default());
        let entry = Entry { id, kind, parent, labels, usage };
        self.entries.insert((plugin.to_owned(), key.to_owned()), entry);
        End::Done
    }

    fn commit(&mut self, key: &str, name: &str, parent: &str, usage: Usage) -> End {
        let Some(entry) = self.find("s", key).cloned() else { return End::NotFound };
        if self.find("s", name).is_some() {
            return End::Exists;
        }
        if entry.kind != Kind::Active {
            return End::Forbidden;
        }
        let parent = match (&entry.parent, parent) {
            (own, "") => own.clone(),
            (Some(own), given) if own == given => Some(own.clone()),
            (Some(_), _) => return End::Invalid,
            (None, given) => match self.kind(given) {
                None => return End::NotFound,
                Some(Kind::Committed) => Some(given.to_owned()),
                Some(_) => return End::Forbidden,
            },
        };
        self.entries.remove(&("s".to_owned(), key.to_owned()));
        let committed =
            Entry { kind: Kind::Committed, parent, labels: Labels::new(), usage, ..entry };
        self.entries.insert(("s".to_owned(), name.to_owned()), committed);
        End::Done
    }

    fn remove(&mut self, key: &str, retain: bool) -> End {
        let Some(entry) = self.find("s", key) else { return End::NotFound };
        let child = |((plugin, _), other): (&(String, String), &Entry)| {
            plugin == "s" && other.parent.as_deref() == Some(key)
        };
        if self.entries.iter().any(child) {
            return End::Forbidden;
        }
        let id = entry.id;
        if retain {
            self.retained.push(id)
        } else {
            self.garbage.push(id)
        }
        self.entries.remove(&("s".to_owned(), key.to_owned()));
        End::Done
    }

    /// Names of the layers of a snapshot, top first.
    fn chain(&self, key: &str) -> Vec<String> {
        let mut chain = Vec::new();
        let mut next = self.find("s", key).and_then(|entry| entry.parent.clone());
        while let Some(name) = next {
            next = self.find("s", &name).and_then(|entry| entry.parent.clone());
            chain.push(name);
        }
        chain
    }
}

/// Makes a call on both; returns how each ended.
fn make(call: &Call, model: &mut Model, meta: &Metastore) -> (End, End) {
    let name = |number: &Option<u8>| number.map(key_of).unwrap_or_default();
    match call {
        Call::Create { name: other, key, parent, kind } => {
            let (plugin, key, parent) = (plugin(*other), key_of(*key), name(parent));
            let id = model.last_id + 1;
            let found = create(meta, id, plugin, &key, &parent, *kind);
            (model.create(plugin, &key, &parent, *kind), end(&found))
        }
        Call::Commit { key, to, parent } => {
            let (key, to, parent) = (key_of(*key), key_of(*to), name(parent));
            let usage = Usage { bytes: model.last_id, inodes: 1 };
            let labels = Labels::new();
            let row = meta.check_commit("s", &key, &to, &parent);
            let id = row.as_ref().map_or(0, |row| row.id);
            let checked = end(&row);
            let found = end(&meta.commit(&Commit {
                id,
                snapshotter: "s",
                key: &key,
                name: &to,
                labels: &labels,
                parent: &parent,
                usage,
                unsynced_boot: None,
            }));
            assert_eq!(checked, found, "the check and the commit differ");
            (model.commit(&key, &to, &parent, usage), found)
        }
        Call::Remove { key, retain } => {
            let key = key_of(*key);
            let chain = ["local".to_owned()];
            let keep = Removal::Retain { namespace: "ns", name: "key", chain: &chain };
            let removal = if *retain { keep } else { Removal::Discard };
            let found = meta.get("s", &key).and_then(|row| meta.remove(&row, &removal));
            (model.remove(&key, *retain), end(&found))
        }
        Call::Label { key, value } => {
            let key = key_of(*key);
            let found = meta.update_labels("s", &key, |labels| {
                labels.insert("l".to_owned(), value.clone());
            });
            let entry = model.entries.get_mut(&("s".to_owned(), key));
            let expected = entry.map_or(End::NotFound, |entry| {
                entry.labels.remove("l");
                if !value.is_empty() {
                    entry.labels.insert("l".to_owned(), value.clone());
                }
                End::Done
            });
            (expected, end(&found))
        }
        Call::Collect => {
            model.garbage.clear();
            let found = meta.garbage().and_then(|garbage| meta.forget_garbage(&garbage));
            (End::Done, end(&found))
        }
        Call::Reopen => (End::Done, End::Done),
    }
}

fn create(
    meta: &Metastore,
    id: u64,
    snapshotter: &str,
    key: &str,
    parent: &str,
    kind: Kind,
) -> Result<()> {
    let checked = end(&meta.check_new(snapshotter, key, parent));
    let placement = Placement {
        store: ROOT_STORE.to_owned(),
        place: Place::Store,
        reason: "test".to_owned(),
        retain: false,
        volatile_boot: None,
    };
    let (labels, placement) = (Labels::new(), placement);
    let new = NewSnapshot {
        id,
        snapshotter,
        key,
        parent,
        parent_id: meta.get(snapshotter, parent).ok().map(|row| row.id),
        kind,
        labels: &labels,
        placement: &placement,
        resumes: false,
        wait: Wait::AsLongAsItTakes,
    };
    let created = meta.create(&new);
    assert_eq!(checked, end(&created), "the check and the creation differ");
    created
}

/// Compares everything that can be asked.
fn compare(model: &Model, meta: &Metastore) {
    let mut found = BTreeMap::new();
    meta.for_each(None, |row| {
        let parent = Some(row.info.parent).filter(|parent| !parent.is_empty());
        let (id, kind, labels, usage) = (row.id, row.info.kind, row.info.labels, row.usage);
        let entry = Entry { id, kind, parent, labels, usage };
        found.insert((row.snapshotter, row.info.name), entry);
        Ok(())
    })
    .unwrap();
    assert_eq!(found, model.entries);
    for (plugin, key) in model.entries.keys().filter(|(plugin, _)| plugin == "s") {
        let (row, chain) = meta.get_with_chain(plugin, key).unwrap();
        assert_eq!(row.info.name, *key);
        let names: Vec<_> = chain.into_iter().map(|layer| layer.name).collect();
        assert_eq!(names, model.chain(key), "layers of {key}");
    }
    let garbage: Vec<u64> = meta.garbage().unwrap().iter().map(|garbage| garbage.id).collect();
    let mut expected = model.garbage.clone();
    expected.sort_unstable();
    assert_eq!(garbage, expected);
    assert_eq!(meta.retained().unwrap().len(), model.retained.len());
    assert_eq!(meta.last_id().unwrap(), model.last_id);
}

proptest! {
    // Each case writes to a disk.
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_calls_leaves_what_the_map_says(calls in prop::collection::vec(call(), 1..40)) {
        let root = tempfile::tempdir().unwrap();
        let mut meta = Metastore::open(root.path()).unwrap();
        let mut model = Model::default();
        for call in &calls {
            if matches!(call, Call::Reopen) {
                drop(meta);
                meta = Metastore::open(root.path()).unwrap();
            }
            let (expected, found) = make(call, &mut model, &meta);
            prop_assert_eq!(expected, found, "{:?}", call);
        }
        compare(&model, &meta);
        drop(meta);
        compare(&model, &Metastore::open(root.path()).unwrap());
    }
}
