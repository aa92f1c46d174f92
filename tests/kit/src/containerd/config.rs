//! Writes containerd's configuration file, which differs between its versions.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use super::{Options, PAUSE, Proxy, Version};
use crate::image::architecture;

/// Names of the plugins that configure the runtimes of CRI.
const CRI_1: &str = "io.containerd.grpc.v1.cri";
const CRI_2: &str = "io.containerd.cri.v1.runtime";
const OVERLAYFS: &str = "overlayfs";

pub(super) fn text(options: &Options, directory: &Path) -> String {
    let mut text = head(options.version, directory);
    for proxy in &options.proxies {
        text += &self::proxy(options.version, proxy);
    }
    text += &match options.version {
        Version::System | Version::V1_7 => cri_1(options) + &runc(CRI_1, directory),
        Version::V2 => cri_2(options) + &runc(CRI_2, directory) + &unpack(options),
    };
    text + &options.extra_config
}

/// Everything this instance must not share with others on the host.
fn head(version: Version, directory: &Path) -> String {
    let format = if version == Version::V2 { 3 } else { 2 };
    let mut text = format!(
        r#"version = {format}
root = "{directory}/root"
state = "{directory}/state"
[grpc]
  address = "{directory}/c.sock"
[ttrpc]
  address = "{directory}/c.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"
"#,
        directory = directory.display()
    );
    if version == Version::V2 {
        text += "[plugins.\"io.containerd.nri.v1.nri\"]\n  disable = true\n";
    }
    text
}

fn proxy(version: Version, proxy: &Proxy) -> String {
    let name = &proxy.name;
    let mut text = format!(
        "[proxy_plugins.{name}]\n  type = \"snapshot\"\n  address = \"{}\"\n",
        proxy.socket.display()
    );
    // Debian's 1.6 knows neither of these and ignores them with a warning at best.
    if version != Version::System {
        if !proxy.capabilities.is_empty() {
            writeln!(text, "  capabilities = {:?}", proxy.capabilities).expect("write text");
        }
        if let Some(root) = &proxy.exports_root {
            let root = root.display();
            writeln!(text, "  [proxy_plugins.{name}.exports]\n    root = \"{root}\"")
                .expect("write text");
        }
    }
    text
}

/// The CRI of 1.x. Lowering oom_score_adj may be forbidden even to root, hence the restriction.
fn cri_1(options: &Options) -> String {
    format!(
        r#"[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "{PAUSE}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{}"
    disable_snapshot_annotations = false
"#,
        snapshotter(options)
    )
}

fn cri_2(options: &Options) -> String {
    format!(
        r#"[plugins."io.containerd.cri.v1.images"]
  snapshotter = "{}"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
"#,
        snapshotter(options)
    )
}

/// Keeps runc's records with everything else, instead of in a directory shared by all instances.
fn runc(plugin: &str, directory: &Path) -> String {
    let directory = directory.display();
    format!(
        r#"[plugins."{plugin}".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."{plugin}".containerd.runtimes.runc.options]
    Root = "{directory}/runc"
"#
    )
}

/// Without these, 2.x cannot import images for a proxy plugin.
fn unpack(options: &Options) -> String {
    let names = options.proxies.iter().map(|proxy| proxy.name.as_str());
    let names: BTreeSet<&str> = names.chain([OVERLAYFS, snapshotter(options)]).collect();
    names
        .into_iter()
        .map(|name| {
            format!(
                r#"[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/{}"
  snapshotter = "{name}"
  differ = "walking"
"#,
                architecture()
            )
        })
        .collect()
}

fn snapshotter(options: &Options) -> &str {
    if options.snapshotter.is_empty() { OVERLAYFS } else { &options.snapshotter }
}
