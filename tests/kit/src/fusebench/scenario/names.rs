//! Scenarios of names and small files.

use super::{BASE, OWN_WAY, Scenario, VOLATILE};
use crate::fusebench::material::Material;
use crate::fusebench::names::{TOP, entries};
use crate::fusebench::row::{Bar, Metric, Row};
use crate::fusebench::turn::Turn;

const LARGE: usize = 50_000;
const TREE: usize = 20_000;
const CREATED: usize = 5000;
const RENAMED: usize = 10_000;
const FEW: usize = 2000;

/// Those that change nothing, or little.
pub(super) fn reading() -> Vec<Scenario> {
    let mut all = walking();
    all.extend([read(), git()]);
    all
}

fn walking() -> Vec<Scenario> {
    let walk = Scenario {
        name: "walk",
        rows: vec![
            Row::new("walk-first", "walk + lstat of 50k files, new mount, warm disk", Metric::Cpu)
                .bar(Bar::Ratio(1.5)),
            Row::new("walk-again", "walk + lstat of 50k files, again", Metric::Cpu)
                .bar(Bar::Ratio(1.0)),
            Row::new("walk-memory", "daemon memory after walking 50k files", Metric::Bytes)
                .bar(Bar::Most(30.0 * 1024.0 * 1024.0)),
        ],
        lower: Material::Tree(LARGE),
        reads_only: true,
        run: |turn| {
            let count = entries(turn.count(LARGE)).to_string();
            turn.measure("walk-first", &["walk", &count])?;
            turn.measure("walk-again", &["walk", &count])?;
            turn.resident("walk-memory");
            Ok(())
        },
        ..BASE
    };
    let walk_cold = Scenario {
        name: "walk-cold",
        rows: vec![Row::new(
            "walk-cold",
            "walk + lstat of 50k files, new mount, cold disk",
            Metric::Cpu,
        )],
        cold: true,
        run: |turn| {
            let count = entries(turn.count(LARGE)).to_string();
            turn.measure("walk-cold", &["walk", &count]).map(drop)
        },
        ..walk.clone()
    };
    vec![walk, walk_cold]
}

fn read() -> Scenario {
    Scenario {
        name: "read",
        rows: vec![
            Row::new(
                "read-first",
                "open+read+close of 20k small files, new mount, warm disk",
                Metric::Cpu,
            ),
            Row::new("read-again", "open+read+close of 20k small files, again", Metric::Cpu)
                .bar(Bar::Ratio(1.5)),
        ],
        lower: Material::Tree(TREE),
        reads_only: true,
        run: |turn| {
            let count = turn.count(TREE).to_string();
            turn.measure("read-first", &["read", &count])?;
            turn.measure("read-again", &["read", &count]).map(drop)
        },
        ..BASE
    }
}

fn git() -> Scenario {
    Scenario {
        name: "git",
        rows: vec![
            Row::new("git-cold", "git status of 20k files, new mount, cold disk", Metric::Wall)
                .bar(Bar::Ratio(1.5)),
            Row::new("git-warm", "git status of 20k files, again", Metric::Wall)
                .bar(Bar::Ratio(1.0)),
        ],
        fsync: OWN_WAY,
        lower: Material::Repository(TREE),
        cold: true,
        run: |turn| {
            let status = ["program", "git", "status", "--porcelain"];
            turn.measure("git-cold", &status)?;
            turn.sync();
            turn.measure("git-warm", &status).map(drop)
        },
        ..BASE
    }
}

/// Those that make, move and delete many files; the ones that delete most come last.
pub(super) fn writing() -> Vec<Scenario> {
    let mut all = making();
    all.extend(both());
    all.extend(unlinking());
    all.extend(removing());
    all
}

