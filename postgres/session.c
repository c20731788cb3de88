/*-------------------------------------------------------------------------
 *
 * session.c
 *	  Taking over a client's socket from the session router.
 *
 * The router accepts clients, checks admission and reads the startup packet.
 * Then it connects to the postmaster's Unix socket with the client's own
 * startup parameters plus one more, the one-time token.  This backend
 * presents the token on the router's hand-over socket and gets back either
 * the client's descriptor, which replaces the socket the backend was born
 * with, or the word "relay" and the client's address.  Then it authenticates
 * the client by password, as PostgreSQL itself does, and core goes on.
 *
 * What must hold:
 *	- Core has sent nothing to and read nothing from the client when the
 *	  descriptor changes.  It hasn't: a startup packet is the last thing a
 *	  client may send before it was asked for more (what an impatient client
 *	  sent nevertheless is still in the kernel's buffer of its own socket),
 *	  and pg_hba.conf says "local all all trust" for this path, so the first
 *	  message after the hook is the first of all.  A pending
 *	  NegotiateProtocolVersion is in libpq's send buffer and goes out on the
 *	  new socket, where it belongs.
 *	- "trust" is for the router and for maintenance only.  A connection with
 *	  a token is never let in without SCRAM, whatever the reply; one without
 *	  a token is let in only if its peer runs as our own user or as root.
 *	- The token never becomes a setting: it is taken out of the startup
 *	  parameters here, before they are applied.
 *
 * If the router doesn't know the token, is gone or doesn't answer in time,
 * the connection ends with FATAL 57P03 on the socket it came by; the router,
 * if it lives, passes that on.  If the router dies after the hand-over, the
 * session goes on: the control connection is only the router's way to see
 * the session's end.  If the client dies meanwhile, the first read says so.
 *
 * Messages on the hand-over socket (SOCK_SEQPACKET, one message each;
 * src/australis/router/handover.py is the other side):
 *
 *	backend -> router	"AUH1", 32 characters of token
 *	router -> backend	'H' and a descriptor (SCM_RIGHTS)
 *						'R', address, '\0', port, '\0'	(relay)
 *						'N' (no such token)
 *	backend -> router	'T' (taken; the router may close its descriptor)
 *
 * The connection then stays open and silent for the life of the backend.
 *
 * The socket is handover.sock in the run directory; of several routers, whose
 * tokens begin with "rNN", it is handover-NN.sock, a link to the router's own.
 *
 *-------------------------------------------------------------------------
 */
#include "australis.h"

#include <ctype.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/ip.h"
#include "libpq/auth.h"
#include "libpq/crypt.h"
#include "libpq/libpq.h"
#include "libpq/libpq-be.h"
#include "libpq/sasl.h"
#include "libpq/scram.h"
#include "miscadmin.h"
#include "postmaster/postmaster.h"
#include "replication/walsender.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/backend_startup.h"
#include "utils/backend_status.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/ps_status.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#define TOKEN_PARAMETER		"australis.session_token"
#define TOKEN_LENGTH		32
#define HANDOVER_SOCKET		"handover.sock"
#define HANDOVER_OF_ROUTER	"handover-%c%c.sock"	/* one of several */
#define HANDOVER_MAGIC		"AUH1"
#define HANDOVER_TIMEOUT	10000	/* ms, for the whole exchange */
#define CONNECT_RETRY		5		/* ms, while the router's backlog is full */

typedef struct HandoverReply
{
	char		kind;			/* 'H', 'R' or 'N' */
	pgsocket	client;			/* 'H' */
	char		host[NI_MAXHOST];	/* 'R' */
	char		service[NI_MAXSERV];	/* 'R' */
} HandoverReply;

static ClientAuthentication_hook_type previous_hook = NULL;

static void authenticate_session(Port *port, int status);

void
au_session_init(void)
{
	previous_hook = ClientAuthentication_hook;
	ClientAuthentication_hook = authenticate_session;
}

/*
 * Take the token out of the startup parameters; NULL if there is none.  Every
 * parameter of that name goes, so that none reaches the settings.
 */
static char *
take_token(Port *port)
{
	List	   *others = NIL;
	char	   *token = NULL;

	/* names and values alternate */
	for (int i = 0; i + 1 < list_length(port->guc_options); i += 2)
	{
		char	   *name = list_nth(port->guc_options, i);
		char	   *value = list_nth(port->guc_options, i + 1);

		if (pg_strcasecmp(name, TOKEN_PARAMETER) == 0)
		{
			if (token == NULL)
				token = value;
		}
		else
		{
			MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

			others = lappend(lappend(others, name), value);
			MemoryContextSwitchTo(old);
		}
	}
	port->guc_options = others;
	return token;
}

