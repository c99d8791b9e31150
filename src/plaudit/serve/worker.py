"""The process behind process.py: reads its configuration from standard input, serves, and ends when that closes."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from typing import Any

from plaudit.errors import PlauditError


def main() -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    greet = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what rewards print must not be taken for the greeting
    given = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, args=(sys.stdin.fileno(),), daemon=True).start()

    def say(**words: Any) -> None:
        greet.write(json.dumps(words) + "\n")
        greet.flush()

    try:
        _serve(given, say)
    except PlauditError as error:
        say(error=str(error))
        sys.exit(2)


def _serve(given: dict[str, Any], say: Any) -> None:
    from plaudit.serve.config import need_web_server, read_mapping

    config = read_mapping(given["config"], "the worker's configuration")
    need_web_server()
    from plaudit.serve.server import run
    from plaudit.serve.service import make_service

    listener = socket.create_server(("127.0.0.1", 0))
    run(make_service(config), given["token"], listener, lambda port: say(port=port))


def _end_with_parent(stdin: int) -> None:
    while os.read(stdin, 4096):
        pass
    os._exit(0)  # at once: a reward that hangs must not outlive who asked for it


if __name__ == "__main__":
    main()
