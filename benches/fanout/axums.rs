//! Two small axum servers: the tutorial's hub, and the least that takes a POST.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::{Stream, StreamExt};

use crate::common::serving::Publish;

/// A handler that reads and parses a JSON body and answers 201.
pub(crate) fn bare() -> Router {
    async fn publish(Json(publish): Json<Publish>) -> StatusCode {
        std::hint::black_box(publish.data);
        StatusCode::CREATED
    }
    Router::new().route("/messages", post(publish))
}

/// The naive hub: its live feed, and the number of the last message.
struct Naive {
    live: broadcast::Sender<(u64, String)>,
    last: Mutex<u64>,
}

/// The tutorial's hub: `Sse` over tokio's broadcast, an `Event` built for each subscriber.
pub(crate) fn naive() -> Router {
    /// Far more than the tutorial's 100, with which it would lose messages here.
    const CAPACITY: usize = 1 << 16;

    async fn publish(State(hub): State<Arc<Naive>>, Json(publish): Json<Publish>) -> StatusCode {
        if publish.channel.is_none() {
            // The lock is held while the message is sent: the feed has to be in the order of the numbers.
            let mut last = hub.last.lock().unwrap_or_else(PoisonError::into_inner);
            *last += 1;
            let _ = hub.live.send((*last, publish.data));
        }
        StatusCode::CREATED
    }

    async fn subscribe(State(hub): State<Arc<Naive>>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
        let opening = Event::default().comment("naive");
        let events = BroadcastStream::new(hub.live.subscribe())
            // The load notices what a subscriber loses to a lag.
            .filter_map(Result::ok)
            .map(|(number, data)| Event::default().id(format!("naive-{number}")).data(data));
        Sse::new(tokio_stream::once(opening).chain(events).map(Ok))
            .keep_alive(KeepAlive::new().interval(Duration::from_secs(600)))
    }

    let hub = Naive { live: broadcast::Sender::new(CAPACITY), last: Mutex::new(0) };
    Router::new().route("/messages", post(publish)).route("/events", get(subscribe)).with_state(Arc::new(hub))
}
