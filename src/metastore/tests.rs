use std::fs;

use super::*;
use crate::snapshot::{Kind, Labels, Usage};

fn placement() -> Placement {
    Placement {
        store: ROOT_STORE.to_owned(),
        place: Place::Store,
        reason: "test".to_owned(),
        retain: false,
        volatile_boot: None,
    }
}

fn create(meta: &Metastore, id: u64, key: &str, parent: &str) -> Result<()> {
    let parent_id = meta.get("s", parent).ok().map(|row| row.id);
    create_on(meta, id, key, parent, parent_id)
}

fn create_on(
    meta: &Metastore,
    id: u64,
    key: &str,
    parent: &str,
    parent_id: Option<u64>,
) -> Result<()> {
    let (labels, placement) = (Labels::new(), placement());
    let new = NewSnapshot {
        id,
        snapshotter: "s",
        key,
        parent,
        parent_id,
        kind: Kind::Active,
        labels: &labels,
        placement: &placement,
        resumes: false,
        wait: Wait::AsLongAsItTakes,
    };
    meta.create(&new)
}

fn commit(meta: &Metastore, key: &str, name: &str) -> Result<()> {
    let labels = Labels::new();
    let usage = Usage { bytes: 1, inodes: 2 };
    let id = meta.get("s", key).map_or(0, |row| row.id);
    meta.commit(&Commit {
        id,
        snapshotter: "s",
        key,
        name,
        labels: &labels,
        parent: "",
        usage,
        unsynced_boot: None,
    })
}

fn root() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn refused(root: &Path) -> String {
    Metastore::open(root).unwrap_err().to_string()
}

#[test]
fn what_was_written_is_there_after_reopening() {
    let root = root();
    {
        let meta = Metastore::open(root.path()).unwrap();
        create(&meta, 1, "a", "").unwrap();
        commit(&meta, "a", "A").unwrap();
        create(&meta, 2, "b", "A").unwrap();
    }
    let meta = Metastore::open(root.path()).unwrap();
    let (row, chain) = meta.get_with_chain("s", "b").unwrap();
    assert_eq!((row.id, row.info.parent.as_str(), row.parent), (2, "A", Some(1)));
    assert_eq!(chain.iter().map(|layer| layer.name.as_str()).collect::<Vec<_>>(), ["A"]);
    assert_eq!(meta.get("s", "A").unwrap().usage, Usage { bytes: 1, inodes: 2 });
    assert!(matches!(meta.get("other", "A"), Err(Error::NotFound(_))));
}

#[test]
fn a_snapshot_that_was_replaced_meanwhile_is_left_alone() {
    let root = root();
    let meta = Metastore::open(root.path()).unwrap();
    create(&meta, 1, "a", "").unwrap();
    let (labels, usage) = (Labels::new(), Usage::default());
    let stale = Commit {
        id: 7,
        snapshotter: "s",
        key: "a",
        name: "A",
        labels: &labels,
        parent: "",
        usage,
        unsynced_boot: None,
    };
    assert!(meta.commit(&stale).unwrap_err().to_string().contains("replaced meanwhile"));
    assert_eq!(meta.get("s", "a").unwrap().info.kind, Kind::Active);
}

#[test]
fn a_parent_that_was_replaced_meanwhile_gets_no_child() {
    let root = root();
    let meta = Metastore::open(root.path()).unwrap();
    create(&meta, 1, "a", "").unwrap();
    commit(&meta, "a", "A").unwrap();
    for looked_at in [None, Some(7)] {
        let error = create_on(&meta, 2, "b", "A", looked_at).unwrap_err();
        assert!(error.to_string().contains("replaced meanwhile"), "{error}");
    }
    for looked_at in [None, Some(1)] {
        let created = create_on(&meta, 2, "b", "gone", looked_at);
        assert!(matches!(created, Err(Error::NotFound(_))));
    }
    assert!(create_on(&meta, 2, "b", "", Some(1)).is_err());
    assert!(matches!(create_on(&meta, 2, "A", "A", Some(1)), Err(Error::AlreadyExists(_))));
    create_on(&meta, 2, "b", "A", Some(1)).unwrap();
}

