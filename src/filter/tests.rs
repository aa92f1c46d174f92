use proptest::prelude::*;

use super::*;
use crate::snapshot::{Kind, Time};

fn snapshot(name: &str, parent: &str, kind: Kind, l: &str) -> Info {
    let mut labels = Labels::from([("containerd.io/gc.root".into(), "check-walk".into())]);
    if !l.is_empty() {
        labels.insert("l".into(), l.into());
    }
    let (name, parent) = (name.into(), parent.into());
    Info { name, parent, kind, created: Time(1), updated: Time(2), labels }
}

/// The snapshots over which containerd's own suite walks.
fn walked() -> Vec<Info> {
    vec![
        snapshot("a-np", "", Kind::Active, ""),
        snapshot("p", "", Kind::Committed, ""),
        snapshot("a", "p", Kind::Active, ""),
        snapshot("v", "p", Kind::View, ""),
        snapshot("p-wl", "", Kind::Committed, "1"),
        snapshot("a-wl", "p-wl", Kind::Active, "2"),
        snapshot("v-wl", "p-wl", Kind::View, "3"),
        snapshot("a-np-wl", "", Kind::Active, "2"),
    ]
}

fn parse(filter: &str) -> Result<Filter, ParseError> {
    Filter::parse(&[filter.to_owned()])
}

fn matches(filter: &str, info: &Info) -> bool {
    parse(filter).unwrap().matches(&SnapshotFields::of(info))
}

fn found(filters: &[&str]) -> String {
    let filters: Vec<String> = filters.iter().map(ToString::to_string).collect();
    let filter = Filter::parse(&filters).unwrap();
    let infos = walked();
    let found = infos.iter().filter(|info| filter.matches(&SnapshotFields::of(info)));
    found.map(|info| info.name.as_str()).collect::<Vec<_>>().join(" ")
}

/// True if `name~=<pattern>` is true of this name.
fn like(pattern: &str, name: &str) -> bool {
    let filter = format!("name~={}", quote(pattern));
    matches(&filter, &snapshot(name, "", Kind::Active, ""))
}

fn quote(text: &str) -> String {
    let inner: String = text
        .chars()
        .map(|c| match c {
            '"' | '\\' => format!("\\{c}"),
            '\n' => "\\n".to_owned(),
            '\0' => "\\000".to_owned(),
            char::REPLACEMENT_CHARACTER => "\\ufffd".to_owned(),
            c => c.to_string(),
        })
        .collect();
    format!("\"{inner}\"")
}

const ALL: &str = "a-np p a v p-wl a-wl v-wl a-np-wl";
const ROOT: &str = r#"labels."containerd.io/gc.root"==check-walk"#;

