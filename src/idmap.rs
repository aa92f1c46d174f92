//! Id mapping labels: `container:host:size[,container:host:size..]`, decimal.
//!
//! Container id 0 must be mapped in both lists; the host ids it maps to own the new snapshot's root.
//! An empty or missing list is the identity.

use crate::error::{Error, Result};
use crate::snapshot::{LABEL_GIDMAP, LABEL_UIDMAP, Labels};

/// Largest id a Linux kernel takes; 4294967295 means "no id".
const MAX_ID: u64 = 4_294_967_294;

/// The host ids that container root is mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RootOwner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Reads both labels; nothing where neither is present.
pub(crate) fn root_owner(labels: &Labels) -> Result<Option<RootOwner>> {
    if !labels.contains_key(LABEL_UIDMAP) && !labels.contains_key(LABEL_GIDMAP) {
        return Ok(None);
    }
    let root = |label: &str| labels.get(label).map_or(Ok(0), |text| host_of_zero(label, text));
    Ok(Some(RootOwner { uid: root(LABEL_UIDMAP)?, gid: root(LABEL_GIDMAP)? }))
}

/// The options that ask containerd to map the ids of layers in the kernel.
pub(crate) fn mount_options(labels: &Labels) -> Vec<String> {
    [("uidmap", LABEL_UIDMAP), ("gidmap", LABEL_GIDMAP)]
        .into_iter()
        .filter_map(|(option, label)| labels.get(label).map(|text| format!("{option}={text}")))
        .collect()
}

fn host_of_zero(label: &str, text: &str) -> Result<u32> {
    if text.is_empty() {
        return Ok(0);
    }
    let mut root = None;
    for range in text.split(',') {
        let [container, host, size] = parse_range(label, range)?;
        if container == 0 && size > 0 && root.is_none() {
            root = u32::try_from(host).ok();
        }
    }
    root.ok_or_else(|| bad(label, text, "container id 0 is not mapped"))
}

fn parse_range(label: &str, range: &str) -> Result<[u64; 3]> {
    let number = |text: &str| match text.parse::<u64>() {
        Ok(n) if n <= MAX_ID && text.bytes().all(|b| b.is_ascii_digit()) => Ok(n),
        _ => Err(bad(label, range, "each number must be decimal, 0 to 4294967294")),
    };
    let parts: Vec<&str> = range.split(':').collect();
    match parts.as_slice() {
        [container, host, size] => Ok([number(container)?, number(host)?, number(size)?]),
        _ => Err(bad(label, range, "a range is container:host:size")),
    }
}

fn bad(label: &str, text: &str, problem: &str) -> Error {
    Error::InvalidArgument(format!("label {label}: {text:?}: {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(uid: Option<&str>, gid: Option<&str>) -> Labels {
        [(LABEL_UIDMAP, uid), (LABEL_GIDMAP, gid)]
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())))
            .collect()
    }

    #[test]
    fn container_root_owns_the_new_snapshot() {
        let owner = |uid, gid| root_owner(&labels(uid, gid)).unwrap().map(|o| (o.uid, o.gid));
        assert_eq!(owner(None, None), None);
        assert_eq!(owner(Some("0:1000:65536"), Some("0:2000:65536")), Some((1000, 2000)));
        assert_eq!(owner(Some("1:1:9,0:7:1"), Some("0:8:1")), Some((7, 8)));
        assert_eq!(owner(Some("0:5:1"), None), Some((5, 0)));
        assert_eq!(owner(Some(""), Some("0:6:1")), Some((0, 6)));
    }

    #[test]
    fn bad_maps_are_refused() {
        let good = "0:1000:65536";
        let bad = [
            "0:-1:1",
            "-1:1:1",
            "0:1:-1",
            "1:1000:1",
            "0:0:4294967295",
            "0:4294967295:1",
            "0:1",
            "0:1:2:3",
            "a:b:c",
            "0:1:2,",
            ",",
            "0:0:0",
            "0:+1:1",
            " 0:1:1",
            "1:2000:10,5:3000:10",
            "0:99999999999999999999:1",
        ];
        for text in bad {
            assert!(root_owner(&labels(Some(text), Some(good))).is_err(), "uid {text}");
            assert!(root_owner(&labels(Some(good), Some(text))).is_err(), "gid {text}");
        }
    }
}
