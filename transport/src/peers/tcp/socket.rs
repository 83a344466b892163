//! Sockets as connections between hosts need them.

use std::{io, net::SocketAddr, time::Duration};

use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 1024;
/// A host that vanished without a word is asked for a sign after so long, and then so often.
const QUIET: Duration = Duration::from_secs(5);
const SIGN_EVERY: Duration = Duration::from_secs(1);

/// A connection, plain or with TLS.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}
pub(super) type Stream = Box<dyn Duplex>;

pub(super) fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// An IPv4 address as such where a socket for both kinds has it as one of IPv6.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        // Its scope says on which interface it is.
        ip if ip == address.ip() => address,
        ip => SocketAddr::new(ip, address.port()),
    }
}

/// An address of all kinds of IPv6 takes IPv4 too.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Small messages go at once, and a host that takes nothing, or is silent also to the kernel's questions, is given up
/// after `gone`.
pub(super) fn prepare(stream: &TcpStream, gone: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, QUIET)?;
    sockopt::set_tcp_keepintvl(stream, SIGN_EVERY)?;
    sockopt::set_tcp_user_timeout(stream, gone.as_millis().try_into().unwrap_or(u32::MAX))?;
    Ok(())
}

/// Says `last`, then reads on until the other side has closed too, `within` at most: a socket that is closed with bytes
/// unread takes back what is on its way.
pub(super) async fn part(mut stream: TcpStream, last: &[u8], within: Duration) {
    let parting = async {
        stream.write_all(last).await?;
        stream.shutdown().await?;
        let mut rest = [0; 4096];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    if let Ok(Err(error)) = timeout(within, parting).await {
        tracing::debug!(%error, "the other side may not have heard the last words");
    }
}
