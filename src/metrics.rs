//! What is measured, for Prometheus: `http://ADDRESS/metrics`.

mod stores;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use self::stores::Stores;
use crate::snapshotter::Snapshotter;

/// Bounds of the duration histogram: 0.1 ms to 26 s, each four times the one before.
const BUCKETS: (f64, f64, u16) = (0.0001, 4.0, 10);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    method: &'static str,
    code: Code,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Code(tonic::Code);

impl EncodeLabelValue for Code {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        std::fmt::Write::write_fmt(encoder, format_args!("{:?}", self.0))
    }
}

/// Counters of the daemon.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    calls: Family<Outcome, Counter>,
    seconds: Family<Method, Histogram, fn() -> Histogram>,
    in_flight: Family<Method, Gauge>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let calls = Family::<Outcome, Counter>::default();
        let histogram: fn() -> Histogram =
            || Histogram::new(exponential_buckets(BUCKETS.0, BUCKETS.1, BUCKETS.2));
        let seconds =
            Family::<Method, Histogram, fn() -> Histogram>::new_with_constructor(histogram);
        let in_flight = Family::<Method, Gauge>::default();
        let mut registry = Registry::with_prefix("overstream");
        registry.register("build", "Version", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let start = Gauge::<f64, AtomicU64>::default();
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        start.set(since.unwrap_or_default().as_secs_f64());
        registry.register("start_time_seconds", "When the daemon started, since 1970", start);
        registry.register("rpc", "Calls answered, by method and code", calls.clone());
        registry.register(
            "rpc_duration_seconds",
            "Time to answer, without the transport",
            seconds.clone(),
        );
        registry.register("rpc_in_flight", "Calls under way", in_flight.clone());
        Self { registry, calls, seconds, in_flight }
    }

    /// Notes that a call has begun; it ends when the guard is dropped, also by a panic.
    pub(crate) fn begin(&self, method: &'static str) -> InFlight {
        let gauge = self.in_flight.get_or_create(&Method { method }).clone();
        gauge.inc();
        InFlight(gauge)
    }

    /// Counts an answered call.
    pub(crate) fn finished(&self, method: &'static str, code: tonic::Code, elapsed: Duration) {
        self.calls.get_or_create(&Outcome { method, code: Code(code) }).inc();
        self.seconds.get_or_create(&Method { method }).observe(elapsed.as_secs_f64());
    }

    /// Our own, then those of `stores`.
    fn text(&self, stores: &Registry) -> String {
        let mut text = String::new();
        let encoded = encode_registry(&mut text, &self.registry)
            .and_then(|()| encode_registry(&mut text, stores))
            .and_then(|()| encode_eof(&mut text));
        if let Err(error) = encoded {
            tracing::error!(%error, "cannot encode metrics");
        }
        text
    }
}

/// A call under way.
#[derive(Debug)]
pub(crate) struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Serves the metrics until the future is dropped.
pub(crate) async fn serve(
    metrics: Arc<Metrics>,
    snapshots: Arc<Snapshotter>,
    listener: TcpListener,
) -> std::io::Result<()> {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let stores = Arc::new(Stores::new(snapshots));
    let answer = move || {
        let (metrics, stores) = (Arc::clone(&metrics), Arc::clone(&stores));
        async move { ([(CONTENT_TYPE, OPEN_METRICS)], metrics.text(&stores.collect().await)) }
    };
    let listener = tokio::net::TcpListener::from_std(listener)?;
    axum::serve(listener, axum::Router::new().route("/metrics", get(answer))).await
}
