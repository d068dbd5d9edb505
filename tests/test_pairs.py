"""The choice of pairs that other tests rely on: nothing is left out that two parameters can be together."""

from itertools import combinations, product

from pairs import by_pairs

PARAMETERS = [("a, b", [("one", 1), ("two", 2), ("three", 3)]), ("c", [[], {}]), ("d", "wxyz"), ("e", [False, True])]


def test_every_value_meets_every_value_of_every_other_parameter():
    names, rows = by_pairs(*PARAMETERS).args
    assert names == ["a", "b", "c", "d", "e"]
    chosen = [[(a, b), c, d, e] for a, b, c, d, e in rows]
    for one, other in combinations(range(4), 2):
        wanted = list(product(PARAMETERS[one][1], PARAMETERS[other][1]))
        met = [(row[one], row[other]) for row in chosen]
        assert [pair for pair in wanted if pair not in met] == []


def test_pairs_are_far_fewer_than_all_combinations_and_the_same_in_every_run():
    rows = by_pairs(*PARAMETERS).args[1]
    assert 12 <= len(rows) <= 16 < 3 * 2 * 4 * 2
    assert rows == by_pairs(*PARAMETERS).args[1]
