//! HTTP as it crosses the wire: requests written by hand, responses and streams read byte by byte.

use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};

use memchr::memmem;
use socket2::{Domain, Socket, Type};

use super::PATIENCE;

/// A connection to this address that fails the test rather than wait for ever.
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    connection.set_nodelay(true)?;
    Ok(connection)
}

/// A connection from this address of the loopback network, of which this machine has all.
pub fn connect_from(source: [u8; 4], address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect(&address.into())?;
    let connection = TcpStream::from(socket);
    connection.set_read_timeout(Some(PATIENCE))?;
    Ok(connection)
}

/// The bytes of a request with these headers, each as in "Name: value". It names the host unless they do.
pub fn request(request_line: &str, host: SocketAddr, headers: &[&str], body: Option<&[u8]>) -> Vec<u8> {
    let mut head = format!("{request_line}\r\n");
    if !headers.iter().any(|header| header.to_ascii_lowercase().starts_with("host:")) {
        head += &format!("Host: {host}\r\n");
    }
    headers.iter().for_each(|header| head += &format!("{header}\r\n"));
    if let Some(body) = body {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    head += "\r\n";
    [head.as_bytes(), body.unwrap_or_default()].concat()
}

/// The bytes of a request that publishes text.
pub fn post_text(host: SocketAddr, text: &str) -> Vec<u8> {
    request("POST /messages HTTP/1.1", host, &["Content-Type: text/plain"], Some(text.as_bytes()))
}

/// Names in lower case.
type Headers = Vec<(String, String)>;

fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// A line without its end, or an error if the connection ends within it.
fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let whole = line.strip_suffix("\r\n").ok_or(ErrorKind::UnexpectedEof)?;
    Ok(whole.to_owned())
}

