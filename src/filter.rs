//! stub
use crate::snapshot::Info;
use std::collections::BTreeMap;
pub(crate) struct Filter;
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub(crate) struct ParseError;
pub(crate) struct SnapshotFields<'a> {
    pub(crate) labels: &'a BTreeMap<String, String>,
}
impl<'a> SnapshotFields<'a> {
    pub(crate) fn of(info: &'a Info) -> Self {
        Self { labels: &info.labels }
    }
}
impl Filter {
    pub(crate) fn parse(_: &[String]) -> Result<Self, ParseError> {
        Ok(Self)
    }
    pub(crate) fn matches(&self, _: &SnapshotFields<'_>) -> bool {
        true
    }
}
