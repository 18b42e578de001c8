// The page: messages from the hub fill the list, and the form sends messages.

import { connect } from './tabcast.js';

// How many of the latest messages the page shows at first.
const HISTORY = 50;
// The most rows in the list. More would slow the page, and the hub has the history.
const ROWS = 500;
// The most characters of a row's text. It is cut so that one message can't push away all others.
const CHARACTERS = 2_000;
// The most rows that are read out. More rows at once are history, or a burst.
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
  status.textContent = state === 'offline' && reason ? `Offline: ${reason}. Trying again…` : STATES[state];
}

hub.on('tabcast:state', ({ state, reason, recovered }) => {
  show(state, reason);
  const messages = recovered === 1 ? '1 message' : `${recovered} messages`;
  if (hub.connected && recovered) receive({ note: `${messages} recovered` });
});
hub.on('tabcast:gap', () => receive({ note: 'Some messages were no longer kept' }));
hub.onAny((event, data, message) => {
  if (event === 'tabcast:deleted') remove(data.id);
  else receive(message);
});

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

// Takes a message, or a note that belongs between messages.
function receive(entry) {
  arrived.push(entry);
  const own = takePending(entry);
  if (own) leaving.push(own.row);
  if (arrived.length >= 2 * ROWS) arrived = arrived.slice(-ROWS);
  if (frame) return;
  frame = requestAnimationFrame(flush);
  // In case of a hidden tab, which has no animation frames.
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

// Removes the message that was deleted at the hub.
function remove(id) {
  arrived = arrived.filter((entry) => entry.id !== id);
  list.querySelector(`[data-id="${CSS.escape(id)}"]`)?.remove();
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
  // Not between the two halves of a surrogate pair.
  const start = text.slice(0, CHARACTERS).replace(/[\uD800-\uDBFF]$/, '');
  return `${start}… (${text.length.toLocaleString('en')} characters)`;
}

function toEnd() {
  log.scrollTop = log.scrollHeight;
}

log.addEventListener('scroll', () => {
  // The reader is at the end if there is less than about a row below.
  following = log.scrollHeight - log.scrollTop - log.clientHeight < 48;
  if (following) newer.hidden = true;
});
newer.addEventListener('click', () => { toEnd(); log.focus(); });
// Keeps the newest row in sight when a keyboard slides in, or a phone is turned.
new ResizeObserver(() => { if (following) toEnd(); }).observe(log);

// --- Form ---

const field = element('data');
const button = element('send');
const problem = element('problem');
// The messages that were sent and are not in the list yet: { data, row, id? }. Their rows are below the list.
const pending = new Set();
let latest;

element('form').addEventListener('submit', (event) => {
  event.preventDefault();
  // After one press too many: the message is on its way already.
  if (!field.value.trim() || (pending.has(latest) && latest.data === field.value)) return;
  const typing = document.activeElement === field;
  send(field.value);
  // On a touch screen, focus brings up the keyboard. There the field only keeps a focus that it has.
  if (!typing && !matchMedia('(hover: hover)').matches) return;
  // The text stays, but is selected: Enter sends it again, typing replaces it.
  field.focus();
  field.select();
});
// A press of the button does not take the focus, and a phone's keyboard, from the field.
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
      // The text is in the field, where it can be put right.
      problem.textContent = reason;
      row.remove();
    } else {
      row.classList.replace('pending', 'refused');
      row.lastElementChild.textContent = `Not sent: ${reason}`;
    }
  }
}

// Finds the pending message that has arrived, and removes it from `pending`. Its id may be unknown yet: the
// message may arrive before the answer to its request.
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
  // This browser stores nothing. The text of the field does not outlive the page.
}

// --- Commands ---

for (const button of document.querySelectorAll('.copy')) {
  const command = element(button.dataset.copies);
  command.textContent = command.textContent.replace('http://127.0.0.1:3000/', new URL('.', location));
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

show(hub.state);
status.hidden = element('empty').hidden = false;
