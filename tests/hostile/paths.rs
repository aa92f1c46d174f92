//! Directories whose names mount options cannot carry.

use std::process::Command;

use overstream_testkit::{Output, Scratch, run};

use super::frame::BINARY;

const ODD: [&str; 6] = ["com,ma", "co:lon", "back\\slash", "new\nline", "t\tab", "\u{7f}"];

fn refused(scratch: &Scratch, arguments: &[&str]) -> Output {
    let output = run(Command::new(BINARY).args(arguments)).fails();
    assert!(output.code().is_some(), "{output}");
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "made something: {output}");
    output
}

#[test]
fn flags_cannot_name_them() {
    let scratch = Scratch::new();
    for name in ODD {
        let (odd, plain) = (scratch.join(name), scratch.join("plain"));
        let (odd, plain) = (odd.to_str().unwrap(), plain.to_str().unwrap());
        let output = refused(&scratch, &["serve", "--root", odd, "--socket", plain]);
        assert!(output.errors().contains("--root"), "{output}");
        assert!(output.errors().contains("use another directory"), "{output}");
    }
    for path in ["relative", "", "./x"] {
        let socket = scratch.join("s");
        refused(&scratch, &["serve", "--root", path, "--socket", socket.to_str().unwrap()]);
    }
}

#[test]
fn configurations_cannot_name_them() {
    let scratch = Scratch::new();
    let check = |text: &str| {
        let path = scratch.write("c.toml", text);
        run(Command::new(BINARY).args(["config", "check"]).arg(path))
    };
    for name in ODD {
        let quoted = format!("{:?}", format!("/x/{name}")).replace("\\u{7f}", "\\u007f");
        for text in
            [format!("root = {quoted}\n"), format!("[stores.s]\ntype = \"dir\"\npath = {quoted}\n")]
        {
            let output = check(&text).fails();
            assert!(output.errors().contains("mount options cannot carry"), "{output}");
        }
    }
    check("[stores.s]\ntype = \"dir\"\npath = \"/a b=c\"\n").ok();
}
