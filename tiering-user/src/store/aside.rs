//! Keeps a file that cannot be used under another name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Most files that are kept; then the last one is replaced.
const MOST: u32 = 9;

/// Renames the file to the first of FILE.broken-1, FILE.broken-2 and so on that is free. Returns its new name.
pub(super) fn put(file: &Path) -> io::Result<PathBuf> {
    let name = |number: u32| {
        let mut name = file.as_os_str().to_owned();
        name.push(format!(".broken-{number}"));
        PathBuf::from(name)
    };
    let free = (1..MOST).map(name).find(|path| !path.exists()).unwrap_or_else(|| name(MOST));
    fs::rename(file, &free)?;
    Ok(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_files_are_kept_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state");
        for number in 1..12 {
            fs::write(&file, number.to_string()).unwrap();
            let aside = put(&file).unwrap();
            assert_eq!(fs::read_to_string(aside).unwrap(), number.to_string());
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 9);
    }
}
