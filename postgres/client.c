/*-------------------------------------------------------------------------
 *
 * client.c
 *	  One connection per backend to each service of the cluster.
 *
 * A call is one framed message out and one back.  Whoever waits can be
 * cancelled: an error in the middle of a call marks the connection, and the
 * next call starts with a new one, so a late reply is never taken for the
 * answer to another request.  When a service is down, connecting is retried
 * until the service timeout and then reported as 57P03; what a lost
 * connection means for a request that was sent is the caller's business.
 *
 *-------------------------------------------------------------------------
 */
#include "australis.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "storage/waiteventset.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

/* longest answer: storage sends batches, the commit service a few lines */
static const uint32 max_frame[AU_NUM_SERVICES] = {1024 * 1024, 0x3fffffff};

/* message tags, docs/formats.md */
#define TAG_HELLO	1
#define TAG_ERROR	9

typedef struct Connection
{
	int			fd;
	WaitEventSet *events;		/* socket, latch, postmaster death */
	int			expected;		/* answers still to come: after an error, void */
	int64		generation;		/* from the service's Hello */
	uint64		number;			/* how many connections there were */
	StringInfoData in;
	int			consumed;		/* bytes of `in` already given out */
} Connection;

static Connection connections[AU_NUM_SERVICES] = {{.fd = -1}, {.fd = -1}};
static const char *const socket_names[AU_NUM_SERVICES] = {"commit.sock", "storage.sock"};
static const char *const service_names[AU_NUM_SERVICES] = {"commit service", "storage service"};
static uint32 wait_event = 0;

void
au_disconnect(AuService service)
{
	Connection *c = &connections[service];

	if (c->fd < 0)
		return;
	if (c->events)
	{
		FreeWaitEventSet(c->events);
		c->events = NULL;
	}
	close(c->fd);
	ReleaseExternalFD();
	c->fd = -1;
	c->expected = 0;
}

uint64
au_connection_number(AuService service)
{
	return connections[service].number;
}

int64
au_service_generation(AuService service)
{
	return connections[service].fd >= 0 ? connections[service].generation : -1;
}

/*
 * Wait until the socket is ready for `what`.  Returns false on timeout;
 * *cancelled is set (and true returned) when watch_cancel and a cancel is
 * pending.
 */
static bool
wait_socket(Connection *c, uint32 what, long timeout_ms, bool watch_cancel, bool *cancelled)
{
	WaitEvent	event;
	int			n;

	ModifyWaitEvent(c->events, 0, what, NULL);
	for (;;)
	{
		if (watch_cancel && (QueryCancelPending || ProcDiePending))
		{
			*cancelled = true;
			return true;
		}
		n = WaitEventSetWait(c->events, timeout_ms, &event, 1, wait_event);
		if (n == 0)
			return false;
		if (event.events & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
			continue;
		}
		return true;
	}
}

/* Send everything; false if the connection broke. */
static bool
send_all(Connection *c, const char *data, size_t len)
{
	while (len > 0)
	{
		ssize_t		n = send(c->fd, data, len, MSG_NOSIGNAL);
		bool		cancelled;

		if (n > 0)
		{
			data += n;
			len -= n;
		}
		else if (n < 0 && errno == EINTR)
			continue;
		else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		{
			if (!wait_socket(c, WL_SOCKET_WRITEABLE, au_service_timeout_ms, false, &cancelled))
				return false;
		}
		else
			return false;
	}
	return true;
}

