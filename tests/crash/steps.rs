//! kill -9 at every step of every call: what was answered stays, what was not is whole or nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use overstream_testkit::proto::snapshots::Kind;
use overstream_testkit::{Scratch, limit, require_root};
use tonic::Code;

use super::world::{DEFAULTS, Labels, Op, State, World, identity};
use super::{spares, starts};

/// How long a daemon may take to die.
pub(crate) const DEATH: Duration = Duration::from_secs(20);

/// What is done to the daemon.
#[derive(Clone, Debug)]
enum Act {
    Call(Op),
    /// A call that is refused at its end.
    Refused(Op),
    /// SIGTERM.
    Stop,
}

/// A call, and what it needs.
struct Scenario {
    name: &'static str,
    configuration: &'static str,
    act: fn(&mut World, &Base) -> Act,
}

/// Layers that all scenarios share.
struct Base {
    layer: String,
    fast: String,
}

impl Base {
    fn new(world: &mut World) -> Self {
        let key = world.prepared("extract", "");
        let upper = world.client.state().places[&key].upper.clone();
        // New uppers inherit the owner of the layer's root.
        chown(&upper, Some(1000), Some(1000)).unwrap();
        let layer = format!("{key}-layer");
        world.client.ok(&Op::commit(&key, &layer));
        let fast = world.layer("fast", &layer);
        Self { layer, fast }
    }
}

const SYNC_REMOVE: &str = "layer_sync = \"off\"\nsync_remove = true\n";
const SYNC_LAYERS: &str = "layer_sync = \"background\"\n";
const ALL: &[Scenario] = &[
    Scenario { name: "prepare", configuration: DEFAULTS, act: prepare },
    Scenario { name: "prepare on layers", configuration: DEFAULTS, act: prepare_on_layers },
    Scenario { name: "prepare in a store", configuration: DEFAULTS, act: prepare_in_store },
    Scenario { name: "prepare that is undone", configuration: DEFAULTS, act: prepare_undone },
    Scenario { name: "view", configuration: DEFAULTS, act: view },
    Scenario { name: "commit", configuration: DEFAULTS, act: commit },
    Scenario { name: "commit in a store", configuration: DEFAULTS, act: commit_in_store },
    Scenario { name: "commit on a volume", configuration: DEFAULTS, act: commit_on_volume },
    Scenario { name: "commit while pending", configuration: DEFAULTS, act: commit_pending },
    Scenario { name: "remove", configuration: DEFAULTS, act: remove },
    Scenario { name: "update", configuration: DEFAULTS, act: update },
    Scenario { name: "remove and delete", configuration: SYNC_REMOVE, act: remove },
    Scenario { name: "remove a linked layer", configuration: SYNC_REMOVE, act: remove_linked },
    Scenario { name: "cleanup", configuration: DEFAULTS, act: cleanup },
    Scenario { name: "cleanup on a volume", configuration: DEFAULTS, act: cleanup_volume },
    Scenario { name: "settle on a volume", configuration: DEFAULTS, act: settle },
    Scenario { name: "settle in a store", configuration: DEFAULTS, act: settle_in_store },
    Scenario { name: "mounts of a pending one", configuration: DEFAULTS, act: mounts_pending },
    Scenario { name: "take over a volume", configuration: DEFAULTS, act: take_over },
    Scenario { name: "remove and retain", configuration: DEFAULTS, act: remove_and_retain },
    Scenario { name: "attach a retained upper", configuration: DEFAULTS, act: reattach },
    Scenario { name: "remove a retained upper", configuration: DEFAULTS, act: remove_retained },
    Scenario { name: "remove a volatile mark", configuration: DEFAULTS, act: volatile },
    Scenario { name: "sync layers", configuration: SYNC_LAYERS, act: sync_layers },
];

fn labelled(key: &str, parent: &str, labels: Labels) -> Op {
    Op::Prepare { key: key.to_owned(), parent: parent.to_owned(), labels }
}

fn prepare(world: &mut World, _: &Base) -> Act {
    let n = world.fresh();
    Act::Call(Op::prepare(&format!("default/{n}/plain-{n}"), ""))
}

