//! The client's end of a SPDY connection, for tests.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, FlushCompress};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use super::{
    CANCEL, FLAG_FIN, PING, RST_STREAM, SYN_REPLY, SYN_STREAM, control, dictionary,
    put_flags_and_size,
};

const DEADLINE: Duration = Duration::from_secs(20);

/// What the server sends on a stream.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::server) enum Told {
    Data { id: u32, data: Bytes, fin: bool },
    Reset { id: u32 },
}

/// A client that opens streams.
pub(in crate::server) struct Client<C> {
    reader: ReadHalf<C>,
    writer: WriteHalf<C>,
    deflate: Compress,
    next: u32,
}

impl<C: AsyncRead + AsyncWrite> Client<C> {
    pub(in crate::server) fn new(connection: C) -> Self {
        let (reader, writer) = tokio::io::split(connection);
        let mut deflate = Compress::new(Compression::fast(), true);
        deflate.set_dictionary(dictionary()).expect("a dictionary");
        Self {
            reader,
            writer,
            deflate,
            next: 1,
        }
    }

    /// Opens a stream; returns its id.
    pub(in crate::server) async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let length = |text: &str| u32::try_from(text.len()).expect("short");
        let mut plain = Vec::new();
        plain.put_u32(u32::try_from(headers.len()).expect("few"));
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.put_u32(length(text));
            plain.extend_from_slice(text.as_bytes());
        }
        let mut block = Vec::with_capacity(4096);
        self.deflate
            .compress_vec(&plain, &mut block, FlushCompress::Sync)
            .expect("packed");
        let id = self.next;
        self.next += 2;
        let mut frame = BytesMut::new();
        control(&mut frame, SYN_STREAM, 10 + block.len());
        frame.put_u32(id);
        frame.put_u32(0);
        frame.put_u16(0);
        frame.extend_from_slice(&block);
        self.send(&frame).await;
        id
    }

    /// Writes to a stream; `fin` says that no more comes.
    pub(in crate::server) async fn write(&mut self, id: u32, data: &[u8], fin: bool) {
        let mut frame = BytesMut::new();
        frame.put_u32(id);
        put_flags_and_size(&mut frame, if fin { FLAG_FIN } else { 0 }, data.len());
        frame.extend_from_slice(data);
        self.send(&frame).await;
    }

    /// Gives a stream up.
    pub(in crate::server) async fn reset(&mut self, id: u32) {
        let mut frame = BytesMut::new();
        control(&mut frame, RST_STREAM, 8);
        frame.put_u32(id);
        frame.put_u32(CANCEL);
        self.send(&frame).await;
    }

    async fn send(&mut self, frame: &[u8]) {
        self.writer.write_all(frame).await.expect("sent");
        self.writer.flush().await.expect("sent");
    }

    /// What comes next; `None` at the connection's end.
    pub(in crate::server) async fn next(&mut self) -> Option<Told> {
        tokio::time::timeout(DEADLINE, self.frame())
            .await
            .expect("the server says something")
    }

    async fn frame(&mut self) -> Option<Told> {
        loop {
            let mut head = [0; 8];
            self.reader.read_exact(&mut head).await.ok()?;
            let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            let size = u32::from_be_bytes([0, head[5], head[6], head[7]]);
            let mut body = vec![0; usize::try_from(size).expect("small")];
            self.reader.read_exact(&mut body).await.ok()?;
            if first >> 31 == 0 {
                let (data, fin) = (Bytes::from(body), head[4] & FLAG_FIN != 0);
                return Some(Told::Data {
                    id: first,
                    data,
                    fin,
                });
            }
            match (first & 0xffff) as u16 {
                SYN_REPLY | PING => {}
                RST_STREAM => {
                    let id = u32::from_be_bytes([body[0], body[1], body[2], body[3]]);
                    return Some(Told::Reset { id });
                }
                other => panic!("a frame of type {other}"),
            }
        }
    }
}
