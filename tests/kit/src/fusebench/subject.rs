//! Who is measured, and how each is told to mount.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Settings;
use crate::require::find_program;

/// The kernel's overlayfs, with which everybody is compared.
pub(super) const KERNEL: &str = "kernel";
/// The one that the bars are for.
pub(super) const OVERSTREAM: &str = "overstream";
/// Added to a name: without passthrough to the files below.
const PLAIN: &str = "-plain";
/// Turns passthrough off, by its peers' name for it.
const NO_PASSTHROUGH: &str = "FUSE_OVERLAYFS_NO_PASSTHROUGH";

/// The directories of a mount.
#[derive(Debug)]
pub(super) struct Layout {
    /// Lower directories, the topmost first.
    pub(super) lowers: Vec<PathBuf>,
    /// Upper and work directory; a mount without is read-only.
    pub(super) upper: Option<(PathBuf, PathBuf)>,
    /// Where it is mounted.
    pub(super) target: PathBuf,
}

/// One file system under test.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) name: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Kernel,
    /// fuse-overlayfs, either of the two.
    Peer(PathBuf),
    Overstream {
        program: PathBuf,
        options: String,
    },
    /// A command with places to fill in.
    Custom(String),
    /// What cannot be measured here, and why.
    Missing(String),
}

/// How to get a mount.
#[derive(Debug)]
pub(super) enum Means {
    /// By mount(2), with this data.
    Kernel(String),
    /// By a program that stays in the foreground.
    Program(Command),
}

impl Subject {
    /// Finds one by its name.
    ///
    /// # Errors
    /// Says which there are.
    pub(super) fn named(name: &str, settings: &Settings) -> Result<Self, String> {
        let missing = |why: String| Kind::Missing(why);
        let kind = match name.strip_suffix(PLAIN).unwrap_or(name) {
            KERNEL => Kind::Kernel,
            "c" => find_program("fuse-overlayfs").map_or_else(
                || missing("fuse-overlayfs is not installed; try `scripts/deps.sh peers`".into()),
                Kind::Peer,
            ),
            "rust" => match settings.rust_peer.is_file() {
                true => Kind::Peer(settings.rust_peer.clone()),
                false => missing(why_no_rust_peer(&settings.rust_peer)),
            },
            OVERSTREAM => match settings.overstream.is_file() {
                true => Kind::Overstream {
                    program: settings.overstream.clone(),
                    options: settings.options.clone(),
                },
                false => missing(format!("{} does not exist", settings.overstream.display())),
            },
            _ => match settings.added.iter().find(|(added, _)| added == name) {
                Some((_, command)) => Kind::Custom(command.clone()),
                None => return Err(format!("no such subject: {name}")),
            },
        };
        Ok(Self { name: name.to_owned(), kind })
    }

    /// The same without passthrough, where that can be told apart.
    pub(super) fn plain(&self) -> Option<Self> {
        let has = match &self.kind {
            Kind::Overstream { .. } => true,
            Kind::Peer(_) => self.name == "rust",
            Kind::Kernel | Kind::Custom(_) | Kind::Missing(_) => false,
        };
        has.then(|| Self { name: format!("{}{PLAIN}", self.name), kind: self.kind.clone() })
    }

    /// Says why it cannot be measured at all.
    pub(super) fn missing(&self) -> Option<&str> {
        if let Kind::Missing(why) = &self.kind { Some(why) } else { None }
    }

    /// What the report says it was.
    pub(super) fn version(&self) -> String {
        let version = |program: &Path| {
            let output = Command::new(program).arg("--version").output();
            let text = output.map(|output| output.stdout).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            let line =
                text.lines().find(|line| line.contains("overlayfs") || line.contains("overstream"));
            line.unwrap_or("of unknown version").to_owned()
        };
        match &self.kind {
            Kind::Kernel => "overlayfs of the running kernel".to_owned(),
            Kind::Peer(program) => version(program),
            Kind::Overstream { program, options } if options.is_empty() => version(program),
            Kind::Overstream { program, options } => format!("{} -o {options}", version(program)),
            Kind::Custom(command) => command.clone(),
            Kind::Missing(why) => format!("NOT RUN: {why}"),
        }
    }

