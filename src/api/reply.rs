//! A reply: the body of a response, as bytes or as a subscriber's stream. The connection decides how the
//! reply is sent.

use bytes::Bytes;

use crate::delivery::Delivery;

/// The bytes of a request or a response.
pub(crate) use axum::body::Body;

/// The body of a response.
#[derive(Debug)]
pub(crate) enum Reply {
    /// Bytes, all of them or as they come.
    Body(Body),
    /// A subscriber, and its stream.
    Delivery(Box<Delivery>),
}

impl Default for Reply {
    fn default() -> Self {
        Reply::Body(Body::empty())
    }
}

impl From<Body> for Reply {
    fn from(body: Body) -> Self {
        Reply::Body(body)
    }
}

impl From<Bytes> for Reply {
    fn from(bytes: Bytes) -> Self {
        Reply::Body(bytes.into())
    }
}

impl From<Vec<u8>> for Reply {
    fn from(bytes: Vec<u8>) -> Self {
        Reply::Body(bytes.into())
    }
}
