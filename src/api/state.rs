//! The state that all handlers share.

use std::net::SocketAddr;
use std::sync::Arc;

use super::bodies::Bodies;
use super::options::Options;
use super::public::Public;
use crate::auth::Auth;
use crate::delivery;
use crate::hub::Hub;
use crate::limits::{Proxies, Rates};

/// The settings, the hub, and the bodies that are being read. Clones share all but the settings.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) options: Options,
    pub(crate) streams: delivery::Options,
    pub(crate) replay_page: usize,
    pub(crate) auth: Arc<Auth>,
    pub(crate) hub: Hub,
    /// The addresses the hub listens at.
    pub(crate) listening: Arc<[SocketAddr]>,
    pub(crate) bodies: Arc<Bodies>,
    /// The proxies that say for whom they ask.
    pub(crate) trusted: Vec<Proxies>,
    /// The folder of `--public`.
    pub(crate) public: Option<Arc<Public>>,
    /// How far callers have used up what they may publish.
    pub(crate) publishing: Arc<Rates>,
    /// How far callers have used up the streams and histories they may ask for.
    pub(crate) connecting: Arc<Rates>,
}
