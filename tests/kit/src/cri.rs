//! Runs pods as kubelet does, through the container runtime interface.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use tonic::Request;
use tonic::transport::Channel;

use crate::proto::cri::image_service_client::ImageServiceClient;
use crate::proto::cri::runtime_service_client::RuntimeServiceClient;
use crate::proto::cri::{
    ContainerConfig, ContainerMetadata, ContainerStatsRequest, CreateContainerRequest,
    ExecSyncRequest, FilesystemUsage, ImageFsInfoRequest, ImageFsInfoResponse, ImageSpec,
    LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, ListPodSandboxRequest, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PullImageRequest, RemoveContainerRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StopContainerRequest,
    StopPodSandboxRequest, VersionRequest,
};
use crate::rpc;

/// Stopping a pod took more than 2 s on a busy host.
const LIMIT: Duration = Duration::from_secs(60);

/// Labels or annotations.
type Pairs<'a> = &'a [(&'a str, &'a str)];

/// A client of containerd's CRI services. Every method panics if its call fails.
#[derive(Clone, Debug)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    cgroup_parent: String,
    attempts: u32,
}

/// A running pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Id the runtime gave it.
    pub id: String,
    config: PodSandboxConfig,
}

/// What a command in a container printed, and its exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit code.
    pub code: i32,
}

impl Cri {
    /// Connects to a containerd and waits until its CRI services serve. The cgroups of its pods
    /// will lie below `cgroup_parent`.
    pub async fn connect(socket: &Path, cgroup_parent: &str) -> Self {
        let mut cri = Self::new(socket, cgroup_parent).await;
        let mut last = String::new();
        for _ in 0..300 {
            match cri.runtime.version(request(VersionRequest::default())).await {
                Ok(_) => return cri,
                Err(status) => last = status.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("no CRI at {}: {last}", socket.display());
    }

    pub(crate) async fn new(socket: &Path, cgroup_parent: &str) -> Self {
        let channel = rpc::channel(socket).await;
        let runtime = RuntimeServiceClient::new(channel.clone());
        let cgroup_parent = cgroup_parent.to_owned();
        Self { runtime, images: ImageServiceClient::new(channel), cgroup_parent, attempts: 0 }
    }

    /// Runs a pod in the host's network with the labels kubelet sets, and more.
    pub async fn run_pod(
        &mut self,
        name: &str,
        uid: &str,
        namespace: &str,
        labels: Pairs<'_>,
        annotations: Pairs<'_>,
    ) -> Pod {
        let metadata = PodSandboxMetadata {
            name: name.to_owned(),
            uid: uid.to_owned(),
            namespace: namespace.to_owned(),
            attempt: 0,
        };
        let mut all = pod_labels(&metadata);
        all.extend(map(labels));
        let security_context =
            Some(LinuxSandboxSecurityContext { namespace_options: Some(namespaces()) });
        let config = PodSandboxConfig {
            metadata: Some(metadata),
            labels: all,
            annotations: map(annotations),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup_parent.clone(),
                security_context,
            }),
            ..PodSandboxConfig::default()
        };
        let run =
            RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let answer = self.runtime.run_pod_sandbox(request(run)).await;
        Pod { id: answer.expect("run a pod").into_inner().pod_sandbox_id, config }
    }