static void
router_unavailable(const char *what)
{
	ereport(FATAL,
			(errcode(ERRCODE_CANNOT_CONNECT_NOW),
			 errmsg("the session router is not available"),
			 errdetail_log("%s: %m", what)));
}

/* Wait for events on sock (or, with PGINVALID_SOCKET, for a little while). */
static void
wait_for(pgsocket sock, int events, TimestampTz deadline, const char *what)
{
	long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);

	if (left <= 0)
	{
		errno = ETIMEDOUT;
		router_unavailable(what);
	}
	if (sock == PGINVALID_SOCKET)
		left = Min(left, CONNECT_RETRY);
	else
		events |= WL_TIMEOUT;
	if (WaitLatchOrSocket(MyLatch, events | WL_LATCH_SET | WL_EXIT_ON_PM_DEATH,
						  sock, left, PG_WAIT_EXTENSION) & WL_LATCH_SET)
	{
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Connect to the hand-over socket of the router that issued this token: of
 * several, its first letters "rNN" say which.
 */
static pgsocket
connect_router(const char *token, TimestampTz deadline)
{
	struct sockaddr_un addr;
	pgsocket	sock;
	char		name[sizeof(HANDOVER_OF_ROUTER)];
	int			len;

	if (token[0] == 'r' && isdigit((unsigned char) token[1]) &&
		isdigit((unsigned char) token[2]))
		snprintf(name, sizeof(name), HANDOVER_OF_ROUTER, token[1], token[2]);
	else
		strlcpy(name, HANDOVER_SOCKET, sizeof(name));
	memset(&addr, 0, sizeof(addr));
	addr.sun_family = AF_UNIX;
	len = snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/%s",
				   au_run_directory ? au_run_directory : "", name);
	if (len >= (int) sizeof(addr.sun_path))
	{
		errno = ENAMETOOLONG;
		router_unavailable("could not connect to the session router");
	}

	/* the session's whole life: not one of fd.c's short-lived files */
	ReserveExternalFD();
	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (sock == PGINVALID_SOCKET)
		router_unavailable("could not create a socket");

	while (connect(sock, (struct sockaddr *) &addr, sizeof(addr)) < 0)
	{
		if (errno == EAGAIN)	/* its backlog is full */
			wait_for(PGINVALID_SOCKET, WL_TIMEOUT, deadline,
					 "could not connect to the session router");
		else if (errno != EINTR)
			router_unavailable("could not connect to the session router");
	}
	return sock;
}

static void
send_router(pgsocket sock, const char *data, int len, TimestampTz deadline)
{
	while (send(sock, data, len, MSG_NOSIGNAL) < 0)
	{
		if (errno == EAGAIN)
			wait_for(sock, WL_SOCKET_WRITEABLE, deadline,
					 "could not send to the session router");
		else if (errno != EINTR)
			router_unavailable("could not send to the session router");
	}
}

static void
receive_reply(pgsocket sock, HandoverReply *reply, TimestampTz deadline)
{
	char		data[1 + NI_MAXHOST + NI_MAXSERV];
	union
	{
		struct cmsghdr align;
		char		space[CMSG_SPACE(sizeof(int))];
	}			control;
	struct iovec iov = {.iov_base = data, .iov_len = sizeof(data) - 1};
	struct msghdr msg;
	struct cmsghdr *cmsg;
	ssize_t		len;

	for (;;)
	{
		memset(&msg, 0, sizeof(msg));
		msg.msg_iov = &iov;
		msg.msg_iovlen = 1;
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
		len = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
		if (len > 0)
			break;
		if (len == 0)
		{
			errno = ECONNRESET;
			router_unavailable("no answer from the session router");
		}
		if (errno == EAGAIN)
			wait_for(sock, WL_SOCKET_READABLE, deadline,
					 "no answer from the session router");
		else if (errno != EINTR)
			router_unavailable("could not receive from the session router");
	}
	data[len] = '\0';

	reply->kind = data[0];
	reply->client = PGINVALID_SOCKET;
	for (cmsg = CMSG_FIRSTHDR(&msg); cmsg != NULL; cmsg = CMSG_NXTHDR(&msg, cmsg))
	{
		if (cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS &&
			cmsg->cmsg_len == CMSG_LEN(sizeof(int)))
			memcpy(&reply->client, CMSG_DATA(cmsg), sizeof(int));
	}

	if (reply->kind == 'H' && reply->client != PGINVALID_SOCKET)
		return;
	if (reply->kind == 'R')
	{
		const char *host = data + 1;
		const char *service = host + strlen(host) + 1;

		if (service <= data + len)
		{
			strlcpy(reply->host, host, sizeof(reply->host));
			strlcpy(reply->service, service, sizeof(reply->service));
			return;
		}
	}
	if (reply->kind == 'N')
		ereport(FATAL,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 errmsg("the session router does not know this session")));
	ereport(FATAL,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("malformed answer from the session router")));
}

