use super::*;

fn mistakes(text: &str) -> Vec<String> {
    match Config::parse(Path::new("c.toml"), text) {
        Ok(_) => Vec::new(),
        Err(error) => error.to_string().lines().map(str::to_owned).collect(),
    }
}

const VOLUME: &str = "[stores.v]\ntype = \"volume\"\nmatch = '^/p/(?P<pod>[^/]+)/r$'\n";

#[test]
fn nothing_said_means_the_defaults() {
    let config = Config::parse(Path::new("c.toml"), "").unwrap();
    assert_eq!(config.root, Path::new(DEFAULT_ROOT));
    assert_eq!(config.socket, Path::new(DEFAULT_SOCKET));
    assert!(!config.sync_remove && !config.upperdir_label && config.rules.is_empty());
    assert_eq!(config.layer_sync, LayerSync::Background);
}

#[test]
fn a_full_file_is_read() {
    let text = format!(
        "root = \"/r\"\nsocket = \"/s\"\nmount_options = [\"metacopy=off\"]\nlayer_sync = \"commit\"\n\
         [labels]\nallow = [\"store\", \"retain\"]\n[stores.fast]\ntype = \"dir\"\npath = \"/fast\"\n{VOLUME}\
         [[rules]]\nnamespace = \"k8s.io\"\nstore = \"v\"\nvolume = {{ pod = \"{{pod.uid}}\" }}\notherwise = \"next\"\n\
         [[rules]]\nkey = '^c'\nstore = \"fast\"\nretain = true\n[[rules]]\nstore = \"root\"\nvolatile = true\n"
    );
    let config = Config::parse(Path::new("c.toml"), &text).unwrap();
    assert_eq!(config.stores.len(), 2);
    assert_eq!(config.rules[0].otherwise, Otherwise::Next);
    assert_eq!(config.rules[0].volume["pod"].to_string(), "{pod.uid}");
    assert_eq!(config.rules[0].subdirectory.to_string(), "{container.name}");
    assert_eq!(
        (config.rules[1].store.as_deref(), config.rules[1].retain),
        (Some("fast"), Some(true))
    );
    assert!(config.rules[2].store.is_none() && config.rules[2].volatile);
}

#[test]
fn every_mistake_names_its_line() {
    let bound = "volume = { pod = \"{pod.uid}\" }";
    let rule = |rest: &str| format!("{VOLUME}[[rules]]\nstore = \"v\"\n{rest}");
    let table = [
        ("rot = 1", 1, "unknown field `rot`"),
        ("\nroot = \"relative\"", 2, "not absolute"),
        ("\n\nroot = \"/a:b\"", 3, "cannot carry"),
        ("root = ", 1, ""),
        ("mount_options = [\"index=off\",\n\"upperdir=/x\"]", 2, "set by Overstream itself"),
        ("mount_options = [\"a,b\"]", 1, "without a comma"),
        ("[stores.Fast]\ntype = \"dir\"\npath = \"/f\"", 1, "cannot be a store's name"),
        ("[stores.root]\ntype = \"dir\"\npath = \"/f\"", 1, "cannot be a store's name"),
        ("[stores.s]\ntype = \"stream\"", 2, "no store type \"stream\""),
        ("[stores.s]\ntype = \"dir\"", 1, "needs `path`"),
        ("[stores.s]\ntype = \"volume\"", 1, "needs `match`"),
        ("[stores.s]\ntype = \"volume\"\nmatch = '('", 3, "unclosed group"),
        (
            "[stores.a]\ntype = \"dir\"\npath = \"/f\"\n[stores.b]\ntype = \"dir\"\npath = \"/f/g\"",
            4,
            "overlaps store",
        ),
        (
            "[stores.a]\ntype = \"dir\"\npath = \"/var/lib/overstream/snapshots/x\"",
            1,
            "overlaps the root",
        ),
        ("[[rules]]\nstore = \"fast\"", 2, "no store \"fast\""),
        ("[[rules]]\nmode = \"fuse\"", 2, "not available"),
        ("[[rules]]\nmode = \"warp\"", 2, "no mode"),
        ("[[rules]]\nkey = '('", 2, "unclosed group"),
        ("[[rules]]\nretain = true\nvolatile = true", 3, "may be lost"),
        ("[[rules]]\notherwise = \"next\"", 2, "goes with a store of type"),
        ("[[rules]]\nsubdirectory = \"x\"", 2, "goes with a store of type"),
        ("[[rules]]\nvolume = { pod = \"x\" }", 2, "goes with a store of type"),
        ("[log]\nlevel = \"info,over=loud\"", 2, ""),
        ("[labels]\nallow = [\"everything\"]", 2, "unknown variant"),
        (&rule(""), 4, "ties a capture"),
        (&rule("volume = { pod = \"x\" }"), 4, "ties a capture"),
        (&rule("volume = { pot = \"{pod.uid}\" }"), 6, "no capture \"pot\""),
        (&rule("volume = { pod = \"{pod.id}\" }"), 6, "no field \"pod.id\""),
        (&rule("volume = { pod = \"{pod.uid\" }"), 6, "not closed"),
        (&rule(&format!("{bound}\nvolatile = true")), 7, "may be lost"),
        (&rule(&format!("{bound}\nresume = true")), 4, "found there again"),
    ];
    for (text, line, problem) in table {
        let found = mistakes(text);
        let expected = format!("c.toml:{line}: ");
        assert!(
            found.iter().any(|mistake| mistake.starts_with(&expected) && mistake.contains(problem)),
            "{text:?}: wanted {expected}{problem}, found {found:#?}"
        );
    }
}

#[test]
fn all_mistakes_are_listed_at_once() {
    assert_eq!(mistakes("root = \"x\"\nsocket = \"y\"\n[[rules]]\nmode = \"z\"").len(), 3);
}

#[test]
fn words_and_values_that_cannot_be_are_listed_with_the_others() {
    let text = "sokcet = \"/x\"\nlayer_sync = \"sometimes\"\nroot = \"x\"\n[[rules]]\nretian = true\nmode = \"z\"\n";
    let found = mistakes(text);
    let lines: Vec<_> = found.iter().map(|mistake| mistake.split(':').nth(1).unwrap()).collect();
    assert_eq!(lines, ["1", "2", "3", "5", "6"], "{found:#?}");
    // What is no TOML has no further meaning.
    assert_eq!(mistakes("root = \"x\"\nbad bad\nsokcet = 1").len(), 1);
}

#[test]
fn templates_are_filled_from_what_is_known() {
    let template = Template::parse("a-{pod.uid}-{container.name}").unwrap();
    let fill = |uid: Option<&'static str>| {
        template.fill(move |field| match field {
            Field::PodUid => uid,
            Field::ContainerName => Some("web"),
            _ => None,
        })
    };
    assert_eq!(fill(Some("u")), Ok("a-u-web".to_owned()));
    assert_eq!(fill(None), Err(Field::PodUid));
}
