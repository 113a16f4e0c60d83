"A proxy on this machine that misbehaves when it is told to."
import base64
import hashlib
import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def error(code):
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>made up</Message></Error>".encode()


def flipped(body):
    "The body with one bit changed in its middle."
    out = bytearray(body)
    out[len(out)//2] ^= 1
    return bytes(out)


ANSWERS = dict(
    busy=(503, error('SlowDown')),
    failing=(500, b''),
    throttled=(429, b''),
    denied=(403, error('AccessDenied')),
    expired=(400, error('ExpiredToken')),
    babble=(200, b'<html>log in to the network'),
)


class Proxy:
    "Forwards to a port. `faults` are [kind, method, times]; requests with that method use them up."
    def __init__(self, port):
        self.target, self.port = port, 0
        self.faults, self.seen = [], []
        self.checks_md5 = False
        self.changed = threading.Condition()

    @property
    def url(self): return f'http://127.0.0.1:{self.port}'

    def start(self):
        self.ending = threading.Event()
        handler = type('Handler', (_Handler,), dict(proxy=self))
        self.server = ThreadingHTTPServer(('127.0.0.1', self.port), handler)
        self.server.daemon_threads, self.server.block_on_close = True, False
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=[.01], daemon=True).start()
        return self

    def stop(self):
        self.ending.set()
        self.server.shutdown(); self.server.server_close()

    def fault(self, kind, method, times=1):
        self.faults.append([kind, method, times])
        return self

    def take(self, method, path):
        with self.changed:
            self.seen.append((method, path))
            self.changed.notify_all()
            for o in self.faults:
                if o[1] == method and o[2] > 0:
                    o[2] -= 1
                    return o[0]

    def count(self, method): return sum(seen == method for seen, _ in self.seen)

    def wait_for(self, method, times=1):
        "Return when so many requests with this method have come."
        with self.changed: assert self.changed.wait_for(lambda: self.count(method) >= times, 120)


class _Handler(BaseHTTPRequestHandler):
    protocol_version, timeout = 'HTTP/1.1', 10
    def log_message(self, *args): pass

    def answer(self, status, headers, body, cut=None):
        length = len(body)
        self.send_response_only(status)
        for k, v in headers:
            if k.lower() == 'content-length' and self.command == 'HEAD': length = v
            if k.lower() not in ('content-length', 'connection', 'transfer-encoding'): self.send_header(k, v)
        self.send_header('Content-Length', length)
        self.send_header('Connection', 'close')
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body[:len(body)//2] if cut else body)
        if cut == 'stalled': self.proxy.ending.wait()

    def forward(self, body):
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ('expect', 'connection')}
        there = http.client.HTTPConnection('127.0.0.1', self.proxy.target, timeout=10)
        there.request(self.command, self.path, body, headers)
        res = there.getresponse()
        return res.status, res.getheaders(), res.read()

    def handle_one(self):
        self.close_connection = True
        kind = self.proxy.take(self.command, self.path)
        if kind == 'hangup': return
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        if kind in ANSWERS:
            status, text = ANSWERS[kind]
            return self.answer(status, [('Content-Type', 'application/xml')], text)
        if kind == 'silent': return self.proxy.ending.wait()
        if kind == 'damaged_up': body = flipped(body)
        if kind == 'cut_up':
            body = body[:len(body)//2]
            self.headers.replace_header('Content-Length', str(len(body)))
        md5 = self.headers.get('Content-MD5')
        if self.proxy.checks_md5 and md5 and base64.b64encode(hashlib.md5(body).digest()).decode() != md5:
            return self.answer(400, [], error('BadDigest'))
        status, headers, got = self.forward(body)
        if kind == 'lost_answer': return
        if kind == 'damaged_down': got = flipped(got)
        self.answer(status, headers, got, cut=kind if kind in ('short', 'stalled') else None)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one
