//! Connections that this host makes.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    net::{TcpStream, lookup_host},
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::{
    events::Told,
    link::{self, Ending, LinkEnd},
    shared::Shared,
    socket::{self, Stream},
};
use crate::peers::{links::LinkId, tls};

struct Made {
    stream: Stream,
    certified: Option<String>,
    local: SocketAddr,
    remote: SocketAddr,
}

/// The whole life of a link that is dialled.
pub(super) async fn dial(shared: Arc<Shared>, link: LinkId, mut end: LinkEnd, name: String, address: String) {
    let _task = shared.task();
    let mut ending = Ending::new(&shared, link);
    let until = Instant::now() + shared.limits.connect;
    let made = tokio::select! {
        made = connect(&shared, &name, &address, until) => made,
        // Hung up before it was made.
        _ = &mut end.stopped => return ending.hung_up(),
    };
    let Made { stream, certified, local, remote } = match made {
        Ok(made) => made,
        Err(reason) => return ending.closed(format!("{address}: {reason}")),
    };
    shared.events.tell(Told::Dialled { link, certified, local, remote });
    let (reader, writer) = link::split(stream);
    link::run(&shared, &mut ending, reader, writer, end).await;
}

async fn connect(shared: &Shared, name: &str, address: &str, until: Instant) -> Result<Made, String> {
    let limit = shared.limits.connect;
    let found = timeout_at(until, lookup_host(address)).await;
    let found = found.map_err(|_| format!("its name was not resolved within {limit:?}"))?;
    let mut addresses: Vec<SocketAddr> = found.map_err(|error| format!("its name is not resolved: {error}"))?.collect();
    if shared.credentials.is_none() {
        addresses.retain(|address| socket::is_loopback(*address));
        if addresses.is_empty() {
            return Err(
                "it is on another host, and this one has no certificates: give peers.ca, peers.certificate and \
                        peers.key (`lapis cert` makes them)"
                    .into(),
            );
        }
    }
    let stream = connect_any(&addresses, until, limit).await?;
    let broken = |error: io::Error| error.to_string();
    socket::prepare(&stream, shared.limits.stalled).map_err(broken)?;
    let (local, remote) = (stream.local_addr().map_err(broken)?, stream.peer_addr().map_err(broken)?);
    let (local, remote) = (socket::canonical(local), socket::canonical(remote));
    let Some(credentials) = &shared.credentials else {
        return Ok(Made { stream: Box::new(stream), certified: None, local, remote });
    };
    let server_name = tls::server_name(name).map_err(|error| error.to_string())?;
    let connector = TlsConnector::from(credentials.identity().client().clone());
    let shaken = timeout_at(until, connector.connect(server_name, stream)).await;
    let stream =
        shaken.map_err(|_| format!("no handshake of TLS within {limit:?}"))?.map_err(|error| unshaken(&error))?;
    tls::check_peer(stream.get_ref().1, name).map_err(|error| error.to_string())?;
    Ok(Made { stream: Box::new(stream), certified: Some(name.into()), local, remote })
}

/// To the first address that answers; each has its share of the time.
async fn connect_any(
    addresses: &[SocketAddr],
    until: Instant,
    limit: std::time::Duration,
) -> Result<TcpStream, String> {
    let mut reason = "its name has no address".to_owned();
    for (at, &address) in addresses.iter().enumerate() {
        let left = until.saturating_duration_since(Instant::now());
        let share = left / (addresses.len() - at) as u32;
        match timeout_at(Instant::now() + share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => reason = error.to_string(),
            Err(_) => reason = format!("no answer within {limit:?}"),
        }
    }
    Err(reason)
}

fn unshaken(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            "the other side closed the connection instead of speaking TLS: it may have no certificates (peers.ca)"
                .into()
        }
        _ => tls::reason(error),
    }
}
