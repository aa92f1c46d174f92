//! The commands that ask a running daemon, as text and as JSON.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use overstream_testkit::{Output, block_on, run};
use serde_json::Value;

use super::frame::{BINARY, Bed, serve, serve_as};

fn tool(bed: &Bed, arguments: &[&str]) -> Output {
    run(Command::new(BINARY).args(arguments).env("OVERSTREAM_SOCKET", bed.daemon.socket()))
}

/// The table that a command prints; no line of it ends in a blank.
fn table(bed: &Bed, arguments: &[&str]) -> String {
    let output = tool(bed, arguments).ok();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().count() > 1, "{text}");
    for line in text.lines() {
        assert_eq!(line, line.trim_end(), "{text:?}");
    }
    text
}

fn json(bed: &Bed, arguments: &[&str]) -> Value {
    let output = tool(bed, &[arguments, &["--json"]].concat()).ok();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"))
}

const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// One layer and one container, with keys as containerd makes them.
fn populate(bed: &Bed) -> (String, &'static str) {
    let (layer, container) = (format!("default/2/{DIGEST}"), "default/3/web");
    bed.client.prepare("default/1/extract-1-x", "", &[]).unwrap();
    std::fs::write(bed.fs(1).join("file"), vec![1; 50_000]).unwrap();
    bed.client.commit(&layer, "default/1/extract-1-x", &[]).unwrap();
    bed.client.prepare(container, &layer, &[("l", "v")]).unwrap();
    (layer, container)
}

