"""What a GPU would let pass is reported: with kernel, block, thread and the line."""

import re

import pytest
import torch

from tests.cuda_emulator import build, load, samples

X, Y, COUNTER = torch.zeros(300), torch.zeros(256), torch.zeros(1, dtype=torch.int32)
INTEGERS = torch.zeros(64, dtype=torch.int32)
THREAD = r"thread \(\d+, 0, 0\)"


def line_of(file, text):
    """Return "file:line" of the one line of a sample's file that contains the text."""
    lines = (build.HERE / "kernels" / file).read_text().splitlines()
    found = [number for number, line in enumerate(lines, 1) if text in line]
    assert len(found) == 1, f"'{text}' is on lines {found} of {file}"
    return re.escape(f"{file}:{found[0]}")


def assert_reports(kernel, message, seeds=(0, 1, 2), **how):
    """The launch fails with "<kernel>, block (...), thread (...): <message>" whatever the order of threads."""
    for seed in seeds:
        with pytest.raises(build.EmulatorError) as error:
            samples.launch(kernel, seed=seed, **how)
        pattern = rf"{re.escape(kernel)}, block \(\d+, 0, 0\), {THREAD}: {message}"
        assert re.fullmatch(pattern, str(error.value)), f"\n{error.value}\nis not\n{pattern}"


# ---------------------------------------------------------------------------------------------------------------------
# Global memory
# ---------------------------------------------------------------------------------------------------------------------


def test_the_report_names_block_and_thread():
    # Element 150 is wanted by thread 21 of block 2.
    with pytest.raises(build.EmulatorError) as error:
        samples.launch("reads_past_the_end", blocks=4, x=X[:150], y=Y, count=150)
    assert str(error.value).startswith("reads_past_the_end, block (2, 0, 0), thread (21, 0, 0): out of bounds: reads")


def test_out_of_bounds_read():
    assert_reports(
        "reads_past_the_end",
        rf"out of bounds: reads 4 bytes at 0x[0-9a-f]+ at {line_of('faults.cu', 'y[i] = x[i + 1]')}; "
        r"the nearest buffer is 'x' of 600 bytes, which ended 0 bytes before",
        blocks=4, x=X[:150], y=Y, count=150,
    )  # fmt: skip


def test_out_of_bounds_write():
    assert_reports(
        "writes_before_the_start",
        rf"out of bounds: writes 4 bytes at 0x[0-9a-f]+ at {line_of('faults.cu', 'y[i - 1] = x[i]')}; "
        r"the nearest buffer is 'y' of 1024 bytes, which begins 4 bytes later",
        blocks=4, x=X, y=Y, count=200,
    )  # fmt: skip


def test_misaligned_vector():
    at = line_of("faults.cu", "x + 4 * threadIdx.x + 1")
    assert_reports(
        "reads_misaligned",
        rf"misaligned: reads 16 bytes at 0x[0-9a-f]+, byte \d+ of 'x' at {at}",
        x=X, y=Y,
    )  # fmt: skip


def test_blocks_that_write_the_same():
    at = line_of("faults.cu", "y[0] = static_cast<float>(blockIdx.x)")
    assert_reports(
        "blocks_write_the_same",
        rf"race in byte 0 of 'y': this thread writes at {at} what thread \(5, 0, 0\) of block \(\d, 0, 0\) wrote at "
        rf"{at}, with nothing that orders the blocks between",
        blocks=4, y=Y,
    )  # fmt: skip


def test_threads_that_write_the_same():
    at = line_of("faults.cu", "y[threadIdx.x / 2] = 1.0f")
    assert_reports(
        "threads_write_the_same",
        rf"race in byte \d+ of 'y': this thread writes at {at} what {THREAD} wrote at {at}, with no barrier between",
        y=Y,
    )


def test_accesses_of_several_widths():
    # In some of these orders the wide store comes first.
    message = rf"race in byte 8 of 'y': this thread writes .* what {THREAD} wrote .*"
    assert_reports("mixes_widths", message, y=Y, seeds=range(8))


