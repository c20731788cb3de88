"""The journal: the ordered, durable, fenced log of committed transactions (PROTOCOL J1-J4).

`interface` says what every engine offers, `record` the bytes of a record, `validity` which records count; `files` is
the engine of the embedded mode, `nats` that of several machines (`pipeline` decides for it, `stream` reads, `message`
has its bytes, `nats_server` the servers' settings, `reached` the loss detector). A journal has one owner at a time (a
generation); everybody else reads valid records.
"""
