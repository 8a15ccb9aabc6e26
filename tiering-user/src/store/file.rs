//! The file: one table from names to bytes, by the `redb` crate, whose commits are whole or not there.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use redb::backends::FileBackend;
use redb::{Database, DatabaseError, ReadableDatabase as _, StorageError, TableDefinition};
use thiserror::Error;

const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
const VERSION_RECORD: &str = "version";
/// The crate's own default is a GiB.
const CACHE_BYTES: usize = 1 << 20;

/// No record is longer, and no name; nor are there more names. What is, was not written by an agent.
const MOST_RECORD_BYTES: usize = 8 << 20;
const MOST_NAME_BYTES: usize = 4096;
const MOST_NAMES: usize = 65_536;

/// A record's name, and what it holds; `None` removes it.
pub type Record = (String, Option<Vec<u8>>);

/// Why the file cannot be used.
#[derive(Debug, Error)]
pub(super) enum Trouble {
    /// Its content: another file would serve.
    #[error("{0}")]
    Unusable(String),
    /// The folder or the disk: another file would fare no better.
    #[error("{0}")]
    Io(io::Error),
}

impl<E: Into<redb::Error>> From<E> for Trouble {
    fn from(error: E) -> Self {
        match error.into() {
            // The crate's way to say that this is no database.
            redb::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
                Self::Unusable(error.to_string())
            }
            redb::Error::Io(error) => Self::Io(error),
            error @ (redb::Error::DatabaseAlreadyOpen | redb::Error::PreviousIo) => {
                Self::Io(io::Error::other(error))
            }
            error => Self::Unusable(error.to_string()),
        }
    }
}

/// Opens the file, or makes it for records of this version.
pub(super) fn open(path: &Path, version: u8) -> Result<Database, Trouble> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(Trouble::Io)?;
    }
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let database = checked(file.map_err(Trouble::Io)?)?;
    match read(&database, VERSION_RECORD)?.as_deref() {
        None => write(&database, &[(VERSION_RECORD.to_owned(), Some(vec![version]))])?,
        Some([found]) if *found <= version => {}
        Some(found) => {
            return Err(Trouble::Unusable(format!(
                "it is of version {found:?}, and {version} is known here"
            )));
        }
    }
    Ok(database)
}

fn checked(file: File) -> Result<Database, Trouble> {
    let open = || -> Result<Database, DatabaseError> {
        let backend = FileBackend::new(file)?;
        // Without the check a file that others have changed can end in a panic later.
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).create_with_backend(backend)
    };
    // Nothing of ours is used after a panic: the file is closed.
    match catch_unwind(AssertUnwindSafe(open)) {
        Ok(opened) => Ok(opened?),
        Err(_) => Err(StorageError::Corrupted("it cannot be read".to_owned()).into()),
    }
}

pub(super) fn read(database: &Database, name: &str) -> Result<Option<Vec<u8>>, Trouble> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(RECORDS) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        table => table?,
    };
    let value = table.get(name)?;
    Ok(value.filter(|value| value.value().len() <= MOST_RECORD_BYTES).map(|value| value.value().to_vec()))
}

pub(super) fn names(database: &Database, prefix: &str) -> Result<Vec<String>, Trouble> {
    let table = database.begin_read()?.open_table(RECORDS)?;
    let mut names = Vec::new();
    for entry in table.range(prefix..)? {
        let name = entry?.0.value().to_owned();
        if !name.starts_with(prefix) || names.len() >= MOST_NAMES {
            break;
        }
        if name.len() <= MOST_NAME_BYTES {
            names.push(name);
        }
    }
    Ok(names)
}

pub(super) fn write(database: &Database, records: &[Record]) -> Result<(), Trouble> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(RECORDS)?;
        for (name, value) in records {
            match value {
                Some(value) => drop(table.insert(name.as_str(), value.as_slice())?),
                None => drop(table.remove(name.as_str())?),
            }
        }
    }
    Ok(transaction.commit()?)
}