#[test]
fn ls_lists_snapshots_of_all_plugin_names() {
    serve(|bed| {
        let empty = tool(bed, &["ls"]).ok();
        assert_eq!(
            (empty.text().as_str(), empty.errors().as_str()),
            ("", "there are no snapshots")
        );
        assert_eq!(json(bed, &["ls"]), Value::Array(Vec::new()));
        let (layer, container) = populate(bed);
        bed.daemon.client("other").view("v", "", &[]).unwrap();
        let text = table(bed, &["ls"]);
        assert_eq!(text.lines().count(), 4, "{text}");
        for word in ["KEY", "default/2/sha256:0123456789ab ", container, "committed", "other"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        let listed = json(bed, &["ls"]);
        let found = listed.as_array().unwrap().iter().find(|s| s["key"] == container).unwrap();
        assert_eq!(found["parent"], layer);
        assert_eq!(found["kind"], "active");
        assert_eq!(found["labels"]["l"], "v");
        assert_eq!(found["upper"], bed.fs(2).display().to_string());
        let active = json(bed, &["ls", "kind==active", "kind==view"]);
        assert_eq!(active.as_array().unwrap().len(), 2);
        for (filter, hint) in [
            ("name==none", "no snapshot matches"),
            ("store==root", "no snapshot has a field \"store\""),
            ("kind==active,label.l", "no snapshot has a field \"label.l\""),
        ] {
            let none = tool(bed, &["ls", filter]).ok();
            assert!(none.text().is_empty() && none.errors().starts_with(hint), "{none}");
            assert_eq!(none.errors().lines().count(), 1, "{none}");
            let none = tool(bed, &["ls", filter, "--json"]).ok();
            assert_eq!((none.text().as_str(), none.errors().as_str()), ("[]", ""));
        }
        let bad = tool(bed, &["ls", "kind=active"]).fails();
        assert!(bad.stdout.is_empty() && !bad.errors().is_empty(), "{bad}");
    });
}

#[test]
fn mounts_explains_one_snapshot() {
    serve(|bed| {
        let (layer, container) = populate(bed);
        for key in [container, "web"] {
            let text = tool(bed, &["mounts", key]).ok().text();
            let upper = bed.fs(2).display().to_string();
            for word in [container, &upper, "mount -t overlay", &bed.fs(1).display().to_string()] {
                assert!(text.contains(word), "{word}: {text}");
            }
            let answer = json(bed, &["mounts", key]);
            let options = answer["mounts"][0]["options"].as_array().unwrap();
            let mounts = bed.client.mounts(container).unwrap();
            let expected: Vec<Value> =
                mounts[0].options.iter().map(|option| option.as_str().into()).collect();
            assert_eq!(options, &expected);
            assert_eq!(answer["layers"][0], bed.fs(1).display().to_string());
        }
        let committed = tool(bed, &["mounts", &layer]).ok().text();
        assert!(committed.contains("committed snapshot has no mounts"), "{committed}");
        let missing = tool(bed, &["mounts", "none"]).fails();
        assert!(missing.errors().contains("overstream ls"), "{missing}");
        let elsewhere = tool(bed, &["mounts", "--snapshotter", "other", "web"]).fails().errors();
        for words in ["\"web\"", "snapshotter \"other\"", "overstream ls"] {
            assert!(elsewhere.contains(words), "{elsewhere}");
        }
        bed.client.prepare("default/9/web", &layer, &[]).unwrap();
        let unclear = tool(bed, &["mounts", "web"]).fails();
        assert!(unclear.errors().contains("default/9/web"), "{unclear}");
    });
}

#[test]
fn usage_sums_up_every_store() {
    serve(|bed| {
        populate(bed);
        bed.view("v", "");
        bed.prepare("gone", "");
        bed.client.remove("gone").unwrap();
        let stores = json(bed, &["usage"]);
        let root = &stores[0];
        assert_eq!((root["name"].as_str(), root["type"].as_str()), (Some("root"), Some("root")));
        let layer = bed.client.usage(&format!("default/2/{DIGEST}")).unwrap();
        assert_eq!(root["committed"]["bytes"].as_i64(), Some(layer.0));
        assert_eq!(root["committed"]["inodes"].as_i64(), Some(layer.1));
        for (field, count) in [("views", 1), ("garbage", 1)] {
            assert_eq!(root[field], count, "{field}");
        }
        assert_eq!(root["retained"], serde_json::json!({ "count": 0, "bytes": 0, "inodes": 0 }));
        assert_eq!(root["active"]["count"], 1);
        assert!(root["available_bytes"].as_u64().unwrap() > 0);
        let text = table(bed, &["usage"]);
        for word in ["STORE", "root", "KiB", &bed.daemon.root().display().to_string()] {
            assert!(text.contains(word), "{word}: {text}");
        }
    });
}

#[test]
fn retained_uppers_are_listed_and_deleted() {
    serve_as(
        |daemon| daemon.with_config("[[rules]]\nnamespace = \"default\"\nretain = true\n"),
        |bed| {
            let none = tool(bed, &["retained"]).ok().text();
            assert_eq!(none, "no retained uppers");
            assert_eq!(json(bed, &["retained"]), Value::Array(Vec::new()));
            let (_, container) = populate(bed);
            std::fs::write(bed.fs(2).join("kept"), "x").unwrap();
            bed.client.remove(container).unwrap();
            bed.client.cleanup().unwrap();
            assert!(bed.fs(2).join("kept").exists());
            assert!(bed.client.list(&["kind==active"]).unwrap().is_empty());
            let text = tool(bed, &["retained"]).ok().text();
            assert!(text.contains("web") && text.contains("sha256:0123456789ab"), "{text}");
            let listed = json(bed, &["retained"]);
            assert_eq!(listed[0]["name"], "web");
            assert_eq!(listed[0]["chain"][0], DIGEST);
            assert_eq!(listed[0]["upper"], bed.fs(2).display().to_string());
            assert!(listed[0]["bytes"].is_null(), "{listed}");
            let named = tool(bed, &["retained", "rm", "web"]).fails().errors();
            assert!(named.contains("the number that `overstream retained` shows"), "{named}");
            let layer = tool(bed, &["retained", "rm", "1"]).fails().errors();
            assert!(
                layer.contains("of the committed snapshot") && layer.contains(DIGEST),
                "{layer}"
            );
            tool(bed, &["retained", "rm", "2"]).ok();
            assert!(!bed.own(2).exists());
            let gone = tool(bed, &["retained", "rm", "2"]).fails().errors();
            assert!(gone.contains("retained upper 2: not found"), "{gone}");
        },
    );
}

#[test]
fn retained_uppers_are_shown_with_date_and_size_and_counted_apart() {
    serve_as(
        |daemon| daemon.with_config("[[rules]]\nnamespace = \"default\"\nretain = true\n"),
        |bed| {
            let (_, container) = populate(bed);
            std::fs::write(bed.fs(2).join("kept"), vec![1; 100_000]).unwrap();
            let size = bed.client.usage(container).unwrap();
            let before = json(bed, &["usage"])[0].clone();
            bed.client.remove(container).unwrap();
            let removed = json(bed, &["retained"])[0]["removed"].as_str().unwrap().to_owned();
            let minute = &removed[..16];
            let text = tool(bed, &["retained"]).ok().text();
            assert!(text.contains("REMOVED") && text.contains(minute), "{removed}: {text}");
            assert!(!text.contains("SIZE") && !text.contains("KiB"), "{text}");
            let text = table(bed, &["retained", "--size"]);
            assert!(text.contains("SIZE") && text.contains("KiB"), "{text}");
            let listed = json(bed, &["retained", "--size"]);
            assert_eq!(listed[0]["bytes"].as_i64(), Some(size.0));
            assert_eq!(listed[0]["inodes"].as_i64(), Some(size.1));
            // What was an active upper's is now the retained one's.
            let after = json(bed, &["usage"])[0].clone();
            assert_eq!(after["retained"], before["active"]);
            assert_eq!(after["active"], before["retained"]);
            // One that cannot be read is listed all the same.
            std::fs::remove_dir_all(bed.own(2)).unwrap();
            assert!(json(bed, &["retained", "--size"])[0]["bytes"].is_null());
            assert_eq!(json(bed, &["usage"])[0]["retained"]["count"], 1);
        },
    );
}

#[test]
fn config_check_lists_every_mistake() {
    serve(|bed| {
        let check = |text: &str| {
            let file = bed.scratch.write("checked.toml", text);
            tool(bed, &["config", "check", &file.display().to_string()])
        };
        let good = check("root = \"/r\"\n[stores.fast]\ntype = \"dir\"\npath = \"/fast\"\n").ok();
        assert!(good.text().contains("1 stores, 0 rules, no mistakes"), "{good}");
        let bad = check("root = \"r\"\nsocket = \"/a:b\"\n[[rules]]\nmode = \"warp\"\n").fails();
        let errors = bad.errors();
        for line in ["checked.toml:1: ", "checked.toml:2: ", "checked.toml:4: "] {
            assert!(errors.contains(line), "{line}: {errors}");
        }
        let address = check("[metrics]\naddress = \"localhost:1\"\n").fails().errors();
        let flag = ["serve", "--metrics-address", "localhost:1"];
        for errors in [address, tool(bed, &flag).fails().errors()] {
            assert!(errors.contains("localhost:1") && errors.contains("IP:PORT"), "{errors}");
        }
        let missing = bed.scratch.join("missing.toml").display().to_string();
        assert!(tool(bed, &["config", "check", &missing]).fails().errors().contains(&missing));
    });
}

#[test]
fn config_check_warns_of_what_will_not_work_here() {
    serve(|bed| {
        let [memory, good] = ["memory", "good"].map(|name| bed.scratch.dir(name));
        run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&memory)).ok();
        let file = bed.scratch.write("file", "");
        let store = |name: &str, path: &Path| {
            format!("[stores.{name}]\ntype = \"dir\"\npath = \"{}\"\n", path.display())
        };
        let config = format!("root = \"{}/root\"\n", good.display())
            + &store("gone", &bed.scratch.join("gone"))
            + &store("file", &file)
            + &store("memory", &memory.join("below"));
        let checked = bed.scratch.write("checked.toml", config);
        let checked = tool(bed, &["config", "check", &checked.display().to_string()]).ok();
        let warnings = checked.errors();
        for words in ["store \"gone\"", "gone does not exist", "file is not a directory"] {
            assert!(warnings.contains(words), "{words}: {warnings}");
        }
        let in_memory = "lies in memory (tmpfs)";
        let line = warnings.lines().find(|line| line.contains(in_memory)).unwrap();
        assert!(line.contains("store \"memory\""), "{warnings}");
        assert_eq!(warnings.matches(in_memory).count(), 1, "{warnings}");
        assert!(!warnings.contains("root"), "{warnings}");
        assert_eq!(checked.text().lines().count(), 1, "{checked}");

        bed.daemon.stop();
        std::fs::create_dir(memory.join("below")).unwrap();
        bed.daemon.set_config(&store("memory", &memory.join("below")));
        bed.daemon.start();
        let log = bed.daemon.log();
        let warned =
            |line: &str| line.contains("WARN") && line.contains("memory") && line.contains("tmpfs");
        assert_eq!(log.lines().filter(|line| warned(line)).count(), 1, "{log}");
        bed.daemon.stop();
    });
}