fn prepare_on_layers(world: &mut World, base: &Base) -> Act {
    let n = world.fresh();
    Act::Call(Op::prepare(&format!("default/{n}/plain-{n}"), &base.fast))
}

fn prepare_in_store(world: &mut World, base: &Base) -> Act {
    let n = world.fresh();
    Act::Call(Op::prepare(&format!("default/{n}/fast-{n}"), &base.layer))
}

/// Ids cannot be mapped for a layer of another store, which is found out after the directories.
fn prepare_undone(world: &mut World, base: &Base) -> Act {
    let n = world.fresh();
    let map = |word: &str| (format!("containerd.io/snapshot/{word}"), "0:1000:65536".to_owned());
    let labels = [map("uidmapping"), map("gidmapping")].into();
    Act::Refused(labelled(&format!("default/{n}/fast-{n}"), &base.fast, labels))
}

fn view(world: &mut World, base: &Base) -> Act {
    let key = format!("default/{}/view", world.fresh());
    Act::Call(Op::View { key, parent: base.fast.clone() })
}

fn commit(world: &mut World, base: &Base) -> Act {
    let key = world.prepared("extract", &base.layer);
    Act::Call(Op::commit(&key, &format!("{key}-layer")))
}

fn commit_in_store(world: &mut World, base: &Base) -> Act {
    let key = world.prepared("fast", &base.layer);
    Act::Call(Op::commit(&key, &format!("{key}-layer")))
}

fn commit_on_volume(world: &mut World, base: &Base) -> Act {
    let key = world.prepared("vol", &base.layer);
    Act::Call(Op::commit(&key, &format!("{key}-layer")))
}

/// A snapshot that was recorded but not settled when the daemon died.
fn pending(world: &mut World, base: &Base) -> String {
    let n = world.fresh();
    let key = format!("default/{n}/vol-{n}");
    world.arm(Some("prepare: recorded"));
    let labels = identity(&format!("vol-{n}"), "p1");
    world.client.call(&labelled(&key, &base.layer, labels)).unwrap_err();
    world.daemon.wait_exit(DEATH);
    world.arm(None);
    world.daemon.start();
    assert_eq!(world.client.state().places[&key].placement, "pending");
    key
}

fn commit_pending(world: &mut World, base: &Base) -> Act {
    let key = pending(world, base);
    Act::Call(Op::commit(&key, &format!("{key}-layer")))
}

fn mounts_pending(world: &mut World, base: &Base) -> Act {
    Act::Call(Op::Mounts { key: pending(world, base) })
}

fn remove(world: &mut World, base: &Base) -> Act {
    let key = world.prepared("plain", &base.layer);
    Act::Call(Op::remove(&key))
}

fn remove_linked(world: &mut World, base: &Base) -> Act {
    let name = world.layer("fast", &base.layer);
    Act::Call(Op::remove(&name))
}

fn update(world: &mut World, base: &Base) -> Act {
    let key = world.prepared("plain", &base.layer);
    let labels = [("colour".to_owned(), "green".to_owned())].into();
    Act::Call(Op::Update { key, labels })
}

fn cleanup(world: &mut World, base: &Base) -> Act {
    let plain = world.prepared("plain", &base.layer);
    let fast = world.layer("fast", &base.layer);
    world.client.ok(&Op::remove(&plain));
    world.client.ok(&Op::remove(&fast));
    Act::Call(Op::Cleanup)
}

fn cleanup_volume(world: &mut World, base: &Base) -> Act {
    let key = world.prepared("vol", &base.layer);
    world.client.ok(&Op::remove(&key));
    Act::Call(Op::Cleanup)
}

fn settle(world: &mut World, base: &Base) -> Act {
    let n = world.fresh();
    let labels = identity(&format!("vol-{n}"), "p1");
    Act::Call(labelled(&format!("default/{n}/vol-{n}"), &base.layer, labels))
}

fn settle_in_store(world: &mut World, base: &Base) -> Act {
    let n = world.fresh();
    let labels = identity(&format!("vol-{n}"), "no-such-pod");
    Act::Call(labelled(&format!("default/{n}/vol-{n}"), &base.layer, labels))
}

