//! Which store a snapshot's upper goes to: the rules, pure.
//!
//! Extraction keys and views always use the layer store; their labels come from the image, so no label
//! of theirs decides anything. For the rest the first rule that matches decides, and labels that the
//! configuration allows override it. A label can name a store, never a path.

pub(crate) mod identity;
pub(crate) mod stores;
pub(crate) mod volume;

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{Config, LabelOverride, Rule, Store, StoreKind, check_mode};
use crate::error::{Error, Result};
use crate::metastore::ROOT_STORE;
use crate::snapshot::{KeyHint, LABEL_PREFIX, Labels};

/// Prefix of our own labels, after containerd's.
const OURS: &str = "overstream.";

/// A snapshot that needs a place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    /// Plugin name.
    pub(crate) snapshotter: &'a str,
    /// containerd's namespace; empty if unknown.
    pub(crate) namespace: &'a str,
    /// What its key says.
    pub(crate) hint: KeyHint<'a>,
    /// Its labels.
    pub(crate) labels: &'a Labels,
}

/// What the rules say about one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    /// Where its upper goes.
    pub(crate) target: Target,
    /// Remove keeps the upper; nothing where neither rule nor label says.
    retain: Option<bool>,
    /// A retained upper to take back.
    pub(crate) resume: Resume,
    /// The upper is never synced.
    pub(crate) volatile: bool,
    /// What decided, for people.
    pub(crate) reason: String,
}

impl Decision {
    /// What is placed in the layer store without anybody having asked for more.
    pub(crate) fn plain(reason: &str) -> Self {
        Self {
            target: Target::Store(ROOT_STORE.to_owned()),
            retain: None,
            resume: Resume::Fresh,
            volatile: false,
            reason: reason.to_owned(),
        }
    }

    /// Remove keeps the upper: where that is said, and on volumes, which outlive their containers.
    pub(crate) fn retains(&self) -> bool {
        self.retain.unwrap_or(matches!(self.target, Target::Volume { .. }))
    }

    /// Remove keeps an upper that was taken back: unless said otherwise, as it was kept before.
    pub(crate) fn retains_resumed(&self) -> bool {
        self.retain.unwrap_or(true)
    }
}

/// Where an upper goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The layer store, or a store of type `dir`.
    Store(String),
    /// Whichever volume the rule of this position finds for the container.
    Volume {
        /// Name of the store.
        store: String,
        /// Index of the rule in the configuration.
        rule: usize,
    },
}

/// Whether Prepare takes back a retained upper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resume {
    /// No: a new upper.
    Fresh,
    /// The one of the same name, if there is one.
    IfRetained,
    /// The one of this name; it is an error if there is none.
    Required(String),
}

/// The part of the configuration that places snapshots.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) rules: Vec<Rule>,
    pub(crate) stores: BTreeMap<String, Store>,
    allowed: BTreeSet<LabelOverride>,
}

impl Policy {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            rules: config.rules.clone(),
            stores: config.stores.clone(),
            allowed: config.allowed_labels.clone(),
        }
    }

    /// Decides for a snapshot that is neither an extraction nor a view.
    pub(crate) fn decide(&self, request: &Request<'_>) -> Result<Decision> {
        self.decide_from(0, request, true)
    }

    /// Decides as if the rule at `rule` did not exist and none below it led to a volume.
    pub(crate) fn decide_without_volume(
        &self,
        rule: usize,
        request: &Request<'_>,
    ) -> Result<Decision> {
        self.decide_from(rule + 1, request, false)
    }

    fn decide_from(&self, first: usize, request: &Request<'_>, volumes: bool) -> Result<Decision> {
        let overrides = Overrides::read(request.labels, &self.allowed)?;
        let rule =
            self.rules.iter().enumerate().skip(first).find(|(_, rule)| {
                rule_matches(rule, request) && (volumes || !self.is_volume(rule))
            });
        let mut decision = match rule {
            None => Decision::plain("default: no rule matches"),
            Some((index, rule)) => self.decision_of(index, rule),
        };
        overrides.apply(self, &mut decision)?;
        Ok(decision)
    }

    fn is_volume(&self, rule: &Rule) -> bool {
        rule.store
            .as_ref()
            .and_then(|name| self.stores.get(name))
            .is_some_and(|store| matches!(store.kind, StoreKind::Volume(_)))
    }

    fn decision_of(&self, index: usize, rule: &Rule) -> Decision {
        let volume = self.is_volume(rule);
        let store = rule.store.clone().unwrap_or_else(|| ROOT_STORE.to_owned());
        let target =
            if volume { Target::Volume { store, rule: index } } else { Target::Store(store) };
        Decision {
            target,
            retain: rule.retain,
            resume: if rule.resume { Resume::IfRetained } else { Resume::Fresh },
            volatile: rule.volatile,
            reason: format!("rule {}", rule.number),
        }
    }

    /// True if labels may say whose container a snapshot is.
    pub(crate) fn trusts_identity_labels(&self) -> bool {
        self.allowed.contains(&LabelOverride::Identity)
    }
}