#[test]
fn the_walk_of_containerds_suite_finds_what_it_expects() {
    for (filters, expected) in [
        (vec![ROOT.to_owned()], ALL),
        (vec![format!("kind==active,{ROOT}")], "a-np a a-wl a-np-wl"),
        (vec![format!("kind==view,{ROOT}")], "v v-wl"),
        (vec![format!("kind==committed,{ROOT}")], "p p-wl"),
        (vec!["name==p".into(), "name==a-np-wl".into()], "p a-np-wl"),
        (vec!["name==a-wl,labels.l".into()], "a-wl"),
        (vec!["parent==p".into()], "a v"),
        (vec![format!(r#"parent!="",{ROOT}"#)], "a v a-wl v-wl"),
        (vec!["labels.l".into()], "p-wl a-wl v-wl a-np-wl"),
        (vec!["labels.l==2".into()], "a-wl a-np-wl"),
    ] {
        let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
        assert_eq!(found(&filters), expected, "{filters:?}");
    }
}

#[test]
fn no_filter_and_an_empty_one_match_everything() {
    assert_eq!(found(&[]), ALL);
    assert_eq!(found(&[""]), ALL);
    assert_eq!(found(&["name==p", ""]), ALL);
}

/// SEMANTICS F2
#[test]
fn fields_are_present_absent_or_empty() {
    for (filter, expected) in [
        ("foo!=bar", ALL),
        ("foo", ""),
        ("foo==bar", ""),
        (r#"foo!="""#, ""),
        (r#"foo=="""#, ""),
        (r#"foo~="""#, ALL),
        ("foo~=x", ""),
        ("foo~=^$", ALL),
        ("labels.l!=2", "a-np p a v p-wl v-wl"),
        ("kind==Active", ""),
        ("kind==active", "a-np a a-wl a-np-wl"),
        ("Kind", ""),
        ("parent", ALL),
        (r#"parent=="""#, "a-np p p-wl a-np-wl"),
        (r#"parent!="""#, "a v a-wl v-wl"),
        ("name.foo==p", "p"),
        ("parent.foo.bar==p", "a v"),
        ("kind.foo==view", "v v-wl"),
        ("labels", ""),
        (r#"labels.containerd."io/gc".root"#, ALL),
        (r#""name"==p"#, "p"),
        (r#"labels."\x6c"==3"#, "v-wl"),
        (r#"labels."\xff"!=x"#, ALL),
        (r#"name=="\xff""#, ""),
        (r#"name!="\xff""#, ALL),
        (r#"name~="\xff""#, ""),
        (r#"foo=="\xff""#, ""),
        ("name~=(", ""),
        ("name~=^a-np,name~=wl$", "a-np-wl"),
    ] {
        assert_eq!(found(&[filter]), expected, "{filter}");
    }
    let mut bare = snapshot("x", "", Kind::View, "");
    bare.labels.insert(String::new(), "empty".into());
    assert!(matches("labels==empty", &bare) && matches(r#"labels."""#, &bare));
}

/// Filters that are accepted, and a name to which they all apply.
/// SEMANTICS F1
#[test]
fn odd_spellings_are_accepted() {
    for (filter, name) in [
        ("name == a", "a"),
        (" name==a, kind==active", "a"),
        ("name. foo==a", "a"),
        ("\u{3000}name\t==\u{a0}a", "a"),
        ("name==a,\nkind\n==\nactive", "a"),
        ("name=='a'", "'a'"),
        ("name==a=b!~=", "a=b!~="),
        ("name==a.b/c|d\"e\\", "a.b/c|d\"e\\"),
        ("name==\u{1}a", "\u{1}a"),
        ("name==\u{ad}", "\u{ad}"),
        ("name==牛", "牛"),
        ("name==(é+☃)", "(é+☃)"),
        (r#"name=="/a/b""#, "/a/b"),
        (r#"name=="too complex, yo""#, "too complex, yo"),
        ("name=={\"\",name!=x", "{\"\""),
        (r#"name=="\a\b\f\n\r\t\v\\\"""#, "\x07\x08\x0c\n\r\t\x0b\\\""),
        (r#"name=="\101\x42\u0043\U00000044""#, "ABCD"),
        (r#"name=="\u00e9\303\251\xc3\xa9""#, "ééé"),
        (r#"name=="\ud800\udfff\uFFFD""#, "\u{fffd}\u{fffd}\u{fffd}"),
        (r#"name=="\U80000041""#, "A"),
        (r#"name=="\000""#, "\0"),
        (r#"name~=/^a\/b$/"#, "a/b"),
        ("name~=|^a/b$|", "a/b"),
        (r"name~=|^a\|b$|", "b"),
        (r#"name~="a\\d""#, "a1"),
        (r"name~=^a\d$", "a1"),
        ("name~=/[abc]{0,2}/", "ab"),
        ("name~=//", "any"),
    ] {
        assert!(matches(filter, &snapshot(name, "", Kind::Active, "")), "{filter:?}");
    }
}

/// SEMANTICS F1
#[test]
fn what_is_no_filter_is_refused_at_its_byte() {
    for (filter, at, reason) in [
        ("name=x", 4, "\"=\" is no operator; use ==, != or ~="),
        ("name===x", 4, "\"===\" is no operator"),
        ("name==!x", 4, "\"==!\" is no operator"),
        ("name = =x", 5, "\"=\" is no operator"),
        ("name== =x", 7, "expected a value"),
        ("name==", 6, "expected a value"),
        ("name==  ", 8, "expected a value"),
        ("name==.x", 6, "expected a value"),
        ("name==,x", 6, "expected a value"),
        ("name==a , kind==active", 7, "expected \",\" or the end"),
        ("name==a ", 7, "expected \",\" or the end"),
        ("name==\"a\"b", 9, "expected \",\" or the end"),
        ("name==\"a\".b", 9, "expected \",\" or the end"),
        ("name==a\u{ad}b", 7, "expected \",\" or the end"),
        ("name==\u{2028}\u{1}\u{1}", 10, "expected \",\" or the end"),
        ("name ", 5, "expected an operator"),
        ("name .x==1", 5, "expected an operator"),
        ("name ,kind", 5, "expected an operator"),
        ("labels.a-b==x", 8, "expected an operator"),
        ("名==x", 0, "expected a field"),
        (" ", 1, "expected a field"),
        ("name==x,", 8, "expected a field"),
        (",name==x", 0, "expected a field"),
        ("labels.", 7, "expected a field"),
        ("labels..x", 7, "expected a field"),
        ("==x", 0, "expected a field"),
        ("labels.?x", 7, "expected a field"),
        ("name==/a/b", 6, "\"/\" quotes only what follows ~=; use double quotes"),
        ("name!=|a|", 6, "\"|\" quotes only"),
        ("labels.|foo|==x", 7, "\"|\" quotes only"),
        ("labels.ns/key==value", 9, "expected an operator"),
        ("name==\"a", 6, "the quote that opens here is not closed"),
        ("name==\"a\nb\"", 6, "the quote that opens here is not closed"),
        ("name~=/a", 6, "the quote that opens here is not closed"),
        (r#"name~="a\d""#, 8, "unknown or incomplete escape"),
        (r#"name~="a\'""#, 8, "unknown or incomplete escape"),
        (r"name~=/a\.b/", 8, "unknown or incomplete escape"),
        (r#"name=="\400""#, 7, "unknown or incomplete escape"),
        (r#"name=="\18""#, 7, "unknown or incomplete escape"),
        (r#"name=="\xaz""#, 7, "unknown or incomplete escape"),
        (r#"name=="\u123""#, 7, "unknown or incomplete escape"),
        (r#"name=="\U00110000""#, 7, "unknown or incomplete escape"),
        ("name==\"\\\n\"", 7, "unknown or incomplete escape"),
        ("name==\"\\", 7, "unknown or incomplete escape"),
        ("foo\0bar", 3, "no filter contains U+0000"),
        ("name==\"\0\"", 7, "no filter contains U+0000"),
        ("name==é\u{fffd}", 8, "no filter contains U+FFFD"),
    ] {
        let error = parse(filter).err().unwrap_or_else(|| panic!("{filter:?} was accepted"));
        assert_eq!(error.at, at, "{filter:?}: {error}");
        assert!(error.reason.to_string().starts_with(reason), "{filter:?}: {error}");
    }
}

#[test]
fn an_error_names_the_filter_the_byte_and_the_way_out() {
    let filters = ["name==a".to_owned(), "name=x".to_owned()];
    let expected = r#"filter "name=x": at byte 4: "=" is no operator; use ==, != or ~="#;
    assert_eq!(Filter::parse(&filters).unwrap_err().to_string(), expected);
    let long = parse(&format!("name{}", "=".repeat(1 << 20))).unwrap_err().to_string();
    assert!(long.len() < 400 && long.contains("...\": at byte 4: \"==="), "{long}");
}

#[test]
fn re2_is_respelt_for_the_crate() {
    for (pattern, expected) in [
        ("a.b$", "a.b$"),
        (r"\d\D", "[0-9][^0-9]"),
        (r"\w\W", "[0-9A-Za-z_][^0-9A-Za-z_]"),
        (r"\s\S", r"[\t\n\f\r ][^\t\n\f\r ]"),
        (r"[\d\W-]", r"[[0-9][^0-9A-Za-z_]\x2D]"),
        (r"\ba\B", r"(?-u:\b)a(?-u:\B)"),
        (r"\Aa\z", r"\Aa\z"),
        (r"\Qa.b\E+", r"a\x2Eb+"),
        (r"\Q[", r"\x5B"),
        (r"\Q\\E", r"\x5C"),
        (r"\.\<\ \_", r"\x2E\x3C\x20\x5F"),
        (r"\n\v\a", r"\x0A\x0B\x07"),
        (r"\x41\x{2603}\101\07\0", "A☃A\\x07\\x00"),
        ("[[a]", r"[\x5Ba]"),
        ("[[:alpha:][:^digit:]x]", "[[:alpha:][:^digit:]x]"),
        ("[[:a]", r"[\x5B\x3Aa]"),
        ("[]a]", r"[\x5Da]"),
        ("[^]a]", r"[^\x5Da]"),
        ("[a&&b~~c--d]", r"[a\x26\x26b\x7E\x7Ec-\x2Dd]"),
        ("[+--]", r"[\x2B-\x2D]"),
        ("[a-c-e]", r"[a-c\x2De]"),
        (r"[\]-a]", r"[\x5D-a]"),
        (r"\pN\PN\p{Greek}\p{^Greek}\P{^Greek}", r"\p{N}\P{N}\p{Greek}\P{Greek}\p{Greek}"),
        ("a{2}b{2,}?c{2,3}", "a{2}b{2,}?c{2,3}"),
        ("a{,2}b{x}{", r"a\x7B,2}b\x7Bx}\x7B"),
        ("a{02}", r"a\x7B02}"),
        ("(a)(?:b)(?P<n>c)(?<1>d)", "(a)(?:b)(?P<nn>c)(?P<n1>d)"),
        ("(?i)(?s-U:a)(?ii-i)(?)", "(?i)(?s-U:a)(?-i)(?:)"),
    ] {
        assert_eq!(re2::translate(pattern).as_deref(), Some(expected), "{pattern}");
    }
}

#[test]
fn what_re2_refuses_is_refused() {
    for pattern in [
        "a**",
        "a+*",
        "a??*",
        "a{2}{3}",
        "a*{2}",
        "a{1001}",
        "a{3,2}",
        "a{99999999999}",
        "(?x)a",
        "(?u:a)",
        "(?-u:a)",
        "(?R)a",
        "(?i-)a",
        "(?=a)",
        "(?<=a)",
        "(?!a)",
        "(?P<>a)",
        "(?P<é>a)",
        "(?P<n",
        "(?",
        r"\1",
        r"\8",
        r"\Z",
        r"\E",
        r"\C",
        r"\u0041",
        r"\é",
        r"\x4",
        r"\x{}",
        r"\x{110000}",
        r"\x{99999999999}",
        r"\x{41",
        r"\p",
        r"\p{}",
        r"\p{sc=Greek}",
        r"\p{N",
        "\\",
        "[",
        "[]",
        "[a",
        r"[\b]",
        r"[\Qa\E]",
        r"[a-\d]",
        "[[:foo:]]",
        "[[::]]",
        "[[:alpha:",
    ] {
        assert!(!like(pattern, "a"), "{pattern}");
        assert_eq!(re2::translate(pattern), None, "{pattern}");
    }
    for pattern in ["*", "(", ")", "a|*", "[b-a]", r"\p{Nonsense}", "(?P<n>a)(?P<n>a)"] {
        assert!(!like(pattern, "a"), "{pattern}");
    }
}

/// SEMANTICS F3
#[test]
fn expressions_mean_what_they_mean_in_re2() {
    for (pattern, yes, no) in [
        (r"^\d$", "1", "١"),
        (r"^\D$", "١", "1"),
        (r"^\w$", "_", "é"),
        (r"^[\W]$", "é", "e"),
        (r"^\s$", "\t", "\u{b}"),
        (r"^\S$", "\u{a0}", " "),
        (r"a\b", "aé", "ab"),
        (r"a\B", "ab", "aé"),
        (r"(?i)^[[:alpha:]]$", "ſ", "é"),
        ("^.$", "☃", "\n"),
        ("(?s)^.$", "\n", ""),
        ("^[^a]$", "\n", "a"),
        ("b$", "ab", "b\n"),
        ("(?m)^b$", "a\nb\nc", "ab"),
        ("^[a&&b]$", "&", "c"),
        ("^[a-c[x]+$", "[x", "]"),
        ("^x{,2}]}$", "x{,2}]}", "xx]}"),
        (r"^\Q.*\E$", ".*", "ab"),
        ("(?P<1>a)|b", "b", "c"),
        ("^(a|b|)$", "", "c"),
        (r"^\p{Greek}\P{Greek}$", "αa", "aα"),
        ("(?U)^a+?$", "aa", "b"),
    ] {
        assert!(like(pattern, yes), "{pattern} does not match {yes:?}");
        assert!(!like(pattern, no), "{pattern} matches {no:?}");
    }
}

#[test]
fn large_filters_are_read_in_one_go() {
    let size = 1 << 20;
    for (filter, valid) in [
        ("a,".repeat(size / 2) + "a", true),
        ("a.".repeat(size / 2) + "a", true),
        (" ".repeat(size) + "a", true),
        (format!("name==\"{}\"", "\\n".repeat(size / 2)), true),
        (format!("name~={}", "(".repeat(size)), true),
        (format!("name~={}", "[[:".repeat(20_000)), true),
        (format!("name~={}", "(".repeat(60_000)), true),
        (format!("name~={}", "a{999}".repeat(10_000)), true),
        (format!(r#"name~="{}""#, "((((a{999}){999}){999}){999})"), true),
        ("\"".repeat(size), false),
        ("=".repeat(size), false),
    ] {
        let parsed = parse(&filter);
        assert_eq!(parsed.is_ok(), valid, "{}", excerpt(&filter));
        let info = snapshot("n", "", Kind::Active, "");
        if let Ok(filter) = parsed {
            filter.matches(&SnapshotFields::of(&info));
        }
    }
}

fn render(selectors: &[Selector]) -> String {
    let quote = |bytes: &[u8], mark: char| {
        let escaped: String = bytes
            .iter()
            .map(|byte| match byte {
                b'a'..=b'z' | b' ' | b',' => char::from(*byte).to_string(),
                b'0'..=b'9' => format!("\\{byte:03o}"),
                _ => format!("\\x{byte:02X}"),
            })
            .collect();
        format!("{mark}{escaped}{mark}")
    };
    let one = |selector: &Selector| {
        let path: Vec<String> = selector.path.iter().map(|part| quote(part, '"')).collect();
        let path = path.join(". ");
        match &selector.test {
            Test::Present => path,
            Test::Compare(Operator::Equal, value) => format!("{path}=={}", quote(value, '"')),
            Test::Compare(Operator::Differs, value) => format!("{path} !={}", quote(value, '"')),
            Test::Compare(Operator::Matches, value) => format!("{path}~= {}", quote(value, '|')),
        }
    };
    selectors.iter().map(one).collect::<Vec<_>>().join(",")
}

fn any_selector() -> impl Strategy<Value = Selector> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..6);
    let operator =
        prop::sample::select(vec![Operator::Equal, Operator::Differs, Operator::Matches]);
    let test = prop_oneof![
        Just(Test::Present),
        (operator, bytes()).prop_map(|(operator, value)| Test::Compare(operator, value)),
    ];
    (prop::collection::vec(bytes(), 1..4), test).prop_map(|(path, test)| Selector { path, test })
}

proptest! {
    #[test]
    fn any_text_is_read_without_a_panic(text in any::<String>()) {
        if let Err(error) = parse(&text) {
            prop_assert!(text.is_char_boundary(error.at), "{}", error);
        }
    }

    #[test]
    fn text_of_the_grammars_characters_is_read_without_a_panic(
        text in r#"(name|labels|[.,=!~ "/|\\xuU07ad(){}\[\]:^?*+QE\-&]|==|~=|é){0,24}"#,
    ) {
        if let Ok(filter) = parse(&text) {
            filter.matches(&SnapshotFields::of(&snapshot("name", "", Kind::View, "")));
        }
    }

    #[test]
    fn expressions_of_odd_characters_are_compiled_without_a_panic(
        pattern in r"(\[:alpha:\]|\\[a-zA-Z0-9]|\(\?|[P<>im:^$.,(){}\[\]|?*+\-&~19aé]){0,24}",
    ) {
        like(&pattern, "a1é");
    }

    #[test]
    fn a_written_filter_reads_back_equal(selectors in prop::collection::vec(any_selector(), 1..5)) {
        prop_assert_eq!(parse::selectors(&render(&selectors)), Ok(selectors));
    }

    #[test]
    fn a_quoted_text_reads_back_equal(text in any::<String>()) {
        let info = snapshot(&text, "", Kind::Active, "");
        let equal = format!("name=={}", quote(&text));
        prop_assert!(matches(&equal, &info));
    }
}
