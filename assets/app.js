// The page: messages from the hub fill the list, and the form sends messages.

import { connect } from './tabcast.js';

// How many of the latest messages the page shows at first, and how many older or newer ones it then reads in
// one step. Higher: a longer pause at each step. Lower: more pauses.
const HISTORY = 50;
const STEP = 100;
// The most rows in the list, and the most bytes and characters that they hold. The others are read again when
// the list is scrolled to them. Higher: more memory, and slower. Lower: they are read more often.
const ROWS = 500;
const BYTES = 32 << 20;
// How long rows are made before the browser shows them. Higher: less responsive. Lower: a burst takes longer.
const SLICE_MS = 8;
// What is longer is folded. Higher: one message pushes away more others. Lower: more is folded.
const CHARACTERS = 600;
const LINES = 10;
const JSON_CHARACTERS = 80;
// The most links in a text. Higher: a text of nothing but links takes longer to show. Lower: some are plain.
const LINKS = 500;
// The most rows that are read out at once. Higher: a burst is read out. Lower: what two say at once is not.
const SPOKEN_ROWS = 5;
// How near to an end of the list is at that end, and how near is the time to read on. Higher: it reads before
// anyone asks. Lower: the reader waits.
const AT_END = 48;
const NEAR_END = 200;

const element = (id) => document.getElementById(id);
const main = ['main'];
const named = new URLSearchParams(location.search).getAll('channel').filter(Boolean);
const channels = named.length ? named : main;
const isOneChannel = channels.length === 1 && !isPattern(channels[0]);
const hub = connect({ channel: channels, last: HISTORY });

// --- State ---

const status = element('status');
const STATES = {
  connecting: 'Connecting…',
  live: 'Live',
  shared: 'Live · shared through another tab',
  offline: 'Offline, trying again…',
};
const LOST = 'Some messages were no longer kept';
let why;

function show(state, reason) {
  why = state === 'offline' && reason;
  status.dataset.state = state;
  status.textContent = why ? `Offline: ${why}. Trying again…` : STATES[state];
  showEmpty();
}

// Says why the list is empty, and that there are no messages only if that is known.
function showEmpty() {
  const [title, text] = element('empty').children;
  let words = ['These messages can’t be shown now.', why];
  if (hub.connected) {
    words = latest
      ? ['No messages are kept.', 'New ones show here.']
      : ['No messages yet.', 'Send one, and every open tab and terminal sees it at once.'];
  } else if (hub.state === 'connecting') {
    words = ['Loading messages…', ''];
  } else if (!why) {
    words = ['The hub can’t be reached.', 'Messages show here once it is back.'];
  }
  [title.textContent, text.textContent] = words;
}

hub.on('tabcast:state', ({ state, reason, recovered }) => {
  show(state, reason);
  const messages = recovered === 1 ? '1 message' : `${recovered} messages`;
  if (hub.connected && recovered) receive({ note: `${messages} recovered` });
  hasConnected ||= hub.connected;
});
hub.on('tabcast:gap', () => receive({ note: LOST }));
hub.onAny((event, data, message) => receive(message));

// --- List ---

// The rows are of messages that follow each other, from the id `first` to the id `last`. A message that is
// received is next after `last`, unless `isCut`: then there are others between, which the page reads once the
// list is scrolled to its end.

const log = element('log');
const list = element('messages');
const newer = element('newer');
const older = element('older');
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: 'medium', hourCycle: 'h23' });
const calendar = new Intl.DateTimeFormat(undefined, { dateStyle: 'full', timeStyle: 'long' });
const dates = new Intl.DateTimeFormat(undefined, { dateStyle: 'full' });
// The row of each message in the list, by its id.
const rows = new Map();
let bytes = 0;
let first, last;
// What was received and has no row yet, and the rows of pending messages that were among it.
let arrived = [];
let leaving = [];
// The latest message that was received.
let latest;
let hasConnected = false;
let hasOlder = true;
let isCut = false;
let isReading = false;
// The ids of messages that were deleted during a read, whose answer may still have them.
const deleted = new Set();
let isAtEnd = true;
let frame, timer;
let unseen = 0;

