"""Known small kernels compute on the emulator what they should."""

import pytest
import torch

from tests.cuda_emulator import samples


def test_saxpy():
    x, y = torch.randn(1000), torch.randn(1000)
    expected = y + 2 * x
    samples.run("saxpy", blocks=4, threads=256, a=2.0, x=x, y=y, count=1000)
    torch.testing.assert_close(y, expected)


def test_every_thread_knows_its_place():
    blocks, threads = (3, 2, 4), (5, 3, 2)
    out = torch.full((24 * 30, 6), -1, dtype=torch.int32)
    samples.run("indices", blocks=blocks, threads=threads, out=out)
    ranges = [torch.arange(n, dtype=torch.int32) for n in (*reversed(blocks), *reversed(threads))]
    bz, by, bx, tz, ty, tx = (axis.flatten() for axis in torch.meshgrid(*ranges, indexing="ij"))
    assert torch.equal(out, torch.stack([bx, by, bz, tx, ty, tz], 1))


@pytest.mark.parametrize("threads", [32, 64, 1024])
def test_sum_of_block(threads):
    x, sums = torch.randn(3, threads), torch.empty(3)
    samples.run("sum_of_block", blocks=3, threads=threads, shared_bytes=128, x=x, sums=sums)
    torch.testing.assert_close(sums, x.sum(1))


def test_scan_of_warp():
    x, sums = torch.randint(-9, 9, (3, 32), dtype=torch.int32), torch.empty(3, 32, dtype=torch.int32)
    samples.run("scan_of_warp", threads=96, x=x, sums=sums)
    assert torch.equal(sums, x.cumsum(1).int())


def test_the_last_block_may_sum_what_all_wrote():
    x, sums, counter, total = torch.randn(20, 64), torch.empty(20), torch.zeros(1, dtype=torch.int32), torch.empty(1)
    for _ in range(2):  # the counter is put back
        samples.run("sum_of_grid<true>", blocks=20, shared_bytes=132, x=x, sums=sums, counter=counter, total=total)
        torch.testing.assert_close(total[0], x.sum())


@pytest.mark.parametrize("fence", ["kEachThread", "kOneThread"])
def test_the_last_block_may_sum_what_all_threads_wrote(fence):
    x, rows, sums = torch.randn(20, 64), torch.empty(20, 64), torch.empty(64)
    counter, name = torch.zeros(1, dtype=torch.int32), f"column_sums_of_grid<Fence::{fence}>"
    samples.run(name, blocks=20, shared_bytes=4, x=x, rows=rows, counter=counter, sums=sums)
    torch.testing.assert_close(sums, x.sum(0))
    assert counter.item() == 0


@pytest.mark.parametrize("width", [32, 8])
@pytest.mark.parametrize("operand", [0, 1, 5, 12, 31])
@pytest.mark.parametrize("which", ["index", "up", "down", "xor"])
def test_shuffles_read_from_the_documented_lane(which, operand, width):
    def source(lane):
        first = lane // width * width
        lane_in_range = {
            "index": first + operand % width,
            "up": lane - operand,
            "down": lane + operand,
            "xor": lane ^ operand,
        }[which]
        # Out of its own segment a lane gets its own value, but that xor may reach into an earlier one.
        lowest = 0 if which == "xor" else first
        return lane_in_range if lowest <= lane_in_range < first + width else lane

    lanes = torch.empty(32, dtype=torch.int32)
    number = ["index", "up", "down", "xor"].index(which)
    samples.run("shuffled_lanes", threads=32, which=number, operand=operand, width=width, lanes=lanes)
    assert lanes.tolist() == [source(lane) for lane in range(32)]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_votes(share):
    predicates = (torch.rand(32) < share).int()
    results = torch.empty(32, 3, dtype=torch.int32)
    samples.run("votes", threads=32, predicates=predicates, results=results)
    for lane, (ballot, any_of, all_of) in enumerate(results.tolist()):
        group = predicates[lane % 2 :: 2]
        expected = sum(int(p) << i for i, p in enumerate(predicates.tolist()) if i % 2 == lane % 2)
        assert ballot & 0xFFFFFFFF == expected
        assert (any_of, all_of) == (int(group.any()), int(group.all()))