static bool
send_frame(Connection *c, StringInfo request)
{
	uint32		len = request->len;
	struct iovec iov[2];
	struct msghdr msg = {0};
	ssize_t		n;

	/* length and body in one system call in the common case */
	iov[0].iov_base = &len;
	iov[0].iov_len = 4;
	iov[1].iov_base = request->data;
	iov[1].iov_len = request->len;
	msg.msg_iov = iov;
	msg.msg_iovlen = 2;
	do
		n = sendmsg(c->fd, &msg, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
	{
		if (errno != EAGAIN && errno != EWOULDBLOCK)
			return false;
		n = 0;
	}
	if (n < 4)
	{
		if (!send_all(c, (char *) &len + n, 4 - n))
			return false;
		n = 4;
	}
	return send_all(c, request->data + (n - 4), request->len - (n - 4));
}

static AuReceive
receive_frame(Connection *c, MpReader *reply, int timeout_ms, bool watch_cancel)
{
	instr_time	start,
				now;
	MemoryContext old;

	INSTR_TIME_SET_ZERO(start);

	/* drop the previous frame */
	if (c->consumed > 0)
	{
		memmove(c->in.data, c->in.data + c->consumed, c->in.len - c->consumed);
		c->in.len -= c->consumed;
		c->consumed = 0;
		/* one huge reply must not pin its memory for ever */
		if (c->in.maxlen > 8 * 1024 * 1024 && c->in.len < 4096)
		{
			char	   *rest = c->in.data;
			int			len = c->in.len;

			old = MemoryContextSwitchTo(TopMemoryContext);
			initStringInfo(&c->in);
			appendBinaryStringInfo(&c->in, rest, len);
			MemoryContextSwitchTo(old);
			pfree(rest);
		}
	}

	for (;;)
	{
		uint32		need = 4;
		ssize_t		n;
		bool		cancelled = false;
		long		remaining;

		if (c->in.len >= 4)
		{
			uint32		body;

			memcpy(&body, c->in.data, 4);
			if (body > max_frame[c - connections])
				return AU_LOST;
			need = 4 + body;
			if ((uint32) c->in.len >= need)
			{
				reply->p = (uint8 *) c->in.data + 4;
				reply->end = reply->p + body;
				c->consumed = need;
				return AU_RECEIVED;
			}
		}
		enlargeStringInfo(&c->in, Max(need - c->in.len, 8192));
		n = recv(c->fd, c->in.data + c->in.len, c->in.maxlen - c->in.len - 1, 0);
		if (n > 0)
		{
			c->in.len += n;
			continue;
		}
		if (n == 0)
			return AU_LOST;
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN && errno != EWOULDBLOCK)
			return AU_LOST;

		INSTR_TIME_SET_CURRENT(now);
		if (INSTR_TIME_IS_ZERO(start))
			start = now;
		INSTR_TIME_SUBTRACT(now, start);
		remaining = timeout_ms - (long) INSTR_TIME_GET_MILLISEC(now);
		if (remaining <= 0)
			return AU_TIMED_OUT;
		if (!wait_socket(c, WL_SOCKET_READABLE, remaining, watch_cancel, &cancelled))
			return AU_TIMED_OUT;
		if (cancelled)
			return AU_CANCEL;
	}
}

/* Read the message's tag; raise the error that an Error message carries. */
void
au_check_error(int service, const MpReader *reply)
{
	MpReader	r = *reply;
	uint32		n = au_mp_read_array(&r);
	Bytes		state,
				message;

	if (n < 1)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("empty message from the %s", service_names[service])));
	if (au_mp_read_int(&r) != TAG_ERROR || n < 3)
		return;
	state = au_mp_read_bin(&r);
	message = au_mp_read_bin(&r);
	ereport(ERROR,
			(errcode(state.len == 5 ? MAKE_SQLSTATE(state.data[0], state.data[1], state.data[2],
													state.data[3], state.data[4])
					 : ERRCODE_INTERNAL_ERROR),
			 errmsg("%.*s", (int) message.len, (const char *) message.data)));
}

static bool
is_hello(MpReader reply)
{
	return reply.end - reply.p >= 2 && (reply.p[0] & 0xf0) == 0x90 && reply.p[1] == TAG_HELLO;
}

/* One attempt; false if nobody answers within the time. */
static bool
try_connect(AuService service, int timeout_ms, bool raise)
{
	Connection *c = &connections[service];
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	StringInfoData hello;
	MpReader	reply;
	AuReceive	got;
	int			fd;

	if (strlen(au_run_directory) + strlen(socket_names[service]) + 2 > sizeof(addr.sun_path))
		ereport(ERROR, (errcode(ERRCODE_CONFIG_FILE_ERROR),
						errmsg("the path of the run directory \"%s\" is too long for a socket", au_run_directory)));
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/%s", au_run_directory, socket_names[service]);

	if (wait_event == 0)
		wait_event = WaitEventExtensionNew("AustralisService");
	if (!AcquireExternalFD())
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_RESOURCES),
						errmsg("too many open files to reach the %s", service_names[service])));
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *) &addr, sizeof(addr)) < 0)
	{
		if (fd >= 0)
			close(fd);
		ReleaseExternalFD();
		return false;
	}

	c->fd = fd;
	c->events = CreateWaitEventSet(NULL, 3);
	AddWaitEventToSet(c->events, WL_SOCKET_READABLE, fd, NULL, NULL);
	AddWaitEventToSet(c->events, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(c->events, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	if (c->in.data == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		initStringInfo(&c->in);
		MemoryContextSwitchTo(old);
	}
	resetStringInfo(&c->in);
	c->consumed = 0;
	c->expected = 1;

	initStringInfo(&hello);
	au_mp_array(&hello, 5);
	au_mp_int(&hello, TAG_HELLO);
	au_mp_int(&hello, 1);
	au_mp_bin(&hello, au_page_cluster(), 16);
	au_mp_str(&hello, "qp");
	au_mp_int(&hello, 0);
	if (!send_frame(c, &hello))
	{
		au_disconnect(service);
		return false;
	}
	got = receive_frame(c, &reply, timeout_ms, false);
	pfree(hello.data);
	if (got != AU_RECEIVED)
	{
		au_disconnect(service);
		return false;
	}
	if (!raise && !is_hello(reply))
	{
		au_disconnect(service);
		return false;
	}
	au_check_error(service, &reply);
	if (au_mp_read_array(&reply) < 5 || au_mp_read_int(&reply) != TAG_HELLO ||
		au_mp_read_int(&reply) != 1)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("the %s speaks another protocol version", service_names[service])));
	au_mp_skip(&reply);
	au_mp_skip(&reply);
	c->generation = au_mp_read_int(&reply);
	c->number++;
	c->expected = 0;
	return true;
}

