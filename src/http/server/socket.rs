//! A Unix socket to listen at: its file, from bind to unlink.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as Dialled;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// Owner and group may connect; who else may is for the folder's and the file's permissions to say.
const MODE: u32 = 0o660;

/// Dropped, its file is gone.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    /// A socket file that a process left behind is replaced; one that answers, and anything else, is not.
    pub(super) fn bind(path: &Path) -> io::Result<Socket> {
        if let Ok(meta) = std::fs::symlink_metadata(path)
            && meta.file_type().is_socket()
        {
            match Dialled::connect(path) {
                Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
                Err(error) => return Err(error),
            }
        }
        let socket = Socket {
            listener: UnixListener::bind(path)?,
            path: path.to_owned(),
        };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
        Ok(socket)
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