    /// Creates a container in a pod with the labels kubelet sets, and more; returns its id. Several
    /// may have the same name: each is a further attempt.
    pub async fn create_container(
        &mut self,
        pod: &Pod,
        name: &str,
        image: &str,
        command: &[&str],
        labels: Pairs<'_>,
        annotations: Pairs<'_>,
    ) -> String {
        let mut all = pod.config.metadata.as_ref().map(pod_labels).unwrap_or_default();
        all.insert("io.kubernetes.container.name".into(), name.to_owned());
        all.extend(map(labels));
        let security_context = Some(LinuxContainerSecurityContext {
            privileged: false,
            namespace_options: Some(namespaces()),
        });
        self.attempts += 1;
        let attempt = self.attempts;
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt }),
            image: Some(image_spec(image)),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            labels: all,
            annotations: map(annotations),
            linux: Some(LinuxContainerConfig { security_context }),
            ..ContainerConfig::default()
        };
        self.create(pod, config).await
    }

    /// Creates a container in a pod exactly as described; returns its id.
    pub async fn create(&mut self, pod: &Pod, config: ContainerConfig) -> String {
        self.try_create(pod, config).await.expect("create a container")
    }

    /// Creates a container in a pod exactly as described; returns its id, or why that failed.
    pub async fn try_create(
        &mut self,
        pod: &Pod,
        config: ContainerConfig,
    ) -> Result<String, tonic::Status> {
        let create = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let answer = self.runtime.create_container(request(create)).await?;
        Ok(answer.into_inner().container_id)
    }

    /// Starts a container.
    pub async fn start(&mut self, container: &str) {
        self.try_start(container).await.expect("start a container");
    }

    /// Starts a container, or tells why that failed.
    pub async fn try_start(&mut self, container: &str) -> Result<(), tonic::Status> {
        let start = StartContainerRequest { container_id: container.to_owned() };
        self.runtime.start_container(request(start)).await.map(drop)
    }

    /// Runs a command in a container.
    pub async fn exec_sync(&mut self, container: &str, command: &[&str]) -> ExecOutput {
        let exec = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: 30,
        };
        let answer = self.runtime.exec_sync(request(exec)).await;
        let answer = answer.expect("run a command in a container").into_inner();
        ExecOutput {
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
            code: answer.exit_code,
        }
    }

    /// Returns what a container's writable layer uses, or `None` before the runtime has measured
    /// it, which it does every 10 s.
    pub async fn writable_layer(&mut self, container: &str) -> Option<FilesystemUsage> {
        let stats = ContainerStatsRequest { container_id: container.to_owned() };
        let answer = self.runtime.container_stats(request(stats)).await;
        answer.expect("ask for a container's stats").into_inner().stats?.writable_layer
    }

    /// Stops a container by force.
    pub async fn stop(&mut self, container: &str) {
        let stop = StopContainerRequest { container_id: container.to_owned(), timeout: 0 };
        self.runtime.stop_container(request(stop)).await.expect("stop a container");
    }

    /// Removes a container.
    pub async fn remove(&mut self, container: &str) {
        let remove = RemoveContainerRequest { container_id: container.to_owned() };
        self.runtime.remove_container(request(remove)).await.expect("remove a container");
    }

    /// Stops a pod and its containers.
    pub async fn stop_pod(&mut self, pod: &Pod) {
        let stop = StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        self.runtime.stop_pod_sandbox(request(stop)).await.expect("stop a pod");
    }

    /// Removes a pod and its containers.
    pub async fn remove_pod(&mut self, pod: &Pod) {
        let remove = RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        self.runtime.remove_pod_sandbox(request(remove)).await.expect("remove a pod");
    }

    /// Stops and removes all pods, as far as that is possible.
    pub(crate) async fn remove_all_pods(&mut self) -> Result<(), tonic::Status> {
        let list = self.runtime.list_pod_sandbox(request(ListPodSandboxRequest::default())).await?;
        for pod in list.into_inner().items {
            let stop = StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
            self.runtime.stop_pod_sandbox(request(stop)).await?;
            let remove = RemovePodSandboxRequest { pod_sandbox_id: pod.id };
            self.runtime.remove_pod_sandbox(request(remove)).await?;
        }
        Ok(())
    }

    /// Pulls an image.
    pub async fn pull(&mut self, image: &str) {
        let pull = PullImageRequest { image: Some(image_spec(image)), sandbox_config: None };
        self.images.pull_image(request(pull)).await.expect("pull an image");
    }

    /// Returns what images use, and where.
    pub async fn image_fs_info(&mut self) -> ImageFsInfoResponse {
        let answer = self.images.image_fs_info(request(ImageFsInfoRequest::default())).await;
        answer.expect("ask for image file systems").into_inner()
    }
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(LIMIT);
    request
}

fn image_spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned() }
}

/// The host's network needs no network plugin.
fn namespaces() -> NamespaceOption {
    NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
    }
}

fn pod_labels(pod: &PodSandboxMetadata) -> HashMap<String, String> {
    map(&[
        ("io.kubernetes.pod.name", &pod.name),
        ("io.kubernetes.pod.namespace", &pod.namespace),
        ("io.kubernetes.pod.uid", &pod.uid),
    ])
}

fn map(pairs: Pairs<'_>) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}
