"""Records of one row each, without an Arrow batch for each of them.

Making and serializing such a batch costs more than a write to the log, and decoding it more than applying it. But the
records of two rows of scalar numbers whose ids are equally long differ only in their values, so one record is the
template of the other. Arrow itself tells where the values are: the columns of a decoded record are views of its bytes.
The results are those of :func:`quorin.engine.log.record.encode` and :func:`quorin.engine.log.record.decode`, byte for
byte and row for row.

:mod:`.template` recognizes records that are alike, :mod:`.form` writes one row.
"""

from quorin.engine.log.record_fast.form import encode_row
from quorin.engine.log.record_fast.template import Template, decode_alike, likeness, template_of

__all__ = ["Template", "decode_alike", "encode_row", "likeness", "template_of"]
