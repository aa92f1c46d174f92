//! The versions of containerd the tests run against.

use std::fmt;
use std::path::PathBuf;

use super::newer;
use crate::require::{find_program, not_run};

/// A version of containerd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// The one this system has installed: 1.6 on Debian 12.
    #[default]
    System,
    /// 1.7, from the next Debian's packages.
    V1_7,
    /// 2.x, from Debian's newest packages.
    V2,
}

impl Version {
    /// All versions.
    pub const ALL: [Self; 3] = [Self::System, Self::V1_7, Self::V2];

    /// Returns the one that `OVERSTREAM_CONTAINERD` chooses: `system` (also if unset), `1.7` or `2.x`.
    #[track_caller]
    pub fn chosen() -> Self {
        match std::env::var("OVERSTREAM_CONTAINERD").as_deref() {
            Err(_) | Ok("" | "system") => Self::System,
            Ok("1.7") => Self::V1_7,
            Ok("2.x") => Self::V2,
            Ok(other) => panic!("OVERSTREAM_CONTAINERD={other:?} is not system, 1.7 or 2.x"),
        }
    }

    /// Tells whether tests can run with it, getting its packages if needed; if not, says that a
    /// capability is missing: `root`, `containerd`, `runc`, `busybox` or `network-packages`.
    pub fn available(self) -> bool {
        if !crate::require_root() {
            return false;
        }
        for program in ["runc", "busybox"] {
            if !crate::require_command(program, program) {
                return false;
            }
        }
        match self.programs() {
            Ok(_) => true,
            Err(why) => {
                not_run(self.capability(), &why);
                false
            }
        }
    }

    /// Returns the directory of its programs, or `None` if they are the system's.
    pub(super) fn programs(self) -> Result<Option<PathBuf>, String> {
        match self {
            Self::System if find_program("containerd").is_some() => Ok(None),
            Self::System => Err("containerd is not installed; scripts/deps.sh installs it".into()),
            Self::V1_7 => newer::programs("trixie", "1.7.").map(Some),
            Self::V2 => newer::programs("sid", "2.").map(Some),
        }
    }

    fn capability(self) -> &'static str {
        match self {
            Self::System => "containerd",
            Self::V1_7 | Self::V2 => "network-packages",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System => "the system's containerd",
            Self::V1_7 => "containerd 1.7",
            Self::V2 => "containerd 2",
        })
    }
}
