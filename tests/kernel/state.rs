//! The state on disk where the disk is full, or may only be read. No agent is needed for that.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tiering_testkit::skip::{need_root, skip_or_fail};
use tiering_user::store::{Record, Store};

/// A file system of one MiB, gone when dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let small = Self(folder);
        small.mount(MsFlags::empty());
        small
    }

    fn mount(&self, flags: MsFlags) {
        mount(Some("tmpfs"), self.path(), Some("tmpfs"), flags, Some("size=1m")).unwrap();
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        umount2(self.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

fn record(name: &str, bytes: usize) -> Record {
    (name.to_owned(), Some(vec![7; bytes]))
}

#[test]
fn a_full_disk_costs_what_did_not_fit_and_no_more() {
    let Some(()) = skip_or_fail(need_root()) else { return };
    let disk = Small::new();
    let store = Store::in_folder(disk.path());
    assert!(store.write(&[record("first", 100)]));
    let filler = disk.path().join("filler");
    let full = std::fs::write(&filler, vec![1; 1 << 20]);
    assert_eq!(full.unwrap_err().kind(), std::io::ErrorKind::StorageFull);

    assert!(!store.write(&[record("second", 100), record("large", 400 << 10)]));
    assert_eq!(store.read("first").map(|bytes| bytes.len()), Some(100));
    assert_eq!(store.read("second"), None, "all of it or nothing");
    std::fs::remove_file(&filler).unwrap();
    assert!(store.write(&[record("second", 100)]), "it goes on as soon as there is room");
    drop(store);
    assert_eq!(Store::in_folder(disk.path()).names(""), ["first", "second", "version"]);
    assert_eq!(std::fs::read_dir(disk.path()).unwrap().count(), 1, "nothing was put aside");
}

#[test]
fn a_disk_that_may_only_be_read_keeps_nothing() {
    let Some(()) = skip_or_fail(need_root()) else { return };
    let disk = Small::new();
    assert!(Store::in_folder(disk.path()).write(&[record("first", 100)]));
    disk.mount(MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
    let store = Store::in_folder(disk.path());
    assert!(!store.write(&[record("second", 100)]));
    disk.mount(MsFlags::MS_REMOUNT);
    assert!(store.write(&[record("second", 100)]));
    assert_eq!(store.names(""), ["first", "second", "version"]);
}
