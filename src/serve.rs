//! The daemon's life: start, announce, serve, finish what runs, stop.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::Mode;
use sd_notify::NotifyState;
use tokio::net::UnixListener;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::config::{Config, LogConfig, LogFormat};
use crate::grpc::call::Server as Calls;
use crate::grpc::socket::Gathering;
use crate::heap;
use crate::metrics::{self, Metrics};
use crate::proto::control::control_server::ControlServer;
use crate::proto::snapshots::snapshots_server::SnapshotsServer;
use crate::snapshotter::{Snapshotter, StartError};

/// Largest request taken: containerd's own limit.
const MESSAGE_MAX: usize = 16 << 20;
/// Threads that decode and send, and do the work that takes less time than waking another thread does.
/// One is enough for more calls than containerd can make.
const WORKERS: usize = 1;
/// Most calls that do their work at once; further ones wait.
const BLOCKING: usize = 32;

/// What of the time for a stop is left to the last sync of committed layers, at most a quarter.
const LAST_SYNC: Duration = Duration::from_secs(3);
/// How long no call may be under way before a stop hangs up: the last answer has been sent by then.
const QUIET: Duration = Duration::from_millis(300);

/// Why the daemon ended with an error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The root cannot be served.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The socket cannot be had.
    #[error("socket {}: {problem}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Metrics cannot be served.
    #[error("metrics at {address}: {source}; choose another address")]
    Metrics {
        /// Where they should be.
        address: std::net::SocketAddr,
        /// How it failed.
        source: io::Error,
    },
    /// Logging cannot be set up.
    #[error("log: {0}")]
    Log(String),
    /// A thread cannot be started.
    #[error(
        "cannot start a thread: {0}; raise the limit on tasks: `TasksMax=` of the unit, `ulimit -u`, or \
         `pids.max` of the control group"
    )]
    Thread(io::Error),
    /// The runtime or a signal handler cannot be set up.
    #[error("cannot set up the daemon: {0}")]
    Setup(#[from] io::Error),
    /// The server failed.
    #[error("server: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(config: &Config) -> Result<(), ServeError> {
    set_up_log(&config.log)?;
    heap::share();
    // Modes are given exactly where things are made; none lets a group or others write.
    rustix::process::umask(Mode::from(0o022));
    let listener = listen_for_metrics(config)?;
    // Signals and metrics are answered even while the calls' thread waits for the root's disk.
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    check_threads()?;
    let calls = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .enable_all()
        .build()?;
    let snapshots = Snapshotter::open(config, calls.handle())?;
    let background = Background::start(&snapshots)?;
    let stop = control.block_on(serve(config, Arc::clone(&snapshots), listener, calls.handle()));
    let deadline = Deadline::within(config.shutdown_grace);
    let deadline = *stop.as_ref().unwrap_or(&deadline);
    control.shutdown_background();
    calls.shutdown_timeout(deadline.left_for_calls());
    background.stop(snapshots, deadline);
    stop.map(|_| tracing::info!("stopped"))
}

/// Finds out whether there can be threads: the calls' runtime panics where there cannot.
fn check_threads() -> Result<(), ServeError> {
    start_thread("probe", || {}).map(|thread| drop(thread.join()))
}

fn start_thread(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, ServeError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(ServeError::Thread)
}

/// When a stop is over, whatever is still under way.
#[derive(Clone, Copy, Debug)]
struct Deadline {
    end: Instant,
    /// Until when calls may go on: one whose disk hangs must not take the time to sync the others.
    calls: Instant,
}

impl Deadline {
    fn within(grace: Duration) -> Self {
        let now = Instant::now();
        Self { end: now + grace, calls: now + grace - LAST_SYNC.min(grace / 4) }
    }