fn rule_matches(rule: &Rule, request: &Request<'_>) -> bool {
    rule.namespace.as_ref().is_none_or(|namespace| namespace == request.namespace)
        && rule.snapshotter.as_ref().is_none_or(|name| name == request.snapshotter)
        && rule.key.as_ref().is_none_or(|key| key.is_match(request.hint.user_key))
        && rule.labels.iter().all(|(key, value)| request.labels.get(key) == Some(value))
}

/// What our own labels on a snapshot ask for.
#[derive(Debug, Default)]
struct Overrides<'a> {
    store: Option<&'a str>,
    retain: Option<bool>,
    resume: Option<&'a str>,
    volatile: Option<bool>,
}

impl<'a> Overrides<'a> {
    /// Refuses labels that the configuration does not allow, and words that mean nothing.
    fn read(labels: &'a Labels, allowed: &BTreeSet<LabelOverride>) -> Result<Self> {
        let mut overrides = Self::default();
        for (label, value) in labels {
            let Some(word) =
                label.strip_prefix(LABEL_PREFIX).and_then(|rest| rest.strip_prefix(OURS))
            else {
                continue;
            };
            let bad = |problem: String| {
                Error::InvalidArgument(format!("label {label}={value:?}: {problem}"))
            };
            let kind = match word {
                "store" => {
                    overrides.store = Some(value);
                    LabelOverride::Store
                }
                "mode" => {
                    check_mode(value).map_err(bad)?;
                    LabelOverride::Mode
                }
                "retain" => {
                    overrides.retain = Some(parse_bool(value).map_err(bad)?);
                    LabelOverride::Retain
                }
                "resume" => {
                    overrides.resume = Some(value);
                    LabelOverride::Resume
                }
                "volatile" => {
                    overrides.volatile = Some(parse_bool(value).map_err(bad)?);
                    LabelOverride::Volatile
                }
                word if identity::is_label(word) => LabelOverride::Identity,
                _ => {
                    return Err(
                        bad("there is no such label; see docs/CONFIGURATION.md".to_owned()),
                    );
                }
            };
            if !allowed.contains(&kind) {
                return Err(bad(format!(
                    "the configuration does not allow this label; add {:?} to `allow` under [labels]",
                    kind.as_str()
                )));
            }
        }
        Ok(overrides)
    }

    fn apply(&self, policy: &Policy, decision: &mut Decision) -> Result<()> {
        if let Some(name) = self.store {
            decision.target = Target::Store(policy.labelled_store(name)?);
            decision.reason = "label overstream.store".to_owned();
        }
        decision.retain = self.retain.or(decision.retain);
        if let Some(name) = self.resume {
            decision.resume = Resume::Required(name.to_owned());
        }
        if let Some(volatile) = self.volatile {
            decision.volatile = volatile;
        }
        let lasting = decision.retains()
            || decision.resume != Resume::Fresh
            || matches!(decision.target, Target::Volume { .. });
        if decision.volatile && lasting {
            return Err(Error::InvalidArgument(
                "a volatile upper may be lost in a crash; it cannot be retained, resumed or lie on a volume"
                    .to_owned(),
            ));
        }
        Ok(())
    }
}

impl Policy {
    fn labelled_store(&self, name: &str) -> Result<String> {
        let problem = match self.stores.get(name).map(|store| &store.kind) {
            Some(StoreKind::Dir(_)) => return Ok(name.to_owned()),
            None if name == ROOT_STORE => return Ok(name.to_owned()),
            Some(StoreKind::Volume(_)) => "only a rule can tie a volume to a container",
            None => "there is no store of this name in the configuration",
        };
        Err(Error::InvalidArgument(format!("label overstream.store={name:?}: {problem}")))
    }
}

fn parse_bool(value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| "the value is \"true\" or \"false\"".to_owned())
}

#[cfg(test)]
mod tests;
