//! Chunks: messages, or an event of the hub's own, as they are written to a socket. Where a socket takes only
//! a part, [`Chunks::cut`] says what is left, as a place in a message rather than as bytes.

use std::io::IoSlice;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::frame::Format;
use crate::hub::Subscription;
use crate::journal::{Entry, Kept};

/// How a body is framed: by chunks (RFC 9112 7.1), or by the end of the connection, as in HTTP/1.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Framing {
    Chunked,
    UntilClose,
}

/// Bytes for a socket, and what they are. A large message is a chunk of its own; others share one.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    /// The bytes, in order. Large frames are shared with their entry.
    pieces: Vec<Bytes>,
    length: usize,
    /// The chunks of messages. Empty for the hub's own events.
    chunks: Vec<Chunk>,
    /// How many events are in the chunks, and the sequence of the last id. `None` if there is no id.
    pub(super) counts: Option<(usize, u64)>,
}

/// One chunk of messages.
#[derive(Debug)]
struct Chunk {
    /// The sequence of the first message.
    first: u64,
    last: Arc<Entry>,
    /// How many messages there are up to the last one, those of earlier chunks included.
    messages: usize,
    /// Where the chunk ends.
    end: usize,
}

/// What a socket did not take.
#[derive(Debug, Default)]
pub(super) enum Unsent {
    #[default]
    Nothing,
    /// The end of a chunk.
    Bytes(Bytes),
    /// The end of a message's chunk, which is longer.
    Message(Partial),
    /// The [end](Chunks::end) of the body. Nothing follows.
    End(Bytes),
}

/// A message of which only a part was sent.
#[derive(Debug)]
pub(super) struct Partial {
    pub(super) sequence: u64,
    /// How many bytes of the message's chunk were sent.
    pub(super) sent: usize,
    /// The message. `None` if there is too little memory to keep it: it is then read again.
    pub(super) kept: Option<Kept>,
}

/// What becomes of chunks of which a socket took only a part.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) unsent: Unsent,
    /// Each message up to this sequence was sent, or is in `unsent`. `None` if the chunks are no messages.
    pub(super) position: Option<u64>,
    /// As [`Chunks::counts`], of what was sent and of `unsent`.
    pub(super) counts: Option<(usize, u64)>,
}

/// The longest end of a chunk that is kept as bytes, and the longest chunk of several messages. Higher: more
/// memory for a subscriber that stops reading. Lower: more such subscribers read their message again, and
/// more bytes are the chunks' own.
const KEPT: usize = 4 << 10;

/// The least frame that is not copied into one piece with others. Higher: more is copied. Lower: more pieces,
/// whose writes cost more.
const LARGE: usize = 16 << 10;

/// The most bytes of a chunk before and after its frames.
const AROUND: usize = "ffffffffffffffff\r\n\r\n".len();

const CHUNK_END: &[u8] = b"\r\n";

impl Chunks {
    /// These messages in this format.
    pub(super) fn messages(entries: &[Arc<Entry>], format: Format, framing: Framing) -> Self {
        let mut chunks = Chunks::default();
        let mut piece = BytesMut::new();
        let mut rest = entries;
        while let [first, ..] = rest {
            let mut frames = vec![first.frame(format)];
            let mut length = frames[0].len();
            for entry in &rest[1..] {
                let frame = entry.frame(format);
                length += frame.len();
                if length + AROUND > KEPT {
                    break;
                }
                frames.push(frame);
            }
            let (chunk, after) = rest.split_at(frames.len());
            rest = after;
            chunks.add(&mut piece, &frames, framing);
            if let [.., last] = chunk {
                let (first, last) = (first.message.id.sequence, Arc::clone(last));
                let messages = entries.len() - rest.len();
                chunks.counts = Some((messages, last.message.id.sequence));
                chunks.chunks.push(Chunk { first, last, messages, end: chunks.length });
            }
        }
        chunks.end_piece(&mut piece);
        chunks
    }

    /// A message of which a part was sent: it is counted already.
    pub(super) fn begun(entry: Arc<Entry>, format: Format, framing: Framing) -> Self {
        let mut chunks = Chunks::messages(&[entry], format, framing);
        chunks.chunks.iter_mut().for_each(|chunk| chunk.messages = 0);
        Chunks { counts: None, ..chunks }
    }

