//! The forms in which a mount is asked for: our own, that of mount(8)'s helpers, and that of podman's
//! `mount_program`. All become one [`Request`].

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, Parser};
use overstream_fuse::{MountOptions, Whiteouts, Writing, split_lowers, unsupported};

#[derive(Debug, Args)]
pub(in crate::cli) struct Mount {
    /// Directories to merge, the topmost first, separated by colons; `\:` is a colon in a name
    #[arg(long, value_name = "LIST")]
    lower: Option<OsString>,
    /// Directory that changes go to
    #[arg(long, value_name = "DIR", requires = "work")]
    upper: Option<PathBuf>,
    /// Empty directory beside the upper, where changes are prepared
    #[arg(long, value_name = "DIR", requires = "upper")]
    work: Option<PathBuf>,
    /// Mount options, separated by commas; docs/MOUNT.md lists them
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// Stay until the view is unmounted, as without --background
    #[arg(short, long, conflicts_with = "background")]
    foreground: bool,
    /// End as soon as the view can be used, and leave a process that serves it
    #[arg(long)]
    background: bool,
    /// Where what is said goes once the view is mounted
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Print every change of the upper as it happens: copy-ups, whiteouts and the rest, and who caused it
    #[arg(long)]
    trace: bool,
    /// Print what is negotiated with the kernel, and every request
    #[arg(short, long)]
    debug: bool,
    /// Directory to mount on
    mount_point: PathBuf,
}

/// Mount a merged view of directories
///
/// How mount(8) and podman call. Ends as soon as the view can be used, and leaves a process that serves it.
///
///   overstream-mount -o lowerdir=/layers/app:/layers/base /mnt
///   mount -t overstream -o lowerdir=/layers/app:/layers/base overlay /mnt
#[derive(Debug, Parser)]
#[command(name = "overstream-mount", version, verbatim_doc_comment)]
#[command(override_usage = "overstream-mount [OPTIONS] [SOURCE] MOUNT_POINT")]
pub(super) struct Program {
    /// What the mount table shows as the source; may be left out
    #[arg(value_name = "SOURCE")]
    first: OsString,
    /// Directory to mount on
    #[arg(value_name = "MOUNT_POINT")]
    second: Option<OsString>,
    /// Mount options, separated by commas; docs/MOUNT.md lists them
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// Stay until the view is unmounted
    #[arg(short, long)]
    foreground: bool,
    /// The same, and print every request
    #[arg(short, long)]
    debug: bool,
    /// Where what is said goes once the view is mounted
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    // What mount(8) says to every helper.
    #[arg(short, hide = true)]
    verbose: bool,
    #[arg(short, hide = true)]
    no_mtab: bool,
    #[arg(short = 't', hide = true)]
    file_system: Option<OsString>,
}

/// A mount that is wanted.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) options: MountOptions,
    pub(super) target: PathBuf,
    pub(super) stay: Stay,
    pub(super) log: Option<PathBuf>,
    pub(super) trace: bool,
    pub(super) debug: bool,
}

/// Who serves a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stay {
    /// The command itself.
    Foreground,
    /// A process that it leaves.
    Background,
}

/// Tells whether we are called as another program: by its name, or as mount.fuse3(8) calls the program that
/// `-t fuse.PROGRAM` names, which is with a source in the place of a command.
pub(in crate::cli) fn is_program(argv: &[OsString]) -> bool {
    let name = argv.first().and_then(|path| Path::new(path).file_name()).and_then(OsStr::to_str);
    let named = name.is_some_and(|name| {
        name.starts_with("mount.") || ["overstream-mount", "fuse-overlayfs"].contains(&name)
    });
    let is_command = |word: &OsStr| {
        let cli = crate::cli::Cli::command();
        word == "help" || cli.get_subcommands().any(|command| word == command.get_name())
    };
    let helper = match argv {
        [_, source, _, flag, _] => {
            flag == "-o" && !source.to_string_lossy().starts_with('-') && !is_command(source)
        }
        _ => false,
    };
    named || helper
}

impl Mount {
    pub(super) fn request(self) -> Result<Request, String> {
        let mut options = parse(&self.options)?;
        if let Some(lower) = &self.lower {
            let lowers = split_lowers(lower).map_err(|problem| format!("--lower: {problem}"))?;
            once("--lower", "lowerdir", options.lowers.is_empty())?;
            options.lowers = lowers;
        }
        if self.upper.is_some() {
            once("--upper", "upperdir", options.upper.is_none() && options.work.is_none())?;
            (options.upper, options.work) = (self.upper, self.work);
        }
        if self.trace && options.upper.is_none() {
            return Err("--trace: nothing is changed without an upper directory".to_owned());
        }
        if self.trace && self.background && self.log.is_none() {
            return Err("--trace: in the background nobody would see it without --log".to_owned());
        }
        let stay = if self.background { Stay::Background } else { Stay::Foreground };
        let request = Request {
            options,
            target: self.mount_point,
            stay,
            log: self.log,
            trace: self.trace,
            debug: self.debug,
        };
        request.with(env::var_os).checked()
    }
}