/*
 * Connected and idle within the time; false if not.  With raise, what the
 * service says against us is raised.
 */
static bool
connect_within(AuService service, int timeout_ms, bool raise)
{
	Connection *c = &connections[service];
	instr_time	start,
				now;
	int			pause = 1;

	if (c->expected > 0)
		au_disconnect(service);
	if (c->fd >= 0)
		return true;
	INSTR_TIME_SET_CURRENT(start);
	for (;;)
	{
		int			left;

		INSTR_TIME_SET_CURRENT(now);
		INSTR_TIME_SUBTRACT(now, start);
		left = timeout_ms - (int) INSTR_TIME_GET_MILLISEC(now);
		if (left <= 0)
			return false;
		if (try_connect(service, left, raise))
			return true;
		CHECK_FOR_INTERRUPTS();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, pause, wait_event);
		ResetLatch(MyLatch);
		pause = Min(pause * 2, 100);
	}
}

/* Connected and idle, or an error within the service timeout. */
static void
ensure_connected(AuService service)
{
	if (!connect_within(service, au_service_timeout_ms, true))
		ereport(ERROR,
				(errcode(ERRCODE_CANNOT_CONNECT_NOW),
				 errmsg("the %s is not available", service_names[service]),
				 errhint("It is restarted automatically; try again. \"australis status\" tells more.")));
}

void
au_connect(AuService service)
{
	Connection *c = &connections[service];
	char		byte;

	/*
	 * A connection of the service's last life would name the generation of
	 * that: the request would be refused for nothing.
	 */
	if (c->fd >= 0 && c->expected == 0 && c->consumed == c->in.len)
	{
		ssize_t		n = recv(c->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

		if (n >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
			au_disconnect(service);
	}
	ensure_connected(service);
}

bool
au_send(AuService service, StringInfo request)
{
	Connection *c = &connections[service];

	ensure_connected(service);
	c->expected = 1;
	if (send_frame(c, request))
		return true;
	au_disconnect(service);
	return false;
}

bool
au_send_quietly(AuService service, StringInfo request, int timeout_ms)
{
	Connection *c = &connections[service];

	if (!connect_within(service, timeout_ms, false))
		return false;
	c->expected = 1;
	if (send_frame(c, request))
		return true;
	au_disconnect(service);
	return false;
}

bool
au_send_more(AuService service, StringInfo request)
{
	Connection *c = &connections[service];

	if (c->fd < 0)
		return false;
	c->expected++;
	if (send_frame(c, request))
		return true;
	au_disconnect(service);
	return false;
}

AuReceive
au_receive(AuService service, MpReader *reply, int timeout_ms, bool watch_cancel)
{
	Connection *c = &connections[service];
	AuReceive	got;

	if (c->fd < 0)
		return AU_LOST;
	got = receive_frame(c, reply, timeout_ms, watch_cancel);
	if (got == AU_RECEIVED)
		c->expected--;
	else if (got == AU_LOST)
		au_disconnect(service);
	return got;
}

bool
au_call(AuService service, StringInfo request, MpReader *reply, int timeout_ms)
{
	AuReceive	got;

	if (!au_send(service, request))
	{
		/* an idle connection may have died with the service's last life */
		if (!au_send(service, request))
			return false;
	}
	got = au_receive(service, reply, timeout_ms, false);
	if (got != AU_RECEIVED)
	{
		au_disconnect(service);
		return false;
	}
	au_check_error(service, reply);
	return true;
}

void
au_send_unanswered(AuService service, StringInfo message)
{
	Connection *c = &connections[service];
	uint32		len = message->len;
	struct iovec iov[2] = {{&len, 4}, {message->data, message->len}};
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};

	if (c->fd < 0 || c->expected > 0)
		return;
	/* all or nothing: half a frame would garble what follows */
	if (sendmsg(c->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t) (len + 4))
	{
		ereport(LOG, (errmsg("could not tell the %s about storage to drop", service_names[service])));
		au_disconnect(service);
	}
}
