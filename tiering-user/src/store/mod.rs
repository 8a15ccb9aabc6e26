//! State on disk: named records in one file, which outlives the agent.
//!
//! In: the state folder; records as bytes, several at a time. Out: what was written last, whole or not at all. What the
//! records hold is said by those who write them.
//!
//! A state that cannot be read or written is never a reason not to run: without it the agent only begins with what it
//! sees. A file that is broken, or of a newer version, is kept aside under another name. Each trouble is told once,
//! until it is over.
//!
//! # Limits
//! The file is read whole when it is opened. It does not get smaller. A record of more than 8 MiB is as if it were not
//! there.

mod aside;
mod file;
mod kept;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use redb::Database;

pub use file::Record;
use file::Trouble;
pub use kept::Kept;

const FILE: &str = "state.redb";
/// Version of the records. One that is not known here is of a later agent.
const VERSION: u8 = 1;

/// The records. Shared by those who write; one at a time.
#[derive(Debug)]
pub struct Store {
    /// `None`: nothing is kept.
    path: Option<PathBuf>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    database: Option<Database>,
    /// A trouble was told, and is not over.
    told: bool,
}

impl Store {
    /// The records in this folder, which is made if it is not there.
    #[must_use]
    pub fn in_folder(folder: &Path) -> Self {
        let store = Self { path: Some(folder.join(FILE)), open: Mutex::default() };
        store.with(|_| Ok(()));
        store
    }

    /// A store that holds nothing and keeps nothing.
    #[must_use]
    pub fn nothing() -> Self {
        Self { path: None, open: Mutex::default() }
    }

    /// The record of this name.
    #[must_use]
    pub fn read(&self, name: &str) -> Option<Vec<u8>> {
        self.with(|database| file::read(database, name)).flatten()
    }

    /// The names that begin with `prefix`, ascending.
    #[must_use]
    pub fn names(&self, prefix: &str) -> Vec<String> {
        self.with(|database| file::names(database, prefix)).unwrap_or_default()
    }

    /// Writes these records, all or none of them; a record of `None` is removed. Waits for the disk. Returns whether it
    /// was done.
    pub fn write(&self, records: &[Record]) -> bool {
        records.is_empty() || self.with(|database| file::write(database, records)).is_some()
    }

    fn with<T>(&self, act: impl FnOnce(&Database) -> Result<T, Trouble>) -> Option<T> {
        let path = self.path.as_deref()?;
        // What a panic left is a database all the same: it is crash-safe.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match open.database.take() {
            Some(database) => Ok(database),
            None => open_or_begin_anew(path),
        };
        match database.and_then(|database| act(&database).map(|done| (database, done))) {
            Ok((database, done)) => {
                open.database = Some(database);
                if std::mem::take(&mut open.told) {
                    tracing::info!(file = %path.display(), "the state on disk is kept again");
                }
                Some(done)
            }
            // After an error a database is of no use; the next call opens it again.
            Err(error) => {
                if !std::mem::replace(&mut open.told, true) {
                    tracing::warn!(file = %path.display(), %error, "cannot keep state on disk: the agent goes on without");
                }
                None
            }
        }
    }
}

/// Opens the file; puts one that cannot be used aside and makes another.
fn open_or_begin_anew(path: &Path) -> Result<Database, Trouble> {
    match file::open(path, VERSION) {
        Err(Trouble::Unusable(why)) => {
            let aside = aside::put(path).map_err(Trouble::Io)?;
            tracing::warn!(
                file = %path.display(), why, aside = %aside.display(),
                "the state on disk cannot be used: put aside, beginning anew"
            );
            file::open(path, VERSION)
        }
        opened => opened,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    fn record(name: &str, text: &str) -> Record {
        (name.to_owned(), Some(text.as_bytes().to_vec()))
    }

    fn filled(folder: &Path) -> PathBuf {
        let store = Store::in_folder(folder);
        assert!(store.write(&[record("vm/a", "one"), record("vm/b", "two"), record("other", "three")]));
        folder.join(FILE)
    }

    #[test]
    fn what_was_written_is_there_for_the_next_one() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("state");
        let file = filled(&folder);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&file)), (0o700, 0o600));

        let store = Store::in_folder(&folder);
        assert_eq!(store.read("vm/b"), Some(b"two".to_vec()));
        assert_eq!(store.names("vm/"), ["vm/a", "vm/b"]);
        assert!(store.write(&[("vm/a".to_owned(), None), record("vm/b", "2")]));
        assert_eq!((store.names("vm/"), store.read("vm/b")), (vec!["vm/b".to_owned()], Some(b"2".to_vec())));
        assert_eq!(store.read("vm/a"), None);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing was put aside");
    }

    #[test]
    fn a_file_that_cannot_be_used_is_put_aside_and_the_next_one_too() {
        type Damage = (&'static str, fn(&Path));
        let damage: [Damage; 4] = [
            ("no database", |file| fs::write(file, "not a database at all").unwrap()),
            ("truncated", |file| fs::File::options().write(true).open(file).unwrap().set_len(5000).unwrap()),
            ("overwritten", |file| {
                let mut bytes = fs::read(file).unwrap();
                bytes[512..].fill(0xa5);
                fs::write(file, bytes).unwrap();
            }),
            ("newer", |file| {
                let database = file::open(file, VERSION + 1).unwrap();
                drop(database);
            }),
        ];
        let root = tempfile::tempdir().unwrap();
        for (number, (what, damage)) in (1..).zip(damage) {
            let folder = root.path();
            let file = folder.join(FILE);
            if what == "newer" {
                fs::remove_file(&file).unwrap();
            } else {
                filled(folder);
            }
            damage(&file);
            let damaged = fs::read(&file).unwrap();
            let store = Store::in_folder(folder);
            assert_eq!(store.read("vm/a"), None, "{what}");
            assert!(store.write(&[record("vm/c", "new")]), "{what}");
            assert_eq!(store.read("vm/c"), Some(b"new".to_vec()), "{what}");
            let aside = folder.join(format!("{FILE}.broken-{number}"));
            assert_eq!(fs::read(&aside).unwrap().len(), damaged.len(), "{what}: kept as it was");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_reason_to_stop() {
        let root = tempfile::tempdir().unwrap();
        let in_the_way = root.path().join("file");
        fs::write(&in_the_way, "").unwrap();
        let store = Store::in_folder(&in_the_way);
        assert_eq!(store.read("vm/a"), None);
        assert!(!store.write(&[record("vm/a", "one")]));
        // As soon as it can be written, it is.
        fs::remove_file(&in_the_way).unwrap();
        assert!(store.write(&[record("vm/a", "one")]));
        assert_eq!(store.read("vm/a"), Some(b"one".to_vec()));
    }

    #[test]
    fn a_record_longer_than_any_agent_writes_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::in_folder(folder.path());
        let long =
            |bytes| vec![("vm/a".to_owned(), Some(vec![7; bytes])), ("x".repeat(5000), Some(Vec::new()))];
        assert!(store.write(&long(9 << 20)));
        assert_eq!((store.read("vm/a"), store.names("")), (None, vec!["version".into(), "vm/a".into()]));
        assert!(store.write(&long(1 << 20)));
        assert_eq!(store.read("vm/a").map(|value| value.len()), Some(1 << 20));
    }

    #[test]
    fn nothing_is_kept_where_nothing_should_be() {
        let store = Store::nothing();
        assert!(!store.write(&[record("vm/a", "one")]));
        assert_eq!((store.read("vm/a"), store.names("")), (None, vec![]));
    }
}
