"""Storage: applies the feed to the multi-version store and answers reads as of a time (PROTOCOL S1-S4).

`applier` is the thread that follows the journal, `snapshots` writes and restores copies, `garbage` knows which storage
ids are to be deleted, `service` answers reads over a socket and owns all of it. Durability is the journal's: whatever
happens to the files here, they are rebuilt from snapshot + journal.
"""