    fn left(self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    fn left_for_calls(self) -> Duration {
        self.calls.saturating_duration_since(Instant::now())
    }
}

/// Threads that work for nobody in particular, and the one that ends them.
struct Background {
    stop: mpsc::Sender<Arc<Snapshotter>>,
    /// Tells that all have ended, and whether they did so well.
    stopped: mpsc::Receiver<bool>,
}

impl Background {
    /// Starts all of them, also those that only a stop needs: then it is too late to do without.
    fn start(snapshots: &Arc<Snapshotter>) -> Result<Self, ServeError> {
        let (cleaner, syncer, maker) =
            (Arc::clone(snapshots), Arc::clone(snapshots), Arc::clone(snapshots));
        // Not waited for at the end: garbage that is left is garbage at the next start.
        if let Err(error) = start_thread("cleanup", move || cleaner.cleanup()) {
            tracing::warn!(%error, "garbage of an earlier run is left to the next Cleanup");
        }
        let maker = start_thread("spares", move || maker.run_spares())
            .inspect_err(|error| tracing::warn!(%error, "no directories are made in advance"));
        let syncer = start_thread("sync", move || syncer.run_sync())?;
        let threads = [maker.ok(), Some(syncer)];
        let (stop, asked) = mpsc::channel();
        let (done, stopped) = mpsc::channel();
        start_thread("stop", move || {
            let Ok(snapshots) = asked.recv() else { return };
            // An error means that nobody waits any more.
            done.send(end(snapshots, threads)).ok();
        })?;
        Ok(Self { stop, stopped })
    }

    /// Syncs a last time, as far as the disks let it.
    fn stop(self, snapshots: Arc<Snapshotter>, deadline: Deadline) {
        // An error means that the thread is gone, which the other channel tells as well.
        self.stop.send(snapshots).ok();
        match self.stopped.recv_timeout(deadline.left()) {
            Ok(true) => {}
            Err(RecvTimeoutError::Timeout) => {
                tracing::warn!(
                    "a disk takes too long: committed layers that are not synced yet are synced at the next start"
                );
            }
            Ok(false) | Err(RecvTimeoutError::Disconnected) => {
                tracing::error!("a background thread ended in an unforeseen way");
            }
        }
    }
}

/// Ends the threads; true if none panicked.
fn end(snapshots: Arc<Snapshotter>, threads: [Option<JoinHandle<()>>; 2]) -> bool {
    snapshots.stop_spares();
    snapshots.stop_sync();
    let well = threads.map(|thread| thread.is_none_or(|thread| thread.join().is_ok()));
    // The database is closed by whoever lets go last, and that must not be after the end.
    drop(snapshots);
    !well.contains(&false)
}

/// Serves until told to stop; returns by when that has to be over.
async fn serve(
    config: &Config,
    snapshots: Arc<Snapshotter>,
    metrics_listener: Option<TcpListener>,
    runtime: &Handle,
) -> Result<Deadline, ServeError> {
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let Socket { listener, file: _deleted_at_the_end } = Socket::open(&config.socket, runtime)?;
    let metrics = Arc::new(Metrics::new());
    let service = Calls::new(Arc::clone(&snapshots), Arc::clone(&metrics));
    let calls = service.clone();
    let connections =
        UnixListenerStream::new(listener).map(|connection| connection.map(Gathering::new));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let mut server = runtime.spawn(
        Server::builder()
            .add_service(
                SnapshotsServer::new(service.clone()).max_decoding_message_size(MESSAGE_MAX),
            )
            .add_service(ControlServer::new(service))
            .serve_with_incoming_shutdown(connections, async {
                // An error means that the sender is gone: stop as well.
                drop(stopped.await);
            }),
    );
    let metrics = serve_metrics(metrics_listener, metrics, snapshots);
    tokio::pin!(metrics);
    tracing::info!(root = %config.root.display(), socket = %config.socket.display(), "serving");
    notify(&[NotifyState::Ready]);
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: finishing calls under way"),
        _ = interrupt.recv() => tracing::info!("SIGINT: finishing calls under way"),
        ended = &mut server => {
            ended.map_err(io::Error::other)??;
            return Ok(Deadline::within(config.shutdown_grace));
        }
        Err(error) = &mut metrics => return Err(error),
    }
    let deadline = Deadline::within(config.shutdown_grace);
    notify(&[NotifyState::Stopping]);
    drop(stop);
    let finished = async {
        tokio::select! {
            ended = server => ended.map_err(io::Error::other)?.map_err(ServeError::from),
            // A client that does not hang up when told that we stop has nothing to wait for.
            () = calls.wait_quiet(QUIET) => Ok(()),
        }
    };
    match tokio::time::timeout(deadline.left_for_calls(), finished).await {
        Ok(ended) => ended?,
        Err(_) => {
            tracing::warn!(grace = ?config.shutdown_grace, "calls are still under way; stopping all the same");
        }
    }
    Ok(deadline)
}

