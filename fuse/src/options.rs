//! What a mount can be told: the list of lower directories, and `-o`. Pure.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::format::Format;

/// Options of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Where the layers' marks lie.
    pub format: Format,
    /// What the mount table shows as the source.
    pub source: String,
    /// Lets other users see the view; root's mounts always do.
    pub allow_other: bool,
    /// What the kernel is told of the mount.
    pub flags: Vec<Flag>,
}

/// A flag of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// Device files do not work.
    NoDev,
    /// setuid, setgid and file capabilities do not work.
    NoSuid,
    /// Nothing can be executed.
    NoExec,
    /// Times of access stay.
    NoAtime,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            format: Format::Trusted,
            source: "overstream".to_owned(),
            allow_other: false,
            flags: Vec::new(),
        }
    }
}

impl MountOptions {
    /// Reads what follows `-o`: a list separated by commas; a later option wins.
    ///
    /// # Errors
    /// Names the option that is not known, or not possible in a read-only view.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut options = Self::default();
        text.split(',').filter(|option| !option.is_empty()).try_for_each(|o| options.take(o))?;
        Ok(options)
    }

    fn take(&mut self, option: &str) -> Result<(), String> {
        match option {
            // What holds anyway.
            "ro" | "default_permissions" => {}
            "userxattr" => self.format = Format::User,
            "allow_other" => self.allow_other = true,
            "nodev" => self.set(Flag::NoDev, true),
            "dev" => self.set(Flag::NoDev, false),
            "nosuid" => self.set(Flag::NoSuid, true),
            "suid" => self.set(Flag::NoSuid, false),
            "noexec" => self.set(Flag::NoExec, true),
            "exec" => self.set(Flag::NoExec, false),
            "noatime" => self.set(Flag::NoAtime, true),
            "atime" => self.set(Flag::NoAtime, false),
            "rw" => return Err("option \"rw\": the view is read-only for now".to_owned()),
            _ => match option.split_once('=') {
                Some(("fsname", source)) => source.clone_into(&mut self.source),
                _ => return Err(format!("option {option:?} is not known")),
            },
        }
        Ok(())
    }

    fn set(&mut self, flag: Flag, on: bool) {
        self.flags.retain(|other| *other != flag);
        if on {
            self.flags.push(flag);
        }
    }
}

/// Splits a list of lower directories, the topmost first, at each `:`. A backslash takes the special
/// meaning from what follows it, as in the kernel.
///
/// # Errors
/// Says what is wrong with the list.
pub fn split_lowers(list: &OsStr) -> Result<Vec<PathBuf>, String> {
    let mut lowers = vec![Vec::new()];
    let mut bytes = list.as_bytes().iter();
    while let Some(byte) = bytes.next() {
        match (byte, lowers.last_mut()) {
            (b'\\', Some(lower)) => {
                lower.push(
                    *bytes.next().ok_or("the list of lower directories ends in a backslash")?,
                );
            }
            (b':', _) => lowers.push(Vec::new()),
            (byte, Some(lower)) => lower.push(*byte),
            (_, None) => {}
        }
    }
    if lowers.iter().any(Vec::is_empty) {
        return Err(
            "a name in the list of lower directories is empty; `::` (directories that hold data \
                    only) is not supported"
                .to_owned(),
        );
    }
    Ok(lowers.into_iter().map(|lower| OsString::from_vec(lower).into()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SEMANTICS O13
    #[test]
    fn colons_and_backslashes_in_names_are_escaped() {
        let split = |list: &str| split_lowers(OsStr::new(list));
        let paths = |names: &[&str]| Ok(names.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(split("a"), paths(&["a"]));
        assert_eq!(split("/a:b c:/d"), paths(&["/a", "b c", "/d"]));
        assert_eq!(split(r"a\:b:c\\d:\e"), paths(&["a:b", r"c\d", "e"]));
        for bad in ["", ":", "a:", ":a", "a::b", "a\\"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_option_is_obeyed_or_refused() {
        let options = MountOptions::parse("ro,nodev,noexec,exec,userxattr,fsname=x=y").unwrap();
        assert_eq!(options.flags, [Flag::NoDev]);
        assert_eq!(options.format, Format::User);
        assert_eq!(options.source, "x=y");
        assert_eq!(MountOptions::parse(""), Ok(MountOptions::default()));
        for bad in ["rw", "nosuchthing", "upperdir=/u", "ro,fsname"] {
            assert!(MountOptions::parse(bad).is_err(), "{bad}");
        }
    }
}