def test_barriers_count_those_who_are_left():
    predicates = torch.randint(0, 2, (64,), dtype=torch.int32)
    results = torch.zeros(64, 3, dtype=torch.int32)
    samples.run("barrier_votes", predicates=predicates, results=results, live=50)
    count = int(predicates[:50].sum())
    assert results[:50].tolist() == [[1, 0, count]] * 50
    assert not results[50:].any()


def test_atomics():
    sum_, ring, least, most = (torch.zeros(1, dtype=torch.int32) for _ in range(4))
    wide, swapped = torch.zeros(1, dtype=torch.int64), torch.tensor([7], dtype=torch.int32)
    results = {"sum": sum_, "ring": ring, "least": least, "most": most, "wide": wide, "swapped": swapped}
    samples.run("atomics", blocks=3, threads=50, **results)
    assert sum_.item() == -sum(range(150))
    assert ring.item() == 150 % 7  # 0 to 6 and round again
    assert (least.item(), most.item()) == (-149, 149)
    assert wide.item() == 150 << 33
    assert swapped.item() == 8


def test_a_counter_that_the_last_block_puts_back():
    y, counter = torch.zeros(20, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    samples.run("counts_and_resets", blocks=20, threads=1, y=y, counter=counter)
    assert y.all()
    assert counter.item() == 0


def test_threads_that_wait_for_a_lock():
    state, sum_ = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    samples.run("lock", blocks=2, state=state, sum=sum_)
    assert sum_.item() == 128


def test_threads_run_in_an_order_drawn_from_the_seed():
    def order(seed):
        out, counter = torch.empty(64, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        samples.run("arrivals", seed=seed, order=out, counter=counter)
        return out.tolist()

    assert sorted(order(1)) == list(range(64))
    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != list(range(64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_floats_round_as_torch_does(dtype):
    # Every value of the narrow type, the points halfway between neighbours, and their neighbours.
    exact = torch.arange(0, 65536).to(torch.uint16).view(dtype).float()
    exact = exact[exact.isfinite()].sort().values
    between = ((exact[1:].double() + exact[:-1].double()) / 2).float()
    up = torch.nextafter(between, torch.tensor(torch.inf))
    down = torch.nextafter(between, torch.tensor(-torch.inf))
    special = torch.tensor([torch.inf, -torch.inf, -0.0, 65519.996, 65520.0, 3.4e38, -3.4e38, 1e-45])
    x = torch.cat([exact, between, up, down, special])
    narrow, back = torch.empty(len(x), dtype=dtype), torch.empty(len(x))
    name = {torch.bfloat16: "__nv_bfloat16", torch.float16: "__half"}[dtype]
    blocks = (len(x) + 255) // 256
    samples.run(f"convert<{name}>", blocks=blocks, threads=256, x=x, narrow=narrow, back=back, count=len(x))
    assert torch.equal(narrow.view(torch.int16), x.to(dtype).view(torch.int16))
    assert torch.equal(back, x.to(dtype).float())


@pytest.mark.parametrize("name", ["__nv_bfloat16", "__half"])
def test_nan_becomes_the_devices_nan(name):
    x, narrow, back = torch.tensor([torch.nan, -torch.nan]), torch.empty(2, dtype=torch.int16), torch.empty(2)
    samples.run(f"convert<{name}>", x=x, narrow=narrow, back=back, count=2)
    assert narrow.tolist() == [0x7FFF, 0x7FFF]
    assert back.isnan().all()


@pytest.mark.parametrize("chunks", [1, 2, 5])
def test_copy_in_stages(chunks):
    x = torch.randn(chunks, 256)
    y = torch.empty_like(x)
    samples.run("copy_in_stages<Mistake::kNone>", shared_bytes=2048, x=x, y=y, chunks=chunks)
    assert torch.equal(x, y)


def test_async_copy_of_what_is_not_valid_gives_zeros():
    x, y = torch.randn(20, 4), torch.empty(32, 4)
    samples.run("copy_with_zeros", threads=32, shared_bytes=512, x=x, y=y, rows=20)
    assert torch.equal(y[:20], x)
    assert torch.equal(y[20:], torch.zeros(12, 4))
