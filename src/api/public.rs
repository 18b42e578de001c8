//! The folder of `--public`: its files, at the paths that they have in it.

use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use percent_encoding::percent_decode_str;
use tower_http::services::ServeFile;

use super::problem::Problem;
use crate::hub::Hub;
use crate::limits::Peer;

/// What a folder's own path is answered with.
const INDEX: &str = "index.html";

/// What a path without a file is answered with, if the folder has it.
const NOT_FOUND: &str = "/404.html";

/// The most bytes of a file that are read at once. Higher: more memory for a reader who takes nothing. Lower:
/// more reads, each of which waits for a thread.
const PIECE: usize = 16 << 10;

/// A folder whose files everybody may have.
#[derive(Clone, Debug)]
pub(crate) struct Public {
    /// Without symbolic links, so that a file's place can be compared with it.
    folder: PathBuf,
}

/// What is at a path.
#[derive(Debug)]
enum Place {
    /// A file; and whether its compressed form beside it is no older.
    File(PathBuf, bool),
    /// A folder, asked for without the slash that the relative URLs of its page need.
    Folder,
    Nothing,
}

impl Public {
    /// The files of this folder.
    ///
    /// # Errors
    /// Why the folder can't be read.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        let folder = folder.canonicalize()?;
        folder.read_dir()?;
        Ok(Public { folder })
    }

    /// The file at the request's path, or what is said instead.
    ///
    /// # Errors
    /// 404 and 405; 429 and 503 if too many are being answered; 503 if the file can't be read.
    pub(super) async fn respond(
        &self,
        hub: &Hub,
        address: Peer,
        request: Request,
    ) -> Result<Response, Problem> {
        // A file that is being sent takes a descriptor, and memory for a piece.
        let share = hub.reader(address)?;
        let (mut head, _) = request.into_parts();
        let is_read = [Method::GET, Method::HEAD].contains(&head.method);
        let path = head.uri.path().to_owned();
        let (place, is_found) = match self.look_up(&path).await {
            Place::Nothing if is_read => (self.look_up(NOT_FOUND).await, false),
            place => (place, true),
        };
        let (file, is_compressed) = match place {
            Place::File(..) | Place::Folder if !is_read => {
                return Err(Problem::method_not_allowed(&head.method, "GET, HEAD"));
            }
            Place::File(file, is_compressed) => (file, is_compressed),
            Place::Folder if is_found => return Ok(to_folder(&path, head.uri.query())),
            Place::Folder | Place::Nothing => return Err(nothing()),
        };
        if !is_found {
            // Whoever knows this file has to hear all the same that there is nothing.
            head.headers.clear();
        }
        let files = ServeFile::new(&file).with_buf_chunk_size(PIECE);
        let mut files = if is_compressed { files.precompressed_gzip() } else { files };
        let served = files.try_call(Request::from_parts(head, Body::empty())).await;
        let mut response = served.map_err(|error| {
            tracing::warn!(path = %file.display(), %error, "file not read");
            let detail = "the hub can't read the file at the moment";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(1)
        })?;
        if !is_found {
            *response.status_mut() = StatusCode::NOT_FOUND;
        }
        let headers = response.headers_mut();
        // A browser keeps the file, but asks for changes each time.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if let Some(text) = headers.get(header::CONTENT_TYPE).and_then(in_utf_8) {
            headers.insert(header::CONTENT_TYPE, text);
        }
        Ok(response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _ = &share;
                frame
            }))
        }))
    }

    async fn look_up(&self, path: &str) -> Place {
        let Some(mut file) = self.named(path) else { return Place::Nothing };
        let is_folder = path.ends_with('/');
        if is_folder {
            file.push(INDEX);
        }
        let public = self.clone();
        let place = tokio::task::spawn_blocking(move || {
            let Ok(found) = public.found(&file) else { return Place::Nothing };
            let mut compressed = file.clone().into_os_string();
            compressed.push(".gz");
            let is_current = |compressed: Metadata| {
                compressed.is_file() && compressed.modified().ok() >= found.modified().ok()
            };
            match found {
                _ if found.is_file() => {
                    let is_compressed = public.found(Path::new(&compressed)).is_ok_and(is_current);
                    Place::File(file, is_compressed)
                }
                _ if found.is_dir() && !is_folder => Place::Folder,
                // A pipe, which has no end, or a device.
                _ => Place::Nothing,
            }
        });
        place.await.unwrap_or(Place::Nothing)
    }

    /// Where in the folder a URL's path is. `None` if a name in it is empty, begins with a dot, or has a
    /// slash.
    fn named(&self, path: &str) -> Option<PathBuf> {
        let names = path.strip_prefix('/')?;
        let names = names.strip_suffix('/').unwrap_or(names);
        let mut file = self.folder.clone();
        for name in names.split('/').filter(|_| !names.is_empty()) {
            let name: Vec<u8> = percent_decode_str(name).collect();
            if name.is_empty() || name.starts_with(b".") || name.contains(&b'/') {
                return None;
            }
            file.push(OsString::from_vec(name));
        }
        Some(file)
    }

    /// What the file at this path is, unless a symbolic link leads to a hidden one or out of the folder.
    fn found(&self, file: &Path) -> io::Result<Metadata> {
        let file = file.canonicalize()?;
        let within = file.strip_prefix(&self.folder).map_err(io::Error::other)?;
        if within.iter().any(|name| name.as_bytes().starts_with(b".")) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        file.metadata()
    }
}

fn nothing() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path")
}

/// A redirect to the same path with a slash. It is relative, so that it leads there below a proxy's path too.
fn to_folder(path: &str, query: Option<&str>) -> Response {
    let name = path.rsplit('/').next().unwrap_or_default();
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let location = [(header::LOCATION, format!("./{name}/{query}"))];
    (StatusCode::TEMPORARY_REDIRECT, location).into_response()
}

/// The type of a text with the encoding that all texts of today have. Browsers would take another one for a
/// page that does not name it.
fn in_utf_8(text: &HeaderValue) -> Option<HeaderValue> {
    let text = text.to_str().ok().filter(|text| text.starts_with("text/") && !text.contains(';'))?;
    HeaderValue::try_from(format!("{text}; charset=utf-8")).ok()
}
