"""ldmatrix and mma.m16n8k16: which lane holds which element, against the tables of the PTX ISA manual written out."""

import time

import pytest
import torch

from tests.cuda_emulator import load, samples

# PTX ISA, "Warp-level matrix load instruction: ldmatrix", figure for .b16: the lane that holds each element of an 8 x 8
# matrix. A lane's register has two neighbours of a row.
LDMATRIX_LANES = """
     0  0  1  1  2  2  3  3
     4  4  5  5  6  6  7  7
     8  8  9  9 10 10 11 11
    12 12 13 13 14 14 15 15
    16 16 17 17 18 18 19 19
    20 20 21 21 22 22 23 23
    24 24 25 25 26 26 27 27
    28 28 29 29 30 30 31 31
"""

# PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type", as "lane:element" in the manual's figures. An
# element's number is its place among the lane's: a0 and a1 are the halves of the first register, and so on.
A_FIGURE = """
     0:0  0:1  1:0  1:1  2:0  2:1  3:0  3:1  0:4  0:5  1:4  1:5  2:4  2:5  3:4  3:5
     4:0  4:1  5:0  5:1  6:0  6:1  7:0  7:1  4:4  4:5  5:4  5:5  6:4  6:5  7:4  7:5
     8:0  8:1  9:0  9:1 10:0 10:1 11:0 11:1  8:4  8:5  9:4  9:5 10:4 10:5 11:4 11:5
    12:0 12:1 13:0 13:1 14:0 14:1 15:0 15:1 12:4 12:5 13:4 13:5 14:4 14:5 15:4 15:5
    16:0 16:1 17:0 17:1 18:0 18:1 19:0 19:1 16:4 16:5 17:4 17:5 18:4 18:5 19:4 19:5
    20:0 20:1 21:0 21:1 22:0 22:1 23:0 23:1 20:4 20:5 21:4 21:5 22:4 22:5 23:4 23:5
    24:0 24:1 25:0 25:1 26:0 26:1 27:0 27:1 24:4 24:5 25:4 25:5 26:4 26:5 27:4 27:5
    28:0 28:1 29:0 29:1 30:0 30:1 31:0 31:1 28:4 28:5 29:4 29:5 30:4 30:5 31:4 31:5
     0:2  0:3  1:2  1:3  2:2  2:3  3:2  3:3  0:6  0:7  1:6  1:7  2:6  2:7  3:6  3:7
     4:2  4:3  5:2  5:3  6:2  6:3  7:2  7:3  4:6  4:7  5:6  5:7  6:6  6:7  7:6  7:7
     8:2  8:3  9:2  9:3 10:2 10:3 11:2 11:3  8:6  8:7  9:6  9:7 10:6 10:7 11:6 11:7
    12:2 12:3 13:2 13:3 14:2 14:3 15:2 15:3 12:6 12:7 13:6 13:7 14:6 14:7 15:6 15:7
    16:2 16:3 17:2 17:3 18:2 18:3 19:2 19:3 16:6 16:7 17:6 17:7 18:6 18:7 19:6 19:7
    20:2 20:3 21:2 21:3 22:2 22:3 23:2 23:3 20:6 20:7 21:6 21:7 22:6 22:7 23:6 23:7
    24:2 24:3 25:2 25:3 26:2 26:3 27:2 27:3 24:6 24:7 25:6 25:7 26:6 26:7 27:6 27:7
    28:2 28:3 29:2 29:3 30:2 30:3 31:2 31:3 28:6 28:7 29:6 29:7 30:6 30:7 31:6 31:7
"""
B_FIGURE = """
    0:0  4:0  8:0 12:0 16:0 20:0 24:0 28:0
    0:1  4:1  8:1 12:1 16:1 20:1 24:1 28:1
    1:0  5:0  9:0 13:0 17:0 21:0 25:0 29:0
    1:1  5:1  9:1 13:1 17:1 21:1 25:1 29:1
    2:0  6:0 10:0 14:0 18:0 22:0 26:0 30:0
    2:1  6:1 10:1 14:1 18:1 22:1 26:1 30:1
    3:0  7:0 11:0 15:0 19:0 23:0 27:0 31:0
    3:1  7:1 11:1 15:1 19:1 23:1 27:1 31:1
    0:2  4:2  8:2 12:2 16:2 20:2 24:2 28:2
    0:3  4:3  8:3 12:3 16:3 20:3 24:3 28:3
    1:2  5:2  9:2 13:2 17:2 21:2 25:2 29:2
    1:3  5:3  9:3 13:3 17:3 21:3 25:3 29:3
    2:2  6:2 10:2 14:2 18:2 22:2 26:2 30:2
    2:3  6:3 10:3 14:3 18:3 22:3 26:3 30:3
    3:2  7:2 11:2 15:2 19:2 23:2 27:2 31:2
    3:3  7:3 11:3 15:3 19:3 23:3 27:3 31:3
"""
D_FIGURE = """
     0:0  0:1  1:0  1:1  2:0  2:1  3:0  3:1
     4:0  4:1  5:0  5:1  6:0  6:1  7:0  7:1
     8:0  8:1  9:0  9:1 10:0 10:1 11:0 11:1
    12:0 12:1 13:0 13:1 14:0 14:1 15:0 15:1
    16:0 16:1 17:0 17:1 18:0 18:1 19:0 19:1
    20:0 20:1 21:0 21:1 22:0 22:1 23:0 23:1
    24:0 24:1 25:0 25:1 26:0 26:1 27:0 27:1
    28:0 28:1 29:0 29:1 30:0 30:1 31:0 31:1
     0:2  0:3  1:2  1:3  2:2  2:3  3:2  3:3
     4:2  4:3  5:2  5:3  6:2  6:3  7:2  7:3
     8:2  8:3  9:2  9:3 10:2 10:3 11:2 11:3
    12:2 12:3 13:2 13:3 14:2 14:3 15:2 15:3
    16:2 16:3 17:2 17:3 18:2 18:3 19:2 19:3
    20:2 20:3 21:2 21:3 22:2 22:3 23:2 23:3
    24:2 24:3 25:2 25:3 26:2 26:3 27:2 27:3
    28:2 28:3 29:2 29:3 30:2 30:3 31:2 31:3
"""
NAMES = {torch.bfloat16: "__nv_bfloat16", torch.float16: "__half"}


