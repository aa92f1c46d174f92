//! Every option there is, and what becomes of it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::read::{directory, id_ranges, name, number, one_of, seconds, split_lowers, text};
use super::{Access, Flag, MountOptions, RedirectDir, Squash, Writing, XattrPermissions};
use crate::format::Format;

/// What becomes of an option.
pub(super) enum Rule {
    /// It is obeyed, and has no value.
    Alone(fn(&mut MountOptions)),
    /// It is obeyed, and has a value.
    Value(fn(&mut MountOptions, &OsStr) -> Result<(), String>),
    /// It holds anyway, or nobody could tell the difference.
    Holds,
    /// It changes nothing here that a program could rely on, for this reason, which is told.
    Noted(&'static str),
    /// It cannot be obeyed, for this reason.
    Refused(&'static str),
}

use Rule::{Alone, Holds, Noted, Refused, Value};

const SWITCH: [(&str, bool); 2] = [("on", true), ("off", false)];
const BIT: [(&str, bool); 2] = [("1", true), ("0", false)];

/// Names, where several share a rule separated by spaces, and the rule.
pub(super) const OPTIONS: &[(&str, Rule)] = &[
    // Directories.
    ("lowerdir", Value(lowers)),
    ("lowerdir+", Value(|options, value| directory(value).map(|dir| options.lowers.push(dir)))),
    ("datadir+", Refused("directories that hold data only are not supported")),
    ("upperdir", Value(|options, value| directory(value).map(|dir| options.upper = Some(dir)))),
    ("workdir", Value(|options, value| directory(value).map(|dir| options.work = Some(dir)))),
    // Those of the kernel's overlayfs.
    ("userxattr", Alone(|options| options.format = Format::User)),
    ("redirect_dir", Value(redirect_dir)),
    ("metacopy", Value(|options, value| one_of(value, &SWITCH).map(|on| options.metacopy = on))),
    ("index", Value(|options, value| one_of(value, &SWITCH).map(|on| options.index = on))),
    ("volatile", Alone(|options| options.volatile = true)),
    // Numbers of several file systems are told apart as with `on`, whatever is asked for.
    ("xino", Value(|_, value| one_of(value, &[("off", ()), ("auto", ()), ("on", ())]))),
    ("nfs_export", Value(|_, value| off(value, "the view has no file handles to export"))),
    ("uuid", Value(uuid)),
    ("verity", Value(|_, value| off(value, "digests are not checked"))),
    // Those of fuse-overlayfs.
    ("fsync", Value(fsync)),
    ("threaded", Value(threaded)),
    ("writeback", Value(writeback)),
    ("timeout", Value(timeout)),
    ("noacl", Alone(|options| options.acl = false)),
    ("noxattrs", Alone(|options| options.xattrs = false)),
    ("static_nlink", Noted("counting links takes no time here")),
    ("squash_to_root", Alone(|o| o.squash = Squash { uid: Some(0), gid: Some(0) })),
    ("squash_to_uid", Value(|o, value| number(value).map(|id| o.squash.uid = Some(id)))),
    ("squash_to_gid", Value(|o, value| number(value).map(|id| o.squash.gid = Some(id)))),
    ("uidmapping", Value(|o, value| id_ranges(value).map(|map| o.uid_map = map))),
    ("gidmapping", Value(|o, value| id_ranges(value).map(|map| o.gid_map = map))),
    ("xattr_permissions", Value(xattr_permissions)),
    ("ino32_t", Alone(|options| options.ino32 = true)),
    ("fast_ino", Noted("numbers need no checks that could be left out")),
    ("plugins", Refused("there are no plugins; make their directories, and give those")),
    // Those of FUSE.
    ("allow_other", Alone(|options| options.access = Access::Everybody)),
    ("allow_root", Alone(|options| options.access = Access::MounterAndRoot)),
    ("default_permissions kernel_cache nonempty", Holds),
    ("splice_read splice_write splice_move no_splice_read no_splice_write no_splice_move", Holds),
    ("max_write", Value(max_write)),
    ("fsname", Value(|options, value| name(value).map(|source| options.source = source))),
    ("subtype", Value(|options, value| name(value).map(|subtype| options.subtype = subtype))),
    ("auto_unmount", Refused("nobody outlives the server; have its service manager unmount")),
    // Those of every mount.
    ("ro", Alone(|options| options.writing = Writing::No)),
    ("rw", Alone(|options| options.writing = Writing::Yes)),
    ("context", Value(context)),
    ("nodev", Alone(|options| options.set(Flag::NoDev, true))),
    ("dev", Alone(|options| options.set(Flag::NoDev, false))),
    ("nosuid", Alone(|options| options.set(Flag::NoSuid, true))),
    ("suid", Alone(|options| options.set(Flag::NoSuid, false))),
    ("noexec", Alone(|options| options.set(Flag::NoExec, true))),
    ("exec", Alone(|options| options.set(Flag::NoExec, false))),
    ("noatime", Alone(|options| options.set(Flag::NoAtime, true))),
    ("atime", Alone(|options| options.set(Flag::NoAtime, false))),
    ("diratime nodiratime relatime norelatime nostrictatime", Holds),
    ("strictatime", Noted("reading does not change times of access")),
    ("sync", Alone(|options| options.set(Flag::Sync, true))),
    ("async", Alone(|options| options.set(Flag::Sync, false))),
    ("dirsync", Refused("changes of directories are not synced one by one")),
    ("remount", Refused("unmount, and mount anew")),
    // Those of mount(8) and fstab.
    ("defaults auto noauto user users nouser owner group nofail _netdev", Holds),
];

/// Does with an option what the table says.
pub(super) fn obey(
    options: &mut MountOptions,
    name: &str,
    value: Option<&OsStr>,
) -> Result<(), String> {
    let row = OPTIONS.iter().find(|(names, _)| names.split(' ').any(|known| known == name));
    let Some((_, rule)) = row else { return Err(format!("option {name} is not known")) };
    let shown = || match value {
        Some(value) => format!("option {name}={}", value.display()),
        None => format!("option {name}"),
    };
    match (rule, value) {
        (Refused(why), _) => Err(format!("{}: {why}", shown())),
        (Noted(why), _) => {
            options.notes.push(format!("{} changes nothing: {why}", shown()));
            Ok(())
        }
        (Value(read), Some(value)) => {
            read(options, value).map_err(|problem| format!("{}: {problem}", shown()))
        }
        (Value(_), None) => Err(format!("{} needs a value", shown())),
        (Alone(_) | Holds, Some(_)) => Err(format!("{}: option {name} has no value", shown())),
        (Alone(set), None) => {
            set(options);
            Ok(())
        }
        (Holds, None) => Ok(()),
    }
}

fn lowers(options: &mut MountOptions, list: &OsStr) -> Result<(), String> {
    let lowers = split_lowers(list)?;
    if lowers.iter().any(|lower| lower.as_os_str().as_bytes().starts_with(b"//")) {
        return Err("//NAME/.. is how a plugin is named; there are none".to_owned());
    }
    options.lowers = lowers;
    Ok(())
}

fn redirect_dir(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    let words = [
        ("off", RedirectDir::Off),
        ("nofollow", RedirectDir::NoFollow),
        ("follow", RedirectDir::Follow),
        ("on", RedirectDir::On),
    ];
    options.redirect_dir = one_of(value, &words)?;
    Ok(())
}

fn off(value: &OsStr, why: &str) -> Result<(), String> {
    if value == "off" { Ok(()) } else { Err(format!("{why}; leave it off")) }
}

fn uuid(_: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    match one_of(value, &[("auto", false), ("null", false), ("off", false), ("on", true)])? {
        true => Err("the upper gets no number of its own; give auto, null or off".to_owned()),
        false => Ok(()),
    }
}

fn fsync(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    let words = [("1", false), ("auto", false), ("0", true), ("volatile", true)];
    options.volatile = one_of(value, &words)?;
    Ok(())
}

fn threaded(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    options.threads = if one_of(value, &BIT)? { None } else { Some(1) };
    Ok(())
}

fn writeback(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    let on = one_of(value, &BIT)?;
    options.writeback = Some(on);
    // The kernel does either.
    options.passthrough &= !on;
    Ok(())
}

fn timeout(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    options.timeout = Some(seconds(value)?);
    Ok(())
}

fn max_write(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    number::<u32>(value)?;
    options.notes.push("option max_write changes nothing: the kernel's most is taken".to_owned());
    Ok(())
}

fn xattr_permissions(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    let words = [
        ("0", XattrPermissions::Inode),
        ("1", XattrPermissions::Security),
        ("2", XattrPermissions::User),
    ];
    options.xattr_permissions = one_of(value, &words)?;
    Ok(())
}

fn context(options: &mut MountOptions, value: &OsStr) -> Result<(), String> {
    options.context = Some(text(value)?.to_owned());
    Ok(())
}
