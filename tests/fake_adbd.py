"""A phone for the real adb client: the daemon's side of adb's protocol, and an adb server of the tests' own.

The protocol is that of Android's `docs/dev/protocol.md`, `shell_protocol.h` and `file_sync_protocol.h`: packets of six
little-endian words, streams that wait for an OKAY after every write, shell v2 (exit code, stderr of its own), sync
(STAT, SEND, RECV). Commands run here, in /bin/sh, with `phone.work` as their temporary folder; what a phone has and
this machine has not (getprop, dumpsys) is a script in `phone.bin`.
"""

import os
import queue
import shutil
import socket
import stat
import struct
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest

__all__ = ["FakePhone", "adb", "phone"]

WORD = struct.Struct("<I")
HEADER = struct.Struct("<6I")
SHELL = struct.Struct("<BI")
SYNC = struct.Struct("<4sI")
VERSION, LARGEST = 0x01000001, 1 << 18
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)


def _word(name):
    return WORD.unpack(name)[0]


CNXN, OPEN, OKAY, WRTE, CLSE, AUTH = map(_word, (b"CNXN", b"OPEN", b"OKAY", b"WRTE", b"CLSE", b"AUTH"))


class FakePhone:
    """A daemon at `serial` (127.0.0.1:port). `mood`: ready, unauthorized (never accepts a key), silent (never answers)
    or old (without shell v2). `on_service` is called with the name of every service that is asked for, `on_file` with
    the path of every file that has arrived. `services` is all that was asked for, `said` all that commands printed.
    """

    def __init__(self, folder, mood="ready"):
        self.work, self.bin = folder / "work", folder / "bin"
        for path in (self.work, self.bin):
            path.mkdir(parents=True)
        self.mood, self.free_bytes = mood, None
        self.on_service = lambda name: None
        self.on_file = lambda path: None
        self.services, self.said = [], bytearray()
        self.environment = {"PATH": f"{self.bin}:{os.environ['PATH']}", "TMPDIR": str(self.work)}
        self._links = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.serial = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = f"adb:{self.serial}"
        threading.Thread(target=self._accept, daemon=True).start()

    def script(self, name, text):
        """A command of the phone."""
        file = self.bin / name
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)

    def left(self):
        return sorted(path.name for path in self.work.iterdir())

    def cut(self):
        """The cable is pulled: what runs goes on, and nothing it says arrives any more."""
        # A thread in accept() keeps a closed socket open; a shutdown wakes it.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for link in list(self._links):
            link.cut()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(self, connection)
            self._links.append(link)
            threading.Thread(target=link.serve, daemon=True).start()


class _Link:
    """One connection of the adb server."""

    def __init__(self, phone, connection):
        self.phone, self._socket = phone, connection
        self._sending = threading.Lock()
        self._streams = {}
        self.largest = 4096

    def cut(self):
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def send(self, command, first, second, data=b""):
        header = HEADER.pack(command, first, second, len(data), sum(data) & 0xFFFFFFFF, command ^ 0xFFFFFFFF)
        with self._sending:
            self._socket.sendall(header + data)

    def serve(self):
        try:
            while True:
                command, first, second, length, _, _ = HEADER.unpack(self._receive(HEADER.size))
                self._take(command, first, second, self._receive(length))
        except OSError:
            pass
        finally:
            for stream in list(self._streams.values()):
                stream.closed()
            self._socket.close()

    def _receive(self, count):
        data = bytearray()
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                raise ConnectionError
            data += part
        return bytes(data)

    def _take(self, command, first, second, data):
        if command in (CNXN, AUTH):
            self._greet(first, second)
        elif command == OPEN:
            stream = _Stream(self, local=len(self._streams) + 1, remote=first)
            self._streams[stream.local] = stream
            threading.Thread(target=self._serve, args=(stream, data.rstrip(b"\0").decode()), daemon=True).start()
        elif second in self._streams:
            stream = self._streams[second]
            if command == OKAY:
                stream.acknowledged.release()
            elif command == WRTE:
                stream.arrived.put(data)
                self.send(OKAY, stream.local, stream.remote)
            elif command == CLSE:
                stream.closed()

    def _greet(self, version, largest):
        if self.phone.mood == "silent":
            return
        if self.phone.mood == "unauthorized":
            self.send(AUTH, 1, 0, bytes(20))
            return
        self.largest = min(largest, LARGEST)
        features = "cmd" if self.phone.mood == "old" else "shell_v2,cmd"
        self.send(CNXN, VERSION, LARGEST, f"device::ro.product.model=Fake_Phone;features={features}".encode())

    def _serve(self, stream, name):
        self.phone.services.append(name)
        try:
            self.phone.on_service(name)
            kind, _, argument = name.partition(":")
            self.send(OKAY, stream.local, stream.remote)
            if kind.startswith("shell"):
                _Shell(self.phone, stream, "v2" in kind.split(",")).run(argument)
            elif kind == "sync":
                _serve_sync(self.phone, stream)
            self.send(CLSE, stream.local, stream.remote)
        except OSError:
            pass


