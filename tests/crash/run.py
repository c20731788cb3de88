"""One crash run: load, kill, heal, check, again.

After every kill the cluster must serve a write within HEAL_SECONDS (without restart of the others, where only a service
died); then the clients are brought to rest, the whole state is compared with what they were told, and they go on.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field

import psycopg

from tests.crash.check import Findings, State, check
from tests.crash.load import SCHEMA, Client
from tests.crash.victims import Victim, gone
from tests.fixtures.servers import CannotStart, Server

HEAL_SECONDS = 30.0


@dataclass
class Report:
    """What a run showed."""

    kills: Counter[str] = field(default_factory=Counter)
    heal_seconds: dict[str, list[float]] = field(default_factory=dict)
    not_healed: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    lost: int = 0
    ghosts: int = 0
    half: int = 0
    acknowledged: int = 0
    refused: int = 0
    unknown: int = 0
    unknown_committed: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return not (self.lost or self.ghosts or self.half or self.not_healed or self.findings)

    def __str__(self) -> str:
        kills = ", ".join(f"{t} {n}" for t, n in self.kills.items())
        lines = [
            f"crash: {sum(self.kills.values())} kills ({kills}) in {self.seconds:.0f} s: "
            f"{self.lost} acknowledged lost, {self.half} half-applied, {self.ghosts} refused but there, "
            f"{len(self.not_healed)} not healed",
            f"  transactions: {self.acknowledged} acknowledged, {self.refused} refused, {self.unknown} unknown "
            f"({self.unknown_committed} of them committed)",
            "  errors seen by clients: " + (", ".join(f"{s} {n}" for s, n in self.errors.most_common()) or "none"),
        ]
        for target, seconds in self.heal_seconds.items():
            ordered = sorted(seconds)
            lines.append(
                f"  healed after {target}: median {ordered[len(ordered) // 2]:.2f} s, most {ordered[-1]:.2f} s"
            )
        return "\n".join(lines + [f"  {x}" for x in self.not_healed + self.findings])


class Run:
    """A cluster under load."""

    def __init__(self, victim: Victim, server: Server, *, clients: int, seed: int) -> None:
        self.victim = victim
        self.server = server
        self.rng = random.Random(seed)
        self.report = Report()
        self.clients = [Client(n, lambda: self.server, seed) for n in range(clients)]

    def prepare(self) -> None:
        with self.server.connect() as connection:
            for statement in SCHEMA:
                connection.execute(statement.encode())

    def go(self, kills: int, targets: tuple[str, ...], *, say: bool = True) -> Report:
        started = time.monotonic()
        self.prepare()
        for client in self.clients:
            client.start()
        try:
            for number in range(kills):
                target = targets[number % len(targets)]
                time.sleep(self.rng.uniform(0.2, 1.2))  # load before the kill; its instant is the random variable
                self._kill_and_check(target)
                if say:
                    print(f"  kill {number + 1} of {kills}: {target}: {self._told()}", flush=True)
                if any(c.failure for c in self.clients) or self.report.not_healed:
                    break
        finally:
            for client in self.clients:
                client.stop()
            for client in self.clients:
                client.join(60)
        self._sum_up()
        self.report.seconds = time.monotonic() - started
        return self.report

    def _told(self) -> str:
        acknowledged = sum(c.counts.acknowledged for c in self.clients)
        unknown = sum(c.counts.unknown for c in self.clients)
        return (
            f"{acknowledged} acknowledged, {unknown} unknown, {self.report.lost} lost, {self.report.half} half-applied"
        )

    def _kill_and_check(self, target: str) -> None:
        deadline = time.monotonic() + HEAL_SECONDS
        while not (pids := self.victim.kill(target, self.rng)):
            if time.monotonic() > deadline:
                self.report.not_healed.append(f"no process {target} to kill")
                return
            time.sleep(0.02)  # it is being started: nothing to wait on
        self.report.kills[target] += 1
        killed = time.monotonic()
        # A postmaster ends all sessions when it learns of a killed backend: those that begin earlier prove nothing.
        if target == "backend" and not gone(pids, killed + HEAL_SECONDS):
            self.report.not_healed.append(f"after {target}: its postmaster has not noticed")
            return
        try:
            self.server = self.victim.revive(target)
        except CannotStart as error:
            self.report.not_healed.append(f"after {target}: {error}")
            return
        if not self._heal(killed + HEAL_SECONDS, target):
            return
        self.report.heal_seconds.setdefault(target, []).append(time.monotonic() - killed)
        for client in self.clients:
            client.pause()
        try:
            self._note(self.verify(), target)
        finally:
            for client in self.clients:
                client.resume()

    def _heal(self, deadline: float, target: str) -> bool:
        while True:
            try:
                with self.server.connect() as connection:
                    connection.execute("SET statement_timeout = '10s'")
                    connection.execute("UPDATE crash_probe SET n = n + 1")
                return True
            except psycopg.Error as error:
                if time.monotonic() > deadline:
                    self.report.not_healed.append(f"after {target}: no write within {HEAL_SECONDS:.0f} s: {error}")
                    return False
                time.sleep(0.02)  # polling a server that starts: nothing to wait on

    def verify(self) -> Findings:
        """The whole state against all outcomes; clients must be at rest."""
        return check(read_state(self.server), {c.number: dict(c.outcomes) for c in self.clients})

    def _note(self, findings: Findings, target: str) -> None:
        self.report.unknown_committed = findings.unknown_committed
        if findings.good:
            return
        self.report.lost = max(self.report.lost, len(findings.lost))
        self.report.half = max(self.report.half, len(findings.half))
        self.report.ghosts = max(self.report.ghosts, len(findings.ghosts))
        if len(self.report.findings) < 20:
            self.report.findings.append(f"after {target}: {findings}")

    def _sum_up(self) -> None:
        for client in self.clients:
            if client.failure is not None:
                self.report.findings.append(f"{client.name} failed: {client.failure!r}")
            self.report.acknowledged += client.counts.acknowledged
            self.report.refused += client.counts.refused
            self.report.unknown += client.counts.unknown
            self.report.errors.update(client.counts.errors)
        if not self.report.not_healed:
            self._note(self.verify(), "the last kill")


def read_state(server: Server) -> State:
    """All that the checker needs, in one snapshot."""
    with server.connect() as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        balances = connection.execute("SELECT id, balance FROM crash_account").fetchall()
        history = connection.execute("SELECT client, seq, src, dst, amount FROM crash_history").fetchall()
        log = connection.execute("SELECT key, version, client, seq FROM crash_log").fetchall()
        connection.execute("SET LOCAL enable_seqscan = off")
        by_index = connection.execute("SELECT src, sum(amount)::bigint FROM crash_history GROUP BY src").fetchall()
        connection.execute("COMMIT")
    return State(
        dict(balances),  # type: ignore[arg-type]
        history,  # type: ignore[arg-type]
        log,  # type: ignore[arg-type]
        dict(by_index),  # type: ignore[arg-type]
    )
