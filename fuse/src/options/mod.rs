//! What a mount can be told. Pure: text becomes [`MountOptions`], and what does not go together, or is not
//! there yet, is refused by name. Nothing that would change what the user gets is passed over in silence.

mod read;
mod table;
mod unsupported;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use crate::format::Format;

pub use read::split_lowers;
pub use unsupported::unsupported;

/// Options of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Lower directories, the topmost first.
    pub lowers: Vec<PathBuf>,
    /// Where changes go.
    pub upper: Option<PathBuf>,
    /// Where changes are prepared: an empty directory beside the upper.
    pub work: Option<PathBuf>,
    /// Whether the view may be written to.
    pub writing: Writing,
    /// Where the layers' marks lie.
    pub format: Format,
    /// How deletions are written.
    pub whiteouts: Whiteouts,
    /// What renamed directories leave.
    pub redirect_dir: RedirectDir,
    /// Copies up only metadata, as long as that suffices.
    pub metacopy: bool,
    /// Keeps hard links of lower files together when one is copied up, in an index on disk.
    pub index: bool,
    /// Never syncs; after a crash the upper is refused.
    pub volatile: bool,
    /// How long the kernel may keep what it was told; unless told otherwise, for ever.
    pub timeout: Option<Duration>,
    /// How many threads serve the mount, if that was said.
    pub threads: Option<usize>,
    /// Whether the kernel keeps writes back, if that was said.
    pub writeback: Option<bool>,
    /// Lets the kernel read and write upper files itself, where it can.
    pub passthrough: bool,
    /// `SELinux` context of all files.
    pub context: Option<String>,
    /// Keeps access control lists.
    pub acl: bool,
    /// Keeps extended attributes.
    pub xattrs: bool,
    /// Inode numbers have 32 bits.
    pub ino32: bool,
    /// Whose all files seem to be.
    pub squash: Squash,
    /// How owners on disk are shown.
    pub uid_map: Vec<IdRange>,
    /// How groups on disk are shown.
    pub gid_map: Vec<IdRange>,
    /// Where owner, mode and type lie.
    pub xattr_permissions: XattrPermissions,
    /// Who may look.
    pub access: Access,
    /// What the kernel is told of the mount.
    pub flags: Vec<Flag>,
    /// What the mount table shows as the source.
    pub source: String,
    /// What the mount table shows as the type, after `fuse.`.
    pub subtype: String,
    /// Options that change nothing here, each with the reason.
    pub notes: Vec<String>,
}

/// Whether a view may be written to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writing {
    /// If there is an upper.
    #[default]
    IfPossible,
    /// It may not (`ro`).
    No,
    /// It must (`rw`).
    Yes,
}

/// How deletions are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Whiteouts {
    /// As the kernel's overlayfs does.
    #[default]
    Kernel,
    /// As files named `.wh.NAME`.
    Prefixed,
}

/// What renamed directories leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RedirectDir {
    /// They are not renamed. Redirects are not followed.
    #[default]
    Off,
    /// The same.
    NoFollow,
    /// They are not renamed. Redirects are followed.
    Follow,
    /// A redirect.
    On,
}

/// Whose all files seem to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Squash {
    /// The owner.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
}

/// Ids that lie on disk, and as what they are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first on disk.
    pub disk: u32,
    /// The first shown.
    pub shown: u32,
    /// How many, at least one.
    pub length: u32,
}

/// Where owner, mode and type of a file lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XattrPermissions {
    /// In its inode.
    #[default]
    Inode,
    /// In `security.fuseoverlayfs.override_stat`.
    Security,
    /// In `user.containers.override_stat`.
    User,
}

/// Who may look at a view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Who mounts it; everybody, if that is root.
    #[default]
    Mounter,
    /// Who mounts it, and root.
    MounterAndRoot,
    /// Everybody.
    Everybody,
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
    /// Every write is synced.
    Sync,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            lowers: Vec::new(),
            upper: None,
            work: None,
            writing: Writing::default(),
            format: Format::Trusted,
            whiteouts: Whiteouts::default(),
            redirect_dir: RedirectDir::default(),
            metacopy: false,
            index: true,
            volatile: false,
            timeout: None,
            threads: None,
            writeback: None,
            passthrough: true,
            context: None,
            acl: true,
            xattrs: true,
            ino32: false,
            squash: Squash::default(),
            uid_map: Vec::new(),
            gid_map: Vec::new(),
            xattr_permissions: XattrPermissions::default(),
            access: Access::default(),
            flags: Vec::new(),
            source: "overstream".to_owned(),
            subtype: "overstream".to_owned(),
            notes: Vec::new(),
        }
    }
}

impl MountOptions {
    /// Reads what follows `-o`: a list separated by commas, in which a backslash takes the special meaning
    /// from what follows it, and a value in quotes may have commas. A later option wins.
    ///
    /// # Errors
    /// Names the option that is not known, has a value that makes no sense, or cannot be obeyed.
    pub fn parse(list: &OsStr) -> Result<Self, String> {
        let mut options = Self::default();
        for (name, value) in read::split_options(list)? {
            table::obey(&mut options, &name, value.as_deref())?;
        }
        Ok(options)
    }

    /// Returns the names of all options that are known.
    pub fn names() -> impl Iterator<Item = &'static str> {
        table::OPTIONS.iter().flat_map(|(names, _)| names.split(' '))
    }

    /// Tells whether the view is read-only.
    pub fn read_only(&self) -> bool {
        self.writing == Writing::No || self.upper.is_none()
    }

    /// Refuses options that do not go together, and notes those that mean nothing together.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn check(&mut self) -> Result<(), String> {
        if self.lowers.is_empty() {
            return Err("no lower directory is given".to_owned());
        }
        match (&self.upper, &self.work) {
            (Some(_), None) => {
                return Err("an upper directory needs a work directory beside it".to_owned());
            }
            (None, Some(work)) => {
                let work = work.display();
                self.notes.push(format!("work directory {work} is of no use without an upper"));
            }
            _ => {}
        }
        if self.upper.is_none() && self.writing == Writing::Yes {
            return Err("option rw: the view is read-only without an upper directory".to_owned());
        }
        if self.upper.is_none() && self.volatile {
            self.notes.push("option volatile means nothing without an upper directory".to_owned());
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

#[cfg(test)]
mod tests;
