// The page: /events fills the list, the form POSTs to /messages.

// How much a newcomer is shown of what was said before.
const HISTORY = 50;
// Rows kept. More would slow the page, and the hub keeps history better.
const ROWS = 500;
// Longer text is cut, so that one message can't push away all others.
const CHARACTERS = 2_000;
// A batch above this is history or a burst, and is not read out row by row.
const SPOKEN_ROWS = 5;
// From an open stream to "Live": long enough for the history, or `tabcast:full`, to arrive first.
const SETTLE_MS = 200;
const FIRST_BACKOFF_MS = 1_000;
const LONGEST_BACKOFF_MS = 30_000;
// Then a request has failed: with too many tabs open, a browser holds it back for good.
const SEND_TIMEOUT_MS = 15_000;

const element = (id) => document.getElementById(id);

// --- Stream ---

const status = element('status');
let stream;
let cursor = '';
let full = false;
let backoff = FIRST_BACKOFF_MS;
let settling, rebuilding;

function connect() {
  clearTimeout(rebuilding);
  // A browser that reconnects by itself sends its cursor; a new EventSource has none.
  const position = cursor ? { last_event_id: cursor } : { last: HISTORY };
  stream = new EventSource(`/events?${new URLSearchParams({ format: 'message', ...position })}`);
  stream.onopen = () => { settling = setTimeout(live, SETTLE_MS); };
  stream.onmessage = (event) => {
    cursor = event.lastEventId || cursor;
    if (full) live();
    receive(event.data);
  };
  stream.addEventListener('tabcast:gap', (event) => {
    cursor = event.lastEventId || cursor;
    receive(GAP);
  });
  stream.addEventListener('tabcast:full', () => { full = true; lost(); });
  stream.onerror = () => {
    lost();
    // Told until the next try: if that doesn't reach the hub at all, that is the news.
    full = false;
    // After any answer but 200 the browser gives up for good.
    if (stream.readyState !== EventSource.CLOSED) return;
    // Jitter, so that a restart doesn't bring every tab back in the same instant.
    rebuilding = setTimeout(connect, backoff * (0.5 + Math.random() / 2));
    backoff = Math.min(backoff * 2, LONGEST_BACKOFF_MS);
  };
}

function revive() {
  if (stream.readyState === EventSource.CLOSED) connect();
}

function live() {
  full = false;
  backoff = FIRST_BACKOFF_MS;
  log.ariaLive = 'polite';
  show('live', 'Live');
}

function lost() {
  clearTimeout(settling);
  show('offline', full ? 'The hub is full, trying again' : 'Offline, trying again…');
}

function show(state, text) {
  status.dataset.state = state;
  status.textContent = text;
}

// --- List ---

const GAP = Symbol('gap');
const log = element('log');
const list = element('messages');
const newer = element('newer');
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: 'medium', hourCycle: 'h23' });
const calendar = new Intl.DateTimeFormat(undefined, { dateStyle: 'full', timeStyle: 'long' });
const shown = new Set();
let arrived = [];
let frame, timer;
let following = true;

function receive(entry) {
  arrived.push(entry);
  // Parsed only when drawn: what a burst pushes over the cap costs next to nothing.
  if (arrived.length >= 2 * ROWS) arrived = arrived.slice(-ROWS);
  if (frame) return;
  frame = requestAnimationFrame(flush);
  // A hidden tab has no animation frames.
  timer = setTimeout(flush, 250);
}

function flush() {
  cancelAnimationFrame(frame);
  clearTimeout(timer);
  frame = undefined;
  const batch = arrived.slice(-ROWS);
  arrived = [];

  const rows = new DocumentFragment();
  for (const entry of batch) {
    if (entry === GAP) rows.append(copy('gap'));
    else addRow(rows, JSON.parse(entry));
  }
  if (!rows.hasChildNodes()) return;
  if (status.dataset.state === 'live') log.ariaLive = batch.length > SPOKEN_ROWS ? 'off' : 'polite';
  list.append(rows);
  while (list.childElementCount > ROWS) {
    shown.delete(list.firstElementChild.dataset.id);
    list.firstElementChild.remove();
  }
  if (following) toEnd();
  else newer.hidden = false;
}