#[test]
fn a_daemon_that_is_not_there_is_told_in_words() {
    serve(|bed| {
        bed.daemon.stop();
        for command in [["ls"].as_slice(), &["mounts", "x"], &["usage"], &["retained"]] {
            let output = tool(bed, command).fails();
            let errors = output.errors();
            assert!(errors.contains("is `overstream serve` running"), "{errors}");
            assert!(output.stdout.is_empty());
        }
    });
}

#[test]
fn another_program_at_the_socket_is_told_in_words() {
    serve(|bed| {
        let ask = |socket: &Path| {
            let command = ["ls", "--socket", &socket.display().to_string()];
            tool(bed, &command).fails().errors()
        };
        let socket = bed.scratch.join("grpc.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let errors = std::thread::scope(|scope| {
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            scope.spawn(|| block_on(serve_nothing(listener, stopped)));
            let errors = ask(&socket);
            stop.send(()).unwrap();
            errors
        });
        assert!(errors.contains("another program") && errors.contains("grpc.sock"), "{errors}");

        let socket = bed.scratch.join("http.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let errors = std::thread::scope(|scope| {
            scope.spawn(|| answer_as_http(&listener));
            let errors = ask(&socket);
            // Ends the other thread.
            drop(UnixStream::connect(&socket).unwrap());
            errors
        });
        assert!(errors.contains("another program") && errors.contains("http.sock"), "{errors}");
    });
}

