//! The words of the snapshotter: kinds, keys, labels, times.
//!
//! Keys and names are opaque bytes to every rule but two: whose container a key belongs to, and which
//! content a committed name stands for. Both are read here, as hints that may be absent.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// Labels of a snapshot, in byte order of their keys.
pub(crate) type Labels = BTreeMap<String, String>;

/// Prefix of the labels that containerd forwards to a proxy snapshotter.
pub(crate) const LABEL_PREFIX: &str = "containerd.io/snapshot/";
/// Added to answers when `upperdir_label` is on; never stored.
pub(crate) const LABEL_UPPERDIR: &str = "containerd.io/snapshot/overlay.upperdir";
/// Mapping of user ids, `container:host:size[,..]`.
pub(crate) const LABEL_UIDMAP: &str = "containerd.io/snapshot/uidmapping";
/// Mapping of group ids, in the same form.
pub(crate) const LABEL_GIDMAP: &str = "containerd.io/snapshot/gidmapping";

/// State of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Read-only; cannot be committed.
    View,
    /// Writable; can be committed.
    Active,
    /// Immutable; can be a parent.
    Committed,
}

impl Kind {
    /// The word filters and people use.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }

    /// Reads the word back.
    pub(crate) fn parse(word: &str) -> Option<Self> {
        [Self::View, Self::Active, Self::Committed].into_iter().find(|kind| kind.as_str() == word)
    }
}

/// Nanoseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time(pub i64);

impl Time {
    /// The clock's time; 1970 if the clock is before it.
    pub(crate) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    }
}

/// A snapshot as its owner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Info {
    /// Key of an active snapshot or a view, name of a committed one.
    pub name: String,
    /// Name of the snapshot below; empty at the bottom.
    pub parent: String,
    /// State.
    pub kind: Kind,
    /// When it was made, or committed.
    pub created: Time,
    /// When its labels last changed.
    pub updated: Time,
    /// Its labels.
    pub labels: Labels,
}

/// Space a snapshot takes, without its parents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Bytes allocated on disk.
    pub bytes: u64,
    /// Inodes, the snapshot's root directory included.
    pub inodes: u64,
}

impl Usage {
    /// Adds what something else takes.
    pub(crate) fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

/// One mount as containerd performs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// File system type.
    pub fs_type: &'static str,
    /// What is mounted.
    pub source: String,
    /// Options, in the order in which they are joined.
    pub options: Vec<String>,
}

/// What a key says about itself, where it has containerd's shape `namespace/sequence/key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyHint<'a> {
    /// containerd's namespace; empty where the key does not tell.
    pub namespace: &'a str,
    /// The key as containerd's client named it; the whole key where it has another shape.
    pub user_key: &'a str,
}

impl<'a> KeyHint<'a> {
    /// Reads a key; any text is accepted.
    pub(crate) fn of(key: &'a str) -> Self {
        let mut parts = key.splitn(3, '/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(namespace), Some(sequence), Some(user_key))
                if !namespace.is_empty() && is_number(sequence) && !user_key.is_empty() =>
            {
                Self { namespace, user_key }
            }
            _ => Self { namespace: "", user_key: key },
        }
    }

    /// True for the keys under which containerd unpacks image layers. Their labels come from the image.
    pub(crate) fn is_extraction(&self) -> bool {
        self.user_key.starts_with("extract-")
    }

    /// The chain id (`sha256:` and 64 hex digits) if the name is one: it stands for the content of
    /// the layer and of all below it, whichever pull made it.
    pub(crate) fn chain_id(&self) -> Option<&'a str> {
        let digits = self.user_key.strip_prefix("sha256:")?;
        let hex = digits.len() == 64
            && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        hex.then_some(self.user_key)
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_any_shape_are_read_as_hints() {
        let hint = KeyHint::of("k8s.io/12/extract-1-x sha256:00");
        assert_eq!((hint.namespace, hint.user_key), ("k8s.io", "extract-1-x sha256:00"));
        assert!(hint.is_extraction());
        for odd in ["", "a", "a/b", "/1/c", "a/x/c", "a/1/", "/tmp/some/dir", "a//c", "../../etc"] {
            assert_eq!(KeyHint::of(odd), KeyHint { namespace: "", user_key: odd }, "{odd}");
        }
        assert_eq!(KeyHint::of("ns/7/a/b").user_key, "a/b");
    }

    #[test]
    fn only_a_full_digest_is_a_chain_id() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(KeyHint::of(&format!("ns/1/{digest}")).chain_id(), Some(digest.as_str()));
        for other in ["sha256:", "sha256:0a", &digest.to_uppercase(), &format!("{digest}0")] {
            assert_eq!(KeyHint::of(other).chain_id(), None, "{other}");
        }
    }
}