/// Takes the metrics' address before anything else: a daemon that cannot have it does not start.
fn listen_for_metrics(config: &Config) -> Result<Option<TcpListener>, ServeError> {
    let Some(address) = config.metrics else { return Ok(None) };
    let listener = TcpListener::bind(address);
    let listener = listener.and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map(Some).map_err(|source| ServeError::Metrics { address, source })
}

async fn serve_metrics(
    listener: Option<TcpListener>,
    metrics: Arc<Metrics>,
    snapshots: Arc<Snapshotter>,
) -> Result<(), ServeError> {
    let Some(listener) = listener else { return Ok(()) };
    let address = listener.local_addr()?;
    metrics::serve(metrics, snapshots, listener)
        .await
        .map_err(|source| ServeError::Metrics { address, source })
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

/// The socket containerd connects to: from the service manager, or our own.
struct Socket {
    listener: UnixListener,
    /// Nothing for the service manager's: it goes on listening.
    file: Option<SocketFile>,
}

impl Socket {
    /// Listens on behalf of the calls' runtime.
    fn open(path: &Path, runtime: &Handle) -> Result<Self, ServeError> {
        let fail = |problem: String| ServeError::Socket { path: path.to_owned(), problem };
        let passed = listenfd::ListenFd::from_env().take_unix_listener(0);
        let (listener, file) = match passed.map_err(|error| fail(error.to_string()))? {
            Some(listener) => (listener, None),
            None => {
                let listener = bind(path).map_err(fail)?;
                (listener, SocketFile::of(path))
            }
        };
        listener.set_nonblocking(true).map_err(|error| fail(error.to_string()))?;
        let _runtime = runtime.enter();
        let listener = UnixListener::from_std(listener).map_err(|error| fail(error.to_string()))?;
        Ok(Self { listener, file })
    }
}

/// Our socket's file, deleted when this is dropped.
struct SocketFile {
    path: PathBuf,
    identity: FileIdentity,
}

/// What tells a file from one that takes its place later: numbers of inodes are used again.
type FileIdentity = (u64, u64, Option<SystemTime>);

impl SocketFile {
    fn of(path: &Path) -> Option<Self> {
        Some(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another daemon may have put its own there since ours stopped listening.
        if identity(&self.path) == Some(self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(socket = %self.path.display(), %error, "cannot delete the socket");
        }
    }
}

fn identity(path: &Path) -> Option<FileIdentity> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.created().ok()))
}

/// Binds with mode 0600, in the place of a socket that a dead daemon left.
fn bind(path: &Path) -> Result<StdListener, String> {
    let say = |error: io::Error| error.to_string();
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)
            .map_err(|error| format!("cannot create {}: {error}", directory.display()))?;
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(say(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err("something that is not a socket is there; move it aside".to_owned());
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err("another process listens there; stop it, or choose another path".to_owned());
        }
        Ok(_) => fs::remove_file(path).map_err(say)?,
    }
    // Nobody may connect between bind and chmod.
    let before = rustix::process::umask(Mode::from(0o177));
    let listener = StdListener::bind(path);
    rustix::process::umask(before);
    let listener = listener.map_err(say)?;
    crate::crash::point("start: socket bound");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(say)?;
    Ok(listener)
}

fn set_up_log(log: &LogConfig) -> Result<(), ServeError> {
    use tracing_subscriber::EnvFilter;
    // A plain level is about us, not about the chatter of the HTTP/2 library.
    let directives = match log.level.parse::<tracing::Level>() {
        Ok(level) => format!("warn,overstream={level}"),
        Err(_) => log.level.clone(),
    };
    let filter =
        EnvFilter::try_new(directives).map_err(|error| ServeError::Log(error.to_string()))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let result = match log.format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    result.map_err(|error| ServeError::Log(error.to_string()))
}
