"""Programs that try to read, write, reach or harm what is not theirs. Each must be able to succeed when not boxed."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sandbox.harness import TRY, boxed, levels, loose, still_answers

from plaudit.sandbox import Level

at_each_level = levels()


@pytest.fixture
def token() -> str:
    return secrets.token_hex(16)


# --- reading ----------------------------------------------------------------------------------------------------------


@at_each_level
def test_files_outside_cannot_be_read(at: Level, tmp_path: Path, token: str) -> None:
    """A canary in another folder of /tmp, by its path, by `..`, by a link, and by listing its folder."""
    (tmp_path / f"name-{token}").write_text(token)
    canary = tmp_path / f"name-{token}"
    blind = f"import os\nprint(os.listdir({str(tmp_path)!r}))"
    code = f"""{TRY}
import os
attempt(lambda: open({str(canary)!r}).read())
attempt(lambda: open("../" * 30 + {str(canary)[1:]!r}).read())
os.symlink({str(canary)!r}, "link")
attempt(lambda: open("link").read())
attempt(lambda: os.link({str(canary)!r}, "hard") or open("hard").read())
attempt(lambda: __import__("shutil").copy({str(canary)!r}, "copy") and open("copy").read())
"""
    (tmp_path / "cwd").mkdir()
    assert loose(code, tmp_path / "cwd").decode().count(token) >= 4
    assert token in loose(blind, tmp_path).decode()
    outcome = boxed(code, at)
    assert outcome.stdout.count(b"refused") == 5 and token.encode() not in outcome.stdout + outcome.stderr
    assert token.encode() not in boxed(blind, at).stdout
    still_answers(at)


@at_each_level
@pytest.mark.parametrize("path", ["/etc/passwd", "/etc/hostname", __file__, "~/.profile", "/proc/self/mounts"])
def test_well_known_files_cannot_be_read(at: Level, path: str, tmp_path: Path) -> None:
    real = os.path.expanduser(path)
    code = TRY + f"attempt(lambda: len(open({real!r}, 'rb').read()))"
    if os.path.exists(real) and os.access(real, os.R_OK):
        assert b"RESULT" in loose(code, tmp_path)
    assert b"RESULT" not in boxed(code, at).stdout


@at_each_level
def test_our_sources_cannot_be_imported_from_a_checkout(at: Level) -> None:
    import plaudit

    source = plaudit.__file__
    if "site-packages" in source:
        pytest.skip("installed, not a checkout: programs may import what is installed")
    assert b"RESULT" not in boxed(TRY + f"attempt(lambda: open({source!r}).read())", at).stdout


@at_each_level
def test_secrets_of_the_environment_are_gone(
    at: Level, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str
) -> None:
    monkeypatch.setenv("API_KEY", token)
    code = f"""
import os
print(os.environ)
for pid in [*range(1, 40), os.getppid(), {os.getpid()}]:
    for name in ("environ", "cmdline", "maps"):
        try:
            print(open(f"/proc/{{pid}}/{{name}}", "rb").read())
        except OSError:
            pass
"""
    assert token.encode() in loose(code, tmp_path)
    assert token.encode() not in boxed(code, at).stdout


@at_each_level
def test_open_files_are_not_inherited(at: Level, tmp_path: Path, token: str) -> None:
    (tmp_path / "open").write_text(token)
    with open(tmp_path / "open") as file:
        os.set_inheritable(file.fileno(), True)
        outcome = boxed(
            "import os\nfor i in range(3, 256):\n  try: print(i, os.pread(i, 99, 0))\n  except OSError: pass", at
        )
    assert outcome.status == "ok" and outcome.stdout == b""


# --- the network ------------------------------------------------------------------------------------------------------


class Listener:
    """Counts what reaches our own loopback sockets."""

    def __init__(self, folder: Path) -> None:
        self.heard: list[str] = []
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.path, self.abstract = str(folder / "s"), f"\0plaudit-{secrets.token_hex(8)}"
        self.by_path, self.by_name = (self._unix(address) for address in (self.path, self.abstract))
        self.datagrams_path = str(folder / "d")
        self.datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.datagrams.bind(self.datagrams_path)
        self.streams = {"tcp": self.tcp, "path": self.by_path, "abstract": self.by_name}
        self.packets = {"udp": self.udp, "datagrams": self.datagrams}

    @staticmethod
    def _unix(address: str) -> socket.socket:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(address)
        listening.listen()
        return listening

    def take(self) -> set[str]:
        """What has arrived since, by name."""
        heard = set()
        for name, each in (self.streams | self.packets).items():
            each.settimeout(0.05)
            try:
                if name in self.streams:
                    each.accept()[0].close()
                else:
                    each.recv(99)
                heard.add(name)
            except TimeoutError:
                continue
        return heard

    def program(self) -> str:
        return (
            TRY
            + f"""
