//! Gauges of the stores, looked at when somebody asks for the metrics.
//!
//! A disk may never answer. So every store is asked on a thread of its own, which nobody waits for
//! longer than `PATIENCE`, and a store that still owes an answer is not asked again.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::Result;
use crate::snapshotter::{Snapshotter, StoreCount};

/// How long the answers of all stores are waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Stands for the database among the stores; no store can have this name.
const DATABASE: &str = "";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Store {
    store: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    store: String,
    kind: &'static str,
}

/// Total and available bytes of a store's file system.
type Space = (u64, u64);

/// Looks at the stores.
#[derive(Debug)]
pub(super) struct Stores<S = Snapshotter> {
    subject: Arc<S>,
    /// Two who ask at once do not take each other's questions for ones that are never answered.
    asking: tokio::sync::Mutex<()>,
    /// What still owes an answer.
    owing: Arc<Mutex<HashSet<String>>>,
}

impl<S: Send + Sync + 'static> Stores<S> {
    pub(super) fn new(subject: Arc<S>) -> Self {
        Self { subject, asking: tokio::sync::Mutex::default(), owing: Arc::default() }
    }

    /// Puts a question on a thread of its own, unless the former one is not answered yet.
    fn ask<T: Send + 'static>(
        &self,
        name: &str,
        question: impl FnOnce(&S) -> T + Send + 'static,
    ) -> Option<oneshot::Receiver<T>> {
        let owed = Owed::new(&self.owing, name)?;
        let subject = Arc::clone(&self.subject);
        let (sender, receiver) = oneshot::channel();
        let asked = std::thread::Builder::new().name("store metrics".to_owned()).spawn(move || {
            let answer = question(&subject);
            // Before the answer, so that whoever has it can ask again.
            drop((subject, owed));
            // An error means that nobody waits any more.
            sender.send(answer).ok();
        });
        match asked {
            Ok(_) => Some(receiver),
            Err(error) => {
                tracing::warn!(store = name, %error, "cannot start a thread to look at a store");
                None
            }
        }
    }
}

impl Stores {
    /// Asks all stores and the database, and returns what was answered in time, as gauges.
    pub(super) async fn collect(&self) -> Registry {
        let _one_at_a_time = self.asking.lock().await;
        let counts = self.ask(DATABASE, Snapshotter::store_counts);
        let spaces: Vec<_> = self
            .subject
            .directory_stores()
            .map(|name| {
                let owned = name.to_owned();
                (name, self.ask(name, move |snapshots| snapshots.store_space_unless_full(&owned)))
            })
            .collect();
        let deadline = Instant::now() + PATIENCE;
        let gauges = Gauges::default();
        for (name, space) in spaces {
            gauges.set_space(name, answer(space, deadline).await.flatten());
        }
        match answer(counts, deadline).await {
            Some(Ok(counts)) => counts.into_iter().for_each(|count| gauges.set_count(count)),
            Some(Err(error)) => tracing::warn!(%error, "cannot count for the metrics"),
            None => tracing::warn!("the database does not answer; the metrics have no counts"),
        }
        gauges.registry()
    }
}

async fn answer<T>(receiver: Option<oneshot::Receiver<T>>, deadline: Instant) -> Option<T> {
    tokio::time::timeout_at(deadline, receiver?).await.ok()?.ok()
}

/// A question that is not answered yet; it is forgotten when this is dropped, also by a panic.
struct Owed {
    owing: Arc<Mutex<HashSet<String>>>,
    name: String,
}

impl Owed {
    fn new(owing: &Arc<Mutex<HashSet<String>>>, name: &str) -> Option<Self> {
        let fresh = owing.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        fresh.then(|| Self { owing: Arc::clone(owing), name: name.to_owned() })
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.owing.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

#[derive(Default)]
struct Gauges {
    size: Family<Store, Gauge>,
    available: Family<Store, Gauge>,
    answering: Family<Store, Gauge>,
    usable: Family<Store, Gauge>,
    snapshots: Family<Kind, Gauge>,
    retained: Family<Store, Gauge>,
    garbage: Family<Store, Gauge>,
}

impl Gauges {
    fn set_space(&self, name: &str, space: Option<Result<Space>>) {
        let set = |family: &Family<Store, Gauge>, value: u64| {
            family
                .get_or_create(&Store { store: name.to_owned() })
                .set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.answering, u64::from(space.is_some()));
        set(&self.usable, u64::from(matches!(space, Some(Ok(_)))));
        if let Some(Ok((size, available))) = space {
            set(&self.size, size);
            set(&self.available, available);
        }
    }

    fn set_count(&self, count: StoreCount) {
        let number = |number| i64::try_from(number).unwrap_or(i64::MAX);
        for (kind, value) in
            [("active", count.active), ("committed", count.committed), ("view", count.views)]
        {
            let labels = Kind { store: count.store.clone(), kind };
            self.snapshots.get_or_create(&labels).set(number(value));
        }
        let labels = Store { store: count.store };
        if let Some(retained) = count.retained {
            self.retained.get_or_create(&labels).set(number(retained));
        }
        self.garbage.get_or_create(&labels).set(number(count.garbage));
    }

    fn registry(self) -> Registry {
        let mut registry = Registry::with_prefix("overstream_store");
        let about_stores = [
            ("size_bytes", "Size of the store's file system", self.size),
            ("available_bytes", "Bytes free on the store's file system", self.available),
            (
                "answering",
                "1 if the store's disk answers in time, 0 if it hangs or is very slow",
                self.answering,
            ),
            ("usable", "1 if uppers can lie in the store now", self.usable),
            ("retained", "Uppers that outlived their snapshots", self.retained),
            ("garbage", "Removed snapshots whose files are not yet deleted", self.garbage),
        ];
        for (name, help, family) in about_stores {
            registry.register(name, help, family);
        }
        registry.register("snapshots", "Snapshots, by kind", self.snapshots);
        registry
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_store_that_does_not_answer_is_asked_once_and_others_go_on() {
        let stores = Stores::new(Arc::new(()));
        let soon = || Instant::now() + Duration::from_millis(50);
        let (let_go, hold) = mpsc::channel::<()>();
        let held = stores.ask("slow", move |()| hold.recv().is_ok());
        assert_eq!(answer(held, soon()).await, None);
        assert!(stores.ask("slow", |()| ()).is_none(), "asked a second time");
        let quick = stores.ask("quick", |()| 7);
        assert_eq!(answer(quick, Instant::now() + PATIENCE).await, Some(7));
        assert_eq!(
            answer(stores.ask("quick", |()| 8), Instant::now() + PATIENCE).await,
            Some(8),
            "one that has answered can be asked again at once"
        );
        let_go.send(()).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !stores.owing.lock().unwrap().is_empty() {
            assert!(Instant::now() < deadline, "never forgotten");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(stores.ask("slow", |()| ()).is_some());
    }

    #[test]
    fn a_store_without_an_answer_has_no_space() {
        let gauges = Gauges::default();
        gauges.set_space("hung", None);
        gauges.set_space("good", Some(Ok((5, 3))));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &gauges.registry()).unwrap();
        for line in [
            "overstream_store_answering{store=\"hung\"} 0\n",
            "overstream_store_usable{store=\"hung\"} 0\n",
            "overstream_store_usable{store=\"good\"} 1\n",
            "overstream_store_size_bytes{store=\"good\"} 5\n",
            "overstream_store_available_bytes{store=\"good\"} 3\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        assert!(!text.contains("bytes{store=\"hung\"}"), "{text}");
    }
}
