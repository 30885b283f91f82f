//! Models of the Hugging Face hub: found in its cache on this machine, or downloaded into it.
//!
//! The cache is the one that the ecosystem's own programs share, in their layout: `blobs` under their checksums, `snapshots` of
//! commits whose files are links to blobs, `refs` from branches to commits.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use serde_json::Value as Json;
use tenon_nn::ModelError;
use tenon_train::files::{Disk, replace_file};
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::import::{BY_HAND, COMPANIONS};

/// What stands before names where `HF_ENDPOINT` names no other.
const ENDPOINT: &str = "https://huggingface.co";
/// The branch that is asked for.
const BRANCH: &str = "main";
/// How long a server may take to be reached, and to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// The largest description of a model or of its parts, in bytes.
const MAX_JSON: u64 = 100 << 20;
/// Redirects that are followed for one file.
const MAX_REDIRECTS: usize = 5;
/// The weights that are taken, the best first; an index comes with the files that it lists.
const WEIGHTS: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];
/// Files that describe a model, beside those that any import takes along.
const DESCRIPTIONS: [&str; 3] = ["config.json", "modules.json", "1_Pooling/config.json"];

/// Whether this can be the name of a model on the hub: `name` or `owner/name`.
pub fn is_name(text: &str) -> bool {
    let part = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty()
            && part.len() <= 96
            && part.chars().all(plain)
            && !part.starts_with('.')
            && !part.contains("..")
    };
    text.split('/').count() <= 2 && text.split('/').all(part)
}

/// The folder with the files of the model `name`, after downloading those that are not there yet. `tell` gets what is
/// downloaded: a file and its bytes.
///
/// # Errors
/// No network where it is needed, a model that is not there or not to be seen with this token, a file that does not have its
/// checksum, a cache that cannot be written.
pub fn fetch(name: &str, tell: &mut dyn FnMut(&str, u64)) -> Result<PathBuf, ModelError> {
    let cache = cache()?.join(format!("models--{}", name.replace('/', "--")));
    let set = |key: &str| env::var(key).is_ok_and(|value| ["1", "true", "yes", "on"].contains(&&*value.to_lowercase()));
    if set("HF_HUB_OFFLINE") {
        return known(&cache).ok_or_else(|| absent(name, "HF_HUB_OFFLINE is set, and the cache does not have it"));
    }
    let hub = Hub::new();
    let description = format!("{}/api/models/{name}/revision/{BRANCH}", hub.endpoint);
    let description = match hub.ask(&description) {
        Ok(response) => json(response).map_err(|why| absent(name, &why))?,
        // What was downloaded before serves where there is no network now.
        Err(Refused::Unreachable(why)) => return known(&cache).ok_or_else(|| absent(name, &why)),
        Err(Refused::Status(why)) => return Err(absent(name, &why)),
    };
    let commit = description.get("sha").and_then(Json::as_str).filter(|sha| is_hex(sha));
    let files = description.get("siblings").and_then(Json::as_array);
    let (Some(commit), Some(files)) = (commit, files) else {
        return Err(absent(name, &format!("{} answers with no list of files", hub.endpoint)));
    };
    let there: Vec<&str> = files.iter().filter_map(|file| file.get("rfilename")?.as_str()).collect();
    let snapshot = cache.join("snapshots").join(commit);
    let mut download = |file: &str| hub.download(name, commit, file, &cache, &snapshot, tell);
    let Some(weights) = WEIGHTS.into_iter().find(|file| there.contains(file)) else {
        let message = format!("{name} on {} has none of {}", hub.endpoint, WEIGHTS.join(", "));
        return Err(ModelError::new(message));
    };
    for file in DESCRIPTIONS.into_iter().chain(COMPANIONS).filter(|file| there.contains(file)) {
        download(file)?;
    }
    let first = download(weights)?;
    if weights.ends_with(".json") {
        for part in tenon_nn::weight_files(&first)? {
            download(&part)?;
        }
    }
    write(&cache.join("refs").join(BRANCH), commit.as_bytes())?;
    Ok(snapshot)
}

/// The model's snapshot in the cache, if it was downloaded to its end.
fn known(cache: &Path) -> Option<PathBuf> {
    let commit = fs::read_to_string(cache.join("refs").join(BRANCH)).ok()?;
    let snapshot = cache.join("snapshots").join(Some(commit.trim()).filter(|commit| is_hex(commit))?);
    WEIGHTS.iter().any(|file| snapshot.join(file).exists()).then_some(snapshot)
}

