//! A registry on the loopback interface.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use crate::containerd::Containerd;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::wait::holds_within;
use crate::{Version, require_command};

/// It is up in well under a second; this leaves room for a busy host.
const START: Duration = Duration::from_secs(30);
/// Another process may take the free port first.
const TRIES: u32 = 5;

/// A running docker-registry on a free port, over plain http; dropping it ends it.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddrV4,
    process: Process,
}

impl Registry {
    /// Tells whether one can run (capability `registry`); says so if not.
    pub fn available() -> bool {
        require_command("registry", "docker-registry")
    }

    /// Starts one that keeps its data in `registry` of `scratch`.
    #[track_caller]
    pub fn start(scratch: &Scratch) -> Self {
        let root = scratch.dir("registry");
        for _ in 0..TRIES {
            let address = free_address();
            let config = format!(
                "version: 0.1\nlog:\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
                 rootdirectory: {}\nhttp:\n  addr: {address}\n",
                root.display()
            );
            let config = scratch.write("registry.yml", config);
            let mut command = Command::new("docker-registry");
            let process = scratch.spawn("registry", command.arg("serve").arg(config));
            let up = || TcpStream::connect(address).is_ok();
            let settled = holds_within(START, || process.ended().is_some() || up());
            assert!(settled, "the registry does not come up: {}", process.describe());
            if process.ended().is_none() {
                return Self { address, process };
            }
        }
        panic!(
            "no registry after {TRIES} tries; its log is {}",
            scratch.join("registry.log").display()
        );
    }

    /// Returns the full name under which an image `name` (`demo:1`) lies there.
    pub fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Pushes an image that a containerd has in the namespace `default`, and returns its full name
    /// here.
    #[track_caller]
    pub fn push(&self, containerd: &Containerd, image: &str, name: &str) -> String {
        let target = self.name(name);
        let mut arguments = vec!["images", "push", "--plain-http"];
        arguments.extend(local(containerd));
        arguments.extend([target.as_str(), image]);
        containerd.ctr(&arguments).ok();
        target
    }

    /// Pulls an image from here by its full name into a containerd, and unpacks it.
    #[track_caller]
    pub fn pull(&self, containerd: &Containerd, namespace: &str, name: &str) {
        let mut arguments = vec!["images", "pull", "--plain-http"];
        arguments.extend(local(containerd));
        arguments.push(name);
        let output = containerd.ctr_in(namespace, &arguments);
        assert!(output.status.success(), "{output}\n{}", self.process.describe());
    }
}

/// 2.x leaves the work to its server unless told otherwise, which does not know of plain http.
fn local(containerd: &Containerd) -> Option<&'static str> {
    (containerd.options().version == Version::V2).then_some("--local")
}

fn free_address() -> SocketAddrV4 {
    let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    let address = TcpListener::bind(any).and_then(|listener| listener.local_addr());
    let port = address.expect("find a free port").port();
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}
