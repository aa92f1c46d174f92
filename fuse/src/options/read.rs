//! How lists and values are written.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::IdRange;

/// Splits a list of options at each comma that follows no backslash and lies in no quotes. Backslashes stay
/// in values, since a list of directories has its own; quotes around a value go.
pub(super) fn split_options(list: &OsStr) -> Result<Vec<(String, Option<OsString>)>, String> {
    let mut options = vec![Vec::new()];
    let (mut bytes, mut quoted, mut before) = (list.as_bytes().iter(), false, b',');
    while let Some(byte) = bytes.next() {
        match (byte, options.last_mut()) {
            (b',', _) if !quoted => options.push(Vec::new()),
            (b'"', _) if quoted || before == b'=' => quoted = !quoted,
            (b'\\', Some(option)) => {
                let next = bytes.next().ok_or("the list of options ends in a backslash")?;
                option.extend([b'\\', *next]);
            }
            (byte, Some(option)) => option.push(*byte),
            (_, None) => {}
        }
        before = *byte;
    }
    if quoted {
        return Err("a quotation mark in the list of options is not closed".to_owned());
    }
    let given = options.into_iter().filter(|option| !option.is_empty());
    Ok(given.map(|option| name_and_value(&option)).collect())
}

fn name_and_value(option: &[u8]) -> (String, Option<OsString>) {
    let mut parts = option.splitn(2, |byte| *byte == b'=');
    let name = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    (name, parts.next().map(|value| OsString::from_vec(value.to_vec())))
}

/// Splits a list of lower directories, the topmost first, at each `:`. A backslash takes the special
/// meaning from what follows it, as in the kernel.
///
/// # Errors
/// Says what is wrong with the list.
pub fn split_lowers(list: &OsStr) -> Result<Vec<PathBuf>, String> {
    let mut lowers = vec![Vec::new()];
    let mut bytes = list.as_bytes().iter();
    while let Some(byte) = bytes.next() {
        match (byte, lowers.last_mut()) {
            (b'\\', Some(lower)) => {
                lower.push(
                    *bytes.next().ok_or("the list of lower directories ends in a backslash")?,
                );
            }
            (b':', _) => lowers.push(Vec::new()),
            (byte, Some(lower)) => lower.push(*byte),
            (_, None) => {}
        }
    }
    if lowers.iter().any(Vec::is_empty) {
        return Err(
            "a name in the list of lower directories is empty; `::` (directories that hold data \
             only) is not supported"
                .to_owned(),
        );
    }
    Ok(lowers.into_iter().map(|lower| OsString::from_vec(lower).into()).collect())
}

/// Reads one directory. A backslash takes the special meaning from what follows it.
pub(super) fn directory(value: &OsStr) -> Result<PathBuf, String> {
    let (mut path, mut bytes) = (Vec::new(), value.as_bytes().iter());
    while let Some(byte) = bytes.next() {
        path.push(if *byte == b'\\' { *bytes.next().unwrap_or(byte) } else { *byte });
    }
    if path.is_empty() {
        return Err("the name of the directory is empty".to_owned());
    }
    Ok(OsString::from_vec(path).into())
}

/// Reads text that the mount table shows, where commas separate.
pub(super) fn name(value: &OsStr) -> Result<String, String> {
    let text = text(value)?;
    if text.is_empty() || text.contains([',', '\n']) {
        return Err("give a name without commas".to_owned());
    }
    Ok(text.to_owned())
}

/// Reads a value that is one of a few words, and returns what the word stands for.
pub(super) fn one_of<T: Copy>(value: &OsStr, words: &[(&str, T)]) -> Result<T, String> {
    let found = words.iter().find(|(word, _)| value == *word);
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        format!("give {}", words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", or "))
    })
}

/// Reads a number.
pub(super) fn number<T: FromStr>(value: &OsStr) -> Result<T, String> {
    text(value)?.parse().map_err(|_| "give a number".to_owned())
}

/// Reads a time in seconds.
pub(super) fn seconds(value: &OsStr) -> Result<Duration, String> {
    Duration::try_from_secs_f64(number(value)?)
        .map_err(|_| "give a number of seconds, from zero upwards".to_owned())
}

/// Reads ranges of ids: on disk, as shown, and how many, all separated by colons.
pub(super) fn id_ranges(value: &OsStr) -> Result<Vec<IdRange>, String> {
    let wrong = || "give DISK:SHOWN:COUNT, ranges that fit into 32 bits, separated by colons";
    let numbers: Result<Vec<u32>, _> = text(value)?.split(':').map(str::parse).collect();
    let numbers = numbers.map_err(|_| wrong())?;
    let ranges = numbers.chunks(3).map(|range| match *range {
        [disk, shown, length] if length > 0 && fits(disk, length) && fits(shown, length) => {
            Ok(IdRange { disk, shown, length })
        }
        _ => Err(wrong().to_owned()),
    });
    ranges.collect()
}

/// The last id of all stands for none.
fn fits(first: u32, length: u32) -> bool {
    u32::MAX - first >= length
}

/// Returns a value as text.
pub(super) fn text(value: &OsStr) -> Result<&str, String> {
    value.to_str().ok_or_else(|| "the value is no text in UTF-8".to_owned())
}
