"""What each method takes by K on P devices, each a process of its own: formulas of what the code
does, with constants of one device that :mod:`benchmarks.scale` measures and checks.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

#: Of the plan: what all of CIFAR-10 took, by rounds, outputs, vectors of a block, and steps.
ROUNDS, OUTPUTS, WIDTH, STEPS = 10, 10, 9, 70
LANDMARKS, DIMENSIONS = 1000, 16
#: Of sdntk: points of a tile, of a matrix that is not cut, vectors of a piece of the Krylov basis,
#: points of a block, and the rounds that ten are padded to.
TILE, ROWS_OF_TILES, UNCUT, PIECE, BLOCK, PADDED_ROUNDS = 1000, 4, 512, 126, 4000, 12
#: Tiles are stacked by so many bytes, and are there twice meanwhile.
STACK_BYTES = 2**26
#: Stacks that are there at once where tiles are computed again: some are computed ahead of the
#: product that waits for them.
STACKS_AHEAD = 5
#: Arrays of K x r that a Lanczos step holds at once, and m x m that a pass does.
OF_A_STEP, OF_A_PASS = 10, 8
_FLOAT = 8


class Constants(NamedTuple):
    """Seconds of one device.

    Attributes:
        value: for a value of the kernel.
        product: for an entry of a tile, times 9 vectors.
        vector: for an entry of the Lanczos vectors that 9 new ones are orthogonalised against.
        qr: for a point, to make 9 vectors orthonormal.
        multiply: for a product and a sum, where matrices are large.
        eigh: of an eigendecomposition, over K^3.
        point: for a point in a pass over 1,000 landmarks.
        walk: for a point that another process takes.
        start: of a pass: landmarks, their eigendecomposition, what they lack.
    """

    value: float
    product: float
    vector: float
    qr: float
    multiply: float
    eigh: float
    point: float
    walk: float
    start: float


class Cost(NamedTuple):
    """What a device takes, and receives from others.

    Attributes:
        seconds: without communication.
        memory: bytes.
        communication: bytes that it receives.
    """

    seconds: float
    memory: float
    communication: float


def tile_entries(size: int, devices: int) -> int:
    """Entries of the tiles of the fullest device: half of G, those on the diagonal whole."""
    if size <= UNCUT:
        return size**2
    wanted = min(max(size // ROWS_OF_TILES, 250), TILE)
    rows = math.ceil(size / wanted)
    side = math.ceil(size / rows)
    return math.ceil(rows * (rows + 1) // 2 / devices) * side**2


def all_reduce(num_bytes: float, devices: int) -> float:
    """Bytes that each receives: once to add its part, once to learn those of the others."""
    return 2 * (devices - 1) / devices * num_bytes


def dense(size: int, _: int, known: Constants) -> Cost:
    """By an eigendecomposition, which each process does by itself: G, G symmetrised, eigenvectors
    and twice as much work space.
    """
    seconds = known.value * tile_entries(size, 1) + known.eigh * size**3
    return Cost(seconds, 5 * _FLOAT * size**2, 0)


def lanczos(size: int, devices: int, known: Constants, steps: int = STEPS) -> Cost:
    """Tiles are computed once and multiplied twice, as themselves and as transposes. Every process
    has all Lanczos vectors and orthogonalises by itself, against whole pieces.
    """
    entries = tile_entries(size, devices)
    pieces = [math.ceil(step * WIDTH / PIECE) for step in range(1, steps + 1)]
    seconds = (
        entries * (known.value + 2 * steps * known.product)
        + size * PIECE * sum(pieces) * known.vector
        + 2 * steps * size * known.qr
    )
    held = pieces[-1] * PIECE + OF_A_STEP * WIDTH + DIMENSIONS
    received = steps * all_reduce(_FLOAT * size * WIDTH, devices)
    memory = _FLOAT * (entries + size * held) + min(STACK_BYTES, _FLOAT * entries)
    return Cost(seconds, memory, received)


def krylov(size: int, devices: int, known: Constants, steps: int = STEPS) -> Cost:
    """Lanczos steps, looks at their error bound, and all fitted values in every process: what each
    filled piece of the basis gives of them, one added after the other.
    """
    steps_taken = lanczos(size, devices, known, steps)
    fits = PADDED_ROUNDS * OUTPUTS
    filled = math.ceil(steps * WIDTH / PIECE)
    pieces = 2 if size < 2**14 else 8
    while pieces < filled:
        pieces *= 2
    looks = [16]
    while looks[-1] < steps:
        looks.append(looks[-1] + max(4, looks[-1] // 5))
    seconds = (
        steps_taken.seconds
        + known.eigh * sum((WIDTH * min(look, steps)) ** 3 for look in looks)
        + known.multiply * size * filled * PIECE * fits
    )
    # All empty pieces are one array. Tiles are kept meanwhile.
    tiles = _FLOAT * tile_entries(size, devices)
    basis = (filled + (pieces > filled)) * PIECE + DIMENSIONS + OUTPUTS
    with_fits = tiles + _FLOAT * size * (basis + 2 * fits)
    return steps_taken._replace(seconds=seconds, memory=max(steps_taken.memory, with_fits))


def recomputed(size: int, devices: int, known: Constants) -> Cost:
    """Likewise, but values are computed in every product and never kept."""
    kept, entries = krylov(size, devices, known), tile_entries(size, devices)
    again = entries * (STEPS - 1) * known.value
    ahead = STACKS_AHEAD * min(STACK_BYTES, _FLOAT * entries)
    memory = kept.memory - _FLOAT * entries + ahead
    return kept._replace(seconds=kept.seconds + again, memory=memory)


def nystrom(size: int, devices: int, known: Constants) -> Cost:
    """One pass over an array: whole blocks are one device's, every process walks over all of them;
    labels are held twice, and numbers of points are drawn; one sum in the end.
    """
    block = min(BLOCK, size)
    own = math.ceil(math.ceil(size / block) / devices) * block
    seconds = known.start + own * known.point + size * known.walk
    of_points = (DIMENSIONS + 2 * OUTPUTS + 3) * size
    memory = OF_A_PASS * LANDMARKS**2 + 3 * LANDMARKS * block + of_points
    received = all_reduce(_FLOAT * LANDMARKS * (LANDMARKS + OUTPUTS), devices)
    return Cost(seconds, _FLOAT * memory, received)


METHODS: dict[str, Callable[[int, int, Constants], Cost]] = {
    "dense": dense,
    "Krylov, Gram matrix kept": krylov,
    "Krylov, values recomputed": recomputed,
    "Nystrom, 1,000 landmarks": nystrom,
}
