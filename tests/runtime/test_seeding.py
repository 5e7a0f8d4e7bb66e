"""Seeds are functions of a number and a purpose."""

from __future__ import annotations

import hashlib

import torch

from dkel_lightning.runtime.seeding import derive_seed, seeded


def test_seeds_do_not_change_between_versions_and_platforms() -> None:
    text = b"7\x1fstr:views\x1fint:3"
    assert derive_seed(7, "views", 3) == int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def test_purposes_numbers_and_kinds_never_share_a_stream() -> None:
    cases: list[tuple[int | str, ...]] = [(0,), (1,), (0, "a"), (0, "a", "b"), (0, "ab"), (0, 1), (0, "1"), (0, 1, "a")]
    seeds = [derive_seed(int(case[0]), *case[1:]) for case in cases]
    assert len(set(seeds)) == len(cases)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seeded_block_leaves_the_global_stream_untouched_also_when_it_fails() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    with seeded(1, "weights"):
        inside = torch.rand(3)
    try:
        with seeded(1, "weights"):
            assert torch.equal(torch.rand(3), inside)
            raise KeyError
    except KeyError:
        pass
    assert torch.equal(torch.rand(3), expected)
    assert not torch.equal(inside, expected)
