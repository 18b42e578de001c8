//! A multipart form: the parts of its body (RFC 7578).

use std::convert::Infallible;

use axum::http::{HeaderValue, StatusCode, header};
use bytes::Bytes;
use multer::Multipart;
use tokio_stream::once;

use super::fields::MAX_FIELDS;
use super::problem::Problem;

/// A part: a field of the form, or a file.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) content_type: Option<HeaderValue>,
    pub(super) bytes: Bytes,
}

/// The parts that have one of these names, in the order of the form.
///
/// # Errors
/// 400 if the form can't be read, 422 if it has more than [`MAX_FIELDS`] parts.
pub(super) async fn parts(body: Bytes, boundary: String, names: &[&str]) -> Result<Vec<Part>, Problem> {
    let mut form = Multipart::new(once(Ok::<_, Infallible>(body)), boundary);
    let mut parts = Vec::new();
    for count in 0.. {
        let Some(part) = form.next_field().await.map_err(unreadable)? else { break };
        if count == MAX_FIELDS {
            let detail = format!("the form has more than {MAX_FIELDS} parts, the limit");
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail).limit(MAX_FIELDS));
        }
        let Some(name) = part.name().filter(|name| names.contains(name)).map(str::to_owned) else { continue };
        let content_type = part.headers().get(header::CONTENT_TYPE).cloned();
        parts.push(Part { name, content_type, bytes: part.bytes().await.map_err(unreadable)? });
    }
    Ok(parts)
}

fn unreadable(error: multer::Error) -> Problem {
    Problem::malformed(format!("the form can't be read: {error}"))
}
