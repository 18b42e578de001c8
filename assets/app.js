// The page: what the hub sends fills the list, and the form sends.

import { connect } from './tabcast.js';

// How much a newcomer is shown of what was said before.
const HISTORY = 50;
// Rows kept. More would slow the page, and the hub keeps history better.
const ROWS = 500;
// Longer text is cut, so that one message can't push away all others.
const CHARACTERS = 2_000;
// A batch above this is history or a burst, and is not read out row by row.
const SPOKEN_ROWS = 5;

const element = (id) => document.getElementById(id);
const hub = connect({ last: HISTORY });

// --- State ---

const status = element('status');
const STATES = {
  connecting: 'Connecting…',
  live: 'Live',
  shared: 'Live · shared through another tab',
  offline: 'Offline, trying again…',
};

function show(state, reason) {
  status.dataset.state = state;
  // The one reason a hub gives is that it is full.
  status.textContent = state === 'offline' && reason ? 'The hub is full, trying again' : STATES[state];
}

hub.on('tabcast:state', ({ state, reason, recovered }) => {
  show(state, reason);
  if (hub.connected && recovered) receive({ note: `${recovered === 1 ? '1 message' : `${recovered} messages`} recovered` });
});
hub.on('tabcast:gap', () => receive({ note: 'Some messages were no longer kept' }));
hub.onAny((event, data, message) => receive(message));

// --- List ---

const log = element('log');
const list = element('messages');
const newer = element('newer');
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: 'medium', hourCycle: 'h23' });
const calendar = new Intl.DateTimeFormat(undefined, { dateStyle: 'full', timeStyle: 'long' });
let arrived = [];
let leaving = [];
let frame, timer;
let following = true;

// A message, or a note that belongs in its place among them.
function receive(entry) {
  arrived.push(entry);
  const own = takePending(entry);
  if (own) leaving.push(own.row);
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
  const sent = leaving;
  arrived = [];
  leaving = [];

  log.ariaLive = hub.connected && batch.length <= SPOKEN_ROWS ? 'polite' : 'off';
  for (const row of sent) row.remove();
  list.append(...batch.map((entry) => (entry.note ? noteRow(entry) : messageRow(entry))));
  while (list.childElementCount > ROWS) list.firstElementChild.remove();
  if (following) toEnd();
  else newer.hidden = false;
}

function messageRow({ id, event, data, time }) {
  const row = copy('row');
  if (id) row.dataset.id = id;
  const [timeCell, eventCell, dataCell] = row.children;
  timeCell.dateTime = time;
  timeCell.textContent = clock.format(new Date(time));
  timeCell.title = calendar.format(new Date(time));
  eventCell.textContent = event === 'message' ? '' : event;
  dataCell.textContent = readable(data);
  dataCell.classList.toggle('code', typeof data !== 'string');
  return row;
}

function noteRow({ note }) {
  const row = copy('note');
  row.textContent = note;
  return row;
}

function copy(template) {
  return element(template).content.firstElementChild.cloneNode(true);
}

function readable(data) {
  if (typeof data === 'string') return cut(data);
  if (data instanceof Blob) return `${data.type}, ${size(data.size)}`;
  if (data instanceof Uint8Array) return size(data.length);
  return cut(JSON.stringify(data));
}

function size(bytes) {
  return bytes < 1_000 ? `${bytes} bytes` : `${Math.round(bytes / 1_000).toLocaleString('en')} kB`;
}

function cut(text) {
  if (text.length <= CHARACTERS) return text;
  // Never between the halves of a surrogate pair.
  const start = text.slice(0, CHARACTERS).replace(/[\uD800-\uDBFF]$/, '');
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
// Sent, but not in the list yet: below it, until they take their place. { data, row, id? }
const pending = new Set();
let latest;

element('form').addEventListener('submit', (event) => {
  event.preventDefault();
  // One press too many: it is on its way already.
  if (!field.value.trim() || (pending.has(latest) && latest.data === field.value)) return;
  const typing = document.activeElement === field;
  send(field.value);
  // On a touch screen, focus would bring up the keyboard: there it only stays where it is.
  if (!typing && !matchMedia('(hover: hover)').matches) return;
  // Kept but selected: Enter sends it again, typing replaces it.
  field.focus();
  field.select();
});
// Focus, and with it a phone's keyboard, stays in the field.
button.addEventListener('mousedown', (event) => event.preventDefault());

async function send(data) {
  const row = messageRow({ event: 'message', data, time: new Date().toISOString() });
  const own = latest = { data, row };
  row.classList.add('pending');
  row.append(copy('waiting'));
  pending.add(own);
  element('pending').append(row);
  toEnd();
  problem.textContent = '';
  try {
    own.id = await hub.emit('message', data);
    row.classList.remove('pending');
  } catch (error) {
    pending.delete(own);
    const reason = error.detail ?? error.message;
    if (field.value === data) {
      // Where it can be put right.
      problem.textContent = reason;
      row.remove();
    } else {
      row.classList.replace('pending', 'refused');
      row.lastElementChild.textContent = `Not sent: ${reason}`;
    }
  }
}

// A message that has arrived is no longer pending. Its id may not be known yet: the hub tells everyone at once.
function takePending({ id, event, data }) {
  const own = [...pending].find((own) => (own.id ? own.id === id : event === 'message' && own.data === data));
  pending.delete(own);
  return own;
}

addEventListener('beforeunload', (event) => {
  if (pending.size && !hub.connected) event.preventDefault();
});

try {
  field.value = sessionStorage.getItem('data') ?? field.value;
  field.addEventListener('input', () => sessionStorage.setItem('data', field.value));
} catch {
  // A browser that stores nothing: what was typed doesn't outlive the page.
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

show(hub.state);
status.hidden = element('empty').hidden = false;
