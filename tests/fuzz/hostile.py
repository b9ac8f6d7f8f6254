"""A program: calls every op of a package with metadata no one should send and prints how many it outlived.

    python hostile.py FOLDER PACKAGE SEED DRAWINGS | python hostile.py FOLDER PACKAGE canary

It is run on a library built with AddressSanitizer (test_sanitized.py), which ends it at the first access out of bounds.
`canary` is a call that does read out of bounds: the sanitizer must end it, or it watches nothing.
"""

from __future__ import annotations

import importlib
import random
import sys

import torch

INT_MIN, INT_MAX = -(2**31), 2**31 - 1
ENTRIES = (INT_MIN, INT_MIN + 1, -(2**20), -17, -1, 0, 1, 15, 16, 17, 2**20, INT_MAX - 15, INT_MAX)


def ints(draw, *shape, near):
    """int32 of a shape: a third ordinary (0 to near), a third around `near`, the rest from ENTRIES."""
    kinds = (
        lambda: draw.randint(0, max(0, near - 1)),
        lambda: near + draw.randint(-2, 2),
        lambda: draw.choice(ENTRIES),
    )
    count = torch.Size(shape).numel()
    values = [min(max(draw.choice(kinds)(), INT_MIN), INT_MAX) for _ in range(count)]
    return torch.tensor(values, dtype=torch.int32).reshape(shape)


def cache(draw, package, pages):
    """A cache of its own allocation, at times the strided half of one; NaN and infinity in some pages."""
    model, layout = package.SPEC["model"], package.SPEC["cache"]
    inner = [layout["page_size"], model["num_kv_heads"]]
    inner = inner if layout["layout"] == "NHD" else inner[::-1]
    whole = torch.randn(pages, 2, *inner, model["head_dim"]) * draw.choice((1.0, 1e18))
    if pages:
        whole[draw.randrange(pages)] = draw.choice((float("nan"), float("inf"), 0.0))
    return whole[:, draw.randrange(2)] if draw.random() < 0.5 else whole[:, 0].contiguous()


def calls(draw, package):
    """Every op once, on one drawing of tensors."""
    spec = package.SPEC
    batch, width = draw.choice((0, 1, 3, 3)), draw.choice((0, 1, 3, 5, 9, 40))
    pages = draw.choice((0, 1, 2, 2, 5, 12, 12))
    other = draw.choice(
        (pages, pages, pages, max(0, pages - 1), max(0, pages - 1), pages + 3)
    )  # pages of V, or of the summaries
    page_size, routed = spec["cache"]["page_size"], spec["routing"]["pages"]
    q = torch.randn(batch, spec["model"]["num_q_heads"], spec["model"]["head_dim"])
    k_cache, v_cache = cache(draw, package, pages), cache(draw, package, other)
    table = ints(draw, batch, width, near=pages)
    lens, old = (ints(draw, batch, near=width * page_size) for _ in "no")
    selected = ints(draw, batch, spec["model"]["num_kv_heads"], routed, near=width)
    certified = {"return_certificate": True} if hasattr(package, "Certificate") else {}
    pins = ints(draw, batch, draw.choice((0, 2)), near=width)
    kept, strange = (empty(package, max(1, n)) for n in (pages, other))
    mixed = type(kept)(kept[0], *strange[1:])
    decode = lambda *x, **named: package.decode(q, k_cache, v_cache, table, lens, *x, **certified, **named)
    yield lambda: package.decode_dense(q, k_cache, v_cache, table, lens)
    yield lambda: package.summarize_pages(k_cache, table, lens, v_cache=v_cache)
    for summaries in (kept, kept, mixed):  # kept: after an update with what was drawn
        yield lambda x=summaries: package.update_summaries(x, k_cache, table, old, lens, v_cache=v_cache)
        yield lambda x=summaries: decode(x, selected_pages=selected)
        yield lambda x=summaries: decode(x, pinned_pages=pins)
        yield lambda x=summaries: package.select_pages(q, x, table, lens, pinned_pages=pins)
        yield lambda x=summaries: package.score_pages(q, x, table, lens)
        if spec["routing"]["refresh"] > 1:
            state = ints(draw, batch, spec["model"]["num_kv_heads"], routed, near=width), ints(draw, batch, near=width * page_size)
            routing = package.Routing(*state, True)
            yield lambda r=routing: package.renew_pages(r, table, lens, pinned_pages=pins)
            yield lambda x=summaries, r=routing: decode(x, routing=r, step=1, pinned_pages=pins)
            yield lambda x=summaries, r=routing: decode(x, routing=r, step=0)
        if package.SPEC["candidates"]["tokens"] != "all":
            budgets = ints(draw, batch, spec["model"]["num_kv_heads"], near=20)
            yield lambda x=summaries, n=budgets: decode(x, budgets=n)


def empty(package, pages):
    """Summaries of a cache in which nothing is."""
    k_cache, nothing = cache(random.Random(0), package, pages), torch.zeros(1, 1, dtype=torch.int32)
    return package.summarize_pages(k_cache, nothing, nothing[0], v_cache=k_cache)


def canary(package):
    """Tells a kernel that a cache of one page has two: it reads behind the allocation."""
    model = package.SPEC["model"]
    k_cache = cache(random.Random(0), package, 1).clone(memory_format=torch.contiguous_format)
    q = torch.randn(1, model["num_kv_heads"], model["num_q_heads"] // model["num_kv_heads"], model["head_dim"])
    table, lens = torch.ones(1, 1, dtype=torch.int32), torch.full((1,), 16, dtype=torch.int32)
    dims = {"batch": 1, "max_pages": 1, "num_pages": 2, "splits": 1}
    dims |= {"k_stride": k_cache.stride(0), "v_stride": k_cache.stride(0)}
    out, lse = torch.empty(1, *q.shape), torch.empty(1, *q.shape[:3])
    package.library.load("cpu").call("attend_dense", (q, k_cache, k_cache, table, lens, out, lse), dims)


def main(folder, name, seed, count="0"):
    sys.path.insert(0, folder)
    package = importlib.import_module(name)
    torch.set_num_threads(1)
    library = package.library.load("cpu")
    if seed == "canary":
        canary(package)
        return print("the canary lived")
    draw, done, refused = random.Random(int(seed)), 0, 0
    for _ in range(int(count)):
        torch.manual_seed(draw.randrange(2**31))
        for call in calls(draw, package):
            done += 1
            try:
                call()
            except (ValueError, TypeError) as error:
                refused += 1
                assert str(error).startswith(f"{name}: "), error
    return print(f"{library.place} outlived {count} drawings: {done} calls, {refused} of them refused")


if __name__ == "__main__":
    main(*sys.argv[1:])
