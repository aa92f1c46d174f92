//! The scenarios: what lies in the layers, what is done in the mount, and the rows that come of it.
//!
//! Those that delete much come last: an ext4 without a journal avoids inodes that were freed a moment
//! ago, which would make creating files slow for whoever is next.

mod big;
mod names;

use super::material::Material;
use super::row::Row;
use super::turn::Turn;

/// No client of any row calls fsync, and everything dirty is written back before each turn.
pub(super) const NO_FSYNC: &str = "none; nobody copies up";
/// As [`NO_FSYNC`], and copying up is left to each subject.
const OWN_WAY: &str = "none by the client; at copy-up each in its own way: kernel and Overstream sync, the peers do not";
/// As [`NO_FSYNC`], and no subject syncs either.
const VOLATILE: &str = "none: all are mounted with `volatile`";

/// Steps that one mount goes through.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) rows: Vec<Row>,
    /// Who syncs what.
    pub(super) fsync: &'static str,
    /// What lies in the lowest layer.
    pub(super) lower: Material,
    /// What lies in the upper before the mount.
    pub(super) upper: Material,
    /// Whether the page cache and all names and inodes are dropped before the mount.
    pub(super) cold: bool,
    /// Whether it makes sense in a read-only mount.
    pub(super) reads_only: bool,
    /// Whether all are mounted with `volatile`.
    pub(super) volatile: bool,
    /// Whether each turn gets a lower of its own, since a faulty subject could change it.
    pub(super) own_lower: bool,
    /// Whether subjects with passthrough are measured without, too.
    pub(super) plain_too: bool,
    pub(super) run: fn(&mut Turn<'_>) -> Result<(), String>,
}

impl Scenario {
    /// Whether what is in its layers is big rather than many.
    pub(super) fn is_big(&self) -> bool {
        [self.lower, self.upper].into_iter().any(|material| {
            matches!(material, Material::Big(_) | Material::BigAndTree(..) | Material::Hole(_))
        })
    }
}

const BASE: Scenario = Scenario {
    name: "",
    rows: Vec::new(),
    fsync: NO_FSYNC,
    lower: Material::Nothing,
    upper: Material::Nothing,
    cold: false,
    reads_only: false,
    volatile: false,
    own_lower: false,
    plain_too: false,
    run: |_| Ok(()),
};

/// All scenarios, in the order in which they run.
pub(super) fn all() -> Vec<Scenario> {
    let mut all = names::reading();
    all.extend(big::all());
    all.extend(names::writing());
    all
}

/// All those that `only` asks for by a name of a scenario or of one of its rows, or by its beginning up
/// to a dash; all if it is empty.
///
/// # Errors
/// Says which there are.
pub(super) fn chosen(only: &[String]) -> Result<Vec<Scenario>, String> {
    let names = |word: &str, name: &str| name == word || name.starts_with(&format!("{word}-"));
    let fits = |word: &str, scenario: &Scenario| {
        names(word, scenario.name) || scenario.rows.iter().any(|row| names(word, row.id))
    };
    if let Some(word) = only.iter().find(|word| !all().iter().any(|one| fits(word, one))) {
        return Err(format!("no row {word:?}; --list shows them all"));
    }
    let wanted = |scenario: &Scenario| only.iter().any(|word| fits(word, scenario));
    Ok(all().into_iter().filter(|one| only.is_empty() || wanted(one)).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_row_has_a_name_of_its_own_and_can_be_asked_for() {
        let rows: Vec<&str> = all().iter().flat_map(|one| &one.rows).map(|row| row.id).collect();
        assert_eq!(rows.iter().collect::<BTreeSet<_>>().len(), rows.len());
        for row in rows {
            let found = chosen(&[row.to_owned()]).unwrap();
            assert!(found.iter().any(|one| one.rows.iter().any(|other| other.id == row)), "{row}");
        }
        assert!(chosen(&["no-such-row".to_owned()]).is_err());
        assert_eq!(chosen(&[]).unwrap().len(), all().len());
    }
}
