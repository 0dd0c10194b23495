//! Questions for others: to the name servers in the node's `resolv.conf`, one after the other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use hickory_server::proto::op::Message;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long a name server has to answer. A client usually gives up after 5 s, and there may be a second server to ask.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often it is looked whether `resolv.conf` changed.
const LOOK: Duration = Duration::from_secs(5);

/// As many servers as the C library asks, too (`MAXNS`).
const MOST_SERVERS: usize = 3;

/// The longest answer over UDP that we ask for.
const UDP_BYTES: usize = 4096;

/// The node's name servers.
pub struct Forwarder {
    resolv_conf: PathBuf,
    /// Our own address: asking ourselves would never end.
    own: IpAddr,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    looked: Option<Instant>,
    modified: Option<SystemTime>,
    servers: Vec<SocketAddr>,
}

/// Over what a question came, and goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// UDP; if the answer does not fit, the client will ask again over TCP.
    Udp,
    /// TCP.
    Tcp,
}

impl Forwarder {
    /// The servers that `resolv_conf` names, whenever it changes, but `own`.
    pub fn new(resolv_conf: PathBuf, own: IpAddr) -> Self {
        Self {
            resolv_conf,
            own,
            known: Mutex::default(),
        }
    }

    /// Asks the servers in order until one answers. `None` if none does, or there is none.
    pub async fn ask(&self, question: &[u8], transport: Transport) -> Option<Message> {
        for server in self.servers() {
            let answer = match transport {
                Transport::Udp => timeout(PATIENCE, ask_udp(server, question)).await,
                Transport::Tcp => timeout(PATIENCE, ask_tcp(server, question)).await,
            };
            match answer {
                Ok(Ok(message)) => return Some(message),
                Ok(Err(error)) => tracing::debug!(%server, %error, "a name server failed"),
                Err(_) => tracing::debug!(%server, "a name server did not answer in time"),
            }
        }
        None
    }

    fn servers(&self) -> Vec<SocketAddr> {
        let mut known = self.known.lock();
        if known.looked.is_none_or(|looked| looked.elapsed() > LOOK) {
            known.looked = Some(Instant::now());
            let modified = modified(&self.resolv_conf);
            if modified.is_none() || known.modified != modified {
                known.modified = modified;
                // Without the file there is nobody to ask; the C library would try this machine.
                let text = std::fs::read_to_string(&self.resolv_conf).unwrap_or_default();
                known.servers = parse(&text, self.own);
            }
        }
        known.servers.clone()
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().ok()?.modified().ok()
}

/// The `nameserver` lines of resolv.conf(5).
fn parse(text: &str, own: IpAddr) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then_some(())?;
        // A link-local address may have a zone, which only the C library understands.
        words.next()?.parse::<IpAddr>().ok()
    });
    let others = servers.filter(|ip| *ip != own).take(MOST_SERVERS);
    others.map(|ip| SocketAddr::new(ip, 53)).collect()
}

/// The question with a number of its own, which (with the port) an answer must know to be believed.
fn renumbered(question: &[u8]) -> std::io::Result<(u16, Vec<u8>)> {
    let id: u16 = rand::random();
    let mut bytes = question.to_vec();
    let head = bytes
        .first_chunk_mut::<2>()
        .ok_or(std::io::ErrorKind::InvalidInput)?;
    *head = id.to_be_bytes();
    Ok((id, bytes))
}

fn answer_to(question: &[u8], id: u16, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let asked = Message::from_vec(question).ok()?;
    (answer.metadata.id == id && answer.queries == asked.queries).then_some(answer)
}

async fn ask_udp(server: SocketAddr, question: &[u8]) -> std::io::Result<Message> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(server).await?;
    let (id, bytes) = renumbered(question)?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; UDP_BYTES];
    loop {
        let len = socket.recv(&mut buffer).await?;
        // Anything else is forged or late; the right one may still come.
        if let Some(answer) = answer_to(question, id, &buffer[..len]) {
            return Ok(answer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, question: &[u8]) -> std::io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let (id, bytes) = renumbered(question)?;
    let len = u16::try_from(bytes.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    stream
        .write_all(&[&len.to_be_bytes(), bytes.as_slice()].concat())
        .await?;
    let len = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(len)];
    stream.read_exact(&mut buffer).await?;
    answer_to(question, id, &buffer).ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_of_resolv_conf_but_ourselves() {
        let text = "# comment\nsearch example.org\nnameserver 10.43.0.10\nnameserver 1.1.1.1\n\
                    nameserver fe80::1%eth0\nnameserver ::1\noptions ndots:5\n";
        let servers = parse(text, "10.43.0.10".parse().unwrap());
        let wanted: Vec<SocketAddr> = ["1.1.1.1:53", "[::1]:53"]
            .map(|s| s.parse().unwrap())
            .into();
        assert_eq!(servers, wanted);
    }
}
