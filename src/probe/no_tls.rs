//! In place of TLS where this program was built without the feature `tls`: a check that needs it cannot be made.

use tokio::io::{AsyncRead, AsyncWrite};

use super::check::{CheckError, TlsFiles, Verify};
use super::fault::Fault;
use super::stream::Heard;

/// Nobody has one.
pub(super) enum Tls {}

impl Tls {
    pub(super) fn new(_: &str, _: &TlsFiles, _: Verify, _: Option<&str>) -> Result<Self, CheckError> {
        Err(CheckError::BuiltWithoutTls)
    }

    pub(super) async fn wrap<S>(&self, _: S, _: &Heard) -> Result<S, Fault>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match *self {}
    }
}

pub(super) fn fault_in(_: &(dyn std::error::Error + 'static)) -> Option<Fault> {
    None
}