fn making() -> Vec<Scenario> {
    let create = Scenario {
        name: "create",
        rows: vec![
            Row::new("create", "create + write 4 KiB, 5000 in one directory", Metric::Cpu)
                .bar(Bar::Ratio(5.0)),
        ],
        run: |turn| one(turn, "create", CREATED),
        ..BASE
    };
    let untar = Scenario {
        name: "untar",
        rows: vec![Row::new("untar", "untar of 20k files", Metric::Wall).bar(Bar::Ratio(2.0))],
        run: |turn| {
            let archive = turn.archive(TREE)?;
            turn.measure("untar", &["program", "tar", "-xf", &archive]).map(drop)
        },
        ..BASE
    };
    let append = Scenario {
        name: "append",
        rows: vec![Row::new(
            "append",
            "append to small lower files (copy-up), 2000, volatile",
            Metric::Cpu,
        )],
        fsync: VOLATILE,
        lower: Material::Flat(FEW),
        volatile: true,
        run: |turn| one(turn, "append", FEW),
        ..BASE
    };
    let append_durable = Scenario {
        name: "append-durable",
        rows: vec![Row::new(
            "append-durable",
            "append to small lower files (copy-up), 2000",
            Metric::Wall,
        )],
        fsync: OWN_WAY,
        volatile: false,
        run: |turn| {
            let count = turn.count(FEW).to_string();
            turn.measure("append-durable", &["append", &count]).map(drop)
        },
        ..append.clone()
    };
    let rename = Scenario {
        name: "rename",
        rows: vec![
            Row::new("rename", "rename in one directory, 10000 of the upper", Metric::Cpu)
                .bar(Bar::Ratio(4.0)),
        ],
        upper: Material::Flat(RENAMED),
        run: |turn| {
            known(turn, RENAMED)?;
            one(turn, "rename", RENAMED)
        },
        ..BASE
    };
    vec![create, untar, append, append_durable, rename]
}

fn unlinking() -> Vec<Scenario> {
    let unlink_lower = Scenario {
        name: "unlink-lower",
        rows: vec![
            Row::new("unlink-lower", "unlink of 2000 lower files", Metric::Cpu)
                .bar(Bar::Ratio(4.0)),
        ],
        lower: Material::Flat(FEW),
        run: |turn| {
            known(turn, FEW)?;
            let count = turn.count(FEW).to_string();
            turn.measure("unlink-lower", &["unlink", &count]).map(drop)
        },
        ..BASE
    };
    let unlink_upper = Scenario {
        name: "unlink-upper",
        rows: vec![
            Row::new("unlink-upper", "unlink of 5000 upper files", Metric::Cpu)
                .bar(Bar::Ratio(4.0)),
        ],
        upper: Material::Flat(CREATED),
        run: |turn| {
            known(turn, CREATED)?;
            let count = turn.count(CREATED).to_string();
            turn.measure("unlink-upper", &["unlink", &count]).map(drop)
        },
        ..BASE
    };
    vec![unlink_lower, unlink_upper]
}

fn removing() -> Vec<Scenario> {
    let rm_lower = Scenario {
        name: "rm-lower",
        rows: vec![
            Row::new("rm-lower", "rm -rf of a lower tree of 20k files", Metric::Wall)
                .bar(Bar::Ratio(3.0)),
        ],
        lower: Material::Tree(TREE),
        run: |turn| turn.measure_above("rm-lower", &["program", "rm", "-rf", TOP]).map(drop),
        ..BASE
    };
    let rm_upper = Scenario {
        name: "rm-upper",
        rows: vec![Row::new("rm-upper", "rm -rf of an upper tree of 20k files", Metric::Wall)],
        lower: Material::Nothing,
        upper: Material::Tree(TREE),
        run: |turn| turn.measure_above("rm-upper", &["program", "rm", "-rf", TOP]).map(drop),
        ..BASE
    };
    vec![rm_lower, rm_upper]
}

/// Creates and unlinks with one process, with two in their own directories, with two in one.
fn both() -> Vec<Scenario> {
    vec![Scenario {
        name: "parallel",
        rows: vec![
            Row::new("parallel-1", "create+unlink, 5000, 1 process", Metric::Wall),
            Row::new(
                "parallel-2",
                "create+unlink, 2 processes x 5000, own directories",
                Metric::Wall,
            ),
            Row::new(
                "parallel-same",
                "create+unlink, 2 processes x 5000, one directory",
                Metric::Wall,
            ),
        ],
        upper: Material::Tree(2000),
        run: |turn| {
            let count = turn.count(CREATED).to_string();
            let work = ["--", "create-unlink", "{}", &count];
            let (one, two) = ("d00/e0000:a", "d00/e0001:b");
            for (row, places) in [
                ("parallel-1", vec![one]),
                ("parallel-2", vec![one, two]),
                ("parallel-same", vec![".:a", ".:b"]),
            ] {
                turn.sync();
                let words: Vec<&str> = ["each"].into_iter().chain(places).chain(work).collect();
                turn.measure(row, &words)?;
            }
            Ok(())
        },
        ..BASE
    }]
}

/// One workload whose name is that of its row.
fn one(turn: &mut Turn<'_>, row: &'static str, full: usize) -> Result<(), String> {
    let count = turn.count(full).to_string();
    turn.measure(row, &[row, &count]).map(drop)
}

/// Has everybody know the files already, so that only the operation itself is measured.
fn known(turn: &Turn<'_>, full: usize) -> Result<(), String> {
    turn.prepare(&["stat", "file-", &turn.count(full).to_string()])
}
