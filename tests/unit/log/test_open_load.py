from quorin.engine.log.open_load import OpenLoad


def test_a_record_of_an_earlier_release_is_read_and_exchanged_as_it_stands() -> None:
    """It holds ``commits`` where a load now has ``ends``; compare-and-set compares its text."""
    stored = (
        '{"begin": 8, "commits": [20], "coordinator": "host:1:2", "earlier_begin": 3, "earlier_commits": [7], '
        '"logs": [91], "rows": [4], "schema_name": "Trip", "started_ns": 5, "state": "committed", '
        '"stream_key": "quorin:log"}'
    )
    load = OpenLoad.parse(stored)
    assert (load.ends, load.earlier_ends, load.logs, load.rows) == ((20,), (7,), (91,), (4,))
    assert load.to_json() == stored
