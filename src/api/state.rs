//! The state that all handlers share.

use std::net::SocketAddr;

use super::bodies::Bodies;
use super::options::Options;
use crate::auth::Auth;
use crate::delivery;
use crate::hub::Hub;
use crate::limits::Proxies;

/// The settings, the hub, and the bodies that are being read.
#[derive(Debug)]
pub(super) struct State {
    pub(super) options: Options,
    pub(super) streams: delivery::Options,
    pub(super) replay_page: usize,
    pub(super) auth: Auth,
    pub(super) hub: Hub,
    /// The addresses the hub listens at.
    pub(super) listening: Vec<SocketAddr>,
    pub(super) bodies: Bodies,
    /// The proxies that say for whom they ask.
    pub(super) trusted: Vec<Proxies>,
}

impl State {
    #[expect(clippy::too_many_arguments)]
    pub(super) fn new(
        options: Options,
        streams: delivery::Options,
        replay_page: usize,
        bodies: Bodies,
        trusted: Vec<Proxies>,
        auth: Auth,
        hub: Hub,
        listening: Vec<SocketAddr>,
    ) -> Self {
        State { options, streams, replay_page, auth, hub, listening, bodies, trusted }
    }
}
