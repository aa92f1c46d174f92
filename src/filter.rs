//! The filters of a List call: which snapshots a client asks for.
//!
//! Decides which snapshots match. Several filters are alternatives, the selectors of one filter must
//! all hold, and no filter or an empty one matches everything. What a field is called, when it is
//! present and what a missing one compares to are containerd's rules; `parse` holds its grammar and
//! `re2` its regular expressions.

mod cursor;
mod parse;
mod re2;

use regex::{Regex, RegexBuilder};

use crate::snapshot::{Info, Labels};
use parse::{Operator, Reason, Selector, Test};

/// Longest regular expression that is looked at; longer ones match nothing.
const MAX_PATTERN: usize = 64 << 10;
/// Memory of one compiled expression; larger ones match nothing.
const MAX_REGEX: usize = 1 << 20;
/// Memory of all compiled expressions of a call, shared out evenly.
const MAX_REGEXES: usize = 32 << 20;
/// Characters of a client's text that an error repeats.
const EXCERPT: usize = 120;

/// Says of a snapshot whether a client asked for it.
#[derive(Debug)]
pub(crate) struct Filter {
    any: Vec<Vec<Condition>>,
}

/// A text that is no filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("filter \"{filter}\": at byte {at}: {reason}")]
pub(crate) struct ParseError {
    filter: String,
    at: usize,
    reason: Reason,
}

/// The fields of a snapshot that filters know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SnapshotFields<'a> {
    name: &'a str,
    parent: &'a str,
    kind: &'static str,
    labels: &'a Labels,
}

#[derive(Debug)]
struct Condition {
    field: Field,
    check: Check,
}

#[derive(Debug)]
enum Field {
    Name,
    Parent,
    Kind,
    Label(String),
    Unknown,
}

#[derive(Debug)]
enum Check {
    Present,
    Equal(Vec<u8>),
    Differs(Vec<u8>),
    Matches(Regex),
    Never,
}

impl Filter {
    /// Reads the filters of a call.
    pub(crate) fn parse(filters: &[String]) -> Result<Self, ParseError> {
        let parsed = filters.iter().map(|text| read(text)).collect::<Result<Vec<_>, _>>()?;
        let regexes = parsed.iter().flatten().filter(|selector| selector.is_regex()).count();
        let limit = (MAX_REGEXES / regexes.max(1)).min(MAX_REGEX);
        let compile = |all: Vec<Selector>| {
            all.into_iter().map(|selector| Condition::new(selector, limit)).collect()
        };
        let mut any: Vec<Vec<Condition>> = parsed.into_iter().map(compile).collect();
        if any.is_empty() {
            any.push(Vec::new());
        }
        Ok(Self { any })
    }

    /// True if at least one of the filters holds.
    pub(crate) fn matches(&self, snapshot: &SnapshotFields<'_>) -> bool {
        self.any.iter().any(|all| all.iter().all(|condition| condition.holds(snapshot)))
    }
}

/// Names of the fields that filters ask for and no snapshot has.
pub(crate) fn unknown_fields(filters: &[String]) -> Vec<String> {
    let selectors = filters.iter().filter_map(|text| parse::selectors(text).ok()).flatten();
    selectors
        .filter(|selector| matches!(Field::new(&selector.path), Field::Unknown))
        .map(|selector| String::from_utf8_lossy(&selector.path.join(&b'.')).into_owned())
        .collect()
}

impl<'a> SnapshotFields<'a> {
    /// The fields of a stored snapshot.
    pub(crate) fn of(info: &'a Info) -> Self {
        Self {
            name: &info.name,
            parent: &info.parent,
            kind: info.kind.as_str(),
            labels: &info.labels,
        }
    }

    fn get(&self, field: &Field) -> Option<&'a str> {
        match field {
            Field::Name => Some(self.name),
            Field::Parent => Some(self.parent),
            Field::Kind => Some(self.kind),
            Field::Label(key) => self.labels.get(key).map(String::as_str),
            Field::Unknown => None,
        }
    }
}

impl Selector {
    fn is_regex(&self) -> bool {
        matches!(self.test, Test::Compare(Operator::Matches, _))
    }
}

impl Condition {
    fn new(selector: Selector, limit: usize) -> Self {
        let check = match selector.test {
            Test::Present => Check::Present,
            Test::Compare(Operator::Equal, value) => Check::Equal(value),
            Test::Compare(Operator::Differs, value) => Check::Differs(value),
            Test::Compare(Operator::Matches, value) => {
                regex(&value, limit).map_or(Check::Never, Check::Matches)
            }
        };
        Self { field: Field::new(&selector.path), check }
    }

    fn holds(&self, snapshot: &SnapshotFields<'_>) -> bool {
        let field = snapshot.get(&self.field);
        let text = field.unwrap_or_default();
        match &self.check {
            Check::Present => field.is_some(),
            Check::Equal(value) => field.is_some() && text.as_bytes() == value,
            Check::Differs(value) => text.as_bytes() != value,
            Check::Matches(regex) => regex.is_match(text),
            Check::Never => false,
        }
    }
}

impl Field {
    fn new(path: &[Vec<u8>]) -> Self {
        match path.split_first().map(|(first, rest)| (first.as_slice(), rest)) {
            Some((b"name", _)) => Self::Name,
            Some((b"parent", _)) => Self::Parent,
            Some((b"kind", _)) => Self::Kind,
            Some((b"labels", rest)) => {
                String::from_utf8(rest.join(&b'.')).map_or(Self::Unknown, Self::Label)
            }
            _ => Self::Unknown,
        }
    }
}

fn read(text: &str) -> Result<Vec<Selector>, ParseError> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    parse::selectors(text).map_err(|fault| ParseError {
        filter: excerpt(text),
        at: fault.at,
        reason: fault.reason,
    })
}

/// Compiles an expression in RE2 syntax, if it is one.
fn regex(value: &[u8], limit: usize) -> Option<Regex> {
    let pattern = std::str::from_utf8(value).ok().filter(|text| text.len() <= MAX_PATTERN)?;
    let translated = re2::translate(pattern)?;
    RegexBuilder::new(&translated).size_limit(limit).dfa_size_limit(limit).build().ok()
}

/// The beginning of a text that may be too long to repeat.
fn excerpt(text: &str) -> String {
    match text.char_indices().nth(EXCERPT) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// Parses a filter and matches it against snapshots with and without a parent and labels.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(text: &str) {
    if let Ok(filter) = Filter::parse(&[text.to_owned()]) {
        let labels = [("containerd.io/gc.root", "check-walk"), ("", "empty"), ("l", "é\n1")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        for (parent, labels) in [("", Labels::new()), ("p", labels)] {
            let snapshot =
                SnapshotFields { name: "a_np ſ", parent, kind: "active", labels: &labels };
            filter.matches(&snapshot);
        }
    }
}

#[cfg(test)]
mod tests;
