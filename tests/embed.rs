//! The hub in a program of one's own, as the documentation of the library has it: here, this one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use tabcast::journal::{Place, Rule, Rules};
use tabcast::message::Pattern;
use tabcast::{Options, Reloader, ServeError, Server};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};

/// A hub of this process, on a port of its own.
struct Embedded {
    addresses: Vec<SocketAddr>,
    stop: oneshot::Sender<()>,
    reloader: Reloader,
    serving: JoinHandle<Result<(), ServeError>>,
}

async fn start(options: Options, listeners: usize) -> Embedded {
    let mut bound = Vec::new();
    for _ in 0..listeners {
        bound.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let addresses = bound.iter().map(|listener| listener.local_addr().unwrap()).collect();
    let (stop, stopped) = oneshot::channel();
    let shutdown = async move {
        let _ = stopped.await;
    };
    let server = Server::new(options);
    let reloader = server.reloader();
    Embedded { addresses, stop, reloader, serving: tokio::spawn(server.serve(bound, shutdown)) }
}

fn in_memory() -> Options {
    let mut options = Options::default();
    options.journal.journal = Place::Memory;
    options
}

fn connect(address: SocketAddr, request: &str) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    BufReader::new(stream)
}

/// Reads lines up to the one that contains this text.
fn read_until(reader: &mut impl BufRead, text: &str) {
    let mut line = String::new();
    while !line.contains(text) {
        line.clear();
        assert_ne!(reader.read_line(&mut line).unwrap(), 0, "the end, without {text}");
    }
}

const GET_EVENTS: &str = "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n";
const POST_HELLO: &str = "POST /messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n\
                          Content-Length: 5\r\nConnection: close\r\n\r\nHello";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_posted_on_one_listener_is_streamed_on_another_until_the_hub_is_stopped() {
    let hub = start(in_memory(), 2).await;
    let addresses = hub.addresses.clone();
    let mut stream = spawn_blocking(move || {
        let mut stream = connect(addresses[1], GET_EVENTS);
        read_until(&mut stream, "retry:");
        read_until(&mut connect(addresses[0], POST_HELLO), "201 Created");
        read_until(&mut stream, "data: Hello");
        stream
    })
    .await
    .unwrap();
    hub.stop.send(()).unwrap();
    hub.serving.await.unwrap().unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("0\r\n\r\n"), "{rest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_served() {
    let hub = start(in_memory(), 1).await;
    let address = hub.addresses[0];
    let page = spawn_blocking(move || {
        let mut page = String::new();
        let request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        connect(address, request).read_to_string(&mut page).unwrap();
        page
    });
    let page = page.await.unwrap();
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.contains("<title>tabcast</title>"), "{page}");
    drop(hub.stop);
    hub.serving.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_for_channels_are_settings_too() {
    let mut options = in_memory();
    let channels = Pattern::parse("*", 9).unwrap();
    options.journal.rules = Rules::new([Rule { channels, messages: Some(1), age: None }]);
    let hub = start(options, 1).await;
    let address = hub.addresses[0];
    let history = spawn_blocking(move || {
        (0..3).for_each(|_| read_until(&mut connect(address, POST_HELLO), "201 Created"));
        let mut history = String::new();
        let request = "GET /messages HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        connect(address, request).read_to_string(&mut history).unwrap();
        history
    });
    assert_eq!(history.await.unwrap().matches("Hello").count(), 1);
    drop(hub.stop);
    hub.serving.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn new_settings_are_in_force_once_they_are_given_unless_they_are_wrong_or_the_hub_has_stopped() {
    let hub = start(in_memory(), 1).await;
    let address = hub.addresses[0];
    let answer = async |text| {
        let read = move || read_until(&mut connect(address, POST_HELLO), text);
        spawn_blocking(read).await.unwrap();
    };
    answer("201 Created").await;
    let mut options = in_memory();
    options.api.max_body = bytesize::ByteSize::b(4);
    hub.reloader.reload(options.clone()).await.unwrap();
    answer("413 Payload Too Large").await;
    // This can't change, and is passed over.
    options.delivery.keep_alive *= 2;
    options.api.max_body = bytesize::ByteSize::gib(1);
    let error = hub.reloader.reload(options).await.unwrap_err();
    assert!(matches!(error, ServeError::Settings(_)), "{error}");
    let mut options = in_memory();
    options.auth.tokens = Some("/nowhere/tokens".into());
    let error = hub.reloader.reload(options).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/tokens"), "{error}");
    answer("413 Payload Too Large").await;
    drop(hub.stop);
    hub.serving.await.unwrap().unwrap();
    let error = hub.reloader.reload(in_memory()).await.unwrap_err();
    assert!(matches!(error, ServeError::Stopped), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_has_stopped_has_closed_its_journal_for_the_next() {
    let folder = std::env::temp_dir().join(format!("tabcast-embed-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let mut options = in_memory();
    options.journal.journal = Place::File(folder.join("tabcast.db"));
    for messages in 1..=3 {
        let hub = start(options.clone(), 1).await;
        let address = hub.addresses[0];
        spawn_blocking(move || {
            read_until(&mut connect(address, POST_HELLO), "201 Created");
            let request = "GET /messages HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
            let mut history = String::new();
            connect(address, request).read_to_string(&mut history).unwrap();
            assert_eq!(history.matches("\"data\":\"Hello\"").count(), messages, "{history}");
        })
        .await
        .unwrap();
        drop(hub.stop);
        hub.serving.await.unwrap().unwrap();
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_cannot_be_opened_is_told_by_name() {
    let mut options = in_memory();
    options.journal.journal = Place::File("/nowhere/tabcast.db".into());
    let hub = start(options, 1).await;
    let error = hub.serving.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("/nowhere/tabcast.db"), "{error}");
}
