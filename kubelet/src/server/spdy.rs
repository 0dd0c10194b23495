//! SPDY/3.1 framing, as far as exec, attach and port-forward use it: the client opens streams, both sides write.
//!
//! Source: the SPDY protocol, draft 3.1. Flow control is not used: the clients of Kubernetes (moby/spdystream)
//! neither send nor heed window updates.

#[cfg(test)]
pub(super) mod client;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;
const CANCEL: u32 = 5;
/// The most that one frame may hold, in bytes, and the most that a block of headers unpacks to.
const MAX_FRAME: usize = 1 << 20;
const MAX_HEADERS: usize = 64 * 1024;
/// The most data in one frame that we write.
const MAX_DATA: usize = 32 * 1024;
/// How often a client is asked whether it is there, in case that nothing else is written: a connection that is gone is noticed
/// by what cannot be written to it, even while nothing is read because a process does not read.
const PING_PERIOD: Duration = Duration::from_secs(30);
/// How many streams one connection may have open.
const MAX_STREAMS: usize = 1024;

/// The names that begin the dictionary, each with its length before it.
const DICTIONARY_NAMES: &str = "options head post put delete trace accept accept-charset accept-encoding \
    accept-language accept-ranges age allow authorization cache-control connection content-base content-encoding \
    content-language content-length content-location content-md5 content-range content-type date etag expect expires \
    from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location \
    max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer \
    transfer-encoding upgrade user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 \
    url public set-cookie keep-alive origin";
/// The rest of the dictionary.
const DICTIONARY_TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417\
    502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 \
    Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,\
    text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,public\
    privatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The dictionary that headers are compressed with (SPDY/3.1, 2.6.10.1).
fn dictionary() -> &'static [u8] {
    static DICTIONARY: OnceLock<Vec<u8>> = OnceLock::new();
    DICTIONARY.get_or_init(|| {
        let mut bytes = Vec::new();
        for name in DICTIONARY_NAMES.split(' ') {
            bytes.put_u32(u32::try_from(name.len()).unwrap_or(0));
            bytes.extend_from_slice(name.replace('_', " ").as_bytes());
        }
        bytes.extend_from_slice(DICTIONARY_TEXT.as_bytes());
        bytes
    })
}

/// A stream's headers, names in lower case.
pub(super) type Headers = BTreeMap<String, String>;

/// A stream that the client opened.
pub(super) struct Stream {
    pub(super) id: u32,
    pub(super) headers: Headers,
    /// Cancelled when the client gives the stream up, both ways.
    pub(super) reset: CancellationToken,
    /// What the client writes; closed at its end.
    pub(super) data: mpsc::Receiver<Bytes>,
    pub(super) writer: StreamWriter,
}

/// The way back to the client. Dropping it leaves the stream half open; [`close`](Self::close) ends it.
#[derive(Clone)]
pub(super) struct StreamWriter {
    id: u32,
    out: mpsc::Sender<Out>,
}

/// The connection is gone.
#[derive(Debug)]
pub(super) struct Gone;

impl StreamWriter {
    pub(super) async fn write(&self, mut data: Bytes) -> Result<(), Gone> {
        while !data.is_empty() {
            let part = data.split_to(data.len().min(MAX_DATA));
            self.out
                .send(Out::Data {
                    id: self.id,
                    data: part,
                    fin: false,
                })
                .await
                .map_err(|_| Gone)?;
        }
        Ok(())
    }

    /// Says that no more comes.
    pub(super) async fn close(&self) -> Result<(), Gone> {
        self.out
            .send(Out::Data {
                id: self.id,
                data: Bytes::new(),
                fin: true,
            })
            .await
            .map_err(|_| Gone)
    }

    /// Gives the stream up, both ways.
    pub(super) async fn reset(&self) -> Result<(), Gone> {
        let reset = Out::Reset { id: self.id };
        self.out.send(reset).await.map_err(|_| Gone)
    }

    /// Waits until the connection is gone.
    pub(super) async fn gone(&self) {
        self.out.closed().await;
    }
}