/*
 * Make client the socket of this backend.  What pq_init() does to an accepted
 * socket is done to this one; the descriptor's number stays, since others
 * (walsender, pg_stat) may have copied it.
 */
static void
replace_socket(Port *port, pgsocket client)
{
	if (!pg_set_noblock(client))
		ereport(FATAL,
				(errmsg("could not set socket to nonblocking mode: %m")));

	/* the set holds the old file; epoll forgets a file only with its last fd */
	FreeWaitEventSet(FeBeWaitSet);
	if (dup2(client, port->sock) < 0)
		ereport(FATAL,
				(errcode_for_socket_access(),
				 errmsg("could not take over the client's socket: %m")));
	close(client);
	if (fcntl(port->sock, F_SETFD, FD_CLOEXEC) < 0)
		elog(FATAL, "fcntl(F_SETFD) failed on socket: %m");

	FeBeWaitSet = CreateWaitEventSet(NULL, FeBeWaitSetNEvents);
	AddWaitEventToSet(FeBeWaitSet, WL_SOCKET_WRITEABLE, port->sock, NULL, NULL);
	AddWaitEventToSet(FeBeWaitSet, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(FeBeWaitSet, WL_POSTMASTER_DEATH, PGINVALID_SOCKET, NULL, NULL);

	port->raddr.salen = sizeof(port->raddr.addr);
	port->laddr.salen = sizeof(port->laddr.addr);
	if (getpeername(port->sock, (struct sockaddr *) &port->raddr.addr, &port->raddr.salen) < 0 ||
		getsockname(port->sock, (struct sockaddr *) &port->laddr.addr, &port->laddr.salen) < 0)
	{
		/* a client that is gone already: as silent as core is about those */
		if (errno == ENOTCONN)
			proc_exit(0);
		ereport(FATAL,
				(errcode_for_socket_access(),
				 errmsg("could not get the addresses of the client's socket: %m")));
	}

	if (port->laddr.addr.ss_family != AF_UNIX)
	{
		int			on = 1;

		if (setsockopt(port->sock, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) < 0 ||
			setsockopt(port->sock, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on)) < 0)
			ereport(FATAL,
					(errcode_for_socket_access(),
					 errmsg("could not set options of the client's socket: %m")));
		(void) pq_setkeepalivesidle(tcp_keepalives_idle, port);
		(void) pq_setkeepalivesinterval(tcp_keepalives_interval, port);
		(void) pq_setkeepalivescount(tcp_keepalives_count, port);
		(void) pq_settcpusertimeout(tcp_user_timeout, port);
	}
}

/*
 * A relayed client: keep the socket, but know whom it stands for.  The local
 * address stays that of the Unix socket, because core asks it whether TCP
 * options can be set.
 */
static void
set_relayed_address(Port *port, const HandoverReply *reply)
{
	struct addrinfo hints;
	struct addrinfo *found = NULL;

	if (reply->host[0] == '\0')
		return;					/* the client came by a Unix socket, too */

	memset(&hints, 0, sizeof(hints));
	hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
	hints.ai_socktype = SOCK_STREAM;
	if (pg_getaddrinfo_all(reply->host, reply->service, &hints, &found) != 0 || found == NULL)
		ereport(FATAL,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("malformed answer from the session router")));
	memset(&port->raddr, 0, sizeof(port->raddr));
	memcpy(&port->raddr.addr, found->ai_addr, found->ai_addrlen);
	port->raddr.salen = found->ai_addrlen;
	pg_freeaddrinfo_all(hints.ai_family, found);
}

/* Everything that core derived from the remote address, once more. */
static void
publish_address(Port *port)
{
	char		host[NI_MAXHOST] = "";
	char		service[NI_MAXSERV] = "";
	StringInfoData title;
	volatile PgBackendStatus *entry = MyBEEntry;
	int			failed;

	failed = pg_getnameinfo_all(&port->raddr.addr, port->raddr.salen,
								host, sizeof(host), service, sizeof(service),
								(log_hostname ? 0 : NI_NUMERICHOST) | NI_NUMERICSERV);
	if (failed != 0)
		ereport(WARNING,
				(errmsg_internal("pg_getnameinfo_all() failed: %s", gai_strerror(failed))));
	port->remote_host = MemoryContextStrdup(TopMemoryContext, host);
	port->remote_port = MemoryContextStrdup(TopMemoryContext, service);
	if (log_hostname && failed == 0 &&
		strspn(host, "0123456789.") < strlen(host) &&
		strspn(host, "0123456789ABCDEFabcdef:") < strlen(host))
		port->remote_hostname = port->remote_host;

	if (entry != NULL)
	{
		PGSTAT_BEGIN_WRITE_ACTIVITY(entry);
		memcpy(unvolatize(SockAddr *, &entry->st_clientaddr), &port->raddr, sizeof(SockAddr));
		if (port->remote_hostname)
			strlcpy(entry->st_clienthostname, port->remote_hostname, NAMEDATALEN);
		PGSTAT_END_WRITE_ACTIVITY(entry);
	}

	initStringInfo(&title);
	if (am_walsender)
		appendStringInfo(&title, "%s ", GetBackendTypeDesc(B_WAL_SENDER));
	appendStringInfo(&title, "%s ", port->user_name);
	if (port->database_name[0] != '\0')
		appendStringInfo(&title, "%s ", port->database_name);
	appendStringInfoString(&title, port->remote_host);
	if (port->remote_port[0] != '\0')
		appendStringInfo(&title, "(%s)", port->remote_port);
	init_ps_display(title.data);
	set_ps_display("authentication");
	pfree(title.data);

	if (log_connections & LOG_CONNECTION_RECEIPT)
		ereport(LOG,
				(errmsg("connection taken over from the session router: host=%s port=%s",
						port->remote_host, port->remote_port)));
}