    /// Tells how it mounts `layout`; `volatile` lets it sync nothing.
    ///
    /// # Errors
    /// Says why it cannot.
    pub(super) fn means(&self, layout: &Layout, volatile: bool) -> Result<Means, String> {
        let places = layout.places();
        let mut options = if volatile { vec!["volatile".to_owned()] } else { Vec::new() };
        let mut command = match &self.kind {
            Kind::Missing(why) => return Err(why.clone()),
            Kind::Kernel => {
                options.insert(0, places.overlay_options());
                return Ok(Means::Kernel(options.join(",")));
            }
            Kind::Peer(program) => {
                options.insert(0, places.overlay_options());
                let mut command = Command::new(program);
                command.arg("-f").arg("-o").arg(options.join(",")).arg(&places.target);
                command
            }
            Kind::Overstream { program, options: own } => {
                options.extend(Some(own.clone()).filter(|own| !own.is_empty()));
                let mut command = Command::new(program);
                command.arg("mount").arg("--lower").arg(&places.lowers);
                if let Some((upper, work)) = &places.upper {
                    command.args(["--upper", upper, "--work", work]);
                }
                command.arg("-o").arg(options.join(",")).arg(&places.target);
                command
            }
            Kind::Custom(template) => places.filled_in(template, &options.join(","))?,
        };
        if self.name.ends_with(PLAIN) {
            command.env(NO_PASSTHROUGH, "1");
        }
        Ok(Means::Program(command))
    }
}

/// The paths of a layout as text.
struct Places {
    lowers: String,
    upper: Option<(String, String)>,
    target: String,
}

impl Layout {
    fn places(&self) -> Places {
        let text = |path: &PathBuf| path.display().to_string();
        Places {
            lowers: self.lowers.iter().map(text).collect::<Vec<_>>().join(":"),
            upper: self.upper.as_ref().map(|(upper, work)| (text(upper), text(work))),
            target: text(&self.target),
        }
    }
}

impl Places {
    fn overlay_options(&self) -> String {
        let upper = self.upper.as_ref().map(|(u, w)| format!(",upperdir={u},workdir={w}"));
        format!("lowerdir={}{}", self.lowers, upper.unwrap_or_default())
    }

    fn filled_in(&self, template: &str, options: &str) -> Result<Command, String> {
        let (upper, work) = self.upper.as_ref().ok_or("a command of one's own is not read-only")?;
        let fill = |word: &str| {
            word.replace("{lowers}", &self.lowers)
                .replace("{upper}", upper)
                .replace("{work}", work)
                .replace("{options}", options)
                .replace("{target}", &self.target)
        };
        let mut words = template.split_whitespace().map(fill);
        let mut command = Command::new(words.next().ok_or("an empty command")?);
        command.args(words);
        Ok(command)
    }
}

/// Tells why there is no fuse-overlayfs in Rust: `scripts/peers.sh` leaves its reason beside it.
fn why_no_rust_peer(program: &Path) -> String {
    let reason = std::fs::read_to_string(program.with_extension("why-not"));
    reason.map_or_else(
        |_| format!("{} does not exist; try `scripts/peers.sh`", program.display()),
        |reason| reason.trim().replace('\n', "; "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(upper: bool) -> Layout {
        Layout {
            lowers: vec!["/a".into(), "/b".into()],
            upper: upper.then(|| ("/u".into(), "/w".into())),
            target: "/m".into(),
        }
    }

    fn words(subject: &Subject, layout: &Layout, volatile: bool) -> String {
        match subject.means(layout, volatile).unwrap() {
            Means::Kernel(data) => data,
            Means::Program(command) => crate::command::line(&command),
        }
    }

    #[test]
    fn each_is_told_the_same_in_its_own_words() {
        let kind = |kind| Subject { name: "x".to_owned(), kind };
        let kernel = kind(Kind::Kernel);
        assert_eq!(words(&kernel, &layout(true), false), "lowerdir=/a:/b,upperdir=/u,workdir=/w");
        assert_eq!(words(&kernel, &layout(false), false), "lowerdir=/a:/b");
        let peer = kind(Kind::Peer("/p".into()));
        let expected = "/p -f -o lowerdir=/a:/b,upperdir=/u,workdir=/w,volatile /m";
        assert_eq!(words(&peer, &layout(true), true), expected);
        let ours = Kind::Overstream { program: "/o".into(), options: "noatime".into() };
        let expected = "/o mount --lower /a:/b --upper /u --work /w -o volatile,noatime /m";
        assert_eq!(words(&kind(ours), &layout(true), true), expected);
        let custom = kind(Kind::Custom("/c {lowers} -u{upper}:{work} {target} {options}".into()));
        assert_eq!(words(&custom, &layout(true), true), "/c /a:/b -u/u:/w /m volatile");
    }
}
