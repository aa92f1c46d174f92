//! How answers look: aligned tables for people, JSON for programs.

use comfy_table::{ContentArrangement, Table, presets};
use humansize::{BINARY, format_size};
use serde_json::{Value, json};

use crate::proto::{control as wire, types};

type Shown = Result<(), String>;

pub(super) fn snapshots(snapshots: &[wire::Snapshot], as_json: bool) -> Shown {
    if as_json {
        return print_json(&snapshots.iter().map(snapshot_json).collect());
    }
    if snapshots.is_empty() {
        return Ok(());
    }
    let mut table = table(&["ID", "SNAPSHOTTER", "KEY", "KIND", "STORE", "UPPER"]);
    for snapshot in snapshots {
        let upper = if snapshot.upper.is_empty() {
            format!("({})", snapshot.placement)
        } else {
            snapshot.upper.clone()
        };
        table.add_row([
            snapshot.id.to_string(),
            plain(&snapshot.snapshotter),
            plain(&shorten(&snapshot.key)),
            snapshot.kind.clone(),
            snapshot.store.clone(),
            upper,
        ]);
    }
    print(&lines(&table))
}

/// Says why there is little to see, where a program that reads the table does not see it.
pub(super) fn hint_at_filters(all: bool, unknown: &[String]) {
    match unknown.first() {
        Some(field) => eprintln!(
            "no snapshot has a field {:?}; there are name, parent, kind and labels.\"KEY\"",
            plain(field)
        ),
        None if all => eprintln!("there are no snapshots"),
        None => eprintln!("no snapshot matches"),
    }
}

pub(super) fn explanation(answer: &wire::ExplainResponse, as_json: bool) -> Shown {
    let snapshot = answer.snapshot.clone().unwrap_or_default();
    if as_json {
        return print_json(&json!({
            "snapshot": snapshot_json(&snapshot),
            "mounts": answer.mounts.iter().map(mount_json).collect::<Vec<_>>(),
            "layers": answer.layers,
            "notes": answer.notes,
        }));
    }
    let key = plain(&snapshot.key);
    let mut text = format!("snapshot   {key} ({}, number {})\n", snapshot.kind, snapshot.id);
    text += &format!("store      {} ({})\n", snapshot.store, snapshot.reason);
    let upper =
        if snapshot.upper.is_empty() { snapshot.placement.as_str() } else { &snapshot.upper };
    text += &format!("upper      {upper}\n");
    for (flag, word) in [(snapshot.retain, "retained"), (snapshot.volatile, "volatile")] {
        if flag {
            text += &format!("           {word}\n");
        }
    }
    for (number, layer) in answer.layers.iter().enumerate() {
        text += &format!("{:11}{layer}\n", if number == 0 { "layers" } else { "" });
    }
    for mount in &answer.mounts {
        text += &format!("mount      {}\n", command(mount));
    }
    for note in &answer.notes {
        text += &format!("note       {note}\n");
    }
    print(text.trim_end())
}

