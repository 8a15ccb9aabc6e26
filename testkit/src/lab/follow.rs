//! A file that another program is still writing: what has been added since the last look.

use std::fs::File;
use std::io::{ErrorKind, Read, Result, Seek, SeekFrom, Write};
use std::path::PathBuf;

#[derive(Debug)]
pub struct Follow {
    path: PathBuf,
    read_bytes: u64,
}

impl Follow {
    pub fn new(path: PathBuf) -> Self {
        Self { path, read_bytes: 0 }
    }

    /// What is new; nothing where the file does not exist yet.
    pub fn news(&mut self) -> Result<Vec<u8>> {
        let mut news = Vec::new();
        match File::open(&self.path) {
            Ok(mut file) => {
                file.seek(SeekFrom::Start(self.read_bytes))?;
                self.read_bytes += file.read_to_end(&mut news)? as u64;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(news)
    }

    /// Writes on what is new.
    pub fn pass_on(&mut self, to: &mut dyn Write) -> Result<()> {
        to.write_all(&self.news()?)?;
        to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_is_told_once_also_of_a_file_that_comes_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut follow = Follow::new(path.clone());
        assert_eq!(follow.news().unwrap(), b"");
        let mut file = File::create(path).unwrap();
        file.write_all(b"half a li").unwrap();
        assert_eq!(follow.news().unwrap(), b"half a li");
        file.write_all(b"ne\n").unwrap();
        assert_eq!(follow.news().unwrap(), b"ne\n");
        assert_eq!(follow.news().unwrap(), b"");
    }
}