    /// An event of the hub's own. `counts` as in [`Chunks`].
    pub(super) fn own(bytes: Bytes, counts: Option<(usize, u64)>, framing: Framing) -> Self {
        let mut chunks = Chunks { counts, ..Chunks::default() };
        if !bytes.is_empty() {
            let mut piece = BytesMut::new();
            chunks.add(&mut piece, &[bytes], framing);
            chunks.end_piece(&mut piece);
        }
        chunks
    }

    /// The end of a body, after this event of the hub's own, which may be empty.
    pub(super) fn end(event: Bytes, framing: Framing) -> Self {
        let mut chunks = Chunks::own(event, None, framing);
        if framing == Framing::Chunked {
            chunks.pieces.push(Bytes::from_static(b"0\r\n\r\n"));
            chunks.length += b"0\r\n\r\n".len();
        }
        chunks
    }

    /// Adds one chunk of these frames.
    fn add(&mut self, piece: &mut BytesMut, frames: &[Bytes], framing: Framing) {
        let length: usize = frames.iter().map(Bytes::len).sum();
        let before = piece.len();
        if framing == Framing::Chunked {
            let size = format!("{length:x}\r\n");
            piece.reserve(size.len() + if length < LARGE { length } else { 0 } + CHUNK_END.len());
            piece.extend_from_slice(size.as_bytes());
        }
        let mut added = piece.len() - before;
        match frames {
            [large] if length >= LARGE => {
                self.end_piece(piece);
                self.pieces.push(large.clone());
            }
            frames => frames.iter().for_each(|frame| piece.extend_from_slice(frame)),
        }
        added += length;
        if framing == Framing::Chunked {
            piece.extend_from_slice(CHUNK_END);
            added += CHUNK_END.len();
        }
        self.length += added;
    }

    fn end_piece(&mut self, piece: &mut BytesMut) {
        if !piece.is_empty() {
            self.pieces.push(piece.split().freeze());
        }
    }

    /// How many bytes there are.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// The bytes in one piece, unless a large frame is among them.
    pub(super) fn as_one(&self) -> Option<&Bytes> {
        if let [piece] = &self.pieces[..] { Some(piece) } else { None }
    }

    /// The bytes after the first `sent`.
    pub(super) fn slices(&self, mut sent: usize) -> Vec<IoSlice<'_>> {
        let rest = self.pieces.iter().map(|piece| {
            let skipped = sent.min(piece.len());
            sent -= skipped;
            IoSlice::new(&piece[skipped..])
        });
        rest.filter(|slice| !slice.is_empty()).collect()
    }

    /// What becomes of the chunks after only the first `sent` bytes were sent. `subscription` says whether a
    /// large message may be kept.
    pub(super) fn cut(&self, sent: usize, subscription: &Subscription) -> Cut {
        let Some(at) = self.chunks.iter().position(|chunk| chunk.end > sent) else {
            // An event of the hub's own, or nothing is left.
            return Cut { unsent: self.kept(sent, self.length), position: None, counts: self.counts };
        };
        let counts = |chunk: &Chunk| (chunk.messages, chunk.last.message.id.sequence);
        let before = at.checked_sub(1).map(|before| &self.chunks[before]);
        let start = before.map_or(0, |before| before.end);
        let chunk = &self.chunks[at];
        if sent == start {
            let counts = before.map(counts);
            return Cut { unsent: Unsent::Nothing, position: Some(chunk.first - 1), counts };
        }
        let sequence = chunk.last.message.id.sequence;
        let unsent = if chunk.end - sent <= KEPT {
            self.kept(sent, chunk.end)
        } else {
            let kept = subscription.keep(&chunk.last);
            Unsent::Message(Partial { sequence, sent: sent - start, kept })
        };
        Cut { unsent, position: Some(sequence), counts: Some(counts(chunk)) }
    }

    fn kept(&self, sent: usize, end: usize) -> Unsent {
        if sent == end { Unsent::Nothing } else { Unsent::Bytes(self.copy(sent, end)) }
    }

    /// A copy of the bytes from `sent` to `end`: a part of a piece would keep all of it.
    pub(super) fn copy(&self, sent: usize, end: usize) -> Bytes {
        let slices = self.slices(sent);
        let bytes = slices.iter().flat_map(|slice| slice.iter().copied());
        bytes.take(end - sent).collect()
    }
}

impl From<Bytes> for Chunks {
    /// Bytes that are framed already.
    fn from(bytes: Bytes) -> Self {
        Chunks { length: bytes.len(), pieces: vec![bytes], ..Chunks::default() }
    }
}

impl Unsent {
    pub(super) fn is_nothing(&self) -> bool {
        matches!(self, Unsent::Nothing)
    }
}