enum Out {
    Reply {
        id: u32,
    },
    Data {
        id: u32,
        data: Bytes,
        fin: bool,
    },
    Reset {
        id: u32,
    },
    /// A question of ours, or the answer to one of the client's: they look the same.
    Ping {
        id: u32,
    },
}

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpdyError {
    #[error("read or write a frame")]
    Io { source: io::Error },
    #[error("a frame of {size} bytes is too large")]
    TooLarge { size: usize },
    #[error("a frame is malformed: {what}")]
    Malformed { what: &'static str },
}

fn io_error(source: io::Error) -> SpdyError {
    SpdyError::Io { source }
}

/// Speaks SPDY over `connection`; `accept` gets the streams that the client opens. Ends with the connection.
pub(super) async fn serve<C>(connection: C, accept: mpsc::Sender<Stream>) -> Result<(), SpdyError>
where
    C: AsyncRead + AsyncWrite,
{
    let (reader, writer) = tokio::io::split(connection);
    let (out, queue) = mpsc::channel(64);
    // A connection whose client stopped talking is over; one that cannot be written to as well.
    tokio::select! {
        result = read(reader, accept, out) => result,
        result = write(writer, queue) => result,
    }
}

struct Open {
    data: Option<mpsc::Sender<Bytes>>,
    reset: CancellationToken,
}

async fn read<R: AsyncRead + Unpin>(
    mut reader: R,
    accept: mpsc::Sender<Stream>,
    out: mpsc::Sender<Out>,
) -> Result<(), SpdyError> {
    let mut inflate = Decompress::new(true);
    let mut streams: HashMap<u32, Open> = HashMap::new();
    loop {
        let mut head = [0; 8];
        match reader.read_exact(&mut head).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other.map_err(io_error)?,
        };
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let flags = head[4];
        let size = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
        if size > MAX_FRAME {
            return Err(SpdyError::TooLarge { size });
        }
        let mut body = vec![0; size];
        reader.read_exact(&mut body).await.map_err(io_error)?;
        if first >> 31 == 0 {
            if let Some(stream) = streams.get_mut(&first) {
                if let Some(data) = stream.data.as_ref().filter(|_| !body.is_empty())
                    && data.send(Bytes::from(body)).await.is_err()
                {
                    // Nobody reads it any more; the client may go on for a while.
                    stream.data = None;
                }
                if flags & FLAG_FIN != 0 {
                    stream.data = None;
                }
            }
            continue;
        }
        match (first & 0xffff) as u16 {
            SYN_STREAM => {
                let (id, block) = syn_stream(&body)?;
                // Unpacked even if refused: the compressor's state spans all frames.
                let headers = unpack(&mut inflate, block)?;
                if streams.len() >= MAX_STREAMS {
                    streams.retain(|_, s| s.data.as_ref().is_some_and(|d| !d.is_closed()));
                }
                let (sender, data) = mpsc::channel(64);
                let reset = CancellationToken::new();
                let stream = Stream {
                    id,
                    headers,
                    reset: reset.clone(),
                    data,
                    writer: StreamWriter {
                        id,
                        out: out.clone(),
                    },
                };
                let refused = streams.len() >= MAX_STREAMS || accept.send(stream).await.is_err();
                let answer = if refused {
                    Out::Reset { id }
                } else {
                    let open = (flags & FLAG_FIN == 0).then_some(sender);
                    streams.insert(id, Open { data: open, reset });
                    Out::Reply { id }
                };
                if out.send(answer).await.is_err() {
                    return Ok(());
                }
            }
            RST_STREAM => {
                let id = word(&body, 0)?;
                if let Some(stream) = streams.remove(&id) {
                    stream.reset.cancel();
                }
            }
            PING => {
                let id = word(&body, 0)?;
                // Odd numbers are the client's; even ones would answer us.
                if id % 2 == 1 && out.send(Out::Ping { id }).await.is_err() {
                    return Ok(());
                }
            }
            GOAWAY => return Ok(()),
            // SETTINGS, HEADERS, WINDOW_UPDATE and what is unknown: nothing here depends on them.
            _ => {}
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u32, SpdyError> {
    let part = bytes.get(at..at + 4).ok_or(SpdyError::Malformed {
        what: "it ends early",
    })?;
    Ok(u32::from_be_bytes([part[0], part[1], part[2], part[3]]))
}

fn syn_stream(body: &[u8]) -> Result<(u32, &[u8]), SpdyError> {
    let id = word(body, 0)? & 0x7fff_ffff;
    let block = body.get(10..).ok_or(SpdyError::Malformed {
        what: "a stream without headers",
    })?;
    Ok((id, block))
}

fn unpack(inflate: &mut Decompress, mut block: &[u8]) -> Result<Headers, SpdyError> {
    let malformed = |what| SpdyError::Malformed { what };
    let mut plain = Vec::with_capacity(1024);
    let mut stalled = 0;
    while !block.is_empty() {
        let before = inflate.total_in();
        let length = plain.len();
        if plain.capacity() - length < 1024 {
            plain.reserve(4096);
        }
        match inflate.decompress_vec(block, &mut plain, FlushDecompress::Sync) {
            Ok(Status::Ok | Status::BufError | Status::StreamEnd) => {}
            Err(error) if error.needs_dictionary().is_some() => {
                inflate
                    .set_dictionary(dictionary())
                    .map_err(|_| malformed("another dictionary"))?;
            }
            Err(_) => return Err(malformed("headers cannot be unpacked")),
        }
        let used = usize::try_from(inflate.total_in() - before).unwrap_or(0);
        block = &block[used.min(block.len())..];
        if plain.len() > MAX_HEADERS {
            return Err(SpdyError::TooLarge { size: plain.len() });
        }
        // The dictionary is asked for once; apart from that every step takes or gives something.
        stalled = if used == 0 && plain.len() == length {
            stalled + 1
        } else {
            0
        };
        if stalled > 2 {
            return Err(malformed("headers cannot be unpacked"));
        }
    }
    let mut headers = Headers::new();
    let mut at = 4;
    for _ in 0..word(&plain, 0)? {
        let mut text = || {
            let size = word(&plain, at)? as usize;
            let part = plain
                .get(at + 4..at + 4 + size)
                .ok_or(malformed("headers end early"))?;
            at += 4 + size;
            Ok::<_, SpdyError>(String::from_utf8_lossy(part).into_owned())
        };
        let name = text()?.to_lowercase();
        headers.insert(name, text()?);
    }
    Ok(headers)
}

async fn write<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut queue: mpsc::Receiver<Out>,
) -> Result<(), SpdyError> {
    let mut deflate = Compress::new(Compression::fast(), true);
    deflate
        .set_dictionary(dictionary())
        .map_err(|_| SpdyError::Malformed {
            what: "the dictionary is refused",
        })?;
    let mut ping = tokio::time::interval(PING_PERIOD);
    ping.reset();
    let mut asked = 0;
    loop {
        // What is not taken stays in its queue.
        let out = tokio::select! {
            next = queue.recv() => match next {
                Some(out) => out,
                None => break,
            },
            _ = ping.tick() => {
                // The server's numbers are even.
                asked += 2;
                Out::Ping { id: asked }
            }
        };
        let mut frame = BytesMut::new();
        match out {
            Out::Reply { id } => {
                let mut block = Vec::with_capacity(256);
                // No headers at all: their number, 0.
                deflate
                    .compress_vec(&0u32.to_be_bytes(), &mut block, FlushCompress::Sync)
                    .map_err(|_| SpdyError::Malformed {
                        what: "headers cannot be packed",
                    })?;
                control(&mut frame, SYN_REPLY, 4 + block.len());
                frame.put_u32(id);
                frame.extend_from_slice(&block);
            }
            Out::Data { id, data, fin } => {
                frame.put_u32(id);
                put_flags_and_size(&mut frame, if fin { FLAG_FIN } else { 0 }, data.len());
                frame.extend_from_slice(&data);
            }
            Out::Reset { id } => {
                control(&mut frame, RST_STREAM, 8);
                frame.put_u32(id);
                frame.put_u32(CANCEL);
            }
            Out::Ping { id } => {
                control(&mut frame, PING, 4);
                frame.put_u32(id);
            }
        }
        writer.write_all(&frame).await.map_err(io_error)?;
        writer.flush().await.map_err(io_error)?;
    }
    writer.shutdown().await.map_err(io_error)
}

fn control(frame: &mut BytesMut, kind: u16, size: usize) {
    frame.put_u16(0x8000 | VERSION);
    frame.put_u16(kind);
    put_flags_and_size(frame, 0, size);
}

fn put_flags_and_size(frame: &mut BytesMut, flags: u8, size: usize) {
    frame.put_u8(flags);
    // Frames are made by us and far below 2^24 bytes.
    frame.put_uint(size as u64, 3);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_that_of_the_protocol() {
        // Adler-32, which zlib names dictionaries by.
        let (mut a, mut b) = (1u32, 0u32);
        for byte in dictionary() {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((dictionary().len(), b << 16 | a), (1423, 0xe3c6_a7c2));
    }

    #[tokio::test]
    async fn a_stream_is_opened_written_and_closed() {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let (accept, mut accepted) = mpsc::channel(4);
        tokio::spawn(async move { serve(server, accept).await });
        let (mut from_server, mut to_server) = tokio::io::split(client);
        let mut plain = Vec::new();
        plain.put_u32(1);
        for text in ["streamtype", "data"] {
            plain.put_u32(u32::try_from(text.len()).expect("short"));
            plain.extend_from_slice(text.as_bytes());
        }
        let mut deflate = Compress::new(Compression::fast(), true);
        deflate.set_dictionary(dictionary()).expect("dictionary");
        let mut block = Vec::with_capacity(1024);
        deflate
            .compress_vec(&plain, &mut block, FlushCompress::Sync)
            .expect("packed");
        let mut frame = BytesMut::new();
        control(&mut frame, SYN_STREAM, 10 + block.len());
        frame.put_u32(1);
        frame.put_u32(0);
        frame.put_u16(0);
        frame.extend_from_slice(&block);
        frame.put_u32(1);
        put_flags_and_size(&mut frame, FLAG_FIN, 5);
        frame.extend_from_slice(b"hello");
        to_server.write_all(&frame).await.expect("written");
        let mut stream = accepted.recv().await.expect("a stream");
        assert_eq!(
            stream.headers.get("streamtype").map(String::as_str),
            Some("data")
        );
        assert_eq!(stream.data.recv().await.as_deref(), Some(&b"hello"[..]));
        assert_eq!(stream.data.recv().await, None);
        stream
            .writer
            .write(Bytes::from_static(b"back"))
            .await
            .expect("sent");
        let mut head = [0; 8];
        from_server.read_exact(&mut head).await.expect("reply");
        assert_eq!(head[..4], [0x80, 3, 0, 2]);
        let mut rest = vec![0; usize::from(head[7])];
        from_server
            .read_exact(&mut rest)
            .await
            .expect("reply's body");
        let mut data = [0; 12];
        from_server.read_exact(&mut data).await.expect("data");
        assert_eq!(&data[8..], b"back");
    }
}