import socket
from socket import *
def connect(family, kind, address):
    s = socket(family, kind)
    s.settimeout(1)
    s.connect(address)
    s.send(b"x")
def from_a_pair(path):
    a, b = socketpair(AF_UNIX, SOCK_DGRAM)
    a.sendto(b"x", path)
attempt(lambda: connect(AF_INET, SOCK_STREAM, {self.tcp.getsockname()!r}))
attempt(lambda: connect(AF_INET, SOCK_DGRAM, {self.udp.getsockname()!r}))
attempt(lambda: connect(AF_UNIX, SOCK_STREAM, {self.path!r}))
attempt(lambda: connect(AF_UNIX, SOCK_STREAM, {self.abstract!r}))
attempt(lambda: from_a_pair({self.datagrams_path!r}))
"""
        )

    def close(self) -> None:
        for each in (self.streams | self.packets).values():
            each.close()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    listening = Listener(tmp_path)
    yield listening
    listening.close()


@at_each_level
def test_nothing_can_be_connected_to(at: Level, listener: Listener, tmp_path: Path) -> None:
    loose(listener.program(), tmp_path)
    assert listener.take() == {"tcp", "udp", "path", "abstract", "datagrams"}
    outcome = boxed(listener.program(), at)
    assert outcome.stdout.count(b"refused") == 5
    assert listener.take() == set()
    still_answers(at)


@at_each_level
def test_stream_pairs_still_work(at: Level) -> None:
    outcome = boxed("import socket; a, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))", at)
    assert outcome.stdout == b"b'x'\n"


# --- writing ----------------------------------------------------------------------------------------------------------


@at_each_level
def test_nothing_outside_can_be_written(at: Level, tmp_path: Path) -> None:
    """New files, truncation, removal, renaming, and overwriting the very test that judges."""
    victim, folder = tmp_path / "victim", tmp_path / "cwd"
    folder.mkdir()
    attacks = {
        "write": f"open({str(victim)!r}, 'w').write('bad')",
        "truncate": f"__import__('os').truncate({str(victim)!r}, 0)",
        "remove": f"__import__('os').remove({str(victim)!r})",
        "rename": f"__import__('os').rename({str(victim)!r}, {str(victim)!r} + '2')",
        "replace": f"open('mine', 'w').close() or __import__('os').replace('mine', {str(victim)!r})",
        "chmod": f"__import__('os').chmod({str(victim)!r}, 0o640)",
        "utime": f"__import__('os').utime({str(victim)!r}, (0, 0))",
        "folder": f"__import__('os').mkdir({str(tmp_path / 'new')!r})",
    }

    def state() -> list[object]:
        return [
            (p.name, p.stat().st_mode, p.stat().st_mtime, p.is_file() and p.read_text()) for p in tmp_path.iterdir()
        ]

    for name, attack in attacks.items():
        victim.write_text("good")
        os.chmod(victim, 0o666)
        before = state()
        outcome = boxed(TRY + f"attempt(lambda: {attack})", at)
        assert b"RESULT" not in outcome.stdout and state() == before, name
        loose(attack, folder)
        assert state() != before, f"{name} is no attack"
    still_answers(at)


@at_each_level
@pytest.mark.parametrize(
    "folder", ["/", "/usr", "/etc", "/dev", "/root", "/home", "/box", os.path.dirname(os.__file__)]
)
def test_system_folders_cannot_be_written(at: Level, folder: str) -> None:
    name = f"{folder}/plaudit-{secrets.token_hex(4)}"
    outcome = boxed(TRY + f"attempt(lambda: open({name!r}, 'w'))", at)
    assert b"RESULT" not in outcome.stdout and not os.path.exists(name)


@at_each_level
def test_the_temporary_folder_is_private(at: Level) -> None:
    name = f"plaudit-{secrets.token_hex(8)}"
    code = f"import os, tempfile; open(os.path.join(tempfile.gettempdir(), {name!r}), 'w').write('x'); print('wrote')"
    assert boxed(code, at).stdout == b"wrote\n"
    assert not os.path.exists(f"/tmp/{name}")
