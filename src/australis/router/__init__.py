"""The session router: owns a client's socket until login, then hands it over or relays it.

A client connects here.  The router reads its startup packet, decides on admission, and connects to the query
processor's Unix socket with the client's own startup parameters and a one-time token.  The query processor's extension
(`postgres/session.c`) presents the token on `handover.sock` and receives the client's descriptor; from then on no byte
passes through this process.  TLS is ended here, and such a session is relayed.

What must hold: nothing that was not authenticated by the query processor's own SCRAM reaches a session; a connection to
the query processor never leaves without a token; memory and descriptors per connection are bounded, and so is the
number of connections.  The router keeps nothing durable.  If it dies, relayed sessions end and handed-over sessions go
on; if the query processor is gone, a client is told so (57P03) at once.
"""

from australis.router.config import RouterConfig
from australis.router.server import Router, RouterStatus

__all__ = ["Router", "RouterConfig", "RouterStatus"]
