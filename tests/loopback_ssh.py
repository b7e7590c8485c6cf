"""An ssh server of the tests' own on this machine: own port, keys and settings."""

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"

__all__ = ["Loopback", "free_port", "loopback", "serve"]


@dataclass(frozen=True)
class Loopback:
    url: str
    """With an alias that stands in ssh_config only."""
    port: int
    ssh_config: Path
    folder: Path
    work: Path
    """Where devices make their work folders."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serve(folder, **environment):
    """A server whose sessions have `environment`. Skips the test where OpenSSH's server is not installed."""
    if not Path(SSHD).exists() or shutil.which("ssh-keygen") is None:
        pytest.skip("no OpenSSH server here (openssh-server)")
    if os.geteuid() == 0:
        # Where a server that is started by root asks for it.
        Path("/run/sshd").mkdir(exist_ok=True)
    work, port = folder / "work", free_port()
    work.mkdir(parents=True)
    for key in ("host", "id", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    shutil.copy(folder / "id.pub", folder / "authorized_keys")
    values = {"PATH": os.environ["PATH"], "TMPDIR": str(work), **environment}
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "SetEnv " + " ".join(f'"{name}={value}"' for name, value in values.items()) + "\n"
    )
    public = (folder / "host.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public[0]} {public[1]}\n")
    (folder / "ssh_config").write_text(
        f"Host Board\n  HostName 127.0.0.1\n  Port {port}\n\nHost *\n  IdentityFile {folder}/id\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile none\n"
    )
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if server.poll() is not None:
                pytest.skip(f"the ssh server does not start here: {(folder / 'log').read_text().strip()[-200:]}")
            time.sleep(0.05)
        yield Loopback("ssh://Board", port, folder / "ssh_config", folder, work)
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def loopback(tmp_path_factory, monkeypatch):
    with serve(tmp_path_factory.mktemp("ssh")) as server:
        monkeypatch.setenv("DSPKD_SSH_CONFIG", str(server.ssh_config))
        yield server