// Takes a message, or a note that belongs between messages.
function receive(entry) {
  const { id, event, data } = entry;
  if (event === 'tabcast:deleted') remove(data.id);
  const own = takePending(entry);
  if (own) leaving.push(own.row);
  if (id) {
    latest = entry;
    if (document.hidden && hasConnected) unseen += 1;
  }
  arrived.push(entry);
  if (arrived.length >= 2 * ROWS) tooMany();
  plan();
}

// Leaves out all but the latest of what has arrived.
function tooMany() {
  if (isAtEnd && !isCut) {
    clear();
    arrived = arrived.slice(-ROWS);
  } else {
    isCut = true;
    arrived = [];
  }
}

function plan() {
  if (frame) return;
  frame = requestAnimationFrame(flush);
  // In case of a hidden tab, which has no animation frames.
  timer = setTimeout(flush, 250);
}

function flush() {
  cancelAnimationFrame(frame);
  clearTimeout(timer);
  frame = undefined;
  for (const row of leaving.splice(0)) drop(row);
  // A reader above the end keeps the rows, and reads the others on the way down.
  if (!isAtEnd && arrived.length && isFull(arrived.length)) isCut = true;
  if (isCut && arrived.length) newer.hidden = false;
  if (!isCut) add();
  else if (!isReading) arrived = [];
  date(list.firstElementChild);
  showTitle();
  showEmpty();
  look();
}

// Adds what has arrived at the end of the list, as much as there is time for.
function add() {
  if (!arrived.length) return;
  log.ariaLive = hub.connected && arrived.length <= SPOKEN_ROWS ? 'polite' : 'off';
  const end = performance.now() + SLICE_MS;
  const made = [];
  let count = 0;
  while (count < arrived.length && performance.now() < end) made.push(...rowsOf(arrived[count++]));
  append(made, arrived.splice(0, count));
  if (isAtEnd) toEnd();
  else newer.hidden = false;
  if (arrived.length) plan();
}

function append(made, entries) {
  list.append(...made);
  last = entries.findLast(({ id }) => id)?.id ?? last;
  first ??= entries.find(({ id }) => id)?.id;
  made.forEach(date);
  trim();
}

// Removes rows at the beginning of a list that is too long, or at its end.
function trim(isEnd) {
  const before = list.childElementCount;
  while (list.childElementCount > ROWS || (bytes > BYTES && list.childElementCount > 1)) {
    drop(isEnd ? list.lastElementChild : list.firstElementChild);
  }
  if (list.childElementCount === before) return;
  const kept = [...list.children].filter((row) => row.dataset.id);
  if (isEnd) {
    last = kept.at(-1)?.dataset.id;
    isCut = true;
  } else {
    first = kept[0]?.dataset.id;
    hasOlder = true;
    older.hidden = true;
  }
}

// Whether there is no room for so many rows more.
function isFull(more = 1) {
  return list.childElementCount + more > ROWS || bytes > BYTES;
}

function clear() {
  for (const row of [...list.children]) drop(row);
  first = last = undefined;
  hasOlder = true;
  older.hidden = true;
}

function drop(row) {
  bytes -= row.bytes ?? 0;
  row.bytes = 0;
  if (row.url) URL.revokeObjectURL(row.url);
  if (rows.get(row.dataset.id) === row) rows.delete(row.dataset.id);
  row.remove();
}

// Removes the message that was deleted at the hub.
function remove(id) {
  if (isReading) deleted.add(id);
  arrived = arrived.filter((entry) => entry.id !== id);
  const row = rows.get(id);
  if (row) drop(row);
}

// Reads the messages before the first row.
function readOlder() {
  const before = first;
  if (!before || !hasOlder) return;
  read({ before, limit: STEP }, 'Older', ({ messages }) => {
    if (first !== before) return;
    hasOlder = messages.length === STEP;
    first = messages[0]?.id ?? first;
    const made = messages.flatMap(rowsOf);
    const next = list.firstElementChild;
    list.prepend(...made);
    [...made, next].forEach(date);
    older.hidden = hasOlder || log.scrollHeight <= log.clientHeight;
    older.textContent = 'Nothing older is kept';
    trim(true);
  });
}