/// The mount as one would type it.
fn command(mount: &types::Mount) -> String {
    let options = mount.options.join(",");
    format!("mount -t {} {} TARGET -o {options}", mount.r#type, mount.source)
}

pub(super) fn usage(stores: &[wire::StoreUsage], as_json: bool) -> Shown {
    if as_json {
        return print_json(&stores.iter().map(store_json).collect());
    }
    let headings = [
        "STORE", "TYPE", "LAYERS", "", "UPPERS", "", "VIEWS", "RETAINED", "", "GARBAGE", "FREE",
        "PATH",
    ];
    let mut table = table(&headings);
    for store in stores {
        table.add_row([
            store.name.clone(),
            store.r#type.clone(),
            store.committed_count.to_string(),
            format_size(store.committed_bytes, BINARY),
            store.active_count.to_string(),
            format_size(store.active_bytes, BINARY),
            store.view_count.to_string(),
            store.retained_count.to_string(),
            format_size(store.retained_bytes, BINARY),
            store.garbage_count.to_string(),
            if store.filesystem_bytes == 0 {
                "-".to_owned()
            } else {
                format_size(store.available_bytes, BINARY)
            },
            store.path.clone(),
        ]);
    }
    let mut text = lines(&table);
    for store in stores.iter().filter(|store| !store.problem.is_empty()) {
        text += &format!("\nstore {} {}", store.name, store.problem);
    }
    print(&text)
}

pub(super) fn retained(retained: &[wire::Retained], sizes: bool, as_json: bool) -> Shown {
    if as_json {
        return print_json(&retained.iter().map(retained_json).collect());
    }
    if retained.is_empty() {
        return print("no retained uppers");
    }
    let mut headings = vec!["ID", "NAMESPACE", "NAME", "STORE", "REMOVED"];
    headings.extend(sizes.then_some("SIZE"));
    headings.extend(["TOP LAYER", "UPPER"]);
    let mut table = table(&headings);
    for upper in retained {
        let mut row = vec![
            if upper.id == 0 { "-".to_owned() } else { upper.id.to_string() },
            plain(&upper.namespace),
            plain(&upper.name),
            upper.store.clone(),
            upper.removed_at.map_or_else(|| "-".to_owned(), second),
        ];
        let size =
            || upper.size.map_or_else(|| "-".to_owned(), |size| format_size(size.bytes, BINARY));
        row.extend(sizes.then(size));
        row.push(plain(&shorten(upper.chain.first().map_or("", String::as_str))));
        row.push(upper.upper.clone());
        table.add_row(row);
    }
    print(&lines(&table))
}

/// A time to the second, which is enough for people.
fn second(time: prost_types::Timestamp) -> String {
    prost_types::Timestamp { nanos: 0, ..time }.to_string()
}

fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.to_vec());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// The lines of a table, without the blanks that pad its last column.
fn lines(table: &Table) -> String {
    let padded = format!("{table}");
    padded.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// Digests are told apart by their first twelve digits.
fn shorten(key: &str) -> String {
    match key.split_once("sha256:") {
        Some((before, digest)) if digest.len() == 64 => {
            format!("{before}sha256:{}", digest.get(..12).unwrap_or(digest))
        }
        _ => key.to_owned(),
    }
}

/// Text that clients chose, with what a terminal would obey made visible.
fn plain(text: &str) -> String {
    let shown = |c: char| {
        let escaped = c.is_control().then(|| c.escape_default());
        let plain = escaped.is_none().then_some(c);
        escaped.into_iter().flatten().chain(plain)
    };
    text.chars().flat_map(shown).collect()
}

fn snapshot_json(snapshot: &wire::Snapshot) -> Value {
    let created = snapshot.created_at.unwrap_or_default();
    json!({
        "id": snapshot.id,
        "snapshotter": snapshot.snapshotter,
        "key": snapshot.key,
        "kind": snapshot.kind,
        "parent": snapshot.parent,
        "store": snapshot.store,
        "upper": snapshot.upper,
        "placement": snapshot.placement,
        "reason": snapshot.reason,
        "volatile": snapshot.volatile,
        "retain": snapshot.retain,
        "created": created.to_string(),
        "labels": snapshot.labels,
    })
}

fn mount_json(mount: &types::Mount) -> Value {
    json!({ "type": mount.r#type, "source": mount.source, "options": mount.options })
}

fn store_json(store: &wire::StoreUsage) -> Value {
    json!({
        "name": store.name,
        "type": store.r#type,
        "path": store.path,
        "problem": store.problem,
        "committed": {
            "count": store.committed_count, "bytes": store.committed_bytes, "inodes": store.committed_inodes,
        },
        "active": { "count": store.active_count, "bytes": store.active_bytes, "inodes": store.active_inodes },
        "views": store.view_count,
        "retained": {
            "count": store.retained_count, "bytes": store.retained_bytes, "inodes": store.retained_inodes,
        },
        "garbage": store.garbage_count,
        "filesystem_bytes": store.filesystem_bytes,
        "available_bytes": store.available_bytes,
    })
}

fn retained_json(upper: &wire::Retained) -> Value {
    json!({
        "id": upper.id,
        "snapshotter": upper.snapshotter,
        "namespace": upper.namespace,
        "name": upper.name,
        "store": upper.store,
        "upper": upper.upper,
        "removed": upper.removed_at.map(|time| time.to_string()),
        "bytes": upper.size.map(|size| size.bytes),
        "inodes": upper.size.map(|size| size.inodes),
        "chain": upper.chain,
    })
}

fn print_json(value: &Value) -> Shown {
    print(&format!("{value:#}"))
}

/// A reader that has seen enough, such as `head`, is no error.
fn print(text: &str) -> Shown {
    use std::io::Write;
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.to_string()),
        _ => Ok(()),
    }
}