/// The folder of the cache.
fn cache() -> Result<PathBuf, ModelError> {
    match (env::var_os("HF_HUB_CACHE"), home()) {
        (Some(cache), _) => Ok(cache.into()),
        (None, Some(home)) => Ok(home.join("hub")),
        (None, None) => Err(ModelError::new("no folder for downloads: neither HF_HOME nor HOME is set")),
    }
}

/// The folder of Hugging Face's programs.
fn home() -> Option<PathBuf> {
    let own = env::var_os("HF_HOME").map(PathBuf::from);
    let shared = || env::var_os("XDG_CACHE_HOME").map(|cache| PathBuf::from(cache).join("huggingface"));
    let usual = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/huggingface"));
    own.or_else(shared).or_else(usual)
}

/// The user's token, if there is one.
fn token() -> Option<String> {
    let file = || {
        let path = env::var_os("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home()?.join("token")))?;
        fs::read_to_string(path).ok()
    };
    env::var("HF_TOKEN").ok().or_else(file).map(|token| token.trim().to_string()).filter(|token| !token.is_empty())
}

fn is_hex(text: &str) -> bool {
    [40, 64].contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What is said where a model cannot be had.
fn absent(name: &str, why: &str) -> ModelError {
    let message = format!("{name}: there is no such folder or file, and no such model can be downloaded: {why}");
    ModelError::new(message).help(BY_HAND)
}

/// Why a request gave nothing.
enum Refused {
    Unreachable(String),
    Status(String),
}

impl Refused {
    fn why(self) -> String {
        match self {
            Refused::Unreachable(why) | Refused::Status(why) => why,
        }
    }
}

/// The server.
struct Hub {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

impl Hub {
    fn new() -> Hub {
        let config = Agent::config_builder()
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("tenon/", env!("CARGO_PKG_VERSION")));
        let endpoint = env::var("HF_ENDPOINT").unwrap_or_else(|_| ENDPOINT.to_string());
        Hub { agent: config.build().into(), endpoint: endpoint.trim_end_matches('/').to_string(), token: token() }
    }

    /// The answer of the hub, which may send elsewhere; what was renamed is followed.
    fn ask(&self, url: &str) -> Result<Response<Body>, Refused> {
        let mut response = self.get(url, None)?;
        for _ in 0..MAX_REDIRECTS {
            match self.redirect(&response).filter(|to| self.owns(to)) {
                Some(to) => response = self.get(&to, None)?,
                None => break,
            }
        }
        Ok(response)
    }

    /// Where an answer sends.
    fn redirect(&self, response: &Response<Body>) -> Option<String> {
        let to = header(response, "location").filter(|_| response.status().is_redirection())?;
        Some(if to.starts_with('/') { format!("{}{to}", self.endpoint) } else { to })
    }

    /// Whether an address is of the hub itself.
    fn owns(&self, url: &str) -> bool {
        url.strip_prefix(&self.endpoint).is_some_and(|rest| rest.starts_with('/'))
    }

    /// The answer to a request, which may be a redirect; `from` is the first byte that is wanted. Only the hub itself sees
    /// the token.
    fn get(&self, url: &str, from: Option<u64>) -> Result<Response<Body>, Refused> {
        let mut request = self.agent.get(url);
        if let Some(token) = self.token.as_ref().filter(|_| self.owns(url)) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(from) = from.filter(|from| *from > 0) {
            request = request.header("range", format!("bytes={from}-"));
        }
        let server = url.split('/').take(3).collect::<Vec<_>>().join("/");
        let response =
            request.call().map_err(|error| Refused::Unreachable(format!("{server} cannot be reached: {error}")))?;
        match response.status().as_u16() {
            200..=399 | 416 => Ok(response),
            status @ (401 | 403) => Err(Refused::Status(format!(
                "{server} answers {status}: it is not there, or only with a token that may see it (HF_TOKEN)"
            ))),
            404 => Err(Refused::Status(format!("{server} does not have it"))),
            status => Err(Refused::Status(format!("{server} answers {status}"))),
        }
    }

    /// Puts a file of the model into the cache and returns its place in the snapshot.
    fn download(
        &self,
        name: &str,
        commit: &str,
        file: &str,
        cache: &Path,
        snapshot: &Path,
        tell: &mut dyn FnMut(&str, u64),
    ) -> Result<PathBuf, ModelError> {
        let place = snapshot.join(file);
        if place.exists() {
            return Ok(place);
        }
        let failed = |why: String| ModelError::new(format!("{file} of {name} cannot be downloaded: {why}"));
        let url = format!("{}/{name}/resolve/{commit}/{file}", self.endpoint);
        let mut response = self.ask(&url).map_err(|refused| failed(refused.why()))?;
        // The hub's answer has the checksum, wherever the file itself comes from.
        let given = header(&response, "x-linked-etag").or_else(|| header(&response, "etag"));
        let checksum = given.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_lowercase());
        let checksum =
            checksum.filter(|sum| is_hex(sum)).ok_or_else(|| failed("the server names no checksum".into()))?;
        let blob = cache.join("blobs").join(checksum);
        if !blob.exists() {
            let there = fs::metadata(partial(&blob)).map_or(0, |found| found.len());
            for _ in 0..MAX_REDIRECTS {
                let Some(to) = self.redirect(&response) else { break };
                response = self.get(&to, Some(there)).map_err(|refused| failed(refused.why()))?;
            }
            store(response, &blob, file, tell).map_err(failed)?;
        }
        link(&blob, &place)?;
        Ok(place)
    }
}

fn header(response: &Response<Body>, key: &str) -> Option<String> {
    response.headers().get(key).and_then(|value| value.to_str().ok()).map(str::to_string)
}

/// Where a blob grows.
fn partial(blob: &Path) -> PathBuf {
    blob.with_extension("incomplete")
}

/// Writes an answer, or what of the file is still missing, and checks the whole.
fn store(response: Response<Body>, blob: &Path, file: &str, tell: &mut dyn FnMut(&str, u64)) -> Result<(), String> {
    let partial = partial(blob);
    let said = |error: std::io::Error| format!("{}: {error}", partial.display());
    fs::create_dir_all(blob.parent().unwrap_or(blob)).map_err(said)?;
    match response.status().as_u16() {
        status @ (200 | 206) => {
            let rest = status == 206;
            let mut out = OpenOptions::new();
            let mut out = out.create(true).write(true).append(rest).truncate(!rest).open(&partial).map_err(said)?;
            let length = header(&response, "content-length").and_then(|n| n.parse().ok());
            tell(file, length.unwrap_or(0));
            let mut body = response.into_body().into_reader();
            std::io::copy(&mut body, &mut out).map_err(|e| format!("{e}; the same command goes on from there"))?;
            out.sync_all().map_err(said)?;
        }
        // Nothing is missing any more.
        416 => {}
        status => return Err(format!("the server answers {status}")),
    }
    let checksum = blob.file_name().unwrap_or_default().to_string_lossy();
    if sum_of(&partial, checksum.len()).map_err(said)? != checksum {
        fs::remove_file(&partial).map_err(said)?;
        return Err(format!("what came does not have the checksum {checksum}; it was removed, so try again"));
    }
    fs::rename(&partial, blob).map_err(said)
}

/// The checksum of a file: SHA-256, or for a short one that of git, which hashes what a blob is with it.
fn sum_of(path: &Path, digits: usize) -> std::io::Result<String> {
    let mut context = match digits {
        40 => {
            let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
            context.update(format!("blob {}\0", fs::metadata(path)?.len()).as_bytes());
            context
        }
        _ => Context::new(&SHA256),
    };
    let (mut file, mut buffer) = (File::open(path)?, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => context.update(&buffer[..count]),
        }
    }
    Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Makes `place` a link to a blob, or a copy where the system has no links.
fn link(blob: &Path, place: &Path) -> Result<(), ModelError> {
    let failed = |error: std::io::Error| ModelError::new(format!("cannot write {}: {error}", place.display()));
    if let Some(folder) = place.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    // A link whose blob was removed.
    if place.symlink_metadata().is_ok() {
        fs::remove_file(place).map_err(failed)?;
    }
    #[cfg(unix)]
    let made = std::os::unix::fs::symlink(std::path::absolute(blob).map_err(failed)?, place);
    #[cfg(not(unix))]
    let made = fs::copy(blob, place).map(|_| ());
    made.map_err(failed)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    let failed = |error: std::io::Error| ModelError::new(format!("cannot write {}: {error}", path.display()));
    fs::create_dir_all(path.parent().unwrap_or(path)).map_err(failed)?;
    replace_file(&Disk, path, bytes).map_err(failed)
}

/// The JSON of an answer.
fn json(response: Response<Body>) -> Result<Json, String> {
    let mut text = String::new();
    let mut body = response.into_body().into_reader().take(MAX_JSON);
    body.read_to_string(&mut text).map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| format!("the answer is no JSON: {error}"))
}
