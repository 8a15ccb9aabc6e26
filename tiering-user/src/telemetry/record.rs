//! A recording on its way to whoever asked for it.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Bytes, HttpBody};
use hyper::body::Frame;
use tokio::sync::mpsc;

/// Blocks that may wait to be read: 16 MiB.
pub(super) const BLOCKS: usize = 256;

/// The blocks as they come, until there will be no more.
pub(super) struct Blocks(pub mpsc::Receiver<Vec<u8>>);

impl HttpBody for Blocks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|block| block.map(|block| Ok(Frame::data(block.into()))))
    }
}
