"""A chat with a login of its own: python3 login.py KEYS HUB PORT, as in login.py keys.json http://127.0.0.1:3000 8000.

The hub is started with --keys KEYS --allow-origin http://127.0.0.1:8000. This program alone decides who is who.
"""
import base64, hmac, http.server, json, re, secrets, sys, time, urllib.parse

KEYS, HUB, PORT = sys.argv[1:]
KEY = json.load(open(KEYS))['keys'][0]
SECRET = base64.urlsafe_b64decode(KEY['k'] + '==')
USERS = {}  # Who has logged in, by a random cookie.
PAGE = '''<!doctype html><meta charset="utf-8"><title>Chat</title>
<form action="/login" method="post"><input name="user" placeholder="Your name"><button>Log in</button></form>
<input id="text" placeholder="A message"><ul id="list"></ul>
<script type="module">
  import { connect } from 'HUB/tabcast.js';
  const token = async () => (await fetch('/token')).text();
  const hub = connect('HUB', { channel: 'chat', last: 20, token });
  hub.on('message', (text) => list.append(Object.assign(document.createElement('li'), { textContent: text })));
  text.onchange = () => { hub.emit('message', text.value); text.value = ''; };
</script>'''.replace('HUB', HUB)

def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b'=').decode()

def token(user):
    """Whom the token is for, what they may do, and for how long: ten minutes, after which the page asks anew."""
    grants = {'subscribe': ['chat', f'user.{user}.>'], 'publish': ['chat']}
    claims = {'sub': user, 'iat': int(time.time()), 'exp': int(time.time()) + 600, 'tabcast': grants}
    parts = [{'alg': 'HS256', 'kid': KEY['kid']}, claims]
    text = '.'.join(encode(json.dumps(part).encode()) for part in parts)
    return text + '.' + encode(hmac.digest(SECRET, text.encode(), 'sha256'))

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, body='', **headers):
        self.send_response(status)
        for name, value in {'Content-Length': str(len(body.encode())), **headers}.items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        self.wfile.write(body.encode())

    def do_GET(self):
        cookie = re.search(r'login=([\w-]+)', self.headers.get('Cookie', ''))
        user = cookie and USERS.get(cookie[1])
        if self.path == '/token':
            return self.answer(200, token(user), Cache_Control='no-store') if user else self.answer(401)
        self.answer(200, PAGE, Content_Type='text/html')

    def do_POST(self):  # Here a real login checks a password.
        body = self.rfile.read(int(self.headers['Content-Length'])).decode()
        user = urllib.parse.parse_qs(body).get('user', [''])[0]
        if not re.fullmatch(r'[A-Za-z0-9_-]+', user):  # It becomes a part of a channel's name.
            return self.answer(422, 'letters and digits, please')
        USERS[login := secrets.token_urlsafe()] = user
        self.answer(303, Location='/', Set_Cookie=f'login={login}; HttpOnly; SameSite=Lax; Path=/')

server = http.server.ThreadingHTTPServer(('127.0.0.1', int(PORT)), Handler)
print(f'http://127.0.0.1:{server.server_port}', flush=True)
server.serve_forever()