impl Program {
    pub(super) fn request(self) -> Result<Request, String> {
        let mut options = parse(&self.options)?;
        // mount(8) says so unless it was told otherwise.
        if options.writing == Writing::Yes {
            options.writing = Writing::IfPossible;
        }
        let (source, target) = match self.second {
            Some(target) => (self.first, target),
            None => (OsString::new(), self.first),
        };
        let unnamed = options.source == MountOptions::default().source;
        if unnamed && !source.is_empty() {
            let name = source.into_string().ok().filter(|name| !name.contains(','));
            options.source = name.ok_or("the source is for the mount table: give it no commas")?;
        }
        let front = self.foreground || self.debug;
        let stay = if front { Stay::Foreground } else { Stay::Background };
        let (target, log) = (target.into(), self.log);
        let request = Request { options, target, stay, log, trace: false, debug: self.debug };
        request.with(env::var_os).checked()
    }
}

impl Request {
    /// Obeys the environment, as far as fuse-overlayfs does.
    fn with(mut self, variable: impl Fn(&'static str) -> Option<OsString>) -> Self {
        if variable("FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT").is_some() {
            self.options.whiteouts = Whiteouts::Prefixed;
        }
        if variable("FUSE_OVERLAYFS_NO_PASSTHROUGH").is_some() {
            self.options.passthrough = false;
        }
        if let Some(log) = variable("FUSE_OVERLAYFS_DEBUG_LOG") {
            self.debug = true;
            self.log.get_or_insert_with(|| log.into());
        }
        self
    }

    fn checked(mut self) -> Result<Self, String> {
        self.options.check()?;
        unsupported(&self.options)?;
        Ok(self)
    }
}

fn parse(lists: &[OsString]) -> Result<MountOptions, String> {
    MountOptions::parse(&lists.join(OsStr::new(","))).map_err(|problem| format!("-o: {problem}"))
}

fn once(flag: &str, option: &str, only: bool) -> Result<(), String> {
    if only { Ok(()) } else { Err(format!("{flag} and the option {option} are given; give one")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn request(line: &str) -> Result<Request, String> {
        Program::try_parse_from(argv(line)).map_err(|error| error.to_string())?.request()
    }

    #[test]
    fn other_programs_are_told_by_name_or_by_what_they_are_given() {
        for line in [
            "/usr/bin/overstream-mount -o lowerdir=a mnt",
            "/sbin/mount.overstream src mnt -o rw",
            "fuse-overlayfs --version",
            "/usr/bin/overstream src /mnt -o rw,lowerdir=a,dev,suid",
            "overstream  /mnt -o rw",
        ] {
            assert!(is_program(&argv(line)), "{line}");
        }
        for line in [
            "overstream",
            "overstream mount /mnt -o lowerdir=a",
            "overstream mount --lower a /mnt",
            "overstream --version",
            "overstream lss /mnt -x y",
        ] {
            assert!(!is_program(&argv(line)), "{line}");
        }
    }

    #[test]
    fn a_helper_takes_its_source_from_mount() {
        let asked = request("mount.overstream src mnt -v -o rw,lowerdir=a,dev,suid").unwrap();
        assert_eq!(asked.options.source, "src");
        assert_eq!(asked.target, PathBuf::from("mnt"));
        assert_eq!(asked.stay, Stay::Background);
        let asked = request("mount.overstream src mnt -n -o lowerdir=a,fsname=name").unwrap();
        assert_eq!(asked.options.source, "name");
        let asked = request("overstream-mount -o lowerdir=a -o ro,userxattr -f mnt").unwrap();
        assert_eq!(asked.options.source, "overstream");
        assert_eq!(asked.stay, Stay::Foreground);
        assert_eq!(request("overstream-mount -d -o lowerdir=a m").unwrap().stay, Stay::Foreground);
        assert!(request("mount.overstream a,b mnt -o lowerdir=a").unwrap_err().contains("commas"));
        assert!(request("overstream-mount -o lowerdir=a").is_err());
        assert!(request("overstream-mount a b c -o lowerdir=a").is_err());
    }

    #[test]
    fn the_environment_of_fuse_overlayfs_is_obeyed() {
        let asked = |set: &'static str| {
            let request = request("overstream-mount -o lowerdir=a mnt").unwrap();
            request.with(|name| (name == set).then(|| "/log".into()))
        };
        assert!(!asked("FUSE_OVERLAYFS_NO_PASSTHROUGH").options.passthrough);
        assert!(asked("").options.passthrough);
        let whiteouts = asked("FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT");
        assert_eq!(whiteouts.options.whiteouts, Whiteouts::Prefixed);
        let logged = asked("FUSE_OVERLAYFS_DEBUG_LOG");
        assert!(logged.debug && logged.stay == Stay::Background);
        assert_eq!(logged.log, Some("/log".into()));
    }
}
