//! Every operation on a name, whatever the layers have there.

use std::collections::BTreeSet;

use nix::errno::Errno::{self, EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EPERM, EXDEV};
use overstream_fuse::Format;
use rustix::fs::RenameFlags;

use super::cases::{Case, Op, agree};
use super::frame::{as_root, full};
use super::states::{LOWERS, Lower, PARENTS, Parent, Spot, UPPERS, Upper};

const ON_ONE_NAME: [Op; 10] = [
    Op::CreateNew,
    Op::Create,
    Op::CreateTruncated,
    Op::Mkdir,
    Op::Symlink,
    Op::Fifo,
    Op::Whiteout,
    Op::Device,
    Op::Unlink,
    Op::Rmdir,
];

/// One of each sort that a rename tells apart, unless everything is to be tested.
const FEW_UPPERS: [Upper; 7] = [
    Upper::Absent,
    Upper::File,
    Upper::Empty,
    Upper::Full,
    Upper::Whiteouts,
    Upper::OpaqueFull,
    Upper::Whiteout,
];
const FEW_LOWERS: [Lower; 4] = [Lower::Absent, Lower::File, Lower::Full, Lower::DeletedFull];
/// What is hidden can make no difference, and the root is a merged directory as others are.
const FEW_HIDDEN: [Lower; 2] = [Lower::Absent, Lower::Full];

/// Every name that can be, in every kind of directory.
fn all_spots() -> Vec<Spot> {
    PARENTS.iter().flat_map(|parent| parent.spots(&UPPERS, &LOWERS)).collect()
}

fn few_spots(parent: Parent) -> Vec<Spot> {
    if full() {
        return parent.spots(&UPPERS, &LOWERS);
    }
    let few = [Parent::Opaque, Parent::Root].contains(&parent);
    let lowers: &[_] = if few { &FEW_HIDDEN } else { &FEW_LOWERS };
    parent.spots(&FEW_UPPERS, lowers)
}

/// Success and these errors.
fn with(errors: &[Errno]) -> BTreeSet<Option<i32>> {
    [None].into_iter().chain(errors.iter().map(|error| Some(*error as i32))).collect()
}

fn one_name(format: Format) {
    let mut cases = Vec::new();
    for op in ON_ONE_NAME {
        for spot in all_spots() {
            cases.extend([false, true].map(|warm| Case { op, spot, to: None, warm }));
        }
    }
    let errors = [EEXIST, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EPERM];
    assert_eq!(agree(format, &cases), with(&errors));
}

/// SEMANTICS W1, W2, W3, W6, W9: making and removing anything anywhere.
#[test]
fn every_operation_on_one_name_agrees_with_the_kernel() {
    as_root(|| one_name(Format::Trusted));
}

/// The same, with marks that need no privilege.
#[test]
fn every_operation_on_one_name_agrees_with_the_kernel_with_user_marks() {
    as_root(|| one_name(Format::User));
}

/// SEMANTICS W1, W7: what is linked is in the upper layer or is copied up; the new name replaces a whiteout.
#[test]
fn every_link_agrees_with_the_kernel() {
    let spot = |parent, upper, lower| Spot { parent, upper, lower };
    let (merged, absent) = (Parent::Merged, Upper::Absent);
    let from = [
        spot(merged, Upper::File, Lower::Absent),
        spot(merged, absent, Lower::File),
        spot(merged, absent, Lower::Symlink),
        spot(merged, absent, Lower::Full),
        spot(Parent::Lower, absent, Lower::File),
    ];
    let to = [
        spot(merged, absent, Lower::Absent),
        spot(merged, Upper::Whiteout, Lower::File),
        spot(merged, Upper::File, Lower::Absent),
        spot(Parent::Pure, absent, Lower::Absent),
        spot(Parent::Lower, absent, Lower::Absent),
    ];
    let mut cases = Vec::new();
    for any in all_spots() {
        let pairs = from.map(|from| (from, any)).into_iter().chain(to.map(|to| (any, to)));
        for (spot, to) in pairs {
            let case = |warm| Case { op: Op::Link, spot, to: Some(to), warm };
            cases.extend([false, true].map(case));
        }
    }
    as_root(move || {
        assert_eq!(agree(Format::Trusted, &cases), with(&[EEXIST, ENOENT, EPERM]));
    });
}

/// Renames from one kind of directory to each kind.
fn renames(from: Parent) {
    let mut errors = BTreeSet::new();
    for to in PARENTS {
        let mut cases = Vec::new();
        for source in few_spots(from) {
            for target in few_spots(to) {
                for flags in [RenameFlags::empty(), RenameFlags::NOREPLACE, RenameFlags::EXCHANGE] {
                    let warm = cases.len() % 2 == 0;
                    let case =
                        |warm| Case { op: Op::Rename(flags), spot: source, to: Some(target), warm };
                    cases.push(case(warm));
                    if full() {
                        cases.push(case(!warm));
                    }
                }
            }
            let target = Spot { parent: to, upper: Upper::Absent, lower: Lower::Absent };
            let op = Op::Rename(RenameFlags::WHITEOUT);
            cases.push(Case { op, spot: source, to: Some(target), warm: false });
        }
        errors.extend(agree(Format::Trusted, &cases));
    }
    let mut expected = with(&[EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EXDEV]);
    if from == Parent::Lower {
        // A lower directory is not moved, whatever it would replace.
        expected.remove(&Some(ENOTEMPTY as i32));
    }
    assert_eq!(errors, expected);
}

/// SEMANTICS W4, W5, W7: every flag, on what there is at the root and in every kind of directory.
#[test]
fn every_rename_from_the_root_agrees_with_the_kernel() {
    as_root(|| renames(Parent::Root));
}

/// The same from a merged directory.
#[test]
fn every_rename_from_a_merged_directory_agrees_with_the_kernel() {
    as_root(|| renames(Parent::Merged));
}

/// The same from a directory that only the upper layer has.
#[test]
fn every_rename_from_a_pure_directory_agrees_with_the_kernel() {
    as_root(|| renames(Parent::Pure));
}

/// The same from an opaque directory.
#[test]
fn every_rename_from_an_opaque_directory_agrees_with_the_kernel() {
    as_root(|| renames(Parent::Opaque));
}

/// The same from a directory that only lower layers have.
#[test]
fn every_rename_from_a_lower_directory_agrees_with_the_kernel() {
    as_root(|| renames(Parent::Lower));
}
