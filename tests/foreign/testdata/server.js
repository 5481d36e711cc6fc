// An ordinary socket-activated server: it listens on the descriptor that it was
// given, says when it does, and finishes what it has when it is told to stop.
const http = require('node:http');
const { execFile } = require('node:child_process');

const server = http.createServer((req, res) => res.end(`${process.pid}\n`));
server.listen({ fd: 3 }, () => execFile('systemd-notify', ['--ready']));
process.on('SIGTERM', () => server.close(() => process.exit(0)));