#[test]
fn only_what_is_agreed_to_is_discarded() {
    let root = root();
    let meta = Metastore::open(root.path()).unwrap();
    create(&meta, 1, "a", "").unwrap();
    let discard = |agrees: bool| meta.discard("s", "a", Wait::Briefly, |_| agrees);
    assert_eq!(discard(false).unwrap(), None);
    assert_eq!((meta.get("s", "a").unwrap().id, meta.garbage().unwrap().len()), (1, 0));
    assert_eq!(discard(true).unwrap(), Some(1));
    assert_eq!(meta.garbage().unwrap().iter().map(|one| one.id).collect::<Vec<_>>(), [1]);
    assert!(matches!(discard(true), Err(Error::NotFound(_))));
}

#[test]
fn a_transaction_that_fails_or_panics_is_rolled_back_and_another_can_begin() {
    let root = root();
    let meta = Metastore::open(root.path()).unwrap();
    let delete = |tx: &Transaction<'_>| tx.execute("DELETE FROM node", []).unwrap();
    meta.node_fact("uuid", "x").unwrap();
    meta.write(|tx| {
        delete(tx);
        Err::<(), _>(Error::Cancelled)
    })
    .unwrap_err();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        meta.write(|tx| -> Result<()> {
            delete(tx);
            panic!("on purpose")
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(meta.node_fact("uuid", "y").unwrap(), "x");
}

#[test]
fn a_lost_layer_stays_lost() {
    let root = root();
    let meta = Metastore::open(root.path()).unwrap();
    for (id, key) in [(1, "a"), (2, "b"), (3, "c")] {
        create(&meta, id, key, "").unwrap();
    }
    let now = "UPDATE snapshots SET unsynced_boot = 'now'";
    meta.write(|tx| Ok(tx.execute(now, [])?)).unwrap();
    meta.mark_lost(&[1]).unwrap();
    meta.mark_synced(&[1, 2], &[], "now").unwrap();
    meta.mark_synced(&[3], &[], "another boot").unwrap();
    let expected = [(1, "lost".to_owned()), (3, "now".to_owned())];
    let mut unsynced = meta.unsynced().unwrap();
    unsynced.sort();
    assert_eq!(unsynced, expected);
}

#[test]
fn numbers_are_never_used_again() {
    let root = root();
    let meta = Metastore::open(root.path()).unwrap();
    assert_eq!(meta.last_id().unwrap(), 0);
    create(&meta, 7, "a", "").unwrap();
    let row = meta.get("s", "a").unwrap();
    meta.remove(&row, &Removal::Leave).unwrap();
    drop(meta);
    assert_eq!(Metastore::open(root.path()).unwrap().last_id().unwrap(), 7);
}

#[test]
fn a_failed_call_leaves_nothing() {
    let root = root();
    let meta = Metastore::open(root.path()).unwrap();
    create(&meta, 1, "a", "").unwrap();
    assert!(matches!(create(&meta, 2, "a", ""), Err(Error::AlreadyExists(_))));
    assert!(matches!(create(&meta, 2, "b", "a"), Err(Error::InvalidArgument(_))));
    assert!(matches!(create(&meta, 2, "b", "none"), Err(Error::NotFound(_))));
    commit(&meta, "a", "A").unwrap();
    create(&meta, 2, "b", "A").unwrap();
    let parent = meta.get("s", "A").unwrap();
    let error = meta.remove(&parent, &Removal::Discard).unwrap_err().to_string();
    assert!(error.contains("remove"), "{error}");
    assert!(meta.garbage().unwrap().is_empty());
    assert_eq!(meta.last_id().unwrap(), 2);
}

#[test]
fn removal_leaves_garbage_or_a_retained_upper() {
    let root = root();
    let meta = Metastore::open(root.path()).unwrap();
    for (id, key) in [(1, "a"), (2, "b")] {
        create(&meta, id, key, "").unwrap();
    }
    meta.remove(&meta.get("s", "a").unwrap(), &Removal::Discard).unwrap();
    assert_eq!(
        meta.garbage().unwrap(),
        [Garbage { id: 1, store: "root".to_owned(), volume_dir: None }]
    );
    let chain = ["sha256:x".to_owned()];
    let retain = Removal::Retain { namespace: "ns", name: "b", chain: &chain };
    meta.remove(&meta.get("s", "b").unwrap(), &retain).unwrap();
    let found = meta.find_retained("s", "ns", "b", None).unwrap().unwrap();
    assert_eq!((found.id, found.chain.as_slice()), (2, &chain[..]));
    assert!(meta.find_retained("s", "other", "b", None).unwrap().is_none());
    assert_eq!(meta.live_ids(ROOT_STORE).unwrap(), [2].into());
    meta.forget_garbage(&meta.garbage().unwrap()).unwrap();
    meta.discard_retained(2).unwrap();
    assert!(matches!(meta.discard_retained(2), Err(Error::NotFound(_))));
    assert_eq!(meta.garbage().unwrap().len(), 1);
}

#[test]
fn labels_of_any_text_survive() {
    let root = root();
    let meta = Metastore::open(root.path()).unwrap();
    create(&meta, 1, "a", "").unwrap();
    let odd: Labels = [("k\0\n\"'", "\u{1f980}\\"), ("", "x"), ("e", "")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    meta.update_labels("s", "a", |labels| labels.clone_from(&odd)).unwrap();
    let stored = meta.get("s", "a").unwrap().info.labels;
    assert_eq!(stored.len(), 2, "an empty value is dropped");
    assert_eq!(stored["k\0\n\"'"], odd["k\0\n\"'"]);
}

type Spoil = Box<dyn Fn(&Path)>;

#[test]
fn a_database_that_is_not_ours_to_write_is_refused_unchanged() {
    let fresh = || {
        let root = root();
        drop(Metastore::open(root.path()).unwrap());
        root
    };
    let cases: [(&str, &str, Spoil); 4] = [
        ("damaged", "Way out", Box::new(|file| fs::write(file, vec![b'x'; 8192]).unwrap())),
        ("version 999", "newer", Box::new(|file| sql(file, "PRAGMA user_version = 999"))),
        (
            "another program",
            "another root",
            Box::new(|file| sql(file, "PRAGMA application_id = 1")),
        ),
        (
            "damaged",
            "backup",
            Box::new(|file| {
                let mut bytes = fs::read(file).unwrap();
                let end = bytes.len();
                bytes[4096..end].fill(0x5a);
                fs::write(file, bytes).unwrap();
            }),
        ),
    ];
    for (what, way_out, spoil) in cases {
        let root = fresh();
        let file = root.path().join(FILE);
        spoil(&file);
        let before = fs::read(&file).unwrap();
        let message = refused(root.path());
        assert!(message.contains(what) && message.contains(way_out), "{message}");
        assert_eq!(fs::read(&file).unwrap(), before, "{what}: the file was changed");
    }
}

#[test]
fn a_missing_database_beside_snapshots_is_not_replaced() {
    let root = root();
    fs::create_dir_all(root.path().join("snapshots/1")).unwrap();
    for empty_file in [false, true] {
        if empty_file {
            fs::write(root.path().join(FILE), "").unwrap();
        }
        let message = refused(root.path());
        assert!(
            message.contains("missing or empty") && message.contains("move the snapshots"),
            "{message}"
        );
    }
}

fn sql(file: &Path, statement: &str) {
    Connection::open(file).unwrap().execute_batch(statement).unwrap();
}
