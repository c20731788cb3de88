"""The configuration file: each mistake is one line that names file and key."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from australis.config import FILE_NAME, Config, ConfigError, load


def write(directory: Path, text: str) -> None:
    (directory / FILE_NAME).write_text(text)


def test_no_file_means_defaults(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUSTRALIS_STORAGE_DRIVER", raising=False)
    assert load(directory) == Config()


def test_all_keys(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUSTRALIS_STORAGE_DRIVER", raising=False)
    write(
        directory,
        'port = 6000\nlisten = ["127.0.0.1"]\nconnections = 50\nstorage_driver = "socket"\nretention = 60\n'
        'handover = false\nlog_level = "debug"\n[tls]\ncertificate = "a"\nkey = "b"\n[postgresql]\nwork_mem = "8MB"\n',
    )
    config = load(directory)
    assert config.port == 6000 and config.storage_driver == "socket" and config.tls is not None
    assert config.postgresql == {"work_mem": "8MB"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prot = 1", 'unknown key "prot" (known keys: port, listen'),
        ('port = "5432"', "port: expected int"),
        ("port = 70000", "port: expected"),
        ("port = 54", None),
        ("listen = []", "listen: expected array of length >= 1"),
        ('storage_driver = "fast"', "storage_driver: invalid enum value"),
        ('[tls]\ncertificate = "x"', "missing required field"),
        ('[tls]\ncert = "x"', "tls"),
        ("[postgresql]\nfsync = true", "[postgresql] fsync is set by Australis itself"),
        ("[postgresql]\nwork_mem = [1]", "postgresql"),
        ("port = ", "not valid TOML"),
        ('listen = ["127.0.0.1\\u0000"]', "listen: expected printable text"),
        ('listen = [""]', "listen: expected printable text"),
        ('[tls]\ncertificate = "a\\u0000"\nkey = "b"', "[tls] certificate: expected printable text"),
        ("retention = inf", "retention: expected a number"),
        ("write_buffer_mb = 99999999999999999", "write_buffer_mb: expected"),
        ("[postgresql]\n'work mem' = 1", "is no name of a setting"),
        ('[postgresql]\nwork_mem = "8MB\\nfsync=off"', "control characters"),
        ('port = 54\nname = "', "not valid TOML"),
        ("[pool]\nmax = 17", "pool.max: expected"),
        ("[pool]\nmin = 3\nmax = 2", "[pool] min = 3 is more than max = 2"),
        ("[pool]\nmin = 5", "[pool] min = 5 is more than max = 4"),
        ("[pool]\nidle = 0", "pool.idle: expected"),
        ("[pool]\nidle = inf", "[pool] idle: expected a number of seconds"),
        ("[pool]\nsessions = 0", "pool.sessions: expected"),
        ("[pool]\nsize = 3", "known keys: min, max, sessions, idle)"),
        ("query_processors = 1\n[pool]\nmax = 2", "[pool] and query_processors exclude each other"),
        ("connections = 20\n[pool]\nsessions = 50", "[pool] sessions = 50 is more than connections = 20"),
        ('[journal]\nengine = "kafka"', "journal.engine: invalid enum value"),
        ('[journal]\nengine = "kafka"', "must be one of files, nats"),
        ("[journal]\nfoo = 1", "known keys: engine, servers"),
        ('[journal]\nservers = ["nats://a:b@127.0.0.1:1"]', '[journal] servers needs engine = "nats"'),
        ('[journal]\nengine = "nats"\nservers = ["http://x"]', "[journal] servers: expected nats://"),
        ('[journal]\nengine = "nats"\nservers = ["nats://a:b@127.0.0.1:1"]', "[journal] system is missing"),
        ('[journal]\nengine = "nats"\nreplicas = 3', "[journal] replicas = 3 needs servers"),
        ('[journal]\nengine = "nats"\nreplicas = 2', "journal.replicas: "),
        ('[journal]\nengine = "nats"\nstream = "a b"', "[journal] stream: expected letters"),
        ('[journal]\nengine = "nats"', None),
    ],
)
def test_mistakes(directory: Path, text: str, expected: str | None) -> None:
    write(directory, text)
    if expected is None:
        load(directory)
        return
    with pytest.raises(ConfigError) as error:
        load(directory)
    message = str(error.value)
    assert expected in message and FILE_NAME in message and "\n" not in message


def test_not_a_file(directory: Path) -> None:
    os.mkfifo(directory / FILE_NAME)
    with pytest.raises(ConfigError, match="not a regular file"):
        load(directory)


def test_not_text(directory: Path) -> None:
    (directory / FILE_NAME).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(directory)


def test_environment_wins(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(directory, 'storage_driver = "attached"')
    monkeypatch.setenv("AUSTRALIS_STORAGE_DRIVER", "socket")
    assert load(directory).storage_driver == "socket"
    monkeypatch.setenv("AUSTRALIS_STORAGE_DRIVER", "other")
    with pytest.raises(ConfigError, match="storage_driver"):
        load(directory)