def places(figure):
    """Return (lanes, elements), each of the matrix's shape."""
    cells = [[cell.split(":") for cell in line.split()] for line in figure.strip().splitlines()]
    both = torch.tensor([[[int(part) for part in cell] for cell in row] for row in cells])
    return both[..., 0], both[..., 1]


def to_fragments(matrix, figure):
    lanes, elements = places(figure)
    fragments = torch.empty(32, matrix.numel() // 32, dtype=matrix.dtype)
    fragments[lanes, elements] = matrix
    return fragments


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(transposed):
    rows = torch.arange(256, dtype=torch.int16).view(4, 8, 8)
    fragments = torch.empty(32, 4, 2, dtype=torch.int16)
    name = f"load_fragments<{'true' if transposed else 'false'}>"
    samples.run(name, threads=32, shared_bytes=512, rows=rows, fragments=fragments)
    lanes = torch.tensor([int(lane) for lane in LDMATRIX_LANES.split()]).view(8, 8)
    halves = torch.arange(8).expand(8, 8) % 2
    for i in range(4):
        matrix = rows[i].t() if transposed else rows[i]
        assert torch.equal(fragments[lanes, i, halves], matrix)


@pytest.mark.parametrize("dtype", NAMES)
def test_mma(dtype):
    a, b, d = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype), torch.randn(16, 8)
    fragments = to_fragments(d, D_FIGURE)
    samples.run(
        f"multiply_fragments<{NAMES[dtype]}>",
        threads=32, a=to_fragments(a, A_FIGURE), b=to_fragments(b, B_FIGURE), d=fragments, times=1,
    )  # fmt: skip
    lanes, elements = places(D_FIGURE)
    torch.testing.assert_close(fragments[lanes, elements], d + a.float() @ b.float(), rtol=1e-6, atol=1e-5)


def test_mma_carries_infinities_and_subnormals():
    a, b, d = torch.zeros(16, 16), torch.zeros(16, 8), torch.zeros(16, 8)
    a[0, 0], a[1, 1], a[2, 2] = torch.inf, 2.0**-24, torch.nan  # 2^-24 is float16's smallest subnormal
    b[:3] = 1.0
    fragments = to_fragments(d, D_FIGURE)
    a_fragments, b_fragments = to_fragments(a.half(), A_FIGURE), to_fragments(b.half(), B_FIGURE)
    samples.run("multiply_fragments<__half>", threads=32, a=a_fragments, b=b_fragments, d=fragments, times=1)
    lanes, elements = places(D_FIGURE)
    product = fragments[lanes, elements]
    assert torch.equal(product[0], torch.full((8,), torch.nan).where(b[0] == 0, torch.inf))
    assert torch.equal(product[1], torch.full((8,), 2.0**-24))
    assert product[2].isnan().all()


def rate():
    """Return how many mma a second one warp makes."""
    a, b, d = torch.zeros(32, 8, dtype=torch.half), torch.zeros(32, 4, dtype=torch.half), torch.zeros(32, 4)
    load("samples")  # compiled and loaded before the clock starts
    start = time.process_time()
    samples.run("multiply_fragments<__half>", threads=32, a=a, b=b, d=d, times=100000)
    return 100000 / (time.process_time() - start)


if __name__ == "__main__":
    print(f"{rate() / 1000:.0f} mma.m16n8k16 a millisecond")