/// Status and headers.
fn read_head(reader: &mut impl BufRead) -> io::Result<(u16, Headers)> {
    let status = read_line(reader)?.split(' ').nth(1).unwrap().parse().unwrap();
    let mut headers = Vec::new();
    loop {
        let line = read_line(reader)?;
        let Some((name, value)) = line.split_once(':') else { return Ok((status, headers)) };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

/// The next chunk of a chunked body; `None` if it is the last.
fn read_chunk(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let length = usize::from_str_radix(&read_line(reader)?, 16).map_err(io::Error::other)?;
    let mut chunk = vec![0; length + 2];
    reader.read_exact(&mut chunk)?;
    assert!(chunk.ends_with(b"\r\n"));
    chunk.truncate(length);
    Ok((length > 0).then_some(chunk))
}

fn read_body(reader: &mut impl BufRead, headers: &Headers) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if header(headers, "transfer-encoding") == Some("chunked") {
        while let Some(chunk) = read_chunk(reader)? {
            body.extend(chunk);
        }
    } else if let Some(length) = header(headers, "content-length") {
        body.resize(length.parse().unwrap(), 0);
        reader.read_exact(&mut body)?;
    } else {
        reader.read_to_end(&mut body)?;
    }
    Ok(body)
}

/// A whole response.
#[derive(Debug)]
pub struct Response {
    /// 0 if the connection was closed without an answer.
    pub status: u16,
    pub headers: Headers,
    pub body: Vec<u8>,
}

impl Response {
    /// The status of an interim response, which has a head alone.
    pub fn read_interim(reader: &mut impl BufRead) -> u16 {
        read_head(reader).unwrap().0
    }

    /// The response to a HEAD, if `is_head`. Panics if none comes in time, or only a part of one.
    pub fn read(reader: &mut impl BufRead, is_head: bool) -> Response {
        let (status, headers) = match read_head(reader) {
            Ok(head) => head,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("no answer")
            }
            Err(_closed) => return Response { status: 0, headers: Vec::new(), body: Vec::new() },
        };
        let has_body = !is_head && status != 204 && status != 304;
        let body = if has_body { read_body(reader, &headers).unwrap() } else { Vec::new() };
        Response { status, headers, body }
    }

    /// The response to a request that has a body, where the server may end at any moment.
    ///
    /// # Errors
    /// If it does not come whole.
    pub fn try_read(reader: &mut impl BufRead) -> io::Result<Response> {
        let (status, headers) = read_head(reader)?;
        let body = read_body(reader, &headers)?;
        Ok(Response { status, headers, body })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    /// Checks that it is a problem with this status, and returns it.
    pub fn problem(&self, status: u16) -> serde_json::Value {
        assert_eq!(self.status, status, "{:?}", String::from_utf8_lossy(&self.body));
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let problem = self.json();
        assert_eq!(problem["status"], status);
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{problem}");
        problem
    }
}

/// An open stream of events.
pub struct Stream {
    reader: BufReader<TcpStream>,
    pub status: u16,
    pub headers: Headers,
    chunked: bool,
    /// The bytes read from the connection, of which the first `taken` were taken.
    bytes: Vec<u8>,
    taken: usize,
    /// The first block, where it was read: a comment, `retry` and perhaps an id.
    pub opening: String,
}

impl Stream {
    /// The stream that was asked for on this connection, its head read.
    pub fn read(connection: TcpStream) -> Stream {
        let stream = Stream::try_read(connection).unwrap();
        assert_eq!(stream.status, 200, "{:?}", stream.headers);
        stream
    }

    /// The same where the server may end at any moment.
    ///
    /// # Errors
    /// If no whole head comes.
    pub fn try_read(connection: TcpStream) -> io::Result<Stream> {
        let mut reader = BufReader::new(connection);
        let (status, headers) = read_head(&mut reader)?;
        let chunked = header(&headers, "transfer-encoding") == Some("chunked");
        let (bytes, opening) = (Vec::new(), String::new());
        Ok(Stream { reader, status, headers, chunked, bytes, taken: 0, opening })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// The whole response, where it is no stream but an error.
    pub fn into_response(mut self) -> Response {
        let body = read_body(&mut self.reader, &self.headers).unwrap();
        Response { status: self.status, headers: self.headers, body }
    }

    /// Reads more bytes; false at the end.
    fn fill(&mut self) -> io::Result<bool> {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        if self.chunked {
            let chunk = read_chunk(&mut self.reader)?;
            self.bytes.extend_from_slice(chunk.as_deref().unwrap_or_default());
            Ok(chunk.is_some())
        } else {
            let mut buffer = [0; 4096];
            let count = self.reader.read(&mut buffer)?;
            self.bytes.extend_from_slice(&buffer[..count]);
            Ok(count > 0)
        }
    }

    fn take(&mut self, count: usize) -> String {
        let taken = self.bytes[self.taken..][..count].to_vec();
        self.taken += count;
        String::from_utf8(taken).unwrap()
    }

    /// The next chunk of the body, whole: what the hub wrote at once. `None` if it has no chunks.
    pub fn chunk(&mut self) -> Option<String> {
        if !self.chunked {
            return None;
        }
        assert!(self.taken == self.bytes.len(), "in the midst of a chunk");
        assert!(self.fill().unwrap(), "the stream has ended");
        Some(self.take(self.bytes.len()))
    }

    /// The raw bytes up to and with the next blank line; `None` at the end.
    pub fn block(&mut self) -> Option<String> {
        self.try_block().unwrap_or_else(|error| panic!("the stream breaks off: {error}"))
    }

    /// The same where the server may end at any moment.
    ///
    /// # Errors
    /// If the stream breaks off, or ends within a block.
    pub fn try_block(&mut self) -> io::Result<Option<String>> {
        self.take_through(b"\n\n")
    }

    /// The next line, of NDJSON; `None` at the end.
    pub fn line(&mut self) -> Option<String> {
        self.take_through(b"\n").unwrap_or_else(|error| panic!("the stream breaks off: {error}"))
    }

    fn take_through(&mut self, mark: &[u8]) -> io::Result<Option<String>> {
        let mut searched = 0;
        loop {
            let bytes = &self.bytes[self.taken..];
            if let Some(place) = memmem::find(&bytes[searched..], mark) {
                return Ok(Some(self.take(searched + place + mark.len())));
            }
            // `mark` may begin in the last of these bytes.
            searched = (bytes.len() + 1).saturating_sub(mark.len());
            if !self.fill()? {
                let torn = || io::Error::new(ErrorKind::InvalidData, "the end comes too early");
                return if self.bytes.is_empty() { Ok(None) } else { Err(torn()) };
            }
        }
    }

    /// The next event, passing over comments and checkpoints; `None` at the end.
    pub fn event(&mut self) -> Option<Event> {
        loop {
            let block = self.block()?;
            if has_data(&block) {
                return Some(parse_event(&block));
            }
        }
    }

    /// The next event's data.
    pub fn data(&mut self) -> String {
        self.event().expect("the stream goes on").data
    }
}

/// One event that was dispatched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    pub id: String,
    pub event: String,
    pub data: String,
}

impl Event {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.data).unwrap()
    }
}

/// Whether a block is an event: one without data is not dispatched (WHATWG HTML 9.2.6).
pub fn has_data(block: &str) -> bool {
    block.lines().any(|line| line.starts_with("data:"))
}

/// One block, as WHATWG HTML 9.2.6 interprets it.
pub fn parse_event(block: &str) -> Event {
    let mut event = Event { event: "message".to_owned(), ..Event::default() };
    let mut data = Vec::new();
    for line in block.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => event.id = value.to_owned(),
            "event" => event.event = value.to_owned(),
            "data" => data.push(value),
            _ => {}
        }
    }
    event.data = data.join("\n");
    event
}
