//! How the layers' answers about one name become the overlay's answer. Pure.
//!
//! 1. The topmost answer wins.
//! 2. A whiteout hides everything below it.
//! 3. A directory joins those above it, and looking goes on; an opaque one joins and ends it.
//! 4. Anything else ends it: it is the answer if nothing is above it, and ignored if a directory is.

/// What one layer says about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing.
    Absent,
    /// It is deleted.
    Whiteout,
    /// It is a file, symlink, device, pipe or socket.
    Leaf,
    /// It is a directory that lower ones show through.
    Directory,
    /// It is a directory that hides lower ones.
    OpaqueDirectory,
}

/// What the overlay says about a name, made of what the layers gave along with their answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Merged<T> {
    /// No layer shows it.
    Absent,
    /// One layer's file of any type save directory.
    Leaf(T),
    /// The directories to be merged: the topmost, and those below it.
    Directory(T, Vec<T>),
}

impl<T> Merged<Option<T>> {
    /// Takes what has nothing to it as absent.
    pub(crate) fn known(self) -> Merged<T> {
        match self {
            Self::Leaf(Some(what)) => Merged::Leaf(what),
            Self::Directory(Some(top), below) => {
                Merged::Directory(top, below.into_iter().flatten().collect())
            }
            Self::Absent | Self::Leaf(None) | Self::Directory(None, _) => Merged::Absent,
        }
    }
}

/// Merges answers that come from the topmost layer downwards. None is taken that cannot matter, so
/// an iterator that asks the layers asks no more than needed.
pub(crate) fn merge<T, E>(
    answers: impl IntoIterator<Item = Result<(Found, T), E>>,
) -> Result<Merged<T>, E> {
    let mut top = None;
    let mut below = Vec::new();
    for answer in answers {
        let (found, what) = answer?;
        match found {
            Found::Absent => continue,
            Found::Whiteout => break,
            Found::Leaf if top.is_none() => return Ok(Merged::Leaf(what)),
            Found::Leaf => break,
            Found::Directory | Found::OpaqueDirectory => match top {
                None => top = Some(what),
                Some(_) => below.push(what),
            },
        }
        if found == Found::OpaqueDirectory {
            break;
        }
    }
    Ok(top.map_or(Merged::Absent, |top| Merged::Directory(top, below)))
}

#[cfg(test)]
mod tests {
    use super::Found::{Absent, Directory, Leaf, OpaqueDirectory, Whiteout};
    use super::*;

    /// What the answers become, and how many of them were taken.
    fn merged(answers: &[Found]) -> (Merged<usize>, usize) {
        let mut taken = 0;
        let layers = answers.iter().enumerate().map(|(layer, found)| {
            taken += 1;
            Ok::<_, ()>((*found, layer))
        });
        let merged = merge(layers).unwrap();
        (merged, taken)
    }

    /// SEMANTICS O1, O2
    #[test]
    fn no_layer_is_asked_whose_answer_cannot_matter() {
        assert_eq!(merged(&[Absent, Leaf, Leaf]), (Merged::Leaf(1), 2));
        assert_eq!(merged(&[Whiteout, Directory]), (Merged::Absent, 1));
        assert_eq!(merged(&[Directory, Leaf, Directory]), (Merged::Directory(0, vec![]), 2));
        assert_eq!(merged(&[Directory, Whiteout, Leaf]), (Merged::Directory(0, vec![]), 2));
        assert_eq!(
            merged(&[Directory, Absent, OpaqueDirectory, Directory]),
            (Merged::Directory(0, vec![2]), 3)
        );
        assert_eq!(merged(&[Absent, Absent]), (Merged::Absent, 2));
    }
}