/* SCRAM, as CheckPWChallengeAuth() in auth.c does it for "scram-sha-256". */
static int
check_password(Port *port, const char **logdetail)
{
	HbaLine    *hba = MemoryContextAlloc(TopMemoryContext, sizeof(HbaLine));
	char	   *secret;
	int			status;

	/* the line that let us come here says "trust"; SYSTEM_USER must not */
	*hba = *port->hba;
	hba->auth_method = uaSCRAM;
	port->hba = hba;

	/* no such role or no password: go through the motions all the same */
	secret = get_role_password(port->user_name, logdetail);
	status = CheckSASLAuth(&pg_be_scram_mech, port, secret, logdetail);
	if (secret == NULL && status == STATUS_OK)
		elog(FATAL, "authenticated without a password");
	if (status == STATUS_OK)
		set_authn_id(port, port->user_name);
	return status;
}

/* A connection without a token: only this machine's keepers of the cluster. */
static void
check_maintenance_peer(Port *port)
{
	uid_t		uid;
	gid_t		gid;

	if (getpeereid(port->sock, &uid, &gid) == 0 && (uid == geteuid() || uid == 0))
		return;
	ereport(FATAL,
			(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
			 errmsg("this socket is reserved for the cluster's own maintenance")));
}

/*
 * A session must not see catalogs from before the server's last stop: its
 * role, tables and everything else may still come from the DDL log (rule Q5).
 */
static void
wait_for_catalogs(void)
{
	Tau			acked;
	int64		n;

	if (!au_enabled)
		return;
	au_newest_snapshot(&acked, &n);
	au_ddl_wait_applied(n);
}

/* ClientAuthentication_hook: see the head of this file */
static void
authenticate_session(Port *port, int status)
{
	char	   *token = take_token(port);
	const char *logdetail = NULL;

	if (status == STATUS_OK)
		wait_for_catalogs();

	/* failed already, or by TCP: pg_hba.conf has decided */
	if (status != STATUS_OK || port->laddr.addr.ss_family != AF_UNIX)
	{
		if (previous_hook)
			previous_hook(port, status);
		return;
	}

	if (token == NULL)
		check_maintenance_peer(port);
	else
	{
		TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), HANDOVER_TIMEOUT);
		HandoverReply reply;
		pgsocket	router;

		if (strlen(token) != TOKEN_LENGTH)
			ereport(FATAL,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("malformed session token")));
		router = connect_router(token, deadline);
		send_router(router, psprintf("%s%s", HANDOVER_MAGIC, token),
					strlen(HANDOVER_MAGIC) + TOKEN_LENGTH, deadline);
		memset(&reply, 0, sizeof(reply));
		receive_reply(router, &reply, deadline);
		if (reply.kind == 'H')
			replace_socket(port, reply.client);
		else
			set_relayed_address(port, &reply);

		/*
		 * Should the router die now, it can't close its descriptor any more
		 * properly than by dying: no reason to end the session.
		 */
		while (send(router, "T", 1, MSG_NOSIGNAL) < 0 && errno == EINTR)
			CHECK_FOR_INTERRUPTS();
		publish_address(port);
		status = check_password(port, &logdetail);
	}

	if (previous_hook)
		previous_hook(port, status);

	/* core thinks the client is trusted: what auth_failed() does is up to us */
	if (status == STATUS_EOF)
		proc_exit(0);
	if (status != STATUS_OK)
		ereport(FATAL,
				(errcode(ERRCODE_INVALID_PASSWORD),
				 errmsg("password authentication failed for user \"%s\"", port->user_name),
				 logdetail ? errdetail_log("%s", logdetail) : 0));
}