/// A new container of the same name gets the upper; the former snapshot becomes `moved`.
fn take_over(world: &mut World, base: &Base) -> Act {
    let key = world.prepared("vol", &base.layer);
    let id = world.client.state().places[&key].id;
    let container = key.rsplit('/').next().unwrap().to_owned();
    // Nobody holds the mounts any more, which a fresh daemon knows.
    world.kill_and_start();
    world.written.remove(&id);
    let labels = identity(&container, "p1");
    Act::Call(labelled(&format!("default/{}/{container}", world.fresh()), &base.layer, labels))
}

fn remove_and_retain(world: &mut World, base: &Base) -> Act {
    let key = world.prepared("keep", &base.layer);
    Act::Call(Op::remove(&key))
}

fn reattach(world: &mut World, base: &Base) -> Act {
    let key = world.prepared("keep", &base.layer);
    world.client.ok(&Op::remove(&key));
    let container = key.rsplit('/').next().unwrap();
    Act::Call(Op::prepare(&format!("default/{}/{container}", world.fresh()), &base.layer))
}

fn remove_retained(world: &mut World, base: &Base) -> Act {
    let key = world.prepared("keep", &base.layer);
    let id = world.client.state().places[&key].id;
    world.client.ok(&Op::remove(&key));
    Act::Call(Op::RemoveRetained { id })
}

fn volatile(world: &mut World, base: &Base) -> Act {
    let key = world.prepared("volatile", &base.layer);
    let mounts = world.client.ok(&Op::Mounts { key: key.clone() });
    assert!(mounts[0].options.contains(&"volatile".to_owned()), "{mounts:?}");
    let mounted = overstream_testkit::mount(&mounts, world.scratch.join("merged"));
    fs::write(mounted.join("written"), "through the mount").unwrap();
    mounted.unmount();
    let upper = world.client.state().places[&key].upper.clone();
    let mark = Path::new(&upper).with_file_name("work").join("work/incompat/volatile");
    assert!(mark.exists(), "{}", mark.display());
    Act::Call(Op::Mounts { key })
}

fn sync_layers(world: &mut World, base: &Base) -> Act {
    world.layer("extract", &base.layer);
    world.layer("fast", &base.layer);
    Act::Stop
}

/// Points reached since the log had `mark` bytes, with how often.
pub(crate) fn reached(world: &World, mark: usize) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in world.daemon.log().get(mark..).unwrap_or_default().lines() {
        let point = line.strip_prefix("crash point \"").and_then(|rest| rest.split('"').next());
        if let Some(point) = point.filter(|_| line.ends_with("reached")) {
            *counts.entry(point.to_owned()).or_insert(0) += 1;
        }
    }
    counts
}

fn perform(world: &mut World, act: &Act) {
    match act {
        Act::Call(op) => {
            world.client.ok(op);
        }
        Act::Refused(op) => {
            let error = world.client.call(op).unwrap_err();
            assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
        }
        Act::Stop => assert!(world.daemon.stop().success()),
    }
}

/// Does it without a crash and returns the points it passes.
fn trace(world: &mut World, base: &Base, scenario: &Scenario) -> BTreeMap<String, u64> {
    let act = (scenario.act)(world, base);
    let before = world.client.state();
    let mark = world.daemon.log().len();
    perform(world, &act);
    let points = reached(world, mark);
    if !world.daemon.is_running() {
        world.daemon.start();
    }
    let after = world.check();
    assert!(is_done(&act, &before, &after), "{act:?}: {before:#?} {after:#?}");
    points
}

/// Does it, dies at `point`, starts again and checks what is left, and that it can be repeated.
fn crash(world: &mut World, base: &Base, scenario: &Scenario, point: &str) {
    let act = (scenario.act)(world, base);
    let before = world.client.state();
    world.arm(Some(point));
    match &act {
        Act::Call(op) | Act::Refused(op) => {
            world.client.call(op).unwrap_err();
        }
        Act::Stop => world.daemon.signal(Signal::SIGTERM),
    }
    assert_eq!(world.daemon.wait_exit(DEATH).signal(), Some(9), "{}", world.daemon.describe());
    world.arm(None);
    world.daemon.start();
    world.call_may_have_died = true;
    let after = world.check();
    world.call_may_have_died = false;
    let done = is_done(&act, &before, &after);
    let undone = after == before;
    let half = is_pending(&act, &before, &after);
    assert!(done || undone || half, "half done: {before:#?} {after:#?}");
    repeat(world, &act);
    let last = world.check();
    assert!(is_done(&act, &before, &last), "repeated: {before:#?} {last:#?}");
    check_new_ids(&act, &before, &last);
    check_owners(&base.layer, &last);
}

