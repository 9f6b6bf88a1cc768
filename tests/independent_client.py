#!/usr/bin/env python3
"""Checks a running alarm digest service from outside: plain sockets, plain JSON, none of the service's code.

    python3 tests/independent_client.py --server 127.0.0.1:4222

Publishes alarms of two new users, asks for their digests, and compares what comes with what the README's rules say.
Prints `independent client: ok` and exits 0, or says what was expected and what came, and exits 1.

Never: a NATS library, TLS, a reconnect.
"""

import argparse
import json
import os
import re
import socket
import sys
import time
import uuid
from datetime import datetime, timedelta, timezone

CHANGED, SEND, DIGEST = "AlarmStatusChanged", "SendAlarmDigest", "AlarmDigest"

# Nothing proves to a client that the service has read its alarms: they may wait at another connection of the service
# than the request does. So it is given time before the first request, and asked again until all has come.
SETTLE_SECONDS = 0.5
ASK_AGAIN_SECONDS = 0.3
ANSWER_SECONDS = 20.0
SILENCE_SECONDS = 1.0


class Failed(Exception):
    pass


class Nats:
    """One connection. Protocol: lines of INFO, MSG, PING, PONG, +OK and -ERR; a MSG is followed by its payload."""

    def __init__(self, host, port):
        self.socket = socket.create_connection((host, port), timeout=10)
        self.received = b""
        self.messages = []
        line = self.line(time.monotonic() + 10)
        if line is None or not line.startswith(b"INFO "):
            raise Failed(f"expected INFO from {host}:{port}, came: {line}")
        options = {"verbose": False, "pedantic": True, "lang": "python", "version": "1", "protocol": 1,
                   "name": "independent client"}
        self.write(f"CONNECT {json.dumps(options)}\r\n".encode())
        self.flush()

    def subscribe(self, subject, sid):
        self.write(f"SUB {subject} {sid}\r\n".encode())

    def publish(self, subject, value):
        payload = json.dumps(value, ensure_ascii=False).encode()
        self.write(f"PUB {subject} {len(payload)}\r\n".encode() + payload + b"\r\n")

    def flush(self):
        """Returns when the server has read all that was written."""
        self.write(b"PING\r\n")
        deadline = time.monotonic() + 10
        while True:
            operation = self.operation(deadline)
            if operation is None:
                raise Failed("expected PONG, nothing came in 10 s")
            if operation == b"PONG":
                return

    def next_message(self, deadline):
        """The next payload, or None after the deadline."""
        while not self.messages:
            if self.operation(deadline) is None:
                return None
        return self.messages.pop(0)

    def operation(self, deadline):
        """Deals with one operation and returns its name, or None after the deadline."""
        line = self.line(deadline)
        if line is None:
            return None
        name = line.split(b" ")[0].upper()
        if name == b"MSG":
            self.messages.append(self.payload(int(line.split()[-1]), time.monotonic() + 10))
        elif name == b"PING":
            self.write(b"PONG\r\n")
        elif name not in (b"PONG", b"INFO", b"+OK"):
            raise Failed(f"expected MSG, PING, PONG, INFO or +OK, came: {line}")
        return name

    def line(self, deadline):
        while b"\r\n" not in self.received:
            if not self.read(deadline):
                return None
        line, self.received = self.received.split(b"\r\n", 1)
        return line

    def payload(self, size, deadline):
        while len(self.received) < size + 2:
            if not self.read(deadline):
                raise Failed(f"expected {size} bytes of payload, only {len(self.received)} came in 10 s")
        payload, end = self.received[:size], self.received[size:size + 2]
        if end != b"\r\n":
            raise Failed(f"expected CRLF after {size} bytes of payload, came: {end}")
        self.received = self.received[size + 2:]
        return payload

    def read(self, deadline):
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            return False
        self.socket.settimeout(seconds)
        try:
            received = self.socket.recv(65536)
        except socket.timeout:
            return False
        if not received:
            raise Failed("the server closed the connection")
        self.received += received
        return True

    def write(self, data):
        self.socket.settimeout(10)
        self.socket.sendall(data)


def instant(text):
    """RFC 3339 to (seconds since 1970, nanoseconds); UTC only, since that is what digests must hold."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|\+00:00)", text)
    if not match:
        raise Failed(f"expected an RFC 3339 time in UTC, came: {text!r}")
    seconds = datetime.fromisoformat(match[1]).replace(tzinfo=timezone.utc)
    return int(seconds.timestamp()), int((match[2] or "").ljust(9, "0"))


class Check:
    def __init__(self, nats):
        self.nats = nats
        # An hour ago: well within the time for which cleared alarms are remembered.
        self.start = datetime.now(timezone.utc).replace(microsecond=0) - timedelta(hours=1)

    def at(self, second, nanoseconds=None, offset_hours=0):
        """The text of a time so many seconds after the start, as a clock at that offset shows it."""
        local = self.start + timedelta(seconds=second, hours=offset_hours)
        fraction = "" if nanoseconds is None else f".{nanoseconds:09}"
        offset = f"{offset_hours:+03}:00" if offset_hours else "Z"
        return local.strftime("%Y-%m-%dT%H:%M:%S") + fraction + offset

    def change(self, user, alarm, status, changed_at):
        self.publish({"AlarmID": alarm, "UserID": user, "Status": status, "ChangedAt": changed_at})

    def publish(self, value):
        self.nats.publish(CHANGED, value)

    def expect(self, what, user, expected):
        """The digests of this user must hold `expected`, a list of (alarm, status, time), and then nothing more."""
        self.nats.flush()
        time.sleep(SETTLE_SECONDS)
        expected = [(alarm, status, instant(changed_at)) for alarm, status, changed_at in expected]
        came = []
        deadline = time.monotonic() + ANSWER_SECONDS
        while len(came) < len(expected) and time.monotonic() < deadline:
            came += self.ask(user, ASK_AGAIN_SECONDS)
        came += self.ask(user, SILENCE_SECONDS)
        # Several digests may share the work, so the order over all of them is not theirs to keep.
        if sorted(came) != sorted(expected):
            raise Failed(f"{what}\n  expected: {expected}\n  came:     {came}")

    def ask(self, user, seconds):
        """Asks once; all alarms that this user's digests tell within so many seconds."""
        self.nats.publish(SEND, {"UserID": user})
        deadline = time.monotonic() + seconds
        told = []
        while (payload := self.nats.next_message(deadline)) is not None:
            told += read_digest(payload, user)
        return told