// Reads the messages after the last row, until they meet those that arrive.
function readNewer() {
  const after = last;
  if (isReading || !after) return;
  arrived = [latest];
  read({ after, limit: STEP }, 'Newer', ({ messages, gap }) => {
    if (last !== after || !isCut) return;
    const places = new Map(arrived.map(({ id }, place) => [id, place]));
    const end = messages.findLastIndex(({ id }) => places.has(id));
    if (end >= 0) messages = messages.slice(0, end + 1);
    isCut = end < 0 && messages.length > 0;
    arrived = isCut ? [] : arrived.slice(end < 0 ? 1 : places.get(messages[end].id) + 1);
    const entries = [...gap ? [{ note: LOST }] : [], ...messages];
    append(entries.flatMap(rowsOf), entries);
  });
}

// Asks the hub for history, and keeps the rows in sight where they are when the answer changes the list.
async function read(query, which, take) {
  if (isReading) return;
  isReading = true;
  try {
    const answer = await hub.history(query);
    // History is not read out.
    log.ariaLive = 'off';
    keepPlace(() => take(answer));
    plan();
  } catch (error) {
    older.hidden = false;
    older.textContent = `${which} messages can’t be read: ${error.message}`;
    hasOlder = false;
  }
  isReading = false;
  deleted.clear();
}

function keepPlace(change) {
  const top = log.getBoundingClientRect().top;
  const row = [...list.children].find((row) => row.getBoundingClientRect().bottom > top);
  // A date above its first line may come or go.
  const mark = row?.lastElementChild ?? row;
  const before = mark?.getBoundingClientRect().top;
  change();
  if (mark?.isConnected) log.scrollTop += mark.getBoundingClientRect().top - before;
}

function look() {
  const above = log.scrollTop;
  const below = log.scrollHeight - above - log.clientHeight;
  isAtEnd = below < AT_END;
  if (isAtEnd && !isCut) newer.hidden = true;
  if (isCut && below < NEAR_END) readNewer();
  // At the end of a full list, what is older would push out what is newest.
  else if (above < NEAR_END && !arrived.length && !(isAtEnd && isFull())) readOlder();
}

function toEnd() {
  log.scrollTop = log.scrollHeight;
}

// Shows the latest message, and leaves out what is between.
function toLatest() {
  if (isCut) {
    clear();
    isCut = false;
    arrived = latest ? [latest] : [];
  }
  isAtEnd = true;
  flush();
  toEnd();
}

log.addEventListener('scroll', look);
newer.addEventListener('click', () => { toLatest(); log.focus(); });
// Keeps the newest row in sight when a keyboard slides in, or a phone is turned.
new ResizeObserver(() => { if (isAtEnd) toEnd(); }).observe(log);

const baseTitle = channels === main ? 'tabcast' : `${channels.join(' ')} · tabcast`;

// With the number of messages that came while the page was hidden.
function showTitle() {
  document.title = unseen ? `(${unseen}) ${baseTitle}` : baseTitle;
}

document.addEventListener('visibilitychange', () => {
  unseen = 0;
  showTitle();
});

// --- Rows ---

// The row of a message or a note. A message may have one already, or be deleted.
function rowsOf(entry) {
  if (entry.note) return [noteRow(entry)];
  if (entry.event === 'tabcast:deleted' || deleted.has(entry.id) || rows.has(entry.id)) return [];
  const row = messageRow(entry);
  row.dataset.id = entry.id;
  rows.set(entry.id, row);
  return [row];
}

function messageRow({ channel, event, data, time }) {
  const row = copy('row');
  const [timeCell, dataCell] = row.children;
  const date = new Date(time);
  row.day = date.toDateString();
  timeCell.dateTime = time;
  timeCell.textContent = clock.format(date);
  timeCell.title = calendar.format(date);
  if (!isOneChannel || channel !== channels[0]) dataCell.before(make('span', 'name channel', channel));
  if (event !== 'message') dataCell.before(make('span', 'name event', event));
  row.bytes = fill(dataCell, row, data);
  bytes += row.bytes;
  return row;
}