/// All uppers inherit the owner of the layer's root.
fn check_owners(layer: &str, state: &State) {
    for place in state.places.values().filter(|place| place.parent == layer) {
        if place.kind == "active" && place.placement == "placed" {
            let found = fs::metadata(&place.upper).unwrap();
            assert_eq!((found.uid(), found.gid()), (1000, 1000), "{place:?}");
        }
    }
}

/// The same call again is done, or says that it was.
fn repeat(world: &mut World, act: &Act) {
    let (op, sane) = match act {
        Act::Call(op @ (Op::Prepare { .. } | Op::View { .. })) => (op, Some(Code::AlreadyExists)),
        Act::Call(op @ (Op::Commit { .. } | Op::Remove { .. } | Op::RemoveRetained { .. })) => {
            (op, Some(Code::NotFound))
        }
        Act::Call(op) => (op, None),
        Act::Refused(op) => {
            assert_eq!(world.client.call(op).unwrap_err().code(), Code::FailedPrecondition);
            return;
        }
        Act::Stop => return world.daemon.restart(),
    };
    if let Err(error) = world.client.call(op) {
        assert_eq!(Some(error.code()), sane, "{op:?}: {error:?}");
    }
    if let Op::Prepare { key, .. } | Op::View { key, .. } = op {
        assert_eq!(world.client.ok(&Op::Mounts { key: key.clone() }).len(), 1);
    }
}

/// Keys that a call may change.
fn touched(act: &Act, before: &State) -> BTreeSet<String> {
    let Act::Call(op) = act else { return BTreeSet::new() };
    match op {
        Op::Prepare { key, .. } => {
            let container = format!("/{}", key.rsplit('/').next().unwrap());
            let same = before.places.keys().filter(|other| other.ends_with(&container));
            same.chain([key]).cloned().collect()
        }
        Op::View { key, .. } | Op::Mounts { key } | Op::Remove { key } | Op::Update { key, .. } => {
            [key.clone()].into()
        }
        Op::Commit { key, name } => [key.clone(), name.clone()].into(),
        Op::Cleanup | Op::RemoveRetained { .. } => BTreeSet::new(),
    }
}

fn is_done(act: &Act, before: &State, after: &State) -> bool {
    let changed = before.changed(after);
    if !changed.is_subset(&touched(act, before)) {
        return false;
    }
    let Act::Call(op) = act else { return before == after };
    let kind = |key: &String| after.infos.get(key).map(|info| info.kind());
    let placed = |key: &String| after.places.get(key).is_some_and(|one| one.placement == "placed");
    match op {
        Op::Prepare { key, parent, labels } => {
            let info = after.infos.get(key);
            let right = info.is_some_and(|info| {
                info.parent == *parent && info.labels == labels.clone().into_iter().collect()
            });
            right && kind(key) == Some(Kind::Active) && placed(key)
        }
        Op::View { key, parent } => {
            kind(key) == Some(Kind::View) && after.infos[key].parent == *parent
        }
        Op::Mounts { key } => placed(key),
        Op::Commit { key, name } => {
            let kept = before
                .places
                .get(key)
                .is_none_or(|one| after.places.get(name).is_some_and(|layer| layer.id == one.id));
            kept && kind(key).is_none() && kind(name) == Some(Kind::Committed)
        }
        Op::Remove { key } => {
            let retained = before.places.get(key).filter(|one| one.retain).map(|one| one.id);
            kind(key).is_none() && retained.is_none_or(|id| after.retained.contains_key(&id))
        }
        Op::Update { key, labels } => {
            after.infos[key].labels == labels.clone().into_iter().collect()
        }
        Op::Cleanup => changed.is_empty(),
        Op::RemoveRetained { id } => !after.retained.contains_key(id),
    }
}

