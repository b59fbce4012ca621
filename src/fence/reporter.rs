//! A reporter: beats while what it writes reaches the disk. It hangs with the disk, for ever if need be: nothing waits for it.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::disk::{Disk, Trouble};
use super::wire::{Answer, Registration, Request, line};

/// While something is wrong: the end of it is to be seen at once.
const SOON: Duration = Duration::from_millis(50);
/// Between two tries to reach the monitor.
const AGAIN: Duration = Duration::from_millis(200);
/// How long the monitor may take for an answer, or to take a line.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a reporter's lines go.
pub(super) enum Line {
    /// A thread of the monitor itself: the folder is known already.
    Inside(UnixStream),
    /// A monitor elsewhere, which may come and go.
    Outside {
        socket: PathBuf,
        registration: Registration,
        stream: Option<UnixStream>,
        /// What went wrong last, so that it is said once.
        fault: Option<String>,
    },
}

impl Line {
    pub(super) fn outside(socket: PathBuf, registration: Registration) -> Self {
        Self::Outside {
            socket,
            registration,
            stream: None,
            fault: None,
        }
    }

    /// Whether it was said. What could not be said is said by the next beat, or never.
    fn say(&mut self, request: &Request) -> bool {
        match self {
            Self::Inside(stream) => stream.write_all(&line(request)).is_ok(),
            Self::Outside {
                socket,
                registration,
                stream,
                fault,
            } => {
                let said = (|| {
                    let open = match stream {
                        Some(open) => open,
                        None => stream.insert(register(socket, registration)?),
                    };
                    open.write_all(&line(request)).map_err(|error| error.to_string())
                })();
                match said {
                    Ok(()) => {
                        if fault.take().is_some() {
                            tracing::info!(
                                folder = registration.folder,
                                "the monitor hears this reporter again"
                            );
                        }
                        true
                    }
                    Err(why) => {
                        *stream = None;
                        if fault.as_ref() != Some(&why) {
                            tracing::error!(folder = registration.folder, socket = %socket.display(), why, "cannot report; trying again");
                            *fault = Some(why);
                        }
                        false
                    }
                }
            }
        }
    }
}

fn register(socket: &PathBuf, registration: &Registration) -> Result<UnixStream, String> {
    let reach = |error: io::Error| format!("cannot reach the monitor: {error}");
    let mut stream = UnixStream::connect(socket).map_err(reach)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(reach)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(reach)?;
    stream
        .write_all(&line(&Request::Register(registration.clone())))
        .map_err(reach)?;
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).map_err(reach)?;
    match serde_json::from_str(&answer) {
        Ok(Answer::Ok(_)) => Ok(stream),
        Ok(Answer::Error(why)) => Err(why),
        Err(error) => Err(format!("the monitor's answer makes no sense: {error}")),
    }
}

/// Beats until somebody says that it is over, `sleep` after each beat.
pub(super) fn report(folder: &str, mut disk: Disk, sleep: Duration, mut line: Line, over: &Receiver<()>) {
    let mut short_of = None;
    loop {
        let beat = disk.beat();
        let device = disk.device();
        let pause = if beat.is_ok() { sleep } else { sleep.min(SOON) };
        let request = match beat {
            Ok((took, how)) => {
                short_of = None;
                Some(Request::Beat {
                    folder: folder.to_owned(),
                    took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
                    how,
                    device,
                })
            }
            Err(Trouble {
                kind: Some(kind),
                text,
            }) => Some(Request::Failed {
                folder: folder.to_owned(),
                kind,
                text,
                device,
            }),
            Err(Trouble { kind: None, text }) => {
                if short_of.as_ref() != Some(&text) {
                    tracing::warn!(folder, error = text, "cannot try the disk; trying again");
                    short_of = Some(text);
                }
                None
            }
        };
        let said = request.is_none_or(|request| line.say(&request));
        let pause = if said { pause } else { pause.min(AGAIN) };
        match over.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return drop(line),
        }
    }
}

impl Drop for Line {
    /// A reporter that ends in the open says so.
    fn drop(&mut self) {
        if let Self::Outside {
            registration,
            stream: Some(stream),
            ..
        } = self
        {
            let goodbye = Request::Goodbye {
                folder: registration.folder.clone(),
            };
            let _ = stream.write_all(&line(&goodbye));
        }
    }
}
