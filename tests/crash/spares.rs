//! Directories made in advance: a kill leaves none behind that anybody could take for a snapshot.

use std::collections::BTreeSet;
use std::sync::Arc;

use overstream_testkit::{Scratch, snapshots_in, spares_in, wait_for};

use super::steps::{DEATH, reached};
use super::world::{Op, World};

/// Prepares that make a burst, and then some.
const BURST: usize = 64;
/// A point, and how often it is passed before the kill.
const KILLS: &[&str] = &[
    "spare: directory made#1",
    "spare: directory made#9",
    "spare: made#3",
    "prepare: spare taken",
];

/// Kills the daemon while it makes and takes spares; returns the points that were reached.
pub(super) fn run_all(scratch: &Arc<Scratch>) -> BTreeSet<String> {
    let mut world = World::new(scratch, "spares");
    let mut seen = BTreeSet::new();
    for kill in KILLS {
        let mark = world.daemon.log().len();
        let before = world.client.state();
        world.arm(Some(kill));
        let mut answered = BTreeSet::new();
        // Whoever makes spares may be slower than this client.
        wait_for("the daemon to die", DEATH, || {
            for _ in 0..BURST {
                let key = format!("default/{0}/plain-{0}", world.fresh());
                if world.client.call(&Op::prepare(&key, "")).is_err() {
                    return true;
                }
                answered.insert(key);
            }
            false
        });
        world.daemon.wait_exit(DEATH);
        seen.extend(reached(&world, mark).into_keys());
        world.arm(None);
        let mark = world.daemon.log().len();
        world.daemon.start();
        assert!(spares_in(&world.root).is_empty(), "{kill}: spares after a restart");
        let strays = world.daemon.log()[mark..].matches("left by a crash").count();
        assert!(strays <= 1, "{kill}: more than the call that was killed left a directory");
        let after = world.check();
        let lost: Vec<_> = answered.iter().filter(|key| !after.infos.contains_key(*key)).collect();
        assert!(lost.is_empty(), "{kill}: {lost:?} were answered and are gone");
        assert!(after.ids().is_superset(&before.ids()), "{kill}");
        for key in after.places.keys() {
            world.client.ok(&Op::remove(key));
        }
        world.client.ok(&Op::Cleanup);
        assert!(snapshots_in(&world.root).is_empty(), "{kill}");
    }
    assert!(world.daemon.stop().success());
    assert!(spares_in(&world.root).is_empty(), "spares after a stop");
    seen
}