function noteRow({ note }) {
  const row = copy('note');
  row.textContent = note;
  return row;
}

// Says the day above a row, if it is another than that of the row before, or for the first row than today.
function date(row) {
  if (!row?.day) return;
  let before = row.previousElementSibling;
  while (before && !before.day) before = before.previousElementSibling;
  const isOther = row.day !== (before?.day ?? new Date().toDateString());
  const shown = row.querySelector('.day');
  if (isOther && !shown) row.prepend(make('p', 'day', dates.format(new Date(row.day))));
  else if (!isOther) shown?.remove();
}

function copy(template) {
  return element(template).content.firstElementChild.cloneNode(true);
}

function make(name, className, text) {
  return Object.assign(document.createElement(name), { className, textContent: text });
}

// Shows data in a cell, and returns how many bytes or characters the row now holds.
function fill(cell, row, data) {
  const file = fileOf(data);
  if (file) return fillFile(cell, row, file);
  const isText = typeof data === 'string';
  const text = isText ? data : JSON.stringify(data);
  if (isText) fillText(cell, text);
  else fillJson(cell, data, text);
  return text.length;
}

function fillText(cell, text) {
  const start = cut(text);
  if (start === text) return cell.append(...linked(text));
  const part = make('p', 'start', '');
  part.append(...linked(start), '…');
  cell.append(part, foldOf(`All ${text.length.toLocaleString('en')} characters`, () => text));
}

function fillJson(cell, data, text) {
  cell.classList.add('code');
  const isShort = text.length <= JSON_CHARACTERS || typeof data !== 'object';
  cell.append(isShort ? text : foldOf(text.slice(0, 200), () => JSON.stringify(data, null, 2)));
}

// What is folded is made when it is unfolded. Most never is.
function foldOf(label, whole) {
  const fold = copy('fold');
  const [summary, cell] = fold.children;
  summary.textContent = label;
  fold.addEventListener('toggle', () => cell.replaceChildren(...fold.open ? linked(whole()) : []));
  return fold;
}

function fillFile(cell, row, file) {
  const url = row.url = URL.createObjectURL(file);
  const [, kind, form] = file.type.match(/^(\w+)\/([\w-]+)/) ?? [];
  const link = make('a', '', `${file.type || 'no type'}, ${size(file.size)}`);
  cell.append(Object.assign(link, { href: url, download: `message.${form ?? 'bin'}` }));
  if (kind !== 'image') return file.size;
  const picture = Object.assign(new Image(), { src: url, alt: 'Picture' });
  picture.addEventListener('error', () => picture.remove());
  picture.addEventListener('load', () => {
    keepPlace(() => picture.classList.add('shown'));
    if (isAtEnd) toEnd();
  });
  cell.append(picture);
  return file.size;
}

// Binary data as a Blob, and so a picture that is the text of a `data:` URL. Undefined for other data.
function fileOf(data) {
  if (data instanceof Blob) return data;
  if (data instanceof Uint8Array) return new Blob([data], { type: 'application/octet-stream' });
  if (typeof data !== 'string') return;
  const [url, type] = data.slice(0, 200).match(/^data:(image\/[\w.+-]+)[^,]*,/) ?? [];
  try {
    if (url) return new Blob([decodeURIComponent(data.slice(url.length))], { type });
  } catch {
    // It is text.
  }
}

function size(bytes) {
  return bytes < 1_000 ? `${bytes} bytes` : `${Math.round(bytes / 1_000).toLocaleString('en')} kB`;
}

// The beginning of a text that is too long.
function cut(text) {
  const start = text.slice(0, CHARACTERS).split('\n').slice(0, LINES).join('\n');
  if (start === text) return text;
  // Not between the two halves of a surrogate pair, nor within a link.
  return start.replace(/[\uD800-\uDBFF]$/, '').replace(/\bhttps?:\/\/\S*$/i, '');
}

