//! Two overlays on the same lower layers: the kernel's, and what is tested.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use overstream_fuse::Format;
use overstream_testkit::facts::{self, Tree, assert_same};
use overstream_testkit::{Scratch, run};

use super::frame::{Data, Place, Served, kernel, mount_memory, subject};
use super::seen::{Eye, assert_clean};

/// Layers to fill before anything is mounted: the upper one, and two lower ones from the topmost down.
pub(super) struct Layers {
    pub(super) upper: PathBuf,
    pub(super) lowers: [PathBuf; 2],
    pub(super) format: Format,
}

/// What may differ from one pair to another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    /// Where the marks lie.
    pub(super) format: Format,
    /// How what is tested is served.
    pub(super) data: Data,
    /// Layers lie on the host's disk, not in memory, where copying up waits for no disk.
    pub(super) on_disk: bool,
    /// Hard links are kept. Uppers are not the same then: the kernel gives a file each name under which it is
    /// changed, and what is tested only that under which it was first seen.
    pub(super) index: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { format: Format::Trusted, data: Data::default(), on_disk: false, index: false }
    }
}

/// Two overlays with equal layers. All of it lies on one file system, so numbers are comparable.
pub(super) struct Pair {
    base: PathBuf,
    oracle: Side,
    subject: Side,
    lowers: Vec<Tree>,
    eye: Eye,
}

/// One of the two: where it is, and its mount.
struct Side {
    place: Place,
    served: Box<dyn Served>,
}

impl Pair {
    /// Has layers filled and mounts them twice.
    pub(super) fn new(scratch: &Scratch, setup: Setup, fill: impl FnOnce(&Layers)) -> Self {
        Self::with_work(scratch, setup, fill, |_| ())
    }

    /// The same; `leave` leaves something in both work directories first.
    pub(super) fn with_work(
        scratch: &Scratch,
        setup: Setup,
        fill: impl FnOnce(&Layers),
        leave: impl Fn(&Path),
    ) -> Self {
        let Setup { format, data, on_disk, index } = setup;
        let base = scratch.dir("layers");
        if !on_disk {
            mount_memory(&base);
        }
        let make = |name: &str| {
            fs::create_dir(base.join(name)).unwrap();
            base.join(name)
        };
        let upper = make("oracle-upper");
        let layers = Layers { upper, lowers: [make("lower-0"), make("lower-1")], format };
        fill(&layers);
        settle(&layers, &base, make("first-work"), index);
        let copy = base.join("subject-upper");
        run(Command::new("cp").arg("-a").arg(&layers.upper).arg(&copy)).ok();
        let place = |upper: PathBuf, work: &str| {
            let (lowers, work) = (layers.lowers.to_vec(), make(work));
            leave(&work);
            Place { lowers, upper, work, format, data, index }
        };
        let oracle = place(layers.upper.clone(), "oracle-work");
        let subject = place(copy, "subject-work");
        let lowers: Vec<_> = layers.lowers.iter().map(|lower| facts::read(lower, &[])).collect();
        let eye = Eye::new(&lowers, index);
        assert_same(&eye.raw(&oracle.upper), &eye.raw(&subject.upper));
        let (oracle, subject) = (Side::oracle(oracle, &base), Side::subject(subject, &base));
        Self { base, oracle, subject, lowers, eye }
    }

    /// Returns where the kernel's overlay is mounted.
    pub(super) fn oracle(&self) -> &Path {
        self.oracle.served.path()
    }

    /// Returns where what is tested is mounted.
    pub(super) fn subject(&self) -> &Path {
        self.subject.served.path()
    }

    /// Returns the upper of what is tested.
    pub(super) fn subject_upper(&self) -> &Path {
        &self.subject.place.upper
    }

