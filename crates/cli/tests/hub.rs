//! `tenon import owner/name`: models of the Hugging Face hub, here a server of the test's own.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use common::Lab;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a server gives and has seen.
#[derive(Default)]
struct Shelf {
    /// Paths and answers: status, headers, body.
    answers: BTreeMap<String, (u16, Vec<String>, Vec<u8>)>,
    /// Bytes after which bodies end too early.
    cut: Option<usize>,
    /// Lines of requests with what they said of token and range.
    seen: Vec<String>,
}

/// Serves a shelf on a port of its own.
fn serve(shelf: &Arc<Mutex<Shelf>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let shelf = shelf.clone();
    std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| answer(stream, &shelf)));
    address
}

fn answer(mut stream: TcpStream, shelf: &Mutex<Shelf>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).map(|line| line.to_lowercase()).collect();
    let header = |key: &str| headers.iter().find_map(|line| line.strip_prefix(&format!("{key}: ")).map(str::to_owned));
    let path = request.split(' ').nth(1).unwrap_or_default();
    let mut shelf = shelf.lock().unwrap();
    let range =
        header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    shelf.seen.push(format!("{path} token={} from={}", header("authorization").is_some(), range.unwrap_or(0)));
    let (mut status, more, body) = shelf.answers.get(path).cloned().unwrap_or((404, vec![], vec![]));
    let rest = &body[range.unwrap_or(0).min(body.len())..];
    if range.is_some() && status == 200 {
        status = 206;
    }
    let sent = if status < 300 { rest.len().min(shelf.cut.unwrap_or(usize::MAX)) } else { rest.len() };
    let mut head = format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n", rest.len());
    more.iter().for_each(|line| head += &format!("{line}\r\n"));
    let _ = stream.write_all((head + "\r\n").as_bytes()).and_then(|()| stream.write_all(&rest[..sent]));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn gpt2() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gpt2-tiny")
}

/// A hub with the small GPT-2 as `tiny/gpt2`, whose weights lie on another server.
fn hub() -> (Arc<Mutex<Shelf>>, Arc<Mutex<Shelf>>, String) {
    let (hub, store) = (Arc::<Mutex<Shelf>>::default(), Arc::<Mutex<Shelf>>::default());
    let (address, elsewhere) = (serve(&hub), serve(&store));
    let [config, weights] = ["config.json", "model.safetensors"].map(|name| std::fs::read(gpt2().join(name)).unwrap());
    let files = r#"[{"rfilename": "config.json"}, {"rfilename": "model.safetensors"}, {"rfilename": "../evil.json"}]"#;
    let list = format!(r#"{{"sha": "{COMMIT}", "siblings": {files}}}"#);
    let of_git = [format!("blob {}\0", config.len()).as_bytes(), &config].concat();
    let git = format!("etag: \"{}\"", hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, &of_git).as_ref()));
    let sum = format!("x-linked-etag: \"{}\"", hex(digest(&SHA256, &weights).as_ref()));
    let to = format!("location: {elsewhere}/store/weights");
    let mut shelf = hub.lock().unwrap();
    shelf.answers.insert("/api/models/tiny/gpt2/revision/main".into(), (200, vec![], list.into_bytes()));
    shelf.answers.insert(format!("/tiny/gpt2/resolve/{COMMIT}/config.json"), (200, vec![git], config));
    shelf.answers.insert(format!("/tiny/gpt2/resolve/{COMMIT}/model.safetensors"), (302, vec![sum, to], vec![]));
    drop(shelf);
    store.lock().unwrap().answers.insert("/store/weights".into(), (200, vec![], weights));
    (hub, store, address)
}

