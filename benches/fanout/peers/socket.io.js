// Socket.IO over WebSocket: what is posted is emitted to every connected socket.
// Arguments: address, port.
const { createServer } = require('node:http');
const { Server } = require('socket.io');

const server = createServer((request, response) => {
  let body = '';
  request.setEncoding('utf8');
  request.on('data', (text) => (body += text));
  request.on('end', () => {
    const { data, channel } = JSON.parse(body);
    response.writeHead(201, { 'content-length': 0 }).end();
    if (channel) io.to(channel).emit('message', data);
    else io.emit('message', data);
  });
});

// No ping comes in between while ten thousand subscribers connect.
const io = new Server(server, { transports: ['websocket'], pingInterval: 600_000 });

// A publisher may wait long until all have its last message.
server.keepAliveTimeout = 600_000;

const [address, port] = process.argv.slice(2);
server.listen({ host: address, port: Number(port), backlog: 4096 });
