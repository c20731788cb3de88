"""Test files: SQL as psql reads it, split into statements, plus directives in `--@` comments.

Statements end at `;` outside quotes, dollar quotes, comments, parentheses and SQL-standard function bodies. After
`COPY ... FROM STDIN` the data follows up to a line with `\\.`. Directives (each on a line of its own) apply to the next
statement unless said otherwise:

    --@ any-order / ordered    how rows are compared (default: ordered iff there is an ORDER BY outside parentheses)
    --@ state                  of an error only the SQLSTATE is compared (which of several rows fails first is open)
    --@ shape                  columns, tag and errors are compared, values are not
    --@ smoke                  only success or SQLSTATE is compared
    --@ ignore                 run, compare nothing (clean-up)
    --@ params ["1", null]     extended protocol with these text parameters
    --@ binary                 extended protocol, results in binary
    --@ save NAME              keep the first value of the result (implies shape); ${NAME} stands for it later
    --@ prepare NAME           (protocol level) prepare the next statement under this name
    --@ execute NAME ["1"]     execute it; stands alone
    --@ session NAME           all that follows runs in this session (stands alone; the first is "main")
    --@ reconnect              close and reopen the current session; stands alone
    --@ pipeline / end         statements between run in one pipeline; both stand alone; `--@ sync` inside
    --@ message ... --@ end    the lines between are sent as one simple query message, whatever they hold
    --@ psql ARGUMENTS         run psql -X -c ARGUMENTS on both, compare the output; stands alone
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum


class Compare(StrEnum):
    """How much of an answer must be equal."""

    ALL = "all"
    STATE = "state"
    SHAPE = "shape"
    SMOKE = "smoke"
    NOTHING = "nothing"


class Action(StrEnum):
    """What an item does."""

    STATEMENT = "statement"
    EXECUTE = "execute"
    SESSION = "session"
    RECONNECT = "reconnect"
    PIPELINE = "pipeline"
    SYNC = "sync"
    END = "end"
    PSQL = "psql"


@dataclass
class Item:
    """One thing to do. `line` counts from 1."""

    action: Action
    text: str
    line: int
    compare: Compare = Compare.ALL
    ordered: bool = True
    params: list[str | None] | None = None
    binary: bool = False
    save: str | None = None
    prepare: str | None = None
    copy_data: bytes | None = None

    @property
    def counts(self) -> bool:
        """Is this a statement for the totals?"""
        return self.action in (Action.STATEMENT, Action.EXECUTE, Action.PSQL) and self.compare is not Compare.NOTHING


class ScriptError(ValueError):
    """A test file is malformed."""


_DOLLAR = re.compile(r"\$([A-Za-z_\x80-\uffff][A-Za-z0-9_\x80-\uffff]*)?\$")
_WORD = re.compile(r"[A-Za-z_\x80-\uffff][A-Za-z0-9_$\x80-\uffff]*")


@dataclass
class _Lexed:
    """A statement's end, its keywords at parenthesis depth 0, and whether it copies from the client."""

    end: int
    words: list[str] = field(default_factory=list)
    empty: bool = True


def _skip_quoted(text: str, i: int, escapes: bool) -> int:
    quote = text[i]
    i += 1
    while i < len(text):
        if escapes and text[i] == "\\":
            i += 2
        elif text[i] == quote:
            if i + 1 < len(text) and text[i + 1] == quote:
                i += 2
            else:
                return i + 1
        else:
            i += 1
    raise ScriptError("unterminated quoted string")


def _skip_comment(text: str, i: int) -> int:
    depth = 0
    while i < len(text):
        if text.startswith("/*", i):
            depth += 1
            i += 2
        elif text.startswith("*/", i):
            depth -= 1
            i += 2
            if depth == 0:
                return i
        else:
            i += 1
    raise ScriptError("unterminated comment")


def lex_statement(text: str, start: int) -> _Lexed:
    """Find the end (after `;`) of the statement that begins at or after `start`."""
    out = _Lexed(start)
    i, parens, bodies = start, 0, 0
    while i < len(text):
        c = text[i]
        if text.startswith("--", i):
            newline = text.find("\n", i)
            i = len(text) if newline < 0 else newline + 1
            continue
        if text.startswith("/*", i):
            i = _skip_comment(text, i)
            continue
        if c.isspace():
            i += 1
            continue
        if c == ";" and parens == 0 and bodies == 0:
            out.end = i + 1
            return out
        out.empty = False
        if c in "'\"":
            escapes = c == "'" and i > 0 and text[i - 1] in "eE" and (i < 2 or not (text[i - 2].isalnum()))
            i = _skip_quoted(text, i, escapes)
        elif c == "$" and (match := _DOLLAR.match(text, i)):
            close = text.find(match.group(0), match.end())
            if close < 0:
                raise ScriptError("unterminated dollar quote")
            i = close + len(match.group(0))
        elif match := _WORD.match(text, i):
            word = match.group(0).lower()
            if parens == 0:
                out.words.append(word)
                routine = out.words[0] == "create" and {"function", "procedure"} & set(out.words[:4])
                if routine and (word == "begin" or (bodies and word == "case")):
                    bodies += 1
                elif routine and word == "end" and bodies:
                    bodies -= 1
            i = match.end()
        else:
            parens += (c == "(") - (c == ")")
            i += 1
    out.end = len(text)
    return out


