"""What runs in the hosts of the tests: `listen` prints each datagram it gets, `send ADDRESS TEXT` sends one, `serve`
echoes lines of one TCP connection, `talk ADDRESS` is its client, `clocks` prints real and monotonic time for
each line it gets."""

from __future__ import annotations

import socket
import sys
import time

PORT = 5000  # the namespace is ours alone


def main(what: str, *rest: str) -> None:
    match what:
        case "listen":
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
                listener.bind(("", PORT))
                print("ready", flush=True)
                while True:
                    print(listener.recv(100).decode(), flush=True)
        case "send":
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(rest[1].encode(), (rest[0], PORT))
        case "serve":
            with socket.create_server(("", PORT)) as server:
                print("ready", flush=True)
                connection, _ = server.accept()
                with connection, connection.makefile("rw") as lines:
                    for line in lines:
                        lines.write(line)
                        lines.flush()
        case "talk":
            with (
                socket.create_connection((rest[0], PORT), timeout=30) as connection,
                connection.makefile("rw") as lines,
            ):
                for line in sys.stdin:
                    lines.write(line)
                    lines.flush()
                    print(lines.readline(), end="", flush=True)
        case "clocks":
            for _ in rest or sys.stdin:
                time.sleep(0.001)  # must work whatever the clock says
                print(time.time(), time.monotonic(), flush=True)
        case _:
            raise SystemExit(f"unknown: {what}")


if __name__ == "__main__":
    main(*sys.argv[1:])
