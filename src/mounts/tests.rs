use super::*;

fn lowers(count: usize) -> Vec<PathBuf> {
    (1..=count).rev().map(|id| PathBuf::from(format!("/r/snapshots/{}/fs", id))).collect()
}

fn shown(kind: Kind, count: usize, id_maps: &[&str], options: &[&str], volatile: bool) -> String {
    let view = View {
        kind,
        own: Path::new("/u/9"),
        lowers: &lowers(count),
        id_maps: &id_maps.iter().map(ToString::to_string).collect::<Vec<_>>(),
        overlay_options: &options.iter().map(ToString::to_string).collect::<Vec<_>>(),
        volatile,
    };
    let list = mounts(&view).unwrap();
    assert_eq!(list.len(), 1);
    format!("{} {} {}", list[0].fs_type, list[0].source, list[0].options.join(","))
}

/// SEMANTICS M1
#[test]
fn mounts_are_the_references_option_for_option() {
    let (active, view) = (Kind::Active, Kind::View);
    let table: &[(Kind, usize, &str)] = &[
        (active, 0, "bind /u/9/fs rw,rbind"),
        (view, 0, "bind /u/9/fs ro,rbind"),
        (view, 1, "bind /r/snapshots/1/fs ro,rbind"),
        (view, 2, "overlay overlay lowerdir=/r/snapshots/2/fs:/r/snapshots/1/fs,x,index=off"),
        (
            active,
            1,
            "overlay overlay workdir=/u/9/work,upperdir=/u/9/fs,lowerdir=/r/snapshots/1/fs,x,index=off",
        ),
        (
            active,
            2,
            "overlay overlay workdir=/u/9/work,upperdir=/u/9/fs,lowerdir=/r/snapshots/2/fs:/r/snapshots/1/fs,x,index=off",
        ),
    ];
    for (kind, count, expected) in table {
        assert_eq!(shown(*kind, *count, &[], &["x", "index=off"], false), *expected);
    }
}

#[test]
fn id_maps_stand_first_on_every_type() {
    let maps = ["uidmap=0:1:2", "gidmap=0:3:4"];
    assert_eq!(
        shown(Kind::Active, 0, &maps, &["x"], false),
        "bind /u/9/fs uidmap=0:1:2,gidmap=0:3:4,rw,rbind"
    );
    assert!(
        shown(Kind::Active, 2, &maps, &["x"], false)
            .starts_with("overlay overlay uidmap=0:1:2,gidmap=0:3:4,workdir=")
    );
}

#[test]
fn volatile_marks_writable_overlays_only() {
    assert!(shown(Kind::Active, 1, &[], &[], true).ends_with(",volatile"));
    assert!(!shown(Kind::View, 2, &[], &[], true).contains("volatile"));
    assert!(!shown(Kind::Active, 0, &[], &[], true).contains("volatile"));
}

/// SEMANTICS M3
#[test]
fn deep_chains_fit_the_page_or_are_refused_by_name() {
    let own = PathBuf::from(format!("/{}/1234567", "d".repeat(200)));
    let attempt = |count: usize, first: usize| {
        let lowers: Vec<_> =
            (0..count).map(|n| PathBuf::from(format!("/r/snapshots/{}/fs", first + n))).collect();
        let view = View {
            kind: Kind::Active,
            own: &own,
            lowers: &lowers,
            id_maps: &[],
            overlay_options: &[],
            volatile: false,
        };
        mounts(&view).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(attempt(128, 10_000_000), Ok(()));
    assert_eq!(attempt(400, 100), Ok(()));
    assert!(attempt(400, 10_000_000).unwrap_err().contains("squash the image"));
    assert!(attempt(501, 1).unwrap_err().contains("takes 500"));
}
