//! The state that all handlers share.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::options::Options;
use crate::delivery;
use crate::hub::Hub;
use crate::value::bytes;

/// The settings, the hub, and the budget of bodies.
#[derive(Debug)]
pub(super) struct State {
    pub(super) options: Options,
    pub(super) streams: delivery::Options,
    pub(super) replay_page: usize,
    pub(super) hub: Hub,
    /// The addresses the hub listens at.
    pub(super) listening: Vec<SocketAddr>,
    /// A permit for each byte of bodies that may still be read: see [`body`](super::body).
    pub(super) in_flight: Arc<Semaphore>,
}

impl State {
    pub(super) fn new(
        options: Options,
        streams: delivery::Options,
        replay_page: usize,
        hub: Hub,
        listening: Vec<SocketAddr>,
    ) -> Self {
        let in_flight = bytes(options.max_in_flight).min(Semaphore::MAX_PERMITS);
        let in_flight = Arc::new(Semaphore::new(in_flight));
        State { options, streams, replay_page, hub, listening, in_flight }
    }
}
