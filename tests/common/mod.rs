//! A real hub, the binary itself, on port 0; and raw HTTP over real sockets against it. Nothing here
//! knows the hub's code: what a test sees is what crossed the wire.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part, as if it were a crate")]
#![allow(unused_imports, unused_macros, reason = "the same")]

pub mod endpoint;
mod files;
mod http;
mod hub;
pub mod path;
mod site;
mod tokens;

use std::time::Duration;

pub use endpoint::{Asked, Certificate, Endpoint, Gate, response};
pub use files::{Locks, assert_refused_and_unchanged, folder_of, refused, sqlite3};
pub use http::{Event, Response, Stream, connect, connect_from, has_data, parse_event, post_text, request};
pub use hub::Hub;
pub use path::Path;
pub(crate) use path::{on_each_journal, on_each_path, on_paths};
pub use site::{Folder, Site};
pub use tokens::{Tokens, bearer, now};

/// How long anything is waited for before the test fails. No test is faster or slower for it.
pub const PATIENCE: Duration = Duration::from_secs(30);
