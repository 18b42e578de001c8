//! A row of the table `entries`, parsed into the types it was written from.

use std::io;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row};
use sha2::{Digest, Sha256};

use crate::journal::entry::Entry;
use crate::journal::epochs::Epochs;
use crate::journal::keys::Key;
use crate::message::{
    ChannelName, Data, Epoch, EventName, Fingerprint, Message, MessageId, Receipt, SubscriberId, Time,
};

/// The entry of a row with the columns `sequence, channel, event, data, time_ms, except, expires_ms`. The
/// first two are parsed already.
pub(super) fn entry(row: &Row<'_>, id: MessageId, channel: ChannelName) -> rusqlite::Result<Entry> {
    Ok(Entry::new(Message {
        id,
        channel,
        event: event(row, 2)?,
        data: Data::stored(row.get(3)?).map_err(|error| damaged(3, error))?,
        time: Time::from_ms(row.get(4)?),
        except: match row.get_ref(5)?.as_str_or_null().map_err(|error| damaged(5, error))? {
            Some(text) => Some(SubscriberId::parse(text).map_err(|error| damaged(5, error))?),
            None => None,
        },
        expires: time(row, 6)?,
    }))
}

/// The time in this column, if there is one.
pub(super) fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Time>> {
    Ok(row.get::<_, Option<u64>>(column)?.map(Time::from_ms))
}

pub(super) fn channel(row: &Row<'_>, column: usize) -> rusqlite::Result<ChannelName> {
    ChannelName::stored(row.get_ref(column)?.as_str()?).map_err(|error| damaged(column, error))
}

fn event(row: &Row<'_>, column: usize) -> rusqlite::Result<EventName> {
    EventName::stored(row.get_ref(column)?.as_str()?).map_err(|error| damaged(column, error))
}

/// The text of a publisher's key in a journal that was made with this epoch: 16 hexadecimal digits for the
/// key's owner, and its own text. Older rows have that text alone, which has no space, and so are nobody's.
///
/// The digits are of a hash, so that whoever sees the file does not read where messages came from. They hide
/// it from nobody who tries all addresses.
pub(super) fn key(first: Epoch, key: &Key) -> String {
    let mut hash = Sha256::new();
    hash.update(first.to_string());
    hash.update(key.owner.to_bits().to_be_bytes());
    let hash = hash.finalize();
    let digits = u64::from_be_bytes(hash[..8].try_into().expect("a hash has more than 8 bytes"));
    format!("{digits:016x} {}", key.text.as_str())
}

/// The request that came with an idempotency key, and its receipt. `None` if no row has the key.
pub(super) fn remembered(
    db: &Connection,
    epochs: &Epochs,
    key: &str,
) -> rusqlite::Result<Option<(Fingerprint, Receipt)>> {
    let mut select = db.prepare_cached(
        "SELECT request, sequence, channel, event, time_ms, expires_ms FROM entries WHERE key = ?1",
    )?;
    select
        .query_row([key], |row| {
            let receipt = Receipt {
                id: epochs.id(row.get(1)?),
                channel: channel(row, 2)?,
                event: event(row, 3)?,
                time: Time::from_ms(row.get(4)?),
                expires: time(row, 5)?,
            };
            Ok((Fingerprint(row.get(0)?), receipt))
        })
        .optional()
}

/// The error for a row that follows a later one, or is missing.
pub(super) fn out_of_order() -> rusqlite::Error {
    damaged(0, io::Error::other("a message is missing, or in the place of another"))
}

/// The error for a column whose value the journal can't have written.
fn damaged(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}