/// A snapshot for a volume may be recorded while its place is not settled yet; a Commit of one too.
fn is_pending(act: &Act, before: &State, after: &State) -> bool {
    let only_theirs = before.changed(after).is_subset(&touched(act, before));
    match act {
        Act::Call(Op::Prepare { key, .. }) => {
            only_theirs && after.places.get(key).is_some_and(|one| one.placement == "pending")
        }
        Act::Call(Op::Commit { key, .. }) => {
            let pending = before.places.get(key).is_some_and(|one| one.placement == "pending");
            only_theirs && pending && after.places.contains_key(key)
        }
        _ => false,
    }
}

/// New numbers are larger than all former ones; only a retained upper comes back with its own.
fn check_new_ids(act: &Act, before: &State, after: &State) {
    let largest = before.ids().last().copied().unwrap_or(0);
    let added: Vec<_> = after.ids().difference(&before.ids()).copied().collect();
    assert!(added.iter().all(|id| *id > largest), "{act:?}: {added:?} after {largest}");
}

/// Kills the daemon at each step of each scenario and returns the points that were reached.
fn run(name: &str, scratch: &Arc<Scratch>, scenarios: &[&Scenario]) -> BTreeSet<String> {
    let mut world = World::new(scratch, name);
    let base = Base::new(&mut world);
    let mut seen = BTreeSet::new();
    for scenario in scenarios {
        world.configure(scenario.configuration);
        world.kill_and_start();
        let points = trace(&mut world, &base, scenario);
        for (point, times) in &points {
            for nth in 1..=*times {
                let point = format!("{point}#{nth}");
                let text = format!("{}: {point}", scenario.name);
                eprintln!("{text}");
                crash(&mut world, &base, scenario, &point);
            }
        }
        seen.extend(points.into_keys());
    }
    assert!(world.daemon.stop().success());
    seen
}

/// SEMANTICS D2
#[test]
fn nothing_answered_is_lost_whichever_step_is_the_last() {
    limit(Duration::from_secs(300), || {
        if !require_root() {
            return;
        }
        let scratch = Arc::new(Scratch::new());
        let test = std::thread::current().name().unwrap().to_owned();
        let work = |part: usize| {
            let scratch = Arc::clone(&scratch);
            let body = move || {
                let scenarios: Vec<_> = ALL.iter().skip(part).step_by(2).collect();
                let mut seen = run(["even", "odd"][part], &scratch, &scenarios);
                seen.extend(starts::run_all(&scratch, part));
                if part == 0 {
                    seen.extend(spares::run_all(&scratch));
                }
                seen
            };
            std::thread::Builder::new().name(test.clone()).spawn(body).unwrap()
        };
        let threads = [work(0), work(1)];
        let parts = threads.map(|thread| thread.join().unwrap());
        let seen: BTreeSet<&str> = parts.iter().flatten().map(String::as_str).collect();
        let forgotten: Vec<_> =
            overstream::crash::POINTS.iter().filter(|point| !seen.contains(*point)).collect();
        assert!(forgotten.is_empty(), "no scenario reaches {forgotten:?}");
    });
}

/// A killed call may have given an empty upper on a volume to layers that nobody uses any more.
#[test]
fn an_empty_upper_left_by_a_kill_serves_other_layers() {
    limit(Duration::from_secs(60), || {
        if !require_root() {
            return;
        }
        let scratch = Arc::new(Scratch::new());
        let mut world = World::new(&scratch, "over");
        let base = Base::new(&mut world);
        let labels = || identity("vol-x", "p1");
        world.arm(Some("settle: identity written"));
        let first = "default/900/vol-x";
        world.client.call(&labelled(first, &base.layer, labels())).unwrap_err();
        world.daemon.wait_exit(DEATH);
        world.arm(None);
        world.daemon.start();
        world.client.ok(&Op::remove(first));
        world.client.ok(&labelled("default/901/vol-x", &base.fast, labels()));
        world.check();
    });
}
