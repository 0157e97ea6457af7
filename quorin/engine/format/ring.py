"""The bytes of a ring of served requests: one process writes records, and one collector of the node reads them.

A ring is a slot of a file in ``shm_dir``: a header of one page, then ``capacity`` bytes of records.

======  ==================================================================================================
offset  word of the header (8 bytes, little-endian)
======  ==================================================================================================
0       magic: the ring has been made
64      head: the records of the ring end here; the writer stores it last, with release (the commit rule)
72      begun: where the record that is being written will end; unlike the head after a writer's death in it
80      dropped: requests that found the ring full
128     tail: the collector has consumed what is before
136     lost: records that writers began and did not finish
======  ==================================================================================================

Head and tail count bytes since the ring was made and only grow; the byte ``n`` is at ``n % capacity``. A record never
wraps: a negative size says how many bytes to skip up to the end of the ring.

A record is a head of int64 words (``RECORD_…``), then parts, each padded to 8 bytes: for each view the number of its
group (uint8), the request's id, for each group of views with the same entities the offsets (int32, rows + 1) and the
text of the entity ids, for each view positions and event times (int64) and states (uint8) of the rows, and data.
"""

RING_MAGIC = 0x3130_676E6972_7571  # "quring01"
RING_HEADER_BYTES = 4096
RING_MAGIC_AT, RING_HEAD, RING_BEGUN, RING_DROPPED, RING_TAIL, RING_LOST = 0, 64, 72, 80, 128, 136

RECORD_HEAD_BYTES = 64
(
    RECORD_BYTES, RECORD_TIME, RECORD_REQUEST, RECORD_ROWS, RECORD_GROUPS, RECORD_VIEWS, RECORD_ID_BYTES,
    RECORD_DATA_BYTES,
) = range(0, RECORD_HEAD_BYTES, 8)  # fmt: skip
"""Offsets in the head: size, time (ns since the epoch), number of the request's description, and counts."""

NOT_FOUND, PRESENT = 0, 1
"""The state of a row: there was none; it was served."""