// A text whose URLs are links. Invisible characters, which may turn a URL's direction, end it.
function* linked(text) {
  let end = 0;
  let count = 0;
  for (const { 0: found, index } of text.matchAll(/\bhttps?:\/\/[^\s<>"`\p{Cf}]+/giu)) {
    if (count++ === LINKS) break;
    let url = found.replace(/[.,:;!?'\]}]+$/, '');
    if (url.endsWith(')') && url.split(')').length > url.split('(').length) url = url.slice(0, -1);
    if (!URL.canParse(url)) continue;
    yield text.slice(end, index);
    yield Object.assign(make('a', '', url), { href: url, target: '_blank', rel: 'noopener noreferrer' });
    end = index + url.length;
  }
  yield text.slice(end);
}

// --- Form ---

const form = element('form');
const field = element('data');
const button = element('send');
const problem = element('problem');
const channel = element('channel');
const eventName = element('event');
const json = element('json');
const files = element('files');
// The messages that were sent and are not in the list yet: { key, row, id? }. Their rows are below the list.
const pending = new Set();
let sent;

form.addEventListener('submit', (submit) => {
  submit.preventDefault();
  const [to, name] = [channel.value.trim(), eventName.value];
  if (files.files.length) {
    for (const file of files.files) send(to, name, file);
    attach();
    return;
  }
  if (!field.value.trim()) return;
  let data = field.value;
  try {
    if (json.checked) data = JSON.parse(data);
  } catch (error) {
    problem.textContent = `This is no JSON: ${error.message}`;
    return;
  }
  // After one press too many: the message is on its way already.
  if (pending.has(sent) && sent.key === keyOf(to, name, data)) return;
  const typing = document.activeElement === field;
  send(to, name, data, field.value);
  // On a touch screen, focus brings up the keyboard. There the field only keeps a focus that it has.
  if (!typing && !matchMedia('(hover: hover)').matches) return;
  // The text stays, but is selected: Enter sends it again, typing replaces it.
  field.focus();
  field.select();
});
// Shift+Enter breaks the line. An input method uses Enter for itself.
field.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
// A press of the button does not take the focus, and a phone's keyboard, from the field.
button.addEventListener('mousedown', (event) => event.preventDefault());

async function send(channel, event, data, text) {
  const row = messageRow({ channel, event, data, time: new Date().toISOString() });
  const own = sent = { key: keyOf(channel, event, data), row };
  row.classList.add('pending');
  row.append(copy('waiting'));
  pending.add(own);
  element('pending').querySelector('.elsewhere')?.remove();
  element('pending').append(row);
  toLatest();
  problem.textContent = '';
  try {
    own.id = await hub.emit(event, data, { channel });
    row.classList.remove('pending');
    if (isShown(channel)) return;
    pending.delete(own);
    row.classList.add('elsewhere');
    row.lastElementChild.textContent = `Sent to ${channel}, which is not shown here`;
  } catch (error) {
    pending.delete(own);
    const reason = error.detail ?? error.message;
    if (text !== undefined && field.value === text) {
      // The text is in the field, where it can be put right.
      problem.textContent = reason;
      drop(row);
    } else {
      row.classList.replace('pending', 'refused');
      row.lastElementChild.textContent = `Not sent: ${reason}`;
    }
  }
}

// Finds the pending message that has arrived, and removes it from `pending`. Its id may be unknown yet: the
// message may arrive before the answer to its request.
function takePending({ id, channel, event, data }) {
  if (!id || !pending.size) return;
  const key = keyOf(channel, event, data);
  const own = [...pending].find((own) => (own.id ? own.id === id : own.key === key));
  pending.delete(own);
  return own;
}

function keyOf(channel, event, data) {
  const content = data instanceof Blob ? { type: data.type, size: data.size } : { data };
  return JSON.stringify([channel, event, content]);
}

// Whether the messages of a channel come to this page.
function isShown(name) {
  const tokens = name.split('.');
  return channels.some((pattern) => {
    const wanted = pattern.split('.');
    const isOpen = wanted.at(-1) === '>' && wanted.pop();
    const fits = isOpen ? tokens.length > wanted.length : tokens.length === wanted.length;
    return fits && wanted.every((token, place) => token === '*' || token === tokens[place]);
  });
}

function isPattern(name) {
  const wildcard = /(^|\.)(\*(\.|$)|>$)/;
  return wildcard.test(name);
}

// Takes files in place of the text, or none.
function attach(chosen) {
  if (chosen) files.files = chosen;
  else files.value = '';
  const { length } = files.files;
  if (length) element('options').open = true;
  element('detach').hidden = !length;
  field.disabled = length > 0;
  button.textContent = length > 1 ? `Send ${length} files` : length ? 'Send file' : 'Send';
}

files.addEventListener('change', () => attach(files.files));
element('detach').addEventListener('click', () => attach());
addEventListener('dragover', (event) => {
  if (event.dataTransfer.types.includes('Files')) event.preventDefault();
});
for (const kind of ['drop', 'paste']) {
  addEventListener(kind, (event) => {
    const { files } = event.dataTransfer ?? event.clipboardData;
    if (!files.length) return;
    event.preventDefault();
    attach(files);
  });
}

addEventListener('beforeunload', (event) => {
  if (pending.size && !hub.connected) event.preventDefault();
});

try {
  field.value = sessionStorage.getItem('data') ?? field.value;
  field.addEventListener('input', () => sessionStorage.setItem('data', field.value));
} catch {
  // This browser stores nothing. The text of the field does not outlive the page.
}

// --- Channels ---

const names = element('names');
// Also when the browser comes back to this page, and has kept what was typed before it left.
addEventListener('pageshow', () => {
  names.value = channels.join(' ');
  element('show').hidden = true;
});
names.addEventListener('input', () => {
  element('show').hidden = names.value.trim() === channels.join(' ');
});
element('channels').addEventListener('submit', (event) => {
  event.preventDefault();
  location.assign(location.pathname + channelQuery(names.value.trim().split(/\s+/)));
});
channel.value = channels[0];
channel.addEventListener('input', sayChannel);
sayChannel();

function sayChannel() {
  form.querySelector('label').textContent = `Message to ${channel.value}`;
}

function channelQuery(names) {
  const escape = (name) => encodeURIComponent(name).replaceAll("'", '%27');
  return String(names) === 'main' ? '' : `?${names.map((name) => `channel=${escape(name)}`).join('&')}`;
}

// --- Commands ---

const base = new URL('.', location).href;
const quoted = (url) => (url.includes('?') ? `'${url}'` : url);
const channelOption = channels.length > 1 ? channels : channels[0];
const options = channels === main ? '' : `{ channel: ${JSON.stringify(channelOption)} }`;
element('watch').textContent = `curl -N ${quoted(`${base}events${channelQuery(channels)}`)}`;
element('publish').textContent =
  `curl -d 'Hello World!' ${quoted(`${base}messages${channelQuery(channels.slice(0, 1))}`)}`;
element('snippet').textContent = `import { connect } from ${JSON.stringify(`${base}tabcast.js`)};
connect(${options}).on("message", (data) => console.log(data));`;

for (const button of document.querySelectorAll('.copy')) {
  const command = element(button.dataset.copies);
  // Over plain http on another machine's address, there is no clipboard.
  button.hidden = !navigator.clipboard;
  button.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(command.textContent);
      button.textContent = 'Copied';
      setTimeout(() => { button.textContent = 'Copy'; }, 2_000);
    } catch {
      getSelection().selectAllChildren(command);
    }
  });
}

// A phone has no room for the commands, unless they are asked for.
const commands = element('commands');
commands.open = matchMedia('(width >= 30rem)').matches;
try {
  commands.open = JSON.parse(localStorage.getItem('commands')) ?? commands.open;
  commands.firstElementChild.addEventListener('click', () => {
    localStorage.setItem('commands', !commands.open);
  });
} catch {
  // This browser stores nothing.
}

showTitle();
show(hub.state);
for (const part of document.querySelectorAll('#status, #empty, #channels, .scripted')) part.hidden = false;