function addRow(rows, { id, event, data, time }) {
  // Never twice, whatever is sent again after a reconnect.
  if (shown.has(id)) return;
  shown.add(id);
  const row = copy('row');
  row.dataset.id = id;
  const [timeCell, eventCell, dataCell] = row.children;
  timeCell.dateTime = time;
  timeCell.textContent = clock.format(new Date(time));
  timeCell.title = calendar.format(new Date(time));
  eventCell.textContent = event === 'message' ? '' : event;
  dataCell.textContent = readable(data);
  dataCell.classList.toggle('code', typeof data !== 'string' || BINARY.test(beginning(data)));
  rows.append(row);
}

function copy(template) {
  return element(template).content.firstElementChild.cloneNode(true);
}

const BINARY = /^data:([^;,]+)[^,]*;base64,/;

// Longer than any media type the hub takes, and short enough to be looked at again and again.
const beginning = (text) => text.slice(0, 512);

function readable(data) {
  if (typeof data !== 'string') return cut(JSON.stringify(data), CHARACTERS);
  const [prefix, type] = beginning(data).match(BINARY) ?? [];
  if (!prefix) return cut(data, CHARACTERS);
  const padding = data.endsWith('==') ? 2 : Number(data.endsWith('='));
  const bytes = Math.floor((data.length - prefix.length - padding) * 3 / 4);
  const size = bytes < 1_000 ? `${bytes} bytes` : `${Math.round(bytes / 1_000)} kB`;
  return `${type}, ${size}\n${cut(data, 80)}`;
}

function cut(text, length) {
  if (text.length <= length) return text;
  // Never between the halves of a surrogate pair.
  const start = text.slice(0, length).replace(/[\uD800-\uDBFF]$/, '');
  return `${start}… (${text.length.toLocaleString('en')} characters)`;
}

function toEnd() {
  log.scrollTop = log.scrollHeight;
}

log.addEventListener('scroll', () => {
  // Within about a row of the end, the reader is at the end.
  following = log.scrollHeight - log.scrollTop - log.clientHeight < 48;
  if (following) newer.hidden = true;
});
newer.addEventListener('click', () => { toEnd(); log.focus(); });
// A keyboard that slides in, or a turned phone, must not push the newest out of sight.
new ResizeObserver(() => { if (following) toEnd(); }).observe(log);

// --- Form ---

const field = element('data');
const button = element('send');
const problem = element('problem');
// Names one message, however often it takes to send it.
let key;

element('form').addEventListener('submit', async (event) => {
  event.preventDefault();
  if (button.disabled || !field.value.trim()) return;
  const typing = document.activeElement === field;
  button.disabled = true;
  problem.textContent = await send(field.value);
  button.disabled = false;
  // On a touch screen, focus would bring up the keyboard: there it only stays where it is.
  if (!typing && !matchMedia('(hover: hover)').matches) return;
  field.focus();
  // Kept but selected: Enter sends it again, typing replaces it.
  if (!problem.textContent) field.select();
});
field.addEventListener('input', () => { key = undefined; });
// Focus, and with it a phone's keyboard, stays in the field.
button.addEventListener('mousedown', (event) => event.preventDefault());

// What went wrong, in words; empty if nothing did.
async function send(data) {
  key ??= crypto.getRandomValues(new Uint32Array(4)).join('-');
  try {
    const answer = await fetch('/messages', {
      method: 'POST',
      headers: { 'Content-Type': 'application/json', 'Idempotency-Key': key },
      body: JSON.stringify({ data }),
      signal: AbortSignal.timeout(SEND_TIMEOUT_MS),
    });
    // Without a clear answer the message may be kept: the key stays, and a retry can't double it.
    if (answer.status < 500) key = undefined;
    if (answer.ok) return '';
    const { detail, title } = await answer.json().catch(() => ({}));
    return detail || title || `The hub answered ${answer.status}`;
  } catch {
    return "The hub can't be reached";
  }
}

// --- Commands ---

for (const button of document.querySelectorAll('.copy')) {
  const command = element(button.dataset.copies);
  command.textContent = command.textContent.replace('http://127.0.0.1:3000', location.origin);
  // Plain http on another machine's address has no clipboard.
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

show('connecting', 'Connecting…');
status.hidden = element('empty').hidden = false;
connect();
// A page that is left may be cached for its return, and its stream with it: open, but unread.
addEventListener('pagehide', () => {
  stream.close();
  clearTimeout(settling);
  show('connecting', 'Connecting…');
});
addEventListener('pageshow', revive);
addEventListener('online', revive);
