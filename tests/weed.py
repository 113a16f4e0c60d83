"SeaweedFS, a real S3 server, on the loopback."
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PORTS = [f'{o}{p}' for o in ('master.port', 'volume.port', 'filer.port', 's3.port') for p in ('', '.grpc')]
PORTS += ['s3.port.iceberg', 's3.port.lance']                                # two servers would share them
PROGRAM = shutil.which('weed') or shutil.which('weed', path=str(Path(sys.executable).parent))

def free_ports(n):
    taken = [socket.socket() for _ in range(n)]
    for o in taken: o.bind(('127.0.0.1', 0))
    ports = [o.getsockname()[1] for o in taken]
    for o in taken: o.close()
    return ports

class Weed:
    "A server that keeps what it has when it is killed and started again."
    def __init__(self, folder):
        self.folder = Path(folder)
        credentials = [dict(accessKey='a', secretKey='b')]
        users = [dict(name='us', credentials=credentials, actions=['Admin', 'Read', 'Write', 'List'])]
        (self.folder/'users.json').write_text(json.dumps(dict(identities=users)))
        (self.folder/'data').mkdir()
        for last in (False, False, True):
            self.ports = dict(zip(PORTS, free_ports(len(PORTS))))
            try: return self.start()
            except AssertionError:
                if last or self.process.poll() is None: raise            # not a port that was taken meanwhile

    @property
    def url(self): return f"http://127.0.0.1:{self.ports['s3.port']}"

    def start(self):
        options = ['-ip=127.0.0.1', '-ip.bind=127.0.0.1', f'-dir={self.folder}/data', '-s3',
                   f'-s3.config={self.folder}/users.json', '-volume.max=200',
                   '-master.volumeSizeLimitMB=64',
                   *[f'-{k}={v}' for k, v in self.ports.items()]]
        with open(self.folder/'log', 'a') as log:
            self.process = subprocess.Popen([PROGRAM, 'server', *options], cwd=self.folder, stdout=log,
                                            stderr=log, start_new_session=True)
        end = time.time() + 300
        while not self.answers():
            assert self.process.poll() is None and time.time() < end, (self.folder/'log').read_text()[-2000:]
            time.sleep(.05)

    def answers(self):
        connection = http.client.HTTPConnection('127.0.0.1', self.ports['s3.port'], timeout=5)
        try:
            connection.request('GET', '/')
            return connection.getresponse().status > 0
        except (OSError, http.client.HTTPException): return False
        finally: connection.close()

    def kill(self):                                                          # it does not end otherwise
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