#[test]
fn a_program_that_never_answers_is_not_waited_for() {
    serve(|bed| {
        let ask = |socket: &Path| {
            let began = Instant::now();
            let errors = tool(bed, &["usage", "--socket", &socket.display().to_string()]).fails();
            assert!(began.elapsed() < Duration::from_secs(30), "{errors}");
            errors.errors()
        };
        // Never accepts.
        let socket = bed.scratch.join("silent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let errors = ask(&socket);
        assert!(errors.contains("no sign of life") && errors.contains("silent.sock"), "{errors}");
        drop(listener);
        // A daemon that is stopped, and goes on later.
        bed.daemon.signal(Signal::SIGSTOP);
        let errors = ask(bed.daemon.socket());
        bed.daemon.signal(Signal::SIGCONT);
        assert!(errors.contains("no sign of life"), "{errors}");
        tool(bed, &["usage"]).ok();
    });
}

/// Refuses whatever is said, until somebody says nothing.
fn answer_as_http(listener: &UnixListener) {
    for client in listener.incoming() {
        let mut client = client.unwrap();
        client.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        if client.read(&mut [0; 64]).unwrap_or(1) == 0 {
            return;
        }
        // The client may have left.
        client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").ok();
        client.read_to_end(&mut Vec::new()).ok();
    }
}

/// Serves gRPC without a single service.
async fn serve_nothing(listener: UnixListener, stop: tokio::sync::oneshot::Receiver<()>) {
    let listener = tokio::net::UnixListener::from_std(listener).unwrap();
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    let routes = tonic::service::Routes::default();
    let server = tonic::transport::Server::builder().add_routes(routes);
    server.serve_with_incoming_shutdown(incoming, async { stop.await.unwrap() }).await.unwrap();
}