def _is_ordered(words: list[str]) -> bool:
    """Does the statement fix the order of its rows?"""
    pairs = set(itertools.pairwise(words))
    if ("order", "by") in pairs:
        return True
    return words[0] not in ("select", "with", "table", "insert", "update", "delete", "merge", "copy", "")


def parse_script(text: str) -> list[Item]:
    """All items of a test file, in order."""
    return list(_items(text))


def _items(text: str) -> Iterator[Item]:
    i = 0
    pending: dict[str, str] = {}
    while i < len(text):
        line_end = text.find("\n", i)
        line_end = len(text) if line_end < 0 else line_end
        line = text[i:line_end]
        if not line.strip() or (line.lstrip().startswith("--") and not line.startswith("--@")):
            i = line_end + 1
            continue
        number = text.count("\n", 0, i) + 1
        if line.startswith("--@"):
            name, _, rest = line[3:].strip().partition(" ")
            i = line_end + 1
            match name:
                case "session" | "reconnect" | "pipeline" | "sync" | "end" | "psql":
                    yield Item(Action(name), rest.strip(), number)
                case "message":
                    last = text.find("\n--@ end", i)
                    if last < 0:
                        raise ScriptError(f"line {number}: message without end")
                    yield Item(Action.STATEMENT, text[i:last], number)
                    i = text.find("\n", last + 1) + 1 or len(text)
                case "execute":
                    statement, _, params = rest.partition(" ")
                    ordered = "any-order" not in pending
                    compare = Compare.SHAPE if "shape" in pending else Compare.ALL
                    item = Item(Action.EXECUTE, statement, number, compare, ordered, _params(params))
                    item.binary = "binary" in pending
                    pending.clear()
                    yield item
                case (
                    "any-order"
                    | "ordered"
                    | "state"
                    | "shape"
                    | "smoke"
                    | "ignore"
                    | "params"
                    | "binary"
                    | "save"
                    | "prepare"
                ):
                    pending[name] = rest.strip()
                case _:
                    raise ScriptError(f"line {number}: unknown directive {name!r}")
            continue
        try:
            lexed = lex_statement(text, i)
        except ScriptError as error:
            raise ScriptError(f"line {number}: {error}") from None
        statement = text[i : lexed.end].strip()
        i = lexed.end
        if lexed.empty:
            continue
        item = _statement(statement, number, lexed.words, pending)
        pending = {}
        if lexed.words[:1] == ["copy"] and _copies_in(lexed.words):
            begin = text.find("\n", i) + 1
            close = re.compile(r"^\\\.$", re.MULTILINE).search(text, begin)
            if close is None:
                raise ScriptError(f"line {number}: COPY data without \\.")
            item.copy_data = text[begin : close.start()].encode()
            i = close.end()
        yield item


def _copies_in(words: list[str]) -> bool:
    return any(a == "from" and b == "stdin" for a, b in itertools.pairwise(words))


def _statement(text: str, line: int, words: list[str], pending: dict[str, str]) -> Item:
    ordered = _is_ordered(words or [""])
    if "any-order" in pending:
        ordered = False
    elif "ordered" in pending:
        ordered = True
    compare = Compare.ALL
    if "ignore" in pending:
        compare = Compare.NOTHING
    elif "smoke" in pending or words[:1] == ["explain"]:
        compare = Compare.SMOKE
    elif "shape" in pending or "save" in pending:
        compare = Compare.SHAPE
    elif "state" in pending:
        compare = Compare.STATE
    return Item(
        Action.STATEMENT,
        text,
        line,
        compare,
        ordered,
        _params(pending["params"]) if "params" in pending else None,
        "binary" in pending,
        pending.get("save"),
        pending.get("prepare"),
    )


def _params(text: str) -> list[str | None]:
    if not text.strip():
        return []
    values = json.loads(text)
    return [None if v is None else str(v) for v in values]
