//! The command line: what can be asked, and how answers look.

mod client;
mod mount;
mod show;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigError, DEFAULT_FILE, LogFormat, check_path, parse_address};
use crate::serve;

/// A containerd snapshotter whose writable layers can live anywhere.
#[derive(Debug, Parser)]
#[command(name = "overstream", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve snapshots to containerd
    ///
    /// Needs an entry in containerd's configuration:
    ///
    ///   [proxy_plugins.overstream]
    ///     type = "snapshot"
    ///     address = "/run/overstream/overstream.sock"
    ///
    /// Then `ctr run --snapshotter overstream ..`, or `snapshotter = "overstream"` for CRI.
    #[command(verbatim_doc_comment)]
    Serve(Serve),
    /// Mount a merged view of directories
    ///
    /// Shows the directories of LIST as the kernel's overlayfs would: of two files with one name the
    /// one further left is seen, directories with one name are merged, whiteouts and opaque directories are
    /// honoured. Stays in the foreground until the view is unmounted, or SIGTERM or Ctrl-C comes.
    ///
    /// With an upper directory the view can be written to: changes go there, as the kernel would write them.
    /// Otherwise it is read-only. The directories must not change while they are mounted, save by way of it.
    ///
    ///   overstream mount --lower /layers/app:/layers/base /mnt
    ///   overstream mount --lower /layers/base --upper /w/upper --work /w/work --trace /mnt
    ///   overstream mount --lower /layers/base --background --log /var/log/view.log /mnt
    ///   overstream mount -o lowerdir=/layers/app:/layers/base,userxattr,nodev /mnt
    ///
    /// mount(8) and podman call it under other names, and it goes to the background by itself:
    ///
    ///   mount -t fuse.overstream -o lowerdir=/layers/app:/layers/base overlay /mnt
    ///   podman --storage-opt overlay.mount_program=/usr/bin/overstream-mount ..
    ///
    /// Unmount with `umount /mnt`, or `fusermount3 -u /mnt` as an ordinary user. SIGUSR1 prints what the
    /// process takes. An option is obeyed, refused, or said to change nothing.
    #[command(verbatim_doc_comment)]
    Mount(mount::Mount),
    /// List snapshots and where their files lie
    Ls(Ls),
    /// Show what is mounted for a snapshot, where its upper lies, and why
    Mounts(Mounts),
    /// Show the space used in every store
    Usage(Usage),
    /// List or delete uppers that outlived their containers
    Retained(Retained),
    /// Check a configuration
    Config(ConfigArgs),
}

#[derive(Debug, Args)]
struct Serve {
    /// Configuration file; it may be missing if it is the default one
    #[arg(long, value_name = "FILE", help = format!("Configuration file [default: {DEFAULT_FILE}, if it exists]"))]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
}

/// Flags that win over the file.
#[derive(Debug, Default, Args)]
struct Overrides {
    /// Directory for metadata and image layers
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Socket that containerd connects to
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// containerd's own socket, asked whose container a snapshot is
    #[arg(long, value_name = "PATH")]
    containerd_address: Option<PathBuf>,
    /// Serve Prometheus metrics at http://ADDRESS/metrics
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    metrics_address: Option<SocketAddr>,
    /// Log filter: error, warn, info, debug, or a list such as "info,overstream::grpc=debug"
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
    /// Form of log lines
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
    /// Delete files before Remove answers, instead of leaving them to Cleanup
    #[arg(long)]
    sync_remove: bool,
    /// Tell the upper's directory in a label of every answer
    #[arg(long)]
    upperdir_label: bool,
}

impl Overrides {
    fn apply(self, config: &mut Config) -> Result<(), String> {
        for (flag, path) in [("--root", &self.root), ("--socket", &self.socket)] {
            if let Some(path) = path {
                check_path(path).map_err(|problem| format!("{flag}: {problem}"))?;
            }
        }
        config.root = self.root.unwrap_or_else(|| std::mem::take(&mut config.root));
        config.socket = self.socket.unwrap_or_else(|| std::mem::take(&mut config.socket));
        config.containerd =
            self.containerd_address.unwrap_or_else(|| std::mem::take(&mut config.containerd));
        config.metrics = self.metrics_address.or(config.metrics);
        config.log.level = self.log_level.unwrap_or_else(|| std::mem::take(&mut config.log.level));
        config.log.format = self.log_format.unwrap_or(config.log.format);
        config.sync_remove |= self.sync_remove;
        config.upperdir_label |= self.upperdir_label;
        Ok(())
    }
}

/// How to reach a running daemon, and how to print its answer.
#[derive(Debug, Args)]
struct Remote {
    /// Socket of the running daemon
    #[arg(long, value_name = "PATH", env = "OVERSTREAM_SOCKET", default_value = crate::config::DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Ls {
    /// Filters as for `ctr snapshots ls`, such as kind==active; any may match
    filters: Vec<String>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
struct Mounts {
    /// Key of the snapshot; the container's name is enough where it is unambiguous
    key: String,
    /// Plugin name, where several have the key
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    snapshotter: String,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
struct Usage {
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
struct Retained {
    #[command(subcommand)]
    command: Option<RetainedCommand>,
    /// Walk every upper for its size, which takes as long as `du` does
    #[arg(long)]
    size: bool,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum RetainedCommand {
    /// Delete a retained upper and its files
    Rm {
        /// Number in the list
        #[arg(value_parser = parse_id)]
        id: u64,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Args)]
struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check a file; every mistake is printed with its line, and what looks wrong on this host as a warning
    Check {
        /// The file
        #[arg(default_value = DEFAULT_FILE)]
        file: PathBuf,
    },
}

/// Reads the number of a retained upper: names need not be unique.
fn parse_id(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| {
        "give the number that `overstream retained` shows under ID, not the name".to_owned()
    })
}

/// Runs the command given on the command line.
pub fn run() -> ExitCode {
    if mount::is_program(&std::env::args_os().collect::<Vec<_>>()) {
        return mount::run_as_program();
    }
    let result = match Cli::parse().command {
        Command::Serve(args) => start(args),
        Command::Mount(args) => return mount::run(args),
        Command::Ls(args) => client::ls(&args.remote, args.filters),
        Command::Mounts(args) => client::mounts(&args.remote, args.snapshotter, args.key),
        Command::Usage(args) => client::usage(&args.remote),
        Command::Retained(Retained { command: None, size, remote }) => {
            client::retained(&remote, size)
        }
        Command::Retained(Retained {
            command: Some(RetainedCommand::Rm { id, remote }), ..
        }) => client::remove_retained(&remote, id),
        Command::Config(ConfigArgs { command: ConfigCommand::Check { file } }) => check(&file),
    };
    exit(result)
}

fn exit(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("overstream: {message}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: Serve) -> Result<(), String> {
    let mut config = Config::load(args.config.as_deref()).map_err(|error| error.to_string())?;
    args.overrides.apply(&mut config)?;
    serve::run(&config).map_err(|error| error.to_string())
}

fn check(file: &std::path::Path) -> Result<(), String> {
    match Config::load(Some(file)) {
        Ok(config) => {
            println!(
                "{}: {} stores, {} rules, no mistakes",
                file.display(),
                config.stores.len(),
                config.rules.len()
            );
            for warning in config.warnings() {
                eprintln!("warning: {warning}");
            }
            Ok(())
        }
        Err(error @ ConfigError::Read { .. }) => Err(error.to_string()),
        Err(error @ ConfigError::Mistakes { .. }) => {
            Err(format!("the configuration has mistakes\n{error}"))
        }
    }
}
