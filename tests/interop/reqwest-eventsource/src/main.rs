//! crate reqwest-eventsource: a stream of all events, whatever their name. It reconnects and resumes
//! by itself after every error, unless that closes it.

use futures_util::StreamExt;
use reqwest_eventsource::{Event, EventSource};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let url = std::env::args().nth(1).expect("a URL");
    let mut source = EventSource::get(url);
    while let Some(event) = source.next().await {
        match event {
            Ok(Event::Message(message)) if !message.event.starts_with("tabcast:") => {
                println!("{} {}", message.id, message.data.replace('\n', "\\n"));
            }
            // An error comes before each reconnection. After an error without one, the stream ends.
            Ok(_) | Err(_) => {}
        }
    }
}
