//! Writes an image as an OCI image layout in a tar archive.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::Image;
use super::layer::{Content, Entry, Layer};
use crate::tree::sha256;

const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

type Archive = Builder<Box<dyn Write>>;

pub(super) fn write(image: &Image, path: &Path, name: &str) -> io::Result<()> {
    let mut archive: Archive = Builder::new(Box::new(File::create(path)?));
    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    for layer in &image.layers {
        let tar = layer_tar(layer)?;
        diff_ids.push(digest(&tar));
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&tar)?;
        layers.push(add_blob(&mut archive, LAYER_TYPE, &gzip.finish()?)?);
    }
    for gzip in &image.archives {
        let mut tar = Vec::new();
        GzDecoder::new(gzip.as_slice()).read_to_end(&mut tar)?;
        diff_ids.push(digest(&tar));
        layers.push(add_blob(&mut archive, LAYER_TYPE, gzip)?);
    }
    if !image.annotations.is_empty() {
        layers.iter_mut().for_each(|layer| layer["annotations"] = json!(image.annotations));
    }
    let config = add_blob(&mut archive, CONFIG_TYPE, &bytes(&config(image, &diff_ids)))?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": config,
        "layers": layers,
    });
    let mut manifest = add_blob(&mut archive, MANIFEST_TYPE, &bytes(&manifest))?;
    manifest["annotations"] = json!({
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name,
    });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [manifest] });
    add_file(&mut archive, "index.json", &bytes(&index))?;
    add_file(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    archive.into_inner()?.flush()
}

fn config(image: &Image, diff_ids: &[String]) -> Value {
    let volumes: BTreeMap<_, _> = image.volumes.iter().map(|path| (path, json!({}))).collect();
    json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Env": image.environment,
            "Cmd": image.command,
            "User": image.user,
            "Volumes": volumes,
        },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
}

/// Names this machine's architecture as Go does.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn add_blob(archive: &mut Archive, media_type: &str, blob: &[u8]) -> io::Result<Value> {
    let digest = digest(blob);
    add_file(archive, &format!("blobs/{}", digest.replace(':', "/")), blob)?;
    Ok(json!({ "mediaType": media_type, "digest": digest, "size": blob.len() }))
}

fn add_file(archive: &mut Archive, path: &str, content: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path, content)
}

fn digest(blob: &[u8]) -> String {
    format!("sha256:{}", sha256(blob))
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn layer_tar(layer: &Layer) -> io::Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for entry in &layer.entries {
        let names = entry.xattrs.iter().map(|(name, _)| format!("SCHILY.xattr.{name}"));
        let names: Vec<String> = names.collect();
        let values = entry.xattrs.iter().map(|(_, value)| value.as_slice());
        if !names.is_empty() {
            tar.append_pax_extensions(names.iter().map(String::as_str).zip(values))?;
        }
        append(&mut tar, entry)?;
    }
    tar.into_inner()
}

fn append(tar: &mut Builder<Vec<u8>>, entry: &Entry) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(entry.mode);
    header.set_uid(entry.uid.into());
    header.set_gid(entry.gid.into());
    header.set_mtime(entry.mtime);
    header.set_size(0);
    header.set_entry_type(entry_type(&entry.content));
    match &entry.content {
        Content::File(content) => {
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, &entry.path, content.as_slice())
        }
        Content::Symlink(target) => tar.append_link(&mut header, &entry.path, target),
        Content::HardLink(target) => tar.append_link(&mut header, &entry.path, target),
        Content::CharDevice(major, minor) | Content::BlockDevice(major, minor) => {
            header.set_device_major(*major)?;
            header.set_device_minor(*minor)?;
            tar.append_data(&mut header, &entry.path, io::empty())
        }
        Content::Whiteout => tar.append_data(&mut header, whiteout(&entry.path), io::empty()),
        Content::Opaque => {
            tar.append_data(&mut header, entry.path.join(".wh..wh..opq"), io::empty())
        }
        Content::Directory | Content::Fifo => {
            tar.append_data(&mut header, &entry.path, io::empty())
        }
    }
}

fn entry_type(content: &Content) -> EntryType {
    match content {
        Content::Directory => EntryType::Directory,
        Content::Symlink(_) => EntryType::Symlink,
        Content::HardLink(_) => EntryType::Link,
        Content::CharDevice(..) => EntryType::Char,
        Content::BlockDevice(..) => EntryType::Block,
        Content::Fifo => EntryType::Fifo,
        Content::File(_) | Content::Whiteout | Content::Opaque => EntryType::Regular,
    }
}

fn whiteout(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".wh.");
    name.push(path.file_name().expect("a name to white out"));
    path.with_file_name(name)
}
