//! The folder of a swap tier: made if it is not there, and removed again only then.
//!
//! In: the path in the configuration. Out: the folder as `/proc/swaps` will show it. A mark on it
//! ([`mark_folder`]) tells the agent that made it and any later one that it may be removed when it is empty.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::area::AreaError;
use super::files::FileId;
use crate::sys::{folder_is_marked, mark_folder};

/// Makes the folder if it is not there, with those above it. Returns where it really is, and which one it is.
///
/// # Errors
/// [`AreaError::Io`].
pub(super) fn make(folder: &Path) -> Result<(PathBuf, FileId), AreaError> {
    let failed = |action| AreaError::io(folder, action);
    if let Some(above) = folder.parent() {
        fs::create_dir_all(above).map_err(failed("create the folder"))?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed("create the folder")(error)),
        Ok(()) => {
            if let Err(error) = mark_folder(folder) {
                tracing::info!(folder = %folder.display(), %error, "cannot mark the folder: it will stay");
            }
        }
    }
    let real = fs::canonicalize(folder).map_err(failed("resolve the folder"))?;
    let found = fs::metadata(&real).map_err(failed("look at the folder"))?;
    Ok((real, FileId::of(&found)))
}

/// Removes the folder, if an agent made it and nothing is in it.
pub(super) fn remove(folder: &Path) {
    if folder_is_marked(folder) {
        fs::remove_dir(folder).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_folder_that_was_made_here_and_is_empty_is_removed() {
        let above = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let (theirs, ours) = (above.path().join("theirs"), above.path().join("more/ours"));
        fs::create_dir(&theirs).unwrap();
        let (real, id) = make(&theirs).unwrap();
        std::os::unix::fs::symlink(&theirs, above.path().join("link")).unwrap();
        assert_eq!(make(&above.path().join("link")).unwrap(), (real.clone(), id), "one folder, two ways");
        remove(&real);
        assert!(theirs.exists());

        let (real, _) = make(&ours).unwrap();
        if !folder_is_marked(&real) {
            // Only root can mark a folder, and not in every file system.
            return;
        }
        fs::write(ours.join("a users file"), "").unwrap();
        remove(&real);
        assert!(ours.exists());
        fs::remove_file(ours.join("a users file")).unwrap();
        remove(&real);
        assert!(!ours.exists());
    }

    #[test]
    fn a_path_that_leads_to_no_folder_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        make(&file.path().join("below")).unwrap_err();
    }
}
