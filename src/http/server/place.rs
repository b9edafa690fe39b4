//! One address that is listened on: bound, handed from server to server, and let go of.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket};

use super::socket::Socket;
use crate::config::Listen;

/// Connections that the kernel keeps for us until they are accepted; it has a limit of its own.
pub(super) const BACKLOG: u32 = 1024;

/// An address that could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; {advice}")]
pub struct BindError {
    pub address: Listen,
    advice: &'static str,
    #[source]
    source: io::Error,
}

impl BindError {
    pub(super) fn new(address: Listen, source: io::Error) -> BindError {
        let advice = match source.kind() {
            io::ErrorKind::AddrInUse => "another process listens there: stop it, or choose another port",
            _ if matches!(address, Listen::Unix(_)) => "its folder has to be there and writable for this user",
            io::ErrorKind::PermissionDenied => "choose a port above 1023, or grant CAP_NET_BIND_SERVICE",
            io::ErrorKind::AddrNotAvailable => "this machine has no such address: use one of its own, 0.0.0.0 or [::]",
            _ => "check the address",
        };
        BindError {
            address,
            advice,
            source,
        }
    }
}

/// A socket that listens. Clones are the same one; the last that is dropped closes it.
#[derive(Clone, Debug)]
pub struct Bound(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// As the operator wrote it; `None`: somebody else bound it.
    wanted: Option<Listen>,
    /// Port 0 has become a real one.
    at: Listen,
    socket: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Tcp(TcpListener),
    Unix(Socket),
}

impl Bound {
    /// Listens; nothing is accepted yet. Not blocking, but within a runtime.
    ///
    /// `leaving` are sockets of ours that will be let go of when this one serves: `127.0.0.1:5000` becomes `0.0.0.0:5000`
    /// without a moment in which neither listens.
    pub fn bind(wanted: &Listen, leaving: &[Bound]) -> Result<Bound, BindError> {
        let bound = match wanted {
            Listen::Tcp(address) => {
                let in_the_way: Vec<&Bound> = leaving.iter().filter(|bound| bound.overlaps(*address)).collect();
                let bound = bind_tcp(*address, &in_the_way).or_else(|error| match every_ipv4(*address, &error) {
                    Some(ipv4) => bind_tcp(ipv4, &in_the_way),
                    None => Err(error),
                });
                bound.and_then(|listener| {
                    let at = Listen::Tcp(listener.local_addr()?);
                    Ok((at, Kind::Tcp(listener)))
                })
            }
            Listen::Unix(path) => Socket::bind(path).map(|socket| (wanted.clone(), Kind::Unix(socket))),
        };
        let (at, socket) = bound.map_err(|error| BindError::new(wanted.clone(), error))?;
        Ok(Bound(Arc::new(Inner {
            wanted: Some(wanted.clone()),
            at,
            socket,
        })))
    }

    /// Takes over a socket that somebody else bound.
    pub fn adopt(socket: std::net::TcpListener) -> io::Result<Bound> {
        socket.set_nonblocking(true)?;
        let listener = TcpListener::from_std(socket)?;
        Ok(Bound(Arc::new(Inner {
            wanted: None,
            at: Listen::Tcp(listener.local_addr()?),
            socket: Kind::Tcp(listener),
        })))
    }

    /// Where it listens.
    pub fn at(&self) -> &Listen {
        &self.0.at
    }

    /// As the operator wrote it; `None`: somebody else bound it.
    pub fn wanted(&self) -> Option<&Listen> {
        self.0.wanted.as_ref()
    }

    pub fn is(&self, other: &Bound) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(super) fn socket(&self) -> &Kind {
        &self.0.socket
    }

    /// Whether the kernel would take the two for one address: a wildcard has its port everywhere.
    fn overlaps(&self, address: SocketAddr) -> bool {
        let Listen::Tcp(own) = &self.0.at else { return false };
        let wild = own.ip().is_unspecified() || address.ip().is_unspecified();
        own.port() == address.port() && (wild || own.ip() == address.ip())
    }

    fn share(&self, shared: bool) -> io::Result<()> {
        match &self.0.socket {
            Kind::Tcp(listener) => Ok(sockopt::set_socket_reuseport(listener, shared)?),
            Kind::Unix(_) => Ok(()),
        }
    }
}

/// Returns 0.0.0.0 with the port of `address` if that is every interface of a machine without IPv6: `:5000` is then every
/// interface all the same.
fn every_ipv4(address: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    use rustix::io::Errno;
    let without_ipv6 = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].map(|errno| Some(errno.raw_os_error()));
    let every = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    (address.ip() == every && without_ipv6.contains(&error.raw_os_error()))
        .then(|| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()))
}

/// An address is shared for the moment of binding only, and with sockets of this process only: at any other time a second
/// proxy is to find that it is taken.
fn bind_tcp(address: SocketAddr, in_the_way: &[&Bound]) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    if in_the_way.is_empty() {
        socket.bind(address)?;
        return socket.listen(BACKLOG);
    }
    in_the_way.iter().try_for_each(|bound| bound.share(true))?;
    let listening = socket.set_reuseport(true).and_then(|()| {
        socket.bind(address)?;
        socket.listen(BACKLOG)
    });
    let alone = in_the_way.iter().try_for_each(|bound| bound.share(false));
    let listener = listening?;
    alone?;
    sockopt::set_socket_reuseport(&listener, false)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    /// Only every interface of a machine without IPv6 may become another address.
    #[test]
    fn every_interface_without_ipv6() {
        let ipv4 = |address: &str, errno: Errno| every_ipv4(address.parse().unwrap(), &errno.into());
        let every: SocketAddr = "0.0.0.0:5000".parse().unwrap();
        for errno in [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL] {
            assert_eq!(ipv4("[::]:5000", errno), Some(every));
            assert_eq!(ipv4("[::1]:5000", errno), None);
            assert_eq!(ipv4("192.0.2.7:5000", errno), None);
        }
        assert_eq!(ipv4("[::]:5000", Errno::ADDRINUSE), None);
    }
}
