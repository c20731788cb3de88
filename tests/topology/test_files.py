"""Files of users and roles: every mistake is one line that names file and key; the first map spreads tables."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from australis.config import ConfigError
from australis.control_plane.plan import CONFIG_FILE, OneMachine, instances, plan
from australis.control_plane.topology import (
    RoleConfig,
    TopologyFile,
    encode_role,
    first_map,
    identity_of,
    load_role,
    load_topology,
    parse_topology,
    replica_name,
)
from australis.keyspace import relation_id, relation_prefix, relation_range

CLUSTER = "0123456789abcdef0123456789abcdef"

MISTAKES = [
    ("nats = 2", "nats: invalid enum value 2, must be one of 0, 1, 3, 5"),
    ("adjudicators = 0", "adjudicators: expected int >= 1"),
    ("adjudicators = 65", "adjudicators: expected int <= 64"),
    ("shards = 1.5", "shards: expected int, got float"),
    ("shard = 4", 'unknown key "shard" (known keys: profile, nats, adjudicators,'),
    ('profile = "mysql"', "profile: invalid enum value 'mysql', must be one of postgres, dsql"),
    ('port = "5432"', "port: expected int, got str"),
    ("port = 65535\nrouters = 2", "port: 2 routers need ports up to 65536"),
    ("listen = []", "listen: expected array of length >= 1"),
    ('listen = [""]', "listen: expected hosts, got ''"),
    ("retention = inf", "retention: expected a number of seconds, got inf"),
    ("clock = 1", "clock: expected object, got int"),
    ('[clock]\nsource = "ntp"', "clock.source: invalid enum value 'ntp', must be one of fixed, kernel, chrony"),
    ("[clock]\nmax_error = -1", "clock.max_error: expected float > 0"),
    ('[tls]\ncertificate = "c.pem"', "tls.key: missing: certificate and key belong together"),
    ("[tls]\nverify = true", 'tls: unknown key "verify" (known keys: internal, certificate, key)'),
    ("[journal]\nreplicas = 3", "journal.replicas: needs nats = 1, 3 or 5, or journal.servers"),
    ("nats = 3\n[journal]\nreplicas = 5", "journal.replicas: 5 replicas need as many servers, nats = 3"),
    ('nats = 1\n[journal]\nservers = ["nats://a:b@h:1"]\nsystem = "s:p"', "nats: 1 servers of the cluster's own"),
    ('[journal]\nservers = ["nats://a:b@h:1"]', "journal.system: missing: servers and the user of their system"),
    (
        'objects = "ftp://host/path"',
        "objects: 'ftp://host/path': an object store is file:///path or s3://bucket/prefix",
    ),
    ('objects = "s3://me:secret@bucket"', "objects: s3://bucket: credentials do not belong into the URL"),
    ('[journal]\nservers = ["http://h"]\nsystem = "s:p"', "journal.servers: expected nats://user:password@host:port"),
    ('nats = 1\n[journal]\nprefix = "a.b"', "journal.prefix: expected letters, digits, - and _"),
    ("[pool]\nmin = 3\nmax = 2", "pool: min = 3 is more than max = 2"),
    ("[pool]\nidle = inf", "pool: idle: expected a number of seconds, got inf"),
    ("[pool]\nmost = 3", 'pool: unknown key "most" (known keys: min, max, sessions, idle)'),
    ("query_processors = {min = 0}", "query_processors: expected int, got object"),
    ("[metrics]\nport = 70000", "metrics.port: expected int <= 65000"),
    ('[traces]\nendpoint = "here"', "traces.endpoint: expected a URL, got 'here'"),
    ("[traces]\nevery = 2", 'traces: missing key "endpoint"'),
    ("[postgresql]\nport = 1", "postgresql: port is set by Australis itself; remove it"),
    ('[postgresql]\n"a b" = 1', "postgresql: 'a b' is no name of a setting"),
    ("shards", "not valid TOML: "),
]


@pytest.mark.parametrize(("content", "expected"), MISTAKES, ids=[content for content, _ in MISTAKES])
def test_mistakes_of_users(content: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "topology.toml"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_topology(file)
    assert str(caught.value).startswith(f"{file}: {expected}")
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: no such file or directory"):
        load_topology(tmp_path / "none.toml")


def _plan(topology: TopologyFile, directory: Path) -> list[RoleConfig]:
    ports = iter(range(20000, 30000))
    place = OneMachine(
        topology,
        roles=directory / "roles",
        run=directory / "run",
        password=directory / "password",
        image=directory / "image.tar",
        port=5432,
        free_port=lambda: next(ports),
    )
    return plan(topology, CLUSTER, place, "secret")


def test_a_plan_is_what_roles_accept(tmp_path: Path) -> None:
    topology = TopologyFile(nats=3, adjudicators=3, crossbars=2, shards=4, replicas=2, query_processors=3, routers=2)
    configs = _plan(topology, tmp_path)
    names = [config.name for config in configs]
    assert len(set(names)) == len(names) == 3 + 1 + 3 + 2 + 8 + 3 + 2
    assert names == [one.name for one in instances(topology)]
    listening = [config.listen for config in configs if config.listen]
    assert len(set(listening)) == len(listening)
    for config in configs:
        file = tmp_path / CONFIG_FILE
        file.write_bytes(encode_role(config))
        assert load_role(file) == config
        assert identity_of(config).name == config.name
    servers = configs[0].journal.servers
    assert len(servers) == 3 and configs[0].journal.replicas == 3
    assert [config.port for config in configs if config.role == "router"] == [5432, 5433]


ROLE_MISTAKES: list[tuple[dict[str, object], str]] = [
    ({"cluster": "12"}, "cluster: expected 32 hexadecimal digits, got '12'"),
    ({"name": "a/b"}, "name: expected letters, digits"),
    ({"data": "relative"}, "data: expected an absolute path, got 'relative'"),
    ({"listen": ""}, "listen: role adjudicator needs an address"),
    ({"listen": "nowhere"}, "listen: expected host:port or unix:PATH, got 'nowhere'"),
    ({"map": ""}, "map: role adjudicator needs the first partition map"),
    ({"map": "zz"}, "map: not a partition map: "),
    ({"map": "90"}, "map: not a partition map: "),
    ({"number": 7}, "number: the map knows no adjudicator 7"),
    ({"number": -1}, "number: expected int >= 0"),
    ({"role": "storage"}, "name: the map knows no replica adjudicator-0 of shard 0"),
    ({"role": "king"}, "role: invalid enum value 'king', must be one of nats, control, adjudicator"),
    ({"surprise": 1}, 'unknown key "surprise" (known keys: cluster, role, name'),
    ({"journal": {"engine": "nats"}}, "journal.servers: engine nats needs servers"),
    ({"journal": {"engine": "kafka"}}, "journal.engine: invalid enum value 'kafka', must be one of files, nats"),
    ({"tls": {"ca": "x"}}, 'tls: missing key "certificate"'),
    ({"peers": {}}, "peers.adjudicators: no address of adjudicator 0, which the map names"),
    ({"metrics": "9400"}, "metrics: expected host:port or unix:PATH, got '9400'"),
]


@pytest.mark.parametrize(("change", "expected"), ROLE_MISTAKES, ids=[str(change) for change, _ in ROLE_MISTAKES])
def test_mistakes_of_roles(change: dict[str, object], expected: str, tmp_path: Path) -> None:
    config = next(one for one in _plan(TopologyFile(adjudicators=2), tmp_path) if one.role == "adjudicator")
    file = tmp_path / CONFIG_FILE
    file.write_bytes(msgspec.json.encode({**msgspec.to_builtins(config), **change}))
    with pytest.raises(ConfigError) as caught:
        load_role(file)
    assert str(caught.value).startswith(f"{file}: {expected}")
    assert "\n" not in str(caught.value)


def test_not_json(tmp_path: Path) -> None:
    file = tmp_path / CONFIG_FILE
    file.write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_role(file)
    with pytest.raises(ConfigError, match="no such file"):
        load_role(tmp_path / "none")


def test_the_first_map_spreads_what_is_made_first() -> None:
    owners = first_map(3, 4, 2)
    assert owners.system == 0
    assert owners.adjudicator(b"") == 0 and owners.shard(b"") == 0
    tables = [relation_id(5, 16384 + 6 * number) for number in range(60)]
    for find, count in ((owners.adjudicator, 3), (owners.shard, 4)):
        shares = [sum(find(relation_prefix(table)) == owner for table in tables) for owner in range(count)]
        assert min(shares) >= len(tables) // (2 * count), shares
    # a relation is one owner's at first
    for table in tables:
        assert len(owners.pieces(*relation_range(table))) == 1
    databases = {owners.adjudicator(relation_prefix(relation_id(16384 + number, 16384))) for number in range(9)}
    assert databases == {0, 1, 2}
    assert len(owners.keys) < 400
    assert owners.replicas[3] == (replica_name(3, 0), replica_name(3, 1))


def test_one_of_each_needs_no_ranges() -> None:
    owners = first_map(1, 1, 1)
    assert len(owners.keys) == len(owners.placement) == 1


def test_relative_paths_begin_at_the_file(tmp_path: Path) -> None:
    text = '[tls]\ncertificate = "c.pem"\nkey = "k.pem"\n'
    topology = parse_topology(text, tmp_path / "topology.toml")
    assert topology.tls.certificate == str(tmp_path / "c.pem")
