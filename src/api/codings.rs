//! Codings: how a body was compressed on its way (RFC 9110 8.4). It is published as it was before.

use std::io::Read;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use bytes::BytesMut;
use flate2::bufread::{MultiGzDecoder, ZlibDecoder};

use super::bodies::Memory;
use super::body;
use super::options::Options;
use super::problem::Problem;
use crate::value;

/// The codings of a body, in the order in which they were applied.
#[derive(Debug)]
pub(super) struct Codings(Vec<Coding>);

#[derive(Clone, Copy, Debug)]
enum Coding {
    Gzip,
    Deflate,
}

impl Codings {
    /// # Errors
    /// 415 if a content coding is not taken, or there are too many; 501 for a transfer coding but chunked.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        /// The most codings. Higher: a request makes the hub work harder. Lower: none could be coded twice.
        const LIMIT: usize = 2;
        // A body without a length is chunked: what is coded besides is left as it is by hyper.
        if headers.get_all(header::TRANSFER_ENCODING).iter().any(|value| !is(value, "chunked")) {
            let detail = "of transfer codings, only chunked is taken: compress by Content-Encoding: gzip";
            return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, detail).field("Transfer-Encoding"));
        }
        let unsupported = |detail| {
            Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
                .field("Content-Encoding")
                .taken("gzip, deflate")
        };
        let mut codings = Vec::new();
        let values = headers.get_all(header::CONTENT_ENCODING).iter();
        for name in values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')) {
            match &*name.trim_ascii().to_ascii_lowercase() {
                b"" | b"identity" => {}
                b"gzip" | b"x-gzip" => codings.push(Coding::Gzip),
                b"deflate" => codings.push(Coding::Deflate),
                _ => return Err(unsupported("of content codings, gzip and deflate are taken")),
            }
        }
        if codings.len() > LIMIT {
            return Err(unsupported("the body has more than 2 content codings, the limit").limit(LIMIT));
        }
        Ok(Codings(codings))
    }

    /// Decodes the body, the last coding first. Takes memory for what comes of it.
    ///
    /// # Errors
    /// 400 if the body is damaged, 413 if it is longer than `--max-body`, 503 if there is no memory.
    pub(super) async fn decode(
        self,
        mut body: BytesMut,
        memory: &mut Memory<'_>,
        options: &Options,
    ) -> Result<BytesMut, Problem> {
        for coding in self.0.into_iter().rev() {
            body = match coding {
                Coding::Gzip => {
                    let mut decoder = Box::new(MultiGzDecoder::new(&body[..]));
                    inflate(&mut decoder, memory, options).await?
                }
                Coding::Deflate => {
                    // One byte more is read of a body that is cut off, and less if something follows.
                    let mut decoder = ZlibDecoder::new(body.chain(&[0][..]));
                    let decoded = inflate(&mut decoder, memory, options).await?;
                    if decoder.total_in() != body.len() as u64 {
                        return Err(damaged());
                    }
                    decoded
                }
            };
        }
        Ok(body)
    }
}

/// Reads all of what this decodes.
async fn inflate(
    decoder: &mut (dyn Read + Send),
    memory: &mut Memory<'_>,
    options: &Options,
) -> Result<BytesMut, Problem> {
    /// The bytes decoded at once. Higher: more memory for each body. Lower: more rounds.
    const STEP: usize = 16 << 10;
    let limit = value::bytes(options.max_body);
    let (mut decoded, mut step) = (BytesMut::new(), vec![0; STEP]);
    loop {
        let count = decoder.read(&mut step).map_err(|_| damaged())?;
        if count == 0 {
            return Ok(decoded);
        }
        if decoded.len() + count > limit {
            return Err(body::too_large(limit));
        }
        memory.take(count, body::PATIENCE).await?;
        decoded.extend_from_slice(&step[..count]);
    }
}

fn is(value: &HeaderValue, name: &str) -> bool {
    value.as_bytes().trim_ascii().eq_ignore_ascii_case(name.as_bytes())
}

fn damaged() -> Problem {
    Problem::malformed("the body can't be decoded: it is damaged, or not of its content coding")
        .field("Content-Encoding")
}
