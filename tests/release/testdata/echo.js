// echo.js URL: sends messages over WebSocket for two seconds, each when the one
// before has come back, then closes. Prints how many.
const { WebSocket } = require('ws');

const socket = new WebSocket(process.argv[2]);
const end = Date.now() + 2000;
let sent = 0;

function fail(why) {
  console.error(`after ${sent} messages: ${why}`);
  process.exit(1);
}

function send() {
  if (Date.now() >= end) {
    socket.close(1000);
    return;
  }
  socket.send(`message ${++sent} ${'x'.repeat(1000)}`);
}

socket.on('open', send);
socket.on('error', fail);
socket.on('message', (data) => {
  if (!data.toString().startsWith(`message ${sent} `)) fail(`got ${data}`);
  setTimeout(send, 50);
});
socket.on('close', (code) => {
  if (code !== 1000) fail(`closed with code ${code}`);
  console.log(sent);
});
