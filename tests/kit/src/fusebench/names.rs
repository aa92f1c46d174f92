//! Names of the files that workloads use: those who make files and those who use them agree here, so
//! that nobody has to list a directory before using what is in it. Pure.

/// Files in one directory of a tree.
pub(super) const PER_DIRECTORY: usize = 100;

/// Directory in which everything lies: the root of the mount is never removed.
pub(super) const TOP: &str = "top";

/// Name of a file in a directory that has no others.
pub(super) fn flat(prefix: &str, number: usize) -> String {
    format!("{prefix}{number:06}")
}

/// Name of a directory of a tree.
pub(super) fn directory(number: usize) -> String {
    format!("d{:02}/e{number:04}", number / 10 % 100)
}

/// Path of a file in a tree.
pub(super) fn in_tree(number: usize) -> String {
    format!("{}/file-{:02}.c", directory(number / PER_DIRECTORY), number % PER_DIRECTORY)
}

/// Entries of a tree of `files` files, all its directories counted.
pub(super) fn entries(files: usize) -> usize {
    let leaves = files.div_ceil(PER_DIRECTORY);
    files + leaves + leaves.div_ceil(10)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_entries_of_a_tree_are_its_files_and_directories() {
        for files in [1, 100, 101, 1234, 50_000] {
            let mut all = BTreeSet::new();
            for number in 0..files {
                let path = in_tree(number);
                let parents = Path::new(&path).ancestors().filter(|path| *path != Path::new(""));
                all.extend(parents.map(Path::to_owned));
            }
            assert_eq!(all.len(), entries(files), "{files}");
        }
    }
}
