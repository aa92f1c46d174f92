//! What a valid name is: 1 to 255 bytes of any kind save zero and slash, and neither `.` nor `..`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::errno::{Error, Result};

/// The kernel's limit. FUSE itself would let 1024 bytes through.
const LONGEST: usize = 255;

/// A name in a directory; bytes, since file systems know no encoding.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Box<OsStr>);

impl Name {
    /// Checks a name.
    ///
    /// # Errors
    /// `NameTooLong` (ENAMETOOLONG) or `BadName` (EINVAL).
    pub fn new(name: &OsStr) -> Result<Self> {
        let bytes = name.as_bytes();
        if bytes.len() > LONGEST {
            return Err(Error::NameTooLong);
        }
        if matches!(bytes, b"" | b"." | b"..") || bytes.iter().any(|byte| matches!(byte, 0 | b'/'))
        {
            return Err(Error::BadName);
        }
        Ok(Self(name.into()))
    }

    /// Returns the name as the system's text.
    pub fn as_os_str(&self) -> &OsStr {
        &self.0
    }

    /// Returns the name's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SEMANTICS O10
    #[test]
    fn any_bytes_make_a_name_save_those_that_paths_are_made_of() {
        let longest = "x".repeat(255);
        for good in [&b"a"[..], b"\xff\xfe", b".wh.x", b".wh..wh..opq", b"...", longest.as_bytes()]
        {
            assert_eq!(Name::new(OsStr::from_bytes(good)).unwrap().as_bytes(), good);
        }
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0"] {
            assert!(matches!(Name::new(OsStr::from_bytes(bad)), Err(Error::BadName)), "{bad:?}");
        }
        assert!(matches!(Name::new("x".repeat(256).as_ref()), Err(Error::NameTooLong)));
    }
}
