//! Whose container a snapshot is: from labels where they are trusted, else from containerd.
//!
//! CRI since 1.7 gives an application container's Prepare no pod identity, and Prepare runs before
//! containerd stores the container. So the question is asked when the mounts are needed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

use crate::config::Field;
use crate::error::{Error, Result};
use crate::proto::containers::GetContainerRequest;
use crate::proto::containers::containers_client::ContainersClient;
use crate::snapshot::{LABEL_PREFIX, Labels};

/// How long containerd may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Kubernetes' labels on a container's record, by field.
const RECORD_LABELS: [(Field, &str); 4] = [
    (Field::PodUid, "io.kubernetes.pod.uid"),
    (Field::PodName, "io.kubernetes.pod.name"),
    (Field::PodNamespace, "io.kubernetes.pod.namespace"),
    (Field::ContainerName, "io.kubernetes.container.name"),
];

/// CRI's label that tells a pause container from the others.
const KIND_LABEL: &str = "io.cri-containerd.kind";

/// Our labels on a snapshot, by field, without their prefix.
const SNAPSHOT_LABELS: [(Field, &str); 4] = [
    (Field::PodUid, "overstream.pod-uid"),
    (Field::PodName, "overstream.pod-name"),
    (Field::PodNamespace, "overstream.pod-namespace"),
    (Field::ContainerName, "overstream.container-name"),
];

/// What is known about a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// True for a pod's pause container.
    pub(crate) sandbox: bool,
    fields: Vec<(Field, String)>,
}

impl Identity {
    /// Reads what labels on a snapshot say; nothing if they say nothing.
    pub(crate) fn from_snapshot(labels: &Labels, container_id: &str) -> Option<Self> {
        let identity = Self::collect(&SNAPSHOT_LABELS, container_id, |label| {
            labels.get(&format!("{LABEL_PREFIX}{label}"))
        });
        (identity.fields.len() > 1).then_some(identity)
    }

    /// Reads a container's record.
    pub(crate) fn from_record(record: &Record, container_id: &str) -> Self {
        let mut identity =
            Self::collect(&RECORD_LABELS, container_id, |label| record.labels.get(label));
        identity.sandbox = record.labels.get(KIND_LABEL).is_some_and(|kind| kind == "sandbox");
        identity
    }

    fn collect<'a>(
        known: &[(Field, &str)],
        container_id: &str,
        value: impl Fn(&str) -> Option<&'a String>,
    ) -> Self {
        let labelled =
            known.iter().filter_map(|(field, label)| Some((*field, value(label)?.clone())));
        let id = (Field::ContainerId, container_id.to_owned());
        Self { sandbox: false, fields: labelled.chain([id]).collect() }
    }

    /// One fact, if known and not empty.
    pub(crate) fn get(&self, field: Field) -> Option<&str> {
        let found = self.fields.iter().find(|(known, _)| *known == field);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }
}

/// True if `word`, a label after `containerd.io/snapshot/overstream.`, tells identity.
pub(crate) fn is_label(word: &str) -> bool {
    SNAPSHOT_LABELS.iter().any(|(_, label)| label.strip_prefix(super::OURS) == Some(word))
}

/// A container as containerd stores it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    /// Its labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Plugin name that holds its writable layer.
    pub(crate) snapshotter: String,
    /// Key of its writable layer.
    pub(crate) snapshot_key: String,
}

/// Knows containers by namespace and id.
pub(crate) trait Containers: Send + Sync + std::fmt::Debug {
    /// Finds a container's record; nothing if it is not stored (yet).
    fn find(&self, namespace: &str, id: &str) -> Result<Option<Record>>;
}

/// Asks a running containerd.
#[derive(Debug)]
pub(crate) struct Containerd {
    address: PathBuf,
    runtime: tokio::runtime::Handle,
    channel: Channel,
}

impl Containerd {
    /// Prepares to ask the containerd at `address`; connects when first asked.
    pub(crate) fn new(address: &Path, runtime: tokio::runtime::Handle) -> Self {
        let socket = address.to_owned();
        let connect = tower::service_fn(move |_: http::Uri| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let _inside = runtime.enter();
        // The URI is never resolved: the connector always dials the socket.
        let channel =
            Endpoint::from_static("http://containerd").connect_with_connector_lazy(connect);
        Self { address: address.to_owned(), runtime: runtime.clone(), channel }
    }

    fn unavailable(&self, problem: &str) -> Error {
        Error::Unavailable(format!(
            "cannot ask containerd at {} whose container this is: {problem}; check `address` under [containerd]",
            self.address.display()
        ))
    }
}

impl Containers for Containerd {
    /// Must be called from a thread that may block.
    fn find(&self, namespace: &str, id: &str) -> Result<Option<Record>> {
        let mut request = tonic::Request::new(GetContainerRequest { id: id.to_owned() });
        let namespace = namespace.parse().map_err(|_| {
            Error::InvalidArgument(format!("namespace {namespace:?} is not plain ASCII"))
        })?;
        request.metadata_mut().insert("containerd-namespace", namespace);
        let mut client = ContainersClient::new(self.channel.clone());
        let answer = self.runtime.block_on(tokio::time::timeout(TIMEOUT, client.get(request)));
        match answer {
            Err(_) => Err(self.unavailable("no answer in time")),
            Ok(Err(status)) if status.code() == tonic::Code::NotFound => Ok(None),
            Ok(Err(status)) => {
                Err(self.unavailable(&format!("{:?}: {}", status.code(), status.message())))
            }
            Ok(Ok(answer)) => Ok(answer.into_inner().container.map(|container| Record {
                labels: container.labels.into_iter().collect(),
                snapshotter: container.snapshotter,
                snapshot_key: container.snapshot_key,
            })),
        }
    }
}
