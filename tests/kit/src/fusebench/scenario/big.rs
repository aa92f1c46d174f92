//! Scenarios of big files.

use super::{BASE, OWN_WAY, Scenario};
use crate::fusebench::material::{MIB, Material};
use crate::fusebench::row::{Bar, Metric, Row};
use crate::fusebench::turn::Turn;

const GONE: usize = 256;
const COPIED: usize = 600;
const TREE: usize = 20_000;
/// MiB that are read and written in blocks.
const WORKED: usize = 128;

pub(super) fn all() -> Vec<Scenario> {
    let mut all = vec![io(), reader()];
    all.extend(gone());
    all.extend(copied());
    all
}

/// A row of a speed that has to be the kernel's.
const fn speed(id: &'static str, what: &'static str) -> Row {
    Row::new(id, what, Metric::Speed).bar(Bar::Speed(0.9))
}

/// A row of a speed that is only reported.
const fn reported(id: &'static str, what: &'static str) -> Row {
    Row::new(id, what, Metric::Speed)
}

/// Patterns, block sizes, and how often the file's length is read or written.
const PATTERNS: [(&str, usize, usize); 6] = [
    ("read", 4096, 4),
    ("randread", 4096, 4),
    ("read", MIB, 8),
    ("write", 4096, 1),
    ("randwrite", 4096, 1),
    ("write", MIB, 2),
];

fn patterns(turn: &mut Turn<'_>, rows: [&'static str; 6]) -> Result<(), String> {
    // The second copy that a FUSE file system without passthrough keeps is warm, too.
    let blocks = (turn.mebibytes(WORKED)).to_string();
    turn.prepare(&["io", "read", "big", &MIB.to_string(), &blocks])?;
    for (row, (pattern, block, times)) in rows.into_iter().zip(PATTERNS) {
        let count = turn.mebibytes(WORKED) * MIB / block * times;
        turn.sync();
        turn.measure(row, &["io", pattern, "big", &block.to_string(), &count.to_string()])?;
    }
    Ok(())
}

fn io() -> Scenario {
    Scenario {
        name: "io",
        rows: vec![
            speed("io-read-4k", "read an upper file of 128 MiB, 4 KiB blocks"),
            speed("io-randread-4k", "read it at random, 4 KiB blocks"),
            speed("io-read-1m", "read it, 1 MiB blocks"),
            speed("io-write-4k", "overwrite it, 4 KiB blocks"),
            speed("io-randwrite-4k", "overwrite it at random, 4 KiB blocks"),
            speed("io-write-1m", "overwrite it, 1 MiB blocks"),
        ],
        upper: Material::Big(WORKED),
        plain_too: true,
        run: |turn| {
            patterns(
                turn,
                [
                    "io-read-4k",
                    "io-randread-4k",
                    "io-read-1m",
                    "io-write-4k",
                    "io-randwrite-4k",
                    "io-write-1m",
                ],
            )
        },
        ..BASE
    }
}

fn reader() -> Scenario {
    Scenario {
        name: "reader",
        rows: vec![
            reported("reader-read-4k", "lower file of 128 MiB held open by a reader: read, 4 KiB"),
            reported("reader-randread-4k", "the same, read at random, 4 KiB"),
            reported("reader-read-1m", "the same, read, 1 MiB"),
            reported("reader-write-4k", "the same, copied up, overwrite, 4 KiB"),
            reported("reader-randwrite-4k", "the same, overwrite at random, 4 KiB"),
            reported("reader-write-1m", "the same, overwrite, 1 MiB"),
        ],
        fsync: OWN_WAY,
        lower: Material::Big(WORKED),
        own_lower: true,
        run: |turn| {
            let holder = turn.hold("big")?;
            // Copying up is not part of any of the rows.
            turn.prepare(&["io", "write", "big", "1", "1"])?;
            let done = patterns(
                turn,
                [
                    "reader-read-4k",
                    "reader-randread-4k",
                    "reader-read-1m",
                    "reader-write-4k",
                    "reader-randwrite-4k",
                    "reader-write-1m",
                ],
            );
            drop(holder);
            done
        },
        ..BASE
    }
}

fn gone() -> Vec<Scenario> {
    const MOST: Bar = Bar::Most(5e-3);
    let unlink = Scenario {
        name: "unlink-big",
        rows: vec![
            Row::new("unlink-big", "unlink of a lower file of 256 MiB", Metric::Wall).bar(MOST),
        ],
        fsync: OWN_WAY,
        lower: Material::Big(GONE),
        run: |turn| turn.measure("unlink-big", &["remove", "big"]).map(drop),
        ..BASE
    };
    let truncate = Scenario {
        name: "truncate-big",
        rows: vec![
            Row::new("truncate-big", "open with O_TRUNC of a lower file of 256 MiB", Metric::Wall)
                .bar(MOST),
        ],
        run: |turn| turn.measure("truncate-big", &["truncate", "big"]).map(drop),
        ..unlink.clone()
    };
    vec![unlink, truncate]
}

fn copied() -> Vec<Scenario> {
    let delay = Scenario {
        name: "delay",
        rows: vec![
            Row::new("delay-copy", "copy-up of 600 MiB, with lookups beside it", Metric::Wall),
            Row::new("delay-p99", "lookups of other names meanwhile, p99", Metric::Seconds)
                .bar(Bar::Ratio(2.0)),
            Row::new("delay-max", "lookups of other names meanwhile, maximum", Metric::Seconds)
                .bar(Bar::Most(0.1)),
        ],
        fsync: OWN_WAY,
        lower: Material::BigAndTree(COPIED, TREE),
        run: |turn| {
            let count = turn.count(TREE).to_string();
            let result = turn.measure("delay-copy", &["delay", "big", &count])?;
            for (row, key) in [("delay-p99", "p99"), ("delay-max", "max")] {
                turn.value(row, result[key].as_f64().ok_or("no delay")?);
            }
            Ok(())
        },
        ..BASE
    };
    let hole = Scenario {
        name: "hole",
        rows: vec![
            Row::new("hole", "bytes allocated by the copy-up of a hole of 64 MiB", Metric::Bytes)
                .bar(Bar::Ratio(1.0)),
        ],
        fsync: OWN_WAY,
        lower: Material::Hole(64),
        run: |turn| {
            turn.prepare(&["io", "write", "hole", "1", "1"])?;
            let bytes = turn.allocated("hole")?;
            turn.value("hole", bytes);
            Ok(())
        },
        ..BASE
    };
    vec![delay, hole]
}
