//! The folder of a swap tier: made if it is not there, and removed again only then. One in which others than root could
//! exchange files is refused.
//!
//! In: the path in the configuration. Out: the folder as `/proc/swaps` will show it. A mark on it
//! ([`mark_folder`]) tells the agent that made it and any later one that it may be removed when it is empty.

use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::area::AreaError;
use super::files::FileId;
use crate::sys::{folder_is_marked, mark_folder};

/// Makes the folder if it is not there, with those above it. Returns where it really is, and which one it is.
///
/// # Errors
/// [`AreaError::NotRoots`], [`AreaError::Io`].
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
    refuse_others(&real, &found)?;
    Ok((real, FileId::of(&found)))
}

/// Whether the folder could be used as it is. One that is not there will be made.
///
/// # Errors
/// [`AreaError::NotRoots`].
pub(super) fn check(folder: &Path) -> Result<(), AreaError> {
    fs::metadata(folder).map_or(Ok(()), |found| refuse_others(folder, &found))
}

/// Refuses a folder that others can write to.
fn refuse_others(folder: &Path, found: &Metadata) -> Result<(), AreaError> {
    const WRITE_OF_OTHERS: u32 = 0o022;
    let (uid, mode) = (found.uid(), found.mode() & 0o7777);
    // The agent is root.
    let is_ours = uid == 0 || uid == geteuid().as_raw();
    if is_ours && mode & WRITE_OF_OTHERS == 0 {
        return Ok(());
    }
    Err(AreaError::NotRoots { path: folder.to_owned(), uid, mode })
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
    use std::os::unix::fs::PermissionsExt as _;

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
    fn a_folder_that_others_can_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let has = |mode| fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
        for mode in [0o770, 0o757, 0o1777] {
            has(mode);
            let error = make(folder.path()).unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:04o}")) && error.contains("chmod go-w"), "{error}");
            check(folder.path()).unwrap_err();
        }
        has(0o755);
        make(folder.path()).unwrap();
        check(folder.path()).unwrap();
        check(&folder.path().join("none")).unwrap();
        // Only root can give it away.
        if std::os::unix::fs::chown(folder.path(), Some(65_534), None).is_ok() {
            let error = make(folder.path()).unwrap_err().to_string();
            assert!(error.contains("user 65534") && error.contains("chown root"), "{error}");
        }
    }

    #[test]
    fn a_path_that_leads_to_no_folder_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        make(&file.path().join("below")).unwrap_err();
    }
}
