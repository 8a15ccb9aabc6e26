//! A record with a header: a line of JSON, then the rest as it is.

use serde::{Serialize, de::DeserializeOwned};

/// A header, and what it is of.
#[derive(Debug)]
pub struct Kept<H> {
    pub header: H,
    pub bytes: Vec<u8>,
}

impl<H: Serialize + DeserializeOwned> Kept<H> {
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let header = serde_json::from_slice(&bytes[..end]).ok()?;
        Some(Self { header, bytes: bytes[end + 1..].to_vec() })
    }

    pub fn record(&self) -> Vec<u8> {
        // Numbers and text always become JSON.
        let mut bytes = serde_json::to_vec(&self.header).unwrap_or_default();
        bytes.push(b'\n');
        bytes.extend_from_slice(&self.bytes);
        bytes
    }
}