def test_a_block_that_reads_what_another_wrote():
    # Where block 0 comes last, it writes what others read.
    at = line_of("faults.cu", "y[blockIdx.x] = blockIdx.x == 0")
    assert_reports(
        "block_reads_what_another_wrote",
        rf"race in byte 0 of 'y': this thread (reads|writes) at {at} what {THREAD} of block \(\d, 0, 0\) (wrote|read) "
        rf"at {at}, with nothing that orders the blocks between",
        blocks=4, threads=1, y=Y, seeds=range(8),
    )  # fmt: skip


def test_the_last_block_without_a_fence():
    COUNTER.zero_()
    x, sums, total = torch.randn(20, 64), torch.empty(20), torch.empty(1)
    assert_reports(
        "sum_of_grid<false>",
        rf"race in byte \d+ of 'sums': this thread reads at {line_of('block_sum.cu', 'all += sums[i]')} what "
        rf"thread \(0, 0, 0\) of block \(\d+, 0, 0\) wrote at block_sum.cu:\d+, "
        r"with nothing that orders the blocks between",
        blocks=20, shared_bytes=132, x=x, sums=sums, counter=COUNTER, total=total, seeds=[0],
    )  # fmt: skip


@pytest.mark.parametrize("fence", ["kNone", "kWithoutBarrier"])
def test_the_last_block_and_rows_that_are_not_published(fence):
    COUNTER.zero_()
    x, rows, sums = torch.randn(20, 64), torch.empty(20, 64), torch.empty(64)
    assert_reports(
        f"column_sums_of_grid<Fence::{fence}>",
        rf"race in byte \d+ of 'rows': this thread reads .* what {THREAD} of block \(\d+, 0, 0\) wrote .*",
        blocks=20, shared_bytes=4, x=x, rows=rows, counter=COUNTER, sums=sums, seeds=[0],
    )  # fmt: skip


def test_float_atomic():
    assert_reports(
        "adds_floats_atomically",
        rf"atomic on floating-point numbers at {line_of('faults.cu', 'atomicAdd(y, 1.0f)')}: its result depends on the "
        r"order in which threads come; sum in a fixed order",
        y=Y,
    )


def test_plain_access_to_what_is_atomic():
    assert_reports(
        "mixes_atomic_and_plain", rf"race in byte 0 of 'y': this thread .* what {THREAD} .*, with no barrier between",
        y=INTEGERS,
    )  # fmt: skip


def test_write_to_a_variable_of_the_host():
    at = line_of("faults.cu", "host_variable = 1;")
    assert_reports(
        "writes_a_variable_of_the_host",
        rf"out of bounds: writes 4 bytes at 0x[0-9a-f]+ at {at}, a variable of the program that is no kernel's "
        r"to write",
    )


def test_pointer_to_another_threads_variable():
    at = line_of("faults.cu", "y[threadIdx.x] = **shared")
    assert_reports(
        "reads_another_threads_stack", rf"out of bounds: reads 4 bytes at 0x[0-9a-f]+ at {at}; .*", shared_bytes=8, y=Y
    )


# ---------------------------------------------------------------------------------------------------------------------
# Shared memory
# ---------------------------------------------------------------------------------------------------------------------


def test_missing_syncthreads():
    samples.run("reads_a_neighbours_value<true>", shared_bytes=256, x=X, y=Y)
    assert_reports(
        "reads_a_neighbours_value<false>",
        r"(race in byte \d+ of shared memory: this thread (reads|writes) .*, with no barrier between"
        r"|reads 4 bytes at byte \d+ of shared memory at .*, which nobody has written)",
        shared_bytes=256, x=X, y=Y, seeds=range(8),
    )  # fmt: skip


def test_missing_syncwarp():
    samples.run("reads_another_lanes_value<true>", shared_bytes=256, x=X, y=Y)
    assert_reports(
        "reads_another_lanes_value<false>",
        r"race in byte \d+ of shared memory: this thread reads at faults.cu:\d+ what thread \(\d+, 0, 0\) wrote at "
        r"faults.cu:\d+, with no barrier between",
        shared_bytes=256, x=X, y=Y,
    )  # fmt: skip