    /// Panics unless views and uppers are the same. Looks also for the paths in `also`.
    #[track_caller]
    pub(super) fn assert_same(&self, also: &[String]) {
        let [oracle, subject] = [&self.oracle, &self.subject];
        let view = |side: &Side| {
            let mut view = self.eye.merged(&*side.served, also);
            if subject.place.data == Data::WriteBack {
                // Of files the kernel then tells its own time of change, which a copy-up is not for it.
                view.values_mut().flatten().for_each(|facts| facts.changed = (0, 0));
            }
            view
        };
        assert_same(&view(oracle), &view(subject));
        self.eye.assert_same_on_disk(&oracle.place, &subject.place);
        [oracle, subject].iter().for_each(|side| assert_clean(&side.place, true));
    }

    /// Has each mount the other's upper.
    pub(super) fn exchanged(self) -> Self {
        let Self { base, oracle, subject, lowers, eye } = self;
        let (oracle, subject) = (oracle.unmounted(), subject.unmounted());
        let (oracle, subject) = (Side::oracle(subject, &base), Side::subject(oracle, &base));
        Self { base, oracle, subject, lowers, eye }
    }

    /// Mounts what is tested again.
    pub(super) fn mounted_again(self) -> Self {
        let subject = Side::subject(self.subject.unmounted(), &self.base);
        Self { subject, ..self }
    }

    /// Unmounts what is tested; panics unless it and the kernel then see in its upper what was seen before.
    #[track_caller]
    pub(super) fn assert_seen_by_the_kernel(self) {
        let Self { base, oracle, subject, eye, .. } = self;
        drop(oracle);
        let before = eye.merged(&*subject.served, &[]);
        let place = subject.unmounted();
        let kernel = Side::oracle(place.clone(), &base);
        let by_kernel = eye.merged(&*kernel.served, &[]);
        kernel.unmounted();
        assert_same(&by_kernel, &before);
        let again = Side::subject(place, &base);
        assert_same(&by_kernel, &eye.merged(&*again.served, &[]));
        again.unmounted();
    }

    /// Unmounts both; panics unless everybody then sees the same in everybody's upper.
    #[track_caller]
    pub(super) fn assert_interchangeable(self, also: &[String]) {
        let Self { base, oracle, subject, lowers, eye } = self;
        let (oracle, subject) = (oracle.unmounted(), subject.unmounted());
        for (lower, before) in oracle.lowers.iter().zip(&lowers) {
            assert_same(before, &facts::read(lower, &[]));
        }
        eye.assert_same_on_disk(&oracle, &subject);
        type Mount = fn(Place, &Path) -> Side;
        let view = |mount: Mount, place: &Place| {
            let side = mount(place.clone(), &base);
            let view = eye.merged(&*side.served, also);
            side.unmounted();
            view
        };
        let expected = view(Side::oracle, &oracle);
        assert_same(&expected, &view(Side::oracle, &subject));
        assert_same(&expected, &view(Side::subject, &oracle));
        assert_same(&expected, &view(Side::subject, &subject));
    }
}

/// Looks at everything once through the kernel's overlay, which marks merged directories the first time that it
/// meets them. That is then done on both sides.
fn settle(layers: &Layers, base: &Path, work: PathBuf, index: bool) {
    let (lowers, upper) = (layers.lowers.to_vec(), layers.upper.clone());
    let data = Data::default();
    let place = Place { lowers, upper, work, format: layers.format, data, index };
    let side = Side::oracle(place, base);
    facts::read(side.served.path(), &[]);
    side.served.unmount();
}

impl Side {
    fn oracle(place: Place, base: &Path) -> Self {
        let served = kernel(&place, &base.join("oracle"));
        Self { place, served }
    }

    fn subject(place: Place, base: &Path) -> Self {
        let served = subject(&place, &base.join("subject"));
        Self { place, served }
    }

    /// Unmounts it; panics if it leaves anything in its work directory.
    #[track_caller]
    fn unmounted(self) -> Place {
        let is_kernel = self.served.is_kernel();
        self.served.unmount();
        assert_clean(&self.place, is_kernel);
        self.place
    }
}
