// A chat with a login of its own: node login.mjs KEYS HUB PORT, as in login.mjs keys.json http://127.0.0.1:3000 8000.
// The hub is started with --keys KEYS --allow-origin http://127.0.0.1:8000. This program alone decides who is who.
import { createHmac, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';

const [keys, hub, port] = process.argv.slice(2);
const [key] = JSON.parse(readFileSync(keys)).keys;
const users = new Map(); // Who has logged in, by a random cookie.
const page = `<!doctype html><meta charset="utf-8"><title>Chat</title>
<form action="/login" method="post"><input name="user" placeholder="Your name"><button>Log in</button></form>
<input id="text" placeholder="A message"><ul id="list"></ul>
<script type="module">
  import { connect } from '${hub}/tabcast.js';
  const token = async () => (await fetch('/token')).text();
  const hub = connect('${hub}', { channel: 'chat', last: 20, token });
  hub.on('message', (text) => list.append(Object.assign(document.createElement('li'), { textContent: text })));
  text.onchange = () => { hub.emit('message', text.value); text.value = ''; };
</script>`;

// Whom the token is for, what they may do, and for how long: ten minutes, after which the page asks anew.
function token(user) {
  const now = Math.floor(Date.now() / 1_000);
  const tabcast = { subscribe: ['chat', `user.${user}.>`], publish: ['chat'] };
  const parts = [{ alg: 'HS256', kid: key.kid }, { sub: user, iat: now, exp: now + 600, tabcast }];
  const text = parts.map((part) => Buffer.from(JSON.stringify(part)).toString('base64url')).join('.');
  return `${text}.${createHmac('sha256', Buffer.from(key.k, 'base64url')).update(text).digest('base64url')}`;
}

// Here a real login checks a password.
async function logIn(request, answer) {
  const body = await new Response(request).text();
  const user = new URLSearchParams(body).get('user') ?? '';
  // It becomes a part of a channel's name.
  if (!/^[A-Za-z0-9_-]+$/.test(user)) return answer(422, 'letters and digits, please');
  const login = randomUUID();
  users.set(login, user);
  answer(303, '', { Location: '/', 'Set-Cookie': `login=${login}; HttpOnly; SameSite=Lax; Path=/` });
}

createServer((request, response) => {
  const answer = (status, body, headers) => response.writeHead(status, headers).end(body);
  const user = users.get(request.headers.cookie?.match(/login=([\w-]+)/)?.[1]);
  if (request.method === 'POST') return logIn(request, answer);
  if (request.url !== '/token') return answer(200, page, { 'Content-Type': 'text/html' });
  if (!user) return answer(401);
  answer(200, token(user), { 'Cache-Control': 'no-store' });
}).listen(Number(port), '127.0.0.1', function () {
  console.log(`http://127.0.0.1:${this.address().port}`);
});
