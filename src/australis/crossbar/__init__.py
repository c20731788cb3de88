"""The crossbar: brings the records of all journals to all storage shards, in the order of commit times.

`merge` is the pure merge with watermarks at the subscriber's end, `feed` the sending end beside a journal: a bounded
buffer of recent records, and behind it the journal itself for subscribers that are slower or come later.
"""
