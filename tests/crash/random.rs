//! kill -9 at random instants under concurrent calls: everything answered with OK is there.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use overstream_testkit::proto::snapshots::Kind;
use overstream_testkit::proto::types::Mount;
use overstream_testkit::{Scratch, limit, require_root};
use tonic::{Code, Status};

use super::world::{Client, Labels, Op, State, World, identity};

const CLIENTS: u64 = 4;

/// Numbers that a seed repeats (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let index = self.below(all.len().try_into().unwrap());
        &all[usize::try_from(index).unwrap()]
    }
}

/// What a client knows of a snapshot of its own.
#[derive(Clone, Debug)]
struct Known {
    kind: Kind,
    parent: String,
    labels: Labels,
    /// What its upper holds; nothing if that was not written before the daemon died.
    content: Option<String>,
}

/// A client with the snapshots that it alone changes.
struct Actor {
    client: Client,
    random: Random,
    number: u64,
    next: u64,
    base: String,
    known: BTreeMap<String, Known>,
    /// The call under way when the daemon died.
    open: Option<Op>,
    answered: u64,
}

impl Actor {
    fn new(client: &Client, number: u64, seed: u64, base: &str) -> Self {
        Self {
            client: client.clone(),
            random: Random(seed.wrapping_add(number)),
            number,
            next: 0,
            base: base.to_owned(),
            known: BTreeMap::new(),
            open: None,
            answered: 0,
        }
    }

    /// Calls until the daemon is gone.
    fn run(&mut self) {
        while self.open.is_none() {
            let Some(op) = self.choose() else { continue };
            match self.client.call(&op) {
                Ok(mounts) => {
                    self.answered += 1;
                    self.apply(&op);
                    self.write(&op, &mounts);
                }
                Err(error) if is_gone(&error) => self.open = Some(op),
                Err(error) => panic!("{op:?}: {error:?}"),
            }
        }
    }

    fn choose(&mut self) -> Option<Op> {
        match self.random.below(12) {
            0..=4 => Some(self.prepare()),
            5 => {
                let parent = self.parent();
                let key = self.name("view");
                Some(Op::View { key, parent })
            }
            6..=7 => {
                let key = self.some(Kind::Active)?;
                let name = format!("{key}-layer");
                Some(Op::Commit { key, name })
            }
            8..=9 => {
                let free = |key: &&String| !self.known.values().any(|one| one.parent == **key);
                let free: Vec<String> = self.known.keys().filter(free).cloned().collect();
                (!free.is_empty()).then(|| Op::Remove { key: self.random.pick(&free).clone() })
            }
            10 => {
                let key = self.some(Kind::Active)?;
                let mut labels = self.known[&key].labels.clone();
                labels.insert("count".to_owned(), self.random.below(1000).to_string());
                Some(Op::Update { key, labels })
            }
            _ => Some(Op::Cleanup),
        }
    }

    fn name(&mut self, kind: &str) -> String {
        self.next += 1;
        format!("default/{}/{kind}-{}-{}", self.next, self.number, self.next)
    }

    fn prepare(&mut self) -> Op {
        let kind = *self.random.pick(&["plain", "fast", "vol", "extract", "keep"]);
        let key = self.name(kind);
        let container = key.rsplit('/').next().unwrap();
        let labels = if kind == "vol" { identity(container, "p1") } else { Labels::new() };
        Op::Prepare { parent: self.parent(), labels, key }
    }

    fn parent(&mut self) -> String {
        self.some(Kind::Committed).unwrap_or_else(|| self.base.clone())
    }

    fn some(&mut self, kind: Kind) -> Option<String> {
        let all: Vec<String> = self
            .known
            .iter()
            .filter(|(_, one)| one.kind == kind)
            .map(|(key, _)| key.clone())
            .collect();
        (!all.is_empty()).then(|| self.random.pick(&all).clone())
    }

    /// Notes what a call did.
    fn apply(&mut self, op: &Op) {
        let new = |kind, parent: &String, labels: &Labels| Known {
            kind,
            parent: parent.clone(),
            labels: labels.clone(),
            content: None,
        };
        match op {
            Op::Prepare { key, parent, labels } => {
                self.known.insert(key.clone(), new(Kind::Active, parent, labels));
            }
            Op::View { key, parent } => {
                self.known.insert(key.clone(), new(Kind::View, parent, &Labels::new()));
            }
            Op::Commit { key, name } => {
                let mut one = self.known.remove(key).unwrap();
                (one.kind, one.labels) = (Kind::Committed, Labels::new());
                self.known.insert(name.clone(), one);
            }
            Op::Remove { key } => {
                self.known.remove(key);
            }
            Op::Update { key, labels } => {
                self.known.get_mut(key).unwrap().labels = labels.clone();
            }
            Op::Mounts { .. } | Op::Cleanup | Op::RemoveRetained { .. } => {}
        }
    }

