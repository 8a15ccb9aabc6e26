//! Labels that libvirt keeps with a VM, in the metadata of its domain.
//!
//! In: the state file that libvirt's QEMU driver writes for each VM that runs (`NAME.xml`). Out: labels, by key.
//! Not by the API: that would be a connection to a daemon for what a file says.
//!
//! Whoever starts a process chooses its name: the file counts only if it says that it is about this process.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::Vm;

/// Where the QEMU driver of the system keeps the state of VMs.
pub const STATE_FOLDER: &str = "/run/libvirt/qemu";
/// Namespace of the element in the metadata.
const NAMESPACE: &str = "https://tiering.dev/labels";
/// More is no VM's state.
const MOST_BYTES: u64 = 4 << 20;

/// Labels that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    #[error("{} cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is no XML: {source}", path.display())]
    Xml { path: PathBuf, source: roxmltree::Error },
}

/// The labels of a VM; none where libvirt does not know it.
///
/// # Errors
/// [`LabelError`] where its file is there and cannot be read.
pub fn labels(folder: &Path, vm: &Vm) -> Result<BTreeMap<String, String>, LabelError> {
    // KubeVirt's VMs have a libvirt each, of their own.
    if vm.namespace.is_some() || vm.name.contains('/') {
        return Ok(BTreeMap::new());
    }
    let path = folder.join(format!("{}.xml", vm.name));
    let text = match read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(source) => return Err(LabelError::Read { path, source }),
    };
    let state = roxmltree::Document::parse(&text).map_err(|source| LabelError::Xml { path, source })?;
    let pid = state.root_element().attribute("pid").and_then(|pid| pid.parse().ok());
    if pid != Some(vm.key.pid) {
        return Ok(BTreeMap::new());
    }
    let in_metadata = |element: &roxmltree::Node<'_, '_>| {
        element.parent().is_some_and(|parent| parent.has_tag_name("metadata"))
    };
    let elements = state.descendants().filter(|element| element.has_tag_name((NAMESPACE, "labels")));
    let labels = elements.filter(in_metadata).flat_map(|element| element.children());
    // `virsh metadata` gives the namespace to the outer element only.
    let labels = labels.filter(|element| element.tag_name().name() == "label");
    Ok(labels
        .filter_map(|label| Some((label.attribute("name")?.to_owned(), label.text()?.trim().to_owned())))
        .collect())
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MOST_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::{Hva, ProcessKey, testing};
    use super::*;

    const STATE: &str = r#"<!--
WARNING: THIS IS AN AUTO-GENERATED FILE. CHANGES TO IT ARE LIKELY TO BE
-->
<domstatus state='running' reason='booted' pid='4711'>
  <vcpus><vcpu id='0' pid='4715'/></vcpus>
  <domain type='qemu' id='1'>
    <name>db-1</name>
    <metadata>
      <other:labels xmlns:other="http://example.org"><label name="app.kubernetes.io/name">nginx</label></other:labels>
      <tiering:labels xmlns:tiering="https://tiering.dev/labels">
        <label name="app.kubernetes.io/name">postgresql</label>
        <tiering:label name="tier"> gold </tiering:label>
        <label name="empty"/>
      </tiering:labels>
    </metadata>
  </domain>
</domstatus>"#;

    fn vm(name: &str, pid: i32) -> Vm {
        let vm = testing::vm(ProcessKey { pid, start_time_ticks: 5 }, Hva(0x10_0000), 4096);
        Vm { name: name.to_owned(), ..vm }
    }

    #[test]
    fn the_labels_of_a_vm_are_those_in_its_metadata() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("db-1.xml"), STATE).unwrap();
        let found = labels(folder.path(), &vm("db-1", 4711)).unwrap();
        let found: Vec<_> = found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(found, [("app.kubernetes.io/name", "postgresql"), ("tier", "gold")]);
        assert!(labels(folder.path(), &vm("db-2", 4711)).unwrap().is_empty(), "libvirt knows no such VM");
        assert!(labels(folder.path(), &vm("db-1", 4712)).unwrap().is_empty(), "another process of that name");
        let inner = folder.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        assert!(labels(&inner, &vm("../db-1", 4711)).unwrap().is_empty(), "no way out of the folder");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("db-1.xml"), &STATE[..300]).unwrap();
        let error = labels(folder.path(), &vm("db-1", 4711)).unwrap_err().to_string();
        assert!(error.contains("db-1.xml is no XML"), "{error}");
    }
}
