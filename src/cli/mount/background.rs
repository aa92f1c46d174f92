//! A process that goes on serving a mount when the command has ended.
//!
//! The command runs itself anew with the same arguments, and waits until that process, the server, has
//! said that the mount is there, or has ended. It is not forked: the server would start with a copy of
//! whatever the command was doing, only `unsafe` code can do it, and the crates that hide that end
//! the command before the mount is there. The server's standard output is the pipe on which it says so; its
//! standard error stays the command's till then, so nobody has to carry errors over.

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

/// Set for the server.
const MARK: &str = "OVERSTREAM_MOUNT_SERVER";
/// What the server says once the mount is there.
const READY: &[u8] = b"mounted\n";
/// `f_type` of what is served through FUSE.
const FUSE: u32 = 0x6573_5546;

/// Tells whether we are the server.
pub(super) fn is_server() -> bool {
    env::var_os(MARK).is_some()
}

/// Starts the server, and returns when the mount can be used.
pub(super) fn start(target: &Path) -> Result<(), String> {
    let mut argv = env::args_os();
    // Also if the file has been deleted, or another has taken its name.
    let mut command = Command::new("/proc/self/exe");
    command.arg0(argv.next().unwrap_or_default()).args(argv).env(MARK, "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let failed = |error: io::Error| format!("start the process that serves the mount: {error}");
    let mut server = command.spawn().map_err(failed)?;
    let mut said = Vec::new();
    if let Some(mut pipe) = server.stdout.take() {
        pipe.read_to_end(&mut said).map_err(failed)?;
    }
    if said != READY {
        return Err(ended(&mut server).map_err(failed)?);
    }
    // Answered by the server, so it serves.
    match rustix::fs::statfs(target) {
        Ok(space) if i64::from(FUSE) == space.f_type => Ok(()),
        Ok(_) => Err(format!("{} is not mounted any more", target.display())),
        Err(errno) => Err(format!("{} is mounted, but not served: {errno}", target.display())),
    }
}

/// Tells how a server ended that has not mounted. Why, it has said itself, unless it was killed.
fn ended(server: &mut Child) -> io::Result<String> {
    let status = server.wait()?;
    Ok(match status.signal() {
        Some(signal) => {
            format!("nothing is mounted: signal {signal} ended the process that serves")
        }
        None => "nothing is mounted".to_owned(),
    })
}

/// The command that waits for us, as the server sees it.
#[derive(Debug)]
pub(super) struct Parent {
    nothing: File,
    log: File,
}

impl Parent {
    /// Leaves the parent's session, so that what ends it does not end us. What we say after the mount goes
    /// to `log`.
    pub(super) fn leave(log: Option<&Path>) -> Result<Self, String> {
        rustix::process::setsid().map_err(|errno| format!("leave the session: {errno}"))?;
        let nothing = OpenOptions::new().read(true).write(true).open("/dev/null");
        let nothing = nothing.map_err(|error| format!("/dev/null: {error}"))?;
        let log = match log {
            Some(path) => open_log(path)?,
            None => nothing.try_clone().map_err(|error| format!("/dev/null: {error}"))?,
        };
        Ok(Self { nothing, log })
    }

    /// Says that the mount is there, and lets go of everything of the parent's. If that has ended meanwhile,
    /// nobody wants the mount.
    pub(super) fn announce(self) -> Result<(), String> {
        let failed = |error: io::Error| format!("tell of the mount: {error}");
        env::set_current_dir("/").map_err(failed)?;
        let mut stdout = io::stdout();
        stdout.write_all(READY).and_then(|()| stdout.flush()).map_err(failed)?;
        let replaced = dup2_stdin(&self.nothing).and_then(|()| dup2_stderr(&self.log));
        // At last, since the parent takes this for the end of what we have to say.
        replaced.and_then(|()| dup2_stdout(&self.nothing)).map_err(|errno| failed(errno.into()))
    }
}

/// Opens a file that what is said is added to.
pub(super) fn open_log(path: &Path) -> Result<File, String> {
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.map_err(|error| format!("log {}: {error}", path.display()))
}