def read_digest(payload, user):
    """The (alarm, status, instant) of one digest, in its order; none if it is another user's."""
    try:
        digest = json.loads(payload)
    except ValueError as error:
        raise Failed(f"expected a digest in JSON, came: {payload} ({error})") from None
    if not isinstance(digest, dict) or set(digest) != {"UserID", "ActiveAlarms"}:
        raise Failed(f"expected an object with UserID and ActiveAlarms, came: {digest}")
    if digest["UserID"] != user:
        return []
    alarms = digest["ActiveAlarms"]
    if not isinstance(alarms, list) or not alarms:
        raise Failed(f"expected at least one alarm in a digest, came: {digest}")
    for alarm in alarms:
        if not isinstance(alarm, dict) or set(alarm) != {"AlarmID", "Status", "LatestChangedAt"}:
            raise Failed(f"expected an object with AlarmID, Status and LatestChangedAt, came: {alarm}")
        if alarm["Status"] not in ("WARNING", "CRITICAL"):
            raise Failed(f"expected active alarms only, came: {alarm}")
    told = [(alarm["AlarmID"], alarm["Status"], instant(alarm["LatestChangedAt"])) for alarm in alarms]
    in_order = sorted(told, key=lambda alarm: (alarm[2], alarm[0].encode()))
    if told != in_order:
        raise Failed(f"expected the oldest alarm first, ties by AlarmID\n  expected: {in_order}\n  came:     {told}")
    return told


def run(nats):
    nats.subscribe(DIGEST, 1)
    check = Check(nats)
    user, other = str(uuid.uuid4()), f"Zoë's other id/{uuid.uuid4()}"
    at, change = check.at, check.change

    # The newer change comes first, the same change three times, and a clearing before what it clears.
    change(user, "disk", "CRITICAL", at(3))
    change(user, "disk", "WARNING", at(1))
    for _ in range(3):
        change(user, "fan", "WARNING", at(2))
    change(user, "net", "CLEARED", at(4))
    change(user, "net", "WARNING", at(0))
    # Field names as Go producers write them, an offset, nanoseconds.
    check.publish({"AlarmId": "cpu", "userid": user, "STATUS": "CRITICAL",
                   "changedat": at(2, 500_000_001, offset_hours=2)})
    check.publish({"Host": {"Name": "db1", "Tags": [1, None]}, "UserID": user, "AlarmID": "température",
                   "Status": "WARNING", "ChangedAt": at(2, 500_000_000, offset_hours=-5)})
    # Changed at the same instant.
    change(user, "tie b", "WARNING", at(5))
    change(user, "tie a", "WARNING", at(5, offset_hours=1))
    change(other, "disk", "WARNING", at(6))
    check.expect("the first digest", user, [
        ("fan", "WARNING", at(2)),
        ("température", "WARNING", at(2, 500_000_000)),
        ("cpu", "CRITICAL", at(2, 500_000_001)),
        ("disk", "CRITICAL", at(3)),
        ("tie a", "WARNING", at(5)),
        ("tie b", "WARNING", at(5)),
    ])
    check.expect("the other user's digest", other, [("disk", "WARNING", at(6))])

    # The same again, and what is older than what was told, is no news.
    change(user, "fan", "WARNING", at(2))
    change(user, "disk", "WARNING", at(2))
    check.expect("nothing new", user, [])

    # Another status is news, a later time alone is not. A cleared alarm is told when it is active again.
    change(user, "fan", "WARNING", at(10))
    change(user, "disk", "CLEARED", at(11))
    change(user, "cpu", "WARNING", at(12))
    change(user, "net", "WARNING", at(13))
    change(user, "load", "CRITICAL", at(9))
    check.expect("the second digest", user, [
        ("load", "CRITICAL", at(9)),
        ("cpu", "WARNING", at(12)),
        ("net", "WARNING", at(13)),
    ])

    # Active, told, cleared, active: told again, also when the clearing comes last.
    change(user, "disk", "CRITICAL", at(14))
    change(user, "fan", "CLEARED", at(7))
    check.expect("the third digest", user, [("fan", "WARNING", at(10)), ("disk", "CRITICAL", at(14))])
    check.expect("nothing new for the other user", other, [])


def main():
    parser = argparse.ArgumentParser(description="Checks a running alarm digest service from outside.")
    parser.add_argument("--server", metavar="HOST:PORT", default=os.environ.get("NATS_URL", "127.0.0.1:4222"),
                        help="the NATS server; default NATS_URL, else 127.0.0.1:4222")
    host, _, port = parser.parse_args().server.removeprefix("nats://").rpartition(":")
    if not host or not port.isdecimal():
        parser.error("--server must be HOST:PORT")
    try:
        run(Nats(host.strip("[]"), int(port)))
    except (Failed, OSError) as error:
        print(f"independent client: failed: {error}", file=sys.stderr)
        return 1
    print("independent client: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
