"""The adjudicator: decides which transactions commit and when (PROTOCOL A1-A8, Q2).

`adjudicator` is plain code without sockets, files or clocks; `conflict_table` is what it remembers. The process that
hosts it hands it messages and the time, appends what it accepts to the journal and answers when that is durable.
"""