def test_syncwarp_orders_only_those_it_names():
    assert_reports(
        "syncs_half_a_warp",
        rf"(race in byte 64 of shared memory: .*|reads 4 bytes at byte 64 of shared memory at "
        rf"{line_of('faults.cu', 'of the other half')}, which nobody has written)",
        threads=32, shared_bytes=128, x=X, y=Y, seeds=range(8),
    )  # fmt: skip


def test_racing_writes_in_shared_memory():
    at = line_of("faults.cu", "(*shared)[threadIdx.x / 2] = 1.0f")
    assert_reports(
        "shared_writes_race",
        rf"race in byte \d+ of shared memory: this thread writes at {at} what {THREAD} wrote at {at}, with no barrier "
        r"between",
        shared_bytes=256,
    )


def test_shared_memory_that_is_used_again_without_a_barrier():
    assert_reports(
        "reuses_without_a_barrier",
        r"race in byte \d+ of shared memory: this thread (writes|reads) at .* what .* (read|wrote) at .*, with no "
        r"barrier between",
        shared_bytes=256, x=X, y=Y, seeds=range(8),
    )  # fmt: skip


def test_shared_memory_out_of_bounds():
    at = line_of("faults.cu", "y[threadIdx.x] = shared[threadIdx.x + 1]")
    assert_reports(
        "reads_shared_past_the_end",
        rf"out of bounds: reads 4 bytes at byte 256 of shared memory at {at}, which has 256 bytes",
        shared_bytes=256, y=Y,
    )  # fmt: skip


def test_uninitialised_shared_memory():
    at = line_of("faults.cu", "y[threadIdx.x] = (*shared)[threadIdx.x];")
    assert_reports(
        "reads_what_nobody_wrote",
        rf"reads 4 bytes at byte \d+ of shared memory at {at}, which nobody has written",
        shared_bytes=256, y=Y,
    )  # fmt: skip


def test_more_shared_memory_than_the_launch_gives():
    assert_reports(
        "asks_for_more_shared_memory",
        "asks for 256 bytes of shared memory where the launch gives 128",
        shared_bytes=128,
    )


# ---------------------------------------------------------------------------------------------------------------------
# cp.async
# ---------------------------------------------------------------------------------------------------------------------


def test_missing_wait_for_async_copies():
    at = line_of("async_copy.cu", "to[chunk * kThreads + next]")
    assert_reports(
        "copy_in_stages<Mistake::kNoWait>",
        rf"reads byte \d+ of shared memory at {at}, where the cp.async of {THREAD} at ptx.h:\d+ in async_copy.cu:\d+ "
        r"in async_copy.cu:\d+ has not been waited for",
        shared_bytes=2048, x=torch.randn(3, 256), y=torch.empty(3, 256), chunks=3,
    )  # fmt: skip


