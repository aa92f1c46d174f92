//! Opens the lower directories of a mount, and refuses what cannot be layers of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::{self, Errno};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::LayerDir;
use super::{HostDir, Pool, Unclaimable, claim};
use crate::origin::FileSystem;
use crate::sys::{file_system_uuid, make_read_only};
use crate::upper::Upper;

/// The kernel's limit.
const MOST: usize = 500;

/// Why directories cannot be the layers of a mount.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is none.
    #[error("no lower directory is given")]
    None,
    /// There are more than the kernel's overlayfs takes.
    #[error("{0} lower directories are given, the most is 500")]
    TooMany(usize),
    /// One cannot be opened.
    #[error("lower directory {}: {source}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// One is given twice, or lies in another.
    #[error("lower directories {} and {} are one, or one lies in the other", .0.display(), .1.display())]
    Overlap(PathBuf, PathBuf),
    /// The upper or the work directory cannot be used.
    #[error(transparent)]
    Upper(#[from] Unclaimable),
    /// The work directory cannot be emptied, or nothing can be made in it.
    #[error("work directory {}: {source}", path.display())]
    Work {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// One lies below the mount point, or the mount point in it.
    #[error("lower directory {} and the mount point {} are one, or one lies in the other", .0.display(), .1.display())]
    Nested(PathBuf, PathBuf),
}

/// The layers of a mount.
#[derive(Debug)]
pub struct Layers {
    pub(crate) lowers: Vec<Arc<dyn LayerDir>>,
    pub(crate) upper: Option<Upper>,
    pub(crate) systems: Vec<FileSystem>,
}

impl Layers {
    /// Returns the upper, to set it up.
    pub fn upper(&mut self) -> Option<&mut Upper> {
        self.upper.as_mut()
    }
}

/// Opens the layers of a mount on `target`: lower directories, from the topmost down, and perhaps an upper with
/// its work directory. They are open before anything is mounted, so the view never looks through itself.
///
/// # Errors
/// Says which directory cannot be used, and why.
pub fn open_layers(
    lowers: &[PathBuf],
    upper: Option<(&Path, &Path)>,
    target: &Path,
) -> Result<Layers, Refused> {
    let pool = Arc::default();
    let roots = open_lowers(lowers, target, &pool)?;
    let systems = roots.iter().filter_map(|root| file_system(root).ok()).collect();
    let upper = upper.map(|(upper, work)| {
        let claim = claim(upper, work, lowers, target)?;
        let refused = |errno: Errno| Refused::Work { path: work.to_owned(), source: errno.into() };
        Upper::open(claim, &pool).map_err(refused)
    });
    let lowers = roots.into_iter().map(|root| root as Arc<dyn LayerDir>).collect();
    Ok(Layers { lowers, upper: upper.transpose()?, systems })
}

/// Finds out what is needed to name files of a layer; without it they have no origin.
fn file_system(root: &HostDir) -> io::Result<FileSystem> {
    let opened = root.open_self()?;
    let kind = rustix::fs::fstatfs(&opened)?.f_type;
    Ok(FileSystem { id: root.stat()?.fs, kind, uuid: file_system_uuid(&opened).ok() })
}

/// Opens the lower directories.
///
/// # Errors
/// Says which directory cannot be used, and why.
fn open_lowers(
    paths: &[PathBuf],
    target: &Path,
    pool: &Arc<Pool>,
) -> Result<Vec<Arc<HostDir>>, Refused> {
    if paths.is_empty() {
        return Err(Refused::None);
    }
    if paths.len() > MOST {
        return Err(Refused::TooMany(paths.len()));
    }
    let mut resolved: Vec<PathBuf> = Vec::new();
    let mut layers: Vec<Arc<HostDir>> = Vec::new();
    for path in paths {
        let refused = |source: std::io::Error| Refused::Open { path: path.clone(), source };
        let real = path.canonicalize().map_err(refused)?;
        if let Some(other) = resolved.iter().find(|other| overlap(other, &real)) {
            return Err(Refused::Overlap(other.clone(), real));
        }
        if overlap(&real, target) {
            return Err(Refused::Nested(real, target.to_owned()));
        }
        layers.push(Arc::new(open(&real, pool).map_err(|errno| refused(errno.into()))?));
        resolved.push(real);
    }
    Ok(layers)
}

fn overlap(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

fn open(path: &Path, pool: &Arc<Pool>) -> io::Result<HostDir> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    // A mount of our own, as in the kernel: what is mounted inside the layer is not part of it. Where that
    // is not allowed, the mount in the layer is refused when it is met.
    let clone = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let fd = match open_tree(&fd, "", clone) {
        // Nothing is ever written to a lower layer, not even by mistake.
        Ok(own) => {
            make_read_only(&own)?;
            own
        }
        Err(Errno::PERM | Errno::INVAL | Errno::NOSYS) => fd,
        Err(error) => return Err(error),
    };
    let root = HostDir::root(fd, pool);
    // By way of /proc marks are read; without it they would seem not to be there.
    let (by_path, flags) = (root.path(None)?, AtFlags::SYMLINK_NOFOLLOW);
    rustix::fs::statx(CWD, &by_path.path, flags, StatxFlags::TYPE)?;
    Ok(root)
}
