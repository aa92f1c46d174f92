//! Reaches gRPC servers on unix sockets.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

/// Opens an HTTP/2 connection: the fixed preface and an empty SETTINGS frame.
const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Position and value of the type in the server's first frame, which must be SETTINGS too.
const FRAME_TYPE: (usize, u8) = (3, 4);
const FRAME_HEADER: usize = 9;

/// Tells whether a gRPC server answers on `socket`.
pub(crate) fn answers(socket: &Path) -> bool {
    greet(socket).unwrap_or(false)
}

fn greet(socket: &Path) -> std::io::Result<bool> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(GREETING)?;
    let mut header = [0; FRAME_HEADER];
    stream.read_exact(&mut header)?;
    Ok(header[FRAME_TYPE.0] == FRAME_TYPE.1)
}

/// Returns a connection to the server on `socket`; it is made at the first call, and made anew
/// after the server was restarted.
pub async fn channel(socket: &Path) -> Channel {
    let uri = format!("unix://{}", socket.display());
    Endpoint::from_shared(uri).expect("a socket path as an address").connect_lazy()
}

/// Runs a future to its end on a runtime of its own.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("start a runtime").block_on(future)
}
