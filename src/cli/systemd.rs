//! What systemd hands over and wants to hear: sockets (sd_listen_fds(3)), readiness and signs of life (sd_notify(3)).
//! Without systemd all of it does nothing.

use std::convert::Infallible;
use std::net::TcpListener;

use listenfd::ListenFd;
use sd_notify::NotifyState;

use crate::app::Sockets;

/// The sockets that this process was started with. One whose name (`FileDescriptorName=`) is `admin` is for
/// operators, any other is the registry.
///
/// Errors: a socket that is none to accept TCP connections on.
pub(super) fn sockets() -> Result<Sockets, String> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut given = ListenFd::from_env();
    let mut sockets = Sockets::default();
    for at in 0..given.len() {
        let name = names.next().unwrap_or_default();
        let socket = given.take_tcp_listener(at).ok().flatten().filter(accepts);
        let Some(socket) = socket else {
            return Err(format!(
                "socket {} of LISTEN_FDS ({name:?}) is no listening TCP socket: expected ListenStream= with a port",
                at + 1
            ));
        };
        match name {
            "admin" => sockets.admin.push(socket),
            _ => sockets.registry.push(socket),
        }
    }
    Ok(sockets)
}

/// Not one end of a connection (`Accept=yes`).
fn accepts(socket: &TcpListener) -> bool {
    rustix::net::sockopt::socket_acceptconn(socket).unwrap_or(false)
}

/// Serves; says so, and where.
pub(super) fn tell_ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Reads its configuration again; systemd wants to know since when (sd_notify(3)).
pub(super) fn tell_reloading() {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
    tell(&[NotifyState::Reloading, NotifyState::MonotonicUsec(micros)]);
}

/// Has read it.
pub(super) fn tell_reloaded(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

pub(super) fn tell_stopping() {
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status("running responses may finish"),
    ]);
}

/// Shows signs of life twice as often as the watchdog wants them, if there is one.
pub(super) async fn feed_watchdog() -> Infallible {
    let Some(patience) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    let mut tick = tokio::time::interval(patience / 2);
    loop {
        tick.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd could not be told");
    }
}
