//! A process that goes on serving a mount when the command has ended.
//!
//! The command runs itself anew with the same arguments, and waits until that process, the server, has
//! said that the mount is there, or has ended. It is not forked: the server would start with a copy of
//! whatever the command was doing, only `unsafe` code can do it, and the crates that hide that end
//! the command before the mount is there. The server's standard output is the pipe on which it says so; its
//! standard error stays the command's till then, so nobody has to carry errors over.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

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
pub(super) fn start(target: &Path) -> Result<ExitCode, String> {
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
        return match server.wait().map_err(failed)?.signal() {
            Some(signal) => Err(format!("signal {signal} ended the process that serves the mount")),
            // It has said itself why.
            None => Ok(ExitCode::FAILURE),
        };
    }
    // Answered by the server, so it serves.
    match rustix::fs::statfs(target) {
        Ok(space) if i64::from(FUSE) == space.f_type => Ok(ExitCode::SUCCESS),
        Ok(_) => Err(format!("{} is not mounted any more", target.display())),
        Err(errno) => Err(format!("{} is mounted, but not served: {errno}", target.display())),
    }
}

/// The command that waits for us, as the server sees it.
#[derive(Debug)]
pub(super) struct Parent {
    nothing: File,
}

impl Parent {
    /// Leaves the parent's session, so that what ends it does not end us.
    pub(super) fn leave() -> Result<Self, String> {
        rustix::process::setsid().map_err(|errno| format!("leave the session: {errno}"))?;
        let nothing = OpenOptions::new().read(true).write(true).open("/dev/null");
        let nothing = nothing.map_err(|error| format!("/dev/null: {error}"))?;
        // The kernel has named us `exe`, after the link; a name is only for those who look.
        let program = env::args_os().next().unwrap_or_default();
        fs::write(
            "/proc/self/comm",
            Path::new(&program).file_name().unwrap_or_default().as_bytes(),
        )
        .ok();
        Ok(Self { nothing })
    }

    /// Says that the mount is there, and lets go of everything of the parent's; what is said later goes to
    /// `log`. If the parent has ended meanwhile, nobody wants the mount.
    pub(super) fn announce(self, log: Option<&File>) -> Result<(), String> {
        let failed = |error: io::Error| format!("tell of the mount: {error}");
        env::set_current_dir("/").map_err(failed)?;
        let mut stdout = io::stdout();
        stdout.write_all(READY).and_then(|()| stdout.flush()).map_err(failed)?;
        let replaced =
            dup2_stdin(&self.nothing).and_then(|()| dup2_stderr(log.unwrap_or(&self.nothing)));
        // At last, since the parent takes this for the end of what we have to say.
        replaced.and_then(|()| dup2_stdout(&self.nothing)).map_err(|errno| failed(errno.into()))
    }
}
