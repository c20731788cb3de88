"""`australis certs`: make the cluster's authority and the certificates of its processes; the work is in `certs.py`."""

from __future__ import annotations

import secrets
from pathlib import Path

import click

_PATH = click.Path(path_type=Path, file_okay=False)


@click.group()
def certs() -> None:
    """Certificates for mutual TLS between the processes of a cluster."""


@certs.command()
@click.option("--out", type=_PATH, required=True, help="Directory for ca.pem and ca.key; keep the key off the hosts.")
@click.option("--cluster", help="The cluster's id, 32 hex digits (default: a new one, printed).")
def init(out: Path, cluster: str | None) -> None:
    """Make the authority of a cluster."""
    from australis.certs import CertificateError, make_authority

    try:
        name = secrets.token_bytes(16) if cluster is None else bytes.fromhex(cluster)
    except ValueError:
        name = b""
    if len(name) != 16:
        raise CertificateError(f"--cluster: expected 32 hex digits, got {cluster!a}")
    make_authority(out, name)
    click.echo(name.hex())


@certs.command()
@click.argument("role")
@click.argument("name")
@click.option("--ca", type=_PATH, required=True, help="Directory of the authority.")
@click.option("--host", "hosts", multiple=True, required=True, help="Name or address of its host; may be repeated.")
@click.option("--out", type=_PATH, help="Where to write (default: beside the authority).")
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="How long it is valid.")
def issue(role: str, name: str, ca: Path, hosts: tuple[str, ...], out: Path | None, days: int) -> None:
    """Make key and certificate of the process NAME, which is a ROLE (adjudicator, storage, gateway ...)."""
    from australis.certs import describe
    from australis.certs import issue as make

    files = make(ca, role, name, hosts, out, days)
    click.echo(f"{files.certificate}: {describe(files.certificate)}")


@certs.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def show(files: tuple[Path, ...]) -> None:
    """Say whom certificates are for and until when they are valid."""
    from australis.certs import describe

    for file in files:
        click.echo(f"{file}: {describe(file)}")
