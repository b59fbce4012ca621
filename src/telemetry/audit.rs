//! Who was told what, by whom, and what came of it: entries of the journal with fields of their own, so that
//! `journalctl IO_GUARDIAN_ACTION=drain` finds them (docs/SYSTEMD.md).
//!
//! Where there is no journal they are log lines like others.

use std::fmt::Write;
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;

/// Where the journal takes entries with fields (systemd's "native journal protocol").
const SOCKET: &str = "/run/systemd/journal/socket";

/// Whether standard error is the journal; set when logging starts.
pub(super) static IS_JOURNAL: OnceLock<bool> = OnceLock::new();

/// Writes one entry: `message`, and each field as `IO_GUARDIAN_NAME`. Where the journal does not take it at once it becomes a log
/// line, which may wait as any does.
pub fn audit(message: &str, fields: &[(&str, &str)]) {
    let mut line = message.to_owned();
    for (name, value) in fields {
        // Writing to a String cannot fail.
        let _ = if value.contains(' ') {
            write!(line, " {name}={value:?}")
        } else {
            write!(line, " {name}={value}")
        };
    }
    let sent = *IS_JOURNAL.get().unwrap_or(&false) && send(&entry(&line, fields)).is_ok();
    if !sent {
        tracing::info!("{line}");
    }
}

fn send(entry: &[u8]) -> std::io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to(entry, SOCKET).map(drop)
}

fn entry(line: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut entry = Vec::with_capacity(512);
    let mut add = |name: &str, value: &str| {
        entry.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            // A value that is not one line is told by its length.
            entry.push(b'\n');
            entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            entry.push(b'=');
        }
        entry.extend_from_slice(value.as_bytes());
        entry.push(b'\n');
    };
    add("MESSAGE", line);
    // sd-daemon(3): SD_INFO.
    add("PRIORITY", "6");
    add("SYSLOG_IDENTIFIER", "io-guardian");
    for (name, value) in fields {
        add(&format!("IO_GUARDIAN_{}", name.to_ascii_uppercase()), value);
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_what_the_journal_takes_and_no_value_forges_another_field() {
        let fields = [
            ("action", "drain"),
            ("peer", "192.0.2.1:7"),
            ("why", "a\nPRIORITY=0"),
        ];
        let said = entry("answered action=drain", &fields);
        let mut expected = b"MESSAGE=answered action=drain\nPRIORITY=6\nSYSLOG_IDENTIFIER=io-guardian\n\
            IO_GUARDIAN_ACTION=drain\nIO_GUARDIAN_PEER=192.0.2.1:7\nIO_GUARDIAN_WHY\n"
            .to_vec();
        expected.extend(12_u64.to_le_bytes());
        expected.extend(b"a\nPRIORITY=0\n");
        assert_eq!(said, expected);
    }
}
