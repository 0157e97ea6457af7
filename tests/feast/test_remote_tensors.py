"""Tensors of a remote store are those of a local one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from feast import FeatureStore

from tests.feast import test_tensors
from tests.feast.served import served
from tests.feast.test_tensors import (  # noqa: F401 - the tests of local stores
    test_choices_that_mean_nothing_are_refused,
    test_defaults_that_do_not_fit_are_refused,
    test_lists_of_several_lengths_are_refused,
    test_requests_that_feast_answers_have_the_keyword,
    test_stacks_are_feasts_lists,
    test_stacks_of_a_copied_answer,
    test_stacks_of_a_service_with_aliases,
    test_the_length_where_no_row_has_a_value,
    test_what_is_no_list_of_numbers_is_never_stacked,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    folder = tmp_path_factory.mktemp("tensors")
    with served(folder, test_tensors.definitions(folder)) as machine:
        store = machine.remote(folder / "remote", folder)
        test_tensors.fill(store)
        yield store
