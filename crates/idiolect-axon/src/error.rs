//! What keeps an axon from serving.

use std::io;
use std::net::SocketAddr;

/// Why an axon does not start or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AxonError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}{}", hint(.source))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The configuration makes no sense.
    #[error("bad axon configuration: {0}")]
    Config(&'static str),
    /// A synapse of this name is served already.
    #[error("synapse {0:?} is served already")]
    DuplicateSynapse(String),
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => ": another program uses this port, choose another with axon.port",
        io::ErrorKind::AddrNotAvailable => ": this machine has no such address",
        io::ErrorKind::PermissionDenied => ": no permission, ports below 1024 need it",
        _ => "",
    }
}