fn import(lab: &Lab, endpoint: &str, name: &str, out: &str) -> Command {
    let mut command = lab.command(&format!("import {name} --out {out}"));
    for key in ["HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]
    {
        command.env_remove(key);
    }
    command.env("HF_ENDPOINT", endpoint).env("HF_HOME", lab.path("home")).env("HF_TOKEN", "secret");
    command
}

#[test]
fn a_model_is_downloaded_once_and_gone_on_with_where_it_broke_off() {
    let lab = Lab::new("hub");
    let (hub, store, address) = hub();
    let weights = std::fs::metadata(gpt2().join("model.safetensors")).unwrap().len();
    store.lock().unwrap().cut = Some(1000);
    let broken = lab.finish(import(&lab, &address, "tiny/gpt2", "a")).expect(2).stderr;
    assert!(broken.contains("model.safetensors of tiny/gpt2 cannot be downloaded"), "{broken}");
    assert!(!lab.path("a").exists());
    store.lock().unwrap().cut = None;
    lab.finish(import(&lab, &address, "tiny/gpt2", "a")).expect(0);
    lab.tenon(&format!("import {} --out b", gpt2().display())).expect(0);
    let bytes = |folder: &str| std::fs::read(lab.path(folder).join("model.safetensors")).unwrap();
    assert!(bytes("a") == bytes("b"));
    let store_saw = store.lock().unwrap().seen.clone();
    assert_eq!(store_saw, ["/store/weights token=false from=0", "/store/weights token=false from=1000"]);
    assert!(hub.lock().unwrap().seen.iter().all(|line| line.contains("token=true")));
    // In the layout of the ecosystem, with nothing left over; what is there is not asked for again.
    let cache = lab.path("home/hub/models--tiny--gpt2");
    assert_eq!(std::fs::read_to_string(cache.join("refs/main")).unwrap(), COMMIT);
    let place = cache.join("snapshots").join(COMMIT).join("model.safetensors");
    assert_eq!(std::fs::metadata(&place).unwrap().len(), weights);
    assert_eq!(std::fs::read_dir(cache.join("blobs")).unwrap().count(), 2);
    lab.finish(import(&lab, &address, "tiny/gpt2", "c")).expect(0);
    assert_eq!(store.lock().unwrap().seen.len(), 2);

    // Under an older name, from which the hub sends to the new one.
    let mut shelf = hub.lock().unwrap();
    for path in ["revision/main", "config.json", "model.safetensors"] {
        let at = |name: &str| match path {
            "revision/main" => format!("/api/models/{name}/{path}"),
            file => format!("/{name}/resolve/{COMMIT}/{file}"),
        };
        shelf.answers.insert(at("gpt"), (307, vec![format!("location: {}", at("tiny/gpt2"))], vec![]));
    }
    drop(shelf);
    lab.finish(import(&lab, &address, "gpt", "renamed")).expect(0);
    assert!(bytes("renamed") == bytes("b"));

    // Without a network what was downloaded serves, and what was not is refused at once.
    for (key, value) in [("HF_ENDPOINT", "http://127.0.0.1:9"), ("HF_HUB_OFFLINE", "1")] {
        let mut again = import(&lab, &address, "tiny/gpt2", &format!("offline-{key}"));
        again.env(key, value);
        lab.finish(again).expect(0);
        let mut other = import(&lab, &address, "tiny/other", "d");
        other.env(key, value);
        let refused = lab.finish(other).expect(2).stderr;
        assert!(refused.contains("no such model can be downloaded"), "{refused}");
        if key == "HF_HUB_OFFLINE" {
            lab.snapshot("hub_offline", &refused);
        }
    }
}

#[test]
fn what_the_hub_refuses_or_garbles_is_said() {
    let lab = Lab::new("hub-refuses");
    let (hub, store, address) = hub();
    let refused = lab.finish(import(&lab, &address, "tiny/bert", "a")).expect(2).stderr;
    assert!(refused.contains("does not have it"), "{refused}");
    hub.lock().unwrap().answers.insert("/api/models/tiny/bert/revision/main".into(), (401, vec![], vec![]));
    let refused = lab.finish(import(&lab, &address, "tiny/bert", "a")).expect(2).stderr;
    assert!(refused.contains("401") && refused.contains("HF_TOKEN"), "{refused}");
    store.lock().unwrap().answers.get_mut("/store/weights").unwrap().2[5000] ^= 1;
    let refused = lab.finish(import(&lab, &address, "tiny/gpt2", "a")).expect(2).stderr;
    assert!(refused.contains("does not have the checksum"), "{refused}");
    assert!(!lab.path("home/hub/models--tiny--gpt2/refs/main").exists() && !lab.path("a").exists());
}
