//! The Unix socket at which a daemon answers its own commands.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use tokio::net::UnixListener;

use super::Failure;

/// Listens at `socket`, open to all users of this host: who may do what is for the daemon to decide, who may come at all, for the folder.
///
/// One that is left of a daemon that has ended is taken away; that none lives there is for the caller to find out before. `program` names the folder of the
/// unit's RuntimeDirectory= in the remedy.
///
/// # Errors
/// When something else is there, or the folder is not, or is not ours.
pub fn listen_at(socket: &Path, program: &str) -> Result<UnixListener, Failure> {
    let shown = socket.display();
    let fault = |error: io::Error| {
        Failure::failed(format!(
            "cannot listen on {shown}: {error}; set RuntimeDirectory={program} in the unit, or choose another --socket"
        ))
    };
    match std::fs::symlink_metadata(socket) {
        Ok(meta) if meta.file_type().is_socket() => std::fs::remove_file(socket).map_err(fault)?,
        Ok(_) => {
            return Err(Failure::config(format!(
                "{shown} is there already, and is no socket; choose another --socket"
            )));
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(socket).map_err(fault)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o666)).map_err(fault)?;
    Ok(listener)
}