    fn write(&mut self, op: &Op, mounts: &[Mount]) {
        let Op::Prepare { key, .. } = op else { return };
        let options = &mounts[0].options;
        let upper = options.iter().find_map(|option| option.strip_prefix("upperdir="));
        let upper = upper.unwrap_or(&mounts[0].source);
        fs::write(Path::new(upper).join("data"), key).unwrap();
        self.known.get_mut(key).unwrap().content = Some(key.clone());
    }

    /// Finds out what became of the call under way, and checks everything else.
    fn check(&mut self, state: &State) {
        if let Some(op) = self.open.take()
            && happened(&op, state)
        {
            self.apply(&op);
        }
        for (key, one) in &self.known {
            let Some(info) = state.infos.get(key) else { panic!("{key} is gone: {one:?}") };
            assert_eq!((info.kind(), &info.parent), (one.kind, &one.parent), "{key}");
            assert_eq!(info.labels, one.labels.clone().into_iter().collect(), "{key}");
            if let Some(content) = &one.content {
                let file = Path::new(&state.places[key].upper).join("data");
                assert_eq!(fs::read_to_string(&file).ok().as_ref(), Some(content), "{key}");
            }
        }
        let own = |key: &&String| self.is_own(key);
        let unknown: Vec<_> = state.infos.keys().filter(own).collect();
        let unknown: Vec<_> =
            unknown.into_iter().filter(|key| !self.known.contains_key(*key)).collect();
        assert!(unknown.is_empty(), "came back: {unknown:?}");
    }

    fn is_own(&self, key: &str) -> bool {
        let container = key.trim_end_matches("-layer").rsplit('/').next().unwrap();
        container.split('-').nth(1) == Some(self.number.to_string().as_str())
            && container.split('-').count() == 3
    }
}

fn happened(op: &Op, state: &State) -> bool {
    match op {
        Op::Prepare { key, .. } | Op::View { key, .. } => state.infos.contains_key(key),
        Op::Commit { name, .. } => state.infos.contains_key(name),
        Op::Remove { key } => !state.infos.contains_key(key),
        Op::Update { key, labels } => {
            state.infos[key].labels == labels.clone().into_iter().collect()
        }
        Op::Mounts { .. } | Op::Cleanup | Op::RemoveRetained { .. } => true,
    }
}

/// True for errors of a connection whose other end died.
fn is_gone(error: &Status) -> bool {
    let code = error.code();
    let transport = matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled)
        || (code == Code::Internal && error.message().contains("h2"));
    transport && !error.message().contains("store")
}

fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// A number belongs to one container for ever.
fn check_numbers(owners: &mut BTreeMap<u64, String>, state: &State) {
    for (key, place) in &state.places {
        let container = key.trim_end_matches("-layer").rsplit('/').next().unwrap();
        let owner = owners.entry(place.id).or_insert_with(|| container.to_owned());
        assert_eq!(owner, container, "number {} was given twice", place.id);
    }
}

fn soak(world: &mut World, seed: u64, time: Duration) {
    let base = world.layer("extract", "");
    let mut random = Random(seed);
    let mut actors: Vec<Actor> =
        (0..CLIENTS).map(|number| Actor::new(&world.client, number, seed ^ 77, &base)).collect();
    let mut owners = BTreeMap::new();
    let (begin, mut rounds) = (Instant::now(), 0);
    while begin.elapsed() < time {
        let pause = Duration::from_millis(random.below(250));
        thread::scope(|scope| {
            let threads: Vec<_> =
                actors.iter_mut().map(|actor| scope.spawn(move || actor.run())).collect();
            // The instant is the point of this test.
            thread::sleep(pause);
            world.daemon.kill();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
        world.daemon.start();
        world.call_may_have_died = true;
        let state = world.check();
        check_numbers(&mut owners, &state);
        actors.iter_mut().for_each(|actor| actor.check(&state));
        rounds += 1;
    }
    let answered: u64 = actors.iter().map(|actor| actor.answered).sum();
    eprintln!("{rounds} kills, {answered} calls answered, seed {seed}");
    assert!(rounds > 0 && answered > 0);
}

/// SEMANTICS D1
#[test]
fn nothing_answered_is_lost_at_any_instant() {
    let time = Duration::from_secs(number("OVERSTREAM_SOAK_SECONDS", 10));
    limit(time * 2 + Duration::from_secs(60), move || {
        if !require_root() {
            return;
        }
        let scratch = Arc::new(Scratch::new());
        soak(&mut World::new(&scratch, "over"), number("OVERSTREAM_SEED", 1), time);
    });
}