class _Stream:
    def __init__(self, link, local, remote):
        self._link, self.local, self.remote = link, local, remote
        self.arrived, self.acknowledged = queue.Queue(), threading.Semaphore(0)
        self._rest, self._open = b"", True

    def closed(self):
        self._open = False
        self.arrived.put(None)
        self.acknowledged.release()

    def write(self, data):
        for start in range(0, len(data), self._link.largest):
            self._link.send(WRTE, self.local, self.remote, data[start : start + self._link.largest])
            self.acknowledged.acquire()
            if not self._open:
                raise ConnectionError

    def read(self, count):
        while len(self._rest) < count:
            data = self.arrived.get()
            if data is None:
                raise ConnectionError
            self._rest += data
        data, self._rest = self._rest[:count], self._rest[count:]
        return data


class _Shell:
    def __init__(self, phone, stream, v2):
        self._phone, self._stream, self._v2 = phone, stream, v2
        self._writing = threading.Lock()

    def run(self, command):
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if self._v2 else subprocess.STDOUT,
            cwd=self._phone.work,
            env=self._phone.environment,
        )
        threading.Thread(target=self._feed, args=(process.stdin,), daemon=True).start()
        outputs = ((process.stdout, STDOUT), (process.stderr, STDERR))
        pumps = [threading.Thread(target=self._pump, args=output, daemon=True) for output in outputs if output[0]]
        for pump in pumps:
            pump.start()
        for pump in pumps:
            pump.join()
        code = process.wait()
        if self._v2:
            self._say(EXIT, bytes([code & 255]))

    def _pump(self, source, kind):
        # Unbuffered, and closed as soon as nobody listens: the command then gets a broken pipe, as on a phone.
        with source:
            try:
                while data := os.read(source.fileno(), 1 << 16):
                    self._phone.said += data
                    self._say(kind, data)
            except OSError:
                pass

    def _say(self, kind, data):
        with self._writing:
            self._stream.write(SHELL.pack(kind, len(data)) + data if self._v2 else data)

    def _feed(self, target):
        try:
            with target:
                while self._v2:
                    kind, length = SHELL.unpack(self._stream.read(SHELL.size))
                    data = self._stream.read(length)
                    if kind == CLOSE_STDIN:
                        return
                    if kind == STDIN:
                        target.write(data)
                        target.flush()
        except OSError:
            pass


def _serve_sync(phone, stream):
    while True:
        kind, length = SYNC.unpack(stream.read(SYNC.size))
        if kind == b"QUIT":
            return
        argument = stream.read(length).decode()
        try:
            if kind == b"STAT":
                stream.write(b"STAT" + struct.pack("<3I", *_status(Path(argument))))
            elif kind == b"SEND":
                _receive_file(phone, stream, *argument.rsplit(",", 1))
                stream.write(SYNC.pack(b"OKAY", 0))
            elif kind == b"RECV":
                data = Path(argument).read_bytes()
                for start in range(0, len(data), 1 << 16):
                    part = data[start : start + (1 << 16)]
                    stream.write(SYNC.pack(b"DATA", len(part)) + part)
                stream.write(SYNC.pack(b"DONE", 0))
        except ConnectionError:
            raise
        except OSError as error:
            message = (error.strerror or str(error)).encode()
            stream.write(SYNC.pack(b"FAIL", len(message)) + message)


def _status(path):
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_mode, found.st_size, int(found.st_mtime)


def _receive_file(phone, stream, path, mode):
    data = bytearray()
    while True:
        kind, length = SYNC.unpack(stream.read(SYNC.size))
        if kind == b"DONE":
            break
        data += stream.read(length)
    if phone.free_bytes is not None and len(data) > phone.free_bytes:
        raise OSError(28, "No space left on device")
    Path(path).write_bytes(data)
    Path(path).chmod(stat.S_IMODE(int(mode)))
    phone.on_file(Path(path))


class AdbServer:
    """The real adb with a server, a port and keys of its own."""

    def __init__(self, folder):
        self._folder, self._phones = folder, 0
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.variables = {
            "ANDROID_ADB_SERVER_PORT": str(port),
            "HOME": str(folder),
            "ANDROID_SDK_HOME": str(folder),
            "ADB_MDNS": "0",
        }

    def run(self, *words):
        return subprocess.run(
            ["adb", *words], env={**os.environ, **self.variables}, capture_output=True, text=True, timeout=60
        )

    def attach(self, mood="ready"):
        self._phones += 1
        attached = FakePhone(self._folder / f"phone{self._phones}", mood)
        self.run("connect", attached.serial)
        return attached


@pytest.fixture
def adb(tmp_path_factory, monkeypatch):
    """A server without devices, which adb talks to in this test. Skips the test where there is no adb."""
    if shutil.which("adb") is None:
        pytest.skip("no adb here (Android's platform tools)")
    server = AdbServer(tmp_path_factory.mktemp("adb"))
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    yield server
    server.run("kill-server")


@pytest.fixture
def phone(adb):
    """A phone that is attached and ready."""
    attached = adb.attach()
    assert attached.mood == "ready"
    yield attached
    attached.cut()