@pytest.mark.parametrize("mistake", ["kNoBarrier", "kNoBarrierBeforeReuse"])
def test_missing_barrier_around_async_copies(mistake):
    assert_reports(
        f"copy_in_stages<Mistake::{mistake}>",
        r"(race in|reads|writes) .*byte \d+ of shared memory.*",
        shared_bytes=2048, x=torch.randn(3, 256), y=torch.empty(3, 256), chunks=3, seeds=range(8),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Barriers, shuffles and votes
# ---------------------------------------------------------------------------------------------------------------------


def test_divergent_barrier():
    assert_reports(
        "barriers_diverge",
        rf"divergent barrier: this thread is at the __syncthreads of faults.cu:\d+ while {THREAD} waits at the "
        r"__syncthreads of faults.cu:\d+",
    )


def test_threads_that_wait_for_each_other():
    shuffle = line_of("faults.cu", "if (threadIdx.x == 3) __shfl_sync(kAll, 0, 0)")
    barrier = line_of("faults.cu", "__syncthreads();  // where the others wait")
    assert_reports(
        "waits_for_those_at_a_barrier",
        rf"no thread can go on: threads 0 to 2 wait at the __syncthreads of {barrier}; thread 3 waits at the "
        rf"__shfl_sync of {shuffle}; threads 4 to 63 wait at the __syncthreads of {barrier}",
    )


def test_a_block_that_waits_for_another():
    assert_reports(
        "waits_for_another_block",
        r"has made 1048576 atomics in a row .*: does it wait for another block\? Blocks run one after another",
        blocks=2, arrived=COUNTER.zero_(), seeds=[0],
    )  # fmt: skip


def test_shuffle_with_lanes_that_have_ended():
    assert_reports(
        "shuffles_with_lanes_that_left",
        r"(__shfl_sync's mask 0xffffffff names lanes .* of the warp, which have ended or do not exist"
        r"|ends, but lanes .* of its warp wait for it in the __shfl_sync of faults.cu:\d+, whose mask 0xffffffff names "
        r"lane \d)",
        seeds=range(8),
    )


def test_shuffle_with_lanes_that_do_not_exist():
    assert_reports(
        "scan_of_warp",
        "__shfl_up_sync's mask 0xffffffff names lanes 8-31 of the warp, which have ended or do not exist",
        threads=8, x=INTEGERS, sums=INTEGERS.clone(),
    )  # fmt: skip


def test_shuffle_from_an_inactive_lane():
    assert_reports(
        "shuffles_from_an_inactive_lane",
        r"__shfl_sync of faults.cu:\d+: lane 0 reads from lane 20, which is inactive: the mask 0x0000ffff does not "
        r"name it",
        y=INTEGERS,
    )


def test_shuffle_of_a_lane_that_its_mask_leaves_out():
    assert_reports(
        "shuffles_without_naming_itself",
        r"__shfl_sync is called by lane \d+, which its mask 0x0000ffff does not name",
        threads=32,
    )


def test_lanes_that_meet_in_different_places():
    assert_reports(
        "meets_in_two_places",
        r"lane \d+ is at the __a(ny|ll)_sync of faults.cu:\d+ with mask 0xffffffff while lanes .* wait at the "
        r"__a(ny|ll)_sync of faults.cu:\d+ with mask 0xffffffff",
        threads=32, y=INTEGERS,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Launches
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ({"threads": 1024}, "cudaSuccess"),
        ({"threads": 1025}, "cudaErrorInvalidConfiguration"),
        ({"threads": (32, 32, 2)}, "cudaErrorInvalidConfiguration"),
        ({"threads": (1, 1, 65)}, "cudaErrorInvalidConfiguration"),
        ({"threads": 0}, "cudaErrorInvalidConfiguration"),
        ({"blocks": 0}, "cudaErrorInvalidConfiguration"),
        ({"blocks": (1, 65536)}, "cudaErrorInvalidConfiguration"),
        ({"blocks": (1, 1, 65536)}, "cudaErrorInvalidConfiguration"),
        ({"shared_bytes": 48 * 1024}, "cudaSuccess"),
        ({"shared_bytes": 48 * 1024 + 1}, "cudaErrorInvalidValue"),
    ],
)
def test_launch_limits(how, error):
    assert samples.launch("saxpy", a=1.0, x=X, y=Y, count=0, **how) == error


def test_shared_memory_beyond_48_kib_must_be_allowed():
    most = 227 * 1024
    order, counter = torch.zeros(64, dtype=torch.int32), COUNTER.zero_()
    assert load("samples").allow_shared_bytes("arrivals", most + 1) == "cudaErrorInvalidValue"
    assert samples.launch("arrivals", shared_bytes=most, order=order, counter=counter) == "cudaErrorInvalidValue"
    assert load("samples").allow_shared_bytes("arrivals", most) == "cudaSuccess"
    assert samples.launch("arrivals", shared_bytes=most, order=order, counter=counter) == "cudaSuccess"


def test_a_launch_after_a_fault_works():
    for _ in range(100):
        assert_reports("barriers_diverge", ".*", seeds=[0])
    y = torch.zeros(300)
    samples.run("saxpy", blocks=5, a=1.0, x=X, y=y, count=300)
    assert torch.equal(y, X)
